"""hook.sh and the delivery service together, on this host, against a tiny one: none lost, none twice, in order."""

from __future__ import annotations

import base64
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hookhost import DELIVER, Home, Host, payload, wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(), reason="runs in Linux guests"
)
BOOT = Path("/proc/sys/kernel/random/boot_id")


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.close()


@pytest.fixture
def host(guest: Home) -> Iterator[Host]:
    host = Host(guest.socket)
    yield host
    host.close()


def queued(guest: Home, count: int) -> None:
    """`count` events as hook.sh leaves them, without the time that it takes."""
    boot = BOOT.read_text().strip().replace("-", "")
    queue = guest.spool / boot
    queue.mkdir(parents=True, exist_ok=True)
    first = int((queue / "seq").read_text()) + 1 if (queue / "seq").exists() else 1
    for n in range(first, first + count):
        (queue / str(n)).write_bytes(b"4711 0b5c\n/work/app\n" + payload("Stop", n=n))
    (queue / "seq").write_text(f"{first + count - 1}\n")


def numbers(host: Host) -> list[int]:
    return [event["payload"]["n"] for event in host.events]


def test_an_event_on_the_wire(guest: Home, host: Host) -> None:
    guest.deliver()
    guest.hook("Stop", b'{"a": "b\\n",\n "session_id": "x"}\n', env={"CLAUDE_PROJECT_DIR": '/a "b" \\ \t ü'})
    wait_until(lambda: host.events)
    (event,) = host.events
    assert re.fullmatch(r"[0-9a-f]{32}:1", event["id"])
    assert event["pid"] == 4711 and event["uuid"] == "0b5c" and event["project"] == '/a "b" \\ \t ü'
    assert event["payload"] == {"a": "b\n", "session_id": "x"}
    assert abs(event["time_ns"] / 1e9 - time.time()) < 10
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event["time_ns"] // 10**9))
    assert event["time"] == f"{iso}.{event['time_ns'] % 10**9:09d}Z"
    wait_until(lambda: not guest.waiting())


def test_a_burst_of_2000_in_order_in_few_batches(guest: Home, host: Host) -> None:
    queued(guest, 2000)
    guest.deliver()
    wait_until(lambda: len(host.events) == 2000)
    assert numbers(host) == list(range(1, 2001))
    assert len(host.sizes) <= 5 and host.repeated == 0
    wait_until(lambda: not guest.waiting())


def test_hooks_in_parallel_while_it_delivers(guest: Home, host: Host) -> None:
    guest.deliver()
    running = [guest.start("Stop", payload("Stop", n=n)) for n in range(80)]
    assert all(process.wait(60) == 0 for process in running)
    wait_until(lambda: len(host.events) == 80)
    assert sorted(numbers(host)) == list(range(80)) and host.repeated == 0
    ids = [int(event["id"].split(":")[1]) for event in host.events]
    assert ids == sorted(ids)


def test_what_waited_for_a_host_goes_first(guest: Home) -> None:
    service = guest.deliver()
    for n in (1, 2):
        guest.hook("Stop", payload("Stop", n=n))
    time.sleep(0.5)  # it tries, and there is nobody
    host = Host(guest.socket)
    try:
        wait_until(lambda: len(host.events) == 2)
        host.close()
        guest.hook("Stop", payload("Stop", n=3))
        host = Host(guest.socket)
        guest.hook("Stop", payload("Stop", n=4))
        wait_until(lambda: len(host.events) == 2)
        assert numbers(host) == [3, 4]
    finally:
        host.close()
    assert service.poll() is None


def test_what_was_taken_but_not_acknowledged_comes_again(guest: Home, host: Host) -> None:
    """The answer is lost: the host knows the numbers, and none counts twice."""
    host.answers = [None, (500, {}), (404, {})]
    queued(guest, 3)
    guest.deliver()
    wait_until(lambda: not guest.waiting())
    assert numbers(host) == [1, 2, 3] and len(host.sizes) == 4


def test_too_fast_for_the_host(guest: Home, host: Host) -> None:
    host.answers = [(429, {"Retry-After": "1"}), (503, {})]
    queued(guest, 3)
    begun = time.monotonic()
    guest.deliver()
    wait_until(lambda: not guest.waiting())
    assert numbers(host) == [1, 2, 3] and len(host.sizes) == 3
    assert time.monotonic() - begun > 1


def test_too_much_at_once_for_the_host(guest: Home, host: Host) -> None:
    host.limit = 3000
    queued(guest, 40)
    queue = guest.waiting()[0].parent
    (queue / "20").write_bytes(b"1 -\n/p\n" + payload("Stop", n=20, text="x" * 4000))  # too much on its own
    guest.deliver()
    wait_until(lambda: not guest.waiting())
    assert numbers(host) == [n for n in range(1, 41) if n != 20]


def test_batches_are_a_mebibyte_at_most(guest: Home, host: Host) -> None:
    queued(guest, 40)
    for file in guest.waiting():
        file.write_bytes(b"1 -\n/p\n" + payload("Stop", n=int(file.name), text="x" * 60_000))
    guest.deliver()
    wait_until(lambda: not guest.waiting())
    assert numbers(host) == list(range(1, 41))
    assert max(host.sizes) <= 1 << 20 and len(host.sizes) == 3


def test_what_was_cut_comes_as_its_head(guest: Home, host: Host) -> None:
    guest.deliver()
    guest.hook("Stop", payload("Stop", text="x" * (10 << 20)))
    wait_until(lambda: host.events)
    (event,) = host.events
    assert "payload" not in event
    assert base64.b64decode(event["head"], validate=True) == payload("Stop", text="x" * 9999)[:2048]


@pytest.mark.parametrize("size", range(2040, 2046))
def test_any_length_of_a_head(guest: Home, host: Host, size: int) -> None:
    broken = b'{"text": "' + bytes(range(1, 256)) * 9
    guest.hook("Stop", broken[: size - 2000])
    guest.deliver()
    wait_until(lambda: host.events)
    sent = broken[: size - 2000].replace(b"\n", b" ").replace(b"\r", b" ")
    assert base64.b64decode(host.events[0]["head"], validate=True) == sent


@pytest.mark.parametrize(
    "data", [b"", b"\0\0{}", b"garbage\n", b"{\xff\xfe}", b"[" * 9000, b'{"a": }', b"\n\n{}\n\n"]
)
def test_garbage_does_not_stop_what_follows(guest: Home, host: Host, data: bytes) -> None:
    guest.deliver()
    guest.hook("Stop", data)
    guest.hook("Stop", payload("Stop", n=2))
    wait_until(lambda: host.events and host.events[-1].get("payload", {}).get("n") == 2)
    wait_until(lambda: not guest.waiting())


def test_half_files_of_a_power_cut_are_passed_over(guest: Home, host: Host) -> None:
    queued(guest, 3)
    guest.waiting()[1].write_bytes(b"")
    guest.deliver()
    wait_until(lambda: not guest.waiting())
    assert numbers(host) == [1, 3]


def test_what_earlier_boots_left_goes_first(guest: Home, host: Host) -> None:
    queued(guest, 2)
    for age, name in ((50, "a" * 32), (100, "b" * 32)):
        old = guest.spool / name
        old.mkdir()
        (old / "7").write_bytes(b"1 -\n/p\n" + payload("Stop", n=age))
        (old / "seq").write_text("7\n")
        (old / "new.12").write_text("half")
        os.utime(old, (time.time() - age,) * 2)
    guest.deliver()
    wait_until(lambda: len(host.events) == 4)
    assert numbers(host) == [100, 50, 1, 2]
    wait_until(lambda: len(guest.queues()) == 1)


def test_a_number_that_is_not_settled_waits(guest: Home, host: Host) -> None:
    """A directory is not read in one instant: a later event may show before an earlier one."""
    queued(guest, 3)
    (guest.waiting()[0].parent / "seq").write_text("2\n")
    guest.deliver()
    wait_until(lambda: [file.name for file in guest.waiting()] == ["3"])  # removed once it was answered
    assert len(host.events) == 2


def test_losses_are_told(guest: Home, host: Host) -> None:
    queued(guest, 1)
    queue = guest.waiting()[0].parent
    (queue / "lost").write_text("12\n")
    guest.deliver()
    wait_until(lambda: len(host.events) == 2)
    told = host.events[1]["payload"]
    assert told["hook_event_name"] == "HookEventsLost" and told["count"] == 12
    assert told["message"] == "12 hook events were lost"
    guest.hook("Stop", payload("Stop", n=3))
    wait_until(lambda: len(host.events) == 3)
    assert not (queue / "lost").exists()


def test_killed_at_any_moment_the_next_one_goes_on(guest: Home, host: Host) -> None:
    rng = random.Random(5)
    queued(guest, 3000)
    while len(host.events) < 3000:
        service = guest.deliver()
        time.sleep(rng.random() / 10)
        service.kill()
        service.wait()
    assert numbers(host) == list(range(1, 3001))


def test_it_ends_with_its_stdin(guest: Home, host: Host) -> None:
    service = guest.deliver()
    assert service.stdin is not None
    service.stdin.close()
    assert service.wait(5) == 0


def test_it_ends_with_its_stdin_while_nobody_answers(guest: Home) -> None:
    queued(guest, 1)
    service = guest.deliver()
    time.sleep(1)
    assert service.stdin is not None
    service.stdin.close()
    assert service.wait(5) == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_the_next_one_ends_the_one_before(guest: Home, host: Host, stopped: bool) -> None:
    """Its connection died and it does not know; even one that no longer runs is ended."""
    first = guest.deliver()
    if stopped:
        first.send_signal(signal.SIGSTOP)
    guest.deliver()
    assert first.wait(10) < 0
    guest.hook("Stop", payload("Stop", n=1))
    wait_until(lambda: numbers(host) == [1])


def test_it_sleeps_when_there_is_nothing_to_do(guest: Home, host: Host) -> None:
    service = guest.deliver()
    guest.hook("Stop", payload("Stop", n=1))
    wait_until(lambda: not guest.waiting())
    time.sleep(0.3)
    before = Path(f"/proc/{service.pid}/stat").read_text().split()[13:17]
    switches = re.findall(r"ctxt_switches:\s*(\d+)", Path(f"/proc/{service.pid}/status").read_text())
    time.sleep(1)
    assert Path(f"/proc/{service.pid}/stat").read_text().split()[13:17] == before
    assert re.findall(r"ctxt_switches:\s*(\d+)", Path(f"/proc/{service.pid}/status").read_text()) == switches


def test_a_service_that_hangs_does_not_hold_up_the_hook(guest: Home) -> None:
    service = guest.deliver()
    service.send_signal(signal.SIGSTOP)
    for _ in range(3):
        assert guest.hook("Stop") < 5
    assert len(guest.waiting()) == 3
    service.send_signal(signal.SIGCONT)


def test_it_needs_no_more_than_perl_base(guest: Home) -> None:
    base = Path("/usr/lib/x86_64-linux-gnu/perl-base")
    if not base.exists():
        pytest.skip("no Debian")
    used = re.findall(r"^use ([\w:]+)", DELIVER.read_text(), re.MULTILINE)
    pragmas = {"strict", "warnings", "constant"}
    for name in set(used) - pragmas:
        assert (
            subprocess.run(["perl", "-e", f"@INC = ('{base}'); require {name}"], check=False).returncode == 0
        )
