"""What every verb needs: Lima on this host, the guest's user, and where progress is shown and questions are asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _claude_sandbox.lima.limactl import Instance, Lima
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system import paths
from _claude_sandbox.system.effects import Effects
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Runner

HOSTNAME_MAX = 63  # of a host name label; Lima's is "lima-" + the instance's name
SOCKET_PATH_MAX = 80  # Linux: len(LIMA_HOME) + len(name); docs/facts/lima.md §8
SOCKET_PATH_MAX_MACOS = 76

Confirm = Callable[[str], bool | None]
"""Asks a yes/no question; None when there is nobody to ask (no terminal)."""


def nobody(_question: str) -> bool | None:
    return None


@dataclass(frozen=True)
class GuestUser:
    """The user inside a VM: its uid is the one that owns the shared files (9p shows numbers)."""

    name: str
    uid: int

    @property
    def home(self) -> str:
        return f"/home/{self.name}.guest"


def longest_name(lima_home: Path, macos: bool) -> int:
    """How long an instance's name may be under this LIMA_HOME (0 or less: none fits)."""
    room = SOCKET_PATH_MAX_MACOS if macos else SOCKET_PATH_MAX
    return min(HOSTNAME_MAX - len("lima-"), room - len(os.fsencode(lima_home)))


@dataclass(frozen=True)
class Context:
    """Handed to every verb. `start_env` gives Lima's environment for a start (TCG, docs/facts/linux-host.md)."""

    lima: Lima
    user: GuestUser
    progress: Progress = field(default_factory=Progress)
    confirm: Confirm = nobody
    start_env: Callable[[], Mapping[str, str | None]] = dict
    macos: bool = False
    effects: Effects = field(default_factory=Effects)
    before_start: Callable[[], None] = lambda: (
        None
    )  # installs what the host lacks; called when no VM runs yet
    ask: Confirm = nobody  # whatever --yes says: where saying yes without having looked could do harm

    @property
    def runner(self) -> Runner:
        return self.lima.runner

    def guest(self, instance: Instance) -> Guest:
        return Guest(self.runner, instance, paths.runtime_dir())

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file."""
        self.effects.write(path, data)

    def longest_name(self) -> int:
        return longest_name(self.lima.home, self.macos)


def homes(user: GuestUser) -> tuple[Path, ...]:
    """Home directories, on the host and in the guest: a mount must not hide one."""
    return (paths.home(), Path(user.home), Path(os.path.expanduser(f"~{user.name}")))
