"""What every verb needs: Lima on this host, the guest's user, and a way to tell and to ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _claude_sandbox.lima.limactl import Instance, Lima
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Runner
from _claude_sandbox.vm import mark as vm_mark

Confirm = Callable[[str], bool | None]
"""Asks a yes/no question; None when there is nobody to ask (no terminal)."""


def nobody(_question: str) -> bool | None:
    return None


@dataclass(frozen=True)
class Context:
    """Handed to every verb. `start_env` gives Lima's environment for a start (TCG, facts/linux-host.md)."""

    lima: Lima
    user: vm_mark.GuestUser
    progress: Progress = field(default_factory=Progress)
    confirm: Confirm = nobody
    start_env: Callable[[], Mapping[str, str | None]] = dict
    macos: bool = False
    dry: bool = False
    ask: Confirm = nobody  # whatever --yes says: where saying yes without having looked could do harm

    @property
    def runner(self) -> Runner:
        return self.lima.runner

    def guest(self, instance: Instance) -> Guest:
        return Guest(self.runner, instance, paths.runtime_dir())

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file, or say so in a dry run."""
        if self.dry:
            self.progress.note(f"(write {path})")
        else:
            write_atomic(path, data)

    def longest_name(self) -> int:
        return vm_mark.longest_name(self.lima.home, self.macos)


def homes(user: vm_mark.GuestUser) -> tuple[Path, ...]:
    """Home directories, on the host and in the guest: a mount must not hide one."""
    return (paths.home(), Path(user.home), Path(os.path.expanduser(f"~{user.name}")))
