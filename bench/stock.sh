#!/bin/sh
# In a clone of our tools VM, as root: the boot that Debian and Lima bring, instead of ours. For a benchmark
# on the same content, which with `initrd` as argument gets /boot/stock.kernel and /boot/stock.initrd too.
set -eu
systemctl disable claude-sandbox-init.service claude-sandbox-boot.service claude-sandbox-late.service \
    claude-sandbox-power.service claude-sandbox-swap.service
rm -rf /usr/lib/claude-sandbox /etc/systemd/system/claude-sandbox-*.service /var/lib/claude-sandbox \
    /etc/systemd/system-generators /etc/systemd/system/*.d/claude-sandbox.conf \
    /etc/systemd/journald.conf.d/claude-sandbox.conf /etc/tmpfiles.d/tmp.conf /etc/tmpfiles.d/claude-sandbox.conf \
    /etc/tmpfiles.d/systemd-nologin.conf /var/lib/systemd/linger \
    /etc/systemd/network/10-claude-sandbox.network /etc/systemd/network/99-default.link \
    /etc/initramfs-tools/hooks/claude-sandbox /etc/initramfs-tools/conf.d/claude-sandbox \
    /etc/cloud/cloud.cfg.d/91-claude-sandbox.cfg
# What is ours in full, or masked by us: the distribution's own takes its place.
for unit in /etc/systemd/system/*; do
    case $(readlink "$unit" || true) in /dev/null) rm "$unit" ;; esac
done
[ ! -f /etc/systemd/system/ssh.service ] || [ -L /etc/systemd/system/ssh.service ] || rm /etc/systemd/system/ssh.service
systemctl daemon-reload
systemctl enable ssh.service systemd-networkd.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer 2> /dev/null || true
if [ "${1:-}" = initrd ]; then
    for file in /boot/vmlinuz-*; do
        update-initramfs -c -k "${file#/boot/vmlinuz-}"
        cp "$file" /boot/stock.kernel
        cp "/boot/initrd.img-${file#/boot/vmlinuz-}" /boot/stock.initrd
    done
fi
cloud-init clean --logs
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /etc/netplan/50-cloud-init.yaml
: > /etc/machine-id
sync
