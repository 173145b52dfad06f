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


def remove_unfinished(ctx: Context, project: Path) -> None:
    """Remove what a killed run of ours left for this project. The project's lock is held."""
    stop.finish(ctx)
    for name in candidates(ctx, project):
        journal = Journal(ctx.lima.home, name)
        if journal.exists() and journal.project() == project and not ctx.dry:
            ctx.progress.note(f"Removing {name}, which an earlier run did not finish.")
            remove_half_made(ctx, name)


def remove_half_made(ctx: Context, name: str) -> None:
    """Remove a VM that its journal says was never ready (or half deleted), and the journal.

    Raises what `vm.stop.remove` raises; then the journal stays, and the next run tries again.
    """
    if ctx.dry:
        return
    journal = Journal(ctx.lima.home, name)
    journal.end_child()
    if not (ctx.lima.home / name).is_symlink():  # somebody else's by now
        stop.remove(ctx, name)
    journal.end()


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
