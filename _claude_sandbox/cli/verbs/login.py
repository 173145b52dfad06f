"""The verb `login`: the token that sandboxes use, or the login that they share."""

from __future__ import annotations

import getpass
import os
import sys

from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs.sandbox import running_guest
from _claude_sandbox.credentials import select as credentials_select
from _claude_sandbox.credentials import share as credentials_share
from _claude_sandbox.credentials import stores as credentials_stores
from _claude_sandbox.credentials.exchange import CredentialLogin
from _claude_sandbox.errors import RefusedError, UsageError
from _claude_sandbox.system import paths, terminal


def check_arguments(call: Invocation) -> None:
    """Raise UsageError for two of its options at once."""
    typed = [f"--{name}" for name in ("forget", "undo", "take") if getattr(call.options, name)]
    if len(typed) > 1:
        raise UsageError(f"{' and '.join(typed)} do not go together.", resolution="Use one of them.")


def login(call: Invocation) -> int:
    """Store a token of `claude setup-token` from stdin or a hidden prompt; `--forget` removes it.

    `--undo` and `--take` are about the credential that sandboxes share instead.
    """
    if call.options.undo or call.options.take:
        return _undo(call) if call.options.undo else _take(call)
    path, forget = paths.token_file(), call.options.forget
    value = {"token_file": path, "stored": path.exists()}
    if call.options.dry_run:
        call.report(f"({'remove' if forget else 'write'} {path})")
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


def _shared(call: Invocation) -> CredentialLogin:
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


def _undo(call: Invocation) -> int:
    """Put the shared login back to what it was before a sandbox changed it."""
    shared = _shared(call)
    where = shared.store.where
    if call.options.dry_run:
        call.report(f"(put the previous login back into {where})")
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


def _take(call: Invocation) -> int:
    """Use the login that was made in this project's sandbox in all of them, after the user's yes."""
    shared = _shared(call)
    where = shared.store.where
    if call.options.dry_run:
        call.report(f"(take the login of this project's sandbox into {where})")
        return call.show({"store": where, "taken": False}, "")
    guest = running_guest(call, call.config)
    name = guest.instance.name
    account, value = credentials_share.look(guest)
    if value is None:
        raise UsageError(f"There is no login in {name}.", resolution="/login in its Claude makes one.")
    question = f"Use the login of {name} in every sandbox of {call.config.settings}?"
    call.require_yes(question, "Nothing was taken over.")
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
