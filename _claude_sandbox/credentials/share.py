"""Carries a new login from the sandbox where it was made to the others that run (spec 5.3)."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from _claude_sandbox.credentials import stores
from _claude_sandbox.credentials.exchange import Collected, Warn
from _claude_sandbox.credentials.select import Login
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.lima.ssh import GuestLike, guest_script

BUDGET = 3.0  # seconds for everything


def sync_running(
    guests: Mapping[str, GuestLike], login: Login, warn: Warn, *, budget: float = BUDGET
) -> list[Collected]:
    """Collect from every running sandbox that shares this login, then hand on what the host has now.

    A guest that does not answer within `budget` seconds in all is left out; failures are warnings.
    Returns what was taken over, so that the caller can report which sandbox changed the login.
    """
    guests = {name: guest for name, guest in guests.items() if login.shares(name)}
    if not guests:
        return []
    deadline = time.monotonic() + budget
    fetched: dict[str, tuple[str, bytes]] = {}

    def get(name: str, guest: GuestLike) -> None:
        result = guest.run(guest_script("credential-get.sh"), timeout=_left(deadline))
        if result.ok:
            fetched[name] = _parted(result.stdout)

    _each({name: functools.partial(get, name, guest) for name, guest in guests.items()}, deadline, warn)
    answers = dict(fetched)
    looked = time.monotonic()
    taken = [login.collect(raw, name, account) for name, (account, raw) in sorted(answers.items()) if raw]
    deadline += time.monotonic() - looked  # a question may have been asked

    def put(name: str, content: bytes) -> None:
        raw = answers[name][1]
        seen = hashlib.sha256(raw).hexdigest() if raw else "-"
        # 75: Claude changed it just now. Then the next round sees that.
        guests[name].run(
            guest_script("credential-put.sh"), input=f"{seen}\n".encode() + content, timeout=_left(deadline)
        )

    jobs = {}
    for name, (account, raw) in answers.items():
        content = login.bring(raw or None, name, account)
        if content is not None:
            jobs[name] = functools.partial(put, name, content)
    _each(jobs, deadline, warn)
    return [item for item in taken if item is not None]


def look(guest: GuestLike) -> tuple[str, dict[str, Any] | None]:
    """The account that a guest names (empty: none) and its credential, if it has one of a form that we know."""
    account, raw = _parted(guest.run(guest_script("credential-get.sh"), timeout=30).stdout)
    return account, stores.parse(raw)


def _parted(answer: bytes) -> tuple[str, bytes]:
    account, _, raw = answer.partition(b"\n")
    return stores.account(account.decode("ascii", "replace")), raw


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
