"""A guest whose kernel hangs in its boot is booted once more, and nothing else that its console says counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.box import ROOT, TIMEOUT, Box, Ended

APP = "claude-sandbox-app"
PATIENCE, SETTLE, ASKED_EVERY = 1.0, 0.5, 0.05  # seconds; the real ones would take minutes
# The program, with these.
FASTER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import claude_sandbox
from _claude_sandbox.lima import lockup
from _claude_sandbox.system import child
lockup.PATIENCE, lockup.SETTLE, child.ASKED_EVERY = {PATIENCE}, {SETTLE}, {ASKED_EVERY}
sys.exit(claude_sandbox.main())
"""
LOCKUP = "[   41.1] watchdog: BUG: soft lockup - CPU#{} stuck for {}s! [swapper/1:0]\r\n[   41.2] Modules linked in:\r\n"
STALL = (
    "[   21.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\r\n"
    "[   21.0] rcu: \t0-...!: (1 GPs behind) idle=f3c/1/0x4000000000000000 softirq=12/13 fqs=0\r\n"
    "[   21.0] \t(detected by 1, t={} jiffies, g=-1147, q=6 ncpus=2)\r\n"
)
PANIC = "[    3.2] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\r\n"
# The same processor, three times: more than PATIENCE from the first to the last.
STUCK = [[0, LOCKUP.format(1, 22)], [0.7, LOCKUP.format(1, 45)], [0.7, LOCKUP.format(1, 68)]]
TOLD = "is booted once more: its kernel hung while it booted"
AGAIN = "hung while it booted, and so did a second boot."


@pytest.fixture
def made(ready: Box) -> Box:
    """A box with a stopped sandbox."""
    assert (ended := ready.run("create")).code == 0, ended.text
    ready.run("stop")
    ready.mend()
    ready.forget_calls()
    return ready


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", FASTER, *arguments]


def start(box: Box, verb: str = "start") -> Ended:
    done = subprocess.run(
        command(verb), cwd=box.project(), env=box.env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def alive(box: Box) -> list[int]:
    """The processes of VMs."""
    pids = [int(line) for line in (box.root / "pids").read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and not _zombie(pid)]


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def starts(box: Box) -> int:
    return len(box.calls("limactl", "start"))


def running(box: Box) -> None:
    """Once, and whole."""
    assert box.vms()[APP] == "Running" and len(alive(box)) == 2
    assert box.run("shell", "--", "pwd").code == 0


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (STUCK, "watchdog: BUG: soft lockup - CPU#1 stuck for 68s! [swapper/1:0]"),
        ([[0, STALL.format(5252)], [1.3, STALL.format(21003)]], "rcu: INFO: rcu_sched detected stalls"),
        ([[0, PANIC]], "Kernel panic - not syncing: VFS: Unable to mount root fs"),
    ],
    ids=["soft lockup", "RCU", "panic"],
)
def test_a_hung_boot_is_done_once_more(made: Box, says: list[list[object]], words: str) -> None:
    made.fault("start.1", console=says, hangs=True)
    ended = start(made)
    assert ended.code == 0, ended.text
    assert TOLD in ended.err and words in ended.err
    assert starts(made) == 2
    running(made)
    log = made.home / ".local/state/claude-sandbox/logs" / f"{APP}.log"
    assert words in log.read_text(), "the second start begins the console's file again"


def test_so_is_the_first_one_of_a_new_sandbox(ready: Box) -> None:
    ready.fault("start.1", console=STUCK, hangs=True)
    ended = start(ready, "create")
    assert ended.code == 0 and TOLD in ended.err, ended.text
    assert starts(ready) == 2
    running(ready)


def test_a_second_hang_is_an_error_and_leaves_nothing_running(made: Box) -> None:
    made.fault("start", console=STUCK, hangs=True)
    ended = start(made)
    assert ended.code == 1 and AGAIN in ended.err and "Traceback" not in ended.text, ended.text
    assert "CPU#1 stuck for 68s!" in ended.err and f"{APP}.log" in ended.err
    assert starts(made) == 2
    made.mend()
    assert made.vms()[APP] == "Stopped" and alive(made) == []
    assert start(made).code == 0
    running(made)


def test_a_second_hang_of_a_new_sandbox_leaves_nothing(ready: Box) -> None:
    ready.fault("start", console=STUCK, hangs=True)
    ended = start(ready, "create")
    assert ended.code == 1 and AGAIN in ended.err, ended.text
    ready.mend()
    assert ready.vms() == {"tools-vm": "Stopped"} and alive(ready) == []


@pytest.mark.parametrize(
    "says",
    [
        [[0, LOCKUP.format(0, 22)], [1.5, "[  OK  ] Reached target Network.\r\n"]],
        [[0, LOCKUP.format(0, 22)], [0.7, LOCKUP.format(0, 45)], [1.2, ""]],
        [[0, LOCKUP.format(0, 22)], [1.5, LOCKUP.format(0, 22)], [0.5, ""]],
        [[0, LOCKUP.format(0, 22)], [1.5, LOCKUP.format(1, 45)], [0.5, ""]],
        [[0, LOCKUP.format(0, 22)], [0.3, LOCKUP.format(0, 3622)], [0.3, ""]],
        [[0, STALL.format(5252)], [1.5, STALL.format(5252).replace("-1147", "-1143")], [0.5, ""]],
    ],
    ids=[
        "once",
        "twice and over",
        "another one later",
        "another processor",
        "its clock jumped",
        "another stall",
    ],
)
def test_a_report_of_a_boot_that_goes_on_changes_nothing(made: Box, says: list[list[object]]) -> None:
    """An overloaded host makes a guest's kernel say so, and the boot goes on."""
    made.fault("start", console=says)
    ended = start(made)
    assert ended.code == 0 and TOLD not in ended.err, ended.text
    assert starts(made) == 1
    running(made)


def test_what_a_guest_prints_once_ssh_has_answered_is_not_read(made: Box) -> None:
    made.fault("start", later_console=[*STUCK, [0, PANIC], [1, PANIC]])
    ended = start(made)
    assert ended.code == 0 and TOLD not in ended.err, ended.text
    assert starts(made) == 1
    running(made)


def test_the_console_of_an_earlier_boot_is_not_read(made: Box) -> None:
    (made.lima_home / APP / "serial.log").write_text("".join(str(text) for _, text in STUCK) + PANIC)
    made.fault("start", delay=1.5)
    ended = start(made)
    assert ended.code == 0 and TOLD not in ended.err, ended.text
    assert starts(made) == 1


def test_a_hostile_console_is_bounded_and_made_printable(made: Box) -> None:
    escape = "\x1b]52;c;eA==\x07\u202e"
    flood = "".join(LOCKUP.format(cpu, 22) for cpu in range(3000)) + "\0" * (1 << 20) + "x" * (1 << 20)
    says = [[0, flood], *[[pause, str(text).replace("swapper", escape)] for pause, text in STUCK]]
    made.fault("start", console=says, hangs=True)
    ended = start(made)
    assert ended.code == 1 and AGAIN in ended.err, ended.text
    assert starts(made) == 2
    assert not set("\x1b\x07\u202e") & set(ended.text)
    log = (made.home / ".local/state/claude-sandbox/logs" / f"{APP}.log").read_text()
    assert not set("\x1b\x07\u202e") & set(log) and len(log) < 1 << 20


@pytest.mark.parametrize("moment", ["while it hangs", "while it is ended"])
def test_ctrl_c_ends_a_hung_boot(made: Box, moment: str) -> None:
    slow = moment == "while it is ended"
    made.fault("start", console=STUCK if slow else STUCK[:1], hangs=True)
    if slow:
        made.fault("stop.1", delay=3)
    program = subprocess.Popen(
        command("start"), cwd=made.project(), env=made.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(made, "stop" if slow else "start")
    time.sleep(0.5)
    os.kill(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=TIMEOUT)
    assert program.returncode == 130 and "Traceback" not in err, err
    made.mend()
    assert made.vms()[APP] == "Stopped" and alive(made) == [] and starts(made) == 1


def wait_for(box: Box, verb: str) -> None:
    deadline = time.monotonic() + 20
    while not box.calls("limactl", verb) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_dry_run_watches_nothing(made: Box) -> None:
    ended = made.run("start", "--dry-run")
    assert ended.code == 0 and "limactl" in ended.text and starts(made) == 0
