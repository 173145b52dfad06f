"""`limactl start` sees the guest's sshd at once, not at its next question three seconds later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from _claude_sandbox import remote
from _claude_sandbox.files import write_atomic
from _claude_sandbox.paths import private_dir


def environment(runtime: Path) -> dict[str, str | None]:
    """The change of PATH for `limactl start`. `runtime` is private to us.

    The script (ssh-wait.sh) and what it saves are described there; Lima itself calls plain `ssh`.
    """
    directory = private_dir(runtime / "ssh-wait")
    text = Path(__file__).with_name("ssh-wait.sh").read_bytes()
    target = directory / "ssh"
    # Never rewritten in place: a start that goes on may be reading it.
    if not target.exists() or target.read_bytes() != text:
        write_atomic(target, text, 0o700)
    return {"PATH": f"{directory}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def through(control: Path, master: Sequence[str]) -> dict[str, str | None]:
    """Lima's first questions go over this master of ours, which the first of them opens: a login less each.

    `master` is its ssh command, `control` its socket; the file of an earlier boot must be gone.
    """
    return {
        "CLAUDE_SANDBOX_MASTER": remote.shell_quote(master[1:]),
        "CLAUDE_SANDBOX_CONTROL": str(control),
    }
