"""How a path is looked up, name by name: where it leads, and through which directories.

Whoever can write a directory decides where a name in it leads. So a path is safe from a guest only when
no name of it, nor of a symlink on its way, is looked up in a directory that the guest can write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode, as in stat(2)."""

_MOST_LINKS = 40  # as the kernel's


@dataclass(frozen=True)
class Looked:
    """A path as it was looked up. `through`: every directory in which a name was looked up, resolved;
    `links`: those of them in which the name was a symlink."""

    real: Path
    through: tuple[Path, ...]
    links: tuple[Path, ...] = ()

    def passes(self, roots: Iterable[Path]) -> Path | None:
        """The first of `roots` in or below which a name of this path was looked up."""
        return _first(self.through, roots)

    def follows_link_in(self, roots: Iterable[Path]) -> Path | None:
        """The first of `roots` in or below which a symlink was followed."""
        return _first(self.links, roots)


def _first(directories: Iterable[Path], roots: Iterable[Path]) -> Path | None:
    known = tuple(directories)
    return next((root for root in roots if any(d.is_relative_to(root) for d in known)), None)


def look(path: Path) -> Looked:
    """Look an absolute path up; what is not there counts as a plain name. Raises ValueError for a loop."""
    names = list(reversed(path.parts[1:]))
    current, budget = Path("/"), _MOST_LINKS
    through: dict[Path, None] = {}
    links: dict[Path, None] = {}
    while names:
        name = names.pop()
        if name == "..":
            current = current.parent
            continue
        through[current] = None
        target = _target(current / name)
        if target is None:
            current = current / name
            continue
        links[current] = None
        budget -= 1
        if budget < 0:
            raise ValueError(f"a loop of symlinks in {path}")
        current = Path("/") if target.is_absolute() else current
        names += reversed([part for part in target.parts if part != "/"])
    return Looked(current, tuple(through), tuple(links))


def _target(path: Path) -> Path | None:
    try:
        return Path(os.readlink(path))
    except OSError:
        return None


# macOS, which has no O_PATH: with O_DIRECTORY for search only (xnu bsd/sys/fcntl.h), as /Users/NAME of mode 711
# allows it to others.
_O_EXEC = 0x40000000


def identity(directory: Path) -> Identity:
    """Which directory a path without symlinks is, opened name by name: nobody can put one in meanwhile.

    Raises OSError: ELOOP or ENOTDIR where a symlink is on the way.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", _O_EXEC)
    fd = os.open("/", flags)
    try:
        for name in directory.parts[1:]:
            below = os.open(name, flags, dir_fd=fd)
            os.close(fd)
            fd = below
        return identity_of(os.fstat(fd))
    finally:
        os.close(fd)


def identity_of(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino


def open_directories(pid: int, word: str) -> dict[Identity, str] | None:
    """The directories that a process holds open, with their paths (Linux); None when that cannot be seen, or
    when it is another process: its command line has no `word` in it.

    QEMU opens what it shares by 9p once, before the guest runs, and looks up all else below that.
    """
    found = {}
    try:
        if os.fsencode(word) not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return None
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                info = os.stat(entry.path)
                if stat.S_ISDIR(info.st_mode):
                    found[identity_of(info)] = os.readlink(entry.path)
            except FileNotFoundError:  # closed meanwhile
                continue
    except OSError:
        return None
    return found
