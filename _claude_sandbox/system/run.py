"""The only place that starts processes.

A `Command` is a value: argv, changes to the environment, working directory. A runner carries it
out: `LocalRunner` on this machine; `DryRunner` shows what changes something instead of doing it; the
tests bring a recording one. Every command is logged at debug level as a line that can be
pasted into a shell; secrets are never in an argv: they go through `input` or a `hidden` variable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import child
from _claude_sandbox.system.child import Child
from _claude_sandbox.system.files import LogFile
from _claude_sandbox.system.text import for_log

if TYPE_CHECKING:
    import asyncio

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
        env: dict[str, str | None] = {**os.environ, **self.env}
        return {name: value for name, value in env.items() if value is not None}


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

    @property
    def last_lines(self) -> str:
        """Why it failed, as far as it said so: the last eight lines of stderr, or of stdout where that is empty."""
        return "\n".join((self.error_text or self.text.strip()).splitlines()[-8:])


class CommandNotFound(ClaudeSandboxError):
    """The program of a command is not on PATH."""


def missing_program(argv: Sequence[str]) -> CommandNotFound:
    return CommandNotFound(
        f"{argv[0]} was not found on PATH.",
        resolution="Run `claude-sandbox setup` to install what is missing.",
    )


@dataclass(frozen=True)
class Job:
    """A command that is run to its end, and how: the arguments of Runner.run and Runner.stream."""

    command: Command
    input: bytes | None = None
    timeout: float | None = None
    limit: int | None = None
    changes: bool = True
    on_line: Callable[[str], None] | None = None
    logfile: Path | None = None
    on_start: Callable[[int], None] | None = None
    give_up: Callable[[], bool] | None = None


class Runner(ABC):
    """What drivers take in their constructor. Each method raises CommandNotFound."""

    def run(
        self,
        command: Command,
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        limit: int | None = None,
        changes: bool = True,
    ) -> Result:
        """Run to the end without a terminal: stdin is `input` or empty, output is captured.

        `timeout` is in seconds; past it the command's process group is ended and the result's code is 124.
        `limit` is how many bytes of stdout are kept. `changes=False` marks a question, which a dry run
        really asks.
        """
        return self.finish(Job(command, input, timeout, limit, changes))

    def stream(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
        logfile: Path | None = None,
        on_start: Callable[[int], None] | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> Result:
        """As `run`, for what takes long and changes something. `on_line` gets each line of stderr as it is
        written, `logfile` has stderr appended, bounded (system.files.LogFile), `on_start` gets the process id.
        `give_up` is asked every child.ASKED_EVERY seconds, in another thread; True ends the process group.
        """
        return self.finish(
            Job(
                command, timeout=timeout, on_line=on_line, logfile=logfile, on_start=on_start, give_up=give_up
            )
        )

    @abstractmethod
    def finish(self, job: Job) -> Result:
        """What `run` and `stream` do."""

    @abstractmethod
    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        """Run on the user's terminal; its exit code (128+N for signal N), Ctrl-C is the child's.

        `on_start` gets the process id.
        """

    @abstractmethod
    def exec(self, command: Command) -> NoReturn:
        """Become the command (never returns)."""


class LocalRunner(Runner):
    """Runs commands on this machine, and starts what goes on beside us (`spawn…`), of which a dry run starts none.

    `grace` is how many seconds a command has to end after SIGTERM, `log_kept` the size of a log in bytes.
    """

    def __init__(self, *, grace: float = 5.0, log_kept: int = LOG_KEPT) -> None:
        self._grace, self._log_kept = grace, log_kept

    def finish(self, job: Job) -> Result:
        log = LogFile(job.logfile, self._log_kept) if job.logfile else None

        def each(line: bytes) -> None:
            if log:
                log.write(for_log(line))
            if job.on_line:
                job.on_line(line.decode("utf-8", "replace").rstrip())

        pipe, stdin = subprocess.PIPE, subprocess.DEVNULL if job.input is None else subprocess.PIPE
        # In its own group: a Ctrl-C on the terminal reaches us, and we decide what ends and how.
        process = _popen(job.command, stdin=stdin, stdout=pipe, stderr=pipe, process_group=0)
        try:
            if job.on_start is not None:
                job.on_start(process.pid)
            with child.until(job.give_up, process, self._grace):
                code, *output = child.finish(
                    process, job.input or b"", job.timeout, job.limit, each, self._grace
                )
        except BaseException:
            child.end_group(process, self._grace)
            raise
        return Result(TIMED_OUT if code is None else code, *output)

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        # A handler instead of SIG_IGN: an ignored signal would be inherited by the child.
        previous = signal.signal(signal.SIGINT, lambda _number, _frame: None)
        try:
            process = _popen(command)
            if on_start is not None:
                on_start(process.pid)
            process.wait()
        finally:
            signal.signal(signal.SIGINT, previous)
        return child.exit_code(process)

    def exec(self, command: Command) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        with _starting(command, "exec "):
            if command.cwd is not None:
                os.chdir(command.cwd)
            os.execvpe(command.argv[0], list(command.argv), command.environment())

    def spawn(self, command: Command, *, keep: Sequence[int] = ()) -> Child:
        """Start a child with our stdout and stderr and the descriptors `keep`. Its stdin is a pipe that nothing is
        written to: it ends when we do.
        """
        return Child(_popen(command, "spawn ", stdin=subprocess.PIPE, pass_fds=tuple(keep)))

    def spawn_detached(self, command: Command, output: Path) -> Child:
        """Start a process that outlives us, in its own session; what it writes is appended to `output`."""
        fd = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as log:
            return Child(
                _popen(
                    command, "detached ", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            )  # fmt: skip

    async def spawn_protocol(
        self, command: Command, protocol: Callable[[], P]
    ) -> tuple[asyncio.SubprocessTransport, P]:
        """Start a child of the running event loop with three pipes, which a SubprocessProtocol reads."""
        import asyncio

        with _starting(command, "spawn "):
            return await asyncio.get_running_loop().subprocess_exec(
                protocol, *command.argv, env=command.environment(), cwd=command.cwd
            )

    async def spawn_reader(self, command: Command) -> asyncio.subprocess.Process:
        """Start a child of the running event loop in its own process group: nothing on stdin, a pipe from its
        stdout, our stderr.
        """
        import asyncio

        with _starting(command, "spawn "):
            return await asyncio.create_subprocess_exec(
                *command.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                env=command.environment(), cwd=command.cwd, process_group=0,
            )  # fmt: skip


def _popen(command: Command, how: str = "", **more: Any) -> subprocess.Popen[bytes]:
    with _starting(command, how):
        return subprocess.Popen(command.argv, env=command.environment(), cwd=command.cwd, **more)


@contextlib.contextmanager
def _starting(command: Command, how: str) -> Iterator[None]:
    """Log a command, and say plainly why its program cannot be started."""
    logging = sys.modules.get("logging")  # somebody imported it (10 ms) to see such lines, or nobody looks
    if logging is not None:
        logging.getLogger("claude-sandbox").debug("+ %s%s", how, command)
    try:
        yield
    except FileNotFoundError as error:
        if command.cwd is not None and not command.cwd.is_dir():
            raise
        raise missing_program(command.argv) from error
    except PermissionError as error:
        raise CommandNotFound(f"{command.argv[0]} cannot be executed: {error.strerror}.") from error


class DryRunner(Runner):
    """Asks questions for real and shows, instead of running, what would change something."""

    def __init__(self, real: Runner, show: Callable[[str], None]) -> None:
        self._real = real
        self._show = show

    def finish(self, job: Job) -> Result:
        if not job.changes:
            return self._real.finish(job)
        self._show(str(job.command))
        return Result(0)

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        self._show(str(command))
        return 0

    def exec(self, command: Command) -> NoReturn:
        self._show(str(command))
        raise SystemExit(0)
