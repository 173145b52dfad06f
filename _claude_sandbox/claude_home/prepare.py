"""What a session in a VM is given, and the guest brought up to date: environment, settings, login, hooks."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.claude_home import first_run, host_tree, push
from _claude_sandbox.claude_home.host_tree import HostTree
from _claude_sandbox.config.table import Config
from _claude_sandbox.credentials import select as credentials_select
from _claude_sandbox.credentials import share as credentials_share
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import Collected
from _claude_sandbox.credentials.select import Login
from _claude_sandbox.credentials.variables import Origin, Variable
from _claude_sandbox.errors import ClaudeSandboxError, GuestConnectionError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.hooks import registration as hooks_registration
from _claude_sandbox.lima import readiness, remote_command
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.vm import shares
from _claude_sandbox.vm.mark import mark_of
from _claude_sandbox.vm.target import Target

SERVER_TIMEOUT = 2.0  # seconds that a launch waits for the hooks server; its process has begun long before
PREPARED = "claude-sandbox.prepared"  # in the instance directory: what this boot was given
# Terminals that ncurses-base of Debian and Ubuntu knows; others become xterm-256color.
_TERMS = (
    "xterm",
    "xterm-256color",
    "screen",
    "screen-256color",
    "tmux",
    "tmux-256color",
    "linux",
    "vt100",
    "rxvt",
)
_URLS = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PROXIES = (*_URLS, "no_proxy", "NO_PROXY")


def environment(config: Config, environ: Mapping[str, str] = os.environ) -> dict[str, Variable]:
    """What the guest's session gets besides the credential (spec 3.3, 3.5)."""
    text = {
        "LANG": "C.UTF-8",
        "TERM": guest_term(environ.get("TERM", "")),
        # Updates come by `claude-sandbox update`: many sandboxes must not each fetch one.
        "DISABLE_AUTOUPDATER": "1",
        "UV_PROJECT_ENVIRONMENT": environ.get("UV_PROJECT_ENVIRONMENT") or ".venv-agent",
        "TZ": time_zone(environ) or "",
        "NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt" if config.ca else "",
    }
    env = {name: Variable.of_text(value) for name, value in text.items() if value}
    env["CLAUDE_SANDBOX_UUID"] = Variable(remote_command.uuid4(), ("uuid", ""))
    for name in ("COLORTERM", *(_PROXIES if config.proxy else ())):
        if value := environ.get(name):
            rewritten = credentials_select.guest_url(value) if name in _URLS else value
            env[name] = Variable.of_host(name, value, rewritten)
    return env


def guest_term(term: str) -> str:
    return term if term in _TERMS else "xterm-256color"


def time_zone(environ: Mapping[str, str]) -> str | None:
    """The host's zone name, such as Europe/Berlin; None when it is not known."""
    if environ.get("TZ"):
        return environ["TZ"].removeprefix(":")
    with contextlib.suppress(OSError):
        target = os.path.realpath("/etc/localtime")
        _, found, name = target.partition("/zoneinfo/")
        if found:
            return name
    return None


@dataclass(frozen=True)
class SessionInputs:
    """What a session in the VM is given. `looked_at`: the files on which that depends.

    `warned`: something was wrong with the settings or the login, and each session's user should see it.
    """

    variables: dict[str, Variable]
    looked_at: tuple[str, ...]
    warned: bool

    @property
    def env(self) -> dict[str, str]:
        """Secret."""
        return {name: variable.value for name, variable in self.variables.items()}

    def origins(self) -> dict[str, Origin] | None:
        """Where each variable comes from, without a secret; None if that of one is not known."""
        found = {name: each.origin for name, each in self.variables.items() if each.origin is not None}
        return found if len(found) == len(self.variables) else None


def bring_up_to_date(ctx: Context, target: Target, *, quick: bool = False) -> SessionInputs:
    """Settings, login and first-run files into the guest; returns what the session gets.

    `quick`: not when this boot of the VM has had the same ones already. What the guest cannot take (its disk is
    full, it has no tar) is a warning: a session is how its user frees the disk. Raises GuestConnectionError.
    """
    config, instance = target.config, target.instance
    warnings: list[str] = []
    unfit: list[str] = []  # what is wrong with the settings: shown when they are brought

    def warn(text: str) -> None:
        warnings.append(text)
        ctx.progress.warn(text)

    writable = shares.guest_writable(ctx)
    directory = shares.settings_directory(ctx, config, writable)
    if warning := host_tree.users_own_warning(directory):
        warn(warning)
    hooks_trouble = _listen(target) if config.hooks else list
    guest = ctx.guest(instance)
    guest.connect()
    login = _login(ctx, directory, warn)
    variables = _variables(target, login)
    cache = push.hashes_file(directory, paths.state_dir())
    tree = host_tree.scan(directory, unfit.append, cache, lambda: [config.project, *writable])
    fingerprint = _fingerprint(tree, login, instance, config.hooks)
    if not quick or fingerprint is None or _prepared(instance) != fingerprint:
        for text in unfit:
            warn(text)
        if _push(ctx, target, guest, tree, login, warn) and fingerprint is not None:
            write_atomic(instance.dir / PREPARED, fingerprint.encode())
    for trouble in hooks_trouble():
        ctx.progress.warn(trouble)  # of the host's alone: a quick shell need not repeat it
    credential = str(config.settings / credentials_stores.FILE)
    return SessionInputs(variables, (*tree.looked_at, credential), bool(warnings))


def _variables(target: Target, login: Login) -> dict[str, Variable]:
    hooks = {"CLAUDE_HOOKS_SOCKET": Variable.of_text(hooks_registration.guest_socket(target.uid))}
    return {
        **environment(target.config),
        **(hooks if target.config.hooks else {}),
        **credentials_select.launch_env(os.environ),
        **login.environment(),
    }


def _push(
    ctx: Context, target: Target, guest: Guest, tree: HostTree, login: Login, warn: Callable[[str], None]
) -> bool:
    """Whether the guest took it."""
    instance = target.instance
    _sync_login(ctx, login, _other_guests(ctx, instance))
    try:
        report = push.update_guest(
            guest,
            tree=tree,
            login=login,
            sandbox=instance.name,
            state_dir=paths.state_dir(),
            identity=first_run.git_identity(ctx.runner, paths.home()),
            hooks=target.config.hooks,
            warn=warn,
        )
    except GuestConnectionError:
        raise
    except ClaudeSandboxError as error:  # a full disk, say: only a session can free it
        warn(_not_brought(instance, error))
        return False
    _show(ctx, instance, report)
    return True


def _listen(target: Target) -> Callable[[], list[str]]:
    """Have the hooks server listen to this VM, while we go on. The result waits for that, for a while (whoever
    becomes ssh would break it off), and returns what went wrong."""
    import threading

    trouble: list[str] = []

    def listen() -> None:
        try:
            hooks_client.register(target.instance, target.config.project, uid=target.uid)
            hooks_client.ensure()
        except (ClaudeSandboxError, OSError) as error:
            trouble.append(f"Notifications are off for this session: {error}")

    def listening() -> list[str]:
        thread.join(SERVER_TIMEOUT)
        return trouble

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return listening


def _show(ctx: Context, instance: Instance, report: push.UpdateReport) -> None:
    """What the user should know of a launch's changes."""
    if not report.hooks:
        ctx.progress.warn(
            f"Notifications are off for this session: hooks need root in {instance.name}, and sudo failed there."
        )
    if report.collected:
        ctx.progress.note(_changed(report.collected))
    if report.saved:
        where = f"~/.claude/{report.saved_in}"
        ctx.progress.warn(
            f"Changed here and in the sandbox: {', '.join(report.saved)}. Yours won; the sandbox's are in {where}"
        )


def _changed(taken: Collected) -> str:
    return (
        f"{taken.sandbox} changed the login; it is in {taken.where} now. "
        "`claude-sandbox login --undo` puts the previous one back."
    )


def _not_brought(instance: Instance, error: ClaudeSandboxError) -> str:
    """What a session goes without, why in the guest's last words, and what to do."""
    words = (error.details or "").splitlines()
    why = error.brief.rstrip(".") + (f" ({words[-1][:200]})" if words else "")
    return (
        f"Nothing was brought into ~/.claude of {instance.name} (settings, hooks, login file), which goes on with "
        f"what it has. {why}. {error.resolution or ''}"
    )


def _login(ctx: Context, settings_dir: Path, warn: Callable[[str], None] | None = None) -> Login:
    return credentials_select.select(
        os.environ,
        settings_dir,
        runner=ctx.runner,
        state_dir=paths.state_dir(),
        warn=warn or ctx.progress.warn,
        ask=ctx.progress.ask,
    )


def collect_login(ctx: Context, settings_dir: Path, instance: Instance) -> None:
    """After a session: a login that changed in this sandbox, or in another that runs."""
    guests = {instance.name: ctx.guest(instance), **_other_guests(ctx, instance)}
    _sync_login(ctx, _login(ctx, settings_dir), guests)


def _sync_login(ctx: Context, login: Login, guests: Mapping[str, Guest]) -> None:
    """Collect a newer login from running sandboxes and hand it on. Trouble is a warning, never a stop."""
    try:
        for taken in credentials_share.sync_running(guests, login, ctx.progress.warn):
            ctx.progress.note(_changed(taken))
    except ClaudeSandboxError as error:
        ctx.progress.warn(f"The login was not taken over from running sandboxes: {error.brief}")


def _fingerprint(tree: HostTree, login: Login, instance: Instance, hooks: bool) -> str | None:
    """What the guest would be given, and to which boot of the VM; None when that is not known."""
    boot_id = readiness.boot_id(instance)
    parts = [boot_id, repr(sorted(tree.files.items())), repr(tree.mcp), login.hand_over()]
    parts.append(repr(hooks_guest_setup.files()) if hooks else "")
    return hashlib.sha256(repr(parts).encode()).hexdigest() if boot_id else None


def _prepared(instance: Instance) -> str | None:
    try:
        return (instance.dir / PREPARED).read_text()
    except OSError:
        return None


def _other_guests(ctx: Context, instance: Instance) -> dict[str, Guest]:
    """Running sandboxes besides this one, by name, from their files alone."""
    found = {}
    for directory in ctx.lima.home.glob("claude-sandbox-*"):
        other = ctx.lima.read_instance_files(directory.name)
        if other and mark_of(other) and other.name != instance.name and readiness.was_ready(other):
            found[other.name] = ctx.guest(other)
    return found
