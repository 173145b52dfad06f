"""What runs in a guest while the host's microphone can be reached: it puts the wrappers (voice.sh) in place."""

from __future__ import annotations

from _claude_sandbox.lima.ssh import guest_script
from _claude_sandbox.system import quoting

# Said once the wrappers are in place; then the script lives as long as the connection.
_HOLD = 'echo "ready $1"\nexec cat >/dev/null\n'


def script() -> str:
    """For a service of the daemon (lima.socket_forward.Socket)."""
    return f"wrapper={quoting.quoted(guest_script('voice.sh'))}\n{guest_script('voice-hold.sh')}{_HOLD}"
