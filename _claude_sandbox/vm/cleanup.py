"""Removing what a killed or failed run left of a VM under construction."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from _claude_sandbox.lima.context import Context
from _claude_sandbox.vm import stop
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.lookup import candidates


def remove_leftovers(ctx: Context, project: Path) -> list[str]:
    """Remove what a killed run left for this project; the names that are free now. The project's lock is held."""
    stop.remove_put_aside(ctx)
    names = [n for n in candidates(ctx, project) if Journal(ctx.lima.home, n).project() == project]
    return [name for name in names if remove_unfinished(ctx, name)]


def remove_unfinished(ctx: Context, name: str) -> bool:
    """Remove a VM that an earlier run did not finish; whether it was one."""
    if not Journal(ctx.lima.home, name).exists():
        return False

    def remove() -> None:
        ctx.progress.note(f"Removing {name}, which an earlier run did not finish.")
        remove_half_made(ctx, name)

    ctx.effects.do(f"remove {name}, which an earlier run did not finish", remove, None)
    return True


def remove_half_made(ctx: Context, name: str) -> None:
    """Remove a VM that its journal says was never ready (or half deleted), and the journal.

    Raises what `vm.stop.remove` raises; then the journal stays, and the next run tries again.
    """
    journal = Journal(ctx.lima.home, name)
    ctx.effects.silently(journal.end_child, None)
    if not (ctx.lima.home / name).is_symlink():  # somebody else's by now
        stop.remove(ctx, name)
    ctx.effects.silently(journal.end, None)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Clean-up runs to its end: a second Ctrl-C waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, lambda _n, _f: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
