# Bring the newest Claude Code into this guest; prints its version on the last line of stdout.
# Three ways, by how it came: its own updater, the vendor's installer, the npm package.
set -eu
unset DISABLE_AUTOUPDATER

newest_from_npm() {
  command -v npm >/dev/null || return 1
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  case $(uname -m) in x86_64) arch=x64;; aarch64) arch=arm64;; *) return 1;; esac
  (cd "$work" && npm pack --silent "@anthropic-ai/claude-code-linux-$arch" >/dev/null && tar xzf ./*.tgz) || return 1
  mkdir -p "$HOME/.local/bin"
  install -m 755 "$work/package/claude" "$HOME/.local/bin/claude"
}

from_installer() {
  command -v curl >/dev/null || return 1
  script=$(mktemp)
  curl -fsSL --max-time 60 https://claude.ai/install.sh -o "$script" && bash "$script"
}

if from_installer >&2 || newest_from_npm >&2; then
  bash -lc 'claude --version'
else
  echo "neither the vendor's installer nor the npm registry can be reached from this guest" >&2
  exit 1
fi
