"""What a verb changes besides running a command: carried out, or in a dry run described.

No verb asks whether it is a dry run: it hands over what it does, with words for it. Commands are described by
system.run.DryRunner in the same way, and questions are really asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from _claude_sandbox.system.files import write_atomic

T = TypeVar("T")


class Effects:
    """Carries everything out."""

    def do(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """The result of `action`. `what` says in the imperative what it does; `otherwise` is what it counts for
        in a dry run."""
        return action()

    def silently(self, action: Callable[[], T], otherwise: T) -> T:
        """The same for what a plan does not mention: our own bookkeeping, and waiting for what was done."""
        return action()

    def hold(self, lock: contextlib.AbstractContextManager[Any]) -> contextlib.AbstractContextManager[Any]:
        return lock

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file."""
        self.do(f"write {path}", lambda: write_atomic(path, data), None)


class DryEffects(Effects):
    """Describes, a line each, and changes nothing."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def do(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        self._show(f"({what})")
        return otherwise

    def silently(self, action: Callable[[], T], otherwise: T) -> T:
        return otherwise

    def hold(self, lock: contextlib.AbstractContextManager[Any]) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()
