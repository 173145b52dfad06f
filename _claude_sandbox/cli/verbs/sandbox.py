"""The verbs about a sandbox's life: create, start, stop, restart, stop-all, delete, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs import base_vm
from _claude_sandbox.cli.verbs.host import context_after_setup, context_with_setup
from _claude_sandbox.errors import together
from _claude_sandbox.sandbox import lifecycle as sandbox_lifecycle
from _claude_sandbox.sandbox import summary

if TYPE_CHECKING:
    from _claude_sandbox.config.table import Config
    from _claude_sandbox.lima.ssh import Guest


def ensure(call: Invocation) -> sandbox_lifecycle.Ready:
    """The project's sandbox, running; created if need be."""
    config = call.config  # before the host's setup: a wrong value installs nothing
    return sandbox_lifecycle.ensure(context_after_setup(call), config, base_vm.builder(call))


def running_guest(call: Invocation, config: Config) -> Guest:
    """The way into the project's sandbox, which is started if need be but never created. Raises SandboxNotFoundError."""
    ready = sandbox_lifecycle.ensure_existing(context_with_setup(call), config)
    guest = call.ctx.guest(ready.instance)
    guest.connect()
    return guest


def create(call: Invocation) -> int:
    config = call.config
    made = sandbox_lifecycle.create_only(context_after_setup(call), config, base_vm.builder(call))
    return call.show(made, f"{made.name} is ready. `claude-sandbox` attaches Claude to it.")


def start(call: Invocation) -> int:
    instance = ensure(call).instance
    return call.show(summary.Sandbox.of(instance), f"{instance.name} is running.")


def stop(call: Invocation) -> int:
    done = sandbox_lifecycle.stop(call.ctx, call.project, force=call.options.force)
    return _show_end(call, done, "stopped")


def _show_end(call: Invocation, done: summary.Sandbox, state: str) -> int:
    missing = done.status == summary.MISSING
    return call.show(done, "This project has no sandbox." if missing else f"{done.name} is {state}.")


def restart(call: Invocation) -> int:
    config = call.lenient_config(ask=True)  # before the host's setup: a wrong value installs nothing
    done = sandbox_lifecycle.restart(context_after_setup(call), config, force=call.options.force)
    return call.show(done, f"{done.name} is running.")


def stop_all(call: Invocation) -> int:
    outcome = sandbox_lifecycle.Outcome()
    with outcome.going_on():
        outcome = sandbox_lifecycle.stop_all(call.ctx, force=call.options.force)
    if not call.options.dry_run:
        from _claude_sandbox.cli import servers

        with outcome.going_on():
            servers.stop_all()
    return show_outcome(call, outcome, f"Stopped {count(len(outcome.done))}.")


def show_outcome(call: Invocation, outcome: sandbox_lifecycle.Outcome, sentence: str) -> int:
    """Show what was done of a list; then raise what failed of it, as one error."""
    if not outcome.failed or (outcome.done and not call.options.json):
        call.show(outcome.done, sentence)
    if outcome.failed:
        raise together(f"{len(outcome.failed)} steps failed.", outcome.failed)
    return 0


def count(number: int) -> str:
    """`1 sandbox`, `2 sandboxes`."""
    return f"{number} sandbox" + ("" if number == 1 else "es")


def delete(call: Invocation) -> int:
    from _claude_sandbox.sandbox import removal as sandbox_removal
    from _claude_sandbox.vm import lookup as vm_lookup

    project = call.project
    found = vm_lookup.find(call.ctx, project)
    if found is not None:
        busy = busy_words([found.name])
        call.confirm_loss(
            f"{busy}Delete {found.name} with Claude's conversations in it? The project's files stay."
        )
    return _show_end(call, sandbox_removal.delete(call.ctx, project), "deleted")


def busy_words(names: Sequence[str]) -> str:
    """`Claude is working in NAME. `, as far as the hooks server knows; for a question about a loss."""
    from _claude_sandbox.hooks import client as hooks_client

    busy = [name for name in names if hooks_client.busy(name)]
    return f"Claude is working in {' and '.join(busy)}. " if busy else ""


def update(call: Invocation) -> int:
    from _claude_sandbox.vm import first_boot

    config = call.config
    instance = sandbox_lifecycle.ensure(context_after_setup(call), config).instance
    version = first_boot.update_claude(call.ctx, instance)
    return call.show({"name": instance.name, "claude": version}, f"Claude Code in {instance.name}: {version}")
