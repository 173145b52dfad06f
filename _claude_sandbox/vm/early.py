"""The setup over ssh that runs while Lima still waits for its guest agent, and the look at the mounts at every boot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from _claude_sandbox.errors import ClaudeSandboxError, StartError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Result
from _claude_sandbox.system.text import printable
from _claude_sandbox.vm import mounts
from _claude_sandbox.vm.lima_yaml import Share
from _claude_sandbox.vm.target import Target

Prepared = TypeVar("Prepared")

TIMEOUT = 120.0  # seconds that the early setup may go on when the VM is ready
# Makes the parents of mount points passable for the guest's user and proves that every mount is there. Prints
# who set this boot up, where that is our init (guest/files/usr/lib/claude-sandbox/init and handover).
_MOUNTS = """
parents=$1; shift
for d in $parents; do [ -x "$d" ] || sudo chmod a+x "$d" || exit 1; done
for point; do
  i=0
  until mountpoint -q "$point"; do
    i=$((i+1)); [ $i -le 20 ] || { echo "$point is not mounted" >&2; exit 1; }
    sleep 0.5
  done
done
[ ! -f /run/claude-sandbox/boot ] || head -c 300 /run/claude-sandbox/boot
"""
_FAST = "fast"  # our init has done everything before sshd: nothing comes later
_BY_CLOUD_INIT = "cloud-init: "


class EarlySetup(Generic[Prepared]):
    """What is done over ssh while Lima still waits for its guest agent: the mounts, and `prepare`.

    Only for a boot that our init has set up as a whole. In any other boot nothing done early counts: scripts that
    run later may add mounts, groups and variables. `prepare` gets a context whose messages are shown when it has
    ended; what it returned for this boot is `prepared`.
    """

    def __init__(self, ctx: Context, prepare: Callable[[Context, Target], Prepared] | None = None) -> None:
        self._ctx, self._prepare = ctx, prepare
        self.prepared: Prepared | None = None
        self._messages = BufferedProgress()
        self._thread: threading.Thread | None = None
        self._mounted = False
        self._bug: Exception | None = None

    def start(self, target: Target, shares: Sequence[Share]) -> None:
        """Returns at once. A second start (the first one failed) begins again."""
        self.wait()
        self._mounted, self.prepared = False, None
        self._thread = threading.Thread(target=self._work, args=(target, shares), daemon=True)
        self._thread.start()

    def wait(self) -> bool:
        """Wait for its end; whether the mounts were seen."""
        if self._thread is not None:
            self._thread.join(TIMEOUT)
            self._thread = None
            self._messages.replay(self._ctx.progress)
        if self._bug is not None:
            raise self._bug
        return self._mounted

    def check_mounts(self, instance: Instance, shares: Sequence[Share]) -> None:
        """After each start, unless it was done early. Raises StartError when the guest does not have a mount."""
        if not self.wait():
            self._ctx.effects.do(
                f"look at the mounts of {instance.name}", lambda: self._check_mounts(instance, shares), None
            )

    def _check_mounts(self, instance: Instance, shares: Sequence[Share]) -> None:
        with self._ctx.progress.stage("Looking at the mounts"):
            self._ctx.guest(instance).renew()  # it may be from before Lima's scripts
            result = _look_at_mounts(self._ctx, instance, shares)
        if not result.ok:
            raise StartError(
                f"{instance.name} started, but its mounts are missing.",
                details=result.error_text[:500],
                resolution="`claude-sandbox restart` tries again; "
                f"the guest's console: {instance.dir / 'serial.log'}",
            )
        set_up_by = printable(result.text, instead="")[:300]
        if set_up_by.startswith(_BY_CLOUD_INIT):
            reason = set_up_by.removeprefix(_BY_CLOUD_INIT)
            self._ctx.progress.note(
                f"{instance.name} was set up by cloud-init, which takes longer, because of: {reason}"
            )

    def _work(self, target: Target, shares: Sequence[Share]) -> None:
        quiet = replace(self._ctx, progress=self._messages)
        try:
            result = _look_at_mounts(quiet, target.instance, shares)
            self._mounted = result.ok and result.text.strip() == _FAST
            if self._mounted and self._prepare is not None:
                self.prepared = self._prepare(quiet, target)
        except (ClaudeSandboxError, OSError):
            pass  # the normal attempt later hits the same error and reports it
        except Exception as error:  # noqa: BLE001  # raised again by the thread that waits
            self._bug = error


class BufferedProgress(Progress):
    """Keeps messages, to be shown by another thread."""

    def __init__(self) -> None:
        self._kept: list[tuple[bool, str]] = []

    def note(self, text: str) -> None:
        self._kept.append((False, text))

    def warn(self, text: str) -> None:
        self._kept.append((True, text))

    def replay(self, progress: Progress) -> None:
        kept, self._kept = self._kept, []
        for is_warning, text in kept:
            (progress.warn if is_warning else progress.note)(text)


def _look_at_mounts(ctx: Context, instance: Instance, shares: Sequence[Share]) -> Result:
    """Raises GuestConnectionError."""
    points = [share.point for share in shares]
    parents = " ".join(str(p) for p in mounts.guest_parents(points) if " " not in str(p))
    guest = ctx.guest(instance)
    guest.connect()
    return guest.run(_MOUNTS, parents, *map(str, points), timeout=60)
