"""Sizes in bytes, read and written as Lima does: `8GiB`, `512MiB`; units are binary."""

from __future__ import annotations

import re

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
_UNITS = {"": 1, "k": 1 << 10, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def parse_size(value: object, least: int, most: int = 64 * TIB) -> int:
    """`8GiB`, `8G`, `512MiB` -> bytes, from 1 MiB on in whole MiB. Raises ValueError.

    Whole, because the VM's file says them so: what is asked for again must equal what was written.
    """
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"invalid size {value!r}; use e.g. 8GiB or 512MiB")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    size = round(size / MIB) * MIB if size >= MIB else size
    if not least <= size <= most:
        raise ValueError(f"{value} is out of range; {format_size(least)} to {format_size(most)} is possible")
    return size


def format_size(size: int) -> str:
    """Bytes as Lima writes them: `8GiB`, `1536MiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{round(size / MIB)}MiB" if size >= MIB else f"{size}B"
