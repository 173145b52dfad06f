"""All that decides what a from-packages guest image holds, and the key under which it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable

from _claude_sandbox.base_vm.catalogue import Tool, apt_packages
from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system.program import package_file
from _claude_sandbox.system.run import Runner
from _claude_sandbox.system.units import GIB

SETUP = "usr/local/lib/claude-sandbox/image.sh"  # our script for the image's root, in it
_BESIDE = ("provision/lean.sh", "provision/initrd.sh", "initrd/init")  # what that script uses
# What Lima and cloud-init need of a guest (facts/lima.md §10), and what every shell misses else.
BASE_PACKAGES = (
    "systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod", "cloud-init", "openssh-server", "sudo",
    "iproute2", "iptables", "rsync", "ca-certificates", "curl", "procps", "less", "tzdata", "netbase", "zstd",
    "initramfs-tools", "cpio", "xz-utils", "python3",
)  # fmt: skip
_FULL_PACKAGES = (
    "bash-completion",
    "openssh-client",
    "iputils-ping",
    "file",
)


@dataclass(frozen=True)
class Arch:
    """One machine type under its names in Lima, dpkg and npm, and its first serial port."""

    lima: str
    dpkg: str
    npm: str
    console: str


ARCHES = {
    "x86_64": Arch("x86_64", "amd64", "x64", "ttyS0"),
    "aarch64": Arch("aarch64", "arm64", "arm64", "ttyAMA0"),
}


def this_arch() -> Arch:
    """Raises HostSetupError for a machine that Claude Code has no build for."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if machine not in ARCHES:
        raise HostSetupError(f"There is no tools VM for {machine}.")
    return ARCHES[machine]


@dataclass(frozen=True)
class Recipe:
    """All that decides what an image holds. `pins` are the versions of tools-vm.yaml."""

    tools: tuple[Tool, ...]
    pins: Mapping[str, str]
    arch: Arch
    distribution: apt_sources.Distribution
    sources: tuple[str, ...]
    apt_options: tuple[str, ...]
    cas: tuple[str, ...]
    small: bool
    week: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def packages(self) -> tuple[str, ...]:
        extra = () if self.small else _FULL_PACKAGES
        return (*BASE_PACKAGES, self.distribution.kernel, *extra, *apt_packages(self.tools))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools if tool.packages)

    @property
    def size(self) -> int:
        """Bytes of the file system; it grows to the VM's disk at the first boot."""
        return (8 if self.small else 24) * GIB

    @property
    def key(self) -> str:
        what = {
            "version": 2,
            "packages": self.packages,
            "tools": sorted(self.names),
            "pins": dict(sorted(self.pins.items())),
            "arch": self.arch.lima,
            "suite": [self.distribution.id, self.distribution.codename],
            "apt": [*self.sources, *self.apt_options],
            "cas": [hashlib.sha256(ca.encode()).hexdigest() for ca in self.cas],
            "size": self.size,
            "week": self.week,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())},
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def recipe(runner: Runner, tools: Sequence[Tool], pins: Mapping[str, str], *, small: bool) -> Recipe:
    """The recipe for this host, now. Raises HostSetupError when the host cannot build one."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [p for p in ("mmdebstrap", "mke2fs", "qemu-img", "tar") if not shutil.which(p, path=path)]
    if os.getuid() != 0 and not shutil.which("newuidmap"):
        missing.append("newuidmap")
    if missing:
        raise HostSetupError(
            f"A tools VM from packages needs {', '.join(missing)}, which was not found on PATH.",
            resolution="On Debian and Ubuntu: apt-get install mmdebstrap uidmap e2fsprogs qemu-utils",
        )
    arch = this_arch()
    suite = apt_sources.distribution(arch.dpkg)
    return Recipe(
        tools=tuple(tools),
        pins=pins,
        arch=arch,
        distribution=suite,
        sources=tuple(apt_sources.apt_lines(suite)),
        apt_options=apt_sources.apt_options(runner),
        cas=tuple(apt_sources.extra_cas()),
        small=small,
        week=time.strftime("%G-%V"),
        files=guest_files(),
    )


def guest_files() -> dict[str, bytes]:
    """Our files for the image's root, by path: those of every tools VM and those of an image."""
    top = package_file("guest")
    found = dict(walk(top / "files")) | dict(walk(top / "image"))
    for name in ("provision/image.sh", *_BESIDE):
        beside = SETUP.rpartition("/")[0] + "/" + name.rpartition("/")[2]
        found[beside] = (top / name).read_bytes()
    return found


def walk(top: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in sorted(top.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_bytes()
