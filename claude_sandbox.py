"""The front door: `python claude_sandbox.py` and the installed `claude-sandbox` both come in here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from _claude_sandbox import __version__
from _claude_sandbox.errors import ClaudeSandboxError

if TYPE_CHECKING:
    from _claude_sandbox.sandbox.lifecycle import Sandbox

__all__ = [
    "ClaudeSandboxError",
    "Sandbox",
    "__version__",
    "main",
    "main_audio_server",
    "main_hooks_server",
    "main_rebuild_tools_vm",
]


def __getattr__(name: str) -> Any:
    """`from claude_sandbox import Sandbox`, without a cost for the command line."""
    if name != "Sandbox":
        raise AttributeError(name)
    from _claude_sandbox.sandbox.lifecycle import Sandbox

    return Sandbox


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/vocabulary.md)."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["_hooks-server"]:
        return main_hooks_server(words[1:])
    if words[:1] == ["_audio-server"]:
        return main_audio_server(words[1:])
    if "shell" in words:
        from _claude_sandbox.session import fast_shell

        fast_shell.become_shell(words)  # comes back when it has to be done the whole way
    from _claude_sandbox.cli import main as cli_main

    return cli_main.main(words)


def main_rebuild_tools_vm() -> int:
    """The executable `rebuild-tools-vm`: the verb of that name."""
    return main(["rebuild-tools-vm", *sys.argv[1:]])


def main_hooks_server(argv: list[str] | None = None) -> int:
    """The executable `claude-hooks-server`."""
    from _claude_sandbox.cli import servers

    return servers.hooks_server(sys.argv[1:] if argv is None else argv)


def main_audio_server(argv: list[str] | None = None) -> int:
    """The executable `claude-audio-server`."""
    from _claude_sandbox.cli import servers

    return servers.audio_server(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
