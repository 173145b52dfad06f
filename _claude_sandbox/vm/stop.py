"""The end of a VM: stopped, or removed. Done means that its processes were seen gone.

What limactl refuses is reported in its words. The directory of a VM that runs on is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

from _claude_sandbox.errors import ClaudeSandboxError, LimaError, RefusedError
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import BROKEN, STOPPED, Instance, param_of
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system import paths
from _claude_sandbox.system.processes import Identity
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import naming

GONE_TIMEOUT = 5.0  # in which a process that was killed must be gone: QEMU gives its memory back
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PUT_ASIDE = ".{}.deleted"  # Lima looks at no directory that begins with a dot


def stop(ctx: Context, instance: Instance, *, force: bool = False) -> None:
    """Stop a VM in whatever state; does nothing when it is stopped already (unless forced).

    Raises LimaError: limactl failed, or something of the VM runs on.
    """
    left = _runs(ctx, instance.dir)
    if instance.status == STOPPED and not force and not left:
        return
    Guest(ctx.runner, instance, paths.runtime_dir()).disconnect()
    # What runs of a VM that Lima calls stopped has lost its pid files, and with them a graceful stop.
    with ctx.progress.stage(f"Stopping {instance.name}"):
        ctx.lima.stop(instance.name, force=force or instance.status in (BROKEN, STOPPED))
        wait_until_gone(ctx, instance.name)


def force_stop(ctx: Context, name: str) -> None:
    """Whatever still runs of it. Raises LimaError when something runs on; limactl's complaint alone is none."""
    _runs(ctx, ctx.lima.home / name)
    try:
        ctx.lima.stop(name, force=True)
    except LimaError as error:
        left = vm_processes.running(ctx.lima.home / name)
        if left:
            raise _runs_on(name, left, f"{error.brief}\n{error.details or ''}".strip()) from error
    wait_until_gone(ctx, name)


def _runs(ctx: Context, directory: Path) -> bool:
    """Whether anything of the VM runs, after its pid files were put right."""
    ctx.effects.silently(lambda: vm_processes.make_pid_files_true(directory), False)
    return bool(vm_processes.running(directory))


def wait_until_gone(ctx: Context, name: str) -> None:
    """Wait until no process of the VM lives. Raises LimaError that names those that do."""
    ctx.effects.silently(lambda: _wait(ctx, name), None)


def _wait(ctx: Context, name: str) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT
    while left := vm_processes.running(ctx.lima.home / name):
        if time.monotonic() > deadline:
            raise _runs_on(name, left, "limactl said that it was stopped.")
        time.sleep(0.05)


def _runs_on(name: str, left: dict[Identity, Path], why: str) -> LimaError:
    numbers = " ".join(str(each.pid) for each in left)
    return LimaError(
        f"{name} was not stopped: {vm_processes.words(left)} still runs.",
        details=why,
        resolution=f"Run `claude-sandbox stop -f`, or end it yourself (`kill {numbers}`), then try again.",
    )


# -- removal -------------------------------------------------------------------------------------


def check_unprotected(ctx: Context, name: str) -> None:
    """Raise RefusedError for a VM that the user protected in Lima."""
    if (ctx.lima.home / name / "protected").exists():
        raise RefusedError(
            f"{name} is protected: it was not deleted.",
            details="Somebody said `limactl protect` to keep it.",
            resolution=f"To delete it all the same, first: {ctx.lima.command('unprotect', name)}",
        )


def check_no_link(ctx: Context, name: str) -> None:
    """Raise RefusedError where a symlink has the place of a VM's directory: what it leads to would stay."""
    directory = ctx.lima.home / name
    if directory.is_symlink():
        raise RefusedError(
            f"{name} was not deleted: {name} is a symlink to {os.readlink(directory)}.",
            details=f"Only what is in {ctx.lima.home} itself is deleted.",
            resolution=f"Move the directory back to {directory}, or remove both by hand.",
        )


def remove(ctx: Context, name: str) -> None:
    """Stop by force and delete an instance that is ours to delete; nothing of it is there afterwards.

    Raises RefusedError (protected, or a symlink: none is followed), LimaError (limactl's words; then its
    directory was not touched by us), ClaudeSandboxError.
    """
    directory = ctx.lima.home / name
    check_no_link(ctx, name)
    if not directory.is_dir():
        return
    check_unprotected(ctx, name)
    if _runs(ctx, directory):
        force_stop(ctx, name)
    if (directory / "lima.yaml").exists():
        ctx.lima.delete(name, force=True)
    wait_until_gone(ctx, name)
    # limactl refuses a directory without lima.yaml, and leaves files that it does not know.
    _remove_tree(ctx, directory)


def delete_without_writing(ctx: Context, name: str) -> None:
    """Delete a stopped VM without writing anything, on a disk that is full: one rename, then its files.

    A kill after the rename leaves `.NAME.deleted` with its mark, which `remove_put_aside` removes. Raises OSError,
    LimaError (it runs), RefusedError.
    """
    check_unprotected(ctx, name)
    wait_until_gone(ctx, name)
    remove_put_aside(ctx)
    aside = ctx.lima.home / _PUT_ASIDE.format(name)
    os.rename(ctx.lima.home / name, aside)
    _remove_tree(ctx, aside)


def remove_put_aside(ctx: Context) -> None:
    """Remove what a kill during `delete_without_writing` left: only what still has the mark of the VM that it was, or nothing."""
    for aside in ctx.lima.home.glob(_PUT_ASIDE.format(f"{naming.PREFIX}*")):
        try:
            text = (aside / "lima.yaml").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            with contextlib.suppress(OSError):
                ctx.effects.silently(aside.rmdir, None)
            continue
        mark = vm_mark.Mark.decode(param_of(text).get(vm_mark.MARK_PARAM, ""))
        if mark is not None and mark.kind == vm_mark.SANDBOX and aside.name == _PUT_ASIDE.format(mark.name):
            _remove_tree(ctx, aside)


def _remove_tree(ctx: Context, directory: Path) -> None:
    ctx.effects.do(f"remove {directory}", lambda: _delete_tree(directory), None)


def _delete_tree(directory: Path) -> None:
    """lima.yaml, which says whose it is, goes last."""
    for entry in directory.iterdir() if directory.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != "lima.yaml":
            with contextlib.suppress(OSError):
                entry.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise ClaudeSandboxError(f"{directory} could not be removed.", resolution="Remove it by hand.")
