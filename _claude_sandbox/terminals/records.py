"""Where each Claude that we started runs: the record of its terminal and of its ssh.

A launch writes `sessions/UUID.json` in the hooks server's runtime directory once its ssh has begun, and
removes it at the end. By it a click on a notification finds the tmux pane, and `reply` knows that what it
types reaches Claude and not the user's own shell. A record whose ssh has gone is worth nothing (`alive`).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.system import processes
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Command, CommandNotFound, Runner
from _claude_sandbox.terminals.tmux import Client, Pane, Tmux

SCHEMA = 1
LOOKING = 30.0  # seconds since the last key: as long as that, somebody sits there
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# What a notification daemon, and whoever raises a window, must know of the desktop.
_DESKTOP = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR",
            "XDG_CURRENT_DESKTOP", "WINDOWID", "TERM_PROGRAM", "TERM", "SSH_CONNECTION")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A tmux pane. `ours`: the tmux session was made by us for this Claude."""

    socket: str
    server_pid: int
    pane: str
    session: str
    ours: bool


@dataclass(frozen=True)
class Record:
    """One launched Claude. `desktop` holds variables of the terminal that it was started from."""

    uuid: str
    sandbox: str
    project: str
    tmux: Place | None
    ssh: processes.Identity
    tty: str
    desktop: Mapping[str, str] = field(default_factory=dict)
    created_ns: int = 0

    @property
    def remote(self) -> bool:
        """Whether the user came by ssh: then this host's own screen is not theirs."""
        return "SSH_CONNECTION" in self.desktop


def directory() -> Path:
    return hooks_client.session_records()


def _file(uuid: str) -> Path:
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"{uuid!r} is not a session's name")
    return directory() / f"{uuid}.json"


@contextlib.contextmanager
def recorded(
    runner: Runner, *, uuid: str, sandbox: str, project: str, warn: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    """The yielded function takes the process id of ssh and writes the record; it is removed at the end.

    Trouble is a warning: Claude runs, only clicks and replies do not find it.
    """
    written: list[Path] = []

    def started(pid: int) -> None:
        try:
            file = _file(uuid)
            record = Record(
                uuid, sandbox, project, _place(runner, sandbox), _identity(pid), _tty(),
                {name: os.environ[name] for name in _DESKTOP if os.environ.get(name)}, time.time_ns(),
            )  # fmt: skip
            write(record)
            written.append(file)
        except (OSError, ValueError, ClaudeSandboxError) as error:
            warn(f"Notifications will not lead to this session: {error}")

    try:
        yield started
    finally:
        for file in written:
            file.unlink(missing_ok=True)


def write(record: Record) -> None:
    write_json(_file(record.uuid), {"schema": SCHEMA, **asdict(record)})


def _place(runner: Runner, sandbox: str) -> Place | None:
    socket, _, rest = os.environ.get("TMUX", "").rpartition(",")[0].rpartition(",")
    pane = os.environ.get("TMUX_PANE", "")
    if not (socket and pane and rest.isdigit()):
        return None
    found = Tmux(runner, socket).pane(pane)
    name, mark = (found.session_name, found.mark) if found else ("", "")
    return Place(socket, int(rest), pane, name, mark.split(" ")[0] == sandbox)


def _tty() -> str:
    try:
        return os.ttyname(sys.stdin.fileno())
    except (OSError, ValueError):
        return ""


def _identity(pid: int) -> processes.Identity:
    found = processes.identity(pid)
    if found is None:
        raise ClaudeSandboxError(f"its ssh ended at once (process {pid})")
    return found


def read(uuid: str) -> Record | None:
    """The record of a launch; None when there is none, or none that this version reads."""
    try:
        return _of(read_object(_file(uuid)))
    except ValueError:
        return None


def _of(data: dict[str, Any] | None) -> Record | None:
    if data is None or data.get("schema") != SCHEMA:
        return None
    try:
        place, ssh = data["tmux"], processes.from_json(data["ssh"])
        if ssh is None:
            return None
        return Record(
            str(data["uuid"]), str(data["sandbox"]), str(data["project"]),
            Place(**place) if place else None, ssh,
            str(data["tty"]), {str(k): str(v) for k, v in data["desktop"].items()}, int(data["created_ns"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def everything() -> list[Record]:
    """The records of all sessions whose ssh lives, oldest first; those left by a killed launch are removed."""
    found = []
    for file in sorted(directory().glob("*.json")):
        record = _of(read_object(file))
        if record is not None and alive(record):
            found.append(record)
        else:
            file.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.created_ns)


def of(uuid: str, sandbox: str) -> Record | None:
    """The living record of a launch. The guest says `uuid`: it must be one of that very sandbox."""
    record = read(uuid) if uuid else None
    if record is None or record.sandbox != sandbox or not alive(record):
        return None
    return record


def alive(record: Record) -> bool:
    """Whether the recorded ssh itself still runs, not another process with its number."""
    return processes.same(record.ssh)


def server(record: Record, runner: Runner) -> tuple[Tmux, Pane] | None:
    """The tmux server and the pane of a record, if both are still those that it names."""
    if record.tmux is None:
        return None
    tmux = Tmux(runner, record.tmux.socket)
    pane = tmux.pane(record.tmux.pane)
    if pane is None or pane.dead or pane.server_pid != record.tmux.server_pid:
        return None
    return tmux, pane


def sessions_made(sandbox: str, runner: Runner) -> list[tuple[Tmux, Pane]]:
    """Our tmux sessions in which Claude of this sandbox runs now, by the records: server, and one pane of each."""
    found: dict[tuple[str, str], tuple[Tmux, Pane]] = {}
    for record in everything():
        if record.sandbox == sandbox and record.tmux is not None and record.tmux.ours:
            place = server(record, runner)
            if place is not None:
                found.setdefault((record.tmux.socket, place[1].session), place)
    return list(found.values())


def in_foreground(record: Record, pane: Pane, runner: Runner) -> bool:
    """Whether what is typed into the pane now goes to the recorded ssh: it lives and has the pane's terminal."""
    if not alive(record):
        return False
    try:
        has_terminal = _foreground_linux if sys.platform == "linux" else partial(_foreground_ps, runner)
        return has_terminal(record.ssh.pid, pane.tty)
    except (OSError, ValueError):
        return False


def _foreground_linux(pid: int, tty: str) -> bool:
    """Whether `pid` leads the foreground group of the terminal `tty`. Not with `ps`: a small Debian has none.

    Raises OSError, ValueError. proc(5): the fields after the name are state, ppid, pgrp, session, tty_nr, tpgid.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pgrp, terminal, foreground = (int(fields[i]) for i in (2, 4, 5))
    return pgrp == foreground and terminal == _tty_number(os.stat(tty).st_rdev)


def _tty_number(device: int) -> int:
    """A device as the kernel packs it into tty_nr: minor bits 0-7, major 8-19, minor's rest above."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _foreground_ps(runner: Runner, pid: int, tty: str) -> bool:
    """The same by `ps`, which macOS always has."""
    ps = Command(("ps", "-o", "pgid=,tpgid=,tty=", "-p", str(pid)))
    words = runner.run(ps, timeout=5, changes=False).text.split()
    return len(words) == 3 and words[0] == words[1] and f"/dev/{words[2]}" == tty


def looked_at(record: Record, runner: Runner) -> bool:
    """Whether the user is looking at this session, as far as we can know (facts/checked.md).

    In tmux: a client shows the pane, and has the focus (with focus-events on; without, tmux calls every
    client focused) or had a key typed within LOOKING seconds. Without tmux: the terminal had.
    """
    if record.tmux is None:
        try:
            return bool(record.tty) and time.time() - os.stat(record.tty).st_atime < LOOKING
        except OSError:
            return False
    try:
        clients = Tmux(runner, record.tmux.socket).clients()
    except CommandNotFound:
        return False
    return any(c.pane == record.tmux.pane and _watched(c) for c in clients)


def _watched(client: Client) -> bool:
    return client.focused if client.focus_events else time.time() - client.activity < LOOKING


def desktop() -> Mapping[str, str]:
    """The desktop's variables as the newest session on this host's own screen knew them."""
    for record in reversed(everything()):
        if not record.remote and record.desktop:
            return record.desktop
    return {}
