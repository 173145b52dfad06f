"""One sandbox's way in: `POST /v1/events` on its own socket. Whose events they are is the socket's business.

Imported by the hooks server only.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from _claude_sandbox.system.unix_http import Limits, UnixServer, answer

RATE, BURST = 500.0, 4000.0  # events a second, and at once
PER_EVENT = 2048  # bytes; a longer one counts as several, or the log would grow by 10 MB a second
SLICE = 64  # lines that are worked on before other sandboxes get their turn
DISK_FULL_WAIT = 5  # seconds


@dataclass(frozen=True)
class Taken:
    """What became of some lines: the id up to which they are done with, and how many were no events."""

    last: str
    dropped: int = 0


class Bucket:
    """How many events may come now. A batch is taken whole; the balance may go negative."""

    def __init__(
        self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()

    def wait(self) -> float:
        """Seconds until the next batch may come; 0 when it may now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._tokens) / self._rate)

    def take(self, number: int) -> None:
        self._tokens -= number


class Intake:
    """`ingest` logs and takes some lines (OSError: the disk is full, nothing was taken)."""

    def __init__(
        self,
        path: Path,
        ingest: Callable[[list[bytes]], Taken],
        log: Callable[[str], None],
        limits: Limits | None = None,
    ) -> None:
        self._ingest, self._log = ingest, log
        self._bucket = Bucket()
        self._turn = asyncio.Lock()  # batches one after the other, so that a spool stays in order
        self._server = UnixServer(path, self._handle, log, limits)

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/v1/events":
            return answer(404, {"error": "there is /v1/events only"})
        if request.method != "POST":
            return answer(405, {"error": "POST it"}, Allow="POST")
        if wait := self._bucket.wait():
            return _too_many(wait)
        if request.headers.get("Content-Encoding"):
            return answer(415, {"error": "no compressed bodies"})
        body = await self._server.body(request)
        async with self._turn:
            # Asked again: of many that came at once, each as long as it may be, only the first is worked on.
            if wait := self._bucket.wait():
                return _too_many(wait)
            lines = [line for line in body.split(b"\n") if line and not line.isspace()]
            self._bucket.take(max(len(lines), len(body) // PER_EVENT, 1))
            try:
                taken = await self._take(lines)
            except OSError as error:
                self._log(f"events are refused for now: {error.strerror or error}")
                return answer(503, {"error": "cannot be written now"}, Retry_After=str(DISK_FULL_WAIT))
        return answer(200, {"last": taken.last, "dropped": taken.dropped})

    async def _take(self, lines: list[bytes]) -> Taken:
        last, dropped = "", 0
        for start in range(0, len(lines), SLICE):
            taken = self._ingest(lines[start : start + SLICE])
            last, dropped = taken.last or last, dropped + taken.dropped
            if start + SLICE < len(lines):
                await asyncio.sleep(0)
        return Taken(last, dropped)


def _too_many(wait: float) -> web.Response:
    return answer(429, {"error": "too many events"}, Retry_After=str(math.ceil(wait)))
