"""A guest's line as an event: what is taken, what is refused, and that nothing harmful comes through."""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.hooks import event as hooks_event
from _claude_sandbox.hooks.event import Event, MalformedError, parse
from _claude_sandbox.hooks.session_table import SessionTable
from _claude_sandbox.system.text import clean

SAMPLES = Path(__file__).parent / "samples"
NOW = 1_800_000_000 * 10**9
UUID = "0b9cdf6a-37c7-4a0c-9f05-2d6f8a3f3e0d"


def wire(payload: object, **changes: Any) -> bytes:
    line = {
        "id": "00ff00ff:7", "time": "2026-11-21T20:00:00.123456789Z", "time_ns": NOW - 5, "pid": 42,
        "uuid": UUID, "project": "/somebody/else", "payload": payload, **changes,
    }  # fmt: skip
    return json.dumps({k: v for k, v in line.items() if v is not None}).encode()


def read(line: bytes) -> Event:
    return parse(line, sandbox="claude-sandbox-app", project="/p/app", received_ns=NOW)


PLAIN = {"hook_event_name": "Stop", "session_id": "s1", "last_assistant_message": "done"}


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.json")), ids=lambda f: f.stem)
def test_every_payload_that_claude_sends_is_taken(file: Path) -> None:
    payload = json.loads(file.read_text())
    event = read(wire(payload))
    assert event.name == payload["hook_event_name"] and event.session_id == payload["session_id"]
    assert event.data["cwd"] == payload["cwd"]
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


def test_whose_event_it_is_never_stands_in_the_line() -> None:
    event = read(wire({**PLAIN, "sandbox": "other"}, sandbox="other", project="/other"))
    assert (event.sandbox, event.project) == ("claude-sandbox-app", "/p/app")


def test_the_envelope() -> None:
    event = read(wire(PLAIN))
    assert (event.id, event.spool, event.number) == ("00ff00ff:7", "00ff00ff", 7)
    assert (event.time_ns, event.received_ns, event.pid, event.uuid) == (NOW - 5, NOW, 42, UUID)


@pytest.mark.parametrize("time_ns", [-1, NOW + 1, NOW - 2 * 86_400 * 10**9, 1.5, True, "x", 1 << 80, None])
def test_a_time_that_cannot_be_right_is_replaced_by_ours(time_ns: object) -> None:
    assert read(wire(PLAIN, time_ns=time_ns)).time_ns == NOW


@pytest.mark.parametrize("pid", [-1, True, 1 << 40, "7", 1.0, [], None])
def test_a_pid_that_is_none_is_0(pid: object) -> None:
    assert read(wire(PLAIN, pid=pid)).pid == 0


@pytest.mark.parametrize("uuid", ["", "x", 7, UUID + "\n", "../" + UUID, None])
def test_a_uuid_that_is_none_is_empty(uuid: object) -> None:
    assert read(wire(PLAIN, uuid=uuid)).uuid == ""


@pytest.mark.parametrize(
    "line",
    [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"id":', wire(PLAIN, id="zz:1"), wire(PLAIN, id="00ff00ff:0"),
        wire(PLAIN, id="00ff00ff:-1"), wire(PLAIN, id="00ff00ff:9999999999999999"), wire(PLAIN, id=7),
        wire(PLAIN, id="00ff00ff:\u0661"), wire([]), wire("x"), wire(None), wire({}), wire({"hook_event_name": "Stop"}),
        wire({**PLAIN, "hook_event_name": "../x"}), wire({**PLAIN, "session_id": "../../etc"}),
        wire({**PLAIN, "session_id": ["s"]}), wire({**PLAIN, "hook_event_name": "HostReplied"}),
        wire({**PLAIN, "session_id": "s\n1"}), wire(None, head="%%%"), wire(None, head=7), wire(None, head=""),
        b'{"id":"00ff00ff:7","payload":{"session_id":"s","hook_event_name":"Stop","x":NaN}}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"n":' + b"9" * 100_000 + b"}",
        b'{"id":"00ff00ff:7","payload":' + b"[" * 100_000, b"x" * (hooks_event.LINE_LIMIT + 1),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        read(line)


@pytest.mark.parametrize(
    "line",
    [
        wire([]), wire({**PLAIN, "session_id": "/"}), b'{"id":"00ff00ff:7","payload":' + b"[" * 100_000,
        b'{"id": "00ff00ff:7", garbage', b'{"id":"00ff00ff:7","x":"' + b"x" * hooks_event.LINE_LIMIT,
    ],
)  # fmt: skip
def test_the_id_of_a_refused_line_is_told_so_that_the_queue_goes_on(line: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        read(line)
    assert caught.value.id == "00ff00ff:7"


def test_of_a_payload_over_the_guest_s_limit_the_beginning_is_read() -> None:
    payload = json.dumps(
        {
            "session_id": "s1", "cwd": "/p", "hook_event_name": "Stop",
            "last_assistant_message": 'a "quoted" \u00e9 ' + "x" * 100_000,
        }
    )  # fmt: skip
    event = read(wire(None, head=base64.b64encode(payload.encode()[:2048]).decode()))
    assert event.cut and (event.session_id, event.name) == ("s1", "Stop")
    assert event.data["cwd"] == "/p" and event.data["last_assistant_message"].startswith('a "quoted" é xxx')


@given(st.integers(0, 2048))
def test_a_head_may_break_off_anywhere(at: int) -> None:
    text = json.dumps(
        {"session_id": "s1", "hook_event_name": "Stop", "message": "\\ \u2028 \U0001f600 \t" * 200}
    )
    try:
        event = read(wire(None, head=base64.b64encode(text.encode()[:at]).decode()))
    except MalformedError:
        assert at < 60
    else:
        assert (event.session_id, event.name) == ("s1", "Stop") or at < 60


def test_lost_events_are_told_without_a_session() -> None:
    lost = {
        "session_id": "",
        "hook_event_name": "HookEventsLost",
        "count": 3,
        "message": "3 hook events were lost",
    }
    event = read(wire(lost))
    assert event.session_id == "" and event.data["message"] == "3 hook events were lost"
    assert SessionTable().take(event) is None


def test_what_a_question_offers() -> None:
    question = {"question": "Which\x07 one?", "options": [{"label": "A\u202eB"}, {"label": "two"}]}
    payload = {
        "hook_event_name": "PermissionRequest", "session_id": "s", "tool_name": "AskUserQuestion",
        "tool_input": {"questions": [question, {}]},
    }  # fmt: skip
    data = read(wire(payload)).data
    assert data["detail"] == "Which one?" and data["choices"] == ["AB", "two"]
    assert data["questions"] == 2 and data["several"] is False


@pytest.mark.parametrize("questions", [None, [], [7], "x", [{"options": 7}], [{"options": [7, None, {}]}]])
def test_a_question_of_the_wrong_shape_offers_nothing(questions: object) -> None:
    payload = {
        "hook_event_name": "PermissionRequest", "session_id": "s", "tool_name": "AskUserQuestion",
        "tool_input": {"questions": questions},
    }  # fmt: skip
    assert not read(wire(payload)).data.get("choices")


def test_background_tasks_that_are_over_do_not_count() -> None:
    tasks = [{"id": 1, "status": "running"}, {"status": "completed"}, "odd", {"status": 7}]
    assert read(wire({**PLAIN, "background_tasks": tasks})).data["background_tasks"] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"), ("two\nlines\r\n\tthree", "two lines three"), ("\x1b]0;evil\x07", "]0;evil"),
        ("\u202eleft\u2066\u200f", "left"), ("nul\x00\x7f\x9b31m", "nul31m"), ("\ud800x", "x"), ("  a  ", "a"),
        ("e\u0301 \u2764\ufe0f\u200d\U0001f525", "e\u0301 \u2764\ufe0f\u200d\U0001f525"), (7, ""), (None, ""),
        ("x" * 50, "x" * 39 + "…"), ("<b>&amp;</b>", "<b>&amp;</b>"), ("a\U000e0041b", "ab"),
    ],
)  # fmt: skip
def test_clean(text: object, expected: str) -> None:
    assert clean(text, 40) == expected


@given(st.text(st.characters(), max_size=300), st.integers(1, 60))
def test_clean_text_cannot_steer_anything(text: str, limit: int) -> None:
    out = clean(text, limit)
    assert len(out) <= limit
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp", "Co"}
    assert not [c for c in out if unicodedata.category(c) in bad and c not in "\u200c\u200d"]
    out.encode()
    assert clean(out, limit) == out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("id", "time_ns", "pid", "uuid", "payload", "head", "hook_event_name", "session_id", "tool_name",
          "tool_input", "questions", "options", "message", "background_tasks", "cwd")  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_an_event_or_refused(envelope: dict[str, Any], payload: dict[str, Any]) -> None:
    for value in (envelope, {**json.loads(wire({**PLAIN, **payload})), **envelope}):
        try:
            event = read(json.dumps(value).encode())
        except MalformedError:
            continue
        assert len(json.dumps(event.to_json())) < 20_000


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_quietly(line: bytes) -> None:
    with pytest.raises(MalformedError):
        read(line)
