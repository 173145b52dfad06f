"""Claude Code's real screens (2.1.329, made with the API stub), read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.terminals import screen as terminals_screen
from _claude_sandbox.terminals.screen import Choice, Dialog

SCREENS = Path(__file__).parent / "screens"


def screen(name: str) -> str:
    return (SCREENS / f"{name}.txt").read_text(encoding="utf-8")


def shown(name: str) -> Dialog:
    found = terminals_screen.dialog(screen(name))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "question", "labels", "several"),
    [
        ("permission", "Do you want to proceed?",
         ["Yes", "Yes, and always allow access to /tmp/h3/proj from this project",
          "Yes, and switch to auto mode · auto mode handles these prompts for you", "No"], False),
        ("question", "Which colour?", ["Red", "Blue", "Type something.", "Chat about this"], False),
        ("several", "Which sizes?", ["Small", "Large", "Type something", "Chat about this"], True),
        ("submit", "→ Small", ["Submit answers", "Cancel"], False),
        ("plan", "Claude wants to exit plan mode",
         ["Yes, and switch to default (ask each time) for this session", "No"], False),
    ],
)  # fmt: skip
def test_dialogs(name: str, question: str, labels: list[str], several: bool) -> None:
    found = shown(name)
    assert (found.question, [c.label for c in found.choices], found.several) == (question, labels, several)
    assert [c.key for c in found.choices] == [str(n) for n in range(1, len(labels) + 1)]
    assert not terminals_screen.at_prompt(screen(name))


@pytest.mark.parametrize("name", ["prompt", "list"])
def test_the_prompt_is_no_dialog_even_under_a_list_that_looks_like_one(name: str) -> None:
    assert terminals_screen.dialog(screen(name)) is None
    assert terminals_screen.at_prompt(screen(name))


def test_shell_mode_is_no_prompt() -> None:
    """What is typed there would be run as a command in the sandbox."""
    assert terminals_screen.dialog(screen("bash")) is None and not terminals_screen.at_prompt(screen("bash"))


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("permission", "yes", "1"), ("permission", "YES ", "1"), ("permission", "no", "4"), ("permission", "3", "3"),
        ("permission", "yes, and sw", "3"), ("permission", "5", None), ("permission", "y", None),
        ("permission", "", None), ("permission", "maybe", None),
        ("question", "blue", "2"), ("question", "b", "2"), ("question", "Type something.", None), ("question", "3", None),
        ("question", "chat about this", "4"), ("plan", "yes", "1"), ("plan", "No", "2"), ("submit", "2", "2"),
    ],
)  # fmt: skip
def test_a_choice_is_meant_by_number_label_or_its_beginning(name: str, text: str, key: str | None) -> None:
    choice = terminals_screen.choose(shown(name), text)
    assert (choice.key if choice else None) == key


def test_yes_is_no_guess_where_it_is_not_the_first() -> None:
    open = Dialog("?", (Choice("1", "No"), Choice("2", "Yes, this"), Choice("3", "Yes, that")), False)
    assert terminals_screen.choose(open, "yes") is None


@given(st.text(st.sampled_from("❯ 123.─\n●[]xYes✔"), max_size=200))
def test_any_screen_is_read_without_trouble(text: str) -> None:
    found = terminals_screen.dialog(text)
    assert found is None or found.choices
    terminals_screen.at_prompt(text)
