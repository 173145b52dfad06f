"""The documents: links lead somewhere, and every command shown is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from _claude_sandbox.cli import parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def commands(text: str) -> list[str]:
    """What stands behind `claude-sandbox` in code blocks and code spans."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split("&&")]
    spans = re.findall(r"`(claude-sandbox [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [
        re.search(r"^\s*(?:\S*/)?claude-sandbox( .*)?$", line.split("#")[0].split("<")[0]) for line in lines
    ]
    return [match[1] or "" for match in found if match] + [
        span.removeprefix("claude-sandbox") for span in spans
    ]


def test_links_lead_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for target, place in re.findall(
            r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")
        ):
            file = document.parent / target if target else document
            if not file.exists():
                broken.append(f"{document.name}: {target}")
            elif place:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                broken += [] if place in map(anchor, headings) else [f"{document.name}: {target}#{place}"]
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_taken(document: Path) -> None:
    for command in commands(document.read_text(encoding="utf-8")):
        if not re.search(r"…|\bVERB\b|\.$", command):
            parser.parse(shlex.split(command))


def test_there_are_commands_to_look_at() -> None:
    readme = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert " prune --orphans    " in readme
    assert len(readme) > 15


def test_cited_facts_are_here() -> None:
    """`facts/lima.md §5` in code or a document is that heading of docs/facts/lima.md."""
    files = [*(ROOT / "_claude_sandbox").rglob("*"), *(ROOT / "tests").rglob("*.py"), *DOCUMENTS]
    missing = []
    for file in files:
        if file.suffix in (".py", ".sh", ".cfg", ".md", ".pl", ".conf", ""):
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            for name, section in re.findall(r"\bfacts/([a-z-]+)\.md(?: (§\d+))?", text):
                page = ROOT / "docs" / "facts" / f"{name}.md"
                if not page.exists() or (
                    section and f"\n## {section} " not in page.read_text(encoding="utf-8")
                ):
                    missing.append(f"{file.relative_to(ROOT)}: facts/{name}.md {section}")
    assert missing == []
