"""Building the tools VM: into a new instance beside the old one, tried, and only then in its place.

Killed at any instant, this leaves the old tools VM working and something that the next run recognises:

    NAME-new with our mark for that name      being built           removed
    NAME-new with an exchange note of its     about to be           removed
    own (base_vm/exchange.py)                 exchanged, or the
                                              old one after
    NAME                                      always a whole one

NAME-new that is protected and has no note is another tools VM that was finished under that name: it stays.
"""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _claude_sandbox.base_vm import exchange, lima_yaml, verify
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
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import STOPPED, Instance
from _claude_sandbox.lima.ssh import Guest, guest_script
from _claude_sandbox.system import paths
from _claude_sandbox.system.text import for_log
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import start as vm_start
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.cleanup import uninterrupted
from _claude_sandbox.vm.locks import build_lock

__all__ = ["BuildReport", "BuildRequest", "ToolCheck", "rebuild"]

BUILD_TIMEOUT = 2 * 3600.0  # seconds; the Ubuntu mode downloads its tools while it boots
REACH_TIMEOUT = 10.0  # seconds to find out whether the image host answers
CONSOLE_KEPT = 200_000  # bytes of the guest's console that a failed build's log keeps
PROVISIONING_LOG = "/var/log/cloud-init-output.log"  # in the guest: what Lima's boot.sh and its scripts print


@dataclass(frozen=True)
class BuildRequest:
    """Which tools VM to build. `memory` and `disk` in bytes.

    `only`: tools or groups, empty for all. `from_packages` None: found out by asking the image host. `proxy` and
    `ca_files`: the host's, for what is downloaded in the guest; the finished VM has neither.
    """

    cpus: int
    memory: int
    disk: int
    name: str = "tools-vm"
    only: Sequence[str] = ()
    from_packages: bool | None = None
    proxy: bool = False
    ca_files: tuple[str, ...] = ()

    def spec(self, ctx: Context) -> vm_lima_yaml.SandboxSpec:
        return vm_lima_yaml.SandboxSpec(
            vm_mark.Mark(vm_mark.TOOLS, f"{self.name}-new"), ctx.user, shares=(), cpus=self.cpus, memory=self.memory,
            disk=self.disk, proxy=self.proxy, ca_files=self.ca_files, macos=ctx.macos,
        )  # fmt: skip


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
        return _all_work(self.tools)


def _all_work(checks: Sequence[ToolCheck]) -> bool:
    return all(check.ok is not False for check in checks)


@dataclass(frozen=True)
class _Build:
    ctx: Context
    name: str
    tools: tuple[Tool, ...]
    from_packages: bool
    spec: vm_lima_yaml.SandboxSpec
    small: bool
    logfile: Path

    @property
    def temporary(self) -> str:
        return self.spec.mark.name

    @property
    def directory(self) -> Path:
        """Of the new instance; of the old one after the exchange."""
        return self.ctx.lima.home / self.temporary


def rebuild(ctx: Context, request: BuildRequest) -> BuildReport:
    """Build a tools VM and put it in the place of the old one, which must be stopped.

    A report that is not ok means that the old one is still there. Raises SandboxExistsError (a VM of that name is
    not ours), CreateError, HostSetupError, UsageError.
    """
    began = time.monotonic()
    name, tools, spec = request.name, choose(request.only), request.spec(ctx)
    if len(spec.mark.name) > ctx.longest_name():
        raise UsageError(f"{name} is too long a name for a VM in {ctx.lima.home}.")
    logfile = paths.logs_dir() / f"rebuild-{name}.log"
    with ctx.effects.hold(build_lock(name, ctx.progress.note)):
        ctx.effects.silently(lambda: logfile.write_text(""), 0)
        ctx.effects.silently(lambda: exchange.check_replaceable(ctx.lima, name), None)
        exchange.remove_leftover(ctx, name, spec.mark.name)
        packages = ctx.effects.silently(lambda: build_from_packages(ctx, request.from_packages), False)
        checks = _make(_Build(ctx, name, tools, packages, spec, bool(request.only), logfile))
    return BuildReport(name, checks, logfile, time.monotonic() - began, packages)


def build_from_packages(ctx: Context, asked: bool | None) -> bool:
    """The mode: as asked for, else by whether the cloud image can be reached. Raises CreateError on macOS."""
    if asked is not None:
        return asked
    address = lima_yaml.image_address(lima_yaml.load(), packages_recipe.this_arch().lima)
    if address and reachable(address):
        return False
    if ctx.macos:
        raise CreateError(
            f"The cloud image cannot be reached: {address}",
            resolution="Check the network and the proxy settings, then try again.",
        )
    ctx.progress.note("Cloud images cannot be reached from here: building from the distribution's packages.")
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
    """Build, try, and exchange if all is well. Whatever fails, the new instance is gone afterwards."""
    try:
        checks = _build_and_try(build)
        if _all_work(checks):
            # Before the exchange: what gets the name is a base that can be cloned in no time.
            linked_clone.move_disk_to_store(build.ctx, Instance(build.temporary, STOPPED, build.directory))
            _replace_old(build)
    except BaseException as error:
        with uninterrupted():
            _keep_console(build)
            _remove_after_failure(build)
        if isinstance(error, CreateError | HostSetupError | SandboxExistsError | UsageError):
            raise
        if isinstance(error, ClaudeSandboxError | OSError):
            raise CreateError(
                f"The tools VM {build.name} could not be built; an older one, if there was one, is untouched.",
                details=str(error),
                resolution=f"The log, with the guest's console, is {build.logfile}",
            ) from error
        raise
    # The old one, after an exchange; or the new one that was not good enough.
    with uninterrupted():
        _remove_with_disks(build)
    return checks


def _remove_after_failure(build: _Build) -> None:
    """The failure itself is the error; what cannot be removed is left to the next rebuild."""
    try:
        exchange.remove(build.ctx, build.temporary)
    except ClaudeSandboxError as error:
        build.ctx.progress.warn(f"{build.temporary} was not removed; the next rebuild tries again. {error}")


def _remove_with_disks(build: _Build) -> None:
    """Remove what has the temporary name, and the golden disks that only it was an overlay on."""
    ctx = build.ctx
    try:
        below = [file.name for file in qcow2.chain(build.directory / DISK)[1:]]
    except (DiskError, OSError):  # then nothing is known to be free; `prune --cache` looks at all of them
        below = []
    exchange.remove(ctx, build.temporary)
    ctx.effects.silently(lambda: _free_disks(ctx, below), None)


def _free_disks(ctx: Context, names: Sequence[str]) -> None:
    try:
        disks_store.remove_unused(ctx.lima.home, only=names, note=ctx.progress.note)
    except (DiskError, OSError) as error:
        ctx.progress.warn(f"The old disk was not freed: {error}")


def _build_and_try(build: _Build) -> tuple[ToolCheck, ...]:
    ctx = build.ctx
    packages_build.check_space(ctx.lima.home, (4 if build.small else 20) * GIB)
    document: lima_yaml.Document = ctx.effects.do(
        f"build or reuse the guest image in {paths.cache_dir() / 'images'}, or name Ubuntu's",
        lambda: _document(build),
        {},
    )
    file = paths.runtime_dir() / f"{build.temporary}.yaml"
    ctx.write(file, vm_document.dump(document))
    try:
        with ctx.progress.stage(f"Creating {build.temporary}"):
            ctx.lima.create(build.temporary, file)
    finally:
        file.unlink(missing_ok=True)
    instance = vm_start.start(
        ctx, build.temporary, document, timeout=BUILD_TIMEOUT, kind=f"first boot of {build.name}"
    )
    checks: tuple[ToolCheck, ...] = ctx.effects.do(
        "try every tool, and remove from the guest what clones must not share",
        lambda: _try_and_finalise(build, ctx.guest(instance)),
        (),
    )
    vm_stop.stop(ctx, instance)
    return checks


def _try_and_finalise(build: _Build, guest: Guest) -> tuple[ToolCheck, ...]:
    try:
        with build.ctx.progress.stage("Trying every tool") as say:
            guest.connect()
            checks = verify.verify(guest, build.tools, build.from_packages, say, build.logfile)
            _keep_provisioning(build, guest)
        if _all_work(checks):
            _finalise(guest)
        return checks
    finally:
        with contextlib.suppress(GuestConnectionError):
            guest.disconnect()


def _keep_console(build: _Build) -> None:
    """The guest's last words, before its directory goes."""
    with contextlib.suppress(OSError):
        _append(build.logfile, "console of the guest", (build.directory / "serial.log").read_bytes())


def _keep_provisioning(build: _Build, guest: Guest) -> None:
    """What the scripts of the Ubuntu mode printed: which step failed, and why."""
    if not build.from_packages:
        result = guest.run(f"sudo tail -c {CONSOLE_KEPT} {PROVISIONING_LOG}")
        _append(build.logfile, "provisioning in the guest", result.stdout)


def _append(logfile: Path, title: str, output: bytes) -> None:
    with logfile.open("ab") as log:
        log.write(f"\n--- {title} ---\n".encode() + for_log(output[-CONSOLE_KEPT:]))


def _document(build: _Build) -> lima_yaml.Document:
    source = lima_yaml.load()
    if not build.from_packages:
        return lima_yaml.from_cloud(source, build.tools, build.spec)
    runner, pins = build.ctx.runner, lima_yaml.pins(source)
    recipe = packages_recipe.recipe(runner, build.tools, pins, small=build.small)
    image = packages_build.build(runner, recipe, build.ctx.progress, build.logfile)
    spec = replace(build.spec, proxy=False, ca_files=())  # its guest downloads nothing
    if spec.disk is not None and spec.disk < recipe.size:
        raise UsageError(f"The tools VM needs a disk of at least {recipe.size // GIB}GiB.")
    return lima_yaml.from_image(image, spec)


def _finalise(guest: Guest) -> None:
    """What clones must not share goes (guest/finalise.sh). Raises CreateError."""
    result = guest.run('exec sudo sh -c "$1"', guest_script("finalise.sh"), timeout=600)
    if not result.ok:
        raise CreateError(
            "The tools VM could not be made ready for cloning.", details=result.error_text[-800:]
        )


def _replace_old(build: _Build) -> None:
    """Give the new instance the old one's name, in one step. Raises CreateError, SandboxExistsError."""
    ctx = build.ctx
    ctx.effects.silently(lambda: exchange.remove_transient_files(build.directory), None)
    # Before the protection: a tools VM that is protected and has no note is one that somebody finished.
    ctx.effects.silently(lambda: exchange.write_note(build.directory), None)
    ctx.lima.protect(build.temporary)
    # From here on its mark names what it will be, so the note says whose it is.
    ctx.effects.do(
        f"exchange {build.directory} with {ctx.lima.home / build.name}, and remove the old one",
        lambda: _write_final_and_exchange(build),
        None,
    )


def _write_final_and_exchange(build: _Build) -> None:
    built = vm_document.read(Instance(build.temporary, STOPPED, build.directory))
    final = lima_yaml.final(built, vm_mark.Mark(vm_mark.TOOLS, build.name).encode())
    vm_document.write(build.ctx, build.directory, final)
    exchange.put_in_place(build.ctx, build.temporary, build.name)
