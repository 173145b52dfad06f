"""The verbs `events` and `restart-hooks`."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from _claude_sandbox.cli import render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.errors import UsageError

if TYPE_CHECKING:
    from _claude_sandbox.hooks.attention import Session
    from _claude_sandbox.hooks.event import Event

SHOWN = 20  # events, when nothing else is said
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def restart_server(call: Invocation) -> int:
    """Stop and start the hooks server. Running sandboxes queue their events until it is back."""
    if call.options.dry_run:
        call.report("(stop the hooks server and start it again)")
        return call.show({"hooks_server": "Running" if daemon_client.running() else "Not running"}, "")
    daemon_client.restart()
    return call.show({"hooks_server": "Running"}, "The hooks server runs.")


def show(call: Invocation) -> int:
    """Hook events, from the log and, with -f, as they come."""
    from _claude_sandbox.hooks import feed_client

    since = parse_since(call.options.since, time.time_ns()) if call.options.since else None
    found = feed_client.logged(since_ns=since or 0, last=None if since is not None else SHOWN)
    show_item = _print_json if call.options.json else _print_line
    for event in found:
        show_item(event)
    if call.options.follow:
        if not daemon_client.running() and not call.options.quiet:
            print("The hooks server does not run; waiting for it.", file=sys.stderr)
        for item in feed_client.follow(after=found[-1].seq if found else None):
            show_item(item)
    elif not found and not call.options.json and not call.options.quiet:
        print("No events." if since is not None else "No events yet.")
    return 0


def parse_since(text: str, now_ns: int) -> int:
    """`90s`, `10m`, `2h`, `1d` ago, or a time (`20:15`, `2026-11-21T20:15:00`), in ns since 1970.

    Raises UsageError.
    """
    import datetime

    if match := re.fullmatch(r"(\d{1,9})([smhd])", text.strip()):
        return now_ns - int(match[1]) * _UNITS[match[2]] * 10**9
    now = datetime.datetime.fromtimestamp(now_ns / 1e9).astimezone()
    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text.strip()):
            clock = datetime.time.fromisoformat(text.strip().zfill(5 if text.count(":") == 1 else 8))
            when = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
            when = when if when <= now else when - datetime.timedelta(days=1)
        else:
            when = datetime.datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"Invalid time '{text}'",
            resolution="Give how long ago (90s, 10m, 2h, 1d) or when (20:15, 2026-11-21T20:15).",
        ) from None
    return int(when.timestamp() * 10**9)


def line_of(event: Event) -> str:
    """`20:15:03  claude-sandbox-app  PermissionRequest  Bash: touch xx`."""
    moment = time.localtime(event.time_ns / 1e9)
    today = moment[:3] == time.localtime()[:3]
    data = event.data
    parts = [str(data.get(key, "")) for key in ("tool_name", "detail")] if "tool_name" in data else [
        str(next((data[key] for key in ("message", "last_assistant_message", "error", "reason", "source")
                  if data.get(key)), ""))
    ]  # fmt: skip
    said = ": ".join(part for part in parts if part)
    when = time.strftime("%H:%M:%S" if today else "%F %H:%M:%S", moment)
    return render.printable(f"{when}  {event.sandbox}  {event.name}  {said}".rstrip())


def _print_line(item: Event | Session) -> None:
    from _claude_sandbox.hooks.event import Event

    if isinstance(item, Event):
        print(line_of(item), flush=True)


def _print_json(item: Event | Session) -> None:
    from _claude_sandbox.hooks.event import Event

    value: dict[str, Any] = item.to_json()
    print(json.dumps({"type": "event" if isinstance(item, Event) else "session", **value}), flush=True)
