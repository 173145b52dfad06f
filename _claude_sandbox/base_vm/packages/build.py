"""A guest image from packages alone: mmdebstrap, a few of our files, ext4, qcow2 (spec 8.2).

No bootloader: Lima boots the image's kernel and initrd directly (facts/linux-host.md). The finished
image is kept by its recipe: what went into it, and the week, so that it does not grow old.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.base_vm.packages import kernel as packages_kernel
from _claude_sandbox.base_vm.packages import overlay as packages_overlay
from _claude_sandbox.base_vm.packages.recipe import SETUP, Arch, Recipe
from _claude_sandbox.disks import qemu_img
from _claude_sandbox.errors import CreateError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import lock
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Command, Result, Runner
from _claude_sandbox.system.units import GIB

# Documents, and drivers for what no VM has (180 MB).
_DRIVERS = ("gpu", "media", "net/wireless", "net/ethernet", "infiniband", "iio", "staging")
_EXCLUDED = (
    *(f"/usr/share/{name}/*" for name in ("man", "locale", "doc", "info")),
    "*/lib/modules/*/kernel/sound/*",
    *(f"*/lib/modules/*/kernel/drivers/{name}/*" for name in _DRIVERS),
)
# Not /tmp, which is often in memory.
WORK = Path("/var/tmp")
_OLD = 21 * 86400  # seconds after which an unused image of another recipe goes
_PINS = {
    "typescript": "PIN_TYPESCRIPT",
    "tsnode": "PIN_TSNODE",
    "uv": "PIN_UV",
    "go": "PIN_GO",
    "gopls": "PIN_GOPLS",
}


@dataclass(frozen=True)
class GuestImage:
    """A finished image in the cache; its files are read-only."""

    directory: Path
    arch: Arch

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    def document(self) -> dict[str, Any]:
        """The part of a Lima YAML that boots it."""
        kernel = {
            "location": str(self.directory / "kernel"),
            # The tests that the kernel makes of its own ciphers cost a second under emulation, its messages 0.3.
            # nokmem: with the first memory cgroup the kernel would patch its page allocator while the other
            # processor runs through it. QEMU's emulation was seen to keep the breakpoint of that patch for ever:
            # "watchdog: BUG: soft lockup - CPU#0 stuck for 48s! [systemd:1]", both processors in __alloc_pages.
            "cmdline": f"root=/dev/vda rw console={self.arch.console} quiet cryptomgr.notests cgroup.memory=nokmem",
        }
        image = {
            "location": str(self.disk),
            "arch": self.arch.lima,
            "kernel": kernel,
            "initrd": {"location": str(self.directory / "initrd")},
        }
        document: dict[str, Any] = {"arch": self.arch.lima, "images": [image]}
        if self.arch.lima == "x86_64":
            document["firmware"] = {"legacyBIOS": True}
        return document


def build(runner: Runner, recipe: Recipe, progress: Progress, logfile: Path) -> GuestImage:
    """The image of a recipe, from the cache or made now. Raises CreateError, HostSetupError."""
    cache = paths.cache_dir() / "images"
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / recipe.key

    def waiting(who: str) -> None:
        progress.note(f"This image is being built already: waiting for {who} …")

    with lock(cache / f"{recipe.key}.lock", on_wait=waiting):
        if not (directory / "disk.qcow2").exists():
            with progress.stage("Building the guest image from packages") as say:
                _build(runner, recipe, directory, say, logfile)
            _expire(cache, keep=recipe.key)
    return GuestImage(directory, recipe.arch)


def _build(
    runner: Runner, recipe: Recipe, directory: Path, say: Callable[[str], None], logfile: Path
) -> None:
    # Root inside a user namespace is nobody to our 0700 directories: it works in /var/tmp.
    work = WORK / f"claude-sandbox-image-{os.getuid()}-{recipe.key}"
    _remove(runner, work)
    check_space(work.parent, (5 if recipe.small else 16) * GIB)
    check_space(directory.parent, (3 if recipe.small else 8) * GIB)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
    try:
        work.mkdir(mode=0o755)
        say("fetching Claude Code and Node")
        overlay, early = work / "overlay.tar", work / "early.tar"
        packages_overlay.write_overlay(runner, recipe, overlay, logfile)
        packages_overlay.write_early(recipe, early)
        (work / "sources.list").write_text("\n".join(recipe.sources) + "\n")
        result = runner.stream(
            mmdebstrap(runner, recipe, work),
            timeout=7200,
            on_line=lambda line: _tell(line, say),
            logfile=logfile,
        )
        if not result.ok:
            raise _failed("mmdebstrap", result, logfile)
        _pack(runner, recipe, work, staging, say, logfile)
        os.replace(staging, directory)
    except OSError as error:
        raise CreateError(
            f"The guest image could not be built: {error}", resolution=f"The log is {logfile}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove(runner, work)


def mmdebstrap(runner: Runner, recipe: Recipe, work: Path) -> Command:
    """Mode `unshare` for root too: the build's mounts then end with it, however it ends."""
    env = apt_sources.registry_environment(runner) | {
        variable: recipe.pins.get(pin, "") for pin, variable in _PINS.items()
    }
    env["CLAUDE_SANDBOX_TOOLS"] = " ".join(sorted(recipe.names))
    env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env["TMPDIR"] = None
    return Command(
        (
            "mmdebstrap", "--mode=unshare", "--variant=minbase", f"--architectures={recipe.arch.dpkg}",
            *(f"--aptopt={option}" for option in recipe.apt_options),
            "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            f"--include={','.join(recipe.packages)}",
            # Before the kernel's package makes the initrd.
            f"--essential-hook=tar-in {work}/early.tar /",
            f"--customize-hook=tar-in {work}/overlay.tar /",
            # Quoted by us, once, and constant: what varies comes in the environment.
            f'--customize-hook=chroot "$1" env HOME=/root sh /{SETUP} "$CLAUDE_SANDBOX_TOOLS"',
            recipe.distribution.codename, f"{work}/root", f"{work}/sources.list",
        ),
        env,
        cwd=work,
        hidden=frozenset(name for name in env if "REGISTRY" in name.upper() or "INDEX" in name or "PROXY" in name),
    )  # fmt: skip


def _tell(line: str, say: Callable[[str], None]) -> None:
    if line.startswith("I: "):
        say(line[3:].split("...", maxsplit=1)[0].rstrip("."))
    elif line.startswith("claude-sandbox: "):
        say(line.removeprefix("claude-sandbox: "))


def _pack(
    runner: Runner, recipe: Recipe, work: Path, staging: Path, say: Callable[[str], None], logfile: Path
) -> None:
    """The root directory as a qcow2 image beside its kernel and initrd."""
    say("making the file system")
    raw, root = work / "disk.raw", work / "root"
    raw.touch()
    os.truncate(raw, recipe.size)
    raw.chmod(0o666)  # the namespace's root is somebody else; the directory is ours
    # Not lazy: the guest's kernel would write the inode tables later, into every clone.
    options = ("-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(root))
    # mke2fs is in /sbin, which an ordinary user's PATH often lacks.
    sbin = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    mke2fs = ("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", *options, str(raw))
    for command in (Command((*_as_root(), *mke2fs), sbin), qemu_img.convert(raw, staging / "disk.qcow2")):
        result = runner.stream(command, timeout=1800, logfile=logfile)
        if not result.ok:
            raise _failed(command.argv[0] if command.argv[0] != "mmdebstrap" else "mke2fs", result, logfile)
    for name in ("kernel", "initrd"):
        shutil.copyfile(root / "boot" / f"claude-sandbox.{name}", staging / name)
    packages_kernel.unpack(staging / "kernel")
    for file in staging.iterdir():
        file.chmod(0o444)
    staging.chmod(0o755)


def _as_root() -> tuple[str, ...]:
    """How to reach files that belong to the namespace's users."""
    return () if os.getuid() == 0 else ("mmdebstrap", "--unshare-helper")


def _remove(runner: Runner, work: Path) -> None:
    """Remove our work directory, also one that a killed run left. Raises CreateError if it is not ours."""
    with contextlib.suppress(FileNotFoundError):
        info = work.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise CreateError(f"{work} exists already and is not yours.", resolution="Remove it by hand.")
        if os.getuid() != 0 and (work / "root").exists():
            runner.run(Command((*_as_root(), "rm", "-rf", str(work / "root"))), timeout=600)
        shutil.rmtree(work)


def check_space(directory: Path, need: int) -> None:
    """Raise CreateError when less than `need` bytes are free there."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise CreateError(
            f"Not enough space in {directory}: {free / GIB:.1f} GiB free, {need / GIB:.0f} GiB needed.",
            resolution="Free some space, then try again.",
        )


def _failed(what: str, result: Result, logfile: Path) -> CreateError:
    words = "\n".join(result.error_text.splitlines()[-8:])
    return CreateError(
        f"The guest image could not be built: {what} failed ({result.returncode}).",
        details=words or None,
        resolution=f"The log is {logfile}",
    )


def _expire(cache: Path, keep: str) -> None:
    """Remove images of other recipes that are old; sandboxes hold their own copy."""
    for entry in cache.iterdir():
        if entry.name == keep or entry.name == f"{keep}.lock":
            continue
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime < _OLD:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.suffix == ".lock" and not entry.with_suffix("").exists():
                entry.unlink()
