"""A VM that is neither Running nor Stopped is brought to one of them: looked at, waited for, stopped by force."""

from __future__ import annotations

import time

from _claude_sandbox.errors import StartError
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import BROKEN, RUNNING, STOPPED, UNREADABLE, Instance, reword
from _claude_sandbox.vm import document, shares, stop


def settle(ctx: Context, instance: Instance) -> Instance:
    """Bring a VM that is neither Running nor Stopped to one of them. Raises StartError."""
    if instance.status in (RUNNING, STOPPED):
        return instance
    if instance.status == UNREADABLE:
        shares.check_shares(document.read(instance))
        raise StartError(
            f"Lima cannot read the configuration of {instance.name}: {instance.dir / 'lima.yaml'}",
            details="; ".join(_lima_words(ctx, instance.name)),
            resolution="Fix that file, or delete the sandbox and create it again.",
        )
    return ctx.effects.do(
        f"stop {instance.name}, which is {instance.status}", lambda: _settle(ctx, instance), instance
    )


def _settle(ctx: Context, instance: Instance) -> Instance:
    if vm_processes.make_pid_files_true(instance.dir):
        ctx.progress.note(f"{instance.name} was left by a host that went down; starting it again.")
    current = ctx.lima.get(instance.name) or instance
    if current.status == BROKEN:
        # Broken is also what a VM is for a moment while it starts or stops (facts/lima.md §0).
        current = _wait_while_broken(ctx, current)
    if current.status == BROKEN:
        with ctx.progress.stage(f"Repairing {instance.name}, which is Broken"):
            stop.force_stop(ctx, instance.name)
        current = ctx.lima.get(instance.name) or current
    if current.status not in (RUNNING, STOPPED):
        raise StartError(
            f"{instance.name} is {current.status} and cannot be stopped.",
            resolution=f"`claude-sandbox stop -f` tries harder; its files are in {instance.dir}",
        )
    return current


def _wait_while_broken(ctx: Context, instance: Instance, seconds: float = 6) -> Instance:
    deadline = time.monotonic() + seconds
    current = instance
    while current.status == BROKEN and time.monotonic() < deadline:
        time.sleep(1)
        current = ctx.lima.get(instance.name) or current
    return current


def _lima_words(ctx: Context, name: str) -> list[str]:
    """What limactl says of an instance that it cannot read."""
    result = ctx.runner.run(ctx.lima.command("list", name), timeout=30, changes=False)
    return [reword(result.error_text)] if result.error_text else []
