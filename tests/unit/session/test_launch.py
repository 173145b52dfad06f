"""A launch's command lines, run by a real bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _claude_sandbox.lima import remote_command
from _claude_sandbox.session.attach import NOT_FOUND

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15)


def run(line: str, tmp_path: Path, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
    """As sshd runs it; `claude` is a program that prints where it is and what it got."""
    claude = tmp_path / "claude"
    claude.write_text('#!/bin/sh\npwd\nprintf "%s\\0" "$@"\n')
    claude.chmod(0o755)
    profile = tmp_path / ".bash_profile"
    profile.write_text(f"PATH={tmp_path}:$PATH; LOGIN=yes\n")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        ["bash", "-c", line], input=stdin.encode(), capture_output=True, check=False, env=env
    )


@settings(max_examples=15)
@given(st.lists(words, max_size=3))
def test_claude_gets_the_user_s_arguments_unchanged(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "it's $(here)").mkdir(exist_ok=True)
    done = run(remote_command.claude_line(f"{tmp_path}/it's $(here)", arguments), tmp_path)
    where, _, rest = done.stdout.partition(b"\n")
    assert where.decode() == f"{tmp_path}/it's $(here)"
    got = rest.decode().split("\0")[:-1]
    own = any(a.startswith("--permission-mode") or a == "--dangerously-skip-permissions" for a in arguments)
    assert got == arguments if own else got == ["--permission-mode", "bypassPermissions", *arguments]


@pytest.mark.parametrize(
    "arguments", [["--permission-mode", "plan"], ["--permission-mode=plan"], ["--dangerously-skip-permissions"], ["-p", "x", "--permission-mode", "plan"]]
)  # fmt: skip
def test_the_user_s_own_permission_mode_wins(arguments: list[str]) -> None:
    assert "bypassPermissions" not in remote_command.claude_line("/p", arguments)


def test_a_missing_claude_or_directory_has_an_exit_code(tmp_path: Path) -> None:
    line = remote_command.claude_line(str(tmp_path), []).replace(
        "claude --permission", "no-such-claude --permission"
    )
    assert run(line, tmp_path).returncode == NOT_FOUND
    assert run(remote_command.claude_line(f"{tmp_path}/gone", []), tmp_path).returncode not in (
        0,
        NOT_FOUND,
        255,
    )


def test_a_command_in_the_login_environment_with_its_exit_code(tmp_path: Path) -> None:
    line = remote_command.shell_line(
        str(tmp_path), ["sh", "-c", 'pwd; echo "$1"; exit 7', "sh", "a  b"], tty=False
    )
    done = run(line, tmp_path)
    assert (done.stdout.decode(), done.returncode) == (f"{tmp_path}\na  b\n", 7)


def test_a_shell_reads_commands_from_stdin(tmp_path: Path) -> None:
    done = run(
        remote_command.shell_line(str(tmp_path), [], tty=False), tmp_path, "echo $LOGIN; pwd\nexit 5\n"
    )
    assert (done.stdout.decode(), done.returncode) == (f"yes\n{tmp_path}\n", 5)
    assert remote_command.shell_line("/p", [], tty=True) == "cd /p && exec bash -il"
