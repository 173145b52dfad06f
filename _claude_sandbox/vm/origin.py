"""What a sandbox was made from, in a file beside its disk: another -c, -t or package list is not ignored in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object

DEFAULT_BASE = "tools-vm"
DEFAULT_TEMPLATE = "template:default"
FILE = "claude-sandbox.origin"  # in the instance directory


@dataclass(frozen=True)
class Origin:
    """The base VM of which it was cloned, or the template (neither is known of a sandbox of an older version);
    and the packages that were installed for its project."""

    base: str | None
    template: str | None
    packages: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        return bool(self.base or self.template)

    def __str__(self) -> str:
        return f"cloned from {self.base}" if self.base else f"made from {self.template}"

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, asdict(self))


def of(directory: Path) -> Origin | None:
    """None when nothing is recorded: the sandbox is from an older version."""
    value = read_object(directory / FILE) or {}
    base, template, packages = (value.get(key) for key in ("base", "template", "packages"))
    if not isinstance(base, str | None) or not isinstance(template, str | None):
        return None
    names = packages if isinstance(packages, list) else []
    found = Origin(base, template, tuple(name for name in names if isinstance(name, str)))
    return found if found.known or found.packages else None


def installed(directory: Path, packages: tuple[str, ...]) -> None:
    """Remember packages that were installed since."""
    origin = of(directory) or Origin(None, None)
    replace(origin, packages=tuple(dict.fromkeys((*origin.packages, *packages)))).save(directory)
