"""The verbs `setup` and `doctor`, and the setup that runs by itself before a VM is started."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.errors import Cancelled, HostSetupError, UsageError
from _claude_sandbox.system.run import LocalRunner

if TYPE_CHECKING:
    from _claude_sandbox.host.install import SetupPlan
    from _claude_sandbox.lima.context import Context


def setup(call: Invocation) -> int:
    """Install what is missing after one question; says so when nothing is."""
    from _claude_sandbox.host import install as host_install

    plan = host_install.plan(LocalRunner(), everything=True)
    value = {"missing": [item.name for item in plan.missing], "commands": plan.describe()}
    nothing = "This host has everything that claude-sandbox needs."
    if plan.steps:
        _apply(call, plan)
    elif call.options.dry_run:
        call.report(nothing)
    installed = bool(plan.steps) and not call.options.dry_run
    return call.show({**value, "installed": installed}, "Installed." if plan.steps else nothing)


def doctor(call: Invocation) -> int:
    """Each check with ✓ or ✗ and a remedy; 0 when this host is ready, else 1."""
    from _claude_sandbox.cli import doctor as cli_doctor

    found = cli_doctor.checks(LocalRunner())
    bad = [check for check in found if check.ok is False]
    end = "This host is ready." if not bad else "This host is not ready: see the remedies above."
    call.answer({"ready": not bad, "checks": found}, f"{render.marks(found)}\n{end}")
    return 1 if bad else 0


def context_after_setup(call: Invocation) -> Context:
    """The context for verbs that start VMs. Where Lima is missing, all that the host lacks is installed now.

    Raises HostSetupError, UsageError, Cancelled.
    """
    try:
        return context_with_setup(call)
    except HostSetupError:
        _set_up(call)
        return context_with_setup(call)


def context_with_setup(call: Invocation) -> Context:
    """The context whose `before_start` installs what the host lacks, once. Raises HostSetupError without Lima."""
    return replace(call.ctx, before_start=functools.cache(lambda: _set_up(call)))


def _set_up(call: Invocation) -> None:
    from _claude_sandbox.config import parsers as config_parsers
    from _claude_sandbox.vm import checks as vm_checks

    _check_places(call)
    typed = call.typed_settings["ports"]
    ports = config_parsers.parse_ports(typed) if typed else ()
    _install_missing(call, lambda: vm_checks.check_ports(ports))


def _check_places(call: Invocation) -> None:
    """The directory and the file that were typed exist. Raises UsageError."""
    settings, template = call.typed_settings["settings"], call.typed_settings["template"]
    if settings and not Path(settings).expanduser().is_dir():
        raise UsageError(f"Settings directory not found: {settings}")
    if template and ":" not in template and not Path(template).expanduser().is_file():
        raise UsageError(f"Template not found: {template}")


def _install_missing(call: Invocation, check: Callable[[], None]) -> None:
    """Raises HostSetupError, Cancelled.

    `check` raises what the command cannot do anyway: it is called when something is missing, before that is
    reported or installed.
    """
    from _claude_sandbox.host import install as host_install
    from _claude_sandbox.host import run_as

    try:
        plan = host_install.plan(LocalRunner())
    except HostSetupError:
        check()
        raise
    if plan.steps:
        check()
        _apply(call, plan)
    if not call.options.dry_run:
        run_as.limactl_prefix(LocalRunner())  # as root: really try the user namespace


def become_user(call: Invocation) -> None:
    """As root on Linux: become the user behind sudo, or the project's owner, if there is one (facts/checked.md).

    Before that the system's packages are installed, for which that user may lack rights.
    """
    from _claude_sandbox.host import run_as

    project = call.project
    if call.verb.installs and run_as.user_to_become(project) is not None:
        from _claude_sandbox.host import install as host_install

        everything = call.verb.name == "setup"  # its user would ask for the optional ones, too
        plan = host_install.plan(LocalRunner(), everything=everything, project=project).packages_only()
        if plan.steps:
            _apply(call, plan)
    if note := run_as.become_user(project):
        call.progress.note(note)
        del call.project  # that user may see another directory there


def _apply(call: Invocation, plan: SetupPlan) -> None:
    from _claude_sandbox.host import install as host_install
    from _claude_sandbox.system import terminal

    lines = plan.describe()
    if call.options.dry_run:
        call.report("\n".join(lines))
        return
    shown = "\n".join(f"  {line}" for line in lines)
    if not call.options.yes:
        if not terminal.interactive():
            raise HostSetupError(
                f"This host lacks {plan.missing_text()}.",
                details=f"What would be run:\n{shown}",
                resolution="Run `claude-sandbox setup -y`, or these commands yourself.",
            )
        print(f"This host lacks {plan.missing_text()}. To install it:\n{shown}", file=sys.stderr)
        if not terminal.ask("Go on?"):
            raise Cancelled("Nothing was installed.")
    host_install.apply(plan, LocalRunner(), call.progress)
