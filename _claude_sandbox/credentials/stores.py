"""Claude's credential file: its shape, and the places on the host where one is kept.

    {"claudeAiOauth": {"accessToken", "refreshToken", "expiresAt" (ms), "scopes": [],
                       "subscriptionType", "rateLimitTier"}, …}

from facts/claude-code.md. What comes from a guest passes `parse` before anything else sees it; only
the object `claudeAiOauth` with these keys is ever taken over. Nothing here is logged.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from _claude_sandbox.credentials.record import credential_hash
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import files
from _claude_sandbox.system.jsonio import parse_object
from _claude_sandbox.system.run import Command, Runner

FILE = ".credentials.json"
PREVIOUS = ".credentials.json.previous"
OAUTH = "claudeAiOauth"
MAX_SIZE = 64 * 1024  # bytes of a credential file
ORIGIN = "claudeSandboxOrigin"  # in a store of our own: which credential of the user's it descends from

_TOKEN = re.compile(r"[\x21-\x7e]{8,8192}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD = re.compile(r"[A-Za-z0-9_.:/ -]{0,200}")


def now_ms() -> int:
    return int(time.time() * 1000)


def parse(raw: bytes | None) -> dict[str, Any] | None:
    """The `claudeAiOauth` object if the file's schema is right, reduced to the known keys."""
    if raw is None or len(raw) > MAX_SIZE:
        return None
    value = (parse_object(raw) or {}).get(OAUTH)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), str) and _TOKEN.fullmatch(value[key])
        for key in ("accessToken", "refreshToken")
    ):
        return None
    expires, scopes = value.get("expiresAt"), value.get("scopes", [])
    if type(expires) is not int or not isinstance(scopes, list) or len(scopes) > 50:
        return None
    words = [*scopes, *(value.get(key) or "" for key in ("subscriptionType", "rateLimitTier"))]
    if not all(isinstance(word, str) and _WORD.fullmatch(word) for word in words):
        return None
    known = ("accessToken", "refreshToken", "expiresAt", "scopes", "subscriptionType", "rateLimitTier")
    return {key: value[key] for key in known if key in value}


def account_of(claude_json: bytes | None) -> str:
    """The account that a guest's ~/.claude.json names (oauthAccount.accountUuid); empty when it names none."""
    named = (parse_object(claude_json) or {}).get("oauthAccount")
    return account(named.get("accountUuid") if isinstance(named, dict) else None)


def account(text: object) -> str:
    return text if isinstance(text, str) and _UUID.fullmatch(text) else ""


def encode(value: dict[str, Any], around: bytes | None = None) -> bytes:
    """A credential file with this `claudeAiOauth`; other keys of `around` (MCP logins) stay."""
    rest = parse_object(around) if around is not None and len(around) <= MAX_SIZE else None
    return json.dumps({**(rest or {}), OAUTH: value}, separators=(",", ":")).encode()


class Store(Protocol):
    """A place on the host that holds a credential file's content."""

    @property
    def where(self) -> str: ...

    def read(self) -> bytes | None:
        """None when there is none."""
        ...

    def previous(self) -> bytes | None:
        """What `replace` kept last."""
        ...

    def replace(self, new: bytes, previous: bytes | None) -> None:
        """Atomically, keeping `previous` (None: what is kept stays). Raises OSError or ClaudeSandboxError."""
        ...

    def keep(self, previous: bytes) -> None:
        """Keep this as the previous one. Raises as `replace`."""
        ...


@dataclass(frozen=True)
class FileStore:
    """`.credentials.json` in the settings directory; a link there is followed, so it stays a link."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> bytes | None:
        return _bounded(self.path)

    def previous(self) -> bytes | None:
        return _bounded(self._real.with_name(PREVIOUS))

    def replace(self, new: bytes, previous: bytes | None) -> None:
        if previous is not None:
            self.keep(previous)
        self._write(self._real, new)

    def keep(self, previous: bytes) -> None:
        self._write(self._real.with_name(PREVIOUS), previous)

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(path, content)

    @property
    def _real(self) -> Path:
        return Path(os.path.realpath(self.path))


def _bounded(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class KeychainStore:
    """macOS: an item of the login keychain; by default the one that Claude Code itself uses. Secrets go in by
    stdin only.

    `security -i` reads commands from stdin, each line at most 4095 bytes; the value goes as hex (-X).
    """

    runner: Runner
    account: str
    service: str = "Claude Code-credentials"

    LINE_MAX = 4095

    @property
    def where(self) -> str:
        return f"the keychain item {self.service!r}"

    def read(self) -> bytes | None:
        return self._read(self.service)

    def previous(self) -> bytes | None:
        return self._read(f"{self.service}.previous")

    def _read(self, service: str) -> bytes | None:
        argv = ("security", "find-generic-password", "-a", self.account, "-s", service, "-w")
        # The keychain may ask its user for permission: give them time.
        result = self.runner.run(Command(argv), timeout=60, changes=False, limit=4 * MAX_SIZE)
        if not result.ok:  # 44: no such item; else locked or denied, which is not having one either
            return None
        raw = result.stdout.strip()
        # What is not plain text comes back as hex.
        return bytes.fromhex(raw.decode()) if re.fullmatch(rb"([0-9a-f]{2})+", raw) else raw

    def replace(self, new: bytes, previous: bytes | None) -> None:
        if previous is not None:
            self.keep(previous)
        self._write(self.service, new)

    def keep(self, previous: bytes) -> None:
        self._write(f"{self.service}.previous", previous)

    def _write(self, service: str, value: bytes) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._@ -]{1,100}", self.account):
            raise ClaudeSandboxError("This user's name cannot be written to the keychain.")
        line = f'add-generic-password -U -a "{self.account}" -s "{service}" -X "{value.hex()}"\n'
        if len(line) > self.LINE_MAX:
            raise ClaudeSandboxError("The credential is too large for `security -i`.")
        result = self.runner.run(Command(("security", "-i")), input=line.encode(), timeout=60)
        # `security -i` answers 0 whatever its commands did; what they say goes to stderr.
        if not result.ok or result.stderr.strip():
            raise ClaudeSandboxError("The keychain did not take the credential.")


@dataclass(frozen=True)
class BesideStore:
    """The store of the user's own Claude, which is only read, with our store beside it for what comes back.

    Ours counts for as long as the user's has not changed since: a login that the user makes on the host wins.
    """

    theirs: Store
    ours: Store

    @property
    def where(self) -> str:
        return self.ours.where

    def read(self) -> bytes | None:
        theirs, ours = self.theirs.read(), self.ours.read()
        return ours if ours is not None and _origin(ours) == _mark(theirs) else theirs

    def previous(self) -> bytes | None:
        return self.ours.previous()

    def replace(self, new: bytes, previous: bytes | None) -> None:
        value = {OAUTH: parse(new), ORIGIN: _mark(self.theirs.read())}
        self.ours.replace(json.dumps(value, separators=(",", ":")).encode(), previous)

    def keep(self, previous: bytes) -> None:
        self.ours.keep(previous)


def _origin(raw: bytes) -> object:
    return (parse_object(raw) or {}).get(ORIGIN)


def _mark(raw: bytes | None) -> str:
    value = parse(raw)
    return "none" if value is None else credential_hash(value)
