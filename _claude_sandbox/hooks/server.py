"""The hooks server itself: events come in, are logged, change the attention of sessions, and go out.

One writer of the log; a sandbox can only reach its own socket (hooks/intake.py). An event is written, then
counted, then published: what was acknowledged is in the log. The daemon's handler (daemon/service.py); what
the command line needs is hooks/client.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.daemon import links
from _claude_sandbox.daemon.service import Handlers
from _claude_sandbox.hooks import client
from _claude_sandbox.hooks.attention import Session, Transition
from _claude_sandbox.hooks.control import Control
from _claude_sandbox.hooks.event import HOST_REPLIED, LOST, Event, MalformedError, parse
from _claude_sandbox.hooks.feed import Feed
from _claude_sandbox.hooks.intake import Taken
from _claude_sandbox.hooks.log import EventLog, line, of_event
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.hooks.served import ServedSandboxes
from _claude_sandbox.hooks.session_table import SessionTable
from _claude_sandbox.system import paths, program
from _claude_sandbox.system.files import keep_from_cleaners, write_atomic
from _claude_sandbox.system.text import printable

SERVICE = "hooks"  # its name among the daemon's services
REFRESH_SECONDS, IDLE_SECONDS = 5.0, 600.0
KEEP_SECONDS = 3600.0  # the XDG specification allows a cleaner what was not used for six hours
STATE_DELAY = 0.08  # seconds between a change and state.json; one write for a burst
QUIET_SECONDS = 10.0  # between two lines of the log about one sandbox


class Notifies(Protocol):
    """notify.notifier.Notifier, as far as we need it."""

    def resume(self, sessions: Iterable[Session]) -> None: ...

    def enqueue(self, transition: Transition) -> None: ...

    async def test(self) -> list[str]: ...

    async def close(self) -> None: ...


class HooksServer:
    """Made in a running event loop, of the worker that `handlers` describes. `notifier`: None for none."""

    def __init__(self, handlers: Handlers, notifier: Callable[[HooksServer], Notifies] | None = None) -> None:
        self.table = SessionTable()
        self.events = EventLog(client.state_directory())
        self.served = ServedSandboxes(self)
        self.feed = Feed(client.feed_socket(), self._greeting)
        self.control = Control(daemon_client.control_socket(), self)
        self.dropped = 0  # lines that were no events, since the start
        self._handlers = handlers
        self._logged: dict[str, tuple[float, int]] = {}
        self._changed = asyncio.Event()
        self._about = {"pid": os.getpid(), "started": time.time(), "version": program.version()}
        self.notifier = notifier(self) if notifier is not None else None

    # -- its life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled, or until nobody needs it: then it stops the worker. Raises OSError when its sockets or
        its log cannot be opened."""
        self.events.open(self.table)
        if self.events.skipped:
            self.log(f"{self.events.skipped} lines of the event log were unreadable and are left out")
        writer = asyncio.create_task(self._write_state())
        try:
            await self.feed.start()
            await self.served.refresh()
            self._forget_unregistered()
            if self.notifier is not None:
                self.notifier.resume(self.sessions())
            gc.freeze()  # what stays for good is not looked at again
            self._changed.set()
            await self.control.start()  # last: who can reach it finds all the rest
            self.log(f"started, version {self._about['version']}, {len(self.served.all())} sandboxes")
            await self._tick()
            self.stop_soon()
        finally:
            await self._close(writer)
            self.log("stopped")

    async def _tick(self) -> None:
        """Once a second: the VMs, the disk, and whether anybody still needs us."""
        needed = refreshed = time.monotonic()
        kept = float("-inf")
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            if not self._handlers.has_directory():
                self.log("our directory was removed")
                return
            if now - kept >= KEEP_SECONDS:
                kept = now
                # A session's file holds a login until it is read: one that was left behind shall look old.
                await asyncio.to_thread(keep_from_cleaners, paths.runtime_dir(), besides=".session")
            if now - refreshed >= REFRESH_SECONDS:
                refreshed = now
                await self.served.refresh()
            else:
                self.served.watch()
            try:
                await asyncio.to_thread(self.events.sync)
            except OSError as error:
                self.log(f"the event log does not reach the disk: {error.strerror or error}", "disk")
            if self.served.any_alive():
                needed = now
            elif now - needed > IDLE_SECONDS:
                self.log("no sandbox has run for a while")
                return

    async def _close(self, writer: asyncio.Task[None]) -> None:
        self.served.watch()  # `stop-all` stops the VMs, then us at once: their sessions must not live on in the next boot
        await self.control.close()
        await self.served.close()
        await self.feed.close()
        if self.notifier is not None:
            await self.notifier.close()
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        with contextlib.suppress(OSError):
            self.events.sync()
            _save_state(self._state_text())
        self.events.close()

    def stop_soon(self) -> None:
        self._handlers.stop_soon()

    # -- events ----------------------------------------------------------------------------------

    def ingest(self, sandbox: Registration, lines: list[bytes]) -> Taken:
        """Take what is new of these lines, from this sandbox. Raises OSError when they cannot be logged:
        then none of them was taken."""
        now, seq, dropped, spool = time.time_ns(), self.table.seq, 0, ""
        numbers: dict[str, int] = {}
        fresh: list[Event] = []
        for text in lines:
            try:
                event = parse(text, sandbox=sandbox.name, project=sandbox.project, received_ns=now)
            except MalformedError as error:
                dropped += 1
                self._drop(sandbox.name, error)
                if not error.id:
                    continue
                spool, _, digits = error.id.partition(":")
                number = int(digits)
            else:
                spool, number = event.spool, event.number
                if number > numbers.get(spool, self.table.last(sandbox.name, spool)):
                    seq += 1
                    fresh.append(replace(event, seq=seq))
            numbers[spool] = max(number, numbers.get(spool, self.table.last(sandbox.name, spool)))
        if fresh:
            self._record(fresh)
        return Taken(f"{spool}:{numbers[spool]}" if spool else "", dropped)

    def _record(self, events: list[Event]) -> None:
        """Log, then count, then publish."""
        records = [of_event(event) for event in events]
        self.events.append(records)
        for event, record in zip(events, records, strict=True):
            self.feed.publish([record])
            if event.name == LOST:
                self.log(f"{event.sandbox}: {event.data.get('message', LOST)}", event.sandbox)
            if (transition := self.table.take(event)) is not None:
                self._publish(transition)
        self._rotate()

    def _publish(self, transition: Transition) -> None:
        self.feed.publish([line("session", transition.after.to_json())])
        self._changed.set()
        if self.notifier is not None:
            try:
                self.notifier.enqueue(transition)
            except Exception as error:  # noqa: BLE001 - a notification that fails must not lose events
                self.log(f"notifications: {type(error).__name__}: {error}", "notifier")

    def _drop(self, sandbox: str, error: MalformedError) -> None:
        self.dropped += 1
        self.log(f"{sandbox}: a line was no event: {error}", sandbox)

    def _rotate(self) -> None:
        try:
            self.events.rotate_if_long(self.table)
        except OSError as error:
            self.log(f"the event log cannot be rotated: {error.strerror or error}", "disk")

    # -- what the host knows ---------------------------------------------------------------------

    def vm_stopped(self, sandbox: str) -> None:
        """Its sessions end."""
        if not self.table.lives(sandbox):
            return
        now, seq = time.time_ns(), self.table.seq + 1
        self._append_quietly(line("stopped", {"sandbox": sandbox, "seq": seq, "time_ns": now}))
        for transition in self.table.stop(sandbox, seq, now):
            self._publish(transition)

    def vm_deleted(self, sandbox: str) -> None:
        if self.table.knows(sandbox):
            self.vm_stopped(sandbox)
            self._append_quietly(line("forgotten", {"sandbox": sandbox}))
            self.table.forget(sandbox)
            self._changed.set()

    def replied(self, sandbox: str, session_id: str, seq: int) -> bool:
        """Somebody answered the dialog that event `seq` opened; False when that is not the open one."""
        session = self.table.sessions.get((sandbox, session_id))
        if session is None or session.seq != seq or not session.wants:
            return False
        now = time.time_ns()
        self._record(
            [
                Event(
                    self.table.seq + 1, "", now, now, sandbox, session.project, HOST_REPLIED, session_id,
                    session.uuid, 0, {"answers": seq},
                )
            ]
        )  # fmt: skip
        return True

    def _append_quietly(self, record: bytes) -> None:
        """What the host will see again by itself may be lost when the disk is full."""
        try:
            self.events.append([record])
        except OSError as error:
            self.log(f"the event log cannot be written: {error.strerror or error}", "disk")

    def _forget_unregistered(self) -> None:
        """Sessions of VMs that went away while no server ran have ended."""
        registered = {sandbox.registration.name for sandbox in self.served.all()}
        for name in {session.sandbox for session in self.table.ordered()} - registered:
            self.vm_stopped(name)

    # -- telling ---------------------------------------------------------------------------------

    def sessions(self) -> list[Session]:
        return self.table.ordered()

    def state(self) -> dict[str, Any]:
        """What state.json and `GET /state` say."""
        ready = links.ready(daemon_client.directory())
        return {
            "schema": client.SCHEMA,
            "server": {**self._about, "dropped": self.dropped},
            "updated_ns": time.time_ns(),
            "seq": self.table.seq,
            "sandboxes": [
                {
                    "name": sandbox.registration.name,
                    "project": sandbox.registration.project,
                    "running": sandbox.boot is not None,
                    "connected": SERVICE in ready.get(sandbox.registration.tag, ()),
                }
                for sandbox in self.served.all()
            ],
            "sessions": [session.to_json() for session in self.sessions()],
        }

    async def refresh(self) -> None:
        self._handlers.refresh()
        await self.served.refresh()
        self._changed.set()

    async def notify_test(self) -> list[str]:
        return await self.notifier.test() if self.notifier is not None else []

    def log(self, text: str, about: str = "") -> None:
        """A line in the server's log. Of those about one thing, which a guest may cause by the thousand,
        one each QUIET_SECONDS; the next one tells how many were left out."""
        if about:
            last, left_out = self._logged.get(about, (-QUIET_SECONDS, 0))
            now = time.monotonic()
            if now - last < QUIET_SECONDS:
                self._logged[about] = last, left_out + 1
                return
            self._logged[about] = now, 0
            text += f" ({left_out} more lines were left out)" if left_out else ""
        self._handlers.log.write(printable(text, instead="?")[:1000])

    def _greeting(self) -> list[bytes]:
        return [line("session", session.to_json()) for session in self.sessions()]

    async def _write_state(self) -> None:
        """state.json after each change, a burst at once."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(STATE_DELAY)
            self._changed.clear()
            try:
                await asyncio.to_thread(_save_state, self._state_text())
            except OSError as error:
                self.log(f"state.json cannot be written: {error.strerror or error}", "disk")

    def _state_text(self) -> bytes:
        # Made here: in a thread it would hold the interpreter against the loop. No indent: C's encoder.
        return json.dumps(self.state(), sort_keys=True).encode() + b"\n"


def _save_state(text: bytes) -> None:
    # Not durable: it is made again from the log at each start.
    write_atomic(client.state_directory() / "state.json", text, durable=False)
