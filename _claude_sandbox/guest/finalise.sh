# shellcheck shell=sh
# Run as root in the tools VM, last before it is stopped for good: what a clone must not share with
# its siblings goes, and is made anew at the clone's first boot (systemd: machine-id; cloud-init: ssh
# host keys). Caches go too, every clone would carry them.
set -eu
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: > /etc/machine-id
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
rm -rf /root/.cache /home/*/.cache /home/*/.npm
apt-get clean
rm -rf /var/lib/apt/lists/*
if command -v docker > /dev/null; then
    # The first `docker` command starts it by its socket; it need not delay each boot.
    systemctl disable docker.service containerd.service > /dev/null 2>&1 || true
    systemctl enable docker.socket > /dev/null
fi
journalctl --rotate --vacuum-time=1s > /dev/null 2>&1 || true
sync
