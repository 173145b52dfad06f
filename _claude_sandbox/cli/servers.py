"""The daemon and its services: the one place that knows all of them. A new service is one value here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from _claude_sandbox.daemon import client
from _claude_sandbox.errors import ClaudeSandboxError

if TYPE_CHECKING:
    from _claude_sandbox.daemon.service import Handlers, Service
    from _claude_sandbox.hooks.server import HooksServer
    from _claude_sandbox.notify.notifier import Notifier
    from _claude_sandbox.terminals.reply import Replied

_HOOKS = """usage: claude-hooks-server [--help]

Serves this user's sandboxes in the background: receives Claude Code's hook events, notifies, forwards the
microphone to sandboxes with --voice. It is started when it is needed; by hand it runs in the
foreground, for a service manager. `claude-sandbox restart-hooks` starts it again.
"""
_AUDIO = """usage: claude-audio-server [--help]

Forwards the microphone to sandboxes whose Claude was started with --voice, while they record. It is a part of
claude-hooks-server, which this starts.
"""


def hooks_server(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    return _run(arguments, _HOOKS)


def audio_server(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    return _run(arguments, _AUDIO)


def _run(arguments: Sequence[str], usage: str) -> int:
    """The supervisor; with `--worker NAME FD` one of its workers."""
    if list(arguments[:1]) == ["--worker"]:
        from _claude_sandbox.daemon import workers

        *name, fd = arguments[1:]
        if not name:  # by a supervisor of the last release
            return workers.replace_supervisor(client.daemon(), int(fd))
        return workers.main(client.daemon(), name[0], int(fd), services())
    if arguments:
        help = arguments[0] in ("-h", "--help")
        print(usage, end="", file=sys.stdout if help else sys.stderr)
        return 0 if help else 2
    from _claude_sandbox.daemon import supervisor

    try:
        return supervisor.supervise(client.daemon())
    except ClaudeSandboxError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code


def services() -> tuple[Service, ...]:
    """All services of the daemon. What a handler needs is imported where it runs."""
    import functools

    from _claude_sandbox.daemon.service import Service
    from _claude_sandbox.hooks import client as hooks_client
    from _claude_sandbox.hooks import guest_setup, registration
    from _claude_sandbox.voice import grants
    from _claude_sandbox.voice import guest_setup as voice_guest_setup

    return (
        Service(
            name="hooks",
            guest_socket=registration.guest_socket,
            host_socket=hooks_client.intake_socket,
            script=functools.cache(guest_setup.delivery),
            endpoints=lambda: [each.endpoint for each in registration.all_in(hooks_client.registrations())],
            handler=_handle_hooks,
        ),
        Service(
            name="voice",
            guest_socket=grants.guest_socket,
            host_socket=grants.socket_of,
            script=functools.cache(voice_guest_setup.script),
            endpoints=lambda: {each.endpoint: None for each in grants.all_held()},
            handler=_handle_voice,
        ),
    )


async def _handle_hooks(handlers: Handlers) -> None:
    from _claude_sandbox.hooks import client as hooks_client
    from _claude_sandbox.hooks.server import HooksServer

    try:
        client.stop_former()
    except ClaudeSandboxError as error:
        handlers.log.write(f"a server of the last release goes on: {error.brief}")
    hooks_client.take_over_registrations()
    await HooksServer(handlers, _notifier).run()


async def _handle_voice(handlers: Handlers) -> None:
    from _claude_sandbox.voice import server

    await server.handle(handlers)


def _notifier(server: HooksServer) -> Notifier:
    """Notifications for the hooks server; a choice that was answered through one is reported to the server."""
    from _claude_sandbox.hooks import client as hooks_client
    from _claude_sandbox.hooks import registration
    from _claude_sandbox.notify.notifier import Notifier

    def answered(replied: Replied) -> None:
        if replied.kind == "choice":
            server.replied(replied.sandbox, replied.session_id, replied.seq)

    return Notifier(
        log=server.log,
        projects=lambda: [each.project for each in registration.all_in(hooks_client.registrations())],
        answered=answered,
    )


def stop_all() -> None:
    """The verb `stop-all`, after the sandboxes: the daemon of this HOME with its LIMA_HOME. Raises ClaudeSandboxError."""
    client.stop()
