"""The verb `prune --cache`: golden disks on which no VM stands, and what a rebuild would fetch or make anew."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox import golden, paths
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.files import lock

# Used while a tools VM is built; its disk then holds a copy (image.py, npm.py).
_BUILD = {"images": "guest images from packages", "npm": "packages from npm"}


@dataclass(frozen=True)
class Cached:
    """Something that can go: `size` in bytes on the disk."""

    path: Path
    size: int
    what: str


def freeable(lima_home: Path, *, force: bool = False) -> list[Cached]:
    """What nothing uses now. `force`: also disks of which a LIMA_HOME that is gone made use.

    Raises DiskError when a VM cannot be looked at.
    """
    disks = [Cached(g.path, g.size, "disk that no VM uses") for g in golden.unused(lima_home, force=force)]
    with _nothing_built() as idle:
        return disks + (_build_caches() if idle else [])


def free(lima_home: Path, *, force: bool = False) -> list[Cached]:
    """Remove that, each looked at again under its lock; returns what went."""
    gone = [Cached(g.path, g.size, "disk that no VM used") for g in golden.free(lima_home, force=force)]
    with _nothing_built() as idle:
        for each in _build_caches() if idle else []:
            shutil.rmtree(each.path)
            gone.append(each)
    return gone


def kept(lima_home: Path) -> list[golden.Golden]:
    """Golden disks that only a LIMA_HOME used which is not there now."""
    return [each for each in golden.survey(lima_home) if not each.users and each.gone]


def _build_caches() -> list[Cached]:
    found = []
    for name, what in _BUILD.items():
        directory = paths.cache_dir() / name
        if directory.is_dir():
            found.append(Cached(directory, _size(directory), what))
    return found


def _size(directory: Path) -> int:
    total = 0
    for root, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, file)).st_blocks * 512
    return total


@contextlib.contextmanager
def _nothing_built() -> Iterator[bool]:
    """Whether no tools VM is being built; none can begin while this is held."""
    with contextlib.ExitStack() as stack:
        idle = True
        for path in sorted((paths.state_dir() / "locks").glob("*.build.lock")):
            try:
                stack.enter_context(lock(path, timeout=0))
            except ClaudeSandboxError:
                idle = False
        yield idle
