"""A sandbox that has a service of the daemon: how its VM is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.lima import limactl
from _claude_sandbox.lima.limactl import Instance


@dataclass(frozen=True)
class Endpoint:
    name: str  # of the VM
    dir: Path  # its instance directory
    host: str  # the alias in ssh_config
    ssh_config: Path
    uid: int  # the user's in the guest

    @property
    def tag(self) -> str:
        return limactl.tag(self.dir)

    @property
    def instance(self) -> Instance:
        """Its files; the status is not known."""
        return Instance(self.name, "", self.dir)
