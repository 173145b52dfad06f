"""docs/troubleshooting.md quotes our errors in their own words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
VARIES = "…"


def said() -> str:
    """Every text in the program, what is put into f-strings as VARIES."""
    texts = [(ROOT / "claude-sandbox").read_text(encoding="utf-8")]
    for file in (ROOT / "_claude_sandbox").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else VARIES for p in node.values)
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


def quoted() -> list[str]:
    """The code spans that begin a table row, or follow one there."""
    cells = [row.split("|")[1].strip() for row in TEXT.splitlines() if row.startswith("| `")]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return [span for span in spans if " " in span]


def test_the_quoted_words_are_ours() -> None:
    everything = said()
    assert len(quoted()) > 40
    assert [words for words in quoted() if words.strip(VARIES) not in everything] == []
