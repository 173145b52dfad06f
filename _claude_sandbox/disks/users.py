"""Who uses which golden file: read from the disks of all VMs, in every LIMA_HOME that ever used one.

Whatever cannot be read may use any file, and is written down as unreadable: then nothing is freed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox.disks import lima_homes, qcow2
from _claude_sandbox.disks.qcow2 import DiskError
from _claude_sandbox.system import paths
from _claude_sandbox.system.jsonio import read_object

DISK = "disk"  # Lima's name for a VM's disk (pkg/limatype/filenames)


def in_store(path: Path) -> bool:
    return os.path.realpath(path.parent) == os.path.realpath(paths.golden_dir())


def record(path: Path) -> dict[str, Any]:
    """What was written down about a golden file; empty when that is lost."""
    return read_object(path.with_suffix(".json")) or {}


def texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def homes_in(known: dict[str, Any]) -> dict[Path, str | None]:
    """Each LIMA_HOME of a golden file's record, resolved, with its id.

    An older claude-sandbox wrote no ids, and the path may have become a symlink since.
    """
    ids = known.get("home_ids")
    ids = ids if isinstance(ids, dict) else {}
    found: dict[Path, str | None] = {}
    for text in texts(known.get("lima_homes")):
        value, home = ids.get(text), Path(os.path.realpath(text))
        found[home] = value if isinstance(value, str) else found.get(home)
    return found


def homes_of(files: Iterable[Path], lima_home: Path) -> set[Path]:
    """Every LIMA_HOME that uses one of these golden files, as far as their records say, and this one."""
    used = {home for file in files for home in homes_in(record(file))}
    return {Path(os.path.realpath(lima_home)), *used}


@dataclass
class DiskUsage:
    """What all VMs' disks say. `users`: golden file name -> VMs; `disks`: (device, inode) of VMs' own disks;
    `used_in`: LIMA_HOME -> names of golden files that its VMs use."""

    users: dict[str, set[str]] = field(default_factory=dict)
    disks: set[tuple[int, int]] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    used_in: dict[Path, set[str]] = field(default_factory=dict)

    def gone(self, file: Path) -> dict[Path, str]:
        """The LIMA_HOMEs that used a golden file and cannot be asked now, with the reason of each."""
        found = {}
        for home, known in homes_in(record(file)).items():
            if file.name not in self.used_in.get(home, ()) and (why := lima_homes.absence(home, known)):
                found[home] = why
        return found


def scan_backing_chains(homes: Iterable[Path], lima_home: Path) -> DiskUsage:
    """Read the backing chain of every qcow2 file of every VM below these LIMA_HOMEs, ours or not."""
    usage, here = DiskUsage(), Path(os.path.realpath(lima_home))
    for home in sorted(homes):
        usage.used_in[home] = set()
        try:
            entries = sorted(os.scandir(home), key=lambda entry: entry.name)
            for entry in entries:
                if entry.name.startswith((".", "_")):
                    continue  # Lima has no VM there (pkg/store, Instances)
                if _leads_nowhere(entry):
                    usage.unreadable.append(_nowhere(entry))
                elif entry.is_dir():
                    label = entry.name if home == here else f"{entry.name} (in {home})"
                    usage.used_in[home] |= _scan_vm(Path(entry.path), label, usage)
        except (FileNotFoundError, NotADirectoryError):
            continue  # disks.lima_homes.absence says so, for each file that was used there
        except OSError as error:
            usage.unreadable.append(str(error))
    return usage


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """A symlink whose end is not there: the other file system is not mounted, perhaps."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _nowhere(entry: os.DirEntry[str]) -> str:
    try:
        return f"{entry.path} leads to {os.readlink(entry.path)}, which cannot be reached"
    except OSError as error:  # changed meanwhile: what comes behind it has to be looked at all the same
        return str(error)


def _scan_vm(directory: Path, label: str, usage: DiskUsage) -> set[str]:
    """The golden files that this VM uses. Any file counts, under whatever name: a user may have put a disk
    aside, or on another file system, with a symlink in its place."""
    found: set[str] = set()
    try:
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            try:
                if _leads_nowhere(entry):
                    usage.unreadable.append(_nowhere(entry))
                elif entry.name == DISK or entry.is_file():
                    found |= _scan_file(Path(entry.path), usage)
            except FileNotFoundError:
                continue  # removed meanwhile
    except FileNotFoundError:
        pass  # deleted meanwhile
    except OSError as error:
        usage.unreadable.append(str(error))
    for name in found:
        usage.users.setdefault(name, set()).add(label)
    return found


def _scan_file(file: Path, usage: DiskUsage) -> set[str]:
    if file.name == DISK:
        info = file.stat()
        usage.disks.add((info.st_dev, info.st_ino))
    try:
        if qcow2.read(file) is None:
            return set()
    except DiskError as error:
        # Something that only looks like a disk; a VM's own one may have anything below it.
        if file.name == DISK:
            usage.unreadable.append(error.brief)
        return set()
    try:
        return below(file)
    except DiskError as error:
        usage.unreadable.append(error.brief)
        return set()


def below(file: Path) -> set[str]:
    """Names of the golden files below a disk. Raises DiskError when they cannot be known, OSError."""
    chain = qcow2.chain(file)[1:]
    names = {part.name for part in chain if in_store(part)}
    # What was below a missing file is known from its record: both are needed to repair it.
    names |= {name for part in chain if in_store(part) for name in texts(record(part).get("below"))}
    if chain and not _is_whole(chain[-1]) and not (in_store(chain[-1]) and record(chain[-1])):
        raise DiskError(f"{file} is backed by {chain[-1]}, which is missing or cannot be read.")
    return names


def _is_whole(end: Path) -> bool:
    """Whether the last file of a chain really is its end."""
    try:
        qcow2.read(end)
    except (FileNotFoundError, DiskError):
        return False
    return True
