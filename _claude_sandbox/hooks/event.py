"""One hook event as a value: the wire's line taken apart, bounded and cleaned.

What comes in was written by a guest, which is hostile: every field is checked for type and range, texts
lose control characters and bidirectional overrides, and are cut. Whose event it is, is never read from
the line: the socket decides that. The wire is in docs/hooks.md, what Claude's
payloads look like in tests/unit/hooks/.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _claude_sandbox.system.text import clean

LINE_LIMIT = 256 * 1024  # bytes; the guest cuts a payload at 64 KiB
HEAD_LIMIT = 2048  # bytes of a payload that was over the guest's limit
NUMBER_LIMIT = 1 << 53  # a spool's sequence and our own; past it JSON readers begin to round
TIME_LIMIT = 1 << 62  # ns; the year 2116
HOST = "Host"  # an event that the host made; no guest may send one of that name
LOST = "HookEventsLost"  # the guest's own: its queue was full; of no session
HOST_REPLIED = "HostReplied"  # somebody answered the open dialog through us
MESSAGE, LONG, SHORT = 500, 1000, 120  # characters
CHOICES = 12

_ID = re.compile(r"([0-9a-f]{8,32}):(\d{1,16})", re.ASCII)
_RAW_ID = re.compile(rb'"id"\s*:\s*"([0-9a-f]{8,32}:\d{1,16})"')
_NAME = re.compile(r"[A-Za-z]{1,48}", re.ASCII)
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
# A JSON string in a payload that may break off anywhere: `"session_id": "…"`.
_PAIR = re.compile(r'"([a-z_]{1,40})"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,2000}")')
# The last one may be broken off: a Stop's long last_assistant_message.
_BROKEN_PAIR = re.compile(
    r'"([a-z_]{1,40})"\s*:\s*("(?:[^"\\\x00-\x1f]|\\[^u]|\\u[0-9a-fA-F]{4})*)(?:\\u?[0-9a-fA-F]{0,3})?\Z'
)

# Texts of a payload that are kept, with their greatest length in characters.
_TEXTS: Mapping[str, int] = {
    "message": MESSAGE, "notification_type": SHORT, "tool_name": SHORT, "reason": SHORT, "source": SHORT,
    "error": MESSAGE, "last_assistant_message": LONG, "permission_mode": SHORT, "cwd": LONG, "agent_id": SHORT,
    "tool_use_id": SHORT, "trigger": SHORT, "title": SHORT,
}  # fmt: skip
# Which part of a tool's input says best what it wants to do.
_DETAILS = (
    "command",
    "file_path",
    "path",
    "url",
    "query",
    "pattern",
    "plan",
    "description",
    "prompt",
    "skill",
)
_OVER = frozenset({"completed", "failed", "killed", "stopped", "cancelled", "done"})


class MalformedError(ValueError):
    """A line that can never be taken. `id` is its id if at least that can be read, so that the guest's
    queue goes on behind it."""

    def __init__(self, why: str, id: str = "") -> None:
        super().__init__(why)
        self.id = id


@dataclass(frozen=True)
class Event:
    """One hook event as the server keeps it. Times in ns since 1970."""

    seq: int  # the server's, rising over restarts; 0 before it has one
    id: str  # "SPOOL:N" of the guest; "" for an event of the host
    time_ns: int  # the guest's clock; the host's where the guest's cannot be right
    received_ns: int  # the host's clock
    sandbox: str  # VM name, from the socket that it came by
    project: str  # host path, from the sandbox's registration
    name: str  # hook_event_name
    session_id: str
    uuid: str  # CLAUDE_SANDBOX_UUID of the launch, "" when unknown; the guest's word only
    pid: int
    data: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False  # the payload was over the guest's limit: only its beginning is known

    @property
    def spool(self) -> str:
        return self.id.partition(":")[0]

    @property
    def number(self) -> int:
        return int(self.id.partition(":")[2] or 0)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "data": dict(self.data)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Event:
        """Of our own log or feed; raises KeyError and TypeError when it is not."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def parse(line: bytes, *, sandbox: str, project: str, received_ns: int) -> Event:
    """One line of the wire. Raises MalformedError."""
    if len(line) > LINE_LIMIT:
        raise MalformedError("the line is too long", _raw_id(line))
    try:
        value = _load(line)
        id = _id(value)
    except ValueError as error:
        raise MalformedError(str(error), _raw_id(line)) from None
    try:
        cut = "payload" not in value and "head" in value
        payload = _head(value["head"]) if cut else value.get("payload")
        if not isinstance(payload, dict):
            raise ValueError("there is no payload")
        name = _matching(_NAME, payload.get("hook_event_name"), "hook_event_name")
        if name.startswith(HOST):
            raise ValueError(f"{name} is not a guest's event")
        return Event(
            0, id, _time(value.get("time_ns"), received_ns), received_ns, sandbox, project, name,
            "" if name == LOST else _matching(_SESSION, payload.get("session_id"), "session_id"),
            _optional(_UUID, value.get("uuid")).lower(),
            _number(value.get("pid"), 1 << 31), choose(name, payload), cut,
        )  # fmt: skip
    except ValueError as error:
        raise MalformedError(str(error), id) from None


def choose(name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a payload: cleaned texts, counts, and what an open dialog asks."""
    data: dict[str, Any] = {}
    for key, limit in _TEXTS.items():
        if text := clean(payload.get(key), limit):
            data[key] = text
    tasks = payload.get("background_tasks")
    if isinstance(tasks, list):
        data["background_tasks"] = min(sum(map(_still_runs, tasks[:1000])), 1000)
    tool = payload.get("tool_input")
    if isinstance(tool, dict) and name in ("PermissionRequest", "PreToolUse"):
        data.update(_question(tool) if data.get("tool_name") == "AskUserQuestion" else _detail(tool))
    return data


def _still_runs(task: object) -> bool:
    status = task.get("status") if isinstance(task, dict) else None
    return not (isinstance(status, str) and status in _OVER)


def _detail(tool: Mapping[str, Any]) -> dict[str, Any]:
    """`{"detail": "touch xx"}`: the first telling part of a tool's input."""
    for key in _DETAILS:
        if text := clean(tool.get(key), MESSAGE):
            return {"detail": text}
    return {}


def _question(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The first question of AskUserQuestion with the labels of its options, and how many there are."""
    questions = tool.get("questions")
    if not isinstance(questions, list) or not questions or not isinstance(questions[0], dict):
        return {}
    first = questions[0]
    options = first.get("options")
    labels = [
        clean(each.get("label") if isinstance(each, dict) else each, SHORT)
        for each in (options if isinstance(options, list) else [])[:CHOICES]
    ]
    return {
        "detail": clean(first.get("question"), MESSAGE),
        "choices": labels if all(labels) else [],
        "several": first.get("multiSelect") is True,
        "questions": min(len(questions), 100),
    }


# -- checks --------------------------------------------------------------------------------------


def _load(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError:
        raise ValueError("no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _id(value: Mapping[str, Any]) -> str:
    id = _matching(_ID, value.get("id"), "id")
    spool, _, number = id.partition(":")
    if not 0 < int(number) < NUMBER_LIMIT:
        raise ValueError("id out of range")
    return f"{spool}:{int(number)}"


def _raw_id(line: bytes) -> str:
    """The id of a line that is not JSON; hook.sh writes it first."""
    match = _RAW_ID.search(line, 0, 4096)
    try:
        return _id({"id": match[1].decode()}) if match else ""
    except ValueError:
        return ""


def _matching(pattern: re.Pattern[str], value: object, name: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"no usable {name}")
    return value


def _optional(pattern: re.Pattern[str], value: object) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""


def _number(value: object, limit: int) -> int:
    """A whole number in [0, limit), else 0; true and false are none."""
    return value if type(value) is int and 0 <= value < limit else 0


def _time(value: object, received_ns: int) -> int:
    """The guest's clock where it can be right: not ahead of the host's, and within a day."""
    time_ns = _number(value, TIME_LIMIT)
    return time_ns if received_ns - 86_400 * 10**9 <= time_ns <= received_ns else received_ns


def _head(head: object) -> dict[str, Any]:
    """What the beginning of a payload holds: its top-level texts come first. Nothing nested is trusted
    beyond being shown: a later pair of the same name does not replace an earlier one."""
    try:
        raw = base64.b64decode(head, validate=True) if isinstance(head, str) else b""
    except (binascii.Error, ValueError):
        raise ValueError("head is not base64") from None
    text = raw[:HEAD_LIMIT].decode("utf-8", "replace")
    found: dict[str, Any] = {}
    for match in _PAIR.finditer(text):
        with contextlib.suppress(ValueError):
            found.setdefault(match[1], json.loads(match[2]))
    if broken := _BROKEN_PAIR.search(text):
        with contextlib.suppress(ValueError):
            found.setdefault(broken[1], json.loads(broken[2] + '"'))
    return found
