"""Running Claude, or a shell, in a VM that is up: environment, command line, tmux, exit code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox import (
    boot,
    first_boot,
    first_run,
    login,
    login_sync,
    paths,
    settings,
    settings_sync,
    terminal,
)
from _claude_sandbox.config import Config
from _claude_sandbox.context import Context
from _claude_sandbox.errors import ClaudeNotInstalledError, ClaudeSandboxError, GuestConnectionError
from _claude_sandbox.files import write_atomic
from _claude_sandbox.guest import SSH_FAILED, Guest, shell_quote
from _claude_sandbox.lima import Instance
from _claude_sandbox.run import Command
from _claude_sandbox.tmux import Tmux

NOT_FOUND = 127
PREPARED = "claude-sandbox.prepared"  # in the instance directory: what this boot was given
# Terminals that ncurses-base of Debian and Ubuntu knows; others become xterm-256color.
_TERMS = frozenset(
    {
        "xterm",
        "xterm-256color",
        "screen",
        "screen-256color",
        "tmux",
        "tmux-256color",
        "linux",
        "vt100",
        "rxvt",
    }
)


def environment(config: Config, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the guest's session gets besides the credential (spec 3.3, 3.5)."""
    env = {
        "CLAUDE_SANDBOX_UUID": uuid4(),
        "UV_PROJECT_ENVIRONMENT": environ.get("UV_PROJECT_ENVIRONMENT") or ".venv-agent",
        "LANG": "C.UTF-8",
        "TERM": guest_term(environ.get("TERM", "")),
        # Updates come by `claude-sandbox update`: many sandboxes must not each fetch one.
        "DISABLE_AUTOUPDATER": "1",
    }
    if zone := time_zone(environ):
        env["TZ"] = zone
    if environ.get("COLORTERM"):
        env["COLORTERM"] = environ["COLORTERM"]
    if config.proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            for spelling in (name, name.upper()):
                if environ.get(spelling):
                    env[spelling] = (
                        environ[spelling] if name == "no_proxy" else login.guest_url(environ[spelling])
                    )
    if config.ca:
        env["NODE_EXTRA_CA_CERTS"] = "/etc/ssl/certs/ca-certificates.crt"
    return env


def uuid4() -> str:
    """A random UUID, version 4 (the module uuid takes 7 ms to import)."""
    data = bytearray(os.urandom(16))
    data[6], data[8] = data[6] & 0x0F | 0x40, data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def guest_term(term: str) -> str:
    return term if term in _TERMS else "xterm-256color"


def time_zone(environ: Mapping[str, str]) -> str | None:
    """The host's zone name, such as Europe/Berlin; None when it cannot be told."""
    if environ.get("TZ"):
        return environ["TZ"].removeprefix(":")
    with contextlib.suppress(OSError):
        target = os.path.realpath("/etc/localtime")
        _, found, name = target.partition("/zoneinfo/")
        if found:
            return name
    return None


# -- command lines -------------------------------------------------------------------------------


def claude_line(directory: str, arguments: Sequence[str]) -> str:
    """The guest's command for `claude` with the user's arguments, in a login shell."""
    own = any(a == "--dangerously-skip-permissions" or a.startswith("--permission-mode") for a in arguments)
    argv = ["claude", *([] if own else ["--permission-mode", "bypassPermissions"]), *arguments]
    return _in(directory, ["bash", "-lc", f"exec {shell_quote(argv)}"])


def shell_line(directory: str, arguments: Sequence[str], *, tty: bool) -> str:
    """A login shell, interactive on a terminal, or `arguments` run in one."""
    if arguments:
        return _in(directory, ["bash", "-lc", shell_quote(arguments)])
    return _in(directory, ["bash", "-il"] if tty else ["bash", "-l"])


def _in(directory: str, argv: Sequence[str]) -> str:
    return f"cd {shell_quote([directory])} && exec {shell_quote(argv)}"


# -- sessions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A command on the user's terminal, and what to do after it; can travel through a file."""

    command: Command
    vm: str
    settings: str

    def save(self, path: Path) -> None:
        """Write it (it holds the credential) to a 0600 file that is read once."""
        write_atomic(
            path,
            json.dumps(
                {
                    "argv": self.command.argv,
                    "env": self.command.env,
                    "hidden": sorted(self.command.hidden),
                    "vm": self.vm,
                    "settings": self.settings,
                    "environ": {k: v for k, v in os.environ.items() if not k.startswith("TMUX")},
                }
            ).encode(),
        )

    @classmethod
    def load(cls, path: Path) -> Session:
        """Read and remove the file, and take over the environment of who wrote it."""
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ClaudeSandboxError("This session's file is gone; start claude-sandbox anew.") from error
        path.unlink(missing_ok=True)
        keep = {k: v for k, v in os.environ.items() if k.startswith("TMUX") or k == "TERM"}
        os.environ.update({**data["environ"], **keep})
        env = {**data["env"], "TERM": guest_term(os.environ.get("TERM", ""))}
        command = Command(tuple(data["argv"]), env, hidden=frozenset(data["hidden"]))
        return cls(command, data["vm"], data["settings"])


def _login(ctx: Context, settings_dir: Path) -> login.Login:
    return login.select(
        os.environ, settings_dir, runner=ctx.runner, state_dir=paths.state_dir(), warn=ctx.progress.warn
    )


def bring_up_to_date(
    ctx: Context, config: Config, instance: Instance, *, quick: bool = False
) -> dict[str, str]:
    """Settings, login and first-run files into the guest; returns the session's environment (secret).

    `quick`: not when this boot of the VM has had the same ones already. Raises GuestConnectionError.
    """
    if warning := settings.users_own_warning(config.settings):
        ctx.progress.warn(warning)
    guest = ctx.guest(instance)
    guest.connect()
    chosen = _login(ctx, config.settings)
    env = {**environment(config), **login.launch_env(os.environ), **chosen.environment()}
    seen = _fingerprint(config.settings, chosen, instance)
    if quick and seen is not None and _prepared(instance) == seen:
        return env
    _sync_login(ctx, chosen, other_guests(ctx, instance))
    report = settings_sync.prepare(
        guest,
        settings_dir=config.settings,
        login=chosen,
        sandbox=instance.name,
        state_dir=paths.state_dir(),
        identity=first_run.git_identity(ctx.runner, paths.home()),
        warn=ctx.progress.warn,
    )
    _tell(ctx, instance, report)
    if seen is not None:
        write_atomic(instance.dir / PREPARED, seen.encode())
    return env


def _tell(ctx: Context, instance: Instance, report: settings_sync.PrepareReport) -> None:
    """What the user should know of a launch's changes."""
    if report.collected:
        ctx.progress.note(f"{instance.name} changed the login; it is in {report.collected.where} now.")
    if report.saved:
        where = f"~/.claude/{report.saved_in}"
        ctx.progress.warn(
            f"Changed here and in the sandbox: {', '.join(report.saved)}. Yours won; the sandbox's are in {where}"
        )


def _sync_login(ctx: Context, chosen: login.Login, guests: Mapping[str, Guest]) -> None:
    """Collect a newer login from running sandboxes and hand it on. Trouble is a warning, never a stop."""
    try:
        for taken in login_sync.sync_running(guests, chosen, ctx.progress.warn):
            ctx.progress.note(f"{taken.sandbox} changed the login; it is in {taken.where} now.")
    except ClaudeSandboxError as error:
        ctx.progress.warn(f"The login was not taken over from running sandboxes: {error.brief}")


def _fingerprint(settings_dir: Path, chosen: login.Login, instance: Instance) -> str | None:
    """What the guest would be given, and to which boot of the VM; None when that cannot be told."""
    boot_id = boot.boot_id(instance)
    tree = settings.scan(
        settings_dir, lambda _text: None, settings_sync.files_dir(paths.state_dir()) / "quick.json"
    )
    parts = [boot_id, repr(sorted(tree.files.items())), repr(tree.mcp), chosen.hand_over()]
    return hashlib.sha256(repr(parts).encode()).hexdigest() if boot_id else None


def _prepared(instance: Instance) -> str | None:
    try:
        return (instance.dir / PREPARED).read_text()
    except OSError:
        return None


def other_guests(ctx: Context, instance: Instance) -> dict[str, Guest]:
    """Running sandboxes besides this one, by name, from their files alone."""
    found = {}
    for directory in ctx.lima.home.glob("claude-sandbox-*"):
        other = ctx.lima.peek(directory.name)
        if other and other.mark and other.name != instance.name and boot.seen_ready(other):
            found[other.name] = ctx.guest(other)
    return found


def run_claude(
    ctx: Context, config: Config, instance: Instance, arguments: Sequence[str], *, new: bool
) -> int:
    """Claude on the terminal; its exit code, or 0 after a detach. Attaches a live session again."""
    tmux = Tmux(ctx.runner)
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    live = tmux.live_session(instance.name) if tty and not new and not arguments else None
    if live:
        return _attach(ctx, tmux, live)
    env = bring_up_to_date(ctx, config, instance)
    first_boot.mention_old_claude(ctx, instance)
    line = claude_line(boot.project_point(instance), arguments)
    command = ctx.guest(instance).session(line, env, tty=tty)
    session = Session(command, instance.name, str(config.settings))
    if tty and not tmux.inside() and tmux.usable() and terminal.own_tty():
        return _in_new_tmux(ctx, tmux, session)
    if tty and tmux.inside():
        tmux.rename_current(instance.name)
    return run_session(ctx, session)


def _in_new_tmux(ctx: Context, tmux: Tmux, session: Session) -> int:
    name = f"{session.vm}-{os.getpid()}"
    file = session_file(name)
    _forget_old_sessions()
    session.save(file)
    import claude_sandbox

    argv = (sys.executable, str(Path(claude_sandbox.__file__)), "_session", str(file))
    try:
        return _after_tmux(ctx, tmux, name, ctx.runner.foreground(tmux.new(name, argv)))
    finally:
        if name not in tmux.sessions():
            file.unlink(missing_ok=True)  # the session never came to read it


def _attach(ctx: Context, tmux: Tmux, name: str) -> int:
    code = ctx.runner.foreground(tmux.attach(name))
    return code if tmux.inside() else _after_tmux(ctx, tmux, name, code)


def _after_tmux(ctx: Context, tmux: Tmux, name: str, code: int) -> int:
    """Claude's exit code when the session has ended, 0 when it was only left."""
    if name in tmux.sessions():
        ctx.progress.note(f"Detached; Claude goes on. Back to it: claude-sandbox, or tmux attach -t {name}")
        return 0
    left = code_path(session_file(name))
    try:
        return int(left.read_text())
    except (OSError, ValueError):
        return code or 1
    finally:
        left.unlink(missing_ok=True)


def _forget_old_sessions(age: float = 300) -> None:
    """Remove what a killed run left: a session's file holds the credential until it is read."""
    for file in paths.runtime_dir().glob("*.session"):
        if time.time() - file.stat().st_mtime > age:
            file.unlink(missing_ok=True)


def session_file(name: str) -> Path:
    return paths.runtime_dir() / f"{name}.session"


def code_path(file: Path) -> Path:
    """Where a session in tmux leaves its exit code, for whoever is attached when it ends."""
    return file.with_suffix(".code")


def run_session(ctx: Context, session: Session) -> int:
    """Run it on this terminal, leave the terminal clean and take a changed login back."""
    with terminal.restored() as broken:
        code = ctx.runner.foreground(session.command)
        broken(code == SSH_FAILED)
    instance = ctx.lima.peek(session.vm)
    if instance is not None and code != SSH_FAILED:
        guests = {instance.name: ctx.guest(instance), **other_guests(ctx, instance)}
        _sync_login(ctx, _login(ctx, Path(session.settings)), guests)
    if code == NOT_FOUND:
        raise ClaudeNotInstalledError(
            f"There is no `claude` in {session.vm}.",
            resolution="`claude-sandbox update` installs it there; a rebuilt base VM brings it for new sandboxes.",
        )
    if code == SSH_FAILED:
        raise GuestConnectionError(
            f"The connection to {session.vm} ended.",
            resolution="`claude-sandbox status` shows whether it still runs; "
            "`claude-sandbox -- --continue` takes the conversation up again.",
        )
    return code


def run_shell(ctx: Context, config: Config, instance: Instance, arguments: Sequence[str]) -> int:
    """A shell, or a command, in the VM with Claude's environment; becomes ssh when it can."""
    tty = sys.stdin.isatty() and (sys.stdout.isatty() or not arguments)
    env = bring_up_to_date(ctx, config, instance, quick=True)
    line = shell_line(boot.project_point(instance), arguments, tty=tty)
    ctx.runner.exec(ctx.guest(instance).session(line, env, tty=tty))
