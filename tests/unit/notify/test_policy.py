"""What is notified: each thing once, nothing that nags, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.hooks.attention import Session, Transition, step
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.notify import policy as notify_policy
from _claude_sandbox.notify.policy import Action, Policy, Show, Withdraw

ALL = notify_policy.NOTIFIED


def event(name: str, seq: int, *, box: str = "vm", session: str = "s", **data: Any) -> Event:
    return Event(seq, f"abcdef01:{seq}", seq, seq, box, f"/work/{box}", name, session, "", 1, data)


class World:
    """Sessions brought forward by the real state machine, and a clock of ours."""

    def __init__(self, states: Sequence[str] = ALL) -> None:
        self.policy, self.now = Policy(states), 1000.0
        self.sessions: dict[tuple[str, str], Session] = {}
        self.seq = 0

    def on(
        self, name: str, *, box: str = "vm", session: str = "s", wait: float = 10.0, **kw: Any
    ) -> list[Action]:
        self.now += wait
        self.seq += 1
        options = {key: kw.pop(key) for key in ("quiet", "looked_at", "age") if key in kw}
        given = event(name, self.seq, box=box, session=session, **kw)
        before = self.sessions.get((box, session))
        after = step(before, given)
        self.sessions[after.key] = after
        return self.policy.add(Transition(before, after, given), self.now, **options)

    def flush(self, wait: float, **options: Any) -> list[Action]:
        self.now += wait
        return self.policy.flush(self.now, **options)


def titles(actions: Sequence[Action]) -> list[str]:
    return [a.alert.title if isinstance(a, Show) else f"-{a.key[1]}" for a in actions]


def test_a_question_is_told_once_and_withdrawn_when_it_is_answered() -> None:
    world = World()
    assert world.on("UserPromptSubmit") == []
    [shown] = world.on("PermissionRequest", tool_name="Bash", detail="touch xx")
    assert isinstance(shown, Show)
    assert (shown.alert.title, shown.alert.body) == ("Claude [vm]", "Bash: touch xx")
    assert shown.alert.urgency == notify_policy.CRITICAL
    # the Notification about the same dialog, 6 s later
    assert (
        world.on(
            "Notification", notification_type="permission_prompt", message="Claude needs your permission"
        )
        == []
    )
    assert world.on("PostToolUse", tool_name="Bash") == [Withdraw(("vm", "s"))]


def test_the_idle_reminder_after_stop_does_not_nag() -> None:
    world = World()
    world.on("UserPromptSubmit")
    [shown] = world.on("Stop", last_assistant_message="All tests pass now.")
    assert isinstance(shown, Show) and shown.alert.body == "All tests pass now."
    assert (
        world.on("Notification", notification_type="idle_prompt", message="Claude is waiting for your input")
        == []
    )
    assert world.on("UserPromptSubmit") == [Withdraw(("vm", "s"))]


def test_stop_without_a_message_and_a_failure() -> None:
    world = World()
    [shown] = world.on("Stop")
    assert isinstance(shown, Show) and shown.alert.body == "Waiting for input"
    world.on("UserPromptSubmit")
    [shown] = world.on("StopFailure", error="overloaded")
    assert isinstance(shown, Show) and (shown.alert.body, shown.alert.urgency) == (
        "overloaded",
        notify_policy.NORMAL,
    )


def test_stop_with_tasks_in_the_background_is_not_told() -> None:
    world = World()
    assert world.on("Stop", background_tasks=1) == []
    assert titles(world.on("Stop", background_tasks=0)) == ["Claude [vm]"]


def test_a_newer_state_takes_the_older_notification_s_place() -> None:
    world = World()
    world.on("PermissionRequest", tool_name="Bash")
    [shown] = world.on("Stop")
    assert isinstance(shown, Show) and shown.alert.key == ("vm", "s")


def test_only_the_states_that_the_user_wants() -> None:
    world = World(("needs_input",))
    assert titles(world.on("PermissionRequest", tool_name="Bash")) == ["Claude [vm]"]
    assert world.on("Stop") == [Withdraw(("vm", "s"))]
    assert World(()).on("PermissionRequest", tool_name="Bash") == []


def test_what_the_user_looks_at_is_not_told_and_takes_the_old_one_away() -> None:
    world = World()
    assert world.on("PermissionRequest", tool_name="Bash", looked_at=True) == []
    world.on("UserPromptSubmit")
    world.on("Stop")
    assert world.on("PermissionRequest", tool_name="Bash", looked_at=True) == [Withdraw(("vm", "s"))]


def test_a_replayed_history_is_no_news() -> None:
    assert World().on("Stop", age=3600.0) == []


def test_a_burst_becomes_one_summary() -> None:
    world = World()
    assert titles(world.on("Stop", box="a")) == ["Claude [a]"]
    assert titles(world.on("PermissionRequest", box="b", wait=0.1, tool_name="Bash")) == ["Claude [b]"]
    assert world.on("Stop", box="c", wait=0.1) == [] and world.on("Stop", box="d", wait=0.1) == []
    due = world.policy.due(world.now)
    assert due is not None and 2 < due <= notify_policy.WINDOW
    actions = world.flush(due)
    assert titles(actions) == ["-s", "-s", "4 sandboxes need you: b, a, c, d"]
    assert world.policy.due(world.now) is None
    # it goes when the last of them has been answered
    assert world.on("UserPromptSubmit", box="a") == [] and world.on("UserPromptSubmit", box="b") == []
    assert world.on("UserPromptSubmit", box="c") == []
    assert world.on("UserPromptSubmit", box="d") == [Withdraw(notify_policy.SUMMARY)]


def test_what_is_answered_while_it_waits_is_never_shown() -> None:
    world = World()
    world.on("Stop", box="a")
    world.on("Stop", box="b", wait=0)
    assert world.on("Stop", box="c", wait=0) == [] and world.on("UserPromptSubmit", box="c", wait=0) == []
    assert world.policy.due(world.now) is None and world.flush(60) == []


def test_quiet_hours_end_with_what_still_waits() -> None:
    world = World()
    assert world.on("Stop", box="a", quiet=3600) == []
    assert world.on("PermissionRequest", box="b", tool_name="Bash", quiet=3500) == []
    assert world.on("Stop", box="c", quiet=3400) == []
    world.on("UserPromptSubmit", box="c", quiet=3300)
    assert world.policy.due(world.now, quiet=3300) == 3300
    assert world.flush(3000, quiet=300) == []
    assert titles(world.flush(300)) == ["Claude [a]", "Claude [b]"]


def test_one_sandbox_cannot_keep_the_user_busy() -> None:
    world = World()
    shown = 0
    for number in range(600):  # one a second, each of another session
        shown += len([a for a in world.on("Stop", session=f"s{number}", wait=1) if isinstance(a, Show)])
    assert shown <= notify_policy.TOKENS + 600 / notify_policy.REFILL + 1
    assert len(world.policy._waiting) <= notify_policy.MOST
    # and the others are heard at once
    assert [a for a in world.on("Stop", box="other", wait=0.5) if isinstance(a, Show)]


@pytest.mark.parametrize(
    ("project", "others", "expected"),
    [
        ("/home/me/app", [], "app"),
        ("/home/me/app", ["/home/me/app"], "app"),
        ("/home/me/app", ["/srv/app", "/home/me/other"], "me/app"),
        ("/a/x/app", ["/b/x/app"], "a/x/app"),
        ("/app", ["/b/app"], "/app"),
        ("/", ["/a"], "/"),
    ],
)
def test_two_projects_of_one_name_are_told_apart(project: str, others: list[str], expected: str) -> None:
    assert notify_policy.label(project, others) == expected


@pytest.mark.parametrize(
    ("minute", "left"), [(21 * 60, 0), (22 * 60, 9 * 3600), (23 * 60, 8 * 3600), (60, 6 * 3600), (420, 0)]
)
def test_quiet_hours_go_over_midnight(minute: float, left: float) -> None:
    assert notify_policy.quiet_left((22 * 60, 7 * 60), minute) == left
    assert notify_policy.quiet_left(None, minute) == 0


EVENTS = st.tuples(
    st.sampled_from(["UserPromptSubmit", "PermissionRequest", "Notification", "PostToolUse", "Stop", "StopFailure",
                     "SessionEnd", "again", "flush"]),
    st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 4.0, 70.0]), st.sampled_from([0.0, 0.0, 100.0]),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=60))
def test_never_two_for_one_event_and_nothing_stays_behind(
    history: list[tuple[str, str, float, float]],
) -> None:
    """Whatever happens: an event is shown once, in order, what shows is what still waits, nothing is lost."""
    world = World()
    told: list[tuple[tuple[str, str], int]] = []
    open: dict[tuple[str, str], set[tuple[str, str]]] = {}
    last: Transition | None = None

    def look(actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Withdraw):
                assert open.pop(action.key, None) is not None
                continue
            for session in action.alert.sessions:
                assert world.sessions[session.key].state == session.state  # nothing that is over is shown
            if action.alert.session is not None:  # a summary may say again what came just before it
                told.extend((s.key, s.seq) for s in action.alert.sessions)
            open[action.alert.key] = {s.key for s in action.alert.sessions}

    for name, box, wait, quiet in history:
        if name == "flush":
            look(world.flush(wait, quiet=quiet))
        elif name == "again" and last is not None:  # the same event a second time
            assert not [
                a
                for a in world.policy.add(last, world.now)
                if isinstance(a, Show)
                and a.alert.key != notify_policy.SUMMARY
                and a.alert.session == last.after
            ]
        elif name != "again":
            before = world.sessions.get((box, "s"))
            look(
                world.on(
                    name, box=box, wait=wait, quiet=quiet, tool_name="Bash", notification_type="idle_prompt"
                )
            )
            last = Transition(before, world.sessions[box, "s"], event(name, world.seq, box=box))
    assert len(told) == len(set(told))
    for _ in range(20):
        look(world.flush(60))
    assert world.policy.due(world.now) is None
    covered = set().union(*open.values()) if open else set()
    waiting = {key for key, session in world.sessions.items() if session.state in ALL}
    assert waiting <= covered
