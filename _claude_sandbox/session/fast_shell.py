"""The fast path of `shell`: when nothing has changed since the last one, become ssh at once.

The normal path takes 150 ms more of Python, most of it imports. At its end it leaves a note in the runtime directory:
what it looked at, and the ssh command that came of it. The next shell in the same project and the same environment
compares, and takes the normal path (where Lima is asked) if anything differs. A note holds no secret: it says
from which variable or file a value comes. Hence also the only exec outside system/run.py, marshal instead of
JSON, and no import here that costs a millisecond.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import stat
import sys

from _claude_sandbox.lima import remote_command
from _claude_sandbox.system import runtime_dir

TYPE_CHECKING = False  # `typing` takes 4 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Note = dict[str, Any]

SCHEMA = 1
# Variables that differ from one terminal, or one command, to the next and that nothing here uses.
_IGNORED = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES", "WINDOWID", "TMUX_PANE", "RANDOM"})
_MAX_FILES = 2000  # more take as long to look at as the normal path
_MAX_NOTES = 50
_TIME_STEP_NS = 50_000_000  # file times are this coarse at worst: a file that has just changed is not trusted


def exec_if_unchanged(argv: Sequence[str]) -> None:
    """Become ssh for `shell [-d DIR] [-- CMD…]`; returns where the normal path has to be taken."""
    asked = _parse(argv)
    if asked is None or os.environ.get("CLAUDE_SANDBOX_DEBUG"):
        return
    directory, arguments = asked
    try:
        project = os.path.realpath(directory, strict=True)
        note = _read(_note_path(project))
        if note is None or not _unchanged(note, project):
            return
        tty = sys.stdin.isatty() and (sys.stdout.isatty() or not arguments)
        line = remote_command.shell_line(note["point"], arguments, tty=tty)
        ssh, env = remote_command.ssh_argv(note["ssh"], note["host"], line, _environment(note["env"]), tty)
        os.execvpe(ssh[0], ssh, {**os.environ, **env})
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return


def _parse(argv: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The directory and the command of the plain forms; None for any other option."""
    words = list(argv)
    arguments: Sequence[str] = ()
    if "--" in words:
        cut = words.index("--")
        words, arguments = words[:cut], words[cut + 1 :]
    if words == ["shell"]:
        return ".", arguments
    if len(words) == 3 and words[:2] in (["shell", "-d"], ["shell", "--dir"]):
        return words[2], arguments
    return None


def _environment(origins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The session's variables (secret) from where the note says that they come from."""
    return {name: _value(kind, text) for name, (kind, text) in origins.items()}


def _value(kind: str, text: str) -> str:
    if kind == "uuid":
        return remote_command.uuid4()
    if kind == "host":
        return os.environ[text]
    if kind == "file":
        with open(text, encoding="ascii") as file:
            return file.read().strip()
    return text


# -- has anything changed? -------------------------------------------------------------------------


def _unchanged(note: Note, project: str) -> bool:
    """Whether all is as the note says, the VM and our connection to it live, and nobody holds the project's lock."""
    return (
        note["schema"] == SCHEMA
        and note["project"] == _identity(project)
        and all(_state(path) == was for path, was in note["watch"].items())
        and all(_is_alive(pid) for pid in note["pids"])
        and _is_unlocked(note["lock"])
        and _accepts(note["control"])
    )


def _identity(project: str) -> list[Any]:
    """Which directory it is, and whose (for root: who Lima runs as)."""
    info = os.stat(project)
    return [project, info.st_dev, info.st_ino, info.st_uid]


def _state(path: str) -> list[Any] | None:
    """What differs when a file or directory has changed; None when it is not there."""
    try:
        info = os.lstat(path)
        link = ""
        if stat.S_ISLNK(info.st_mode):
            link, info = os.readlink(path), os.stat(path)
    except OSError:
        return None
    return [info.st_dev, info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, link]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _is_unlocked(lock: str) -> bool:
    """Whether nobody holds the project's lock (to stop or delete its VM, say)."""
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _accepts(control: str) -> bool:
    import _socket  # what `socket` is made of; that takes 3 ms to import

    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        client.settimeout(2)
        client.connect(control)
    finally:
        client.close()
    return True


# -- notes ---------------------------------------------------------------------------------------


def _note_path(project: str) -> str:
    """One note per project and environment: two different terminals do not overwrite each other's."""
    parts = [project, *(f"{k}={v}" for k, v in sorted(os.environ.items()) if k not in _IGNORED)]
    return f"{runtime_dir.path()}/warm/{runtime_dir.digest(chr(0).join(parts), 16)}"


def _read(path: str) -> Note | None:
    if not runtime_dir.is_private(runtime_dir.path()):
        return None
    with open(path, "rb") as file:
        note = marshal.loads(file.read())
    return note if isinstance(note, dict) else None


def save(
    project: str,
    *,
    began: int,
    session: Mapping[str, Any],
    env: Mapping[str, Sequence[str]],
    watch: Iterable[str],
    lock: str,
) -> None:
    """Leave a note for the next shell in `project`, unless something watched changed since `began` (ns).

    `session`: "point", "ssh", "host", "control", "pids". `env`: by variable ("uuid", ""), ("host",
    VARIABLE), ("file", PATH) or ("text", VALUE).
    """
    from pathlib import Path

    from _claude_sandbox.system.files import write_atomic

    looked = {path: _state(path) for path in watch}
    if len(looked) > _MAX_FILES:
        return
    if any(was and max(was[4], was[5]) > began - _TIME_STEP_NS for was in looked.values()):
        return
    file = Path(_note_path(project))
    file.parent.mkdir(mode=0o700, exist_ok=True)
    notes = list(file.parent.iterdir())
    if len(notes) >= _MAX_NOTES:
        for old in notes:
            old.unlink(missing_ok=True)
    identity = _identity(project)
    note = {"schema": SCHEMA, "project": identity, "watch": looked, "lock": lock, "env": env, **session}
    write_atomic(file, marshal.dumps(note))
