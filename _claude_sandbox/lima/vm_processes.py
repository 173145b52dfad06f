"""Which processes are a VM's: known by what they are, never by a number in a file or by a clock.

Lima's pid files (ha.pid, qemu.pid, vz.pid) hold a number and nothing else. After a crash of the host other
processes have those numbers, and `limactl stop -f` kills by them (docs/facts/lima.md §13). But both processes of a
VM name their own pid file in their command line, and that file is in the instance's directory:

    limactl hostagent --pidfile LIMA_HOME/NAME/ha.pid --socket LIMA_HOME/NAME/ha.sock … NAME
    qemu-system-x86_64 … -name lima-NAME -pidfile LIMA_HOME/NAME/qemu.pid

(With vz the host agent is the VM, and vz.pid holds its number too.) The command line can be read where
psutil's exe() cannot, across root's user namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

from _claude_sandbox.system import processes
from _claude_sandbox.system.processes import Identity

_FLAGS = ("--pidfile", "-pidfile")
_SETTLE = 0.5  # seconds in which a process that has just begun writes its own pid file
_LEFT_BY_THE_DEAD = ("*.sock", "*.tmp")  # what `limactl stop -f` removes with the pid files


def running(directory: Path, user: int | None = None) -> dict[Identity, Path]:
    """The living processes of the VM in `directory`, each with the pid file that it names.

    `user`: whose they are, ours by default. Another user of the host can write any words on a command line.
    """
    found, user = {}, os.geteuid() if user is None else user
    for pid in processes.all_pids():
        known = processes.identity(pid)
        file = _pid_file(processes.arguments(pid) or [])
        if known is None or file is None or not _is(file.parent, directory):
            continue
        if processes.may_be_of(pid, user):
            found[known] = file
    return found


def _pid_file(arguments: list[str]) -> Path | None:
    """
    >>> _pid_file(["qemu-system-x86_64", "-pidfile", "/h/.lima/app/qemu.pid"])
    PosixPath('/h/.lima/app/qemu.pid')
    """
    for word, after in itertools.pairwise([*arguments, ""]):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            return Path(value if equals else after)
    return None


def _is(one: Path, directory: Path) -> bool:
    """Whether both are one directory: Lima resolves LIMA_HOME, and the directory may be gone."""
    if one == directory:
        return True
    if one.name != directory.name:
        return False
    with contextlib.suppress(OSError):
        return os.path.samefile(one, directory)
    return one == Path(os.path.realpath(directory))


def make_pid_files_true(directory: Path) -> bool:
    """Remove pid files that name no process of this VM, write again those that its processes have lost.

    So `limactl stop` ends what is left of the VM, and nothing else. True when any was wrong.
    """
    mine = running(directory)
    stale = [file for file in directory.glob("*.pid") if _names_another(file, mine)]
    for file in stale:
        file.unlink(missing_ok=True)
    lost = _write_again(directory, mine)
    if stale and not any(directory.glob("*.pid")):
        for pattern in _LEFT_BY_THE_DEAD:
            for file in directory.glob(pattern):
                file.unlink(missing_ok=True)
    return bool(stale) or lost


def _names_another(file: Path, mine: dict[Identity, Path]) -> bool:
    """Not for a file that cannot be read, or a process that does not let us look at it."""
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return False
    if any(pid == each.pid for each in mine):
        return False
    return processes.identity(pid) is None or processes.arguments(pid) is not None


def _write_again(directory: Path, mine: dict[Identity, Path]) -> bool:
    """A version before this one took them away after a step of the clock; then Lima can stop nothing."""
    if all((directory / file.name).exists() for file in mine.values()) or not directory.is_dir():
        return False
    time.sleep(_SETTLE)
    written = False
    for each, file in mine.items():
        target = directory / file.name
        with contextlib.suppress(OSError):
            if not target.exists() and processes.same(each):
                target.write_text(f"{each.pid}\n")
                written = True
    return written


def words(found: dict[Identity, Path]) -> str:
    """For people: `process 41 (ha.pid), process 42 (qemu.pid)`."""
    return ", ".join(f"process {each.pid} ({file.name})" for each, file in found.items())
