#!/usr/bin/env python3
"""What a newcomer does: the two commands of README.md, as they are written there, on a Debian that has nothing.

    tests/newcomer.py [ARGUMENT…]     (.ci/run; ARGUMENTs go to the second command)

The machine is a root of tests/fresh-machine.sh, made for this run and removed at its end. The first command is typed at a shell on a terminal, its
questions answered with yes; Claude, at its own screen, gets a prompt and answers it (the API is
tests/integration/stub_api.py on this host's loopback, given as an API gateway is); then /exit, stop, a start
again and a command in it. That is the default: the full tools VM at its default sizes. The second command
runs without a terminal; its output passes through, and its exit code is ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_cache

ROOT = Path(__file__).resolve().parent.parent
# When we are killed, so is all that runs in there.
FRESH = ["setpriv", "--pdeathsig", "KILL", "sh", str(ROOT / "tests" / "fresh-machine.sh")]
WORK, NAME = Path("/var/tmp"), "claude-sandbox-newcomer-"
_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Za-z0-9]|[=>78cDEHMNOZ])"
)
MINUTE = 60.0
FIRST_BUILD = 45 * MINUTE  # all of it, with nothing cached, emulated on two cores: 15 minutes


def commands(readme: str) -> list[str]:
    """The commands of README.md's first block of shell, without their comments."""
    block = re.search(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no block of shell commands"
    return [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


def squeezed(shown: bytes) -> str:
    """What a terminal was sent, without escape sequences and white space: a long line is wrapped."""
    return "".join(_ESCAPES.sub(b"", shown).decode("utf-8", "replace").split())


class Terminal:
    """A shell on a terminal of 110 by 35, typed at by us."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.shown = b""
        self.mark = 0  # what came before it has been looked at
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, {**environment, "TERM": "xterm-256color"})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 35, 110, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def enter(self, text: str) -> None:
        """Type it, see it, press Enter."""
        self.type(text)
        self.wait_for(text, MINUTE)
        self.type("\r")

    def latest(self) -> bytes:
        """The end of what was shown since `forget`: a build draws its progress for minutes."""
        return self.shown[max(self.mark, len(self.shown) - 20000) :]

    def forget(self) -> None:
        self.mark = len(self.shown)

    def wait_for(self, text: str, seconds: float) -> None:
        """Until it is shown, and then until nothing comes for half a second: a screen being drawn may
        lose keys. Raises TimeoutError, EOFError."""
        deadline = time.monotonic() + seconds
        while squeezed(text.encode()) not in squeezed(self.latest()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} was not shown within {seconds:g} s")
            self.read(1)
        self.settle()
        self.forget()

    def settle(self, quiet: float = 0.5, longest: float = 15) -> None:
        deadline = time.monotonic() + longest
        while self.read(quiet) and time.monotonic() < deadline:
            pass

    def read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            block = os.read(self.fd, 65536)
        except OSError:  # Linux: the other side is closed
            block = b""
        if not block:
            raise EOFError("the shell has ended")
        self.shown += block
        return True

    def run(self, command: str, seconds: float) -> str:
        """Type a command and wait for its end; what it showed. Raises AssertionError unless it ends with 0."""
        begin = self.mark
        self.type(f"{command}; echo code''=$?\n")
        self.wait_for("code=", seconds)
        shown = squeezed(self.shown[begin:])
        assert "code=0" in shown, f"{command}: {shown[-300:]}"
        return shown

    def close(self) -> None:
        """The shell, and with its process namespace all that it has started, ends."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # unshare: --kill-child
        os.close(self.fd)
        os.waitpid(self.pid, 0)

    def tail(self) -> str:
        text = _ESCAPES.sub(b"", self.shown[-30000:]).decode("utf-8", "replace").replace("\r", "\n")
        return "\n".join(line for line in text.splitlines() if line.strip())[-6000:]


@contextlib.contextmanager
def stub_api() -> Iterator[int]:
    """Its port on loopback, which fresh-machine.sh shares with us."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    argv = [sys.executable, str(ROOT / "tests/integration/stub_api.py"), "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def say(text: str, began: float = 0) -> None:
    took = f" ({time.monotonic() - began:.0f} s)" if began else ""
    print(f"newcomer: {text}{took}", flush=True)


# -- the first command ------------------------------------------------------------------------------


def first(directory: Path, command: str) -> None:
    """The README's first command and a little more. Raises AssertionError, TimeoutError, EOFError."""
    project = re.search(r"-d (\S+)", command)
    assert project, command
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    terminal = Terminal([*FRESH, str(directory), "root"], environment)
    try:
        with stub_api() as port:
            reach_claude(terminal, command, port)
            come_back(terminal, project[1])
    except BaseException:
        print(terminal.tail(), flush=True)
        raise
    finally:
        terminal.close()


def reach_claude(terminal: Terminal, command: str, port: int) -> None:
    """From a shell to Claude's prompt, its answer, and out."""
    began = time.monotonic()
    terminal.wait_for("claude-sandbox#", 5 * MINUTE)
    gateway = f"ANTHROPIC_BASE_URL=http://127.0.0.1:{port} ANTHROPIC_AUTH_TOKEN=stub-token"
    terminal.run(f"export {gateway}", MINUTE)
    wait_for_claude(terminal, command)
    say("Claude's prompt is there", began)
    terminal.enter("hello there")
    terminal.wait_for("stub reply", 3 * MINUTE)
    say("Claude has answered", began)
    terminal.enter("/exit")
    terminal.wait_for("code=0", 3 * MINUTE)


def wait_for_claude(terminal: Terminal, command: str) -> None:
    """Yes to each question (Python first, then the rest), until Claude's prompt is there."""
    terminal.type(f"{command}; echo code''=$?\n")
    deadline = time.monotonic() + FIRST_BUILD
    while "bypasspermissionson" not in (shown := squeezed(terminal.latest())):
        assert "code=" not in shown, "the first command ended before Claude came"
        if shown.lower().endswith("[y/n]"):
            say("yes to " + shown[-60:])
            terminal.forget()
            terminal.type("y\r")
        if time.monotonic() > deadline:
            raise TimeoutError("Claude's prompt did not come")
        terminal.read(1)
    terminal.settle(2)
    terminal.forget()


def come_back(terminal: Terminal, project: str) -> None:
    """Stop, a start by a command in the sandbox, delete: nothing of this is left running."""
    program = "~/claude-sandbox/claude-sandbox"
    terminal.run(f"cd {project} && {program} stop", 3 * MINUTE)
    began = time.monotonic()
    shown = terminal.run(f"{program} shell -- sh -c 'echo in-the-$((40+2)); pwd'", 5 * MINUTE)
    assert "in-the-42" in shown and "projects/app" in shown, shown
    assert squeezed(b"guest agent is late") not in shown, shown
    say("stopped, started again, and a command has run", began)
    terminal.run(f"{program} delete -y", 3 * MINUTE)
    terminal.run(f"{program} stop-all", 3 * MINUTE)


# -- the second command, and all of it --------------------------------------------------------------


def second(directory: Path, command: str, arguments: list[str]) -> int:
    """The README's second command, without a terminal; its exit code."""
    line = f"{command} {shlex.join(arguments)}"
    argv = [*FRESH, str(directory), "root", "bash", "-c", line]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode


def both(directory: Path, store: Path, arguments: list[str]) -> int:
    """Both commands in a new root; what the first one built is kept for another run whatever follows."""
    began = time.monotonic()
    subprocess.run([*FRESH, str(directory), "root", "true"], stdin=subprocess.DEVNULL, check=True)
    say(f"a Debian that has nothing; {build_cache.restore(store, directory)} entries from {store}", began)
    one, two = commands((ROOT / "README.md").read_text())
    try:
        say(one)
        if not os.environ.get("SKIP_FIRST"):  # for whoever works on this
            first(directory, one)
        say(f"{build_cache.save(store, directory)} new entries in {store}", began)
        say(two)
        return second(directory, two, arguments)
    except (AssertionError, EOFError, TimeoutError) as error:
        print(f"\nnewcomer: {error}\n0 passed, 1 failed", flush=True)
        return 1
    finally:
        build_cache.save(store, directory)


def main(argv: list[str]) -> int:
    store = Path(os.environ.get("CLAUDE_SANDBOX_CI_STORE") or "/var/cache/claude-sandbox-ci")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with new_directory() as directory:
        return both(directory, store, argv)


@contextlib.contextmanager
def new_directory() -> Iterator[Path]:
    """On a disk, locked while it is in use; those of killed runs are removed."""
    for old in WORK.glob(f"{NAME}*"):
        with (old / "lock").open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
    top = Path(tempfile.mkdtemp(dir=WORK, prefix=NAME))
    with (top / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield top / "root"
        finally:
            shutil.rmtree(top)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
