"""JSON that another program, a guest or a crash may have spoilt: an object, or None. Who reads from a guest bounds
the bytes (`Runner.run`'s limit).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse_object(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None for anything else, however it is broken."""
    if raw is None:
        return None
    try:
        value = _DECODER.decode(raw.decode(json.detect_encoding(raw), "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when it is missing or unreadable, too."""
    try:
        return parse_object(path.read_bytes())
    except OSError:
        return None


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any] | None, bytes]]:
    """Each line with its object, None for one that is broken. A last line without an end is not there yet."""
    for line in lines:
        if not line.endswith(b"\n"):
            return
        yield parse_object(line), line


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, bytes]]:
    """The lines of a file; there are none when it is missing. Raises OSError otherwise."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        yield from parse_lines(file)
