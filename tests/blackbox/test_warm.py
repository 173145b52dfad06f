"""A warm shell: ssh at once while nothing has changed, the whole way at any difference."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.box import Box, Ended, kill

APP = "claude-sandbox-app"
TOKEN = "sk-ant-oat01-" + "x" * 40


def shell(box: Box, *command: str, env: dict[str, str | None] | None = None) -> tuple[Ended, bool]:
    """`shell -- COMMAND` and whether it went the short way: without our command line's modules."""
    ended = box.run("shell", "--", *command, env=env)
    return ended, "_claude_sandbox.cli.main" not in ended.err


@pytest.fixture
def warm(ready: Box) -> Box:
    """A sandbox whose next shell is a warm one."""
    ready.env["PYTHONPROFILEIMPORTTIME"] = "1"  # on stderr: which modules were imported
    settings = ready.home / ".claude-sandbox" / ".claude"
    (settings / "commands").mkdir(parents=True)
    (settings / "CLAUDE.md").write_text("be brief\n")
    (settings / "commands" / "a.md").write_text("a\n")
    assert (ended := ready.run("create")).code == 0, ended.text
    time.sleep(0.1)  # what was written a moment ago is not trusted
    for _ in range(2):
        assert (ended := ready.run("shell", "--", "true")).code == 0, ended.text
    ready.forget_calls()
    return ready


def test_it_asks_nobody_and_gives_the_same(warm: Box) -> None:
    show = ("sh", "-c", 'pwd; echo "$1"; env | grep -v UUID | sort; exit 7', "sh", "it's  $HOME")
    short, was_short = shell(warm, *show)
    assert was_short and short.code == 7
    assert [entry["program"] for entry in warm.log()] == ["ssh"]
    whole, was_short = shell(warm, *show, env={"CLAUDE_SANDBOX_DEBUG": "1"})
    assert not was_short and whole.out == short.out and "it's  $HOME" in short.out.splitlines()


def test_each_shell_has_its_own_uuid(warm: Box) -> None:
    seen = set()
    for _ in range(2):
        ended, was_short = shell(warm, "sh", "-c", "echo $CLAUDE_SANDBOX_UUID")
        assert was_short
        seen.add(ended.out)
    assert len(seen) == 2


def test_stdin_and_other_directories(warm: Box) -> None:
    assert warm.run("shell", input="echo hello\nexit 3\n").code == 3
    elsewhere = warm.run("shell", "-d", str(warm.project()), "--", "pwd", cwd=warm.root)
    assert elsewhere.out.strip() == str(warm.project())
    assert warm.run("shell", "-d", str(warm.root / "none"), "--", "pwd").code == 1


def vm(box: Box) -> Path:
    return box.lima_home / APP


CHANGES: dict[str, Callable[[Box], object]] = {
    "settings changed": lambda box: (box.home / ".claude-sandbox/.claude/CLAUDE.md").write_text("be kind\n"),
    "settings added": lambda box: (box.home / ".claude-sandbox/.claude/commands/b.md").write_text("b\n"),
    "a login stored": lambda box: box.run("login", input=TOKEN),
    "project file": lambda box: (box.project() / ".claude-sandbox.yaml").write_text("cpus: 1\n"),
    "user file": lambda box: config(box).write_text("cpus: 1\n"),
    "lima.yaml": lambda box: os.utime(vm(box) / "lima.yaml"),
    "another boot": lambda box: os.utime(vm(box) / "ha.pid"),
    "master ended": lambda box: box.run("restart"),
    "stopped": lambda box: box.run("stop"),
}


def config(box: Box) -> Path:
    path = box.home / ".config" / "claude-sandbox" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_whole_way_is_gone(warm: Box, change: str) -> None:
    CHANGES[change](warm)
    ended, was_short = shell(warm, "cat", str(warm.guest(APP) / "home" / ".claude" / "CLAUDE.md"))
    assert ended.code == 0 and not was_short
    assert ended.out == ("be kind\n" if change == "settings changed" else "be brief\n")


def test_another_environment_has_a_note_of_its_own(warm: Box) -> None:
    env: dict[str, str | None] = {"ANTHROPIC_MODEL": "sonnet"}
    for expected in (False, True):
        ended, was_short = shell(warm, "sh", "-c", "echo $ANTHROPIC_MODEL", env=env)
        assert ended.out == "sonnet\n" and was_short is expected
    assert shell(warm, "true")[1]


def test_options_want_the_whole_way(warm: Box) -> None:
    ended = warm.run("shell", "-v", "--", "true")
    assert ended.code == 0 and "_claude_sandbox.cli.main" in ended.err


def test_a_vm_that_died_is_started_again(warm: Box) -> None:
    kill(int((vm(warm) / "qemu.pid").read_text()))
    ended, was_short = shell(warm, "true")
    assert ended.code == 0 and not was_short


def test_who_works_on_the_vm_is_waited_for(warm: Box) -> None:
    locks = [
        path for path in (warm.home / ".local/state/claude-sandbox/locks").iterdir() if "project" in path.name
    ]
    assert locks
    files = [path.open() for path in locks]
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    process = warm.spawn("shell", "--", "true")
    assert process.stderr is not None
    assert any("waiting for it" in line for line in process.stderr)  # ends when the process does
    for file in files:
        file.close()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_no_note_holds_a_secret(warm: Box) -> None:
    env: dict[str, str | None] = {
        "ANTHROPIC_API_KEY": "sk-ant-api03-secret",
        "ANTHROPIC_BASE_URL": "http://me:hunter2@localhost:1/",
    }
    show = ("sh", "-c", "echo $ANTHROPIC_API_KEY $ANTHROPIC_BASE_URL")
    for _ in range(2):
        ended, was_short = shell(warm, *show, env=env)
        assert ended.out == "sk-ant-api03-secret http://me:hunter2@192.168.5.2:1/\n"
        assert not was_short  # a value that had to be rewritten, with a password in it
    assert warm.run("login", input=TOKEN).code == 0
    time.sleep(0.1)
    for expected in (False, True):
        ended, was_short = shell(warm, "sh", "-c", "echo $CLAUDE_CODE_OAUTH_TOKEN")
        assert ended.out == TOKEN + "\n" and was_short is expected
    notes = list((warm.runtime_dir() / "warm").iterdir())
    assert notes
    for note in notes:
        data = note.read_bytes()
        assert not any(secret in data for secret in (TOKEN.encode(), b"hunter2", b"api03-secret"))


def test_a_broken_note_is_no_matter(warm: Box) -> None:
    for note in (warm.runtime_dir() / "warm").iterdir():
        note.write_bytes(json.dumps({"schema": 1}).encode())
    ended, was_short = shell(warm, "true")
    assert ended.code == 0 and not was_short
    assert shell(warm, "true")[1]


def test_a_runtime_directory_of_others_is_not_trusted(warm: Box) -> None:
    (warm.runtime_dir()).chmod(0o770)
    ended, was_short = shell(warm, "true")
    assert ended.code == 0 and not was_short
