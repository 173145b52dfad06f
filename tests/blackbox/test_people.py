"""watch, next, reply and notify as a user meets them: a Claude in real tmux, the real hooks server."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.lima import limactl
from tests.support.box import ROOT, Box
from tests.support.hookplay import connect, read_answer, request

APP = "claude-sandbox-app"
SCREENS = ROOT / "tests" / "unit" / "terminals" / "screens"
SAMPLES = ROOT / "tests" / "unit" / "hooks" / "samples"


def until(condition: Any, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


class Desk:
    """A box with a running sandbox `app`, and what its guest tells the hooks server."""

    def __init__(self, box: Box) -> None:
        self.box, self.number = box, 0
        self.hooks = box.runtime_dir() / "hooks"
        self.directory = box.lima_home / APP

    def serve(self) -> None:
        """The sandbox is registered, and a server of ours knows it."""
        place = self.hooks / "sandboxes"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        Registration(
            APP, self.directory, str(self.box.project()), f"lima-{APP}", self.directory / "ssh.config", 1000
        ).write(place)
        assert self.box.run("restart-hooks").code == 0
        until(self.socket.exists)

    @property
    def socket(self) -> Path:
        return self.hooks / "in" / f"{limactl.tag(self.directory)}.sock"

    def event(self, sample: str, uuid: str = "", **changes: Any) -> None:
        """As hook.sh and the delivery service would bring it."""
        self.number += 1
        payload = {**json.loads((SAMPLES / f"{sample}.json").read_text()), "session_id": "s1", **changes}
        line = {
            "id": f"00ff00ff:{self.number}",
            "time_ns": time.time_ns(),
            "pid": 1,
            "uuid": uuid,
            "payload": payload,
        }
        with connect(self.socket) as client:
            client.sendall(request("POST", "/v1/events", json.dumps(line).encode()))
            assert read_answer(client)[0] == 200

    def leave_claude_with(self, screen: str) -> str:
        """Claude runs in tmux, detached, its screen as given; CLAUDE_SANDBOX_UUID of that launch."""
        self.box.with_tmux()
        shutil.copy(SCREENS / f"{screen}.txt", self.box.guest(APP) / "claude.screen")
        (self.box.guest(APP) / "claude.sleep").write_text("60")
        last = (SCREENS / f"{screen}.txt").read_text().split()[-1]
        ended = self.box.tty(talk=[(last, "\x02d")])
        assert ended.code == 0 and "Detached" in ended.out, ended.text
        uuid = self.box.claude_runs(APP)[-1]["env"]["CLAUDE_SANDBOX_UUID"]
        assert isinstance(uuid, str)
        return uuid

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in (self.hooks / "sessions").glob("*.json")]

    def knows(self, state: str) -> None:
        file = self.box.hooks_state() / "state.json"
        until(
            lambda: (
                file.exists() and [s["state"] for s in json.loads(file.read_text())["sessions"]] == [state]
            )
        )


@pytest.fixture
def desk(ready: Box) -> Iterator[Desk]:
    assert ready.run("create").code == 0
    made = Desk(ready)
    yield made
    ready.run("stop-all", "-f")


def test_nothing_waits(desk: Desk) -> None:
    ended = desk.box.run("next")
    assert ended.code == 1 and "Nothing waits for you." in ended.err and not ended.out
    assert desk.box.run("next", "--json").json() is None
    table = desk.box.run("watch")
    assert table.code == 0 and "no Claude" in table.out and "no terminal" in table.err
    [row] = desk.box.run("watch", "--json").json()
    assert (row["sandbox"], row["status"], row["session"]) == (APP, "Running", None)
    ended = desk.box.run("reply", "app", "x")
    assert ended.code == 1 and "No Claude that we know of" in ended.err
    ended = desk.box.run("reply", "nobody", "x")
    assert ended.code == 1 and "No sandbox is called nobody" in ended.err and APP in ended.err


def test_a_question_is_shown_answered_and_gone_to(desk: Desk) -> None:
    uuid = desk.leave_claude_with("question")
    desk.serve()
    [record] = desk.records()
    assert (record["uuid"], record["sandbox"], record["tmux"]["ours"]) == (uuid, APP, True)
    desk.event(
        "PermissionRequest.Bash", uuid, tool_name="AskUserQuestion",
        tool_input={"questions": [{"question": "Which colour?", "options": [{"label": "Red"}, {"label": "Blue"}]}]},
    )  # fmt: skip
    desk.knows("needs_input")
    assert "needs you" in desk.box.run("watch").out
    for name in ("app", APP, str(desk.box.project()), "."):
        shown = desk.box.run("reply", name)
        assert shown.code == 0 and "Which colour?" in shown.out and "2. Blue" in shown.out, shown.text
    told = desk.box.run("next", "--json").json()["session"]
    assert (told["state"], told["message"]) == ("needs_input", "Which colour?")
    refused = desk.box.run("reply", "app", "green")
    assert refused.code == 1 and "does not offer that" in refused.err
    stale = desk.box.run("reply", "--seq", str(told["seq"] + 1), "app", "blue")
    assert stale.code == 1 and "no longer asks" in stale.err
    gone_to = desk.box.tty("next", talk=[("Chat about this", "\x02d")])
    assert gone_to.code == 0 and "Which colour?" in gone_to.out
    typed = desk.box.guest(APP) / "claude.typed"
    assert desk.box.run("reply", "app", "-", "--dry-run", input="blue").code == 0 and not typed.read_bytes()
    sent = desk.box.run("reply", "app", "-", input="blue\n")
    assert sent.code == 0 and "chosen: Blue" in sent.out, sent.text
    until(lambda: typed.read_bytes() == b"2")
    desk.knows("working")  # told by us: no event need come
    late = desk.box.run("reply", "app", "blue")
    assert late.code == 1 and "is at work" in late.err


def test_the_record_goes_with_its_claude(desk: Desk) -> None:
    desk.leave_claude_with("question")
    (desk.box.guest(APP) / "claude.sleep").unlink()
    assert len(desk.records()) == 1
    ended = desk.box.tty(talk=[("Chat about this", "1")])
    assert ended.code == 0
    until(lambda: desk.records() == [])


def test_without_tmux_reply_says_what_to_do(desk: Desk) -> None:
    desk.serve()
    desk.event("Stop")
    desk.knows("done")
    ended = desk.box.run("reply", "app", "x")
    assert ended.code == 1 and "No terminal of this host" in ended.err and "claude-sandbox -d" in ended.err


def test_the_test_of_notifications_names_each_way(desk: Desk) -> None:
    file = desk.box.home / ".config/claude-sandbox/config.yaml"
    file.parent.mkdir(parents=True)
    got = desk.box.root / "got"
    file.write_text(f"notify.command: [/bin/sh, -c, 'cat > {got}']\n")
    ended = desk.box.run("notify", "test")
    assert (
        ended.code == 0 and "desktop: there is no session bus" in ended.out and "command: it ran" in ended.out
    )
    assert json.loads(got.read_text())["title"] == "Claude [test]"
    assert desk.box.run("notify").code == 2
