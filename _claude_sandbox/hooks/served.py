"""The sandboxes that the hooks server serves: a socket for each, and whether its VM runs.

They come from registrations (hooks/registration.py); a VM is watched by its pid files. Imported by the hooks
server only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from _claude_sandbox.hooks import client
from _claude_sandbox.hooks import registration as hooks_registration
from _claude_sandbox.hooks.intake import Intake, Taken
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.lima import limactl, readiness


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
    boot: str | None = None

    @property
    def name(self) -> str:
        return self.registration.name


class ServedSandboxes:
    def __init__(self, owner: Owner) -> None:
        self._owner = owner
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
                await sandbox.intake.close()
                if tag not in wanted:  # deleted: the next sandbox of that name is another one
                    self._owner.vm_deleted(sandbox.registration.name)
            for tag, each in wanted.items():
                if tag not in self._served:
                    await self._add(tag, each)
            self.watch()

    def watch(self) -> None:
        """Look at the VMs: cheap, every second. The sessions of one that stopped, or was restarted, end."""
        for sandbox in self._served.values():
            where = sandbox.registration.dir
            now = readiness.boot_id(sandbox.registration.endpoint.instance) if limactl.alive(where) else None
            if sandbox.boot is not None and now != sandbox.boot:
                self._owner.vm_stopped(sandbox.registration.name)
            sandbox.boot = now

    async def close(self) -> None:
        async with self._turn:
            for sandbox in self._served.values():
                await sandbox.intake.close()
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
        self._served[tag] = ServedSandbox(each, intake)
        if not limactl.alive(each.dir):
            self._owner.vm_stopped(name)  # it may have gone while no server ran
