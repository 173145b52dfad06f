"""The forward's supervisor with a fake ssh: a small script on PATH that does what a file says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.lima import socket_forward
from _claude_sandbox.lima.socket_forward import Socket
from tests.support.hookhost import Home, Host, payload, wait_until

FAKE = """#!/bin/sh
# Runs the remote command here. `mode` says how: work, refuse, mute, flood, brief.
cd {top}
echo "$$ $(date +%s.%N)" >>calls
printf '%s\\n' "$@" >argv
for last; do :; done
case $(cat mode) in
refuse) echo "remote port forwarding failed" >&2; exit 255 ;;
mute) exec cat ;;
brief) echo up; exit 0 ;;
noise) exec cat /dev/zero ;;
esac
while [ $# -gt 1 ]; do
    [ "$1" != -R ] || {{ rm -f "${{2%%:*}}"; ln -s "${{2#*:}}" "${{2%%:*}}"; }} # sshd's listener
    shift
done
exec sh -c "exec $last"
"""


class World:
    """One guest socket, one host socket, and a Forward in an event loop of the test's. `states`: whether it is ready."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.guest = Home(top)
        self.host_socket = self.guest.socket
        self.guest_socket = self.host_socket.parent / "claude-hooks.sock"
        self.bin = top / "bin"
        self.bin.mkdir()
        (self.bin / "ssh").write_text(FAKE.format(top=top, host=self.host_socket))
        (self.bin / "ssh").chmod(0o755)
        self.mode("work")
        self.runs, self.lines, self.states = True, list[str](), list[bool]()
        self.ready = frozenset[str]()

    def mode(self, mode: str) -> None:
        (self.top / "mode.new").write_text(mode)
        (self.top / "mode.new").rename(self.top / "mode")

    def calls(self) -> list[int]:
        file = self.top / "calls"
        return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []

    def sockets(self, scripts: Sequence[str]) -> list[Socket]:
        """The first one is `hooks`, the next ones `s1`, `s2`."""
        return [
            Socket(f"s{n}" if n else "hooks", f"{self.guest_socket}{n or ''}", self.host_socket, script)
            for n, script in enumerate(scripts or [hooks_guest_setup.delivery()])
        ]

    def forward(self, *scripts: str) -> socket_forward.Forward:
        return socket_forward.Forward(
            ssh_config=self.top / "ssh.config", host="lima-app", sockets=self.sockets(scripts),
            usable=lambda: self.runs, log=self.lines.append, on_state=self.note,
        )  # fmt: skip

    def note(self, ready: frozenset[str]) -> None:
        self.ready = ready
        if not self.states or self.states[-1] != ("hooks" in ready):
            self.states.append("hooks" in ready)

    def play(self, scene: Callable[[], None], *scripts: str) -> None:
        """Run the forward while `scene` plays in a thread."""

        async def both() -> None:
            task = asyncio.create_task(self.forward(*scripts).run())
            try:
                await asyncio.to_thread(scene)
                assert not task.done()
            finally:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(both())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setenv("PATH", f"{world.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(world.guest.home))
    monkeypatch.setattr(socket_forward, "SHORTEST", 0.05)
    monkeypatch.setattr(socket_forward, "LOOK", 0.05)
    monkeypatch.setattr(socket_forward, "SETTLE", 0.05)
    yield world
    world.guest.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


READY = 'echo "ready $1"; cat >/dev/null'


def test_the_command_line(world: World) -> None:
    sockets = [
        Socket("hooks", "/run/user/1/s", Path("/h:x/in.sock"), "exec cat"),
        Socket("voice", "/run/user/1/v", Path("/h/v.sock"), "exec true"),
    ]
    made = socket_forward.command(Path("/l/ssh.config"), "lima-app", sockets)
    assert made.argv[:3] == ("ssh", "-F", "/l/ssh.config")
    assert "ControlPath=none" in made.argv and "ExitOnForwardFailure=yes" in made.argv
    *_, one, _, two, host, line = made.argv
    assert host == "lima-app"
    fresh, _, there = one.partition(":")
    assert fresh.startswith("/run/user/1/s.") and there == "/h\\:x/in.sock"
    other = two.partition(":")[0]
    assert line.endswith(f"sh hooks {fresh} /run/user/1/s 'exec cat' voice {other} /run/user/1/v 'exec true'")
    again = socket_forward.command(Path("/l/ssh.config"), "lima-app", sockets)
    assert again.argv[-5] != one


@pytest.mark.skipif(sys.platform != "linux", reason="hook.sh runs in Linux guests")
def test_events_arrive_and_again_after_whatever_ended_it(world: World) -> None:
    host = Host(world.host_socket)

    def scene() -> None:
        for n in range(4):
            wait_until(lambda: world.states and world.states[-1])
            world.guest.hook("Stop", payload("Stop", n=n))
            wait_until(lambda: len(host.events) == n + 1)  # noqa: B023
            os.kill(world.calls()[-1], signal.SIGKILL if n % 2 else signal.SIGTERM)
            wait_until(lambda: len(world.calls()) == n + 2)  # noqa: B023

    try:
        world.play(scene)
    finally:
        host.close()
    assert [event["payload"]["n"] for event in host.events] == [0, 1, 2, 3]
    assert world.states[:4] == [True, False, True, False] and world.states[-1] is False
    assert not any(alive(pid) for pid in world.calls())


def test_cancelled_it_leaves_no_process(world: World) -> None:
    world.play(lambda: wait_until(lambda: world.states), f"echo $$ >pid; {READY}")
    assert not alive(world.calls()[0])
    wait_until(lambda: not alive(int((world.top / "pid").read_text())))
    assert world.states == [True, False]


def test_the_script_ends_when_the_server_is_killed(world: World) -> None:
    """Our end of its stdin is closed by whatever ends us."""
    code = (
        "import asyncio, sys; from pathlib import Path; from _claude_sandbox.lima import socket_forward\n"
        f"socket = socket_forward.Socket('hooks', {str(world.guest_socket)!r}, Path({str(world.host_socket)!r}), {READY!r})\n"
        "asyncio.run(socket_forward.Forward(ssh_config=Path('/x'), host='h', sockets=[socket],"
        " usable=lambda: True, log=print, on_state=lambda ready: print(bool(ready), flush=True)).run())"
    )
    root = Path(__file__).resolve().parents[3]
    server = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"True\n"
    server.kill()
    server.wait()
    wait_until(lambda: not alive(world.calls()[0]), 10)


def test_a_vm_that_does_not_run_is_left_alone(world: World) -> None:
    world.runs = False

    def scene() -> None:
        time.sleep(0.3)
        assert world.calls() == []
        world.runs = True
        wait_until(lambda: world.states)

    world.play(scene, READY)


def test_tries_come_slower_and_the_reason_is_told_once(world: World) -> None:
    world.mode("refuse")

    def scene() -> None:
        wait_until(lambda: len(world.calls()) >= 5)
        times = [float(line.split()[1]) for line in (world.top / "calls").read_text().splitlines()]
        assert times[4] - times[3] > 0.4  # 0.05 s, doubled three times
        assert world.lines == ["the connection to the guest ended: remote port forwarding failed"]
        world.mode("work")
        wait_until(lambda: world.states)

    world.play(scene, READY)
    assert world.lines[1] == "connected to the guest again"


def test_a_guest_that_ends_each_connection_at_once_is_tried_slower_too(world: World) -> None:
    """It said that it is up; without a pause the host would log in twice a second, for ever."""
    world.mode("brief")

    def scene() -> None:
        wait_until(lambda: len(world.calls()) >= 5)
        times = [float(line.split()[1]) for line in (world.top / "calls").read_text().splitlines()]
        assert times[4] - times[3] > 0.4  # 0.05 s, doubled three times

    world.play(scene)


def test_one_that_never_gets_ready_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_forward, "READY_WITHIN", 0.3)
    world.mode("mute")
    world.play(lambda: wait_until(lambda: len(world.calls()) >= 2))
    assert world.states == [] and "did not get ready" in world.lines[0]


def test_a_guest_without_perl(world: World) -> None:
    world.play(lambda: wait_until(lambda: world.lines), "exec /nonexistent/perl")
    assert "nonexistent/perl" in world.lines[0]


def test_a_script_that_prints_without_end_is_read_to_a_limit(world: World) -> None:
    def scene() -> None:
        wait_until(lambda: world.states)
        time.sleep(0.5)
        pid = world.calls()[0]
        read = int(Path("/proc/self/io").read_text().split()[1])
        time.sleep(0.3)
        assert int(Path("/proc/self/io").read_text().split()[1]) - read < 1 << 20
        assert alive(pid)

    world.play(scene, 'echo "ready $1"; cat /dev/zero')
    assert world.states == [True, False]


def test_garbage_before_it_is_ready(world: World) -> None:
    world.mode("noise")
    world.play(lambda: wait_until(lambda: len(world.calls()) >= 2))
    assert world.states == []


def test_a_script_that_ends_runs_again_and_the_others_go_on(world: World) -> None:
    def scene() -> None:
        wait_until(lambda: (world.top / "tries").exists() and len((world.top / "tries").read_text()) >= 4)
        assert world.ready == {"hooks", "s2"} and len(world.calls()) == 1
        assert [line for line in world.lines if "s1" in line] == ["s1 ended in the guest (3): oh"]

    world.play(scene, READY, "echo >>tries; echo oh >&2; exit 3", READY)


def test_what_a_newer_connection_has_taken_is_not_run_again_by_the_older_one(world: World) -> None:
    """A connection that died without its knowing: both would take each other's turn."""

    def scene() -> None:
        wait_until(lambda: world.ready)
        Path(f"{world.guest_socket}.by").write_text("another\n")
        (world.top / "go").touch()
        time.sleep(1.5)
        assert (world.top / "tries").read_text() == "\n"

    world.play(scene, 'echo >>tries; echo "ready $1"; while [ ! -e go ]; do sleep 0.05; done')


def test_ssh_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    world.play(lambda: wait_until(lambda: world.lines))
    assert "ssh was not found on PATH" in world.lines[0]
