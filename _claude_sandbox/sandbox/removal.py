"""Deleting sandboxes: the project's, or all that a prefix names. What is deleted carries our mark when it goes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from _claude_sandbox.disks import users as disks_users
from _claude_sandbox.errors import ClaudeSandboxError, LimaError, SandboxNotFoundError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.sandbox.lifecycle import Outcome, project_lock
from _claude_sandbox.sandbox.summary import MISSING, Sandbox
from _claude_sandbox.vm import cleanup
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.mark import mark_of, project_of


def delete(ctx: Context, project: Path) -> Sandbox:
    """Stop and delete the project's VM, with the conversations in it; never a file of the project."""
    with project_lock(ctx, project):
        vm_stop.remove_put_aside(ctx)
        instance = vm_lookup.find(ctx, project)
        if instance is None:
            return Sandbox("", MISSING, project, project.is_dir())
        _delete(ctx, instance)
        return Sandbox.of(instance)


def _delete(ctx: Context, instance: Instance) -> None:
    """The caller holds the project's lock. A kill half-way is finished by the next run (journal).

    Raises RefusedError (protected, a symlink), LimaError in limactl's words: then the sandbox is still there.
    """
    mark = mark_of(instance)
    if mark is None or mark.kind != vm_mark.SANDBOX or mark.project is None:
        raise SandboxNotFoundError(f"{instance.name} is not one of our sandboxes.")
    vm_stop.check_no_link(ctx, instance.name)
    vm_stop.check_unprotected(ctx, instance.name)
    with contextlib.suppress(ClaudeSandboxError):
        ctx.guest(instance).disconnect()
    with ctx.progress.stage(f"Deleting {instance.name}"):
        if vm_processes.running(instance.dir):
            vm_stop.force_stop(ctx, instance.name)
        # Stopped: whatever comes next, a launch registers it again.
        ctx.effects.silently(lambda: hooks_client.unregister(instance), None)
        _remove(ctx, instance, mark.project)


def _remove(ctx: Context, instance: Instance, project: Path) -> None:
    """A stopped VM goes. When Lima refuses, and left it whole, it is a good sandbox as before."""
    journal = Journal(ctx.lima.home, instance.name)
    try:
        ctx.effects.silently(lambda: journal.begin(project), None)
    except OSError as error:
        if error.errno not in vm_stop.DISK_FULL:
            raise
        vm_stop.delete_without_writing(
            ctx, instance.name
        )  # nothing can be written: whoever deletes wants to change that
        journal.end()
        return
    try:
        cleanup.remove_half_made(ctx, instance.name)
    except LimaError:
        if all((instance.dir / name).exists() for name in ("lima.yaml", disks_users.DISK)):
            journal.end()
        raise


def prunable(ctx: Context, prefix: str = "", *, orphans: bool = False) -> list[Sandbox]:
    """Our sandboxes whose name starts with `prefix`; with `orphans` only those without a directory."""
    found = [
        Sandbox.of(instance) for instance in vm_lookup.list_ours(ctx) if instance.name.startswith(prefix)
    ]
    return [s for s in found if not (orphans and s.project_exists)]


def prune(ctx: Context, sandboxes: list[Sandbox]) -> Outcome:
    """Delete these, each looked at again under its lock: only what still carries our mark goes."""
    outcome = Outcome()
    vm_stop.remove_put_aside(ctx)
    for sandbox in sandboxes:
        if sandbox.project is None:
            continue
        with outcome.going_on(), project_lock(ctx, sandbox.project):
            instance = ctx.lima.get(sandbox.name)
            if instance and project_of(instance) == sandbox.project:
                _delete(ctx, instance)
                outcome.done.append(sandbox)
    return outcome
