"""What long work reports while it runs. The verbs report to a `Progress`; the fronts render it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Progress:
    """A silent one, and the interface. `stage` is nested in code, shown one after the other."""

    @contextlib.contextmanager
    def stage(self, title: str, usual: float | None = None) -> Iterator[Callable[[str], None]]:
        """A step that may take long; yields a function that says what is happening now.

        The front shows the title, the current text and, at the end, how long it took and each text's
        part of it. `usual` is how long it takes as a rule (seconds), if that is known.
        """
        yield lambda _text: None

    def note(self, text: str) -> None:
        """Something worth knowing, once."""

    def warn(self, text: str) -> None:
        """A warning; the work continues. The same text is shown once."""

    def ask(self, question: str) -> bool | None:
        """A yes/no question, no by default; None when there is nobody to ask, or not now."""
        return None
