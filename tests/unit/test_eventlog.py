"""The event log: what a restart finds after a crash at any point, and that it stays small."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from _claude_sandbox import eventlog
from _claude_sandbox.board import ENDED_KEPT, SESSIONS, SPOOLS, Board
from _claude_sandbox.eventlog import EventLog, line, of_event
from _claude_sandbox.hookevent import Event


def event(
    seq: int, name: str = "UserPromptSubmit", *, session: str = "s", box: str = "box", spool: str = "aa" * 4
) -> Event:
    return Event(seq, f"{spool}:{seq}", seq, seq, box, "/p", name, session, "", 1, {"message": "m"})


def write(log: EventLog, board: Board, *events: Event) -> None:
    log.append([of_event(each) for each in events])
    for each in events:
        board.take(each)
    log.rotate_if_long(board)


def reopened(directory: Path, **how: int) -> tuple[EventLog, Board]:
    log, board = EventLog(directory, **how), Board()
    log.open(board)
    return log, board


def test_a_restart_finds_sessions_spools_and_the_number(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1), event(2, "Stop"), event(3, session="other"))
    log.append([line("stopped", {"sandbox": "box", "seq": 4, "time_ns": 4})])
    board.stop("box", 4, 4)
    log.close()
    _, again = reopened(tmp_path)
    assert again.snapshot() == board.snapshot()
    assert again.seq == 4 and again.last("box", "aa" * 4) == 3
    assert [s.state for s in again.ordered()] == ["ended", "ended"]


def test_a_forgotten_sandbox_stays_forgotten(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1))
    log.append([line("forgotten", {"sandbox": "box"})])
    log.close()
    _, again = reopened(tmp_path)
    assert not again.knows("box") and again.seq == 1


def test_it_is_rotated_and_a_restart_needs_the_newest_file_only(tmp_path: Path) -> None:
    log, board = reopened(tmp_path, limit=20_000, kept=2)
    for seq in range(1, 401):
        write(log, board, event(seq, "Stop" if seq % 2 else "UserPromptSubmit"))
    log.sync()
    log.close()
    names = [file.name for file in eventlog.files(tmp_path)]
    assert names == ["events.2.jsonl", "events.1.jsonl", "events.jsonl"]
    assert all(file.stat().st_size < 22_000 for file in eventlog.files(tmp_path))
    for old in ("events.1.jsonl", "events.2.jsonl"):
        assert json.loads((tmp_path / old).read_text().splitlines()[0])["type"] == "snapshot"
    seqs = [each.seq for each in eventlog.logged(tmp_path)]
    assert seqs == list(range(seqs[0], 401)) and len(seqs) > 100
    for old in ("events.1.jsonl", "events.2.jsonl"):
        (tmp_path / old).unlink()
    _, again = reopened(tmp_path)
    assert again.snapshot() == board.snapshot()


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_not_there(tmp_path: Path, cut: int) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1))
    whole = log.path.stat().st_size
    write(log, board, event(2, "Stop"))
    log.close()
    os.truncate(log.path, log.path.stat().st_size - cut)
    assert [each.seq for each in eventlog.logged(tmp_path)] == [1]
    log, again = reopened(tmp_path)
    assert again.seq == 1 and log.path.stat().st_size == whole
    write(log, again, event(2, "Stop"))
    assert [each.seq for each in eventlog.logged(tmp_path)] == [1, 2]


def test_killed_between_the_renames_of_a_rotation(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1), event(2))
    log.close()
    os.replace(log.path, tmp_path / "events.1.jsonl")
    log, again = reopened(tmp_path)
    assert again.snapshot() == board.snapshot()
    write(log, again, event(3))
    log.close()
    (tmp_path / "events.1.jsonl").unlink()
    _, last = reopened(tmp_path)
    assert last.seq == 3


@pytest.mark.parametrize("left", [b"", b'{"type":"snap', b"\x00" * 4096])
def test_what_a_power_cut_left_of_a_fresh_file(tmp_path: Path, left: bytes) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1), event(2, "Stop"))
    log.rotate(board)
    log.close()
    log.path.write_bytes(left)
    _, again = reopened(tmp_path)
    assert again.snapshot() == board.snapshot()
    _, once_more = reopened(tmp_path)
    assert once_more.snapshot() == board.snapshot()


def test_unreadable_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1))
    log.append([b"garbage\n", b"[]\n", b'{"type":"event"}\n', b'{"type":"news"}\n', b"[" * 5000 + b"\n"])
    write(log, board, event(2, "Stop"))
    log.close()
    log, again = reopened(tmp_path)
    assert again.snapshot() == board.snapshot() and log.skipped == 5
    assert [each.seq for each in eventlog.logged(tmp_path)] == [1, 2]


def test_a_batch_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, event(1))
    log.close()
    log._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        log.append([of_event(event(2))])
    assert log._size == log.path.stat().st_size


def test_events_since_a_time_and_behind_a_number(tmp_path: Path) -> None:
    log, board = reopened(tmp_path)
    write(log, board, *(event(seq) for seq in range(1, 10)))
    assert [each.seq for each in eventlog.logged(tmp_path, since_ns=7)] == [7, 8, 9]
    assert [each.seq for each in eventlog.logged(tmp_path, after=8)] == [9]
    assert list(eventlog.logged(tmp_path / "nothing")) == []


def test_the_board_is_bounded(tmp_path: Path) -> None:
    board = Board()
    for seq in range(1, 300):
        board.take(event(seq, session=f"live{seq}", spool=f"{seq:08x}"))
        board.take(event(seq, "SessionEnd", session=f"over{seq}", spool=f"{seq:08x}"))
    states = [s.state for s in board.ordered()]
    assert states.count("ended") <= ENDED_KEPT and len(states) - states.count("ended") <= SESSIONS
    assert len(board.spools["box"]) == SPOOLS and board.last("box", f"{299:08x}") == 299
