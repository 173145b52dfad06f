"""scripts/test as an ordinary user: what it does by sudo, and what it says it has left out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.box import Ended, converse

ROOT = Path(__file__).resolve().parents[2]
TESTS_NEED = [
    "git",
    "tmux",
    "zsh",
    "fish",
    "shellcheck",
    "Xvfb",
    "dunst",
    "dbus-daemon",
    "dbus-launch",
    "busctl",
]
REFUSED = "echo 'joe is not in the sudoers file.' >&2; exit 1"
ASKS = '[ "$1" != -n ] || exit 1; [ "$1" = true ] || exec "$@"'  # jane's, with a password


class Machine:
    """An ordinary user's: every program is there and does nothing; `log` has what was run."""

    def __init__(self, top: Path, sudo: str) -> None:
        self.log, self.checkout, self.bin = top / "log", top / "checkout", top / "bin"
        for directory in (self.bin, self.checkout / "scripts"):
            directory.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "test", self.checkout / "scripts" / "test")
        self.program(self.checkout / "claude-sandbox", "")
        self.program(self.bin / "id", "echo 1000")
        self.program(self.bin / "sudo", sudo)
        self.program(self.bin / "apt-get", "")
        for name in TESTS_NEED:
            self.program(self.bin / name, "")

    def program(self, path: Path, does: str) -> None:
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >>{self.log}\n{does}\n')
        path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "TERM": "xterm"}

    def test(self, *arguments: str, env: dict[str, str] | None = None) -> Ended:
        """Without a terminal."""
        argv, whole = ["sh", "scripts/test", *arguments], {**self.env, **(env or {})}
        done = subprocess.run(
            argv, cwd=self.checkout, env=whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def test_on_a_terminal(self, *arguments: str) -> Ended:
        return converse(["/bin/sh", "scripts/test", *arguments], self.checkout, self.env, [])

    def ran(self, part: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if part in line]


def test_roots_vms_run_by_sudo(tmp_path: Path) -> None:
    jane = Machine(tmp_path, '[ "$1" != -n ] || shift; exec "$@"')
    ended = jane.test()
    assert ended.code == 0 and "Left out" not in ended.text
    asked, whole = jane.ran("sudo ")[-1], jane.ran("claude-sandbox -m pytest")
    assert asked.startswith("sudo env CLAUDE_SANDBOX_DEV=1 ") and asked in whole
    whole.remove(asked)
    assert whole == [
        "claude-sandbox -m pytest -n 2 -m not vm",
        "claude-sandbox -m pytest -m vm and not as_root --durations=0",
        "claude-sandbox -m pytest -m vm and as_root -p no:cacheprovider",
    ]


def test_sudo_may_ask_for_a_password_on_a_terminal(tmp_path: Path) -> None:
    jane = Machine(tmp_path, ASKS)
    ended = jane.test_on_a_terminal()
    assert ended.code == 0 and "Left out" not in ended.text
    assert len(jane.ran("vm and as_root")) == 2  # sudo's line and the program's


def test_whom_sudo_refuses_on_a_terminal_is_told_what_is_left_out(tmp_path: Path) -> None:
    joe = Machine(tmp_path, REFUSED)
    ended = joe.test_on_a_terminal()
    assert ended.code == 0, ended.text
    assert "Left out:\n  root's own VMs: you are not root and may not use sudo" in ended.text
    assert joe.ran("sudo") == ["sudo true"]


def test_without_a_terminal_sudo_is_not_asked_twice(tmp_path: Path) -> None:
    joe = Machine(tmp_path, REFUSED)
    ended = joe.test()
    assert ended.code == 0 and "root's own VMs: you are not root" in ended.out
    assert joe.ran("sudo") == ["sudo -n true"]


def test_what_cannot_be_installed_is_left_out_and_said(tmp_path: Path) -> None:
    joe = Machine(tmp_path, REFUSED)
    joe.program(joe.checkout / "claude-sandbox", '[ "$1" != setup ]')
    ended = joe.test()
    assert ended.code == 0 and "everything on real VMs: `claude-sandbox setup` could not" in ended.out
    assert not joe.ran("as_root") and len(joe.ran("pytest")) == 1


def test_in_ci_what_would_be_left_out_fails(tmp_path: Path) -> None:
    joe = Machine(tmp_path, REFUSED)
    ended = joe.test(env={"CI": "true"})
    assert ended.code == 1 and "Missing in CI: root's own VMs" in ended.err


@pytest.mark.parametrize(("arguments", "code"), [((), 5), (("-k", "nothing"), 0)])
def test_no_tests_are_all_right_only_in_a_choice(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    joe = Machine(tmp_path, REFUSED)
    joe.program(joe.checkout / "claude-sandbox", 'case "$*" in *pytest*) exit 5 ;; esac')
    assert joe.test(*arguments).code == code
