"""Running things inside a VM, over our own ssh master.

Lima's master filters SendEnv by its own list, so variables arrive empty through it (docs/facts/checked.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from _claude_sandbox.errors import GuestConnectionError
from _claude_sandbox.lima import remote_command
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.lima.remote_command import ENV_VARIABLE
from _claude_sandbox.system import quoting
from _claude_sandbox.system.files import listens
from _claude_sandbox.system.program import package_file
from _claude_sandbox.system.run import TIMED_OUT, Command, Result, Runner

OUTPUT_LIMIT = 16 * 1024 * 1024  # bytes that we take from a guest in one answer
SSH_FAILED = 255
_OPTIONS = (
    "-o", f"SendEnv={ENV_VARIABLE}",
    "-o", "ForwardAgent=no",
    "-o", "ForwardX11=no",
    "-o", "LogLevel=ERROR",
)  # fmt: skip
# ServerAlive: a guest that hangs must not swallow the next session; a laptop that slept must not lose its own.
_MASTER = (
    "-o", "ControlMaster=yes", "-o", "ControlPersist=yes",
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=20",
)  # fmt: skip


def guest_script(name: str) -> str:
    """The text of a script that runs in the guest, from our package data `guest/`."""
    return package_file("guest", name).read_text(encoding="utf-8")


class GuestLike(Protocol):
    """What most of our code uses of Guest."""

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result: ...


class Guest:
    """A running VM, reached over ssh. `runtime` is the private directory for the master's socket."""

    def __init__(self, runner: Runner, instance: Instance, runtime: Path) -> None:
        self.runner = runner
        self.instance = instance
        self.control_path = runtime / f"{instance.tag}.ssh"

    def ssh(self, *options: str, socket: Path | None = None) -> tuple[str, ...]:
        """ssh with its options, over the master at `socket` (our own place for it if None)."""
        return (
            "ssh", "-F", str(self.instance.ssh_config), "-o", f"ControlPath={socket or self.control_path}",
            *_OPTIONS, *options,
        )  # fmt: skip

    def connect(self, timeout: float = 60) -> None:
        """Make sure that our master connection is open. Raises GuestConnectionError."""
        if listens(self.control_path):
            return
        self.control_path.unlink(missing_ok=True)
        # -f leaves a child behind that keeps stdout and stderr open: give it none of our pipes.
        quiet = ("sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *self.master())
        if not self.runner.run(Command(quiet), timeout=timeout, changes=False).ok:
            raise self._unreachable("")

    def master(self, socket: Path | None = None) -> tuple[str, ...]:
        """The ssh command that opens a master at `socket` and leaves it behind."""
        return (
            *self.ssh(*_MASTER, socket=socket), "-o", "ConnectTimeout=30", "-f", "-N", self.instance.ssh_host,
        )  # fmt: skip

    def disconnect(self) -> None:
        """End our master, if there is one."""
        if self.control_path.exists():
            self.runner.run(Command((*self.ssh("-O", "exit"), self.instance.ssh_host)), timeout=10)
            self.control_path.unlink(missing_ok=True)

    def renew(self) -> None:
        """End our master if the guest's groups and variables may have changed since it was opened.

        One that Lima shares (ssh-retry.sh) is from a boot that was whole by then, and its forwards hang on it.
        """
        if not self.control_path.is_symlink():
            self.disconnect()

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        """Run a POSIX sh script (its text) with $1… = arguments, stdin = input, no terminal.

        Raises GuestConnectionError when ssh itself failed. The guest is hostile: what comes back is
        data, cut off past OUTPUT_LIMIT bytes. A dry run really asks: what changes a guest is left out
        by the verbs.
        """
        line = quoting.shell_quote(["sh", "-c", script, "sh", *arguments])
        command = Command((*self.ssh("-T"), self.instance.ssh_host, line))
        result = self.runner.run(command, input=input, timeout=timeout, limit=OUTPUT_LIMIT, changes=False)
        if result.returncode == SSH_FAILED:
            raise self._unreachable(result.error_text)
        if result.returncode == TIMED_OUT:
            raise self._unreachable(f"no answer within {timeout:g} s")
        return result

    def command(self, line: str, env: Mapping[str, str], *, tty: bool) -> Command:
        """An ssh command for `line` (for the guest's shell) with `env`, which no argv shows."""
        argv, environment = remote_command.ssh_argv(self.ssh(), self.instance.ssh_host, line, env, tty)
        return Command(argv, environment, hidden=frozenset({ENV_VARIABLE}))

    def _unreachable(self, details: str) -> GuestConnectionError:
        return GuestConnectionError(
            f"No ssh connection to {self.instance.name}.",
            details=details or None,
            resolution="It may still be booting or hung; `claude-sandbox restart` reboots it.",
        )
