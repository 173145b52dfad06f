"""What Claude Code must find in a fresh home so that it asks nothing (spec 4.13), merged as JSON.

The keys are the minimal set that was verified with 2.1.329 (facts/claude-code.md "First run, with
no dialog"). Everything else that Claude or the user wrote into these files stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.claude_home.three_way import FileState, is_printable
from _claude_sandbox.system.jsonio import parse_object
from _claude_sandbox.system.run import Command, CommandNotFound, Runner

SETTINGS_KEYS: Mapping[str, Any] = {"skipDangerousModePermissionPrompt": True}
KEY_TAIL = 20  # characters of an API key by which Claude remembers that the user approved it


def merge_claude_json(current: Mapping[str, Any], *, key_tail: str | None = None) -> dict[str, Any]:
    """`~/.claude.json` with onboarding done, `/` (and so every directory) trusted, the key approved."""
    merged = {**current, "hasCompletedOnboarding": True, "hasSeenAutoDefaultNudge": True}
    projects = _object(current.get("projects"))
    merged["projects"] = {**projects, "/": {**_object(projects.get("/")), "hasTrustDialogAccepted": True}}
    if key_tail:
        answers = _object(current.get("customApiKeyResponses"))
        approved = _list(answers.get("approved"))
        if key_tail not in approved:
            approved = [*approved, key_tail]
        rejected = [tail for tail in _list(answers.get("rejected")) if tail != key_tail]
        merged["customApiKeyResponses"] = {**answers, "approved": approved, "rejected": rejected}
    return merged


def with_first_run_keys(raw: bytes | None) -> bytes:
    """A settings.json with the keys that stop Claude from asking; unchanged if it has them.

    One that is not a JSON object is returned as it is: Claude complains about it.
    """
    value = {} if raw is None else parse_object(raw)
    if raw is not None and (value is None or all(value.get(k) == v for k, v in SETTINGS_KEYS.items())):
        return raw
    return dump({**(value or {}), **SETTINGS_KEYS})


def without_first_run_keys(raw: bytes) -> bytes:
    """The reverse, for what goes from a guest to the host."""
    value = parse_object(raw)
    if value is None or not any(key in value for key in SETTINGS_KEYS):
        return raw
    return dump({key: item for key, item in value.items() if key not in SETTINGS_KEYS})


def settings_state(raw: bytes | None) -> FileState | None:
    """settings.json for the comparison: by its meaning, without our keys. None: nothing in it."""
    if raw is None:
        return None
    value = parse_object(raw)
    if value is None:
        return FileState(hashlib.sha256(raw).hexdigest())
    rest = {key: item for key, item in value.items() if key not in SETTINGS_KEYS}
    return json_state(rest) if rest else None


def json_state(value: Any) -> FileState:
    """A JSON value for the comparison: key order and white space do not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return FileState(hashlib.sha256(text.encode()).hexdigest())


def dump(value: Mapping[str, Any]) -> bytes:
    """JSON as Claude Code writes it: two spaces, keys in their order."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry only as an escape
        return json.dumps(value, indent=2).encode() + b"\n"


@dataclass(frozen=True)
class GitIdentity:
    """git's user.name and user.email; empty: not known."""

    name: str = ""
    email: str = ""


def git_identity(runner: Runner, home: Path) -> GitIdentity:
    """The host user's identity; empty on a host without git. git runs in `home`, never in a directory
    that a guest can write."""
    values = []
    for key in ("user.name", "user.email"):
        command = Command(("git", "config", "--global", "--includes", "--get", key), cwd=home)
        try:
            text = runner.run(command, timeout=10, changes=False, limit=4096).text.strip()
        except CommandNotFound:
            return GitIdentity()
        values.append(text if len(text) <= 256 and is_printable(text) else "")
    return GitIdentity(*values)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
