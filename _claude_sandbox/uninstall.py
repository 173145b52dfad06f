"""The verb `uninstall`: shows what claude-sandbox put on this host, asks, and removes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox import paths, render, runtime, sandbox, vm
from _claude_sandbox.errors import Cancelled, ClaudeSandboxError, HostSetupError
from _claude_sandbox.lima import Instance

if TYPE_CHECKING:
    from _claude_sandbox.commands import Call


def uninstall(call: Call) -> int:
    """VMs with our mark, then our directories. Never the settings directory or a project's file."""
    boxes, bases = _machines(call)
    directories = [d for d in _directories() if d.exists()]
    print("This would be removed:")
    for box in boxes:
        print(render.sandbox_line(box))
    for base in bases:
        print(f"  {base.name}: the tools VM")
    for directory in directories:
        print(f"  {directory}")
    print(f"This stays: {paths.home() / '.claude-sandbox'} (your settings and login), and every project.")
    if call.chosen.dry_run:
        return 0
    answer = call.confirm("Remove all that?")
    if answer is None:
        raise Cancelled("Nothing was removed.", resolution="Without a terminal, say -y.")
    if not answer:
        raise Cancelled("Nothing was removed.")
    if boxes:
        sandbox.prune(call.ctx, boxes)
    for base in bases:
        call.ctx.lima.unprotect(base.name)
        call.ctx.lima.delete(base.name)
    for directory in directories:
        shutil.rmtree(directory)
    print("Removed. What is left is the program itself: your checkout, or `pipx uninstall claude-sandbox`.")
    return 0


def _machines(call: Call) -> tuple[list[sandbox.Sandbox], list[Instance]]:
    """Our sandboxes and tools VMs; none when Lima is not there."""
    try:
        instances = call.ctx.lima.list()
    except HostSetupError:
        return [], []
    except ClaudeSandboxError as error:
        call.progress.warn(f"VMs are left alone: {error.brief}")
        return [], []
    bases = [i for i in instances if i.mark is not None and i.mark.kind == vm.TOOLS]
    return sandbox.sandboxes(call.ctx), bases


def _directories() -> list[Path]:
    import platformdirs

    return [
        paths.data_dir(),
        paths.cache_dir(),
        platformdirs.user_state_path(runtime.APP),
        paths.config_file().parent,
        paths.runtime_dir(),
    ]
