"""Words for a POSIX shell: the only place where that is done. Only cheap imports: a fast shell has no time for others."""

from __future__ import annotations

TYPE_CHECKING = False  # `collections.abc` takes 2 ms to import
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")


def shell_quote(argv: Sequence[str]) -> str:
    """An argv as one line for a shell."""
    return " ".join(word if word and _PLAIN.issuperset(word) else quoted(word) for word in argv)


def quoted(text: str) -> str:
    """One word for any POSIX shell, whatever it holds.

    >>> print(quoted("it's"))
    'it'\\''s'
    """
    return "'" + text.replace("'", "'\\''") + "'"
