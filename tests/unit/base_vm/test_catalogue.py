"""The table of tools, what --only takes of it, and trying them (spec 8.1, 8.2, 1.9)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
from _claude_sandbox.base_vm import lima_yaml as base_vm_lima_yaml
from _claude_sandbox.base_vm import verify as base_vm_verify
from _claude_sandbox.errors import GuestConnectionError, UsageError
from _claude_sandbox.system import text
from _claude_sandbox.system.run import Result

ROOT = Path(__file__).resolve().parents[3]
PROVISION = ROOT / "_claude_sandbox" / "guest" / "provision"
THIRTEEN = [
    "claude",
    "node",
    "npm",
    "rustc",
    "cargo",
    "go",
    "python3",
    "uv",
    "docker",
    "java",
    "kotlin",
    "gradle",
    "mvn",
]


def names(chosen: tuple[base_vm_catalogue.Tool, ...]) -> list[str]:
    return [tool.name for tool in chosen]


@pytest.mark.spec("8.1")
def test_the_thirteen_are_promised_in_both_modes() -> None:
    table = {tool.name: tool for tool in base_vm_catalogue.TOOLS}
    assert len(table) == len(base_vm_catalogue.TOOLS)
    for name in THIRTEEN:
        assert table[name].ubuntu and table[name].packages


@pytest.mark.parametrize("from_packages", [True, False])
def test_what_a_tool_needs_is_there_in_the_same_mode(from_packages: bool) -> None:
    table = {tool.name: tool for tool in base_vm_catalogue.TOOLS}
    for tool in base_vm_catalogue.TOOLS:
        for need in tool.needs:
            assert tool.source(from_packages) is None or table[need].source(from_packages)


@pytest.mark.spec("8.1")
def test_only() -> None:
    assert base_vm_catalogue.choose(()) == base_vm_catalogue.TOOLS
    assert names(base_vm_catalogue.choose(["git", "claude"])) == ["claude", "git"]
    assert names(base_vm_catalogue.choose(["ts-node"])) == ["node", "npm", "typescript", "ts-node"]
    assert "gradle" in names(base_vm_catalogue.choose(["jvm"])) and "node" not in names(
        base_vm_catalogue.choose(["jvm"])
    )
    assert names(base_vm_catalogue.choose(["rg"])) == ["ripgrep"]


def test_an_unknown_tool_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"Unknown tool: clade \(did you mean claude\?\)") as raised:
        base_vm_catalogue.choose(["clade"])
    assert "jvm" in str(raised.value) and raised.value.exit_code == 2


@given(st.sets(st.sampled_from([t.name for t in base_vm_catalogue.TOOLS])))
def test_a_choice_is_closed(words: set[str]) -> None:
    chosen = names(base_vm_catalogue.choose(sorted(words)))
    table = {tool.name: tool for tool in base_vm_catalogue.TOOLS}
    assert words <= set(chosen)
    for name in chosen:
        assert set(table[name].needs) <= set(chosen)
    if words:
        assert names(base_vm_catalogue.choose(chosen)) == chosen


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("2.1.329 (Claude Code)", "2.1.329"), ("jq-1.6", "1.6"), ("go version go1.26.8 linux/amd64", "1.26.8"),
        ("tmux 3.3a", "3.3"), ("javac 21", "21"), ("v24.21.0", "24.21.0"), ("nothing", ""),
    ],
)  # fmt: skip
def test_version_in(output: str, version: str) -> None:
    assert base_vm_catalogue.version_in(output) == version


def test_at_least() -> None:
    assert (
        base_vm_catalogue.at_least("1.10", "1.9")
        and base_vm_catalogue.at_least("17.0.1", "17")
        and base_vm_catalogue.at_least("1", "")
    )
    assert not base_vm_catalogue.at_least("1.8.9", "1.9") and not base_vm_catalogue.at_least("", "1")


# -- tools-vm.yaml and its scripts -----------------------------------------------------------------


@pytest.mark.spec("8.1")
def test_every_pin_is_used_and_every_use_is_pinned() -> None:
    """Lima refuses a param that nothing uses; a script with a missing one installs nonsense."""
    param = set(base_vm_lima_yaml.load()["param"])
    used: set[str] = set()
    for script in ("system.sh", "user.sh"):
        used |= set(re.findall(r"PARAM_(\w+)", (PROVISION / script).read_text())) - {"…"}
    assert used == param


@pytest.mark.spec("8.1")
def test_the_yaml_lists_every_tool() -> None:
    assert set(base_vm_lima_yaml.load()["param"]["tools"].split()) == {
        t.name for t in base_vm_catalogue.TOOLS if t.ubuntu
    }


def test_each_tool_that_is_no_package_has_a_step_in_a_script() -> None:
    scripts = (PROVISION / "system.sh").read_text() + (PROVISION / "user.sh").read_text()
    for tool in base_vm_catalogue.TOOLS:
        if tool.name not in ("cargo", "docker-compose", "docker-buildx", "npm", "curl", "zip"):
            assert re.search(
                rf"want [\w -]*\b{re.escape(tool.name)}\b|\b{re.escape(tool.name)}\b.*; do", scripts
            ), tool.name


def test_the_yaml_gives_the_guest_nothing_of_the_host() -> None:
    document = base_vm_lima_yaml.load()
    assert document["mounts"] == [] and document["propagateProxyEnv"] is False
    assert document["ssh"] == {"forwardAgent": False, "loadDotSSHPubKeys": False}
    assert document["portForwards"][-1]["ignore"] is True
    assert all("digest" in image for image in document["images"] if "/release-" in image["location"])


# -- trying them -------------------------------------------------------------------------------------


@dataclass
class FakeGuest:
    answer: Callable[[str], Result]
    asked: list[str] = field(default_factory=list)

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        self.asked.append(arguments[0])
        return self.answer(arguments[0])


def verify(
    answer: Callable[[str], Result], only: list[str], log: Path, mode: bool = True
) -> list[base_vm_verify.ToolCheck]:
    guest = FakeGuest(answer)
    said: list[str] = []
    checks = base_vm_verify.verify(guest, base_vm_catalogue.choose(only), mode, said.append, log)  # type: ignore[arg-type]
    return list(checks)


@pytest.mark.spec("8.1")
def test_verify(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def answer(line: str) -> Result:
        if line.startswith("jq"):
            return Result(127, b"", b"bash: jq: command not found\n")
        return Result(0, b"2.39.5 \x1b[31mred\n")

    git, jq = verify(answer, ["git", "jq"], log)
    assert (git.ok, git.version, git.detail) == (True, "2.39.5", "apt")
    assert jq.ok is False and "command not found" in jq.detail
    assert "NOT jq" in log.read_text()


def test_too_old_is_not_ok(tmp_path: Path) -> None:
    (check,) = verify(lambda _: Result(0, b"git version 1.9.0"), ["git"], tmp_path / "log")
    assert check.ok is False and "2.30" in check.detail


@pytest.mark.spec("8.2")
def test_not_in_this_mode_is_no_failure(tmp_path: Path) -> None:
    checks = {c.name: c for c in verify(lambda _: Result(0, b"99"), ["sbt"], tmp_path / "log")}
    assert checks["sbt"].ok is None and checks["sbt"].detail == "not in this mode"


def test_a_hanging_tool_is_a_result(tmp_path: Path) -> None:
    def hang(_: str) -> Result:
        raise GuestConnectionError("No ssh connection to x.", details="no answer within 300 s")

    (check,) = verify(hang, ["jq"], tmp_path / "log")
    assert check.ok is False and "300 s" in check.detail


def test_what_the_guest_says_is_made_harmless() -> None:
    assert text.one_line("a\x1b]0;title\x07b\r\nc") == "a ]0;title b c"
