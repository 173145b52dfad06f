"""Packages from the npm registry that this host is configured for.

By npm itself where it is there (its configuration and credentials then count), else by the registry's
HTTP interface with the address from npm_config_registry or an .npmrc. Either way the registry's own
integrity hash is checked. No registry is built in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from _claude_sandbox.errors import CreateError, HostSetupError
from _claude_sandbox.system import paths
from _claude_sandbox.system.run import Command, Runner

TIMEOUT = 1800.0  # seconds for one package; Claude Code's is 170 MB


def registry(runner: Runner) -> str | None:
    """The registry's address as this host has it; None when nothing says so."""
    value = _variable()
    if not value and shutil.which("npm"):
        command = Command(("npm", "config", "get", "registry"), cwd=paths.home())
        value = runner.run(command, timeout=60, changes=False).text.strip()
    return _address(value) if value else configured()


def configured() -> str | None:
    """The same as far as variables and files say it, without npm. The first that says anything decides."""
    files = (paths.home() / ".npmrc", Path("/etc/npmrc"))
    return _address(next(filter(None, (_variable(), *map(_in_file, files))), ""))


def _variable() -> str:
    # npm reads its variables in either case, and lower is the usual one.
    return os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY") or ""


def _in_file(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"^registry\s*=\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else ""


def _address(text: str) -> str | None:
    return text if text.startswith(("http://", "https://")) else None


def fetch(runner: Runner, name: str, version: str, *, logfile: Path | None = None) -> Path:
    """The tarball of `name@version`, from our cache if it is there. Raises CreateError, HostSetupError."""
    cache = paths.cache_dir() / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as directory:
        if shutil.which("npm"):
            file = _by_npm(runner, name, version, Path(directory), logfile)
        else:
            file = _by_http(runner, name, version, Path(directory))
        os.replace(file, kept)
    return kept


def _by_npm(runner: Runner, name: str, version: str, into: Path, logfile: Path | None) -> Path:
    """`npm pack` checks the integrity hash itself. Its cwd holds no project's .npmrc."""
    argv = ("npm", "pack", f"{name}@{version}", "--ignore-scripts", "--silent", "--pack-destination", ".")
    result = runner.stream(Command(argv, cwd=into), timeout=TIMEOUT, logfile=logfile)
    files = list(into.glob("*.tgz"))
    if not result.ok or len(files) != 1:
        raise CreateError(
            f"{name}@{version} could not be fetched from the npm registry.",
            details=result.error_text[-800:] or None,
            resolution=f"Try `npm view {name}` on this host: its registry and proxy settings are used.",
        )
    return files[0]


def _by_http(runner: Runner, name: str, version: str, into: Path) -> Path:
    base = registry(runner)
    if base is None:
        raise HostSetupError(
            "No npm registry is configured on this host.",
            resolution="Install npm (`apt-get install npm`), or set npm_config_registry to your registry.",
        )
    address = f"{base.rstrip('/')}/{urllib.parse.quote(name, safe='@')}/{version}"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            about = json.loads(answer.read(4 << 20))["dist"]
        file = into / "package.tgz"
        with urllib.request.urlopen(about["tarball"], timeout=60) as answer, file.open("wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CreateError(
            f"{name}@{version} could not be fetched from the npm registry.",
            details=str(error),
            resolution="Check this host's proxy and CA settings (HTTPS_PROXY, SSL_CERT_FILE).",
        ) from error
    check_integrity(file, str(about.get("integrity", "")))
    return file


def check_integrity(file: Path, integrity: str) -> None:
    """`integrity` is npm's, e.g. `sha512-…base64…`. Raises CreateError."""
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha512").digest()
    if "sha512-" + base64.b64encode(digest).decode() not in integrity.split():
        raise CreateError(
            f"{file.name} from the npm registry does not match its integrity hash.",
            details=f"Expected {integrity or 'a hash, and the registry gave none'}.",
            resolution="Try again; if it stays, the registry or a proxy changes what it serves.",
        )
