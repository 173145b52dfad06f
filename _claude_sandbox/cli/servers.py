"""The programs that are servers: as parent (system/daemon.py), or with `--worker FD` as the server itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.system import daemon
from _claude_sandbox.voice import grants as voice_grants

if TYPE_CHECKING:
    from _claude_sandbox.hooks.server import HooksServer
    from _claude_sandbox.notify.notifier import Notifier
    from _claude_sandbox.terminals.reply import Replied

_HOOKS = """usage: claude-hooks-server [--help]

Receives Claude Code's hook events from this user's sandboxes. It is started when it is needed; by hand
it runs in the foreground, for a service manager. `claude-sandbox restart-hooks` restarts it.
"""


def hooks_server(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    if list(arguments[:1]) == ["--worker"]:
        from _claude_sandbox.hooks import server as hooks_server

        return hooks_server.main(int(arguments[1]), _notifier)
    return _parent(arguments, hooks_client.daemon, _HOOKS)


def _notifier(server: HooksServer) -> Notifier:
    """Notifications for the hooks server; a choice that was answered through one is reported to the server."""
    from _claude_sandbox.hooks import client, registration
    from _claude_sandbox.notify.notifier import Notifier

    def answered(replied: Replied) -> None:
        if replied.kind == "choice":
            server.replied(replied.sandbox, replied.session_id, replied.seq)

    return Notifier(
        log=server.log,
        projects=lambda: [each.project for each in registration.all_in(client.registrations())],
        answered=answered,
    )


def stop_all() -> None:
    """The verb `stop-all`, after the sandboxes: both servers of this HOME with its LIMA_HOME. Raises ClaudeSandboxError."""
    hooks_client.stop()
    voice_grants.stop()


_AUDIO = """usage: claude-audio-server [--help]

Leads the microphone into sandboxes whose Claude was started with --voice, while they record. It is started
when it is needed and ends when it is not.
"""


def audio_server(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    if list(arguments[:1]) == ["--worker"]:
        from _claude_sandbox.voice import server as voice_server

        return voice_server.main(int(arguments[1]))
    return _parent(arguments, voice_grants.daemon, _AUDIO)


def _parent(arguments: Sequence[str], found: Callable[[], daemon.Daemon], usage: str) -> int:
    if arguments:
        help = arguments[0] in ("-h", "--help")
        print(usage, end="", file=sys.stdout if help else sys.stderr)
        return 0 if help else 2
    try:
        return daemon.supervise(found())
    except ClaudeSandboxError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
