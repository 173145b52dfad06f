"""How long the long steps took on this host, for an estimate of the next one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _claude_sandbox.lima.context import Context
from _claude_sandbox.system import files, jsonio, paths

_KEPT = 5  # runs; an older one says little about the host as it is today


@contextlib.contextmanager
def stage(ctx: Context, title: str, kind: str) -> Iterator[Callable[[str], None]]:
    """A stage of `ctx.progress` with an estimate; `kind` names the step, such as "start tools-vm".

    What fails is not counted.
    """
    begun = time.monotonic()
    with ctx.progress.stage(title, usual(kind)) as say:
        yield say
    ctx.effects.silently(lambda: _note(kind, time.monotonic() - begun), None)


def usual(kind: str) -> float | None:
    """Seconds: the median of the last runs here; None before the first."""
    runs = _runs(_known(), kind)
    return sorted(runs)[len(runs) // 2] if runs else None


def _file() -> Path:
    return paths.state_dir() / "timings.json"


def _known() -> dict[str, Any]:
    return jsonio.read_object(_file()) or {}


def _runs(known: dict[str, Any], kind: str) -> list[float]:
    value = known.get(kind)
    runs = value if isinstance(value, list) else []
    return [float(run) for run in runs if isinstance(run, int | float) and run >= 0][-_KEPT:]


def _note(kind: str, seconds: float) -> None:
    """Two programs at once may lose one of their notes: no loss."""
    known = _known()
    known[kind] = [*_runs(known, kind), round(seconds, 1)][-_KEPT:]
    with contextlib.suppress(OSError):  # a full disk spoils nothing but the estimate
        files.write_json(_file(), known)
