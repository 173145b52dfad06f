"""Voice as the command line sees it: which session may use the microphone, the audio server, its state.

A session that was started with --voice has a grant: a file that names the process which runs it. The
audio server (audioserver.py) forwards a socket into a sandbox only while one of its grants is held by a
living process, so nothing has to be taken back: with the session's end the way to the microphone is gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox import capture, paths
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.files import read_json, write_json

if TYPE_CHECKING:
    from _claude_sandbox.daemon import Daemon
    from _claude_sandbox.lima import Instance

VERB = "_audio-server"
SCHEMA = 1
_SAME_START = 2.0  # seconds: psutil reckons a start from the clock, which may be put right meanwhile
_TEXTS = ("name", "dir", "host", "ssh_config")


@dataclass(frozen=True)
class Grant:
    """One session that may record. `pid`, `started`: the process that runs it; `command`: voice.command."""

    tag: str  # of the instance
    name: str  # of the VM
    dir: Path
    host: str  # the alias in ssh_config
    ssh_config: Path
    uid: int  # the user's in the guest
    pid: int
    started: float
    command: tuple[str, ...] = ()

    @property
    def guest_socket(self) -> str:
        """Where the wrappers in the guest look (voice.sh)."""
        return f"/run/user/{self.uid}/claude-audio.sock"

    def file(self) -> Path:
        return grants() / f"{self.tag}.{self.pid}.json"

    def write(self) -> None:
        value = {**vars(self), "schema": SCHEMA, "dir": str(self.dir), "ssh_config": str(self.ssh_config)}
        write_json(self.file(), value)

    def held(self) -> bool:
        """Whether that very process lives."""
        return abs((_started(self.pid) or 0) - self.started) < _SAME_START


def directory() -> Path:
    """Sockets, lock, pid file, grants, state: 0700, gone after a reboot."""
    return paths.private_dir(paths.runtime_dir() / "audio")


def grants() -> Path:
    return paths.private_dir(directory() / "grants")


def socket_of(tag: str) -> Path:
    """A sandbox's socket on the host."""
    return paths.private_dir(directory() / "in") / f"{tag}.sock"


def state_file() -> Path:
    """Who records now: {"recording": {VM name: {"pid", "started"}}}."""
    return directory() / "state.json"


def daemon() -> Daemon:
    from _claude_sandbox.daemon import Daemon

    log = paths.servers_dir("audio") / "server.log"
    return Daemon("audio", VERB, directory(), log, directory() / "control.sock")


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
    value = read_json(file) or {}
    texts: list[Any] = [value.get(key) for key in _TEXTS]
    numbers: list[Any] = [value.get(key) for key in ("uid", "pid", "started")]
    command = value.get("command")
    if value.get("schema") != SCHEMA or not all(isinstance(text, str) and text for text in texts):
        return None
    if not all(isinstance(number, int | float) for number in numbers) or not isinstance(command, list):
        return None
    name, folder, host, ssh_config = texts
    uid, pid, started = numbers
    return Grant(
        file.name.partition(".")[0], name, Path(folder), host, Path(ssh_config), int(uid), int(pid),
        float(started), tuple(map(str, command)),
    )  # fmt: skip


def _started(pid: int) -> float | None:
    """When that process started (seconds since 1970); None when it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


# -- a session -----------------------------------------------------------------------------------


@contextlib.contextmanager
def granted(
    instance: Instance, *, uid: int, command: Sequence[str], warn: Callable[[str], None]
) -> Iterator[None]:
    """Around a session that may record. Trouble is a warning, never a stop."""
    grant = Grant(
        instance.tag, instance.name, instance.dir, instance.ssh_host, instance.ssh_config, uid,
        os.getpid(), _started(os.getpid()) or 0.0, tuple(command),
    )  # fmt: skip
    try:
        grant.write()
        ensure()
    except (OSError, ClaudeSandboxError) as error:
        warn(f"Voice is off in this session: {error}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ClaudeSandboxError):
            grant.file().unlink(missing_ok=True)
            ask("refresh")


def trouble(command: Sequence[str]) -> str | None:
    """What to tell before a session with voice when nothing can record here now."""
    plan = capture.plan(command)
    return None if plan.ok else f"Voice has no microphone: {plan.reason}. {plan.remedy}"


# -- the server ----------------------------------------------------------------------------------


def ensure() -> None:
    """Make sure that one of this version runs and looks at the grants now. Raises HostSetupError."""
    from _claude_sandbox import daemon as daemons

    if not daemons.ensure(daemon(), ask_to_stop=lambda: ask("stop")):
        ask("refresh")


def stop() -> bool:
    """Whether there was one. Raises ClaudeSandboxError when it does not stop."""
    from _claude_sandbox import daemon as daemons

    stopped = False
    for old in daemons.former(daemon()):
        stopped |= daemons.stop(old, ask_to_stop=functools.partial(ask, "stop", old.socket))
    return daemons.stop(daemon(), ask_to_stop=lambda: ask("stop")) or stopped


def ask(word: str, control: Path | None = None) -> None:
    """Send it to the server (`control`: another one): `refresh` (look at the grants) or `stop`. Raises OSError."""
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(control or directory() / "control.sock"))
        client.sendall(f"{word}\n".encode())
        client.recv(16)


def status() -> str:
    """For `status`: Not running, Running, or Running, microphone open for NAME."""
    from _claude_sandbox import daemon as daemons

    if not daemons.held(daemon()):
        return "Not running"
    names = recording()
    return f"Running, microphone open for {', '.join(names)}" if names else "Running"


def recording() -> list[str]:
    """Names of the sandboxes that record now, by the server's state file."""
    value = (read_json(state_file()) or {}).get("recording")
    return sorted(map(str, value)) if isinstance(value, dict) else []
