"""The verbs `settings diff|pull` and `approve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _claude_sandbox.claude_home import pull as claude_home_pull
from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs.sandbox import running_guest
from _claude_sandbox.config import approvals as config_approvals
from _claude_sandbox.config import load as config_load
from _claude_sandbox.errors import UsageError
from _claude_sandbox.vm import shares

if TYPE_CHECKING:
    from _claude_sandbox.lima.ssh import Guest

_SIDES = {"guest": "in the sandbox", "host": "on the host", "both": "on both sides"}


def settings(call: Invocation) -> int:
    """`diff`: what differs between the settings directory and the sandbox. `pull`: take it over."""
    # What is pulled goes where the project's file says; a look needs nothing of that file.
    diff = call.options.action == "diff"
    config = call.lenient_config(ask=True) if diff else call.config
    guest = running_guest(call, config)
    found = claude_home_pull.diff(guest, shares.settings_directory(call.ctx, config), call.progress.warn)
    paths = call.options.paths
    wanted = [each for each in found if not paths or each.path in paths]
    if unknown := set(paths) - {each.path for each in found}:
        raise UsageError(
            f"No difference in {', '.join(sorted(unknown))}.",
            resolution="`claude-sandbox settings diff` lists what differs; paths are below the settings directory.",
        )
    if diff:
        return call.answer(wanted, _text(wanted))
    return _pull(call, guest, [each for each in wanted if each.side != "host"])


def _text(found: list[claude_home_pull.Difference]) -> str:
    if not found:
        return "The sandbox has the same settings as the settings directory."
    lines = []
    for each in found:
        code = " (runs as code)" if each.is_code else ""
        lines += [
            f"{render.printable(each.path)}: {each.what} {_SIDES[each.side]}{code}",
            each.text.rstrip("\n"),
        ]
    return "\n".join(lines)


def _pull(call: Invocation, guest: Guest, wanted: list[claude_home_pull.Difference]) -> int:
    """Take over what the sandbox changed, after the user has looked at it."""
    if not wanted:
        return call.show([], "The sandbox changed nothing that could be taken over.")
    if not call.options.json:
        print(_text(wanted))
    if code := [each.path for each in wanted if each.is_code]:
        call.progress.warn(f"Every sandbox, and Claude on this host, would run: {', '.join(code)}")
    names = [each.path for each in wanted]
    if call.options.dry_run:
        return call.show(names, "")
    call.require_yes(f"Take {len(wanted)} into {call.config.settings}?", "Nothing was taken over.")
    written = claude_home_pull.pull(guest, call.config.settings, names, call.progress.warn)
    return call.show(written, "\n".join(f"changed {render.printable(path)}" for path in written))


def approve(call: Invocation) -> int:
    """Allow what the project's file asks for, after the user has looked at it."""
    dry = call.options.dry_run
    try:
        config_load.load({"dir": call.options.dir})
    except config_approvals.ApprovalNeeded as needed:
        call.report(needed.brief)
        if not dry:
            call.require_yes("Allow it?", "Nothing was approved.")
            config_approvals.approve(call.project, needed.digest)
        value = {"project": call.project, "wants": needed.wants, "approved": not dry}
        return call.show(value, "Approved, until that file changes.")
    nothing = "Nothing in this project needs an approval."
    if dry and not call.options.json:
        call.report(nothing)
    return call.show({"project": call.project, "wants": [], "approved": True}, nothing)
