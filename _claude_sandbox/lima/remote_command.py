"""What a session in a guest is: its command line, quoted once, and its environment in one variable.

Our own ssh master passes one variable, ENV_VARIABLE, whose value differs per session (docs/facts/checked.md). It
holds `export` commands: secrets travel in ssh's environment and are never in an argv on either side.
Only cheap imports here, for the fast path of `shell`.
"""

from __future__ import annotations

import os

from _claude_sandbox.system import quoting

TYPE_CHECKING = False  # `collections.abc` takes 2 ms to import
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_VARIABLE = "CLAUDE_SANDBOX_ENV"
# No program opens it, and no second shell: under emulation one costs 60 ms.
EXPORT_SNIPPET = f'eval "${ENV_VARIABLE}"; unset {ENV_VARIABLE}; '


def exports(env: Mapping[str, str]) -> str:
    """Variables as the value of ENV_VARIABLE, for a shell's eval: `export K='v'; …`."""
    return "; ".join(f"export {name}={quoting.quoted(value)}" for name, value in sorted(env.items()))


def ssh_argv(ssh: Sequence[str], host: str, line: str, env: Mapping[str, str], tty: bool) -> tuple[
    tuple[str, ...], dict[str, str]
]:  # fmt: skip
    """argv and environment (secret) of an ssh command that runs `line` in the guest with `env`.

    The user's own shell runs EXPORT_SNIPPET. With a terminal TERM goes ssh's own way: inside tmux it is
    another one than where we began.
    """
    secret_env = {name: value for name, value in env.items() if not (tty and name == "TERM")}
    open_env = {"TERM": env["TERM"]} if tty and "TERM" in env else {}
    argv = (*ssh, "-tt" if tty else "-T", host, EXPORT_SNIPPET + line)
    return argv, {**open_env, ENV_VARIABLE: exports(secret_env)}


# -- command lines -------------------------------------------------------------------------------


# Where the daemon puts `rec` and `arecord` (voice-hold.sh); the login shell has made PATH by then.
_WITH_VOICE = 'PATH="$HOME/.claude-sandbox/voice:$PATH"; export PATH; '


def claude_line(directory: str, arguments: Sequence[str], *, voice: bool = False) -> str:
    """The guest's command for `claude` with the user's arguments, in a login shell."""
    own = any(a == "--dangerously-skip-permissions" or a.startswith("--permission-mode") for a in arguments)
    argv = ["claude", *([] if own else ["--permission-mode", "bypassPermissions"]), *arguments]
    return _in(directory, ["bash", "-lc", f"{_WITH_VOICE if voice else ''}exec {quoting.shell_quote(argv)}"])


def shell_line(directory: str, arguments: Sequence[str], *, tty: bool) -> str:
    """A login shell, interactive on a terminal, or `arguments` run in one."""
    if arguments:
        return _in(directory, ["bash", "-lc", quoting.shell_quote(arguments)])
    return _in(directory, ["bash", "-il"] if tty else ["bash", "-l"])


def _in(directory: str, argv: Sequence[str]) -> str:
    return f"cd {quoting.shell_quote([directory])} && exec {quoting.shell_quote(argv)}"


def uuid4() -> str:
    """A random UUID, version 4 (the module uuid takes 7 ms to import)."""
    data = bytearray(os.urandom(16))
    data[6], data[8] = data[6] & 0x0F | 0x40, data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
