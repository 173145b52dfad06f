"""Atomic files and locks: what makes a kill at any instant harmless."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ClaudeSandboxError

LOG_LIMIT = 1 << 20  # bytes of a log; as much again is kept in NAME.1


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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None when it is missing, unreadable or no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    shared: bool = False,
    timeout: float | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; the kernel drops it when we die.

    `on_wait` is called once when somebody else holds it. `timeout` (seconds) raises
    ClaudeSandboxError. The file stays: unlinking it would race with the next holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        waited, deadline = False, None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if not waited and on_wait is not None:
                on_wait()
            waited = True
            if deadline is not None and time.monotonic() > deadline:
                raise ClaudeSandboxError(
                    f"Another claude-sandbox has held {path.name} for {timeout:g} s.",
                    resolution="Wait for it to finish, or end it, then try again.",
                )
            time.sleep(0.1)
        yield


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
