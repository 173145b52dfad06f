"""--json gives one JSON value on stdout with every verb that takes it, dry runs and errors too; others refuse it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from _claude_sandbox.cli import parser, verb_table
from tests.support.box import Box, Ended

APP = "claude-sandbox-app"
TOKEN = "sk-ant-oat01-" + "a" * 80

# Words, exit code, what the value has. In this order in one box: what removes comes last.
CALLS: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("version",), 0, "version"), (("--version",), 0, "version"),
    (("setup", "--dry-run"), 0, "missing"),
    (("doctor",), 0, "checks"),
    (("approve", "--dry-run"), 0, "wants"), (("approve",), 1, "error"), (("approve", "-y"), 0, "wants"),
    (("approve",), 0, "wants"),
    (("create", "--dry-run"), 0, "name"), (("create",), 0, "name"), (("create",), 1, "error"),
    (("start", "--dry-run"), 0, "name"), (("start",), 0, "name"),
    (("status",), 0, "vms"), (("list",), 0, ""), (("info",), 0, "sandbox"), (("watch",), 0, ""),
    (("next",), 1, ""), (("next", "--dry-run"), 1, ""),
    (("reply", "none"), 1, "error"), (("reply", "app", "x", "--", "y"), 2, "error"),
    (("events",), 0, ""),
    (("update", "--dry-run"), 0, "claude"), (("update",), 0, "claude"),
    (("settings", "diff"), 0, ""), (("settings", "pull", "--dry-run"), 0, ""), (("settings", "pull", "-y"), 0, ""),
    (("settings", "pull", "none"), 2, "error"), (("settings", "diff", "--dry-run"), 0, ""),
    (("login", "--dry-run"), 0, "token_file"), (("login",), 0, "stored"), (("login", "--forget"), 0, "stored"),
    (("login", "--undo"), 0, "undone"), (("login", "--undo", "--dry-run"), 0, "undone"),
    (("login", "--take", "--undo"), 2, "error"),
    (("notify", "test", "--dry-run"), 0, "ways"),
    (("restart", "--dry-run"), 0, "name"), (("restart",), 0, "name"),
    (("stop", "--dry-run"), 0, "status"), (("stop",), 0, "status"),
    (("stop-all", "--dry-run"), 0, ""), (("stop-all",), 0, ""),
    (("rebuild-tools-vm", "--dry-run"), 0, "plan"), (("rebuild-tools-vm", "../x"), 2, "error"),
    (("prune", "--dry-run"), 0, ""), (("prune", "--cache", "--dry-run"), 0, ""), (("prune", "--cache", "-y"), 0, ""),
    (("prune", "--cache", "x"), 2, "error"), (("prune", "none"), 0, ""),
    (("delete", "--dry-run"), 0, "name"), (("delete", "-y"), 0, "name"), (("delete", "-y"), 0, "status"),
    (("info",), 1, "error"), (("restart",), 1, "error"), (("settings", "diff"), 1, "error"),
    (("stop", "--cpus", "2"), 2, "error"), (("sotp",), 2, "error"), (("-d", "/nonexistent", "info"), 1, "error"),
    (("restart-hooks", "--dry-run"), 0, "hooks_server"),
    (("uninstall", "--dry-run"), 0, "directories"), (("uninstall",), 1, "error"), (("uninstall", "-y"), 0, "removed"),
)  # fmt: skip
# With no call above: what takes a whole build or a notification on this desktop.
REFUSE = ("", "shell", "completion", "help")


def value_of(ended: Ended) -> Any:
    """The one value on stdout; each line is one for `events`."""
    return json.loads(ended.out) if ended.out.strip() else None


@pytest.fixture
def played(ready: Box) -> Iterator[Box]:
    (ready.root / "extra").mkdir()
    (ready.project() / ".claude-sandbox.yaml").write_text(f"mounts: [{ready.root}/extra]\n")
    yield ready


@pytest.mark.spec("2.1")
def test_every_verb(played: Box) -> None:
    wrong = []
    for words, code, key in CALLS:
        ended = played.run("--json", *words, input=TOKEN)
        try:
            value = value_of(ended)
        except ValueError:
            value = f"not JSON: {ended.out}"
        if (
            ended.code != code
            or (key and not (isinstance(value, dict) and key in value))
            or isinstance(value, str)
        ):
            wrong.append((words, ended.code, value, ended.err))
        if (
            key == "error"
            and isinstance(value, dict)
            and set(value["error"]) != {"message", "details", "resolution"}
        ):
            wrong.append((words, ended.code, value, ended.err))
    assert wrong == []


def test_no_verb_is_left_out() -> None:
    tried = {parser.parse(words)[0].name for words, code, _ in CALLS if code != 2}
    takes = {name for name, verb in verb_table.VERBS.items() if verb.json}
    assert takes == tried | {"reply"} and not takes & set(REFUSE)


def test_a_dry_run_prints_its_commands_beside_the_value(ready: Box) -> None:
    ended = ready.run("create", "--dry-run", "--json")
    assert f"clone --tty=false tools-vm {APP}" in ended.err and ended.json()["name"] == APP


@pytest.mark.parametrize("verb", REFUSE)
def test_a_verb_without_data_refuses_it(box: Box, verb: str) -> None:
    words = {"completion": ("completion", "bash"), "help": ("help", "stop")}.get(
        verb, (verb,) if verb else ()
    )
    ended = box.run(*words, "--json")
    assert ended.code == 2 and "does not take --json" in ended.json()["error"]["message"]
