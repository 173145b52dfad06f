"""What is merged into Claude's files so that it asks nothing (spec 4.13)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.claude_home import first_run
from _claude_sandbox.system.jsonio import parse_object
from _claude_sandbox.system.run import Command, CommandNotFound, Result
from tests.support.recording import Recorder

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
claude_json = st.dictionaries(
    st.sampled_from(["projects", "customApiKeyResponses", "hasCompletedOnboarding", "mcpServers", "other"]),
    values,
)


@given(claude_json, st.sampled_from([None, "t" * 20]))
def test_merging_needs_nothing_and_loses_nothing(current: dict[str, Any], tail: str | None) -> None:
    before = json.dumps(current)
    merged = first_run.merge_claude_json(current, key_tail=tail)
    assert json.dumps(current) == before
    assert merged["hasCompletedOnboarding"] is True and merged["hasSeenAutoDefaultNudge"] is True
    assert merged["projects"]["/"]["hasTrustDialogAccepted"] is True
    if tail:
        assert merged["customApiKeyResponses"]["approved"].count(tail) >= 1
        assert tail not in merged["customApiKeyResponses"]["rejected"]
    assert merged.get("other") == current.get("other")
    assert merged.get("mcpServers") == current.get("mcpServers")
    assert first_run.merge_claude_json(merged, key_tail=tail) == merged


def test_what_claude_wrote_stays() -> None:
    current = {
        "projects": {"/a": {"history": [1]}, "/": {"x": 1}},
        "customApiKeyResponses": {"approved": ["old"], "rejected": ["new"]},
        "userID": "u",
    }
    merged = first_run.merge_claude_json(current, key_tail="new")
    assert merged["projects"] == {"/a": {"history": [1]}, "/": {"x": 1, "hasTrustDialogAccepted": True}}
    assert merged["customApiKeyResponses"] == {"approved": ["old", "new"], "rejected": []}
    assert merged["userID"] == "u"


def test_settings_get_the_key_and_lose_it_on_the_way_back() -> None:
    raw = b'{"model": "opus"}'
    pushed = first_run.with_first_run_keys(raw)
    assert json.loads(pushed) == {"model": "opus", "skipDangerousModePermissionPrompt": True}
    assert first_run.with_first_run_keys(pushed) is pushed
    assert json.loads(first_run.without_first_run_keys(pushed)) == {"model": "opus"}
    assert first_run.settings_state(pushed) == first_run.settings_state(raw)
    assert first_run.settings_state(first_run.with_first_run_keys(None)) is None


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}', b""])
def test_broken_settings_are_left_for_claude_to_report(raw: bytes) -> None:
    assert first_run.with_first_run_keys(raw) == raw
    assert first_run.without_first_run_keys(raw) == raw
    assert first_run.settings_state(raw) is not None
    assert parse_object(raw) is None


def test_lone_surrogates_survive() -> None:
    value = json.loads('{"a": "\\ud800"}')
    assert json.loads(first_run.dump(value)) == value


def test_the_git_identity_is_validated_and_asked_in_the_home(tmp_path: Path) -> None:
    commands: list[Command] = []
    answers = {"user.name": b"Ada\n", "user.email": b"a@b\x1b[2J\n"}

    class Runner:
        def run(self, command: Command, **_: Any) -> Result:
            commands.append(command)
            return Result(0, answers[command.argv[-1]])

    found = first_run.git_identity(Runner(), tmp_path)  # type: ignore[arg-type]
    assert found == first_run.GitIdentity("Ada", "")
    assert {command.cwd for command in commands} == {tmp_path}


def test_a_host_without_git_is_nobody(tmp_path: Path, recorder: Recorder) -> None:
    """Debian's smallest system has no git, and it is asked for nothing else."""
    recorder.on("git", then=CommandNotFound("git was not found on PATH."))
    assert first_run.git_identity(recorder, tmp_path) == first_run.GitIdentity()
