"""The daemon's processes: whichever is killed, no event is lost and no other service ends; what it replaces."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator

import psutil
import pytest

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.lima import readiness
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system import daemon, processes
from _claude_sandbox.voice import grants as voice_grants
from _claude_sandbox.voice.grants import Grant
from tests.support.box import short_directory
from tests.support.hookplay import PATIENCE, Guest, Play, connect, old_server, wait_for

# A connection on which both services are ready at once (tests/unit/lima/test_socket_forward.py runs the scripts).
SSH = "#!/bin/sh\necho up; echo ready hooks; echo ready voice; cat >/dev/null\n"
RECORDER = "#!/bin/sh\nexec cat /dev/zero\n"


class World(Play):
    """A daemon with a fake ssh: guests are directories of this host, with their homes."""

    def ssh(self) -> list[psutil.Process]:
        """The connections that live."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words, env = process.info["cmdline"] or [], process.info["environ"] or {}
            if "ExitOnForwardFailure=yes" in words and env.get("HOME") == os.environ["HOME"]:
                found.append(process)
        return found

    def one_ssh(self) -> int:
        """The process id, when there is one and both services are ready."""
        found = self.ssh()
        return found[0].pid if len(found) == 1 and self.ready(self.guests[0]) == ["hooks", "voice"] else 0

    def workers(self) -> dict[str, int]:
        """Process ids by name; the supervisor too."""
        found: dict[str, int] = {}
        with contextlib.suppress(KeyError, psutil.Error):  # one that is just ending
            found["supervisor"] = int(daemon.read_pid_file(daemon_client.daemon())["pid"])
            for child in psutil.Process(found["supervisor"]).children():
                words = child.cmdline()
                if "--worker" in words:
                    found[words[words.index("--worker") + 1]] = child.pid
        return found

    def all_up(self) -> dict[str, int]:
        return wait_for(lambda: found if len(found := self.workers()) == 3 and self.listening() else None)  # type: ignore[no-any-return]

    def listening(self) -> bool:
        return daemon.running(daemon_client.daemon())

    def ready(self, guest: Guest) -> list[str]:
        from _claude_sandbox.daemon import links

        return links.ready(daemon_client.directory()).get(guest.registration.tag, [])

    def grant(self, guest: Guest) -> None:
        """A session with --voice, held by this process."""
        me, each = processes.identity(os.getpid()), guest.registration
        assert me is not None
        command = (str(self.root / "recorder"),)
        Grant(each.tag, each.name, each.dir, each.host, each.ssh_config, each.uid, me, 1, command).write()
        daemon_client.refresh()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    root = short_directory()
    for name, where in (("HOME", "h"), ("XDG_RUNTIME_DIR", "r"), ("LIMA_HOME", "l")):
        (root / where).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(root / where))
    for name in ("STATE_HOME", "CONFIG_HOME", "CACHE_HOME"):
        monkeypatch.delenv(f"XDG_{name}", raising=False)
    for name in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (root / "bin").mkdir()
    for file, text in (("bin/ssh", SSH), ("recorder", RECORDER)):
        (root / file).write_text(text)
        (root / file).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    try:
        yield World(root)
    finally:
        daemon_client.stop()
        shutil.rmtree(root)


def test_a_restart_right_after_a_kill_waits_for_what_is_left(world: World) -> None:
    daemon_client.ensure()
    before = world.all_up()
    for name in ("supervisor", "attention"):
        os.kill(before[name], signal.SIGKILL)
    daemon_client.restart()
    assert not {*before.values()} & {*world.all_up().values()}


def connected(guest: Guest) -> None:
    """Its VM was seen to be ready."""
    readiness.record(Instance(guest.name, "", guest.registration.dir), "/p", 1000)


class Recording:
    """A program in a guest that records, through the socket on the host."""

    def __init__(self, guest: Guest) -> None:
        path = voice_grants.socket_of(guest.registration.tag)
        wait_for(path.exists)
        self.client = connect(path)
        self.client.sendall(b"GET /v1/record HTTP/1.0\r\n\r\n")
        self.bytes = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 16):
                self.bytes += len(data)

    def goes_on(self) -> bool:
        before = self.bytes
        return bool(wait_for(lambda: self.bytes > before + (1 << 20), 20))


def deliver(guest: Guest, number: int) -> None:
    """As hooks-deliver.pl does it: what was not acknowledged is sent again."""
    lines = [guest.line("Stop" if n % 2 else "UserPromptSubmit") for n in range(number)]
    for start in range(0, number, 10):
        guest.deliver(*lines[start : start + 10])


@pytest.mark.spec("1.5", "1.6")
@pytest.mark.parametrize("victim", ["attention", "links", "supervisor"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whichever_is_killed_no_event_is_lost_and_no_other_service_ends(
    world: World, victim: str, number: int
) -> None:
    if (victim, number) == ("supervisor", signal.SIGTERM):
        pytest.skip("that is how the daemon is stopped")
    daemon_client.ensure()
    app = world.sandbox()
    connected(app)
    world.grant(app)
    before, ssh = world.all_up(), wait_for(world.one_ssh)
    recording = Recording(app)
    assert recording.goes_on()
    guest = threading.Thread(target=deliver, args=(app, 300))
    guest.start()
    os.kill(before[victim], number)
    wait_for(lambda: world.workers().get(victim, before[victim]) != before[victim])
    after = world.all_up()
    guest.join(PATIENCE)
    assert world.events() == [(app.name, f"00ff00ff:{n}") for n in range(1, 301)]
    assert world.session(app)["state"] == "done"
    if victim == "links":
        assert after["attention"] == before["attention"] and recording.goes_on()
        assert wait_for(world.one_ssh) != ssh
    elif victim == "attention":
        assert after["links"] == before["links"] and world.one_ssh() == ssh
    recording.client.close()
    if victim != "links":
        assert Recording(app).goes_on(), "the microphone is back"


@pytest.fixture
def guests(world: World) -> list[Guest]:
    """Five sandboxes whose VM is ready."""
    made = [world.sandbox(f"claude-sandbox-{n}") for n in range(5)]
    for guest in made:
        connected(guest)
    return made


def test_five_sandboxes_with_voice_and_hooks_are_five_connections(world: World, guests: list[Guest]) -> None:
    daemon_client.ensure()
    for guest in guests:
        world.grant(guest)
    wait_for(lambda: all(world.ready(guest) == ["hooks", "voice"] for guest in guests))
    assert len(world.ssh()) == 5
    (words,) = [p.cmdline() for p in world.ssh() if f"lima-{guests[0].name}" in p.cmdline()]
    tag = guests[0].registration.tag
    there = [words[n + 1].partition(":")[2] for n, word in enumerate(words) if word == "-R"]
    assert there == [str(hooks_client.intake_socket(tag)), str(voice_grants.socket_of(tag))]
    wait_for(lambda: [s["connected"] for s in world.state()["sandboxes"]] == [True] * 5)
    for file in voice_grants.grants().iterdir():
        file.unlink()
    wait_for(lambda: [world.ready(guest) for guest in guests] == [["hooks"]] * 5 or None)


def test_the_servers_of_the_last_release_are_replaced(world: World) -> None:
    """A pair in our own directories: the same lock, pid file and sockets; registrations, grants and log go on."""
    place = hooks_client.registrations().parent
    hooks = old_server(place, daemon_client.VERB, os.environ)
    audio = old_server(voice_grants.directory(), daemon_client.AUDIO_VERB, os.environ)
    app = world.sandbox(refresh=False)
    log = hooks_client.state_directory() / "events.jsonl"
    log.write_bytes(old_log(app))
    assert daemon_client.running() and daemon_client.ensure()
    assert ended(hooks) and wait_for(lambda: ended(audio))
    assert world.session(app, "s0")["state"] == "needs_input"
    app.deliver(app.line("UserPromptSubmit", number=8))
    assert world.state()["seq"] == 8
    assert app.deliver(app.line("Stop", number=7))["last"] == "00ff00ff:8", "known from the old log"


def old_log(guest: Guest) -> bytes:
    """What the last release wrote: a snapshot."""
    session = {
        "session_id": "s0", "sandbox": guest.name, "project": "/p", "uuid": "", "state": "needs_input",
        "since_ns": 5, "message": "m", "tool": "Bash", "wants": "permission", "choices": [], "background": 0,
        "cwd": "/", "started_ns": 1, "seq": 7, "agent": "", "several": False,
    }  # fmt: skip
    snapshot = {"type": "snapshot", "schema": 1, "seq": 7, "spools": {guest.name: {"00ff00ff": 7}}}
    return json.dumps({**snapshot, "sessions": [session]}).encode() + b"\n"


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_supervisor_of_the_last_release_whose_worker_died_gives_way(world: World) -> None:
    """The program was updated under it: it starts its worker as that release did it."""
    from _claude_sandbox.system.run import LocalRunner

    fd = daemon.take_lock(daemon_client.daemon())
    assert fd is not None
    command = daemon.own_command(daemon_client.VERB, "--worker", str(fd))
    child = LocalRunner().spawn(command, keep=[fd])
    assert child.wait(PATIENCE) == 0
    os.close(fd)
    wait_for(world.listening)
