"""The feed for programs: newline JSON on `events.sock`, for each reader from the sessions of the moment on.

Imported by the hooks server only.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from _claude_sandbox.system.files import unlink_own

BEHIND = 1 << 20  # bytes, besides its greeting; a reader that is so far behind is dropped
READERS = 64


class Feed:
    """`greeting` gives the lines that a new reader gets first."""

    def __init__(self, path: Path, greeting: Callable[[], Iterable[bytes]]) -> None:
        self.path, self._greeting = path, greeting
        self._writers: dict[asyncio.StreamWriter, int] = {}  # and how many bytes may wait for it
        self._server: asyncio.Server | None = None
        self._made: os.stat_result | None = None  # the socket

    async def start(self) -> None:
        """Raises OSError."""
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self.path), backlog=READERS)
        finally:
            os.umask(before)
        self._made = self.path.lstat()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        unlink_own(self.path, self._made)

    def publish(self, lines: Iterable[bytes]) -> None:
        """Hand lines to every reader; never waits for one."""
        if not self._writers:
            return
        data = b"".join(lines)
        for writer, room in list(self._writers.items()):
            transport = writer.transport
            if transport.is_closing():
                self._writers.pop(writer, None)
            elif transport.get_write_buffer_size() + len(data) > room:
                self._writers.pop(writer, None)
                transport.abort()
            else:
                writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= READERS:
            writer.transport.abort()
            return
        # In this order and without a pause between: a reader misses nothing and gets nothing twice.
        greeting = b"".join(self._greeting())
        writer.write(greeting)
        # Guests can make the greeting longer than BEHIND: who has just come is not behind for that.
        self._writers[writer] = BEHIND + len(greeting)
        try:
            while await reader.read(4096):
                pass  # a reader has nothing to say to us
        except ConnectionError:
            pass
        finally:
            self._writers.pop(writer, None)
            writer.close()
