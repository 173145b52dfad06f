"""What a new VM gets over ssh once it is up for the first time; later the updates of its Claude Code.

Lima does not report a failed provision script (facts/lima.md §0), so this work goes over ssh, where a
failure is loud.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from _claude_sandbox.errors import CreateError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.lima.ssh import Guest, guest_script
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.run import Result
from _claude_sandbox.system.text import number, one_line
from _claude_sandbox.vm.early import EarlySetup
from _claude_sandbox.vm.lima_yaml import Share

CLAUDE_DATE = "claude-sandbox.claude"  # in the instance directory: when its claude came, when we last spoke
OLD_DAYS = 30
INSTALL_TIMEOUT = 1800.0  # seconds, for downloads in a slow guest


def finish(
    ctx: Context,
    instance: Instance,
    shares: Sequence[Share],
    early: EarlySetup[Any],
    *,
    foreign: bool,
    packages: Sequence[str],
) -> None:
    """Complete a VM after its first start. Raises CreateError, StartError."""
    early.check_mounts(instance, shares)
    if foreign:
        ctx.effects.do(
            f"prepare {instance.name} for Claude Code", lambda: _prepare_foreign(ctx, instance), None
        )
    if packages:
        install(ctx, instance, packages)


def _prepare_foreign(ctx: Context, instance: Instance) -> None:
    guest = ctx.guest(instance)
    with ctx.progress.stage("Preparing the guest for Claude Code"):
        _do(guest, guest_script("prepare-foreign.sh"), "be prepared for Claude Code")
    # sshd reads AcceptEnv for new connections only (facts/checked.md).
    guest.renew()


def install(ctx: Context, instance: Instance, packages: Sequence[str]) -> None:
    """Packages of the guest's distribution. Raises CreateError, GuestConnectionError."""
    names = ", ".join(packages)

    def run() -> None:
        guest = ctx.guest(instance)
        guest.connect()
        with ctx.progress.stage(f"Installing {names}"):
            _do(guest, guest_script("install-packages.sh"), "install packages", *packages)

    ctx.effects.do(f"install {names} in {instance.name}", run, None)


def _do(guest: Guest, script: str, what: str, *arguments: str) -> Result:
    begun = time.monotonic()
    result = guest.run(script, *arguments, timeout=INSTALL_TIMEOUT)
    if not result.ok:
        last = "\n".join(result.error_text.splitlines()[-8:])
        raise CreateError(
            f"The guest could not {what} (exit code {result.returncode}, {time.monotonic() - begun:.0f} s).",
            details=last[:2000],
            resolution="Does the guest reach the network? A proxy or CA of the host is passed on with "
            "`proxy: host` and `ca: host` in the user file; `claude-sandbox doctor` says where it is.",
        )
    return result


def mention_old_claude(ctx: Context, instance: Instance) -> None:
    """Say once a day that the sandbox's Claude Code is old; the guest is asked once a version.

    It does not update itself in a sandbox (spec 4.12). The date is the one at which its file came there.
    """
    file = instance.dir / CLAUDE_DATE
    now = int(time.time())
    try:
        installed, said = map(number, file.read_text().split())
    except (OSError, ValueError):
        installed = said = None
    if installed is None or said is None:
        result = ctx.guest(instance).run('stat -Lc %Z "$(bash -lc "command -v claude")"', timeout=30)
        installed, said = number(result.text), 0
        if installed is None and result.text.strip():
            ctx.progress.note(
                f"The age of Claude Code in {instance.name} is not known: the guest gave no date."
            )
    installed = now if installed is None else installed
    days = (now - installed) // 86400
    if OLD_DAYS <= days <= 3650 and now - said > 86400:
        ctx.progress.note(
            f"Claude Code in {instance.name} is {days} days old: `claude-sandbox update` brings a newer."
        )
        said = now
    write_atomic(file, f"{installed} {said}".encode())


def update_claude(ctx: Context, instance: Instance) -> str:
    """Bring the newest Claude Code into a running VM; returns its version. Raises CreateError."""
    return ctx.effects.do(
        f"run guest/update-claude.sh in {instance.name}", lambda: _update_claude(ctx, instance), "unchanged"
    )


def _update_claude(ctx: Context, instance: Instance) -> str:
    guest = ctx.guest(instance)
    guest.connect()
    with ctx.progress.stage(f"Updating Claude Code in {instance.name}"):
        result = _do(guest, guest_script("update-claude.sh"), "update Claude Code")
    (instance.dir / CLAUDE_DATE).unlink(missing_ok=True)
    return next(
        (words for line in reversed(result.text.splitlines()) if (words := one_line(line)[:100])), "unknown"
    )
