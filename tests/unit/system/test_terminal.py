"""The user's terminal, on a real pseudo-terminal: questions, and that it is left as it was."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from _claude_sandbox.system.terminal import LineProgress

ROOT = Path(__file__).resolve().parents[3]


def on_terminal(
    code: str, keys: bytes = b"", stderr: int | None = None
) -> tuple[str, list[object], list[object]]:
    """Run Python with a terminal; what it showed, and the terminal's modes before and after."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=slave,
        stdout=slave,
        stderr=slave if stderr is None else stderr,
        cwd=ROOT,
    )
    shown, sent, deadline = b"", False, time.monotonic() + 30
    while time.monotonic() < deadline:
        if keys and not sent and b"]" in shown:
            os.write(master, keys)
            sent = True
        if select.select([master], [], [], 0.05)[0]:
            shown += os.read(master, 4096)
        elif process.poll() is not None:
            break
    assert process.wait(5) == 0, shown
    after = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    return shown.decode(), before, after


ASK = "from _claude_sandbox.system import terminal; print('->', terminal.ask('Delete it?'))"


@pytest.mark.parametrize(
    ("keys", "answer"), [(b"y\n", "True"), (b"YES\n", "True"), (b"\n", "False"), (b"n\n", "False"), (b"yep\n", "False"), (b"\x04", "False")]
)  # fmt: skip
def test_a_question_is_answered_no_unless_it_is_yes(keys: bytes, answer: str) -> None:
    shown, _, _ = on_terminal(ASK, keys)
    assert "Delete it? [y/N]" in shown and f"-> {answer}" in shown


def test_nobody_is_asked_without_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=b"y\n", capture_output=True, cwd=ROOT, check=True
    )
    assert done.stdout == b"-> None\n" and done.stderr == b""
    shown, _, _ = on_terminal(ASK, stderr=subprocess.DEVNULL)  # nobody would see the question
    assert "-> None" in shown


SESSION = """
import sys, termios, tty
from _claude_sandbox.system import terminal
try:
    with terminal.restored() as broken:
        tty.setraw(0)
        broken({broken})
        {then}
except ValueError:
    pass
"""


@pytest.mark.spec("6.2")
@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("then", ["pass", "raise ValueError"])
def test_the_terminal_is_left_clean(broken: bool, then: str) -> None:
    shown, before, after = on_terminal(SESSION.format(broken=broken, then=then))
    assert before == after
    for switched_off in ("\x1b[?25h", "\x1b[?2004l", "\x1b[?1000l", "\x1b[?1004l", "\x1b[0m"):
        assert switched_off in shown
    # Only after a session that broke off: else it would jump out of what the user has open.
    assert ("\x1b[?1049l" in shown) == broken


def test_nothing_is_written_into_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(broken=True, then="pass").replace("tty.setraw(0)", "pass")],
        stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout == b""


OWN = "from _claude_sandbox.system import terminal; print('->', terminal.own_tty())"


def test_our_own_terminal_can_be_opened_anew() -> None:
    assert "-> True" in on_terminal(OWN)[0]
    done = subprocess.run(
        [sys.executable, "-c", OWN], stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=True
    )
    assert done.stdout == b"-> False\n"


PROGRESS = """
from _claude_sandbox.system.terminal import TerminalProgress
p = TerminalProgress()
with p.stage('Cloning [red]x[/]') as say:
    say('disk [1/2]')
    with p.stage('inner') as inner:
        inner('deep')
p.warn('careful [bold]y[/]')
p.note('noted [z] \\x1b]0;owned\\x07')
"""


@pytest.mark.spec("6.3")
def test_progress_on_a_terminal_shows_names_as_they_are() -> None:
    shown, _, _ = on_terminal(PROGRESS)
    assert "✓ Cloning [red]x[/]" in shown.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert "careful [bold]y[/]" in shown and "noted [z] ?]0;owned?" in shown
    assert shown.count("✓") == 1  # the inner stage is part of the outer one


def test_a_tool_s_words_in_a_spinner_do_not_steer_the_terminal() -> None:
    evil = "\\x1b]0;owned\\x07\\u202e\\x9b2J"
    program = f"""
import time
from _claude_sandbox.system.terminal import TerminalProgress
with TerminalProgress().stage('Stage {evil}') as say:
    say('words {evil}')
    time.sleep(0.3)
"""
    shown, _, _ = on_terminal(program)
    assert "Stage" in shown and "words" in shown
    assert "\x1b]0" not in shown and "\u202e" not in shown and "\x9b" not in shown


def test_progress_in_a_log_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (LineProgress(), LineProgress(quiet=True)):
        with progress.stage("Starting x") as say:
            say("booting")
        progress.note("noted\x1b[2J")
        progress.warn("careful\nof\x9bthis")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Starting x …" and lines[1].startswith("Starting x: ") and lines[1].endswith(" s")
    assert lines[2:] == ["noted?[2J", *["Warning: careful", "of?this"] * 2]


def test_a_warning_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    for text in ("the same", "the same", "another"):
        progress.warn(text)
    assert capsys.readouterr().err == "Warning: the same\nWarning: another\n"
