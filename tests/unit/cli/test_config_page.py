"""The configuration page: as committed, complete, and true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from _claude_sandbox.cli import config_page, parser
from _claude_sandbox.config import approvals as config_approvals
from _claude_sandbox.config import load as config_load
from _claude_sandbox.config import table as config_table
from _claude_sandbox.system import paths

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "configuration.md").read_text()


def test_the_committed_page_is_the_generated_one() -> None:
    assert config_page.markdown(PAGE) == PAGE, "run scripts/reference"
    assert config_page.markdown(PAGE.replace("| `cpus` |", "| `cpu` |")) == PAGE


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.splitlines() if re.match(r"\| `[a-z.-]+` \|", line)]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_setting_has_a_row_with_all_its_names() -> None:
    table = rows()
    assert list(table) == [row.key for row in config_table.SETTINGS]
    for row in config_table.SETTINGS:
        option, variable, default, in_project, meaning = table[row.key]
        assert re.findall(r"--?[a-z-]+", option) == list(row.flags)
        assert variable.strip("`") == (row.env or "")
        assert default and in_project and meaning
    assert table["memory"][2] == "half of the host's, at most 16GiB"
    assert [table[key][3] for key in ("ports", "disk", "mounts", "proxy")] == [
        "yes",
        "up to `max-disk`",
        "approval",
        "no",
    ]


def test_options_on_the_page_are_those_of_the_parser() -> None:
    flags = {flag for row in rows().values() for flag in re.findall(r"`(--?[a-z-]+)", row[0])}
    assert flags <= set(parser.known_flags())


@pytest.mark.parametrize("which", [0, 1])
def test_the_example_files_are_valid(home: Path, which: int) -> None:
    text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[which]
    (home / "datasets").mkdir()
    project = home / "work" / "app"
    project.mkdir(parents=True)
    (home / "work" / "shared-assets").mkdir()
    file = paths.config_file() if which == 0 else project / config_table.PROJECT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text if which == 0 else text.replace("cpus: 4", "cpus: 1"))
    flags: dict[str, Any] = {"dir": str(project)}
    if which == 1:  # it says that one line asks for approval
        with pytest.raises(config_approvals.ApprovalNeeded) as needed:
            config_load.load(flags, {})
        assert len(needed.value.wants) == 1 and "approval" in text
        config_approvals.approve(project, needed.value.digest)
    loaded = config_load.load(flags, {})
    assert set(loaded.sources) >= {key for key in yaml.safe_load(text) if not key.startswith("max-")}
