"""Every line of the specification is proven by a test that exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from spec_table import TABLE

TESTS = Path(__file__).resolve().parent
SPEC = TESTS.parents[1] / "shared" / "spec" / "core.md"
NUMBERS = (TESTS / "spec_lines.txt").read_text().split()


@functools.cache
def functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_line_is_in_the_table_and_no_other() -> None:
    assert sorted(TABLE) == sorted(NUMBERS)


@pytest.mark.skipif(not SPEC.exists(), reason="the specification is not beside this checkout")
def test_the_copied_numbers_are_the_specification_s() -> None:
    assert NUMBERS == re.findall(r"^(\d+\.\d+) ", SPEC.read_text(), re.MULTILINE)


@pytest.mark.parametrize("number", NUMBERS)
def test_line_has_proof(number: str) -> None:
    proofs = TABLE[number]
    assert proofs, f"{number}: no test"
    name = ""
    for proof in proofs:
        given, _, function = proof.partition("::")
        name = given or name
        file = TESTS / f"{name}.py"
        assert file.exists(), f"{number}: {file} is not there"
        assert function.startswith("test_") and function in functions(file), (
            f"{number}: no {function} in {file}"
        )
