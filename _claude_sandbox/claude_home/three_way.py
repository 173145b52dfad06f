"""What was last brought up to a guest, and the three-way comparison against it. Pure functions.

The manifest is in the guest, `~/.claude-sandbox/manifest.json`, and hostile data like everything there: what is
malformed counts as absent, and then the host's file wins and the guest's copy is saved.
"""

from __future__ import annotations

import fnmatch
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _claude_sandbox.system.jsonio import parse_object

VERSION = 1
MAX_FILES = 20_000
PATH_MAX = 1024  # bytes of a path below ~/.claude
SAVED = ".sandbox-saved"  # where copies are set aside, on both sides; never compared

# Claude's own runtime state, seen in ~/.claude after real sessions or named in its binary (2.1.329):
# first components (shell patterns) that are neither brought up nor compared.
EXCLUDED = (
    SAVED, ".claude.json", ".claude.json.*", ".credentials.json*", ".credentials.*", ".DS_Store", ".git",
    ".last-*", ".deep-link-*", ".update*", "*.lock", "*.log", "*.tmp", "*.tmp.*",
    "backups", "cache", "chrome", "daemon*", "debug", "downloads", "file-history", "history.jsonl", "ide",
    "image-cache", "jobs", "local", "locks", "logs", "mcp-needs-auth-cache.json", "paste-cache", "plans",
    "policy-limits.json", "projects", "remote-settings.json", "session-env", "sessions", "shell-snapshots",
    "stats-cache.json", "statsig", "tasks", "teams", "telemetry", "todos", "uploads", "usage-data",
    "worktrees",
)  # fmt: skip
NESTED_EXCLUDED = ("plugins/store",)  # Claude's own copy of its built-in plugins


@dataclass(frozen=True)
class FileState:
    """What is compared of a file: its content's sha256 in hex, and whether its owner may execute it."""

    sha256: str
    executable: bool = False


LINK = FileState("link")  # a symlink in the guest: equals nothing that the host brings

States = Mapping[str, FileState]


@dataclass(frozen=True)
class Manifest:
    """Files by their path below ~/.claude, MCP servers by name."""

    files: States = field(default_factory=dict)
    mcp: States = field(default_factory=dict)

    def encode(self) -> bytes:
        value = {"version": VERSION, "files": _encode(self.files), "mcp": _encode(self.mcp)}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes | None) -> Manifest:
        """Empty for what is not a manifest of this version; single bad entries are left out."""
        value = parse_object(raw)
        if value is None or value.get("version") != VERSION:
            return cls()
        return cls(_decode(value.get("files"), is_path), _decode(value.get("mcp"), is_name))


@dataclass(frozen=True)
class SyncPlan:
    """What to do in the guest. `save` is part of `put` and `remove`: copy the guest's file first.

    `keep` are the guest's own changes, left alone. The next manifest holds the host's states.
    """

    put: tuple[str, ...]
    remove: tuple[str, ...]
    save: tuple[str, ...]
    keep: tuple[str, ...]


def plan_sync(base: States, host: States, guest: States) -> SyncPlan:
    """Three-way (spec 5.2): changed on the host only: taken over; in the guest only: kept; both: the
    host's wins and the guest's is saved. Equal on both sides means unchanged, whatever the base says."""
    put: list[str] = []
    remove: list[str] = []
    save: list[str] = []
    keep: list[str] = []
    for path in sorted({*base, *host, *guest}):
        then, here, there = base.get(path), host.get(path), guest.get(path)
        if here == there:
            pass
        elif here == then:
            keep.append(path)
        else:
            (remove if here is None else put).append(path)
            if there is not None and there != then:
                save.append(path)
    return SyncPlan(tuple(put), tuple(remove), tuple(save), tuple(keep))


def is_excluded(path: str) -> bool:
    """Whether a relative path is Claude's runtime state or set aside by us."""
    first = path.split("/", 1)[0]
    if any(fnmatch.fnmatchcase(first, pattern) for pattern in EXCLUDED):
        return True
    return any(path == nested or path.startswith(nested + "/") for nested in NESTED_EXCLUDED)


def is_path(text: str) -> bool:
    """Whether this is a path that we carry: relative, normal, printable UTF-8, not too long."""
    if "\\" in text or not text or not is_printable(text) or len(text.encode()) > PATH_MAX:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in text.split("/"))


def is_name(text: str) -> bool:
    """Whether this can be the name of an MCP server."""
    return 0 < len(text) <= 128 and is_printable(text)


def is_printable(text: str) -> bool:
    """No control or format characters, line separators or lone surrogates (they could fake output)."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def parse_hashes(raw: bytes) -> dict[str, FileState]:
    """The guest's `hashes` file: lines of sha256sum, `executable  ./path` and `link  ./path`.

    Lines that are not well-formed, paths that we would not carry and excluded ones are left out.
    """
    states: dict[str, FileState] = {}
    for line in raw.split(b"\n"):
        try:
            word, _, path = line.decode().partition("  ./")
        except UnicodeDecodeError:
            continue
        if not is_path(path) or is_excluded(path) or len(states) >= MAX_FILES:
            continue
        if _SHA256.fullmatch(word):
            states[path] = FileState(word)
        elif word == "executable" and path in states:
            states[path] = FileState(states[path].sha256, True)
        elif word == "link":
            states[path] = LINK
    return states


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _encode(states: States) -> dict[str, list[str]]:
    return {path: [state.sha256, "x" if state.executable else ""] for path, state in states.items()}


def _decode(value: Any, valid: Any) -> dict[str, FileState]:
    states: dict[str, FileState] = {}
    if not isinstance(value, dict):
        return states
    for key, entry in value.items():
        match entry:
            case [str(sha256), ("x" | "") as mode] if valid(key) and _SHA256.fullmatch(sha256):
                states[key] = FileState(sha256, mode == "x")
    return states
