"""The verb `rebuild-tools-vm`, and the tools VM built at a first launch, when there is none yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs.host import context_after_setup
from _claude_sandbox.errors import ClaudeSandboxError, UsageError
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.system import terminal

if TYPE_CHECKING:
    from _claude_sandbox.base_vm.rebuild import BuildReport


def builder(call: Invocation) -> sandbox_lifecycle.BuildTools | None:
    """Builds the tools VM when there is none yet; only when somebody watches (spec 4.4)."""
    if not (terminal.interactive() or call.options.yes) or call.options.dry_run:
        return None

    def build() -> None:
        call.progress.note("There is no tools VM yet: building it now, once; sandboxes are cloned from it.")
        _build(call, "tools-vm", (), None)

    return build


def _build(call: Invocation, name: str, only: Sequence[str], from_packages: bool | None) -> BuildReport:
    from _claude_sandbox.base_vm import rebuild as base_vm_rebuild
    from _claude_sandbox.system.units import GIB
    from _claude_sandbox.vm import create as vm_create

    config = call.config
    request = base_vm_rebuild.BuildRequest(
        config.cpus or vm_create.default_cpus(), config.memory or vm_create.default_memory(), config.disk or 100 * GIB,
        name, only, from_packages, config.proxy, vm_create.host_ca_files(config),
    )  # fmt: skip
    report = base_vm_rebuild.rebuild(call.ctx, request)
    if not report.ok:
        print(render.marks(report.tools), file=sys.stderr)
        raise ClaudeSandboxError(
            f"The tools VM {name} was not built: a promised tool is missing.",
            details=f"The log is {report.logfile}",
            resolution="An older tools VM, if there was one, is untouched. "
            "Fix the cause and run `claude-sandbox rebuild-tools-vm` again.",
        )
    return report


def check_arguments(call: Invocation) -> tuple[str, tuple[str, ...]]:
    """The name and the tools that were typed. Raises UsageError."""
    from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
    from _claude_sandbox.config import parsers as config_parsers

    try:
        name = config_parsers.parse_vm_name(call.options.name)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    only = tuple(part.strip() for part in (call.options.only or "").split(",") if part.strip())
    if call.options.only is not None and not only:
        raise UsageError("--only: no tool in it; write TOOL,TOOL, like --only claude,node,git.")
    base_vm_catalogue.choose(only)
    return name, only


def rebuild(call: Invocation) -> int:
    """Build the tools VM, or one of another name, beside the old one, which it replaces."""
    name, only = check_arguments(call)
    _ = call.config  # before the host's setup: a wrong value installs nothing
    from _claude_sandbox.base_vm import exchange as base_vm_exchange

    ctx = call.ctx if call.options.dry_run else context_after_setup(call)
    base = base_vm_exchange.check_ours(ctx.lima, name)
    if base is not None and base.status == "Running":
        sandbox_lifecycle.stop_base(ctx, base)
    report = _build(call, name, only, True if call.options.from_packages else None)
    if call.options.dry_run:
        return call.show({"name": name, "plan": call.plan}, "")
    hint = "" if name == "tools-vm" else f" -c {name}"
    return call.show(
        report,
        f"{render.marks(report.tools)}\n{name} is built ({report.seconds:.0f} s). The log is {report.logfile}\n"
        f"Next: go to a project and run `claude-sandbox{hint}`.",
    )
