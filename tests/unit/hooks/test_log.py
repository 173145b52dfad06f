"""The event log: what a restart finds after a crash at any point, and that it stays small."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.hooks import history as hooks_history
from _claude_sandbox.hooks import log as hooks_log
from _claude_sandbox.hooks.event import Event
from _claude_sandbox.hooks.log import EventLog, line, of_event
from _claude_sandbox.hooks.session_table import ENDED_KEPT, SESSIONS, SPOOLS, SessionTable


def event(
    seq: int, name: str = "UserPromptSubmit", *, session: str = "s", box: str = "box", spool: str = "aa" * 4
) -> Event:
    return Event(seq, f"{spool}:{seq}", seq, seq, box, "/p", name, session, "", 1, {"message": "m"})


def write(log: EventLog, table: SessionTable, *events: Event) -> None:
    log.append([of_event(each) for each in events])
    for each in events:
        table.take(each)
    log.rotate_if_long(table)


def reopened(directory: Path, **how: int) -> tuple[EventLog, SessionTable]:
    log, table = EventLog(directory, **how), SessionTable()
    log.open(table)
    return log, table


def test_a_restart_finds_sessions_spools_and_the_number(tmp_path: Path) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1), event(2, "Stop"), event(3, session="other"))
    log.append([line("stopped", {"sandbox": "box", "seq": 4, "time_ns": 4})])
    table.stop("box", 4, 4)
    log.close()
    _, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()
    assert again.seq == 4 and again.last("box", "aa" * 4) == 3
    assert [s.state for s in again.ordered()] == ["ended", "ended"]


def test_a_forgotten_sandbox_stays_forgotten(tmp_path: Path) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1))
    log.append([line("forgotten", {"sandbox": "box"})])
    log.close()
    _, again = reopened(tmp_path)
    assert not again.knows("box") and again.seq == 1


def test_it_is_rotated_and_a_restart_needs_the_newest_file_only(tmp_path: Path) -> None:
    log, table = reopened(tmp_path, limit=20_000)
    for seq in range(1, 401):
        write(log, table, event(seq, "Stop" if seq % 2 else "UserPromptSubmit"))
    assert rotated(tmp_path)
    assert [each.seq for each in hooks_log.logged(tmp_path)] == list(range(1, 401))
    log.sync()
    log.close()
    assert rotated(tmp_path) == [] and log.path.stat().st_size < 22_000
    assert json.loads(log.path.read_text().splitlines()[0])["type"] == "snapshot"
    assert [each.seq for each in hooks_log.logged(tmp_path)] == list(range(1, 401))
    shutil.rmtree(tmp_path / "history")
    _, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()


def rotated(directory: Path) -> list[Path]:
    return sorted(directory.glob("rotated-*"))


def test_a_flood_of_one_sandbox_leaves_the_others_their_history(tmp_path: Path) -> None:
    log, table = reopened(tmp_path, limit=20_000, history=60_000)
    quiet = [event(seq, box="quiet") for seq in range(1, 31)]
    write(log, table, *quiet)
    for seq in range(31, 3031):
        write(log, table, event(seq, box="flood"))
        if seq % 50 == 0:
            log.sync()
    log.sync()
    found = list(hooks_log.logged(tmp_path))
    assert [each.seq for each in found if each.sandbox == "quiet"] == list(range(1, 31))
    flood = [each.seq for each in found if each.sandbox == "flood"]
    assert flood == list(range(flood[0], 3031)) and 100 < len(flood) < 1000, "the newest of its own"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl")) < 60_000 + 22_000
    log.close()
    _, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()


def test_a_flood_from_many_sandboxes_is_bounded_too(tmp_path: Path) -> None:
    log, table = reopened(tmp_path, limit=20_000, history=60_000)
    for seq in range(1, 3001):
        write(log, table, event(seq, box=f"box{seq % 7}"))
        if seq % 50 == 0:
            log.sync()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl")) < 60_000 + 44_000
    assert {each.sandbox for each in hooks_log.logged(tmp_path)} == {f"box{n}" for n in range(7)}


def test_one_that_had_all_the_space_gives_way_to_others(tmp_path: Path) -> None:
    history = hooks_history.History(tmp_path / "history", limit=6_000)
    for box in ("first", "second", "third"):  # one behind the other: none of them writes again
        (tmp_path / "log").write_bytes(b"".join(of_event(event(seq, box=box)) for seq in range(1, 101)))
        history.take([tmp_path / "log"])
        assert sum(file.stat().st_size for file in history.files()) <= 6_000
    kept = [[json.loads(each)["seq"] for each in file.open("rb")] for file in history.files()]
    assert len(kept) == 3 and all(seqs == list(range(seqs[0], 101)) for seqs in kept), (
        "whole lines, the newest"
    )


def test_of_too_many_sandboxes_the_longest_silent_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_history, "MOST", 3)
    history = hooks_history.History(tmp_path / "history")
    for seq, box in enumerate("dcbaxd", 1):
        (tmp_path / "log").write_bytes(of_event(event(seq, box=box)))
        history.take([tmp_path / "log"])
        os.utime(history.directory / f"{box}.jsonl", (seq, seq))
    assert [file.name for file in history.files()] == ["a.jsonl", "d.jsonl", "x.jsonl"]


def test_the_log_of_the_last_release_is_read_and_kept(tmp_path: Path) -> None:
    """events.jsonl and up to three older ones, each with a snapshot at its head."""
    table, kept = SessionTable(), []
    for number, name in enumerate(["events.3.jsonl", "events.2.jsonl", "events.1.jsonl", "events.jsonl"]):
        head = line("snapshot", {"schema": hooks_log.SCHEMA, **table.snapshot()})
        events = [event(seq, box=f"box{seq % 2}") for seq in range(10 * number + 1, 10 * number + 11)]
        for each in events:
            table.take(each)
        kept += [each.seq for each in events]
        (tmp_path / name).write_bytes(head + b"".join(map(of_event, events)))
    assert [each.seq for each in hooks_log.logged(tmp_path)] == kept
    log, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()
    for _ in range(2):
        log.sync()
        assert [each.seq for each in hooks_log.logged(tmp_path)] == kept
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"events.jsonl", "history"} and len(list((tmp_path / "history").iterdir())) == 2


@pytest.mark.parametrize("step", ["write_atomic", "unlink"])
def test_killed_while_events_go_into_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    log, table = reopened(tmp_path, limit=5_000)
    for seq in range(1, 101):
        write(log, table, event(seq, box=f"box{seq % 3}"))
    left = [2]

    def dies(*arguments: Any, **how: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        real(*arguments, **how)

    with monkeypatch.context() as killed:
        where = hooks_history if step == "write_atomic" else Path
        real = getattr(where, step)
        killed.setattr(where, step, dies)
        with pytest.raises(KeyboardInterrupt):
            log.sync()
    assert [each.seq for each in hooks_log.logged(tmp_path)] == list(range(1, 101)), "none twice, none lost"
    (tmp_path / "history" / ".box1.jsonl.77.abc").write_bytes(b"half")
    log, again = reopened(tmp_path, limit=5_000)
    log.sync()
    assert again.snapshot() == table.snapshot() and rotated(tmp_path) == []
    assert [each.seq for each in hooks_log.logged(tmp_path)] == list(range(1, 101))
    files = list((tmp_path / "history").iterdir())
    assert sum(len(file.read_text().splitlines()) for file in files) == 100 - len(
        log.path.read_text().splitlines()[1:]
    )
    assert len(files) == 3


def test_without_a_history_rotated_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, table = reopened(tmp_path, limit=2_000)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(hooks_history, "write_atomic", full)
        for seq in range(1, 301):
            write(log, table, event(seq))
        with pytest.raises(OSError, match="No space"):
            log.sync()
        log.sync()  # not at once again
    assert len(rotated(tmp_path)) == hooks_log.KEPT
    monkeypatch.setattr(hooks_log, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(log, "_again", 0.0)
    log.sync()
    assert rotated(tmp_path) == []


def test_a_long_snapshot_does_not_make_each_event_a_new_file(tmp_path: Path) -> None:
    """Hostile guests can make it longer than the limit of a file: 64 sessions with long texts each."""
    log, table = reopened(tmp_path, limit=5_000)
    for seq in range(1, 201):
        write(log, table, event(seq, session=f"s{seq}", box=f"box{seq % 8}"))
    log.rotate(table)
    assert log.path.stat().st_size > 5_000
    before = len(rotated(tmp_path))
    write(log, table, event(201))
    assert len(rotated(tmp_path)) == before


def test_a_strange_name_stays_in_its_directory(tmp_path: Path) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1, box="../../x"), event(2, box=".."))
    log.rotate(table)
    log.sync()
    assert len(list((tmp_path / "history").iterdir())) == 2
    assert [each.sandbox for each in hooks_log.logged(tmp_path)] == ["../../x", ".."]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_not_there(tmp_path: Path, cut: int) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1))
    whole = log.path.stat().st_size
    write(log, table, event(2, "Stop"))
    log.close()
    os.truncate(log.path, log.path.stat().st_size - cut)
    assert [each.seq for each in hooks_log.logged(tmp_path)] == [1]
    log, again = reopened(tmp_path)
    assert again.seq == 1 and log.path.stat().st_size == whole
    write(log, again, event(2, "Stop"))
    assert [each.seq for each in hooks_log.logged(tmp_path)] == [1, 2]


@pytest.mark.parametrize("name", ["rotated-0000000000000002.0.jsonl", "events.1.jsonl"])
def test_killed_between_the_renames_of_a_rotation(tmp_path: Path, name: str) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1), event(2))
    log.close()
    os.replace(log.path, tmp_path / name)
    log, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()
    write(log, again, event(3))
    log.close()
    (tmp_path / name).unlink()
    _, last = reopened(tmp_path)
    assert last.seq == 3


@pytest.mark.parametrize("left", [b"", b'{"type":"snap', b"\x00" * 4096])
def test_what_a_power_cut_left_of_a_fresh_file(tmp_path: Path, left: bytes) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1), event(2, "Stop"))
    log.rotate(table)
    log.close()
    log.path.write_bytes(left)
    _, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot()
    _, once_more = reopened(tmp_path)
    assert once_more.snapshot() == table.snapshot()


def test_unreadable_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1))
    log.append([b"garbage\n", b"[]\n", b'{"type":"event"}\n', b'{"type":"news"}\n', b"[" * 5000 + b"\n"])
    write(log, table, event(2, "Stop"))
    log.close()
    log, again = reopened(tmp_path)
    assert again.snapshot() == table.snapshot() and log.skipped == 5
    assert [each.seq for each in hooks_log.logged(tmp_path)] == [1, 2]


def test_a_batch_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, table = reopened(tmp_path)
    write(log, table, event(1))
    before, room, real = log.path.read_bytes(), [60], os.write

    def nearly_full(fd: int, data: memoryview) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return real(fd, data[: room.pop()])

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", nearly_full)
        with pytest.raises(OSError, match="No space"):
            log.append([of_event(event(2))])
    assert log.path.read_bytes() == before and log._size == len(before)
    write(log, table, event(2))
    assert [each.seq for each in hooks_log.logged(tmp_path)] == [1, 2]


def test_events_since_a_time_and_behind_a_number(tmp_path: Path) -> None:
    log, table = reopened(tmp_path)
    write(log, table, *(event(seq) for seq in range(1, 10)))
    assert [each.seq for each in hooks_log.logged(tmp_path, since_ns=7)] == [7, 8, 9]
    assert [each.seq for each in hooks_log.logged(tmp_path, after=8)] == [9]
    assert list(hooks_log.logged(tmp_path / "nothing")) == []


def test_the_board_is_bounded(tmp_path: Path) -> None:
    table = SessionTable()
    for seq in range(1, 300):
        table.take(event(seq, session=f"live{seq}", spool=f"{seq:08x}"))
        table.take(event(seq, "SessionEnd", session=f"over{seq}", spool=f"{seq:08x}"))
    states = [s.state for s in table.ordered()]
    assert states.count("ended") <= ENDED_KEPT and len(states) - states.count("ended") <= SESSIONS
    assert len(table.spools["box"]) == SPOOLS and table.last("box", f"{299:08x}") == 299
