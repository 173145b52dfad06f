"""A real hooks server in a world of its own, sandboxes that are only registrations, and bad company."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks.registration import Registration
from tests.support.box import ROOT

SAMPLES = Path(__file__).resolve().parents[1] / "unit" / "hooks" / "samples"
PATIENCE = 60.0  # seconds; the machine may be busy


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer of `what`."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):  # a server that is being started anew
            if found := what():
                return found
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def read_answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an HTTP answer that ends with the connection; status 0 when there is none."""
    with contextlib.suppress(ConnectionError):
        data = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = data.partition(b"\r\n\r\n")
        if head:
            return int(head.split()[1]), json.loads(body)
    return 0, {}


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# What a server of the last release was to others: a parent with its verb in the command line that holds the lock,
# a pid file, a control socket; it ends at SIGTERM, or when it is asked to.
OLD_SERVER = """
import fcntl, json, os, signal, socket, sys
sys.path.insert(0, sys.argv[3])
from _claude_sandbox.system import processes
verb, place = sys.argv[1:3]
os.makedirs(place, mode=0o700, exist_ok=True)
os.chdir(place)
os.chmod(os.path.dirname(place), 0o700)
lock = os.open("server.lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
with open("server.pid", "w") as file:
    json.dump({**processes.identity(os.getpid()).to_json(), "version": "0.0.0+old", "argv0": "x"}, file)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
control = socket.socket(socket.AF_UNIX)
control.bind("control.sock")
control.listen()
while True:
    client, _ = control.accept()
    if b"stop" in client.recv(4096):
        break
    client.close()
"""


def old_server(place: Path, verb: str, env: Mapping[str, str]) -> psutil.Process:
    """A server of the last release in `place`. Our child: a zombie when it has ended."""
    argv = [sys.executable, "-c", OLD_SERVER, verb, str(place), str(ROOT)]
    process = subprocess.Popen(argv, env=env, start_new_session=True)
    wait_for((place / "control.sock").exists)
    return psutil.Process(process.pid)


@dataclass
class Guest:
    """One sandbox, as the server sees it: a registration, pid files, and what it sends."""

    registration: Registration
    spool: str = "00ff00ff"
    number: int = 0

    @property
    def name(self) -> str:
        return self.registration.name

    @property
    def socket(self) -> Path:
        return hooks_client.intake_socket(self.registration.tag)

    def boots(self) -> None:
        for file in ("ha.pid", "qemu.pid"):
            (self.registration.dir / file).write_text(str(os.getpid()))

    def stops(self) -> None:
        for file in ("ha.pid", "qemu.pid"):
            (self.registration.dir / file).unlink(missing_ok=True)

    def line(self, sample: str = "Stop", *, number: int | None = None, **changes: Any) -> bytes:
        """The next event of its spool: a payload that Claude sends, with changes."""
        if number is None:
            self.number += 1
            number = self.number
        payload = {**json.loads((SAMPLES / f"{sample}.json").read_text()), "session_id": "s1", **changes}
        envelope = {
            "id": f"{self.spool}:{number}",
            "time_ns": time.time_ns(),
            "pid": 7,
            "uuid": "",
            "project": "/x",
        }
        return json.dumps({**envelope, "payload": payload}).encode()

    def post(self, *lines: bytes, path: str = "/v1/events") -> tuple[int, dict[str, Any]]:
        with connect(self.socket) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(request("POST", path, b"\n".join(lines)))
            return read_answer(client)

    def deliver(self, *lines: bytes) -> dict[str, Any]:
        """As a guest does: again until it is taken."""

        def attempt() -> dict[str, Any] | None:
            status, answer = self.post(*lines)
            return answer if status == 200 else None

        taken = wait_for(attempt)
        assert isinstance(taken, dict)
        return taken


@dataclass
class Play:
    """The world: `root` is short. The environment names it (see the fixture)."""

    root: Path
    guests: list[Guest] = field(default_factory=list)

    def sandbox(self, name: str = "claude-sandbox-app", *, boots: bool = True, refresh: bool = True) -> Guest:
        directory = self.root / "l" / name
        directory.mkdir(parents=True)
        registration = Registration(
            name, directory, f"/p/{name}", f"lima-{name}", directory / "ssh.config", 1000
        )
        registration.write(hooks_client.registrations())
        guest = Guest(registration)
        if boots:
            guest.boots()
        self.guests.append(guest)
        if refresh:
            daemon_client.refresh()
        return guest

    def state(self) -> dict[str, Any]:
        return daemon_client.ask("GET", "/state")

    def session(self, guest: Guest, session_id: str = "s1") -> dict[str, Any]:
        """{} when the server does not know it."""
        mine = [
            s for s in self.state()["sessions"] if (s["sandbox"], s["session_id"]) == (guest.name, session_id)
        ]
        return mine[0] if mine else {}

    def log(self) -> str:
        return (hooks_client.state_directory() / "server.log").read_text()

    def events(self) -> list[tuple[str, str]]:
        """(sandbox, id) of everything in the event log."""
        from _claude_sandbox.hooks import log as hooks_log

        return [(event.sandbox, event.id) for event in hooks_log.logged(hooks_client.state_directory())]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """A program on the feed; the yielded function reads its next line."""
        with connect(hooks_client.feed_socket()) as client, client.makefile("rb") as file:
            yield lambda: json.loads(file.readline())
