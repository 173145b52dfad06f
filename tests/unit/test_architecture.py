"""ARCHITECTURE.md names every module, nothing that is not there, and a walk whose steps exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "_claude_sandbox"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MAP = TEXT.split("## The map")[1].split("## The walk")[0]
WALK = TEXT.split("## The walk")[1].split("## The rules")[0]


def named_in_map() -> list[str]:
    """The files in the first column of the map's tables."""
    first = [row.split("|")[1] for row in MAP.splitlines() if row.startswith("| `")]
    return [name for column in first for name in re.findall(r"`([^`]+)`", column)]


def exists(name: str) -> bool:
    return any((place / name).exists() for place in (ROOT, PACKAGE, PACKAGE / "guest"))


def test_every_module_is_in_the_map_once() -> None:
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    named = [name for name in named_in_map() if name.endswith(".py")]
    assert len(named) == len(set(named))
    assert modules - set(named) == set()


def test_every_guest_script_is_in_the_map() -> None:
    scripts = {path.name for path in (PACKAGE / "guest").glob("*.sh")}
    assert scripts - set(named_in_map()) == set()


def test_every_file_in_the_map_exists() -> None:
    assert [name for name in named_in_map() if not exists(name)] == []


def definitions(module: str) -> set[str]:
    """`function`, `Class` and `Class.method` of a module."""
    found = set()
    for node in ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{sub.name}" for sub in node.body if isinstance(sub, ast.FunctionDef)}
    return found


def test_every_step_of_the_walk_exists() -> None:
    steps = re.findall(r"`([a-z_]+)\.(\w+(?:\.\w+)?)`", WALK)
    steps = [(module, name) for module, name in steps if (PACKAGE / f"{module}.py").exists()]
    assert len(steps) > 30
    assert [f"{module}.{name}" for module, name in steps if name not in definitions(module)] == []
