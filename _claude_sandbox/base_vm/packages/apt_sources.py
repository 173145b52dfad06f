"""How this host gets its packages, for an image of the same distribution: apt sources, CAs, registries.

Only what belongs to the distribution itself is taken: a third party's apt source is left out, and its
key with it. Addresses are read from the host's configuration at run time; none is built in.
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system import npm
from _claude_sandbox.system.run import Command, Runner

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # where Debian and Ubuntu put it, host and image alike
_COMPONENTS = ("main", "universe")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Distribution:
    """A suite that can be an image: `codename` as in apt, `kernel` its kernel package."""

    id: str
    codename: str
    kernel: str


def distribution(arch: str, os_release: Path = Path("/etc/os-release")) -> Distribution:
    """This host's own (`arch` as dpkg says it). Raises HostSetupError where images cannot be built."""
    text = os_release.read_text(encoding="utf-8") if os_release.exists() else ""
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    identity, codename = values.get("ID", ""), values.get("VERSION_CODENAME", "")
    version = values.get("VERSION_ID", "").split(".")[0]
    if identity == "debian" and codename and (not version.isdigit() or int(version) >= 12):
        return Distribution(identity, codename, f"linux-image-{arch}")
    if identity == "ubuntu" and codename:
        return Distribution(identity, codename, "linux-image-generic")
    raise HostSetupError(
        f"A tools VM from packages is built on Debian >= 12 or Ubuntu, and this host is {identity or 'neither'}.",
        resolution="Where cloud images can be reached, run `claude-sandbox rebuild-tools-vm` without it.",
    )


# -- apt -----------------------------------------------------------------------------------------


def apt_lines(suite: Distribution, etc_apt: Path = Path("/etc/apt")) -> list[str]:
    """The distribution's own entries as one-line sources. Raises HostSetupError when there are none."""
    lines = dict.fromkeys(_one_line_entries(suite, etc_apt))
    lines.update(dict.fromkeys(_deb822_entries(suite, etc_apt)))
    if not lines:
        raise HostSetupError(
            f"No apt source of {suite.id} {suite.codename} was found in {etc_apt}.",
            resolution="Add the distribution's own source there; `apt-get update` must work.",
        )
    return list(lines)


def without_credentials(line: str) -> str:
    """A source line as the image gets it: without the login before the @ in its address."""
    return re.sub(r"(https?://)[^/@\s]+@", r"\1", line)


def _line(suite: Distribution, uri: str, name: str, components: list[str], key: str) -> str | None:
    """One source line, or None for what is not the distribution's own."""
    own = {suite.codename, f"{suite.codename}-updates", f"{suite.codename}-security"}
    wanted = [c for c in components if c in _COMPONENTS]
    if name not in own or not wanted or not uri.startswith(("http://", "https://", "file:", "mirror+")):
        return None
    if key and not re.search(r"(debian|ubuntu)-archive", key):
        return None
    option = f"[signed-by={key}] " if key.startswith("/") else ""
    return f"deb {option}{uri} {name} {' '.join(wanted)}"


def _one_line_entries(suite: Distribution, etc_apt: Path) -> Iterator[str]:
    for file in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]:
        for line in _text(file).splitlines():
            match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.split("#")[0].strip())
            if match:
                key = re.search(r"signed-by=(\S+)", match[1] or "", re.IGNORECASE)
                made = _line(suite, match[2], match[3], match[4].split(), key[1] if key else "")
                if made:
                    yield made


def _deb822_entries(suite: Distribution, etc_apt: Path) -> Iterator[str]:
    for file in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        text = re.sub(r"^#.*\n?", "", _text(file), flags=re.MULTILINE)
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                k.lower(): v.strip()
                for k, v in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
                continue
            for uri in fields.get("uris", "").split():
                for name in fields.get("suites", "").split():
                    components = fields.get("components", "").split()
                    made = _line(suite, uri, name, components, fields.get("signed-by", ""))
                    if made:
                        yield made


def apt_options(runner: Runner) -> tuple[str, ...]:
    """What the host's apt relaxes for a frozen mirror; the image's apt meets the same mirror."""
    text = runner.run(Command(("apt-config", "dump")), timeout=30, changes=False).text
    return tuple(
        re.findall(r'^(Acquire::(?:Check-Valid-Until|Check-Date|Max-FutureTime) "\w+");$', text, re.MULTILINE)
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# -- CAs -----------------------------------------------------------------------------------------


def extra_cas(bundle: Path | None = None, stock: Path = Path("/usr/share/ca-certificates")) -> list[str]:
    """The certificates (PEM) in the host's bundle that its ca-certificates package does not bring."""
    bundle = bundle or Path(os.environ.get("SSL_CERT_FILE") or BUNDLE)
    known: set[bytes] = set()
    for file in stock.rglob("*.crt"):
        known |= {_der(pem) for pem in _PEM.findall(_text(file))}
    found = [pem for pem in _PEM.findall(_text(bundle)) if _der(pem) not in known]
    return list(dict.fromkeys(found))


def _der(pem: str) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        return pem.encode()


# -- registries ----------------------------------------------------------------------------------


def registry_environment(runner: Runner) -> dict[str, str | None]:
    """Environment for the registries' clients inside an image's root while it is built.

    Where the host's clients go, through the host's proxies, and the bundle as the image has it. It may
    hold credentials: it is never written into the image, and belongs into a command's hidden variables.
    """
    env: dict[str, str | None] = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "npm_config_cafile"), BUNDLE)  # fmt: skip
    env |= {"PIP_FIND_LINKS": None, "SSL_CERT_DIR": None, "GOFLAGS": None, "GOROOT": None}
    found = {
        "npm_config_registry": npm.registry(runner),
        "PIP_INDEX_URL": os.environ.get("PIP_INDEX_URL")
        or _say(runner, "pip", "config", "get", "global.index-url"),
        **{name: _say(runner, "go", "env", name) for name in ("GOPROXY", "GONOSUMDB", "GOSUMDB")},
    }
    return {**env, **{name: value for name, value in found.items() if value}}


def _say(runner: Runner, *argv: str) -> str:
    """What a client of the host says of its configuration; "" when it is not there or has nothing."""
    if not shutil.which(argv[0]):
        return ""
    result = runner.run(Command(argv), timeout=60, changes=False)
    return result.text.strip() if result.ok else ""
