"""Which LIMA_HOME is which: behind one path there may be another directory tomorrow, or an empty mount point.

A LIMA_HOME with a disk that is backed by a golden file gets a small file with a random id. The golden file's
record holds that id beside the path. So an emptied LIMA_HOME is distinguished from one whose file system is not
mounted, also when somebody has made new VMs below the mount point meanwhile. Lima skips names that begin
with a dot (pkg/store, Instances).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from _claude_sandbox.system.files import write_atomic

MARKER = ".claude-sandbox-home"


def identity(home: Path) -> str | None:
    """The id of the LIMA_HOME at `home`, 32 hexadecimal digits; None when it has none or is not there."""
    try:
        with (home / MARKER).open("rb") as file:
            text = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return None
    return text if re.fullmatch("[0-9a-f]{32}", text) else None


def identify(home: Path) -> str | None:
    """`identity`, made if there is none yet; None where nothing can be written. The store's lock is held."""
    found = identity(home)
    if found is None and os.path.isdir(home):
        made = os.urandom(16).hex()
        try:
            write_atomic(home / MARKER, made.encode() + b"\n", 0o644)
        except OSError:
            return None
        return made
    return found


def forget(home: Path) -> None:
    """Take the id away."""
    (home / MARKER).unlink(missing_ok=True)


def absence(home: Path, known: str | None) -> str | None:
    """Why what is at `home` now is not the LIMA_HOME that had the id `known`; None: it is that one.

    Without an id (a record of an older claude-sandbox) anything but an empty directory is. Raises OSError.
    """
    try:
        empty = all(name == MARKER for name in os.listdir(home))
    except (FileNotFoundError, NotADirectoryError):
        return "is not there"
    if known is not None and identity(home) == known:
        return None
    if empty:
        return "is empty"
    return "is another directory than it was" if known is not None else None
