"""A session's environment."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.claude_home import prepare as claude_home_prepare
from _claude_sandbox.config.table import Config
from _claude_sandbox.credentials.variables import Variable


def environment(environ: dict[str, str], **changes: Any) -> dict[str, str]:
    found = claude_home_prepare.environment(Config(Path("/p"), Path("/s"), **changes), environ)
    return {name: variable.value for name, variable in found.items()}


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


@pytest.mark.spec("3.5")
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
    assert claude_home_prepare.guest_term(term) == guest
    assert environment({"TERM": term})["TERM"] == guest


def test_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claude_home_prepare.time_zone({"TZ": ":Asia/Tokyo"}) == "Asia/Tokyo"
    for target, zone in (
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("/var/db/timezone/zoneinfo/America/Argentina/Ushuaia", "America/Argentina/Ushuaia"),
        ("/etc/localtime", None),
    ):
        monkeypatch.setattr(os.path, "realpath", lambda _path, target=target: target)
        assert claude_home_prepare.time_zone({}) == zone


def test_a_login_of_another_kind_says_itself_where_its_variables_come_from() -> None:
    """session/ and its fast path know no kinds of login: a broker's address is text, its token a file."""
    broker = {
        "ANTHROPIC_BASE_URL": Variable.of_text("http://192.168.5.2:1"),
        "ANTHROPIC_AUTH_TOKEN": Variable("secret", ("file", "/run/broker/token")),
    }
    inputs = claude_home_prepare.SessionInputs(broker, (), warned=False)
    assert inputs.origins() == {
        "ANTHROPIC_BASE_URL": ("text", "http://192.168.5.2:1"),
        "ANTHROPIC_AUTH_TOKEN": ("file", "/run/broker/token"),
    }
    assert inputs.env["ANTHROPIC_AUTH_TOKEN"] == "secret" and "secret" not in repr(inputs)
    unknown = {**broker, "X": Variable("rewritten")}
    assert claude_home_prepare.SessionInputs(unknown, (), warned=False).origins() is None
