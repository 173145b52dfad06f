"""The verb `prune --cache`: shows what nothing uses, asks, and frees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.cli import render
from _claude_sandbox.config import parsers as config_parsers
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import UsageError
from _claude_sandbox.sandbox import prune_cache as sandbox_prune_cache
from _claude_sandbox.sandbox.prune_cache import Cached
from _claude_sandbox.system import paths, terminal

if TYPE_CHECKING:
    from _claude_sandbox.cli.commands import Call


def prune_cache(call: Call) -> list[Cached]:
    """Free what nothing uses; returns it. Raises UsageError, DiskError, Cancelled."""
    chosen, home = call.chosen, paths.lima_home()
    if chosen.prefix or chosen.orphans:
        raise UsageError("--cache deletes no sandbox: it goes with neither PREFIX nor --orphans.")
    if chosen.forget_home:
        if chosen.dry_run:
            call.tell(f"(forget that VMs in {render.printable(chosen.forget_home)} used disks)")
        else:
            disks_store.forget_home(Path(chosen.forget_home), call.progress.note)
    kept = _kept(call, home)
    doomed = sandbox_prune_cache.freeable(home)
    if not chosen.json:
        for each in doomed:
            print(f"  {config_parsers.format_size(each.size)}  {render.printable(each.path)}: {each.what}")
        for line in kept:
            print(f"  kept: {line}")
    if chosen.dry_run:
        if not doomed and not chosen.json:
            print("There is nothing to free.")
        return doomed
    if doomed:
        them = "it" if len(doomed) == 1 else "them"
        call.require(f"Free {them}? What is needed again is made again.")
    return sandbox_prune_cache.free(home, tell=call.progress.note)


def freed(done: Sequence[Cached]) -> str:
    """The last line."""
    size = config_parsers.format_size(sum(each.size for each in done))
    return f"Freed {size}." if done else "There is nothing to free."


def _kept(call: Call, home: Path) -> list[str]:
    """Why disks stay that no VM is seen to use; on a terminal first the question whether they have to.

    `--yes` and `--force` are no answer to that one: who says them has not looked at the mount.
    """
    for gone, why in _waiting(home).items():
        question = (
            f"VMs in {render.printable(gone)} used a disk; that {why}. Was it deleted for good, with its VMs?"
        )
        if not call.chosen.dry_run and not call.chosen.json and terminal.ask(question):
            disks_store.forget_home(gone, call.progress.note)
    return [_reason(disk) for disk in sandbox_prune_cache.kept(home)]


def _waiting(home: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for disk in sandbox_prune_cache.kept(home):
        found |= dict(zip(disk.gone, disk.why, strict=True))
    return found


def _reason(disk: disks_store.Golden) -> str:
    homes = [render.printable(home) for home in disk.gone]
    state = "; ".join(f"{home} {why} now" for home, why in zip(homes, disk.why, strict=True))
    return (
        f"{render.printable(disk.path)}, which VMs of {', '.join(homes)} used; {state}. Mount it, or, if it was "
        f"deleted for good: `claude-sandbox prune --cache --forget-home {os.fspath(homes[0])}`"
    )
