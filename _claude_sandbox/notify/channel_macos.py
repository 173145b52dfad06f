"""Notifications on macOS, by programs of the system and of Homebrew. Never run on a Mac: from their documents."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from typing import Any

from _claude_sandbox.notify.channels import OUTPUT, SEND, Actions, Failed, tag
from _claude_sandbox.notify.policy import Alert, Key
from _claude_sandbox.system.run import Command, CommandNotFound, Runner


class Mac:
    """macOS: `alerter` (waits for a click), `terminal-notifier`, or osascript, the first that is there.

    osascript does not report clicks. Texts go as argv, never into a script; `-execute` of terminal-notifier is a
    line for sh, made of our own words only.
    """

    name = "macOS"
    SCRIPT = ("on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run")
    LOUD = ("on run argv",
            'display notification (item 2 of argv) with title (item 1 of argv) sound name "Glass"', "end run")  # fmt: skip
    ALERTS, STAYS = 8, 900  # alerter: so many wait for a click at once, each so many seconds

    def __init__(
        self,
        runner: Runner,
        open_line: Callable[[str], str],
        which: Callable[[str], str | None] = shutil.which,
    ) -> None:
        self._runner, self._open_line, self._which = runner, open_line, which
        self._waits: dict[Key, asyncio.Task[None]] = {}
        self._pool: Any = None

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        if self._which("alerter") and len(self._waits) < self.ALERTS:
            await self.withdraw(alert.key)
            task = asyncio.create_task(self._alert(alert, sound, actions))
            self._waits[alert.key] = task
            task.add_done_callback(lambda done: self._over(alert.key, done))
        elif self._which("terminal-notifier"):
            session = alert.session
            click = ("-execute", self._open_line(session.uuid)) if session and session.uuid else ()
            argv = ("terminal-notifier", "-title", alert.title, "-group", tag(alert.key),
                    *(("-sound", "default") if sound else ()), *click)  # fmt: skip
            # The text by stdin: as an option a leading [ or - would be read as something else.
            await self._run(Command(argv), alert.body.encode())
        else:
            script = [part for line in (self.LOUD if sound else self.SCRIPT) for part in ("-e", line)]
            await self._run(Command(("osascript", *script, "--", alert.title, alert.body)), b"")

    def _over(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._waits.get(key) is task:
            del self._waits[key]

    async def _alert(self, alert: Alert, sound: bool, actions: Actions) -> None:
        argv = ("alerter", "-title", alert.title, "-message", _plain(alert.body), "-group", tag(alert.key),
                "-actions", "Open", "-timeout", str(self.STAYS), *(("-sound", "default") if sound else ()),
                "-json")  # fmt: skip
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(
                self.ALERTS, "alerter"
            )  # the loop's own threads are for short things
        wait = functools.partial(self._runner.run, Command(argv), timeout=self.STAYS + 60.0, limit=OUTPUT)
        with contextlib.suppress(CommandNotFound, ValueError):  # gone meanwhile; an answer that is not JSON
            result = await asyncio.get_running_loop().run_in_executor(self._pool, wait)
            answer = json.loads(result.text or "{}")
            if answer.get("activationType") in ("contentsClicked", "actionClicked"):
                actions.open(alert)
            elif answer.get("activationType") == "replied" and answer.get("activationValue"):
                actions.reply(alert, str(answer["activationValue"]))

    async def _run(self, command: Command, input: bytes) -> None:
        try:
            result = await asyncio.to_thread(self._runner.run, command, input=input, timeout=SEND)
        except CommandNotFound as error:
            raise Failed(error.brief) from error
        if not result.ok:
            raise Failed(f"{command.argv[0]}: {result.error_text or f'exit code {result.returncode}'}")

    async def withdraw(self, key: Key) -> None:
        for program, option in (("alerter", "-remove"), ("terminal-notifier", "-remove")):
            if self._which(program):
                with contextlib.suppress(Failed):  # it was closed already
                    await self._run(Command((program, option, tag(key))), b"")
                return

    async def close(self) -> None:
        for key in list(self._waits):
            await self.withdraw(key)  # which ends that alerter
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _plain(text: str) -> str:
    """macOS reads a value that starts with one of these as a property list, or an option."""
    return f"· {text}" if text[:1] in ("[", "(", "{", "<", '"', "-", "\\", "@") else text
