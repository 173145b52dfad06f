"""`limactl start` sees the guest's sshd at once, not at its next question three seconds later."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from _claude_sandbox.system import quoting
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.paths import private_dir
from _claude_sandbox.system.program import package_file

SHARED = "ssh.sock"  # in the instance directory: where Lima looks for its own master
KEPT = "claude-sandbox.sock"  # beside it; Lima clones no *.sock, and removes them with a VM that hangs


def environment(runtime: Path) -> dict[str, str | None]:
    """The change of PATH for `limactl start`. `runtime` is private to us.

    The script (ssh-retry.sh) and what it saves are described there; Lima itself calls plain `ssh`.
    """
    directory = private_dir(runtime / "ssh-wait")
    text = package_file("lima", "ssh-retry.sh").read_bytes()
    target = directory / "ssh"
    # Never rewritten in place: a start that goes on may be reading it.
    if not target.exists() or target.read_bytes() != text:
        write_atomic(target, text, 0o700)
    return {"PATH": f"{directory}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def through(directory: Path, control: Path, master: Callable[[Path], Sequence[str]]) -> dict[str, str | None]:
    """Lima and we share one connection, which Lima's first question opens: two logins less.

    `directory` is the instance's; `control` is where we look for our connection; `master(socket)` is the ssh
    command that opens one there. What an earlier boot left behind at these places goes.
    """
    shared, kept = directory / SHARED, directory / KEPT
    for left in (shared, kept, control):
        left.unlink(missing_ok=True)
    return {
        "CLAUDE_SANDBOX_MASTER": quoting.shell_quote(master(shared)[1:]),
        "CLAUDE_SANDBOX_SHARED": str(shared),
        "CLAUDE_SANDBOX_KEPT": str(kept),
        "CLAUDE_SANDBOX_CONTROL": str(control),
    }
