"""The log of events, JSON lines: what the server knows after a restart, and what `events` shows.

    events.jsonl      the newest; begins with a snapshot of the board, so that it alone is replayed
    events.1.jsonl    the one before, and so on; at most KEPT, each of LIMIT bytes or a little more

A line that was written is taken for good: a kill of the server loses none, since the kernel has it. The
disk has it a second later at most (the server calls `sync`), so that a power cut of the host may lose
the last second; a guest on that host went down with it, and its Claude sessions too. A line that a crash tore is
removed at the next start: it was not acknowledged, so the guest sends it again. When the disk is full
`append` raises, nothing of the batch stays, and nothing is acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.board import Board
from _claude_sandbox.hookevent import Event

NAME = "events.jsonl"
LIMIT, KEPT = 8 << 20, 3
SCHEMA = 1


def line(kind: str, value: Mapping[str, Any]) -> bytes:
    """One record, of the log as of the feed. ASCII, so that no reader trips over anything."""
    return json.dumps({"type": kind, **value}, separators=(",", ":")).encode() + b"\n"


def of_event(event: Event) -> bytes:
    return line("event", event.to_json())


class EventLog:
    """Opened by the one server; `skipped` counts unreadable lines that `replay` met."""

    def __init__(self, directory: Path, *, limit: int = LIMIT, kept: int = KEPT) -> None:
        self.path, self.limit, self.kept = directory / NAME, limit, kept
        self.skipped = 0
        self._fd = -1
        self._size = 0
        self._dirty = False
        self._retired: list[int] = []  # files that `sync` has still to see to

    def open(self, board: Board) -> None:
        """Bring `board` to where the last server was, and go on writing there. Raises OSError."""
        whole = (next(_records(self.path), None) or {}).get("type") == "snapshot"
        # Without a snapshot at its head: killed between the renames of `rotate`, or a power cut there.
        for file in [self.path] if whole else [self._old(1), self.path]:
            for record in _records(file):
                self._replay(board, record)
        if self.path.exists():
            _cut_torn_line(self.path)
        self._open()
        if not whole:
            self.rotate(board) if self._size else self._begin(board)

    def append(self, lines: Iterable[bytes]) -> None:
        """All or none of them. Raises OSError (disk full)."""
        self._write(b"".join(lines))

    def rotate_if_long(self, board: Board) -> None:
        """Begin a new file when this one is long. Raises OSError, and then goes on with the old one."""
        if self._size > self.limit:
            self.rotate(board)

    def rotate(self, board: Board) -> None:
        """No fsync here, which may take long: `open` knows what a power cut can leave of it."""
        fresh = self.path.with_name(f".{NAME}.new")
        fresh.write_bytes(_snapshot(board))
        os.chmod(fresh, 0o600)
        for number in range(self.kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._old(number), self._old(number + 1))
        os.replace(self.path, self._old(1))
        os.replace(fresh, self.path)
        self._retired.append(self._fd)
        self._open()
        self._dirty = True

    def sync(self) -> None:
        """Have the disk take what was written. Safe in another thread than the writer's."""
        retired, self._retired = self._retired, []
        for fd in retired:
            _sync_and_close(fd)
        if self._dirty and self._fd >= 0:
            self._dirty = False
            _sync_and_close(os.dup(self._fd))

    def close(self) -> None:
        for fd in [*self._retired, self._fd]:
            if fd >= 0:
                os.close(fd)
        self._retired, self._fd = [], -1

    # -- inside ----------------------------------------------------------------------------------

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"events.{number}.jsonl")

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _begin(self, board: Board) -> None:
        self._write(_snapshot(board))

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # a torn batch must not stand before the next one
            raise
        self._size += len(data)
        self._dirty = True

    def _replay(self, board: Board, record: Mapping[str, Any] | None) -> None:
        try:
            kind = record["type"] if record is not None else None
            if record is not None and kind == "snapshot":
                if record["schema"] == SCHEMA:
                    board.restore(record)
            elif record is not None and kind == "event":
                board.take(Event.from_json(record))
            elif record is not None and kind == "stopped":
                board.stop(record["sandbox"], record["seq"], record["time_ns"])
            elif record is not None and kind == "forgotten":
                board.forget(record["sandbox"])
            else:
                self.skipped += 1
        except (KeyError, TypeError, ValueError, AttributeError):
            self.skipped += 1


def files(directory: Path) -> list[Path]:
    """The log's files, the oldest first."""
    old = sorted(directory.glob("events.*.jsonl"), key=lambda file: file.name, reverse=True)
    return [*old, *([directory / NAME] if (directory / NAME).exists() else [])]


def logged(directory: Path, *, since_ns: int = 0, after: int = 0) -> Iterator[Event]:
    """Events that the host got since a time (ns since 1970), with a `seq` above `after`, in their order."""
    for file in files(directory):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime_ns < since_ns:
                continue
        for record in _records(file):
            if record is None or record.get("type") != "event":
                continue
            with contextlib.suppress(KeyError, TypeError):
                event = Event.from_json(record)
                if event.received_ns >= since_ns and event.seq > after:
                    after = event.seq
                    yield event


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each line as an object; None for one that is none. A last line without an end is not there yet."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            if not text.endswith(b"\n"):
                return
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def _snapshot(board: Board) -> bytes:
    return line("snapshot", {"schema": SCHEMA, **board.snapshot()})


def _sync_and_close(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - 65536, 0)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end != size:
            file.truncate(end)
