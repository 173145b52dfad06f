"""Plain English: no word on the list of CONTRIBUTING.md in what people read (strings, comments, documents)."""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFUSED = {
    r"(?<!there )\bis no [a-z]": "is not a …, Invalid …",
    r"\banew\b": "again, rebuilt",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\bof ours\b": "our",
    r"\bstands? (in|on|before|behind|at|here|there)\b": "is in, precedes",
    r"\b(is|be|was|were) told\b": "is reported, returned, logged",
    r"\bowed\b": "the balance may go negative",
    r"\bwhat is (too much|left over)\b": "the rest",
    r"\bmost of all\b": "above all",
}
WORDS = re.compile("|".join(f"(?:{pattern})" for pattern in REFUSED), re.IGNORECASE)
# Their bytes are part of a guest image's name: another word in a comment would rebuild everybody's image.
# (tools-vm.yaml is one of them, too.)
HASHED = [("guest", name) for name in ("files", "image", "initrd", "provision")]


def spoken(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what people read: Python's strings and comments, other files' lines."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, middle):
            yield from enumerate(token.string.splitlines(), token.start[0])


def read_files() -> Iterator[tuple[str, Path]]:
    """(folder, file) of all that is read."""
    package = ROOT / "_claude_sandbox"
    for file in sorted(package.rglob("*")):
        parts = file.relative_to(package).parts
        if file.suffix in (".py", ".sh", ".pl", ".yaml") and file.is_file() and parts[:2] not in HASHED:
            yield parts[0], file
    for file in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "claude-sandbox",
        ROOT / "claude_sandbox.py",
        ROOT / "hook.sh",
    ):
        if file.name not in ("CHANGELOG.md", "CONTRIBUTING.md"):
            yield "docs" if file.suffix == ".md" else "top", file


def hits() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder, file in read_files():
        for line, text in spoken(file):
            if match := WORDS.search(text):
                found.setdefault(folder, []).append(
                    f"{file.relative_to(ROOT)}:{line}: {match[0]!r}: {text.strip()[:90]}"
                )
    return found


FOUND = hits()


@pytest.mark.parametrize("folder", sorted({folder for folder, _ in read_files()}))
def test_the_words_are_plain(folder: str) -> None:
    assert FOUND.get(folder, []) == []


def test_the_list_finds_what_it_is_for() -> None:
    for text in (
        "'8 apples' is no size",
        "starts it anew",
        "Mend or remove it",
        "a lock of ours",
        "it stands in lima.yaml",
    ):
        assert WORDS.search(text), text
    assert Counter(
        bool(WORDS.search(t)) for t in ("is not a size", "start it again", "remove it", "our lock")
    ) == {False: 4}
