"""The two ends of the hooks' way for unit tests: a tiny host on a unix socket, and a guest's home."""

from __future__ import annotations

import http.server
import json
import os
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "hook.sh"
DELIVER = ROOT / "_claude_sandbox" / "guest" / "hooks-deliver.pl"
SESSION = "428b694d-03fe-4b3f-b0be-46211245c637"


class Host(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Keeps events as the hooks server does: known numbers are dropped, the last one is the answer.

    `answers` come first, one a request: (status, headers), or None for a connection that is closed.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self.heads: list[dict[str, Any]] = []
        self.last: dict[str, int] = {}
        self.sizes: list[int] = []
        self.repeated = 0
        self.malformed: list[bytes] = []
        self.answers: list[tuple[int, dict[str, str]] | None] = []
        self.limit = 1 << 20
        self.taking = threading.Lock()
        path.unlink(missing_ok=True)
        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self.path.unlink(missing_ok=True)

    def take(self, body: bytes) -> str:
        with self.taking:
            for line in body.splitlines():
                try:
                    event = json.loads(line)
                    spool, number = event["id"].split(":")
                except (ValueError, KeyError):
                    self.malformed.append(line)
                    spool, _, number = re.search(rb'"id":"([0-9a-f]+)(:)(\d+)"', line).groups()  # type: ignore[union-attr]
                    spool, number = spool.decode(), number.decode()
                    event = None
                if int(number) <= self.last.get(spool, 0):
                    self.repeated += 1
                    continue
                self.last[spool] = int(number)
                if event is not None:
                    self.events.append(event)
            return f"{spool}:{self.last[spool]}"

    def names(self) -> list[str]:
        return [event["payload"]["hook_event_name"] for event in self.events if "payload" in event]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Host
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.sizes.append(size)
        body = self.rfile.read(size)
        assert self.path == "/v1/events"
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        if answer is None:
            self.close_connection = True
            return
        status, headers = answer
        if size > self.server.limit:
            status = 413
        text = json.dumps({"last": self.server.take(body)} if status == 200 else {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def payload(name: str, **more: object) -> bytes:
    return json.dumps({"session_id": SESSION, "hook_event_name": name, **more}).encode() + b"\n"


def wait_until(condition: Callable[[], object], seconds: float = 30, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what or "it never came"
        time.sleep(0.02)


class Home:
    """A guest user's home, with hook.sh as Claude runs it and the delivery service."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.spool = self.home / ".claude-sandbox" / "hooks"
        self.socket = Path(tempfile.mkdtemp(prefix="cs-hook")) / "s"  # short: it is a socket's path
        self.env = {
            "HOME": str(self.home), "PATH": os.environ["PATH"], "CLAUDE_PID": "4711", "LANG": "C.UTF-8",
            "CLAUDE_PROJECT_DIR": "/work/app", "CLAUDE_SANDBOX_UUID": "0b5c", "CLAUDE_CODE_SESSION_ID": SESSION,
        }  # fmt: skip
        self.services: list[subprocess.Popen[bytes]] = []

    def line(self, event: str) -> str:
        return f"trap 'exit 0' 0; set -- queue {event}; . {HOOK}"

    def hook(
        self, event: str, data: bytes | None = None, env: Mapping[str, str] | None = None, shell: str = "sh"
    ) -> float:
        """Run the hook as Claude does; the seconds that Claude waited. It says nothing and ends with 0."""
        begun = time.monotonic()
        done = subprocess.run(
            [shell, "-c", self.line(event)], input=payload(event) if data is None else data,
            env={**self.env, **(env or {})}, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        return time.monotonic() - begun

    def start(self, event: str, data: bytes | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["sh", "-c", self.line(event)],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(payload(event) if data is None else data)
        process.stdin.close()
        return process

    def deliver(self) -> subprocess.Popen[bytes]:
        """Start the delivery service; it is ready when this returns."""
        service = subprocess.Popen(
            ["perl", "-e", DELIVER.read_text(), str(self.socket)], env=self.env, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr,
        )  # fmt: skip
        self.services.append(service)
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        return service

    def queues(self) -> list[Path]:
        return [entry for entry in self.spool.iterdir() if entry.is_dir()] if self.spool.exists() else []

    def waiting(self) -> list[Path]:
        """The queued events, in their order."""
        files = [file for queue in self.queues() for file in queue.iterdir() if file.name.isdigit()]
        return sorted(files, key=lambda file: int(file.name))

    def close(self) -> None:
        for service in self.services:
            service.kill()
            service.wait()
