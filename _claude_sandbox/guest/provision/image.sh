#!/bin/sh
# Inside the root directory of a from-packages image (a chroot, no services): what packages alone do
# not give. $1 names the tools, between spaces; versions and registries come in the environment.
# Each step runs on its own: a registry that lacks one thing must not cost the others, and
# claude-sandbox runs every tool in the booted VM afterwards.
set -u
tools=" $1 "
here=${0%/*}
want() { case "$tools" in *" $1 "*) return 0 ;; esac; return 1; }
step() { echo "claude-sandbox: $1" >&2; "$@" >&2 || echo "claude-sandbox: $1 FAILED ($?)" >&2; }

npm_packages() {
    list=""
    want typescript && list="$list typescript@$PIN_TYPESCRIPT"
    want ts-node && list="$list ts-node@$PIN_TSNODE"
    # shellcheck disable=SC2086  # a list of words
    npm install --global --prefix /usr/local --cache /tmp/npm --no-audit --no-fund $list
}
uv() { python3 -m pip install --break-system-packages --no-cache-dir --no-deps "uv==$PIN_UV"; }
go() {
    # The distribution's Go fetches the pinned one: a release is a Go module like any other.
    module="golang.org/toolchain@v0.0.1-go$PIN_GO.linux-$(dpkg --print-architecture)"
    GOPATH=/tmp/go GOTOOLCHAIN=local command go mod download "$module" || return
    chmod -R u+w "/tmp/go/pkg/mod/$module" && mv "/tmp/go/pkg/mod/$module" /usr/local/go || return
    chmod 755 /usr/local/go/bin/* /usr/local/go/pkg/tool/*/*
    apt-get purge --yes --autoremove golang-go
}
gopls() {
    PATH="/usr/local/go/bin:$PATH"
    GOPATH=/tmp/go GOCACHE=/tmp/gocache GOBIN=/usr/local/bin \
        GOTOOLCHAIN=local command go install "golang.org/x/tools/gopls@v$PIN_GOPLS"
}
kotlin() {
    # Debian leaves out the file in which kotlin's launcher looks for its own version.
    version=$(dpkg-query --show --showformat='${Version}' kotlin)
    [ -e /usr/share/kotlin/kotlinc/build.txt ] || echo "${version%%+*}" > /usr/share/kotlin/kotlinc/build.txt
}
units() {
    sh "$here/lean.sh" || return
    if want docker; then
        # As Docker's own package has it: without Kubernetes' part, and without disks that are not here. The first
        # `docker` command waits for this daemon.
        cat > /etc/containerd/config.toml <<'CONFIG'
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
CONFIG
        systemctl disable docker.service containerd.service
        systemctl enable docker.socket
    fi
}

update-ca-certificates >&2
# mmdebstrap's copy of the host's sources, which may hold credentials: ours is beside it.
rm -f /etc/apt/sources.list.d/*
if want npm; then ln -sf ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm; fi
if want npm; then ln -sf ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx; fi
if want typescript || want ts-node; then step npm_packages; fi
if want uv; then step uv; fi
if want go; then step go; fi
if want gopls; then step gopls; fi
if want kotlin; then step kotlin; fi
step units
rm -rf /tmp/npm /tmp/go /tmp/gocache /root/.cache /root/.npm /root/.config
# Lima's DNS; each guest's own name comes at boot. Host keys and ids are made by each VM.
echo "nameserver 192.168.5.3" > /etc/resolv.conf
printf '127.0.0.1 localhost\n::1 localhost\n' > /etc/hosts
echo lima > /etc/hostname
echo LANG=C.UTF-8 > /etc/default/locale
# The host's extra CAs were for the build; sandboxes get them with `ca: host` only.
rm -f /usr/local/share/ca-certificates/host-*.crt
update-ca-certificates --fresh > /dev/null
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: > /etc/machine-id
# Where the kernel and the initrd are is the same for every version. Without an initrd there is no image.
for file in /boot/vmlinuz-*; do cp "$file" /boot/claude-sandbox.kernel; done
for modules in /lib/modules/*; do
    sh "$here/initrd.sh" "${modules##*/}" "$here" /boot/claude-sandbox.initrd || exit
done
rm -f /boot/initrd.img-*
chmod 644 /boot/claude-sandbox.kernel /boot/claude-sandbox.initrd
rm -rf "$here"
