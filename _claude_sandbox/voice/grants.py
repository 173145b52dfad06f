"""Voice as the command line sees it: which session may use the microphone, and who records.

A session that was started with --voice has a grant: a file that names the process which runs it. The daemon
forwards a socket into a sandbox, and listens on it (voice/server.py), only while one of its grants is held by
a living process, so nothing has to be taken back: with the session's end the microphone cannot be reached.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.daemon.endpoint import Endpoint
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import paths, processes
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.voice import recorder

if TYPE_CHECKING:
    from _claude_sandbox.lima.limactl import Instance

SCHEMA = 1
_TEXTS = ("name", "dir", "host", "ssh_config")


@dataclass(frozen=True)
class Grant:
    """One session that may record. `process` runs it, since `began` (ns since 1970); `command`: voice.command."""

    tag: str  # of the instance
    name: str  # of the VM
    dir: Path
    host: str  # the alias in ssh_config
    ssh_config: Path
    uid: int  # the user's in the guest
    process: processes.Identity
    began: int
    command: tuple[str, ...] = ()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.name, self.dir, self.host, self.ssh_config, self.uid)

    def file(self) -> Path:
        return grants() / f"{self.tag}.{self.process.pid}.json"

    def write(self) -> None:
        texts = {"dir": str(self.dir), "ssh_config": str(self.ssh_config)}
        write_json(self.file(), {**vars(self), **texts, "schema": SCHEMA, "process": self.process.to_json()})

    def held(self) -> bool:
        """Whether that very process lives."""
        return processes.same(self.process)


def guest_socket(uid: int) -> str:
    """Where the wrappers in a guest look (voice.sh), whose user has this id."""
    return f"/run/user/{uid}/claude-audio.sock"


def directory() -> Path:
    """Sockets, grants, state: 0700, gone after a reboot."""
    return paths.private_dir(paths.runtime_dir() / "audio")


def grants() -> Path:
    return paths.private_dir(directory() / "grants")


def socket_of(tag: str) -> Path:
    """A sandbox's socket on the host."""
    return paths.private_dir(directory() / "in") / f"{tag}.sock"


def state_file() -> Path:
    """{"recording": {VM name: a process's identity}, "active": whether a grant is held or was a moment ago}."""
    return directory() / "state.json"


def all_held() -> list[Grant]:
    """Grants whose process lives; the files of the others are removed."""
    found = []
    for file in sorted(grants().glob("*.json")):
        grant = _read(file)
        if grant is not None and grant.held():
            found.append(grant)
        else:
            file.unlink(missing_ok=True)
    return found


def _read(file: Path) -> Grant | None:
    """None for anything but what `Grant.write` writes."""
    value = read_object(file) or {}
    texts: list[Any] = [value.get(key) for key in _TEXTS]
    uid, began, command = value.get("uid"), value.get("began", 0), value.get("command")
    # A version before system/processes.py wrote "pid" and "started" beside the rest.
    process = processes.from_json(value.get("process", value))
    if value.get("schema") != SCHEMA or not all(isinstance(text, str) and text for text in texts):
        return None
    if process is None or type(uid) is not int or type(began) is not int or not isinstance(command, list):
        return None
    name, folder, host, ssh_config = texts
    return Grant(
        file.name.partition(".")[0], name, Path(folder), host, Path(ssh_config), uid, process,
        began, tuple(map(str, command)),
    )  # fmt: skip


# -- a session -----------------------------------------------------------------------------------


@contextlib.contextmanager
def granted(
    instance: Instance, *, uid: int, command: Sequence[str], warn: Callable[[str], None]
) -> Iterator[None]:
    """Around a session that may record. Trouble is a warning, never a stop."""
    me = processes.identity(os.getpid())
    assert me is not None
    grant = Grant(
        instance.tag, instance.name, instance.dir, instance.ssh_host, instance.ssh_config, uid,
        me, time.time_ns(), tuple(command),
    )  # fmt: skip
    try:
        grant.write()
        if not daemon_client.ensure():
            daemon_client.refresh()
    except (OSError, ClaudeSandboxError) as error:
        warn(f"Voice is off in this session: {error}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ClaudeSandboxError):
            grant.file().unlink(missing_ok=True)
            daemon_client.refresh()


def trouble(command: Sequence[str]) -> str | None:
    """The warning before a session with voice when nothing can record here now."""
    found = recorder.find_command(command)
    return None if found.ok else f"Voice has no microphone: {found.reason}. {found.remedy}"


# -- what it knows -------------------------------------------------------------------------------


def status() -> str:
    """For `status`: Not running, Running, or Running, microphone open for NAME."""
    if not daemon_client.running():
        return "Not running"
    if names := recording():
        return f"Running, microphone open for {', '.join(names)}"
    active = (read_object(state_file()) or {}).get("active") is True
    return "Running" if active or all_held() else "Not running"


def recording() -> list[str]:
    """Names of the sandboxes that record now, by the state file."""
    value = (read_object(state_file()) or {}).get("recording")
    return sorted(map(str, value)) if isinstance(value, dict) else []
