"""Whether the guest's kernel hangs in its boot, by what it reports on the serial console.

Under QEMU's emulation a boot with several processors may hang for good (docs/performance.md, `cgroup.memory=nokmem`).
A kernel that still takes its timer interrupt notices, and says so again and again. Linux 6.1 under QEMU 7.2, a
jump to itself written over one of its instructions, the host at a load of 13, the command line with `quiet` (without
it there are many more lines to each report):

    [   40.845583] rcu: INFO: rcu_preempt self-detected stall on CPU
    [   40.845583] rcu: rcu_preempt kthread starved for 5182 jiffies! g933 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=1
    [   68.739452] watchdog: BUG: soft lockup - CPU#1 stuck for 49s! [systemd-journal:157]
    [   96.734443] watchdog: BUG: soft lockup - CPU#1 stuck for 75s! [systemd-journal:157]
    [  103.860818] rcu: INFO: rcu_preempt self-detected stall on CPU
    [  103.860818] rcu: rcu_preempt kthread starved for 20936 jiffies! g933 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=1
    [  128.731867] watchdog: BUG: soft lockup - CPU#1 stuck for 104s! [systemd-journal:157]

From its source (kernel/rcu/tree_stall.h, kernel/panic.c), where the number of a grace period may be negative:

    (detected by 0, t=5252 jiffies, g=-1147, q=6 ncpus=2)
    ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---

One report proves nothing: on a busy host an emulated processor gets no time for half a minute, the kernel says 22 s,
and the boot goes on. So a hang is one lockup that is reported again, with a greater number, a minute or more after its
first report (`PATIENCE`): by the kernel's count and by the host's monotonic clock, since either alone jumps (a guest's
when its host slept). The kernel reports a soft lockup every 22 to 30 s and a stall of RCU every 63 to 66 s, so a
processor has stood still for about 90 s then. A false alarm costs one more boot, or a start that would have taken minutes.

The guest writes the console: what it says there can end its own boot, and nothing else. Nothing is read once it has
answered ssh.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.system.text import for_log, one_line

PATIENCE = 60.0  # seconds between the first report of a lockup and the one that proves a hang
SETTLE = 10.0  # seconds after a panic: a guest's program may have written that line
TAIL = 64 << 10  # bytes of the console that are looked at: reports of several processors, 3 KiB each
_KEPT = 256  # lockups remembered; a kernel has a few
_LINE = 500  # characters of a line that are looked at; the kernel's are shorter
_SHOWN = 200  # that are shown
# Lima's names: QEMU's first serial port, a second one on ARM, virtio's (vz has only that).
_CONSOLES = ("serial.log", "serialp.log", "serialv.log")

_SOFT = re.compile(r"(?:watchdog: )?BUG: soft lockup - CPU#(\d{1,5}) stuck for (\d{1,7})s!")
_STALL = re.compile(r"rcu: INFO: \w{1,40} (?:self-)?detect.*")
_GRACE_PERIOD = re.compile(r"\bt=(\d{1,12}) jiffies,? g=(-?\d{1,12})\b")
_STARVED = re.compile(r"kthread starved for (\d{1,12}) jiffies! g(-?\d{1,12})\b")
_EXPEDITED = re.compile(
    r"rcu: INFO: \w{1,40} detected expedited stalls on .{0,200}\} (\d{1,12}) jiffies s: (\d{1,12})\b"
)
_PANIC = re.compile(
    r"---\[ end (Kernel panic - not syncing.*)"
)  # only where it does not boot again by itself


@dataclass(frozen=True)
class Report:
    """What the kernel said about one lockup: `number` grows as long as that lockup lasts (seconds or jiffies).

    `least`: a smaller number proves nothing. `final`: it is not said twice.
    """

    lockup: str
    number: int
    words: str
    least: float = 0
    final: bool = False


def reports(text: str) -> Iterator[Report]:
    """The reports in a console's text, oldest first.

    >>> [(r.lockup, r.number) for r in reports("[  41.1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:9]")]
    [('CPU 1', 22)]
    """
    stall = ""
    for line in text.splitlines():
        line = line[-_LINE:]  # a program's output, without a line end, may precede the kernel's words
        if found := _SOFT.search(line):
            # Not the same lockup for certain: CPU 1 may recover, and be stuck for 22 s once more.
            yield Report(f"CPU {found[1]}", int(found[2]), line[found.start() :], least=PATIENCE)
        elif found := _PANIC.search(line):
            yield Report("panic", 0, found[1].removesuffix(" ]---"), final=True)
        elif found := _EXPEDITED.search(line):
            yield Report(f"expedited {found[2]}", int(found[1]), line[found.start() :])
        elif found := _STALL.search(line):
            stall = found[0]
        elif stall and (found := _STARVED.search(line)):
            yield Report(f"grace period {found[2]}, thread", int(found[1]), stall)
        elif stall and (found := _GRACE_PERIOD.search(line)):
            yield Report(f"grace period {found[2]}", int(found[1]), stall)


class Watch:
    """The console of one boot, from before Lima's start. Made while nothing of the VM runs."""

    def __init__(self, directory: Path) -> None:
        self._consoles = {directory / name: _stamp(directory / name) for name in _CONSOLES}
        self._answered = False
        self._seen: dict[
            str, tuple[float, int]
        ] = {}  # lockup: its first report by our clock, its last number
        self.words = ""  # the kernel's line, fit for a terminal; "" as long as nothing is proven

    def hear(self, line: str) -> None:
        """One line of limactl's: with the first requirement the guest has answered ssh."""
        if "essential requirement" in line and "is satisfied" in line:
            self._answered = True

    def hangs(self) -> bool:
        """Whether the kernel hangs for good. To be asked every few seconds."""
        if self._answered:
            return False
        now = time.monotonic()
        lasting = [report for report in self._newest() if self._lasts(report, now)]
        if lasting and not self._answered:
            self.words = one_line(lasting[-1].words)[:_SHOWN]
        return bool(self.words)

    def _newest(self) -> list[Report]:
        """The last report of each lockup."""
        text = self._tail().decode("utf-8", "replace")
        return list({report.lockup: report for report in reports(text)}.values())[-_KEPT:]

    def _lasts(self, report: Report, now: float) -> bool:
        since, last = self._seen.get(report.lockup, (now, report.number))
        if report.number < last:
            since = now  # that one is over, this is another
        self._seen.pop(report.lockup, None)
        self._seen[report.lockup] = since, report.number
        while len(self._seen) > _KEPT:
            del self._seen[next(iter(self._seen))]
        if report.final:
            return now - since >= SETTLE
        return report.number > last and report.number >= report.least and now - since >= PATIENCE

    def _tail(self) -> bytes:
        """The end of what this boot has written; Lima and vz begin the files again at each start."""
        changed = [file for file, before in self._consoles.items() if _stamp(file) not in (None, before)]
        return b"\n".join(map(_end_of, changed))

    def last_words(self) -> bytes:
        """The end of the console, with a line above it: the next start begins the file again."""
        return (
            b"--- console of the guest whose kernel hung ---\n" + for_log(self._tail()) + b"\n--- end ---\n"
        )


def _stamp(file: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _end_of(file: Path) -> bytes:
    with contextlib.suppress(OSError), file.open("rb") as console:
        size = os.fstat(console.fileno()).st_size
        console.seek(max(0, size - TAIL))
        return console.read(TAIL)
    return b""
