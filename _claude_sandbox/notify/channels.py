"""The channels by which a notification reaches the user, one class each.

A channel takes clean texts (notify/policy.py) and makes them harmless for where they go: markup is escaped for D-Bus
daemons, a terminal gets them as one OSC sequence. What it cannot do it says by `Failed`;
the next channel is tried then.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from _claude_sandbox.hooks.attention import NEEDS_INPUT
from _claude_sandbox.notify.policy import CRITICAL, Alert, Key
from _claude_sandbox.system.run import Command, CommandNotFound, Runner
from _claude_sandbox.system.text import printable
from _claude_sandbox.terminals import records as terminals_records

SEND = 5.0  # seconds for a daemon or a program to take a notification
COMMAND = 30.0  # seconds for the user's own command
OUTPUT = 4096  # bytes of its output that go to the log
Log = Callable[[str], None]


class Failed(Exception):
    """This channel is not there, or did not take it: why."""


@dataclass(frozen=True)
class Actions:
    """What the user can do from a notification; called in the event loop."""

    open: Callable[[Alert], None]
    reply: Callable[[Alert, str], None]


class Channel(Protocol):
    name: str

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        """Show it, in the place of one with the same key. Raises Failed."""

    async def withdraw(self, key: Key) -> None:
        """Take it away if it still shows."""

    async def close(self) -> None: ...


def tag(key: Key) -> str:
    """A key as a short word for other programs: guests choose what is in it."""
    import hashlib

    return "claude-sandbox-" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def harmless(text: str, *, markup: bool) -> str:
    """A body for a D-Bus daemon. One that does not claim to know markup would show escapes as they are, and
    may interpret it all the same (dunst 1.9 does): it gets signs that only look alike."""
    if markup:
        return html.escape(text, quote=False)
    return text.replace("&", "＆").replace("<", "‹").replace(">", "›")


class Desktop:
    """The notification daemon of a Linux desktop, over D-Bus (facts/notifications.md)."""

    name = "desktop"

    def __init__(self, environment: Callable[[], Mapping[str, str]]) -> None:
        self._environment = environment
        self._notifier: Any = None
        self._markup = True
        self._shown: dict[Key, tuple[str, int]] = {}  # identifiers: desktop-notifier's, the daemon's
        self._closing: set[asyncio.Task[None]] = set()

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        try:
            await asyncio.wait_for(self._show(alert, sound, actions), SEND)
        except Failed:
            raise
        except Exception as error:
            self._forget()
            raise Failed(f"{type(error).__name__}: {error}") from error

    async def _show(self, alert: Alert, sound: bool, actions: Actions) -> None:
        from desktop_notifier import DEFAULT_SOUND, Button, Capability, Notification, ReplyField, Urgency

        notifier = await self._connected()
        able = await notifier.get_capabilities()
        asks = alert.session is not None and Capability.REPLY_FIELD in able

        def opened() -> None:
            actions.open(alert)
            self._close_soon(alert.key)

        def replied(text: str) -> None:
            actions.reply(alert, text)
            self._close_soon(alert.key)

        shown = Notification(
            alert.title,
            harmless(alert.body, markup=self._markup),
            urgency=Urgency.Critical if alert.urgency == CRITICAL else Urgency.Normal,
            buttons=(Button("Open", on_pressed=opened),) if Capability.BUTTONS in able else (),
            reply_field=ReplyField(on_replied=replied) if asks else None,
            on_clicked=opened,
            sound=DEFAULT_SOUND if sound and Capability.SOUND in able else None,
        )
        await self.withdraw(alert.key)
        await notifier.send_notification(shown)
        if shown.identifier not in await notifier.get_current_notifications():
            raise Failed("the notification daemon did not take it")  # desktop-notifier only logs why
        numbers: Any = notifier._backend._platform_to_interface_notification_identifier
        self._shown[alert.key] = shown.identifier, numbers.inverse.get(shown.identifier, 0)

    async def _connected(self) -> Any:
        if self._notifier is not None:
            return self._notifier
        environment = self._environment()
        address = environment.get("DBUS_SESSION_BUS_ADDRESS", "")
        if not address:
            bus = f"{environment.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/bus"
            if not os.path.exists(bus):
                raise Failed("there is no session bus: DBUS_SESSION_BUS_ADDRESS is not set")
            address = f"unix:path={bus}"
        from desktop_notifier import DesktopNotifier

        os.environ["DBUS_SESSION_BUS_ADDRESS"] = address  # where dbus-fast looks
        notifier = DesktopNotifier(app_name="claude-sandbox", app_icon=None)
        await notifier.get_capabilities()  # connects
        interface: Any = getattr(notifier._backend, "interface", None)
        if interface is not None:
            self._markup = "body-markup" in await interface.call_get_capabilities()
        self._notifier, self._shown = notifier, {}
        return notifier

    def _close_soon(self, key: Key) -> None:
        """After a click: most daemons close it by themselves, dunst leaves it on the screen."""
        task = asyncio.get_running_loop().create_task(self.withdraw(key))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def withdraw(self, key: Key) -> None:
        identifier, number = self._shown.pop(key, ("", 0))
        if not identifier or self._notifier is None:
            return
        try:
            await asyncio.wait_for(self._notifier.clear(identifier), SEND)
        except KeyError:  # clicked or closed: desktop-notifier has forgotten it, the daemon may still show it
            interface: Any = getattr(self._notifier._backend, "interface", None)
            if number and interface is not None:
                with contextlib.suppress(Exception):  # it is gone there too
                    await asyncio.wait_for(interface.call_close_notification(number), SEND)
        except TimeoutError:
            return

    def _forget(self) -> None:
        bus = getattr(getattr(self._notifier, "_backend", None), "bus", None)
        if bus is not None:
            bus.disconnect()
        self._notifier = None

    async def close(self) -> None:
        for key in list(self._shown):
            with contextlib.suppress(Exception):  # the daemon went before us
                await self.withdraw(key)
        self._forget()


class Terminal:
    """Bell and OSC 9 (777 where that is the one known) into the terminals where the session's tmux is attached.

    Written to a client's own terminal, past tmux: through a pane it would need allow-passthrough, which is
    off by default (tried with tmux 3.3a). One write of a whole sequence, between tmux's own.
    """

    name = "terminal"

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        targets = await asyncio.to_thread(self._targets, alert)
        if not targets:
            raise Failed("no terminal is attached to its session")
        for tty, term in targets.items():
            await asyncio.to_thread(self._write, tty, sequence(alert, term, bell=sound))

    def _targets(self, alert: Alert) -> dict[str, str]:
        """Terminals and what TERM they are, each once."""
        from _claude_sandbox.terminals.tmux import Tmux

        found: dict[str, str] = {}
        for session in alert.sessions:
            record = terminals_records.of(session.uuid, session.sandbox)
            if record is None:
                continue
            if record.tmux is None:
                found[record.tty] = record.desktop.get("TERM", "")
                continue
            with contextlib.suppress(CommandNotFound):
                found.update({c.tty: c.term for c in Tmux(self._runner, record.tmux.socket).clients()})
        found.pop("", None)
        return found

    @staticmethod
    def _write(tty: str, data: bytes) -> None:
        try:
            fd = os.open(tty, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(f"{tty}: {error.strerror}") from error
        try:
            if os.isatty(fd):
                os.write(fd, data)
        except OSError as error:
            raise Failed(f"{tty}: {error.strerror}") from error
        finally:
            os.close(fd)

    async def withdraw(self, key: Key) -> None:
        """A terminal takes nothing back."""

    async def close(self) -> None:
        """Nothing is held open."""


def sequence(alert: Alert, term: str, *, bell: bool) -> bytes:
    """What a terminal of that TERM understands as a notification. A Linux console gets the bell only."""

    def plain(text: str) -> str:
        return printable(text.replace("\n", " · "), instead="")

    title, body = plain(alert.title), plain(alert.body)
    ring = "\a" if bell else ""
    if term.startswith(("linux", "vt", "dumb")) or not term:
        return ring.encode()
    if term.startswith(("rxvt", "foot")):
        return f"\x1b]777;notify;{title.replace(';', ',')};{body}\x1b\\{ring}".encode()
    return (
        f"\x1b]9;{title}: {body}\x1b\\{ring}".encode()
    )  # it begins with our own word: `9;4;…` is a progress bar


class UserCommand:
    """The user's own command with the event as JSON on stdin: for phones and chat. It never delays anything."""

    name = "command"
    AT_ONCE = 3

    def __init__(self, runner: Runner, argv: Callable[[], Sequence[str]], log: Log) -> None:
        self._runner, self._argv, self._log = runner, argv, log
        self._running: set[asyncio.Task[bool]] = set()

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        if not self._argv():
            raise Failed("notify.command is not set")
        if len(self._running) >= self.AT_ONCE:
            raise Failed(f"{self.AT_ONCE} runs of notify.command have not ended yet")
        task = asyncio.create_task(self.run(alert))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def run(self, alert: Alert) -> bool:
        """Run it to its end or its time limit; whether it succeeded. Its output goes to the log."""
        command = Command(tuple(self._argv()))
        document = json.dumps(event_of(alert), ensure_ascii=False).encode() + b"\n"
        try:
            result = await asyncio.to_thread(
                self._runner.run, command, input=document, timeout=COMMAND, limit=OUTPUT
            )
        except (CommandNotFound, OSError) as error:
            self._log(f"notify.command: {error}")
            return False
        output = (result.text + result.error_text)[:OUTPUT].strip()
        if output or not result.ok:
            self._log(f"notify.command: exit code {result.returncode}{': ' if output else ''}{output!r}")
        return result.ok

    async def withdraw(self, key: Key) -> None:
        """What has gone out stays out."""

    async def close(self) -> None:
        for task in self._running:
            task.cancel()


def event_of(alert: Alert) -> dict[str, Any]:
    """A alert as the JSON that notify.command reads; docs/attention.md describes it."""
    return {
        "schema": 1,
        "title": alert.title,
        "body": alert.body,
        "urgency": alert.urgency,
        "needs_input": any(s.state == NEEDS_INPUT for s in alert.sessions),
        "sessions": [
            {
                "sandbox": s.sandbox, "project": s.project, "session_id": s.session_id, "state": s.state,
                "wants": s.wants, "message": s.message, "tool": s.tool, "choices": list(s.choices),
                "since_ns": s.since_ns, "seq": s.seq,
            }
            for s in alert.sessions
        ],
    }  # fmt: skip
