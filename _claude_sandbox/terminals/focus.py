"""Brings the user to a Claude session: its tmux pane on their terminal, that terminal's window in front."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from _claude_sandbox.system.run import Command, CommandNotFound, Runner
from _claude_sandbox.terminals import records
from _claude_sandbox.terminals.records import Record
from _claude_sandbox.terminals.tmux import Client, Pane, Tmux

# macOS: what a terminal says in TERM_PROGRAM, and its application.
_APPS = {"Apple_Terminal": "Terminal", "iTerm.app": "iTerm", "WezTerm": "WezTerm", "ghostty": "Ghostty",
         "vscode": "Visual Studio Code", "kitty": "kitty", "Alacritty": "Alacritty", "Hyper": "Hyper"}  # fmt: skip


@dataclass(frozen=True)
class Brought:
    """`shown`: a terminal shows the session now; `raised`: its window was asked to come to the front.

    `hint`: what the user can do themselves when nothing shows it.
    """

    shown: bool
    raised: bool = False
    hint: str = ""


def bring(record: Record, runner: Runner) -> Brought:
    """Show the session where the user is. Never raises for what a desktop lacks."""
    if record.tmux is None:
        raised = _raise(record.desktop, runner)
        return Brought(raised, raised, "" if raised else f"It runs on {record.tty or 'another terminal'}.")
    try:
        found = records.server(record, runner)
    except CommandNotFound:
        found = None
    if found is None:
        return Brought(False, hint="Its tmux pane is gone.")
    tmux, pane = found
    clients = tmux.clients()
    client = next((c for c in clients if c.session == pane.session), clients[0] if clients else None)
    tmux.show(pane, client)
    if client is None:
        return _new_terminal(tmux, pane, record, runner)
    return Brought(True, _raise(_environment(client) or record.desktop, runner))


def attach_command(tmux: Tmux, pane: Pane) -> Command:
    """Attach this terminal to the pane's session, with the pane in view."""
    words = (
        "attach-session",
        "-t",
        pane.session,
        ";",
        "select-window",
        "-t",
        pane.id,
        ";",
        "select-pane",
        "-t",
        pane.id,
    )
    return Command(
        tmux.command(*words).argv, {"TMUX": None}
    )  # inside another server's pane tmux would refuse


def _environment(client: Client) -> Mapping[str, str]:
    """The variables of the terminal that a tmux client runs in."""
    import psutil

    try:
        return psutil.Process(client.pid).environ()
    except (psutil.Error, OSError):
        return {}


def _raise(desktop: Mapping[str, str], runner: Runner) -> bool:
    """Ask the window manager to put the terminal in front; what cannot be asked is left."""
    if sys.platform == "darwin":
        app = _APPS.get(desktop.get("TERM_PROGRAM", ""))
        return app is not None and _ran(runner, Command(("open", "-a", app)))
    window = desktop.get("WINDOWID", "")
    if not re.fullmatch(r"[1-9]\d{0,18}", window) or not desktop.get("DISPLAY"):
        return False
    env = {name: desktop[name] for name in ("DISPLAY", "XAUTHORITY") if desktop.get(name)}
    return _ran(runner, Command(("wmctrl", "-i", "-a", hex(int(window))), env)) or _ran(
        runner, Command(("xdotool", "windowactivate", window), env)
    )


def _new_terminal(tmux: Tmux, pane: Pane, record: Record, runner: Runner) -> Brought:
    """Nothing shows that tmux server: open a terminal, where the system has a chosen one and a screen."""
    desktop = {**records.desktop(), **({} if record.remote else record.desktop)}
    hint = f"Attach with: {' '.join(tmux.command('attach', '-t', pane.session_name or pane.session).argv)}"
    screen = desktop.get("DISPLAY") or desktop.get("WAYLAND_DISPLAY")
    if sys.platform == "darwin" or not screen or not shutil.which("x-terminal-emulator"):
        return Brought(False, hint=hint)
    names = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    env: dict[str, str | None] = {name: desktop[name] for name in names if desktop.get(name)}
    # setsid: it outlives us; the shell goes at once and leaves it behind.
    argv = ("sh", "-c", 'setsid "$@" >/dev/null 2>&1 </dev/null &', "sh", "x-terminal-emulator", "-e",
            *attach_command(tmux, pane).argv)  # fmt: skip
    opened = _ran(runner, Command(argv, {**env, "TMUX": None}))
    return Brought(opened, opened, "" if opened else hint)


def _ran(runner: Runner, command: Command) -> bool:
    try:
        return runner.run(command, timeout=5).ok
    except CommandNotFound:
        return False


def inside_same_server(tmux: Tmux) -> bool:
    """Whether our own terminal is a pane of that very server: then we switch and do not nest."""
    return os.environ.get("TMUX", "").rpartition(",")[0].rpartition(",")[0] == tmux.socket
