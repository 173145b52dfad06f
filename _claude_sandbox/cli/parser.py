"""The command line: verbs, options before or after them, help with examples. Standard library only.

`parse` finds the verb among the options, checks it, and lets argparse read the rest; everything behind
`--` goes unchanged to the program that the verb runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from _claude_sandbox import __version__
from _claude_sandbox.config.table import SETTINGS, Setting
from _claude_sandbox.errors import UsageError

CLAUDE = ""  # the bare command


@dataclass(frozen=True)
class Verb:
    """One subcommand, and which options it takes: those that have an effect there, no others.

    `settings`: the keys of the settings table whose options it takes; `rest`: what may follow `--`.
    `changes`: it changes something, so it has --dry-run; `force`: it stops or asks, so it has --force;
    `json`: what it says can be data (not where the output is another program's). `project`: it is about one
    project, so it has --dir.
    """

    name: str
    help: str
    examples: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    rest: str = ""
    changes: bool = True
    force: bool = False
    json: bool = True
    project: bool = True
    hidden: bool = False


_ME = "claude-sandbox"
_CHANGE = ("settings", "ports", "cpus", "memory", "disk", "full-clone", "mounts")  # of a VM that is there
_MAKE = (*_CHANGE, "clone-from", "template")
VERBS = {
    verb.name: verb
    for verb in (
        Verb(CLAUDE, "make sure that the project's sandbox runs, and run Claude Code in it",
             ("", "-p 3000 --memory 8GiB", "-- --resume", "-d ~/projects/app --new"), (*_MAKE, "voice"), "CLAUDE-ARGS",
             force=True, json=False),
        Verb("shell", "a login shell in the sandbox, or one command", ("shell", "shell -- make test",
             "shell < script.sh"), _MAKE, "CMD", force=True, json=False),
        Verb("create", "make the sandbox without attaching to it", ("create", "create -c my-base --disk 50GiB"),
             _MAKE, force=True),
        Verb("start", "start the sandbox without attaching to it", ("start",), _MAKE, force=True),
        Verb("stop", "stop this project's sandbox", ("stop", "stop -f"), force=True),
        Verb("restart", "stop and start, applying changed settings", ("restart -p 8080",), _CHANGE, force=True),
        Verb("stop-all", "stop every sandbox", ("stop-all",), force=True, project=False),
        Verb("status", "the base VM, the servers and every sandbox", ("status", "status --json"),
             ("clone-from", "template"), changes=False),
        Verb("list", "every sandbox, a line each", ("list", "list --json"), changes=False, project=False),
        Verb("info", "everything about this project's sandbox", ("info", "info --json"), changes=False),
        Verb("watch", "a live view of every sandbox: what Claude wants, since when; keys to attach, answer, stop",
             ("watch", "watch --json"), changes=False, force=True, project=False),
        Verb("next", "attach to the Claude that has waited longest for you (exit code 1: none does)",
             ("next", "next --json"), project=False),
        Verb("reply", "answer a Claude in its tmux pane: a choice of its dialog, or a text; without TEXT show what it asks",
             ("reply app", "reply app yes", "reply app 2", "reply claude-sandbox-app -- --verbose, please", "reply ~/projects/app - < notes.txt"),
             rest="TEXT", project=False),
        Verb("notify", "show a test notification by every way, and say which of them work", ("notify test",), project=False),
        Verb("delete", "delete this project's sandbox, never a file of the project", ("delete", "delete -y"),
             force=True),
        Verb("prune", "delete sandboxes by name prefix, or those whose project is gone; free caches",
             ("prune", "prune claude-sandbox-test", "prune --orphans -y", "prune --cache"), force=True, project=False),
        Verb("update", "bring a newer Claude Code into this project's sandbox", ("update",), _MAKE, force=True),
        Verb("events", "what Claude Code told from the sandboxes: permissions asked for, turns ended, …",
             ("events", "events -f --json", "events --since 2h"), changes=False, project=False),
        Verb("restart-hooks", "stop and start the server that receives these events", ("restart-hooks",), project=False),
        Verb("rebuild-tools-vm", "build the tools VM of which sandboxes are cloned",
             ("rebuild-tools-vm", "rebuild-tools-vm --only claude,node,git", "rebuild-tools-vm --from-packages"),
             ("cpus", "memory", "disk"), force=True),
        Verb("setup", "install what this host lacks", ("setup", "setup -y"), project=False),
        Verb("doctor", "check this host, with a remedy for what is wrong", ("doctor", "doctor --json"),
             changes=False, project=False),
        Verb("settings", "compare the settings directory with the sandbox (diff), or take changes over (pull)",
             ("settings diff", "settings pull CLAUDE.md"), ("settings",), force=True),
        Verb("login", "store a long-lived token (from `claude setup-token`) for all sandboxes",
             ("login", "login < token.txt", "login --forget", "login --undo"), ("settings",)),
        Verb("approve", "allow what this project's .claude-sandbox.yaml asks for", ("approve",), force=True),
        Verb("completion", "print a completion script for bash, zsh or fish",
             ('completion bash > ~/.local/share/bash-completion/completions/claude-sandbox',), changes=False,
             json=False, project=False),
        Verb("uninstall", "remove what claude-sandbox put on this host, after showing it", ("uninstall",), force=True, project=False),
        Verb("version", "print the version", ("version", "version --json"), changes=False, project=False),
        Verb("help", "print this help, or that of a verb", ("help shell",), changes=False, json=False, project=False),
        Verb("_session", "run a prepared session (internal)", json=False, hidden=True),
        Verb("_open", "show a session's terminal (internal)", json=False, hidden=True),
    )
}  # fmt: skip

# Options of all verbs, but for what `Verb` says: flags, argparse keywords.
_COMMON: tuple[tuple[tuple[str, ...], dict[str, object]], ...] = (
    (("-d", "--dir"), {"metavar": "DIR", "help": "the project (default: the current directory)"}),
    (("-f", "--force"), {"action": "store_true", "help": "stop by force; do not ask"}),
    (("-y", "--yes"), {"action": "store_true", "help": "answer yes to every question"}),
    (("-v", "--verbose"), {"action": "store_true", "help": "show every command that is run"}),
    (
        ("-q", "--quiet"),
        {
            "action": "store_true",
            "help": "only warnings, errors and what was asked for",
        },
    ),
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
        (
            ("action",),
            {
                "choices": ("diff", "pull"),
                "metavar": "diff|pull",
                "help": "compare, or take the sandbox's changes over",
            },
        ),
        (("paths",), {"nargs": "*", "metavar": "PATH", "default": [], "help": "only these files"}),
    ),
    "login": (
        (("--forget",), {"action": "store_true", "help": "remove the stored token"}),
        (
            ("--undo",),
            {"action": "store_true", "help": "no token: undo the last change of the login by a sandbox"},
        ),
        (
            ("--take",),
            {
                "action": "store_true",
                "help": "no token: use the login made in this project's sandbox in all",
            },
        ),
    ),
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
    "notify": ((("action",), {"choices": ("test",), "metavar": "test", "help": "what to do"}),),
    "completion": (
        (("shell",), {"choices": ("bash", "zsh", "fish"), "metavar": "bash|zsh|fish", "help": "which shell"}),
    ),
    "help": ((("verb",), {"nargs": "?", "default": "", "metavar": "VERB", "help": "which verb"}),),
    "_session": ((("file",), {"help": argparse.SUPPRESS}),),
    "_open": ((("uuid",), {"help": argparse.SUPPRESS}),),
}


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


def _name(verb: Verb) -> str:
    """What is typed for it: `claude-sandbox stop`."""
    return f"{_ME} {verb.name}".rstrip()


def _common(verb: Verb) -> list[tuple[list[str], dict[str, object]]]:
    """The options of all verbs, as far as this one takes them. `events -f` is its own."""
    left_out = {flag for flags, _ in _OWN.get(verb.name, ()) for flag in flags}
    for wanted, flags in (
        (verb.force, {"-f", "--force"}), (verb.json, {"--json"}), (verb.changes, {"--dry-run"}),
        (verb.project, {"-d", "--dir"}),
    ):  # fmt: skip
        left_out |= set() if wanted else flags
    kept = (([flag for flag in flags if flag not in left_out], keywords) for flags, keywords in _COMMON)
    return [(flags, keywords) for flags, keywords in kept if flags]


def flags_of(verb: Verb) -> list[str]:
    """Every option that the verb takes, sorted."""
    own = [flag for flags, _ in _OWN.get(verb.name, ()) for flag in flags if flag.startswith("-")]
    rows = [flag for row in SETTINGS if row.key in verb.settings for flag in row.flags]
    return sorted({*own, *rows, *(flag for flags, _ in _common(verb) for flag in flags)})


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb, with every option that it takes."""
    examples = "\n".join(f"  {_ME} {example}".rstrip() for example in verb.examples)
    parser = _Parser(
        prog=_name(verb),
        description=verb.help[:1].upper() + verb.help[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
        argument_default=None,
    )
    parser.set_defaults(dir=None, force=False, json=False, dry_run=False)
    for flags, keywords in _OWN.get(verb.name, ()):
        parser.add_argument(*flags, **keywords)  # type: ignore[arg-type]
    if verb.settings:
        group = parser.add_argument_group("settings")
        for row in SETTINGS:
            if row.key in verb.settings:
                group.add_argument(*row.flags, **_setting_arguments(row))  # type: ignore[arg-type]
    common = parser.add_argument_group("common options")
    for names, keywords in _common(verb):
        common.add_argument(*names, **keywords)  # type: ignore[arg-type]
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


def _typed(words: Sequence[str]) -> Iterator[str]:
    """Every option that is typed, without its value; `-yd/tmp` is two."""
    takes, skip = _value_flags(), False
    for word in words:
        if skip or not word.startswith("-") or word == "-":
            skip = False
        elif word.startswith("--"):
            flag, is_sign, _ = word.partition("=")
            skip = flag in takes and not is_sign
            yield flag
        else:
            last = next((i for i, letter in enumerate(word) if f"-{letter}" in takes), len(word))
            skip = last == len(word) - 1
            yield from (f"-{letter}" for letter in word[1 : last + 1])


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
    takes = flags_of(verb)
    for flag in _typed(words):
        if flag not in takes:
            _reject(flag, verb)
    parser = parser_of(verb)
    # Intermixed: `settings pull -y CLAUDE.md` has an option between two positional arguments. That way
    # argparse writes its usage text each time (5 ms), so only where there are any.
    positional = any(not flags[0].startswith("-") for flags, _ in _OWN.get(verb.name, ()))
    parse_known = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    options, unknown = parse_known(words)
    if unknown:
        _reject(unknown[0], verb)
    if has_rest and not verb.rest:
        raise UsageError(
            f"`{_name(verb)}` runs no program: nothing may follow `--`.",
            resolution=f"See `{_name(verb)} --help`.",
        )
    return verb, options, rest


def _reject(word: str, verb: Verb) -> NoReturn:
    see = f"See `{_name(verb)} --help`."
    if not word.startswith("-"):
        behind = f"What is meant for the program goes behind `--`: {_name(verb)} -- {word}"
        raise UsageError(f"Unexpected argument: {word}", resolution=behind if verb.rest else see)
    flag = word.partition("=")[0]
    takers = [other for other in VERBS.values() if flag in flags_of(other) and not other.hidden]
    if takers:
        names = ", ".join(other.name or f"{_ME} alone" for other in takers)
        raise UsageError(
            f"`{_name(verb)}` does not take {flag}: it would have no effect there.",
            resolution=f"{flag} goes with: {names}. {see}",
        )
    import difflib

    near = difflib.get_close_matches(flag, flags_of(verb), 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(f"Unknown option for `{_name(verb)}`: {flag}", resolution=hint + see)


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


def outline(argv: Sequence[str]) -> str:
    """What was typed without any value: the verb, the options, how many words follow `--`."""
    words = list(itertools.takewhile(lambda word: word != "--", argv))
    at = _find_verb(words)
    verb = [] if at is None else [words[at] if words[at] in VERBS else "…"]
    flags = [flag if flag in known_flags() else "-…" for flag in _typed(words)]
    behind = len(argv) - len(words) - 1
    return " ".join([_ME, *verb, *flags, *([f"-- ({behind} words)"] if behind >= 0 else [])])


def version() -> dict[str, str]:
    return {"version": __version__, "python": sys.version.split()[0]}


def version_text() -> str:
    return f"{_ME} {__version__} (Python {version()['python']})"
