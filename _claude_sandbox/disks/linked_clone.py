"""Linked clones on QEMU: a base VM's disk goes into the golden store, and the base becomes an overlay on it.

`limactl clone` then copies an overlay of 200 KB instead of gigabytes, and Lima stays the engine. On macOS
APFS shares the blocks of a copy by itself, so nothing of this happens there.

Killed between any two steps this leaves a base that works and what `disks.store.remove_leftovers` recognises:

    1. a second name for the disk (or a copy) in the      a file with a dot and our process's id
       store; its content is hashed
    2. record written, the file gets its golden name      a record alone; a golden file that is still
                                                          the base's own disk
    3. overlay made beside the disk, read back            and disks.store.ASIDE, an overlay that nobody uses
    4. overlay and disk exchanged, in one system call     disks.store.ASIDE, now the old disk
    5. old disk removed, golden file made read-only       a golden file that is still writable
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.disks import qcow2, qemu_img
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.disks.qcow2 import DiskError
from _claude_sandbox.disks.store import ASIDE
from _claude_sandbox.disks.users import DISK, in_store
from _claude_sandbox.errors import ClaudeSandboxError, CreateError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system import exchange as system_exchange
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import sync
from _claude_sandbox.system.run import Command
from _claude_sandbox.system.units import GIB, MIB, format_size

# How much an overlay may hold before it becomes a layer of its own. Each clone copies it: 64 MiB is a third
# of a second on a slow disk, and twice what a base gathers when it is only started and stopped.
SMALL_LAYER = 64 * MIB
# Files of a chain, the VM's own disk included. Each one more costs every read of a cold block a look-up.
MAX_FILES = 4
SPARE = GIB  # bytes that must stay free after a copy
_TIMEOUT = 3600.0  # seconds; hundreds of gigabytes on a slow disk
_BOOT_FILES = ("kernel", "initrd")


@dataclass(frozen=True)
class _FileState:
    """How a disk looked: it must be the same one, unwritten, when it is exchanged."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, file: Path) -> _FileState:
        info = file.stat()
        return cls(info.st_ino, info.st_size, info.st_mtime_ns)


def move_disk_to_store(ctx: Context, base: Instance) -> Path | None:
    """Freeze the disk of a stopped base VM that we made; the new golden file, or None when there is no need.

    The base's lock is held. A base that cannot be frozen (no space, another kind of disk) is cloned fully:
    a warning says so.
    """
    if ctx.macos or not is_worth_moving(base.dir / DISK):
        return None
    return ctx.effects.do(
        f"move the disk of {base.name} into {paths.golden_dir()} and make it an overlay",
        lambda: _move_or_warn(ctx, base),
        None,
    )


def _move_or_warn(ctx: Context, base: Instance) -> Path | None:
    try:
        with ctx.progress.stage(f"Freezing the disk of {base.name}"):
            return _move_disk(ctx, base.dir)
    except (ClaudeSandboxError, OSError) as error:
        ctx.progress.warn(f"Clones of {base.name} are full copies: {error}")
        return None


def is_worth_moving(disk: Path) -> bool:
    """Whether this disk is one that can be frozen, and holds enough to be worth it."""
    try:
        info = disk.lstat()
        header = qcow2.read(disk) if stat.S_ISREG(info.st_mode) else None
    except (OSError, DiskError):
        return False
    if header is None or not header.plain:
        return False
    below = qcow2.backing_path(disk, header)
    if below is None:
        return True
    return in_store(below) and info.st_blocks * 512 > SMALL_LAYER


def _move_disk(ctx: Context, directory: Path) -> Path:
    disk, store = directory / DISK, paths.private_dir(paths.golden_dir())
    before = _FileState.at(disk)
    incoming = store / f".incoming.{threading.get_ident()}.{os.getpid()}"
    incoming.unlink(missing_ok=True)
    try:
        _copy_into_store(ctx, disk, incoming)
        target = disks_store.path_of(disks_store.digest(incoming))
        with disks_store.store_lock(ctx.progress.note):
            disks_store.remove_leftovers(ctx.lima.home)
            try:
                _name_in_store(ctx, incoming, target)
                _exchange_disks(ctx, directory, target, before)
                target.chmod(disks_store.MODE)
            except BaseException:
                disks_store.remove_leftovers(ctx.lima.home)
                raise
    finally:
        incoming.unlink(missing_ok=True)
    return target


def _copy_into_store(ctx: Context, disk: Path, incoming: Path) -> None:
    """The content of `disk` into the store, under a name of this process: a second name of the same file,
    or a copy where file systems differ; everything below it in one file when the chain would get too long.
    """
    files = qcow2.chain(disk)
    if len(files) + 1 > MAX_FILES:
        _check_space(incoming.parent, files)
        _qemu_img(ctx, qemu_img.flatten(disk, incoming))
    else:
        try:
            os.link(disk, incoming)
        except OSError:  # another file system, or one without hard links
            _check_space(incoming.parent, [disk])
            copy_sparse(disk, incoming)
    sync(incoming)


def _name_in_store(ctx: Context, incoming: Path, target: Path) -> None:
    """`incoming` under its name in the store, if it is not there yet. The store's lock is held."""
    if target.exists() and (problem := disks_store.problem_of(target)):
        raise DiskError(f"{target} {problem}.")
    seen = (target if target.exists() else incoming).stat()
    disks_store.write_record(target, ctx.lima.home, seen, chain_of=incoming)
    if not target.exists():
        os.rename(incoming, target)
    sync(target.parent)


def _exchange_disks(ctx: Context, directory: Path, target: Path, before: _FileState) -> None:
    """Put an overlay on `target` in the disk's place, unless somebody started the VM meanwhile."""
    disk, aside = directory / DISK, directory / ASIDE
    _qemu_img(ctx, qemu_img.overlay(target, aside))
    made, old = qcow2.read(aside), qcow2.read(disk)
    meant = qcow2.Header(3, old.size if old else 0, str(target), "qcow2")
    if made is None or made != meant:
        raise DiskError(f"qemu-img made another overlay than was asked for: {made}")
    os.chmod(aside, stat.S_IMODE(disk.stat().st_mode) | 0o600)
    sync(aside)
    system_exchange.exchange(aside, disk)
    # Lima writes a pid file before it opens the disk: so none now means that nobody opened the old one.
    if any(directory.glob("*.pid")) or _FileState.at(aside) != before:
        system_exchange.exchange(aside, disk)
        aside.unlink()
        raise DiskError(f"{directory.name} was started by somebody meanwhile.")
    sync(directory)
    aside.unlink()


def _qemu_img(ctx: Context, command: Command) -> None:
    """As the user that QEMU will be: what it cannot read then shows now. Raises DiskError."""
    command = Command((*ctx.lima.prefix, *command.argv), ctx.lima.env)
    result = ctx.runner.run(command, timeout=_TIMEOUT)
    if not result.ok:
        raise DiskError("qemu-img failed.", details=result.error_text[-500:])


# -- copies --------------------------------------------------------------------------------------


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, holes as holes; the kernel shares blocks where it can (copy_file_range)."""
    with source.open("rb") as old, target.open("wb") as new:
        end = os.fstat(old.fileno()).st_size
        new.truncate(end)
        at = 0
        while at < end:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            hole = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            _copy_range(old.fileno(), new.fileno(), at, hole)
            at = hole
        new.flush()
        os.fsync(new.fileno())


def _copy_range(old: int, new: int, at: int, end: int) -> None:
    while at < end:
        try:
            done = os.copy_file_range(old, new, min(end - at, GIB), at, at)
        except OSError:  # not between these two file systems
            done = os.pwrite(new, os.pread(old, min(end - at, 8 * MIB), at), at)
        if not done:
            raise DiskError("A disk was cut off while it was copied.")
        at += done


def size_of(files: Iterable[Path]) -> int:
    """Bytes that files really take, holes not counted; those that are gone count nothing."""
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_blocks * 512
    return total


def _check_space(directory: Path, files: Iterable[Path]) -> None:
    need, free = size_of(files), shutil.disk_usage(directory).free
    if free < need + SPARE:
        raise CreateError(
            f"Not enough space in {directory}: {format_size(free)} free.",
            details=f"A copy takes {format_size(need)}, and {format_size(SPARE)} should stay free.",
            resolution="Free some space; `claude-sandbox prune --cache` frees disks that nothing uses.",
        )


# -- what a clone has ----------------------------------------------------------------------------


def share_boot_files(base: Path, clone: Path) -> None:
    """Hard links instead of the clone's own kernel and initrd (14 to 45 MB), where the file system can.

    Lima writes them once, when there is no disk yet, and does not touch a file that is there
    (pkg/instance/start.go, pkg/downloader); QEMU only reads them; they are made read-only. `limactl clone`
    copies the content, and a removal takes one name away: no VM can change another's.
    """
    for name in _BOOT_FILES:
        own, copy, link = base / name, clone / name, clone / f"{name}.claude-sandbox.tmp"
        try:
            ours, theirs = own.lstat(), copy.lstat()
        except FileNotFoundError:
            continue
        same = stat.S_ISREG(ours.st_mode) and stat.S_ISREG(theirs.st_mode) and ours.st_size == theirs.st_size
        if not same or ours.st_ino == theirs.st_ino:
            continue
        # A file system without links, or with too many to this file: the copy serves as well.
        with contextlib.suppress(OSError):
            own.chmod(0o444)
            os.link(own, link)
            os.replace(link, copy)


def is_linked(directory: Path) -> bool:
    """Whether a VM's disk is an overlay on another file."""
    try:
        header = qcow2.read(directory / DISK)
    except (OSError, DiskError):
        return False
    return header is not None and header.backing is not None


def make_full(ctx: Context, directory: Path) -> None:
    """Make a stopped VM's disk self-contained: it then needs no file but its own directory's.

    Raises CreateError (no space), DiskError. Killed half-way it leaves the linked disk as it was.
    """
    ctx.effects.do(f"give {directory.name} a disk of its own", lambda: _make_full(ctx, directory), None)


def _make_full(ctx: Context, directory: Path) -> None:
    disk, full = directory / DISK, disks_store.full_copy_path(directory)
    files = qcow2.chain(disk)
    if len(files) == 1:
        return
    _check_space(full.parent, files)
    with ctx.progress.stage(f"Copying the whole disk of {directory.name}"):
        try:
            _qemu_img(ctx, qemu_img.flatten(disk, full))
            sync(full)
            os.replace(full, os.path.realpath(disk))
        finally:
            full.unlink(missing_ok=True)
