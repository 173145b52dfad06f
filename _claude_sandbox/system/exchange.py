"""Exchange two directories in one step of the kernel: at any instant both names stand, old or new.

Python has no call for it: renameat2(2) with RENAME_EXCHANGE on Linux (since 3.15), renamex_np(2) with
RENAME_SWAP on macOS (APFS, since 10.12). `limactl rename` works file by file and can stop half-way
(docs/facts/checked.md).
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system.files import sync

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 1 << 1  # linux/fs.h
_RENAME_SWAP = 0x2  # macOS sys/stdio.h
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> None:
    """Swap what `one` and `other` name; both exist, on the same file system.

    Raises HostSetupError where the file system cannot (NFS, some FUSE), else OSError. Nothing has
    changed then.
    """
    _call(one, other)
    sync(one.parent)
    if other.parent != one.parent:
        sync(other.parent)


def _call(one: Path, other: Path) -> None:
    import ctypes  # 2 ms, which only an exchange has to pay

    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, ctypes.c_uint(_RENAME_SWAP))
        else:
            # renameat2 is in glibc since 2.28 and in musl since 1.2.4.
            failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    except AttributeError as error:
        raise _unsupported(one) from error
    if not failed:
        return
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        raise _unsupported(one)
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _unsupported(path: Path) -> HostSetupError:
    return HostSetupError(
        f"The file system of {path.parent} cannot exchange two directories atomically.",
        resolution="Keep LIMA_HOME on a local file system (ext4, xfs, btrfs, tmpfs, APFS).",
    )
