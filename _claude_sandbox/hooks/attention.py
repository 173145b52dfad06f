"""What a Claude session wants now, as a state machine without memory of its own: `step(session, event)`.

    working      a turn runs, or background tasks do
    needs_input  a dialog is open: a permission, a question, a plan
    done         Claude has finished its turn and nobody has answered yet
    failed       the turn ended in an error
    idle         it waits at its prompt, and nothing is new
    ended        the process or its VM is gone

The table is in docs/hooks.md and is checked against this module by a test. What Claude Code really
sends, and when, was found by experiment; the habits that matter here: PermissionRequest comes at once and the
Notification about the same dialog 6 s later; idle_prompt comes 60 s after Stop; Stop with background
tasks does not end a turn; a user's Esc ends a turn with no event at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from _claude_sandbox.hooks.event import HOST_REPLIED, MESSAGE, Event
from _claude_sandbox.system.text import clean

WORKING, NEEDS_INPUT, DONE = "working", "needs_input", "done"
FAILED, IDLE, ENDED = "failed", "idle", "ended"
STATES = (WORKING, NEEDS_INPUT, DONE, FAILED, IDLE, ENDED)
PERMISSION, QUESTION, PLAN = "permission", "question", "plan"
YES_NO = ("Yes", "No")  # of a permission or a plan: its first entry, and Esc


@dataclass(frozen=True)
class Session:
    """One Claude session. Times in ns since 1970."""

    session_id: str
    sandbox: str
    project: str
    uuid: str
    state: str
    since_ns: int
    message: str = ""
    tool: str = ""
    wants: str = ""  # permission, question or plan, with needs_input
    choices: tuple[
        str, ...
    ] = ()  # what an open dialog offers, in its order; Yes and No are its first and Esc
    background: int = 0  # tasks that go on after the turn
    cwd: str = ""
    started_ns: int = 0
    seq: int = 0  # the event that made this state: a reply names it, a stale one is refused
    agent: str = ""  # the subagent whose dialog is open, "" for Claude itself
    several: bool = False  # more than one choice may be taken, or more than one question is asked

    @property
    def key(self) -> tuple[str, str]:
        """Two sandboxes may claim the same session: each has its own."""
        return self.sandbox, self.session_id

    @property
    def busy(self) -> bool:
        """Whether stopping its VM would break work off (spec 1.11)."""
        return self.state in (WORKING, NEEDS_INPUT) or (self.state != ENDED and self.background > 0)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "choices": list(self.choices)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Session:
        """Of our own files or feed; raises KeyError and TypeError when it is not."""
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "choices": tuple(fields["choices"])})


@dataclass(frozen=True)
class Transition:
    """A session before and after an event; `event` is None when its VM stopped."""

    before: Session | None
    after: Session
    event: Event | None


def step(session: Session | None, event: Event) -> Session:
    """The session after `event`. Equal to `session` when the event says nothing about its attention."""
    before = session if session is not None else _new(event)
    if event.uuid and event.uuid != before.uuid:
        before = replace(before, uuid=event.uuid)
    cwd = event.data.get("cwd")
    if isinstance(cwd, str) and cwd and cwd != before.cwd:
        before = replace(before, cwd=cwd)
    rule = _RULES.get(event.name)
    return rule(before, event) if rule is not None else before


def end(session: Session, now_ns: int, why: str, seq: int = 0) -> Session:
    """Its VM stopped or died."""
    if session.state == ENDED:
        return session
    return replace(_closed(session), state=ENDED, since_ns=now_ns, message=why, background=0, seq=seq)


def _new(event: Event) -> Session:
    return Session(
        event.session_id, event.sandbox, event.project, event.uuid, IDLE, event.time_ns,
        started_ns=event.time_ns, seq=event.seq,
    )  # fmt: skip


def _closed(session: Session) -> Session:
    """Without the marks of an open dialog."""
    return replace(session, tool="", wants="", choices=(), agent="", several=False)


def _become(session: Session, event: Event, state: str, message: str = "", **changes: Any) -> Session:
    """Into a state: `since` stays when it is in that state already, `seq` names this event either way."""
    since = session.since_ns if session.state == state else event.time_ns
    return replace(_closed(session), state=state, since_ns=since, message=message, seq=event.seq, **changes)


# -- rules, one for each event that says something -------------------------------------------------


def _start(session: Session, event: Event) -> Session:
    if event.data.get("source") == "compact":  # in the middle of a turn, or at the prompt
        return session
    return _become(session, event, IDLE, background=0)


def _prompt(session: Session, event: Event) -> Session:
    return _become(session, event, WORKING)


def _tool(session: Session, event: Event) -> Session:
    """A tool begins or ended: a turn runs. What another agent does closes no dialog and begins no turn."""
    agent, tool = event.data.get("agent_id", ""), event.data.get("tool_name", "")
    if session.state == NEEDS_INPUT:
        if agent != session.agent or (session.tool and tool and tool != session.tool):
            return session
    elif agent and session.state != WORKING:
        return session
    if session.state == WORKING:  # nothing new but the tool: no other `since`, no other `seq`
        return replace(session, tool=tool if event.name == "PreToolUse" and not agent else session.tool)
    return _become(session, event, WORKING, background=session.background, tool=tool)


def _permission(session: Session, event: Event) -> Session:
    tool = event.data.get("tool_name", "")
    detail = event.data.get("detail", "")
    agent = event.data.get("agent_id", "")
    if tool == "AskUserQuestion":
        several = bool(event.data.get("several")) or event.data.get("questions", 1) != 1
        return _open(
            session, event, QUESTION, detail or "Claude has a question", tuple(event.data.get("choices", ())),
            tool=tool, agent=agent, several=several,
        )  # fmt: skip
    if tool == "ExitPlanMode":
        return _open(session, event, PLAN, detail or "Claude has a plan", YES_NO, tool=tool, agent=agent)
    text = clean(
        ": ".join(part for part in (tool, detail) if part) or "Claude needs your permission", MESSAGE
    )
    return _open(session, event, PERMISSION, text, YES_NO, tool=tool, agent=agent)


def _open(
    session: Session, event: Event, wants: str, message: str, choices: tuple[str, ...], **changes: Any
) -> Session:
    """A dialog is open. The newest one is shown: of two at once the older mostly was answered just now."""
    opened = _become(session, event, NEEDS_INPUT, message, wants=wants, choices=choices, **changes)
    return replace(opened, since_ns=event.time_ns, background=session.background)


def _notification(session: Session, event: Event) -> Session:
    kind, message = event.data.get("notification_type", ""), event.data.get("message", "")
    if kind == "permission_prompt" and session.state not in (NEEDS_INPUT, ENDED):
        # Its PermissionRequest did not come (another hook answered it, or the spool was full).
        return _open(session, event, PERMISSION, message or "Claude needs your permission", ())
    if kind == "elicitation_dialog" and session.state not in (NEEDS_INPUT, ENDED):
        return _open(session, event, QUESTION, message or "Claude has a question", ())
    if kind == "idle_prompt" and session.state in (WORKING, NEEDS_INPUT):
        # The turn was broken off by Esc, or only background tasks go on. After Stop it is `done` or `failed`
        # already and stays that: somebody still has to look.
        return _become(session, event, IDLE, message, background=session.background)
    return session


def _elicitation(session: Session, event: Event) -> Session:
    return _open(session, event, QUESTION, event.data.get("message", "") or "Claude has a question", ())


def _answered(session: Session, event: Event) -> Session:
    """A dialog was answered: by its own event, or by us (that one names the state which it answered)."""
    if session.state != NEEDS_INPUT or event.data.get("answers", session.seq) != session.seq:
        return session
    return _become(session, event, WORKING, background=session.background, tool=session.tool)


def _stop(session: Session, event: Event) -> Session:
    tasks = event.data.get("background_tasks", 0)
    message = event.data.get("last_assistant_message", "")
    return _become(session, event, WORKING if tasks else DONE, message, background=tasks)


def _failure(session: Session, event: Event) -> Session:
    message = event.data.get("last_assistant_message", "") or event.data.get("error", "")
    return _become(session, event, FAILED, message or "The turn ended in an error", background=0)


def _end(session: Session, event: Event) -> Session:
    if session.state == ENDED:
        return session
    return _become(session, event, ENDED, event.data.get("reason", ""), background=0)


_RULES: Mapping[str, Callable[[Session, Event], Session]] = {
    "SessionStart": _start,
    "UserPromptSubmit": _prompt,
    "PreToolUse": _tool,
    "PostToolUse": _tool,
    "PostToolUseFailure": _tool,
    "PermissionRequest": _permission,
    "PermissionDenied": _answered,
    "Notification": _notification,
    "Elicitation": _elicitation,
    "ElicitationResult": _answered,
    HOST_REPLIED: _answered,
    "Stop": _stop,
    "StopFailure": _failure,
    "SessionEnd": _end,
}
