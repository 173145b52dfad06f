"""Making a project's VM: by clone of a base VM, or from a template.

Kill-safe by order (docs/reliability.md names each step): journal, clone, our lima.yaml, first start,
first-boot work, journal removed. Until the last step the VM counts as half-made, and the next run
removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.config.table import Config
from _claude_sandbox.disks import linked_clone, qcow2
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.disks.users import DISK
from _claude_sandbox.errors import (
    ClaudeSandboxError,
    CreateError,
    RefusedError,
    SandboxExistsError,
    UsageError,
)
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, STOPPED, Instance
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.units import GIB, format_size, parse_size
from _claude_sandbox.vm import checks, cleanup, estimates, first_boot, lima_yaml, start, stop, template_keys
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import shares as vm_shares
from _claude_sandbox.vm.early import EarlySetup
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.locks import base_lock, names_lock
from _claude_sandbox.vm.lookup import free_name
from _claude_sandbox.vm.mark import kind_of, mark_of
from _claude_sandbox.vm.origin import DEFAULT_BASE, DEFAULT_TEMPLATE, Origin
from _claude_sandbox.vm.target import Target

SPARE = GIB  # bytes that must stay free on the disk after a clone


def base_of(ctx: Context, config: Config) -> Instance | None:
    """The base VM to clone; None: make it from a template. Raises CreateError."""
    if config.template is not None:
        return None
    name = config.clone_from or DEFAULT_BASE
    instance = ctx.lima.get(name)
    if instance is None and config.clone_from:
        raise CreateError(
            f"Base VM not found: {name}",
            details=f"It was asked for by {config.sources.get('clone-from')}; LIMA_HOME is {ctx.lima.home}",
            resolution="See `limactl list`, or build one with `claude-sandbox rebuild-tools-vm`.",
        )
    if instance is not None and instance.status not in (RUNNING, STOPPED):
        raise CreateError(
            f"Base VM {name} is {instance.status}.",
            resolution=f"Fix it (`limactl stop -f {name}`), or build it again: `claude-sandbox rebuild-tools-vm`",
        )
    return instance


def create(
    ctx: Context,
    config: Config,
    base: Instance | None,
    early: EarlySetup[Any] | None = None,
) -> Target:
    """Make the VM of `config.project`, which has none, and start it. The project's lock is held.

    `early` is started as soon as the guest answers.
    Raises CreateError, RefusedError, SandboxExistsError; nothing half-made is left then.
    """
    shares = vm_shares.shares_for(ctx, config)
    checks.check_ports(config.ports)
    foreign = base is None or mark_of(base) is None
    ca_files = host_ca_files(config)
    with ctx.effects.hold(names_lock(ctx.progress.note)):
        freed = cleanup.remove_leftovers(ctx, config.project)
        name = free_name(ctx, config.project, freed)
        mark = vm_mark.mark_for(name, config.project)
        journal = Journal(ctx.lima.home, name)
        ctx.effects.silently(lambda: journal.begin(config.project), None)
    spec = lima_yaml.SandboxSpec(
        mark=mark,
        user=ctx.user,
        shares=shares,
        ports=config.ports,
        cpus=config.cpus or default_cpus(),
        memory=config.memory or default_memory(),
        disk=config.disk,
        proxy=config.proxy,
        ca_files=ca_files,
        macos=ctx.macos,
    )
    try:
        if base is None:
            document = _from_template(ctx, config, spec, journal)
        else:
            document = _clone(ctx, base, spec, journal, full=config.full_clone)
        source = base.name if base else config.template or DEFAULT_TEMPLATE
        begun = early or EarlySetup(ctx)
        kind = f"first start from {source}"
        instance = start.start(
            ctx, name, document, journal, kind=kind,
            on_ssh_ready=lambda coming: begun.start(Target.of(config, coming, document), shares),
        )  # fmt: skip
        first_boot.finish(ctx, instance, shares, begun, foreign=foreign, packages=config.packages)
        origin = Origin(base.name if base else None, None if base else source, config.packages)
        ctx.effects.silently(lambda: origin.save(instance.dir), None)
    except BaseException as error:
        with cleanup.uninterrupted():
            left = _could_not_remove(ctx, name)
        raise _as_create_error(error, name, left) from error
    ctx.effects.silently(journal.end, None)
    return Target.of(config, instance, document)


def _could_not_remove(ctx: Context, name: str) -> str:
    """Remove what was begun; "" or, where that failed, why: the step's own failure is the error."""
    try:
        cleanup.remove_half_made(ctx, name)
    except ClaudeSandboxError as error:
        ctx.progress.warn(f"What was begun could not be removed; the next run tries again. {error}")
        return str(error)
    return ""


def _as_create_error(error: BaseException, name: str, left: str) -> BaseException:
    """A failure of a step as a CreateError; what the user asked for wrongly stays what it is."""
    asked_wrongly = UsageError | RefusedError | SandboxExistsError
    if isinstance(error, ClaudeSandboxError) and not isinstance(error, CreateError | asked_wrongly):
        return CreateError(
            f"The sandbox {name} could not be made; what was begun "
            + ("could not be removed." if left else "has been removed."),
            details=f"{error.brief}\n{error.details or ''}".strip(),
            resolution=error.resolution,
        )
    return error


# -- the two ways --------------------------------------------------------------------------------


def _clone(
    ctx: Context, base: Instance, spec: lima_yaml.SandboxSpec, journal: Journal, *, full: bool
) -> lima_yaml.Document:
    name = spec.mark.name
    with ctx.effects.hold(base_lock(base.name, ctx.progress.note)):
        source = vm_document.read(base)
        document = lima_yaml.build(_cleaned(ctx, source, base), spec)
        _check_disk_size(source, spec.disk, base.name)
        disks_store.check_backing_files(ctx.lima.home, base.dir, ctx.progress.note)
        running = ctx.lima.get(base.name)
        was_running = running is not None and running.status == RUNNING
        if running and was_running:
            stop.stop(ctx, running)
        try:
            if not full and mark_of(base) is not None:
                linked_clone.move_disk_to_store(ctx, base)
            _check_space(ctx, base, full=full)
            # Shared: no `prune --cache` may look for users of a disk while one is being made.
            with (
                estimates.stage(ctx, f"Cloning {base.name} to {name}", f"clone {base.name}"),
                ctx.effects.hold(disks_store.store_lock(ctx.progress.note, shared=True)),
            ):
                ctx.lima.clone(base.name, name, on_start=journal.note_child)
            _own_or_shared(ctx, base, ctx.lima.home / name, full=full)
        finally:
            if was_running:
                with ctx.progress.stage(f"Starting {base.name} again"):
                    ctx.lima.start(base.name, env=ctx.start_env())
    vm_document.write(ctx, ctx.lima.home / name, document)
    return document


def _own_or_shared(ctx: Context, base: Instance, directory: Path, *, full: bool) -> None:
    """What the copy shares with its base besides the disk; a full clone shares nothing at all."""
    if full:
        linked_clone.make_full(ctx, directory)
    elif mark_of(base) is not None and not ctx.macos:
        ctx.effects.do(
            f"link kernel and initrd of {directory.name} to those of {base.name}",
            lambda: linked_clone.share_boot_files(base.dir, directory),
            None,
        )


def _cleaned(ctx: Context, source: lima_yaml.Document, base: Instance) -> lima_yaml.Document:
    """The base's document; what our tools VM ran once to build itself is done in its disk.

    What a base of the user's has of the host besides (networks, devices) is not taken over; that is said.
    """
    left_out = template_keys.allowed(source)[1]
    if left_out:
        ctx.progress.note(f"{base.name} has what a sandbox does not get: {', '.join(left_out)}.")
    vm_shares.check_base(source)
    if kind_of(base) == vm_mark.TOOLS:
        return {k: v for k, v in source.items() if k not in ("provision", "probes")}
    if mark_of(base) is not None:  # our sandbox as base: its size is its own, its shares are not
        return {k: v for k, v in source.items() if k not in ("cpus", "memory")}
    return source


def _from_template(
    ctx: Context, config: Config, spec: lima_yaml.SandboxSpec, journal: Journal
) -> lima_yaml.Document:
    locator = config.template or DEFAULT_TEMPLATE
    file = paths.runtime_dir() / f"{spec.mark.name}.yaml"
    document = lima_yaml.build(_template(ctx, config, locator, file), spec)
    ctx.write(file, vm_document.dump(document))
    try:
        with estimates.stage(ctx, f"Creating {spec.mark.name} from {locator}", f"create {locator}"):
            ctx.lima.create(spec.mark.name, file, on_start=journal.note_child)
    finally:
        file.unlink(missing_ok=True)
    return document


def _template(ctx: Context, config: Config, locator: str, file: Path) -> lima_yaml.Document:
    """A template with its bases merged in, after all checks. `file` is for the text of one that a guest can write."""
    source = vm_shares.template_source(ctx, config, locator)
    if source.text is None:
        document = ctx.lima.template(locator)
    else:
        try:
            write_atomic(file, source.text.encode(), durable=False)
            document = ctx.lima.template(str(file))
        finally:
            file.unlink(missing_ok=True)
    vm_shares.check_template(ctx, config, document, source)
    return document


# -- what the VM gets ----------------------------------------------------------------------------


def default_cpus() -> int:
    return max(1, (os.cpu_count() or 2) // 2)


def default_memory() -> int:
    """Half of the host's memory, 1 to 16 GiB, in whole GiB (bytes)."""
    import psutil

    return max(1, min(16, int(psutil.virtual_memory().total // 2 // GIB))) * GIB


def host_ca_files(config: Config) -> tuple[str, ...]:
    """The host's CA bundle, when the user asked for it (spec 3.5)."""
    if not config.ca:
        return ()
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        file = os.environ.get(name)
        if file and Path(file).is_file():
            return (file,)
    usual = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
    found = next((f for f in usual if Path(f).is_file()), None)
    if found is None:
        raise CreateError("`ca: host` is set, but no CA bundle was found on this host.")
    return (found,)


def _check_disk_size(source: Mapping[str, Any], disk: int | None, base: str) -> None:
    have = parse_size(source.get("disk") or "100GiB", 1)
    if disk is not None and disk < have:
        raise UsageError(
            f"--disk {format_size(disk)} is smaller than the base VM {base}, which has {format_size(have)}: "
            "a disk can only grow."
        )


def _check_space(ctx: Context, base: Instance, *, full: bool) -> None:
    """Raise CreateError when the clone cannot fit. Bytes that files really use, holes not counted."""
    import shutil

    with contextlib.suppress(FileNotFoundError):
        used = linked_clone.size_of(f for f in base.dir.iterdir() if f.is_file())
        if full:
            used += linked_clone.size_of(qcow2.chain(base.dir / DISK)[1:])
        free = shutil.disk_usage(ctx.lima.home).free
        if not ctx.macos and free < used + SPARE:
            raise CreateError(
                f"Not enough space in {ctx.lima.home}: {format_size(free)} free.",
                details=f"A clone of {base.name} takes {format_size(used)}, and 1GiB should stay free.",
                resolution="Free some space; `claude-sandbox list` shows sandboxes that could be deleted.",
            )
