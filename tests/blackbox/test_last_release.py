"""What the last release left goes on: a tools VM, a sandbox that runs, its conversation, its events, its server.

`last_release.tar.xz` is that program: `git archive 2cedfe3 claude_sandbox.py _claude_sandbox hook.sh tools-vm.yaml`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.hooks.registration import Registration
from tests.support.box import Box, Ended
from tests.support.hookplay import Guest, wait_for

APP = "claude-sandbox-app"
ON = {"CLAUDE_SANDBOX_HOOKS": None}
RELEASE = Path(__file__).with_name("last_release.tar.xz")
CONVERSATION = ".claude/projects/-app/0b7b.jsonl"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("release")
    with tarfile.open(RELEASE) as tar:
        tar.extractall(top)
    return top


def of_last_release(
    box: Box, release: Path, *arguments: str, env: Mapping[str, str | None] | None = None
) -> Ended:
    merged = {key: value for key, value in {**box.env, **(env or {})}.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-E", "-s", str(release / "claude_sandbox.py"), *arguments],
        cwd=box.project(), env=merged, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def left(box: Box, release: Path) -> Iterator[Box]:
    """The last release made a sandbox with two ports, ran Claude in it, and took an event of it; all of it runs."""
    box.tools_vm()
    (box.project() / ".claude-sandbox.yaml").write_text(f"mounts: [{box.project('data')}]\n")
    assert (asked := of_last_release(box, release, "approve", "-y")).code == 0, asked.text
    made = of_last_release(box, release, "create", "-p", "3000,8080:80")
    assert made.code == 0, made.text
    talk = box.guest(APP) / "home" / CONVERSATION
    talk.parent.mkdir(parents=True)
    talk.write_text('{"type":"user"}\n')
    ran = of_last_release(box, release, "--", "-p", "hello", env=ON)
    assert ran.code == 0, ran.text
    guest(box).deliver(guest(box).line("Stop", number=1))
    yield box
    box.run("stop-all")


def guest(box: Box) -> Guest:
    """The sandbox, as its server knows it."""
    (file,) = (box.runtime_dir() / "hooks" / "sandboxes").glob("*.json")
    known = json.loads(file.read_text())
    return _Guest(
        Registration(APP, box.lima_home / APP, known["project"], "lima-x", Path("/x"), known["uid"]),
        file.stem,
        box,
    )


class _Guest(Guest):
    """One whose socket is that of the box's runtime directory."""

    def __init__(self, registration: Registration, tag: str, box: Box) -> None:
        super().__init__(registration)
        self._socket = box.runtime_dir() / "hooks" / "in" / f"{tag}.sock"

    @property
    def socket(self) -> Path:
        return self._socket


def server(box: Box) -> psutil.Process:
    return psutil.Process(json.loads((box.runtime_dir() / "hooks" / "server.pid").read_text())["pid"])


def test_its_sandbox_goes_on_as_it_was(left: Box) -> None:
    left.forget_calls()
    (row,) = left.run("list", "--json").json()
    assert (row["name"], row["status"], row["project"]) == (APP, "Running", str(left.project()))
    assert left.run("shell", "--", "true").code == 0
    info = left.run("info", "--json").json()
    assert info["ports"] == ["3000:3000", "8080:80"]
    assert left.calls(verb="clone") == left.calls(verb="start") == []
    assert left.run("stop").code == 0 and left.vms()[APP] == "Stopped"
    ended = left.run("--", "--continue")
    assert ended.code == 0, ended.text
    assert (left.guest(APP) / "home" / CONVERSATION).read_text() == '{"type":"user"}\n'
    assert left.claude_runs(APP)[-1]["args"][-1] == "--continue" and left.calls(verb="clone") == []
    assert left.run("delete", "-y").code == 0 and set(left.vms()) == {"tools-vm"}


def test_its_approval_and_its_disks_count(left: Box) -> None:
    golden = left.home / ".local/share/claude-sandbox/golden"
    before = sorted(golden.glob("*"))
    assert left.run("restart").code == 0, "what was approved is not asked again"
    assert left.run("prune", "--cache", "-y").code == 0 and sorted(golden.glob("*")) == before
    two = left.project("two")
    assert left.run("create", cwd=two).code == 0
    assert sorted(golden.glob("*.qcow2")) == [file for file in before if file.suffix == ".qcow2"]
    assert left.run("stop-all").code == 0 and set(left.vms().values()) == {"Stopped"}


def test_its_server_is_replaced_and_its_events_stay(left: Box) -> None:
    old = server(left)
    assert left.run("restart-hooks", env=ON).code == 0
    wait_for(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)
    assert server(left) != old
    assert [json.loads(each)["name"] for each in left.run("events", "--json").out.splitlines()] == ["Stop"]
    assert [each["sandbox"] for each in left.run("status", "--json").json()["sessions"]] == [APP]
    wait_for(guest(left).socket.exists)
    guest(left).deliver(guest(left).line("UserPromptSubmit", number=2))
    names = [json.loads(each)["name"] for each in left.run("events", "--json").out.splitlines()]
    assert names == ["Stop", "UserPromptSubmit"]
