"""Times the hooks server beside a minimal stdlib http.server on a unix socket, in the same run.

    python bench/hooks.py [--posts N] [--events N]      posts/s, p50, p99, beside a stalled client, memory
    python bench/hooks.py --latency NAME                each event of a real sandbox, as it arrives (Ctrl-C ends)

One event a post, in turns (a hundred here, a hundred there), on a kept connection and on one each. The plain server
reads the body and answers 200; ours parses it, writes it to the log, counts and tells it. Each event is
posted in its own sandbox's name, in a world of its own below /tmp. Prints the figures and writes
bench/results/hooks.json. Nothing here is a test: it never fails on speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PLAIN = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *words):
        pass
    def address_string(self):
        return "unix"
class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
Server(sys.argv[1], Handler).serve_forever()
"""
TURN = 100  # posts before it is the other's turn


class Sender:
    """Posts to one socket, each event with the next number."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self._kept: socket.socket | None = None

    def line(self) -> bytes:
        self.number += 1
        payload = {
            "session_id": f"s{self.number % 3}",
            "transcript_path": "/home/agent/.claude/projects/x/y.jsonl",
            "cwd": "/home/agent/project",
            "hook_event_name": ("UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop")[self.number % 4],
            "tool_name": "Bash",
            "tool_input": {"command": "make test " + "x" * 200},
        }
        envelope = {"id": f"00ff00ff:{self.number}", "time_ns": time.time_ns(), "pid": 1, "uuid": ""}
        return json.dumps({**envelope, "payload": payload}).encode()

    def post(self, body: bytes) -> int:
        """The status of the answer."""
        head = (
            f"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
            client.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        return int(answer.split()[1])

    def post_kept(self, body: bytes) -> int:
        """The same on a connection that is kept, and made again when the server has ended it."""
        head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(2):
            if self._kept is None:
                self._kept = socket.socket(socket.AF_UNIX)
                self._kept.connect(str(self.path))
            with contextlib.suppress(ConnectionError):
                self._kept.sendall(head + body)
                answer = self._kept.recv(65536)
                while answer and not answer.rstrip().endswith(b"}"):
                    answer += self._kept.recv(65536)
                if answer:
                    return int(answer.split()[1])
            self._kept.close()
            self._kept = None
        raise SystemExit(f"{self.path}: no answer")

    def timed(self, *, kept: bool = False) -> float:
        """Seconds from before the connection (or on a kept one, the request) to after the answer."""
        body = self.line()
        begun = time.perf_counter()
        status = self.post_kept(body) if kept else self.post(body)
        spent = time.perf_counter() - begun
        if status != 200:
            raise SystemExit(f"{self.path}: {status}")
        return spent


def figures(spent: list[float]) -> dict[str, float]:
    ordered = sorted(spent)
    return {
        "posts_per_s": len(spent) / sum(spent),
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "max_ms": 1000 * ordered[-1],
    }


def in_turns(
    ours: Sender, plain: Sender, posts: int, cpu: Mapping[str, Callable[[], float]], *, kept: bool
) -> dict[str, object]:
    """`cpu` gives the seconds of processor time that each server has had."""
    for sender in (ours, plain):
        for _ in range(20):
            sender.timed(kept=kept)
    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    before = {name: look() for name, look in cpu.items()}
    for turn in range(posts // TURN):
        sides = [("ours", ours), ("plain", plain)]
        for name, sender in sides if turn % 2 == 0 else reversed(sides):
            spent[name] += [sender.timed(kept=kept) for _ in range(TURN)]
    mine, theirs = figures(spent["ours"]), figures(spent["plain"])
    for name, found in (("ours", mine), ("plain", theirs)):
        found["cpu_ms_a_post"] = 1000 * (cpu[name]() - before[name]) / len(spent[name])
    ratios = {key: mine[key] / theirs[key] for key in ("posts_per_s", "p50_ms", "p99_ms", "cpu_ms_a_post")}
    return {"ours": mine, "plain": theirs, "ratio": ratios}


def beside_a_stalled_client(ours: Sender, bad: Path, posts: int) -> dict[str, float]:
    """The latency of one sandbox while another holds its 32 connections half-open, slow and silent."""
    starts = (
        b"",
        b"POST /v1/events HTTP/1.1\r\nHost: ",
        b"POST /v1/events HTTP/1.1\r\nContent-Length: 900000\r\n\r\n{",
    )
    with contextlib.ExitStack() as stack:
        stop = threading.Event()

        def stall() -> None:
            while not stop.is_set():  # its connections are ended after a while: then new ones
                for number in range(40):
                    with contextlib.suppress(OSError):
                        client = stack.enter_context(socket.socket(socket.AF_UNIX))
                        client.connect(str(bad))
                        client.sendall(starts[number % 3])
                stop.wait(5)

        thread = threading.Thread(target=stall)
        thread.start()
        time.sleep(0.5)
        found = figures([ours.timed() for _ in range(posts)])
        stop.set()
        thread.join()
    return found


def memory_over(senders: list[Sender], events: int, rss: Callable[[], float]) -> dict[str, object]:
    """MiB at rest and after each tenth of `events`, in batches of 200 from all sandboxes at once."""
    steps = [rss()]
    begun = time.perf_counter()
    for _ in range(10):
        threads = [
            threading.Thread(target=_batches, args=(sender, events // 10 // len(senders)))
            for sender in senders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        steps.append(rss())
    spent = time.perf_counter() - begun
    return {"events": events, "mib": steps, "at_rest_mib": steps[0], "after_mib": steps[-1], "seconds": spent}


def _batches(sender: Sender, events: int) -> None:
    for at in range(0, events, 200):
        body = b"\n".join(sender.line() for _ in range(min(200, events - at)))
        while (status := sender.post(body)) == 429:  # the rate of one sandbox
            time.sleep(0.2)
        if status != 200:
            raise SystemExit(f"{sender.path}: {status}")


def at_rest() -> dict[str, object]:
    """PSS of the daemon's processes, in MiB: what they share is counted once."""
    import psutil

    from _claude_sandbox.daemon import client as daemon_client
    from _claude_sandbox.system import daemon

    supervisor = psutil.Process(daemon.read_pid_file(daemon_client.daemon())["pid"])
    found = {"supervisor": supervisor.memory_full_info().pss / (1 << 20)}
    for child in supervisor.children():
        words = child.cmdline()
        if "--worker" in words:
            found[words[words.index("--worker") + 1]] = child.memory_full_info().pss / (1 << 20)
    return {"pss_mib": sum(found.values()), "processes": found}


def measure(posts: int, events: int) -> dict[str, object]:
    import psutil

    with tempfile.TemporaryDirectory(prefix="csh-", dir="/tmp") as temporary:
        root = Path(temporary)
        for name, where in (("HOME", "h"), ("XDG_RUNTIME_DIR", "r")):
            (root / where).mkdir(mode=0o700)
            os.environ[name] = str(root / where)
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "DISPLAY", "DBUS_SESSION_BUS_ADDRESS"):
            os.environ.pop(name, None)
        from _claude_sandbox.daemon import client as daemon_client
        from _claude_sandbox.hooks import client as hooks_client
        from _claude_sandbox.hooks.registration import Registration

        boxes = []
        for number in range(12):
            directory = root / f"box-{number}"
            directory.mkdir()
            for file in ("ha.pid", "qemu.pid"):
                (directory / file).write_text(str(os.getpid()))
            box = Registration(f"box-{number}", directory, "/p", "x", directory / "ssh.config", 1000)
            box.write(hooks_client.registrations())
            boxes.append(box)
        # A session of its own, as ours has: Linux shares a busy machine's time out by session.
        argv = [sys.executable, "-c", PLAIN, str(root / "plain.sock")]
        plain = subprocess.Popen(argv, start_new_session=True)
        try:
            daemon_client.ensure()
            worker = psutil.Process(daemon_client.ask("GET", "/state")["server"]["pid"])
            while not (root / "plain.sock").exists():
                time.sleep(0.05)
            senders = [Sender(hooks_client.intake_socket(box.tag)) for box in boxes]
            cpu = {
                "ours": lambda: sum(worker.cpu_times()[:2]),
                "plain": lambda: sum(psutil.Process(plain.pid).cpu_times()[:2]),
            }
            time.sleep(3)  # both workers have done their first looks
            return {
                "posts": posts,
                "daemon_at_rest": at_rest(),
                "load_before": os.getloadavg()[0],
                "kept_connection": in_turns(senders[0], Sender(root / "plain.sock"), posts, cpu, kept=True),
                "connection_each": in_turns(senders[1], Sender(root / "plain.sock"), posts, cpu, kept=False),
                "beside_a_stalled_client": beside_a_stalled_client(senders[2], senders[3].path, posts),
                "memory": memory_over(senders[4:], events, lambda: worker.memory_info().rss / (1 << 20)),
            }
        finally:
            plain.kill()
            plain.wait()
            daemon_client.stop()


def latency(name: str) -> None:
    """Each event: guest's hook to the host (by two clocks), and on to a reader of the feed."""
    from _claude_sandbox.hooks import feed_client
    from _claude_sandbox.hooks.event import Event

    for item in feed_client.follow():
        if isinstance(item, Event) and item.sandbox == name:
            now = time.time_ns()
            on_the_way, to_us = (item.received_ns - item.time_ns) / 1e6, (now - item.received_ns) / 1e6
            print(
                f"{item.name}: guest to host {on_the_way:.1f} ms, to the feed's reader {to_us:.1f} ms",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--latency", metavar="NAME", help="of a sandbox that runs")
    chosen = parser.parse_args()
    if chosen.latency:
        latency(chosen.latency)
        return 0
    result = {
        "host": {"cpus": os.cpu_count(), "python": platform.python_version()},
        **measure(chosen.posts, chosen.events),
    }
    print(json.dumps(result, indent=1))
    file = ROOT / "bench" / "results" / "hooks.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
