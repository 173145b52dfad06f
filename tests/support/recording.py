"""The recording runner: what a driver asked for, and scripted answers; and the fixtures of the unit tests."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from _claude_sandbox.lima import context, limactl
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Command, Job, Result, Runner
from _claude_sandbox.vm import mark as vm_mark
from tests.support.box import short_directory

# The machine may be busy, and a fixture that only makes a directory need not be anew for each example.
settings.register_profile(
    "unit",
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("unit")

Answer = Result | BaseException | Callable[[Command], Result]
CHILD = 4242  # the process id that `on_start` is told


class Replaced(Exception):
    """`exec` was called: the real one would not have returned."""


@dataclass(frozen=True)
class Call:
    """One command, how it was carried out, and what went with it."""

    how: str
    command: Command
    input: bytes | None = None
    timeout: float | None = None
    changes: bool = True
    limit: int | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        return self.command.argv


@dataclass
class Recorder(Runner):
    """A Runner that runs nothing. `on(...)` scripts answers by the start of the argv; else all succeeds."""

    calls: list[Call] = field(default_factory=list)
    answers: list[tuple[tuple[str, ...], list[Answer]]] = field(default_factory=list)

    def on(self, *start: str, then: list[Answer] | Answer) -> None:
        """Answers in order, the last one for ever. A later `on` wins over an earlier one."""
        self.answers.insert(0, (start, list(then) if isinstance(then, list) else [then]))

    def argvs(self) -> list[tuple[str, ...]]:
        return [call.argv for call in self.calls]

    def verbs(self) -> list[str]:
        """The second word of each limactl command."""
        return [argv[1] for argv in self.argvs() if argv[0] == "limactl"]

    def finish(self, job: Job) -> Result:
        self.calls.append(Call("run", job.command, job.input, job.timeout, job.changes, job.limit))
        if job.on_start is not None:
            job.on_start(CHILD)
        result = self._answer(job.command)
        for line in result.error_text.splitlines():
            if job.on_line is not None:
                job.on_line(line)
        if job.logfile is not None:
            job.logfile.write_bytes(result.stderr)
        return result

    def foreground(self, command: Command, *, on_start: Callable[[int], None] | None = None) -> int:
        self.calls.append(Call("foreground", command))
        if on_start is not None:
            on_start(CHILD)
        return self._answer(command).returncode

    def exec(self, command: Command) -> NoReturn:
        self.calls.append(Call("exec", command))
        raise Replaced(str(command))

    def _answer(self, command: Command) -> Result:
        for start, queue in self.answers:
            if command.argv[: len(start)] == start:
                answer = queue.pop(0) if len(queue) > 1 else queue[0]
                if isinstance(answer, BaseException):
                    raise answer
                return answer if isinstance(answer, Result) else answer(command)
        return Result(0)


def failed(words: str, code: int = 1) -> Result:
    return Result(code, b"", words.encode())


def listed(*rows: dict[str, object]) -> Result:
    """What `limactl list --format <ours>` prints for these instances."""
    lines = [
        json.dumps(
            [
                row["Name"], row.get("Status", "Stopped"), row["Dir"], row.get("SSHLocalPort", 0), None,
                row.get("CPUs", 2), row.get("Memory", 4 << 30), row.get("Disk", 20 << 30), row.get("Protected", False),
                row.get("Param"), "qemu", "2.2.0",
            ]
        )
        for row in rows
    ]  # fmt: skip
    return Result(0, "".join(f"{line}\n" for line in lines).encode())


@dataclass
class Told(Progress):
    """A Progress that remembers what it was told."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


_LISTENING: list[socket.socket] = []


def listen(path: Path) -> None:
    """A unix socket that somebody listens on, as long as the test's `home` is there."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    _LISTENING.append(server)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of this test's own, with a short path for sockets; no XDG variable points elsewhere."""
    for name in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    place = short_directory()
    runtime, home = place / "run", place / "home"
    runtime.mkdir(mode=0o700)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield home
    while _LISTENING:
        _LISTENING.pop().close()
    shutil.rmtree(place)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    yield Recorder()


@pytest.fixture
def ctx(home: Path, recorder: Recorder) -> context.Context:
    """A context whose Lima is the recorder, with an empty LIMA_HOME."""
    lima_home = home / ".lima"
    lima_home.mkdir()
    return context.Context(limactl.Lima(recorder, lima_home), lima_context.GuestUser("me", 1000), Told())


def told(ctx: context.Context) -> Told:
    assert isinstance(ctx.progress, Told)
    return ctx.progress


def put_instance(
    ctx: context.Context,
    name: str,
    mark: vm_mark.Mark | None = None,
    *,
    text: str = "",
    pid: int | None = None,
) -> Path:
    """An instance directory with a lima.yaml; with `pid`, one that runs as far as its files say."""
    directory = ctx.lima.home / name
    directory.mkdir(parents=True)
    param = f"param:\n  {vm_mark.MARK_PARAM}: {mark.encode()}\n" if mark else ""
    (directory / "lima.yaml").write_text(text + param or "{}\n")
    if pid is not None:
        for file in ("ha.pid", "qemu.pid"):
            (directory / file).write_text(f"{pid}\n")
        (directory / "ssh.config").touch()
        listen(directory / "ha.sock")
    return directory
