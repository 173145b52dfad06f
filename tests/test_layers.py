"""The folders of ARCHITECTURE.md: which may import from which, and the limits that hold in all of them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "_claude_sandbox"

# folder: what it may import besides itself, errors and the version. No name comes before one that it needs.
FOLDERS = {
    "errors": "",
    "system": "",
    "config": "system",
    "lima": "system config",
    "host": "system lima",
    "disks": "system config lima",
    "vm": "system config lima disks",
    "base_vm": "system lima disks vm",
    "daemon": "system lima",
    "hooks": "system lima daemon",
    "credentials": "system lima",
    "claude_home": "system config lima vm hooks credentials",
    "terminals": "system hooks",
    "notify": "system config hooks terminals daemon",
    "voice": "system lima daemon terminals notify",
    "sandbox": "system config lima host disks vm base_vm hooks credentials claude_home terminals",
    "session": "system config lima vm claude_home terminals voice",
    "cli": "system config lima host disks vm base_vm daemon hooks credentials claude_home terminals notify voice"
    " sandbox session",
}

PROCESSES = {"subprocess", "multiprocessing"}
HEAVY = {"yaml", "psutil", "platformdirs", "rich", "asyncio", "aiohttp"}
# Modules of the servers: only a server's process imports them at its start, so they may import asyncio there.
SERVER = {
    "hooks.turns", "hooks.served", "hooks.control", "hooks.feed", "hooks.intake", "hooks.server", "system.unix_http",
    "lima.socket_forward", "notify.notifier", "notify.channels", "notify.channel_macos", "voice.stream",
    "voice.indicator", "voice.server", "daemon.service", "daemon.links", "daemon.workers",
}  # fmt: skip


def sources() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def folder(name: str) -> str:
    return name.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import below `tree`; `from _claude_sandbox.x import y` is `_claude_sandbox.x.y`."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return  # never carried out
    if isinstance(tree, ast.Import):
        yield from ((alias.name, tree.lineno) for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        yield from ((f"{tree.module}.{alias.name}", tree.lineno) for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def at_start(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that happen when the module is imported: not those in functions or under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield from imports(node)


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {module(p): ast.parse(p.read_text()) for p in sources() if p.name != "__init__.py"}


def own(name: str) -> Iterator[tuple[str, int]]:
    """(module, line) of every import of ours in `name`, by the longest module that the words name."""
    for target, line in imports(modules()[name]):
        words = target.removeprefix(f"{PACKAGE}.")
        if target == words or words == "__version__":
            continue
        yield (words if words in modules() else words.rpartition(".")[0]), line


def test_the_table_names_the_folders_that_are_there() -> None:
    assert set(FOLDERS) == {folder(name) for name in modules()}


def test_the_table_has_no_circle() -> None:
    done: set[str] = {"errors"}
    for name, below in FOLDERS.items():
        assert set(below.split()) <= done, f"{name} comes too early"
        done.add(name)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down_the_table_only(name: str) -> None:
    here = folder(name)
    allowed = {here, "errors", *FOLDERS[here].split()}
    for target, line in own(name):
        assert target in modules(), f"{name}:{line} imports {target}, which is not there"
        assert folder(target) in allowed, f"{name}:{line} imports {target}: {here} may not"


def test_no_circle_inside_a_folder() -> None:
    """Also none hidden in a function."""
    below = {name: {target for target, _ in own(name)} - {name} for name in modules()}
    while below:
        free = {name for name, targets in below.items() if not targets & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {name: targets for name, targets in below.items() if name not in free}


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_run_starts_processes(name: str) -> None:
    tree = modules()[name]
    if name == "system.child":  # it takes what system.run has started
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {each for each in called if each.startswith("subprocess.")}
    elif name != "system.run":
        assert not [line for target, line in imports(tree) if target.split(".")[0] in PROCESSES]
    if name not in ("system.run", "session.fast_shell"):  # it becomes ssh, and says why it does so itself
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
        starts = ("system", "popen", "posix_spawn", "fork", "execv", "execve", "execvp", "execvpe", "forkpty")
        assert not [
            n.lineno
            for n in calls
            if isinstance(n.value, ast.Name) and n.value.id == "os" and n.attr in starts
        ]


@pytest.mark.parametrize("name", sorted(modules()))
def test_heavy_imports_are_made_where_they_are_used(name: str) -> None:
    heavy = HEAVY - {"asyncio", "aiohttp"} if name in SERVER else HEAVY
    found = [(target, line) for target, line in at_start(modules()[name]) if target.split(".")[0] in heavy]
    assert not found


@pytest.mark.parametrize("name", sorted(modules().keys() - SERVER))
def test_the_command_line_does_not_import_a_server_at_its_start(name: str) -> None:
    servers = tuple(f"{PACKAGE}.{server}" for server in SERVER)
    assert not [
        (target, line)
        for target, line in at_start(modules()[name])
        if f"{target}.".startswith(tuple(f"{s}." for s in servers))
    ]


def test_the_front_door_holds_no_logic_and_imports_nothing_heavy() -> None:
    tree = ast.parse((ROOT / "claude_sandbox.py").read_text())
    assert not [target for target, _ in at_start(tree) if target.split(".")[0] in HEAVY | PROCESSES]


def test_no_module_is_long() -> None:
    """A file of more than about 500 lines should be two files."""
    assert not {module(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 500}


def test_a_class_has_one_name() -> None:
    """Two classes of one name are two meanings for one word."""
    found: dict[str, list[str]] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
