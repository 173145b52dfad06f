"""Atomic files and locks: what makes a kill at any instant harmless."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import processes
from _claude_sandbox.system.text import printable

LOG_LIMIT = 1 << 20  # bytes of a log; as much again is kept in NAME.1
PATIENCE = 1.0  # seconds; who has to wait longer for a lock is shown who has it
_PROGRAMS = ("claude_sandbox.py", "claude-sandbox", "rebuild-tools-vm", "claude-hooks-server")
_AT_FDCWD = -100  # linux/fcntl.h
_STATX_BTIME = 0x800  # linux/stat.h


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace `path` as a whole: a reader, or a crash, sees the old content or the new.

    Not `durable`: a power cut may leave neither; for what can be made again.
    """
    # Not tempfile, whose import takes 15 ms: our own name, made exclusively.
    name = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns():x}")
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def birth(path: Path) -> int:
    """When a file or directory was made (ns since 1970): a new one that got an old inode has another.

    0 where the file system does not record it (NFS, older tmpfs). Python 3.11 shows it on macOS only, hence
    statx(2): in glibc since 2.28, in musl since 1.2.3. Raises OSError.
    """
    import ctypes

    info = os.stat(path)
    if (born := getattr(info, "st_birthtime", None)) is not None:
        return int(round(born * 1_000_000) * 1000)  # a float: microseconds are what is exact in it
    buffer = ctypes.create_string_buffer(256)  # struct statx
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except AttributeError:
        return 0
    if statx(_AT_FDCWD, os.fsencode(path), 0, ctypes.c_uint(_STATX_BTIME), buffer):
        return 0  # a kernel, or a sandbox's filter, that does not know the call
    return _birth_of(buffer.raw)


def _birth_of(statx: bytes) -> int:
    """`stx_btime` (seconds, nanoseconds at byte 80), if `stx_mask` says that it was filled in."""
    (mask,) = struct.unpack_from("=I", statx, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", statx, 80)
    return int(seconds * 1_000_000_000 + nanoseconds) if mask & _STATX_BTIME else 0


def sync(path: Path) -> None:
    """Make a file's content, or a directory's names, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rotate(path: Path, limit: int = LOG_LIMIT) -> None:
    """A log that has reached `limit` bytes becomes `NAME.1` (its last `limit` bytes) and is empty again.

    By copy and truncation, because others may have it open to append to it. Never raises OSError.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size < limit:
            return
        with path.open("rb+") as file:
            file.seek(-limit, os.SEEK_END)
            with contextlib.suppress(OSError):  # a full disk: then what is old goes
                write_atomic(path.with_name(path.name + ".1"), file.read(), durable=False)
            file.truncate(0)


class LogFile:
    """A log to append to, of at most `limit` bytes and as much again in `NAME.1`; readable by its user alone.

    No write raises OSError: a full disk must not end what is logged.
    """

    def __init__(self, path: Path, limit: int = LOG_LIMIT) -> None:
        self.path, self.limit = path, limit

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            rotate(self.path, self.limit)
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                if os.fstat(fd).st_mode & 0o077:  # made by an older version
                    os.fchmod(fd, 0o600)
                file.write(data[-self.limit :])


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    shared: bool = False,
    timeout: float | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; the kernel drops it when we die.

    `on_wait` is called once when somebody else has held it for PATIENCE seconds, with words for who that is
    (`holder`). `timeout` (seconds) raises ClaudeSandboxError. The file stays: unlinking it would race with
    the next holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        began, told = time.monotonic(), on_wait is None
        while not _locked(file.fileno(), kind):
            waited = time.monotonic() - began
            if on_wait is not None and not told and waited >= PATIENCE:
                on_wait(holder(path))
                told = True
            if timeout is not None and waited > timeout:
                raise ClaudeSandboxError(
                    f"Another claude-sandbox has held {path.name} for {timeout:g} s.",
                    details=f"Held by {holder(path)}.",
                    resolution="Wait for it to finish, or end it, then try again.",
                )
            time.sleep(0.1)
        _sign(file.fileno())
        yield


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(fd: int) -> None:
    """Our process id for those who wait. Of several that share a lock the last one is named."""
    with contextlib.suppress(OSError):  # a full disk must not keep anybody from the lock
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())


def holder(path: Path) -> str:
    """Who holds the lock file `path`: "process 4711 (create -c base)", or "another process" when it did not
    say so (an older claude-sandbox) or is gone by now."""
    try:
        pid = int(path.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return "another process"
    command = _command(pid)
    return f"process {pid} ({command})" if command else f"process {pid}"


def _command(pid: int) -> str:
    """What was asked of a claude-sandbox, if this process is one."""
    words = processes.arguments(pid) or []
    ours = next((at for at, word in enumerate(words) if os.path.basename(word) in _PROGRAMS), None)
    # Not what follows `--`: that is another program's. No word of it may steer a terminal.
    command = words[ours + 1 :] if ours is not None else []
    command = command[: command.index("--")] if "--" in command else command
    return printable(" ".join(command), instead="")[:60]


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock file `path` exclusively, without waiting for it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def keep_from_cleaners(directory: Path, *, besides: str) -> None:
    """Make all below look used now, besides what ends so: cleaners of /tmp and of XDG_RUNTIME_DIR go by times."""
    for folder, _, names in os.walk(directory):
        for path in (folder, *(f"{folder}/{name}" for name in names if not name.endswith(besides))):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)


def unlink_own(path: Path, made: os.stat_result | None) -> None:
    """Remove `path` if it still is the file that was `made` there: another server's socket stays."""
    with contextlib.suppress(OSError):
        if made is not None and os.path.samestat(made, path.lstat()):
            path.unlink()


def listens(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
