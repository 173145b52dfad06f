"""Claude Code's screen, read: the open dialog with its choices, or the prompt.

Hook events tell that a dialog is open, not all that it offers, and no event comes between the questions of
one AskUserQuestion: the screen is the only place where that stands. Seen with 2.1.329 (tests/unit/screens):

     Do you want to proceed?                         Which sizes?
     ❯ 1. Yes                                        ❯ 1. [ ] Small
       2. Yes, and always allow access to /p              s
       3. No                                           2. [✔] Large
                                                          Submit
     Esc to cancel · Tab to amend                    ───────
                                                       4. Chat about this
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from _claude_sandbox.system.text import clean

_CHOICE = re.compile(r"\s*(❯)?\s*([0-9])\.\s+(\S.*)")
_BOX = re.compile(r"\[(.)\]\s*")
_RULE = re.compile(r"\s*[─╌▔]{8,}\s*")
_FREE = ("Type something",)  # opens a field for a text: only Claude's own screen can show that
_BELOW = 8  # lines that may stand under a dialog's last choice
_ELSE = ("❯", "●", "✻", "✢", "✽", "⎿", "!")  # how lines of the conversation and of the prompt begin


@dataclass(frozen=True)
class Choice:
    """`key` is what chooses it, at once: 1 to 9."""

    key: str
    label: str


@dataclass(frozen=True)
class Dialog:
    """`several`: its choices are boxes to tick; that is left to Claude's own screen."""

    question: str
    choices: tuple[Choice, ...]
    several: bool


def dialog(screen: str) -> Dialog | None:
    """The dialog that is open on Claude's screen; None when there is none."""
    lines = screen.rstrip().splitlines()
    found = [(number, match) for number, line in enumerate(lines) if (match := _CHOICE.fullmatch(line))]
    cursor = next((i for i in range(len(found) - 1, -1, -1) if found[i][1][1]), None)
    if cursor is None:
        return None
    first = cursor - int(found[cursor][1][2]) + 1
    if first < 0:
        return None
    block = [*found[first:cursor], *_rising(found[cursor:])]
    if [match[2] for _, match in block] != [str(n) for n in range(1, len(block) + 1)]:
        return None
    below = lines[block[-1][0] + 1 :]
    if len(below) > _BELOW or any(line.lstrip().startswith(_ELSE) for line in below):
        return None
    several = any(_BOX.match(match[3]) for _, match in block)
    choices = tuple(Choice(match[2], clean(_BOX.sub("", match[3], 1), 200)) for _, match in block)
    return Dialog(_question(lines[: block[0][0]]), choices, several)


def _rising(found: list[tuple[int, re.Match[str]]]) -> list[tuple[int, re.Match[str]]]:
    """The choices from the cursor's on, as long as their numbers go on."""
    taken = found[:1]
    for entry in found[1:]:
        if int(entry[1][2]) != int(taken[-1][1][2]) + 1:
            break
        taken.append(entry)
    return taken


def _question(above: list[str]) -> str:
    return next(
        (clean(line, 200) for line in reversed(above) if line.strip() and not _RULE.fullmatch(line)), ""
    )


def at_prompt(screen: str) -> bool:
    """Whether Claude waits at its prompt: the box between two rules, with the cursor's sign in front."""
    if dialog(screen) is not None:
        return False
    lines = [line for line in screen.splitlines() if line.strip()]
    rules = [number for number, line in enumerate(lines) if _RULE.match(line)]
    return (
        len(rules) > 1 and lines[rules[-2] + 1 : rules[-2] + 2] != [] and lines[rules[-2] + 1].startswith("❯")
    )


def choose(open: Dialog, text: str) -> Choice | None:
    """The choice that `text` means: its number, its label, or the beginning of one label only.

    `yes` is the first of several that say yes, and `no` the one that says no.
    """
    wanted = " ".join(text.split()).casefold()
    usable = [choice for choice in open.choices if not choice.label.startswith(_FREE)]
    if not wanted:
        return None
    for choice in usable:
        if wanted in (choice.key, choice.label.casefold()):
            return choice
    found = [choice for choice in usable if choice.label.casefold().startswith(wanted)]
    if wanted == "yes" and found and found[0].key == "1":
        return found[0]
    return found[0] if len(found) == 1 else None
