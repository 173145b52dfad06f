"""Which VM belongs to a project. Lima is the truth: the mark in each VM's config says whose it is."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from _claude_sandbox.errors import HostSetupError, SandboxExistsError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import BROKEN, Instance
from _claude_sandbox.system.files import birth
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import naming
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.mark import kind_of, mark_of, project_of


def candidates(ctx: Context, project: Path) -> tuple[str, str]:
    """The names that a project's VM can have: the plain one and the one with a hash.

    Raises HostSetupError when LIMA_HOME leaves no room for a name.
    """
    longest, least = ctx.longest_name(), len(naming.PREFIX) + 1 + 1 + naming.HASH_LENGTH
    if longest < least:
        most = len(os.fsencode(ctx.lima.home)) - (least - longest)
        raise HostSetupError(
            f"LIMA_HOME is too long: {ctx.lima.home}",
            details="Lima puts sockets below it, and their paths are limited to about 104 bytes.",
            resolution=f"Set LIMA_HOME to a shorter path (at most {most} bytes).",
        )
    return naming.vm_name(project, longest), naming.vm_name(project, longest, with_hash=True)


def find(ctx: Context, project: Path) -> Instance | None:
    """The project's VM. Its status is from files when it was found by name, else Lima's own."""
    return by_name(ctx, project) or by_mark(ctx, project)


def by_mark(ctx: Context, project: Path) -> Instance | None:
    """The project's VM under whatever name, as Lima lists it."""
    return next((i for i in list_ours(ctx) if project_of(i) == project), None)


def by_name(ctx: Context, project: Path) -> Instance | None:
    """The project's VM under one of its two names, from files alone; it may have a third (moved)."""
    for name in candidates(ctx, project):
        instance = ctx.lima.read_instance_files(name)
        if instance and project_of(instance) == project:
            return instance
        if instance:
            _explain_other_version(instance)
    return None


def _explain_other_version(instance: Instance) -> None:
    """A VM with our mark in a schema that this version does not know is not taken for foreign."""
    schema = vm_mark.mark_schema(instance.param.get(vm_mark.MARK_PARAM, ""))
    if schema is not None and schema not in vm_mark.READABLE:
        raise SandboxExistsError(
            f"{instance.name} was made by another version of claude-sandbox (mark {schema}, ours is {vm_mark.SCHEMA}).",
            resolution="Use that version for it, or delete it with `limactl delete` and create it again.",
        )


def list_ours(ctx: Context) -> list[Instance]:
    """Every sandbox, as Lima lists them."""
    return [i for i in ctx.lima.list() if kind_of(i) == vm_mark.SANDBOX]


def list_from_files(ctx: Context) -> list[Instance]:
    """Every sandbox from its files, for tables; Lima is asked where they leave a doubt.

    That saves limactl's own time, which grows with every VM. Nothing that changes a VM relies on it.
    """
    try:
        names = sorted(
            entry.name for entry in ctx.lima.home.iterdir() if entry.name.startswith(naming.PREFIX)
        )
    except FileNotFoundError:
        return []
    except OSError:
        return list_ours(ctx)  # limactl says what is wrong
    found = []
    for name in names:
        instance = ctx.lima.read_instance_files(name)
        if instance is None or kind_of(instance) != vm_mark.SANDBOX:
            continue
        if instance.status == BROKEN or not (instance.cpus and instance.memory and instance.disk):
            return sorted(list_ours(ctx), key=lambda each: each.name)  # one question for all
        found.append(instance)
    return found


def find_moved(ctx: Context, project: Path) -> tuple[Instance, bool] | None:
    """A sandbox whose directory has become `project` by a move, and whether that is sure.

    Not sure: the mark is an older version's, or the file system does not record when a directory was made,
    so that `project` may as well be a new one which got the old one's inode.
    """
    for instance in list_ours(ctx):
        mark = mark_of(instance)
        if mark is None or mark.project is None or mark.project.is_dir():
            continue
        same = mark.same_directory(project)
        if same or (same is None and not _made_after(project, instance)):
            return instance, bool(same)
    return None


def _made_after(project: Path, instance: Instance) -> bool:
    """Whether the directory was made after the VM: then it cannot be the one for which the VM was made."""
    try:
        made, vm_made = birth(project), birth(instance.dir)
    except OSError:
        return False
    return bool(made and vm_made) and made > vm_made


def free_name(ctx: Context, project: Path, freed: Collection[str] = ()) -> str:
    """A name that nothing has yet, or that was `freed`. Call it under `vm.locks.names_lock()`."""
    names = candidates(ctx, project)
    for name in names:
        if name in freed:
            return name
        if not (ctx.lima.home / name).exists() and not Journal(ctx.lima.home, name).exists():
            return name
    raise SandboxExistsError(
        f"Both names for this project's VM are taken: {names[0]} and {names[1]}.",
        details=f"{ctx.lima.home / names[1]} is not one of our sandboxes.",
        resolution="Look with `limactl list`; delete or rename the one that you do not need.",
    )
