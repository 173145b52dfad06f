"""Identities of processes: the same whatever the clock does, and never another's."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.system import processes
from _claude_sandbox.system.processes import Identity


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_is_the_same_until_it_ends(child: subprocess.Popen[bytes]) -> None:
    known = processes.identity(child.pid)
    assert known is not None and known.pid == child.pid and processes.same(known)
    assert processes.from_json(known.to_json()) == known
    child.kill()
    deadline = time.monotonic() + 5
    while (
        processes.same(known) and time.monotonic() < deadline
    ):  # a zombie from then on: nobody waited for it
        time.sleep(0.01)
    assert psutil.pid_exists(child.pid) and not processes.same(known)
    assert processes.identity(child.pid) is None and processes.arguments(child.pid) is None


def test_two_processes_are_never_the_same(child: subprocess.Popen[bytes]) -> None:
    known = processes.identity(child.pid)
    assert known is not None and known != processes.identity(os.getpid())
    assert not processes.same(Identity(known.pid, known.boot, known.start - 1))  # the number is used again
    assert not processes.same(Identity(known.pid, "another boot", known.start))
    for pid in (0, -1, 1 << 22, 1 << 60):
        assert processes.identity(pid) is None


@pytest.mark.parametrize("step", [-86400.0, -3.0, 3.0, 120.0, 1e9])
def test_the_clock_does_not_matter(
    child: subprocess.Popen[bytes], step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil reckons with the time of the boot, which is now minus uptime: it moves with the clock."""
    known = processes.identity(child.pid)
    assert known is not None
    true, now = psutil.Process.create_time, time.time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: true(self) + step)
    monkeypatch.setattr(time, "time", lambda: now() + step)
    assert processes.same(known)


def test_a_record_of_an_older_version(child: subprocess.Popen[bytes]) -> None:
    born = psutil.Process(child.pid).create_time()
    assert processes.from_json({"pid": child.pid, "started": born + 1}) == processes.identity(child.pid)
    for started in (born + 100, 0, -1e300, float("nan"), "x", None):
        assert processes.from_json({"pid": child.pid, "started": started}) is None


@pytest.mark.parametrize(
    "value", [None, [], {}, {"pid": "1"}, {"pid": True, "boot": "", "start": 1}, {"pid": 1, "boot": 2, "start": 3},
              {"pid": 1, "boot": "x", "start": 1.5}, {"pid": 1 << 80, "started": 1.0}],
)  # fmt: skip
def test_what_makes_no_sense_names_no_process(value: object) -> None:
    assert processes.from_json(value) is None


def test_stat_whatever_the_program_is_called() -> None:
    rest = " ".join(str(number) for number in range(4, 53))
    for name in ("sleep", "a) Z (b", ") 1 2 3", "x y"):
        assert processes.parse_stat(f"7 ({name}) S {rest}\n".encode()) == 22
    assert processes.parse_stat(f"7 (sleep) Z {rest}\n".encode()) is None
    assert processes.parse_stat(b"") is None and processes.parse_stat(b"7 (sleep) S 1 2\n") is None


def test_macos_struct() -> None:
    """sys/proc_info.h: pbi_status is the second field, the start the last two."""
    head = struct.pack("=5I6II16s32s5Ii", 0, 2, 0, 7, 1, *[501] * 6, 0, b"sleep", b"sleep", *[0] * 5, 0)
    assert processes.parse_bsdinfo(head + struct.pack("=2Q", 1700000000, 25)) == 1700000000000025
    ended = struct.pack("=2I", 0, 5) + head[8:]
    assert processes.parse_bsdinfo(ended + struct.pack("=2Q", 1700000000, 25)) is None
    assert processes.parse_bsdinfo(b"") is None


def test_what_a_process_is() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 600; :", "a b", ""], start_new_session=True) as process:
        deadline = time.monotonic() + 5
        while (processes.arguments(process.pid) or ["?"])[0] != "sh" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes.arguments(process.pid) == ["sh", "-c", "sleep 600; :", "a b", ""]
        assert process.pid in set(processes.all_pids())
        os.killpg(process.pid, 9)
    assert processes.arguments(process.pid) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux")
def test_a_boot_has_a_name() -> None:
    assert processes.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    me = processes.identity(os.getpid())
    assert me is not None and me.boot == processes.boot_id() != ""  # after a reboot nobody is the same


def test_whose_processes_may_be_a_user_s() -> None:
    me, other = os.geteuid() or 65001, 65002
    assert processes.may_be_of(1, me) and processes.may_be_of(1, 0)  # root's
    assert processes.may_be_of(1 << 22, me)  # one whose owner cannot be seen
    if os.geteuid() != 0:
        assert processes.may_be_of(os.getpid(), me) and processes.may_be_of(os.getpid(), 0)
        assert not processes.may_be_of(os.getpid(), other)
