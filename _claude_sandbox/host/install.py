"""Installs what the host lacks: plan (says the exact commands), then apply.

System packages come from the platform's package manager through root or sudo; Lima from brew, else
its release tarball, else a build with Go (lima_install). Asking first is the front's affair.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import install_lima, inventory, run_as
from _claude_sandbox.host.inventory import Missing
from _claude_sandbox.system import paths
from _claude_sandbox.system.progress import Progress
from _claude_sandbox.system.run import Command, Result, Runner

INSTALL_TIMEOUT = 3600.0  # seconds
PACKAGES, USER, RELEASE, GO = "packages", "user", "release", "go"

# What is missing -> package, by package manager. The first manager that is there is used.
_NAMES: dict[str, dict[str, str]] = {
    "brew": {"lima": "lima", "tmux": "tmux"},
    "apt-get": {
        "qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm",
        "qemu-img": "qemu-utils", "ssh": "openssh-client", "tmux": "tmux", "unshare": "util-linux",
        "mmdebstrap": "mmdebstrap", "newuidmap": "uidmap", "mke2fs": "e2fsprogs", "npm": "npm",
    },
    "dnf": {
        "qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-aarch64",
        "qemu-img": "qemu-img", "ssh": "openssh-clients", "tmux": "tmux", "unshare": "util-linux",
        "mmdebstrap": "mmdebstrap", "newuidmap": "shadow-utils", "mke2fs": "e2fsprogs",
    },
    "pacman": {
        "qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-aarch64",
        "qemu-img": "qemu-img", "ssh": "openssh", "tmux": "tmux", "unshare": "util-linux",
        "newuidmap": "shadow", "mke2fs": "e2fsprogs",
    },
}  # fmt: skip
_FIRMWARE = {
    ("apt-get", "x86_64"): "ovmf", ("apt-get", "aarch64"): "qemu-efi-aarch64",
    ("dnf", "x86_64"): "edk2-ovmf", ("dnf", "aarch64"): "edk2-aarch64",
    ("pacman", "x86_64"): "edk2-ovmf", ("pacman", "aarch64"): "edk2-aarch64",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """`commands` are complete (sudo included); for RELEASE and GO they are empty and `lines` say it."""

    title: str
    kind: str
    commands: tuple[Command, ...] = ()
    lines: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        return [*map(str, self.commands), *self.lines]


@dataclass(frozen=True)
class SetupPlan:
    missing: tuple[Missing, ...] = ()
    steps: tuple[Step, ...] = ()

    def describe(self) -> list[str]:
        """The exact commands, one a line."""
        return [line for step in self.steps for line in step.describe()]

    def missing_text(self) -> str:
        # Of Lima there may be one that is too old: its reason says so.
        return ", ".join(f"lima ({m.why.rstrip('.')})" if m.name == "lima" else m.name for m in self.missing)

    def packages_only(self) -> SetupPlan:
        """Only what needs root: for before another user is taken, whose own Lima comes later."""
        return SetupPlan(
            tuple(item for item in self.missing if item.name != "lima"),
            tuple(step for step in self.steps if step.kind in (PACKAGES, USER)),
        )


def plan(runner: Runner, *, everything: bool = False, project: Path | None = None) -> SetupPlan:
    """What would be done. Empty when nothing required is missing; `everything` counts the optional too.

    As root that is about to become another user (`project` decides whom, default the working
    directory) it leaves Lima out: that belongs into the other user's data directory.

    Quick when nothing is missing; else one request finds out whether releases can be reached, and
    where they cannot, what builds the tools VM from packages is wanted as well. Raises HostSetupError
    when there is no way to get something required.
    """
    missing = inventory.missing_system(project)
    if run_as.user_to_become(project or Path.cwd()) is None:
        missing += inventory.missing_lima(runner)
    if not everything and not any(item.required for item in missing):
        return SetupPlan()
    lacks_lima = any(item.name == "lima" for item in missing)
    manager = package_manager()
    steps: list[Step] = []
    reachable = manager == "brew" or install_lima.release_reachable()
    if not reachable:
        missing += inventory.missing_for_packages(project)
    names = packages(manager, missing)
    if names and manager is not None:
        steps.append(Step(f"Installing {', '.join(names)}", PACKAGES, install_commands(manager, names)))
    if any(item.name == "user" for item in missing):
        steps.append(Step("Adding a user", USER, (as_root(Command(run_as.add_user_argv())),)))
    if lacks_lima and manager != "brew":
        why = next(item.why for item in missing if item.name == "lima")
        steps.append(_lima_step(reachable, why))
    _check_complete(manager, missing)
    return SetupPlan(tuple(item for item in missing if _available(manager, item)), tuple(steps))


def package_manager() -> str | None:
    """brew on macOS; apt-get, dnf or pacman elsewhere."""
    known = ["brew"] if sys.platform == "darwin" else ["apt-get", "dnf", "pacman"]
    return next(filter(shutil.which, known), None)


def package(manager: str, name: str, machine: str) -> str | None:
    return _FIRMWARE.get((manager, machine)) if name == "firmware" else _NAMES[manager].get(name)


def packages(manager: str | None, missing: Sequence[Missing]) -> list[str]:
    if manager is None:
        return []
    found = [package(manager, item.name, inventory.machine()) for item in missing]
    return list(dict.fromkeys(name for name in found if name is not None))


def install_commands(manager: str, names: Sequence[str]) -> tuple[Command, ...]:
    """Without questions; root's rights come in front where they are needed."""
    if manager == "brew":
        return (Command(("brew", "install", *names), {"NONINTERACTIVE": "1"}),)
    if manager == "apt-get":
        # `env`, for sudo drops the variable. Lists may be absent or old (a fresh container).
        quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
        install = (*quiet, "install", "-y", "--no-install-recommends", *names)
        return (as_root(Command((*quiet, "update"))), as_root(Command(install)))
    if manager == "dnf":
        return (as_root(Command(("dnf", "install", "-y", *names))),)
    return (as_root(Command(("pacman", "-Sy", "--needed", "--noconfirm", *names))),)


def as_root(command: Command) -> Command:
    return command if os.geteuid() == 0 else Command(("sudo", *command.argv), command.env)


def _available(manager: str | None, item: Missing) -> bool:
    if item.name in ("lima", "user"):
        return True
    return manager is not None and package(manager, item.name, inventory.machine()) is not None


def _check_complete(manager: str | None, missing: Sequence[Missing]) -> None:
    lost = [item for item in missing if item.required and not _available(manager, item)]
    if lost:
        raise HostSetupError(
            f"This host lacks {', '.join(item.name for item in lost)}, and setup does not know how to install it here.",
            details="\n".join(f"{item.name}: {item.why}" for item in lost),
            resolution="Install it with your system's package manager (setup knows brew, apt, dnf and pacman).",
        )


def _lima_step(reachable: bool, why: str) -> Step:
    lima = f"Lima {inventory.PINNED_LIMA}"
    if reachable:
        return Step(f"Installing {lima}", RELEASE, lines=tuple(install_lima.release_lines()))
    if install_lima.supports_go() or (install_lima.cached() / "bin" / "limactl").exists():
        return Step(f"Building {lima} with Go", GO, lines=tuple(install_lima.go_lines()))
    raise HostSetupError(
        f"{why} Its releases cannot be reached, and there is no Go toolchain to build it.",
        details=f"Tried {install_lima.RELEASES}",
        resolution="Check the network and proxy; or install Go 1.25.7 or newer and try again; or install Lima "
        "yourself: https://lima-vm.io/docs/installation/",
    )


def apply(plan: SetupPlan, runner: Runner, progress: Progress) -> None:
    """Carry the plan out. Raises HostSetupError with the failing tool's words."""
    _authorize(plan, runner)
    log = paths.logs_dir() / "setup.log"
    for step in plan.steps:
        with progress.stage(step.title) as say:
            if step.kind == RELEASE:
                install_lima.install_release(say)
            elif step.kind == GO:
                install_lima.install_with_go(runner, say, log)
            for command in step.commands:
                say(shlex.join(command.argv[-3:]))
                result = runner.stream(command, timeout=INSTALL_TIMEOUT, on_line=say, logfile=log)
                if not result.ok:
                    raise _failed(command, result, log)


def _failed(command: Command, result: Result, log: Path) -> HostSetupError:
    return HostSetupError(
        f"`{command}` failed.",
        details=result.last_lines,
        resolution=f"Fix that, or run it yourself, then `claude-sandbox setup` again. Log: {log}",
    )


def _authorize(plan: SetupPlan, runner: Runner) -> None:
    """Let sudo ask for its password now, on the terminal: later it would ask from the background."""
    commands = [command for step in plan.steps for command in step.commands]
    needs = [command for command in commands if command.argv[0] == "sudo"]
    if not needs:
        return
    if shutil.which("sudo") is None:
        raise HostSetupError(
            "Installing packages needs root, and sudo is not here.",
            details="\n".join(shlex.join(command.argv[1:]) for command in needs),
            resolution="Run these as root, then `claude-sandbox setup` again.",
        )
    if runner.run(Command(("sudo", "-n", "true")), timeout=30, changes=False).ok:
        return
    if not sys.stdin.isatty() or runner.foreground(Command(("sudo", "-v"))) != 0:
        raise HostSetupError(
            "sudo did not let us install packages.",
            details="\n".join(map(str, needs)),
            resolution="Run these yourself, then `claude-sandbox setup` again.",
        )
