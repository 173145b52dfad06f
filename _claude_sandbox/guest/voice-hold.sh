# Runs in the guest while its way to the host's microphone stands: puts the wrappers (voice.sh, in $wrapper)
# where a session that was launched with --voice has them on PATH. voice/guest_setup.py puts what holds the
# connection behind it.
umask 077
place=$HOME/.claude-sandbox/voice
mkdir -p "$place"
for name in rec arecord; do
    printf '%s' "$wrapper" >"$place/.$name.new" && chmod 700 "$place/.$name.new" && mv -f "$place/.$name.new" "$place/$name"
done
