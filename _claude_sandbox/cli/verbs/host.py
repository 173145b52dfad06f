"""The verbs `setup` and `doctor`, and what runs `setup` by itself when something is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.cli import render
from _claude_sandbox.errors import Cancelled, HostSetupError
from _claude_sandbox.system import terminal
from _claude_sandbox.system.run import LocalRunner

if TYPE_CHECKING:
    from _claude_sandbox.cli.commands import Call
    from _claude_sandbox.host.install import SetupPlan


def setup(call: Call) -> int:
    """Install what is missing after one question; says so when nothing is."""
    from _claude_sandbox.host import install as host_install

    plan = host_install.plan(LocalRunner(), everything=True)
    value = {"missing": [item.name for item in plan.missing], "commands": plan.describe()}
    nothing = "This host has everything that claude-sandbox needs."
    if plan.steps:
        _apply(call, plan)
    elif call.chosen.dry_run:
        call.tell(nothing)
    installed = bool(plan.steps) and not call.chosen.dry_run
    return call.show({**value, "installed": installed}, "Installed." if plan.steps else nothing)


def ensure(call: Call, check: Callable[[], None]) -> None:
    """Before a verb that starts VMs. Raises HostSetupError, Cancelled.

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
    if not call.chosen.dry_run:
        run_as.limactl_prefix(LocalRunner())  # as root: really try the user namespace


def packages_as_root(call: Call, project: Path) -> None:
    """As root, before another user is taken: the system's packages, for which that user may lack rights."""
    if call.verb.name not in ("setup", "", "shell", "create", "start", "rebuild-tools-vm"):
        return
    from _claude_sandbox.host import install as host_install
    from _claude_sandbox.host import run_as

    if run_as.user_to_become(project) is None:
        return
    everything = call.verb.name == "setup"  # its user would ask for the optional ones, too
    plan = host_install.plan(LocalRunner(), everything=everything, project=project).packages_only()
    if plan.steps:
        _apply(call, plan)


def _apply(call: Call, plan: SetupPlan) -> None:
    from _claude_sandbox.host import install as host_install

    lines = plan.describe()
    if call.chosen.dry_run:
        call.tell("\n".join(lines))
        return
    shown = "\n".join(f"  {line}" for line in lines)
    if not call.chosen.yes:
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


def doctor(call: Call) -> int:
    """Each check with ✓ or ✗ and a remedy; 0 when this host is ready, else 1."""
    from _claude_sandbox.cli import doctor as cli_doctor

    found = cli_doctor.checks(LocalRunner())
    bad = [check for check in found if check.ok is False]
    if call.chosen.json:
        render.print_json({"ready": not bad, "checks": found})
    else:
        print(render.marks(found))
        print("This host is ready." if not bad else "This host is not ready: see the remedies above.")
    return 1 if bad else 0
