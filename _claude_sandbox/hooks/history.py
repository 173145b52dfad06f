"""What became of older files of the event log: a file of events for each sandbox.

    history/NAME.jsonl    that sandbox's newest events, in their order

Together they have LIMIT bytes. Each sandbox may keep an equal share of it, and what others don't need: so
a sandbox that floods the log pushes out its own events only. Lines are the log's own (hooks/log.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote

from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.jsonio import read_lines

LIMIT = 16 << 20  # bytes of all
MOST = 500  # files; those of sandboxes that have been silent for longest go first


class History:
    """`directory` is made at the first use (0700)."""

    def __init__(self, directory: Path, *, limit: int = LIMIT) -> None:
        self.directory, self.limit = directory, limit

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.jsonl"))

    def take(self, rotated: Sequence[Path]) -> None:
        """Move the events of log files (the oldest first) here; a file is removed when they are. Raises OSError.

        Killed in between, the next one does it again: what is here already is known by its number.
        """
        if not rotated:
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._remove_half_written()
        fresh: dict[str, list[tuple[int, bytes]]] = {}
        for file in rotated:
            for record, line in read_lines(file):
                with contextlib.suppress(KeyError, TypeError):
                    if record and record["type"] == "event":
                        fresh.setdefault(str(record["sandbox"]), []).append((int(record["seq"]), line))
        self._merge({self._file(name): lines for name, lines in fresh.items()})
        for file in rotated:
            file.unlink(missing_ok=True)
        self._bound_number()

    def _file(self, sandbox: str) -> Path:
        return self.directory / f"{quote(sandbox, safe='')[:200]}.jsonl"

    def _merge(self, fresh: dict[Path, list[tuple[int, bytes]]]) -> None:
        sizes = {file: file.stat().st_size for file in self.files()}
        for file, lines in fresh.items():
            sizes[file] = sizes.get(file, 0) + sum(len(line) for _, line in lines)
        share = fair_share(sizes.values(), self.limit)
        # The greedy ones first: room is made before others fill it.
        for file in sorted(sizes, key=lambda each: -sizes[each]):
            if file in fresh or sizes[file] > share:
                _rewrite(file, fresh.get(file, []), share)

    def _bound_number(self) -> None:
        files = sorted(self.files(), key=lambda file: file.stat().st_mtime_ns)
        for file in files[: max(len(files) - MOST, 0)]:
            file.unlink(missing_ok=True)

    def _remove_half_written(self) -> None:
        for left in self.directory.glob(".*.jsonl.*"):
            left.unlink(missing_ok=True)


def fair_share(sizes: Collection[int], limit: int) -> int:
    """How much each may have at most, so that all have `limit` together.

    >>> fair_share([10, 20, 100], 60), fair_share([10, 20], 60), fair_share([50, 50, 50], 60)
    (30, 60, 20)
    """
    rest, count = limit, len(sizes)
    for size in sorted(sizes):
        if size * count > rest:
            return rest // count
        rest, count = rest - size, count - 1
    return limit


def _rewrite(file: Path, fresh: Sequence[tuple[int, bytes]], limit: int) -> None:
    """Append lines that are not there yet, and drop the oldest past `limit` bytes."""
    last = 0
    kept = b""
    with contextlib.suppress(FileNotFoundError):
        kept = file.read_bytes()
        last = _last_number(kept)
    data = kept + b"".join(line for number, line in fresh if number > last)
    if len(data) > limit:
        cut = data.find(b"\n", len(data) - limit - 1)
        data = data[cut + 1 :]
    if data != kept:
        write_atomic(file, data)


def _last_number(data: bytes) -> int:
    line = data.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return int(json.loads(line)["seq"])
    except (ValueError, KeyError, TypeError):
        return 0
