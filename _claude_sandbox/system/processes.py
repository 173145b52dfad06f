"""Which process is which: an identity that no other process ever has, and that no clock can change.

A process id alone is used again. A start time by the clock (psutil's `create_time` on Linux) moves when the
clock is put right. So an identity is what the kernel fixed when the process began:

    Linux   id, the boot's id (/proc/sys/kernel/random/boot_id), start in clock ticks since that boot
            (/proc/PID/stat, field 22)
    macOS   id, the boot's session (sysctl kern.bootsessionuuid), start in microseconds as the kernel wrote
            it down at the fork (proc_pidinfo, PROC_PIDTBSDINFO; psutil corrects its own by the boot time)

Every process id that our files name is believed through `same` and nothing else.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# A record of a version before this module has psutil's create_time alone, which that version compared so.
_OLD_TOLERANCE = 2.0  # seconds
_BSDINFO = struct.Struct("=5I 6I I 16s 32s 5I i 2Q")  # struct proc_bsdinfo, 136 bytes (macOS sys/proc_info.h)
_PROC_PIDTBSDINFO, _SZOMB = 3, 5


@dataclass(frozen=True)
class Identity:
    """One process. `boot` "" where the host does not report it; `start`: the module's docstring has the units."""

    pid: int
    boot: str
    start: int

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "boot": self.boot, "start": self.start}


def identity(pid: int) -> Identity | None:
    """Of a living process; None when there is none, or only one that has ended (a zombie)."""
    start = _start(pid) if pid > 0 else None
    return None if start is None else Identity(pid, boot_id(), start)


def same(known: Identity) -> bool:
    """Whether that very process lives, not another one with its number."""
    return identity(known.pid) == known


def from_json(value: object) -> Identity | None:
    """What `to_json` wrote; None for anything else, and for an older version's record of a process that is gone.

    An older version wrote {"pid", "started"}, by the clock: believed under the rule of that version, which
    errs by saying no when the clock was put right since. What it names ends with its session.
    """
    if not isinstance(value, dict) or type(value.get("pid")) is not int:
        return None
    where, start = value.get("boot"), value.get("start")
    if isinstance(where, str) and type(start) is int:
        return Identity(value["pid"], where, start)
    started = value.get("started")
    return _by_clock(value["pid"], started) if isinstance(started, int | float) else None


def _by_clock(pid: int, started: float) -> Identity | None:
    import psutil

    try:
        found = abs(psutil.Process(pid).create_time() - started) < _OLD_TOLERANCE
    except (psutil.Error, ValueError, OverflowError):
        return None
    return identity(pid) if found else None


@functools.cache
def boot_id() -> str:
    """What identifies this boot of the host; "" where the host does not say."""
    if sys.platform == "darwin":
        return _boot_session()
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """When a living process began; None for a zombie, too."""
    if sys.platform == "darwin":
        return _start_on_macos(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except OSError:
        return None


def parse_stat(line: bytes) -> int | None:
    """Start in clock ticks since boot from /proc/PID/stat; None for a process that has ended.

    The program's name is in parentheses and may hold anything, parentheses and blanks included.
    """
    words = line.rpartition(b")")[2].split()
    if len(words) < 20 or words[0] in (b"Z", b"X", b"x"):
        return None
    return int(words[19])  # field 22 of proc(5), where `words` begins with field 3


def parse_bsdinfo(data: bytes) -> int | None:
    """Start in microseconds from macOS's struct proc_bsdinfo; None for a process that has ended."""
    if len(data) != _BSDINFO.size:
        return None
    fields = _BSDINFO.unpack(data)
    status, seconds, microseconds = fields[1], fields[-2], fields[-1]
    return None if status == _SZOMB else int(seconds * 1_000_000 + microseconds)


def _start_on_macos(pid: int) -> int | None:
    import ctypes

    buffer = ctypes.create_string_buffer(_BSDINFO.size)
    arguments = (ctypes.c_int(pid), ctypes.c_int(_PROC_PIDTBSDINFO), ctypes.c_uint64(0))
    got = ctypes.CDLL(None).proc_pidinfo(*arguments, buffer, ctypes.c_int(_BSDINFO.size))
    return parse_bsdinfo(buffer.raw) if got == _BSDINFO.size else None


def _boot_session() -> str:
    import ctypes

    buffer, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0)
    return "" if failed else buffer.value.decode("ascii", "replace")


# -- what a process is ---------------------------------------------------------------------------


def arguments(pid: int) -> list[str] | None:
    """The command line of a process; None when it is gone (a zombie has none) or does not let us look."""
    if sys.platform == "darwin":
        return _arguments_on_macos(pid)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return None
    return [os.fsdecode(word) for word in words[:-1]] or None


def _arguments_on_macos(pid: int) -> list[str] | None:
    try:
        import psutil  # not there yet while the launcher makes our environment
    except ImportError:
        return None
    try:
        return psutil.Process(pid).cmdline() or None
    except (psutil.Error, OSError):
        return None


def may_be_of(pid: int, user: int) -> bool:
    """Whether a process may be `user`'s (a uid): no other ordinary user owns it.

    Root's may be: the kernel gives root what does not let itself be looked at. For root anybody's may be:
    its VMs run in a user namespace.
    """
    owner = _owner(pid)
    return user == 0 or owner is None or owner in (user, 0)


def _owner(pid: int) -> int | None:
    """The uid; None where that cannot be seen."""
    if sys.platform == "darwin":
        import psutil

        try:
            return int(psutil.Process(pid).uids().effective)
        except psutil.Error:
            return None
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def all_pids() -> Iterator[int]:
    """The ids of all processes that this user can see."""
    if sys.platform == "darwin":
        import psutil

        yield from psutil.pids()
    else:
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())
