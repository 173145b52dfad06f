"""The settings directory on the host: what is brought up from it, and warnings about it.

Symlinks are resolved here, where they mean something: a link out of the directory is followed (the user's
dotfiles), unless it leads to or through what a guest can write. Special files, link loops and names that cannot
travel are left out with a warning; a directory that is too large is an error, because a half of it would be worse.
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
    scanned = _Scan(directory, warn, functools.cache(guests))
    info = directory.stat()
    scanned.walk(directory, "", frozenset({(info.st_dev, info.st_ino)}))
    known = (jsonio.read_object(cache) if cache else None) or {}
    states = scanned.states(known)
    if cache and scanned.hashes != known:
        system_files.write_json(cache, scanned.hashes)
    sources = {path: scanned.found[path][0] for path in states}
    servers = directory / CLAUDE_JSON
    looked_at = (str(directory), str(servers), *scanned.looked_at)
    return HostTree(
        states, sources, {} if scanned.is_planted(servers) else scanned.servers(servers), looked_at
    )


@dataclass
class _Scan:
    """`hashes` of the files, by path, in the form of the cache."""

    root: Path
    warn: Warn
    guests: Callable[[], Collection[Path]]
    found: dict[str, tuple[Path, os.stat_result]] = field(default_factory=dict)
    looked_at: list[str] = field(default_factory=list)
    hashes: dict[str, list[Any]] = field(default_factory=dict)
    entries: int = 0
    total: int = 0

    def leave_out(self, what: object, why: object) -> None:
        reason = why.strerror if isinstance(why, OSError) else why
        self.warn(f"Left out of the settings: {what} ({reason}).")

    # -- which files ---------------------------------------------------------------------------------

    def walk(self, directory: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        """Find the files below `directory`; `above` identifies it and the directories over it."""
        for entry in self._listed(directory):
            path = prefix + entry.name
            if three_way.is_excluded(path):
                continue
            if not three_way.is_path(path):
                self.leave_out(repr(path), "a name that cannot travel")
                continue
            self.looked_at.append(entry.path)
            if not self.is_planted(Path(entry.path)):
                self._enter(entry, path, above)

    def _enter(self, entry: os.DirEntry[str], path: str, above: frozenset[tuple[int, int]]) -> None:
        try:
            info = entry.stat()
        except OSError as error:  # a dangling link, or a link that points to itself
            self.leave_out(path, error)
            return
        self._count(path, info)
        identity = (info.st_dev, info.st_ino)
        if stat.S_ISDIR(info.st_mode):
            if identity in above:
                self.leave_out(path, "a link to a directory that contains it")
            else:
                self.walk(Path(entry.path), path + "/", above | {identity})
        elif not stat.S_ISREG(info.st_mode):
            self.leave_out(path, "not a regular file")
        elif info.st_size > MAX_FILE:
            self.leave_out(path, f"larger than {MAX_FILE >> 20} MiB")
        else:
            self.found[path] = (Path(entry.path), info)

    def _listed(self, directory: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as listing:
                return iter(sorted(listing, key=lambda entry: entry.name))
        except OSError as error:
            if directory == self.root:
                raise ClaudeSandboxError(
                    f"Cannot read the settings directory {directory}: {error.strerror}."
                ) from error
            self.leave_out(directory, error)
            return iter(())

    def _count(self, path: str, info: os.stat_result) -> None:
        self.entries += 1
        if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_FILE:
            self.total += info.st_size
        if self.total > MAX_TOTAL or self.entries > MAX_ENTRIES or len(self.found) >= three_way.MAX_FILES:
            raise ClaudeSandboxError(
                f"The settings directory {self.root} is too large to bring into a VM.",
                details=f"More than {MAX_TOTAL >> 20} MiB, {three_way.MAX_FILES} files or {MAX_ENTRIES} entries; "
                f"counted up to {path}.",
                resolution="Move what Claude does not need out of it, or name another directory with --settings.",
            )

    def is_planted(self, path: Path) -> bool:
        """Whether it is a symlink to what a guest wrote, or through where it could; warns of it."""
        if not path.is_symlink():
            return False
        try:
            looked = look(path)
        except ValueError:  # a loop: reported when it is read
            return False
        roots = self.guests()
        root = next((r for r in roots if looked.real.is_relative_to(r)), None) or looked.passes(roots)
        if root is not None:
            self.leave_out(path, f"a link to {looked.real}, by way of {root}, which a sandbox can write")
        return root is not None

    # -- what is in them -----------------------------------------------------------------------------

    def states(self, known: Mapping[str, Any]) -> dict[str, FileState]:
        """Every file that can be read; `known` are hashes of an earlier run."""
        states: dict[str, FileState] = {}
        for path, (source, info) in self.found.items():
            try:
                state = self._settings(source) if path == SETTINGS else self._hash(source, info, known)
            except OSError as error:
                self.leave_out(source, error)
                continue
            if state is not None:
                states[path] = state
        return states

    def _hash(self, source: Path, info: os.stat_result, known: Mapping[str, Any]) -> FileState:
        stamp = [info.st_size, info.st_mtime_ns, info.st_ino]
        entry = known.get(str(source))
        if isinstance(entry, list) and entry[:3] == stamp and len(entry) == 4:
            sha256 = str(entry[3])
        else:
            with source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.hashes[str(source)] = [*stamp, sha256]
        return FileState(sha256, bool(info.st_mode & stat.S_IXUSR))

    def _settings(self, source: Path) -> FileState | None:
        raw = source.read_bytes()
        if jsonio.parse_object(raw) is None:
            self.warn(f"{source} is not a JSON object: Claude will complain about it.")
        return settings_state(raw)

    def servers(self, source: Path) -> dict[str, Any]:
        """`mcpServers` of the directory's .claude.json: all that is taken from that file."""
        try:
            value = jsonio.parse_object(source.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.leave_out(source, error)
            return {}
        if value is None:
            self.warn(f"{source} is not a JSON object: its MCP servers are left out.")
        return mcp_servers(value or {})


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
