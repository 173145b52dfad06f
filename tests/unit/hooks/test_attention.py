"""The attention of a Claude session, event by event, with the payloads that Claude Code really sends."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.hooks import attention as hooks_attention
from _claude_sandbox.hooks.attention import Session, end, step
from _claude_sandbox.hooks.event import Event, choose

SAMPLES = {
    file.stem: json.loads(file.read_text()) for file in (Path(__file__).parent / "samples").glob("*.json")
}


def event(seq: int, sample: str, **changes: Any) -> Event:
    """The seq-th event, `sample` with changes, a second after the one before."""
    payload = {**SAMPLES.get(sample, {"hook_event_name": sample}), "session_id": "s", **changes}
    name = str(payload["hook_event_name"])
    time_ns = seq * 10**9
    return Event(
        seq, f"00ff00ff:{seq}", time_ns, time_ns, "box", "/p", name, "s", "", 1, choose(name, payload)
    )


def ask(name: str = "AskUserQuestion", **tool_input: Any) -> dict[str, Any]:
    return {"tool_name": name, "tool_input": tool_input}


def follow(*events: str | tuple[str, dict[str, Any]]) -> list[Session]:
    """The session after each event."""
    session, seen = None, []
    for seq, item in enumerate(events, 1):
        sample, changes = (item, {}) if isinstance(item, str) else item
        session = step(session, event(seq, sample, **changes))
        seen.append(session)
    return seen


def states(*events: str | tuple[str, dict[str, Any]]) -> list[str]:
    return [session.state for session in follow(*events)]


def test_a_plain_turn() -> None:
    seen = follow(
        "SessionStart.startup", "UserPromptSubmit", "PreToolUse.Bash", "PostToolUse.Bash", "Stop",
        "Notification.idle_prompt", "UserPromptSubmit", "SessionEnd.prompt_input_exit",
    )  # fmt: skip
    assert [s.state for s in seen] == [
        "idle", "working", "working", "working", "done", "done", "working", "ended",
    ]  # fmt: skip
    assert seen[4].message == "stub reply" and seen[2].tool == "Bash" and seen[4].tool == ""
    assert seen[5] == dataclasses.replace(seen[4], cwd=seen[5].cwd), "idle_prompt says nothing new after Stop"
    assert seen[3].since_ns == 2 * 10**9 and seen[-1].message == "prompt_input_exit"


def test_a_permission_is_one_state_although_two_events_tell_of_it() -> None:
    seen = follow(
        "UserPromptSubmit", "PreToolUse.Bash", "PermissionRequest.Bash", "Notification.permission_prompt",
        "PostToolUse.Bash", "Stop",
    )  # fmt: skip
    asked = seen[2]
    assert (asked.state, asked.wants, asked.tool, asked.seq) == ("needs_input", "permission", "Bash", 3)
    assert asked.message == "Bash: touch xx" and asked.choices == ("Yes", "No")
    assert seen[3] == asked
    assert (seen[4].state, seen[4].wants, seen[4].choices) == ("working", "", ())


def test_a_question_and_a_plan() -> None:
    options = [{"label": "red"}, {"label": "blue"}]
    question = ask(questions=[{"question": "Which?", "options": options}])
    (asked,) = follow(("PermissionRequest.Bash", question))
    assert (asked.wants, asked.message, asked.choices) == ("question", "Which?", ("red", "blue"))
    assert not asked.several
    (plan,) = follow(("PermissionRequest.Bash", ask("ExitPlanMode", plan="1. do it")))
    assert (plan.wants, plan.message) == ("plan", "1. do it")
    two = ask(questions=[{"question": "Which?", "options": options}] * 2)
    assert follow(("PermissionRequest.Bash", two))[0].several


def test_the_notification_alone_opens_a_dialog_too() -> None:
    seen = follow("UserPromptSubmit", "Notification.permission_prompt")
    assert (seen[1].state, seen[1].message) == ("needs_input", "Claude needs your permission")
    assert seen[1].choices == (), "nobody knows what it offers"


def test_stop_with_background_tasks_is_not_done() -> None:
    busy = {"background_tasks": [{"id": "a"}, {"id": "b"}]}
    seen = follow(
        "UserPromptSubmit",
        ("Stop", busy),
        "Notification.idle_prompt",
        "SubagentStop",
        "UserPromptSubmit",
        "Stop",
    )
    assert [s.state for s in seen] == ["working", "working", "idle", "idle", "working", "done"]
    assert [s.background for s in seen] == [0, 2, 2, 2, 2, 0]
    assert [s.busy for s in seen] == [True, True, True, True, True, False]


def test_a_failed_turn_stays_failed_when_claude_says_that_it_waits() -> None:
    seen = follow("UserPromptSubmit", "StopFailure.authentication_failed", "Notification.idle_prompt")
    assert [s.state for s in seen] == ["working", "failed", "failed"]
    assert seen[1].message == "Please run /login · API Error: 401 bad key"


def test_a_turn_broken_off_by_esc_ends_with_idle_prompt() -> None:
    assert states("UserPromptSubmit", "Notification.idle_prompt") == ["working", "idle"]
    assert states("PermissionRequest.Bash", "Notification.idle_prompt")[-1] == "idle"


def test_what_another_agent_does_closes_no_dialog() -> None:
    other = {"agent_id": "a1"}
    seen = follow(
        "PermissionRequest.Bash", ("PreToolUse.Read", other), ("PostToolUse.Bash", other), "PostToolUse.Bash",
        ("PermissionRequest.Bash", other), "PostToolUse.Bash", ("PostToolUse.Bash", other),
    )  # fmt: skip
    assert [s.state for s in seen] == [
        "needs_input", "needs_input", "needs_input", "working", "needs_input", "needs_input", "working",
    ]  # fmt: skip


def test_a_parallel_tool_closes_no_dialog() -> None:
    assert states("PermissionRequest.Bash", "PreToolUse.Read", "PostToolUseFailure.Read")[-1] == "needs_input"


def test_a_subagent_s_tool_begins_no_turn() -> None:
    assert states("Stop", ("PreToolUse.Bash", {"agent_id": "a1"}))[-1] == "done"
    assert states("Stop", "SubagentStart", "SubagentStop")[-1] == "done"


def test_our_reply_closes_the_dialog_that_it_answers_and_no_other() -> None:
    opened = follow("UserPromptSubmit", "PermissionRequest.Bash")[-1]
    right = Event(9, "", 9, 9, "box", "/p", "HostReplied", "s", "", 0, {"answers": 2})
    stale = Event(9, "", 9, 9, "box", "/p", "HostReplied", "s", "", 0, {"answers": 1})
    assert step(opened, right).state == "working"
    assert step(opened, stale) == opened


def test_clear_makes_another_session_and_compact_none() -> None:
    assert states("UserPromptSubmit", "SessionEnd.clear")[-1] == "ended"
    assert (
        states("UserPromptSubmit", "PreCompact.manual", "SessionStart.compact", "PostCompact.manual")
        == ["working"] * 4
    )
    assert states("SessionEnd.other", "SessionStart.resume") == ["ended", "idle"]


def test_nothing_but_life_revives_an_ended_session() -> None:
    assert (
        states("SessionEnd.other", "Notification.permission_prompt", "SubagentStop", "SessionEnd.other")
        == ["ended"] * 4
    )
    assert states("SessionEnd.other", "UserPromptSubmit")[-1] == "working"


def test_a_vm_that_stopped_ends_its_session_once() -> None:
    opened = follow("PermissionRequest.Bash")[-1]
    gone = end(opened, 99, "the VM stopped", 7)
    assert (gone.state, gone.wants, gone.choices, gone.message) == ("ended", "", (), "the VM stopped")
    assert end(gone, 100, "again") == gone


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_any_sample_may_come_first(sample: str) -> None:
    session = follow(sample)[0]
    assert session.state in hooks_attention.STATES
    assert Session.from_json(json.loads(json.dumps(session.to_json()))) == session


@given(st.lists(st.tuples(st.sampled_from(sorted(SAMPLES)), st.booleans()), max_size=30))
def test_invariants_hold_in_any_order(names: list[tuple[str, bool]]) -> None:
    session = None
    for seq, (sample, by_agent) in enumerate(names, 1):
        before = session
        session = step(before, event(seq, sample, **({"agent_id": "a"} if by_agent else {})))
        assert session.state in hooks_attention.STATES
        assert bool(session.wants) == (session.state == "needs_input")
        assert session.state == "needs_input" or not (session.choices or session.agent)
        assert session.seq <= seq and session.since_ns <= seq * 10**9
        if before is not None and (before.state, before.wants) != (session.state, session.wants):
            assert session.seq == seq, "a new state names its event"


def test_the_documented_table_names_every_event_that_has_a_rule() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "hooks.md").read_text()
    table = text.split("| event | when | then |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", table))
    rules = set(hooks_attention._RULES) - {"HostReplied"}  # "our own reply"
    assert named == rules | {"SubagentStop"}


# Rows of that table: events before, the event, the state after.
@pytest.mark.parametrize(
    ("before", "last", "state"),
    [
        ((), "SessionStart.startup", "idle"), (("UserPromptSubmit",), "SessionStart.compact", "working"),
        (("Stop",), "UserPromptSubmit", "working"), (("Stop",), "PreToolUse.Bash", "working"),
        (("PermissionRequest.Bash",), "PostToolUse.Bash", "working"),
        (("PermissionRequest.Bash",), "PreToolUse.Read", "needs_input"),
        (("UserPromptSubmit",), "PermissionRequest.Bash", "needs_input"),
        (("PermissionRequest.Bash",), "Notification.permission_prompt", "needs_input"),
        (("UserPromptSubmit",), "Notification.permission_prompt", "needs_input"),
        (("Stop",), "Notification.idle_prompt", "done"), (("StopFailure.unknown",), "Notification.idle_prompt", "failed"),
        (("UserPromptSubmit",), "Notification.idle_prompt", "idle"), (("PermissionRequest.Bash",), "PermissionDenied", "working"),
        (("PermissionRequest.Bash",), "ElicitationResult", "working"), (("UserPromptSubmit",), "Elicitation", "needs_input"),
        (("UserPromptSubmit",), "Stop", "done"), (("UserPromptSubmit",), "StopFailure.unknown", "failed"),
        (("UserPromptSubmit",), "SubagentStop", "working"), (("Stop",), "SessionEnd.clear", "ended"),
    ],
)  # fmt: skip
def test_rows_of_the_documented_table(before: tuple[str, ...], last: str, state: str) -> None:
    assert states(*before, last)[-1] == state
