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

from _claude_sandbox import files
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.manifest import parse_object
from _claude_sandbox.run import Command, Runner

FILE = ".credentials.json"
PREVIOUS = ".credentials.json.previous"
OAUTH = "claudeAiOauth"
MAX_SIZE = 64 * 1024  # bytes of a credential file
DAY_MS = 24 * 3600 * 1000
OLDEST, NEWEST = DAY_MS, 400 * DAY_MS  # expiresAt may lie this far before and after now

_TOKEN = re.compile(r"[\x21-\x7e]{8,8192}")
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


def plausible(raw: bytes | None, now: int) -> dict[str, Any] | None:
    """`parse`, and expiresAt within a day before and 400 days after `now` (ms): else None."""
    value = parse(raw)
    return value if value is not None and now - OLDEST <= value["expiresAt"] <= now + NEWEST else None


def encode(value: dict[str, Any], around: bytes | None = None) -> bytes:
    """A credential file with this `claudeAiOauth`; other keys of `around` (MCP logins) stay."""
    rest = parse_object(around) if around is not None and len(around) <= MAX_SIZE else None
    return json.dumps({**(rest or {}), OAUTH: value}, separators=(",", ":")).encode()


def merge(there: bytes | None, ours: bytes) -> bytes | None:
    """What to write into a guest that has `there`; None: nothing, it has ours or a newer one.

    A newer one stays even when the host could not take it over: its refresh token has replaced ours.
    """
    mine, its = parse(ours), plausible(there, now_ms())
    if mine is None or (its is not None and (its == mine or its["expiresAt"] > mine["expiresAt"])):
        return None
    return encode(mine, there)


class Store(Protocol):
    """A place on the host that holds a credential file's content."""

    @property
    def where(self) -> str: ...

    def read(self) -> bytes | None:
        """None when there is none."""
        ...

    def replace(self, new: bytes, previous: bytes | None) -> None:
        """Atomically, keeping `previous`. Raises OSError or ClaudeSandboxError."""
        ...


@dataclass(frozen=True)
class FileStore:
    """`.credentials.json` in the settings directory; a link there is followed, so it stays a link."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return None

    def replace(self, new: bytes, previous: bytes | None) -> None:
        real = Path(os.path.realpath(self.path))
        if previous is not None:
            files.write_atomic(real.with_name(PREVIOUS), previous)
        files.write_atomic(real, new)


@dataclass(frozen=True)
class KeychainStore:
    """macOS: the login keychain's item that Claude Code itself uses. Secrets go in by stdin only.

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
        argv = ("security", "find-generic-password", "-a", self.account, "-s", self.service, "-w")
        # The keychain may ask its user for permission: give them time.
        result = self.runner.run(Command(argv), timeout=60, changes=False, limit=4 * MAX_SIZE)
        if not result.ok:  # 44: no such item; else locked or denied, which is not having one either
            return None
        raw = result.stdout.strip()
        # What is not plain text comes back as hex.
        return bytes.fromhex(raw.decode()) if re.fullmatch(rb"([0-9a-f]{2})+", raw) else raw

    def replace(self, new: bytes, previous: bytes | None) -> None:
        if previous is not None:
            self._write(f"{self.service}.previous", previous)
        self._write(self.service, new)

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
