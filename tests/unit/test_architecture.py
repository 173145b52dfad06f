"""ARCHITECTURE.md names every folder, nothing that is not there, and a walk whose steps exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "_claude_sandbox"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MAP = TEXT.split("## The map")[1].split("## The walk")[0]
WALK = TEXT.split("## The walk of one command")[1].split("## Rules")[0]


def named_in_map() -> list[str]:
    """The files in the first column of the map's tables."""
    first = [row.split("|")[1] for row in MAP.splitlines() if row.startswith("| `")]
    return [name for column in first for name in re.findall(r"`([^`]+)`", column)]


def test_every_folder_is_in_the_map_once() -> None:
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = [name for name in named_in_map() if (PACKAGE / name).is_dir() and "/" not in name[:-1]]
    assert len(named) == len(set(named))
    assert folders - set(named) == set()


def test_every_guest_script_says_what_it_is_for() -> None:
    """The map leaves that to each script's first comment."""
    scripts = [*(PACKAGE / "guest").rglob("*.sh"), *(PACKAGE / "guest").rglob("*.pl")]
    spoken = {path.name: path.read_text(encoding="utf-8") for path in scripts}
    assert scripts
    assert [name for name, text in spoken.items() if not re.search(r"^# \w", text, re.MULTILINE)] == []


def test_every_file_in_the_map_exists() -> None:
    assert [name for name in named_in_map() if not (PACKAGE / name).exists()] == []


def definitions(file: Path) -> set[str]:
    """`function`, `Class` and `Class.method` of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{sub.name}" for sub in node.body if isinstance(sub, ast.FunctionDef)}
    return found


def steps() -> list[tuple[Path, str]]:
    """(module's file, name in it) of each `folder.module.name` of the walks."""
    found = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)\.(\w+(?:\.\w+)?)`", WALK)
    split = [
        re.fullmatch(r"((?:[a-z_0-9]+\.)+[a-z_0-9]+)\.([A-Z]\w+\.\w+|\w+)", f"{a}.{b}") for a, b in found
    ]
    return [(PACKAGE / f"{m[1].replace('.', '/')}.py", m[2]) for m in split if m]


def test_every_step_of_the_walk_exists() -> None:
    known = [
        (file, name) for file, name in steps() if (PACKAGE / file.relative_to(PACKAGE).parts[0]).is_dir()
    ]
    assert len(known) > 30
    missing = [
        f"{file.relative_to(PACKAGE)}:{name}"
        for file, name in known
        if not file.exists() or name not in definitions(file)
    ]
    assert missing == []
