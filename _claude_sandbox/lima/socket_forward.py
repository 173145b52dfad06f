"""Sockets in a guest that lead to sockets of the host, and for each a script that runs there meanwhile.

One ssh, our child, for all sockets of a sandbox. Lima's own forwards do not come back after sleep or when its
ssh master dies (docs/facts/lima.md §0); this one is made again after whatever ended it. For programs with an
event loop: the links worker (daemon/links.py).

The guest is hostile: what the scripts print is read up to a limit, and only three lines mean something:

    up              sshd has all sockets, and the scripts were started
    ready NAME      what the script NAME brings works
    ended NAME N    it ended with N; the guest runs it again after a pause, the other scripts go on
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
LAST_WORDS = 0.3  # seconds for what a program wrote to stderr before it ended
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
# $1 and so on: name, fresh socket, socket, script; of each service. sshd binds a fresh name, which is renamed
# into place: a stale socket cannot block it, and the last connection wins.
# A script that ended runs again after a pause, unless a newer connection has the socket by then.
_KEEP = """exec 3<&0
keep() {
    pause=1
    while sh -c "$4" sh "$1" "$3" <&3; echo "ended $1 $?"; [ "$(cat "$3.by")" = "$2" ]; do
        sleep $pause 3<&- </dev/null >/dev/null 2>&1
        [ $pause -ge 30 ] || pause=$((pause * 2))
    done
}
jobs=
while [ $# -ge 4 ]; do
    mv -f "$2" "$3" && echo "$2" >"$3.by" || exit
    keep "$1" "$2" "$3" "$4" &
    jobs="$jobs $!"
    shift 4
done
echo up
cat <&3 >/dev/null
kill $jobs
"""


@dataclass(frozen=True)
class Socket:
    """`guest` in the VM leads to `host` here.

    `script` is POSIX sh with the name in $1 and the guest's socket in $2; it prints the line `ready NAME` once
    it works, and ends when its stdin does (our end, or the connection's).
    """

    name: str
    guest: str
    host: Path
    script: str


def command(ssh_config: Path, host: str, sockets: Sequence[Socket]) -> Command:
    """The ssh for one try."""
    forwards: list[str] = []
    arguments: list[str] = []
    for each in sockets:
        fresh = f"{each.guest}.{secrets.token_hex(6)}"
        forwards += ["-R", ":".join(name.replace(":", "\\:") for name in (fresh, str(each.host)))]
        arguments += [each.name, fresh, each.guest, each.script]
    line = quoting.shell_quote(["sh", "-c", _KEEP, "sh", *arguments])
    return Command(("ssh", "-F", str(ssh_config), *_OPTIONS, *forwards, host, line))


class Forward:
    """Keeps `sockets` forwarded and their scripts running, until cancelled. `up` is set while it is connected.

    `usable` says, from files alone, whether the VM runs and is ready. `log` gets a line when something goes
    wrong or right again, `on_state` the names of the services that are ready.
    """

    def __init__(
        self,
        *,
        ssh_config: Path,
        host: str,
        sockets: Sequence[Socket],
        usable: Callable[[], bool],
        log: Callable[[str], None],
        on_state: Callable[[frozenset[str]], None] = lambda _ready: None,
    ) -> None:
        self._usable, self._log, self._on_state = usable, log, on_state
        self._command = functools.partial(command, ssh_config, host, tuple(sockets))
        self._names = frozenset(each.name for each in sockets)
        self._trouble: dict[str, str] = {}  # by service; "" for the connection
        self.up = asyncio.Event()

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
                self._report("", f"the connection to the guest ended: {why or 'it was closed'}")
            await asyncio.sleep(pause)

    async def _once(self) -> tuple[bool, str]:
        """One connection from its start to its end: whether it was up for a while, and why it ended."""
        transport, connection = await LocalRunner().spawn_protocol(
            self._command(), lambda: _SshConnection(self._names, self._heard)
        )
        try:
            await wait_at_most(connection.settled, READY_WITHIN)
            began, lasted = time.monotonic(), False
            if connection.up:
                self.up.set()
                await connection.ended.wait()
                lasted = time.monotonic() - began >= LASTED
            ended = transport.get_returncode()
            await _end(transport, connection)
            quiet = "it did not get ready" if ended is None else f"exit code {ended}"
            return lasted, connection.words() or quiet
        finally:
            self.up.clear()
            await _end(transport, connection)
            if connection.ready:
                connection.ready = frozenset()
                self._on_state(connection.ready)

    def _heard(self, connection: _SshConnection, name: str, code: str) -> None:
        """The guest said that a service is ready (`code` ""), or that its script ended."""
        if code:
            # A little later: what it said comes by another pipe.
            asyncio.get_running_loop().call_later(LAST_WORDS, self._report_end, connection, name, code)
        else:
            self._report("", "")
            self._report(name, "")
        self._on_state(connection.ready)

    def _report_end(self, connection: _SshConnection, name: str, code: str) -> None:
        if name not in connection.ready:
            self._report(name, f"{name} ended in the guest ({code}): {connection.take_words()}")

    def _report(self, what: str, trouble: str) -> None:
        """Once as long as it stays the same."""
        before = self._trouble.get(what, "")
        if trouble and trouble != before:
            self._log(trouble)
        elif before and not trouble:
            self._log(f"{what} works again" if what else "connected to the guest again")
        self._trouble[what] = trouble


class _SshConnection(asyncio.SubprocessProtocol):
    """What our ssh says: lines that mean something, and on stderr why it ends."""

    def __init__(self, names: frozenset[str], heard: Callable[[_SshConnection, str, str], None]) -> None:
        self._names, self._on_line = names, heard
        self.up, self.ready = False, frozenset[str]()
        self.settled = asyncio.Event()  # it is up, or never will be
        self.ended, self.silent = asyncio.Event(), asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None
        self._line, self._stderr = b"", b""
        self._room = {1: OUTPUT, 2: OUTPUT}

    def words(self) -> str:
        """The last of stderr, fit for one line of a log."""
        return one_line(self._stderr.decode("utf-8", "replace"))

    def take_words(self) -> str:
        """The same; the next words come alone."""
        words, self._stderr = self.words(), b""
        return words

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._room[fd] -= len(data)
        if fd == 2:
            self._stderr = (self._stderr + data)[-500:]
        else:
            *lines, rest = (self._line + data).split(b"\n")
            self._line = rest[-100:]
            for line in lines:
                self._take(line[-100:].decode("utf-8", "replace").split(" "))
        if self._room[fd] <= 0:  # it may go on, unheard: a full pipe makes it wait
            pipe = self._transport.get_pipe_transport(fd) if self._transport else None
            if isinstance(pipe, asyncio.ReadTransport):
                pipe.pause_reading()
            self.settled.set()

    def _take(self, words: list[str]) -> None:
        match words:
            case ["up"]:
                self.up = True
                self.settled.set()
            case ["ready", name] if name in self._names:
                self.ready |= {name}
                self._on_line(self, name, "")
            case ["ended", name, code] if name in self._names and code.isdecimal():
                self.ready -= {name}
                self._on_line(self, name, code)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.settled.set()
        elif fd == 2:
            self.silent.set()

    def process_exited(self) -> None:
        self.settled.set()
        self.ended.set()


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Until it is set, or the time is over. In Python 3.11 `wait_for` can lose a cancellation, and `timeout` does not
    work in a task that was cancelled (a `finally`)."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


async def _end(transport: asyncio.SubprocessTransport, connection: _SshConnection) -> None:
    """End it if it lives (stdin, TERM, KILL) and let go of its pipes, whoever else holds them."""
    stdin = transport.get_pipe_transport(0)
    if stdin is not None:
        stdin.close()
    # Before a signal, which would take its exit code from the event loop.
    await wait_at_most(connection.ended, 0.5)
    for signal in (transport.terminate, transport.kill):
        if connection.ended.is_set():
            break
        with contextlib.suppress(ProcessLookupError):
            signal()
        await wait_at_most(connection.ended, 3)
    await wait_at_most(connection.silent, LAST_WORDS)
    transport.close()
