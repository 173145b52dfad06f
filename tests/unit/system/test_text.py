"""The one stripper, and every way by which a guest's words reach a terminal, a notification or a log."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.base_vm.verify import ToolCheck
from _claude_sandbox.claude_home import pull as claude_home_pull
from _claude_sandbox.cli import render
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks.attention import Session
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, Instance
from _claude_sandbox.notify import policy as notify_policy
from _claude_sandbox.notify.channels import sequence
from _claude_sandbox.system import program
from _claude_sandbox.system import text as system_text
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Command, LocalRunner, Result
from _claude_sandbox.system.terminal import LineProgress
from _claude_sandbox.terminals import reply as terminals_reply
from _claude_sandbox.terminals import screen as terminals_screen
from _claude_sandbox.vm import first_boot
from tests.support.recording import Recorder

PACKAGE = program.PACKAGE
# The title, the clipboard, a cleared screen, C1's CSI and OSC, an overwritten line, bidi, separators, DEL, tags.
ATTACKS = {
    "OSC 0": "\x1b]0;owned\x07", "OSC 52": "\x1b]52;c;ZXZpbA==\x07", "clear": "\x1b[2J\x1b[H", "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d0;owned\x9c", "CR": "harmless\rError: pay me", "BS": "abc\x08\x08\x08xyz", "RLO": "\u202egnp.exe",
    "isolate": "\u2066x\u2069", "line": "a\u2028b\u2029c\x85d\x0be", "DEL": "a\x7f", "DCS": "\x1bP+q544e\x1b\\",
    "surrogate": "\udcff", "tag": "\U000e0041", "BOM": "\ufeff", "NUL": "\0", "shift": "\x0e\x0f", "enq": "\x05",
}  # fmt: skip


def harmless(shown: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in shown)


def session(words: str) -> Session:
    return Session("s", "claude-sandbox-app", f"/p/{words}", "", "failed", since_ns=0, message=words, seq=1)


def told(problem: Callable[[Progress], object], capsys: pytest.CaptureFixture[str]) -> str:
    problem(LineProgress())
    return "".join(capsys.readouterr())


def printed(act: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    act()
    return "".join(capsys.readouterr())


Capture = pytest.CaptureFixture[str]
WAYS: dict[str, Callable[[str, Capture], str]] = {
    "error": lambda bad, c: printed(
        lambda: render.error(ClaudeSandboxError(bad, details=bad, resolution=bad), as_json=False), c
    ),
    "error as JSON": lambda bad, c: printed(
        lambda: render.error(ClaudeSandboxError(bad, details=bad, resolution=bad), as_json=True), c
    ),
    "data as JSON": lambda bad, c: printed(lambda: render.print_json({bad: [bad, Path("/p" + bad.replace("\0", ""))]}), c),
    "note": lambda bad, c: told(lambda p: p.note(bad), c),
    "warning": lambda bad, c: told(lambda p: p.warn(bad), c),
    "stage": lambda bad, c: told(lambda p: _stage(p, bad), c),
    "path": lambda bad, c: render.printable(bad),
    "tool check": lambda bad, c: render.marks([ToolCheck("node", False, bad, bad)]),
    "session line": lambda bad, c: "\n".join(
        render.session_lines([{**session(bad).to_json(), "state": "failed", "wants": ""}], "claude-sandbox-app")
    ),
    "settings diff": lambda bad, c: claude_home_pull.unified("f", b"a\n", bad.encode("utf-8", "surrogateescape")),
    "hook message": lambda bad, c: system_text.clean(bad, 300),
    "notification": lambda bad, c: notify_policy.text_of(session(bad)),
    "choice": lambda bad, c: " ".join(
        ch.label for d in [terminals_screen.dialog(f" ❯ 1. {bad}\n   2. No\n")] if d for ch in d.choices
    ),
    "typed reply": lambda bad, c: terminals_reply.typed(bad),
    "terminal notification": lambda bad, c: sequence(
        notify_policy.Alert(("", ""), bad, bad, notify_policy.NORMAL, ()), "xterm", bell=False
    ).decode()[len("\x1b]9;") : -len("\x1b\\")],
    "log": lambda bad, c: system_text.for_log(bad.encode("utf-8", "replace")).decode(),
    "one line": lambda bad, c: system_text.one_line(bad),
}  # fmt: skip


def _stage(progress: Progress, bad: str) -> None:
    with progress.stage(bad) as say:
        say(bad)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_a_guest_steers_a_terminal(
    way: str, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = WAYS[way](f"before {ATTACKS[attack]} after", capsys)
    assert harmless(shown), ascii(shown)


def test_the_joiners_of_scripts_and_emoji_stay_in_messages() -> None:
    assert system_text.clean("👩\u200d💻 می\u200cخواهم\x1b", 80) == "👩\u200d💻 می\u200cخواهم"


@given(st.text(), st.sampled_from([None, "", "?", " "]))
def test_what_is_printable_stays(words: str, instead: str | None) -> None:
    out = system_text.printable(words, instead=instead)
    assert out.isprintable() and (out == words or not words.isprintable())
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in out)


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_means_the_same(value: object) -> None:
    raw = json.dumps(value, ensure_ascii=False, indent=1)
    shown = system_text.json_text(raw)
    assert json.loads(shown) == value and harmless(shown)


@pytest.mark.parametrize(
    ("said", "number"),
    [("17", 17), (" 17\n", 17), ("0" * 15, 0), ("9" * 400, None), ("9" * 5000, None), ("²", None), ("٣", None),
     ("１", None), ("-1", None), ("1.5", None), ("1_0", None), ("nan", None), ("", None), ("1 2", None)],
)  # fmt: skip
def test_a_number_of_a_guest_is_a_few_ascii_digits(said: str, number: int | None) -> None:
    assert system_text.number(said) == number


def test_there_is_one_stripper() -> None:
    """Whoever needs another behaviour gives `system.text.printable` a parameter, not the project another rule."""
    own = re.compile(r"\bc\.isprintable\(\)|category\(c\) in \([^)]*\) else")
    found = [path.name for path in PACKAGE.rglob("*.py") if own.search(path.read_text(encoding="utf-8"))]
    assert found == ["text.py"]


def test_a_program_s_log_may_be_shown_on_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = r"printf 'a\033]0;t\007b\r\n\tc\233d\n' >&2"
    LocalRunner().stream(Command(("sh", "-c", script)), logfile=log)
    assert log.read_text() == "a\\x1b]0;t\\x07b\n\tc\\x9bd\n"


# -- the age of Claude, which only the guest knows ---------------------------------------------------


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    "answer", ["9" * 400, "9" * 5000, "²", "٣", "nan", "-5", "1e9", "\x1b]0;t\x07", "x\ny"]
)
def test_a_date_that_is_none_is_a_line(ctx: Context, recorder: Recorder, answer: str) -> None:
    notes = Notes()
    ctx = Context(ctx.lima, ctx.user, notes)
    instance = Instance("claude-sandbox-app", RUNNING, ctx.lima.home / "claude-sandbox-app")
    instance.dir.mkdir(parents=True, exist_ok=True)
    recorder.on("ssh", then=Result(0, answer.encode()))
    first_boot.mention_old_claude(ctx, instance)
    assert len(notes.said) == 1 and "no date" in notes.said[0] and harmless(notes.said[0])
    first_boot.mention_old_claude(ctx, instance)
    assert len(notes.said) == 1, "the guest is asked once"


def test_an_old_claude_is_mentioned_once_a_day(ctx: Context, recorder: Recorder) -> None:
    notes, now, day = Notes(), int(time.time()), 86400
    ctx = Context(ctx.lima, ctx.user, notes)
    instance = Instance("claude-sandbox-app", RUNNING, ctx.lima.home / "claude-sandbox-app")
    instance.dir.mkdir(parents=True, exist_ok=True)
    file = instance.dir / first_boot.CLAUDE_DATE
    recorder.on("ssh", then=Result(0, str(now - 40 * day).encode()))
    for _ in range(2):
        first_boot.mention_old_claude(ctx, instance)
        assert len(notes.said) == 1 and "is 40 days old" in notes.said[0] and "update" in notes.said[0]
    file.write_text(f"{now - 41 * day} {now - 2 * day}")  # the next day
    first_boot.mention_old_claude(ctx, instance)
    assert [said for said in notes.said if "is 41 days old" in said] == notes.said[1:] != []
    # Not old, and what only a clock that is wrong (here or in the guest) says.
    for date in (now - 20 * day, now + 400 * day, 1, now - 4000 * day):
        file.write_text(f"{date} 0")
        first_boot.mention_old_claude(ctx, instance)
    assert len(notes.said) == 2


@pytest.mark.parametrize("kept", ["", "x", "1e400 0", "nan nan", "9" * 400 + " 0", "1 2 3", "² 0"])
def test_what_an_earlier_run_kept_is_read_with_care(ctx: Context, recorder: Recorder, kept: str) -> None:
    instance = Instance("claude-sandbox-app", RUNNING, ctx.lima.home / "claude-sandbox-app")
    instance.dir.mkdir(parents=True, exist_ok=True)
    (instance.dir / first_boot.CLAUDE_DATE).write_text(kept)
    recorder.on("ssh", then=Result(0, b"1700000000"))
    first_boot.mention_old_claude(ctx, instance)
    assert (instance.dir / first_boot.CLAUDE_DATE).read_text().startswith("1700000000 ")
