"""Every error that a user can meet, as one tree.

    ClaudeSandboxError              exit code 1
    ├── UsageError                  2   an invalid option, name, size or port
    ├── ConfigError                 1   a configuration file: names file and line
    ├── HostSetupError              1   Lima, QEMU, ssh … missing, too old or not working
    ├── SandboxNotFoundError        1
    ├── SandboxExistsError          1   a VM or directory is already where ours should go
    ├── CreateError                 1   clone, build or first boot failed; nothing is left of it
    ├── StartError                  1   an existing VM did not come up
    ├── LimaError                   1   limactl failed, hung or answered garbage
    ├── ClaudeNotInstalledError     1   the guest has no `claude`
    ├── GuestConnectionError        1   ssh into a running VM failed
    ├── RefusedError                1   what was asked for would be unsafe
    └── Cancelled                   1   the user answered no

Each says what happened (`brief`), the tool's own words (`details`) and what to do (`resolution`).
Exit codes that are not our errors: 0 done, 124 time-out, 130 Ctrl-C (docs/vocabulary.md).
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_INTERRUPTED = 130


class ClaudeSandboxError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code = 1

    def __init__(self, brief: str, *, details: str | None = None, resolution: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        return "\n".join(part for part in (self.brief, self.details, self.resolution) if part)


def together(what: str, errors: Sequence[ClaudeSandboxError]) -> ClaudeSandboxError:
    """One error for the items of a list that failed, where the others were done; a single error stays as it is.

    `what`: "3 sandboxes were not stopped."
    """
    if len(errors) == 1:
        return errors[0]
    return ClaudeSandboxError(what, details="\n".join(str(error) for error in errors))


class UsageError(ClaudeSandboxError):
    """The command line (or an environment variable) holds an invalid value."""

    exit_code = 2


class ConfigError(ClaudeSandboxError):
    """A configuration file is wrong; `brief` starts with `FILE:LINE:`."""


class HostSetupError(ClaudeSandboxError):
    """Something on the host is missing, too old or does not work."""


class SandboxNotFoundError(ClaudeSandboxError):
    """No sandbox belongs to this project or name."""


class SandboxExistsError(ClaudeSandboxError):
    """Something that is not ours is already where a sandbox should be made."""


class CreateError(ClaudeSandboxError):
    """A VM could not be made; what was begun has been removed."""


class StartError(ClaudeSandboxError):
    """An existing VM did not come up."""


class LimaError(ClaudeSandboxError):
    """limactl failed, did not answer in time or answered something unreadable."""


class ClaudeNotInstalledError(ClaudeSandboxError):
    """The guest has no working `claude`."""


class GuestConnectionError(ClaudeSandboxError):
    """A running VM could not be reached over ssh."""


class RefusedError(ClaudeSandboxError):
    """Asked for something that would expose the host or another project."""


class Cancelled(ClaudeSandboxError):
    """The user answered no."""
