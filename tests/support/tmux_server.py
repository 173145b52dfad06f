"""A real tmux server of a test's own, with programs in its panes and terminals attached to it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from _claude_sandbox.system import processes
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals.records import Place, Record
from tests.support.box import need, short_directory

UUID = "11111111-2222-4333-8444-5555555555{:02d}"

# What Claude Code's screen is for us: a text, the caret in the prompt, bracketed paste, keys one by one.
CLAUDE = """
import os, sys, termios, tty
screen, log = open(sys.argv[1], encoding="utf-8").read().rstrip("\\n"), open(sys.argv[2], "wb", buffering=0)
tty.setraw(0)
sys.stdout.write("\\x1b[?2004h\\x1b[2J\\x1b[H" + screen.replace("\\n", "\\r\\n"))
lines = screen.split("\\n")
rows = [n for n, line in enumerate(lines) if line.startswith("\u276f")]
if len(sys.argv) > 3 and rows:
    sys.stdout.write(f"\\x1b[{rows[-1] + 1};{sys.argv[3]}H")
sys.stdout.flush()
while data := os.read(0, 4096):
    log.write(data)
"""


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@dataclass
class Terminal:
    """A pty on which `tmux attach` runs: what a user sits at."""

    fd: int
    tty: str
    process: subprocess.Popen[bytes]

    def seen(self, seconds: float = 0.3) -> bytes:
        found = b""
        while select.select([self.fd], [], [], seconds)[0]:
            found += os.read(self.fd, 65536)
        return found

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@dataclass
class Server:
    directory: Path
    terminals: list[Terminal] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        need("tmux")
        self.socket = self.directory / "tmux"
        self.program = self.directory / "claude.py"
        self.program.write_text(CLAUDE, encoding="utf-8")
        self.tmux("-f", "/dev/null", "new-session", "-d", "-s", "main", "-x", "110", "-y", "50", "cat")

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self.socket), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def pane(self, *argv: str, session: str = "main") -> str:
        """A window that runs `argv`; the pane's id."""
        return self.tmux("new-window", "-d", "-P", "-F", "#{pane_id}", "-t", f"{session}:", "--", *argv)

    def claude(self, screen: Path, column: str = "3") -> tuple[str, Path]:
        """A window whose program shows `screen`; the pane, and the file with what was typed."""
        log = self.directory / f"typed{self.made}"
        pane = self.pane(sys.executable, "-S", str(self.program), str(screen), str(log), column)
        last = screen.read_text(encoding="utf-8").rstrip().splitlines()[-1].strip()
        until(lambda: last in self.tmux("capture-pane", "-p", "-t", pane))
        return pane, log

    def attach(self, session: str = "main") -> Terminal:
        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (50, 110))
        env = {**os.environ, "TERM": "xterm-256color"}
        env.pop("TMUX", None)
        process = subprocess.Popen(
            ["tmux", "-S", str(self.socket), "attach", "-t", session], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=own_terminal, env=env,
        )  # fmt: skip
        terminal = Terminal(master, os.ttyname(slave), process)
        os.close(slave)
        self.terminals.append(terminal)
        until(lambda: terminal.tty in self.tmux("list-clients", "-F", "#{client_tty}"))
        terminal.seen()
        return terminal

    def pid(self, pane: str) -> int:
        return int(self.tmux("display-message", "-p", "-t", pane, "#{pane_pid}"))

    def record(
        self, pane: str, pid: int | None = None, sandbox: str = "claude-sandbox-app", **desktop: str
    ) -> Record:
        """As a launch leaves it, in the runtime directory; `pid` is that of its ssh."""
        self.made += 1
        pid = pid or self.pid(pane)
        server = int(self.tmux("display-message", "-p", "#{pid}"))
        place = Place(str(self.socket), server, pane, "main", False)
        process = processes.identity(pid)
        assert process is not None
        record = Record(
            UUID.format(self.made), sandbox, "/work/app", place, process, "", desktop, time.time_ns()
        )
        terminals_records.write(record)
        return record

    def close(self) -> None:
        for terminal in self.terminals:
            terminal.close()
        subprocess.run(["tmux", "-S", str(self.socket), "kill-server"], check=False, capture_output=True)
        shutil.rmtree(self.directory)


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    made = Server(short_directory())
    yield made
    made.close()
