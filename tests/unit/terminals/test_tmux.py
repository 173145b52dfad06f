"""tmux's argv, and which session is ours."""

from __future__ import annotations

import pytest

from _claude_sandbox.system.run import Command, CommandNotFound, Result
from _claude_sandbox.terminals.tmux import Tmux, session_mark
from tests.support.recording import Recorder, failed


@pytest.fixture
def tmux(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Tmux:
    monkeypatch.delenv("TMUX", raising=False)
    return Tmux(recorder)


def test_without_tmux_there_is_nothing(tmux: Tmux, recorder: Recorder) -> None:
    recorder.on("tmux", then=CommandNotFound("tmux was not found on PATH."))
    assert not tmux.usable() and tmux.sessions() == [] and tmux.live_session("x", "t") is None


def test_without_a_server_there_are_no_sessions(tmux: Tmux, recorder: Recorder) -> None:
    recorder.on("tmux", "list-sessions", then=failed("no server running on /tmp/tmux-0/default"))
    assert tmux.sessions() == [] and tmux.usable()
    assert all(call.timeout and not call.changes for call in recorder.calls)


def test_our_session_is_known_by_its_mark(tmux: Tmux, recorder: Recorder) -> None:
    lines = [
        "100\t\tclaude-sandbox-app-1", "200\tclaude-sandbox-app-2 t uuid\tclaude-sandbox-app-77",
        "300\tclaude-sandbox-app t uuid\tmine", "250\tclaude-sandbox-app t uuid\tolder",
        "50\tclaude-sandbox-app other uuid\tof-another-lima-home", "x\tclaude-sandbox-app t uuid\tbad", "short",
    ]  # fmt: skip
    recorder.on("tmux", "list-sessions", then=Result(0, "\n".join(lines).encode()))
    assert tmux.live_session("claude-sandbox-app", "t") == "older"
    assert tmux.live_session("claude-sandbox-app-2", "t") == "claude-sandbox-app-77"
    assert tmux.live_session("claude-sandbox", "t") is None


@pytest.mark.parametrize(
    ("current", "renamed"), [("main", True), ("0", True), ("claude-work", False), ("claude", False)]
)
def test_the_current_session_is_renamed_unless_it_is_claude_s(
    tmux: Tmux, recorder: Recorder, current: str, renamed: bool
) -> None:
    recorder.on("tmux", "display-message", then=Result(0, f"{current}\n".encode()))
    tmux.rename_current("claude-sandbox-app")
    assert (("tmux", "rename-session", "claude-sandbox-app") in recorder.argvs()) == renamed


def test_a_new_session_runs_an_argv_and_no_shell_string(tmux: Tmux) -> None:
    command = tmux.new("vm-1", ["python", "a b", "$(id)", "x;"], session_mark("vm", "t", "u"))
    option = ("set-option", "-t", "=vm-1:", "@claude-sandbox", "vm t u")
    assert command == Command(
        ("tmux", "new-session", "-s", "vm-1", "--", "python", "a b", "$(id)", "x\\;", ";", *option)
    )


def test_attaching_takes_this_very_name(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `=`, tmux would take `vm-1` for `vm-12`."""
    assert not tmux.inside()
    assert tmux.attach("vm-1").argv == ("tmux", "attach-session", "-t", "=vm-1")
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    assert tmux.inside()
    assert tmux.attach("vm-1").argv == ("tmux", "switch-client", "-t", "=vm-1")
