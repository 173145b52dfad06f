"""The verb `uninstall`: shows what claude-sandbox put on this host, asks, and removes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from _claude_sandbox.cli import render, servers
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.disks import lima_homes
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import ClaudeSandboxError, HostSetupError
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.sandbox import removal as sandbox_removal
from _claude_sandbox.sandbox import summary
from _claude_sandbox.system import paths, runtime_dir
from _claude_sandbox.system.units import format_size
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.mark import kind_of


def uninstall(call: Invocation) -> int:
    """VMs with our mark, then our directories. Never the settings directory or a project's file."""
    sandboxes, bases = _machines(call)
    directories = [d for d in _directories() if d.exists()]
    disks = _disks()
    stays = paths.home() / ".claude-sandbox"
    value = {
        "sandboxes": sandboxes, "tools_vms": [base.name for base in bases], "directories": directories,
        "golden_disks": [disk.path for disk in disks], "stays": [stays], "removed": not call.options.dry_run,
    }  # fmt: skip
    call.report(_shown(sandboxes, bases, directories, disks, stays))
    if call.options.dry_run:
        return call.show(value, "")
    call.require_yes("Remove all that?", "Nothing was removed.")
    _remove_machines(call, sandboxes, bases)
    kept = _free_disks(call)
    for directory in directories:
        _remove(directory, kept)
    if not kept:
        lima_homes.forget(paths.lima_home())
    for each in kept:
        users = ", ".join([*each.users, *map(str, each.gone)])
        call.report(f"This stays, for {render.printable(users)}: {each.path}")
    value["stays"] = [stays, *(each.path for each in kept)]
    return call.show(
        value,
        "Removed. What is left is the program itself: your checkout, or `pipx uninstall claude-sandbox`.",
    )


def _shown(
    sandboxes: Sequence[summary.Sandbox], bases: Sequence[Instance], directories: Sequence[Path],
    disks: Sequence[disks_store.GoldenFile], stays: Path,
) -> str:  # fmt: skip
    """What would be removed, and what stays."""
    lines = ["This would be removed:", *map(render.sandbox_line, sandboxes)]
    lines += [f"  {base.name}: the tools VM" for base in bases]
    lines += [f"  {directory}" for directory in directories]
    if disks:
        size = format_size(sum(each.size for each in disks))
        count = f"{len(disks)} golden disk" + ("" if len(disks) == 1 else "s")
        lines.append(f"    ({count} in it, {size}; one that another VM needs stays)")
    return "\n".join([*lines, f"This stays: {stays} (your settings and login), and every project."])


def _remove_machines(
    call: Invocation, sandboxes: Sequence[summary.Sandbox], bases: Sequence[Instance]
) -> None:
    """VMs and servers. What fails does not keep the rest; then our directories, which it needs, stay."""
    outcome = sandbox_removal.prune(call.ctx, list(sandboxes)) if sandboxes else sandbox_lifecycle.Outcome()
    with outcome.going_on():
        servers.stop_all()
    for base in bases:
        with outcome.going_on():
            call.ctx.lima.unprotect(base.name)  # we protected it ourselves
            vm_stop.remove(call.ctx, base.name)
    if outcome.failed:
        raise ClaudeSandboxError(
            "Not everything was removed; our directories stay, for what is left needs them.",
            details="\n".join(map(str, outcome.failed)),
            resolution="Then run `claude-sandbox uninstall` again.",
        )


def _disks() -> list[disks_store.GoldenFile]:
    try:
        return disks_store.list_files(paths.lima_home())
    except ClaudeSandboxError:
        return []


def _free_disks(call: Invocation) -> list[disks_store.GoldenFile]:
    """Free the golden disks that nothing uses any more; returns those that back a VM which is not ours."""
    try:
        disks_store.remove_unused(paths.lima_home())
        return [each for each in disks_store.list_files(paths.lima_home()) if each.path.exists()]
    except ClaudeSandboxError as error:
        raise ClaudeSandboxError(
            f"{paths.golden_dir()} was left alone, and with it our directories: {error.brief}",
            details=error.details,
            resolution=error.resolution,
        ) from error


def _remove(directory: Path, kept: Sequence[disks_store.GoldenFile]) -> None:
    """A directory, without the golden disks that stay (and their records)."""
    if not kept or directory != paths.data_dir():
        shutil.rmtree(directory)
        return
    for entry in directory.iterdir():
        if entry != paths.golden_dir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _machines(call: Invocation) -> tuple[list[summary.Sandbox], list[Instance]]:
    """Our sandboxes and tools VMs; none when Lima is not there. Raises ClaudeSandboxError when it does not answer."""
    try:
        instances = call.ctx.lima.list()
    except HostSetupError:
        return [], []
    except ClaudeSandboxError as error:
        raise ClaudeSandboxError(
            f"Nothing was removed: which VMs are there is not known. {error.brief}",
            details=error.details,
            resolution=error.resolution,
        ) from error
    bases = [i for i in instances if kind_of(i) == vm_mark.TOOLS]
    return summary.sandboxes(call.ctx), bases


def _directories() -> list[Path]:
    import platformdirs

    return [
        paths.data_dir(),
        paths.cache_dir(),
        platformdirs.user_state_path(runtime_dir.APP),
        paths.config_file().parent,
        *([Path(place)] if (place := runtime_dir.path()) else []),
    ]
