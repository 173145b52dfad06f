"""The microphone as a service of the daemon: a socket for each sandbox with a grant, recordings, the indicator.

It opens nothing by itself: a capture program runs while a client in a guest reads (voice/stream.py). Imported
by the daemon's worker only; grants and the state are voice/grants.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _claude_sandbox.daemon.service import Handlers
from _claude_sandbox.lima.socket_forward import wait_at_most
from _claude_sandbox.system import processes
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Command, LocalRunner
from _claude_sandbox.voice import grants as voice_grants
from _claude_sandbox.voice import recorder
from _claude_sandbox.voice.grants import Grant
from _claude_sandbox.voice.indicator import RecordingIndicator
from _claude_sandbox.voice.stream import MicrophoneSocket, RecordingLimits, RecordingRegistry

REFRESH, IDLE = 1.0, 60.0  # seconds between looks at the grants; without any, until it counts as not running
Log = Callable[[str], None]


@dataclass
class _Open:
    socket: MicrophoneSocket
    grants: list[Grant]


class VoiceServer:
    """Made in a running event loop. `indicate(VM name, recording)` shows the user that the microphone is open."""

    def __init__(
        self,
        *,
        indicate: Callable[[str, bool], None],
        log: Log,
        limits: RecordingLimits | None = None,
        idle: float = IDLE,
    ) -> None:
        self._indicate, self._log, self._idle = indicate, log, idle
        self._registry = RecordingRegistry(
            lambda argv: LocalRunner().spawn_reader(Command(tuple(argv))),
            self._changed,
            log,
            limits or RecordingLimits(),
        )
        self._open: dict[str, _Open] = {}
        self._recording: dict[str, dict[str, Any]] = {}
        self._active = False
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        for name in _end_leftovers(self._log):
            self._indicate(name, False)
        self._save()
        try:
            needed = float("-inf")
            while True:
                await self._refresh()
                if self._open:
                    needed = time.monotonic()
                if self._active != (active := time.monotonic() - needed <= self._idle):
                    self._active = active
                    self._save()
                self._look.clear()
                await wait_at_most(self._look, REFRESH)
        finally:
            for tag in list(self._open):
                await self._close(tag)
            self._active = False
            self._save()

    def refresh(self) -> None:
        """Look at the grants now."""
        self._look.set()

    # -- sandboxes -------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        wanted: dict[str, list[Grant]] = {}
        for grant in await asyncio.to_thread(voice_grants.all_held):
            wanted.setdefault(grant.tag, []).append(grant)
        for tag in [tag for tag in self._open if tag not in wanted]:
            await self._close(tag)
        for tag, grants in wanted.items():
            if tag in self._open:
                self._open[tag].grants = grants
            else:
                await self._add(tag, grants)

    async def _add(self, tag: str, grants: list[Grant]) -> None:
        name, path = grants[0].name, voice_grants.socket_of(tag)
        # The newest session's command, asked for at each recording.
        socket = MicrophoneSocket(
            name,
            self._registry,
            lambda: recorder.find_command(max(held.grants, key=lambda g: g.began).command),
        )
        held = _Open(socket, grants)
        try:
            await socket.open(path)
        except OSError as error:
            self._log(f"{name}: no socket {path}: {error.strerror or error}")
            return
        self._open[tag] = held
        self._log(f"{name}: may record")

    async def _close(self, tag: str) -> None:
        gone = self._open.pop(tag)
        await gone.socket.close()
        voice_grants.socket_of(tag).unlink(missing_ok=True)
        self._log(f"{gone.socket.name}: may record no longer")

    def _changed(self, name: str, pid: int | None) -> None:
        if pid is None:
            self._recording.pop(name, None)
        else:
            known = processes.identity(pid)
            self._recording[name] = known.to_json() if known else {}
        self._save()
        self._indicate(name, pid is not None)

    def _save(self) -> None:
        try:
            state = {"schema": voice_grants.SCHEMA, "recording": self._recording, "active": self._active}
            write_json(voice_grants.state_file(), state)
        except OSError as error:
            self._log(f"{voice_grants.state_file()}: {error.strerror or error}")


def _end_leftovers(log: Log) -> list[str]:
    """End capture programs of a server that was killed: it wrote down which ones ran, and for which VMs."""
    left = (read_object(voice_grants.state_file()) or {}).get("recording")
    for name, noted in (left if isinstance(left, dict) else {}).items():
        known = processes.from_json(noted)
        if known is None or known.pid <= 1 or not processes.same(known):
            continue
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(known.pid) == known.pid:
                os.killpg(known.pid, signal.SIGKILL)
                log(f"{name}: ended a capture program that a killed server left (process {known.pid})")
    return list(left) if isinstance(left, dict) else []


async def handle(handlers: Handlers) -> None:
    """The daemon's handler of the service."""
    log = handlers.log.write
    indicator = RecordingIndicator(LocalRunner(), log)
    server = VoiceServer(indicate=indicator, log=log)
    handlers.on_refresh.append(server.refresh)
    try:
        await server.run()
    finally:
        handlers.on_refresh.remove(server.refresh)
        await indicator.close()
