"""Where a host directory may appear in the guest, and what may not be shared at all (spec 4.8)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from _claude_sandbox import paths
from _claude_sandbox.errors import RefusedError

FALLBACK = Path("/mnt/project")
MOUNTS = Path("/mnt/mounts")  # a further mount whose own path does not work: below it, by its name
SETTINGS_POINT = Path("/mnt/claude-sandbox/settings")

# Lima's own rule (pkg/limayaml/validate.go): these exact places.
_FORBIDDEN = frozenset(
    Path(p)
    for p in (
        "/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin", "/tmp", "/usr", "/var",
        "/lib", "/lib64", "/mnt", "/root", "/srv", "/media",
    )
)  # fmt: skip
# The guest lives in these: nothing below them either.
_GUEST_ONLY = (
    "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64",
    "/var/lib", "/var/run", "/mnt/claude-sandbox",
)  # fmt: skip
_ASCII = re.compile(r"[A-Za-z0-9._/@+-]")


def mount_point(path: Path, homes: Iterable[Path]) -> Path:
    """Where the project appears in the guest: its own path, or FALLBACK.

    The same path works when cloud-init and Lima can carry it unquoted (facts/checked.md) and the
    guest does not need that place itself. `homes` are home directories, on the host and in the guest.
    """
    text = str(path)
    if not all(_ASCII.match(c) if c.isascii() else _printable(c) for c in text):
        return FALLBACK
    if path in _FORBIDDEN or path in set(homes) or text.startswith("/mnt/lima-"):
        return FALLBACK
    if any(path.is_relative_to(place) for place in _GUEST_ONLY):
        return FALLBACK
    return path


def _printable(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMNPS"


def check_carriable(path: Path) -> None:
    """Raise RefusedError for a path that QEMU, Lima or YAML cannot carry on the host's side.

    A comma starts a new QEMU option, a backslash is an escape in Lima's expressions, control
    characters and bytes that are not UTF-8 do not survive YAML.
    """
    text = str(path)
    bad = next((c for c in text if c in ",\\" or unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")), None)
    if bad is None:
        return
    name = {",": "a comma", "\\": "a backslash"}.get(bad, "a byte that is not UTF-8 or a control character")
    raise RefusedError(
        f"This path cannot be shared with a VM: {text!r} has {name} in it.",
        resolution="Rename the directory, or work in one with a plainer path.",
    )


def check_shareable(path: Path, settings: Path, writable: bool) -> None:
    """Raise RefusedError when sharing `path` would hand the sandbox the keys to the host.

    What contains or lies in LIMA_HOME (VM disks, ssh keys), our state, the settings directory,
    ~/.ssh or the checkout that runs now. A directory that merely contains one of them is refused
    as well: / and the home directory therefore always are.
    """
    checkout = Path(__file__).resolve().parent
    root = checkout.parent if (checkout.parent / "claude_sandbox.py").exists() else checkout
    secret = {
        "Lima's directory": paths.lima_home(),
        "claude-sandbox's state": paths.state_dir(),
        "claude-sandbox's data": paths.data_dir(),
        "claude-sandbox's login": paths.token_file().parent,
        "the settings directory": settings,
        "your ssh keys": paths.home() / ".ssh",
        "your configuration of claude-sandbox": paths.config_file().parent,
        "the running claude-sandbox": root,
    }
    for what, place in secret.items():
        place = place.resolve()
        if path.is_relative_to(place) or place.is_relative_to(path):
            relation = "lies in" if path.is_relative_to(place) else "contains"
            raise RefusedError(
                f"{path} cannot be shared with a sandbox: it {relation} {what} ({place}).",
                details="Code in the sandbox could change it, and so act on the host.",
                resolution="Work in a directory of its own, such as ~/projects/NAME.",
            )


def guest_parents(points: Iterable[Path]) -> list[Path]:
    """The directories above mount points that the guest's user must be able to pass, topmost first."""
    parents = {parent for point in points for parent in point.parents if parent != Path("/")}
    return sorted(parents, key=lambda p: len(p.parts))
