#!/bin/sh
# Packs the initrd of a from-packages image, in its root directory: a shell script, klibc's programs and
# the modules that a VM needs, uncompressed (unpacking costs more than reading, under emulation seconds).
# $1: the kernel's version, $2: the directory with init, $3: the file to write.
set -eu
version=$1 source=$2 target=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/lib" "$work/modules"
cp "$source/init" "$work/init"
chmod 755 "$work/init"
for name in sh mkdir mount insmod ipconfig sleep poweroff run-init; do
    cp "/usr/lib/klibc/bin/$name" "$work/bin/"
done
cp /lib/klibc-*.so "$work/lib/"

# list N NAME…: what these modules need, in the order in which they load, each once. What the kernel
# has built in, or what another machine type has, is left out.
seen=" "
list() {
    : > "$work/modules.$1"
    number=$1
    shift
    for wanted; do
        modprobe --set-version="$version" --ignore-install --show-depends "$wanted" 2> /dev/null || true
    done | while read -r verb path _; do
        [ "$verb" = insmod ] || continue
        echo "$path"
    done > "$work/paths"
    while read -r path; do
        file=${path##*/}
        name=${file%%.ko*}.ko
        case $seen in *" $name "*) continue ;; esac
        seen="$seen$name "
        case $file in
            *.xz) xz -dc "$path" > "$work/modules/$name" ;;
            *.zst) zstd -qdc "$path" > "$work/modules/$name" ;;
            *.gz) gzip -dc "$path" > "$work/modules/$name" ;;
            *) cp "$path" "$work/modules/$name" ;;
        esac
        echo "$name" >> "$work/modules.$number"
    done < "$work/paths"
    rm "$work/paths"
}
list 1 virtio_pci virtio_mmio virtio_net
list 2 virtio_blk crc32c_generic crc32c_intel ext4
# Lima's cidata disk, mounts, the guest agent's port; button and evdev are how logind hears `limactl stop`.
list 3 virtio_scsi sr_mod isofs 9pnet_virtio 9p fuse virtiofs virtio_console virtio_rng \
    button gpio_keys gpio_pl061 evdev
(cd "$work" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) > "$target"
