"""What a user sees of hook events: status, list, events, stop, stop-all, restart-hooks, doctor; and programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.system import daemon
from tests.support.box import ROOT, Box
from tests.support.hookplay import PATIENCE, Guest, wait_for

APP = "claude-sandbox-app"


@pytest.fixture
def app(ready: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Box, Guest]]:
    """A box with a running sandbox, registered, and a server; we are in the box's world too."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "LIMA_HOME"):
        monkeypatch.setenv(name, ready.env[name])
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert ready.run("create").code == 0
    directory = ready.lima_home / APP
    guest = Guest(
        Registration(APP, directory, str(ready.project()), "lima-x", directory / "ssh.config", 1000)
    )
    guest.registration.write(hooks_client.registrations())
    try:
        daemon_client.ensure()
        yield ready, guest
    finally:
        daemon_client.stop()


@pytest.mark.spec("1.4", "1.6")
def test_sessions_are_shown_and_stop_asks(app: tuple[Box, Guest]) -> None:
    box, guest = app
    guest.deliver(guest.line("UserPromptSubmit", session_id="s0"), guest.line("Stop", session_id="s0"))
    guest.deliver(guest.line("UserPromptSubmit"), guest.line("PermissionRequest.Bash"))
    wait_for(lambda: len(hooks_client.session_dicts()) == 2)
    shown = box.run("status").out
    assert "Hooks server: Running" in shown
    assert f"  {APP}: Running" in shown and "    Claude: needs_input (permission) for " in shown
    assert shown.index("Bash: touch xx") < shown.index("stub reply"), "what needs somebody comes first"
    status = box.run("status", "--json").json()
    assert {s["state"] for s in status["sessions"]} == {"done", "needs_input"}
    assert "needs_input (+1)" in box.run("list").out
    assert len(box.run("list", "--json").json()[0]["sessions"]) == 2

    refused = box.tty("stop", talk=[("Claude is working in", "n\n")])
    assert refused.code == 1 and box.vms()[APP] == "Running"
    assert "Claude is working in" in box.tty("delete", talk=[("Delete", "n\n")]).out
    guest.deliver(guest.line("Stop"))
    wait_for(lambda: not hooks_client.busy(APP))
    assert "Claude is working" not in box.tty("stop").out and box.vms()[APP] == "Stopped"
    assert "Claude:" not in box.run("status").out, "a VM that does not run has no session"
    assert box.run("stop-all").code == 0
    assert not daemon_client.running() and "Hooks server: Not running" in box.run("status").out


@pytest.mark.spec("1.5")
def test_events_and_restart_hooks(app: tuple[Box, Guest]) -> None:
    box, guest = app
    assert box.run("events").out == "No events yet.\n"
    guest.deliver(guest.line("UserPromptSubmit"), guest.line("PermissionRequest.Bash"))
    shown = box.run("events").out.splitlines()
    assert len(shown) == 2 and shown[1].endswith(f"  {APP}  PermissionRequest  Bash: touch xx")
    kept = [json.loads(text) for text in box.run("events", "--json", "--since", "1h").out.splitlines()]
    assert [event["name"] for event in kept] == ["UserPromptSubmit", "PermissionRequest"]
    assert box.run("events", "--since", "soon").code == 2

    words = [sys.executable, str(ROOT / "claude_sandbox.py"), "events", "-f", "--json"]
    program = (
        "from claude_sandbox import Sandbox\n"
        f"for item in Sandbox.at({str(box.project())!r}).events(): print(type(item).__name__, flush=True)\n"
    )
    env = {**box.env, "PYTHONPATH": str(ROOT)}
    with (
        subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as follower,
        subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE) as reader,
    ):
        try:
            assert follower.stdout is not None and reader.stdout is not None
            lines = [json.loads(follower.stdout.readline()) for _ in range(3)]
            assert [line["type"] for line in lines] == ["event", "event", "session"]
            assert reader.stdout.readline() == b"Session\n"
            old = daemon.read_pid_file(daemon_client.daemon())["pid"]
            assert box.run("restart-hooks").out == "The hooks server runs.\n"
            assert daemon.read_pid_file(daemon_client.daemon())["pid"] != old
            guest.deliver(guest.line("Stop"))
            lines = [json.loads(follower.stdout.readline()) for _ in range(2)]
            assert [(line["type"], line.get("name")) for line in lines] == [
                ("event", "Stop"),
                ("session", None),
            ]
            assert lines[1]["state"] == "done"
            assert reader.stdout.readline() == b"Event\n"
        finally:
            follower.kill()
            reader.kill()
    assert follower.wait(PATIENCE) and "hooks server: runs" in box.run("doctor").out
