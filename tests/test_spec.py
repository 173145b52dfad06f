"""Every line of the specification is proven by a test: `@pytest.mark.spec("1.1")` on each that does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def marked() -> Iterator[str]:
    """The numbers of every spec mark below tests/."""
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.spec":
                        yield from (str(ast.literal_eval(number)) for number in call.args)


def test_every_line_is_proven_and_no_mark_is_of_another() -> None:
    text = (TESTS.parent / "docs" / "spec.md").read_text(encoding="utf-8")
    assert set(marked()) == set(re.findall(r"^(\d+\.\d+) ", text, re.MULTILINE))
