"""Every sandbox with its Claude sessions, as the hooks server left them, and which of them a user names.

Only files are read here (state.json, instance directories): `watch` does it several times a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import ClaudeSandboxError, SandboxNotFoundError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks.attention import DONE, ENDED, FAILED, IDLE, NEEDS_INPUT, WORKING, Session
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, Instance
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm.mark import project_of

# Who comes first: in a table, and for `next` (which takes the first three only).
ORDER = (NEEDS_INPUT, FAILED, DONE, IDLE, WORKING, ENDED)
NEXT = (NEEDS_INPUT, FAILED, DONE)


@dataclass(frozen=True)
class Row:
    """A sandbox's line: one for each Claude session that is not over, or one without any."""

    sandbox: str
    project: Path
    status: str
    session: Session | None = None

    @property
    def state(self) -> str:
        return self.session.state if self.session else ""


def state_file() -> Path:
    return hooks_client.state_directory() / "state.json"


def current(key: tuple[str, str]) -> Session | None:
    return next((session for session in hooks_client.sessions() if session.key == key), None)


def rows(ctx: Context) -> list[Row]:
    """Every sandbox with its sessions, those that wait first, the longest wait first of all."""
    instances = vm_lookup.list_from_files(ctx)
    return arrange([(each.name, _project(each), each.status) for each in instances], hooks_client.sessions())


def arrange(sandboxes: Iterable[tuple[str, Path, str]], known: Sequence[Session]) -> list[Row]:
    found = []
    for name, project, status in sandboxes:
        live = [s for s in known if s.sandbox == name and s.state != ENDED] if status == RUNNING else []
        found += [Row(name, project, status, session) for session in live] or [Row(name, project, status)]
    return sorted(found, key=_rank)


def _rank(row: Row) -> tuple[int, int, str]:
    if row.session is None:
        return len(ORDER) + (row.status != RUNNING), 0, row.sandbox
    return ORDER.index(row.state) if row.state in ORDER else len(ORDER), row.session.since_ns, row.sandbox


def _project(instance: Instance) -> Path:
    return project_of(instance) or Path("?")


def waiting(ctx: Context) -> list[Row]:
    """Those that need the user: needs_input, then failed, then done; the longest wait first."""
    return [row for row in rows(ctx) if row.state in NEXT]


def named(ctx: Context, name: str) -> list[Row]:
    """The rows that a user names by a VM's name, a project's name or a path. Raises SandboxNotFoundError."""
    everything = rows(ctx)
    path = os.path.realpath(os.path.expanduser(name))
    for means in (
        lambda row: row.sandbox == name,
        lambda row: str(row.project) == path and ("/" in name or name in (".", "~")),
        lambda row: row.project.name == name,
        lambda row: row.sandbox == f"claude-sandbox-{name}",
    ):
        if found := [row for row in everything if means(row)]:
            if len({row.sandbox for row in found}) > 1:
                lines = "\n".join(sorted({f"{row.sandbox}: {row.project}" for row in found}))
                raise ClaudeSandboxError(
                    f"{name} is the name of several projects.",
                    details=lines,
                    resolution="Give the VM's name or a path.",
                )
            return found
    known = "\n".join(sorted({f"{row.sandbox}: {row.project}" for row in everything}))
    raise SandboxNotFoundError(f"No sandbox is called {name}.", details=known or None)


def pane_record(session: Session) -> terminals_records.Record | None:
    """The terminal of a session, while it lives."""
    return terminals_records.of(session.uuid, session.sandbox)
