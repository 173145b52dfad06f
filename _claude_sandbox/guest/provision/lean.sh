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
# Docker loads its containers' profile itself.
mask apparmor.service
# Our initrd mounts the root for writing. Nobody logs in before the boot is whole: sshd waits for our init, and
# a login for logind.
mask systemd-remount-fs.service systemd-user-sessions.service
mkdir -p /etc/tmpfiles.d
ln -sfn /dev/null /etc/tmpfiles.d/systemd-nologin.conf
# drop_in UNIT LINE…: adds to a unit of the distribution's.
drop_in() {
    mkdir -p "/etc/systemd/system/$1.d"
    unit=$1
    shift
    printf '%s\n' "$@" > "/etc/systemd/system/$unit.d/claude-sandbox.conf"
}
# What a login needs, as soon as systemd runs, and not behind the rest of the boot.
for unit in dbus.socket dbus.service user-runtime-dir@.service user@.service; do
    drop_in "$unit" '[Unit]' DefaultDependencies=no Conflicts=shutdown.target Before=shutdown.target
done
# A /tmp of its own would make it wait for systemd-tmpfiles.
drop_in systemd-logind.service '[Unit]' DefaultDependencies=no Conflicts=shutdown.target \
    Before=shutdown.target '[Service]' PrivateTmp=no
# The rest of the boot behind it.
for unit in systemd-modules-load.service systemd-sysctl.service systemd-tmpfiles-setup-dev.service; do
    drop_in "$unit" '[Unit]' After=ssh.service
done
# udev when Lima's logins are through (guest/files/usr/lib/claude-sandbox/late), or cloud-init wants it.
for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket; do
    drop_in "$unit" '[Unit]' 'ConditionPathExists=|/run/claude-sandbox/devices' \
        'ConditionPathExists=|/run/claude-sandbox/handover'
done
# A user's own /etc/fstab is kept; cloud-init is started by our handover.
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/* /lib/systemd/system-generators/*; do
    case ${generator##*/} in systemd-fstab-generator | '*') continue ;; esac
    ln -sfn /dev/null "/etc/systemd/system-generators/${generator##*/}"
done
# The whole machine's devices: late, and only some (guest/files/usr/lib/claude-sandbox/late). Our handover
# to cloud-init starts both.
rm -f /etc/systemd/system/*.wants/systemd-networkd.service /etc/systemd/system/*.wants/systemd-networkd.socket \
    /etc/systemd/system/*.wants/systemd-network-generator.service \
    /etc/systemd/system/*.wants/systemd-networkd-wait-online.service
drop_in systemd-udev-trigger.service '[Unit]' ConditionPathExists=/run/claude-sandbox/handover
# The kernel's names: the network is up before udev could give others.
ln -sfn /dev/null /etc/systemd/network/99-default.link
# Nodes that kmod-static-nodes would find: opening one loads its module.
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
systemctl enable ssh.service claude-sandbox-init.service claude-sandbox-boot.service claude-sandbox-late.service \
    claude-sandbox-power.service claude-sandbox-swap.service
