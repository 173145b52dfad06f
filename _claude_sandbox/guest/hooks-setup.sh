# As root: puts what makes Claude Code tell of itself (hooks/guest_setup.py) in place. $1: a directory with the files
# under their paths. Each is replaced by a rename: a Claude that starts meanwhile reads a whole one.
set -eu
umask 022
cd "$1"
find . -type f | while IFS= read -r file; do
    to=${file#.}
    [ -d "${to%/*}" ] || mkdir -p "${to%/*}"
    install -m 755 "$file" "$to.new"
    mv -f "$to.new" "$to"
done
