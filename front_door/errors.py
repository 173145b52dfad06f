"""Every error that claude-sandbox raises, as one tree; all of them are in `claude_sandbox` too.

`ClaudeSandboxError` is the base. Each has `brief` (what happened), `details` (the tool's own words, or None),
`resolution` (what to do, or None) and `exit_code` (the command line's).
"""

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

__all__ = [
    "Cancelled",
    "ClaudeNotInstalledError",
    "ClaudeSandboxError",
    "ConfigError",
    "CreateError",
    "GuestConnectionError",
    "HostSetupError",
    "LimaError",
    "RefusedError",
    "SandboxExistsError",
    "SandboxNotFoundError",
    "StartError",
    "UsageError",
]
