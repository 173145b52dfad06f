"""The sandboxes that the hooks server serves: a socket and a forward for each, and an eye on its VM.

They come from registrations (hooks/registration.py); a VM is watched by its pid files. Imported by the hooks
server only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from _claude_sandbox.hooks import client
from _claude_sandbox.hooks import registration as hooks_registration
from _claude_sandbox.hooks.intake import Intake, Taken
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.lima import limactl, readiness
from _claude_sandbox.lima.limactl import Instance

Say = Callable[[str], None]


class Runs(Protocol):
    """lima.socket_forward.Forward, as far as we need it."""

    async def run(self) -> None: ...


Forwards = Callable[[Registration, Path, Callable[[], bool], Say, Callable[[bool], None]], Runs]
"""Makes what keeps a guest's socket forwarded to ours: (registration, our socket, usable, log, on_state)."""


class Owner(Protocol):
    """Who is notified of what happens in the sandboxes."""

    def ingest(self, sandbox: Registration, lines: list[bytes]) -> Taken: ...

    def vm_stopped(self, sandbox: str) -> None: ...

    def vm_deleted(self, sandbox: str) -> None: ...

    def log(self, text: str, about: str = "") -> None: ...


@dataclass
class ServedSandbox:
    """One registered sandbox. `boot` is None while its VM does not run."""

    registration: Registration
    intake: Intake
    forward: asyncio.Task[None] | None = None
    boot: str | None = None
    connected: bool = False


class ServedSandboxes:
    """`forwards` makes the forwards; None for none (tests, and a server without guests)."""

    def __init__(self, owner: Owner, forwards: Forwards | None) -> None:
        self._owner, self._forwards = owner, forwards
        self._served: dict[str, ServedSandbox] = {}
        self._turn = asyncio.Lock()

    def all(self) -> list[ServedSandbox]:
        return list(self._served.values())

    def any_alive(self) -> bool:
        return any(sandbox.boot is not None for sandbox in self._served.values())

    async def refresh(self) -> None:
        """Serve exactly the sandboxes that are registered and whose VM still exists."""
        async with self._turn:
            wanted = {each.tag: each for each in hooks_registration.all_in(client.registrations())}
            for tag, each in list(wanted.items()):
                if not each.dir.is_dir():
                    (client.registrations() / f"{tag}.json").unlink(missing_ok=True)
                    del wanted[tag]
                    self._owner.vm_deleted(each.name)
            for tag in [
                tag for tag, sandbox in self._served.items() if wanted.get(tag) != sandbox.registration
            ]:
                sandbox = self._served.pop(tag)
                await self._drop(sandbox)
                if tag not in wanted:  # deleted: the next sandbox of that name is another one
                    self._owner.vm_deleted(sandbox.registration.name)
            for tag, each in wanted.items():
                if tag not in self._served:
                    await self._add(tag, each)
            self.watch()

    def watch(self) -> None:
        """Look at the VMs: cheap, every second. The sessions of one that stopped, or was started anew, end."""
        for sandbox in self._served.values():
            where = sandbox.registration.dir
            now = readiness.boot_id(_instance(sandbox.registration)) if limactl.alive(where) else None
            if sandbox.boot is not None and now != sandbox.boot:
                self._owner.vm_stopped(sandbox.registration.name)
            sandbox.boot = now

    async def close(self) -> None:
        async with self._turn:
            for sandbox in self._served.values():
                await self._drop(sandbox)
            self._served.clear()

    async def _add(self, tag: str, each: Registration) -> None:
        name = each.name
        socket = client.intake_socket(tag)
        intake = Intake(
            socket,
            lambda lines: self._owner.ingest(each, lines),
            lambda text: self._owner.log(f"{name}: {text}", name),
        )
        try:
            await intake.start()
        except OSError as error:
            self._owner.log(f"{name}: no socket {socket}: {error.strerror or error}", name)
            return
        sandbox = self._served[tag] = ServedSandbox(each, intake)
        if not limactl.alive(each.dir):
            self._owner.vm_stopped(name)  # it may have gone while no server ran
        if self._forwards is not None:
            forward = self._forwards(
                each,
                socket,
                lambda: limactl.alive(each.dir) and readiness.was_ready(_instance(each)),
                lambda text: self._owner.log(f"{name}: {text}", name),
                lambda connected: setattr(sandbox, "connected", connected),
            )
            sandbox.forward = asyncio.create_task(self._run(forward, name))

    async def _run(self, forward: Runs, name: str) -> None:
        """A forward ends by cancellation only; whatever else ends it is told, and it is run again."""
        while True:
            try:
                await forward.run()
                self._owner.log(f"{name}: the forward ended by itself", name)
            except Exception as error:  # noqa: BLE001 - one sandbox's forward must not end the others'
                self._owner.log(f"{name}: the forward failed: {type(error).__name__}: {error}", name)
            await asyncio.sleep(5)

    async def _drop(self, sandbox: ServedSandbox) -> None:
        if sandbox.forward is not None:
            sandbox.forward.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sandbox.forward
        await sandbox.intake.close()


def _instance(sandbox: Registration) -> Instance:
    return Instance(sandbox.name, "", sandbox.dir)
