"""How the user sees that a sandbox records: a notification, and the status line of its tmux session.

Imported by the daemon's worker only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from _claude_sandbox.notify.channels import Actions, Channel, Desktop, Failed, Log
from _claude_sandbox.notify.notifier import environment, open_line
from _claude_sandbox.notify.policy import NORMAL, Alert
from _claude_sandbox.system.run import CommandNotFound, Runner
from _claude_sandbox.system.text import clean
from _claude_sandbox.terminals.records import sessions_made

MARK = "#[fg=white,bg=red,bold] microphone open #[default] "
_NAME = 80


def default_channels(runner: Runner) -> tuple[Channel, ...]:
    if sys.platform == "darwin":
        from _claude_sandbox.notify.channel_macos import Mac

        return (Mac(runner, open_line),)
    return (Desktop(environment),)


class RecordingIndicator:
    """Made and used in an event loop. What it cannot show it logs, once for each reason."""

    def __init__(self, runner: Runner, log: Log, channels: Sequence[Channel] | None = None) -> None:
        self._runner, self._log = runner, log
        self._channels = tuple(channels) if channels is not None else default_channels(runner)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[str] = set()
        self._turn = asyncio.Lock()
        self._reported = ""

    def __call__(self, sandbox: str, recording: bool) -> None:
        """Returns at once; a recording that is over before it is shown is not shown."""
        (self._open.add if recording else self._open.discard)(sandbox)
        task = asyncio.create_task(self._show(sandbox))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Take away what still shows."""
        for sandbox in list(self._open):
            self(sandbox, False)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=3)
        for channel in self._channels:
            await channel.close()

    async def _show(self, sandbox: str) -> None:
        async with self._turn:
            recording = sandbox in self._open
            await asyncio.to_thread(self._status_line, sandbox, recording)
            key = ("microphone", sandbox)
            for channel in self._channels:
                try:
                    if recording:
                        await channel.show(self._notice(key, sandbox), sound=False, actions=_NO_ACTIONS)
                        return
                    await channel.withdraw(key)  # whichever showed it
                except Failed as error:
                    self._report(f"no notification that the microphone is open ({channel.name}: {error})")

    def _report(self, text: str) -> None:
        if text != self._reported:
            self._log(text)
        self._reported = text

    @staticmethod
    def _notice(key: tuple[str, str], sandbox: str) -> Alert:
        return Alert(key, "Microphone open", clean(f"{sandbox} is recording", _NAME), NORMAL, ())

    def _status_line(self, sandbox: str, recording: bool) -> None:
        """In sessions that we made for it: others are the user's own to arrange."""
        try:
            for tmux, pane in sessions_made(sandbox, self._runner):
                tmux.mark(pane.session_name, MARK if recording else "")
        except CommandNotFound:
            pass


_NO_ACTIONS = Actions(open=lambda alert: None, reply=lambda alert, text: None)
