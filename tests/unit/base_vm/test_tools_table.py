"""docs/tools-vm.md holds the table of base_vm/catalogue.py. Run as a program, this file writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "tools-vm.md"
BEGIN, END = "<!-- tools -->\n", "<!-- /tools -->"


def table() -> str:
    """The rows, in the order of base_vm/catalogue.py."""
    from _claude_sandbox.base_vm.catalogue import TOOLS, Source

    def cell(source: Source | None) -> str:
        if source is None:
            return "–"
        return source.origin + (f" ({source.least})" if source.least else "")

    rows = [f"| {tool.name} | {tool.group} | {cell(tool.ubuntu)} | {cell(tool.packages)} |" for tool in TOOLS]
    head = ["| tool | group | on the Ubuntu cloud image | from packages |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def test_the_document_has_the_table_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == table(), f"run: python {__file__}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
