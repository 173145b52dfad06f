"""Running Claude, or a shell, in a running VM; and the note that makes the next shell quicker."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.config.table import PROJECT_FILE
from _claude_sandbox.lima import remote_command
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.session import fast_shell
from _claude_sandbox.session.attach import (
    Attachment,
    attach,
    forget_old_sessions,
    run_attached,
    run_in_new_tmux,
)
from _claude_sandbox.system import paths, program, terminal
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals.tmux import Tmux
from _claude_sandbox.vm.locks import project_lock_path
from _claude_sandbox.vm.target import Target
from _claude_sandbox.voice import grants as voice_grants

if TYPE_CHECKING:
    from _claude_sandbox.claude_home.prepare import SessionInputs


def run_claude(
    ctx: Context, target: Target, arguments: Sequence[str], *, new: bool, inputs: SessionInputs | None = None
) -> int:
    """Claude on the terminal; its exit code, or 0 after a detach. Attaches a live session again.

    `inputs` is what the VM's start has brought already.
    """
    config, instance = target.config, target.instance
    forget_old_sessions()
    tmux = Tmux(ctx.runner)
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    live = _live(ctx, tmux, instance) if tty and not new and not arguments else None
    if live:
        if config.sources.get("voice", "").startswith("--"):
            ctx.progress.warn("This is the session that ran already; --voice counts for a new one (--new).")
        return attach(ctx, tmux, live)
    # Not on the way to a live session: these take 20 ms to import.
    from _claude_sandbox.claude_home.prepare import bring_up_to_date
    from _claude_sandbox.vm import first_boot

    inputs = inputs or bring_up_to_date(ctx, target)
    first_boot.mention_old_claude(ctx, instance)
    if config.voice and (trouble := voice_grants.trouble(config.voice_command)):
        ctx.progress.warn(trouble)
    line = remote_command.claude_line(target.point, arguments, voice=config.voice)
    command = ctx.guest(instance).command(line, inputs.env, tty=tty)
    uuid = inputs.env["CLAUDE_SANDBOX_UUID"]
    microphone = config.voice_command if config.voice else None
    attachment = Attachment(
        command, instance.name, str(config.settings), uuid, str(config.project), microphone
    )
    if tty and not tmux.inside() and tmux.usable() and terminal.own_tty():
        return run_in_new_tmux(ctx, tmux, attachment)
    if tty and tmux.inside():
        tmux.rename_current(instance.name)
    return run_attached(ctx, attachment)


def _live(ctx: Context, tmux: Tmux, instance: Instance) -> str | None:
    """Our session in which this VM's Claude runs, in the tmux server of this terminal.

    The last release set no marks: a session without one is ours when the record of its launch says so.
    """
    found = tmux.live_session(instance.name, instance.tag)
    if found is None and tmux.usable():
        here = tmux.socket_path()
        recorded = terminals_records.sessions_made(instance.name, ctx.runner)
        old = (pane.session_name for server, pane in recorded if server.socket == here and not pane.mark)
        found = next(old, None)
    return found


def run_shell(
    ctx: Context, target: Target, arguments: Sequence[str], *, began: int, inputs: SessionInputs | None = None
) -> int:
    """A shell, or a command, in the VM with Claude's environment; becomes ssh when it can.

    `began` is when this program did (ns), for the note that makes the next shell quicker; `inputs` as above.
    """
    tty = sys.stdin.isatty() and (sys.stdout.isatty() or not arguments)
    from _claude_sandbox.claude_home.prepare import bring_up_to_date

    inputs = inputs or bring_up_to_date(ctx, target, quick=True)
    with contextlib.suppress(OSError, ValueError):  # the next shell is a little slower then
        _leave_note(ctx, target, inputs, began)
    line = remote_command.shell_line(target.point, arguments, tty=tty)
    ctx.runner.exec(ctx.guest(target.instance).command(line, inputs.env, tty=tty))


def _leave_note(ctx: Context, target: Target, inputs: SessionInputs, began: int) -> None:
    """For session.fast_shell: all that this shell depended on, if that can be said without a secret."""
    config, instance = target.config, target.instance
    env = inputs.origins()
    pid_files = sorted(instance.dir.glob("*.pid"))
    if env is None or inputs.warned or len(pid_files) != 2:  # the host agent's and the driver's
        return
    guest = ctx.guest(instance)
    session = {
        "point": target.point,
        "ssh": guest.ssh(),
        "host": instance.ssh_host,
        "control": str(guest.control_path),
        "pids": [int(file.read_text()) for file in pid_files],
    }
    watch = [
        *pid_files, instance.dir / "lima.yaml", instance.ssh_config, paths.config_file(), paths.token_file(),
        config.project / PROJECT_FILE, "/etc/localtime", *_program(),
        *inputs.looked_at,
    ]  # fmt: skip
    fast_shell.save(
        str(config.project), began=began, session=session, env=env, watch=map(str, watch),
        lock=str(project_lock_path(config.project)),
    )  # fmt: skip


def _program() -> Iterator[Path]:
    """Our own files and their directories: a note of another version is not followed."""
    files = [program.package_file(name) for name in program.source_files()]
    yield from {file.parent for file in files}
    yield from files
