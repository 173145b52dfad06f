"""Which name a project's VM gets."""

from __future__ import annotations

import os
import re
from pathlib import Path

PREFIX = "claude-sandbox-"
HASH_LENGTH = 8


def slug(basename: str) -> str:
    """A directory's basename as the last part of a VM name."""
    return re.sub(r"[^a-z0-9]+", "-", basename.lower()).strip("-") or "project"


def vm_name(project: Path, longest: int, *, with_hash: bool = False) -> str:
    """The name of a project's VM; `with_hash` is for a name that another project already has.

    >>> vm_name(Path("/home/me/My App"), 58)
    'claude-sandbox-my-app'
    """
    base = "root" if project == Path("/") else slug(project.name)
    import hashlib  # 3 ms, which a list of VMs need not pay

    tail = "-" + hashlib.sha256(os.fsencode(project)).hexdigest()[:HASH_LENGTH] if with_hash else ""
    room = longest - len(PREFIX) - len(tail)
    return PREFIX + base[: max(room, 1)].rstrip("-") + tail
