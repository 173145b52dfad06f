"""The command line: options before and after the verb, `--`, nearest words, help."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.cli import parser, verb_table
from _claude_sandbox.config.table import SETTINGS
from _claude_sandbox.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]

# spec 1, written out.
VERBS = [
    "approve", "completion", "create", "delete", "doctor", "events", "help", "info", "list", "login", "next", "notify",
    "prune", "rebuild-tools-vm", "reply", "restart", "restart-hooks", "settings", "setup", "shell", "start", "status",
    "stop", "stop-all", "uninstall", "update", "version", "watch",
]  # fmt: skip
# spec 2.1: words, then where argparse puts the value.
OPTIONS: list[tuple[list[str], str, object]] = [
    (["-d", "/p"], "dir", "/p"),
    (["--dir", "/p"], "dir", "/p"),
    (["--dir=/p"], "dir", "/p"),
    (["-d/p"], "dir", "/p"),
    (["-s", "/s"], "settings", "/s"),
    (["--settings", "stop"], "settings", "stop"),
    (["-c", "base"], "clone-from", "base"),
    (["--clone-from", "list"], "clone-from", "list"),
    (["-t", "template:x"], "template", "template:x"),
    (["--template", "y.yaml"], "template", "y.yaml"),
    (["-p", "80:8080,9090"], "ports", "80:8080,9090"),
    (["--ports=1"], "ports", "1"),
    (["--cpus", "2"], "cpus", "2"),
    (["--memory", "8GiB"], "memory", "8GiB"),
    (["--mem", "8GiB"], "memory", "8GiB"),
    (["--disk", "9GiB"], "disk", "9GiB"),
    (["--mount", "/a:ro", "--mount", "/b"], "mounts", ["/a:ro", "/b"]),
    (["-f"], "force", True),
    (["--force"], "force", True),
    (["-y"], "yes", True),
    (["--yes"], "yes", True),
    (["-v"], "verbose", True),
    (["--verbose"], "verbose", True),
    (["-q"], "quiet", True),
    (["--quiet"], "quiet", True),
    (["--json"], "json", True),
    (["--dry-run"], "dry_run", True),
    (["-yd", "/p"], "dir", "/p"),
    (["-fy"], "yes", True),
]
NEEDED = {"settings": ["diff"], "completion": ["bash"], "notify": ["test"], "reply": ["app"]}


# Which verbs take an option: those where it has an effect. -y, -v and -q go with every verb.
MAKES = ["", "shell", "create", "start", "update"]
PROJECTS = [
    *MAKES,
    "restart",
    "stop",
    "delete",
    "status",
    "info",
    "settings",
    "login",
    "approve",
    "rebuild-tools-vm",
]
READS = ["status", "list", "info", "watch", "events", "doctor", "completion", "version", "help"]
TAKERS: dict[str, list[str]] = {
    "dir": PROJECTS,
    "settings": [*MAKES, "restart", "settings", "login"],
    "clone-from": [*MAKES, "status"],
    "template": [*MAKES, "status"],
    "ports": [*MAKES, "restart"],
    "mounts": [*MAKES, "restart"],
    "full-clone": [*MAKES, "restart"],
    "cpus": [*MAKES, "restart", "rebuild-tools-vm"],
    "memory": [*MAKES, "restart", "rebuild-tools-vm"],
    "disk": [*MAKES, "restart", "rebuild-tools-vm"],
    "voice": [""],
    "force": [*MAKES, "restart", "stop", "stop-all", "delete", "prune", "rebuild-tools-vm", "settings", "approve",
              "uninstall", "watch"],
    "json": [v for v in VERBS if v not in ("shell", "completion", "help")],
    "dry_run": ["", *(v for v in VERBS if v not in READS)],
}  # fmt: skip


@pytest.mark.spec("2.1")
@pytest.mark.parametrize("name", ["", *VERBS])
def test_options_before_and_after_every_verb(name: str) -> None:
    """An option that would have no effect with a verb is a usage error that says where it goes."""
    verb = [name, *NEEDED.get(name, [])] if name else []
    for words, where, value in OPTIONS:
        if (name, words) == ("events", ["-f"]):
            where = "follow"  # the one verb whose -f is not --force
        taken = name in TAKERS.get(where, [name])
        if words == ["-fy"] or words == ["-yd", "/p"]:
            taken = name in TAKERS["force" if words == ["-fy"] else "dir"] or (name, words[0]) == (
                "events",
                "-fy",
            )
        for argv in ([*words, *verb], [*verb, *words]):
            if not taken:
                assert "does not take" in refusal(*argv), argv
                continue
            found, chosen, rest = parser.parse(argv)
            assert (found.name, rest) == (name, []), argv
            assert getattr(chosen, where) == value, argv


def test_the_table_above_is_the_program_s() -> None:
    """Both ways: no option is taken by a verb that is not in it, and every option of the settings is in it."""
    for name in ["", *VERBS]:
        taken = {where for where, takers in TAKERS.items() if name in takers}
        flags = set(verb_table.VERBS[name].flags)
        for words, where, _ in OPTIONS:
            flag = words[0].split("=")[0]
            if flag in ("-y", "--yes", "-v", "--verbose", "-q", "--quiet") or (name, flag) == (
                "events",
                "-f",
            ):
                assert flag in flags
            elif flag not in ("-yd", "-fy", "-d/p"):
                assert (flag in flags) == (where in taken), (name, flag)
    assert {row.key for row in SETTINGS if row.flags} <= set(TAKERS)


@pytest.mark.spec("2.2")
def test_a_refused_option_says_where_it_goes() -> None:
    text = refusal("restart", "-c", "base")
    assert (
        "`claude-sandbox restart` does not take -c" in text and "create" in text and "restart --help" in text
    )
    assert "claude-sandbox alone" in refusal("shell", "--voice")
    assert "  --help" not in refusal("--bogus") and "`claude-sandbox --help`" in refusal("--bogus")


def test_what_is_missing_is_named() -> None:
    assert "required: diff|pull." in refusal("settings")
    assert "required: bash|zsh|fish." in refusal("completion")


@pytest.mark.parametrize(
    ("argv", "verb", "expected"),
    [
        (["--new"], "", {"new": True}),
        (["prune", "claude-sandbox-x", "--orphans", "-y"], "prune", {"prefix": "claude-sandbox-x", "orphans": True}),
        (["-y", "prune", "--orphans"], "prune", {"prefix": "", "orphans": True, "yes": True}),
        (["prune", "-y", "pre"], "prune", {"prefix": "pre", "yes": True}),
        (["rebuild-tools-vm"], "rebuild-tools-vm", {"name": "tools-vm", "only": None, "from_packages": False}),
        (["--only", "claude,node", "rebuild-tools-vm", "-v", "mine", "--from-packages"], "rebuild-tools-vm",
         {"name": "mine", "only": "claude,node", "from_packages": True}),
        (["settings", "pull", "-y", "CLAUDE.md", "-q", "hooks/x"], "settings",
         {"action": "pull", "paths": ["CLAUDE.md", "hooks/x"], "yes": True}),
        (["settings", "-d", "/p", "diff"], "settings", {"action": "diff", "paths": [], "dir": "/p"}),
        (["login", "--forget"], "login", {"forget": True}),
        (["-q", "completion", "zsh"], "completion", {"shell": "zsh"}),
        (["help", "shell"], "help", {"verb": "shell"}),
    ],
)  # fmt: skip
def test_options_of_single_verbs(argv: list[str], verb: str, expected: dict[str, object]) -> None:
    found, chosen, _ = parser.parse(argv)
    assert found.name == verb
    assert {key: getattr(chosen, key) for key in expected} == expected


anything = st.lists(st.text(max_size=12), max_size=5)


@given(anything, st.sampled_from([[], ["shell"]]))
def test_what_stands_behind_the_dashes_is_unchanged(words: list[str], verb: list[str]) -> None:
    found, chosen, rest = parser.parse(["-y", *verb, "-p", "80", "--", *words])
    assert rest == words
    assert (found.name, chosen.ports, chosen.yes, chosen.help) == ("".join(verb), "80", True, False)


def test_claude_s_own_options_are_not_ours() -> None:
    _, chosen, rest = parser.parse(["--", "--resume", "-h", "--version", "--", "stop", "-d", "/x"])
    assert rest == ["--resume", "-h", "--version", "--", "stop", "-d", "/x"]
    assert not chosen.help and not chosen.version and chosen.dir is None


@pytest.mark.parametrize("name", [v for v in VERBS if v not in ("shell", "reply")])
def test_verbs_that_run_no_program_take_no_dashes(name: str) -> None:
    with pytest.raises(UsageError, match="nothing may follow `--`"):
        parser.parse([name, *NEEDED.get(name, []), "--", "x"])


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parser.parse(argv)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("argv", "unknown", "near"),
    [
        (["shel"], "Unknown command: shel", "claude-sandbox shell`"),
        (["staus", "--json"], "Unknown command: staus", "claude-sandbox status`"),
        (["-d", "/p", "delet"], "Unknown command: delet", "claude-sandbox delete`"),
        (["stop", "--forse"], "Unknown option for `claude-sandbox stop`: --forse", "--force?"),
        (["--memroy", "8GiB"], "Unknown option for `claude-sandbox`: --memroy", "--memory?"),
        (["--dirr", "/p", "stop"], "Unknown option for `claude-sandbox`: --dirr", "--dir?"),
        (["--memroy=8GiB"], "Unknown option for `claude-sandbox`: --memroy", "--memory?"),
        (["shell", "--dryrun"], "Unknown option for `claude-sandbox shell`: --dryrun", "--dry-run?"),
    ],
)
def test_the_nearest_known_word(argv: list[str], unknown: str, near: str) -> None:
    text = refusal(*argv)
    assert unknown in text and near in text


def test_what_has_no_neighbour_and_internal_verbs_are_not_proposed() -> None:
    assert "Did you mean" not in refusal("xyzzy")
    assert "_session" not in refusal("session")
    assert "Did you mean" not in refusal("stop", "--new")  # known, but not here
    assert "Unknown command: -" in refusal("-")


def test_words_that_nobody_takes() -> None:
    assert "claude-sandbox shell -- make" in refusal("shell", "make")
    assert "Unexpected argument: x" in refusal("stop", "x")
    assert "Unexpected argument: c" in refusal("prune", "b", "c")
    for argv in (
        ["--memory"],
        ["stop", "-d"],
        ["settings"],
        ["settings", "push"],
        ["completion", "csh"],
        ["--cpus", "-y"],
    ):
        refusal(*argv)


def test_no_option_is_abbreviated() -> None:
    """`--for` must stay free for an option to come."""
    for word in ("--for", "--js", "--setting", "--mo"):
        refusal("stop", word)


# -- help --------------------------------------------------------------------------------------------


def test_the_verbs_of_the_spec_are_there_and_all_are_shown() -> None:
    assert sorted(v for v in verb_table.VERBS if v and not v.startswith("_")) == VERBS
    text = parser.help_text(verb_table.VERBS[""])
    for name in VERBS:
        assert f"\n  {name} " in text
    assert "_session" not in text


@pytest.mark.parametrize("name", ["", *VERBS])
def test_help_has_examples_that_the_parser_takes(name: str) -> None:
    verb = verb_table.VERBS[name]
    text = parser.help_text(verb)
    assert verb.examples and "examples:" in text
    for example in verb.examples:
        assert f"claude-sandbox {example}".rstrip() in text
        words = shlex.split(example.partition(" < ")[0].partition(" > ")[0])
        found, _, _ = parser.parse(words)
        assert found.name == name


def test_help_names_every_option_with_its_variable() -> None:
    text = parser.help_text(verb_table.VERBS["shell"])
    for flag in (
        "-d DIR",
        "-s DIR",
        "-c VM",
        "-t YAML",
        "-p PORTS",
        "--cpus",
        "--mem",
        "--disk",
        "--mount",
        "--dry-run",
    ):
        assert flag in text
    for variable in ("CLAUDE_SANDBOX_BASE_VM", "CLAUDE_SANDBOX_TEMPLATE", "CLAUDE_SANDBOX_SETTINGS"):
        assert variable in text
    assert "[-- CMD…]" in text
    assert "--cpus" not in parser.help_text(verb_table.VERBS["stop"])


def test_help_and_version_are_found_among_other_words() -> None:
    for argv in (
        ["-h"],
        ["stop", "--help"],
        ["--help", "stop"],
        ["settings", "-h"],
        ["stop", "-h", "--bogus"],
        ["-yh"],
    ):
        verb, chosen, _ = parser.parse(argv)
        assert chosen.help and verb.name == next((w for w in argv if not w.startswith("-")), "")
    for argv in (["--version"], ["stop", "--version"], ["--version", "settings"]):
        verb, chosen, _ = parser.parse(argv)
        assert verb.name == "version" and chosen.version


BARE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in sys.stdlib_module_names | {'claude_sandbox', '_claude_sandbox'}:
            raise ImportError(f'{name} is not installed')
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import claude_sandbox
for argv in (line.split() for line in sys.argv[2].split(',')):
    code = claude_sandbox.main(argv)
    assert code == 0, (argv, code)
"""


def test_help_and_version_need_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """spec 2.2: neither our environment nor a home that can be written."""
    calls = [
        "--help",
        "--version",
        "version",
        "help",
        *(f"{v} --help" for v in VERBS),
        *(f"help {v}" for v in VERBS),
    ]
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", BARE, str(ROOT), ",".join(calls)],
        capture_output=True, text=True, check=False, env={"PATH": "/nowhere", "HOME": "/proc/nowhere"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") >= 2 * len(VERBS) and done.stderr == ""


@pytest.mark.parametrize("verb", verb_table.VERBS.values(), ids=lambda verb: verb.name or "bare")
def test_each_verb_s_functions_exist(verb: verb_table.Verb) -> None:
    for reference in filter(None, (verb.run, verb.check)):
        module, _, name = reference.partition(":")
        assert callable(getattr(importlib.import_module(f"_claude_sandbox.{module}"), name))
