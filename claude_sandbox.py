"""The public Python API, and the way in for `python claude_sandbox.py` and the installed `claude-sandbox`.

All names of `__all__` and the module `claude_sandbox.errors` are public (docs/python.md); `_claude_sandbox` is not.
In a wheel this file is claude_sandbox/__init__.py, and what is in front_door/ is beside it.
"""

from __future__ import annotations

import os
import sys

from _claude_sandbox import __version__
from _claude_sandbox.errors import (
    Cancelled,
    ClaudeNotInstalledError,
    ClaudeSandboxError,
    ConfigError,
    CreateError,
    GuestConnectionError,
    HostSetupError,
    LimaError,
    RefusedError,
    SandboxExistsError,
    SandboxNotFoundError,
    StartError,
    UsageError,
)

TYPE_CHECKING = False  # importing `typing` takes 8 ms
if TYPE_CHECKING:
    from _claude_sandbox.hooks.attention import Session
    from _claude_sandbox.hooks.event import Event
    from _claude_sandbox.sandbox.summary import Sandbox

__all__ = [
    "Cancelled",
    "ClaudeNotInstalledError",
    "ClaudeSandboxError",
    "ConfigError",
    "CreateError",
    "Event",
    "GuestConnectionError",
    "HostSetupError",
    "LimaError",
    "RefusedError",
    "Sandbox",
    "SandboxExistsError",
    "SandboxNotFoundError",
    "Session",
    "StartError",
    "UsageError",
    "__version__",
    "main",
    "main_audio_server",
    "main_hooks_server",
    "main_rebuild_tools_vm",
]

if "__path__" not in globals():  # in a checkout: where the submodules are
    __path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "front_door")]

# Imported when they are asked for: the command line pays for none of them.
_LATE = {"Event": "hooks.event", "Sandbox": "sandbox.summary", "Session": "hooks.attention"}

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> object:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"_claude_sandbox.{_LATE[name]}"), name)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/vocabulary.md)."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["_hooks-server"]:
        return main_hooks_server(words[1:])
    if words[:1] == ["_audio-server"]:
        return main_audio_server(words[1:])
    if "shell" in words:
        from _claude_sandbox.session import fast_shell

        fast_shell.exec_if_unchanged(words)  # returns where the normal path has to be taken
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
