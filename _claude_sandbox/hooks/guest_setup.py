"""What makes Claude Code in a guest report what it does: hook.sh and Claude's managed settings, with hooks only.

They lie below root's directories in the guest, so the user's own settings.json stays as it is, their hooks
run besides ours, and ours survive their `disableAllHooks` (facts/checked.md). A convenience, no boundary:
whoever is root in the guest can change them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from _claude_sandbox.lima.ssh import guest_script
from _claude_sandbox.system import quoting
from _claude_sandbox.system.program import outside_file

HOOK = "/usr/lib/claude-sandbox/hook.sh"
SETTINGS = "/etc/claude-code/managed-settings.d/50-claude-sandbox.json"
TIMEOUT = 10  # seconds; Claude's own is 600, and SessionEnd has next to none without (facts/claude-code.md)
# Event and matcher. What a tool does is of use around a dialog only, and hook.sh drops the rest of it.
_EVENTS: Mapping[str, str] = {
    "SessionStart": "",
    "UserPromptSubmit": "",
    "PreToolUse": "AskUserQuestion|ExitPlanMode",
    "PostToolUse": "",
    "PostToolUseFailure": "",
    "PermissionRequest": "",
    "PermissionDenied": "",
    "Elicitation": "",
    "ElicitationResult": "",
    "Notification": "",
    "Stop": "",
    "StopFailure": "",
    "SubagentStop": "",
    "SessionEnd": "",
}


def settings() -> bytes:
    """The managed settings file."""
    hooks = {event: [_entry(event, matcher)] for event, matcher in _EVENTS.items()}
    return json.dumps({"hooks": hooks}, indent=1).encode() + b"\n"


def _entry(event: str, matcher: str) -> dict[str, object]:
    # Sourced, since a second shell costs as much again. A shell that cannot source a file ends with 2,
    # which would block Claude: the trap makes it 0.
    line = f"trap 'exit 0' 0; set -- queue {event}; . {HOOK}"
    entry: dict[str, object] = {"matcher": matcher} if matcher else {}
    return {**entry, "hooks": [{"type": "command", "command": line, "timeout": TIMEOUT}]}


def files() -> dict[str, bytes]:
    """What the guest must have, by path. Raises ConfigError."""
    return {HOOK: _hook(), SETTINGS: settings()}


def _hook() -> bytes:
    """hook.sh: at the top of a checkout, in the package in a wheel."""
    return outside_file("hook.sh").read_bytes()


def delivery() -> str:
    """The script that runs with a forward (lima/socket_forward.py): brings what hook.sh queued to the socket."""
    return f'exec {quoting.shell_quote(["perl", "-e", guest_script("hooks-deliver.pl")])} "$2" "$1"'
