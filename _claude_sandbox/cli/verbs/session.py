"""The verbs that put a terminal into the sandbox: Claude (the bare command), `shell`, and the hidden `_session`."""

from __future__ import annotations

from pathlib import Path

from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verbs.sandbox import ensure
from _claude_sandbox.errors import ClaudeSandboxError


def claude(call: Invocation) -> int:
    """Run Claude Code in the project's sandbox; returns Claude's exit code."""
    from _claude_sandbox.session import launch

    ready = ensure(call)
    if call.options.dry_run:
        return 0
    new = call.options.new or ready.created
    return launch.run_claude(call.ctx, ready.target, call.rest, new=new, inputs=ready.inputs)


def shell(call: Invocation) -> int:
    """Run a login shell or a command in the project's sandbox; returns its exit code."""
    from _claude_sandbox.session import launch

    ready = ensure(call)
    if call.options.dry_run:
        return 0
    return launch.run_shell(call.ctx, ready.target, call.rest, began=call.began, inputs=ready.inputs)


def run_prepared(call: Invocation) -> int:
    """Inside our tmux session: run, and leave the exit code where whoever is attached looks for it."""
    from _claude_sandbox.session.attach import Attachment, code_path, run_attached
    from _claude_sandbox.system.files import write_atomic

    file = Path(call.options.file)
    attachment = Attachment.load(file)
    code = 1
    try:
        code = run_attached(call.ctx, attachment)
    except ClaudeSandboxError as error:
        code = error.exit_code
        raise
    finally:
        write_atomic(code_path(file), str(code).encode())
    return code
