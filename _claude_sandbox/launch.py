"""Running Claude, or a shell, in a VM that is up: environment, command line, tmux, exit code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox import (
    boot,
    credential,
    first_boot,
    first_run,
    hooks,
    login,
    login_sync,
    managed,
    panes,
    paths,
    registration,
    remote,
    settings,
    settings_sync,
    terminal,
    voice,
    warm,
)
from _claude_sandbox.config import PROJECT_FILE, Config
from _claude_sandbox.context import Context
from _claude_sandbox.errors import ClaudeNotInstalledError, ClaudeSandboxError, GuestConnectionError
from _claude_sandbox.files import write_atomic
from _claude_sandbox.guest import SSH_FAILED, Guest
from _claude_sandbox.journal import project_lock_path
from _claude_sandbox.lima import Instance
from _claude_sandbox.run import Command
from _claude_sandbox.tmux import Tmux

NOT_FOUND = 127
SERVER_TIMEOUT = 2.0  # seconds that a launch waits for the hooks server; its process has begun long before
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
        "CLAUDE_SANDBOX_UUID": remote.uuid4(),
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


# -- sessions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A command on the user's terminal, and what to do after it; can travel through a file.

    `uuid` (CLAUDE_SANDBOX_UUID in the guest) and `project` lead a hook event of this Claude to its terminal.
    `voice`: it may use the microphone, by this command if it names one.
    """

    command: Command
    vm: str
    settings: str
    uuid: str = ""
    project: str = ""
    voice: tuple[str, ...] | None = None

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
                    "uuid": self.uuid,
                    "project": self.project,
                    "voice": self.voice,
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
        voice = tuple(data["voice"]) if data["voice"] is not None else None
        return cls(command, data["vm"], data["settings"], data["uuid"], data["project"], voice)


def _login(ctx: Context, settings_dir: Path, warn: Callable[[str], None] | None = None) -> login.Login:
    return login.select(
        os.environ,
        settings_dir,
        runner=ctx.runner,
        state_dir=paths.state_dir(),
        warn=warn or ctx.progress.warn,
    )


@dataclass(frozen=True)
class Launch:
    """What a session in the VM is given. `looked_at`: the files on which that depends.

    `warned`: something was wrong with the settings or the login, and the user should hear of it each time.
    """

    env: Mapping[str, str] = field(repr=False)
    login: login.Login = field(repr=False)
    looked_at: tuple[str, ...]
    warned: bool


def bring_up_to_date(ctx: Context, config: Config, instance: Instance, *, quick: bool = False) -> Launch:
    """Settings, login and first-run files into the guest; returns what the session gets.

    `quick`: not when this boot of the VM has had the same ones already. Raises GuestConnectionError.
    """
    warnings: list[str] = []
    unfit: list[str] = []  # what is wrong with the settings: told when they are brought up

    def warn(text: str) -> None:
        warnings.append(text)
        ctx.progress.warn(text)

    if warning := settings.users_own_warning(config.settings):
        warn(warning)
    if config.hooks:
        listening = _listen(config, instance)
    guest = ctx.guest(instance)
    guest.connect()
    chosen = _login(ctx, config.settings, warn)
    env = {
        **environment(config),
        **_hooks_socket(config, instance),
        **login.launch_env(os.environ),
        **chosen.environment(),
    }
    tree = settings.scan(
        config.settings, unfit.append, settings_sync.hashes_file(config.settings, paths.state_dir())
    )
    seen = _fingerprint(tree, chosen, instance, config.hooks)
    if not (quick and seen is not None and _prepared(instance) == seen):
        for text in unfit:
            warn(text)
        _sync_login(ctx, chosen, other_guests(ctx, instance))
        report = settings_sync.prepare(
            guest,
            tree=tree,
            login=chosen,
            sandbox=instance.name,
            state_dir=paths.state_dir(),
            identity=first_run.git_identity(ctx.runner, paths.home()),
            hooks=config.hooks,
            warn=warn,
        )
        _tell(ctx, instance, report)
        if seen is not None:
            write_atomic(instance.dir / PREPARED, seen.encode())
    if config.hooks:
        for trouble in listening():
            ctx.progress.warn(trouble)  # of the host's alone: a quick shell need not repeat it
    return Launch(env, chosen, tree.looked_at, bool(warnings))


def _hooks_socket(config: Config, instance: Instance) -> dict[str, str]:
    """The variable that tells the guest where the host listens."""
    if not config.hooks:
        return {}
    return {"CLAUDE_HOOKS_SOCKET": registration.guest_socket(boot.guest_uid(instance))}


def _listen(config: Config, instance: Instance) -> Callable[[], list[str]]:
    """Have the hooks server listen to this VM, while we go on. The result waits for that, for a while (whoever
    becomes ssh would break it off), and tells what went wrong."""
    import threading

    trouble: list[str] = []

    def listen() -> None:
        try:
            hooks.register(instance, config.project, uid=boot.guest_uid(instance))
            hooks.ensure()
        except (ClaudeSandboxError, OSError) as error:
            trouble.append(f"The host will not hear when Claude needs you: {error}")

    def listening() -> list[str]:
        thread.join(SERVER_TIMEOUT)
        return trouble

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return listening


def _tell(ctx: Context, instance: Instance, report: settings_sync.PrepareReport) -> None:
    """What the user should know of a launch's changes."""
    if not report.hooks:
        ctx.progress.warn(
            f"The host will not hear when Claude needs you: hooks need root in {instance.name}, and sudo failed there."
        )
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


def _fingerprint(tree: settings.HostTree, chosen: login.Login, instance: Instance, hooks: bool) -> str | None:
    """What the guest would be given, and to which boot of the VM; None when that cannot be told."""
    boot_id = boot.boot_id(instance)
    parts = [boot_id, repr(sorted(tree.files.items())), repr(tree.mcp), chosen.hand_over()]
    parts.append(repr(managed.files()) if hooks else "")
    return hashlib.sha256(repr(parts).encode()).hexdigest() if boot_id else None


def _prepared(instance: Instance) -> str | None:
    try:
        return (instance.dir / PREPARED).read_text()
    except OSError:
        return None


def _prepared_since(instance: Instance, began: int) -> bool:
    try:
        return (instance.dir / PREPARED).stat().st_mtime_ns > began
    except OSError:
        return False


def other_guests(ctx: Context, instance: Instance) -> dict[str, Guest]:
    """Running sandboxes besides this one, by name, from their files alone."""
    found = {}
    for directory in ctx.lima.home.glob("claude-sandbox-*"):
        other = ctx.lima.peek(directory.name)
        if other and other.mark and other.name != instance.name and boot.seen_ready(other):
            found[other.name] = ctx.guest(other)
    return found


def run_claude(
    ctx: Context, config: Config, instance: Instance, arguments: Sequence[str], *, new: bool, began: int
) -> int:
    """Claude on the terminal; its exit code, or 0 after a detach. Attaches a live session again.

    `began` is when this program did (ns): what a start has brought since then is not brought again.
    """
    tmux = Tmux(ctx.runner)
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    live = tmux.live_session(instance.name) if tty and not new and not arguments else None
    if live:
        if config.sources.get("voice", "").startswith("--"):
            ctx.progress.note("This is the session that ran already; --voice counts for a new one (--new).")
        return _attach(ctx, tmux, live)
    given = bring_up_to_date(ctx, config, instance, quick=_prepared_since(instance, began))
    first_boot.mention_old_claude(ctx, instance)
    if config.voice and (trouble := voice.trouble(config.voice_command)):
        ctx.progress.warn(trouble)
    line = remote.claude_line(boot.project_point(instance), arguments, voice=config.voice)
    command = ctx.guest(instance).session(line, given.env, tty=tty)
    uuid = given.env["CLAUDE_SANDBOX_UUID"]
    microphone = config.voice_command if config.voice else None
    session = Session(command, instance.name, str(config.settings), uuid, str(config.project), microphone)
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
    with terminal.restored() as broken, _recorded(ctx, session) as started, _heard(ctx, session):
        code = ctx.runner.foreground(session.command, on_start=started)
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


def _recorded(ctx: Context, session: Session) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    return panes.recorded(
        ctx.runner, uuid=session.uuid, sandbox=session.vm, project=session.project, warn=ctx.progress.warn
    )


def _heard(ctx: Context, session: Session) -> contextlib.AbstractContextManager[None]:
    """The grant for the microphone, for as long as the session runs."""
    instance = ctx.lima.peek(session.vm) if session.voice is not None else None
    if instance is None or session.voice is None:
        return contextlib.nullcontext()
    return voice.granted(instance, uid=ctx.user.uid, command=session.voice, warn=ctx.progress.warn)


def run_shell(
    ctx: Context, config: Config, instance: Instance, arguments: Sequence[str], *, began: int
) -> int:
    """A shell, or a command, in the VM with Claude's environment; becomes ssh when it can.

    `began` is when this program did (ns), for the note that makes the next shell quicker.
    """
    tty = sys.stdin.isatty() and (sys.stdout.isatty() or not arguments)
    given = bring_up_to_date(ctx, config, instance, quick=True)
    point = boot.project_point(instance)
    with contextlib.suppress(OSError, ValueError):  # the next shell is a little slower then
        _leave_note(ctx, config, instance, given, point, began)
    line = remote.shell_line(point, arguments, tty=tty)
    ctx.runner.exec(ctx.guest(instance).session(line, given.env, tty=tty))


# Variables of ours that hold no secret: their values may stand in a file.
_OPEN = frozenset(
    {
        "UV_PROJECT_ENVIRONMENT",
        "LANG",
        "TERM",
        "TZ",
        "DISABLE_AUTOUPDATER",
        "NODE_EXTRA_CA_CERTS",
        "CLAUDE_HOOKS_SOCKET",
    }
)


def _leave_note(
    ctx: Context, config: Config, instance: Instance, given: Launch, point: str, began: int
) -> None:
    """For `warm`: all that this shell depended on, if that can be said without a secret."""
    env = _origins(given)
    pid_files = sorted(instance.dir.glob("*.pid"))
    if env is None or given.warned or len(pid_files) != 2:  # the host agent's and the driver's
        return
    guest = ctx.guest(instance)
    session = {
        "point": point,
        "ssh": guest.ssh(),
        "host": instance.ssh_host,
        "control": str(guest.control_path),
        "pids": [int(file.read_text()) for file in pid_files],
    }
    code = Path(__file__).parent
    watch = [
        *pid_files, instance.dir / "lima.yaml", instance.ssh_config, paths.config_file(), paths.token_file(),
        config.project / PROJECT_FILE, config.settings / credential.FILE, "/etc/localtime", code, code / "__init__.py",
        *given.looked_at,
    ]  # fmt: skip
    warm.save(
        str(config.project), began=began, session=session, env=env, watch=map(str, watch),
        lock=str(project_lock_path(config.project)),
    )  # fmt: skip


def _origins(given: Launch) -> dict[str, tuple[str, str]] | None:
    """Where each variable comes from, as `warm.save` wants it; None if only its value could say it."""
    origins = {}
    token = given.login.environment() if isinstance(given.login, login.TokenLogin) else {}
    for name, value in given.env.items():
        if name == "CLAUDE_SANDBOX_UUID":
            origins[name] = ("uuid", "")
        elif os.environ.get(name) == value:
            origins[name] = ("host", name)
        elif name in _OPEN or (name == "ANTHROPIC_BASE_URL" and "@" not in value and "?" not in value):
            origins[name] = ("text", value)
        elif name in token:  # not the environment's, so the stored one
            origins[name] = ("file", str(paths.token_file()))
        else:
            return None
    return origins
