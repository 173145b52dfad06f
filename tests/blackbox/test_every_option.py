"""Every option that somebody types has an effect or a sentence, also with -q (spec 2.1, 2.2, 4.6).

Which verb takes which option at all is in unit/test_options.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from _claude_sandbox.cli import verb_table
from tests.support.box import Box

APP = "claude-sandbox-app"
LATER = "`claude-sandbox restart` applies: "

# Option, what is said where it cannot be applied now, exit code; and where its effect is seen once it is applied.
OPTIONS: dict[str, tuple[tuple[str, ...], str, int, str]] = {
    "cpus": (("--cpus", "3"), f"{LATER}cpus", 0, "'cpus': 3"),
    "memory": (("--memory", "3GiB"), f"{LATER}memory", 0, "'memory': '3GiB'"),
    "disk": (("--disk", "33GiB"), f"{LATER}disk", 0, "'disk': '33GiB'"),
    "ports": (("-p", "18091:80"), "Cannot add ports to running VM", 1, "18091"),
    "mounts": (("--mount", "{root}/shared"), f"{LATER}mounts", 0, "{root}/shared"),
    "settings": (("-s", "{root}/settings"), f"{LATER}mounts", 0, "{root}/settings"),
    "full-clone": (("--full-clone",), f"{LATER}a disk of its own", 0, ""),
    "clone-from": (("-c", "other"), "exists already, cloned from tools-vm", 1, ""),
    "template": (("-t", "template:default"), "exists already, cloned from tools-vm", 1, ""),
}
VERBS: dict[str, tuple[str, ...]] = {"start": ("start",), "shell": ("shell",), "": (), "update": ("update",)}


@pytest.fixture
def made(ready: Box) -> Box:
    for name in ("shared", "settings"):
        (ready.root / name).mkdir()
    ready.vm("other")
    assert (ended := ready.run("create", "--cpus", "2", "--memory", "2GiB")).code == 0, ended.text
    return ready


def filled(box: Box, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word.format(root=box.root) for word in words)


@pytest.mark.spec("2.1", "4.6")
@pytest.mark.parametrize("verb", VERBS)
def test_on_a_running_sandbox(made: Box, verb: str) -> None:
    taken = set(verb_table.VERBS[verb].settings) - {"voice"}
    assert taken == set(OPTIONS)
    before = made.config(APP)
    for key in sorted(taken):
        words, said, code, _ = OPTIONS[key]
        ended = made.run("-q", *filled(made, words), *VERBS[verb])
        assert said in ended.err and ended.code == code, (verb, key, ended.text)
    assert made.config(APP) == before and made.vms()[APP] == "Running"


@pytest.mark.spec("4.6")
@pytest.mark.parametrize("verb", ["start", "restart"])
def test_on_a_stopped_one_and_with_restart(made: Box, verb: str) -> None:
    for key in sorted(verb_table.VERBS[verb].settings):
        words, said, _, seen = OPTIONS[key]
        if verb == "start":
            assert made.run("stop").code == 0
        ended = made.run("-q", verb, *filled(made, words))
        if key in ("clone-from", "template"):
            assert ended.code == 1 and said in ended.err and made.vms()[APP] == "Stopped"
            continue
        assert ended.code == 0 and made.vms()[APP] == "Running", ended.text
        assert seen.format(root=made.root) in str(made.config(APP)), (verb, key)


def test_what_it_was_made_from_may_be_said_again(made: Box) -> None:
    """An alias with -c, or the same line from the shell's history."""
    for words in (("-c", "tools-vm", "start"), ("shell", "-c", "tools-vm", "--", "true")):
        ended = made.run(*words)
        assert (ended.code, ended.err) == (0, "")
    assert made.run("start", env={"CLAUDE_SANDBOX_BASE_VM": "other"}).code == 0  # for the next one


def test_a_base_that_is_not_there(made: Box) -> None:
    ended = made.run("start", "-c", "no-such-vm")
    assert ended.code == 1 and "--clone-from no-such-vm" in ended.err and "claude-sandbox delete" in ended.err


def test_a_sandbox_of_an_older_version(made: Box) -> None:
    (made.lima_home / APP / "claude-sandbox.origin").unlink()
    ended = made.run("start", "-q", "-c", "other")
    assert ended.code == 0 and "--clone-from other has no effect" in ended.err


def test_one_from_a_template(box: Box) -> None:
    box.tools_vm()
    assert box.run("create", "-t", "template:default").code == 0
    assert box.run("start", "-t", "template:default").code == 0
    ended = box.run("start", "-c", "tools-vm")
    assert ended.code == 1 and "made from template:default" in ended.err


def with_apt(box: Box) -> None:
    shims = box.root / "shims"
    shims.mkdir()
    (shims / "apt-get").write_text("#!/bin/sh\n")
    (shims / "apt-get").chmod(0o755)
    box.env["FAKE_GUEST_SYSTEM_PATH"] = f"{shims}:{box.env['FAKE_GUEST_SYSTEM_PATH']}"


def installed(box: Box) -> str:
    log = box.guest(APP) / "system.log"
    return (
        "\n".join(line for line in log.read_text().splitlines() if " install " in line)
        if log.exists()
        else ""
    )


@pytest.mark.spec("4.6")
def test_packages_come_with_the_next_start(made: Box) -> None:
    with_apt(made)
    file = Path(made.project()) / ".claude-sandbox.yaml"
    file.write_text("packages: [jq]\n")
    ended = made.run("start")
    assert f"{LATER}packages jq" in ended.err and "jq" not in installed(made)
    assert (ended := made.run("restart")).code == 0 and "Installing jq" in ended.err
    assert installed(made).count("jq") == 1
    for verb in ("start", "restart"):  # once
        assert "jq" not in made.run(verb).err
    file.write_text("packages: [jq, ripgrep]\n")
    assert made.run("restart").code == 0
    assert installed(made).splitlines()[-1].endswith("-- ripgrep")


def test_packages_of_a_sandbox_of_an_older_version_are_installed_once(made: Box) -> None:
    with_apt(made)
    (made.lima_home / APP / "claude-sandbox.origin").unlink()
    (Path(made.project()) / ".claude-sandbox.yaml").write_text("packages: [jq]\n")
    assert made.run("restart").code == 0 and installed(made).count("jq") == 1
    for verb in ("start", "restart"):
        assert "jq" not in made.run(verb).err
    ended = made.run("start", "-q", "-c", "other")
    assert ended.code == 0 and "--clone-from other has no effect" in ended.err


def test_packages_that_cannot_be_installed_are_a_warning(made: Box) -> None:
    (Path(made.project()) / ".claude-sandbox.yaml").write_text("packages: [jq]\n")
    for _ in range(2):
        ended = made.run("restart")
        assert ended.code == 0 and "Warning: The guest could not install packages" in ended.err
