"""The verb `prune --cache`: golden disks that no VM uses, and what a rebuild would fetch or make again."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.disks.store import Note, nobody
from _claude_sandbox.system import paths
from _claude_sandbox.vm.locks import no_build

# Used while a tools VM is built; its disk then holds a copy (base_vm/packages/build.py, system/npm.py).
_BUILD = {"images": "guest images from packages", "npm": "packages from npm"}


@dataclass(frozen=True)
class Cached:
    """Something that can be removed: `size` in bytes on the disk."""

    path: Path
    size: int
    what: str


def freeable(lima_home: Path) -> list[Cached]:
    """What nothing uses now. Raises DiskError when a VM cannot be read."""
    disks = [Cached(g.path, g.size, "disk that no VM uses") for g in disks_store.list_unused(lima_home)]
    with no_build() as idle:
        return disks + (_build_caches() if idle else [])


def free(lima_home: Path, *, note: Note = nobody) -> list[Cached]:
    """Remove what nothing uses, each checked again under its lock; returns what was removed."""
    disks = disks_store.remove_unused(lima_home, note=note)
    removed = [Cached(disk.path, disk.size, "disk that no VM used") for disk in disks]
    with no_build() as idle:
        for each in _build_caches() if idle else []:
            shutil.rmtree(each.path)
            removed.append(each)
    return removed


def kept(lima_home: Path) -> list[disks_store.GoldenFile]:
    """Golden disks that only a LIMA_HOME used which cannot be asked now."""
    return [each for each in disks_store.list_files(lima_home) if not each.users and each.gone]


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
