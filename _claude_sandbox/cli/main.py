"""The command line's main: finds the verb's function in the table, calls it, and catches errors once."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from _claude_sandbox import __version__
from _claude_sandbox.cli import parser, render
from _claude_sandbox.cli.invocation import Invocation
from _claude_sandbox.config import load as config_load
from _claude_sandbox.errors import EXIT_INTERRUPTED, ClaudeSandboxError
from _claude_sandbox.system.files import LogFile


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code. A user never sees a traceback."""
    own = list(itertools.takewhile(lambda word: word != "--", argv))
    as_json = "--json" in own
    previous = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        verb, options, rest = parser.parse(argv)
        if options.help:
            print(parser.help_text(verb), end="")
            return 0
        _log_to_stderr(options.verbose)
        return run(Invocation(verb, options, rest))
    except ClaudeSandboxError as error:
        render.error(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)  # not an error: with --json, stdout ends where it was
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        render.error(_os_error(error), as_json=as_json)
        return 1
    except Exception:  # noqa: BLE001 - the one place: a bug becomes a sentence and a log
        render.error(_internal_error(argv), as_json=as_json)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(call: Invocation) -> int:
    """Carry a verb out; returns the exit code.

    What is typed wrongly is reported before anything of the host is looked at, or installed (spec 1.12).
    """
    root = os.geteuid() == 0
    if root:
        from _claude_sandbox.host import run_as

        run_as.leave_other_homes()
    config_load.check_flags(call.typed_settings)
    if call.verb.check:
        _function(call.verb.check)(call)
    if call.options.dir is not None:
        _ = call.project
    if root and call.verb.as_user and sys.platform == "linux":
        from _claude_sandbox.cli.verbs import host as verbs_host

        verbs_host.become_user(call)
    code: int = _function(call.verb.run)(call)
    return code


def _function(reference: str) -> Any:
    """The function `MODULE:NAME` below our package."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(f"_claude_sandbox.{module}"), name)


def _terminate(number: int, _frame: object) -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: what was begun is removed on the way out."""
    raise SystemExit(128 + number)


def _log_to_stderr(verbose: bool) -> None:
    if verbose or os.environ.get("CLAUDE_SANDBOX_DEBUG"):
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stderr)


def _os_error(error: OSError) -> ClaudeSandboxError:
    """A file or directory of the host that could not be used: full disk, no permission."""
    where = f": {render.printable(error.filename)}" if error.filename else ""
    return ClaudeSandboxError(
        f"{error.strerror or error}{where}",
        resolution="Free some space or fix the permissions there, then run the same command again.",
    )


def _internal_error(argv: Sequence[str]) -> ClaudeSandboxError:
    """A bug in this program: the traceback goes to a file, the user gets a sentence."""
    import time
    import traceback

    text = traceback.format_exc()
    if os.environ.get("CLAUDE_SANDBOX_DEBUG"):
        sys.stderr.write(render.printable(text, keep="\n"))
    where = "the output of CLAUDE_SANDBOX_DEBUG=1"
    with contextlib.suppress(ClaudeSandboxError, OSError):
        from _claude_sandbox.system import paths

        log = LogFile(paths.logs_dir() / "internal-errors.log")
        # The words that were typed may hold a secret, and the log is for a report: options without values.
        entry = f"--- {time.strftime('%F %T')} {__version__} {parser.outline(argv)}\n{text}"
        log.write(entry.encode("utf-8", "backslashreplace"))
        where = str(log.path) if log.path.exists() else where
    return ClaudeSandboxError(
        f"an error inside claude-sandbox: {text.splitlines()[-1]}",
        resolution=f"Please report it with {where}.",
    )
