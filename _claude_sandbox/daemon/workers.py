"""The two workers: what each process does (daemon/service.py says why there are two)."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Sequence

from _claude_sandbox.daemon import supervisor
from _claude_sandbox.daemon.client import ATTENTION
from _claude_sandbox.daemon.links import Links
from _claude_sandbox.daemon.service import Handlers, Service
from _claude_sandbox.system import daemon as system_daemon
from _claude_sandbox.system.daemon import Daemon, Log
from _claude_sandbox.system.run import LocalRunner


def main(daemon: Daemon, name: str, fd: int, services: Sequence[Service]) -> int:
    """A worker's whole life; `fd` is the lock. Returns the exit code."""
    work = attention if name == ATTENTION else links
    with supervisor.worker(daemon, fd) as orphaned:
        return asyncio.run(work(daemon, fd, services, orphaned))


async def attention(
    daemon: Daemon, fd: int, services: Sequence[Service], orphaned: Callable[[], None]
) -> int:
    log = Log(daemon.log)
    handlers = Handlers(log, functools.partial(system_daemon.has_directory, daemon, fd))
    code = supervisor.stop_on_signals(handlers.stop_soon, orphaned, log)
    await handlers.run(services)
    return code()


async def links(daemon: Daemon, _fd: int, services: Sequence[Service], orphaned: Callable[[], None]) -> int:
    log, stop = Log(daemon.log), asyncio.Event()
    code = supervisor.stop_on_signals(stop.set, orphaned, log)
    await Links(services, daemon.directory, log).run(stop)
    return code()


def replace_supervisor(daemon: Daemon, fd: int) -> int:
    """We were started by a supervisor of the last release, whose worker died while the program was updated: the
    new daemon takes its place. Returns the exit code 0, with which that supervisor ends."""
    os.close(fd)
    LocalRunner().spawn_detached(system_daemon.own_command(daemon.verb), daemon.log)
    return 0
