"""Trying every promised tool in the booted tools VM, as its user would run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.base_vm.catalogue import Tool, at_least, version_in
from _claude_sandbox.errors import GuestConnectionError
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system.text import one_line

TIMEOUT = 300.0  # seconds for one tool; a JVM's first start under TCG takes a minute
NOT_HERE = "not in this mode"
# The login shell's own profile decides what is on PATH.
_TRY = 'cd / && exec bash -lc "set -o pipefail; $1" </dev/null'


@dataclass(frozen=True)
class ToolCheck:
    """One tool's result; `ok` is None for what this mode cannot have."""

    name: str
    ok: bool | None
    version: str
    detail: str


def verify(
    guest: Guest, tools: Sequence[Tool], from_packages: bool, say: Callable[[str], None], logfile: Path
) -> tuple[ToolCheck, ...]:
    """Run each tool; a failure is a result, not an error. What they print goes to the log."""
    checks = []
    with logfile.open("a", encoding="utf-8") as log:
        for tool in tools:
            say(tool.name)
            check = _one(guest, tool, from_packages)
            checks.append(check)
            mark = {True: "ok", False: "NOT", None: "-"}[check.ok]
            log.write(f"{mark} {tool.name}: {check.version} {check.detail}\n")
    return tuple(checks)


def _one(guest: Guest, tool: Tool, from_packages: bool) -> ToolCheck:
    source = tool.source(from_packages)
    if source is None:
        return ToolCheck(tool.name, None, "", NOT_HERE)
    try:
        result = guest.run(_TRY, tool.verify, timeout=TIMEOUT)
    except GuestConnectionError as error:
        return ToolCheck(tool.name, False, "", error.details or error.brief)
    output = one_line(result.text + result.error_text)
    if not result.ok:
        return ToolCheck(tool.name, False, "", output[-300:] or f"exit code {result.returncode}")
    version = version_in(one_line(result.text))
    if source.least and not at_least(version, source.least):
        return ToolCheck(tool.name, False, version, f"at least {source.least} is needed")
    return ToolCheck(tool.name, True, version, source.origin)
