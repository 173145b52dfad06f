"""The verbs `settings diff|pull` and `login`."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

from _claude_sandbox import find, login, paths, render, sandbox, settings_diff, shares, terminal
from _claude_sandbox.errors import Cancelled, SandboxNotFoundError, UsageError
from _claude_sandbox.lima import RUNNING

if TYPE_CHECKING:
    from _claude_sandbox.commands import Call
    from _claude_sandbox.config import Config
    from _claude_sandbox.guest import Guest


def settings(call: Call) -> int:
    """`diff`: what differs between the settings directory and the sandbox. `pull`: take it over."""
    # What is pulled goes where the project's file says; to look, that file need not be in order.
    chosen = call.config_at_hand(ask=True) if call.chosen.action == "diff" else call.config
    guest = _guest(call, chosen)
    where = shares.settings_directory(call.ctx, chosen)
    found = settings_diff.diff(guest, where, call.progress.warn)
    wanted = [d for d in found if not call.chosen.paths or d.path in call.chosen.paths]
    unknown = set(call.chosen.paths) - {d.path for d in found}
    if unknown:
        raise UsageError(f"No difference in {', '.join(sorted(unknown))}.")
    if call.chosen.action == "diff":
        _show(call, wanted)
        return 0
    return _pull(call, guest, [d for d in wanted if d.side != "host"])


def _guest(call: Call, chosen: Config) -> Guest:
    """The project's running sandbox, started if need be; never made for this."""
    if find.find(call.ctx, chosen.project) is None:
        raise SandboxNotFoundError(f"There is no sandbox for {chosen.project}.")
    instance, _ = sandbox.ensure(call.ready, chosen)
    assert instance.status == RUNNING
    guest = call.ctx.guest(instance)
    guest.connect()
    return guest


def _show(call: Call, found: list[settings_diff.Difference]) -> None:
    if call.chosen.json:
        render.print_json(found)
        return
    for item in found:
        side = {"guest": "in the sandbox", "host": "on the host", "both": "on both sides"}[item.side]
        print(f"{render.printable(item.path)}: {item.what} {side}{' (runs as code)' if item.is_code else ''}")
        print(item.text.rstrip("\n"))
    if not found:
        print("The sandbox has the same settings as the settings directory.")


def _pull(call: Call, guest: Guest, wanted: list[settings_diff.Difference]) -> int:
    """What the sandbox changed goes to the host only after the user's look."""
    if not wanted:
        print("The sandbox changed nothing that could be taken over.")
        return 0
    if not call.chosen.json:
        _show(call, wanted)
    code = [item.path for item in wanted if item.is_code]
    if code:
        call.progress.warn(f"Every sandbox, and Claude on this host, would run: {', '.join(code)}")
    if call.chosen.dry_run:
        return 0
    answer = call.confirm(f"Take {len(wanted)} into {call.config.settings}?")
    if answer is None:
        raise Cancelled("Nothing was taken over.", resolution="Without a terminal, say -y.")
    if not answer:
        raise Cancelled("Nothing was taken over.")
    written = settings_diff.pull(guest, call.config.settings, [d.path for d in wanted], call.progress.warn)
    if call.chosen.json:
        render.print_json(written)
    else:
        print("\n".join(f"changed {render.printable(path)}" for path in written))
    return 0


def login_verb(call: Call) -> int:
    """Store a token of `claude setup-token` from stdin or a hidden prompt; `--forget` removes it."""
    if call.chosen.dry_run:
        print(f"({'remove' if call.chosen.forget else 'write'} {paths.token_file()})")
        return 0
    if call.chosen.forget:
        print("Removed." if login.forget() else "No token was stored.")
        return 0
    if terminal.interactive():
        print(
            "Run `claude setup-token` where Claude Code is installed, and paste its token here.",
            file=sys.stderr,
        )
        text = getpass.getpass("Token: ")
    else:
        text = sys.stdin.read(8192)
    path = login.store_token(text)
    print(f"Stored in {path}; every sandbox uses it from its next launch on.")
    return 0
