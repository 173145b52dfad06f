"""What a new VM gets over ssh once it is up for the first time, and the mounts' parents at every boot.

Lima does not report a failed provision script (facts/lima.md §0), so this work goes over ssh, where a
failure is loud.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from _claude_sandbox.errors import ClaudeSandboxError, CreateError, StartError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.lima.ssh import Guest, guest_script
from _claude_sandbox.system.files import write_atomic
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Result
from _claude_sandbox.system.text import number, one_line, printable
from _claude_sandbox.vm import mounts
from _claude_sandbox.vm.lima_yaml import Share
from _claude_sandbox.vm.target import Target

Prepared = TypeVar("Prepared")

CLAUDE_DATE = "claude-sandbox.claude"  # in the instance directory: when its claude came, when we last spoke
OLD_DAYS = 30
EARLY_TIMEOUT = 120.0  # seconds that what was begun early may go on when the VM is ready
INSTALL_TIMEOUT = 1800.0  # seconds, for downloads in a slow guest

# Makes the parents of mount points passable for the guest's user and proves that every mount is there. Says
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


class Early(Generic[Prepared]):
    """What is done over ssh while Lima still waits for its guest agent: the mounts, and `prepare`.

    Only for a boot that our init has set up as a whole. In any other nothing early counts: scripts that run
    later may add mounts, groups and variables. `prepare` gets a context whose words come when it has ended; what
    it returned for this boot is `prepared`.
    """

    def __init__(
        self,
        ctx: Context,
        prepare: Callable[[Context, Target], Prepared] | None = None,
    ) -> None:
        self._ctx, self._prepare = ctx, prepare
        self.prepared: Prepared | None = None
        self._words = _Words()
        self._thread: threading.Thread | None = None
        self._mounted = False
        self._bug: Exception | None = None

    def begin(self, target: Target, shares: Sequence[Share]) -> None:
        """Returns at once. A second start (the first one failed) begins again."""
        self.ended()
        self._mounted, self.prepared = False, None
        self._thread = threading.Thread(target=self._work, args=(target, shares), daemon=True)
        self._thread.start()

    def ended(self) -> bool:
        """Wait for its end; whether the mounts were seen."""
        if self._thread is not None:
            self._thread.join(EARLY_TIMEOUT)
            self._thread = None
            self._words.tell(self._ctx.progress)
        if self._bug is not None:
            raise self._bug
        return self._mounted

    def _work(self, target: Target, shares: Sequence[Share]) -> None:
        quiet = replace(self._ctx, progress=self._words)
        try:
            result = _look(quiet, target.instance, shares)
            self._mounted = result.ok and result.text.strip() == _FAST
            if self._mounted and self._prepare is not None:
                self.prepared = self._prepare(quiet, target)
        except (ClaudeSandboxError, OSError):
            pass  # it is met again, and told, when it is done in its turn
        except Exception as error:  # noqa: BLE001  # told by the thread that can
            self._bug = error


class _Words(Progress):
    """Keeps what is said, for another thread."""

    def __init__(self) -> None:
        self._kept: list[tuple[bool, str]] = []

    def note(self, text: str) -> None:
        self._kept.append((False, text))

    def warn(self, text: str) -> None:
        self._kept.append((True, text))

    def tell(self, progress: Progress) -> None:
        kept, self._kept = self._kept, []
        for is_warning, text in kept:
            (progress.warn if is_warning else progress.note)(text)


def _look(ctx: Context, instance: Instance, shares: Sequence[Share]) -> Result:
    """Raises GuestConnectionError."""
    points = [share.point for share in shares]
    parents = " ".join(str(p) for p in mounts.guest_parents(points) if " " not in str(p))
    guest = ctx.guest(instance)
    guest.connect()
    return guest.run(_MOUNTS, parents, *map(str, points), timeout=60)


def check_mounts(ctx: Context, instance: Instance, shares: Sequence[Share], early: Early[Any]) -> None:
    """After each start. Raises StartError when the guest does not have a mount."""
    if early.ended() or ctx.dry:
        return
    with ctx.progress.stage("Looking at the mounts"):
        ctx.guest(instance).renew()  # it may be from before Lima's scripts
        result = _look(ctx, instance, shares)
    if not result.ok:
        raise StartError(
            f"{instance.name} came up without its mounts.",
            details=result.error_text[:500],
            resolution="`claude-sandbox restart` tries again; "
            f"the guest's console: {instance.dir / 'serial.log'}",
        )
    said = printable(result.text, instead="")[:300]
    if said.startswith(_BY_CLOUD_INIT):
        reason = said.removeprefix(_BY_CLOUD_INIT)
        ctx.progress.note(
            f"{instance.name} was set up by cloud-init, which takes longer, because of: {reason}"
        )


def finish(
    ctx: Context,
    instance: Instance,
    shares: Sequence[Share],
    early: Early[Any],
    *,
    foreign: bool,
    packages: Sequence[str],
) -> None:
    """Complete a VM after its first start. Raises CreateError, StartError."""
    check_mounts(ctx, instance, shares, early)
    if ctx.dry:
        return
    guest = ctx.guest(instance)
    if foreign:
        with ctx.progress.stage("Preparing the guest for Claude Code"):
            _do(guest, guest_script("prepare-foreign.sh"), "be prepared for Claude Code")
        # sshd reads AcceptEnv for new connections only (facts/checked.md).
        guest.renew()
        guest.connect()
    if packages:
        install(ctx, guest, packages)


def install(ctx: Context, guest: Guest, packages: Sequence[str]) -> None:
    """Packages of the guest's distribution. Raises CreateError."""
    with ctx.progress.stage(f"Installing {', '.join(packages)}"):
        _do(guest, guest_script("install-packages.sh"), "install packages", *packages)


def _do(guest: Guest, script: str, what: str, *arguments: str) -> Result:
    begun = time.monotonic()
    result = guest.run(script, *arguments, timeout=INSTALL_TIMEOUT)
    if not result.ok:
        last = "\n".join(result.error_text.splitlines()[-8:])
        raise CreateError(
            f"The guest could not {what} (exit code {result.returncode}, {time.monotonic() - begun:.0f} s).",
            details=last[:2000],
            resolution="Does the guest reach the network? A proxy or CA of the host is passed on with "
            "`proxy: host` and `ca: host` in the user file; `claude-sandbox doctor` says where it is.",
        )
    return result


def mention_old_claude(ctx: Context, instance: Instance) -> None:
    """Say once a day that the sandbox's Claude Code is old; the guest is asked once a version.

    It does not update itself in a sandbox (spec 4.12). The date is the one at which its file came there.
    """
    file = instance.dir / CLAUDE_DATE
    now = int(time.time())
    try:
        installed, said = map(number, file.read_text().split())
    except (OSError, ValueError):
        installed = said = None
    if installed is None or said is None:
        result = ctx.guest(instance).run('stat -Lc %Z "$(bash -lc "command -v claude")"', timeout=30)
        installed, said = number(result.text), 0
        if installed is None and result.text.strip():
            ctx.progress.note(
                f"The age of Claude Code in {instance.name} is not known: the guest gave no date."
            )
    installed = now if installed is None else installed
    days = (now - installed) // 86400
    if OLD_DAYS <= days <= 3650 and now - said > 86400:
        ctx.progress.note(
            f"Claude Code in {instance.name} is {days} days old: `claude-sandbox update` brings a newer."
        )
        said = now
    write_atomic(file, f"{installed} {said}".encode())


def update_claude(ctx: Context, instance: Instance) -> str:
    """Bring the newest Claude Code into a running VM; returns its version. Raises CreateError."""
    if ctx.dry:
        ctx.progress.note(f"(run guest/update-claude.sh in {instance.name})")
        return "unchanged"
    guest = ctx.guest(instance)
    guest.connect()
    with ctx.progress.stage(f"Updating Claude Code in {instance.name}"):
        result = _do(guest, guest_script("update-claude.sh"), "update Claude Code")
    (instance.dir / CLAUDE_DATE).unlink(missing_ok=True)
    return next(
        (words for line in reversed(result.text.splitlines()) if (words := one_line(line)[:100])), "unknown"
    )
