"""The header of a qcow2 disk, read by ourselves: which file it is an overlay on.

Reading 4 KiB answers before each start, without a process. The layout is QEMU's docs/interop/qcow2.txt;
numbers are big-endian. A guest cannot write the header of its own disk (it sees the disk's content only),
but a file may come from anywhere, so everything in it is bounded and checked.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import ClaudeSandboxError

MAGIC = b"QFI\xfb"
DEEPEST = (
    16  # files of a chain that we follow; our own chains have at most four (disks.linked_clone.MAX_FILES)
)
NAME_MAX = 1023  # bytes of a backing file's name, by the specification
_HEAD = struct.Struct(">4sIQIIQIIQQIIQ")  # magic … snapshots_offset, 72 bytes in version 2 and 3
_FORMAT = 0xE2792ACA  # header extension: the backing file's format
_CLUSTER_BITS = range(9, 22)  # 512 bytes to 2 MiB
_VERSION_3_LENGTH = 104
_UNSOUND = 0b111  # incompatible features: dirty, corrupt, external data file


class DiskError(ClaudeSandboxError):
    """A disk file that is not what it should be: unreadable, not sound, or with an endless chain."""


@dataclass(frozen=True)
class Header:
    """What we need of a header. `size` is what the guest sees, in bytes; `backing` is as written there.

    `plain`: nothing in it that an overlay on this file would hide or break (internal snapshots,
    encryption, an external data file, a dirty or corrupt mark).
    """

    version: int
    size: int
    backing: str | None = None
    backing_format: str | None = None
    plain: bool = True


def read(path: Path) -> Header | None:
    """The header of `path`; None when it is a regular file that is not a qcow2. Raises DiskError, OSError."""
    # O_NONBLOCK: a fifo in the disk's place must not hang us.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DiskError(f"{path} is not a regular file.")
        head = os.pread(fd, 4096, 0)
        if head[:4] != MAGIC:
            return None
        return _parse(path, fd, head)
    finally:
        os.close(fd)


def _parse(path: Path, fd: int, head: bytes) -> Header:
    if len(head) < _HEAD.size:
        raise DiskError(f"{path} is cut off: {len(head)} bytes are no qcow2 disk.")
    fields = _HEAD.unpack_from(head)
    _, version, at, length, cluster_bits, size, encrypted, _, _, _, _, snapshots, _ = fields
    if version not in (2, 3) or cluster_bits not in _CLUSTER_BITS:
        raise DiskError(f"{path} is not a qcow2 disk that we know (version {version}).")
    cluster, incompatible, header_length = 1 << cluster_bits, 0, _HEAD.size
    if version == 3:
        if len(head) < _VERSION_3_LENGTH:
            raise DiskError(f"{path} is cut off in its header.")
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
    plain = not (encrypted or snapshots or incompatible & _UNSOUND)
    if at == 0:
        return Header(version, size, plain=plain)
    # The name is in the first cluster, behind the header and its extensions.
    if not (0 < length <= NAME_MAX and header_length <= at and at + length <= cluster):
        raise DiskError(f"{path} has a backing file's name where none can be.")
    name = os.pread(fd, length, at)
    if len(name) != length or b"\0" in name:
        raise DiskError(f"{path} has no readable name of its backing file.")
    extensions = os.pread(fd, min(at, 65536) - header_length, header_length) if at > header_length else b""
    return Header(version, size, os.fsdecode(name), _format(extensions), plain)


def _format(extensions: bytes) -> str | None:
    """The backing file's format, as its header extension says; None: QEMU would guess it."""
    place = 0
    while place + 8 <= len(extensions):
        kind, length = struct.unpack_from(">II", extensions, place)
        data = extensions[place + 8 : place + 8 + length]
        if kind == 0 or len(data) < length:
            return None
        if kind == _FORMAT:
            return data.decode("ascii", "replace")
        place += 8 + (length + 7) // 8 * 8
    return None


def backing_path(path: Path, header: Header) -> Path | None:
    """The file that `path` is an overlay on; a relative name starts from the overlay's directory."""
    return path.parent / header.backing if header.backing is not None else None


def chain(path: Path) -> list[Path]:
    """`path` and every file below it, down to the first one that is missing or spoilt (the last entry).

    Raises DiskError when `path` itself is spoilt or the chain is endless, OSError.
    """
    files = [path]
    while len(files) <= DEEPEST:
        try:
            header = read(files[-1])
        except FileNotFoundError:
            return files
        except DiskError:
            if len(files) == 1:
                raise
            return files
        below = backing_path(files[-1], header) if header is not None else None
        if below is None:
            return files
        files.append(below)
    raise DiskError(f"{path} is backed by more than {DEEPEST} files.")
