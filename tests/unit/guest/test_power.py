"""The guest's own ear for the power button, with a directory for / and a FIFO for the button; no VM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "_claude_sandbox/guest/files/usr/lib/claude-sandbox/power"
EVENT = b"\0" * 16 + b"\x01\0\x74\0\x01\0\0\0"  # struct input_event: EV_KEY, KEY_POWER, pressed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    (tmp_path / "dev/input").mkdir(parents=True)
    for number, name in enumerate(("AT Translated Set 2 keyboard", "Power Button", "gpio-keys")):
        device = tmp_path / f"sys/class/input/event{number}/device"
        device.mkdir(parents=True)
        (device / "name").write_text(name + "\n")
        os.mkfifo(tmp_path / f"dev/input/event{number}")
    return tmp_path


def test_a_press_on_any_power_button_powers_off(root: Path) -> None:
    with subprocess.Popen(["sh", str(SCRIPT)], env={**os.environ, "CLAUDE_SANDBOX_ROOT": str(root)}) as ear:
        (root / "dev/input/event2").write_bytes(EVENT)  # each waits until it is listened to
        (root / "dev/input/event1").write_bytes(EVENT)
        assert ear.wait(timeout=20) == 0  # nobody waits for the keyboard
    assert (root / "asked").read_text() == "poweroff\npoweroff\n"


@pytest.mark.parametrize("lost", ["dev/input", "sys/class/input"])
def test_a_button_that_is_not_there_is_not_pressed(root: Path, lost: str) -> None:
    (root / lost).rename(root / "lost")
    done = subprocess.run(
        ["sh", str(SCRIPT)], env={**os.environ, "CLAUDE_SANDBOX_ROOT": str(root)}, timeout=20,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not (root / "asked").exists()
