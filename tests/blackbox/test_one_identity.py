"""One VM has one identity, however its path is written: LIMA_HOME or HOME behind a symlink (Fedora Atomic's
/home is one), and a Lima that resolves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.box import Box

APP = "claude-sandbox-app"
ON = {"CLAUDE_SANDBOX_HOOKS": None}


@pytest.fixture(params=["LIMA_HOME", "HOME", ".lima"])
def linked(box: Box, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A box in which that is a symlink."""
    link = box.root / "s"
    if request.param == "LIMA_HOME":
        link.symlink_to(box.lima_home)
        box.env["LIMA_HOME"] = str(link)
    elif request.param == "HOME":
        link.symlink_to(box.home)
        box.env["HOME"] = str(link)
        del box.env["LIMA_HOME"]
        box.lima_home = box.home / ".lima"
        box.lima_home.mkdir()
    else:
        (box.home / ".lima").symlink_to(box.lima_home)
        del box.env["LIMA_HOME"]
    box.tools_vm()
    yield box
    box.run("stop-all")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def values(box: Box, option: str) -> set[str]:
    """What followed an option in the calls of ssh so far."""
    calls = [argv for argv in box.calls("ssh") if option in argv]
    return {argv[argv.index(option) + 1].split(":")[-1] for argv in calls}


def masters(box: Box) -> set[str]:
    calls = [argv for argv in box.calls("ssh") if "-N" in argv and "-R" not in argv]
    return {each for argv in calls for each in argv if each.startswith("ControlPath=")}


def test_one_vm_has_one_identity(linked: Box) -> None:
    for arguments in ((), ("shell", "--", "true"), ("shell", "--", "true")):
        ended = linked.run(*arguments, env=ON)
        assert ended.code == 0, ended.text
    until(lambda: values(linked, "-R"))
    time.sleep(1)  # for a second forward to begin, if there were two
    hooks = linked.runtime_dir() / "hooks"
    assert len(list((hooks / "sandboxes").glob("*.json"))) == 1
    sockets = list((hooks / "in").glob("*.sock"))
    assert [str(socket) for socket in sockets] == list(values(linked, "-R"))
    assert len(masters(linked)) == 1
    assert len(list((linked.home / ".local/state/claude-sandbox/journal").iterdir())) == 0
    instance = linked.run("info", "--json").json()
    assert Path(instance["directory"]) == (linked.lima_home / APP).resolve()
