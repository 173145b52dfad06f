#!/bin/sh
# Inside the root directory of a from-packages image: a boot with what a sandbox needs. Each entry that is
# here for its time is in docs/performance.md with its measurement.
set -eu
mask() { for unit; do ln -sfn /dev/null "/etc/systemd/system/$unit"; done; }

# Timers would wake up, and work, in every sandbox at once.
mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    dpkg-db-backup.timer man-db.timer systemd-tmpfiles-clean.timer
# Nobody sits at a sandbox's console, its kernel has what it needs loaded, its logs are in memory.
mask getty.target systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-network-generator.service \
    kmod-static-nodes.service modprobe@.service systemd-sysusers.service systemd-random-seed.service \
    systemd-journal-flush.service systemd-machine-id-commit.service systemd-ask-password-console.path \
    systemd-ask-password-wall.path dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-networkd-wait-online.service
# A user's own /etc/fstab and zram are kept; cloud-init is started by our handover.
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/* /lib/systemd/system-generators/*; do
    case ${generator##*/} in systemd-fstab-generator | zram-generator | '*') continue ;; esac
    ln -sfn /dev/null "/etc/systemd/system-generators/${generator##*/}"
done
# The whole machine's devices: late, and only some (guest/files/usr/lib/claude-sandbox/late). Our handover
# to cloud-init starts both.
rm -f /etc/systemd/system/*.wants/systemd-networkd.service /etc/systemd/system/*.wants/systemd-networkd.socket \
    /etc/systemd/system/*.wants/systemd-network-generator.service \
    /etc/systemd/system/*.wants/systemd-networkd-wait-online.service
mkdir -p /etc/systemd/system/systemd-udev-trigger.service.d
printf '[Unit]\nConditionPathExists=/run/claude-sandbox/handover\n' \
    > /etc/systemd/system/systemd-udev-trigger.service.d/claude-sandbox.conf
# The kernel's names: the network is up before udev could give others.
ln -sfn /dev/null /etc/systemd/network/99-default.link
# Nodes that kmod-static-nodes would find: opening one loads its module.
mkdir -p /etc/tmpfiles.d
cat > /etc/tmpfiles.d/claude-sandbox.conf <<'NODES'
c! /dev/fuse 0666 - - - 10:229
d /dev/net 0755 - - -
c! /dev/net/tun 0666 - - - 10:200
c! /dev/loop-control 0660 - disk - 10:237
NODES
# cloud-init's: at each login shell it runs `locale` to say how to install the host's. Here it is C.UTF-8.
rm -f /etc/profile.d/Z99-cloud-locale-test.sh /etc/profile.d/Z99-cloudinit-warnings.sh
# A login shell asks `id` for the user's number; $EUID of bash says it. sh keeps asking.
sed -i 's/\[ "`id -u`" -eq 0 \]/[ "${EUID:-`id -u`}" -eq 0 ]/; s/\[ "$(id -u)" -eq 0 \]/[ "${EUID:-$(id -u)}" -eq 0 ]/' /etc/profile
systemctl enable ssh.service claude-sandbox-init.service claude-sandbox-boot.service claude-sandbox-late.service
