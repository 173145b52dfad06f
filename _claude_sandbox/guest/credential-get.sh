# Sends Claude's credential file, if there is one; past 64 KiB it is none of ours.
set -u
if [ -f "$HOME/.claude/.credentials.json" ]; then head -c 65536 "$HOME/.claude/.credentials.json"; fi
