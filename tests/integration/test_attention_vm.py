"""What the real Claude in a real VM tells of itself reaches the host, whatever breaks on the way.

With the person and the tools VM of test_a_day.py; one boot. `watched` is the running sandbox with a terminal,
the stub API, and what the host knows; the tests follow each other.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.system import runtime_dir
from tests.support.desktop import Desktop
from tests.support.machine import Person, Screen, Stub, squeezed, wait_until, with_pid, words_of

pytestmark = pytest.mark.vm
NAME = "claude-sandbox-attention"
SOURCE_SESSION = "0b5cb4b1-0000-4000-8000-000000000001"
QUESTION = {
    "tool": "AskUserQuestion",
    "input": {
        "questions": [
            {
                "question": "Which one?", "header": "Pick", "multiSelect": False,
                "options": [{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}],
            }
        ]
    },
}  # fmt: skip
# Runs in the guest, away from any terminal: $1 events, two a second, as Claude's hook makes them.
SOURCE = r"""
i=0
while [ $i -lt "$1" ]; do
    i=$((i + 1))
    printf '{"session_id":"%s","hook_event_name":"Notification","message":"n%s"}\n' "$2" $i |
        sh -c "trap 'exit 0' 0; set -- queue Notification; . /usr/lib/claude-sandbox/hook.sh"
    sleep 0.5
done
"""


@dataclass
class Watched:
    """A running sandbox, and what the host knows of it."""

    person: Person
    project: Path
    stub: Stub
    screen: Screen
    desktop: Desktop

    def tmux(self, *words: str) -> str:
        """On the person's own tmux server, where the launch made Claude's session."""
        return self.person.run("tmux", *words, cwd=self.project, code=None).out.strip()

    def sessions(self) -> list[dict[str, Any]]:
        """Claude's sessions in this sandbox that have not ended, without the one that SOURCE makes up."""
        found: list[dict[str, Any]] = self.person.cs("status", "--json", cwd=self.project).json()["sessions"]
        alive = [each for each in found if each["sandbox"] == NAME and each["state"] != "ended"]
        return [each for each in alive if each["session_id"] != SOURCE_SESSION]

    def state(self) -> tuple[str, str]:
        """(state, what it wants) of the one session."""
        found = self.sessions()
        return (found[0]["state"], found[0]["wants"]) if found else ("", "")

    def becomes(self, state: str, wants: str = "", seconds: float = 90) -> dict[str, Any]:
        wait_until(lambda: self.state() == (state, wants), seconds, f"{state} {wants}")
        return self.sessions()[0]

    def answered(self, press: Callable[[], object]) -> dict[str, Any]:
        """Done, after the open dialog was answered: in the moment in which it appears it may take no key."""
        for _ in range(6):
            press()
            with contextlib.suppress(AssertionError):
                wait_until(lambda: self.state()[0] != "needs_input", 15, "an answered dialog")
                break
        return self.becomes("done")

    def events(self) -> list[dict[str, Any]]:
        lines = self.person.cs("events", "--json", "--since", "2h", cwd=self.project).out.splitlines()
        return [event for event in map(json.loads, lines) if event.get("sandbox") == NAME]

    def messages(self, session: str) -> list[str]:
        return [e["data"].get("message", "") for e in self.events() if e["session_id"] == session]

    def start_source(self, count: int, session: str) -> None:
        self.person.cs("shell", "--", "bash", "-c", f"setsid nohup sh -c '{quoted(SOURCE)}' sh {count} {session} "
                       ">/dev/null 2>&1 </dev/null &", cwd=self.project)  # fmt: skip

    def server(self) -> dict[str, int]:
        """Process ids of the hooks server: `parent` and `worker`."""
        uid = self.project.stat().st_uid
        kept = self.person.home / ".local/state/claude-sandbox"
        key = runtime_dir.key({"HOME": str(self.person.home)})
        places = [Path(f"/run/user/{uid}/claude-sandbox/{key}"), kept / f"runtime-{key}"]
        (file,) = [f for place in places if (f := place / "hooks" / "server.pid").exists()]
        state = kept / "hooks/state.json"
        return {
            "parent": json.loads(file.read_text())["pid"],
            "worker": json.loads(state.read_text())["server"]["pid"],
        }

    def forward(self) -> list[int]:
        """The ssh that carries this sandbox's events."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [
            pid
            for pid in pids
            if "ExitOnForwardFailure=yes" in (words := words_of(pid)) and f"lima-{NAME}" in words
            and words.startswith("ssh")
        ]  # fmt: skip


def quoted(text: str) -> str:
    return text.replace("'", "'\\''")


@pytest.fixture(scope="module")
def watched(user: Person, stub: Stub) -> Iterator[Watched]:
    """Boot 1: Claude's prompt on a terminal of ours, with permissions to ask for."""
    project = user.project("work", "attention", files={"hello.txt": "x\n"})
    desktop = Desktop(user)
    screen = Screen(user)
    user.cs("create", "--cpus", "2", "--memory", "2GiB", cwd=project)
    command = str(user.checkout / "claude-sandbox")
    screen.open(
        project,
        {**stub.env, **desktop.env},
        "sh",
        "-c",
        f"{command} --new -- --permission-mode default; sleep 600",
    )
    screen.wait_for("manual mode on")
    made = Watched(user, project, stub, screen, desktop)
    yield made
    screen.tmux("kill-server")
    made.tmux("kill-server")
    desktop.close()
    user.cs("delete", "-y", cwd=project, code=None)


def test_a_turn_is_followed(watched: Watched) -> None:
    watched.becomes("idle")
    watched.screen.type("hello there")
    told = watched.becomes("done")
    assert told["message"] == "stub reply"
    assert len(told["uuid"]) == 36 and told["project"] == str(watched.project)


def test_a_permission(watched: Watched) -> None:
    call = {"tool": "Bash", "input": {"command": "touch made-in-guest"}}
    watched.screen.type("touch STUB:" + json.dumps([call, {"text": "touched"}]))
    told = watched.becomes("needs_input", "permission")
    assert told["tool"] == "Bash" and "touch made-in-guest" in told["message"]
    watched.screen.wait_for("Do you want to proceed?")
    assert watched.answered(lambda: watched.screen.tmux("send-keys", "Enter"))["message"] == "touched"
    assert (watched.project / "made-in-guest").exists()


def test_a_question(watched: Watched) -> None:
    watched.screen.type("ask STUB:" + json.dumps([QUESTION, {"text": "thanks"}]))
    told = watched.becomes("needs_input", "question")
    assert told["choices"] == ["Red", "Blue"]
    watched.screen.wait_for("Which one?")
    assert watched.answered(lambda: watched.screen.tmux("send-keys", "Enter"))["message"] == "thanks"


def test_each_need_is_shown_once_and_a_click_leads_to_it(watched: Watched) -> None:
    """On a real notification daemon, while the person looks at another window of the same tmux session."""
    settings = watched.person.home / ".config" / "claude-sandbox" / "config.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    # On a slow machine an answer comes so long after the last key that the tests before were notified, too.
    earlier = watched.desktop.shown()
    session, pane = watched.tmux("list-panes", "-a", "-F", "#{session_name} #{pane_id}").split()
    call = {"tool": "Bash", "input": {"command": "touch made-too"}}
    needs = (  # kind of notification that is wanted, what is typed, what it says, the key that answers
        ("needs_input", "touch STUB:" + json.dumps([call, {"text": "made too"}]), "touch made-too", "Enter"),
        ("needs_input", "ask STUB:" + json.dumps([QUESTION, {"text": "thanks too"}]), "Which one?", "Enter"),
        ("done", "say STUB:" + json.dumps([{"text": "all is said"}]), "all is said", ""),
    )
    for wanted, typed, _, answer in needs:
        settings.write_text(f"notify: [{wanted}]\n")
        watched.tmux("new-window", "-t", f"{session}:", "sleep", "900")
        watched.tmux("send-keys", "-t", pane, "-l", typed)
        _is_written(watched, pane, typed)
        watched.tmux("send-keys", "-t", pane, "Enter")
        wait_until(lambda: watched.desktop.showing() == 1, 90, f"a notification ({wanted})")
        watched.desktop.click()
        wait_until(lambda: _active(watched, session) == pane, 30, "Claude's pane")
        wait_until(lambda: watched.desktop.showing() == 0, 30, "the end of what was clicked")
        if answer:
            watched.answered(functools.partial(watched.tmux, "send-keys", "-t", pane, answer))
        else:
            watched.becomes("done")
    whole = watched.desktop.shown()
    shown = whole[: len(whole) - len(earlier)]
    assert len(shown) == len(needs), whole
    assert all(each.startswith("Claude [attention]: ") for each in shown)
    for _, _, body, _ in needs:
        assert sum(body in each for each in shown) == 1, shown
    settings.unlink()


def _is_written(watched: Watched, pane: str, text: str) -> None:
    def written() -> bool:
        return squeezed(text) in squeezed(watched.tmux("capture-pane", "-p", "-t", pane))

    wait_until(written, 60, text)


def _active(watched: Watched, session: str) -> str:
    """The pane that the person has before them."""
    return watched.tmux("display-message", "-p", "-t", f"{session}:", "#{pane_id}")


def test_the_end(watched: Watched) -> None:
    watched.screen.type("/exit")
    watched.screen.tmux("send-keys", "Enter")
    wait_until(lambda: not watched.sessions(), 90, "the session's end")


def test_none_is_lost_and_none_comes_twice_whatever_breaks(watched: Watched) -> None:
    """The connection is killed; the worker; the whole server; QEMU stands still for two minutes.

    Last of all: Claude's own connection does not outlive those two minutes.
    """
    session, count = SOURCE_SESSION, 150
    watched.start_source(count, session)

    def more(than: int = 3) -> None:
        before = len(watched.messages(session))
        wait_until(lambda: len(watched.messages(session)) >= before + than, 180, "more events")

    more()
    (ssh,) = watched.forward()
    with_pid(ssh)
    more()
    assert ssh not in watched.forward()
    with_pid(watched.server()["worker"])
    more()
    server = watched.server()
    with_pid(server["parent"])
    with_pid(server["worker"])
    watched.person.cs("restart-hooks", cwd=watched.project)
    more()
    qemu = int((watched.person.instance(NAME) / "qemu.pid").read_text())
    assert str(watched.person.instance(NAME)) in words_of(qemu)
    os.kill(qemu, signal.SIGSTOP)
    try:
        time.sleep(120)
    finally:
        os.kill(qemu, signal.SIGCONT)
    more()
    wait_until(lambda: len(watched.messages(session)) >= count, 300, f"{count} events")
    assert watched.messages(session) == [f"n{n}" for n in range(1, count + 1)]
