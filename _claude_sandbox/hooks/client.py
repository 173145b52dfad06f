"""The hooks server as the command line sees it: register a sandbox, read what it knows.

`status` and `list` read state.json and a lock, nothing else: so this module imports little, and what
costs time is imported where it is used. Its process is the daemon (daemon/client.py), the server itself hooks/server.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.daemon import client as daemon
from _claude_sandbox.system import paths
from _claude_sandbox.system.jsonio import read_object

if TYPE_CHECKING:
    from _claude_sandbox.hooks.attention import Session
    from _claude_sandbox.lima.limactl import Instance

SCHEMA = 1
ENDED = "ended"
_TEXTS = ("session_id", "sandbox", "project", "state", "message", "tool", "wants", "uuid", "cwd")
_NUMBERS = ("since_ns", "seq", "background", "started_ns")


def state_directory() -> Path:
    """The event log, state.json and the server's log."""
    return paths.servers_dir("hooks")


def intake_socket(tag: str) -> Path:
    """A sandbox's socket on the host (`Instance.tag`)."""
    return paths.private_dir(daemon.directory() / "in") / f"{tag}.sock"


def registrations() -> Path:
    return paths.private_dir(daemon.directory() / "sandboxes")


def session_records() -> Path:
    """Where each running Claude has its terminal's record (terminals/records.py)."""
    return paths.private_dir(daemon.directory() / "sessions")


def feed_socket() -> Path:
    return daemon.directory() / "events.sock"


def ensure() -> bool:
    """Make sure that the server runs, in this version; whether it was started now. Raises HostSetupError."""
    return daemon.ensure()


# -- sandboxes -----------------------------------------------------------------------------------


def register(instance: Instance, project: Path | str, *, uid: int) -> None:
    """Register a running sandbox with the server (at each launch; repeating it is fine). The server knows at once,
    or within seconds. Raises OSError."""
    from _claude_sandbox.hooks.registration import Registration

    wanted = Registration(
        instance.name, instance.dir, str(project), instance.ssh_host, instance.ssh_config, uid
    )
    file = registrations() / f"{wanted.tag}.json"
    if Registration.read(file) != wanted:
        wanted.write(registrations())
    daemon.refresh()


def unregister(instance: Instance) -> None:
    """The sandbox is being deleted: nothing of it is kept."""
    (registrations() / f"{instance.tag}.json").unlink(missing_ok=True)
    daemon.refresh()


def take_over_registrations() -> None:
    """Take the registrations of our sandboxes from where the last release had them. Does not raise."""
    import contextlib

    from _claude_sandbox.hooks import registration
    from _claude_sandbox.system import runtime_dir

    for place in runtime_dir.former():
        with contextlib.suppress(OSError):
            if runtime_dir.is_private(place):
                registration.take_over(Path(place) / "hooks" / "sandboxes", registrations())


# -- what it knows -------------------------------------------------------------------------------


def session_dicts(statuses: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The sessions of state.json, as data, without importing much. With `statuses` (VM name to Lima's status)
    those of a VM that does not run are shown as ended, and those of no VM are left out.

    Empty when no server runs: nobody knows then.
    """
    state = read_object(state_directory() / "state.json") if daemon.running() else None
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
