"""The log of events, JSON lines: what the server knows after a restart, and what `events` shows.

    events.jsonl           the newest; begins with a snapshot of the table, so that it alone is replayed
    rotated-SEQ.jsonl      one before it, whose events have still to go into the history
    history/NAME.jsonl     older events, of each sandbox apart (hooks/history.py)
    events.N.jsonl         of an earlier release, N = 1 the newest: go into the history too

A line that was written is taken for good: a kill of the server loses none, since the kernel has it. The
disk has it a second later at most (the server calls `sync`), so that a power cut of the host may lose
the last second; a guest on that host went down with it, and its Claude sessions too. A line that a crash tore is
removed at the next start: it was not acknowledged, so the guest sends it again. When the disk is full
`append` raises, nothing of the batch stays, and nothing is acknowledged.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.hooks import history as hooks_history
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.hooks.history import History
from _claude_sandbox.hooks.session_table import SessionTable
from _claude_sandbox.system.jsonio import read_lines

NAME, HISTORY = "events.jsonl", "history"
LIMIT = 4 << 20  # bytes behind the snapshot
KEPT = 8  # rotated files that wait for the history, when the disk is full say
AGAIN_SECONDS = 60.0  # between two tries to bring them there when it failed
SCHEMA = 1


def line(kind: str, value: Mapping[str, Any]) -> bytes:
    """One record, of the log as of the feed. ASCII, so that no reader trips over anything."""
    return json.dumps({"type": kind, **value}, separators=(",", ":")).encode() + b"\n"


def of_event(event: Event) -> bytes:
    return line("event", event.to_json())


class EventLog:
    """Opened by the one server; `skipped` counts unreadable lines that `replay` met."""

    def __init__(self, directory: Path, *, limit: int = LIMIT, history: int = hooks_history.LIMIT) -> None:
        self.path, self.limit = directory / NAME, limit
        self.history = History(directory / HISTORY, limit=history)
        self.skipped = 0
        self._fd = -1
        self._size = self._head = 0  # bytes: of the file, and of its snapshot
        self._dirty = False
        self._again = 0.0  # when `sync` may try the history again
        self._retired: list[int] = []  # files that `sync` has still to see to

    def open(self, table: SessionTable) -> None:
        """Bring `table` to where the last server was, and go on writing there. Raises OSError."""
        whole = _begins_with_snapshot(self.path)
        # Without a snapshot at its head: killed between the renames of `rotate`, or a power cut there.
        for file in [self.path] if whole else [*self._newest_whole(), self.path]:
            for record, _ in read_lines(file):
                self._replay(table, record)
        if self.path.exists():
            _cut_torn_line(self.path)
        self._open()
        if not whole:
            self.rotate(table) if self._size else self._begin(table)

    def append(self, lines: Iterable[bytes]) -> None:
        """All or none of them. Raises OSError (disk full)."""
        self._write(b"".join(lines))

    def rotate_if_long(self, table: SessionTable) -> None:
        """Begin a new file when this one is long. Raises OSError, and then goes on with the old one."""
        if self._size - self._head > self.limit:
            self.rotate(table)

    def rotate(self, table: SessionTable) -> None:
        """No fsync here, which may take long: `open` knows what a power cut can leave of it."""
        fresh = self.path.with_name(f".{NAME}.new")
        snapshot = _snapshot(table)
        fresh.write_bytes(snapshot)
        os.chmod(fresh, 0o600)
        os.replace(self.path, self._free_name(table.seq))
        os.replace(fresh, self.path)
        self._retired.append(self._fd)
        self._open(len(snapshot))
        self._dirty = True
        for surplus in _rotated(self.path.parent)[:-KEPT]:
            surplus.unlink(missing_ok=True)  # nobody brings them into the history

    def sync(self) -> None:
        """Have the disk take what was written, then older files go into the history. Safe in another thread than
        the writer's. Raises OSError."""
        # In this order: whatever follows a file of `rotated` is on the disk before that one is removed.
        rotated = [*_numbered(self.path.parent), *_rotated(self.path.parent)]
        fd = os.dup(self._fd) if (self._dirty or rotated) and self._fd >= 0 else -1
        retired, self._retired = self._retired, []
        for each in retired:
            _sync_and_close(each)
        if fd >= 0:
            self._dirty = False
            _sync_and_close(fd)
        if rotated and time.monotonic() >= self._again:
            self._again = time.monotonic() + AGAIN_SECONDS
            self.history.take(rotated)
            self._again = 0.0

    def close(self) -> None:
        for fd in [*self._retired, self._fd]:
            if fd >= 0:
                os.close(fd)
        self._retired, self._fd = [], -1

    # -- inside ----------------------------------------------------------------------------------

    def _free_name(self, seq: int) -> Path:
        names = (self.path.with_name(f"rotated-{seq:016}.{number}.jsonl") for number in itertools.count())
        return next(name for name in names if not name.exists())

    def _newest_whole(self) -> list[Path]:
        """The file before ours that begins with a snapshot, and those behind it."""
        found: list[Path] = []
        for file in reversed([*_numbered(self.path.parent), *_rotated(self.path.parent)]):
            found.insert(0, file)
            if _begins_with_snapshot(file):
                break
        return found

    def _open(self, head: int = 0) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size, self._head = os.fstat(self._fd).st_size, head

    def _begin(self, table: SessionTable) -> None:
        self._write(_snapshot(table))
        self._head = self._size

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # a torn batch must not precede the next one
            raise
        self._size += len(data)
        self._dirty = True

    def _replay(self, table: SessionTable, record: Mapping[str, Any] | None) -> None:
        try:
            kind = record["type"] if record is not None else None
            if record is not None and kind == "snapshot":
                if record["schema"] == SCHEMA:
                    table.restore(record)
            elif record is not None and kind == "event":
                table.take(Event.from_json(record))
            elif record is not None and kind == "stopped":
                table.stop(record["sandbox"], record["seq"], record["time_ns"])
            elif record is not None and kind == "forgotten":
                table.forget(record["sandbox"])
            else:
                self.skipped += 1
        except (KeyError, TypeError, ValueError, AttributeError):
            self.skipped += 1


def files(directory: Path) -> Iterator[Path]:
    """All that hold events. Read each before you ask for the next one: an event that is moved to an older file
    meanwhile is then met twice, never missed."""
    yield directory / NAME
    yield from reversed(_rotated(directory))
    yield from reversed(_numbered(directory))
    yield from History(directory / HISTORY).files()


def logged(directory: Path, *, since_ns: int = 0, after: int = 0) -> Iterator[Event]:
    """Events that the host got since a time (ns since 1970), with a `seq` above `after`, in their order."""
    found: dict[int, Event] = {}
    for file in files(directory):
        for event in _events(file, since_ns):
            if event.received_ns >= since_ns and event.seq > after:
                found[event.seq] = event
    yield from (found[seq] for seq in sorted(found))


def _events(file: Path, since_ns: int) -> Iterator[Event]:
    with contextlib.suppress(OSError):
        if file.stat().st_mtime_ns < since_ns:
            return
    for record, _ in read_lines(file):
        if record is not None and record.get("type") == "event":
            with contextlib.suppress(KeyError, TypeError):
                yield Event.from_json(record)


def _rotated(directory: Path) -> list[Path]:
    """The oldest first."""
    return sorted(directory.glob("rotated-*.jsonl"))


def _numbered(directory: Path) -> list[Path]:
    """As an earlier release named them, the oldest first."""
    return sorted(directory.glob("events.[1-9].jsonl"), reverse=True)


def _begins_with_snapshot(file: Path) -> bool:
    return any(
        (record or {}).get("type") == "snapshot" for record, _ in itertools.islice(read_lines(file), 1)
    )


def _snapshot(table: SessionTable) -> bytes:
    return line("snapshot", {"schema": SCHEMA, **table.snapshot()})


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
