"""How our own program finds its files and starts itself (system/program.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from _claude_sandbox.errors import ConfigError
from _claude_sandbox.notify import notifier as notify_notifier
from _claude_sandbox.session import launch as session_launch
from _claude_sandbox.system import program

# The package's own `host/python_env.py` runs before there is a package to import.
MAY_LOOK = {"system/program.py", "host/python_env.py"}


def test_one_module_knows_where_the_program_is() -> None:
    own = re.compile(r"\b__file__\b|resources\.files")
    found = {
        str(p.relative_to(program.PACKAGE))
        for p in program.PACKAGE.rglob("*.py")
        if own.search(p.read_text(encoding="utf-8"))
    }
    assert found <= MAY_LOOK | {"host/run_as.py"}  # of Python's own library


def test_the_user_s_python_variables_do_not_reach_our_program(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the user’s own code ran')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHOME": ""}
    ran = subprocess.run(program.own_argv("version"), env=env, capture_output=True, text=True, check=True)
    assert "ran" not in ran.stdout and ran.stdout.startswith("claude-sandbox")


def test_a_click_opens_the_session_by_the_same_start() -> None:
    assert f"{sys.executable} -E -s" in notify_notifier.open_line("0b7b")


def test_a_checkout_s_compiled_files_stay_where_the_launcher_put_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", "/var/cache/pyc")
    assert program.own_argv("_open")[1:5] == ("-E", "-s", "-X", "pycache_prefix=/var/cache/pyc")


def test_a_file_that_an_installation_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "PACKAGE", tmp_path / "site" / "_claude_sandbox")
    with pytest.raises(ConfigError, match=r"hook\.sh is missing"):
        program.outside_file("hook.sh")


def test_a_warm_shell_s_note_names_every_file_of_the_program() -> None:
    watched = set(session_launch._program())
    every = {p for p in program.PACKAGE.rglob("*") if p.is_file() and p.suffix == ".py"}
    assert every <= watched and {p.parent for p in every} <= watched
