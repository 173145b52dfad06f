"""Looks at this host and says what is ready, what is not, and what to do. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.config.load import users_own
from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.host import accelerator, install_lima, inventory, run_as
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system import daemon, paths, program
from _claude_sandbox.system.run import Command, Runner
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import naming
from _claude_sandbox.voice import recorder as voice_recorder

LITTLE_DISK, TOO_LITTLE_DISK = 15 * GIB, 3 * GIB  # a tools VM is about 10 GiB, a small one 2
SETUP = "claude-sandbox setup"

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_CA_PLACES = ("/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors")
_FOREIGN_KEYS = ("mounts", "portForwards", "copyToHost", "networks")


@dataclass(frozen=True)
class Check:
    """`ok`: True ready, False not ready, None works but worth knowing."""

    name: str
    ok: bool | None
    detail: str
    remedy: str | None = None


def checks(runner: Runner) -> list[Check]:
    """Every check, in the order in which one would fix things. Asks Lima's host once (a few seconds)."""
    linux = sys.platform == "linux"
    rows: list[tuple[str, Callable[[], Check | None]]] = [
        ("python", _python),
        ("user", lambda: _user(runner)),
        ("lima", lambda: _lima(runner)),
        *([("qemu", lambda: _qemu(runner))] if linux else []),
        *([("qemu-img", lambda: _program("qemu-img", "makes the VM's disk"))] if linux else []),
        ("ssh", lambda: _program("ssh", "reaches into the VM")),
        ("tmux", lambda: _program("tmux", "keeps a session when the terminal closes", required=False)),
        *([("firmware", _firmware)] if linux else []),
        ("voice", _voice),
        ("accelerator", lambda: _accelerator(runner)),
        ("LIMA_HOME", _lima_home),
        ("Lima's defaults", _lima_defaults),
        ("disk space", _disk),
        ("leftovers", _leftovers),
        ("hooks server", _hooks_server),
        ("downloads", _downloads),
        ("proxy", _proxy),
        ("certificates", _certificates),
    ]
    found = (_guarded(name, look) for name, look in rows)
    return [check for check in found if check is not None] + _golden_disks()


def _guarded(name: str, look: Callable[[], Check | None]) -> Check | None:
    """One check that fails must not hide the others."""
    try:
        return look()
    except ClaudeSandboxError as error:
        text = ". ".join(part.rstrip(".") for part in (error.brief, error.details) if part)
        return Check(name, False, " ".join(text.split()), error.resolution)
    except OSError as error:
        return Check(name, False, str(error))


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "python", ok, f"{version}, {sys.executable}", None if ok else "Python 3.11 or newer is needed."
    )


def _user(runner: Runner) -> Check | None:
    if not run_as.is_root():
        return None
    prefix = run_as.limactl_prefix(runner)
    return Check("user", None, f"{run_as.WARNING} ({' '.join(prefix)})")


def _lima(runner: Runner) -> Check:
    binary = inventory.find_limactl(runner)
    return Check("lima", True, f"{inventory.dotted(binary.version)}, {binary.path}")


def _qemu(runner: Runner) -> Check:
    name = f"qemu-system-{inventory.machine()}"
    check = _program(name, "runs the VM")
    if not check.ok:
        return check
    result = runner.run(Command((name, "-version")), timeout=20, changes=False)
    first = (result.text or result.error_text).partition("\n")[0]
    return Check(name, result.ok, first, None if result.ok else f"Install QEMU again: `{SETUP}`.")


def _program(name: str, why: str, *, required: bool = True) -> Check:
    path = shutil.which(name)
    if path is not None:
        return Check(name, True, path)
    return Check(name, False if required else None, f"missing ({why})", f"`{SETUP}`")


def _firmware() -> Check:
    path = inventory.firmware()
    if path is not None:
        return Check("firmware", True, path)
    return Check(
        "firmware", None, "no UEFI firmware (cloud images need it, images from packages do not)", f"`{SETUP}`"
    )


def _accelerator(runner: Runner) -> Check:
    found = accelerator.detect(runner)
    if found.kind == "tcg":
        return Check("accelerator", None, f"none, VMs are emulated: {found.reason}", found.remedy or None)
    if sys.platform == "darwin":
        result = runner.run(Command(("sysctl", "-n", "kern.hv_support")), timeout=10, changes=False)
        if result.text.strip() != "1":
            return Check("accelerator", False, "macOS offers no hypervisor here (kern.hv_support)")
    return Check("accelerator", True, found.kind + (f" ({found.reason})" if found.reason else ""))


def _voice() -> Check:
    """What --voice would record with. Nobody needs it who does not use it."""
    plan = voice_recorder.find_command(users_own("voice.")["voice_command"])
    if plan.ok:
        return Check("voice", True, f"{plan.argv[0]} reads the microphone, for sandboxes with --voice")
    return Check("voice", None, f"--voice has no microphone: {plan.reason}", plan.remedy)


def _lima_home() -> Check:
    home = paths.lima_home()
    if home.exists():
        os.listdir(home)  # an OSError becomes the check's text
        if not os.access(home, os.W_OK | os.X_OK):
            return Check("LIMA_HOME", False, f"{home} cannot be written", "Make it writable for your user.")
    room = lima_context.longest_name(home, sys.platform == "darwin")
    if room < len(naming.PREFIX) + 1:
        return Check(
            "LIMA_HOME",
            False,
            f"{home} is so long that no VM's sockets fit under it",
            "Set LIMA_HOME to a shorter path.",
        )
    return Check("LIMA_HOME", True, str(home))


def _lima_defaults() -> Check | None:
    import yaml

    config = paths.lima_home() / "_config"
    for name in ("default.yaml", "override.yaml"):
        try:
            document = yaml.safe_load((config / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return Check(
                "Lima's defaults", False, f"{config / name} is not valid YAML: {error}", "Fix or remove it."
            )
        keys = [key for key in _FOREIGN_KEYS if isinstance(document, dict) and document.get(key)]
        ssh = document.get("ssh") if isinstance(document, dict) else None
        keys += ["ssh.forwardAgent"] if isinstance(ssh, dict) and ssh.get("forwardAgent") else []
        if keys:
            return Check(
                "Lima's defaults",
                False,
                f"{config / name} has {', '.join(keys)}, which Lima merges into every VM, sandboxes too",
                "Move these into the VMs that need them; a sandbox is not started with them.",
            )
    return None


def _disk() -> Check:
    place = paths.lima_home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    ok = True if free >= LITTLE_DISK else None if free >= TOO_LITTLE_DISK else False
    remedy = (
        None
        if ok
        else "Free some; `claude-sandbox prune --orphans` removes sandboxes of projects that are gone."
    )
    return Check("disk space", ok, f"{free / GIB:.0f} GiB free at {place}", remedy)


def _leftovers() -> Check | None:
    """Pid files whose process is gone: the host went down with VMs running."""
    stale = []
    for file in sorted(paths.lima_home().glob(f"{naming.PREFIX}*/ha.pid")):
        try:
            os.kill(int(file.read_text()), 0)
        except PermissionError:
            continue
        except (OSError, ValueError):
            stale.append(file.parent.name)
    if not stale:
        return None
    return Check(
        "leftovers", None, f"did not end cleanly: {', '.join(stale)}", "The next start repairs them."
    )


def _hooks_server() -> Check:
    import importlib.util

    name, remedy = "hooks server", "claude-sandbox restart-hooks"
    if importlib.util.find_spec("aiohttp") is None:
        return Check(name, False, "the Python package aiohttp is missing", "reinstall claude-sandbox")
    if daemon_client.former():
        return Check(name, None, "one of the last release runs; the next Claude replaces it", remedy)
    if not daemon_client.running():
        return Check(name, True, "does not run; it is started when a sandbox needs it")
    if not daemon.running(daemon_client.daemon()):
        return Check(
            name, False, f"runs but does not answer; its log is {daemon_client.daemon().log}", remedy
        )
    if daemon.read_pid_file(daemon_client.daemon()).get("version") != program.version():
        return Check(name, None, "runs in another version; the next Claude replaces it", remedy)
    return Check(name, True, "runs")


def _golden_disks() -> list[Check]:
    """The disks of which sandboxes are overlays, with their users."""
    try:
        return [_golden_disk(each) for each in disks_store.list_files(paths.lima_home())]
    except (ClaudeSandboxError, OSError) as error:
        return [Check("golden disks", False, " ".join(str(error).split()))]


def _golden_disk(each: disks_store.GoldenFile) -> Check:
    name = f"golden disk {each.path.stem[:12]}"
    size = f"{each.size / GIB:.1f} GiB"
    if each.users:
        if problem := disks_store.problem_of(each.path):
            remedy = f"Put {each.path} back (from a backup), or recreate these VMs."
            return Check(name, False, f"{problem}; needed by {', '.join(each.users)}", remedy)
        return Check(name, True, f"{size}, used by {', '.join(each.users)}")
    if each.gone:
        homes = ", ".join(f"{home}, which {why}" for home, why in zip(each.gone, each.why, strict=True))
        remedy = f"`claude-sandbox prune --cache --forget-home {each.gone[0]}`, if it was deleted for good"
        return Check(name, None, f"{size}, used by VMs of {homes}", remedy)
    return Check(name, None, f"{size}, used by no VM", "`claude-sandbox prune --cache`")


def _downloads() -> Check:
    if install_lima.release_reachable():
        return Check("downloads", True, "Lima's releases can be reached")
    missing = inventory.missing_for_packages()
    detail = "Lima's releases cannot be reached; the tools VM is then built from packages"
    if not missing:
        return Check("downloads", None, detail)
    names = ", ".join(f"{item.name} ({item.why})" for item in missing)
    return Check("downloads", None, f"{detail}, for which these are missing: {names}", f"`{SETUP}`")


def _proxy() -> Check | None:
    names = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.upper())]
    if not names:
        return None
    return Check(
        "proxy", None, f"this host uses a proxy ({', '.join(names)}); VMs get none by default", "`proxy: host` in the config file passes it on."
    )  # fmt: skip


def _certificates() -> Check | None:
    variables = [name for name in _CA_VARIABLES if os.environ.get(name)]
    places = [place for place in _CA_PLACES if Path(place).is_dir() and any(Path(place).iterdir())]
    if not variables and not places:
        return None
    return Check(
        "certificates",
        None,
        f"this host trusts extra CAs ({', '.join([*variables, *places])}); VMs do not by default",
        "`ca: host` in the config file makes them.",
    )
