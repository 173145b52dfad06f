"""What proves that a guest's kernel hangs: the same lockup, reported for a minute and more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.lima import lockup
from _claude_sandbox.lima.lockup import Watch, reports

SOFT = "[   41.1] watchdog: BUG: soft lockup - CPU#{} stuck for {}s! [systemd:1]\n"
SELF = "[   21.0] rcu: INFO: rcu_sched self-detected stall on CPU\n[   21.0] rcu: \t1-....: (5249 ticks this GP)\n[   21.0] \t(t={} jiffies g={} q=2 ncpus=2)\n"
STARVED = (
    "[   40.8] rcu: INFO: rcu_preempt self-detected stall on CPU\n"
    "[   40.8] rcu: \t0-...!: (944 ticks this GP) idle=6d14/1/0x4000000000000000 softirq=1174/1174 fqs=9\n"
    "[   40.8] rcu: rcu_preempt kthread starved for {} jiffies! g{} f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=1\n"
)
EXPEDITED = "[   90.1] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: {{ 0-... }} {} jiffies s: 57 root: 0x1/.\n"
PANIC = "[    3.2] Kernel panic - not syncing: Attempted to kill init!\n[    3.3] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def play(watch: Watch, console: Path, clock: Clock, script: list[tuple[float, str]], until: float) -> float:
    """The seconds after which a hang was proven, asked every two seconds; 0 for none."""
    begun = clock.now
    while clock.now - begun < until:
        while script and script[0][0] <= clock.now - begun:
            with console.open("a") as file:
                file.write(script.pop(0)[1])
        if watch.hangs():
            return clock.now - begun
        clock.now += 2
    return 0


@pytest.mark.parametrize("console", ["serial.log", "serialp.log", "serialv.log"])
def test_a_soft_lockup_is_proven_after_a_minute_and_a_half(
    tmp_path: Path, clock: Clock, console: str
) -> None:
    script = [(float(t), SOFT.format(1, t)) for t in range(22, 600, 23)]
    watch = Watch(tmp_path)
    assert 80 < play(watch, tmp_path / console, clock, script, 600) < 95
    assert watch.words == "watchdog: BUG: soft lockup - CPU#1 stuck for 91s! [systemd:1]"


@pytest.mark.parametrize(
    ("text", "words"),
    [(SELF, "rcu: INFO: rcu_sched self-detected stall on CPU"), (STARVED, "rcu: INFO: rcu_preempt self-detected"), (EXPEDITED, "rcu: INFO: rcu_preempt detected expedited")],
    ids=["RCU", "quiet", "expedited"],
)  # fmt: skip
def test_a_stall_is_proven_by_its_second_report(tmp_path: Path, clock: Clock, text: str, words: str) -> None:
    script = [(21.0, text.format(5250, -1195)), (87.0, text.format(21003, -1195))]
    watch = Watch(tmp_path)
    assert 86 < play(watch, tmp_path / "serial.log", clock, script, 600) < 90
    assert watch.words.startswith(words)


def test_a_panic_is_final(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path)
    assert 10 < play(watch, tmp_path / "serial.log", clock, [(3.0, PANIC)], 60) < 18
    assert watch.words == "Kernel panic - not syncing: Attempted to kill init!"


def test_a_kernel_that_boots_again_by_itself_after_a_panic_is_let(tmp_path: Path, clock: Clock) -> None:
    said = (
        "[    3.2] Kernel panic - not syncing: Attempted to kill init!\n[    3.3] Rebooting in 5 seconds..\n"
    )
    assert not play(Watch(tmp_path), tmp_path / "serial.log", clock, [(3.0, said)], 60)


@pytest.mark.parametrize(
    "script",
    [
        [(t, SOFT.format(0, 22)) for t in range(22, 600, 23)],  # every time another one
        [(t, SOFT.format(t % 5, 30 + t)) for t in (22, 45, 68, 91, 114)],
        [(22, SOFT.format(0, 22)), (24, SOFT.format(0, 7200)), (26, SOFT.format(0, 7202))],  # the host slept
        [(22, SOFT.format(0, 90))],
        [(t, SELF.format(5250, t)) for t in range(21, 600, 66)],
        [(22, "INFO: task systemd:1 blocked for more than 120 seconds.\n")],
    ],
    ids=["recovers", "five processors", "the host slept", "late and once", "stalls that end", "a hung task"],
)  # fmt: skip
def test_a_boot_that_goes_on_is_let(tmp_path: Path, clock: Clock, script: list[tuple[float, str]]) -> None:
    assert not play(Watch(tmp_path), tmp_path / "serial.log", clock, script, 600)


def test_no_wall_clock_is_asked(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the host's clock may be put right"))
    play(Watch(tmp_path), tmp_path / "serial.log", clock, [(22.0, SOFT.format(0, 22))], 30)


def test_an_answer_ends_the_watch(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path)
    watch.hear('[hostagent] Waiting for the essential requirement 1 of 3: "ssh"')
    (tmp_path / "serial.log").write_text(PANIC)
    assert not watch.hangs()
    clock.now += 60
    watch.hear("[hostagent] The essential requirement 1 of 3 is satisfied")
    assert not watch.hangs() and watch.words == ""


def test_the_kernels_words_are_made_printable(tmp_path: Path, clock: Clock) -> None:
    """The name of the process in them is whatever the guest's process calls itself."""
    script = [
        (float(t), SOFT.format(1, t).replace("systemd", "\x1b]0;t\x07\u202e")) for t in range(22, 600, 23)
    ]
    watch = Watch(tmp_path)
    assert play(watch, tmp_path / "serial.log", clock, script, 600)
    assert watch.words.isprintable() and len(watch.words) <= 200
    assert not set("\x1b\x07\u202e") & set(watch.last_words().decode())


def test_what_is_kept_and_read_is_bounded(tmp_path: Path, clock: Clock) -> None:
    watch, console = Watch(tmp_path), tmp_path / "serial.log"
    for turn in range(5):
        console.write_text("".join(SOFT.format(turn * 2000 + cpu, 22) for cpu in range(2000)))
        assert not watch.hangs()
    assert len(watch._seen) <= 256
    assert len(watch.last_words()) < 2 * lockup.TAIL


@given(
    st.text(st.characters(codec="latin-1"))
    | st.lists(st.sampled_from([SOFT, SELF, STARVED, EXPEDITED, PANIC, "{", "\0"])).map("".join)
)
def test_any_text_is_read(text: str) -> None:
    list(reports(text))
