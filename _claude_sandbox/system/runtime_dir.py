"""Where sockets and one-shot files live: apart from `paths`, whose import is too slow for the fast path of `shell`.

One private directory for each HOME with its LIMA_HOME (`key`), with a short path, gone after a reboot:

    $XDG_RUNTIME_DIR/claude-sandbox/KEY    where there is such a directory and it is ours alone
    /tmp/claude-sandbox-RANDOM             else; the symlink `runtime-KEY` in the state directory names it

Others can write to /tmp, so that no name there may be predictable: whoever made it first would stop us.
Owner, mode and kind are checked at each use. A directory that a cleaner of /tmp removed is made again under
its name, or under another one when somebody else has that name by now.
"""

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False  # `typing` takes 4 ms to import
if TYPE_CHECKING:
    from collections.abc import Mapping

APP = "claude-sandbox"
SHARED = "/tmp"
# Bytes of a path here. A socket's ends at 103 on macOS, and the longest that is made below is
# `/TAG.ssh` with the 17 that ssh appends while it binds (34); `/audio/in/TAG.sock` has 27.
LONGEST = 103 - 34
_XDG_LONGEST = LONGEST - len(f"/{APP}/01234567")
_TRIES = 100


def home(environ: Mapping[str, str] = os.environ) -> str:
    return environ.get("HOME") or os.path.expanduser(f"~{_user()}")


def lima_home(environ: Mapping[str, str] = os.environ) -> str:
    """LIMA_HOME without symlinks, as Lima itself has it."""
    return os.path.realpath(environ.get("LIMA_HOME") or f"{home(environ)}/.lima")


def key(environ: Mapping[str, str] = os.environ) -> str:
    """Of a HOME with its LIMA_HOME, by what they resolve to: 8 hexadecimal digits."""
    return digest(f"{os.path.realpath(home(environ))}\0{lima_home(environ)}", 4)


def has_own_lima_home() -> bool:
    """Whether LIMA_HOME is not the one that this HOME has by itself."""
    return lima_home() != os.path.realpath(f"{home()}/.lima")


def path() -> str:
    """Where it is, or will be; "" when that is not known before it is made."""
    session = _session()
    return f"{session}/{key()}" if session else _recorded()


def make() -> str:
    """Make sure that it is there and ours alone; its path. Raises OSError."""
    session, place = _session(), path()
    if place and (not session or _claim(session)) and _claim(place):
        return place
    if session:
        raise PermissionError(1, "It belongs to somebody else", place)
    return _make_in_shared()


def places() -> tuple[str, ...]:
    """Every place where it may be, in this environment or another one of this user, made or not.

    What a sandbox may write must neither lie in one of these nor contain one. What is another user's is left
    out: by a symlink in /tmp it would lead anywhere.
    """
    known = [place for place in (path(), _recorded(), *former()) if place and _may_be_ours(place)]
    return tuple(dict.fromkeys([*known, _unpredictable()]))


def former() -> tuple[str, ...]:
    """Where the last release had it: one directory for all of a user's HOMEs. Its server may still run."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return (*((f"{base}/{APP}",) if base else ()), f"{SHARED}/{APP}-{os.getuid()}")


def is_private(directory: str) -> bool:
    """Whether it is our directory, which nobody else can write. Raises OSError."""
    info = os.lstat(directory)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022


def digest(text: str, size: int) -> str:
    """A hash of `size` bytes in hexadecimal digits."""
    try:
        from _blake2 import blake2b  # what hashlib is made of; that takes 4 ms to import
    except ImportError:
        from hashlib import blake2b
    value: str = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()
    return value


# -- inside --------------------------------------------------------------------------------------


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _session() -> str:
    """Our part of the user's XDG runtime directory; "" without a usable one."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform != "linux" or not base or len(os.fsencode(base)) > _XDG_LONGEST:
        return ""
    try:
        usable = os.path.isabs(base) and is_private(os.path.realpath(base)) and os.access(base, os.W_OK)
    except OSError:
        return ""
    return f"{base}/{APP}" if usable and _is_free_or_ours(f"{base}/{APP}") else ""


def _is_free_or_ours(directory: str) -> bool:
    try:
        info = os.lstat(directory)
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()


def _may_be_ours(directory: str) -> bool:
    try:
        return _is_free_or_ours(directory)
    except OSError:
        return False


def _unpredictable() -> str:
    return f"{SHARED}/{APP}-{os.urandom(6).hex()}"


def _claim(directory: str) -> bool:
    """Make it, or make it private; False when it is not our directory. Raises OSError."""
    try:  # noqa: SIM105 - contextlib costs an import
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    if not _is_free_or_ours(directory):
        return False
    if os.lstat(directory).st_mode & 0o077:
        os.chmod(directory, 0o700)
    return True


def _record() -> str:
    return f"{_state()}/runtime-{key()}"


def _recorded() -> str:
    try:
        return os.readlink(_record())
    except OSError:
        return ""


def _state() -> str:
    """The state directory as platformdirs has it, whose import takes milliseconds (a test compares them)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):
        return f"{given.rstrip('/')}/{APP}"
    return f"{home()}/{'Library/Application Support' if sys.platform == 'darwin' else '.local/state'}/{APP}"


def _make_in_shared() -> str:
    """The directory that the record names, or a new one of a name that nobody can have foreseen.

    The name is recorded before the directory is made: a kill between leaves nothing behind in /tmp.
    """
    os.makedirs(os.path.dirname(_state()), 0o700, exist_ok=True)
    if not _claim(_state()):
        raise PermissionError(1, "It belongs to somebody else", _state())
    with _Locked(f"{_state()}/runtime.lock"):
        place = _recorded()
        for _ in range(_TRIES):
            if place and _claim(place):
                return place
            place = _unpredictable()
            _write_record(place)
    raise FileExistsError(17, "Every name that was tried is taken", SHARED)


def _write_record(place: str) -> None:
    fresh = f"{_record()}.new"
    try:  # noqa: SIM105
        os.unlink(fresh)  # of a run that was killed here
    except FileNotFoundError:
        pass
    os.symlink(place, fresh)
    os.replace(fresh, _record())


class _Locked:
    """Held by one process at a time. Not system.files.lock, whose imports are too slow for the fast path."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        import fcntl

        self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_how: object) -> None:
        os.close(self._fd)
