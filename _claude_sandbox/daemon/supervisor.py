"""The daemon's processes: the supervisor, and what every worker does at its start and end.

Killed at any instant: a dead worker is started again by the supervisor; workers whose supervisor died (their
stdin is a pipe from it) end cleanly and start a new one. All hold the lock: a new daemon starts when the last
process of the old one is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from _claude_sandbox.daemon.client import WORKERS
from _claude_sandbox.system import daemon as system_daemon
from _claude_sandbox.system.child import Child
from _claude_sandbox.system.daemon import STOP_SECONDS, Daemon, Log
from _claude_sandbox.system.run import LocalRunner

FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0  # seconds between two starts of a worker that crashes
LIVED = 10.0  # seconds after which a worker's end is not a failed start
TRIES = 12  # failed starts of the first worker in a row, then the supervisor gives up (about 3 minutes)
STOPPED = 128 + signal.SIGTERM  # exit code of a worker that ended because it was asked to


def supervise(daemon: Daemon, workers: Sequence[str] = WORKERS) -> int:
    """The supervisor's whole life. Returns the exit code: 0 when the first worker has finished."""
    fd = system_daemon.take_lock(daemon)
    if fd is None:
        print(f"The {daemon.name} server runs already.", file=sys.stderr)
        return 0
    system_daemon.write_pid_file(daemon)
    supervisor = Supervisor(daemon, fd, workers)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: supervisor.stop())
    signal.signal(signal.SIGALRM, lambda _number, _frame: supervisor.kill())
    try:
        return supervisor.run()
    finally:
        if system_daemon.has_directory(daemon, fd):
            daemon.pid_file.unlink(missing_ok=True)
        os.close(fd)


class Supervisor:
    """One thread a worker waits for its end: no polling. The main thread takes the signals."""

    def __init__(self, daemon: Daemon, fd: int, workers: Sequence[str]) -> None:
        self.daemon, self.fd, self.workers = daemon, fd, workers
        self.log = Log(daemon.log)
        self.stopping, self.code = False, 0
        self._running: dict[str, Child] = {}

    def run(self) -> int:
        threads = [threading.Thread(target=self._keep_alive, args=(name,)) for name in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.code

    def stop(self) -> None:
        """The workers are asked to end, and killed when they do not."""
        self.stopping = True
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS / 2)
        for child in list(self._running.values()):
            child.terminate()

    def kill(self) -> None:
        for child in list(self._running.values()):
            child.kill()

    def _keep_alive(self, name: str) -> None:
        wait, failed = FIRST_WAIT, 0
        while not self.stopping:
            began = time.monotonic()
            code = self._run_once(name)
            if self.stopping:
                return
            first = name == self.workers[0]
            if code == 0 and first:
                break
            if time.monotonic() - began > LIVED:
                wait, failed = FIRST_WAIT, 0
            failed += 1
            self.log.write(f"the {name} worker ended with {code}; the next one starts in {wait:g} s")
            if failed >= TRIES and first:
                self.log.write(f"{failed} failed starts in a row: giving up")
                self.code = 1
                break
            until = time.monotonic() + wait
            while not self.stopping and time.monotonic() < until:
                time.sleep(0.1)
            wait = min(wait * 2, LONGEST_WAIT)
        if not self.stopping:
            self.stop()

    def _run_once(self, name: str) -> int | None:
        """One worker from its start to its end: its exit code."""
        self.log.rotate()
        command = system_daemon.own_command(self.daemon.verb, "--worker", name, str(self.fd))
        child = self._running[name] = LocalRunner().spawn(command, keep=[self.fd])
        if self.stopping:  # asked to stop while it was being started
            child.terminate()
        return child.wait()


# -- a worker ------------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(daemon: Daemon, fd: int) -> Iterator[Callable[[], None]]:
    """Around a worker's life. The yielded function is called when the supervisor is gone (stdin has ended):
    then, with the lock given back, a new supervisor is started on the way out."""
    os.set_inheritable(fd, False)  # a child that lives on would keep the lock
    os.umask(0o077)
    orphaned: list[bool] = []
    try:
        yield lambda: orphaned.append(True)
    finally:
        os.close(fd)
        if orphaned:
            LocalRunner().spawn_detached(system_daemon.own_command(daemon.verb), daemon.log)


def stop_on_signals(stop: Callable[[], None], orphaned: Callable[[], None], log: Log) -> Callable[[], int]:
    """In a worker's event loop: a signal calls `stop`, and so does the supervisor's end, after `orphaned` (what
    `worker` yielded). Returns what gives the worker's exit code: 0 if it ended by itself."""
    import asyncio

    loop = asyncio.get_running_loop()
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    def on_end_of_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            log.write("the supervisor is gone: starting another one")
            signal.alarm(
                math.ceil(STOP_SECONDS)
            )  # nobody is left to kill us: a worker that hangs keeps the lock
            orphaned()
            stop()

    loop.add_reader(0, on_end_of_stdin)
    return lambda: STOPPED if signals else 0
