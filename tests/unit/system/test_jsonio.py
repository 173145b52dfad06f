"""JSON that others may have spoilt (system/jsonio.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from _claude_sandbox.system import jsonio


@pytest.mark.parametrize(
    "raw", [None, b"", b"[1]", b"1", b"{", b"\xff{}", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000]
)
def test_only_an_object_is_taken(raw: bytes | None) -> None:
    assert jsonio.parse_object(raw) is None


def test_a_broken_line_is_passed_over_and_a_torn_one_is_not_there_yet(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert list(jsonio.read_lines(file)) == [] and jsonio.read_object(file) is None
    file.write_bytes(b'{"a":1}\nbroken\n{"b":2}\n{"c":3}')
    assert list(jsonio.read_lines(file)) == [
        ({"a": 1}, b'{"a":1}\n'),
        (None, b"broken\n"),
        ({"b": 2}, b'{"b":2}\n'),
    ]
    file.write_bytes(b'{"a": "\xc3\xa9"}')
    assert jsonio.read_object(file) == {"a": "é"}
