"""The mark in a VM's Lima config that says that we made it, and for which project.

It is `param.csMark`, one printable line:

    2;sandbox;claude-sandbox-app;L2hvbWUvbWUvYXBw;2049;131;1764000000123456789

schema version; kind; the instance's own name; the project's resolved path in URL-safe base64 (its
bytes: any path fits); device, inode and time of birth (ns) of the project directory. Schema 1, of older
versions and of every tools VM, has no birth. A mark that names another instance is a copy (a hand-made
`limactl clone`) and not ours (facts/checked.md).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system.files import birth

SCHEMA = 2
READABLE = (1, 2)
MARK_PARAM = "csMark"
SANDBOX, TOOLS = "sandbox", "tools"


@dataclass(frozen=True)
class Mark:
    """What a VM's Lima config says about whose it is. `device`, `inode` as in stat(2); `born`: system.files.birth, or 0."""

    kind: str
    name: str
    project: Path | None = None
    device: int = 0
    inode: int = 0
    born: int = 0

    def encode(self) -> str:
        path = base64.urlsafe_b64encode(os.fsencode(self.project)).decode() if self.project else ""
        text = f"{self.kind};{self.name};{path};{self.device};{self.inode}"
        return f"2;{text};{self.born}" if self.born else f"1;{text}"

    @classmethod
    def decode(cls, text: str) -> Mark | None:
        """None for what is not a mark of this schema."""
        parts = text.split(";")
        if (parts[0], len(parts)) not in (("1", 6), ("2", 7)) or parts[1] not in (SANDBOX, TOOLS):
            return None
        try:
            raw = base64.b64decode(parts[3], altchars=b"-_", validate=True)
            device, inode, born = int(parts[4]), int(parts[5]), int(parts[6]) if parts[6:] else 0
        except (ValueError, binascii.Error):
            return None
        return cls(parts[1], parts[2], Path(os.fsdecode(raw)) if raw else None, device, inode, born)

    def same_directory(self, path: Path) -> bool | None:
        """Whether `path` is the marked directory (after a move, say); None when that cannot be said.

        An inode alone proves nothing: ext4 gives a new directory the one that was freed last.
        """
        try:
            info, born = path.stat(), birth(path)
        except OSError:
            return False
        if (info.st_dev, info.st_ino) != (self.device, self.inode):
            return False
        return born == self.born if born and self.born else None


def mark_of(instance: Instance) -> Mark | None:
    """Our mark, only if it names this very instance (spec 4.2)."""
    mark = Mark.decode(instance.param.get(MARK_PARAM, ""))
    return mark if mark is not None and mark.name == instance.name else None


def kind_of(instance: Instance) -> str | None:
    """SANDBOX or TOOLS; None for a VM that is not ours."""
    mark = mark_of(instance)
    return mark.kind if mark is not None else None


def project_of(instance: Instance) -> Path | None:
    """The project of one of our sandboxes."""
    mark = mark_of(instance)
    return mark.project if mark is not None else None


def mark_schema(text: str) -> int | None:
    """The schema version that a mark names, of any of our versions; None for no mark."""
    match = re.match(r"(\d{1,6});", text)
    return int(match[1]) if match else None


def mark_for(name: str, project: Path) -> Mark:
    """The mark of a sandbox of `project` (a resolved, existing directory)."""
    info = project.stat()
    return Mark(SANDBOX, name, project, info.st_dev, info.st_ino, birth(project))
