"""Completion scripts: their shells read them, and they offer what the tables have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from _claude_sandbox.cli import completion, verb_table
from tests.support.box import need

SHELLS = ("bash", "zsh", "fish")


def complete(*words: str, path: str | None = None) -> list[str]:
    """What bash offers for the last of `words`."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = completion.script("bash") + (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _claude_sandbox; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    env = {"PATH": path} if path else None
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_parse_its_script(shell: str) -> None:
    need(shell)
    done = subprocess.run(
        [shell, "-n"], input=completion.script(shell), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_in_it_and_nothing_internal(shell: str) -> None:
    text = completion.script(shell)
    for name in verb_table.VERBS:
        assert (name in text) != name.startswith("_")
    for flag in ("--dry-run", "--clone-from", "--from-packages", "--orphans", "--mount", "--json"):
        assert flag in text if shell != "fish" else f"-l {flag[2:]}" in text


def test_bash_completes_verbs_flags_and_values() -> None:
    assert complete("claude-sandbox", "sta") == ["start", "status"]
    assert complete("claude-sandbox", "stop", "--js") == ["--json"]
    assert set(complete("claude-sandbox", "--me")) == {"--mem", "--memory"}
    assert complete("claude-sandbox", "completion", "") == ["bash", "zsh", "fish"]
    assert complete("claude-sandbox", "settings", "p") == ["pull"]
    assert complete("claude-sandbox", "zzz") == [""]


def test_bash_offers_only_what_the_verb_takes() -> None:
    assert complete("claude-sandbox", "stop", "--c") == [""]
    assert complete("claude-sandbox", "start", "--c") == ["--clone-from", "--cpus"]
    assert complete("claude-sandbox", "-q", "restart", "--c") == ["--cpus"]
    for name, verb in verb_table.VERBS.items():
        if name and not verb.hidden:
            assert complete("claude-sandbox", name, "-q", "-") == verb.flags


# What bash 3.2 of macOS does not have.
NEWER = (
    "mapfile",
    "readarray",
    "compopt",
    "coproc",
    "declare -A",
    "local -A",
    "local -n",
    "|&",
    "&>>",
    "${cur^",
    "${cur,",
)


def test_bash_3_2_understands_it() -> None:
    text = completion.script("bash")
    assert [word for word in NEWER if word in text] == []
    script = f"enable -n mapfile readarray compopt\n{text}\nCOMP_WORDS=(claude-sandbox sta); COMP_CWORD=1"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n_claude_sandbox; echo ${{COMPREPLY[@]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and done.stdout == "start status\n"


def test_bash_completes_directories_and_vms(tmp_path: Path) -> None:
    (tmp_path / "dir one").mkdir()
    (tmp_path / "file").touch()
    assert complete("claude-sandbox", "-d", f"{tmp_path}/d") == [f"{tmp_path}/dir one"]
    assert complete("claude-sandbox", "--mount", f"{tmp_path}/f") == [""]
    (tmp_path / "limactl").write_text("#!/bin/sh\n[ \"$*\" = 'list -q' ] && echo base-one other\n")
    (tmp_path / "limactl").chmod(0o755)
    assert complete("claude-sandbox", "-c", "b", path=f"{tmp_path}:/usr/bin:/bin") == ["base-one"]
