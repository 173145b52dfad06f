"""The settings directory on the host: what is brought up from it, and warnings about it.

Symlinks are resolved here, where they mean something: a link out of the directory is followed (the
user's dotfiles), unless it leads to or through what a guest can write. Special files, link loops and names that cannot travel are left out with a warning;
a directory that is too large is an error, because a half of it would be worse.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox.claude_home import three_way
from _claude_sandbox.claude_home.first_run import json_state, settings_state
from _claude_sandbox.claude_home.three_way import FileState
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import files as system_files
from _claude_sandbox.system import jsonio
from _claude_sandbox.system.lookup import look
from _claude_sandbox.vm import mounts

SETTINGS = "settings.json"
CLAUDE_JSON = ".claude.json"
MAX_FILE = 32 * 1024 * 1024  # bytes; a larger file is left out
MAX_TOTAL = 128 * 1024 * 1024  # bytes of all files together
MAX_ENTRIES = 50_000  # files and directories looked at

Warn = Callable[[str], None]


@dataclass(frozen=True)
class HostTree:
    """What the host wants in the guest: states by path, where each is read, MCP servers by name.

    `looked_at` is every file and directory on which that depends, those left out included.
    """

    files: Mapping[str, FileState]
    sources: Mapping[str, Path]
    mcp: Mapping[str, Any]
    looked_at: tuple[str, ...] = ()

    @property
    def mcp_states(self) -> dict[str, FileState]:
        return {name: json_state(value) for name, value in self.mcp.items()}


@dataclass
class _Scan:
    root: Path
    warn: Warn
    found: dict[str, tuple[Path, os.stat_result]] = field(default_factory=dict)
    looked_at: list[str] = field(default_factory=list)
    entries: int = 0
    total: int = 0
    guests: Callable[[], Collection[Path]] = tuple


def scan(
    directory: Path,
    warn: Warn,
    cache: Path | None = None,
    guests: Callable[[], Collection[Path]] = tuple,
) -> HostTree:
    """Read the settings directory. `cache` is a file that remembers hashes between runs. `guests` names the
    directories that a guest can write; it is asked when there is a symlink.

    Raises ClaudeSandboxError when the directory is missing, unreadable or too large.
    """
    if not directory.is_dir():
        raise ClaudeSandboxError(
            f"Settings directory not found: {directory}",
            resolution="Make it, or name another one with --settings.",
        )
    walk = _Scan(directory, warn, guests=functools.cache(guests))
    info = directory.stat()
    _walk(walk, directory, "", frozenset({(info.st_dev, info.st_ino)}))
    known = (jsonio.read_object(cache) if cache else None) or {}
    remembered: dict[str, list[Any]] = {}
    states: dict[str, FileState] = {}
    for path, (source, info) in walk.found.items():
        if path == SETTINGS:
            state = _settings(source, warn)
        else:
            state = _hash(source, info, known, remembered, warn)
        if state is not None:
            states[path] = state
    if cache and remembered != known:
        system_files.write_json(cache, remembered)
    sources = {path: walk.found[path][0] for path in states}
    looked_at = (str(directory), str(directory / CLAUDE_JSON), *walk.looked_at)
    planted = _is_planted(walk, directory / CLAUDE_JSON)
    return HostTree(states, sources, {} if planted else _mcp_servers(directory, warn), looked_at)


def _is_planted(walk: _Scan, path: Path) -> bool:
    """Whether a symlink leads to what a guest wrote, or through where it could; warns of it."""
    if not path.is_symlink():
        return False
    try:
        looked = look(path)
    except ValueError:  # a loop: said when it is read
        return False
    roots = walk.guests()
    root = next((r for r in roots if looked.real.is_relative_to(r)), None) or looked.passes(roots)
    if root is not None:
        walk.warn(
            f"Left out of the settings: {path} (a link to {looked.real}, by way of {root}, which a sandbox can write)."
        )
    return root is not None


def _walk(walk: _Scan, directory: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
    for entry in _listed(walk, directory):
        path = prefix + entry.name
        if three_way.is_excluded(path):
            continue
        if not three_way.is_path(path):
            walk.warn(f"Left out of the settings: {path!r} (a name that cannot travel).")
            continue
        walk.looked_at.append(entry.path)
        if entry.is_symlink() and _is_planted(walk, Path(entry.path)):
            continue
        try:
            info = entry.stat()
        except OSError as error:  # a dangling link, or a link that points to itself
            walk.warn(f"Left out of the settings: {path} ({error.strerror}).")
            continue
        _count(walk, path, info)
        identity = (info.st_dev, info.st_ino)
        if stat.S_ISDIR(info.st_mode):
            if identity in above:
                walk.warn(f"Left out of the settings: {path} (a link to a directory that contains it).")
            else:
                _walk(walk, Path(entry.path), path + "/", above | {identity})
        elif not stat.S_ISREG(info.st_mode):
            walk.warn(f"Left out of the settings: {path} (no regular file).")
        elif info.st_size > MAX_FILE:
            walk.warn(f"Left out of the settings: {path} (larger than {MAX_FILE >> 20} MiB).")
        else:
            walk.found[path] = (Path(entry.path), info)


def _listed(walk: _Scan, directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as listing:
            return iter(sorted(listing, key=lambda entry: entry.name))
    except OSError as error:
        if directory == walk.root:
            raise ClaudeSandboxError(
                f"Cannot read the settings directory {directory}: {error.strerror}."
            ) from error
        walk.warn(f"Left out of the settings: {directory} ({error.strerror}).")
        return iter(())


def _count(walk: _Scan, path: str, info: os.stat_result) -> None:
    walk.entries += 1
    if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_FILE:
        walk.total += info.st_size
    if walk.total > MAX_TOTAL or walk.entries > MAX_ENTRIES or len(walk.found) >= three_way.MAX_FILES:
        raise ClaudeSandboxError(
            f"The settings directory {walk.root} is too large to bring into a VM.",
            details=f"More than {MAX_TOTAL >> 20} MiB, {three_way.MAX_FILES} files or {MAX_ENTRIES} entries; "
            f"counted up to {path}.",
            resolution="Move what Claude does not need out of it, or name another directory with --settings.",
        )


def _hash(
    source: Path, info: os.stat_result, known: Mapping[str, Any], remembered: dict[str, Any], warn: Warn
) -> FileState | None:
    stamp = [info.st_size, info.st_mtime_ns, info.st_ino]
    entry = known.get(str(source))
    if isinstance(entry, list) and entry[:3] == stamp and len(entry) == 4:
        sha256 = str(entry[3])
    else:
        try:
            with source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            warn(f"Left out of the settings: {source} ({error.strerror}).")
            return None
    remembered[str(source)] = [*stamp, sha256]
    return FileState(sha256, bool(info.st_mode & stat.S_IXUSR))


def _settings(source: Path, warn: Warn) -> FileState | None:
    try:
        raw = source.read_bytes()
    except OSError as error:
        warn(f"Left out of the settings: {source} ({error.strerror}).")
        return None
    if jsonio.parse_object(raw) is None:
        warn(f"{source} is no JSON object: Claude will complain about it.")
    return settings_state(raw)


def _mcp_servers(directory: Path, warn: Warn) -> dict[str, Any]:
    """`mcpServers` of the directory's .claude.json: all that is taken from that file."""
    source = directory / CLAUDE_JSON
    try:
        raw = source.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        warn(f"Left out of the settings: {source} ({error.strerror}).")
        return {}
    value = jsonio.parse_object(raw)
    if value is None:
        warn(f"{source} is no JSON object: its MCP servers are left out.")
        return {}
    return mcp_servers(value)


def mcp_servers(claude_json: Mapping[str, Any]) -> dict[str, Any]:
    """The user-wide MCP servers of a .claude.json, those with sane names."""
    servers = claude_json.get("mcpServers")
    if not isinstance(servers, dict):
        return {}
    return {name: value for name, value in servers.items() if three_way.is_name(name)}


def users_own_warning(directory: Path) -> str | None:
    """What to say when the settings directory is the user's own ~/.claude (spec 5.4); else None."""
    if not mounts.is_own_claude(directory.resolve()):
        return None
    return (
        f"{directory} is your own Claude directory: the sandbox can read all of it, your conversations "
        "and login included. It cannot change any of it; a login that it makes or refreshes is kept apart, "
        "and a refresh there may log your own Claude out (`claude-sandbox login` prevents that)."
    )
