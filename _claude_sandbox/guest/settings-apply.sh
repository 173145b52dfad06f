# Takes a tar from the host and puts its files in place. $1: the directory below ~/.claude for what
# is set aside, named by its time; the newest 20 of those are kept. Nothing is touched before the tar is complete; each file is replaced by a rename; the
# manifest comes last, so that an interrupted run is repeated as a whole by the next launch.
# Exit codes: 74 the tar was cut off, 75 a file changed since the host looked (the host looks again).
set -eu
umask 077
aside=./$1
state=$HOME/.claude-sandbox
mkdir -p "$state" "$HOME/.claude"
rm -rf "$state"/incoming.*
stage=$(mktemp -d "$state/incoming.XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' HUP INT TERM
tar -xpf - -C "$stage"
[ -f "$stage/complete" ] || exit 74

while read -r sum path; do
    now=-
    if [ -f "$HOME/$path" ]; then
        now=$(sha256sum <"$HOME/$path")
        now=${now%% *}
    fi
    [ "$now" = "$sum" ] || exit 75
done <"$stage/expect"

cd "$HOME/.claude"
while IFS= read -r path; do
    if [ -e "./$path" ] || [ -L "./$path" ]; then
        to=$aside/$path
        mkdir -p "${to%/*}"
        cp -pPR "./$path" "$to"
    fi
done <"$stage/save"
if [ -d "$stage/aside" ]; then
    mkdir -p "$aside"
    cp -R "$stage/aside/." "$aside/"
fi

sed 's,^,./,' <"$stage/remove" | tr '\n' '\0' | xargs -0 rm -f
while IFS= read -r path; do
    rmdir "./$path" 2>/dev/null || : # not empty: the guest has files of its own there
done <"$stage/empty"

# place STAGED TARGET: what is new moves as a whole, an existing directory is entered. A directory
# (or a link to one) where a file must go, and the reverse, is set aside.
place() {
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        [ -e "$entry" ] || continue
        to=$2/${entry##*/}
        if [ -d "$entry" ] && [ -d "$to" ] && [ ! -L "$to" ]; then
            place "$entry" "$to"
            continue
        fi
        if [ -d "$to" ] || { [ -d "$entry" ] && { [ -e "$to" ] || [ -L "$to" ]; }; }; then
            kept=$aside/$to
            mkdir -p "${kept%/*}"
            mv -f "$to" "$kept"
        fi
        mv -f "$entry" "$2/"
    done
}
if [ -d "$stage/files" ]; then place "$stage/files" .; fi

if [ -f "$stage/claude.json" ]; then mv -f "$stage/claude.json" "$HOME/.claude.json"; fi
if [ -f "$stage/credentials.json" ]; then mv -f "$stage/credentials.json" .credentials.json; fi
if command -v git >/dev/null; then
    for key in name email; do
        if [ -f "$stage/git.$key" ]; then git config --global "user.$key" "$(cat "$stage/git.$key")"; fi
    done
fi
# What every conflict leaves would grow without end: the oldest go. The names sort by time.
set -- "${aside%/*}"/[0-9]*T[0-9]*Z
while [ $# -gt 20 ]; do
    rm -rf "$1"
    shift
done
# Root's part. A guest where that does not work has Claude all the same; the host says so.
if [ -d "$stage/root" ]; then sudo -n sh "$stage/hooks-setup.sh" "$stage/root" >&2 || echo hooks-failed; fi
mv -f "$stage/manifest.json" "$state/manifest.json"
