# Sends the host, as one tar on stdout, the state of this guest: the manifest of what the last
# launch brought, the hashes of the files in ~/.claude, and the few files that the host merges.
# POSIX sh with find, stat, sha256sum, cmp and tar (GNU or BusyBox). claude_home/push.py
# inserts EXCLUDED and NESTED: Claude's own runtime state, which is never compared; and MANAGED: files of hooks/guest_setup.py.
set -u
umask 077
state=$HOME/.claude-sandbox
# Programs are slow to start under emulation, so the usual case runs find, stat, cmp and tar, no more.
if [ ! -d "$state" ] || [ ! -d "$HOME/.claude" ]; then mkdir -p "$state" "$HOME/.claude"; fi
cd "$HOME/.claude" || exit 1

set --
for entry in * .[!.]* ..?*; do
    case $entry in
    EXCLUDED) continue ;;
    esac
    if [ -e "$entry" ] || [ -L "$entry" ]; then set -- "$@" "./$entry"; fi
done

# Hashing costs; a listing of sizes, inodes and times does not. Same listing as last time: same hashes.
: >"$state/listing.new"
if [ $# -gt 0 ]; then
    find "$@" NESTED \( -type f -o -type l \) -exec stat -c '%a %s %i %y %z %n' {} + >"$state/listing.new"
fi
if [ ! -f "$state/hashes" ] || ! cmp -s "$state/listing.new" "$state/listing"; then
    rm -f "$state/listing"
    : >"$state/hashes.new"
    whole=yes # what was cut off by a full disk must not be taken for the truth when there is room again
    if [ $# -gt 0 ]; then
        {
            find "$@" NESTED -type f -exec sha256sum {} + || whole=
            find "$@" NESTED -type f -perm -100 -exec printf 'executable  %s\n' {} + || whole=
            find "$@" NESTED -type l -exec printf 'link  %s\n' {} + || whole=
        } >"$state/hashes.new"
    fi
    mv -f "$state/hashes.new" "$state/hashes"
    if [ -n "$whole" ]; then cp "$state/listing.new" "$state/listing"; fi
fi

known=
if [ -f "$state/git" ]; then
    while read -r key _; do known="$known $key"; done <"$state/git"
fi
case $known in
*user.name*user.email* | *user.email*user.name*) ;;
*) git config --global --get-regexp '^user\.(name|email)$' >"$state/git" 2>/dev/null ;;
esac

# .claude.json last: an answer that is cut off at the host's limit loses only the largest of them.
cd "$HOME" || exit 1
set --
for file in .claude-sandbox/manifest.json .claude-sandbox/hashes .claude-sandbox/git \
    .claude/settings.json .claude/.credentials.json .claude.json; do
    if [ -f "$file" ]; then set -- "$@" "$file"; fi
done
for file in MANAGED; do
    if [ -f "$file" ]; then set -- "$file" "$@"; fi
done
exec tar -chf - "$@"
