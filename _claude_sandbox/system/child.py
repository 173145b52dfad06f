"""A child process: fed and drained to its end, watched while it runs beside us, ended with its group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

TAIL = 200  # lines of stderr that are kept
ASKED_EVERY = 2.0  # seconds between two questions whether a command is given up


class Child:
    """A process that lives as long as we want it: ours to end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Its exit code (128+N for signal N), None while it lives."""
        return None if self._process.poll() is None else exit_code(self._process)

    def wait(self, timeout: float | None = None) -> int | None:
        """The same after at most `timeout` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Of a process that has ended, as a shell gives it: 128+N for signal N."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a process that we started, with its group: TERM, then KILL after `grace` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
            return


def finish(
    process: subprocess.Popen[bytes],
    input: bytes,
    timeout: float | None,
    limit: int | None,
    on_line: Callable[[bytes], None],
    grace: float,
) -> tuple[int | None, bytes, bytes]:
    """Feed and drain a child's three pipes until it ends: its exit code, `limit` bytes of stdout, TAIL lines of
    stderr, each of which `on_line` gets as it comes. The code is None when `timeout` (seconds) ended it.
    """
    assert process.stdout is not None and process.stderr is not None
    stdout: list[bytes] = []
    tail: deque[bytes] = deque(maxlen=TAIL)
    reader = _thread(_drain, process.stdout, stdout, limit)
    if process.stdin is not None:
        _thread(_feed, process.stdin, input)
    with _time_limit(process, timeout, grace) as expired:
        for line in process.stderr:
            tail.append(line)
            on_line(line)
        process.wait()
        reader.join()
    if expired.is_set():
        tail.append(f"no end within {timeout:g} s".encode())
    return None if expired.is_set() else exit_code(process), b"".join(stdout), b"".join(tail)


def _thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(data)


def _drain(pipe: IO[bytes], into: list[bytes], limit: int | None) -> None:
    room = sys.maxsize if limit is None else limit
    for block in iter(lambda: pipe.read(65536), b""):
        if room > 0:
            into.append(block[:room])
            room -= len(block)


@contextlib.contextmanager
def _time_limit(
    process: subprocess.Popen[bytes], timeout: float | None, grace: float
) -> Iterator[threading.Event]:
    """End the child's group after `timeout` seconds within the block; the event says that it was so."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        end_group(process, grace)

    if not timeout:
        yield expired
        return
    timer = threading.Timer(timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


@contextlib.contextmanager
def until(
    give_up: Callable[[], bool] | None, process: subprocess.Popen[bytes], grace: float
) -> Iterator[None]:
    """End the process within the block as soon as `give_up` says so (None: nobody is asked)."""
    over = threading.Event()

    def ask(give_up: Callable[[], bool]) -> None:
        while not over.wait(ASKED_EVERY):
            if give_up() and process.poll() is None:
                end_group(process, grace)
                return

    if give_up is not None:
        threading.Thread(target=ask, args=(give_up,), daemon=True).start()
    try:
        yield
    finally:
        over.set()
