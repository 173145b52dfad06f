"""What is being made: found again after a kill, and its limactl ended only if it is that very process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.vm.journal import Journal


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def begun(home: Path) -> Journal:
    one = Journal(home / ".lima", "claude-sandbox-app")
    one.begin(Path("/home/me/app"))
    return one


def test_the_life_of_one(begun: Journal, home: Path) -> None:
    again = Journal(home / ".lima", "claude-sandbox-app")
    assert again.exists() and again.project() == Path("/home/me/app")
    assert not again.path.is_relative_to(home / ".lima") and again.path.stat().st_mode & 0o077 == 0
    again.end()
    assert not begun.exists() and begun.project() is None
    again.end()


def test_another_lima_home_or_name_is_another_vm(begun: Journal, home: Path) -> None:
    assert not Journal(home / "other", begun.name).exists()
    assert not Journal(begun.lima_home, "claude-sandbox-ap").exists()


def test_a_project_of_any_bytes(home: Path) -> None:
    odd = Path(os.fsdecode(b"/p/\xff\n\"'"))
    one = Journal(home / ".lima", "x")
    one.begin(odd)
    assert one.project() == odd


def test_one_of_an_older_version_with_lima_home_behind_a_symlink(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "real").mkdir()
    (home / ".lima").symlink_to("real")
    Journal(home / ".lima", "claude-sandbox-app").begin(Path("/home/me/app"))
    again = Journal(paths.lima_home(), "claude-sandbox-app")
    assert again.lima_home != home / ".lima" and again.exists()
    again.end()
    assert list((paths.state_dir() / "journal").iterdir()) == []


def test_the_child_that_outlived_us_is_ended(begun: Journal, child: subprocess.Popen[bytes]) -> None:
    begun.note_child(child.pid)
    assert begun.project() == Path("/home/me/app")  # the rest stays
    begun.end_child()
    assert child.wait(10) == -15


def test_a_stubborn_child_is_killed(begun: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo go; while :; do sleep 0.1; done"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"go\n"
    begun.note_child(process.pid)
    ticks = iter(range(0, 100000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    try:
        begun.end_child()
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("shift", [-3600, -1, 1, 3600])
def test_a_process_that_got_the_same_id_later_is_left_alone(
    begun: Journal, child: subprocess.Popen[bytes], shift: int
) -> None:
    begun.note_child(child.pid)
    data = read_object(begun.path) or {}
    known = data["child"]
    older = {"child": child.pid, "child_started": psutil.Process(child.pid).create_time() + 5 * shift}
    for later in ({"child": {**known, "start": known["start"] + shift}}, older):
        write_json(begun.path, {**data, **later})
        begun.end_child()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)


def test_the_child_in_an_older_version_s_journal_is_ended(
    begun: Journal, child: subprocess.Popen[bytes]
) -> None:
    started = psutil.Process(child.pid).create_time()
    write_json(begun.path, {"version": 1, "child": child.pid, "child_started": started})
    begun.end_child()
    assert child.wait(10) == -15


@pytest.mark.parametrize(
    "data", [{}, {"child": "1", "child_started": 0}, {"child": 1}, {"child": None, "child_started": None}]
)
def test_a_journal_that_names_no_process_ends_none(begun: Journal, data: dict[str, object]) -> None:
    write_json(begun.path, data)
    begun.end_child()
    begun.path.write_text("garbage")
    begun.end_child()
    assert begun.exists() and begun.project() is None  # still half-made


def test_a_child_that_is_gone(begun: Journal) -> None:
    process = subprocess.Popen(["true"])
    begun.note_child(process.pid)
    process.wait()
    begun.end_child()
    begun.note_child(process.pid)  # nothing to note any more
    begun.end_child()
