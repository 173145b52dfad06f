#!/bin/bash
# The user's part of the tools VM on Ubuntu: Claude Code and what is installed into the home
# directory. See system.sh for the rules.
# shellcheck disable=SC2154  # PARAM_… come from Lima
set -uo pipefail
[ ! -e ~/.local/share/claude-sandbox.user ] || exit 0
mkdir -p ~/.local/bin ~/.local/share
work=$(mktemp -d) && cd "$work" || exit
# Node and uv bring CAs of their own; the system's are the host's too where `ca: host` is set.
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt

want() { for name; do case " $PARAM_tools " in *" $name "*) return 0 ;; esac; done; return 1; }
step() { echo "claude-sandbox: $1"; "$@" || echo "claude-sandbox: $1 FAILED ($?)"; }
fetch() { curl -fsSL --proto '=https' --connect-timeout 30 --speed-limit 1000 --speed-time 60 --retry 3 "$@"; }

claude() { fetch https://claude.ai/install.sh | bash -s -- "$PARAM_claude"; }

node() {
    local arch
    [ "$(uname -m)" = aarch64 ] && arch=arm64 || arch=linux
    fetch -o fnm.zip "https://github.com/Schniz/fnm/releases/download/v$PARAM_fnm/fnm-$arch.zip" || return
    unzip -o -q fnm.zip -d ~/.local/bin && chmod 755 ~/.local/bin/fnm || return
    ~/.local/bin/fnm install "$PARAM_node" && ~/.local/bin/fnm default "$PARAM_node" || return
    PATH="$HOME/.local/share/fnm/aliases/default/bin:$PATH"
    npm install -g "npm@$PARAM_npm"
}

npm_packages() {
    local list=""
    want typescript && list="$list typescript@$PARAM_typescript"
    want ts-node && list="$list ts-node@$PARAM_tsnode"
    # shellcheck disable=SC2086  # a list of words
    npm install -g $list
}

rust() {
    fetch https://sh.rustup.rs | sh -s -- -y --no-modify-path --profile minimal \
        --default-toolchain "$PARAM_rust" --component clippy,rustfmt,rust-src,rust-analyzer
}

gopls() {
    # Its sources are not for every clone.
    GOPATH="$work/go" GOFLAGS=-modcacherw GOBIN="$HOME/go/bin" \
        /usr/local/go/bin/go install "golang.org/x/tools/gopls@v$PARAM_gopls"
}

uv() { fetch "https://astral.sh/uv/$PARAM_uv/install.sh" | env UV_NO_MODIFY_PATH=1 sh; }

jvm() {
    local failed=""
    fetch "https://get.sdkman.io?rcupdate=false&ci=true" | bash || return
    set +u
    # shellcheck disable=SC1090  # made by the line above
    . ~/.sdkman/bin/sdkman-init.sh
    sdk install java "$PARAM_java" < /dev/null || return
    candidate() { if want "$1"; then sdk install "$2" "$3" < /dev/null || failed="$failed $1"; fi; }
    candidate kotlin kotlin "$PARAM_kotlin"
    candidate scala scala "$PARAM_scala"
    candidate mvn maven "$PARAM_maven"
    candidate gradle gradle "$PARAM_gradle"
    candidate sbt sbt "$PARAM_sbt"
    set -u
    [ -z "$failed" ] || { echo "not installed:$failed"; return 1; }
}

if want claude; then step claude; fi
if want node npm typescript ts-node; then step node; fi
if want typescript ts-node; then step npm_packages; fi
if want rustc cargo rust-analyzer; then step rust; fi
if want gopls; then step gopls; fi
if want uv; then step uv; fi
if want java kotlin scala mvn gradle sbt; then step jvm; fi
rm -rf "$work"
touch ~/.local/share/claude-sandbox.user
