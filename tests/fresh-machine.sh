#!/bin/sh
# Try this checkout on a Debian that has nothing: a minimal root made by mmdebstrap, entered by chroot.
# For people, not CI; as root on Linux. What the network here needs (apt sources, extra CAs, resolv.conf)
# is taken from this machine, and its Go toolchain is lent when it has one at /usr/local/go.
#
#   tests/fresh-machine.sh DIRECTORY                    a shell as root
#   tests/fresh-machine.sh DIRECTORY root COMMAND…      a command as root, in the copied checkout
#   tests/fresh-machine.sh DIRECTORY user COMMAND…      as an ordinary user with sudo
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
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
    chroot "$root" update-ca-certificates --fresh >/dev/null
    chroot "$root" useradd --create-home --shell /bin/bash jane
    echo 'jane ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/jane"
    touch "$root/etc/fresh"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"
case $who in
root) home=/root id=0 ;;
*) home=/home/jane id=$(chroot "$root" id -u jane) ;;
esac
rm -rf "${root:?}$home/claude-sandbox"
mkdir -p "$root$home/claude-sandbox" "$root/usr/local/go"
tar -C "$here" --exclude=./.git --exclude='*cache*' -cf - . | tar -C "$root$home/claude-sandbox" -xf -
chown -R "$id:$id" "$root$home/claude-sandbox"

bundle=/etc/ssl/certs/ca-certificates.crt
[ $# -gt 0 ] || set -- bash -i
# pivot_root and not chroot: in a chroot the kernel refuses user namespaces, which root needs here.
exec unshare --mount --pid --fork --propagation private sh -eu -c '
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
    exec env -i HOME="$home" USER="$(basename "$home")" TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SSL_CERT_FILE="$bundle" PIP_CERT="$bundle" NODE_EXTRA_CA_CERTS="$bundle" \
        chroot . sh -c "umount -l /old; cd \"\$HOME/claude-sandbox\"; id=\$1; shift
            exec setpriv --reuid=\"\$id\" --regid=\"\$id\" --init-groups \"\$@\"" - "$id" "$@"
' - "$root" "$id" "$home" "$bundle" "$@"
