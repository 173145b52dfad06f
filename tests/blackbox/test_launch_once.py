"""A launch finds out each thing once and carries it: counted in the whole program, from the command line to ssh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.box import ROOT, TIMEOUT, Box

APP = "claude-sandbox-app"
ONCE = (
    "config/load.py:project_directory",
    "config/load.py:load",
    "vm/lookup.py:by_name",
    "claude_home/prepare.py:bring_up_to_date",
    "claude_home/prepare.py:environment",
    "claude_home/host_tree.py:scan",
)


def counted(box: Box, *arguments: str) -> dict[str, int]:
    """How often each function was called by the program with these arguments."""
    out = box.root / "counts"
    wrapper = Path(__file__).with_name("counted.py")
    done = subprocess.run(
        [sys.executable, str(wrapper), str(out), *arguments],
        cwd=box.project(), env={**box.env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(out.read_text())
    assert isinstance(counts, dict)
    return counts


@pytest.fixture(params=["no VM", "a stopped VM", "a running VM"])
def before(ready: Box, request: pytest.FixtureRequest) -> Box:
    if request.param != "no VM":
        assert ready.run("create").code == 0
    if request.param == "a stopped VM":
        assert ready.run("stop").code == 0
    return ready


@pytest.mark.parametrize("words", [(), ("shell", "--", "true")], ids=["claude", "shell"])
def test_a_launch_resolves_each_thing_once(before: Box, words: tuple[str, ...]) -> None:
    counts = counted(before, *words)
    assert {name: counts.get(name, 0) for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert before.vms()[APP] == "Running"
