"""The live view and the rows behind it: order, names, widths, keys on a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.cli import watch
from _claude_sandbox.hooks.attention import Session
from _claude_sandbox.sandbox import overview as sandbox_overview
from _claude_sandbox.sandbox.overview import Row
from tests.support.box import heed_ctrl_c

ROOT = Path(__file__).resolve().parents[3]
NOW = 10**18


def session(state: str, age: float, box: str = "vm", message: str = "", id: str = "s") -> Session:
    return Session(id, box, f"/work/{box}", "", state, NOW - int(age * 1e9), message, seq=1)


def test_who_waits_comes_first_and_the_longest_wait_first_of_all() -> None:
    boxes = [(name, Path(f"/work/{name}"), "Running") for name in "abcdef"] + [
        ("off", Path("/work/off"), "Stopped")
    ]
    known = [
        session("working", 1, "a"), session("done", 500, "b"), session("needs_input", 5, "c"),
        session("needs_input", 50, "d"), session("failed", 1, "e"), session("ended", 1, "f"),
        session("done", 9000, "off"), session("done", 9000, "unknown"),
    ]  # fmt: skip
    found = sandbox_overview.arrange(boxes, known)
    assert [(row.sandbox, row.state) for row in found] == [
        ("d", "needs_input"), ("c", "needs_input"), ("e", "failed"), ("b", "done"), ("a", "working"), ("f", ""),
        ("off", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (400000, "4d"), (-5, "0s")],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert watch.since(NOW - int(seconds * 1e9), NOW) == text


class NoUsage(watch.Usage):
    def of(self, name: str) -> tuple[float, int] | None:
        return (12.4, 3 << 30) if name == "vm" else None


def some_rows() -> list[Row]:
    return [
        Row(
            "vm",
            Path("/work/app"),
            "Running",
            session("needs_input", 70, message="Bash: \x1b[31mrm\x07 [bold]x"),
        ),
        Row("vm2", Path("/play/app"), "Running"),
        Row("vm3", Path("/work/site"), "Stopped"),
    ]


def drawn(width: int) -> str:
    import io

    from rich.console import Console

    out = io.StringIO()
    lines = watch.lines(some_rows(), NoUsage(Path("/")), NOW)
    Console(file=out, width=width, force_terminal=False).print(watch.table(lines, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 30, 44, 72, 200])
def test_the_table_fits_any_width(width: int) -> None:
    text = drawn(width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "needs you" in text and "\x1b" not in text and "\x07" not in text
    assert ("MESSAGE" in text) == (width >= 44) and ("12%" in text) == (width >= 72)
    assert width < 72 or ("work/app" in text and "play/app" in text and "3GiB" in text)
    assert width < 200 or "[bold]x" in text  # no markup either


def test_once_for_a_pipe() -> None:
    text = watch.once(some_rows(), NoUsage(Path("/")))
    assert text.splitlines()[0].split() == ["PROJECT", "STATE", "SINCE", "CPU", "MEMORY", "MESSAGE"]
    assert len(text.splitlines()) == 4 and "\x1b" not in text
    assert "No sandboxes" in watch.once([], NoUsage(Path("/")))


VIEW = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {unit!r}]
from tests.unit.cli.test_watch import NoUsage, some_rows
from _claude_sandbox.cli import watch
def did(what):
    def do(row):
        print("DOING", what, row.sandbox, flush=True)
        return "did " + what
    return do
try:
    code = watch.LiveView(some_rows, NoUsage(Path("/")), watch.KeyActions(did("attach"), did("stop"), did("answer"))).run()
except KeyboardInterrupt:
    code = 130
print("CODE", code, flush=True)
"""


class Viewer:
    def __init__(self) -> None:
        def own_terminal() -> None:
            import fcntl

            heed_ctrl_c()  # whoever runs the tests in the background ignores it
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.fd, slave = pty.openpty()
        termios.tcsetwinsize(slave, (20, 100))
        self.before = termios.tcgetattr(slave)
        code = VIEW.format(root=str(ROOT), unit=str(Path(__file__).parent))
        env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT / "tests" / "blackbox")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=own_terminal, env=env,
        )  # fmt: skip
        self.slave = slave
        self.out = ""

    def until(self, text: str, seconds: float = 30) -> str:
        deadline = time.monotonic() + seconds
        while text not in self.out:
            assert time.monotonic() < deadline, self.out
            if select.select([self.fd], [], [], 0.1)[0]:
                self.out += os.read(self.fd, 65536).decode("utf-8", "replace")
        found, _, self.out = self.out.partition(text)
        return found

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> None:
        self.process.wait(20)
        state = termios.tcgetattr(self.slave)
        assert state[3] == self.before[3]  # echo and line mode are back
        os.close(self.slave)
        os.close(self.fd)


def test_keys_on_a_real_terminal() -> None:
    view = Viewer()
    assert "\x1b[?1049h" in view.until("needs you")  # the other screen
    view.type("j")
    view.type("\x1b[B")
    view.type("\r")
    view.until("DOING attach vm3")
    view.until("did attach")
    view.type("kr")
    view.until("DOING answer vm2")
    view.until("did answer")
    view.type("\x1bOA")
    view.type("s")
    view.until("DOING stop vm")
    view.until("did stop")
    termios.tcsetwinsize(view.slave, (12, 50))
    os.kill(view.process.pid, signal.SIGWINCH)
    time.sleep(0.6)
    view.type("q")
    assert "\x1b[?1049l" in view.until("CODE 0")
    view.end()


def test_ctrl_c_leaves_the_terminal_clean() -> None:
    view = Viewer()
    view.until("needs you")
    view.type("\x03")
    assert "\x1b[?25h" in view.until("CODE 130")  # the cursor is back
    view.end()


def test_usage_of_a_real_process(tmp_path: Path) -> None:
    directory: Any = tmp_path / "vm"
    directory.mkdir()
    usage = watch.Usage(tmp_path)
    assert usage.of("vm") is None
    (directory / "qemu.pid").write_text(f"{os.getpid()}\n")
    found = usage.of("vm")
    assert found and found[1] > 1 << 20
    assert (usage.of("vm") or (0, 0))[0] >= 0
