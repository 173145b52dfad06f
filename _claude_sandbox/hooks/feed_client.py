"""The feed of the hooks server, read by programs and by `events`: a plain iterator, no asyncio.

What the log holds comes first, then what happens; a restart of the server in between loses
nothing, because each event has its number.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks import log
from _claude_sandbox.hooks.attention import Session
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.system import jsonio

AGAIN_SECONDS = 0.5  # between two looks for a server


def logged(*, since_ns: int = 0, last: int | None = None) -> list[Event]:
    """Events of the log since a time (ns since 1970); with `last` only so many of the newest."""
    found = list(log.logged(hooks_client.state_directory(), since_ns=since_ns))
    return found if last is None else found[max(len(found) - last, 0) :]


def follow(*, after: int | None = None) -> Iterator[Event | Session]:
    """Sessions as they are now, then every event and every change of a session, until you stop reading.

    With `after` first what the log has behind the event of that number. Waits while no server runs.
    """
    seen: dict[tuple[str, str], Session] = {}
    while True:
        with contextlib.suppress(OSError, ClaudeSandboxError), _connect() as client:
            # Connected before the log is read: nothing falls between.
            shown = after or 0
            if after is None:
                after = int(
                    daemon_client.ask("GET", "/state")["seq"]
                )  # from here on, should the server go away
            else:
                for event in log.logged(hooks_client.state_directory(), after=after):
                    after = shown = event.seq
                    yield event
            for value in _lines(client):
                item = _item(value)
                if isinstance(item, Event):
                    if item.seq > shown:
                        shown, after = item.seq, max(after, item.seq)
                        yield item
                elif item is not None and seen.get(item.key) != item:
                    seen[item.key] = item
                    yield item
        time.sleep(AGAIN_SECONDS)


def _connect() -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(hooks_client.feed_socket()))
    except BaseException:
        client.close()
        raise
    return client


def _lines(client: socket.socket) -> Iterator[dict[str, Any]]:
    with client.makefile("rb") as file:
        for value, _ in jsonio.parse_lines(file):  # one that broke off comes again
            if value is not None:
                yield value


def _item(value: dict[str, Any]) -> Event | Session | None:
    """None for a kind that this version does not know."""
    kind = value.get("type")
    with contextlib.suppress(KeyError, TypeError):
        if kind == "event":
            return Event.from_json(value)
        if kind == "session":
            return Session.from_json(value)
    return None
