"""Parsing of the command line: options before or after the verb, errors that name the nearest word, help.

`parse` finds the verb among the options, checks it, and lets argparse read the rest; everything behind
`--` goes unchanged to the program that the verb runs. Standard library only.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from _claude_sandbox.cli.verb_table import (
    CLAUDE,
    ME,
    SHOWN,
    VERBS,
    Argument,
    Verb,
    known_arguments,
    option_names,
)
from _claude_sandbox.errors import UsageError


class _Parser(argparse.ArgumentParser):
    """argparse with our errors: what is wrong, the nearest known option, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:] + ".", resolution=f"See `{self.prog} --help`.")


def _keywords(argument: Argument) -> dict[str, Any]:
    """`argument` as argparse's `add_argument` takes it."""
    keywords: dict[str, Any] = {"help": argument.help, "default": argument.default}
    if argument.key:
        keywords["dest"] = argument.key
    if not argument.metavar:
        return {**keywords, "action": "store_const", "const": True}
    if argument.repeat:
        keywords["action"] = "append"
    given = {"metavar": argument.metavar, "choices": argument.choices, "nargs": argument.nargs}
    return {**keywords, **{name: value for name, value in given.items() if value}}


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb, with every option that it takes."""
    examples = "\n".join(f"  {ME} {example}".rstrip() for example in verb.examples)
    parser = _Parser(
        prog=verb.typed,
        description=verb.help[:1].upper() + verb.help[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    parser.set_defaults(dir=None, force=False, json=False, dry_run=False)
    groups: list[tuple[Any, Sequence[Argument]]] = [(parser, verb.arguments)]
    if verb.settings:
        groups.append((parser.add_argument_group("settings"), verb.setting_arguments))
    groups.append((parser.add_argument_group("common options"), verb.common_arguments))
    for group, arguments in groups:
        for argument in arguments:
            group.add_argument(*argument.names, **_keywords(argument))
    if verb.rest:
        parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + f" [-- {verb.rest}…]"
    return parser


def known_flags() -> list[str]:
    """Every option of any verb, sorted."""
    return option_names(known_arguments())


def _scan(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, option) of every option that is typed, without its value, and (index, "") of every other word.

    `-yd/tmp` is the options -y and -d.
    """
    takes_value = frozenset(option_names([each for each in known_arguments() if each.metavar]))
    skip = False
    for index, word in enumerate(words):
        if skip:
            skip = False
        elif not word.startswith("-") or word == "-":
            yield index, ""
        elif word.startswith("--"):
            flag, is_sign, _ = word.partition("=")
            skip = flag in takes_value and not is_sign
            yield index, flag
        else:
            last = next((i for i, letter in enumerate(word) if f"-{letter}" in takes_value), len(word))
            skip = last == len(word) - 1
            yield from ((index, f"-{letter}") for letter in word[1 : last + 1])


def _find_verb(words: Sequence[str]) -> int | None:
    """The index of the verb: the first word that is neither an option nor an option's value."""
    return next((index for index, flag in _scan(words) if not flag), None)


def _typed_flags(words: Sequence[str]) -> list[str]:
    return [flag for _, flag in _scan(words) if flag]


def parse(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace, list[str]]:
    """The verb, its options, and what follows `--`. Raises UsageError."""
    words, rest = list(argv), []
    has_rest = "--" in words
    if has_rest:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1 :]
    verb, words = _take_verb(words)
    if verb.name != "help" and any(word in ("-h", "--help") for word in words):
        return verb, argparse.Namespace(help=True, version=False), rest
    if "--version" in words:
        verb, words = VERBS["version"], [word for word in words if word in ("--version", "--json")]
    takes = verb.flags
    for flag in _typed_flags(words):
        if flag not in takes:
            _reject(flag, verb)
    parser = parser_of(verb)
    # Intermixed: `settings pull -y CLAUDE.md` has an option between two positional arguments. That way
    # argparse writes its usage text each time (5 ms), so only where there are any.
    positional = not all(argument.is_option for argument in verb.arguments)
    parse_known = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    options, unknown = parse_known(words)
    if unknown:
        _reject(unknown[0], verb)
    if has_rest and not verb.rest:
        raise UsageError(
            f"`{verb.typed}` runs no program: nothing may follow `--`.",
            resolution=f"See `{verb.typed} --help`.",
        )
    return verb, options, rest


def _take_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb and the other words. Raises UsageError for one that does not exist."""
    at = _find_verb(words)
    name = CLAUDE if at is None else words[at]
    if name in VERBS:
        return VERBS[name], words if at is None else words[:at] + words[at + 1 :]
    # `--memroy 8GiB`: what looks like the verb is the value of a misspelt option.
    for word in words[:at]:
        if word.startswith("--") and word.partition("=")[0] not in known_flags():
            _reject(word, VERBS[CLAUDE])
    near = _nearest(name, [verb.name for verb in SHOWN])
    hint = f"Did you mean `{ME} {near}`? " if near else ""
    raise UsageError(f"Unknown command: {name}", resolution=f"{hint}See `{ME} --help`.")


def _nearest(word: str, known: Sequence[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def _reject(word: str, verb: Verb) -> NoReturn:
    see = f"See `{verb.typed} --help`."
    if not word.startswith("-"):
        behind = f"Arguments for the program go behind `--`: {verb.typed} -- {word}"
        raise UsageError(f"Unexpected argument: {word}", resolution=behind if verb.rest else see)
    flag = word.partition("=")[0]
    takers = [other for other in VERBS.values() if flag in other.flags and not other.hidden]
    if takers:
        names = ", ".join(other.name or f"{ME} alone" for other in takers)
        raise UsageError(
            f"`{verb.typed}` does not take {flag}: it would have no effect there.",
            resolution=f"{flag} goes with: {names}. {see}",
        )
    near = _nearest(flag, verb.flags)
    hint = f"Did you mean {near}? " if near else ""
    raise UsageError(f"Unknown option for `{verb.typed}`: {flag}", resolution=hint + see)


def help_text(verb: Verb) -> str:
    """A verb's help; the bare command's lists the verbs too."""
    text = parser_of(verb).format_help()
    if verb.name != CLAUDE:
        return text
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {each.name:<{width}}  {each.help}" for each in SHOWN)
    usage, _, body = text.partition("\n\n")
    return (
        f"{usage}\n       {ME} VERB [options]\n\n"
        "Every project gets its own Lima VM, and Claude Code runs in it with full permissions.\n\n"
        f"verbs:\n{verbs}\n\n{body}\nMore: {ME} VERB --help\n"
    )


def outline(argv: Sequence[str]) -> str:
    """What was typed without any value: the verb, the options, how many words follow `--`."""
    words = list(itertools.takewhile(lambda word: word != "--", argv))
    at = _find_verb(words)
    verb = [] if at is None else [words[at] if words[at] in VERBS else "…"]
    flags = [flag if flag in known_flags() else "-…" for flag in _typed_flags(words)]
    behind = len(argv) - len(words) - 1
    return " ".join([ME, *verb, *flags, *([f"-- ({behind} words)"] if behind >= 0 else [])])
