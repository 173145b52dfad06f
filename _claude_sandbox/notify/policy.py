"""Which transition of a Claude session the user is notified of, when, and in which words. No I/O.

Nothing twice: an event notifies once, and so does a dialog, whose Notification follows its
PermissionRequest by 6 s; the idle reminder 60 s after Stop says nothing new. Nothing nags: what comes in
a burst becomes one summary, a sandbox has so many notifications a minute, quiet hours keep all for their
end, and what was answered meanwhile is withdrawn. Nothing is lost: what may not be shown yet waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from _claude_sandbox.hooks.attention import DONE, FAILED, IDLE, NEEDS_INPUT, Session, Transition
from _claude_sandbox.system.text import clean

NOTIFIED = (NEEDS_INPUT, FAILED, DONE)  # states that somebody wants to hear of, the most urgent first
WAITING = "Waiting for input"
LOW, NORMAL, CRITICAL = "low", "normal", "critical"
SUMMARY = ("", "summary")  # the key of the one summary
TITLE, BODY, LINE = 80, 300, 90  # characters
AT_ONCE, WINDOW = 2, 3.0  # so many notifications in so many seconds; the next ones are gathered
JOINED = 2 * WINDOW  # seconds: a notification this young goes up in a summary that follows
TOKENS, REFILL = 5, 15.0  # of one sandbox: so many at a stretch, then one in so many seconds
MOST = 16  # sessions of one sandbox that wait to be shown; a guest may invent any number
OLD = 300.0  # seconds: an event that we took this long ago is history (a replay), not news
_REMEMBERED = 4096

Key = tuple[str, str]


@dataclass(frozen=True)
class Alert:
    """What the user is shown. `sessions`: one, or those of a summary. Texts are clean, not escaped."""

    key: Key
    title: str
    body: str
    urgency: str
    sessions: tuple[Session, ...]

    @property
    def session(self) -> Session | None:
        return self.sessions[0] if len(self.sessions) == 1 else None


@dataclass(frozen=True)
class Show:
    """Show it; one of the same key takes the older one's place."""

    alert: Alert


@dataclass(frozen=True)
class Withdraw:
    key: Key


Action = Show | Withdraw


def label(project: str, others: Iterable[str]) -> str:
    """The project's basename, with as much of its path as distinguishes it from others of that name.

    >>> label("/home/me/work/app", ["/home/me/play/app", "/srv/x"])
    'work/app'
    """
    parts = PurePath(project).parts or (project,)
    rest = {PurePath(other).parts for other in others if other != project}
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if not any(other[-count:] == tail for other in rest):
            return clean("/".join(tail).replace("//", "/"), TITLE - 10) or "/"
    return clean(project, TITLE - 10) or "/"


def text_of(session: Session) -> str:
    """What a notification says of a session."""
    if session.state == DONE:
        return clean(session.message, BODY) or WAITING
    return clean(session.message, BODY) or (WAITING if session.state == NEEDS_INPUT else "The turn failed")


def quiet_left(quiet: tuple[int, int] | None, minute: float) -> float:
    """Seconds until the quiet hours end; 0 outside them. `minute` is of the day, in local time.

    >>> quiet_left((22 * 60, 7 * 60), 23 * 60), quiet_left((22 * 60, 7 * 60), 12 * 60)
    (28800.0, 0.0)
    """
    if quiet is None or quiet[0] == quiet[1]:
        return 0.0
    start, end = quiet
    inside = start <= minute < end if start < end else minute >= start or minute < end
    return ((end - minute) % 1440) * 60.0 if inside else 0.0


class Policy:
    """Takes transitions in their order, answers with what to show or withdraw now. Times: seconds, monotonic.

    `states`: what the user wants to be notified of; `projects`: those that exist, to distinguish equal names.
    """

    def __init__(
        self, states: Iterable[str] = NOTIFIED, projects: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self.states = frozenset(states)
        self._projects = projects
        self._seen: OrderedDict[object, None] = OrderedDict()  # events and states that were notified
        self._waiting: OrderedDict[Key, Session] = OrderedDict()
        self._open: OrderedDict[Key, tuple[Key, float, Session]] = OrderedDict()  # session -> alert, when
        self._shown: deque[float] = deque(maxlen=AT_ONCE)
        self._tokens: dict[str, tuple[float, float]] = {}  # sandbox -> how many, as of when

    def is_news(self, transition: Transition, age: float = 0.0) -> bool:
        """Whether it is worth a notification, if the user does not look at it anyway. `age` of its event: s."""
        before, after, event = transition.before, transition.after, transition.event
        if event is None or after.state not in self.states or age > OLD:
            return False
        if before is not None and before.state == after.state and (
            event.name == "Notification" or before.seq == after.seq
        ):  # fmt: skip
            return False  # the reminder of what is known, or a change of nothing that matters
        return not {self._event(transition), (after.key, after.seq)} & self._seen.keys()

    @staticmethod
    def _event(transition: Transition) -> object:
        event = transition.event
        return (event.sandbox, event.id or event.seq) if event else None

    def add(
        self,
        transition: Transition,
        now: float,
        *,
        quiet: float = 0.0,
        looked_at: bool = False,
        age: float = 0.0,
    ) -> list[Action]:
        """The next transition. `quiet`: seconds for which nothing may be shown."""
        after = transition.after
        if after.state not in NOTIFIED:
            before = transition.before
            reminder = after.state == IDLE and before is not None and before.state in (DONE, FAILED)
            return [] if reminder else self._withdraw(after.key)
        if not self.is_news(transition, age):
            if after.key in self._waiting:
                self._waiting[after.key] = after
            return [] if after.state in self.states else self._withdraw(after.key)
        for mark in (self._event(transition), (after.key, after.seq)):
            self._seen[mark] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if looked_at:
            return self._withdraw(after.key)
        self._waiting.pop(after.key, None)
        self._waiting[after.key] = after
        same = [key for key in self._waiting if key[0] == after.sandbox]
        for key in same[: len(same) - MOST]:
            del self._waiting[key]
        return self.flush(now, quiet=quiet)

    def flush(self, now: float, *, quiet: float = 0.0) -> list[Action]:
        """What may be shown by now of what waits."""
        ready = (
            [s for s in self._waiting.values() if self._tokens_left(s.sandbox, now) >= 1]
            if quiet <= 0
            else []
        )
        room = AT_ONCE - sum(now - WINDOW < then <= now for then in self._shown)
        if not ready or room <= 0:
            return []
        if len(ready) <= room:
            return [action for session in ready for action in self._show(self._single(session), now)]
        fresh = {session.key for session in ready}
        young = [s for key, then, s in self._open.values() if key != SUMMARY and now - then < JOINED]
        return self._show(self._summary([*(s for s in young if s.key not in fresh), *ready]), now)

    def due(self, now: float, *, quiet: float = 0.0) -> float | None:
        """In how many seconds `flush` may have something; None when nothing waits."""
        if not self._waiting:
            return None
        window = [then + WINDOW - now for then in self._shown if now - WINDOW < then <= now]
        wait = min(window) if len(window) >= AT_ONCE else 0.0
        tokens = min((1 - self._tokens_left(s.sandbox, now)) * REFILL for s in self._waiting.values())
        return max(quiet, wait, tokens, 0.05)

    def session(self, key: Key) -> Session | None:
        """The session of a alert that is open, or waits, as it is now."""
        entry = self._open.get(key)
        return self._waiting.get(key) or (entry[2] if entry else None)

    def shown(self) -> dict[Key, int]:
        """Which sessions are notified now, or wait to be, each with the event that made its state."""
        entries = {session.key: session for _, _, session in self._open.values()} | dict(self._waiting)
        return {key: session.seq for key, session in entries.items()}

    def restore(self, session: Session) -> None:
        """It was shown before we were restarted, and still waits: `flush` shows it again."""
        if session.state in NOTIFIED:
            self._seen[(session.key, session.seq)] = None
            self._waiting[session.key] = session

    # -- inside ----------------------------------------------------------------------------------

    def _withdraw(self, key: Key) -> list[Action]:
        self._waiting.pop(key, None)
        entry = self._open.pop(key, None)
        if entry is None or any(alert == entry[0] for alert, _, _ in self._open.values()):
            return []
        return [Withdraw(entry[0])]

    def _tokens_left(self, sandbox: str, now: float) -> float:
        tokens, then = self._tokens.get(sandbox, (float(TOKENS), now))
        return min(float(TOKENS), tokens + max(0.0, now - then) / REFILL)

    def _show(self, alert: Alert, now: float) -> list[Action]:
        self._shown.append(now)
        for sandbox in {session.sandbox for session in alert.sessions}:
            self._tokens[sandbox] = (self._tokens_left(sandbox, now) - 1, now)
        before = [self._open.pop(s.key) for s in alert.sessions if s.key in self._open]
        for session in alert.sessions:
            self._waiting.pop(session.key, None)
            self._open[session.key] = (alert.key, now, session)
        while len(self._open) > _REMEMBERED:
            self._open.popitem(last=False)
        left = {key for key, _, _ in self._open.values()}
        return [*(Withdraw(key) for key, _, _ in before if key not in left), Show(alert)]

    def _label(self, session: Session) -> str:
        known = [s.project for s in self._waiting.values()] + [e[2].project for e in self._open.values()]
        return label(session.project, [*known, *self._projects()])

    def _single(self, session: Session) -> Alert:
        urgency = CRITICAL if session.state == NEEDS_INPUT else NORMAL
        return Alert(session.key, f"Claude [{self._label(session)}]", text_of(session), urgency, (session,))

    def _summary(self, sessions: Sequence[Session]) -> Alert:
        names: OrderedDict[str, list[Session]] = OrderedDict()
        for session in sorted(sessions, key=lambda s: NOTIFIED.index(s.state)):
            names.setdefault(session.sandbox, []).append(session)
        labels = {name: self._label(of[0]) for name, of in names.items()}
        if len(names) == 1:
            [(name, of)] = names.items()
            title = f"Claude [{labels[name]}]: {len(of)} sessions need you"
        else:
            title = f"{len(names)} sandboxes need you: {', '.join(labels.values())}"
        lines = [clean(f"{labels[name]}: {text_of(of[0])}", LINE) for name, of in names.items()]
        more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
        urgency = CRITICAL if any(s.state == NEEDS_INPUT for s in sessions) else NORMAL
        return Alert(SUMMARY, clean(title, TITLE), "\n".join([*lines[:5], *more]), urgency, tuple(sessions))
