"""What is typed wrongly is a usage error before the host is looked at: nothing is installed for it (spec 1.12, 2.2)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from _claude_sandbox.cli import verb_table
from tests.support.box import Box

WRONG: dict[str, tuple[str, ...]] = {
    "settings": ("-s", ""),
    "clone-from": ("-c", "../evil"),
    "template": ("-t", ""),
    "ports": ("-p", "0"),
    "cpus": ("--cpus", "0"),
    "memory": ("--memory", "8 apples"),
    "disk": ("--disk", "-1GiB"),
    "mounts": ("--mount", "/nonexistent-directory"),
}
NEEDED = {"settings": ("diff",), "reply": ("app",), "notify": ("test",), "completion": ("bash",)}
WITHOUT_HOST = ("version", "help", "completion", "_session", "_open")
BAD = [
    (*((name,) if name else ()), *NEEDED.get(name, ()), *words)
    for name, verb in verb_table.VERBS.items()
    for key, words in WRONG.items()
    if key in verb.settings
] + [
    ("rebuild-tools-vm", "../x"),
    ("rebuild-tools-vm", "--only", "claud"),
    ("rebuild-tools-vm", "--only", ","),
    ("prune", "--cache", "x"),
    ("login", "--undo", "--forget"),
    ("reply", "app", "yes", "--", "no"),
    ("reply", "app", "--seq", "5"),
    ("events", "--since", "yesterday"),
]


@pytest.fixture
def bare(box: Box) -> Box:
    """A host without Lima, where `setup` could install it: it would have to ask or to say so."""
    box.without("limactl")
    return box


def said_first(ended_code: int, text: str) -> bool:
    return ended_code == 2 and not any(word in text for word in ("Lima", "lacks", "install it", "setup"))


@pytest.mark.spec("1.12")
def test_wrong_values_come_before_the_host(bare: Box) -> None:
    wrong = [
        (words, ended.text) for words in BAD if not said_first((ended := bare.run(*words)).code, ended.text)
    ]
    assert wrong == []
    assert bare.log() == []


def test_on_a_terminal_nothing_is_asked(bare: Box) -> None:
    for words in (("-p", "0"), ("shell", "--cpus", "x"), ("rebuild-tools-vm", "--only", "claud")):
        ended = bare.tty(*words)
        assert said_first(ended.code, ended.out) and "[y/N]" not in ended.out, ended.out


@pytest.mark.spec("1.12")
def test_nor_with_a_yes_that_would_install(bare: Box) -> None:
    """What only the disk or the network shows: a directory, a file, a port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said, code in (
            (("-s", "/nonexistent"), "Settings directory not found", 2),
            (("-t", "none.yaml"), "Template not found", 2),
            (("-p", str(port)), "is taken", 1),
        ):
            for verb in ("create", "start"):
                ended = bare.run(verb, "-y", *words)
                assert ended.code == code and said in ended.err, ended.text
    assert not list(Path(bare.home).rglob("limactl*"))


def test_a_wrong_value_in_a_file_too(bare: Box) -> None:
    (bare.project() / ".claude-sandbox.yaml").write_text("cpus: none\n")
    for words in (("create",), ("shell",), (), ("update",), ("settings", "pull"), ("rebuild-tools-vm",)):
        ended = bare.run(*words)
        assert ended.code == 1 and ".claude-sandbox.yaml:1: cpus" in ended.err and "Lima" not in ended.err, (
            words
        )


def test_a_directory_that_is_not_there(bare: Box) -> None:
    for name, verb in verb_table.VERBS.items():
        if verb.project and name not in WITHOUT_HOST:
            ended = bare.run(*((name,) if name else ()), *NEEDED.get(name, ()), "-d", "/nonexistent")
            assert ended.code == 1 and "Directory not found: /nonexistent" in ended.err, name
