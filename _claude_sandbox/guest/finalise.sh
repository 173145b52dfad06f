# shellcheck shell=sh
# Run as root in the tools VM, as the last step before it is stopped: removes what clones must not share.
# The clone's first boot makes that again (systemd: machine-id; cloud-init: ssh host keys). Caches are
# removed too: every clone would carry them.
set -eu
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/claude-sandbox/machine
: > /etc/machine-id
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
rm -rf /root/.cache /home/*/.cache /home/*/.npm
# The host's CAs were for the build; sandboxes get them with `ca: host` only.
cas=$(ls /usr/local/share/ca-certificates/cloud-init-ca-cert-*.crt /usr/share/ca-certificates/cloud-init-ca-certs.crt \
    2> /dev/null || true)
if [ -n "$cas" ]; then
    # shellcheck disable=SC2086  # cloud-init's own names
    rm -f $cas
    sed -i '/^cloud-init-ca-certs\.crt$/d' /etc/ca-certificates.conf
    update-ca-certificates > /dev/null
fi
apt-get clean
rm -rf /var/lib/apt/lists/*
if command -v docker > /dev/null; then
    # The first `docker` command starts it by its socket; it need not delay each boot.
    systemctl disable docker.service containerd.service > /dev/null 2>&1 || true
    systemctl enable docker.socket > /dev/null
    # Of the trial's daemon. Each start takes back what it finds here and makes it again: forty iptables more.
    systemctl stop docker.socket docker.service > /dev/null 2>&1 || true
    rm -f /var/lib/docker/network/files/local-kv.db
fi
journalctl --rotate --vacuum-time=1s > /dev/null 2>&1 || true
# From here on our own init sets up each boot; cloud-init would find its network from Lima's cidata again.
rm -f /etc/netplan/50-cloud-init.yaml
if ! systemctl is-enabled --quiet claude-sandbox-init.service; then
    # An image that brings its own boot: only cloud-init's part of it is replaced.
    systemctl enable claude-sandbox-init.service claude-sandbox-boot.service claude-sandbox-late.service \
        claude-sandbox-swap.service
    mkdir -p /etc/systemd/system-generators
    ln -sfn /dev/null /etc/systemd/system-generators/cloud-init-generator
fi
# The user's manager starts with the boot, not with the first login. Lima's own boot.sh has it so, too.
mkdir -p /var/lib/systemd/linger
: > "/var/lib/systemd/linger/$SUDO_USER"
mkdir -p /var/lib/claude-sandbox
# The disk's size is noted, or each clone would try to grow it at its first boot.
# shellcheck disable=SC2034  # for apply.sh
ROOT=''
# shellcheck source=/dev/null
. /usr/lib/claude-sandbox/apply.sh
apply_growth > /dev/null || true
: > /var/lib/claude-sandbox/whole
sync
