"""A background process of this user: whether it runs, its start and its end, as other programs see it.

Whether one runs is said by the lock and by nothing else: the kernel drops it when all its processes are gone.
Before a signal the pid file is compared with the process (system/processes.py, command line), because process
ids are used again. What is left of a killed one is a lock file without a lock.

daemon/supervisor.py is the inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ClaudeSandboxError, HostSetupError
from _claude_sandbox.system import processes, program, runtime_dir
from _claude_sandbox.system.files import (
    LOG_LIMIT,
    LogFile,
    is_locked,
    listens,
    lock,
    rotate,
    write_json,
)
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Command, LocalRunner

START_SECONDS, STOP_SECONDS = 30.0, 8.0
# What a server that outlives a command must not keep: logins and Claude's own variables.
_SECRET = ("ANTHROPIC_", "CLAUDE_CODE_", "CLAUDECODE")


def own_command(verb: str, *arguments: str) -> Command:
    """Our own program with a server's verb, without secrets in its environment."""
    dropped = dict.fromkeys((name for name in os.environ if name.startswith(_SECRET)), None)
    return Command(program.own_argv(verb, *arguments), dropped, cwd=Path("/"))


@dataclass(frozen=True)
class Daemon:
    """One background process. `directory` (0700, short) has its lock, pid file and `socket`."""

    name: str  # "hooks": users know it as "the hooks server"
    verb: str  # "_hooks-server": names it in its command line
    directory: Path
    log: Path
    socket: Path  # the server is up when somebody listens here

    @property
    def lock_file(self) -> Path:
        return self.directory / "server.lock"

    @property
    def pid_file(self) -> Path:
        return self.directory / "server.pid"


# -- from outside --------------------------------------------------------------------------------


def held(daemon: Daemon) -> bool:
    """Whether a server of this user lives (it may be starting)."""
    return is_locked(daemon.lock_file)


def running(daemon: Daemon) -> bool:
    """Whether it lives and its socket is open."""
    return held(daemon) and listens(daemon.socket)


def read_pid_file(daemon: Daemon) -> dict[str, Any]:
    """What the pid file says: identity (system/processes.py), version, argv0; {} without one."""
    return read_object(daemon.pid_file) or {}


def ensure(daemon: Daemon, *, ask_to_stop: Callable[[], None], timeout: float = START_SECONDS) -> bool:
    """Make sure that one of this version runs; whether it was started now. Raises HostSetupError."""
    if _is_current(daemon):
        return False
    with lock(daemon.directory / "start.lock", timeout=2 * timeout):
        if _is_current(daemon):
            return False
        stop(daemon, ask_to_stop=ask_to_stop)
        child = LocalRunner().spawn_detached(own_command(daemon.verb), daemon.log)
        deadline = time.monotonic() + timeout
        while not running(daemon):  # whatever its version: the program may be changing under us
            if child.poll() is not None and not held(daemon):
                raise _did_not_start(daemon, "It ended at once.")
            if time.monotonic() > deadline:
                raise _did_not_start(daemon, f"It did not answer within {timeout:g} s.")
            time.sleep(0.02)
    return True


def stop(daemon: Daemon, *, ask_to_stop: Callable[[], None], timeout: float = STOP_SECONDS) -> bool:
    """Stop it, cleanly if it answers; whether there was one. Raises ClaudeSandboxError."""
    if not held(daemon):
        return False
    with contextlib.suppress(OSError, ClaudeSandboxError):
        ask_to_stop()
        if _gone(daemon, timeout):
            return True
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = _wait_for_process(daemon, timeout)
        if pid is None:
            break
        with contextlib.suppress(ProcessLookupError):
            # The supervisor passes SIGTERM on. SIGKILL goes to the whole group: workers alone would go on.
            os.kill(pid, number) if number == signal.SIGTERM else os.killpg(pid, number)
        if _gone(daemon, timeout):
            return True
    if not held(daemon):
        return True
    raise ClaudeSandboxError(
        f"The {daemon.name} server does not stop.",
        details=f"{daemon.pid_file} does not name the process that holds {daemon.lock_file}.",
        resolution=f"Find it (`fuser {daemon.lock_file}`), end it, then try again. Its log is {daemon.log}",
    )


def former(daemon: Daemon) -> list[Daemon]:
    """The same server of the last release, if it runs for this HOME and LIMA_HOME.

    It lives where all HOMEs of a user shared one directory (`system.runtime_dir.former`).
    """
    found = []
    for place in runtime_dir.former():
        directory = Path(place) / daemon.directory.name
        old = replace(daemon, directory=directory, socket=directory / daemon.socket.name)
        with contextlib.suppress(OSError):
            private = runtime_dir.is_private(place) and runtime_dir.is_private(str(directory))
            if private and held(old) and _serves_us(old):
                found.append(old)
    return found


def _serves_us(daemon: Daemon) -> bool:
    """By the environment of the process that its pid file names; False when that cannot be read."""
    import psutil

    try:
        environ = psutil.Process(read_pid_file(daemon)["pid"]).environ()
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
    return runtime_dir.key(environ) == runtime_dir.key()


def _is_current(daemon: Daemon) -> bool:
    return held(daemon) and read_pid_file(daemon).get("version") == program.version()


def _gone(daemon: Daemon, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while held(daemon):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _wait_for_process(daemon: Daemon, timeout: float) -> int | None:
    """`_own_process`, or None once nobody holds the lock. A worker whose supervisor was killed holds it for a moment,
    and starts another supervisor."""
    deadline = time.monotonic() + timeout
    while (pid := _own_process(daemon)) is None and held(daemon) and time.monotonic() < deadline:
        time.sleep(0.02)
    return pid


def _own_process(daemon: Daemon) -> int | None:
    """The parent's process id, only when that process is really it."""
    known = processes.from_json(read_pid_file(daemon))
    if known is None or known.pid <= 1 or not processes.same(known):
        return None
    return known.pid if daemon.verb in (processes.arguments(known.pid) or ()) else None


def _did_not_start(daemon: Daemon, why: str) -> HostSetupError:
    try:
        words = "\n".join(daemon.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    except OSError:
        words = ""
    return HostSetupError(
        f"The {daemon.name} server did not start. {why}",
        details=words or None,
        resolution=f"Its log is {daemon.log}",
    )


# -- from inside ---------------------------------------------------------------------------------


def take_lock(daemon: Daemon) -> int | None:
    """The lock's descriptor, or None when another server has it. `held` takes it for a moment: so several tries."""
    fd = os.open(daemon.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(50):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        time.sleep(0.02)
    os.close(fd)
    return None


def has_directory(daemon: Daemon, fd: int) -> bool:
    """Whether the lock file is the one that `fd` holds. When it is not, somebody removed the directory (a
    cleaner of /tmp, `uninstall`): nobody finds this server any more, and another one may run."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(daemon.lock_file))
    except OSError:
        return False


def write_pid_file(daemon: Daemon) -> None:
    me = processes.identity(os.getpid())
    assert me is not None
    write_json(daemon.pid_file, {**me.to_json(), "version": program.version(), "argv0": sys.argv[0]})


class Log:
    """Lines with a time, appended; bounded (system.files.LogFile). All processes have the file open as their stderr."""

    def __init__(self, path: Path, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self._file = LogFile(path, limit)

    def write(self, text: str) -> None:
        """Never raises: a full disk must not end a server."""
        line = f"{time.strftime('%F %T')} [{os.getpid()}] {text}\n"
        self._file.write(line.encode("utf-8", "backslashreplace"))

    def rotate(self) -> None:
        rotate(self.path, self._file.limit)
