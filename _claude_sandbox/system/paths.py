"""Where everything lives on the host.

    settings   ~/.claude-sandbox/.claude     shared with sandboxes, read-only (documented, fixed)
    config     user file `config.yaml`       platformdirs' config directory
    data       Lima when we install it,      platformdirs' data directory
               golden disks (disks/store.py)
    state      locks, journals, logs         platformdirs' state directory, 0700
    cache      guest images, downloads       platformdirs' cache directory
    runtime    sockets, one-shot files       system/runtime_dir.py: one of each HOME with its LIMA_HOME, 0700

Everything is computed at call time from HOME and the XDG variables, so that tests and `sudo`
see the right user.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system import runtime_dir as system_runtime_dir
from _claude_sandbox.system.runtime_dir import APP


def home() -> Path:
    return Path(os.environ.get("HOME") or Path.home())


def default_settings() -> Path:
    return home() / ".claude-sandbox" / ".claude"


def token_file() -> Path:
    """The long-lived token, beside the settings directory and so never mounted into a VM."""
    return home() / ".claude-sandbox" / "oauth-token"


def claude_directories(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The directories of the user's own Claude Code: never written by us."""
    more = environ.get("CLAUDE_CONFIG_DIR")
    return (home() / ".claude", *((Path(more),) if more else ()))


def lima_home() -> Path:
    """Without symlinks, as Lima itself takes it (pkg/limatype/dirnames, filepath.EvalSymlinks): a VM has one path.

    Raises HostSetupError when it is a symlink that leads nowhere: nothing is to be made at its end.
    """
    written = lima_home_as_written()
    if written.is_symlink() and not written.exists():
        raise HostSetupError(
            f"{written} leads to {os.readlink(written)}, which is not there.",
            resolution="Mount that file system, or let LIMA_HOME name another directory.",
        )
    return Path(os.path.realpath(written))


def lima_home_as_written() -> Path:
    """As older versions took it. For what they left under names that depend on it."""
    return Path(os.environ.get("LIMA_HOME") or home() / ".lima")


def config_file() -> Path:
    import platformdirs

    return platformdirs.user_config_path(APP) / "config.yaml"


def data_dir() -> Path:
    import platformdirs

    return platformdirs.user_data_path(APP)


def golden_dir() -> Path:
    """Where the disks are that sandboxes are linked to (disks/store.py); it may not be there yet."""
    return data_dir() / "golden"


def cache_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path(APP)


def state_dir() -> Path:
    """Made on first use, mode 0700. Raises HostSetupError when it cannot be written."""
    import platformdirs

    return private_dir(platformdirs.user_state_path(APP))


def logs_dir() -> Path:
    return private_dir(state_dir() / "logs")


def servers_dir(name: str) -> Path:
    """What the server `name` keeps over reboots. A LIMA_HOME that is not the usual one has its own servers
    (system/runtime_dir.py), and so their state apart."""
    own = f"-{system_runtime_dir.key()}" if system_runtime_dir.has_own_lima_home() else ""
    return private_dir(state_dir() / f"{name}{own}")


def runtime_dir() -> Path:
    """A private directory with a short path, gone after a reboot. Raises HostSetupError."""
    try:
        return Path(system_runtime_dir.make())
    except OSError as error:
        place = error.filename or system_runtime_dir.path() or system_runtime_dir.SHARED
        raise HostSetupError(
            f"Cannot use {place} for sockets: {error.strerror}.",
            resolution="Make it usable for your user, or set XDG_RUNTIME_DIR to a directory that is yours alone.",
        ) from error


def runtime_places() -> list[Path]:
    """Every place where the runtime directory may be for this user, made or not: what a sandbox may write
    must neither lie in one of them nor contain one."""
    return [Path(place) for place in system_runtime_dir.places()]


def private_dir(path: Path) -> Path:
    """Make `path` with mode 0700, or check that it is ours and no symlink."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise HostSetupError(
                f"{path} is not a directory of yours.",
                resolution="Someone else made it, or it is a symlink: move it away, then try again.",
            )
        if info.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise HostSetupError(
            f"Cannot use {path}: {error.strerror}.",
            resolution="Make it writable for your user, or set HOME or the XDG variables to a place that is.",
        ) from error
    return path
