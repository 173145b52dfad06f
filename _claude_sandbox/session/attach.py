"""The user's terminal at Claude: in a tmux session that we make, or in place; up to Claude's exit code."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ClaudeNotInstalledError, ClaudeSandboxError, GuestConnectionError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, Instance, tag
from _claude_sandbox.lima.ssh import SSH_FAILED
from _claude_sandbox.system import paths, program, terminal
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.run import Command
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals.tmux import Tmux, session_mark
from _claude_sandbox.voice import grants as voice_grants

NOT_FOUND = 127


@dataclass(frozen=True)
class Attachment:
    """The user's terminal at a command in a sandbox, and what to do when that ends; can travel through a file.

    `settings` is the settings directory. `uuid` (CLAUDE_SANDBOX_UUID in the guest) and `project` lead a hook event of
    this Claude to its terminal. `voice`: it may use the microphone, by this command if it names one.
    """

    command: Command
    vm: str
    settings: str
    uuid: str = ""
    project: str = ""
    voice: tuple[str, ...] | None = None

    def save(self, path: Path) -> None:
        """Write it (it holds the credential) to a 0600 file that is read once."""
        command = self.command
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TMUX")}
        data = {
            **vars(self),
            "command": [command.argv, command.env, sorted(command.hidden)],
            "environ": environ,
        }
        write_atomic(path, json.dumps(data).encode())

    @classmethod
    def load(cls, path: Path) -> Attachment:
        """Read and remove the file, and take over the environment of who wrote it."""
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ClaudeSandboxError("This session's file is gone; start claude-sandbox again.") from error
        path.unlink(missing_ok=True)
        keep = {k: v for k, v in os.environ.items() if k.startswith("TMUX") or k == "TERM"}
        os.environ.update({**data.pop("environ"), **keep})
        argv, env, hidden = data.pop("command")
        from _claude_sandbox.claude_home.prepare import guest_term

        term = guest_term(os.environ.get("TERM", ""))
        command = Command(tuple(argv), {**env, "TERM": term}, hidden=frozenset(hidden))
        voice = data.pop("voice")
        return cls(command, **data, voice=None if voice is None else tuple(voice))


def run_in_new_tmux(ctx: Context, tmux: Tmux, attachment: Attachment) -> int:
    """In a new tmux session, whose command is our verb `_session`; this terminal is attached to it."""
    name = f"{attachment.vm}-{os.getpid()}"
    file = session_file(name)
    attachment.save(file)
    argv = program.own_argv("_session", str(file))
    try:
        mark = session_mark(attachment.vm, tag(ctx.lima.home / attachment.vm), attachment.uuid)
        return _after_tmux(ctx, tmux, name, ctx.runner.foreground(tmux.new(name, argv, mark)))
    finally:
        if name not in tmux.sessions():
            file.unlink(missing_ok=True)  # the session never came to read it


def attach(ctx: Context, tmux: Tmux, name: str) -> int:
    """Attach this terminal to a live session in tmux."""
    code = ctx.runner.foreground(tmux.attach(name))
    return code if tmux.inside() else _after_tmux(ctx, tmux, name, code)


def _after_tmux(ctx: Context, tmux: Tmux, name: str, code: int) -> int:
    """Claude's exit code when the session has ended, 0 when it was only left."""
    if name in tmux.sessions():
        ctx.progress.note(f"Detached; Claude goes on. Back to it: claude-sandbox, or tmux attach -t {name}")
        return 0
    left = code_path(session_file(name))
    try:
        return int(left.read_text())
    except (OSError, ValueError):
        return code or 1
    finally:
        left.unlink(missing_ok=True)


def forget_old_sessions(age: float = 300) -> None:
    """Remove what a killed run left: a session's file holds the credential until it is read."""
    for file in paths.runtime_dir().glob("*.session"):
        with contextlib.suppress(FileNotFoundError):  # another launch does the same
            if abs(time.time() - file.stat().st_mtime) > age:
                file.unlink()


def session_file(name: str) -> Path:
    return paths.runtime_dir() / f"{name}.session"


def code_path(file: Path) -> Path:
    """Where a session in tmux leaves its exit code, for whoever is attached when it ends."""
    return file.with_suffix(".code")


def run_attached(ctx: Context, attachment: Attachment) -> int:
    """Run it on this terminal, leave the terminal clean and take a changed login back."""
    with terminal.restored() as broken, _recorded(ctx, attachment) as started, _microphone(ctx, attachment):
        code = ctx.runner.foreground(attachment.command, on_start=started)
        broken(code == SSH_FAILED)
    instance = ctx.lima.read_instance_files(attachment.vm)
    if instance is not None and code != SSH_FAILED:
        from _claude_sandbox.claude_home.prepare import collect_login

        collect_login(ctx, Path(attachment.settings), instance)
    if code == NOT_FOUND:
        raise ClaudeNotInstalledError(
            f"There is no `claude` in {attachment.vm}.",
            resolution="`claude-sandbox update` installs it there; a rebuilt base VM brings it for new sandboxes.",
        )
    if code == SSH_FAILED:
        raise GuestConnectionError(
            f"The connection to {attachment.vm} ended.",
            resolution="`claude-sandbox status` shows whether it still runs; "
            "`claude-sandbox -- --continue` takes the conversation up again.",
        )
    return code


def _recorded(
    ctx: Context, attachment: Attachment
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    return terminals_records.recorded(
        ctx.runner,
        uuid=attachment.uuid,
        sandbox=attachment.vm,
        project=attachment.project,
        warn=ctx.progress.warn,
    )


def _microphone(ctx: Context, attachment: Attachment) -> contextlib.AbstractContextManager[None]:
    """The grant for the microphone, for as long as the session runs."""
    if attachment.voice is None:
        return contextlib.nullcontext()
    instance = Instance(attachment.vm, RUNNING, ctx.lima.home / attachment.vm)
    return voice_grants.granted(instance, uid=ctx.user.uid, command=attachment.voice, warn=ctx.progress.warn)
