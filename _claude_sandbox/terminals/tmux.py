"""tmux: argv and parsing. The user's own server and configuration are used.

Formats were tried with tmux 3.3a: `list-clients` knows its client's active pane, and server options.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from _claude_sandbox.system.run import Command, CommandNotFound, Runner

# Fields of a format are parted by tabs; only the last one is free text.
_CLIENT = ("#{client_tty}", "#{client_pid}", "#{client_activity}", "#{client_flags}", "#{client_termname}",
           "#{focus-events}", "#{session_id}", "#{pane_id}")  # fmt: skip
_PANE = ("#{pane_id}", "#{pid}", "#{pane_dead}", "#{pane_tty}", "#{session_id}", "#{window_id}",
         "#{@claude-sandbox}", "#{session_name}")  # fmt: skip
# A user option of each session that we make: by it, and never by its name, we know whose it is. Names are
# the user's to choose, and one sandbox's name with a number may be that of another.
MARK = "@claude-sandbox"


@dataclass(frozen=True)
class Client:
    """A terminal that is attached. `activity`: its last key, seconds since 1970; `pane`: the one with the cursor."""

    tty: str
    pid: int
    activity: float
    focused: bool
    term: str
    focus_events: bool
    session: str
    pane: str


def session_mark(vm: str, tag: str, uuid: str) -> str:
    """The mark of a session: the VM's name, the tag of its directory (LIMA_HOME counts), the launch's uuid."""
    return f"{vm} {tag} {uuid}"


@dataclass(frozen=True)
class Pane:
    """`mark`: that of its session, empty where we did not make it."""

    id: str
    server_pid: int
    dead: bool
    tty: str
    session: str
    window: str
    mark: str
    session_name: str


class Tmux:
    """One tmux server: that of `socket` (a path), else the one that our environment means."""

    def __init__(self, runner: Runner, socket: str = "") -> None:
        self.runner = runner
        self.socket = socket

    def command(self, *words: str) -> Command:
        return Command(("tmux", *(("-S", self.socket) if self.socket else ()), *words))

    def _rows(self, fields: Sequence[str], *words: str) -> list[list[str]]:
        command = self.command(*words, "-F", "\t".join(fields))
        result = self.runner.run(command, timeout=5, changes=False)
        rows = [line.split("\t", len(fields) - 1) for line in result.text.splitlines()] if result.ok else []
        return [row for row in rows if len(row) == len(fields)]

    def clients(self) -> list[Client]:
        """Attached terminals, the one that was used last first. Raises CommandNotFound."""
        found = [
            Client(
                tty,
                int(pid),
                float(activity),
                "focused" in flags.split(","),
                term,
                focus == "1",
                session,
                pane,
            )
            for tty, pid, activity, flags, term, focus, session, pane in self._rows(_CLIENT, "list-clients")
            if pid.isdigit() and activity.isdigit()
        ]
        return sorted(found, key=lambda client: -client.activity)

    def pane(self, pane: str) -> Pane | None:
        """A pane by its id (`%7`); None when the server or the pane is gone. Raises CommandNotFound."""
        for id, pid, dead, tty, session, window, mark, name in self._rows(_PANE, "list-panes", "-a"):
            if id == pane and pid.isdigit():
                return Pane(id, int(pid), dead == "1", tty, session, window, mark, name)
        return None

    def show(self, pane: Pane, client: Client | None) -> None:
        """Make the pane the one that its session shows, and let `client` show that session."""
        self.runner.run(self.command("select-window", "-t", pane.id), timeout=5)
        self.runner.run(self.command("select-pane", "-t", pane.id), timeout=5)
        if client is not None and client.session != pane.session:
            self.runner.run(self.command("switch-client", "-c", client.tty, "-t", pane.session), timeout=5)

    def screen(self, pane: str) -> str:
        """What the pane shows, as text; wrapped lines are joined."""
        command = self.command("capture-pane", "-p", "-J", "-t", pane)
        return self.runner.run(command, timeout=5, changes=False).stdout.decode("utf-8", "replace")

    def cursor(self, pane: str) -> int | None:
        """The column of the pane's cursor, from 0."""
        command = self.command("display-message", "-p", "-t", pane, "#{cursor_x}")
        text = self.runner.run(command, timeout=5, changes=False).text.strip()
        return int(text) if text.isdigit() else None

    def paste(self, pane: str, data: bytes, *, bracketed: bool) -> bool:
        """Put bytes into the pane's terminal, as typed keys or as a bracketed paste, whatever mode it is in.

        They go through tmux's buffer from stdin, so that no argv shows them. The brackets are ours: those of
        `paste-buffer -p` are left out while the user scrolls (3.3a asks the scrolled screen, not the program's).
        """
        data = b"\x1b[200~" + data + b"\x1b[201~" if bracketed else data
        name = f"claude-sandbox-{os.getpid()}-{time.monotonic_ns()}"
        if not self.runner.run(self.command("load-buffer", "-b", name, "-"), input=data, timeout=5).ok:
            return False
        return self.runner.run(self.command("paste-buffer", "-r", "-d", "-b", name, "-t", pane), timeout=5).ok

    @staticmethod
    def inside() -> bool:
        """Whether we run in a tmux pane."""
        return bool(os.environ.get("TMUX"))

    @staticmethod
    def own_client(runner: Runner) -> Client | None:
        """The terminal that shows the pane in which we run."""
        here = Tmux(runner, os.environ.get("TMUX", "").rpartition(",")[0].rpartition(",")[0])
        return next((c for c in here.clients() if c.pane == os.environ.get("TMUX_PANE")), None)

    def usable(self) -> bool:
        """Whether tmux is installed."""
        try:
            return self.runner.run(Command(("tmux", "-V")), timeout=5, changes=False).ok
        except CommandNotFound:
            return False

    def sessions(self) -> list[str]:
        """Names of all sessions; empty when no server runs or there is no tmux."""
        try:
            command = self.command("list-sessions", "-F", "#{session_name}")
            result = self.runner.run(command, timeout=5, changes=False)
        except CommandNotFound:
            return []
        return result.text.splitlines() if result.ok else []

    def live_session(self, vm: str, tag: str) -> str | None:
        """A session that we made for this VM, the oldest one; known by its mark (`session_mark`)."""
        try:
            rows = self._rows(("#{session_created}", f"#{{{MARK}}}", "#{session_name}"), "list-sessions")
        except CommandNotFound:
            return None
        made = [
            (int(at), name) for at, mark, name in rows if mark.split(" ")[:2] == [vm, tag] and at.isdigit()
        ]
        return min(made, default=(0, None))[1]

    def socket_path(self) -> str:
        """The socket of this server; empty when none runs."""
        command = self.command("display-message", "-p", "#{socket_path}")
        return self.runner.run(command, timeout=5, changes=False).text.strip()

    def current_session(self) -> str:
        command = Command(("tmux", "display-message", "-p", "#{session_name}"))
        return self.runner.run(command, timeout=5, changes=False).text.strip()

    def rename_current(self, name: str) -> None:
        """Rename our session, unless its name starts with `claude` or the new one is taken.

        It stays the user's own and gets no mark: what else runs in it is not ours to attach or to change.
        """
        if not self.current_session().startswith("claude"):
            self.runner.run(Command(("tmux", "rename-session", name)), timeout=5)

    def mark(self, name: str, text: str) -> None:
        """Put `text` in front of a session's status line, or take it away again (the user's own comes back)."""
        options = (("status-left", f"{text}#{{E:@claude_sandbox_left}}"), ("status-left-length", "60"))
        if text:
            left = self.runner.run(
                self.command("show-options", "-gqv", "status-left"), timeout=5, changes=False
            )
            own = (("@claude_sandbox_left", left.text.rstrip("\n")), *options)
            words = [("set-option", "-t", f"={name}:", key, value) for key, value in own]
        else:
            words = [("set-option", "-u", "-t", f"={name}:", key) for key, _ in options]
        for word in words:
            self.runner.run(self.command(*word), timeout=5)

    def new(self, name: str, argv: Sequence[str], mark: str) -> Command:
        """Make a session that runs `argv`, attached to this terminal. The server marks it before it does
        anything else."""
        # A word that ends in `;` would end the command for tmux.
        words = (f"{word[:-1]}\\;" if word.endswith(";") else word for word in argv)
        option = ("set-option", "-t", f"={name}:", MARK, mark)
        return Command(("tmux", "new-session", "-s", name, "--", *words, ";", *option))

    def attach(self, name: str) -> Command:
        """Attach to a session, or switch to it from inside tmux. `=`: this very name, no prefix."""
        if self.inside():
            return Command(("tmux", "switch-client", "-t", f"={name}"))
        return Command(("tmux", "attach-session", "-t", f"={name}"))
