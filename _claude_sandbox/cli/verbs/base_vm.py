"""The verb `rebuild-tools-vm`, and the tools VM built at a first launch, when there is none yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from _claude_sandbox.cli import render
from _claude_sandbox.errors import ClaudeSandboxError, UsageError
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.system import paths, terminal

if TYPE_CHECKING:
    from _claude_sandbox.base_vm.rebuild import BuildReport
    from _claude_sandbox.cli.commands import Call


def builder(call: Call) -> sandbox_lifecycle.BuildTools | None:
    """Builds the tools VM when there is none yet; only where somebody watches (spec 4.4)."""
    if not (terminal.interactive() or call.chosen.yes) or call.chosen.dry_run:
        return None

    def build() -> None:
        call.progress.note("There is no tools VM yet: building it now, once; sandboxes are cloned from it.")
        _build(call, "tools-vm", (), None)

    return build


def _build(call: Call, name: str, only: Sequence[str], from_packages: bool | None) -> BuildReport:
    from _claude_sandbox.base_vm import rebuild as base_vm_rebuild
    from _claude_sandbox.config.parsers import GIB, MIB
    from _claude_sandbox.vm import create as vm_create

    ctx = call.ctx
    report = base_vm_rebuild.rebuild(
        ctx.lima,
        name=name,
        only=only,
        from_packages=from_packages,
        user=ctx.user,
        cpus=call.config.cpus or vm_create.default_cpus(),
        memory_mib=(call.config.memory or vm_create.default_memory()) // MIB,
        disk_gib=(call.config.disk or 100 * GIB) // GIB,
        start_env=ctx.start_env(),
        runtime=paths.runtime_dir(),
        progress=ctx.progress,
        proxy=call.config.proxy,
        ca_files=vm_create.host_ca_files(call.config),
    )
    if not report.ok:
        print(render.marks(report.tools), file=sys.stderr)
        raise ClaudeSandboxError(
            f"The tools VM {name} was not built: a promised tool is missing.",
            details=f"The log is {report.logfile}",
            resolution="An older tools VM, if there was one, is untouched. "
            "Mend the cause and run `claude-sandbox rebuild-tools-vm` again.",
        )
    return report


def check(call: Call) -> tuple[str, tuple[str, ...]]:
    """The name and the tools that were typed. Raises UsageError."""
    from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
    from _claude_sandbox.config import parsers as config_parsers

    try:
        name = config_parsers.parse_vm_name(call.chosen.name)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    only = tuple(part.strip() for part in (call.chosen.only or "").split(",") if part.strip())
    if call.chosen.only is not None and not only:
        raise UsageError("--only: no tool in it; write TOOL,TOOL, like --only claude,node,git.")
    base_vm_catalogue.choose(only)
    return name, only


def rebuild(call: Call) -> int:
    """Build the tools VM, or one of another name, beside the old one, which it replaces."""
    name, only = check(call)
    _ = call.config  # before the host's setup: a wrong value installs nothing
    if call.chosen.dry_run:
        plan = _plan(call, name)
        if not call.chosen.json:
            call.tell("\n".join(plan))
        return call.show({"name": name, "plan": plan}, "")
    from _claude_sandbox.base_vm import rebuild as base_vm_rebuild

    base = base_vm_rebuild.check_ours(call.ready.lima, name)
    if base is not None and base.status == "Running":
        sandbox_lifecycle.stop_base(call.ctx, base)
    report = _build(call, name, only, True if call.chosen.from_packages else None)
    hint = "" if name == "tools-vm" else f" -c {name}"
    return call.show(
        report,
        f"{render.marks(report.tools)}\n{name} is built ({report.seconds:.0f} s). The log is {report.logfile}\n"
        f"Next: go to a project and run `claude-sandbox{hint}`.",
    )


def _plan(call: Call, name: str) -> list[str]:
    """What a rebuild would do, for --dry-run."""
    lima, new = call.ctx.lima, f"{name}-new"
    verbs = (("create", "--tty=false", f"--name={new}", "FILE"), ("start", "--tty=false", new), ("stop", new))
    return [
        f"(build or reuse the guest image in {paths.cache_dir() / 'images'}, or name Ubuntu's)",
        *(str(lima.command(*verb)) for verb in verbs),
        f"(try every tool before the stop, then swap {lima.home / new} with {lima.home / name})",
        str(lima.command("protect", "--tty=false", name)),
    ]
