"""The verbs `settings diff|pull` and `login`."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING

from _claude_sandbox.claude_home import pull as claude_home_pull
from _claude_sandbox.cli import render
from _claude_sandbox.credentials import select as credentials_select
from _claude_sandbox.credentials import share as credentials_share
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import CredentialLogin
from _claude_sandbox.errors import Cancelled, RefusedError, SandboxNotFoundError, UsageError
from _claude_sandbox.lima.limactl import RUNNING
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.system import paths, terminal
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm import shares

if TYPE_CHECKING:
    from _claude_sandbox.cli.commands import Call
    from _claude_sandbox.config.table import Config
    from _claude_sandbox.lima.ssh import Guest


def settings(call: Call) -> int:
    """`diff`: what differs between the settings directory and the sandbox. `pull`: take it over."""
    # What is pulled goes where the project's file says; to look, that file need not be in order.
    chosen = call.config_at_hand(ask=True) if call.chosen.action == "diff" else call.config
    guest = _guest(call, chosen)
    where = shares.settings_directory(call.ctx, chosen)
    found = claude_home_pull.diff(guest, where, call.progress.warn)
    wanted = [d for d in found if not call.chosen.paths or d.path in call.chosen.paths]
    unknown = set(call.chosen.paths) - {d.path for d in found}
    if unknown:
        raise UsageError(
            f"No difference in {', '.join(sorted(unknown))}.",
            resolution="`claude-sandbox settings diff` lists what differs; paths are below the settings directory.",
        )
    if call.chosen.action == "diff":
        _show(call, wanted)
        return 0
    return _pull(call, guest, [d for d in wanted if d.side != "host"])


def _guest(call: Call, chosen: Config) -> Guest:
    """The project's running sandbox, started if need be; never made for this."""
    if vm_lookup.find(call.ctx, chosen.project) is None:
        raise SandboxNotFoundError(
            f"There is no sandbox for {chosen.project}.", resolution="`claude-sandbox create` makes one."
        )
    instance, _ = sandbox_lifecycle.ensure(call.ready, chosen)
    assert instance.status == RUNNING
    guest = call.ctx.guest(instance)
    guest.connect()
    return guest


def _show(call: Call, found: list[claude_home_pull.Difference]) -> None:
    if call.chosen.json:
        render.print_json(found)
        return
    for item in found:
        side = {"guest": "in the sandbox", "host": "on the host", "both": "on both sides"}[item.side]
        print(f"{render.printable(item.path)}: {item.what} {side}{' (runs as code)' if item.is_code else ''}")
        print(item.text.rstrip("\n"))
    if not found:
        print("The sandbox has the same settings as the settings directory.")


def _pull(call: Call, guest: Guest, wanted: list[claude_home_pull.Difference]) -> int:
    """What the sandbox changed goes to the host only after the user's look."""
    if not wanted:
        return call.show([], "The sandbox changed nothing that could be taken over.")
    if not call.chosen.json:
        _show(call, wanted)
    code = [item.path for item in wanted if item.is_code]
    if code:
        call.progress.warn(f"Every sandbox, and Claude on this host, would run: {', '.join(code)}")
    if call.chosen.dry_run:
        return call.show([item.path for item in wanted], "")
    answer = call.confirm(f"Take {len(wanted)} into {call.config.settings}?")
    if answer is None:
        raise Cancelled("Nothing was taken over.", resolution="Without a terminal, say -y.")
    if not answer:
        raise Cancelled("Nothing was taken over.")
    written = claude_home_pull.pull(guest, call.config.settings, [d.path for d in wanted], call.progress.warn)
    return call.show(written, "\n".join(f"changed {render.printable(path)}" for path in written))


def check_login(call: Call) -> None:
    """Raise UsageError for two of its options at once."""
    typed = [f"--{name}" for name in ("forget", "undo", "take") if getattr(call.chosen, name)]
    if len(typed) > 1:
        raise UsageError(f"{' and '.join(typed)} do not go together.", resolution="Say one of them.")


def login_verb(call: Call) -> int:
    """Store a token of `claude setup-token` from stdin or a hidden prompt; `--forget` removes it.

    `--undo` and `--take` are about the credential that sandboxes share instead.
    """
    if call.chosen.undo or call.chosen.take:
        return _undo(call) if call.chosen.undo else _take(call)
    path, forget = paths.token_file(), call.chosen.forget
    value = {"token_file": path, "stored": path.exists()}
    if call.chosen.dry_run:
        call.tell(f"({'remove' if forget else 'write'} {path})")
        return call.show(value, "")
    if forget:
        sentence = "Removed." if credentials_select.forget() else "No token was stored."
        return call.show({**value, "stored": False}, sentence)
    if terminal.interactive():
        print(
            "Run `claude setup-token` where Claude Code is installed, and paste its token here.",
            file=sys.stderr,
        )
        text = getpass.getpass("Token: ")
    else:
        text = sys.stdin.read(8192)
    path = credentials_select.store_token(text)
    return call.show(
        {"token_file": path, "stored": True},
        f"Stored in {path}; every sandbox uses it from its next launch on.",
    )


def _shared(call: Call) -> CredentialLogin:
    """The credential that sandboxes of these settings share. Raises UsageError where a token is used instead."""
    chosen = credentials_select.select(
        os.environ,
        call.config.settings,
        runner=call.runner,
        state_dir=paths.state_dir(),
        warn=call.progress.warn,
    )
    if not isinstance(chosen, CredentialLogin):
        raise UsageError(f"Sandboxes use {chosen.description}; they share no login that could change.")
    return chosen


def _undo(call: Call) -> int:
    """Put the shared login back to what it was before a sandbox changed it."""
    shared = _shared(call)
    where = shared.store.where
    if call.chosen.dry_run:
        call.tell(f"(put the previous login back into {where})")
        return call.show({"store": where, "undone": False}, "")
    by = shared.undo()
    if by is None:
        return call.show(
            {"store": where, "undone": False}, f"Nothing to undo: no sandbox has changed {where} since."
        )
    sentence = f"The previous login is back in {where}; sandboxes get it at their next launch."
    if by:
        sentence += f"\n{by} had changed it: before a login from there is used again, you are asked."
    return call.show({"store": where, "undone": True, "changed_by": by or None}, sentence)


def _take(call: Call) -> int:
    """Use the login that was made in this project's sandbox in all of them, after the user's yes."""
    shared = _shared(call)
    where = shared.store.where
    if call.chosen.dry_run:
        call.tell(f"(take the login of this project's sandbox into {where})")
        return call.show({"store": where, "taken": False}, "")
    guest = _guest(call, call.config)
    name = guest.instance.name
    account, value = credentials_share.look(guest)
    if value is None:
        raise UsageError(f"There is no login in {name}.", resolution="/login in its Claude makes one.")
    if not call.confirm(f"Use the login of {name} in every sandbox of {call.config.settings}?"):
        raise Cancelled("Nothing was taken over.", resolution="Without a terminal, say -y.")
    taken = shared.settle(value, name, account, take=True)
    if taken is None and credentials_stores.parse(shared.hand_over()) != value:
        raise RefusedError(
            f"The login of {name} was not taken over: it has expired, or its dates cannot be right.",
            resolution="Is this host's clock right? Then /login in that sandbox's Claude makes a good one.",
        )
    return call.show(
        {"store": where, "taken": True, "sandbox": name},
        f"Every sandbox of these settings gets the login of {name} now; it is in {where}.",
    )
