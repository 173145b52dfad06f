"""The golden store: disks that never change, of which base VMs and sandboxes are thin overlays.

A golden file is the frozen disk of a base VM (disks/linked_clone.py), read-only, named by its content: the first
half of the SHA-256 of the whole file. The whole, because overlays hold its path for years: under one name
there must never be two contents, and a file that came back from a backup can be proved to be the right
one. A layer's header names the file below it, so its name covers everything below it.

Beside each NAME.qcow2 is NAME.json: size and time (before each start they show that the
file is the one that was frozen), the golden files below it, and every LIMA_HOME that ever used it, with its
id (disks/lima_homes.py). That list only grows, but by `forget_home`: a golden file is free when each of these was
looked at and no disk there is an overlay on it, which is read from the disks themselves (disks/users.py). There is
no counter that a crash could leave wrong.

One lock guards the store: exclusive for whatever adds or frees a file, shared while a disk that stands
on one is copied or moved, so that no look at the disks can miss it. It is taken after a base's lock.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.disks import lima_homes, qcow2
from _claude_sandbox.disks.qcow2 import DiskError
from _claude_sandbox.disks.users import (
    DISK,
    DiskUsage,
    homes_in,
    homes_of,
    in_store,
    record,
    scan_backing_chains,
)
from _claude_sandbox.errors import StartError, UsageError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import lock, write_json

SUFFIX = ".qcow2"
MODE = 0o400  # a base made from a sandbox may hold its login
# The overlay that takes the disk's place, then what it took the place of. Lima neither copies nor keeps *.tmp.
ASIDE = "disk.claude-sandbox.tmp"


@dataclass(frozen=True)
class GoldenFile:
    """One golden file: bytes on the disk, the VMs whose disks are overlays on it, LIMA_HOMEs that used it and cannot
    be asked now, and why each of them cannot ("is not there")."""

    path: Path
    size: int
    users: tuple[str, ...]
    gone: tuple[Path, ...] = ()
    why: tuple[str, ...] = ()


Note = Callable[[str], None]
"""Says a sentence to the user: that, and for whom, we wait."""


def nobody(_text: str) -> None:
    """A Note that drops what it gets."""


@contextlib.contextmanager
def store_lock(note: Note, *, shared: bool = False) -> Iterator[None]:
    path = paths.state_dir() / "locks" / "golden.lock"
    with lock(
        path, shared=shared, on_wait=lambda who: note(f"The golden disks are in use: waiting for {who} …")
    ):
        yield


def digest(path: Path) -> str:
    """The SHA-256 of a file's content (1.3 GB: 2 s)."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_of(content: str) -> Path:
    """Where the golden file with this digest belongs."""
    return paths.golden_dir() / (content[:32] + SUFFIX)


# -- the record beside a golden file --------------------------------------------------------------


def write_record(path: Path, lima_home: Path, seen: os.stat_result, chain_of: Path | None = None) -> None:
    """Say how a golden file looks and that `lima_home` uses it. The store's lock is held.

    `chain_of`: the file itself, as long as it has another name.
    """
    below = [file.name for file in qcow2.chain(chain_of or path)[1:] if in_store(file)]
    home = Path(os.path.realpath(lima_home))
    homes = homes_in(record(path)) | {home: lima_homes.identify(home)}
    known = {"version": 1, "size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "below": below}
    _write(path, known, homes)


def _write(path: Path, changed: dict[str, object], homes: dict[Path, str | None]) -> None:
    """`lima_homes` and `version` are as an older claude-sandbox, which may still run, reads them."""
    known = {
        **record(path),
        **changed,
        "lima_homes": sorted(map(str, homes)),
        "home_ids": {str(home): value for home, value in homes.items() if value is not None},
    }
    write_json(path.with_suffix(".json"), known)


# -- before a start ------------------------------------------------------------------------------


def check_backing_files(lima_home: Path, directory: Path, note: Note = nobody) -> None:
    """Every file below this VM's disk is there, and as it was frozen.

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
            with store_lock(note):
                file.chmod(MODE)
                _complete(file, lima_home)


def _complete(file: Path, lima_home: Path) -> None:
    """`write_record`. On a full disk a start goes on where the record lacks the id of this LIMA_HOME only."""
    try:
        write_record(file, lima_home, file.stat())
    except OSError:
        if Path(os.path.realpath(lima_home)) not in homes_in(record(file)):
            raise


def remove_interrupted_copy(directory: Path) -> None:
    """Remove what a killed `--full-clone` left in a VM that is about to start. That VM's lock is held."""
    full_copy_path(directory).unlink(missing_ok=True)


def full_copy_path(directory: Path) -> Path:
    """Where a VM's disk is made self-contained: beside the disk itself, which may be on another file system."""
    disk = Path(os.path.realpath(directory / DISK))
    return disk.with_name(f"{disk.name}.full.tmp")


def _known(file: Path, lima_home: Path) -> bool:
    """Whether it is read-only, and its record says how it looks and that this LIMA_HOME uses it."""
    known, seen = record(file), file.stat()
    same = known.get("mtime_ns") == seen.st_mtime_ns and not seen.st_mode & 0o222
    home = Path(os.path.realpath(lima_home))
    identity = lima_homes.identity(home)
    return same and identity is not None and homes_in(known).get(home) == identity


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
        return "is not a regular file"
    known = record(file)
    if known.get("size") not in (None, seen.st_size):
        return f"has {seen.st_size} bytes instead of {known['size']}: it was cut off or replaced"
    # Restored from a backup, or written to: only its content shows.
    if known.get("mtime_ns") != seen.st_mtime_ns and path_of(digest(file)).name != file.name:
        return "was changed"
    return None


def _lost(lima_home: Path, file: Path, problem: str) -> StartError:
    names = scan_backing_chains(homes_of([file], lima_home), lima_home).users.get(file.name, set())
    return StartError(
        f"A golden disk {problem}: {file}",
        details=f"These VMs need it: {', '.join(sorted(names)) or 'none'}.",
        resolution="Put the file back as it was (from a backup). Without it their disks are lost: "
        "`claude-sandbox rebuild-tools-vm` builds the tools VM again, `claude-sandbox delete` removes a "
        "sandbox, and the next `claude-sandbox` makes a new one.",
    )


# -- who uses what -------------------------------------------------------------------------------


def list_files(lima_home: Path) -> list[GoldenFile]:
    """All golden files with their users, largest first; one that is missing has size 0.

    Raises DiskError when a VM cannot be looked at.
    """
    if not paths.golden_dir().is_dir():
        return []
    files = _files()
    usage = _scan(files, lima_home)
    if usage.unreadable:
        raise DiskError(
            "What uses the golden disks cannot be found out.",
            details="\n".join(usage.unreadable),
            resolution="Nothing is freed until that can be read: mount what is missing, or repair or remove that VM. "
            "A LIMA_HOME that was deleted for good: `claude-sandbox prune --cache --forget-home DIR`.",
        )
    found = []
    for file in {*files, *(paths.golden_dir() / name for name in usage.users)}:
        users = tuple(sorted(usage.users.get(file.name, set())))
        gone = dict(sorted(usage.gone(file).items()))
        size = file.stat().st_blocks * 512 if file.exists() else 0
        found.append(GoldenFile(file, size, users, tuple(gone), tuple(gone.values())))
    return sorted(found, key=lambda golden: (-golden.size, golden.path))


def _scan(files: Iterable[Path], lima_home: Path) -> DiskUsage:
    """`scan_backing_chains` wherever a VM may use one of these files; one whose record is lost may be used anywhere, unless it
    still is some VM's own disk."""
    usage = scan_backing_chains(homes_of([*files, *_records()], lima_home), lima_home)
    for file in files:
        info = file.stat()
        if (info.st_dev, info.st_ino) in usage.disks:
            continue  # about to be frozen (`sweep`)
        if not isinstance(record(file).get("lima_homes"), list):
            usage.unreadable.append(
                f"{file.with_suffix('.json')} does not say which LIMA_HOMEs used {file.name}. The start of a VM "
                f"that needs it writes that again; if there is none in any LIMA_HOME, remove {file}."
            )
    return usage


def _files(suffix: str = SUFFIX) -> list[Path]:
    try:
        return sorted(file for file in paths.golden_dir().iterdir() if file.suffix == suffix)
    except FileNotFoundError:
        return []


def _records() -> list[Path]:
    """The golden files that have a record; they need not be there."""
    return [file.with_suffix(SUFFIX) for file in _files(".json")]


# -- freeing -------------------------------------------------------------------------------------


def list_unused(lima_home: Path) -> list[GoldenFile]:
    """GoldenFile files on which no VM stands.

    One that a LIMA_HOME used which cannot be asked now (unmounted, perhaps) counts as used.
    """
    return [each for each in list_files(lima_home) if not each.users and not each.gone]


def remove_unused(
    lima_home: Path, *, only: Iterable[str] | None = None, note: Note = nobody
) -> list[GoldenFile]:
    """Remove the unused ones (of the names in `only`), looked for again under the lock; returns them."""
    if not paths.golden_dir().is_dir():
        return []
    with store_lock(note):
        remove_leftovers(lima_home)
        freed = [g for g in list_unused(lima_home) if only is None or g.path.name in only]
        for golden in freed:
            golden.path.unlink(missing_ok=True)
            golden.path.with_suffix(".json").unlink(missing_ok=True)
    return freed


def forget_home(home: Path, note: Note = nobody) -> None:
    """The user says that a LIMA_HOME is gone for good, with its VMs: no golden file is kept for it.

    If another directory is at that path by now, it is looked at like any other from then on. Raises UsageError
    when no golden file waits for it.
    """
    home = Path(os.path.realpath(home))
    with store_lock(note):
        waiting = [file for file in _records() if _waits_for(home, file, scan_backing_chains([home], home))]
        if not waiting:
            raise UsageError(f"No golden disk is kept for {home}.", resolution="See `claude-sandbox doctor`.")
        for file in waiting:
            homes = homes_in(record(file))
            homes[home] = lima_homes.identify(home)
            if homes[home] is None:
                del homes[home]
            _write(file, {}, homes)


def _waits_for(home: Path, file: Path, usage: DiskUsage) -> bool:
    try:
        return home in usage.gone(file)
    except OSError:  # a mount that does not answer: only the user can know
        return home in homes_in(record(file))


def remove_leftovers(lima_home: Path) -> None:
    """Remove what a killed run left half-done. The store's lock is held, exclusively.

    A golden file that still is some VM's own disk was about to be frozen: only its name in the store
    goes, the disk stays where it is, and nothing can be an overlay on it yet. All this waits while there is something
    that cannot be looked at.
    """
    for aside in lima_home.glob(f"*/{ASIDE}"):
        aside.unlink(missing_ok=True)
    files = _files()
    usage = _scan(files, lima_home)
    for file in files:
        info = file.stat()
        if (info.st_dev, info.st_ino) in usage.disks:  # its VM writes to it
            if _is_free(file, usage):
                file.unlink()
        elif info.st_mode & 0o222:
            file.chmod(MODE)
    _note_homes(usage)
    for file in [*paths.golden_dir().iterdir()]:
        if _half_made(file) or (file.suffix == ".json" and _is_lone(file, usage)):
            file.unlink()


def _is_lone(file: Path, usage: DiskUsage) -> bool:
    """Whether a record's golden file is not there and nobody can miss it."""
    disk = file.with_suffix(SUFFIX)
    return not disk.exists() and _is_free(disk, usage)


def _is_free(file: Path, usage: DiskUsage) -> bool:
    return not (file.name in usage.users or usage.unreadable or usage.gone(file))


def _note_homes(usage: DiskUsage) -> None:
    """Complete the records of an older claude-sandbox: the id of each LIMA_HOME that is seen to use a file."""
    for home, names in usage.used_in.items():
        for file in [paths.golden_dir() / name for name in names]:
            homes = homes_in(known := record(file))
            if known and home in homes and homes[home] is None:
                with contextlib.suppress(OSError):  # a full disk must not prevent the freeing
                    _write(file, {}, homes | {home: lima_homes.identify(home)})


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
