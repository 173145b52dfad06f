"""tmux: argv and parsing. The user's own server and configuration are used."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from _claude_sandbox.run import Command, CommandNotFound, Runner


class Tmux:
    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @staticmethod
    def inside() -> bool:
        """Whether we run in a tmux pane."""
        return bool(os.environ.get("TMUX"))

    def usable(self) -> bool:
        """Whether tmux is installed."""
        try:
            return self.runner.run(Command(("tmux", "-V")), timeout=5, changes=False).ok
        except CommandNotFound:
            return False

    def sessions(self) -> list[str]:
        """Names of all sessions; empty when no server runs or there is no tmux."""
        try:
            command = Command(("tmux", "list-sessions", "-F", "#{session_name}"))
            result = self.runner.run(command, timeout=5, changes=False)
        except CommandNotFound:
            return []
        return result.text.splitlines() if result.ok else []

    def live_session(self, vm_name: str) -> str | None:
        """A session `<vm>-<pid>` that we made for this VM, the oldest process id first."""
        found = [s for s in self.sessions() if re.fullmatch(re.escape(vm_name) + r"-\d+", s)]
        return min(found, key=lambda s: int(s.rpartition("-")[2])) if found else None

    def current_session(self) -> str:
        command = Command(("tmux", "display-message", "-p", "#{session_name}"))
        return self.runner.run(command, timeout=5, changes=False).text.strip()

    def rename_current(self, name: str) -> None:
        """Rename our session, unless its name starts with `claude` or the new one is taken."""
        if not self.current_session().startswith("claude"):
            self.runner.run(Command(("tmux", "rename-session", name)), timeout=5)

    def new(self, name: str, argv: Sequence[str]) -> Command:
        """Make a session that runs `argv`, attached to this terminal."""
        return Command(("tmux", "new-session", "-s", name, "--", *argv))

    def attach(self, name: str) -> Command:
        """Attach to a session, or switch to it from inside tmux. `=`: this very name, no prefix."""
        if self.inside():
            return Command(("tmux", "switch-client", "-t", f"={name}"))
        return Command(("tmux", "attach-session", "-t", f"={name}"))
