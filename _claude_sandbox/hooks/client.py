"""The hooks server as the command line sees it: start, stop, register a sandbox, read what it knows.

`status` and `list` read state.json and a lock, nothing else: so this module imports little, and what
costs time is imported where it is used. The server itself is hooks/server.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import is_locked
from _claude_sandbox.system.jsonio import parse_object, read_object

if TYPE_CHECKING:
    from _claude_sandbox.hooks.attention import Session
    from _claude_sandbox.lima.limactl import Instance
    from _claude_sandbox.system.daemon import Daemon

VERB = "_hooks-server"
SCHEMA = 1
ENDED = "ended"
_TEXTS = ("session_id", "sandbox", "project", "state", "message", "tool", "wants", "uuid", "cwd")
_NUMBERS = ("since_ns", "seq", "background", "started_ns")


def directory() -> Path:
    """Sockets, lock, pid file, registrations: 0700, gone after a reboot."""
    return paths.private_dir(paths.runtime_dir() / "hooks")


def state_directory() -> Path:
    """The event log, state.json and the server's log."""
    return paths.servers_dir("hooks")


def intake_socket(tag: str) -> Path:
    """A sandbox's socket on the host (`Instance.tag`)."""
    return paths.private_dir(directory() / "in") / f"{tag}.sock"


def registrations() -> Path:
    return paths.private_dir(directory() / "sandboxes")


def control_socket() -> Path:
    return directory() / "control.sock"


def feed_socket() -> Path:
    return directory() / "events.sock"


def daemon() -> Daemon:
    from _claude_sandbox.system.daemon import Daemon

    return Daemon("hooks", VERB, directory(), state_directory() / "server.log", control_socket())


# -- the process ---------------------------------------------------------------------------------


def running() -> bool:
    """Whether it lives: one look at its lock."""
    return is_locked(paths.runtime_dir() / "hooks" / "server.lock")


def ensure() -> bool:
    """Make sure that one of this version runs; whether it was started now. Raises HostSetupError."""
    from _claude_sandbox.system import daemon as system_daemon

    return system_daemon.ensure(daemon(), ask_to_stop=_ask_to_stop)


def stop() -> bool:
    """Whether there was one. Raises ClaudeSandboxError when it does not stop."""
    from _claude_sandbox.system import daemon as system_daemon

    replaced = stop_former()
    return system_daemon.stop(daemon(), ask_to_stop=_ask_to_stop) or replaced


def stop_former() -> bool:
    """Stop our server of the last release, and take the registrations of our sandboxes from where it had
    them: two servers of one sandbox would notify twice. Whether there was one. Raises ClaudeSandboxError."""
    from _claude_sandbox.hooks import registration
    from _claude_sandbox.system import daemon as system_daemon
    from _claude_sandbox.system import runtime_dir

    found = system_daemon.former(daemon())
    for old in found:
        system_daemon.stop(old, ask_to_stop=functools.partial(_ask_to_stop, old.socket))
    for place in runtime_dir.former():
        with contextlib.suppress(OSError):
            if runtime_dir.is_private(place):
                registration.take_over(Path(place) / "hooks" / "sandboxes", registrations())
    return bool(found)


def restart() -> None:
    """The verb `restart-hooks`. Raises HostSetupError, ClaudeSandboxError."""
    stop()
    ensure()


def _ask_to_stop(control: Path | None = None) -> None:
    ask("POST", "/stop", control=control)


def ask(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout: float = 10,
    control: Path | None = None,
) -> dict[str, Any]:
    """One request to the server's control socket (`control`: of another server). Raises OSError,
    ClaudeSandboxError (it refused)."""
    import socket

    data = json.dumps(body or {}).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: hooks\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(control or control_socket()))
        client.sendall(head.encode() + data)
        answered = b"".join(iter(lambda: client.recv(65536), b""))
    status, _, text = answered.partition(b"\r\n\r\n")
    value = parse_object(text)
    if value is None or b" 200 " not in status.split(b"\r\n")[0]:
        why = value.get("error") if value else None
        raise ClaudeSandboxError(f"The hooks server refused {path}.", details=why)
    return value


# -- sandboxes -----------------------------------------------------------------------------------


def register(instance: Instance, project: Path | str, *, uid: int, voice: bool = False) -> None:
    """Tell the server of a sandbox that runs (at each launch; the same again is fine). It hears at once,
    or within seconds. Raises OSError."""
    from _claude_sandbox.hooks.registration import Registration

    wanted = Registration(
        instance.name, instance.dir, str(project), instance.ssh_host, instance.ssh_config, uid, voice
    )
    file = registrations() / f"{wanted.tag}.json"
    if Registration.read(file) != wanted:
        wanted.write(registrations())
    refresh_server()


def unregister(instance: Instance) -> None:
    """The sandbox is being deleted: nothing of it is kept."""
    (registrations() / f"{instance.tag}.json").unlink(missing_ok=True)
    refresh_server()


def refresh_server() -> None:
    """Have the server look at the registrations now; no server, no harm."""
    if running():
        with contextlib.suppress(OSError, ClaudeSandboxError):
            ask("POST", "/refresh", timeout=2)


# -- what it knows -------------------------------------------------------------------------------


def session_dicts(statuses: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The sessions of state.json, as data, without importing much. With `statuses` (VM name to Lima's status)
    those of a VM that does not run are shown as ended, and those of no VM are left out.

    Empty when no server runs: nobody knows then.
    """
    state = read_object(state_directory() / "state.json") if running() else None
    if state is None or state.get("schema") != SCHEMA or not isinstance(state.get("sessions"), list):
        return []
    found = [each for each in state["sessions"] if _is_session(each)]
    if statuses is None:
        return found
    known = [each for each in found if each["sandbox"] in statuses]
    return [each if statuses[each["sandbox"]] == "Running" else {**each, "state": ENDED} for each in known]


def sessions(statuses: Mapping[str, str] | None = None) -> list[Session]:
    """The same as values."""
    from _claude_sandbox.hooks.attention import Session

    return [Session.from_json(each) for each in session_dicts(statuses)]


def busy(name: str) -> bool | None:
    """Whether a Claude works in this VM (spec 1.11); None when the server does not know of any there."""
    mine = [each for each in sessions() if each.sandbox == name and each.state != ENDED]
    return any(each.busy for each in mine) if mine else None


def _is_session(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), str) for key in _TEXTS)
        and all(isinstance(value.get(key), int) for key in _NUMBERS)
        and isinstance(value.get("choices"), list)
    )
