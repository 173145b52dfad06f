"""The microphone as a service: grants of living sessions, the indicator; and a launch that gives a grant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.lima import limactl
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.notify.channels import Actions, Failed
from _claude_sandbox.notify.policy import Alert
from _claude_sandbox.system import daemon, processes, program
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import LocalRunner
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.voice import grants as voice_grants
from _claude_sandbox.voice import guest_setup as voice_guest_setup
from _claude_sandbox.voice import indicator as voice_indicator
from _claude_sandbox.voice.grants import Grant
from _claude_sandbox.voice.recorder import CaptureCommand
from _claude_sandbox.voice.server import VoiceServer
from _claude_sandbox.voice.stream import RecordingLimits
from tests.support.box import short_directory
from tests.support.tmux_server import Server as TmuxServer

APP = "claude-sandbox-app"
SOUND = ("sh", "-c", "while :; do printf 'sound.......'; sleep 0.02; done")


@pytest.fixture(autouse=True)
def place(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        "_claude_sandbox.voice.recorder.find_command",
        lambda command=(): CaptureCommand(tuple(command) or SOUND),
    )
    return home


@pytest.fixture
def session() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a Claude session."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def grant(home: Path, pid: int, *, name: str = "claude-sandbox-app", command: tuple[str, ...] = ()) -> Grant:
    where = home / ".lima" / name
    where.mkdir(parents=True, exist_ok=True)
    process = processes.identity(pid)
    assert process is not None
    made = Grant(
        limactl.tag(where),
        name,
        where,
        f"lima-{name}",
        where / "ssh.config",
        501,
        process,
        time.time_ns(),
        command,
    )
    made.write()
    return made


class Service:
    """The voice server in this process."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bool]] = []
        self.log: list[str] = []

    def run(self, test: Callable[[], Awaitable[None]], idle: float = 60) -> None:
        async def whole() -> None:
            server = VoiceServer(
                indicate=lambda name, on: self.shown.append((name, on)), log=self.log.append,
                limits=RecordingLimits(term=0.3), idle=idle,
            )  # fmt: skip
            async with asyncio.timeout(40):
                running = asyncio.create_task(server.run())
                try:
                    await test()
                finally:
                    running.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await running

        asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)


async def record(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"GET /v1/record HTTP/1.0\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.spec("1.6")
def test_a_sandbox_can_record_only_while_its_session_lives(
    home: Path, session: subprocess.Popen[bytes]
) -> None:
    service = Service()

    async def test() -> None:
        given = grant(home, session.pid)
        socket = voice_grants.socket_of(given.tag)
        await until(socket.exists)
        assert socket.stat().st_mode & 0o777 == 0o600
        reader, _writer = await record(socket)
        assert (await reader.readexactly(12)) == b"sound......."
        assert voice_grants.recording() == [given.name]
        assert service.shown == [(given.name, True)]
        pid = (read_object(voice_grants.state_file()) or {})["recording"][given.name]["pid"]
        session.kill()  # as by kill -9: nothing takes the grant back
        session.wait()
        await until(lambda: not socket.exists())
        await reader.read()
        assert service.shown == [(given.name, True), (given.name, False)]
        assert voice_grants.recording() == []
        assert not given.file().exists()
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)

    service.run(test)


def test_two_sessions_of_one_sandbox_share_the_socket(home: Path, session: subprocess.Popen[bytes]) -> None:
    service = Service()

    async def test() -> None:
        own = grant(home, os.getpid())
        grant(home, session.pid)
        socket = voice_grants.socket_of(own.tag)
        await until(socket.exists)
        own.file().unlink()
        await asyncio.sleep(2.2)
        assert socket.exists()

    service.run(test)


def test_the_user_s_own_program_records(home: Path) -> None:
    service = Service()

    async def test() -> None:
        given = grant(home, os.getpid(), command=("sh", "-c", "echo mine"))
        await until(voice_grants.socket_of(given.tag).exists)
        reader, _ = await record(voice_grants.socket_of(given.tag))
        assert await reader.read() == b"mine\n"

    service.run(test)


def test_without_grants_it_counts_as_not_running_after_a_while(
    home: Path, session: subprocess.Popen[bytes]
) -> None:
    service = Service()

    def active() -> bool:
        return (read_object(voice_grants.state_file()) or {}).get("active") is True

    async def test() -> None:
        given = grant(home, session.pid)
        await until(active)
        given.file().unlink()
        await until(lambda: not active())

    service.run(test, idle=0.1)


def test_the_script_for_the_guest_brings_the_wrappers(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", voice_guest_setup.script(), "sh", "voice", "/socket"],
        input=b"", capture_output=True, timeout=20, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"ready voice\n", b"")
    for name in ("rec", "arecord"):
        file = tmp_path / ".claude-sandbox/voice" / name
        assert file.read_text().rstrip("\n") == voice_script()
        assert os.access(file, os.X_OK)


def voice_script() -> str:
    return program.package_file("guest", "voice.sh").read_text().rstrip("\n")


def test_what_a_killed_server_left_is_ended(home: Path) -> None:
    service = Service()
    with (
        subprocess.Popen(["sleep", "600"], process_group=0) as left,
        subprocess.Popen(["sleep", "600"], process_group=0) as old,
        subprocess.Popen(["sleep", "600"], process_group=0) as other,
    ):
        known = processes.identity(left.pid)
        assert known is not None
        recording = {
            "claude-sandbox-app": known.to_json(),
            "claude-sandbox-old": {"pid": old.pid, "started": time.time()},  # by an older version
            # the process id belongs to another by now
            "claude-sandbox-b": {"pid": other.pid, "started": 1.0},
            "claude-sandbox-d": {**known.to_json(), "pid": other.pid, "start": known.start - 1},
            "claude-sandbox-c": {"pid": "x"},
        }
        write_json(voice_grants.state_file(), {"schema": 1, "recording": recording})

        async def test() -> None:
            await until(lambda: left.poll() is not None and old.poll() is not None)
            assert other.poll() is None
            assert ("claude-sandbox-app", False) in service.shown
            assert voice_grants.recording() == []

        service.run(test)
        other.kill()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "name": 5}', '{"schema": 2}'])
def test_a_grant_that_makes_no_sense_is_none(home: Path, text: str) -> None:
    (voice_grants.grants() / "aaaa.1.json").write_text(text)
    assert voice_grants.all_held() == []
    assert not list(voice_grants.grants().iterdir())


def test_a_grant_of_another_process_with_that_id_is_none(
    home: Path, session: subprocess.Popen[bytes]
) -> None:
    given = grant(home, session.pid)
    value = json.loads(given.file().read_text())
    process = value["process"]
    given.file().write_text(json.dumps({**value, "process": {**process, "start": process["start"] - 100}}))
    assert voice_grants.all_held() == []


def test_a_grant_outlives_a_step_of_the_clock_and_an_update(
    home: Path, session: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = grant(home, session.pid)
    value = json.loads(given.file().read_text())
    del value["process"]
    older = {**value, "pid": session.pid, "started": psutil.Process(session.pid).create_time()}
    given.file().write_text(json.dumps(older))  # as the version before this one wrote it
    assert [each.process for each in voice_grants.all_held()] == [given.process]
    given.write()
    true = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: true(self) + 120)
    assert given.held() and voice_grants.all_held() == [given]


# -- the real process ----------------------------------------------------------------------------


def test_a_session_starts_the_daemon_and_takes_its_grant_back(home: Path) -> None:
    where = home / ".lima" / "claude-sandbox-app"
    where.mkdir(parents=True)
    warnings: list[str] = []
    try:
        assert voice_grants.status() == "Not running"
        instance = Instance("claude-sandbox-app", limactl.RUNNING, where)
        with voice_grants.granted(instance, uid=501, command=("true",), warn=warnings.append):
            assert not warnings
            assert voice_grants.status() == "Running"
            assert [each.name for each in voice_grants.all_held()] == [instance.name]
            socket = voice_grants.socket_of(instance.tag)
            _wait(socket.exists)
            pid = daemon.read_pid_file(daemon_client.daemon())["pid"]
            os.kill(int(pid), signal.SIGTERM)  # as a restart of the computer would
            _wait(lambda: voice_grants.status() == "Not running")
            assert not socket.exists()
            daemon_client.ensure()
            _wait(socket.exists)
        assert voice_grants.all_held() == []
        _wait(lambda: not socket.exists())
        assert voice_grants.status() == "Running", "for a while"
        assert daemon_client.stop()
        assert voice_grants.status() == "Not running"
        assert not daemon_client.stop()
    finally:
        daemon_client.stop()


def _wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_does_not_start_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    where = home / ".lima" / "claude-sandbox-app"
    where.mkdir(parents=True)
    warnings: list[str] = []
    instance = Instance("claude-sandbox-app", limactl.RUNNING, where)
    with voice_grants.granted(instance, uid=501, command=(), warn=warnings.append):
        ran = True
    assert ran
    assert [text for text in warnings if text.startswith("Voice is off in this session")]


# -- the sign ------------------------------------------------------------------------------------


class Seen:
    """A channel that notes what it is given."""

    name = "seen"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.shown: dict[tuple[str, str], Alert] = {}

    async def show(self, alert: Alert, *, sound: bool, actions: Actions) -> None:
        if self.fails:
            raise Failed("no bus")
        self.shown[alert.key] = alert

    async def withdraw(self, key: tuple[str, str]) -> None:
        self.shown.pop(key, None)

    async def close(self) -> None:
        return


def test_the_status_line_of_our_own_tmux_sessions_says_it(home: Path) -> None:
    """By the records of its launches: another sandbox's session has a name of the same form."""
    server = TmuxServer(short_directory())
    try:
        for name, sandbox, made in (
            ("claude-sandbox-app-17", APP, True), ("any-name", APP, True), ("claude-sandbox-app-9", APP, False),
            ("claude-sandbox-app-2", f"{APP}-2", True), ("mine", APP, False),
        ):  # fmt: skip
            server.tmux("new-session", "-d", "-s", name, "cat")
            pane = server.tmux("display-message", "-p", "-t", f"={name}:", "#{pane_id}")
            record = server.record(pane, sandbox=sandbox)
            assert record.tmux is not None
            terminals_records.write(replace(record, tmux=replace(record.tmux, ours=made)))

        def shown() -> set[str]:
            names = server.tmux("list-sessions", "-F", "#{session_name}").split()
            return {
                n
                for n in names
                if voice_indicator.MARK in server.tmux("show", "-qv", "-t", f"={n}:", "status-left")
            }

        async def test() -> None:
            indicator = voice_indicator.RecordingIndicator(LocalRunner(), lambda text: None, (Seen(),))
            indicator(APP, True)
            await until(lambda: shown() == {"claude-sandbox-app-17", "any-name"})
            await indicator.close()
            assert shown() == set()

        asyncio.run(test())
    finally:
        server.close()


def test_the_notification_comes_and_goes(home: Path) -> None:
    from tests.support.recording import Recorder

    async def test() -> None:
        log: list[str] = []
        runner, broken, good = Recorder(), Seen(fails=True), Seen()
        indicator = voice_indicator.RecordingIndicator(runner, log.append, (broken, good))
        indicator("claude-sandbox-app", True)
        await until(lambda: bool(good.shown))
        (shown,) = good.shown.values()
        assert (shown.title, shown.body) == ("Microphone open", "claude-sandbox-app is recording")
        assert [line for line in log if "no bus" in line]
        await indicator.close()
        assert not good.shown

    asyncio.run(test())
