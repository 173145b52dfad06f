"""`settings diff` and `settings pull`: what a guest changed in its ~/.claude, and bringing it back.

Everything read here comes from the guest. Differences are shown without control characters and cut to
a sane length; files are written only inside the settings directory, through no symlink, and the host's
previous version is kept in `.sandbox-saved` there.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from _claude_sandbox.claude_home import host_tree, three_way
from _claude_sandbox.claude_home.first_run import dump, json_state, without_first_run_keys
from _claude_sandbox.claude_home.guest_state import GuestState, fetch, read_tar
from _claude_sandbox.claude_home.host_tree import CLAUDE_JSON, SETTINGS, Warn
from _claude_sandbox.claude_home.three_way import FileState, States
from _claude_sandbox.errors import ClaudeSandboxError, RefusedError, UsageError
from _claude_sandbox.lima.ssh import GuestLike, guest_script
from _claude_sandbox.system import jsonio
from _claude_sandbox.system.text import printable

MCP = f"{CLAUDE_JSON}:mcpServers."  # a difference's path for one MCP server
DIFF_FILE_MAX = 256 * 1024  # bytes of a file of which a text difference is made
DIFF_LINES = 200  # of one file
PULL_FILE_MAX = 8 * 1024 * 1024  # bytes of a file that is brought back
BATCH = 32  # files a call; times DIFF_FILE_MAX it stays below what Guest.run keeps of an answer

Side = Literal["guest", "host", "both"]
What = Literal["added", "changed", "removed"]
# What Claude or a shell runs, or takes orders from.
_CODE = ("hooks/", "commands/", "agents/", "skills/", "plugins/", "output-styles/", "rules/", MCP)


@dataclass(frozen=True)
class Difference:
    """One path below ~/.claude (or MCP + a server's name) that is not the same on both sides.

    `side` changed it since it was last brought up; `what` happened to it there (`both`: in the guest).
    `text` is a unified difference from the host's version to the guest's, or says why there is none.
    """

    path: str
    side: Side
    what: What
    text: str
    is_code: bool


def diff(guest: GuestLike, settings_dir: Path, warn: Warn) -> list[Difference]:
    """Everything that differs, sorted by path. Raises as claude_home.guest_state.fetch and claude_home.host_tree.scan do."""
    tree, state = host_tree.scan(settings_dir, warn), fetch(guest)
    found: list[Difference] = []
    changed = _compare(state.base.files, tree.files, state.files)
    there = _read_guest(guest, state, [p for p in changed if p in state.files], DIFF_FILE_MAX, BATCH)
    for path, (side, what) in changed.items():
        here = _read_host(tree.sources.get(path))
        new = there.get(path)
        if path in state.files and new is None:
            text = "(a symlink, or too large to show)"
        else:
            if path == SETTINGS:
                here, new = _clean(here), _clean(new)
            text = unified(path, here, new)
        code = path.startswith(_CODE) or path == SETTINGS or state.files.get(path, three_way.LINK).executable
        found.append(Difference(path, side, what, text, code))
    servers = _servers(state)
    for name, (side, what) in _compare(state.base.mcp, tree.mcp_states, _states(servers)).items():
        text = unified(MCP + name, _dumped(tree.mcp, name), _dumped(servers, name))
        found.append(Difference(MCP + name, side, what, text, True))
    return sorted(found, key=lambda item: item.path)


def pull(guest: GuestLike, settings_dir: Path, wanted: Sequence[str], warn: Warn) -> list[Path]:
    """Bring the guest's versions of these paths to the host; what it removed is removed here.

    Returns the host files that changed. Raises UsageError for a path that does not differ or cannot be
    carried, RefusedError where it would be written through a symlink. The caller has asked the user.
    """
    tree, state = host_tree.scan(settings_dir, warn), fetch(guest)
    servers = _servers(state)
    differing = set(_compare(state.base.files, tree.files, state.files))
    differing |= {MCP + name for name in _compare(state.base.mcp, tree.mcp_states, _states(servers))}
    unknown = sorted(set(wanted) - differing)
    if unknown:
        raise UsageError(
            f"No difference in {', '.join(map(printable, unknown))}.",
            resolution="`settings diff` lists them.",
        )
    plain = [path for path in wanted if not path.startswith(MCP)]
    names = [path.removeprefix(MCP) for path in wanted if path.startswith(MCP)]
    contents = _read_guest(guest, state, [p for p in plain if p in state.files], PULL_FILE_MAX, 1)
    for path in plain:
        if path in state.files and path not in contents:
            raise UsageError(f"{path} is a symlink in the sandbox, or larger than {PULL_FILE_MAX >> 20} MiB.")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    written = []
    for path in plain:
        content = contents.get(path)
        if path == SETTINGS and content is not None:
            content = without_first_run_keys(content)
        executable = state.files.get(path, three_way.LINK).executable
        written.append(write_inside(settings_dir, path, content, executable, stamp))
    if names:
        written.append(_pull_servers(settings_dir, names, servers, stamp))
    return written


def write_inside(root: Path, path: str, content: bytes | None, executable: bool, stamp: str) -> Path:
    """Replace (or with None: remove) root/path atomically, keeping the previous version.

    No component below `root` is followed if it is a symlink: RefusedError.
    """
    if not three_way.is_path(path):
        raise UsageError(f"{printable(path)} is not a path in the settings directory.")
    *parents, name = path.split("/")
    with _directory(root, parents) as directory:
        old = _read_at(directory, name, root / path)
        if old is not None:
            with _directory(root, [three_way.SAVED, stamp, *parents]) as backup:
                _write_at(backup, name, old, 0o600)
        if content is not None:
            _write_at(directory, name, content, 0o755 if executable else 0o644)
        elif old is not None:
            os.unlink(name, dir_fd=directory)
    return root / path


# -- inside ----------------------------------------------------------------------------------------


def _compare(base: States, host: States, guest: States) -> dict[str, tuple[Side, What]]:
    plan = three_way.plan_sync(base, host, guest)
    found: dict[str, tuple[Side, What]] = {}
    for path in (*plan.put, *plan.remove, *plan.keep):
        side: Side = "guest" if path in plan.keep else "host"
        if side == "host" and guest.get(path) != base.get(path):
            side = "both"
        now = host.get(path) if side == "host" else guest.get(path)
        before = base.get(path) if base.get(path) or side != "both" else host.get(path)
        what: What = "removed" if now is None else "changed" if before is not None else "added"
        found[path] = (side, what)
    return found


def _read_guest(
    guest: GuestLike, state: GuestState, wanted: Sequence[str], limit: int, batch: int
) -> dict[str, bytes]:
    """The guest's files; those missing are links, too large, or gone meanwhile."""
    found: dict[str, bytes] = {}
    regular = [path for path in wanted if state.files[path] != three_way.LINK]
    for start in range(0, len(regular), batch):
        part = regular[start : start + batch]
        lines = "".join(f"{path}\n" for path in part).encode()
        result = guest.run(guest_script("settings-get.sh"), str(limit), input=lines)
        content, cut = read_tar(result.stdout, dict.fromkeys(part)) if result.stdout else ({}, False)
        if cut or not result.ok:
            raise ClaudeSandboxError("The sandbox did not send its files.", details=result.error_text[-500:])
        found |= {path: data for path, data in content.items() if len(data) <= limit}
    return found


def _read_host(source: Path | None) -> bytes | None:
    if source is None:
        return None
    try:
        with source.open("rb") as file:
            return file.read(DIFF_FILE_MAX + 1)
    except OSError:  # removed since the scan: shown as not there
        return None


def _clean(raw: bytes | None) -> bytes | None:
    """settings.json in one layout (Claude rewrites it), without the keys that we add."""
    value = jsonio.parse_object(raw)
    return raw if value is None else without_first_run_keys(dump(value))


def _servers(state: GuestState) -> dict[str, Any]:
    return host_tree.mcp_servers(jsonio.parse_object(state.claude_json) or {})


def _states(servers: Mapping[str, Any]) -> dict[str, FileState]:
    return {name: json_state(value) for name, value in servers.items()}


def _dumped(servers: Mapping[str, Any], name: str) -> bytes | None:
    return dump({name: servers[name]}) if name in servers else None


def _pull_servers(settings_dir: Path, names: Sequence[str], servers: Mapping[str, Any], stamp: str) -> Path:
    try:
        raw: bytes | None = (settings_dir / CLAUDE_JSON).read_bytes()
    except FileNotFoundError:
        raw = None
    document = jsonio.parse_object(raw)
    if raw is not None and document is None:
        raise ClaudeSandboxError(f"{settings_dir / CLAUDE_JSON} is not a JSON object: repair it first.")
    old = (document or {}).get("mcpServers")
    mine = {
        name: value for name, value in (old if isinstance(old, dict) else {}).items() if name not in names
    }
    mine |= {name: servers[name] for name in names if name in servers}
    return write_inside(
        settings_dir, CLAUDE_JSON, dump({**(document or {}), "mcpServers": mine}), False, stamp
    )


def unified(path: str, here: bytes | None, there: bytes | None) -> str:
    """A unified difference fit for a terminal: bounded, without control characters."""
    if any(raw is not None and (b"\0" in raw or len(raw) > DIFF_FILE_MAX) for raw in (here, there)):
        return "(not text, or too large to show)"
    old, new = ((raw or b"").decode("utf-8", "replace").splitlines() for raw in (here, there))
    # Lines without any in common make difflib quadratic: bound its work, not only its output.
    if len(old) > 5000 or len(new) > 5000:
        return "(too many lines to show)"
    names = (
        f"host/{path}" if here is not None else "none",
        f"sandbox/{path}" if there is not None else "none",
    )
    lines = [
        printable(line.replace("\t", "    "), instead="?")[:500]
        for line in difflib.unified_diff(old, new, *names, lineterm="")
    ]
    if len(lines) > DIFF_LINES:
        lines = [*lines[:DIFF_LINES], f"… {len(lines) - DIFF_LINES} more lines"]
    return "\n".join(lines)


@contextlib.contextmanager
def _directory(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """A descriptor of root/parts…, made where missing, no symlink followed below root."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    current = os.open(root, flags)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=current)
            try:
                below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=current)
            except OSError as error:
                raise _refused(root / "/".join(parts)) from error
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _read_at(directory: int, name: str, shown: Path) -> bytes | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(shown) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refused(shown)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _write_at(directory: int, name: str, content: bytes, mode: int) -> None:
    temporary = f".sandbox-{secrets.token_hex(8)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _refused(path: Path) -> RefusedError:
    return RefusedError(
        f"{path} cannot be replaced: it, or a directory above it, is a symlink or not a regular file.",
        resolution="Look at `settings diff` and change the file that it points to yourself.",
    )
