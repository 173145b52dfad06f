"""What the verbs return, as text for people or JSON for programs. Nothing here decides anything."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import text as system_text
from _claude_sandbox.system.units import format_size

if TYPE_CHECKING:
    from _claude_sandbox.sandbox.summary import Info, Sandbox


printable = system_text.printable  # what the verbs print names and paths with


def data(value: Any) -> Any:
    """A verb's return value as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [data(item) for item in value]
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    print(system_text.json_text(json.dumps(data(value), indent=2, ensure_ascii=False)))


def sandbox_line(sandbox: Sandbox) -> str:
    size = f"{sandbox.cpus} CPUs, {format_size(sandbox.memory)}, disk {format_size(sandbox.disk)}"
    gone = "" if sandbox.project_exists else "  (directory is gone)"
    return f"  {sandbox.name}: {sandbox.status}  {printable(sandbox.project)}{gone}  [{size}]"


def status(value: dict[str, Any]) -> str:
    lines = [
        "=== Claude Sandbox Status ===",
        f"Base VM: {value['base_vm'] or '(not set)'}",
        f"Template: {value['template']}",
        f"Hooks server: {value['hooks_server']}",
        f"Audio server: {value['audio_server']}",
        "VMs:",
    ]
    for sandbox in value["vms"]:
        lines.append(sandbox_line(sandbox))
        lines += [f"    {line}" for line in session_lines(value["sessions"], sandbox.name)]
    if not value["vms"]:
        lines.append("  No sandbox VMs created yet")
    return "\n".join(lines)


# What needs somebody comes first.
_URGENCY = ("needs_input", "failed", "done", "working", "idle")


def session_lines(sessions: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """`Claude: needs_input (permission) for 3 min  Bash: touch xx`, a line for each session that has not ended."""
    live = [s for s in sessions if s["sandbox"] == name and s["state"] in _URGENCY]
    lines = []
    for each in sorted(live, key=lambda s: (_URGENCY.index(s["state"]), s["since_ns"])):
        wants = f" ({each['wants']})" if each["wants"] else ""
        tasks = f", {each['background']} in the background" if each["background"] else ""
        said = f"  {each['message']}" if each["message"] else ""
        lines.append(printable(f"Claude: {each['state']}{wants}{tasks} for {since(each['since_ns'])}{said}"))
    return lines


def since(time_ns: int) -> str:
    """How long ago, in one unit: `5 s`, `12 min`, `3 h`, `2 d`."""
    seconds = max(time.time_ns() - time_ns, 0) // 10**9
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def attention(sessions: Sequence[Mapping[str, Any]], name: str) -> str:
    """The most urgent state of a sandbox's sessions, with how many more there are; `-` without any."""
    live = [s["state"] for s in sessions if s["sandbox"] == name and s["state"] in _URGENCY]
    more = f" (+{len(live) - 1})" if len(live) > 1 else ""
    return min(live, key=_URGENCY.index) + more if live else "-"


def table(sandboxes: Sequence[Sandbox], sessions: Sequence[Mapping[str, Any]] = ()) -> str:
    """NAME STATUS CLAUDE PROJECT, aligned; plain text, so that a pipe reads the same."""
    if not sandboxes:
        return "No sandboxes yet. `claude-sandbox` in a project directory makes one."
    rows = [
        ("NAME", "STATUS", "CLAUDE", "PROJECT"),
        *((s.name, s.status, attention(sessions, s.name), printable(s.project)) for s in sandboxes),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in rows)


def info(value: Info) -> str:
    sandbox = value.sandbox
    pairs = [
        ("Name", sandbox.name),
        ("Status", sandbox.status),
        ("Project", printable(sandbox.project) + ("" if sandbox.project_exists else "  (directory is gone)")),
        ("CPUs", sandbox.cpus),
        ("Memory", format_size(sandbox.memory)),
        ("Disk", format_size(sandbox.disk)),
        ("Ports", ", ".join(value.ports) or "none"),
        ("VM type", value.vm_type),
        ("Lima", value.lima_version),
        ("Files", printable(value.directory)),
        ("ssh", f"ssh -F {value.ssh_config} lima-{sandbox.name}"),
    ]
    lines = [f"{name + ':':<9} {text}" for name, text in pairs]
    lines += ["Mounts:"]
    for share in value.shares:
        mode = "writable" if share.writable else "read-only"
        lines.append(f"  {printable(share.location)} at {printable(share.point)} ({mode})")
    return "\n".join(lines)


def marks(checks: Sequence[Any]) -> str:
    """Checks or tools (name, ok, detail, remedy) with ✓, ✗ or - in front."""
    lines = []
    for check in checks:
        sign = {True: "✓", False: "✗", None: "-"}[check.ok]
        detail = printable(check.detail, keep="\n")
        lines.append(f"{sign} {check.name}: {detail}".rstrip(": "))
        remedy = getattr(check, "remedy", None)
        if remedy and check.ok is not True:
            lines.append(f"    → {remedy}")
    return "\n".join(lines)


def error(problem: ClaudeSandboxError, *, as_json: bool) -> None:
    """Print an error on stderr (and as an object on stdout with --json)."""
    if as_json:
        print_json(
            {
                "error": {
                    "message": problem.brief,
                    "details": problem.details,
                    "resolution": problem.resolution,
                }
            }
        )
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    head = "\x1b[31mError:\x1b[0m " if colour else "Error: "
    # Any of them may quote a guest, a file or a name: nothing in them may steer the terminal.
    for line in problem.brief.splitlines():
        print(head + printable(line), file=sys.stderr)
        head = ""
    for line in (problem.details or "").splitlines():
        print("  " + printable(line.expandtabs()), file=sys.stderr)
    for line in (problem.resolution or "").splitlines():
        print(printable(line), file=sys.stderr)
