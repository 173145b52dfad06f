"""The version by which a server is known to be of this program (system.program.version)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from _claude_sandbox.system import program

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as pip has it: other times, two files more in it, compiled."""
    package = tmp_path / "site" / "_claude_sandbox"
    shutil.copytree(ROOT / "_claude_sandbox", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in program.OUTSIDE:
        shutil.copyfile(ROOT / name, package / name)
    for file in package.rglob("*"):
        os.utime(file, (1_000_000_000, 1_000_000_000))
    return package


def version(package: Path) -> str:
    code = "from _claude_sandbox.system import program; print(program.version(), program.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True
    )
    told, file = ran.stdout.split()
    assert file == str(package / "system/program.py")
    return told


def test_the_same_code_installed_in_two_ways_is_the_same(installed: Path) -> None:
    assert version(installed) == program.version()
    (installed / ".DS_Store").touch()
    (installed / "guest" / "init~").touch()
    assert version(installed) == program.version()


@pytest.mark.parametrize("place", ["hooks/event.py", "guest/hooks-deliver.pl", "guest/files/new/script"])
def test_a_difference_anywhere_is_noticed(installed: Path, place: str) -> None:
    file = installed / place
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as text:
        text.write("#\n")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert version(installed) != program.version()


def test_what_a_wheel_has_elsewhere_is_left_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    inside = {Path(place).name for place in included.values() if place.startswith("_claude_sandbox/")}
    assert inside == {*program.OUTSIDE}
