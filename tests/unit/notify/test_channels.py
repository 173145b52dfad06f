"""The channels of a notification, and the notifier that uses them: argv, escapes, terminals, commands."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.hooks.attention import Session, Transition, step
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.notify import channels as notify_channels
from _claude_sandbox.notify import notifier as notify_notifier
from _claude_sandbox.notify import policy as notify_policy
from _claude_sandbox.notify.channel_macos import Mac
from _claude_sandbox.notify.channels import Actions, Failed, Terminal, UserCommand
from _claude_sandbox.notify.policy import Alert, Key
from _claude_sandbox.system import paths, processes
from _claude_sandbox.system.run import CommandNotFound, LocalRunner, Result
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals import reply as terminals_reply
from tests.support.recording import Recorder, failed
from tests.support.tmux_server import Server, server, until

__all__ = ["server"]
NASTY = 'x" & (do shell script "touch /tmp/pwned") & "\n<b>&amp;</b>\x1b]0;t\x07\u202e'


def a_notice(
    body: str = "Bash: ls", *, key: Key = ("vm", "s"), uuid: str = "", state: str = "needs_input"
) -> Alert:
    session = Session("s", "vm", "/work/app", uuid, state, time.time_ns(), body, seq=3, choices=("Yes", "No"))
    return Alert(key, "Claude [app]", body, notify_policy.CRITICAL, (session,))


class Doing:
    def __init__(self) -> None:
        self.opened: list[Alert] = []
        self.replied: list[str] = []
        self.actions = Actions(self.opened.append, lambda _notice, text: self.replied.append(text))


def show(channel: Any, shown: Alert, *, sound: bool = False, doing: Doing | None = None) -> None:
    async def run() -> None:
        await channel.show(shown, sound=sound, actions=(doing or Doing()).actions)
        while way_tasks := [*getattr(channel, "_running", ()), *getattr(channel, "_waits", {}).values()]:
            await asyncio.gather(*way_tasks)

    asyncio.run(run())


# -- macOS -----------------------------------------------------------------------------------------


def mac(recorder: Recorder, *there: str) -> Mac:
    return Mac(recorder, lambda uuid: f"open {uuid}", lambda name: f"/bin/{name}" if name in there else None)


def test_osascript_gets_the_text_as_argv_and_never_in_the_script(recorder: Recorder) -> None:
    show(mac(recorder), a_notice(NASTY), sound=True)
    [argv] = recorder.argvs()
    cut = argv.index("--")
    assert argv[0] == "osascript" and argv[cut:] == ("--", "Claude [app]", NASTY)
    script = argv[1:cut]
    assert set(script[::2]) == {"-e"} and script[1] == "on run argv" and "Glass" in script[3]
    assert "Claude" not in " ".join(script) and "touch" not in " ".join(script)
    show(mac(recorder), a_notice())
    assert "Glass" not in " ".join(recorder.argvs()[-1])


def test_osascript_that_fails_says_so(recorder: Recorder) -> None:
    recorder.on("osascript", then=failed("not allowed"))
    with pytest.raises(Failed, match="not allowed"):
        show(mac(recorder), a_notice())
    recorder.on("osascript", then=CommandNotFound("osascript was not found on PATH."))
    with pytest.raises(Failed, match="not found"):
        show(mac(recorder), a_notice())


def test_terminal_notifier_gets_the_text_on_stdin(recorder: Recorder) -> None:
    uuid = "11111111-2222-4333-8444-555555555555"
    channel = mac(recorder, "terminal-notifier")
    show(channel, a_notice("[-x", uuid=uuid), sound=True)
    [call] = recorder.calls
    assert call.input == b"[-x" and "[-x" not in call.argv
    options = dict(zip(call.argv[1::2], call.argv[2::2], strict=True))
    assert options["-title"] == "Claude [app]" and options["-execute"] == f"open {uuid}"
    asyncio.run(channel.withdraw(("vm", "s")))
    assert recorder.argvs()[-1] == ("terminal-notifier", "-remove", options["-group"])


@pytest.mark.parametrize(
    ("answer", "opened", "replied"),
    [
        ({"activationType": "contentsClicked"}, 1, []),
        ({"activationType": "actionClicked", "activationValue": "Open"}, 1, []),
        ({"activationType": "replied", "activationValue": "yes"}, 0, ["yes"]),
        ({"activationType": "closed"}, 0, []),
        (None, 0, []),
    ],
)
def test_alerter_tells_of_a_click(
    recorder: Recorder, answer: object, opened: int, replied: list[str]
) -> None:
    recorder.on("alerter", then=Result(0, json.dumps(answer).encode() if answer else b"nonsense"))
    doing = Doing()
    show(mac(recorder, "alerter", "terminal-notifier"), a_notice("(x"), doing=doing)
    argv = next(a for a in recorder.argvs() if "-message" in a)
    assert argv[argv.index("-message") + 1] == "· (x"  # else it is read as a property list
    assert (len(doing.opened), doing.replied) == (opened, replied)


# -- terminals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("xterm-256color", b"\x1b]9;Claude [app]: a \xc2\xb7 b;c\x1b\\\a"),
        ("rxvt-unicode", b"\x1b]777;notify;Claude [app];a \xc2\xb7 b;c\x1b\\\a"),
        ("linux", b"\a"),
        ("", b"\a"),
    ],
)
def test_what_a_terminal_is_sent(term: str, expected: bytes) -> None:
    assert notify_channels.sequence(a_notice("a\nb;c"), term, bell=True) == expected
    assert not notify_channels.sequence(a_notice("a"), term, bell=False).endswith(b"\a")


def test_nothing_of_a_guest_steers_a_terminal() -> None:
    sent = notify_channels.sequence(a_notice("x\x1b\\\x07\x9c\x1b]0;evil\x07"), "xterm", bell=False)
    assert sent.count(b"\x1b") == 2 and b"\x07" not in sent and "\x9c".encode() not in sent


def test_an_attached_terminal_gets_it_past_tmux(server: Server) -> None:
    first, second = server.attach(), server.attach()
    record = server.record(server.pane("cat"))
    session_notice = a_notice("hello", uuid=record.uuid)
    session = session_notice.sessions[0]
    session = Session(**{**session.__dict__, "sandbox": record.sandbox})
    shown = Alert(session_notice.key, session_notice.title, "hello", notify_policy.NORMAL, (session,))
    show(Terminal(LocalRunner()), shown, sound=True)
    for terminal in (first, second):
        assert b"\x1b]9;Claude [app]: hello\x1b\\\a" in terminal.seen()


def test_with_nobody_attached_the_terminal_way_says_so(server: Server) -> None:
    record = server.record(server.pane("cat"))
    session = Session("s", record.sandbox, "/p", record.uuid, "done", 0)
    with pytest.raises(Failed, match="no terminal"):
        show(Terminal(LocalRunner()), Alert(session.key, "t", "b", notify_policy.NORMAL, (session,)))


# -- the user's command ----------------------------------------------------------------------------


def test_the_command_reads_the_event_as_json(tmp_path: Path) -> None:
    log: list[str] = []
    script, got = tmp_path / "to phone", tmp_path / "got"
    script.write_text(f'#!/bin/sh\ncat > "{got}"; echo "$1"; exit 3\n')
    script.chmod(0o755)
    command = UserCommand(LocalRunner(), lambda: (str(script), "$(id) x"), log.append)
    show(command, a_notice(NASTY))
    event = json.loads(got.read_text())
    assert (event["schema"], event["title"], event["needs_input"]) == (1, "Claude [app]", True)
    assert event["sessions"][0]["choices"] == ["Yes", "No"] and event["sessions"][0]["project"] == "/work/app"
    assert event["body"] == NASTY
    assert log == ["notify.command: exit code 3: '$(id) x'"]


def test_a_command_that_hangs_or_is_missing_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify_channels, "COMMAND", 0.2)
    log: list[str] = []
    show(UserCommand(LocalRunner(), lambda: ("sleep", "60"), log.append), a_notice())
    show(UserCommand(LocalRunner(), lambda: ("/no/such",), log.append), a_notice())
    assert "exit code 124" in log[0] and "/no/such" in log[1]


# -- the notifier ----------------------------------------------------------------------------------


class Memory:
    """A channel that remembers; `broken`: why it does not work."""

    def __init__(self, name: str = "memory", broken: str = "") -> None:
        self.name, self.broken = name, broken
        self.log: list[str] = []
        self.last: tuple[Alert, Actions] | None = None

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        if self.broken:
            raise Failed(self.broken)
        self.log.append(f"{alert.title}: {alert.body}")
        self.last = (alert, actions)

    async def withdraw(self, key: Key) -> None:
        self.log.append(f"-{'/'.join(key)}")

    async def close(self) -> None:
        self.log.append("closed")


def event(name: str, seq: int, box: str = "vm", **data: Any) -> Event:
    return Event(
        seq, f"abcdef01:{seq}", time.time_ns(), time.time_ns(), box, f"/work/{box}", name, "s", "", 1, data
    )


def transitions(*events: Event) -> list[Transition]:
    known: dict[str, Session] = {}
    found = []
    for each in events:
        before = known.get(each.sandbox)
        known[each.sandbox] = step(before, each)
        found.append(Transition(before, known[each.sandbox], each))
    return found


def play(
    made: Callable[[Callable[[str], None]], notify_notifier.Notifier],
    *events: Event,
    after: Callable[[], Any] | None = None,
) -> list[str]:
    log: list[str] = []

    async def run() -> None:
        notifier = made(log.append)
        for transition in transitions(*events):
            notifier.enqueue(transition)
        await notifier.settle()
        if after is not None:
            after()
            await notifier.settle()
        await notifier.close()

    asyncio.run(run())
    return log


def test_the_next_way_is_tried_and_trouble_is_said_once(home: Path) -> None:
    broken, works = Memory("desktop", "there is no session bus"), Memory("terminal")
    log = play(
        lambda log: notify_notifier.Notifier(log=log, channels=[broken, works], secondary=[], looked_at=lambda session: False),
        event("Stop", 1, last_assistant_message="one"), event("UserPromptSubmit", 2),
        event("Stop", 3, last_assistant_message="two"),
    )  # fmt: skip
    assert works.log == ["Claude [vm]: one", "-vm/s", "Claude [vm]: two", "closed"]
    assert log == ["desktop: there is no session bus"]


def test_with_no_way_at_all_the_log_says_what_was_not_shown(home: Path) -> None:
    log = play(
        lambda log: notify_notifier.Notifier(
            log=log, channels=[Memory("a", "no")], secondary=[], looked_at=lambda session: False
        ),
        event("Stop", 1, last_assistant_message="one"),
    )
    assert log == ["a: no", "not shown: Claude [vm]: one"]


def test_what_is_looked_at_is_not_shown(home: Path) -> None:
    channel = Memory()
    play(
        lambda log: notify_notifier.Notifier(
            log=log, channels=[channel], secondary=[], looked_at=lambda session: True
        ),
        event("Stop", 1),
    )
    assert channel.log == ["closed"]


def test_a_way_that_breaks_in_an_unknown_manner_stops_nothing(home: Path) -> None:
    class Bad(Memory):
        async def withdraw(self, key: Key) -> None:
            raise OSError("gone")

    bad, secondary = Bad(), Memory()
    log = play(
        lambda log: notify_notifier.Notifier(log=log, channels=[bad], secondary=[secondary], looked_at=lambda session: False),
        event("Stop", 1), event("UserPromptSubmit", 2), event("Stop", 3),
    )  # fmt: skip
    assert len(secondary.log) == 4 and any("OSError: gone" in line for line in log)


def test_the_user_s_file_is_read_again_when_it_changes(home: Path) -> None:
    file = paths.config_file()
    file.parent.mkdir(parents=True)
    log: list[str] = []
    settings = notify_notifier.UserSettings(log.append)
    assert settings() == notify_notifier.Settings()
    file.write_text(
        "notify: [failed]\nnotify.command: [a, b c]\nnotify.quiet: 22:00-07:00\nnotify.sound: off\ncpus: 2\n"
    )
    assert settings() == notify_notifier.Settings(("failed",), ("a", "b c"), (1320, 420), False)
    file.write_text("notify: sometimes\n")
    assert settings().states == ("failed",) and len(log) == 1 and "config.yaml:1" in log[0]
    file.write_text("notify: off\n")
    assert settings().states == ()
    file.unlink()
    assert settings() == notify_notifier.Settings()


def test_a_click_brings_the_user_to_the_pane_and_an_answer_into_it(server: Server) -> None:
    screens = Path(__file__).parents[1] / "terminals" / "screens"
    pane, typed = server.claude(screens / "question.txt")
    record = server.record(pane, sandbox="vm")
    server.attach()
    answered: list[terminals_reply.Replied] = []
    channel = Memory()
    asks = event(
        "PermissionRequest", 1, tool_name="AskUserQuestion", detail="Which colour?", choices=["Red", "Blue"]
    )
    asks = Event(**{**asks.__dict__, "uuid": record.uuid})

    def use() -> None:
        assert channel.last is not None
        alert, actions = channel.last
        actions.open(alert)
        actions.reply(alert, "blue")

    play(
        lambda log: notify_notifier.Notifier(
            log=log, channels=[channel], secondary=[], looked_at=lambda session: False, answered=answered.append
        ),
        asks, after=use,
    )  # fmt: skip
    assert server.tmux("list-clients", "-F", "#{pane_id}") == pane
    until(lambda: typed.exists() and typed.read_bytes() == b"2")
    assert [(each.kind, each.text) for each in answered] == [("choice", "Blue")]


def test_a_click_on_what_has_no_terminal_says_the_way(home: Path) -> None:
    channel = Memory()

    def use() -> None:
        assert channel.last is not None
        channel.last[1].open(channel.last[0])

    play(
        lambda log: notify_notifier.Notifier(log=log, channels=[channel], secondary=[], looked_at=lambda session: False),
        event("Stop", 1), after=use,
    )  # fmt: skip
    assert "Claude [vm]: Go there with: claude-sandbox -d /work/vm" in channel.log


def test_the_environment_comes_from_the_newest_session_where_ours_has_no_bus(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    me = processes.identity(os.getpid())
    assert me is not None
    for number, desktop in enumerate(
        [{"DISPLAY": ":1"}, {"DISPLAY": ":2"}, {"DISPLAY": ":3", "SSH_CONNECTION": "x"}]
    ):
        uuid = f"11111111-2222-4333-8444-55555555555{number}"
        terminals_records.write(terminals_records.Record(uuid, "vm", "/p", None, me, "", desktop, number))
    assert notify_notifier.environment()["DISPLAY"] == ":2"  # the last one came over ssh
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")
    assert notify_notifier.environment().get("DISPLAY") == os.environ.get("DISPLAY")


def test_the_test_says_which_ways_work(home: Path) -> None:
    async def run() -> list[str]:
        channels = [Memory("desktop", "no bus"), Memory("other")]
        return await notify_notifier.Notifier(log=print, channels=channels).test()

    assert asyncio.run(run()) == ["desktop: no bus", "other: shown", "command: notify.command is not set"]
