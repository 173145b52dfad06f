"""What the hooks server must know of a sandbox: a small file that each launch writes.

The server reads all of them when it starts, so it needs no memory of its own: a restarted one goes on.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from _claude_sandbox.daemon.endpoint import Endpoint
from _claude_sandbox.lima import limactl
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object

SCHEMA = 1


def guest_socket(uid: int) -> str:
    """The hooks' socket in a guest whose user has this id: CLAUDE_HOOKS_SOCKET."""
    return f"/run/user/{uid}/claude-hooks.sock"


@dataclass(frozen=True)
class Registration:
    """`host` is the alias in `ssh_config`; `uid` the user's in the guest."""

    name: str  # of the VM
    dir: Path  # its instance directory
    project: str
    host: str
    ssh_config: Path
    uid: int

    @property
    def tag(self) -> str:
        return limactl.tag(self.dir)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.name, self.dir, self.host, self.ssh_config, self.uid)

    def write(self, directory: Path) -> Path:
        """Put it beside the others, atomically."""
        file = directory / f"{self.tag}.json"
        write_json(
            file,
            {
                "schema": SCHEMA, "name": self.name, "dir": str(self.dir), "project": self.project,
                "host": self.host, "ssh_config": str(self.ssh_config), "uid": self.uid,
            },
        )  # fmt: skip
        return file

    @classmethod
    def read(cls, file: Path) -> Registration | None:
        """None when it is unreadable, of another schema, or not under its own tag."""
        value = read_object(file)
        texts = ("name", "dir", "project", "host", "ssh_config")
        if value is None or value.get("schema") != SCHEMA or not isinstance(value.get("uid"), int):
            return None
        if not all(isinstance(value.get(key), str) and value[key] for key in texts):
            return None
        found = cls(
            value["name"], Path(value["dir"]), value["project"], value["host"], Path(value["ssh_config"]),
            value["uid"],
        )  # fmt: skip
        return found if file.stem in (found.tag, limactl.tag_as_written(found.dir)) else None


def all_in(directory: Path) -> list[Registration]:
    """Every readable one, by name; one for each VM.

    Before an update a VM behind a symlink may have had two: what is not under the VM's tag gets its name, or
    goes if there is one.
    """
    for file in directory.glob("*.json"):
        older = Registration.read(file)
        if older is not None and file.stem != older.tag:
            _rename(file, directory / f"{older.tag}.json")
    found = [each for file in directory.glob("*.json") if (each := Registration.read(file))]
    return sorted(found, key=lambda each: each.name)


def _rename(old: Path, new: Path) -> None:
    """By a second name: never over one that is there."""
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.link(old, new)
    old.unlink(missing_ok=True)


def take_over(former: Path, directory: Path) -> None:
    """Move the registrations of this LIMA_HOME's VMs from where the last release had them, by the VM's path
    without symlinks. One that a launch has written since stays. Raises OSError."""
    home = paths.lima_home().resolve()
    for file in former.glob("*.json"):  # not all_in, which renames: another HOME's server may read there
        each = Registration.read(file)
        if each is not None and each.dir.parent.resolve() == home:
            ours = replace(each, dir=home / each.dir.name)
            if not (directory / f"{ours.tag}.json").exists():
                ours.write(directory)
            file.unlink(missing_ok=True)
