"""All Claude sessions that are known, and how far each guest's spool was taken. Values only: no files.

Both are bounded, because guests fill them: a sandbox has at most SESSIONS sessions and SPOOLS spools,
the oldest go first, those that have ended before all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _claude_sandbox.hooks.attention import ENDED, Session, Transition, end, step
from _claude_sandbox.hooks.event import Event

SESSIONS, ENDED_KEPT, SPOOLS = 64, 8, 16  # of one sandbox
ENDED_FOR = 86_400 * 10**9  # ns that a session is kept after its end
STOPPED = "the VM stopped"


class SessionTable:
    """`seq` is that of the last event; an event gets the next one before it is logged and taken."""

    def __init__(self) -> None:
        self.seq = 0
        self.sessions: dict[tuple[str, str], Session] = {}
        self.spools: dict[str, dict[str, int]] = {}

    def last(self, sandbox: str, spool: str) -> int:
        """The number up to which this spool was taken; 0 when it is not known."""
        return self.spools.get(sandbox, {}).get(spool, 0)

    def take(self, event: Event) -> Transition | None:
        """Put a logged event in; None when it changes nothing about its session."""
        self.seq = max(self.seq, event.seq)
        if event.id:
            self._note_spool(event.sandbox, event.spool, event.number)
        if not event.session_id:  # of the guest as a whole
            return None
        key = event.sandbox, event.session_id
        before = self.sessions.get(key)
        after = step(before, event)
        if after == before:
            return None
        self.sessions[key] = after
        if before is None or after.state == ENDED:
            self._bound(event.sandbox, event.received_ns)
        return Transition(before, after, event)

    def stop(self, sandbox: str, seq: int, now_ns: int) -> list[Transition]:
        """This sandbox's VM stopped or died: its sessions have ended."""
        self.seq = max(self.seq, seq)
        changed = []
        for key, before in list(self.sessions.items()):
            if before.sandbox == sandbox and before.state != ENDED:
                self.sessions[key] = after = end(before, now_ns, STOPPED, seq)
                changed.append(Transition(before, after, None))
        self._bound(sandbox, now_ns)
        return changed

    def lives(self, sandbox: str) -> bool:
        """Whether a session of it has not ended."""
        return any(s.sandbox == sandbox and s.state != ENDED for s in self.sessions.values())

    def forget(self, sandbox: str) -> None:
        """The VM is deleted: nothing of it is kept."""
        self.spools.pop(sandbox, None)
        for key in [key for key in self.sessions if key[0] == sandbox]:
            del self.sessions[key]

    def knows(self, sandbox: str) -> bool:
        return sandbox in self.spools or any(key[0] == sandbox for key in self.sessions)

    def ordered(self) -> list[Session]:
        """The sessions by sandbox, and the oldest first."""
        return sorted(self.sessions.values(), key=lambda s: (s.sandbox, s.started_ns, s.session_id))

    def _note_spool(self, sandbox: str, spool: str, number: int) -> None:
        spools = self.spools.setdefault(sandbox, {})
        last = max(spools.pop(spool, 0), number)
        spools[spool] = last  # the newest stands last
        while len(spools) > SPOOLS:
            del spools[next(iter(spools))]

    def _bound(self, sandbox: str, now_ns: int) -> None:
        mine = [s for s in self.sessions.values() if s.sandbox == sandbox]
        over = sorted((s for s in mine if s.state == ENDED), key=lambda s: s.since_ns)
        live = sorted((s for s in mine if s.state != ENDED), key=lambda s: s.seq)
        old = [s for s in over if now_ns - s.since_ns > ENDED_FOR]
        surplus = over[: max(len(over) - ENDED_KEPT, 0)] + live[: max(len(live) - SESSIONS, 0)]
        for key in {s.key for s in old + surplus}:
            del self.sessions[key]

    # -- what a log begins with ------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "spools": self.spools,
            "sessions": [session.to_json() for session in self.ordered()],
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore what `snapshot` returned; raises KeyError, TypeError, ValueError for anything else."""
        sessions = [Session.from_json(each) for each in value["sessions"]]
        spools = {
            str(sandbox): {str(spool): int(n) for spool, n in of.items()}
            for sandbox, of in value["spools"].items()
        }
        self.seq = int(value["seq"])
        self.sessions = {session.key: session for session in sessions}
        self.spools = spools
