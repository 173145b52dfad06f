"""What the daemon does for sandboxes: one value a service.

The daemon of a user (one for each HOME with its LIMA_HOME) is three processes:

    supervisor   holds the lock, writes the pid file, starts the workers and starts them again when they die
    attention    runs the handler of every service: events, notifications, the microphone
    links        holds one ssh connection a sandbox, with a forward for every service that the sandbox has

Why these: the handlers may fail or be killed without cutting a connection, and the connections without losing
an event. A process for each service would cost 25 to 30 MiB each (aiohttp); links imports asyncio and no
aiohttp, about 10 MiB. The handlers share an event loop, where each guest has its own limits (system/unix_http.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.daemon.endpoint import Endpoint
from _claude_sandbox.lima.socket_forward import Socket
from _claude_sandbox.system.daemon import Log

SHORTEST, LONGEST = 1.0, 30.0  # seconds between two runs of a handler that fails


@dataclass(frozen=True)
class Service:
    """One service. `handler` runs in the worker `attention` until it is cancelled; it listens at `host_socket`.

    `endpoints` are the sandboxes that have the service now: read from files, by both workers, every second.
    """

    name: str  # a word: "hooks"
    guest_socket: Callable[[int], str]  # of the user's id in the guest
    host_socket: Callable[[str], Path]  # of a sandbox's tag
    script: Callable[[], str]  # what runs in the guest meanwhile (lima.socket_forward.Socket)
    endpoints: Callable[[], Iterable[Endpoint]]
    handler: Callable[[Handlers], Awaitable[None]]

    def socket(self, endpoint: Endpoint) -> Socket:
        return Socket(
            self.name, self.guest_socket(endpoint.uid), self.host_socket(endpoint.tag), self.script()
        )


class Handlers:
    """All handlers in one event loop: what each gets of the worker that it runs in."""

    def __init__(self, log: Log, has_directory: Callable[[], bool] = lambda: True) -> None:
        self.log = log
        self.has_directory = has_directory  # whether the daemon's directory is still there
        self.on_refresh: list[Callable[[], None]] = []  # called when a launch says that files have changed
        self._stop = asyncio.Event()

    def stop_soon(self) -> None:
        """End the worker, once an answer that is on its way has gone out."""
        asyncio.get_running_loop().call_later(0.02, self._stop.set)

    def refresh(self) -> None:
        for call in self.on_refresh:
            call()

    async def run(self, services: Iterable[Service]) -> None:
        """Until `stop_soon`. A handler that fails runs again after a pause; the others go on."""
        tasks = [asyncio.create_task(self._keep(each)) for each in services]
        try:
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, service: Service) -> None:
        pause = SHORTEST
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await service.handler(self)
                return
            except Exception as error:  # noqa: BLE001 - one service's fault must not end the others
                self.log.write(f"{service.name} failed: {type(error).__name__}: {error}")
            if asyncio.get_running_loop().time() - began > LONGEST:
                pause = SHORTEST
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST)
