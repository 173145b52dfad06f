"""Text that is not ours, made fit for a terminal, a notification, a tmux option or a log: the one stripper.

Whatever a guest, a file's name or another program wrote passes `printable` before a terminal gets it. An
escape sequence in it could set the clipboard (OSC 52) and the window's title, clear the screen or answer for
the user; a bidi override shows other words than those that are there. A session on the user's terminal
and `shell -- CMD` are the exceptions: they are the guest's own screen.
"""

from __future__ import annotations

import re

JOINERS = "\u200c\u200d"  # of scripts and emoji; harmless
_NUMBER = re.compile(r"[0-9]{1,15}")  # ASCII: int() takes other digits too, and float() overflows


def printable(text: object, *, instead: str | None = None, keep: str = "") -> str:
    """`text` with only printable characters, and those in `keep`.

    Not printable are control characters (C0, DEL, C1), line and paragraph separators, bidi and other format
    characters, surrogates, and what Unicode has not assigned. Each becomes `instead`, or is shown as its
    Python escape where that is None.

    >>> printable("\\x1b]0;t\\x07\\u202e"), printable("a\\nb\\x9b", instead="?", keep="\\n")
    ('\\\\x1b]0;t\\\\x07\\\\u202e', 'a\\nb?')
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else _shown(c) if instead is None else instead for c in text
    )


def one_line(text: str, *, instead: str = " ", keep: str = "") -> str:
    """`printable` on one line: every run of blanks, tabs and line ends is one blank."""
    return " ".join(printable(" ".join(text.split()), instead=instead, keep=keep).split())


def clean(text: object, limit: int) -> str:
    """`text` on one line without control characters, bidi overrides and the like, cut to `limit` characters.

    >>> clean("a\\x1b[31mred\\n\\u202edesrever", 40)
    'a[31mred desrever'
    """
    if not isinstance(text, str):
        return ""
    text = text[: 4 * limit]
    if not text.isprintable():
        text = one_line(text, instead="", keep=JOINERS)
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def for_log(raw: bytes) -> bytes:
    """What a program wrote, as lines of a log that somebody may show on a terminal."""
    return printable(raw.decode("utf-8", "backslashreplace").replace("\r\n", "\n"), keep="\n\t").encode()


def json_text(document: str) -> str:
    """A JSON document with what is not printable in its strings as \\u escapes; it means the same."""
    if document.isprintable():
        return document
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in document)


def number(text: str) -> int | None:
    """A whole number of at most 15 ASCII digits, blanks around it left out; None for anything else."""
    found = text.strip(" \t\r\n")
    return int(found) if _NUMBER.fullmatch(found) else None


def _shown(character: str) -> str:
    return repr(character)[1:-1]


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
