"""HTTP on a unix socket, with limits: what a stalling, flooding or rude client can take of the server.

Each socket has its own count of connections. A connection lives LIFETIME seconds at most, whatever it
does or does not; its first headers must be whole within HEAD bytes; compressed bodies are not unpacked.
Imported by servers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from _claude_sandbox.system.files import unlink_own

_SILENT = logging.getLogger("claude-sandbox.http")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False  # a guest's bad request is worth no line; our own errors go to `log`


@dataclass(frozen=True)
class Limits:
    """Of one socket: bytes, seconds, connections at a time."""

    body: int = 1 << 20
    head: int = 8 << 10
    lifetime: float = 15.0
    connections: int = 32


class TooLargeError(Exception):
    """The body is over the limit."""


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class UnixServer:
    """`handler` answers requests on the socket `path`; what it raises becomes a 500 and a line in `log`."""

    def __init__(
        self, path: Path, handler: Handler, log: Callable[[str], None], limits: Limits | None = None
    ) -> None:
        self.path, self.limits = path, limits or Limits()
        self._handler, self._log = handler, log
        self._open: set[_Connection] = set()
        self._web: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._made: os.stat_result | None = None  # the socket

    async def start(self) -> None:
        """Raises OSError. The socket is ours alone from its first moment."""
        self._web = web.Server(
            self._answer, logger=_SILENT, access_log=None, keepalive_timeout=self.limits.lifetime,
            max_line_size=4096, max_field_size=4096, max_headers=48, lingering_time=2.0, auto_decompress=False,
        )  # fmt: skip
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(self._connection, str(self.path), backlog=128)
        finally:
            os.umask(before)
        self._made = self.path.lstat()

    async def close(self) -> None:
        """No new connections; open ones get a moment to end."""
        if self._server is not None:
            self._server.close()
        if self._web is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._web.shutdown(1.0), 2.0)
        for connection in list(self._open):
            connection.abort()
        unlink_own(self.path, self._made)

    def _connection(self) -> asyncio.BaseProtocol:
        if self._web is None or len(self._open) >= self.limits.connections:
            return _Refused()
        return _Connection(self._web(), self.limits, self._open)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._handler(request)
        except TooLargeError:
            return answer(413, {"error": f"more than {self.limits.body} bytes"})
        except (ConnectionError, web.RequestPayloadError):
            raise  # the client went away: nobody to answer
        except Exception as error:  # noqa: BLE001 - one bad request must not end a server
            self._log(f"{self.path.name}: {type(error).__name__}: {error}")
            return answer(500, {"error": "see the server's log"})

    async def body(self, request: web.BaseRequest) -> bytes:
        """The whole body. Raises TooLargeError."""
        if (request.content_length or 0) > self.limits.body:
            raise TooLargeError
        blocks, size = [], 0
        async for block in request.content.iter_any():
            size += len(block)
            if size > self.limits.body:
                raise TooLargeError
            blocks.append(block)
        return b"".join(blocks)


def answer(status: int, value: Mapping[str, Any], **headers: str) -> web.Response:
    """JSON, on a line."""
    text = json.dumps(value, separators=(",", ":")) + "\n"
    named = {name.replace("_", "-"): content for name, content in headers.items()}
    return web.Response(status=status, text=text, content_type="application/json", headers=named)


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Connection(asyncio.Protocol):
    """Wraps aiohttp's own protocol: counts the connection, ends it in time, bounds its headers."""

    def __init__(self, inner: asyncio.Protocol, limits: Limits, open: set[_Connection]) -> None:
        self._inner, self._limits, self._open = inner, limits, open
        self._transport: asyncio.Transport | None = None
        self._end: asyncio.TimerHandle | None = None
        self._head: bytearray | None = bytearray()  # None once the first headers are whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)
        self._end = asyncio.get_running_loop().call_later(self._limits.lifetime, self.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data[: self._limits.head + 4]
            if b"\r\n\r\n" in self._head:
                self._head = None
            elif len(self._head) > self._limits.head:
                self.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if self._end is not None:
            self._end.cancel()
        self._inner.connection_lost(exc)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
