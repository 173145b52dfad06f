"""Running things inside a VM: our own ssh master, and the one function that quotes for the guest.

Lima's master filters SendEnv by its own list, so variables arrive empty through it; our own passes
one variable, ENVELOPE, whose value differs per session (facts/checked.md). It holds `export`
commands: secrets travel in ssh's environment and never stand in an argv on either side.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from _claude_sandbox.errors import GuestConnectionError
from _claude_sandbox.files import listens
from _claude_sandbox.lima import Instance
from _claude_sandbox.run import TIMED_OUT, Command, Result, Runner

ENVELOPE = "CLAUDE_SANDBOX_ENV"
OUTPUT_LIMIT = 16 * 1024 * 1024  # bytes that we take from a guest in one answer
SSH_FAILED = 255
_OPTIONS = (
    "-o", f"SendEnv={ENVELOPE}",
    "-o", "ForwardAgent=no",
    "-o", "ForwardX11=no",
    "-o", "LogLevel=ERROR",
)  # fmt: skip


def shell_quote(argv: Sequence[str]) -> str:
    """An argv as one line for the guest's shell: the only place where that is done."""
    return shlex.join(argv)


def envelope(env: Mapping[str, str]) -> str:
    """Variables as the value of ENVELOPE: one line of ASCII for bash's eval, `export K=$'v'; …`.

    No program is needed to open it: under emulation one costs 60 ms.
    """
    return "; ".join(f"export {name}=$'{_escaped(value)}'" for name, value in sorted(env.items()))


def _escaped(value: str) -> str:
    """For inside bash's $'…': everything but plain ASCII as \\xHH."""
    plain = set(range(0x20, 0x7F)) - {ord("'"), ord("\\")}
    return "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in value.encode("utf-8", "surrogateescape"))


def guest_script(name: str) -> str:
    """The text of a script that runs in the guest, from our package data `guest/`."""
    return (Path(__file__).parent / "guest" / name).read_text(encoding="utf-8")


OPEN_ENVELOPE = f'eval "${ENVELOPE}"; unset {ENVELOPE}; '


class Guest:
    """A running VM, reached over ssh. `runtime` is the private directory for the master's socket."""

    def __init__(self, runner: Runner, instance: Instance, runtime: Path) -> None:
        self.runner = runner
        self.instance = instance
        tag = hashlib.sha256(str(instance.dir).encode()).hexdigest()[:12]
        self.control_path = runtime / f"{tag}.ssh"

    def ssh(self, *options: str) -> tuple[str, ...]:
        return (
            "ssh", "-F", str(self.instance.ssh_config), "-o", f"ControlPath={self.control_path}",
            *_OPTIONS, *options,
        )  # fmt: skip

    def connect(self, timeout: float = 60) -> None:
        """Make sure that our master connection stands. Raises GuestConnectionError."""
        if listens(self.control_path):
            return
        self.control_path.unlink(missing_ok=True)
        # ServerAlive: the master of a VM that died must not swallow the next session.
        master = (
            *self.ssh("-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-o", "ServerAliveInterval=15"),
            "-o", "ConnectTimeout=30", "-f", "-N", self.instance.ssh_host,
        )  # fmt: skip
        # -f leaves a child behind that keeps stdout and stderr open: give it none of our pipes.
        quiet = ("sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *master)
        if not self.runner.run(Command(quiet), timeout=timeout, changes=False).ok:
            raise self._unreachable("")

    def disconnect(self) -> None:
        """End our master, if there is one."""
        if self.control_path.exists():
            self.runner.run(Command((*self.ssh("-O", "exit"), self.instance.ssh_host)), timeout=10)
            self.control_path.unlink(missing_ok=True)

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        """Run a POSIX sh script (its text) with $1… = arguments, stdin = input, no terminal.

        Raises GuestConnectionError when ssh itself failed. The guest is hostile: what comes back is
        data, cut off past OUTPUT_LIMIT bytes. A dry run really asks: what changes a guest is left out
        by the verbs.
        """
        remote = shell_quote(["sh", "-c", script, "sh", *arguments])
        command = Command((*self.ssh("-T"), self.instance.ssh_host, remote))
        result = self.runner.run(command, input=input, timeout=timeout, limit=OUTPUT_LIMIT, changes=False)
        if result.returncode == SSH_FAILED:
            raise self._unreachable(result.error_text)
        if result.returncode == TIMED_OUT:
            raise self._unreachable(f"no answer within {timeout:g} s")
        return result

    def session(self, remote: str, env: Mapping[str, str], *, tty: bool) -> Command:
        """An ssh command for `remote` (a line for the guest's shell) with `env` in the envelope.

        With a terminal TERM goes ssh's own way: inside tmux it is another one than where we began.
        """
        line = shell_quote(["bash", "-c", OPEN_ENVELOPE + remote])
        sealed = {name: value for name, value in env.items() if not (tty and name == "TERM")}
        open_ = {"TERM": env["TERM"]} if tty and "TERM" in env else {}
        return Command(
            (*self.ssh("-tt" if tty else "-T"), self.instance.ssh_host, line),
            {**open_, ENVELOPE: envelope(sealed)},
            hidden=frozenset({ENVELOPE}),
        )

    def _unreachable(self, details: str) -> GuestConnectionError:
        return GuestConnectionError(
            f"No ssh connection to {self.instance.name}.",
            details=details or None,
            resolution="It may be starting or hang; `claude-sandbox restart` starts it anew.",
        )
