"""The table in docs/configuration.md, made from the settings table; `scripts/reference` writes it, a test compares."""

from __future__ import annotations

import re

from _claude_sandbox.config.table import APPROVAL, FREE, LIMITED, NEVER, SETTINGS, Setting
from _claude_sandbox.system import units

_IN_PROJECT = {FREE: "yes", LIMITED: "up to `max-{key}`", APPROVAL: "approval", NEVER: "no"}


def markdown(page: str) -> str:
    """`page` with its table of settings made from the settings table; its other text stays."""
    rows = [
        ("key", "option", "variable", "default", "in a project's file", "meaning"),
        ("---",) * 6,
        *(_row(setting) for setting in SETTINGS),
    ]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return re.sub(r"^\| key \|.*\n(?:\|.*\n)*", lambda _: table, page, count=1, flags=re.MULTILINE)


def _row(setting: Setting) -> tuple[str, ...]:
    meaning, default = _split_default(setting.help)
    return (
        _code(setting.key),
        ", ".join(_code(f"{flag} {setting.metavar}".rstrip()) for flag in setting.flags),
        _code(setting.env) if setting.env else "",
        default or _default(setting),
        _IN_PROJECT[setting.in_project].format(key=setting.key),
        meaning[:1].upper() + meaning[1:],
    )


def _split_default(text: str) -> tuple[str, str]:
    """A help text without its `(default: …)`, and that default."""
    match = re.search(r" ?\(default: (.*?)\)", text)
    return (text.replace(match[0], ""), match[1]) if match else (text, "")


def _default(setting: Setting) -> str:
    if setting.key == "settings":
        return "`~/.claude-sandbox/.claude`"
    if isinstance(setting.default, bool):
        return "`host`" if setting.default else "`none`"
    return _code(units.format_size(setting.default)) if isinstance(setting.default, int) else "none"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"
