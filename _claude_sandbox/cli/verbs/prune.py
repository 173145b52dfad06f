"""The verb `prune`: deletes sandboxes by name prefix or of projects that are gone; `--cache` frees what nothing uses."""

from __future__ import annotations

import os
from pathlib import Path

from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs.sandbox import busy_words, count, show_outcome
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import UsageError
from _claude_sandbox.sandbox import prune_cache
from _claude_sandbox.sandbox import removal as sandbox_removal
from _claude_sandbox.system import paths, terminal
from _claude_sandbox.system.units import format_size


def prune(call: Invocation) -> int:
    if call.options.cache:
        return _prune_cache(call)
    if call.options.forget_home:
        raise UsageError("--forget-home goes with --cache.")
    doomed = sandbox_removal.prunable(call.ctx, call.options.prefix, orphans=call.options.orphans)
    if doomed:
        names = "\n".join(render.sandbox_line(each) for each in doomed)
        if not call.options.json:
            print(f"{count(len(doomed))} to delete:\n{names}")
        busy = busy_words([each.name for each in doomed])
        them = "it" if len(doomed) == 1 else "them"
        call.confirm_loss(f"{busy}Delete {them} with Claude's conversations?")
    nothing = "There is nothing to delete."
    if not doomed and call.options.dry_run and not call.options.json:
        print(nothing)
    outcome = sandbox_removal.prune(call.ctx, doomed)
    return show_outcome(call, outcome, f"Deleted {count(len(outcome.done))}." if doomed else nothing)


# -- the cache -----------------------------------------------------------------------------------


def _prune_cache(call: Invocation) -> int:
    """Free what nothing uses. Raises UsageError, DiskError, Cancelled."""
    options, home = call.options, paths.lima_home()
    if options.prefix or options.orphans:
        raise UsageError("--cache deletes no sandbox: it goes with neither PREFIX nor --orphans.")
    if options.forget_home:
        if options.dry_run:
            call.report(f"(forget that VMs in {render.printable(options.forget_home)} used disks)")
        else:
            disks_store.forget_home(Path(options.forget_home), call.progress.note)
    kept = _kept(call, home)
    doomed = prune_cache.freeable(home)
    nothing = "There is nothing to free."
    if not options.json:
        for each in doomed:
            print(f"  {format_size(each.size)}  {render.printable(each.path)}: {each.what}")
        for line in kept:
            print(f"  kept: {line}")
        if options.dry_run and not doomed:
            print(nothing)
    if options.dry_run:
        return call.show(doomed, "")
    if doomed:
        them = "it" if len(doomed) == 1 else "them"
        call.confirm_loss(f"Free {them}? It is rebuilt or downloaded again when needed.")
    done = prune_cache.free(home, note=call.progress.note)
    return call.show(done, f"Freed {format_size(sum(each.size for each in done))}." if done else nothing)


def _kept(call: Invocation, home: Path) -> list[str]:
    """Why disks stay that no VM is seen to use; on a terminal the user is first asked whether they have to.

    `--yes` and `--force` do not answer that one: whoever types them has not looked at the mount.
    """
    waiting: dict[Path, str] = {}
    for disk in prune_cache.kept(home):
        waiting |= dict(zip(disk.gone, disk.why, strict=True))
    for gone, why in waiting.items():
        question = (
            f"VMs in {render.printable(gone)} used a disk; that {why}. Was it deleted for good, with its VMs?"
        )
        if not call.options.dry_run and not call.options.json and terminal.ask(question):
            disks_store.forget_home(gone, call.progress.note)
    return [_reason(disk) for disk in prune_cache.kept(home)]


def _reason(disk: disks_store.GoldenFile) -> str:
    homes = [render.printable(home) for home in disk.gone]
    state = "; ".join(f"{home} {why} now" for home, why in zip(homes, disk.why, strict=True))
    return (
        f"{render.printable(disk.path)}, which VMs of {', '.join(homes)} used; {state}. Mount it, or, if it was "
        f"deleted for good: `claude-sandbox prune --cache --forget-home {os.fspath(homes[0])}`"
    )
