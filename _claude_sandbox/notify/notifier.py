"""The hooks server's notifier: transitions in, notifications out, what the user does with them carried out.

`enqueue` returns at once; one task does the work in order. notify.policy.Policy decides what is notified, and when;
by which channel, this module: the desktop (or macOS), else attached terminals, which also get it when the user
came by ssh; and the user's command, always.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.config import load as config_load
from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks.attention import DONE, Session, Transition
from _claude_sandbox.hooks.turns import Turns
from _claude_sandbox.notify.channels import Actions, Channel, Desktop, Failed, Log, Terminal, UserCommand
from _claude_sandbox.notify.policy import NORMAL, NOTIFIED, Action, Alert, Key, Policy, Show, quiet_left
from _claude_sandbox.system import paths, program, quoting
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import LocalRunner, Runner
from _claude_sandbox.system.text import clean
from _claude_sandbox.terminals import focus as terminals_focus
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals import reply as terminals_reply

LATEST = 4096  # sessions that are remembered for a click


@dataclass(frozen=True)
class Settings:
    """The user's rows of config.table.SETTINGS."""

    states: tuple[str, ...] = NOTIFIED
    command: tuple[str, ...] = ()
    quiet: tuple[int, int] | None = None
    sound: bool = True


class UserSettings:
    """The user's file, read again when it has changed. A wrong one is said in the log once; the last good counts."""

    def __init__(self, log: Log) -> None:
        self._log, self._stamp, self._settings = log, (-1, -1), Settings()
        self._file = paths.config_file()  # looked for once: this is asked at each event

    def __call__(self) -> Settings:
        try:
            info = os.stat(self._file)
            stamp = (info.st_mtime_ns, info.st_size)
        except OSError:
            stamp = (0, 0)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                rows = config_load.users_own("notify")
                self._settings = Settings(
                    rows["notify"], rows["notify_command"], rows["notify_quiet"], rows["notify_sound"]
                )
            except ClaudeSandboxError as error:
                self._log(f"notifications go on as before: {error.brief}")
        return self._settings


class Notifier:
    """Shows what needs the user. Made and used in the server's event loop.

    `settings` is called each time; `channels` are tried in order, `secondary` all of them; `looked_at` says whether
    the user sees a session anyway (it may block: it runs in a thread); `projects` are those that exist;
    `answered` is called with an answer that was typed from a notification.
    """

    def __init__(
        self,
        *,
        log: Log,
        settings: Callable[[], Settings] | None = None,
        channels: Sequence[Channel] | None = None,
        secondary: Sequence[Channel] | None = None,
        runner: Runner | None = None,
        looked_at: Callable[[Session], bool] | None = None,
        projects: Callable[[], Iterable[str]] = tuple,
        answered: Callable[[terminals_reply.Replied], None] = lambda replied: None,
    ) -> None:
        self._log = log
        self._settings = settings or UserSettings(log)
        self._runner = runner or LocalRunner()
        self._terminal = Terminal(self._runner)
        self._channels = (
            tuple(channels) if channels is not None else (*self._default_channels(), self._terminal)
        )
        command = UserCommand(self._runner, lambda: self._settings().command, log)
        self._secondary = tuple(secondary) if secondary is not None else (command,)
        self._looked_at = looked_at or self._is_visible
        self._answered = answered
        self._policy = Policy((), projects)
        self._latest: dict[Key, Session] = {}
        self._queue = Turns()
        self._worker: asyncio.Task[None] | None = None
        self._actions: set[asyncio.Task[None]] = set()
        self._troubles: dict[str, str] = {}

    def _default_channels(self) -> tuple[Channel, ...]:
        if sys.platform == "darwin":
            from _claude_sandbox.notify.channel_macos import Mac

            return (Mac(self._runner, open_line),)
        return (Desktop(environment),)

    # -- the server's side -----------------------------------------------------------------------

    def enqueue(self, transition: Transition) -> None:
        """Take a transition; returns at once. Call it in the order in which they happened."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        if not self._queue.put_newest(transition):
            self._trouble(transition.after.sandbox, "too many changes at once: the oldest are not notified")

    def resume(self, sessions: Iterable[Session]) -> None:
        """After a restart: what was withdrawn by `close`, and still waits, is shown again.

        A server that was killed withdrew nothing: its notifications still show.
        """
        file = _left_file()
        left = read_object(file) or {}
        file.unlink(missing_ok=True)
        for session in sessions:
            self._latest[session.key] = session
            if left.get("/".join(session.key)) == session.seq:
                self._policy.restore(session)
        if self._policy.shown():
            self._task(self._flush())

    async def _flush(self) -> None:
        await self._carry_out(self._policy.flush(time.monotonic(), quiet=self._quiet()))

    async def test(self) -> list[str]:
        """Show a notification by every channel; a line for each: `desktop: shown`, `terminal: why not`."""
        session = Session(
            "test", "claude-sandbox-test", str(paths.home()), "", DONE, time.time_ns(), "A test"
        )
        alert = Alert(
            ("", "test"),
            "Claude [test]",
            "This is how you hear of a sandbox that needs you.",
            NORMAL,
            (session,),
        )
        lines = []
        for channel in (*self._channels, *self._secondary):
            try:
                if isinstance(channel, UserCommand) and self._settings().command:
                    done = await channel.run(alert)
                    lines.append(f"{channel.name}: {'it ran' if done else 'it failed; the log says how'}")
                    continue
                if isinstance(channel, Terminal):
                    everybody = await asyncio.to_thread(terminals_records.everything)
                    alert = _for_terminals(alert, everybody)
                await channel.show(alert, sound=self._settings().sound, actions=self._what_to_do())
                lines.append(f"{channel.name}: shown")
            except Failed as error:
                lines.append(f"{channel.name}: {error}")
        return lines

    async def settle(self) -> None:
        """Until everything that was handed over has been dealt with (for tests)."""
        await self._queue.join()
        while self._actions:
            await asyncio.gather(*self._actions)

    async def close(self) -> None:
        """End the work and withdraw what shows."""
        for task in (self._worker, *self._actions):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if shown := self._policy.shown():
            write_json(_left_file(), {"/".join(key): seq for key, seq in shown.items()})
        for channel in (*self._channels, *self._secondary):
            await channel.close()

    # -- the work --------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            now = time.monotonic()
            due = self._policy.due(now, quiet=self._quiet())
            try:
                # Not wait_for, which in Python 3.11 can lose a cancellation, and `close` would wait for ever.
                async with asyncio.timeout(min(due, 60.0) if due is not None else None):
                    transition = await self._queue.get()
            except TimeoutError:
                await self._flush()
                continue
            try:
                await self._carry_out(await self._decide(transition))
            except Exception as error:  # noqa: BLE001 - the next transition must still be notified
                self._log(f"notification of {transition.after.sandbox}: {type(error).__name__}: {error}")
            finally:
                self._queue.task_done()

    async def _decide(self, transition: Transition) -> list[Action]:
        after, event = transition.after, transition.event
        self._latest.pop(after.key, None)
        self._latest[after.key] = after
        while len(self._latest) > LATEST:
            del self._latest[next(iter(self._latest))]
        self._policy.states = frozenset(self._settings().states)
        age = (time.time_ns() - event.received_ns) / 1e9 if event else 0.0
        seen = self._policy.is_news(transition, age) and await asyncio.to_thread(self._looked_at, after)
        return self._policy.add(transition, time.monotonic(), quiet=self._quiet(), looked_at=seen, age=age)

    def _quiet(self) -> float:
        clock = time.localtime()
        minute = clock.tm_hour * 60 + clock.tm_min + clock.tm_sec / 60
        return quiet_left(self._settings().quiet, minute)

    def _is_visible(self, session: Session) -> bool:
        record = terminals_records.of(session.uuid, session.sandbox)
        return record is not None and terminals_records.looked_at(record, self._runner)

    async def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Show):
                await self._show(action.alert)
            else:
                for channel in (*self._channels, *self._secondary):
                    try:
                        await channel.withdraw(action.key)
                    except Exception as error:  # noqa: BLE001 - a channel that broke down has nothing to withdraw
                        self._trouble(channel.name, f"{type(error).__name__}: {error}")

    async def _show(self, alert: Alert) -> None:
        sound, shown = self._settings().sound, False
        far = await asyncio.to_thread(self._is_remote_user, alert)
        for channel in self._channels:
            if shown and not (far and channel is self._terminal):
                continue
            shown = await self._try(channel, alert, sound) or shown
        for channel in self._secondary:
            if not isinstance(channel, UserCommand) or self._settings().command:
                await self._try(channel, alert, sound)
        if not shown:
            self._log(f"not shown: {alert.title}: {clean(alert.body, 100)}")

    async def _try(self, channel: Channel, alert: Alert, sound: bool) -> bool:
        try:
            await channel.show(alert, sound=sound, actions=self._what_to_do())
        except Failed as error:
            self._trouble(channel.name, str(error))
            return False
        self._troubles.pop(channel.name, None)
        return True

    def _trouble(self, channel: str, why: str) -> None:
        """Into the log, once as long as it is the same."""
        if self._troubles.get(channel) != why:
            self._troubles[channel] = why
            self._log(f"{channel}: {why}")

    @staticmethod
    def _is_remote_user(alert: Alert) -> bool:
        """Whether a session of it was started over ssh: its user does not sit at this host's screen."""
        records = (terminals_records.of(s.uuid, s.sandbox) for s in alert.sessions)
        return any(record is not None and record.remote for record in records)

    # -- what the user does with it ----------------------------------------------------------------

    def _what_to_do(self) -> Actions:
        return Actions(
            open=lambda alert: self._task(self._open(alert)),
            reply=lambda alert, text: self._task(self._reply(alert, text)),
        )

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)

    async def _open(self, alert: Alert) -> None:
        """To the session of the alert; of a summary's, to the one that has waited longest."""
        sessions = [self._latest.get(s.key, s) for s in alert.sessions]
        waiting = sorted((s for s in sessions if s.state in NOTIFIED), key=lambda s: s.since_ns)
        for session in waiting or sessions:
            record = await asyncio.to_thread(terminals_records.of, session.uuid, session.sandbox)
            if record is not None:
                brought = await asyncio.to_thread(terminals_focus.bring, record, self._runner)
                if not brought.shown:
                    await self._tell(alert, brought.hint)
                return
        await self._tell(alert, f"Go there with: claude-sandbox -d {sessions[0].project}")

    async def _reply(self, alert: Alert, text: str) -> None:
        session = alert.session
        if session is None:
            return
        try:
            replied = await asyncio.to_thread(
                terminals_reply.reply,
                session,
                text,
                self._runner,
                now=lambda: self._latest.get(session.key, session),
            )
            self._answered(replied)
        except ClaudeSandboxError as error:
            await self._tell(alert, f"Not sent. {error.brief}")

    async def _tell(self, alert: Alert, text: str) -> None:
        told = Alert(("", f"told {alert.key}"), alert.title, clean(text, 300), NORMAL, alert.sessions)
        for channel in self._channels:
            if await self._try(channel, told, False):
                return


def _left_file() -> Path:
    return daemon_client.directory() / "notified.json"


def _for_terminals(alert: Alert, records: Iterable[terminals_records.Record]) -> Alert:
    """A test alert as one of every living session: so it reaches all their terminals."""
    sessions = tuple(
        Session(r.uuid, r.sandbox, r.project, r.uuid, DONE, time.time_ns(), "A test") for r in records
    )
    return Alert(alert.key, alert.title, alert.body, alert.urgency, sessions)


def environment() -> Mapping[str, str]:
    """The desktop's variables: our own, and what ours lack from the newest session's terminal."""
    own = {name: value for name, value in os.environ.items() if value}
    return own if own.get("DBUS_SESSION_BUS_ADDRESS") else {**own, **terminals_records.desktop()}


def open_line(uuid: str) -> str:
    """A line for sh that brings the user to a session: of our own words, the name is checked."""
    return quoting.shell_quote(program.own_argv("_open", uuid))
