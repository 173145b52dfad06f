"""The command line: verbs, options before or after them, help with examples. Standard library only.

`parse` finds the verb among the options, checks it, and lets argparse read the rest; everything behind
`--` goes unchanged to the program that the verb runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from _claude_sandbox import __version__
from _claude_sandbox.config import SETTINGS, Setting
from _claude_sandbox.errors import UsageError

CLAUDE = ""  # the bare command


@dataclass(frozen=True)
class Verb:
    """One subcommand. `settings`: it takes the options of the settings table; `rest`: and `-- ARGS`."""

    name: str
    help: str
    examples: tuple[str, ...] = ()
    settings: bool = False
    rest: str = ""
    changes: bool = True
    project: bool = True
    hidden: bool = False


_ME = "claude-sandbox"
VERBS = {
    verb.name: verb
    for verb in (
        Verb(CLAUDE, "make sure that the project's sandbox runs, and run Claude Code in it",
             ("", "-p 3000 --memory 8GiB", "-- --resume", "-d ~/projects/app --new"), True, "CLAUDE-ARGS"),
        Verb("shell", "a login shell in the sandbox, or one command", ("shell", "shell -- make test",
             "shell < script.sh"), True, "CMD"),
        Verb("create", "make the sandbox without attaching to it", ("create", "create -c my-base --disk 50GiB"),
             True),
        Verb("start", "start the sandbox without attaching to it", ("start",), True),
        Verb("stop", "stop this project's sandbox", ("stop", "stop -f")),
        Verb("restart", "stop and start, applying changed settings", ("restart -p 8080",), True),
        Verb("stop-all", "stop every sandbox", ("stop-all",), project=False),
        Verb("status", "the base VM, the servers and every sandbox", ("status", "status --json"), True,
             changes=False),
        Verb("list", "every sandbox, a line each", ("list", "list --json"), changes=False, project=False),
        Verb("info", "everything about this project's sandbox", ("info", "info --json"), changes=False),
        Verb("watch", "a live view of every sandbox: what Claude wants, since when; keys to attach, answer, stop",
             ("watch", "watch --json"), project=False),
        Verb("next", "attach to the Claude that has waited longest for you (exit code 1: none does)",
             ("next", "next --json"), project=False),
        Verb("reply", "answer a Claude in its tmux pane: a choice of its dialog, or a text; without TEXT show what it asks",
             ("reply app", "reply app yes", "reply app 2", "reply claude-sandbox-app -- --verbose, please", "reply ~/projects/app - < notes.txt"),
             rest="TEXT", project=False),
        Verb("notify", "show a test notification by every way, and say which of them work", ("notify test",),
             changes=False, project=False),
        Verb("delete", "delete this project's sandbox, never a file of the project", ("delete", "delete -y")),
        Verb("prune", "delete sandboxes by name prefix, or those whose project is gone; free caches",
             ("prune", "prune claude-sandbox-test", "prune --orphans -y", "prune --cache"), project=False),
        Verb("update", "bring a newer Claude Code into this project's sandbox", ("update",), True),
        Verb("events", "what Claude Code told from the sandboxes: permissions asked for, turns ended, …",
             ("events", "events -f --json", "events --since 2h"), changes=False, project=False),
        Verb("restart-hooks", "stop and start the server that receives these events", ("restart-hooks",),
             project=False),
        Verb("rebuild-tools-vm", "build the tools VM of which sandboxes are cloned",
             ("rebuild-tools-vm", "rebuild-tools-vm --only claude,node,git", "rebuild-tools-vm --from-packages"),
             True, project=False),
        Verb("setup", "install what this host lacks", ("setup", "setup -y"), project=False),
        Verb("doctor", "check this host, with a remedy for what is wrong", ("doctor", "doctor --json"),
             changes=False, project=False),
        Verb("settings", "compare the settings directory with the sandbox (diff), or take changes over (pull)",
             ("settings diff", "settings pull CLAUDE.md"), True),
        Verb("login", "store a long-lived token (from `claude setup-token`) for all sandboxes",
             ("login", "login < token.txt", "login --forget"), project=False),
        Verb("approve", "allow what this project's .claude-sandbox.yaml asks for", ("approve",)),
        Verb("completion", "print a completion script for bash, zsh or fish",
             ('completion bash > ~/.local/share/bash-completion/completions/claude-sandbox',), changes=False,
             project=False),
        Verb("uninstall", "remove what claude-sandbox put on this host, after showing it", ("uninstall",),
             project=False),
        Verb("version", "print the version", ("version",), changes=False, project=False),
        Verb("help", "print this help, or that of a verb", ("help shell",), changes=False, project=False),
        Verb("_session", "run a prepared session (internal)", hidden=True),
        Verb("_open", "show a session's terminal (internal)", project=False, hidden=True),
    )
}  # fmt: skip

# Options of all verbs: flags, argparse keywords.
_COMMON: tuple[tuple[tuple[str, ...], dict[str, object]], ...] = (
    (("-d", "--dir"), {"metavar": "DIR", "help": "the project (default: the current directory)"}),
    (("-f", "--force"), {"action": "store_true", "help": "stop by force; do not ask"}),
    (("-y", "--yes"), {"action": "store_true", "help": "answer yes to every question"}),
    (("-v", "--verbose"), {"action": "store_true", "help": "show every command that is run"}),
    (("-q", "--quiet"), {"action": "store_true", "help": "only warnings and errors"}),
    (("--json",), {"action": "store_true", "help": "print data as JSON"}),
    (("--dry-run",), {"action": "store_true", "help": "print the commands instead of running them"}),
    (("-h", "--help"), {"action": "store_true", "help": "print this help"}),
    (("--version",), {"action": "store_true", "help": "print the version"}),
)
_OWN: dict[str, tuple[tuple[tuple[str, ...], dict[str, object]], ...]] = {
    CLAUDE: (
        (("--new",), {"action": "store_true", "help": "start another Claude beside the one that runs"}),
    ),
    "prune": (
        (("prefix",), {"nargs": "?", "default": "", "metavar": "PREFIX", "help": "start of the VM names"}),
        (("--orphans",), {"action": "store_true", "help": "only those whose project directory is gone"}),
        (
            ("--cache",),
            {
                "action": "store_true",
                "help": "no sandbox: free what nothing uses and what can be made again (disks, images)",
            },
        ),
        (
            ("--forget-home",),
            {
                "metavar": "DIR",
                "help": "with --cache: the LIMA_HOME DIR was deleted for good; keep no disk for its VMs",
            },
        ),
    ),
    "events": (
        (("-f", "--follow"), {"action": "store_true", "help": "go on with what happens now"}),
        (
            ("--since",),
            {"metavar": "TIME", "help": "from 90s, 10m, 2h or 1d ago, or since 20:15 or a date and time"},
        ),
    ),
    "rebuild-tools-vm": (
        (("name",), {"nargs": "?", "default": "tools-vm", "metavar": "NAME", "help": "its name (tools-vm)"}),
        (("--only",), {"metavar": "TOOL,…", "help": "build a smaller one with these tools"}),
        (("--from-packages",), {"action": "store_true", "help": "build from package registries alone"}),
    ),
    "settings": (
        (("action",), {"choices": ("diff", "pull"), "help": "compare, or take the sandbox's changes over"}),
        (("paths",), {"nargs": "*", "metavar": "PATH", "help": "only these files"}),
    ),
    "login": ((("--forget",), {"action": "store_true", "help": "remove the stored token"}),),
    "reply": (
        (("name",), {"metavar": "NAME", "help": "a VM's name, a project's name or its path"}),
        (
            ("text",),
            {
                "nargs": "?",
                "metavar": "TEXT",
                "help": "number or label of a choice, or a text; - reads stdin",
            },
        ),
        (
            ("--session",),
            {"metavar": "ID", "help": "which session, if several wait (the beginning of its id)"},
        ),
        (("--seq",), {"metavar": "N", "help": "only if it still asks what it asked at this event"}),
    ),
    "notify": ((("action",), {"choices": ("test",), "help": "what to do"}),),
    "completion": ((("shell",), {"choices": ("bash", "zsh", "fish"), "help": "which shell"}),),
    "help": ((("verb",), {"nargs": "?", "default": "", "metavar": "VERB", "help": "which verb"}),),
    "_session": ((("file",), {"help": argparse.SUPPRESS}),),
    "_open": ((("uuid",), {"help": argparse.SUPPRESS}),),
}


# The settings that matter to a verb, where it is not all of them; the others are accepted.
_SHOWN = {"rebuild-tools-vm": ("cpus", "memory", "disk"), "status": ("clone-from", "template")}


class _Parser(argparse.ArgumentParser):
    """argparse with our errors: what is wrong, the nearest known option, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:] + ".", resolution=f"See `{self.prog} --help`.")


def _setting_arguments(row: Setting) -> dict[str, object]:
    value = {"metavar": row.metavar} if row.metavar else {"action": "store_const", "const": True}
    return {
        "dest": row.key,
        **value,
        "help": row.help + (f" [{row.env}]" if row.env else ""),
        **({"action": "append"} if row.repeat else {}),
    }


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb, with every option that it takes."""
    examples = "\n".join(f"  {_ME} {example}".rstrip() for example in verb.examples)
    parser = _Parser(
        prog=f"{_ME} {verb.name}".rstrip(),
        description=verb.help[:1].upper() + verb.help[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
        argument_default=None,
    )
    for flags, keywords in _OWN.get(verb.name, ()):
        parser.add_argument(*flags, **keywords)  # type: ignore[arg-type]
    if verb.settings:
        group = parser.add_argument_group("settings")
        for row in SETTINGS:
            if row.flags:
                shown = {} if row.key in _SHOWN.get(verb.name, (row.key,)) else {"help": argparse.SUPPRESS}
                group.add_argument(*row.flags, **{**_setting_arguments(row), **shown})  # type: ignore[arg-type]
    common = parser.add_argument_group("common options")
    own = {flag for flags, _ in _OWN.get(verb.name, ()) for flag in flags}
    for flags, keywords in _COMMON:  # `events -f` follows; its --force stays long
        common.add_argument(*(flag for flag in flags if flag not in own), **keywords)  # type: ignore[arg-type]
    if verb.rest:
        parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + f" [-- {verb.rest}…]"
    return parser


def _value_flags() -> frozenset[str]:
    """Options that are followed by a value: not to be taken for the verb."""
    tables = [_COMMON, *_OWN.values()]
    flags = {f for t in tables for fs, kw in t if kw.get("action") is None for f in fs if f.startswith("-")}
    return frozenset(flags | {flag for row in SETTINGS if row.metavar for flag in row.flags})


def known_flags() -> list[str]:
    tables = [_COMMON, *_OWN.values()]
    flags = {f for t in tables for fs, _ in t for f in fs if f.startswith("-")}
    return sorted(flags | {flag for row in SETTINGS for flag in row.flags})


def _find_verb(words: list[str]) -> int | None:
    """Where the verb stands: the first word that is no option and no option's value."""
    takes, skip = _value_flags(), False
    for index, word in enumerate(words):
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            skip = word in takes if word.startswith("--") else _value_follows(word, takes)
        else:
            return index
    return None


def _value_follows(cluster: str, takes: frozenset[str]) -> bool:
    """Whether short options end in one whose value is the next word: `-d` and `-yd` do, `-d/tmp` does not."""
    first = next((i for i, letter in enumerate(cluster) if f"-{letter}" in takes), None)
    return first == len(cluster) - 1


def parse(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace, list[str]]:
    """The verb, its options, and what stands behind `--`. Raises UsageError."""
    words, rest = list(argv), []
    has_rest = "--" in words
    if has_rest:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1 :]
    at = _find_verb(words)
    name = words.pop(at) if at is not None else CLAUDE
    verb = VERBS.get(name)
    if verb is None:
        # `--memroy 8GiB`: what seems to be the verb is the value of a misspelt option.
        for word in words[:at]:
            if word.startswith("--") and word.partition("=")[0] not in known_flags():
                _reject(word, VERBS[CLAUDE])
        import difflib

        near = difflib.get_close_matches(name, [v for v in VERBS if v and not v.startswith("_")], 1)
        hint = f"Did you mean `{_ME} {near[0]}`? " if near else ""
        raise UsageError(f"Unknown command: {name}", resolution=f"{hint}See `{_ME} --help`.")
    if verb.name != "help" and any(w in ("-h", "--help") for w in words):
        return verb, argparse.Namespace(help=True, version=False), rest
    if "--version" in words:
        return VERBS["version"], argparse.Namespace(help=False, version=True), rest
    parser = parser_of(verb)
    # Options of the settings table that this verb does not need are accepted and unused: one alias
    # with -s or -t then serves every verb.
    if not verb.settings:
        for row in SETTINGS:
            if row.flags:
                parser.add_argument(*row.flags, **{**_setting_arguments(row), "help": argparse.SUPPRESS})  # type: ignore[arg-type]
    # Intermixed: `settings pull -y CLAUDE.md` has an option between two positional arguments. That way
    # argparse writes its usage text each time (5 ms), so only where there are any.
    positional = any(not flags[0].startswith("-") for flags, _ in _OWN.get(verb.name, ()))
    parse_known = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    options, unknown = parse_known(words)
    if unknown:
        _reject(unknown[0], verb)
    if has_rest and not verb.rest:
        raise UsageError(f"`{_ME} {verb.name}` runs no program: nothing may follow `--`.")
    return verb, options, rest


def _reject(word: str, verb: Verb) -> NoReturn:
    if not word.startswith("-"):
        raise UsageError(
            f"Unexpected argument: {word}",
            resolution=f"What is meant for the program goes behind `--`: {_ME} {verb.name} -- {word}".replace(
                "  ", " "
            )
            if verb.rest
            else f"See `{_ME} {verb.name} --help`.",
        )
    flag = word.split("=")[0]
    import difflib

    near = difflib.get_close_matches(flag, known_flags(), 1)
    hint = f"Did you mean {near[0]}? " if near and near[0] != flag else ""
    where = f"`{_ME} {verb.name}`".replace(" `", "`")
    raise UsageError(
        f"Unknown option for {where}: {flag}", resolution=f"{hint}See `{_ME} {verb.name} --help`."
    )


def help_text(verb: Verb) -> str:
    """A verb's help; the bare command's lists the verbs too."""
    text = parser_of(verb).format_help()
    if verb.name != CLAUDE:
        return text
    width = max(len(v) for v in VERBS)
    verbs = "\n".join(f"  {v.name:<{width}}  {v.help}" for v in VERBS.values() if v.name and not v.hidden)
    usage, _, body = text.partition("\n\n")
    return (
        f"{usage}\n       {_ME} VERB [options]\n\n"
        "Every project gets its own Lima VM, and Claude Code runs in it with full permissions.\n\n"
        f"verbs:\n{verbs}\n\n{body}\nMore: {_ME} VERB --help\n"
    )


def version_text() -> str:
    return f"{_ME} {__version__} (Python {sys.version.split()[0]})"
