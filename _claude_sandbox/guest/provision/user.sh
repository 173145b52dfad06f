#!/bin/bash
# The user's part of the tools VM on Ubuntu: Claude Code and what is installed into the home
# directory. See system.sh for the rules.
# shellcheck disable=SC2154  # PARAM_… come from Lima
set -uo pipefail
[ ! -e ~/.local/share/claude-sandbox.user ] || exit 0
mkdir -p ~/.local/bin ~/.local/share
cd "$(mktemp -d)" || exit 1

want() { for name; do case " $PARAM_tools " in *" $name "*) return 0 ;; esac; done; return 1; }
step() { echo "claude-sandbox: $1"; "$@" || echo "claude-sandbox: $1 FAILED ($?)"; }
fetch() { curl -fsSL --proto '=https' --retry 3 "$@"; }

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

gopls() { GOBIN="$HOME/go/bin" /usr/local/go/bin/go install "golang.org/x/tools/gopls@v$PARAM_gopls"; }

uv() { fetch "https://astral.sh/uv/$PARAM_uv/install.sh" | env UV_NO_MODIFY_PATH=1 sh; }

jvm() {
    fetch "https://get.sdkman.io?rcupdate=false&ci=true" | bash || return
    set +u
    # shellcheck disable=SC1090  # made by the line above
    . ~/.sdkman/bin/sdkman-init.sh
    sdk install java "$PARAM_java" < /dev/null || return
    want kotlin && sdk install kotlin "$PARAM_kotlin" < /dev/null
    want scala && sdk install scala "$PARAM_scala" < /dev/null
    want mvn && sdk install maven "$PARAM_maven" < /dev/null
    want gradle && sdk install gradle "$PARAM_gradle" < /dev/null
    want sbt && sdk install sbt "$PARAM_sbt" < /dev/null
    set -u
}

if want claude; then step claude; fi
if want node npm typescript ts-node; then step node; fi
if want typescript ts-node; then step npm_packages; fi
if want rustc cargo rust-analyzer; then step rust; fi
if want gopls; then step gopls; fi
if want uv; then step uv; fi
if want java kotlin scala mvn gradle sbt; then step jvm; fi
touch ~/.local/share/claude-sandbox.user
