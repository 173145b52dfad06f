#!/bin/bash
# Root's part of the tools VM on Ubuntu: distribution packages, Docker CE, Go.
# PARAM_tools names the tools that are wanted, between spaces; the versions come as params too.
# A failure must not pass unseen (Lima reports none), and must not stop the other tools: each step
# runs on its own, and claude-sandbox runs every tool afterwards.
# shellcheck disable=SC2154  # PARAM_… come from Lima
set -uo pipefail
[ ! -e /var/lib/claude-sandbox.system ] || exit 0
# Services are not restarted under Lima's feet; each boot of a clone starts them all.
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
# Another apt at a first boot would hold the locks. For this boot only.
systemctl stop apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service \
    unattended-upgrades.service 2> /dev/null

want() { for name; do case " $PARAM_tools " in *" $name "*) return 0 ;; esac; done; return 1; }
step() { echo "claude-sandbox: $1"; "$@" || echo "claude-sandbox: $1 FAILED ($?)"; }
fetch() { curl -fsSL --proto '=https' --connect-timeout 30 --speed-limit 1000 --speed-time 60 --retry 3 "$@"; }
apt() { apt-get -o DPkg::Lock::Timeout=600 "$@"; }

packages() {
    local list="ca-certificates curl less rsync tzdata zip unzip"
    # The names of tools that are packages of the same name.
    for tool in git wget jq ripgrep cmake sox htop tree tmux gnupg pkg-config clang llvm; do
        want "$tool" && list="$list $tool"
    done
    want cc && list="$list build-essential libssl-dev"
    want python3 && list="$list python3 python3-pip python3-venv"
    apt update || return
    # shellcheck disable=SC2086  # a list of words
    apt install -y --no-install-recommends $list
}

zram() {
    # Ubuntu keeps the zram module apart from its cloud kernel's own.
    modprobe zram || apt install -y --no-install-recommends "linux-modules-extra-$(uname -r)"
}

docker() {
    local release
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    install -d -m 755 /etc/apt/keyrings
    fetch https://download.docker.com/linux/ubuntu/gpg -o /etc/apt/keyrings/docker.asc || return
    echo "deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc]" \
        "https://download.docker.com/linux/ubuntu $release stable" > /etc/apt/sources.list.d/docker.list
    apt update || return
    apt install -y docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin || return
    usermod -aG docker "{{.User}}"
}

go() {
    local file
    file="go$PARAM_go.linux-$(dpkg --print-architecture).tar.gz"
    fetch -O "https://dl.google.com/go/$file" || return
    echo "$(fetch "https://dl.google.com/go/$file.sha256")  $file" | sha256sum -c || return
    rm -rf /usr/local/go && tar -C /usr/local -xzf "$file"
}

work=$(mktemp -d) && cd "$work" || exit
step packages
step zram
if want docker; then step docker; fi
if want go; then step go; fi
rm -rf "$work"
touch /var/lib/claude-sandbox.system
