"""The microphone's way into a sandbox: a fake capture program on this host, our server, the guest's wrappers."""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from _claude_sandbox.system import program
from _claude_sandbox.system.run import Command, LocalRunner
from _claude_sandbox.voice import recorder as voice_recorder
from _claude_sandbox.voice.recorder import BYTES_PER_SECOND, CaptureCommand, Silence
from _claude_sandbox.voice.stream import MicrophoneSocket, RecordingLimits, RecordingRegistry

WRAPPER = program.package_file("guest", "voice.sh")
ARECORD = ("-f", "S16_LE", "-r", "16000", "-c", "1", "-t", "raw", "-q", "-")
PROBE = ("-f", "S16_LE", "-r", "16000", "-c", "1", "-t", "raw", "/dev/null")
REC = ("-q", "--buffer", "1024", "-t", "raw", "-r", "16000", "-e", "signed", "-b", "16", "-c", "1", "-")
UNTIL_SILENCE = (*REC, *["silence", "1", "0.1", "3%", "1", "2.0", "3%"])
QUICK = RecordingLimits(recording=30, first_sound=5, next_sound=5, reader=0.5, turn=0.3, header=0.5, term=0.3)


def tone(seconds: float, amplitude: float = 0.5) -> bytes:
    samples = (int(32767 * amplitude * math.sin(i * 0.1728)) for i in range(int(16000 * seconds)))
    return array.array("h", samples).tobytes()


# What the fake programs do: write a file at once and end; or write for ever; or hold out against SIGTERM
# with a child that does so too; or never say a thing; or fail.
PLAYS = 'cat "$1"'
FOR_EVER = 'while :; do cat "$1"; done'
PACED = 'while :; do head -c 3200 "$1"; sleep 0.1; done'
STUBBORN = 'trap "" TERM; (trap "" TERM; while :; do sleep 1; done) & while :; do cat "$1"; sleep 0.05; done'
MUTE = "exec sleep 600"
FAILS = "echo no device >&2; exit 1"


class Bench:
    """A server in this process, with what it told."""

    def __init__(self, directory: Path, limits: RecordingLimits = QUICK) -> None:
        self.directory, self.limits = directory, limits
        self.sound = directory / "tone.raw"
        self.sound.write_bytes(tone(3))
        self.socket = directory / "a.sock"
        self.told: list[tuple[str, bool]] = []
        self.pids: list[int] = []
        self.log: list[str] = []
        self.registry = RecordingRegistry(self._spawn, self._changed, self.log.append, limits)
        self.lines: list[MicrophoneSocket] = []

    async def _spawn(self, argv: Sequence[str]) -> asyncio.subprocess.Process:
        return await LocalRunner().spawn_reader(Command(tuple(argv)))

    def _changed(self, name: str, pid: int | None) -> None:
        self.told.append((name, pid is not None))
        self.pids += [pid] if pid is not None else []

    async def open(self, script: str, name: str = "box", command: CaptureCommand | None = None) -> Path:
        argv = ("sh", "-c", script, "sh", str(self.sound))
        line = MicrophoneSocket(name, self.registry, lambda: command or CaptureCommand(argv))
        self.lines.append(line)
        path = self.directory / f"{name}.sock"
        await line.open(path)
        return path

    async def close(self) -> None:
        for line in self.lines:
            await line.close()

    def all_gone(self) -> bool:
        return not self.registry.recording and not any(alive(pid) for pid in self.pids)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for pid in made.pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def play(bench: Bench, test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            async with asyncio.timeout(60):
                await test()
        finally:
            await bench.close()

    asyncio.run(whole())


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


async def client(
    directory: Path, name: str, *arguments: str, socket: Path, path: str | None = None
) -> asyncio.subprocess.Process:
    """`rec` or `arecord` as a guest would start it, the wrapper being first on PATH."""
    voice = directory / "voice"
    voice.mkdir(exist_ok=True)
    shutil.copy(WRAPPER, voice / name)
    (voice / name).chmod(0o755)
    return await asyncio.create_subprocess_exec(
        str(voice / name), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=1 << 16,
        env={"PATH": f"{voice}:{path or os.environ['PATH']}", "CLAUDE_AUDIO_SOCKET": str(socket)},
    )  # fmt: skip


async def ask(path: Path, text: bytes) -> bytes:
    """All of the answer to bytes on the socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(text)
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await reader.read()
    writer.close()
    return answer


def only(tmp_path: Path, *programs: str) -> str:
    """A PATH with these programs and no others."""
    place = tmp_path / "only"
    place.mkdir(exist_ok=True)
    for name in programs:
        target = shutil.which(name)
        assert target
        (place / name).symlink_to(target)
    return str(place)


# -- sound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, arguments", [("arecord", ARECORD), ("rec", REC)])
@pytest.mark.parametrize("with_curl", [True, False])
def test_the_bytes_arrive_unchanged(
    bench: Bench, name: str, arguments: tuple[str, ...], with_curl: bool
) -> None:
    async def test() -> None:
        path = None if with_curl else only(bench.directory, "sh", "perl")
        socket = await bench.open(PLAYS)
        recorder = await client(bench.directory, name, *arguments, socket=socket, path=path)
        out, err = await recorder.communicate()
        assert (recorder.returncode, err) == (0, b"")
        assert hashlib.sha256(out).digest() == hashlib.sha256(bench.sound.read_bytes()).digest()
        await until(bench.all_gone)
        assert bench.told == [("box", True), ("box", False)]

    play(bench, test)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("script", [FOR_EVER, STUBBORN, MUTE])
@pytest.mark.parametrize("with_curl", [True, False])
def test_the_capture_program_is_gone_after_its_client(
    bench: Bench, number: signal.Signals, script: str, with_curl: bool
) -> None:
    async def test() -> None:
        path = None if with_curl else only(bench.directory, "sh", "perl")
        recorder = await client(
            bench.directory, "arecord", *ARECORD, socket=await bench.open(script), path=path
        )
        assert recorder.stdout is not None
        if script != MUTE:
            assert len(await recorder.stdout.readexactly(BYTES_PER_SECOND)) == BYTES_PER_SECOND
        await until(lambda: len(bench.pids) == 1)
        assert alive(bench.pids[0])
        recorder.send_signal(number)
        began = time.monotonic()
        assert await recorder.wait() == -number
        await until(bench.all_gone)
        assert time.monotonic() - began < 5
        assert bench.told == [("box", True), ("box", False)]

    play(bench, test)


def test_a_client_that_stops_reading_is_dropped_and_the_microphone_closed(bench: Bench) -> None:
    async def test() -> None:
        _reader, writer = await asyncio.open_unix_connection(await bench.open(FOR_EVER), limit=1024)
        writer.write(b"GET /v1/record HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(bench.told) == 2)
        await until(bench.all_gone)
        assert any("did not read" in line for line in bench.log)
        writer.close()

    play(bench, test)


def test_two_clients_of_one_sandbox_and_the_next_one_after(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RecordingLimits(turn=2, term=0.3))

    async def test() -> None:
        socket = await bench.open(PACED)
        first = await client(bench.directory, "arecord", *ARECORD, socket=socket)
        assert first.stdout is not None
        await first.stdout.readexactly(1000)
        second = await client(bench.directory, "rec", *REC, socket=socket)
        out, err = await second.communicate()
        assert (out, second.returncode != 0) == (b"", True)
        assert b"409" in err
        assert len(bench.pids) == 1
        assert await first.stdout.readexactly(1000)  # undisturbed
        first.terminate()
        third = await client(bench.directory, "arecord", *ARECORD, socket=socket)  # at once, as a person does
        assert third.stdout is not None
        assert await third.stdout.readexactly(1000)
        third.terminate()
        await until(bench.all_gone)

    play(bench, test)


def test_two_sandboxes_record_side_by_side_up_to_a_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RecordingLimits(turn=0.3, term=0.3, recordings=2))

    async def test() -> None:
        sockets = [await bench.open(PACED, name) for name in ("one", "two", "three")]
        running = [await client(tmp_path, "arecord", *ARECORD, socket=socket) for socket in sockets[:2]]
        for each in running:
            assert each.stdout is not None
            await each.stdout.readexactly(1000)
        assert set(bench.registry.recording) == {"one", "two"}
        refused = await client(tmp_path, "arecord", *ARECORD, socket=sockets[2])
        _, err = await refused.communicate()
        assert b"503" in err
        for each in running:
            each.kill()
        await until(bench.all_gone)

    play(bench, test)


def test_a_recording_has_a_longest_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RecordingLimits(recording=0.3, term=0.3))

    async def test() -> None:
        recorder = await client(tmp_path, "arecord", *ARECORD, socket=await bench.open(FOR_EVER))
        out, _ = await recorder.communicate()
        assert recorder.returncode == 0
        assert out.startswith(bench.sound.read_bytes()[:1000])
        await until(bench.all_gone)

    play(bench, test)


def test_closing_the_socket_ends_a_recording(bench: Bench) -> None:
    async def test() -> None:
        recorder = await client(bench.directory, "arecord", *ARECORD, socket=await bench.open(STUBBORN))
        assert recorder.stdout is not None
        await recorder.stdout.readexactly(1000)
        await bench.lines[0].close()
        assert bench.all_gone()
        await recorder.communicate()

    play(bench, test)


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_program_that_gives_no_sound_is_an_error_for_the_client(bench: Bench) -> None:
    async def test() -> None:
        recorder = await client(bench.directory, "arecord", *ARECORD, socket=await bench.open(FAILS))
        out, err = await recorder.communicate()
        assert (out, recorder.returncode != 0) == (b"", True)
        assert b"503" in err
        await until(bench.all_gone)

    play(bench, test)


def test_no_program_that_could_record(bench: Bench) -> None:
    async def test() -> None:
        socket = await bench.open(
            "", command=CaptureCommand(reason="arecord and rec are missing", remedy="…")
        )
        missing = await bench.open("", "gone", command=CaptureCommand(("/nonexistent/recorder",)))
        for arguments in (PROBE, ARECORD):
            recorder = await client(bench.directory, "arecord", *arguments, socket=socket)
            _, err = await recorder.communicate()
            assert recorder.returncode not in (0, None)
            assert b"503" in err
        assert b" 503 " in await ask(missing, b"GET /v1/record HTTP/1.0\r\n\r\n")
        assert not bench.pids

    play(bench, test)


def test_the_probe_opens_no_microphone_and_lives_until_it_is_stopped(bench: Bench) -> None:
    async def test() -> None:
        socket = await bench.open(FOR_EVER)
        probe = await client(bench.directory, "arecord", *PROBE, socket=socket)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(probe.wait(), 1)
        probe.terminate()
        assert await probe.wait() == -signal.SIGTERM
        assert not bench.told

    play(bench, test)


GARBAGE = (
    b"POST /v1/record HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /v1/other HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/record/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x00\xff\xfe garbage\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v1/record HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /v1/record HTTP/1.1\r\nHost",  # never complete
    b"",
)


def test_garbage_harms_nobody_and_opens_no_microphone(bench: Bench) -> None:
    async def test() -> None:
        socket = await bench.open(PLAYS)
        for answer in await asyncio.gather(*(ask(socket, text) for text in GARBAGE)):
            assert b" 200 " not in answer[:20]
        assert not bench.told
        recorder = await client(bench.directory, "arecord", *ARECORD, socket=socket)
        out, _ = await recorder.communicate()
        assert out == bench.sound.read_bytes()

    play(bench, test)


def test_too_many_connections_are_closed_at_once(bench: Bench) -> None:
    async def test() -> None:
        socket = await bench.open(PLAYS)
        held = [await asyncio.open_unix_connection(socket) for _ in range(bench.limits.connections)]
        assert await ask(socket, b"GET /v1/probe HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for reader, writer in held:  # each is closed after the time for a request
            assert await reader.read() == b""
            writer.close()
        await until(lambda: True)
        assert b" 200 " in await ask(socket, b"GET /v1/probe HTTP/1.1\r\nHost: x\r\n\r\n")

    play(bench, test)


# -- the wrappers without us ---------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> str:
    """A PATH with a `rec` and an `arecord` that say what they were called with."""
    place = tmp_path / "real"
    place.mkdir()
    for name in ("rec", "arecord"):
        (place / name).write_text(f'#!/bin/sh\necho "real {name}" "$@"\nexit 3\n')
        (place / name).chmod(0o755)
    return f"{tmp_path}/nothing-here:{place}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    "name, arguments, there",
    [
        ("rec", REC, False),
        ("arecord", ARECORD, False),
        ("arecord", PROBE, False),
        ("arecord", ("--version",), False),
        ("rec", ("song.wav",), True),
        ("arecord", ("-l",), True),
        ("arecord", (*ARECORD[:-1], "my file; rm -rf *"), True),
        ("rec", ARECORD, True),
        ("rec", (), True),
    ],
)
def test_the_real_program_does_what_is_not_ours(
    bench: Bench, real: str, name: str, arguments: tuple[str, ...], there: bool
) -> None:
    async def test() -> None:
        socket = await bench.open(PLAYS) if there else bench.directory / "none.sock"
        recorder = await client(bench.directory, name, *arguments, socket=socket, path=real)
        out, err = await recorder.communicate()
        assert (recorder.returncode, err) == (3, b"")
        assert out.decode().split() == ["real", name, *" ".join(arguments).split()]
        assert not bench.told

    play(bench, test)


def test_no_socket_and_no_real_program(bench: Bench) -> None:
    async def test() -> None:
        path = only(bench.directory, "sh", "id")
        recorder = await client(bench.directory, "rec", *REC, socket=bench.directory / "none", path=path)
        _, err = await recorder.communicate()
        assert recorder.returncode == 127
        assert b"--voice" in err

    play(bench, test)


@pytest.mark.parametrize("name", ["rec", "arecord"])
def test_claude_finds_the_programs_by_asking_for_their_version(bench: Bench, name: str) -> None:
    async def test() -> None:
        asked = await client(bench.directory, name, "--version", socket=await bench.open(PLAYS))
        out, _ = await asked.communicate()
        assert asked.returncode == 0
        assert name.encode() in out

    play(bench, test)


# -- ending on silence ---------------------------------------------------------------------------


def test_rec_with_silence_ends_by_itself(bench: Bench) -> None:
    async def test() -> None:
        speech = tone(1.5)
        bench.sound.write_bytes(bytes(BYTES_PER_SECOND) + speech + bytes(BYTES_PER_SECOND * 3))
        socket = await bench.open(FOR_EVER)
        recorder = await client(bench.directory, "rec", *UNTIL_SILENCE, socket=socket)
        out, err = await recorder.communicate()
        assert (recorder.returncode, err) == (0, b"")
        assert out == speech
        await until(bench.all_gone)

    play(bench, test)


@pytest.mark.parametrize("size", [1, 2, 639, 640, 641, 3200, 100_000])
def test_silence_does_not_depend_on_how_the_bytes_come(size: int) -> None:
    pause = bytes(BYTES_PER_SECOND)
    loud = tone(0.4)
    whole = pause + loud + pause + loud + pause * 3 + loud
    ending = Silence()
    kept = b""
    for at in range(0, len(whole), size):
        kept += ending.feed(whole[at : at + size])
        if ending.ended:
            break
    assert ending.ended
    assert kept == loud + pause + loud


def test_a_click_is_not_the_beginning() -> None:
    ending = Silence()
    assert ending.feed(tone(0.04) + bytes(BYTES_PER_SECOND)) == b""


# -- what captures -------------------------------------------------------------------------------


def host(tmp_path: Path, *programs: str, pcm: str = "", pulse: bool = False) -> dict[str, object]:
    (tmp_path / "bin").mkdir()
    for name in programs:
        (tmp_path / "bin" / name).touch(mode=0o755)
    (tmp_path / "proc/asound").mkdir(parents=True)
    (tmp_path / "proc/asound/pcm").write_text(pcm)
    (tmp_path / "run/pulse").mkdir(parents=True)
    if pulse:
        (tmp_path / "run/pulse/native").touch()
    return {"environ": {"PATH": str(tmp_path / "bin"), "XDG_RUNTIME_DIR": "/run"}, "root": tmp_path}


PCM = "00-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1\n"


@pytest.mark.parametrize(
    "platform, programs, pcm, pulse, chosen",
    [
        ("linux", ("rec", "arecord"), PCM, False, "arecord"),
        ("linux", ("rec",), PCM, False, "rec"),
        ("linux", ("arecord",), "", True, "arecord"),
        ("linux", ("arecord",), "00-03: HDMI 0 : HDMI 0 : playback 1\n", False, None),
        ("linux", (), PCM, True, None),
        ("darwin", ("rec",), "", False, "rec"),
        ("darwin", ("arecord",), "", False, None),
    ],
)
def test_which_program_captures(
    tmp_path: Path, platform: str, programs: tuple[str, ...], pcm: str, pulse: bool, chosen: str | None
) -> None:
    here = host(tmp_path, *programs, pcm=pcm, pulse=pulse)
    command = voice_recorder.find_command(platform=platform, **here)  # type: ignore[arg-type]
    assert (command.argv[0] if command.ok else None) == chosen
    assert sys.byteorder == "little"  # what Silence takes for granted
    assert command.ok or (command.reason and "voice.command" in command.remedy)


def test_the_user_s_own_program_comes_first(tmp_path: Path) -> None:
    here = host(tmp_path, "my-rec", "arecord", pcm=PCM)
    assert voice_recorder.find_command(("my-rec", "-x"), platform="linux", **here).argv == ("my-rec", "-x")  # type: ignore[arg-type]
    assert not voice_recorder.find_command(("other",), platform="linux", **here).ok  # type: ignore[arg-type]
