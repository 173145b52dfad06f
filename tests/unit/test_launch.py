"""A session's environment and command lines, run by a real bash, and its one-shot file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _claude_sandbox import launch, remote
from _claude_sandbox.config import Config
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.launch import Session
from _claude_sandbox.run import Command

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15)


def environment(environ: dict[str, str], **changes: Any) -> dict[str, str]:
    return launch.environment(Config(Path("/p"), Path("/s"), **changes), environ)


def test_what_every_session_gets() -> None:
    one, other = environment({"TZ": "Europe/Berlin"}), environment({})
    assert uuid.UUID(one["CLAUDE_SANDBOX_UUID"]).version == 4
    assert one["CLAUDE_SANDBOX_UUID"] != other["CLAUDE_SANDBOX_UUID"]
    assert one["UV_PROJECT_ENVIRONMENT"] == ".venv-agent"
    assert re.search("utf-?8", one["LANG"], re.IGNORECASE)
    assert one["TZ"] == "Europe/Berlin" and one["DISABLE_AUTOUPDATER"] == "1"
    assert environment({"UV_PROJECT_ENVIRONMENT": "mine"})["UV_PROJECT_ENVIRONMENT"] == "mine"


def test_nothing_else_of_the_host_s_environment_goes_along() -> None:
    host = {
        "AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/x", "PATH": "/x", "HOME": "/x", "CLAUDE_CODE_SESSION_ID": "x",
        "https_proxy": "http://user:pw@proxy:3128", "NO_PROXY": "x", "SSL_CERT_FILE": "/x",
    }  # fmt: skip
    assert set(environment(host)) <= {
        "CLAUDE_SANDBOX_UUID",
        "UV_PROJECT_ENVIRONMENT",
        "LANG",
        "TERM",
        "TZ",
        "DISABLE_AUTOUPDATER",
    }


def test_proxy_and_ca_only_when_the_user_says_so() -> None:
    host = {
        "https_proxy": "http://proxy:3128",
        "HTTP_PROXY": "http://127.0.0.1:8888",
        "no_proxy": "localhost,127.0.0.1",
    }
    got = environment(host, proxy=True, ca=True)
    assert got["https_proxy"] == "http://proxy:3128"
    assert "192.168.5.2:8888" in got["HTTP_PROXY"]  # the host's loopback, as the guest sees it
    assert got["no_proxy"] == "localhost,127.0.0.1"
    assert got["NODE_EXTRA_CA_CERTS"].startswith("/etc/ssl/")


@pytest.mark.parametrize(
    ("term", "guest"),
    [("xterm-256color", "xterm-256color"), ("tmux-256color", "tmux-256color"), ("xterm-kitty", "xterm-256color"),
     ("xterm-ghostty", "xterm-256color"), ("", "xterm-256color"), ("alacritty", "xterm-256color"), ("linux", "linux")],
)  # fmt: skip
def test_a_term_that_the_guest_knows(term: str, guest: str) -> None:
    assert launch.guest_term(term) == guest
    assert environment({"TERM": term})["TERM"] == guest


def test_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.time_zone({"TZ": ":Asia/Tokyo"}) == "Asia/Tokyo"
    for target, zone in (
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("/var/db/timezone/zoneinfo/America/Argentina/Ushuaia", "America/Argentina/Ushuaia"),
        ("/etc/localtime", None),
    ):
        monkeypatch.setattr(os.path, "realpath", lambda _path, target=target: target)
        assert launch.time_zone({}) == zone


# -- command lines, in a real shell ------------------------------------------------------------------


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
    done = run(remote.claude_line(f"{tmp_path}/it's $(here)", arguments), tmp_path)
    where, _, rest = done.stdout.partition(b"\n")
    assert where.decode() == f"{tmp_path}/it's $(here)"
    got = rest.decode().split("\0")[:-1]
    own = any(a.startswith("--permission-mode") or a == "--dangerously-skip-permissions" for a in arguments)
    assert got == arguments if own else got == ["--permission-mode", "bypassPermissions", *arguments]


@pytest.mark.parametrize(
    "arguments", [["--permission-mode", "plan"], ["--permission-mode=plan"], ["--dangerously-skip-permissions"], ["-p", "x", "--permission-mode", "plan"]]
)  # fmt: skip
def test_the_user_s_own_permission_mode_wins(arguments: list[str]) -> None:
    assert "bypassPermissions" not in remote.claude_line("/p", arguments)


def test_a_missing_claude_or_directory_has_an_exit_code(tmp_path: Path) -> None:
    line = remote.claude_line(str(tmp_path), []).replace("claude --permission", "no-such-claude --permission")
    assert run(line, tmp_path).returncode == launch.NOT_FOUND
    assert run(remote.claude_line(f"{tmp_path}/gone", []), tmp_path).returncode not in (
        0,
        launch.NOT_FOUND,
        255,
    )


def test_a_command_in_the_login_environment_with_its_exit_code(tmp_path: Path) -> None:
    line = remote.shell_line(str(tmp_path), ["sh", "-c", 'pwd; echo "$1"; exit 7', "sh", "a  b"], tty=False)
    done = run(line, tmp_path)
    assert (done.stdout.decode(), done.returncode) == (f"{tmp_path}\na  b\n", 7)


def test_a_shell_reads_commands_from_stdin(tmp_path: Path) -> None:
    done = run(remote.shell_line(str(tmp_path), [], tty=False), tmp_path, "echo $LOGIN; pwd\nexit 5\n")
    assert (done.stdout.decode(), done.returncode) == (f"yes\n{tmp_path}\n", 5)
    assert remote.shell_line("/p", [], tty=True) == "cd /p && exec bash -il"


# -- a session's file --------------------------------------------------------------------------------


def test_a_session_travels_through_a_private_file_that_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.session"
    monkeypatch.setenv("CS_FROM_OUTSIDE", "yes")
    monkeypatch.setenv("TMUX", "outer")
    command = Command(
        ("ssh", "a b"), {"CLAUDE_SANDBOX_ENV": "c2VjcmV0"}, hidden=frozenset({"CLAUDE_SANDBOX_ENV"})
    )
    Session(command, "claude-sandbox-app", "/s").save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "TMUX" not in json.loads(file.read_text())["environ"]
    monkeypatch.delenv("CS_FROM_OUTSIDE")  # a running tmux server does not pass it on
    monkeypatch.setenv("TMUX", "inner")
    monkeypatch.setenv("TERM", "tmux-256color")
    loaded = Session.load(file)
    assert not file.exists()
    assert loaded.command.argv == command.argv and loaded.command.hidden == command.hidden
    assert loaded.command.env["CLAUDE_SANDBOX_ENV"] == "c2VjcmV0" and "c2VjcmV0" not in str(loaded.command)
    assert (loaded.vm, loaded.settings) == ("claude-sandbox-app", "/s")
    assert (os.environ["CS_FROM_OUTSIDE"], os.environ["TMUX"], os.environ["TERM"]) == (
        "yes",
        "inner",
        "tmux-256color",
    )
    with pytest.raises(ClaudeSandboxError, match="file is gone"):
        Session.load(file)
