#!/bin/sh
# Try this checkout on a Debian that has nothing: a minimal root made by mmdebstrap, entered by pivot_root.
# As root on Linux; .ci/run uses it too. What the network here needs (apt sources, extra CAs, pip.conf,
# resolv.conf) is taken from this machine, and its Go toolchain is lent when it has one at /usr/local/go.
#
#   tests/fresh-machine.sh DIRECTORY                     a shell as root
#   tests/fresh-machine.sh DIRECTORY root COMMAND…       a command as root, in a clone of the checkout
#   tests/fresh-machine.sh DIRECTORY user COMMAND…       as jane, an ordinary user with sudo
#   tests/fresh-machine.sh DIRECTORY nosudo COMMAND…     as joe, an ordinary user without
# What the command leaves running ends with it; its files stay in DIRECTORY.
set -eu
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 1; }
here=$(cd "$(dirname "$0")/.." && pwd -P)
root=$1 who=${2:-root}
[ $# -lt 2 ] && shift || shift 2
. /etc/os-release

if [ ! -e "$root/etc/fresh" ]; then
    rm -rf "$root"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,sudo "$VERSION_CODENAME" "$root"
    cp -r /etc/apt/sources.list.d/. "$root/etc/apt/sources.list.d"
    rm -f "$root/etc/apt/sources.list.d/"*disabled*
    [ ! -s "$root/etc/apt/sources.list.d/debian.sources" ] || rm -f "$root/etc/apt/sources.list"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
    chroot "$root" update-ca-certificates --fresh >/dev/null
    for name in jane joe; do
        chroot "$root" useradd --create-home --shell /bin/bash "$name"
    done
    echo 'jane ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/jane"
    touch "$root/etc/fresh"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"
case $who in
root) home=/root id=0 ;;
user) home=/home/jane id=$(chroot "$root" id -u jane) ;;
nosudo) home=/home/joe id=$(chroot "$root" id -u joe) ;;
*) echo "root, user or nosudo, not $who" >&2; exit 1 ;;
esac

# A clone, with what is not committed yet.
clone=$root$home/claude-sandbox
rm -rf "${clone:?}"
git -c safe.directory='*' clone --quiet --no-checkout --no-hardlinks "$here" "$clone"
(cd "$here" && git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- --ignore-failed-read -cf -) | tar -C "$clone" -xf -
git -C "$clone" reset --quiet
chown -R "$id:$id" "$clone"
mkdir -p "$root/usr/local/go"

bundle=/etc/ssl/certs/ca-certificates.crt
[ $# -gt 0 ] || set -- bash -i
# pivot_root and not chroot: in a chroot the kernel refuses user namespaces, which root needs here.
exec unshare --mount --pid --fork --kill-child --propagation private sh -eu -c '
    root=$1 id=$2 home=$3 bundle=$4
    shift 4
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/run"
    [ ! -d /usr/local/go/bin ] || mount --bind -o ro /usr/local/go "$root/usr/local/go"
    mkdir -p "$root/old"
    cd "$root"
    pivot_root . old
    exec env -i HOME="$home" USER="$(basename "$home")" TERM="${TERM:-dumb}" LANG=C.UTF-8 ${CI:+CI="$CI"} \
        PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SSL_CERT_FILE="$bundle" PIP_CERT="$bundle" NODE_EXTRA_CA_CERTS="$bundle" \
        chroot . sh -c "umount -l /old; cd \"\$HOME/claude-sandbox\"; id=\$1; shift
            exec setpriv --reuid=\"\$id\" --regid=\"\$id\" --init-groups \"\$@\"" - "$id" "$@"
' - "$root" "$id" "$home" "$bundle" "$@"
