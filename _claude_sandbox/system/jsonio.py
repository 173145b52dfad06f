"""JSON that is not ours, read with care."""

from __future__ import annotations

import json
from typing import Any


def parse_object(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None for anything else, however it is broken."""
    if raw is None:
        return None

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
