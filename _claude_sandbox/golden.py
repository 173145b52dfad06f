"""The golden store: disks that never change, of which base VMs and sandboxes are thin overlays.

A golden file is the frozen disk of a base VM (freeze.py), read-only, named by its content: the first
half of the SHA-256 of the whole file. The whole, because overlays hold its path for years: under one name
there must never be two contents, and a file that came back from a backup can be proved to be the right
one. A layer's header names the file below it, so its name covers everything that it stands on.

Beside each NAME.qcow2 stands NAME.json: size and time (a look at them tells before each start that the
file is the one that was frozen), the golden files below it, and every LIMA_HOME that ever used it. That
list only grows: a golden file is free when no disk in any of these stands on it, which is read from the
disks themselves. There is no counter that a crash could leave wrong.

One lock guards the store: exclusive for whatever adds or frees a file, shared while a disk that stands
on one is copied or moved, so that no look at the disks can miss it. It is taken after a base's lock.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox import paths, qcow2
from _claude_sandbox.errors import StartError
from _claude_sandbox.files import lock, read_json, write_json
from _claude_sandbox.qcow2 import DiskError

SUFFIX = ".qcow2"
MODE = 0o400  # a base made from a sandbox may hold its login
DISK = "disk"  # Lima's name for a VM's disk (pkg/limatype/filenames)
# The overlay that takes the disk's place, then what it took the place of. Lima neither copies nor keeps *.tmp.
ASIDE = "disk.claude-sandbox.tmp"
FULL = "disk.full.tmp"  # a disk that is being made self-contained


@dataclass(frozen=True)
class Golden:
    """One golden file: bytes on the disk, the VMs whose disks stand on it, LIMA_HOMEs that are gone."""

    path: Path
    size: int
    users: tuple[str, ...]
    gone: tuple[Path, ...] = ()


@contextlib.contextmanager
def store_lock(*, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    with lock(paths.state_dir() / "locks" / "golden.lock", shared=shared, on_wait=on_wait):
        yield


def digest(path: Path) -> str:
    """The SHA-256 of a file's content (1.3 GB: 2 s)."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(content: str) -> Path:
    """Where the golden file with this digest belongs."""
    return paths.golden_dir() / (content[:32] + SUFFIX)


def in_store(path: Path) -> bool:
    return os.path.realpath(path.parent) == os.path.realpath(paths.golden_dir())


# -- what stands beside a golden file ------------------------------------------------------------


def record(path: Path) -> dict[str, Any]:
    """What was written down about a golden file; empty when that is lost."""
    return read_json(path.with_suffix(".json")) or {}


def write_record(path: Path, lima_home: Path, seen: os.stat_result, chain_of: Path | None = None) -> None:
    """Say how a golden file looks and that `lima_home` uses it. The store's lock is held.

    `chain_of`: the file itself, as long as it has another name.
    """
    known = record(path)
    homes = sorted({*_texts(known.get("lima_homes")), os.path.realpath(lima_home)})
    below = [file.name for file in qcow2.chain(chain_of or path)[1:] if in_store(file)]
    known |= {
        "version": 1,
        "size": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "lima_homes": homes,
        "below": below,
    }
    write_json(path.with_suffix(".json"), known)


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


# -- before a start ------------------------------------------------------------------------------


def check(lima_home: Path, directory: Path) -> None:
    """Everything that this VM's disk stands on is there, and as it was frozen.

    Raises StartError that names the file and the VMs that need it.
    """
    try:
        below = qcow2.chain(directory / DISK)[1:]
    except (DiskError, OSError) as error:
        raise StartError(f"The disk of {directory.name} cannot be read.", details=str(error)) from error
    for file in below:
        problem = problem_of(file)
        if problem is not None:
            raise _lost(lima_home, file, problem)
        if in_store(file) and not _known(file, lima_home):
            with store_lock():
                file.chmod(MODE)
                write_record(file, lima_home, file.stat())


def tidy(directory: Path) -> None:
    """Remove what a killed `--full-clone` left in a VM that is about to start. That VM's lock is held."""
    (directory / FULL).unlink(missing_ok=True)


def _known(file: Path, lima_home: Path) -> bool:
    """Whether it is read-only, and its record says how it looks and that this LIMA_HOME uses it."""
    known, seen = record(file), file.stat()
    same = known.get("mtime_ns") == seen.st_mtime_ns and not seen.st_mode & 0o222
    return same and os.path.realpath(lima_home) in _texts(known.get("lima_homes"))


def problem_of(file: Path) -> str | None:
    """What is wrong with a file on which an overlay stands; None: nothing."""
    try:
        seen = file.stat()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not in_store(file):
        return None  # not ours: whoever made this chain looks after it
    if not stat.S_ISREG(seen.st_mode):
        return "is no regular file"
    known = record(file)
    if known.get("size") not in (None, seen.st_size):
        return f"has {seen.st_size} bytes instead of {known['size']}: it was cut off or replaced"
    # Restored from a backup, or written to: only its content tells.
    if known.get("mtime_ns") != seen.st_mtime_ns and place(digest(file)).name != file.name:
        return "was changed"
    return None


def _lost(lima_home: Path, file: Path, problem: str) -> StartError:
    names = look(homes_of([file], lima_home), lima_home).users.get(file.name, set())
    return StartError(
        f"A golden disk {problem}: {file}",
        details=f"These VMs stand on it: {', '.join(sorted(names)) or 'none'}.",
        resolution="Put the file back as it was (from a backup). Without it their disks are lost: "
        "`claude-sandbox rebuild-tools-vm` builds the tools VM anew, `claude-sandbox delete` removes a "
        "sandbox, and the next `claude-sandbox` makes it anew.",
    )


# -- who uses what -------------------------------------------------------------------------------


@dataclass
class Seen:
    """What all VMs' disks say. `users`: golden file name -> VMs; `disks`: (device, inode) of VMs' own disks."""

    users: dict[str, set[str]] = field(default_factory=dict)
    disks: set[tuple[int, int]] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    gone: set[Path] = field(default_factory=set)


def homes_of(files: Iterable[Path], lima_home: Path) -> set[Path]:
    """Every LIMA_HOME that uses one of these golden files, as far as their records say, and this one."""
    used = {Path(text) for file in files for text in _texts(record(file).get("lima_homes"))}
    return {Path(os.path.realpath(lima_home)), *used}


def look(homes: Iterable[Path], lima_home: Path) -> Seen:
    """Read the backing chain of every qcow2 file of every VM below these LIMA_HOMEs, ours or not."""
    seen, here = Seen(), Path(os.path.realpath(lima_home))
    for home in sorted(homes):
        try:
            entries = sorted(entry for entry in home.iterdir() if entry.is_dir())
        except FileNotFoundError:
            if home != here:
                seen.gone.add(home)
            continue
        except OSError as error:
            seen.unreadable.append(str(error))
            continue
        for directory in entries:
            label = directory.name if home == here else f"{directory.name} (in {home})"
            _look_at(directory, label, seen)
    return seen


def _look_at(directory: Path, label: str, seen: Seen) -> None:
    """Any file, under whatever name: a user may have put a disk aside."""
    try:
        files = [Path(entry.path) for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False)]
        for file in files:
            if file.name == DISK:
                info = file.stat()
                seen.disks.add((info.st_dev, info.st_ino))
            try:
                below = qcow2.chain(file)[1:]
            except DiskError as error:
                # Something that only looks like a disk; a VM's own one may stand on anything.
                if file.name == DISK:
                    seen.unreadable.append(str(error))
                continue
            names = {part.name for part in below if in_store(part)}
            # What a missing file stood on is known from its record: both are needed to mend it.
            names |= {name for part in below if in_store(part) for name in _texts(record(part).get("below"))}
            for name in names:
                seen.users.setdefault(name, set()).add(label)
    except FileNotFoundError:
        return  # deleted meanwhile
    except OSError as error:
        seen.unreadable.append(str(error))


def survey(lima_home: Path) -> list[Golden]:
    """All golden files with their users, largest first; one that is missing has size 0.

    Raises DiskError when a VM cannot be looked at.
    """
    if not paths.golden_dir().is_dir():
        return []
    files = _files()
    seen = look(homes_of(files, lima_home), lima_home)
    if seen.unreadable:
        raise DiskError(
            "What uses the golden disks cannot be found out.",
            details="\n".join(seen.unreadable),
            resolution="Mend or remove that VM.",
        )
    found = []
    for file in {*files, *(paths.golden_dir() / name for name in seen.users)}:
        users = tuple(sorted(seen.users.get(file.name, set())))
        gone = tuple(sorted(homes_of([file], lima_home) & seen.gone))
        size = file.stat().st_blocks * 512 if file.exists() else 0
        found.append(Golden(file, size, users, gone))
    return sorted(found, key=lambda golden: (-golden.size, golden.path))


def _files() -> list[Path]:
    try:
        return sorted(file for file in paths.golden_dir().iterdir() if file.suffix == SUFFIX)
    except FileNotFoundError:
        return []


# -- freeing -------------------------------------------------------------------------------------


def unused(lima_home: Path, *, force: bool = False) -> list[Golden]:
    """Golden files on which no VM stands.

    One that a LIMA_HOME used which is not there now (unmounted, perhaps) counts as used unless `force`.
    """
    return [each for each in survey(lima_home) if not each.users and (force or not each.gone)]


def free(lima_home: Path, *, force: bool = False, only: Iterable[str] | None = None) -> list[Golden]:
    """Remove the unused ones (of the names in `only`), looked for again under the lock; returns them."""
    if not paths.golden_dir().is_dir():
        return []
    with store_lock():
        sweep(lima_home)
        freed = [g for g in unused(lima_home, force=force) if only is None or g.path.name in only]
        for golden in freed:
            golden.path.unlink(missing_ok=True)
            golden.path.with_suffix(".json").unlink(missing_ok=True)
    return freed


def sweep(lima_home: Path) -> None:
    """Remove what a killed run left half-done. The store's lock is held, exclusively.

    A golden file that still is some VM's own disk was about to be frozen: only its name in the store
    goes, the disk stays where it is, and nothing can stand on it yet.
    """
    for aside in lima_home.glob(f"*/{ASIDE}"):
        aside.unlink(missing_ok=True)
    files = _files()
    seen = look(homes_of(files, lima_home), lima_home)
    for file in files:
        info = file.stat()
        if (info.st_dev, info.st_ino) in seen.disks and file.name not in seen.users:
            file.unlink()
        elif info.st_mode & 0o222:
            file.chmod(MODE)
    there = {file.stem for file in _files()}
    for file in paths.golden_dir().iterdir():
        lone = file.suffix == ".json" and file.stem not in there
        if _half_made(file) or (lone and file.stem + SUFFIX not in seen.users):
            file.unlink()


def _half_made(file: Path) -> bool:
    """A file on its way into the store, `.KIND….PID`, whose process is gone."""
    if not file.name.startswith("."):
        return False
    _, _, pid = file.name.rpartition(".")
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return True
    except PermissionError:
        pass
    return False
