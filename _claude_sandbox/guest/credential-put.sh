# Replaces Claude's credential file by what follows the first line of stdin. That line is the sha256
# of what the host saw here before (`-`: nothing): exit code 75 when it changed in the meantime.
set -eu
umask 077
mkdir -p "$HOME/.claude"
file=$HOME/.claude/.credentials.json
read -r sum
now=-
if [ -f "$file" ]; then
    now=$(sha256sum <"$file")
    now=${now%% *}
fi
[ "$now" = "$sum" ] || exit 75
new=$(mktemp "$HOME/.claude/.credentials.XXXXXX")
trap 'rm -f "$new"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$new"
mv -f "$new" "$file"
