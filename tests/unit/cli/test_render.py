"""What people and programs read, and that nothing quoted steers a terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.cli import main as cli_main
from _claude_sandbox.cli import parser, render
from _claude_sandbox.errors import ClaudeSandboxError, UsageError

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\udcff"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool | None
    detail: str = ""
    remedy: str | None = None


@dataclass(frozen=True)
class Box:
    name: str
    status: str
    project: Path


@given(st.text(max_size=30))
def test_printable_text_is_kept_and_the_rest_is_shown(text: str) -> None:
    out = render.printable(text)
    assert out.isprintable() or out == ""
    assert out == text or not text.isprintable()


def test_every_part_of_an_error_is_made_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """A brief may quote a project file, details come from the guest, a resolution may name a path."""
    render.error(
        ClaudeSandboxError(f"a{NASTY}", details=f"b{NASTY}\n\tc", resolution=f"d{NASTY}"), as_json=False
    )
    out, err = capsys.readouterr()
    assert out == "" and not set(err) & set("\x1b\x07\x9b\u202e\udcff")
    lines = err.splitlines()
    assert lines[0].startswith("Error: a") and lines[1].startswith("  b") and lines[-1].startswith("d")
    assert lines[2].strip() == "c"  # a tool's tabs and lines stay readable


def test_an_error_in_colour_only_on_a_terminal_that_wants_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    render.error(ClaudeSandboxError("x"), as_json=False)
    assert capsys.readouterr().err == "\x1b[31mError:\x1b[0m x\n"
    monkeypatch.setenv("NO_COLOR", "1")
    render.error(ClaudeSandboxError("x"), as_json=False)
    assert capsys.readouterr().err == "Error: x\n"


def test_an_error_as_json_is_told_to_both(capsys: pytest.CaptureFixture[str]) -> None:
    render.error(ClaudeSandboxError("a", details="b"), as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"message": "a", "details": "b", "resolution": None}}
    assert err == "Error: a\n  b\n"


def test_data_is_what_json_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"boxes": (Box("a", "Running", Path("/p/\udcffé")),), "n": None, "t": True}
    render.print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == {
        "boxes": [{"name": "a", "status": "Running", "project": "/p/\ufffdé"}], "n": None, "t": True,
    }  # fmt: skip
    text.encode("utf-8")


def test_an_empty_status_is_that_of_the_spec() -> None:
    text = render.status(
        {"base_vm": None, "template": "template:default", "hooks_server": "Not running", "audio_server": "Not running",
         "vms": []}
    )  # fmt: skip
    assert text.splitlines() == [
        "=== Claude Sandbox Status ===",
        "Base VM: (not set)",
        "Template: template:default",
        "Hooks server: Not running",
        "Audio server: Not running",
        "VMs:",
        "  No sandbox VMs created yet",
    ]


def test_a_table_is_aligned_and_harmless() -> None:
    boxes: Any = [Box("a", "Running", Path("/p")), Box("longer", "Stopped", Path(f"/q{NASTY}"))]
    lines = render.table(boxes).splitlines()
    assert (
        len(lines) == 3
        and len(
            {line.index(word) for line, word in zip(lines, ("STATUS", "Running", "Stopped"), strict=True)}
        )
        == 1
    )
    assert all(line.isprintable() for line in lines)
    assert "No sandboxes yet" in render.table([])


def test_marks() -> None:
    checks = [
        Check("lima", True, "2.2.0", "unused"),
        Check("tmux", False, "", "apt install tmux"),
        Check("x", None, "later"),
    ]
    assert render.marks(checks).splitlines() == [
        "✓ lima: 2.2.0",
        "✗ tmux",
        "    → apt install tmux",
        "- x: later",
    ]


# -- the top: every error once, no traceback ---------------------------------------------------------


def ends(monkeypatch: pytest.MonkeyPatch, problem: BaseException, *argv: str) -> int:
    def parse(_argv: object) -> object:
        raise problem

    monkeypatch.setattr(parser, "parse", parse)
    return cli_main.main(argv)


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (ClaudeSandboxError("brief"), 1, "Error: brief"),
        (UsageError("brief"), 2, "Error: brief"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (OSError(28, "No space left on device", "/x"), 1, "No space left on device: /x"),
        (ZeroDivisionError("bug"), 1, "an error inside claude-sandbox: ZeroDivisionError: bug"),
    ],
)
def test_a_user_never_sees_a_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    problem: BaseException, code: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("CLAUDE_SANDBOX_DEBUG", raising=False)
    assert ends(monkeypatch, problem) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
    logs = list(home.rglob("internal-errors.log"))
    assert bool(logs) == isinstance(problem, ZeroDivisionError)
    assert all("Traceback" in log.read_text() and str(log) in err for log in logs)


def test_the_log_of_bugs_is_bounded_private_and_without_what_was_typed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "shell",
        "-d",
        "CANARY-1",
        "--mount=CANARY-2",
        "CANARY-3",
        "-pCANARY-4",
        "--CANARY-5",
        "--",
        "CANARY-6",
        "x",
    )
    assert ends(monkeypatch, ZeroDivisionError("bug"), *words) == 1
    [log] = home.rglob("internal-errors.log")
    assert "claude-sandbox shell -d --mount -p -… -- (2 words)" in log.read_text()
    assert "CANARY" not in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    log.write_bytes(b"x" * (1 << 20))
    assert ends(monkeypatch, ZeroDivisionError("bug")) == 1
    assert log.stat().st_size < 10_000 and log.with_name("internal-errors.log.1").stat().st_size == 1 << 20


@pytest.mark.parametrize(
    ("problem", "code"),
    [(ZeroDivisionError("bug"), 1), (UsageError("brief"), 2), (OSError(28, "No space left", "/x"), 1)],
)
def test_every_error_is_json_with_json(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    problem: BaseException, code: int,
) -> None:  # fmt: skip
    assert ends(monkeypatch, problem, "stop", "--json") == code
    out = capsys.readouterr().out
    assert set(json.loads(out)["error"]) == {"message", "details", "resolution"}
