"""The verbs: the only place that orders steps. They return data or raise; the fronts render.

A project's lock is held while its VM is looked for, made, started, stopped or deleted, so two programs
never work on one VM, and whoever comes second attaches to what the first one made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.config.table import Config
from _claude_sandbox.errors import (
    Cancelled,
    ClaudeSandboxError,
    SandboxExistsError,
)
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, STOPPED, UNREADABLE, Instance
from _claude_sandbox.sandbox import working
from _claude_sandbox.sandbox.summary import MISSING, Sandbox, existing, not_found
from _claude_sandbox.system.files import lock
from _claude_sandbox.vm import cleanup, reconfigure
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm import origin as vm_origin
from _claude_sandbox.vm import shares as vm_shares
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.early import EarlySetup
from _claude_sandbox.vm.locks import project_lock_path
from _claude_sandbox.vm.mark import project_of
from _claude_sandbox.vm.target import Target

if TYPE_CHECKING:
    from _claude_sandbox.claude_home.prepare import SessionInputs


@contextlib.contextmanager
def project_lock(ctx: Context, project: Path) -> Iterator[None]:
    """Hold the project's lock; report once that another process has it."""

    def waiting(who: str) -> None:
        ctx.progress.note(f"Another claude-sandbox works on this project; waiting for it: {who} …")

    with ctx.effects.hold(lock(project_lock_path(project), on_wait=waiting)):
        yield


BuildTools = Callable[[], Any]
"""Builds the default tools VM; given by a front with a terminal (spec 4.4)."""


@dataclass(frozen=True)
class Ready:
    """A project's VM that runs. `created`: by this call. `inputs`: what its start has brought for a session."""

    target: Target
    created: bool = False
    inputs: SessionInputs | None = field(default=None, repr=False)

    @property
    def instance(self) -> Instance:
        return self.target.instance


def ensure(ctx: Context, config: Config, build_tools: BuildTools | None = None) -> Ready:
    """Make sure that the project's VM exists and runs.

    Raises CreateError, StartError, RefusedError, UsageError, Cancelled.
    """
    with project_lock(ctx, config.project):
        instance = _find_whole(ctx, config)
        if instance is None:
            return _create(ctx, config, build_tools)
        return _bring_up(ctx, config, instance)


def ensure_existing(ctx: Context, config: Config) -> Ready:
    """Make sure that the project's VM runs; none is made. Raises SandboxNotFoundError too."""
    with project_lock(ctx, config.project):
        instance = _find_whole(ctx, config)
        if instance is None:
            raise not_found(config.project)
        return _bring_up(ctx, config, instance)


def create_only(ctx: Context, config: Config, build_tools: BuildTools | None = None) -> Sandbox:
    """The verb `create`. Raises SandboxExistsError when the project has a VM already."""
    with project_lock(ctx, config.project):
        instance = _find_whole(ctx, config)
        if instance is not None:
            raise SandboxExistsError(
                f"This project has a sandbox already: {instance.name}",
                resolution="`claude-sandbox start` starts it, `claude-sandbox delete` removes it.",
            )
        return Sandbox.of(_create(ctx, config, build_tools).instance, created=True)


def _find_whole(ctx: Context, config: Config) -> Instance | None:
    """The project's VM, after removing one that was never finished or half deleted."""
    instance = _find(ctx, config.project)
    if instance is not None and cleanup.remove_unfinished(ctx, instance.name):
        return None
    if instance is None:
        return _after_move(ctx, config.project)
    return instance


def _find(ctx: Context, project: Path) -> Instance | None:
    """The project's VM. Unless it runs, what the host lacks is installed before limactl is asked."""
    instance = vm_lookup.by_name(ctx, project)
    if instance is None or instance.status != RUNNING:
        ctx.before_start()
    return instance or vm_lookup.by_mark(ctx, project)


def _after_move(ctx: Context, project: Path) -> Instance | None:
    """A sandbox whose directory became this project by a move, if the user says so."""
    found = vm_lookup.find_moved(ctx, project)
    if found is None or (old := project_of(found[0])) is None:
        return None
    instance, sure = found
    seems = f"This directory is {old}, moved" if sure else f"This directory may be {old}, moved"
    if sure:
        answer = ctx.confirm(f"{seems}. Go on with its sandbox {instance.name}?")
    else:  # it has the inode, and --yes has not looked
        answer = ctx.ask(f"{seems}, or a new one. Go on with {instance.name}, which was made for {old}?")
    if answer is None:
        raise SandboxExistsError(
            f"{seems}; its sandbox is {instance.name}.",
            resolution="Answer on a terminal, or delete that sandbox (no other): "
            f"{ctx.lima.command('delete', '--force', instance.name)}",
        )
    if not answer:
        return None
    _working_or_cancel(ctx, instance)
    vm_stop.stop(ctx, instance)
    document = reconfigure.follow_move(vm_document.read(instance), instance.name, old, project, ctx)
    vm_document.write(ctx, instance.dir, document)
    return ctx.lima.get(instance.name)


def _create(ctx: Context, config: Config, build_tools: BuildTools | None) -> Ready:
    from _claude_sandbox.vm import create as vm_create

    base = vm_create.base_of(ctx, config)
    if base is None and config.template is None and build_tools is not None:
        build_tools()
        base = vm_create.base_of(ctx, config)
    elif base is not None and base.status == RUNNING:
        _working_or_cancel(ctx, base)
    early = _early(ctx)
    return Ready(vm_create.create(ctx, config, base, early), True, early.prepared)


def _bring_up(ctx: Context, config: Config, instance: Instance) -> Ready:
    made_from = vm_origin.of(instance.dir)
    reconfigure.check_origin(ctx, config, instance.name, made_from)
    packages = reconfigure.missing_packages(config, made_from)
    asked = bool(packages) or any(
        config.given(key) for key in ("cpus", "memory", "disk", "ports", "mounts", "settings", "full-clone")
    )
    if instance.status == RUNNING and not asked and (target := Target.of_ready_boot(config, instance)):
        return Ready(target)
    # Late, as in _create: a command in a VM that runs does without (7 ms).
    from _claude_sandbox.disks import linked_clone
    from _claude_sandbox.vm import checks as vm_checks
    from _claude_sandbox.vm import settle as vm_settle
    from _claude_sandbox.vm import start as vm_start

    instance = vm_settle.settle(ctx, instance)
    document = vm_document.read(instance)
    change = reconfigure.plan_change(ctx, config, document)
    linked = config.full_clone and linked_clone.is_linked(instance.dir)
    if linked:
        change = replace(change, words=(*change.words, "a disk of its own"))
    if instance.status == RUNNING:
        reconfigure.check_running_ports(instance.name, change)
        reconfigure.report_pending(
            ctx, config, (*change.words, *([f"packages {', '.join(packages)}"] if packages else []))
        )
        vm_start.wait_ready(ctx, instance, document)
        return Ready(Target.of(config, instance, document))
    vm_shares.check_shares(change.document)
    vm_checks.check_ports(vm_lima_yaml.ports_of(change.document))
    if change.words:
        ctx.progress.note(f"Changing {instance.name}: {'; '.join(change.words)}.")
        vm_document.write(ctx, instance.dir, change.document)
    if linked:
        linked_clone.make_full(ctx, instance.dir)
    shares = vm_lima_yaml.shares_of(change.document)
    early = _early(ctx)
    with _changed_back_if_it_fails(ctx, instance, document, change):
        started = vm_start.start(
            ctx, instance.name, change.document,
            on_ssh_ready=lambda coming: early.start(Target.of(config, coming, change.document), shares),
        )  # fmt: skip
    early.check_mounts(started, shares)
    if packages:
        reconfigure.install(ctx, started, packages)
    return Ready(Target.of(config, started, change.document), inputs=early.prepared)


@contextlib.contextmanager
def _changed_back_if_it_fails(
    ctx: Context, instance: Instance, document: vm_lima_yaml.Document, change: reconfigure.Change
) -> Iterator[None]:
    """A change with which the VM does not start (more memory than there is) does not affect later starts."""
    try:
        yield
    except ClaudeSandboxError:
        if change.words:
            vm_document.write(
                ctx, instance.dir, reconfigure.reverted(change.document, document, instance.dir)
            )
        raise


def _early(ctx: Context) -> EarlySetup[SessionInputs]:
    """Settings and login for the launch that is to follow, while Lima still waits for its guest agent."""
    from _claude_sandbox.claude_home import prepare as claude_home_prepare

    return EarlySetup(ctx, claude_home_prepare.bring_up_to_date)


# -- stop --------------------------------------------------------------------------------------


def _working_or_cancel(ctx: Context, instance: Instance) -> None:
    """Ask on a terminal before a VM in which Claude works is stopped (spec 1.11)."""
    if instance.status != RUNNING or not working.claude_working(ctx, instance):
        return
    if ctx.confirm(f"Claude is working in {instance.name}. Stop it all the same?") is False:
        raise Cancelled(f"{instance.name} was left running.")


def stop(ctx: Context, project: Path, *, force: bool = False) -> Sandbox:
    """Stop the project's VM; no VM or a stopped one is success."""
    with project_lock(ctx, project):
        instance = existing(ctx, project)
        if instance is None:
            return Sandbox("", MISSING, project, True)
        if not force:
            _working_or_cancel(ctx, instance)
        vm_stop.stop(ctx, instance, force=force)
        return Sandbox.of(ctx.lima.get(instance.name) or instance)


def restart(ctx: Context, config: Config, *, force: bool = False) -> Sandbox:
    """Stop and start, applying changed settings. Raises SandboxNotFoundError."""
    with project_lock(ctx, config.project):
        found = _find(ctx, config.project)
        instance = ctx.lima.get(found.name) if found else None
        if instance is None:
            raise not_found(config.project)
        _check_before_stop(ctx, config, instance)
        if not force:
            _working_or_cancel(ctx, instance)
        vm_stop.stop(ctx, instance, force=force)
        stopped = ctx.lima.get(instance.name) or instance
        return Sandbox.of(_bring_up(ctx, config, stopped).instance)


def _check_before_stop(ctx: Context, config: Config, instance: Instance) -> None:
    """What would keep the VM from starting again is found while it still runs (spec 1.11)."""
    from _claude_sandbox.vm import checks as vm_checks

    document = vm_document.read(instance)
    change = reconfigure.plan_change(ctx, config, document).document
    vm_shares.check_shares(change)
    # On the ports that it forwards now it listens itself.
    own = {port.host for port in vm_lima_yaml.ports_of(document)} if instance.status != STOPPED else set()
    vm_checks.check_ports(tuple(port for port in vm_lima_yaml.ports_of(change) if port.host not in own))
    if instance.status != UNREADABLE:
        vm_checks.check_configuration_and_disk(ctx, instance.name, document)


@dataclass
class Outcome:
    """What was done of a list of sandboxes, and what failed: one failure does not keep the rest from it."""

    done: list[Sandbox] = field(default_factory=list)
    failed: list[ClaudeSandboxError] = field(default_factory=list)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Around the work on one of them."""
        try:
            yield
        except ClaudeSandboxError as error:
            self.failed.append(error)


def stop_all(ctx: Context, *, force: bool = False) -> Outcome:
    """Stop each of our running sandboxes. Raises LimaError when Lima does not say which there are."""
    outcome = Outcome()
    for instance in vm_lookup.list_ours(ctx):
        project = project_of(instance)
        assert project is not None
        with outcome.going_on(), project_lock(ctx, project):
            stopped = _stop_one(ctx, instance.name, force=force)
            outcome.done += [stopped] if stopped else []
    return outcome


def _stop_one(ctx: Context, name: str, *, force: bool) -> Sandbox | None:
    """None when it was stopped already. The project's lock is held."""
    current = ctx.lima.get(name)
    if current is None:
        return None
    if current.status == STOPPED and not force and not vm_processes.running(current.dir):
        return None
    if not force:
        _working_or_cancel(ctx, current)
    vm_stop.stop(ctx, current, force=force)
    return Sandbox.of(ctx.lima.get(name) or current)


def stop_base(ctx: Context, base: Instance) -> None:
    """Stop a base VM before it is replaced; asks when Claude works in it. Raises Cancelled."""
    _working_or_cancel(ctx, base)
    vm_stop.stop(ctx, base)
