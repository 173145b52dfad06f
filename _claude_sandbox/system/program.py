"""Our own program: where its files are, and how it starts itself. The one place that looks at `__file__`.

checkout   claude_sandbox.py, hook.sh and tools-vm.yaml beside the package
wheel      claude_sandbox/__main__.py beside the package, the other two in it
"""

from __future__ import annotations

import functools
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from _claude_sandbox import __version__
from _claude_sandbox.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# Files that a wheel has in the package and a checkout beside it.
OUTSIDE = ("hook.sh", "tools-vm.yaml")


def package_file(*names: str) -> Path:
    """A file or directory of the package, by the names of the way to it: `package_file("guest", "voice.sh")`."""
    return PACKAGE.joinpath(*names)


def outside_file(name: str) -> Path:
    """One of OUTSIDE, wherever this installation has it. Raises ConfigError when it has none."""
    for file in (PACKAGE.parent / name, PACKAGE / name):
        if file.is_file():
            return file
    raise ConfigError(
        f"{name} is missing from this installation.", resolution="Install claude-sandbox again."
    )


def checkout() -> Path | None:
    """The checkout that this program runs from; None for an installed one."""
    return PACKAGE.parent if (PACKAGE.parent / "claude_sandbox.py").exists() else None


def own_argv(verb: str, *arguments: str) -> tuple[str, ...]:
    """Our program with a verb, by this Python, which reads no PYTHON* variable: as the launcher starts it."""
    prefix = f"pycache_prefix={sys.pycache_prefix}" if sys.pycache_prefix else ""
    flags = ("-E", "-s", *(("-X", prefix) if prefix else ()))
    return (sys.executable, *flags, str(_front_door()), verb, *arguments)


def _front_door() -> Path:
    if (top := checkout()) is not None:
        return top / "claude_sandbox.py"
    return PACKAGE.parent / "claude_sandbox" / "__main__.py"


@functools.cache
def version() -> str:
    """Our version, with a sum over the program's files: a checkout changes without a new number.

    Over what is in them, so that the same code is the same however it was installed, and looked at once in
    a process: a program that goes on over an update is still the old one. 5 ms.
    """
    total = 0
    for name in sorted(source_files()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32((PACKAGE / name).read_bytes(), total)
    return f"{__version__}+{total:08x}"


def source_files(below: str = "") -> Iterator[str]:
    """What belongs to the program, by its path in the package: not what Python, editors or the Finder leave."""
    for entry in os.scandir(PACKAGE / below):
        name = entry.name
        if name.startswith(".") or name.endswith(("~", ".pyc")) or name == "__pycache__":
            continue
        if not below and name in OUTSIDE:
            continue
        if entry.is_dir():
            yield from source_files(f"{below}{name}/")
        elif entry.is_file():
            yield below + name
