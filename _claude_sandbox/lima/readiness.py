"""Which boot of a VM was seen to be ready: from files, without limactl."""

from __future__ import annotations

import os

from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system.files import write_atomic

STAMP = "claude-sandbox.ready"  # in the instance directory: which boot was seen to be ready


def boot_id(instance: Instance) -> str | None:
    """What identifies a boot: the host agent's pid file."""
    try:
        file = instance.dir / "ha.pid"
        return f"{file.read_text().strip()} {file.stat().st_mtime_ns}"
    except OSError:
        return None


def record(instance: Instance, point: str, uid: int) -> None:
    """Remember that this boot was ready, where it has the project, and as whom: a warm attach asks nobody."""
    if boot := boot_id(instance):
        write_atomic(instance.dir / STAMP, os.fsencode(f"{boot}\n{point}\n{uid}"))


def was_ready(instance: Instance) -> bool:
    try:
        return recorded(instance)[0] == boot_id(instance)
    except OSError:
        return False


def recorded(instance: Instance) -> tuple[str, str, str]:
    """(boot, the project's mount point, uid) as they were recorded. Raises OSError."""
    lines = os.fsdecode((instance.dir / STAMP).read_bytes()).split("\n")
    boot, point, uid = (*lines, "", "")[:3]
    return boot, point, uid
