"""Which connection carries what: one for each sandbox, replaced without an interruption."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from _claude_sandbox.daemon import links as daemon_links
from _claude_sandbox.daemon.endpoint import Endpoint
from _claude_sandbox.daemon.links import Links, OnState
from _claude_sandbox.daemon.service import Handlers, Service
from _claude_sandbox.lima.socket_forward import Socket
from _claude_sandbox.system.daemon import Log


class Connection:
    """A connection that is up when the test says so."""

    def __init__(self, world: World, name: str, sockets: Sequence[Socket], state: OnState) -> None:
        self.what = f"{name}: {' '.join(socket.name for socket in sockets)}"
        self.names = frozenset(socket.name for socket in sockets)
        self.up = asyncio.Event()
        self._world, self._state = world, state

    async def run(self) -> None:
        self._world.happened.append(f"+ {self.what}")
        try:
            await self.up.wait()
            self._state(self.names)
            await asyncio.Event().wait()
        finally:
            self._state(frozenset())
            self._world.happened.append(f"- {self.what}")


class World:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.has: dict[str, set[str]] = {"hooks": set(), "voice": set()}
        self.made: list[Connection] = []
        self.happened: list[str] = []
        self.log = Log(directory / "log")

    def service(self, name: str) -> Service:
        async def handle(_handlers: Handlers) -> None:
            raise AssertionError

        return Service(
            name, lambda uid: f"/run/user/{uid}/{name}", lambda tag: self.directory / f"{tag}.{name}", str,
            lambda: [self.endpoint(each) for each in sorted(self.has[name])], handle,
        )  # fmt: skip

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint(name, self.directory / name, f"lima-{name}", self.directory / "ssh.config", 1000)

    def connect(
        self, endpoint: Endpoint, sockets: Sequence[Socket], _log: Callable[[str], None], state: OnState
    ) -> Connection:
        made = Connection(self, endpoint.name, sockets, state)
        self.made.append(made)
        return made

    def ready(self, name: str) -> list[str]:
        return daemon_links.ready(self.directory).get(self.endpoint(name).tag, [])

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            stop = asyncio.Event()
            links = Links(
                [self.service("hooks"), self.service("voice")], self.directory, self.log, self.connect
            )
            async with asyncio.timeout(30):
                running = asyncio.create_task(links.run(stop))
                await test()
                stop.set()
                await running

        asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.02)


def test_a_sandbox_has_one_connection_and_a_new_service_interrupts_no_other(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def test() -> None:
        world.has["hooks"] = {"app", "other"}
        await until(lambda: len(world.made) == 2)
        for each in world.made:
            each.up.set()
        await until(lambda: world.ready("app") == ["hooks"] == world.ready("other"))
        world.has["voice"] = {"app"}
        await until(lambda: len(world.made) == 3)
        await asyncio.sleep(0.6)
        assert "- app: hooks" not in world.happened, "the old one carries until the new one is up"
        assert world.ready("app") == ["hooks"]
        world.made[2].up.set()
        await until(lambda: world.ready("app") == ["hooks", "voice"])
        await until(lambda: "- app: hooks" in world.happened)
        assert "- other: hooks" not in world.happened
        world.has = {"hooks": {"app"}, "voice": set()}
        await until(lambda: "- other: hooks" in world.happened and len(world.made) == 4)

    world.run(test)
    assert sorted(each[0] for each in world.happened) == ["+"] * 4 + ["-"] * 4, "none is left"
    assert daemon_links.ready(tmp_path) == {}


def test_a_change_before_the_new_one_is_up_ends_both_older_ones(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def test() -> None:
        world.has["hooks"] = {"app"}
        await until(lambda: len(world.made) == 1)
        world.has["voice"] = {"app"}
        await until(lambda: len(world.made) == 2)
        world.has["voice"] = set()
        await until(lambda: len(world.made) == 3)
        world.made[2].up.set()
        await until(lambda: world.happened[-2:].count("- app: hooks voice") == 1 and len(world.happened) == 5)
        assert world.ready("app") in ([], ["hooks"])

    world.run(test)
