"""Where a host directory may appear in the guest, and what of the host is never shared: the one list (spec 4.8).

docs/security.md holds LIST as a table, which a test compares. A share that lies in one of its places is
refused, and one that contains it: / and the home directory therefore always are. What is compared is
resolved, and also by device and inode: another spelling on macOS or a bind mount is the same place.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import RefusedError
from _claude_sandbox.system import paths, program

FALLBACK = Path("/mnt/project")
MOUNTS = Path("/mnt/mounts")  # a further mount whose own path does not work: below it, by its name
SETTINGS_POINT = Path("/mnt/claude-sandbox/settings")

# Lima's own rule (pkg/limayaml/validate.go): these exact places.
_FORBIDDEN = frozenset(
    Path(p)
    for p in (
        "/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin", "/tmp", "/usr", "/var",
        "/lib", "/lib64", "/mnt", "/root", "/srv", "/media",
    )
)  # fmt: skip
# The guest lives in these: nothing below them either.
_GUEST_ONLY = (
    "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64",
    "/var/lib", "/var/run", "/mnt/claude-sandbox",
)  # fmt: skip
_ASCII = re.compile(r"[A-Za-z0-9._/@+-]")


def mount_point(path: Path, homes: Iterable[Path]) -> Path:
    """Where the project appears in the guest: its own path, or FALLBACK.

    The same path works when cloud-init and Lima can carry it unquoted (facts/checked.md) and the
    guest does not need that place itself. `homes` are home directories, on the host and in the guest.
    """
    text = str(path)
    if not all(_ASCII.match(c) if c.isascii() else _printable(c) for c in text):
        return FALLBACK
    if path in _FORBIDDEN or path in set(homes) or text.startswith("/mnt/lima-"):
        return FALLBACK
    if any(path.is_relative_to(place) for place in _GUEST_ONLY):
        return FALLBACK
    return path


def _printable(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMNPS"


def check_carriable(path: Path) -> None:
    """Raise RefusedError for a path that QEMU, Lima or YAML cannot carry on the host's side.

    A comma starts a new QEMU option, a backslash is an escape in Lima's expressions, control
    characters and bytes that are not UTF-8 do not survive YAML.
    """
    text = str(path)
    bad = next((c for c in text if c in ",\\" or unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")), None)
    if bad is None:
        return
    name = {",": "a comma", "\\": "a backslash"}.get(bad, "a byte that is not UTF-8 or a control character")
    raise RefusedError(
        f"This path cannot be shared with a VM: {text!r} has {name} in it.",
        resolution="Rename the directory, or work in one with a plainer path.",
    )


def guest_parents(points: Iterable[Path]) -> list[Path]:
    """The directories above mount points that the guest's user must be able to pass, topmost first."""
    parents = {parent for point in points for parent in point.parents if parent != Path("/")}
    return sorted(parents, key=lambda p: len(p.parts))


# -- what is never shared ------------------------------------------------------------------------

OWN_CACHE_OF_ROOT = Path("/var/cache/claude-sandbox")  # the launcher's, for root


@dataclass(frozen=True)
class NeverShared:
    """One row of the list: places as text (`~/…`, `/…`, `$VARIABLE`), or a function that knows them.

    `above`: only what contains the place is refused, not what lies in it. `writable`: a read-only share
    does no harm there.
    """

    what: str
    shown: tuple[str, ...]
    find: Callable[[], Iterable[Path]] | None = None
    above: bool = False
    writable: bool = False

    def places(self) -> Iterator[Path]:
        if self.find is not None:
            yield from self.find()
        else:
            for text in self.shown:
                yield from _expanded(text)


def _running() -> Iterator[Path]:
    """The code that runs now, and the Python environment that it runs in."""
    yield program.checkout() or program.PACKAGE
    if sys.prefix != sys.base_prefix:
        yield Path(sys.prefix)


def _on_path() -> Iterator[Path]:
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        if os.path.isabs(entry) and not _holds_home(entry):
            yield Path(entry)


def _holds_home(text: str) -> bool:
    """Whether it is the home directory or above: never shared anyway, and every project lies in it."""
    return paths.home().resolve().is_relative_to(_resolved(Path(text)))


_PATH = NeverShared("a directory of your PATH", ("$PATH",), _on_path, writable=True)
_LOGIN = "claude-sandbox's login"
LIST = (
    NeverShared("Lima's directory", ("$LIMA_HOME",), lambda: [paths.lima_home()]),
    NeverShared("claude-sandbox's state", ("the state directory",), lambda: [paths.state_dir()]),
    NeverShared("claude-sandbox's data", ("the data directory",), lambda: [paths.data_dir()]),
    NeverShared("claude-sandbox's cache", ("the cache directory", str(OWN_CACHE_OF_ROOT)),
        lambda: [paths.cache_dir(), OWN_CACHE_OF_ROOT]),
    NeverShared("your configuration of claude-sandbox", ("the directory of `config.yaml`",),
        lambda: [paths.config_file().parent]),
    NeverShared("claude-sandbox's sockets", ("the runtime directory",), paths.runtime_places),
    NeverShared(_LOGIN, ("~/.claude-sandbox",)),
    NeverShared("the running claude-sandbox", ("its checkout or package", "its Python environment"), _running),
    NeverShared("your keys", ("~/.ssh", "~/.gnupg", "~/.local/share/keyrings", "~/Library/Keychains")),
    NeverShared("your own Claude Code", ("~/.claude", "~/.claude.json", "$CLAUDE_CONFIG_DIR")),
    NeverShared("what your shells and logins read",
        ("~/.profile", "~/.bash_profile", "~/.bash_login", "~/.bashrc", "~/.bash_logout", "~/.zshenv", "~/.zprofile",
         "~/.zshrc", "~/.zlogin", "$ZDOTDIR", "~/.xprofile", "~/.xsessionrc", "~/.pam_environment",
         "~/.config/environment.d", "~/.config/fish", "~/.config/zsh")),
    NeverShared("what git reads everywhere", ("~/.gitconfig", "~/.config/git")),
    NeverShared("what your session starts by itself",
        ("~/.config/autostart", "~/.config/autostart-scripts", "~/.config/plasma-workspace", "~/.config/systemd",
         "~/.config/containers/systemd", "~/.local/share/systemd", "~/.local/share/dbus-1",
         "~/.local/share/applications", "~/Library/LaunchAgents")),
    NeverShared("your programs", ("~/.local/bin", "~/.local/lib", "~/bin")),
    NeverShared("the sockets of your session", ("/run/user", "$XDG_RUNTIME_DIR")),
    NeverShared("every program's temporary files", ("/tmp", "/var/tmp"), above=True),
    NeverShared("the operating system", ("/etc", "/usr", "/usr/lib", "/usr/local/lib", "/boot", "/lib", "/var/lib", "/var/spool",
        "/Library", "/System"), above=True, writable=True),
    _PATH,
)  # fmt: skip


def table() -> str:
    """LIST as the table of docs/security.md."""
    lines = []
    for row in LIST:
        notes = ("¹" if row.above else "") + ("²" if row.writable else "")
        places = ", ".join(text if " " in text else f"`{text}`" for text in row.shown)
        lines.append(f"| {row.what} | {places} {notes}".rstrip() + " |")
    return "\n".join(lines)


# A home's directories that XDG variables may move; what is meant then is both.
_MOVED = {
    "~/.config/": "XDG_CONFIG_HOME",
    "~/.local/share/": "XDG_DATA_HOME",
}


def _expanded(text: str) -> Iterator[Path]:
    if text.startswith("$"):
        value = os.environ.get(text[1:], "")
        if os.path.isabs(value) and not _holds_home(value) and value != "/tmp":
            yield Path(value)
    elif text.startswith("~/"):
        yield paths.home() / text[2:]
        for start, variable in _MOVED.items():
            if text.startswith(start) and os.path.isabs(os.environ.get(variable, "")):
                yield Path(os.environ[variable]) / text.removeprefix(start)
    else:
        yield Path(text)


# -- comparing -----------------------------------------------------------------------------------

LIES_IN, CONTAINS = "lies in", "contains"


def relation(path: Path, place: Path) -> str | None:
    """How the resolved `path` stands to `place`: LIES_IN (also: is it), CONTAINS, or None."""
    place = _resolved(place)
    if path.is_relative_to(place) or _identity(place) in _identities(path):
        return LIES_IN
    if place.is_relative_to(path) or _identity(path) in _identities(place):
        return CONTAINS
    return None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of symlinks
        return path


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        info = path.stat()
    except OSError:
        return str(path)
    return info.st_dev, info.st_ino


def _identities(path: Path) -> set[tuple[int, int] | str]:
    return {_identity(each) for each in (path, *path.parents)}


# -- refusing ------------------------------------------------------------------------------------


def check_shareable(
    path: Path, settings: Path | None, writable: bool, *, project: bool = False
) -> list[Path]:
    """Raise RefusedError when sharing `path` (resolved) would hand the sandbox the keys to the host.

    `settings` is the settings directory, which is shared read-only and never otherwise. `project`: programs
    in it may be on PATH (an activated venv, node_modules/.bin): those directories are returned, for a warning.
    """
    rows = (
        LIST if settings is None else (NeverShared("the settings directory", (), lambda: [settings]), *LIST)
    )
    for row in rows:
        if row.writable and not writable:
            continue
        for place in row.places():
            found = relation(path, place)
            if found is None or (row.above and not _at_or_above(path, place)):
                continue
            if row is _PATH and found == CONTAINS and project:
                continue
            raise _refused(path, f"it {found} {row.what} ({_resolved(place)})")
    return _own_programs(path) if project and writable else []


def _at_or_above(path: Path, place: Path) -> bool:
    return relation(path, place) == CONTAINS or _identity(path) == _identity(_resolved(place))


def _own_programs(project: Path) -> list[Path]:
    found = [entry for entry in _on_path() if relation(project, entry) == CONTAINS]
    return list(dict.fromkeys(found))


def _refused(path: Path, why: str) -> RefusedError:
    return RefusedError(
        f"{path} cannot be shared with a sandbox: {why}.",
        details="Code in the sandbox could change it, and so act on the host, or read what it must not know.",
        resolution="Work in a separate directory, such as ~/projects/NAME; share what is needed of it alone.",
    )


def is_own_claude(directory: Path) -> bool:
    """Whether it is the directory of the user's own Claude Code (spec 5.4)."""
    own = [paths.home() / ".claude"]
    if os.environ.get("CLAUDE_CONFIG_DIR"):
        own.append(Path(os.environ["CLAUDE_CONFIG_DIR"]))
    return _identity(directory) in [_identity(_resolved(each)) for each in own]


def check_readable(path: Path, what: str = "the settings directory") -> None:
    """Raise RefusedError when a sandbox must not read `path` (resolved): the same list, for reading.

    The user's own ~/.claude alone is allowed, and what lies beside the stored token in ~/.claude-sandbox.
    """
    if is_own_claude(path):
        return
    for row in LIST:
        for place in () if row.writable else row.places():
            place = paths.token_file() if row.what == _LOGIN else place
            found = relation(path, place)
            if found is not None and not (row.above and not _at_or_above(path, place)):
                raise _unreadable(path, what, f"it {found} {row.what} ({_resolved(place)})")


def _unreadable(path: Path, what: str, why: str) -> RefusedError:
    return RefusedError(
        f"{path} cannot be shared with a sandbox as {what}: {why}.",
        details="Code in the sandbox could read all of it.",
        resolution="Use a directory that holds nothing but what a sandbox may know.",
    )
