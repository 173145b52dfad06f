"""The direction of the imports, read from the source: each module imports only from lower levels.

LEVELS is the one place where a module's level stands; a module that is not in it fails the test.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "_claude_sandbox"

LEVELS: tuple[tuple[str, ...], ...] = (
    # 0 what can go wrong
    ("errors", "remote", "runtime", "text", "lookup"),
    ("program",),
    # 1 the host: where things live, files, processes
    ("files",),
    ("paths", "run", "progress", "hookevent", "processes", "templatekeys"),
    # 2 values, and single tools of the host
    ("warm", "vm", "values", "configfile", "manifest", "journal", "accel", "kernel", "npm", "qcow2", "qemu", "login_record",
     "ssh_wait", "swap", "tmux", "forward", "tools", "terminal", "bootstrap", "attention", "daemon", "unixhttp", "hookfeed", "eventhistory", "lima_homes", "origin", "vm_processes"),
    # 3 configuration, limactl, what a user and a place are
    ("disk_users", "approval"),
    ("config", "lima", "identity", "places", "template", "credential", "golden", "host_packages",
     "first_run", "board", "turns", "hookintake", "hookcontrol", "notice", "dialog", "capture"),
    ("registration", "eventlog", "voice", "login_shared"),
    ("guest", "host", "options", "login", "settings", "image_recipe", "reference", "hooks"),
    ("context", "managed", "cache", "eventfeed", "completion", "lima_install", "image_root", "tools_try",
     "panes"),
    ("timings", "halt", "settings_sync", "shares", "reply", "bring", "notifiers", "audio"),
    ("find", "boot", "freeze", "setup", "doctor", "login_sync", "settings_diff", "image", "notifier_mac"),
    ("first_boot", "working", "prepare", "tools_document", "attending", "notify"),
    # 4 where steps are ordered
    ("create", "settle", "session", "hookboxes", "audiosign"),
    ("change", "launch", "tools_vm", "hookserver", "audioserver"),
    ("servers", "sandbox"),
    # 5 what a user sees
    ("render",),
    ("setup_host", "settings_verbs", "tools_verbs", "uninstall", "hook_verbs", "watch",
     "disk_verbs"),
    ("people",),
    ("commands",),
    ("cli",),
)  # fmt: skip

PROCESSES = {"subprocess", "multiprocessing"}
HEAVY = {"yaml", "psutil", "platformdirs", "rich", "asyncio", "aiohttp"}
# Modules of the servers: only a server's process imports them at its start, so they may import asyncio there.
SERVER = {"turns", "hookboxes", "hookcontrol", "hookfeed", "hookintake", "hookserver", "unixhttp", "forward",
          "notify", "notifiers", "notifier_mac", "audio", "audiosign", "audioserver"}  # fmt: skip


def sources() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import below `tree`; `from _claude_sandbox import x` is `_claude_sandbox.x`."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return  # never carried out
    if isinstance(tree, ast.Import):
        yield from ((alias.name, tree.lineno) for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module == PACKAGE:
        yield from ((f"{PACKAGE}.{alias.name}", tree.lineno) for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        yield tree.module, tree.lineno
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def at_start(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that happen when the module is imported: not those in functions or under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield from imports(node)


def level(name: str) -> int:
    for number, names in enumerate(LEVELS):
        if name in names:
            return number
    raise AssertionError(f"{name} has no level: add it to LEVELS in {__file__}")


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {module(p): ast.parse(p.read_text()) for p in sources() if p.name != "__init__.py"}


def test_the_table_names_the_modules_that_are_there() -> None:
    listed = [name for names in LEVELS for name in names]
    assert sorted(listed) == sorted(set(listed))
    assert sorted(listed) == sorted(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_downward(name: str) -> None:
    for target, line in imports(modules()[name]):
        if not target.startswith(f"{PACKAGE}."):
            continue
        other = target.removeprefix(f"{PACKAGE}.")
        if other != "__version__":
            assert level(other) < level(name), f"{name}:{line} imports {other}, which is not below it"


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_run_starts_processes(name: str) -> None:
    tree = modules()[name]
    if name != "run":
        assert not [line for target, line in imports(tree) if target.split(".")[0] in PROCESSES]
    if name not in ("run", "warm"):  # warm becomes ssh, and says why it does so itself
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
    servers = {f"{PACKAGE}.{server}" for server in SERVER}
    assert not [(target, line) for target, line in at_start(modules()[name]) if target in servers]


def test_the_front_door_holds_no_logic_and_imports_nothing_heavy() -> None:
    tree = ast.parse((ROOT / "claude_sandbox.py").read_text())
    assert not [target for target, _ in at_start(tree) if target.split(".")[0] in HEAVY | PROCESSES]


def test_no_module_is_long() -> None:
    """A room past about 500 lines wants two names (design.md)."""
    assert not {module(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 500}
