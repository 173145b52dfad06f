"""An answer, typed into Claude's pane: only where it surely reaches Claude, and only to what was shown.

The pane must be one of our records, its terminal's foreground process our recorded ssh (else the text would
run in the user's own shell), and the session's state the one that the user saw. While a dialog is open its
choices alone are taken, as keys: a bracketed paste does nothing there, and what follows a paste could
choose something. Else the text is pasted, looked at, and then sent (tried with Claude Code 2.1.329).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from _claude_sandbox.errors import ClaudeSandboxError, RefusedError, SandboxNotFoundError
from _claude_sandbox.hooks.attention import ENDED, NEEDS_INPUT, WORKING, Session
from _claude_sandbox.system.run import Runner
from _claude_sandbox.system.text import JOINERS, printable
from _claude_sandbox.terminals import records
from _claude_sandbox.terminals import screen as terminals_screen
from _claude_sandbox.terminals.tmux import Pane, Tmux

LONGEST = 100_000  # characters of an answer
_CARET = 2  # the column of the caret in an empty prompt, behind `❯ `; the suggestion there is no text
_PASTED = 0.3  # seconds that Claude Code is given to take a paste in


@dataclass(frozen=True)
class Replied:
    """What was sent: the label of a choice, or the text as it was pasted."""

    sandbox: str
    session_id: str
    seq: int
    kind: str  # choice | text
    text: str


def reply(
    session: Session, text: str, runner: Runner, *, now: Callable[[], Session | None], attach: str = ""
) -> Replied:
    """Answer `session` as the user saw it. `now` returns its state at this moment; `attach`: how to go there.

    Raises RefusedError, and SandboxNotFoundError when we recorded no pane for it.
    """
    attach = attach or f"Attach and answer there: claude-sandbox -d {session.project}"
    text = typed(text)
    if not text:
        raise RefusedError("There is no text to send.")
    if session.state in (WORKING, ENDED):
        what = "is at work and waits for nothing" if session.state == WORKING else "has ended"
        raise RefusedError(f"Claude in {session.sandbox} {what}.", resolution=attach)
    tmux, pane = _pane(session, runner, attach)
    _still(session, now(), attach)
    screen = tmux.screen(pane.id)
    shown = terminals_screen.dialog(screen)
    if shown is not None:
        return _choose(session, tmux, pane, shown, text, attach)
    if not terminals_screen.at_prompt(screen):
        raise RefusedError(f"Claude's screen in {session.sandbox} shows no prompt now.", resolution=attach)
    if tmux.cursor(pane.id) != _CARET:
        raise RefusedError(
            f"Something is typed at Claude's prompt in {session.sandbox} already; it would be sent along.",
            resolution=attach,
        )
    if session.state == NEEDS_INPUT and session.choices and time.time_ns() - session.since_ns < 2 * 10**9:
        raise RefusedError("The dialog is not on the screen yet.", resolution="Try again in a moment.")
    return _send(session, tmux, pane, text, attach)


def typed(text: str) -> str:
    """What may be typed: lines and tabs; no control character could end the paste or press a key."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")[:LONGEST]
    return printable(text, instead="", keep="\n\t" + JOINERS).strip()


def _pane(session: Session, runner: Runner, attach: str) -> tuple[Tmux, Pane]:
    record = records.of(session.uuid, session.sandbox)
    if record is None:
        raise SandboxNotFoundError(
            f"No terminal of this host runs Claude in {session.sandbox} now, as far as we know.",
            resolution=attach,
        )
    if record.tmux is None:
        raise RefusedError(
            f"Claude in {session.sandbox} runs on {record.tty or 'a terminal'} without tmux: nothing can be typed there.",
            resolution="Answer there. With tmux installed, claude-sandbox starts Claude in it.",
        )
    found = records.server(record, runner)
    if found is None:
        raise SandboxNotFoundError(f"The tmux pane of {session.sandbox} is gone.", resolution=attach)
    if not records.in_foreground(record, found[1], runner):
        raise RefusedError(
            f"In the pane of {session.sandbox} another program has the keyboard, not our connection to Claude.",
            details="What is typed there would run in your own shell.", resolution=attach,
        )  # fmt: skip
    return found


def _still(session: Session, current: Session | None, attach: str) -> None:
    if current is None or (current.state, current.seq) != (session.state, session.seq):
        now = (
            "is gone"
            if current is None
            else f"is {current.state} now: {current.message or 'nothing more is known'}"
        )
        raise RefusedError(
            f"This answers what Claude in {session.sandbox} no longer asks: it {now}", resolution=attach
        )


def _choose(
    session: Session, tmux: Tmux, pane: Pane, shown: terminals_screen.Dialog, text: str, attach: str
) -> Replied:
    if shown.several:
        raise RefusedError(f"Several answers may be ticked: {shown.question}", resolution=attach)
    choice = terminals_screen.choose(shown, text)
    if choice is None:
        offered = "\n".join(f"{c.key}. {c.label}" for c in shown.choices)
        raise RefusedError(
            f"Claude's dialog does not offer that. {shown.question}", details=offered,
            resolution="Give the number or the label of one of these.",
        )  # fmt: skip
    if not tmux.paste(pane.id, choice.key.encode(), bracketed=False):
        raise ClaudeSandboxError(f"tmux did not take the answer for {session.sandbox}.", resolution=attach)
    return Replied(session.sandbox, session.session_id, session.seq, "choice", choice.label)


def _send(session: Session, tmux: Tmux, pane: Pane, text: str, attach: str) -> Replied:
    if not tmux.paste(pane.id, text.encode(), bracketed=True):
        raise ClaudeSandboxError(f"tmux did not take the answer for {session.sandbox}.", resolution=attach)
    time.sleep(_PASTED)
    if not terminals_screen.at_prompt(
        tmux.screen(pane.id)
    ):  # a dialog came meanwhile: Enter would choose in it
        raise RefusedError(
            "Claude's screen changed while the text was pasted; the text is in its prompt and was not sent.",
            resolution=attach,
        )
    tmux.paste(pane.id, b"\r", bracketed=False)
    return Replied(session.sandbox, session.session_id, session.seq, "text", text)
