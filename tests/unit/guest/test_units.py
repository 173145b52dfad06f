"""What an image starts before READY waits for nothing that comes later: udev's devices above all; no VM.

udev begins in `late`, when Lima's logins are through. A unit that waits for a device unit would hold the boot,
and with it the guest agent, until then or until systemd's 90 s are over. The same question is put to a whole
sandbox, with every tool's own units, in tests/integration/test_a_day.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.base_vm.packages import recipe as packages_recipe

GUEST = Path(__file__).parents[3] / "_claude_sandbox" / "guest"
UNITS = sorted(GUEST.glob("*/etc/systemd/system/*.*"))
PROVISION = GUEST / "provision"
SHELLS = [name for name in ("dash", "bash") if shutil.which(name)]


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_no_unit_waits_for_a_device(unit: Path) -> None:
    assert ".device" not in unit.read_text()


@pytest.mark.spec("4.15")
def test_udev_s_start_is_not_behind_what_may_wait_for_it() -> None:
    """With default dependencies `late` would come after basic.target, and that after all swap and mounts."""
    lines = (GUEST / "files/etc/systemd/system/claude-sandbox-late.service").read_text().splitlines()
    assert "DefaultDependencies=no" in lines
    after = {unit for line in lines if line.startswith("After=") for unit in line[6:].split()}
    assert after == {"claude-sandbox-init.service", "ssh.service", "systemd-udevd.service"}


@pytest.mark.spec("4.15")
def test_swap_is_there_when_lima_says_ready() -> None:
    """READY comes after the guest agent, and the agent after our swap."""
    lines = (GUEST / "files/etc/systemd/system/claude-sandbox-swap.service").read_text().splitlines()
    assert "DefaultDependencies=no" in lines and "WantedBy=multi-user.target" in lines
    assert any(line.startswith("Before=") and "lima-guestagent.service" in line for line in lines)


def test_every_service_of_ours_that_a_boot_needs_is_enabled_in_both_modes() -> None:
    wanted = {unit.name for unit in UNITS if "[Install]" in unit.read_text()} - {"ssh.service"}
    lean, finalise = ((GUEST / name).read_text() for name in ("provision/lean.sh", "finalise.sh"))
    for name in wanted:
        assert name in lean.partition("systemctl enable")[2], name
    ubuntu = wanted - {"claude-sandbox-power.service"}  # there logind knows the button from the start
    for name in ubuntu:
        assert name in finalise.partition("An image that brings its own boot")[2], name


@pytest.mark.parametrize("small", [True, False])
def test_no_package_brings_swap_by_a_device_unit(small: bool) -> None:
    recipe = packages_recipe.Recipe(
        base_vm_catalogue.TOOLS, {}, packages_recipe.ARCHES["x86_64"], apt_sources.Distribution("debian", "bookworm", "linux-image-amd64"),
        (), (), (), small, "2026-01",
    )  # fmt: skip
    assert not [name for name in recipe.packages if "zram" in name or "swapspace" in name]
    assert "zram-generator" not in (PROVISION / "system.sh").read_text()
    kept = re.search(r"in (.*) continue ;; esac", (PROVISION / "lean.sh").read_text())
    assert kept and kept[1].startswith("systemd-fstab-generator | '*')")


# -- the swap ------------------------------------------------------------------------------------------

FAKES = {
    "modprobe": 'mkdir -p "$CLAUDE_SANDBOX_ROOT/sys/block/$1"0; cd "$CLAUDE_SANDBOX_ROOT/sys/block/$1"0; echo 0 > disksize; : > comp_algorithm',
    "mkswap": 'echo "mkswap $*" >> "$CLAUDE_SANDBOX_ROOT/done"',
    "swapon": 'echo "swapon $*" >> "$CLAUDE_SANDBOX_ROOT/done"; echo "/dev/zram0 partition 1 0 100" >> "$CLAUDE_SANDBOX_ROOT/proc/swaps"',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bin", "proc", "sys/block"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        4000000 kB\nMemFree:          1 kB\n")
    return tmp_path


def swap(root: Path, shell: str = "sh") -> None:
    script = GUEST / "files/usr/lib/claude-sandbox/swap"
    env = {**os.environ, "CLAUDE_SANDBOX_ROOT": str(root)}
    done = subprocess.run([shell, script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tenth_of_the_memory_by_zstd(root: Path, shell: str) -> None:
    swap(root, shell)
    disk = root / "sys/block/zram0"
    assert (disk / "disksize").read_text() == "400000K\n"
    assert (disk / "comp_algorithm").read_text() == "zstd\n"
    assert (root / "done").read_text() == "mkswap /dev/zram0\nswapon --priority 100 /dev/zram0\n"


def test_swap_that_is_on_stays_as_it_is(root: Path) -> None:
    swap(root)
    swap(root)
    assert (root / "done").read_text().count("swapon") == 1


def test_swap_that_was_cut_short_is_finished(root: Path) -> None:
    """The size cannot be set twice."""
    subprocess.run([root / "bin/modprobe", "zram"], env={"CLAUDE_SANDBOX_ROOT": str(root)}, check=True)
    (root / "sys/block/zram0/disksize").write_text("409600000\n")
    swap(root)
    assert (root / "sys/block/zram0/disksize").read_text() == "409600000\n"
    assert (root / "done").read_text().splitlines()[-1].startswith("swapon")
