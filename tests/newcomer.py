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
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_cache

ROOT = Path(__file__).resolve().parent.parent
WITH_US = ["setpriv", "--pdeathsig", "KILL"]  # ends with its parent, however that ends
FRESH = [*WITH_US, "sh", str(ROOT / "tests" / "fresh-machine.sh")]
WORK, NAME = Path("/var/tmp"), "claude-sandbox-newcomer-"
MINUTE = 60.0
FIRST_BUILD = 45 * MINUTE  # all of it, with nothing cached, emulated on two cores: 15 minutes


def commands(readme: str) -> list[str]:
    """The commands of README.md's first block of shell, without their comments."""
    block = re.search(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no block of shell commands"
    return [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


def squeezed(text: str) -> str:
    """Without white space: a long line is wrapped."""
    return "".join(text.split())


class Terminal:
    """A terminal of 110 by 35 on which a program runs, typed at and looked at by us: a tmux server's."""

    def __init__(self, place: Path, argv: list[str]) -> None:
        self.socket = place / "screen"
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "TMUX_PANE", "CI")}
        server = ["tmux", "-D", "-S", str(self.socket), "-f", "/dev/null"]  # no daemon: it ends with us
        self._server = subprocess.Popen([*WITH_US, *server], env=environment, stdin=subprocess.DEVNULL)
        while not self.socket.exists() and self._server.poll() is None:
            time.sleep(0.1)
        self._tmux("new-session", "-d", "-x", "110", "-y", "35", "--", *argv)

    def _tmux(self, *words: str) -> str:
        argv = ["tmux", "-S", str(self.socket), *words]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise EOFError(f"the terminal is gone: {done.stderr.strip()}")
        return done.stdout

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def history(self) -> str:
        """The last 300 lines."""
        lines = self._tmux("capture-pane", "-p", "-S", "-300").splitlines()
        return "\n".join(line for line in lines if line.strip())

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def enter(self, text: str = "") -> None:
        """Type it, see it, press Enter."""
        if text:
            self.type(text)
            self.wait_for(text, MINUTE)
        self._tmux("send-keys", "Enter")

    def wait_for(self, text: str, seconds: float) -> str:
        """The screen that shows it, wrapped or not. Raises TimeoutError, EOFError."""
        deadline = time.monotonic() + seconds
        while squeezed(text) not in squeezed(shown := self.screen()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} was not shown within {seconds:g} s")
            time.sleep(0.3)
        return shown

    def begin(self, command: str) -> None:
        """Start a command on a clean screen; at its end `code=N` is shown."""
        self.type(f"clear; {command}; echo code''=$?")
        self.enter()

    def run(self, command: str, seconds: float) -> str:
        """To its end; the last screen that it showed. Raises AssertionError unless it ends with 0."""
        self.begin(command)
        time.sleep(1)  # the screen before it is gone
        shown = self.wait_for("code=", seconds)
        assert "code=0" in squeezed(shown), f"{command}: {shown}"
        return shown

    def close(self) -> None:
        """The shell, and with its process namespace all that it has started, ends."""
        with contextlib.suppress(EOFError):
            self._tmux("kill-server")
        self._server.wait(30)


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
    terminal = Terminal(directory.parent, [*FRESH, str(directory), "root"])
    try:
        with stub_api() as port:
            reach_claude(terminal, command, port)
            come_back(terminal, project[1])
    except BaseException:
        with contextlib.suppress(EOFError):
            print(terminal.history(), flush=True)
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
    terminal.begin(command)
    time.sleep(1)
    deadline = time.monotonic() + FIRST_BUILD
    while "bypasspermissionson" not in (shown := squeezed(terminal.screen())):
        assert "code=" not in shown, "the first command ended before Claude came"
        if shown.lower().endswith("[y/n]"):
            say("yes to " + shown[-60:])
            terminal.enter("y")
        if time.monotonic() > deadline:
            raise TimeoutError("Claude's prompt did not come")
        time.sleep(1)


def come_back(terminal: Terminal, project: str) -> None:
    """Stop, a start by a command in the sandbox, delete: nothing of this is left running."""
    program = "~/claude-sandbox/claude-sandbox"
    terminal.run(f"cd {project} && {program} stop", 3 * MINUTE)
    began = time.monotonic()
    shown = terminal.run(f"{program} shell -- sh -c 'echo in-the-$((40+2)); pwd'", 5 * MINUTE)
    assert "in-the-42" in shown and "projects/app" in shown, shown
    assert "guest agent is late" not in shown, shown
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
        first(directory, one)
        say(f"{build_cache.save(store, directory)} new entries in {store}", began)
        say(two)
        return second(directory, two, arguments)
    except (AssertionError, EOFError, TimeoutError) as error:
        print(f"\nnewcomer: {str(error).strip()}\n0 passed, 1 failed", flush=True)
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
    for left in WORK.glob(f"{NAME}*.lock"):
        with left.open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left)
    top = Path(tempfile.mkdtemp(dir=WORK, prefix=NAME))
    with Path(f"{top}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield top / "root"
        finally:
            remove(Path(f"{top}.lock"))


def remove(lock: Path) -> None:
    """The directory, and then its lock beside it, which we hold."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
