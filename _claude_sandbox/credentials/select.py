"""How a sandbox gets the user's login (spec 3.4, 5.3): strategies behind one small interface.

Exactly one credential is chosen, in this order: CLAUDE_CODE_OAUTH_TOKEN, ANTHROPIC_AUTH_TOKEN,
ANTHROPIC_API_KEY of the host's environment; the stored long-lived token; the host's credential file or
keychain item. A token travels in the session's environment and is the same for all sandboxes. A
credential file is handed over, and what Claude made of it in the guest (a login, a refresh that
rotated the token) is collected again, by the rules of credentials/record.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from _claude_sandbox.credentials import stores
from _claude_sandbox.credentials.exchange import Collected, CredentialLogin, Warn
from _claude_sandbox.credentials.stores import BesideStore, FileStore, KeychainStore, Store
from _claude_sandbox.credentials.variables import Variable
from _claude_sandbox.errors import ClaudeSandboxError, UsageError
from _claude_sandbox.lima.context import Confirm, nobody
from _claude_sandbox.system import files, paths
from _claude_sandbox.system.run import Runner

HOST_AS_SEEN_BY_GUEST = "192.168.5.2"  # Lima's user-mode network
TOKEN_VARIABLES = ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY")
# Never: CLAUDECODE, CLAUDE_CODE_SESSION_ID, CLAUDE_CODE_ENTRYPOINT, CLAUDE_CODE_SSE_PORT (a session of
# the host's), CLAUDE_CONFIG_DIR (a path of the host's), ANTHROPIC_CUSTOM_HEADERS (a second credential).
ALLOWED = frozenset(
    {
        "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_BETAS",
        "API_TIMEOUT_MS", "BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS", "BASH_MAX_OUTPUT_LENGTH",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "CLAUDE_CODE_EFFORT_LEVEL", "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
        "CLAUDE_CODE_MAX_RETRIES", "CLAUDE_CODE_SUBAGENT_MODEL", "DISABLE_TELEMETRY", "MAX_MCP_OUTPUT_TOKENS",
        "MAX_THINKING_TOKENS", "MCP_TIMEOUT", "MCP_TOOL_TIMEOUT",
    }
)  # fmt: skip
_ALLOWED_PATTERN = re.compile(r"ANTHROPIC_DEFAULT_[A-Z]+_MODEL")
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{1,8192}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{20,4096}")


class Login(Protocol):
    """A way to give a sandbox the user's login."""

    @property
    def description(self) -> str:
        """For people, without the secret."""
        ...

    def environment(self) -> dict[str, Variable]:
        """Variables of a session in the guest; secret."""
        ...

    def hand_over(self) -> bytes | None:
        """Content for the guest's ~/.claude/.credentials.json, or None."""
        ...

    def bring(self, there: bytes | None, sandbox: str, account: str = "") -> bytes | None:
        """What to write into a guest whose credential file is `there`; None: nothing. It counts as handed over."""
        ...

    def shares(self, sandbox: str) -> bool:
        """Whether this sandbox was given its login from here, so that a change goes on to it and comes back."""
        ...

    def collect(self, fetched: bytes, sandbox: str, account: str = "") -> Collected | None:
        """Look at the guest's credential file and the account that it names; take it over if it may be."""
        ...


@dataclass(frozen=True)
class TokenLogin:
    """A token in an environment variable; nothing to hand over, nothing to collect."""

    name: str
    token: Variable
    where: str = "the environment"

    @property
    def description(self) -> str:
        return f"{self.name} from {self.where}"

    def environment(self) -> dict[str, Variable]:
        return {self.name: self.token}

    def hand_over(self) -> bytes | None:
        return None

    def bring(self, there: bytes | None, sandbox: str, account: str = "") -> bytes | None:
        return None

    def shares(self, sandbox: str) -> bool:
        return False

    def collect(self, fetched: bytes, sandbox: str, account: str = "") -> Collected | None:
        return None


def select(
    environ: Mapping[str, str],
    settings_dir: Path,
    *,
    runner: Runner,
    state_dir: Path,
    warn: Warn,
    ask: Confirm = nobody,
    platform: str = sys.platform,
) -> Login:
    """The one credential to use. Raises UsageError for a variable that cannot be a credential."""
    for name in TOKEN_VARIABLES:
        value = environ.get(name, "").strip()
        if value and not _VALUE.fullmatch(value):
            raise UsageError(f"{name} holds control characters or is too long to be a credential.")
        if value:
            return TokenLogin(name, Variable.of_host(name, environ[name], value))
    token = stored_token(warn)
    if token:
        file = str(paths.token_file())
        return TokenLogin("CLAUDE_CODE_OAUTH_TOKEN", Variable(token, ("file", file)), file)
    return CredentialLogin(
        store_for(environ, settings_dir, runner, state_dir, platform), state_dir, warn, ask
    )


def store_for(
    environ: Mapping[str, str], settings_dir: Path, runner: Runner, state_dir: Path, platform: str
) -> Store:
    """Where the host keeps the credential of these settings. What belongs to the user's own Claude is read only."""
    path = settings_dir / stores.FILE
    if platform == "darwin" and not path.exists():
        account = environ.get("USER", "")
        claude = KeychainStore(runner, account)
        with contextlib.suppress(ClaudeSandboxError):  # no `security`: no keychain either
            if claude.read() is not None:
                return BesideStore(claude, KeychainStore(runner, account, "claude-sandbox credentials"))
    real = os.path.realpath(path)
    if real in (os.path.realpath(own / stores.FILE) for own in paths.claude_directories(environ)):
        tag = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
        return BesideStore(FileStore(path), FileStore(state_dir / "login" / tag / stores.FILE))
    return FileStore(path)


# -- the stored long-lived token -------------------------------------------------------------------


def store_token(text: str) -> Path:
    """Keep a token of `claude setup-token`, mode 0600. Raises UsageError for what cannot be one."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            "That is not a token of `claude setup-token`.",
            details="It is one line of 20 or more letters, digits and -_.~+/= without blanks.",
        )
    if token.startswith("sk-ant-api"):
        raise UsageError(
            "That is an API key, not a token of `claude setup-token`.",
            resolution="Set ANTHROPIC_API_KEY in the environment instead.",
        )
    path = paths.token_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, token.encode() + b"\n")
    return path


def stored_token(warn: Warn) -> str | None:
    """The stored token; a file that others can read is closed to them."""
    path = paths.token_file()
    try:
        token = path.read_text(encoding="ascii").strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        token = ""
    if not _TOKEN.fullmatch(token):
        warn(f"{path} holds no token: ignored. `claude-sandbox login` stores one.")
        return None
    return token


def forget() -> bool:
    """Remove the stored token; whether there was one."""
    try:
        paths.token_file().unlink()
    except FileNotFoundError:
        return False
    return True


# -- API settings ----------------------------------------------------------------------------------


def launch_env(environ: Mapping[str, str]) -> dict[str, Variable]:
    """The API settings of the host that a session in the guest gets: a named list, no credential.

    A loopback ANTHROPIC_BASE_URL becomes the host as the guest sees it. Raises UsageError for a value
    with control characters.
    """
    env: dict[str, Variable] = {}
    for name, value in environ.items():
        if not value or not (name in ALLOWED or _ALLOWED_PATTERN.fullmatch(name)):
            continue
        if not _VALUE.fullmatch(value):
            raise UsageError(f"{name} holds control characters or is too long.")
        there = guest_url(value) if name == "ANTHROPIC_BASE_URL" else value
        env[name] = Variable.of_host(name, value, there)
        if there != value and "@" not in there and "?" not in there:  # no password in it, no key
            env[name] = Variable.of_text(there)
    return env


def guest_url(url: str) -> str:
    """A URL as the guest must write it: this host's loopback is 192.168.5.2 there.

    >>> guest_url("http://localhost:8080/v1")
    'http://192.168.5.2:8080/v1'
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"Invalid ANTHROPIC_BASE_URL, not a URL: {url}") from error
    if not is_loopback(host):
        return url
    user, at, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{at}{HOST_AS_SEEN_BY_GUEST}" + (f":{port}" if port is not None else "")
    return urlunsplit(parts._replace(netloc=netloc))


def is_loopback(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
