"""The finished tools VM takes the old one's name, in one step; and what killed rebuilds have left is removed.

The exchange note is a file in an instance directory that holds that directory's inode: what a copy of the
directory (a hand-made clone) carries does not match, so only what we put aside is removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import CreateError, SandboxExistsError
from _claude_sandbox.lima import readiness, vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, STOPPED, UNREADABLE, Instance, Lima
from _claude_sandbox.system import exchange as system_exchange
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.cleanup import uninterrupted
from _claude_sandbox.vm.locks import base_lock
from _claude_sandbox.vm.mark import kind_of

NOTE = "claude-sandbox.swap"
# Written again at each start, and dead weight in every clone until then.
_TRANSIENT = ("cidata.iso", "cloud-config.yaml", "ssh.config", readiness.STAMP)


def check_ours(lima: Lima, name: str) -> Instance | None:
    """The tools VM of that name, None without one. Raises SandboxExistsError for what is there and is not ours."""
    old = lima.get(name)
    if old is None and not os.path.lexists(lima.home / name):
        return None
    if old is None or kind_of(old) != vm_mark.TOOLS:
        raise SandboxExistsError(
            f"A VM called {name} is there, and claude-sandbox did not build it.",
            resolution="Give another name: `claude-sandbox rebuild-tools-vm NAME`, or remove that VM yourself.",
        )
    return old


def check_replaceable(lima: Lima, name: str) -> None:
    """Raise SandboxExistsError for what is there and is not ours, CreateError for a VM that runs."""
    old = check_ours(lima, name)
    if old is None:
        return
    if old.status not in (STOPPED, UNREADABLE) or vm_processes.running(old.dir):
        raise CreateError(
            f"{name} is {old.status if old.status != STOPPED else RUNNING}; it can only be replaced when it is stopped.",
            resolution=f"Stop it (`limactl stop {name}`), then try again.",
        )


def remove_transient_files(directory: Path) -> None:
    for file in (*(directory / name for name in _TRANSIENT), *directory.glob("*.log")):
        file.unlink(missing_ok=True)


def put_in_place(ctx: Context, temporary: str, name: str) -> None:
    """Give `temporary` the name of the old VM, which then has the other. Raises CreateError, SandboxExistsError."""
    new, old = ctx.lima.home / temporary, ctx.lima.home / name
    with (
        base_lock(name, ctx.progress.note),
        # Shared: whoever looks for users of a disk must not miss one that changes its name meanwhile.
        disks_store.store_lock(ctx.progress.note, shared=True),
        uninterrupted(),
    ):
        check_replaceable(ctx.lima, name)
        if old.exists():
            write_note(old)
            system_exchange.exchange(new, old)
        else:
            os.rename(new, old)
        (old / NOTE).unlink(missing_ok=True)


def write_note(directory: Path) -> None:
    """Mark this very directory as one that an exchange puts aside."""
    info = directory.stat()
    write_json(directory / NOTE, {"version": 1, "device": info.st_dev, "inode": info.st_ino})


def has_note(directory: Path) -> bool:
    """Whether this very directory (no copy of it) was marked by us for an exchange."""
    note, info = read_object(directory / NOTE) or {}, directory.stat()
    return (note.get("device"), note.get("inode")) == (info.st_dev, info.st_ino)


def remove_leftover(ctx: Context, name: str, temporary: str) -> None:
    """Remove what a killed rebuild left under the temporary name. Raises SandboxExistsError."""
    directory = ctx.lima.home / temporary
    # A kill right after the exchange leaves the note in the new one, too.
    with contextlib.suppress(FileNotFoundError):
        if has_note(ctx.lima.home / name):
            ctx.effects.silently((ctx.lima.home / name / NOTE).unlink, None)
    if not os.path.lexists(directory):
        return
    found = ctx.lima.read_instance_files(temporary)
    begun = found is None or kind_of(found) == vm_mark.TOOLS
    finished = (directory / "protected").exists()
    if directory.is_symlink() or not ((begun and not finished) or has_note(directory)):
        raise SandboxExistsError(
            f"A VM called {temporary} is there, which claude-sandbox did not build, or built for you.",
            details=f"The tools VM {name} is built under that name first.",
            resolution="Remove it (`limactl delete`), or give another name to `rebuild-tools-vm`.",
        )

    def remove_it() -> None:
        ctx.progress.note(f"Removing {temporary}, which an earlier run did not finish.")
        remove(ctx, temporary)

    ctx.effects.do(f"remove {temporary}, which an earlier run did not finish", remove_it, None)


def remove(ctx: Context, name: str) -> None:
    """Stop and delete an instance that is ours to delete; nothing is there afterwards.

    Raises what `vm.stop.remove` raises: then it is there, and the next rebuild tries again.
    """
    if not (ctx.lima.home / name).exists():
        return
    if (ctx.lima.home / name / "protected").exists():  # by us, as every tools VM
        ctx.lima.unprotect(name)
    vm_stop.remove(ctx, name)
