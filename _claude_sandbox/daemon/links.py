"""One ssh connection for each sandbox that has a service: the worker `links`.

When the services of a sandbox change, a new connection comes first and the old one ends when it is up, so that
no service of the others is interrupted. Which services are ready in which guest is in a file, for `state` and
`doctor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from _claude_sandbox.daemon.endpoint import Endpoint
from _claude_sandbox.daemon.service import Service
from _claude_sandbox.lima import limactl, readiness, socket_forward
from _claude_sandbox.lima.socket_forward import Forward, Socket, wait_at_most
from _claude_sandbox.system.daemon import Log
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.jsonio import read_object

LOOK = 0.5  # seconds between two looks at who has which service
HANDOVER = (
    socket_forward.READY_WITHIN
)  # seconds after which an old connection ends although the new one is not up
AGAIN = 5.0  # seconds, when a forward failed by itself
FILE = "links.json"
OnState = Callable[[frozenset[str]], None]


class Runs(Protocol):
    """lima.socket_forward.Forward, as far as we need it."""

    up: asyncio.Event

    async def run(self) -> None: ...


Connect = Callable[[Endpoint, Sequence[Socket], Callable[[str], None], OnState], Runs]


def forward(
    endpoint: Endpoint, sockets: Sequence[Socket], log: Callable[[str], None], state: OnState
) -> Runs:
    """The real connection."""
    return Forward(
        ssh_config=endpoint.ssh_config, host=endpoint.host, sockets=sockets, log=log, on_state=state,
        usable=lambda: limactl.alive(endpoint.dir) and readiness.was_ready(endpoint.instance),
    )  # fmt: skip


class Link:
    """The connection of one sandbox."""

    def __init__(self, endpoint: Endpoint, connect: Connect, log: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self.sockets: tuple[Socket, ...] = ()
        self.ready: dict[object, frozenset[str]] = {}  # of each connection: two, while one replaces the other
        self._connect, self._log = connect, log
        self._carrier: asyncio.Task[None] | None = None

    def carry(self, sockets: Sequence[Socket]) -> None:
        """Forward these from now on."""
        if (wanted := tuple(sockets)) != self.sockets:
            self.sockets = wanted
            self._carrier = asyncio.create_task(self._run(wanted, self._carrier))

    async def close(self) -> None:
        await _end(self._carrier)

    async def _run(self, sockets: Sequence[Socket], before: asyncio.Task[None] | None) -> None:
        key = object()
        made = self._connect(self.endpoint, sockets, self._log, lambda names: self._note(key, names))
        running = asyncio.create_task(self._keep(made))
        try:
            if before is not None:
                await wait_at_most(made.up, HANDOVER)
                await _end(before)
                before = None
            await running
        finally:
            await _end(running)
            await _end(before)
            self.ready.pop(key, None)

    def _note(self, key: object, names: frozenset[str]) -> None:
        self.ready[key] = names

    async def _keep(self, made: Runs) -> None:
        """A forward ends by cancellation only; whatever else ends it is logged, and it is run again."""
        while True:
            try:
                await made.run()
                self._log("the forward ended by itself")
            except Exception as error:  # noqa: BLE001 - one sandbox's forward must not end the others'
                self._log(f"the forward failed: {type(error).__name__}: {error}")
            await asyncio.sleep(AGAIN)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Links:
    """All connections. `directory` is the daemon's."""

    def __init__(
        self, services: Iterable[Service], directory: Path, log: Log, connect: Connect = forward
    ) -> None:
        self._services, self._file, self._log, self._connect = list(services), directory / FILE, log, connect
        self._links: dict[str, Link] = {}
        self._saved: dict[str, list[str]] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        try:
            while not stop.is_set():
                try:
                    await self.refresh()
                    self._save()
                except OSError as error:
                    self._log.write(f"links: {error}")
                await wait_at_most(stop, LOOK)
        finally:
            await asyncio.gather(*(link.close() for link in self._links.values()))
            self._links.clear()
            with contextlib.suppress(OSError):
                self._save()

    async def refresh(self) -> None:
        """Connect exactly the sandboxes that have a service. Raises OSError."""
        wanted: dict[str, Endpoint] = {}
        sockets: dict[str, list[Socket]] = {}
        for service in self._services:
            for endpoint in service.endpoints():
                known = wanted.setdefault(endpoint.tag, endpoint)
                sockets.setdefault(endpoint.tag, []).append(service.socket(known))
        gone = [tag for tag, link in self._links.items() if wanted.get(tag) != link.endpoint]
        await asyncio.gather(*(self._links.pop(tag).close() for tag in gone))
        for tag, endpoint in wanted.items():
            if tag not in self._links:
                self._links[tag] = Link(endpoint, self._connect, self._logs(endpoint.name))
            self._links[tag].carry(sockets[tag])

    def _logs(self, name: str) -> Callable[[str], None]:
        return lambda text: self._log.write(f"{name}: {text}")

    def _save(self) -> None:
        ready = {tag: sorted(frozenset().union(*link.ready.values())) for tag, link in self._links.items()}
        if ready != self._saved:
            text = json.dumps({"schema": 1, "ready": ready})
            write_atomic(self._file, text.encode(), durable=False)
            self._saved = ready


def ready(directory: Path) -> dict[str, list[str]]:
    """Names of the services that are ready in the guest, by a sandbox's tag."""
    value = (read_object(directory / FILE) or {}).get("ready")
    return value if isinstance(value, dict) else {}
