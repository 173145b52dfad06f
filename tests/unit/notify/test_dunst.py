"""Notifications on a real desktop: D-Bus, Xvfb and dunst. Shown once, harmless, clicked, withdrawn.

Where they are not installed these tests are left out; in CI that is a failure (`apt-get install xvfb
dbus-x11 dunst`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.hooks.attention import Session, Transition, step
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.notify import notifier as notify_notifier
from _claude_sandbox.notify import policy as notify_policy
from _claude_sandbox.notify.channels import Actions, Desktop, Failed
from _claude_sandbox.notify.policy import Alert
from tests.support.tmux_server import Server, server, until

__all__ = ["server"]
NEEDED = ("Xvfb", "dunst", "dunstctl", "dbus-daemon", "busctl")  # dunstctl asks busctl for the history
MISSING = [program for program in NEEDED if shutil.which(program) is None]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a Linux desktop"),
    pytest.mark.skipif(
        bool(MISSING) and not os.environ.get("CI"), reason=f"not installed: {', '.join(MISSING)}"
    ),
]


# A session bus that starts no daemon by itself: one without a screen would take the place of ours.
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={}</listen><policy context="default"><allow send_destination="*"
 eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""


@dataclass
class Screen:
    """A session bus with dunst on a virtual screen."""

    env: dict[str, str]

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            ["dunstctl", *words], env=self.env, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout

    def showing(self) -> int:
        return int(self.ctl("count", "displayed"))

    def history(self) -> list[dict[str, Any]]:
        """What was shown and closed, the newest first: summary, body, urgency."""
        entries = json.loads(self.ctl("history"))["data"][0]
        return [{key: value["data"] for key, value in entry.items()} for entry in entries]

    def closed(self) -> list[dict[str, Any]]:
        """Close all and tell what was shown."""
        self.ctl("close-all")
        until(lambda: self.showing() == 0)
        return self.history()


@pytest.fixture
def screen(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Screen]:
    """With `markup = full`, as distributions configure it, unless a test says otherwise."""
    assert not MISSING, f"CI lacks {MISSING}"
    (tmp_path / "dunstrc").write_text(f"[global]\nmarkup = {getattr(request, 'param', 'full')}\n")
    display, numbers = os.pipe()
    x = subprocess.Popen(
        ["Xvfb", "-displayfd", str(numbers), "-screen", "0", "800x600x24", "-nolisten", "tcp"],
        pass_fds=(numbers,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(numbers)
    with os.fdopen(display) as pipe:  # to the newline: Xvfb dies of a pipe that is closed before
        number = pipe.readline().strip()
    (tmp_path / "bus.conf").write_text(BUS.format(tmp_path / "bus"))
    address = f"unix:path={tmp_path}/bus"
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--nopidfile"],
        stderr=subprocess.DEVNULL,
    )
    until(lambda: (tmp_path / "bus").exists())
    env = {**os.environ, "DISPLAY": f":{number}", "DBUS_SESSION_BUS_ADDRESS": address, "HOME": str(tmp_path)}
    dunst = subprocess.Popen(
        ["dunst", "-conf", str(tmp_path / "dunstrc")],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = Screen(env)
    try:
        until(lambda: answers(made))
        yield made
    finally:
        for process in (dunst, bus, x):
            process.kill()
            process.wait()


def answers(screen: Screen) -> bool:
    try:
        return screen.showing() >= 0
    except subprocess.SubprocessError:
        return False


def a_notice(body: str, title: str = "Claude [app]", key: str = "s") -> Alert:
    session = Session(key, "vm", "/work/app", "", "needs_input", time.time_ns(), body)
    return Alert(("vm", key), title, body, notify_policy.CRITICAL, (session,))


def on(screen: Screen, *steps: Callable[[Desktop], Any]) -> None:
    """Use one Desktop, step by step."""

    async def run() -> None:
        desktop = Desktop(lambda: screen.env)
        for each in steps:
            await each(desktop)
        desktop._shown.clear()  # what shows is left to be looked at
        await desktop.close()

    asyncio.run(run())


def nothing() -> Actions:
    return Actions(lambda alert: None, lambda alert, text: None)


@pytest.mark.parametrize(
    "text",
    [
        '<b>bold</b> & <a href="x">y</a> &amp; &#x41; </span>',
        '<img src="file:///etc/passwd" alt="x"/>',
        '" & (do shell script "touch /tmp/pwned") & "',
        "%s %n %p $(touch /tmp/pwned) `id` \\n",
    ],
)
def test_what_a_guest_says_is_shown_as_it_is(screen: Screen, text: str) -> None:
    on(screen, lambda d: d.show(a_notice(text), sound=True, actions=nothing()))
    assert screen.showing() == 1
    [entry] = screen.closed()
    assert (entry["summary"], entry["appname"]) == ("Claude [app]", "claude-sandbox")
    import html

    assert entry["body"] == html.escape(text, quote=False)  # dunst keeps the markup as it came
    assert html.unescape(entry["message"].partition("</b>")[2]).strip() == text


@pytest.mark.parametrize("screen", ["no", "strip"], indirect=True)
def test_a_daemon_that_denies_markup_gets_none_to_misread(screen: Screen) -> None:
    on(screen, lambda d: d.show(a_notice('<b>x</b> & <img src="y"/>'), sound=False, actions=nothing()))
    [entry] = screen.closed()
    _, _, shown = entry["message"].partition("</b>\n")
    assert "<" not in shown and ">" not in shown and "img src=&quot;y&quot;/" in shown


def test_markup_in_a_title_is_text(screen: Screen) -> None:
    """A project's directory may have any name."""
    on(screen, lambda d: d.show(a_notice("x", "Claude [<i>a</i>]"), sound=False, actions=nothing()))
    [entry] = screen.closed()
    assert entry["summary"] == "Claude [<i>a</i>]" and "&lt;i&gt;" in entry["message"]


def test_one_of_the_same_session_takes_the_older_one_s_place_and_is_withdrawn(screen: Screen) -> None:
    async def look(expected: int) -> None:
        deadline = time.monotonic() + 5
        while await asyncio.to_thread(screen.showing) != expected:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    on(
        screen,
        lambda d: d.show(a_notice("one"), sound=False, actions=nothing()),
        lambda d: look(1),
        lambda d: d.show(a_notice("two"), sound=False, actions=nothing()),
        lambda d: look(1),
        lambda d: d.show(a_notice("other", key="t"), sound=False, actions=nothing()),
        lambda d: look(2),
        lambda d: d.withdraw(("vm", "s")),
        lambda d: look(1),
        lambda d: d.withdraw(("vm", "s")),
        lambda d: d.withdraw(("vm", "t")),
        lambda d: look(0),
    )


def test_no_daemon_and_no_bus_are_said(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "")
    for env in (
        {"XDG_RUNTIME_DIR": str(tmp_path / "none")},
        {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/none"},
    ):
        with pytest.raises(Failed):
            asyncio.run(Desktop(lambda env=env: env).show(a_notice("x"), sound=False, actions=nothing()))  # type: ignore[misc]


def test_events_are_shown_once_and_a_click_goes_to_the_pane(screen: Screen, server: Server) -> None:
    """From transitions to a real click: the tmux client of a terminal shows the pane then."""
    terminal = server.attach()
    pane = server.pane("cat")
    record = server.record(pane, sandbox="vm")
    log: list[str] = []

    def event(seq: int, name: str, **data: Any) -> Event:
        now = time.time_ns()
        return Event(seq, f"abcdef01:{seq}", now, now, "vm", "/work/app", name, "s", record.uuid, 1, data)

    async def run() -> None:
        notifier = notify_notifier.Notifier(
            log=log.append,
            settings=notify_notifier.Settings,
            channels=[Desktop(lambda: screen.env)],
            secondary=[],
        )
        session: Session | None = None
        for each in (
            event(1, "UserPromptSubmit"),
            event(2, "PermissionRequest", tool_name="Bash", detail="make <all>"),
            event(
                3,
                "Notification",
                notification_type="permission_prompt",
                message="Claude needs your permission",
            ),
        ):
            before, session = session, step(session, each)
            notifier.enqueue(Transition(before, session, each))
        await notifier.settle()
        assert await asyncio.to_thread(screen.showing) == 1
        await asyncio.to_thread(screen.ctl, "action", "0")  # a click on the notification
        deadline = time.monotonic() + 10
        while server.tmux("list-clients", "-F", "#{pane_id}") != pane:
            assert time.monotonic() < deadline, log
            await asyncio.sleep(0.05)
        await asyncio.to_thread(until, lambda: screen.showing() == 0)  # dunst itself leaves it there
        await notifier.close()

    asyncio.run(run())
    assert terminal.seen()
    entries = [entry for entry in screen.closed() if entry["appname"] == "claude-sandbox"]
    assert [(e["summary"], e["body"]) for e in entries] == [("Claude [app]", "Bash: make &lt;all&gt;")]
    assert not log


def test_a_restarted_server_shows_again_what_still_waits(screen: Screen, home: Path) -> None:
    now = time.time_ns()
    given = Event(
        1, "abcdef01:1", now, now, "vm", "/work/app", "Stop", "s", "", 1, {"last_assistant_message": "done"}
    )
    session = step(None, given)

    async def run(resume: list[Session], transition: Transition | None) -> int:
        notifier = notify_notifier.Notifier(
            log=print, settings=notify_notifier.Settings, channels=[Desktop(lambda: screen.env)], secondary=[],
            looked_at=lambda session: False,
        )  # fmt: skip
        notifier.resume(resume)
        if transition is not None:
            notifier.enqueue(transition)
        await notifier.settle()
        showing = await asyncio.to_thread(screen.showing)
        await notifier.close()
        return showing

    assert asyncio.run(run([], Transition(None, session, given))) == 1
    until(lambda: screen.showing() == 0)
    assert asyncio.run(run([session], None)) == 1
    assert asyncio.run(run([], None)) == 0  # it was answered meanwhile
    assert asyncio.run(run([session], None)) == 0
