"""What this host has: Lima and its version, QEMU, ssh and the rest. Asks and never changes.

The versions of Lima that we accept and install are here and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import run_as
from _claude_sandbox.lima.limactl import parse_version
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.run import Command, Runner

MIN_LIMA = (2, 1, 2)  # 2.0: a clone's disk points into the base VM (docs/facts/lima.md §0)
PINNED_LIMA = "2.2.0"  # what `setup` installs
SCHEMA = 1
QUESTION_TIMEOUT = 20.0  # seconds

# pkg/driver/qemu/qemu.go: where Lima looks for UEFI firmware, besides QEMU's own share directory.
_FIRMWARE = {
    "x86_64": (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    ),
    "aarch64": (
        "/usr/share/edk2/aarch64/QEMU_CODE.fd",
        "/usr/share/AAVMF/AAVMF_CODE.fd",
        "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    ),
}


@dataclass(frozen=True)
class LimaBinary:
    """`version` is None for a build that does not know its own ("<unknown>")."""

    path: str
    version: tuple[int, ...] | None


@dataclass(frozen=True)
class Missing:
    """Something that this host lacks. Without what is not `required` a sandbox still runs."""

    name: str
    why: str
    required: bool = True


def own_limactl() -> Path:
    """Where `setup` puts Lima when no package manager has it."""
    return paths.data_dir() / "lima" / "bin" / "limactl"


def limactl_env() -> dict[str, str | None]:
    """Changes of limactl's environment: in the namespace it takes its user from HOME and USER."""
    if not run_as.is_root():
        return {}
    return {"HOME": str(paths.home()), "USER": os.environ.get("USER") or "root"}


def find_limactl(runner: Runner) -> LimaBinary:
    """Our own or PATH's, the newer one. Raises HostSetupError when there is none, or it is too old."""
    found = _limactls(runner)
    if not found:
        raise HostSetupError("Lima is not installed.", resolution="Run `claude-sandbox setup`.")
    best = max(found, key=lambda binary: binary.version or (0,))
    if best.version is None or best.version >= MIN_LIMA:
        return best
    for binary in found:
        if binary.version is None:  # it may be new enough
            return binary
    raise HostSetupError(
        f"Lima is too old: {best.path} is {dotted(best.version)}.",
        details=f"claude-sandbox needs {dotted(MIN_LIMA)} or newer.",
        resolution="Run `claude-sandbox setup`, or upgrade Lima the way you installed it.",
    )


def dotted(version: tuple[int, ...] | None) -> str:
    return ".".join(map(str, version)) if version else "of an unknown version"


def _limactls(runner: Runner) -> list[LimaBinary]:
    own = own_limactl()
    names = [str(own)] if os.access(own, os.X_OK) else []
    if (other := shutil.which("limactl")) and other not in names:
        names.append(other)
    if not names:
        return []
    prefix = run_as.limactl_prefix()
    state_file = paths.state_dir() / "limactl.json"
    state = read_object(state_file) or {}
    seen = state.get("seen") if state.get("version") == SCHEMA else None
    known = seen if isinstance(seen, dict) else {}
    now = {name: _identify(runner, prefix, name, known.get(name)) for name in names}
    if now != known:
        write_json(state_file, {"version": SCHEMA, "seen": now})
    return [LimaBinary(name, parse_version(str(entry[2]))) for name, entry in now.items()]


def _identify(runner: Runner, prefix: tuple[str, ...], name: str, known: object) -> list[object]:
    """[time of change in ns, size, version]; the program is asked only when it changed."""
    info = os.stat(name)
    if isinstance(known, list) and len(known) == 3 and known[:2] == [info.st_mtime_ns, info.st_size]:
        return known
    command = Command((*prefix, name, "--version"), limactl_env())
    result = runner.run(command, timeout=QUESTION_TIMEOUT, changes=False)
    if not result.ok:
        run_as.limactl_prefix(runner)  # for root: says so if it is the namespace that fails
        raise HostSetupError(
            f"{name} does not run.",
            details=result.error_text or f"exit code {result.returncode}",
            resolution="`claude-sandbox doctor` checks this host; `claude-sandbox setup` installs Lima.",
        )
    return [info.st_mtime_ns, info.st_size, result.text.strip()]


def machine() -> str:
    """x86_64 or aarch64, as QEMU and Lima call them."""
    name = os.uname().machine
    return "aarch64" if name == "arm64" else name


def firmware() -> str | None:
    """The UEFI firmware that Lima would take; cloud images need one, images of our own do not."""
    qemu = shutil.which(f"qemu-system-{machine()}")
    beside = [Path(qemu).parent.parent / f"share/qemu/edk2-{machine()}-code.fd"] if qemu else []
    own = paths.home() / f".local/share/qemu/edk2-{machine()}-code.fd"
    places = [own, *beside, *map(Path, _FIRMWARE.get(machine(), ()))]
    return next((str(place) for place in places if place.exists()), None)


def missing(runner: Runner, project: Path | None = None) -> list[Missing]:
    """What is not there, from a look at PATH (and one question to a limactl not yet known)."""
    return [*missing_system(project), *missing_lima(runner)]


def missing_lima(runner: Runner) -> list[Missing]:
    """Raises HostSetupError when root cannot have the namespace that limactl needs."""
    if run_as.is_root() and (run_as.namespace_user() is None or shutil.which("unshare") is None):
        # It can only be asked once `setup` has added these.
        there = own_limactl().exists() or shutil.which("limactl") is not None
        return [] if there else [Missing("lima", "Lima is not installed.")]
    run_as.limactl_prefix()
    paths.state_dir()  # when it is not usable, that is the error, not Lima
    try:
        find_limactl(runner)
    except HostSetupError as error:
        return [Missing("lima", f"{error.brief} {error.details or ''}".strip())]
    return []


def missing_system(project: Path | None = None) -> list[Missing]:
    """What the platform's package manager has, or root can do."""
    out = []

    def want(program: str, why: str, required: bool = True) -> None:
        if shutil.which(program) is None:
            out.append(Missing(program, why, required))

    if sys.platform == "linux":
        want(f"qemu-system-{machine()}", "runs the VM")
        want("qemu-img", "makes the VM's disk")
        if firmware() is None:
            out.append(Missing("firmware", "UEFI firmware, to boot cloud images", False))
        if run_as.is_root() and run_as.user_to_become(project or Path.cwd()) is None:
            want("unshare", "lets root run Lima in a user namespace")
            if run_as.namespace_user() is None:
                out.append(Missing("user", "an ordinary user, whose number root has for Lima"))
    want("ssh", "reaches into the VM")
    want("tmux", "keeps a session when the terminal closes", False)
    return out


def missing_for_packages(project: Path | None = None) -> list[Missing]:
    """What building the tools VM from packages needs besides (spec 8.2; Linux)."""
    from _claude_sandbox.system import npm

    wanted = [("mmdebstrap", "builds a VM image from packages"), ("mke2fs", "makes its file system")]
    if sys.platform != "linux":
        return []
    if not run_as.is_root() or run_as.user_to_become(project or Path.cwd()) is not None:
        wanted.append(("newuidmap", "lets it run without root"))
    if npm.configured() is None:  # npm itself knows one; none is built in here
        wanted.append(("npm", "knows where Claude Code is published"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return [Missing(name, why, False) for name, why in wanted if shutil.which(name, path=path) is None]
