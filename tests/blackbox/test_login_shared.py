"""The shared login against a hostile guest, through the whole program (docs/security.md, "The login")."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.box import Box

A, B = "claude-sandbox-app", "claude-sandbox-site"
MINE, THEIRS = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def made(ready: Box) -> Box:
    """Two sandboxes that were given the login `first`."""
    path = shared(ready)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(credential("first", 1))
    for name in ("app", "site"):
        assert (ended := ready.run(cwd=ready.project(name))).code == 0, ended.text
    return ready


def shared(box: Box) -> Path:
    return box.home / ".claude-sandbox" / ".claude" / ".credentials.json"


def inside(box: Box, name: str) -> Path:
    return box.guest(name) / "home" / ".claude" / ".credentials.json"


def credential(tag: str, hours: float = 8) -> str:
    value = {
        "accessToken": f"sk-ant-oat01-{tag}", "refreshToken": f"sk-ant-ort01-{tag}",
        "expiresAt": int((time.time() + hours * 3600) * 1000), "scopes": ["user:inference"],
        "subscriptionType": "max",
    }  # fmt: skip
    return json.dumps({"claudeAiOauth": value})


def log_in(box: Box, name: str, tag: str, account: str, hours: float = 8) -> None:
    """As `/login` in that guest leaves it, or whoever is root there."""
    file = box.guest(name) / "home" / ".claude.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "oauthAccount": {"accountUuid": account}}))
    inside(box, name).write_text(credential(tag, hours))


@pytest.mark.spec("5.3")
def test_a_hostile_guest_s_own_account_goes_nowhere(made: Box) -> None:
    log_in(made, A, "genuine-1", MINE)
    assert made.run().code == 0 and "genuine-1" in shared(made).read_text()
    assert "genuine-1" in inside(made, B).read_text(), "it goes on to the other at once"
    log_in(made, A, "evil-1", THEIRS, 399 * 24)
    ended = made.run()
    assert ended.code == 0 and "dates" in ended.err and "genuine-1" in shared(made).read_text()
    log_in(made, A, "evil-2", THEIRS)
    ended = made.run()
    assert ended.code == 0 and "login --take" in ended.err and "genuine-1" in shared(made).read_text()
    assert "genuine-1" in inside(made, B).read_text() and "evil" not in ended.text


def test_a_false_login_of_the_same_account_is_said_undone_and_never_final(made: Box) -> None:
    log_in(made, A, "false", MINE, 23.9)
    ended = made.run()
    assert f"{A} changed the login" in ended.err and "login --undo" in ended.err
    assert "false" in inside(made, B).read_text()
    undone = made.run("login", "--undo")
    assert undone.code == 0 and A in undone.out and "first" in shared(made).read_text()
    assert made.run(cwd=made.project("site")).code == 0
    assert "first" in inside(made, A).read_text() and "first" in inside(made, B).read_text()
    log_in(made, A, "false-2", MINE)
    assert made.run().code == 0 and "first" in shared(made).read_text()
    log_in(made, B, "genuine", MINE)
    assert made.run(cwd=made.project("site")).code == 0 and "genuine" in shared(made).read_text()


def test_on_a_terminal_another_account_is_a_question(made: Box) -> None:
    log_in(made, A, "mine", MINE)
    assert made.run().code == 0
    log_in(made, A, "work", THEIRS)
    ended = made.tty(talk=[("[y/N]", "n\n")])
    assert ended.code == 0 and "another account" in ended.out and "mine" in shared(made).read_text()
    assert "[y/N]" not in made.tty().out, "it has a login of its own now"
    assert made.run("login", "--take").code == 1, "without a terminal and -y"
    taken = made.run("login", "--take", "-y")
    assert taken.code == 0 and "work" in shared(made).read_text(), taken.text
    assert made.run("login", "--take", "-y").code == 0, "again: it is there already"
    log_in(made, A, "evil", THEIRS, 399 * 24)
    refused = made.run("login", "--take", "-y")
    assert refused.code == 1 and "dates" in refused.err and "work" in shared(made).read_text()


@pytest.mark.spec("5.4")
def test_the_user_s_own_claude_login_is_read_and_never_written(ready: Box) -> None:
    own = ready.home / ".claude"
    own.mkdir()
    (own / ".credentials.json").write_text(credential("own", 1))
    assert ready.run("-s", str(own)).code == 0
    assert "own" in inside(ready, A).read_text()
    log_in(ready, A, "refreshed", MINE)
    ended = ready.run("-s", str(own))
    assert ended.code == 0 and f"{A} changed the login" in ended.err
    assert [path.name for path in own.iterdir()] == [".credentials.json"]
    assert "sk-ant-oat01-own" in (own / ".credentials.json").read_text()
    assert ready.run("-s", str(own), cwd=ready.project("site")).code == 0
    assert "refreshed" in inside(ready, B).read_text()
    assert ready.run("login", "--undo", "-s", str(own)).code == 0
    assert ready.run("-s", str(own)).code == 0 and "own" in inside(ready, A).read_text()


def test_a_token_is_shared_by_all_and_has_nothing_to_undo(ready: Box) -> None:
    env = {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-not-a-real-one"}
    ended = ready.run("login", "--undo", env=env)
    assert ended.code == 2 and "CLAUDE_CODE_OAUTH_TOKEN" in ended.err
    assert "Nothing to undo" in ready.run("login", "--undo").out
