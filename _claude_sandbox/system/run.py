"""The only place that starts processes.

A `Command` is a value: argv, changes to the environment, working directory. A runner carries it
out. `LocalRunner` is the real one, `DryRunner` prints what changes something instead of doing it,
and the tests bring a recording one. Every command is logged at debug level as a line that can be
pasted into a shell; secrets never stand in an argv: they go through `input` or a `hidden` variable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Protocol, TypeVar

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system.files import LogFile
from _claude_sandbox.system.text import for_log

if TYPE_CHECKING:
    import asyncio


def _log(command: Command, how: str = "") -> None:
    """A line at debug level. Only where somebody imported logging (10 ms) to see such lines."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("claude-sandbox").debug("+ %s%s", how, command)


P = TypeVar("P", bound="asyncio.SubprocessProtocol")
LOG_KEPT = 4 << 20  # bytes of what commands print: a build of the tools VM takes one
TIMED_OUT = 124  # the exit code of coreutils' timeout


@dataclass(frozen=True)
class Command:
    """An argv with what is changed in the environment (a value of None removes the variable).

    `hidden` names variables whose values no log and no dry run shows.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: Path | None = None
    hidden: frozenset[str] = frozenset()

    def __str__(self) -> str:
        unset = [f"-u {shlex.quote(k)}" for k, v in self.env.items() if v is None]
        change = [
            f"{k}={'…' if k in self.hidden else shlex.quote(v)}" for k, v in self.env.items() if v is not None
        ]
        prefix = ["env", *unset, *change] if unset else change
        where = f"cd {shlex.quote(str(self.cwd))} && " if self.cwd else ""
        return where + " ".join([*prefix, shlex.join(self.argv)])

    def environment(self) -> dict[str, str]:
        """The whole environment of the process to be."""
        env = dict(os.environ)
        for key, value in self.env.items():
            if value is None:
                env.pop(key, None)
            else:
                env[key] = value
        return env


@dataclass(frozen=True)
class Result:
    """What a finished command left: exit code (124: it was ended at its time limit) and bytes."""

    returncode: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "surrogateescape")

    @property
    def error_text(self) -> str:
        return self.stderr.decode("utf-8", "replace").strip()


class CommandNotFound(ClaudeSandboxError):
    """The program of a command is not on PATH."""


class Runner(Protocol):
    """What drivers take in their constructor."""

    def run(
        self,
        command: Command,
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        changes: bool = True,
        on_line: Callable[[str], None] | None = None,
        logfile: Path | None = None,
        on_start: Callable[[int], None] | None = None,
        limit: int | None = None,
    ) -> Result:
        """Run to the end without a terminal: stdin is `input` or empty, output is captured.

        With `on_line` each line of stderr is handed over as it comes; with `logfile` stderr is
        appended there, bounded (system.files.LogFile). `on_start` gets the process id. `timeout` is in
        seconds; past it the command's process group is ended and the result's code is 124. `limit` is
        how many bytes of stdout are kept. `changes=False` marks a question, which a dry run really asks. Raises
        CommandNotFound.
        """
        ...

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        """Run on the user's terminal; its exit code (128+N for signal N), Ctrl-C is the child's.

        `on_start` gets the process id.
        """
        ...

    def exec(self, command: Command) -> NoReturn:
        """Become the command (never returns); raises CommandNotFound."""
        ...


def missing_program(argv: Sequence[str]) -> CommandNotFound:
    return CommandNotFound(
        f"{argv[0]} was not found on PATH.",
        resolution="Run `claude-sandbox setup` to install what is missing.",
    )


class LocalRunner:
    """Runs commands on this machine."""

    def run(
        self,
        command: Command,
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        changes: bool = True,
        on_line: Callable[[str], None] | None = None,
        logfile: Path | None = None,
        on_start: Callable[[int], None] | None = None,
        limit: int | None = None,
    ) -> Result:
        _log(command)
        # A group of its own: a Ctrl-C on the terminal reaches us, and we decide what ends and how.
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=command.environment(),
                cwd=command.cwd,
                process_group=0,
            )
        except FileNotFoundError as error:
            if command.cwd is not None and not command.cwd.is_dir():
                raise
            raise missing_program(command.argv) from error
        except PermissionError as error:
            raise CommandNotFound(f"{command.argv[0]} cannot be executed: {error.strerror}.") from error
        if on_start is not None:
            on_start(process.pid)
        try:
            return _stream(process, input, timeout, on_line, logfile, limit)
        except BaseException:
            end_group(process)
            raise

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        _log(command)
        # A handler instead of SIG_IGN: an ignored signal would be inherited by the child.
        previous = signal.signal(signal.SIGINT, lambda _number, _frame: None)
        try:
            process = subprocess.Popen(command.argv, env=command.environment(), cwd=command.cwd)
            if on_start is not None:
                on_start(process.pid)
            code = process.wait()
        except FileNotFoundError as error:
            raise missing_program(command.argv) from error
        finally:
            signal.signal(signal.SIGINT, previous)
        return code if code >= 0 else 128 - code

    def exec(self, command: Command) -> NoReturn:
        _log(command, "exec ")
        sys.stdout.flush()
        sys.stderr.flush()
        if command.cwd is not None:
            os.chdir(command.cwd)
        try:
            os.execvpe(command.argv[0], list(command.argv), command.environment())
        except FileNotFoundError as error:
            raise missing_program(command.argv) from error


def _stream(
    process: subprocess.Popen[bytes],
    input: bytes | None,
    timeout: float | None,
    on_line: Callable[[str], None] | None,
    logfile: Path | None,
    limit: int | None,
) -> Result:
    """Feed and drain three pipes, stderr line by line: so two helper threads."""
    assert process.stderr is not None and process.stdout is not None
    stdout: list[bytes] = []
    tail: list[bytes] = []
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        end_group(process)

    def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(input or b"")

    reader = threading.Thread(target=_drain, args=(process.stdout, stdout, limit), daemon=True)
    reader.start()
    if input is not None:
        threading.Thread(target=feed, daemon=True).start()
    timer = threading.Timer(timeout, expire) if timeout else None
    if timer:
        timer.daemon = True
        timer.start()
    sink = LogFile(logfile, LOG_KEPT) if logfile else None
    for line in process.stderr:
        tail = [*tail[-199:], line]
        if sink:
            sink.write(for_log(line))
        if on_line:
            on_line(line.decode("utf-8", "replace").rstrip())
    process.wait()
    reader.join()
    if timer:
        timer.cancel()
    if timed_out.is_set():
        tail.append(f"no end within {timeout:g} s".encode())
    return Result(TIMED_OUT if timed_out.is_set() else _code(process), b"".join(stdout), b"".join(tail))


def _drain(pipe: IO[bytes], into: list[bytes], limit: int | None) -> None:
    room = limit if limit is not None else sys.maxsize
    for block in iter(lambda: pipe.read(65536), b""):
        if room > 0:
            into.append(block[:room])
            room -= len(block)


def _code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def end_group(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """End a process that we started, with its group: TERM, then KILL after `grace` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(grace)
            return
        except subprocess.TimeoutExpired:
            continue


async def spawn(command: Command, protocol: Callable[[], P]) -> tuple[asyncio.SubprocessTransport, P]:
    """Start a child of the running event loop with three pipes, heard by a SubprocessProtocol.

    Raises CommandNotFound.
    """
    import asyncio

    _log(command, "spawn ")
    try:
        return await asyncio.get_running_loop().subprocess_exec(
            protocol, *command.argv, env=command.environment(), cwd=command.cwd
        )
    except FileNotFoundError as error:
        raise missing_program(command.argv) from error


class Child:
    """A process that lives as long as we want it: ours to end. Its stdin is a pipe that nothing is
    written to: its end tells the child that we are gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Its exit code (128+N for signal N), None while it lives."""
        return None if self._process.poll() is None else _code(self._process)

    def wait(self, timeout: float | None = None) -> int | None:
        """The same after at most `timeout` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def start_child(command: Command, *, keep: Sequence[int] = ()) -> Child:
    """Start a child with our stdout and stderr and the descriptors `keep`. Raises CommandNotFound."""
    _log(command, "start ")
    try:
        return Child(
            subprocess.Popen(
                command.argv,
                stdin=subprocess.PIPE,
                env=command.environment(),
                cwd=command.cwd,
                pass_fds=tuple(keep),
            )
        )
    except FileNotFoundError as error:
        raise missing_program(command.argv) from error


def start_detached(command: Command, output: Path) -> Child:
    """Start a process that outlives us: a session of its own, what it says is appended to `output`."""
    _log(command, "detached ")
    fd = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return Child(
            subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                env=command.environment(),
                cwd=command.cwd,
                start_new_session=True,
            )
        )
    except FileNotFoundError as error:
        raise missing_program(command.argv) from error
    finally:
        os.close(fd)


async def spawn_group(command: Command) -> asyncio.subprocess.Process:
    """Start a child of this event loop in a process group of its own: nothing on stdin, a pipe from its stdout,
    our stderr. Raises CommandNotFound."""
    import asyncio

    _log(command, "spawn ")
    try:
        return await asyncio.create_subprocess_exec(
            *command.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=command.environment(),
            cwd=command.cwd, process_group=0,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise missing_program(command.argv) from error


class DryRunner:
    """Asks questions for real and prints, instead of running, what would change something."""

    def __init__(self, real: Runner, show: Callable[[str], None]) -> None:
        self._real = real
        self._show = show

    def run(
        self,
        command: Command,
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        changes: bool = True,
        on_line: Callable[[str], None] | None = None,
        logfile: Path | None = None,
        on_start: Callable[[int], None] | None = None,
        limit: int | None = None,
    ) -> Result:
        if changes:
            self._show(str(command))
            return Result(0)
        return self._real.run(command, input=input, timeout=timeout, changes=False, limit=limit)

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        self._show(str(command))
        return 0

    def exec(self, command: Command) -> NoReturn:
        self._show(str(command))
        raise SystemExit(0)
