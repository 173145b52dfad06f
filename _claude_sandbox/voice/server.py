"""The audio server: for each sandbox with a grant a socket, its forward into the guest, and the microphone.

It opens nothing by itself: a capture program runs while a client in a guest reads (voice/stream.py). Without
grants it ends after a while; the next session with --voice starts it again (voice/grants.py). Imported by
`claude-audio-server` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from _claude_sandbox.lima.limactl import RUNNING, Lima
from _claude_sandbox.lima.ssh import guest_script
from _claude_sandbox.system import daemon, processes, program, quoting
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Command, LocalRunner
from _claude_sandbox.voice import grants as voice_grants
from _claude_sandbox.voice import recorder
from _claude_sandbox.voice.grants import Grant
from _claude_sandbox.voice.stream import MicrophoneSocket, RecordingLimits, RecordingRegistry

REFRESH, IDLE = 1.0, 60.0  # seconds between looks at the grants; without any, until the end
# Printed once the wrappers are in place; then the script lives as long as the connection.
_HOLD = "echo ready\nexec cat >/dev/null\n"
Log = Callable[[str], None]


class Runs(Protocol):
    """lima.socket_forward.Forward, as far as we need it."""

    async def run(self) -> None: ...


Forwards = Callable[[Grant, Path, str, Log], Runs]
"""Makes what keeps a guest's socket forwarded to ours: (grant, our socket, script, log)."""


@dataclass
class _Open:
    line: MicrophoneSocket
    grants: list[Grant]
    forward: asyncio.Task[None] | None


class Server:
    """Made in a running event loop. `sign(VM name, recording)` shows the user that the microphone is open."""

    def __init__(
        self,
        *,
        forwards: Forwards | None,
        sign: Callable[[str, bool], None],
        log: Log,
        limits: RecordingLimits | None = None,
        idle: float = IDLE,
    ) -> None:
        self._forwards, self._sign, self._log, self._idle = forwards, sign, log, idle
        self._registry = RecordingRegistry(
            lambda argv: LocalRunner().spawn_reader(Command(tuple(argv))),
            self._changed,
            log,
            limits or RecordingLimits(),
        )
        self._open: dict[str, _Open] = {}
        self._recording: dict[str, dict[str, Any]] = {}
        self._stop, self._look = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Until `stop_soon`, or until nobody has needed it for a while."""
        for name in _end_leftovers(self._log):
            self._sign(name, False)
        self._save()
        control = await asyncio.start_unix_server(self._controlled, voice_grants.daemon().socket)
        self._log(f"started, version {program.version()}")
        try:
            needed = time.monotonic()
            while not self._stop.is_set():
                await self._refresh()
                if self._open:
                    needed = time.monotonic()
                elif time.monotonic() - needed > self._idle:
                    break
                self._look.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), REFRESH)
        finally:
            control.close()
            for tag in list(self._open):
                await self._close(tag)
            self._log("stopped")

    def stop_soon(self) -> None:
        self._stop.set()
        self._look.set()

    async def _controlled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One word of our own programs (voice.grants.ask); the directory keeps others out."""
        with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
            word = (await asyncio.wait_for(reader.readline(), 5)).strip()
            if word == b"stop":
                self.stop_soon()
            self._look.set()
            writer.write(b"ok\n")
            await writer.drain()
        writer.close()

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
        grant, socket = grants[0], voice_grants.socket_of(tag)
        # The newest session's command, asked for at each recording.
        line = MicrophoneSocket(
            grant.name,
            self._registry,
            lambda: recorder.find_command(max(held.grants, key=lambda g: g.began).command),
        )
        held = _Open(line, grants, None)
        try:
            await line.open(socket)
        except OSError as error:
            self._log(f"{grant.name}: no socket {socket}: {error.strerror or error}")
            return
        self._open[tag] = held
        if self._forwards is not None:
            script = (
                f"wrapper={quoting.quoted(guest_script('voice.sh'))}\n{guest_script('voice-hold.sh')}{_HOLD}"
            )
            held.forward = asyncio.create_task(self._forwards(grant, socket, script, self._log).run())
        self._log(f"{grant.name}: may record")

    async def _close(self, tag: str) -> None:
        gone = self._open.pop(tag)
        if gone.forward is not None:
            gone.forward.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone.forward
        await gone.line.close()
        voice_grants.socket_of(tag).unlink(missing_ok=True)
        self._log(f"{gone.line.name}: may record no longer")

    def _changed(self, name: str, pid: int | None) -> None:
        if pid is None:
            self._recording.pop(name, None)
        else:
            known = processes.identity(pid)
            self._recording[name] = known.to_json() if known else {}
        self._save()
        self._sign(name, pid is not None)

    def _save(self) -> None:
        try:
            write_json(
                voice_grants.state_file(), {"schema": voice_grants.SCHEMA, "recording": self._recording}
            )
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


# -- its process ---------------------------------------------------------------------------------


def main(fd: int) -> int:
    """The worker's whole life; `fd` is the lock. Returns the exit code."""
    with daemon.worker_of(voice_grants.daemon(), fd) as orphaned:
        asyncio.run(_serve(orphaned))
    return 0


async def _serve(orphaned: Callable[[], None]) -> None:
    from _claude_sandbox.voice.indicator import RecordingIndicator

    log = daemon.Log(voice_grants.daemon().log)
    sign = RecordingIndicator(LocalRunner(), log.write)
    server = Server(forwards=_forward, sign=sign, log=log.write)
    daemon.stop_when_told(server.stop_soon, orphaned, log)
    try:
        await server.run()
    finally:
        await sign.close()


def _forward(grant: Grant, socket: Path, script: str, log: Log) -> Runs:
    from _claude_sandbox.lima.socket_forward import Forward

    driver = Lima(LocalRunner(), grant.dir.parent)

    def usable() -> bool:
        instance = driver.read_instance_files(grant.name)
        return instance is not None and instance.status == RUNNING

    return Forward(
        ssh_config=grant.ssh_config, host=grant.host, guest_socket=grant.guest_socket,
        host_socket=socket, script=script, usable=usable, log=log,
    )  # fmt: skip
