"""The daemon as the command line sees it: start, stop, ask. Users know it as the hooks server.

`status` and `list` look at a lock, nothing else: so this module imports little.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import is_locked
from _claude_sandbox.system.jsonio import parse_object

if TYPE_CHECKING:
    from _claude_sandbox.system.daemon import Daemon

VERB, AUDIO_VERB = "_hooks-server", "_audio-server"
ATTENTION, LINKS = "attention", "links"
WORKERS = (ATTENTION, LINKS)  # the daemon ends with the first one


def directory() -> Path:
    """Sockets, lock, pid file, registrations: 0700, gone after a reboot."""
    return paths.private_dir(paths.runtime_dir() / "hooks")


def control_socket() -> Path:
    return directory() / "control.sock"


def daemon() -> Daemon:
    from _claude_sandbox.system.daemon import Daemon

    return Daemon("hooks", VERB, directory(), paths.servers_dir("hooks") / "server.log", control_socket())


def former() -> list[Daemon]:
    """What runs of the last releases: a hooks server in the directory that all HOMEs shared, and audio servers,
    which were daemons by themselves."""
    from _claude_sandbox.system import daemon as system_daemon

    place = paths.private_dir(paths.runtime_dir() / "audio")
    log = paths.servers_dir("audio") / "server.log"
    audio = system_daemon.Daemon("audio", AUDIO_VERB, place, log, place / "control.sock")
    found = [*system_daemon.former(daemon()), *system_daemon.former(audio)]
    return [*found, audio] if system_daemon.held(audio) else found


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
    """Stop those of the last releases: two servers of one sandbox would notify twice. Whether there was one.
    Raises ClaudeSandboxError."""
    from _claude_sandbox.system import daemon as system_daemon

    found = former()
    for each in found:
        system_daemon.stop(each, ask_to_stop=_no_request)
    return bool(found)


def restart() -> None:
    """The verb `restart-hooks`. Raises HostSetupError, ClaudeSandboxError."""
    stop()
    ensure()


def refresh() -> None:
    """Have it look at registrations and grants now; no daemon, no harm."""
    if running():
        with contextlib.suppress(OSError, ClaudeSandboxError):
            ask("POST", "/refresh", timeout=2)


def _ask_to_stop() -> None:
    ask("POST", "/stop")


def _no_request() -> NoReturn:
    raise OSError("it is stopped by a signal")


def ask(
    method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float = 10
) -> dict[str, Any]:
    """One request to the control socket. Raises OSError, ClaudeSandboxError (it refused)."""
    import socket

    data = json.dumps(body or {}).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: hooks\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(control_socket()))
        client.sendall(head.encode() + data)
        answered = b"".join(iter(lambda: client.recv(65536), b""))
    status, _, text = answered.partition(b"\r\n\r\n")
    value = parse_object(text)
    if value is None or b" 200 " not in status.split(b"\r\n")[0]:
        why = value.get("error") if value else None
        raise ClaudeSandboxError(f"The hooks server refused {path}.", details=why)
    return value
