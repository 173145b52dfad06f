"""hook.sh on this host: what it queues, what it costs, and that nothing makes it fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hookhost import HOOK, Home, Host, payload, wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(), reason="runs in Linux guests"
)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.close()


def content(file: Path) -> tuple[str, str, bytes]:
    first, project, data = file.read_bytes().split(b"\n", 2)
    return first.decode(), project.decode(), data


def test_an_event_is_queued_whole(guest: Home) -> None:
    guest.hook("Stop")
    (file,) = guest.waiting()
    assert file.name == "1" and file.stat().st_mode & 0o777 == 0o600
    assert file.parent.name == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    assert content(file) == ("4711 0b5c", "/work/app", payload("Stop"))
    assert abs(file.stat().st_mtime - time.time()) < 10


def test_numbers_rise_and_none_is_used_twice(guest: Home) -> None:
    for _ in range(3):
        guest.hook("Stop")
    guest.waiting()[2].unlink()  # delivered
    guest.hook("Stop")
    assert [file.name for file in guest.waiting()] == ["1", "2", "4"]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_any_posix_shell(guest: Home, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    guest.hook("Stop", shell=shell)
    guest.hook("Stop", shell=shell)
    assert [file.name for file in guest.waiting()] == ["1", "2"]


def test_parallel_hooks_are_all_there(guest: Home) -> None:
    running = [guest.start("Stop", payload("Stop", n=n)) for n in range(60)]
    assert all(process.wait(60) == 0 for process in running)
    files = guest.waiting()
    assert [file.name for file in files] == [str(n) for n in range(1, 61)]
    assert {json.loads(content(file)[2])["n"] for file in files} == set(range(60))


def test_killed_at_any_step_no_number_is_used_twice_and_none_is_half(guest: Home) -> None:
    for delay in range(40):
        process = guest.start("Stop", payload("Stop", n=delay))
        time.sleep(delay / 4000)
        os.killpg(process.pid, 9)
        process.wait()
    guest.hook("Stop", payload("Stop", n="last"))
    files = guest.waiting()
    assert len({file.name for file in files}) == len(files)
    assert json.loads(content(files[-1])[2])["n"] == "last"
    assert all(json.loads(content(file)[2])["session_id"] for file in files)


def test_three_programs_are_started(guest: Home, tmp_path: Path) -> None:
    """Each costs Claude a millisecond, under emulation thirty."""
    guest.hook("Stop")  # the first one makes the queue
    traced = tmp_path / "bin"
    traced.mkdir()
    for name in ("cat", "flock", "mv", "date", "mkdir", "rm", "ls", "tr", "head", "sed"):
        real = shutil.which(name)
        (traced / name).write_text(f'#!/bin/sh\necho {name} >>{tmp_path}/calls\nexec {real} "$@"\n')
        (traced / name).chmod(0o755)
    guest.hook("Stop", env={"PATH": f"{traced}:{os.environ['PATH']}"})
    assert (tmp_path / "calls").read_text().split() == ["cat", "flock", "mv"]
    guest.hook("PostToolUse", env={"PATH": f"{traced}:{os.environ['PATH']}"})
    assert len((tmp_path / "calls").read_text().split()) == 3


def test_a_tool_that_ran_counts_after_a_dialog_only(guest: Home) -> None:
    guest.hook("PostToolUse")
    assert guest.waiting() == []
    guest.hook("PermissionRequest")
    guest.hook("PostToolUse")
    guest.hook("PostToolUseFailure")
    guest.hook("Stop")
    guest.hook("PostToolUse")
    assert [json.loads(content(file)[2])["hook_event_name"] for file in guest.waiting()] == [
        "PermissionRequest", "PostToolUse", "PostToolUseFailure", "Stop",
    ]  # fmt: skip


def test_a_large_payload_is_cut_and_claude_does_not_notice(guest: Home) -> None:
    guest.hook("Stop", payload("Stop", text="x" * (10 << 20)))
    (file,) = guest.waiting()
    assert file.stat().st_size == 64 << 10
    guest.hook("Stop")
    assert len(guest.waiting()) == 2


def backlog(guest: Home, seq: int, acked: int = 0) -> Path:
    guest.hook("Stop")
    (queue,) = guest.queues()
    (queue / "seq").write_text(f"{seq}\n")
    (queue / "acked").write_text(f"{acked}\n")
    return queue


def test_where_many_wait_less_is_kept_of_each(guest: Home) -> None:
    queue = backlog(guest, 300)
    guest.hook("Stop", payload("Stop", text="x" * 9000))
    assert (queue / "301").stat().st_size == 4096


def test_where_more_wait_tools_are_only_counted(guest: Home) -> None:
    queue = backlog(guest, 4000, acked=2900)
    guest.hook("PreToolUse")
    guest.hook("PreToolUse")
    guest.hook("Notification")
    assert sorted(file.name for file in guest.waiting()) == ["1", "4001"]
    assert (queue / "lost").read_text() == "2\n"


def test_the_queue_is_bounded_and_the_newest_stay(guest: Home) -> None:
    queue = backlog(guest, 5000)
    guest.hook("Stop")
    assert sorted(file.name for file in guest.waiting()) == ["5001"]
    assert (queue / "lost").read_text() == "1\n"


def test_queues_of_old_boots_are_bounded(guest: Home) -> None:
    for n in range(8):
        old = guest.spool / f"{n:032x}"
        old.mkdir(parents=True)
        os.utime(old, (n, n))
    guest.hook("Stop")
    assert sorted(int(queue.name, 16) for queue in guest.queues())[:4] == [4, 5, 6, 7]
    assert len(guest.queues()) == 5


@pytest.mark.parametrize(
    "wrong",
    [{"HOME": ""}, {"HOME": "/proc"}, {"HOME": "/dev/null/home"}, {"PATH": ""}, {"PATH": "/nonexistent"}],
)
def test_whatever_is_wrong_claude_goes_on(guest: Home, wrong: dict[str, str]) -> None:
    shell = shutil.which("sh")
    assert shell
    guest.hook("PreToolUse", env=wrong, shell=shell)


def test_a_missing_or_broken_hook_does_not_stop_claude(tmp_path: Path) -> None:
    """A shell that cannot source a file ends with 2, which would block the tool: hence the trap."""
    broken = tmp_path / "broken.sh"
    broken.write_text("if\n")
    for file in (tmp_path / "missing.sh", broken):
        line = f"trap 'exit 0' 0; set -- queue Stop; . {file}"
        assert subprocess.run(["sh", "-c", line], check=False, capture_output=True).returncode == 0


def test_no_stdin_and_no_payload(guest: Home) -> None:
    guest.hook("Stop", b"")
    done = subprocess.run(["sh", "-c", guest.line("Stop") + " <&-"], env=guest.env, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(guest: Home) -> None:
    guest.spool.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(guest.spool)], check=True)
    try:
        guest.hook("Stop")
        guest.hook("Stop", payload("Stop", text="x" * 60_000))
        guest.hook("Stop", payload("Stop", text="x" * 60_000))
        guest.hook("Stop")
        guest.hook("Notification")
        assert json.loads(content(guest.waiting()[0])[2])["hook_event_name"] == "Stop"
    finally:
        subprocess.run(["umount", str(guest.spool)], check=True)


# -- by hand -------------------------------------------------------------------------------------


def by_hand(guest: Home, data: bytes, **env: str) -> float:
    begun = time.monotonic()
    done = subprocess.run(
        [str(HOOK)], input=data, env={**guest.env, **env}, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return time.monotonic() - begun


@pytest.mark.parametrize("curl", [True, False])
def test_by_hand_it_goes_straight_to_the_socket(guest: Home, tmp_path: Path, curl: bool) -> None:
    path = os.environ["PATH"]
    if not curl:
        for name in ("sh", "date", "tr", "head", "sed", "sleep", "perl", "base64"):
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
        path = str(tmp_path / "bin")
    host = Host(guest.socket)
    try:
        strange = '/work/a "b" \\c\n'
        by_hand(guest, payload("Stop", text="a\nb"), CLAUDE_HOOKS_SOCKET=str(guest.socket), PATH=path,
                CLAUDE_PROJECT_DIR=strange)  # fmt: skip
        by_hand(guest, b"[1,\n 2]", CLAUDE_HOOKS_SOCKET=str(guest.socket), PATH=path)
        by_hand(guest, payload("Stop", text="x" * 90_000), CLAUDE_HOOKS_SOCKET=str(guest.socket), PATH=path)
        first, second, third = host.events
        assert first["payload"]["text"] == "a\nb" and first["uuid"] == "0b5c"
        assert first["project"] == strange.strip()
        assert abs(first["time_ns"] / 1e9 - time.time()) < 30 and first["time"].endswith("Z")
        assert second["payload"] == [1, 2]
        assert "payload" not in third and len(third["head"]) == 2732
    finally:
        host.close()
    assert guest.queues() == []


def test_by_hand_with_nobody_there_it_gives_up(guest: Home) -> None:
    assert by_hand(guest, payload("Stop")) < 2
    assert by_hand(guest, payload("Stop"), CLAUDE_HOOKS_SOCKET=str(guest.socket)) < 3


def test_by_hand_with_a_host_that_stalls_it_gives_up(guest: Home) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.bind(str(guest.socket))
        stalled.listen()
        assert by_hand(guest, payload("Stop"), CLAUDE_HOOKS_SOCKET=str(guest.socket)) < 4


def test_by_hand_with_stdin_that_stalls_it_gives_up(guest: Home) -> None:
    process = subprocess.Popen(
        [str(HOOK)], env={**guest.env, "CLAUDE_HOOKS_SOCKET": str(guest.socket)}, stdin=subprocess.PIPE
    )
    assert process.wait(10) == 0
    assert process.stdin is not None
    process.stdin.close()


def test_by_hand_in_a_sandbox_it_goes_through_the_queue(guest: Home) -> None:
    guest.hook("Stop")
    by_hand(guest, payload("Stop"), CLAUDE_HOOKS_SOCKET="/run/user/1000/claude-hooks.sock")
    wait_until(lambda: len(guest.waiting()) == 2)
