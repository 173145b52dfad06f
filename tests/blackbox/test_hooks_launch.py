"""A launch has the host listen to what Claude tells of itself, and is never stopped by it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.host import run_as
from tests.support.box import Box

APP = "claude-sandbox-app"
UID = run_as.guest_user().uid  # in the guest: whoever runs the tests, for root somebody else
ON = {"CLAUDE_SANDBOX_HOOKS": None}


@pytest.fixture
def made(box: Box) -> Iterator[Box]:
    box.tools_vm()
    box.run("create", "-y")
    yield box
    box.run("stop-all")  # the hooks server too


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def registrations(box: Box) -> list[Path]:
    return list((box.runtime_dir() / "hooks" / "sandboxes").glob("*.json"))


@pytest.mark.spec("3.3")
def test_a_launch_has_the_host_listen(made: Box) -> None:
    ended = made.run(env=ON)
    assert ended.code == 0, ended.text
    seen = made.claude_runs(APP)[-1]["env"]
    assert seen["CLAUDE_HOOKS_SOCKET"] == f"/run/user/{UID}/claude-hooks.sock"
    until(lambda: registrations(made))
    told = json.loads(registrations(made)[0].read_text())
    assert (told["name"], told["project"], told["uid"]) == (APP, str(made.project()), UID)
    setup = [
        line for line in (made.guest(APP) / "system.log").read_text().splitlines() if "hooks-setup" in line
    ]
    assert len(setup) == 1 and setup[0].startswith("sudo -n sh ")
    until(lambda: made.run("status", "--json", env=ON).json()["hooks_server"] == "Running")
    # Its connection: one ssh, with the guest's socket under a name that nobody has had.
    until(lambda: [argv for argv in made.calls("ssh") if "-R" in argv])
    (forward, *_) = [argv for argv in made.calls("ssh") if "-R" in argv]
    assert forward[forward.index("-R") + 1].startswith(f"/run/user/{UID}/claude-hooks.sock.")


def test_no_second_exchange_with_the_guest_for_it(made: Box) -> None:
    made.run()
    made.forget_calls()
    made.run()
    without = len(made.calls("ssh"))
    made.run(env=ON)
    made.forget_calls()
    made.run(env=ON)
    # The fake guest's sudo installs nothing, so the files are brought each time: in the second exchange.
    assert len([argv for argv in made.calls("ssh") if "-R" not in argv]) == without + 1


def test_switched_off_nothing_listens(made: Box) -> None:
    assert made.run().code == 0
    assert "CLAUDE_HOOKS_SOCKET" not in made.claude_runs(APP)[-1]["env"]
    assert registrations(made) == []
    assert made.run("status", "--json").json()["hooks_server"] == "Not running"


SECRETS = {
    "ANTHROPIC_API_KEY": "sk-ant-api03-canary",
    "ANTHROPIC_AUTH_TOKEN": "canary-auth",
    "ANTHROPIC_CUSTOM_HEADERS": "Authorization: canary-header",
    "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-canary",
    "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE": "canary-phrase",
    "CLAUDECODE": "1",
}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["launch", "restart-hooks"])
def test_a_server_keeps_no_login_in_its_environment(made: Box, how: str) -> None:
    """It outlives the command that started it by days: parent, worker, and the ssh that leads into the guest."""
    assert made.run(env=ON).code == 0  # it is registered
    assert made.run("restart-hooks" if how != "launch" else "stop-all", env={**ON, **SECRETS}).code == 0
    if how == "launch":
        assert (ended := made.run(env={**ON, **SECRETS})).code == 0, ended.text
    pid_file = made.runtime_dir() / "hooks" / "server.pid"
    until(pid_file.exists)
    parent = psutil.Process(json.loads(pid_file.read_text())["pid"])
    seen: dict[str, str] = {}

    def looked_at() -> bool:
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                words = " ".join(process.cmdline())
                environ = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
                # The fake guest's own processes are below the fake ssh: they are not ours.
                marks = {" -R ": "ssh", "--worker": "worker", "_hooks-server": "parent"}
                if which := next((name for mark, name in marks.items() if mark in words), None):
                    seen[which] = words + environ
        return {"parent", "worker", "ssh"} <= {*seen}

    until(looked_at)
    for which, text in seen.items():
        assert f"HOME={made.home}" in text, "it is really read"
        for name, value in SECRETS.items():
            assert name not in text and (value not in text or value == "1"), which


def test_a_server_that_cannot_be_started_does_not_stop_claude(made: Box) -> None:
    blocked = made.runtime_dir() / "hooks"
    blocked.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    blocked.write_text("no directory\n")
    ended = made.run(env=ON)
    assert ended.code == 0 and made.claude_runs(APP)
    assert "Notifications are off for this session" in ended.err
    blocked.unlink()


def test_a_shell_has_the_socket_too_and_stays_warm(made: Box) -> None:
    for _ in range(3):
        ended = made.run("shell", "--", "sh", "-c", "echo $CLAUDE_HOOKS_SOCKET", env=ON)
        assert ended.out == f"/run/user/{UID}/claude-hooks.sock\n"
        time.sleep(0.2)  # a note is not left of files that changed just now
    made.forget_calls()
    made.run("shell", "--", "true", env=ON)
    assert len([argv for argv in made.calls("ssh") if "-R" not in argv]) == 1
