"""The main path as root, whose VMs run in a user namespace: build, create, Claude at work, delete.

After test_boots.py, which has made the same small image.
"""

from __future__ import annotations

import json

import pytest

from tests.support.machine import Person, Stub

pytestmark = pytest.mark.vm


@pytest.mark.spec("7.1")
def test_the_main_path_as_root(root: Person, stub: Stub) -> None:
    root.cs("setup", "-y")
    root.cs("rebuild-tools-vm", "--from-packages", "--only", "claude,git,python3", "--cpus", "2", "--memory", "2GiB",
            "--disk", "8GiB", timeout=2400)  # fmt: skip
    project = root.project("app", files={"hello.txt": "from root\n"})
    edit = {"tool": "Bash", "input": {"command": "tr a-z A-Z < hello.txt > loud.txt", "description": "shout"}}
    prompt = "do it STUB:" + json.dumps([edit, {"text": "all done"}])
    done = root.cs("--cpus", "2", "--memory", "2GiB", "--", "-p", prompt, cwd=project, env=stub.env)
    assert "all done" in done.out
    assert (project / "loud.txt").read_text() == "FROM ROOT\n"
    assert (project / "loud.txt").stat().st_uid == 0
    root.cs("stop", cwd=project)
    assert list(root.vms().values()) == ["Stopped"]
    root.cs("delete", "-y", cwd=project)
    assert root.vms() == {}
    assert (project / "hello.txt").exists()
