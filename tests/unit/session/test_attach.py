"""A session's one-shot file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.session.attach import Attachment
from _claude_sandbox.system.run import Command


def test_a_session_travels_through_a_private_file_that_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.session"
    monkeypatch.setenv("CS_FROM_OUTSIDE", "yes")
    monkeypatch.setenv("TMUX", "outer")
    command = Command(
        ("ssh", "a b"), {"CLAUDE_SANDBOX_ENV": "c2VjcmV0"}, hidden=frozenset({"CLAUDE_SANDBOX_ENV"})
    )
    Attachment(command, "claude-sandbox-app", "/s").save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "TMUX" not in json.loads(file.read_text())["environ"]
    monkeypatch.delenv("CS_FROM_OUTSIDE")  # a running tmux server does not pass it on
    monkeypatch.setenv("TMUX", "inner")
    monkeypatch.setenv("TERM", "tmux-256color")
    loaded = Attachment.load(file)
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
        Attachment.load(file)
