"""The live view of all sandboxes: what each Claude wants, since when, and what its VM costs.

Drawn by rich on the terminal's other screen, from files only; keys are read byte by byte. What they do is
handed in, and runs with the terminal as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox.hooks.attention import DONE, ENDED, FAILED, IDLE, NEEDS_INPUT, WORKING
from _claude_sandbox.lima.limactl import RUNNING
from _claude_sandbox.notify.policy import label
from _claude_sandbox.sandbox.overview import Row
from _claude_sandbox.system.text import clean
from _claude_sandbox.system.units import format_size

TICK = 0.25  # seconds between two looks at the keys and at state.json
STATE_WORDS = {
    NEEDS_INPUT: "needs you",
    FAILED: "failed",
    DONE: "done",
    IDLE: "idle",
    WORKING: "working",
    ENDED: "ended",
}
_STYLES = {NEEDS_INPUT: "bold yellow", FAILED: "bold red", DONE: "green", WORKING: "cyan"}
_KEYS = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down",
    b"\r": "attach", b"\n": "attach", b"s": "stop", b"r": "answer", b"q": "quit", b"\x04": "quit",
    b"g": "first", b"\x1b[H": "first", b"G": "last", b"\x1b[F": "last",
}  # fmt: skip
HELP = "↑↓ j k  Enter attach  r answer  s stop  q quit"


def since(session_ns: int, now_ns: int) -> str:
    """How long ago, in two characters or a few: `12s`, `5m`, `3h`, `2d`.

    >>> since(0, 150 * 10**9)
    '2m'
    """
    seconds = max(0, now_ns - session_ns) // 10**9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@dataclass
class Usage:
    """CPU (percent of one core) and memory (bytes) of each VM's process."""

    home: Path
    _known: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, int] | None:
        import psutil

        try:
            process = self._known.get(name)
            if process is None or not process.is_running():
                process = self._known[name] = psutil.Process(self._pid(name))
                process.cpu_percent()  # the first call only sets the mark
            return process.cpu_percent(), process.memory_info().rss
        except (psutil.Error, OSError, ValueError):
            self._known.pop(name, None)
            return None

    def _pid(self, name: str) -> int:
        """The hypervisor's; with vz that is the host agent itself."""
        directory = self.home / name
        files = [file for file in directory.glob("*.pid") if file.name != "ha.pid"] or [directory / "ha.pid"]
        return int(files[0].read_text())


@dataclass(frozen=True)
class TableLine:
    """A row as texts."""

    project: str
    state: str
    style: str
    since: str
    cpu: str
    memory: str
    message: str


def lines(rows: Sequence[Row], usage: Usage, now_ns: int) -> list[TableLine]:
    projects = [str(row.project) for row in rows]
    used = {row.sandbox: usage.of(row.sandbox) for row in rows if row.status == RUNNING}
    found = []
    for row in rows:
        cpu, memory = used.get(row.sandbox) or (None, None)
        session = row.session
        state = (
            STATE_WORDS.get(row.state, row.state)
            if session
            else "no Claude"
            if row.status == RUNNING
            else row.status
        )
        found.append(
            TableLine(
                label(str(row.project), projects), state, _STYLES.get(row.state, "dim" if session is None else ""),
                since(session.since_ns, now_ns) if session else "",
                "" if cpu is None else f"{cpu:.0f}%", "" if memory is None else format_size(memory),
                clean(session.message, 300) if session else "",
            )
        )  # fmt: skip
    return found


def table(shown: Sequence[TableLine], width: int, chosen: int | None = None) -> Any:
    """A rich table for `width` columns: what is less important goes first when it is narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wide, middle = width >= 72, width >= 44
    grid = Table(box=box.SIMPLE_HEAD if wide else None, expand=True, pad_edge=False, show_header=width >= 30)
    grid.add_column("PROJECT", no_wrap=True, overflow="ellipsis", ratio=2 if wide else 3)
    grid.add_column("STATE", no_wrap=True, overflow="ellipsis", width=9)
    if width >= 30:
        grid.add_column("SINCE", no_wrap=True, justify="right", width=5)
    if wide:
        grid.add_column("CPU", no_wrap=True, justify="right", width=5)
        grid.add_column("MEMORY", no_wrap=True, justify="right", width=8)
    if middle:
        grid.add_column("MESSAGE", no_wrap=True, overflow="ellipsis", ratio=5)
    for number, line in enumerate(shown):
        cells = [Text(line.project), Text(line.state, style=line.style)]
        cells += [Text(line.since)] if width >= 30 else []
        cells += [Text(line.cpu), Text(line.memory)] if wide else []
        cells += [Text(line.message)] if middle else []
        grid.add_row(*cells, style="reverse" if number == chosen else "")
    return grid


@dataclass(frozen=True)
class KeyActions:
    """What the keys do with a row; each returns a line for the bottom of the view. They may use the terminal."""

    attach: Callable[[Row], str]
    stop: Callable[[Row], str]
    answer: Callable[[Row], str]


class LiveView:
    """`look` gives the rows; it is asked at every tick and has to be quick."""

    def __init__(self, look: Callable[[], list[Row]], usage: Usage, actions: KeyActions) -> None:
        self._look, self._usage, self._actions = look, usage, actions
        self._rows: list[Row] = []
        self._chosen: tuple[str, str] = ("", "")
        self._report = ""
        self._pending = b""

    def run(self) -> int:
        """Until q (0); Ctrl-C raises KeyboardInterrupt, with the terminal as it was."""
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False)
        while True:
            with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
                wish = self._until_wish(live, console)
            row = self._row()
            if wish == "quit":
                return 0
            if row is not None:
                self._report = getattr(self._actions, wish)(row)

    def _until_wish(self, live: Any, console: Any) -> str:
        drawn: object = None
        while True:
            self._rows = self._look()
            state = (self._rows, self._chosen, self._report, console.size, int(time.time()))
            if state != drawn:
                live.update(self._view(console.size.width, console.size.height), refresh=True)
                drawn = state
            for key in self._read(TICK):
                if key in ("quit", "attach", "stop", "answer"):
                    return key
                self._report = ""
                self._move(key)

    def _index(self) -> int:
        return next((i for i, row in enumerate(self._rows) if _key(row) == self._chosen), 0)

    def _row(self) -> Row | None:
        return self._rows[self._index()] if self._rows else None

    def _move(self, key: str) -> None:
        if self._rows:
            last = len(self._rows) - 1
            to = {"up": self._index() - 1, "down": self._index() + 1, "first": 0, "last": last}[key]
            self._chosen = _key(self._rows[max(0, min(last, to))])

    def _view(self, width: int, height: int) -> Any:
        from rich.console import Group
        from rich.text import Text

        shown = lines(self._rows, self._usage, time.time_ns())
        room = max(1, height - 5)
        first = max(0, min(self._index() - room + 1, len(shown) - room))
        body = (
            table(shown[first : first + room], width, self._index() - first)
            if shown
            else Text("No sandboxes yet.")
        )
        foot = Text(clean(self._report, 300) or HELP, style="dim", no_wrap=True, overflow="ellipsis")
        row = self._row()
        more = Text(
            clean(row.session.message, 2 * width) if row and row.session else "",
            no_wrap=True,
            overflow="ellipsis",
        )
        return Group(body, *([more] if width < 72 and height > 6 else []), foot)

    def _read(self, timeout: float) -> Iterator[str]:
        """Keys that were pressed, by name."""
        ready, _, _ = select.select([sys.stdin], [], [], timeout)
        if not ready:
            return
        data = os.read(sys.stdin.fileno(), 1024)
        if not data:
            yield "quit"  # the terminal has gone
            return
        data = self._pending + data
        while data:
            known = next((k for k in sorted(_KEYS, key=len, reverse=True) if data.startswith(k)), None)
            if known is not None:
                yield _KEYS[known]
                data = data[len(known) :]
            elif data in (b"\x1b", b"\x1b[", b"\x1bO"):  # the rest of an arrow key may follow
                break
            else:
                data = data[1:]
        self._pending = data if data != b"\x1b" else b""


def _key(row: Row) -> tuple[str, str]:
    return row.sandbox, row.session.session_id if row.session else ""


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and unseen; Ctrl-C is a signal still, Ctrl-Z would leave the other screen behind."""
    import termios
    import tty

    saved = termios.tcgetattr(sys.stdin)
    before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, saved)


def once(rows: Sequence[Row], usage: Usage) -> str:
    """The view as plain text, for where there is no terminal."""
    shown = lines(rows, usage, time.time_ns())
    if not shown:
        return "No sandboxes yet. `claude-sandbox` in a project directory makes one."
    cells = [("PROJECT", "STATE", "SINCE", "CPU", "MEMORY", "MESSAGE")]
    cells += [(each.project, each.state, each.since, each.cpu, each.memory, each.message) for each in shown]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    texts = ("  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[5]]) for row in cells)
    return "\n".join(text.rstrip() for text in texts)
