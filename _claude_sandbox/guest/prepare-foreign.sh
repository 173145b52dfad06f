# Make a guest that is not our tools VM fit for Claude Code. Runs in the guest as its user, twice unharmed.
set -eu

# 1. Our one variable with environment and credentials may come in over ssh.
conf=/etc/ssh/sshd_config.d/60-claude-sandbox.conf
if [ ! -e "$conf" ]; then
  sudo mkdir -p /etc/ssh/sshd_config.d
  printf 'AcceptEnv CLAUDE_SANDBOX_ENV\nMaxSessions 100\n' | sudo tee "$conf" >/dev/null
  sudo grep -qs '^Include /etc/ssh/sshd_config.d' /etc/ssh/sshd_config ||
    sudo sed -i '1i Include /etc/ssh/sshd_config.d/*.conf' /etc/ssh/sshd_config
  sudo systemctl reload ssh 2>/dev/null || sudo systemctl reload sshd
fi

# 2. ~/.local/bin is on PATH in login shells.
mkdir -p "$HOME/.local/bin"
if [ ! -e /etc/profile.d/claude-sandbox.sh ]; then
  printf '%s\n' 'case ":$PATH:" in *":$HOME/.local/bin:"*) ;; *) PATH="$HOME/.local/bin:$PATH" ;; esac' |
    sudo tee /etc/profile.d/claude-sandbox.sh >/dev/null
fi

# 3. Claude Code: the vendor's installer, else the npm package.
if ! bash -lc 'command -v claude' >/dev/null 2>&1; then
  if command -v curl >/dev/null && curl -fsSL --max-time 60 https://claude.ai/install.sh -o /tmp/claude-install.sh; then
    bash /tmp/claude-install.sh >&2
  elif command -v npm >/dev/null; then
    npm install --prefix "$HOME/.local" -g @anthropic-ai/claude-code >&2
  else
    echo "Claude Code could not be installed: its installer cannot be reached and the guest has no npm" >&2
    exit 1
  fi
fi

# 4. The probe.
bash -lc 'claude --version' >&2
