"""Whether a Claude in a running VM is busy: asked before that VM is stopped."""

from __future__ import annotations

from _claude_sandbox.errors import GuestConnectionError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.lima import readiness
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system.jsonio import parse_object

# One line a live Claude process: what it says of itself (facts/claude-code.md, Environment).
_WORKING = """
for f in "$HOME"/.claude/sessions/*.json; do
  pid=${f##*/}; pid=${pid%.json}
  [ -e "/proc/$pid" ] && head -c 4096 "$f" | tr -d '\\n' && echo
done; true
"""


def claude_working(ctx: Context, instance: Instance) -> bool:
    """Whether a Claude in this running VM is busy. False when the guest does not answer.

    The hooks server is asked first; the guest only when that one knows of no session there.
    """
    known = hooks_client.busy(instance.name)
    if known is not None:
        return known
    if not readiness.was_ready(instance):
        return False
    try:
        guest = ctx.guest(instance)
        guest.connect(timeout=10)
        text = guest.run(_WORKING, timeout=10).text
    except GuestConnectionError:
        return False
    for line in text.splitlines()[:100]:
        if (parse_object(line.encode("utf-8", "replace")) or {}).get("status") == "busy":
            return True
    return False
