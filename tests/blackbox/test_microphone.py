"""--voice from the command line: the fake guest's Claude, the real audio server."""

from __future__ import annotations

import pytest

from tests.support.box import Box

APP = "claude-sandbox-app"
RECORDER = "#!/bin/sh\nexec cat /dev/zero\n"


@pytest.fixture
def made(box: Box) -> Box:
    box.tools_vm()
    assert box.run("create").code == 0
    return box


def with_recorder(box: Box) -> None:
    file = box.bin / "arecord"
    file.write_text(RECORDER)
    file.chmod(0o755)


def first_on_path(box: Box) -> str:
    return str(box.claude_runs(APP)[-1]["env"]["PATH"].split(":")[0])


@pytest.mark.spec("1.4", "1.6", "2.1", "3.1")
@pytest.mark.parametrize("how", [("--voice", {}), ("", {"CLAUDE_SANDBOX_VOICE_MODE": "TRUE"})])
def test_voice_is_asked_for_by_option_or_variable(made: Box, how: tuple[str, dict[str, str]]) -> None:
    flag, env = how
    ended = made.run(*([flag] if flag else []), env=env)
    assert ended.code == 0, ended.text
    assert first_on_path(made).endswith("/.claude-sandbox/voice")
    assert "Audio server: Running" in made.run("status").out
    assert made.run("status", "--json").json()["audio_server"] == "Running"
    assert made.run("stop-all").code == 0
    assert "Audio server: Not running" in made.run("status").out


@pytest.mark.parametrize("value", ["false", ""])
def test_without_it_there_is_no_server_and_no_wrapper(made: Box, value: str) -> None:
    assert made.run(env={"CLAUDE_SANDBOX_VOICE_MODE": value}).code == 0
    assert not first_on_path(made).endswith("/.claude-sandbox/voice")
    assert "Audio server: Not running" in made.run("status").out


def test_a_value_that_is_neither_true_nor_false_is_a_usage_error(made: Box) -> None:
    ended = made.run(env={"CLAUDE_SANDBOX_VOICE_MODE": "perhaps"})
    assert ended.code == 2
    assert "CLAUDE_SANDBOX_VOICE_MODE" in ended.err


def test_a_project_file_cannot_turn_it_on(made: Box) -> None:
    (made.project() / ".claude-sandbox.yaml").write_text("voice: true\n")
    ended = made.run()
    assert ended.code == 1
    assert "voice can only be set in" in ended.err


def test_a_host_without_a_microphone_is_a_warning(made: Box) -> None:
    ended = made.run("--voice")
    assert ended.code == 0
    assert "Voice has no microphone" in ended.err and "alsa-utils" in ended.err
    assert made.claude_runs(APP)


def test_doctor_says_what_would_record(box: Box) -> None:
    rows = {row["name"]: row for row in box.run("doctor", "--json").json()["checks"]}
    assert rows["voice"]["ok"] is None and "alsa-utils" in rows["voice"]["remedy"]
    with_recorder(box)
    rows = {
        row["name"]: row for row in box.run("doctor", "--json", env={"PULSE_SERVER": "x"}).json()["checks"]
    }
    assert rows["voice"]["ok"] is True and "arecord" in rows["voice"]["detail"]
