"""Carries a new login from the sandbox where it was made to the others that run (spec 5.3)."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Mapping

from _claude_sandbox import credential
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.guest import guest_script
from _claude_sandbox.login import Collected, Login, Warn
from _claude_sandbox.settings_sync import GuestLike

BUDGET = 3.0  # seconds for everything


def sync_running(
    guests: Mapping[str, GuestLike], login: Login, warn: Warn, *, budget: float = BUDGET
) -> list[Collected]:
    """Collect from every running sandbox at once, then hand the newest on to those with an older one.

    A guest that does not answer within `budget` seconds in all is left out; failures are warnings.
    Returns what was taken over, so that the user can be told which sandbox changed the login.
    """
    if not guests or login.environment():
        return []
    deadline = time.monotonic() + budget
    fetched: dict[str, bytes] = {}

    def get(name: str, guest: GuestLike) -> None:
        result = guest.run(guest_script("credential-get.sh"), timeout=_left(deadline))
        if result.ok:
            fetched[name] = result.stdout

    _each({name: functools.partial(get, name, guest) for name, guest in guests.items()}, deadline, warn)
    answers = dict(fetched)
    taken = [login.collect(raw, name) for name, raw in sorted(answers.items()) if raw]
    ours = login.hand_over()

    def put(name: str, content: bytes) -> None:
        seen = hashlib.sha256(answers[name]).hexdigest() if answers[name] else "-"
        # 75: Claude changed it just now. Then the next round sees that.
        guests[name].run(
            guest_script("credential-put.sh"), input=f"{seen}\n".encode() + content, timeout=_left(deadline)
        )

    if ours is not None:
        jobs = {}
        for name, raw in answers.items():
            merged = credential.merge(raw or None, ours)
            if merged is not None:
                jobs[name] = functools.partial(put, name, merged)
        _each(jobs, deadline, warn)
    return [item for item in taken if item is not None]


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _each(jobs: Mapping[str, Callable[[], None]], deadline: float, warn: Warn) -> None:
    """Run the jobs in parallel until the deadline. What hangs is left behind (its runner ends it)."""
    problems: dict[str, str] = {}

    def attempt(name: str, job: Callable[[], None]) -> None:
        try:
            job()
        except ClaudeSandboxError as error:
            problems[name] = error.brief

    threads = {
        name: threading.Thread(target=attempt, args=(name, job), daemon=True) for name, job in jobs.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(_left(deadline))
        if thread.is_alive():
            problems[name] = "it did not answer in time"
    for name, problem in sorted(problems.items()):
        warn(f"The login of {name} was not looked at: {problem}")
