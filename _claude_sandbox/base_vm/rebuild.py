"""Building the tools VM: into a new instance beside the old one, tried, and only then in its place.

Killed at any instant, this leaves the old tools VM working and something that the next run recognises:

    NAME-new with our mark for that name      being built           removed
    NAME-new with a swap note of its own      about to be swapped,  removed
                                              or the old one after
    NAME                                      always a whole one

NAME-new that is protected and has no note is another tools VM that was finished under that name: it stays.

The swap note is a file in an instance directory that holds that directory's inode: what a copy of the
directory (a hand-made clone) carries does not match, so only what we put aside is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _claude_sandbox.base_vm import lima_yaml, verify
from _claude_sandbox.base_vm.catalogue import Tool, choose
from _claude_sandbox.base_vm.packages import build as packages_build
from _claude_sandbox.base_vm.packages import recipe as packages_recipe
from _claude_sandbox.base_vm.verify import ToolCheck
from _claude_sandbox.disks import linked_clone, qcow2
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.disks.qcow2 import DiskError
from _claude_sandbox.disks.users import DISK
from _claude_sandbox.errors import (
    ClaudeSandboxError,
    CreateError,
    GuestConnectionError,
    HostSetupError,
    SandboxExistsError,
    UsageError,
)
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.lima import readiness, vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, STOPPED, UNREADABLE, Instance, Lima
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system import exchange as system_exchange
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.text import for_log
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import start as vm_start
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.cleanup import uninterrupted
from _claude_sandbox.vm.locks import base_lock, build_lock
from _claude_sandbox.vm.mark import kind_of

__all__ = ["BuildReport", "ToolCheck", "rebuild"]

BUILD_TIMEOUT = 2 * 3600.0  # seconds; the Ubuntu mode downloads its tools while it boots
SWAP_NOTE = "claude-sandbox.swap"
REACH_TIMEOUT = 10.0  # seconds to find out whether the image host answers
CONSOLE_KEPT = 200_000  # bytes of the guest's console that a failed build's log keeps
PROVISIONING_LOG = "/var/log/cloud-init-output.log"  # in the guest: what Lima's boot.sh and its scripts print
# Made anew at each start, and dead weight in every clone until then.
_PASSING = ("cidata.iso", "cloud-config.yaml", "ssh.config", readiness.STAMP)


@dataclass(frozen=True)
class BuildReport:
    """What a rebuild came to. `seconds` from begin to end."""

    name: str
    tools: tuple[ToolCheck, ...]
    logfile: Path
    seconds: float
    from_packages: bool

    @property
    def ok(self) -> bool:
        """Whether every promised tool works (what this mode cannot have is not promised)."""
        return all(check.ok is not False for check in self.tools)


@dataclass(frozen=True)
class _Build:
    ctx: Context
    name: str
    tools: tuple[Tool, ...]
    from_packages: bool
    meant: vm_lima_yaml.Meant
    small: bool
    runtime: Path
    logfile: Path

    @property
    def temporary(self) -> str:
        return self.meant.mark.name

    def directory(self, name: str) -> Path:
        return self.ctx.lima.home / name


def rebuild(
    lima: Lima,
    *,
    name: str = "tools-vm",
    only: Sequence[str] = (),
    from_packages: bool | None = None,
    user: lima_context.GuestUser,
    cpus: int,
    memory_mib: int,
    disk_gib: int,
    start_env: Mapping[str, str | None],
    runtime: Path,
    progress: Progress,
    proxy: bool = False,
    ca_files: tuple[str, ...] = (),
) -> BuildReport:
    """Build the tools VM `name` anew and put it in the place of the old one.

    `from_packages` None: found out by asking the image host. `proxy` and `ca_files`: the host's, for what
    is downloaded in the guest; the finished VM has neither. A report that is not ok means that the old one
    still stands. Raises SandboxExistsError (a VM of that name is not ours), CreateError,
    HostSetupError, UsageError.
    """
    began = time.monotonic()
    chosen = choose(only)
    macos = lima_yaml.on_macos()
    ctx = Context(lima, user, progress, start_env=lambda: start_env, macos=macos)
    temporary = f"{name}-new"
    if len(temporary) > ctx.longest_name():
        raise UsageError(f"{name} is too long a name for a VM in {lima.home}.")
    logfile = paths.logs_dir() / f"rebuild-{name}.log"
    with build_lock(name, progress.note):
        logfile.write_text("")
        check_old(lima, name)
        _remove_leftover(ctx, name, temporary)
        meant = vm_lima_yaml.Meant(
            mark=vm_mark.Mark(vm_mark.TOOLS, temporary),
            user=user,
            shares=(),
            cpus=cpus,
            memory=memory_mib << 20,
            disk=disk_gib * GIB,
            proxy=proxy,
            ca_files=ca_files,
            macos=macos,
        )
        packages = _mode(from_packages, progress)
        build = _Build(ctx, name, chosen, packages, meant, bool(only), runtime, logfile)
        checks = _make(build)
    return BuildReport(name, checks, logfile, time.monotonic() - began, packages)


def check_ours(lima: Lima, name: str) -> Instance | None:
    """The tools VM of that name, None without one. Raises SandboxExistsError for what is there and is not ours."""
    old = lima.get(name)
    if old is None and not os.path.lexists(lima.home / name):
        return None
    if old is None or kind_of(old) != vm_mark.TOOLS:
        raise SandboxExistsError(
            f"A VM called {name} is there, and claude-sandbox did not build it.",
            resolution="Give another name: `claude-sandbox rebuild-tools-vm NAME`, or remove that VM yourself.",
        )
    return old


def check_old(lima: Lima, name: str) -> None:
    """Raise SandboxExistsError for what is there and is not ours, CreateError for a VM that runs."""
    old = check_ours(lima, name)
    if old is None:
        return
    if old.status not in (STOPPED, UNREADABLE) or vm_processes.running(old.dir):
        raise CreateError(
            f"{name} is {old.status if old.status != STOPPED else RUNNING}; it can only be replaced when it is stopped.",
            resolution=f"Stop it (`limactl stop {name}`), then try again.",
        )


def _mode(from_packages: bool | None, progress: Progress) -> bool:
    if from_packages is not None:
        return from_packages
    document = lima_yaml.load()
    address = lima_yaml.image_address(document, packages_recipe.this_arch().lima)
    if address and reachable(address):
        return False
    if lima_yaml.on_macos():
        raise CreateError(
            f"The cloud image cannot be reached: {address}",
            resolution="Check the network and the proxy settings, then try again.",
        )
    progress.note("Cloud images cannot be reached from here: building from the distribution's packages.")
    return True


def reachable(address: str) -> bool:
    """Whether a download would begin. urllib goes by the proxy variables and SSL_CERT_FILE, as Lima does."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=REACH_TIMEOUT) as answer:
            return int(answer.status) < 400
    except (OSError, ValueError):
        return False


# -- the steps -----------------------------------------------------------------------------------


def _make(build: _Build) -> tuple[ToolCheck, ...]:
    """Build, try, and swap if all is well. Whatever fails, the new instance is gone afterwards."""
    try:
        checks = _build_and_try(build)
        if all(check.ok is not False for check in checks):
            _freeze(build)
            _replace(build)
    except BaseException as error:
        with uninterrupted():
            _keep_console(build)
            _drop_after_failure(build)
        if isinstance(error, CreateError | HostSetupError | SandboxExistsError | UsageError):
            raise
        if isinstance(error, ClaudeSandboxError | OSError):
            raise CreateError(
                f"The tools VM {build.name} could not be built; an older one, if there was one, is untouched.",
                details=str(error),
                resolution=f"The log, with the guest's console, is {build.logfile}",
            ) from error
        raise
    # The old one, after a swap; or the new one that was not good enough.
    with uninterrupted():
        _drop_with_disks(build)
    return checks


def _drop_after_failure(build: _Build) -> None:
    """The failure itself is the error; what cannot be removed is left to the next rebuild."""
    try:
        _drop(build.ctx, build.temporary)
    except ClaudeSandboxError as error:
        build.ctx.progress.warn(f"{build.temporary} was not removed; the next rebuild tries again. {error}")


def _drop_with_disks(build: _Build) -> None:
    """Remove what stands under the temporary name, and the golden disks that only it stood on."""
    try:
        below = qcow2.chain(build.directory(build.temporary) / DISK)[1:]
    except (DiskError, OSError):  # then nothing is known to be free; `prune --cache` looks at all of them
        below = []
    _drop(build.ctx, build.temporary)
    try:
        disks_store.free(
            build.ctx.lima.home, only=[file.name for file in below], tell=build.ctx.progress.note
        )
    except (DiskError, OSError) as error:
        build.ctx.progress.warn(f"The old disk was not freed: {error}")


def _build_and_try(build: _Build) -> tuple[ToolCheck, ...]:
    ctx = build.ctx
    packages_build.check_space(ctx.lima.home, (4 if build.small else 20) * GIB)
    document = _document(build)
    file = build.runtime / f"{build.temporary}.yaml"
    ctx.write(file, vm_document.dump(document))
    try:
        with ctx.progress.stage(f"Creating {build.temporary}"):
            ctx.lima.create(build.temporary, file)
    finally:
        file.unlink(missing_ok=True)
    instance = vm_start.start(
        ctx, build.temporary, document, timeout=BUILD_TIMEOUT, kind=f"first boot of {build.name}"
    )
    guest = Guest(ctx.runner, instance, build.runtime)
    try:
        with ctx.progress.stage("Trying every tool") as say:
            guest.connect()
            checks = verify.verify(guest, build.tools, build.from_packages, say, build.logfile)
            _keep_provisioning(build, guest)
        if all(check.ok is not False for check in checks):
            _finalise(guest)
    finally:
        with contextlib.suppress(GuestConnectionError):
            guest.disconnect()
    vm_stop.stop(ctx, instance)
    return checks


def _keep_console(build: _Build) -> None:
    """The guest's last words, before its directory goes."""
    with contextlib.suppress(OSError), build.logfile.open("ab") as log:
        console = (build.directory(build.temporary) / "serial.log").read_bytes()
        log.write(b"\n--- console of the guest ---\n" + for_log(console[-CONSOLE_KEPT:]))


def _keep_provisioning(build: _Build, guest: Guest) -> None:
    """What the scripts of the Ubuntu mode said: which step failed, and why."""
    if build.from_packages:
        return
    said = guest.run(f"sudo tail -c {CONSOLE_KEPT} {PROVISIONING_LOG}")
    with build.logfile.open("ab") as log:
        log.write(b"\n--- provisioning in the guest ---\n" + for_log(said.stdout))


def _document(build: _Build) -> lima_yaml.Document:
    source = lima_yaml.load()
    if not build.from_packages:
        return lima_yaml.from_cloud(source, build.tools, build.meant)
    runner, pins = build.ctx.runner, lima_yaml.pins(source)
    plan = packages_recipe.recipe(runner, build.tools, pins, small=build.small)
    made = packages_build.build(runner, plan, build.ctx.progress, build.logfile)
    meant = replace(build.meant, proxy=False, ca_files=())  # its guest downloads nothing
    if meant.disk is not None and meant.disk < plan.size:
        raise UsageError(f"The tools VM needs a disk of at least {plan.size // GIB}GiB.")
    return lima_yaml.from_image(made, meant)


def _freeze(build: _Build) -> None:
    """Before the swap: what gets the name is a base that can be cloned in no time."""
    directory = build.directory(build.temporary)
    linked_clone.freeze(build.ctx, Instance(build.temporary, STOPPED, directory))


def _finalise(guest: Guest) -> None:
    """What clones must not share goes (guest/finalise.sh). Raises CreateError."""
    from _claude_sandbox.lima.ssh import guest_script

    result = guest.run('exec sudo sh -c "$1"', guest_script("finalise.sh"), timeout=600)
    if not result.ok:
        raise CreateError(
            "The tools VM could not be made ready for cloning.", details=result.error_text[-800:]
        )


def _replace(build: _Build) -> None:
    """Give the new instance the old one's name, in one step. Raises CreateError, SandboxExistsError."""
    ctx = build.ctx
    new, old = build.directory(build.temporary), build.directory(build.name)
    for name in _PASSING:
        (new / name).unlink(missing_ok=True)
    for log in [*new.glob("*.log")]:
        log.unlink()
    # Before the protection: a tools VM that is protected and has no note is one that somebody finished.
    _put_note(new)
    ctx.lima.protect(build.temporary)
    # From here on its mark names what it will be, so the note says whose it is.
    instance = Instance(build.temporary, STOPPED, new)
    document = lima_yaml.final(vm_document.read(instance), vm_mark.Mark(vm_mark.TOOLS, build.name).encode())
    vm_document.write(ctx, new, document)
    with (
        base_lock(build.name, ctx.progress.note),
        # Shared: whoever looks for users of a disk must not miss one that changes its name meanwhile.
        disks_store.store_lock(ctx.progress.note, shared=True),
        uninterrupted(),
    ):
        check_old(ctx.lima, build.name)
        if old.exists():
            _put_note(old)
            system_exchange.exchange(new, old)
        else:
            os.rename(new, old)
        (old / SWAP_NOTE).unlink(missing_ok=True)


# -- what is left over ---------------------------------------------------------------------------


def _put_note(directory: Path) -> None:
    info = directory.stat()
    write_json(directory / SWAP_NOTE, {"version": 1, "device": info.st_dev, "inode": info.st_ino})


def put_aside(directory: Path) -> bool:
    """Whether this very directory (no copy of it) was marked by us for a swap."""
    note, info = read_object(directory / SWAP_NOTE) or {}, directory.stat()
    return (note.get("device"), note.get("inode")) == (info.st_dev, info.st_ino)


def _remove_leftover(ctx: Context, name: str, temporary: str) -> None:
    """Remove what a killed rebuild left under the temporary name. Raises SandboxExistsError."""
    directory = ctx.lima.home / temporary
    # A kill right after the swap leaves the note in the new one, too.
    with contextlib.suppress(FileNotFoundError):
        if put_aside(ctx.lima.home / name):
            (ctx.lima.home / name / SWAP_NOTE).unlink()
    if not directory.exists() and not directory.is_symlink():
        return
    found = ctx.lima.read_instance_files(temporary)
    begun = found is None or kind_of(found) == vm_mark.TOOLS
    finished = (directory / "protected").exists()
    if directory.is_symlink() or not ((begun and not finished) or put_aside(directory)):
        raise SandboxExistsError(
            f"A VM called {temporary} is there, which claude-sandbox did not build, or built for you.",
            details=f"The tools VM {name} is built under that name first.",
            resolution="Remove it (`limactl delete`), or give another name to `rebuild-tools-vm`.",
        )
    ctx.progress.note(f"Removing {temporary}, which an earlier run did not finish.")
    _drop(ctx, temporary)


def _drop(ctx: Context, name: str) -> None:
    """Stop and delete an instance that is ours to delete; nothing is there afterwards.

    Raises what `vm.stop.remove` raises: then it is there, and the next rebuild tries again.
    """
    directory = ctx.lima.home / name
    if not directory.exists():
        return
    if (directory / "protected").exists():  # by us, as every tools VM
        ctx.lima.unprotect(name)
    vm_stop.remove(ctx, name)
