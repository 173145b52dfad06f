"""Where sockets and one-shot files live: apart from `paths`, whose import `warm` has no time for."""

from __future__ import annotations

import os
import stat
import sys

APP = "claude-sandbox"


def path() -> str:
    """A directory with a short path (sockets end at 104 bytes on macOS), gone after a reboot."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform == "linux" and base and len(base) < 40 and os.access(base, os.W_OK):
        return f"{base}/{APP}"
    return f"/tmp/{APP}-{os.getuid()}"


def is_private(directory: str) -> bool:
    """Whether it is a directory of ours that nobody else can write. Raises OSError."""
    info = os.lstat(directory)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022
