"""A socket in a guest that leads to one of ours, and a script that runs there as long as it does.

One ssh per sandbox, our child. Lima's own forwards do not come back after sleep or when its ssh master
dies (facts/lima.md §0); this one is made again after whatever ended it. For programs with an event loop:
the hooks server, the audio server.

The guest is hostile: what the script prints is read up to a limit, and only `ready` means something.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import quoting
from _claude_sandbox.system.run import Command, LocalRunner
from _claude_sandbox.system.text import one_line

SHORTEST, LONGEST = 0.5, 30.0  # seconds between tries; doubled, and short again after one that lasted
LASTED = 10.0  # seconds: a guest that ends each connection at once must not have us log in twice a second
LOOK = 1.0  # seconds between questions whether the VM can be reached
SETTLE = 3.0  # seconds after a start: they belong to whoever waits for the VM (a login takes one, emulated)
READY_WITHIN = 90.0  # seconds: a login under emulation, the VM's first seconds
OUTPUT = 64 * 1024  # bytes that we read of what the script prints; then it can only wait
_OPTIONS = (
    "-T",
    "-o", "ControlMaster=no",
    "-o", "ControlPath=none",
    "-o", "ExitOnForwardFailure=yes",
    # A connection that died (the host slept, QEMU hangs) is noticed in 15 s.
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
    "-o", "ConnectTimeout=20",
    "-o", "ForwardAgent=no",
    "-o", "ForwardX11=no",
    "-o", "LogLevel=ERROR",
)  # fmt: skip
# sshd binds a name that nobody has had: no stale socket stops it, and the last one wins the real name.
_SCRIPT = 'mv -f "$1" "$2" || exit; '


def command(ssh_config: Path, host: str, guest_socket: str, host_socket: Path, script: str) -> Command:
    """The ssh for one try; `script` (POSIX sh) has the socket's name as $2."""
    fresh = f"{guest_socket}.{secrets.token_hex(6)}"
    line = quoting.shell_quote(["sh", "-c", _SCRIPT + script, "sh", fresh, guest_socket])
    forwarded = ":".join(name.replace(":", "\\:") for name in (fresh, str(host_socket)))
    return Command(("ssh", "-F", str(ssh_config), *_OPTIONS, "-R", forwarded, host, line))


class Forward:
    """Keeps `guest_socket` in a guest forwarded to `host_socket`, and `script` running there, until cancelled.

    `script` is POSIX sh with the socket in $2; it prints the line `ready` once it works, and ends when its
    stdin does (our end, or the connection's). `usable` says, from files alone, whether the VM runs and is
    ready. `log` gets a line when something goes wrong or right again, `on_state` whether events can come.
    """

    def __init__(
        self,
        *,
        ssh_config: Path,
        host: str,
        guest_socket: str,
        host_socket: Path,
        script: str,
        usable: Callable[[], bool],
        log: Callable[[str], None],
        on_state: Callable[[bool], None] = lambda _up: None,
    ) -> None:
        self._usable, self._log, self._on_state = usable, log, on_state
        self._command = functools.partial(command, ssh_config, host, guest_socket, host_socket, script)
        self._told = ""

    async def run(self) -> None:
        """Never returns; ends by cancellation, and its ssh with it."""
        pause, starting = SHORTEST, False
        while True:
            if not self._usable():
                pause, starting = SHORTEST, True
                await asyncio.sleep(LOOK)
                continue
            if starting:
                starting = False
                await asyncio.sleep(SETTLE)
                continue
            try:
                lasted, why = await self._once()
            except ClaudeSandboxError as error:
                lasted, why = False, error.brief
            pause = SHORTEST if lasted else min(pause * 2, LONGEST)
            if self._usable():
                self._tell(f"the connection to the guest ended: {why or 'it was closed'}")
            await asyncio.sleep(pause)

    async def _once(self) -> tuple[bool, str]:
        """One connection from its start to its end: whether it was up for a while, and why it ended."""
        transport, connection = await LocalRunner().spawn_protocol(self._command(), _Connection)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.ready, READY_WITHIN)
            up, lasted = time.monotonic(), False
            if connection.is_up:
                self._tell("")
                self._on_state(True)
                await connection.ended.wait()
                lasted = time.monotonic() - up >= LASTED
            ended = transport.get_returncode()
            await _end(transport, connection)
            quiet = "it did not get ready" if ended is None else f"exit code {ended}"
            return lasted, connection.words() or quiet
        finally:
            await _end(transport, connection)
            if connection.is_up:
                self._on_state(False)

    def _tell(self, text: str) -> None:
        """Once as long as it stays the same."""
        if text and text != self._told:
            self._log(text)
        elif self._told and not text:
            self._log("connected to the guest again")
        self._told = text


class _Connection(asyncio.SubprocessProtocol):
    """What an ssh of ours says: `ready`, as a line of its own, and on stderr why it ends."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ended, self.silent = asyncio.Event(), asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None
        self._said = {1: b"\n", 2: b""}
        self._room = {1: OUTPUT, 2: OUTPUT}

    @property
    def is_up(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.result()

    def words(self) -> str:
        """The last of stderr, fit for one line of a log."""
        text = self._said[2].decode("utf-8", "replace")
        return one_line(text)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._room[fd] -= len(data)
        if fd == 2 or not self.ready.done():
            self._said[fd] = (self._said[fd] + data)[-500:]
        if b"\nready\n" in self._said[1]:
            self._settle(True)
        if self._room[fd] <= 0:  # it may go on, unheard: a full pipe makes it wait
            pipe = self._transport.get_pipe_transport(fd) if self._transport else None
            if isinstance(pipe, asyncio.ReadTransport):
                pipe.pause_reading()
            self._settle(False)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._settle(False)
        elif fd == 2:
            self.silent.set()

    def process_exited(self) -> None:
        self._settle(False)
        self.ended.set()

    def _settle(self, up: bool) -> None:
        if not self.ready.done():
            self.ready.set_result(up)


async def _end(transport: asyncio.SubprocessTransport, connection: _Connection) -> None:
    """End it if it lives (stdin, TERM, KILL) and let go of its pipes, whoever else holds them."""
    stdin = transport.get_pipe_transport(0)
    if stdin is not None:
        stdin.close()
    # Before a signal, which would take its exit code from the event loop.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(connection.ended.wait(), 0.5)
    for signal in (transport.terminate, transport.kill):
        if connection.ended.is_set():
            break
        with contextlib.suppress(ProcessLookupError):
            signal()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(connection.ended.wait(), 3)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(connection.silent.wait(), 0.3)  # its last words
    transport.close()
