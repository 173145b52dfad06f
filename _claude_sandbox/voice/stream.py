"""The microphone of one sandbox: HTTP on a unix socket, a capture program only while a client records.

    GET /v1/record    raw PCM (16 kHz, mono, s16le) for as long as the client reads
    GET /v1/probe     200 if that could work now, 503 with the reason if not; opens no microphone

Identity is the socket: what a guest sends can choose between these two and no more. A client that does
not read is dropped, not buffered for; a recording has a longest time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import HttpVersion11, web

from _claude_sandbox.system.run import CommandNotFound
from _claude_sandbox.voice.recorder import BYTES_PER_SECOND, CaptureCommand, Silence

Spawn = Callable[[Sequence[str]], Awaitable[asyncio.subprocess.Process]]
Log = Callable[[str], None]


@dataclass(frozen=True)
class RecordingLimits:
    """Seconds, unless it says otherwise."""

    recording: float = 600  # the longest one
    first_sound: float = 30  # macOS may be asking its user whether the terminal may use the microphone
    next_sound: float = 10
    reader: float = 5  # how long a client may not read when its buffer is full
    turn: float = 2  # how long a client waits for the one before it in the same sandbox to be gone
    header: float = 10  # for a request to be complete
    term: float = 1  # for the capture program to end when it is asked to
    recordings: int = 4  # in all sandboxes together
    connections: int = 8  # per sandbox
    chunk: int = BYTES_PER_SECOND // 10  # most bytes that are passed on at once


class Capture:
    """A running capture program, in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, limits: RecordingLimits) -> None:
        self._process = process
        self._limits = limits
        self.pid = process.pid

    async def read(self, timeout: float) -> bytes:
        """The next bytes; none at the program's end. Raises TimeoutError."""
        assert self._process.stdout is not None
        # Not wait_for, which in Python 3.11 can lose a cancellation, and with it the end of a recording.
        async with asyncio.timeout(timeout):
            return await self._process.stdout.read(self._limits.chunk)

    async def end(self) -> bool:
        """End the whole group; whether it is gone for sure."""
        for number, grace in ((signal.SIGTERM, self._limits.term), (signal.SIGKILL, 2.0)):
            if not self._signal(number):
                break
            deadline = asyncio.get_running_loop().time() + grace
            while self._signal(0) and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.01)
        gone = not self._signal(0)
        # asyncio closes the pipe at its end only, and looks for the end only when it is read.
        with contextlib.suppress(TimeoutError):
            while await self.read(1):
                pass
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._process.wait()
        return gone

    def _signal(self, number: int) -> bool:
        """Whether the group was there to get it."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS: only zombies are left in it
            return False
        return True


class RecordingRegistry:
    """What all sandboxes share: how many record, and who is notified that the microphone is open.

    `changed(name, pid)`: `name` records by a program with that id, or no longer (None).
    """

    def __init__(
        self, spawn: Spawn, changed: Callable[[str, int | None], None], log: Log, limits: RecordingLimits
    ) -> None:
        self.spawn, self.changed, self.log, self.limits = spawn, changed, log, limits
        self.recording: dict[str, int] = {}  # process id by sandbox

    @contextlib.asynccontextmanager
    async def capture(self, name: str, command: CaptureCommand) -> AsyncIterator[Capture]:
        """The program runs, and the microphone counts as open, exactly as long as this context."""
        self.recording[name] = 0
        try:
            running = Capture(await self.spawn(command.argv), self.limits)
        except BaseException:
            del self.recording[name]
            raise
        try:
            self.recording[name] = running.pid
            self.changed(name, running.pid)
            self.log(f"{name}: the microphone is open ({command.argv[0]}, process {running.pid})")
            yield running
        finally:
            await _surely(self._close(name, running))

    async def _close(self, name: str, running: Capture) -> None:
        gone = await running.end()
        del self.recording[name]
        self.changed(name, None)
        self.log(f"{name}: the microphone is closed")
        if not gone:
            self.log(f"{name}: process group {running.pid} did not end")


async def _surely(work: Coroutine[None, None, None]) -> None:
    """Wait for `work` to its end, also when we are cancelled meanwhile: a client that leaves cancels us."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


class HttpError(Exception):
    """An answer instead of sound: status and one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class MicrophoneSocket:
    """The socket of one sandbox. `command` is called for every request."""

    def __init__(self, name: str, registry: RecordingRegistry, command: Callable[[], CaptureCommand]) -> None:
        self.name, self._registry, self._command = name, registry, command
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._web: web.Server | None = None

    async def open(self, path: Path) -> None:
        """Listen on `path` (0600; its directory is 0700)."""
        limits = self._registry.limits
        # The keep-alive time also ends a connection whose request does not become complete.
        self._web = web.Server(
            self._answer, handler_cancellation=True, keepalive_timeout=limits.header, access_log=None,
            lingering_time=0, max_line_size=1024, max_field_size=1024, max_headers=32, tcp_keepalive=False,
        )  # fmt: skip
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        before = os.umask(0o177)  # ours alone from its first moment
        try:
            self._server = await loop.create_unix_server(self._connection, path, backlog=limits.connections)
        finally:
            os.umask(before)

    def _connection(self) -> asyncio.BaseProtocol:
        assert self._web is not None
        if len(self._web.connections) >= self._registry.limits.connections:
            return _Closed()
        return self._web()

    async def close(self) -> None:
        """Stop listening and drop who is connected; recordings end."""
        if self._server is not None:
            self._server.close()
        if self._web is not None:
            await self._web.shutdown(timeout=0.05)  # (0 would be no limit)
        async with self._turn:  # held until the last capture program is gone
            pass

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.method != "GET":
                raise HttpError(405, "only GET")
            if request.path == "/v1/probe":
                self._check()
                return _text(200, "ready")
            if request.path == "/v1/record":
                return await self._record(request)
            raise HttpError(404, "no such path")
        except HttpError as refusal:
            return _text(refusal.status, refusal.reason)

    def _check(self) -> CaptureCommand:
        command = self._command()
        if not command.ok:
            self._registry.log(f"{self.name}: cannot record: {command.reason}")
            raise HttpError(503, f"the host cannot record: {command.reason}")
        return command

    async def _record(self, request: web.BaseRequest) -> web.StreamResponse:
        command, limits = self._check(), self._registry.limits
        try:
            async with asyncio.timeout(limits.turn):
                await self._turn.acquire()
        except TimeoutError:
            raise HttpError(409, "this sandbox records already") from None
        try:
            if len(self._registry.recording) >= limits.recordings:
                raise HttpError(503, "too many sandboxes record")
            # A client that leaves cancels this; the lock is free only when the program has gone.
            async with self._registry.capture(self.name, command) as running:
                return await self._pass_on(request, running)
        except (CommandNotFound, PermissionError) as error:
            self._registry.log(f"{self.name}: {command.argv[0]}: {error}")
            raise HttpError(503, "the capture program does not start; see the hooks server's log") from error
        finally:
            self._turn.release()

    async def _pass_on(self, request: web.BaseRequest, running: Capture) -> web.StreamResponse:
        limits = self._registry.limits
        silence = Silence() if request.query_string == "end=silence" else None
        try:
            data = await running.read(limits.first_sound)
        except TimeoutError:
            data = b""
        if not data:
            raise HttpError(503, "the capture program gave no sound; see the hooks server's log")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.force_close()
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            async with asyncio.timeout(limits.recording):
                while data and not (silence and silence.ended):
                    if sound := silence.feed(data) if silence else data:
                        await self._patiently(request, response.write(sound))
                    data = await running.read(limits.next_sound)
        except TimeoutError:
            self._registry.log(f"{self.name}: this recording reached its longest time, or no sound came")
        await self._patiently(request, response.write_eof())
        return response

    async def _patiently(self, request: web.BaseRequest, writing: Coroutine[None, None, None]) -> None:
        """Wait for the client to take it, not for long. Raises ConnectionResetError when it is dropped."""
        try:
            async with asyncio.timeout(self._registry.limits.reader):
                await writing
        except TimeoutError:
            self._registry.log(f"{self.name}: dropped a client that did not read")
            if request.transport is not None:
                request.transport.abort()  # a close would wait for it to read the rest
            raise ConnectionResetError("the client does not read") from None


class _Closed(asyncio.Protocol):
    """One connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _text(status: int, sentence: str) -> web.Response:
    response = web.Response(status=status, text=f"{sentence}\n")
    response.force_close()
    return response
