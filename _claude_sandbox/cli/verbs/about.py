"""The verbs about the program itself: help, version, completion. Standard library only."""

from __future__ import annotations

import sys

from _claude_sandbox import __version__
from _claude_sandbox.cli import parser
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.cli.verb_table import ME, VERBS
from _claude_sandbox.errors import UsageError


def help_page(call: Invocation) -> int:
    verb = VERBS.get(call.options.verb)
    if verb is None:
        raise UsageError(f"Unknown command: {call.options.verb}", resolution=f"See `{ME} --help`.")
    print(parser.help_text(verb), end="")
    return 0


def version(call: Invocation) -> int:
    python = sys.version.split()[0]
    return call.answer({"version": __version__, "python": python}, f"{ME} {__version__} (Python {python})")


def completion(call: Invocation) -> int:
    from _claude_sandbox.cli import completion as cli_completion

    print(cli_completion.script(call.options.shell), end="")
    return 0
