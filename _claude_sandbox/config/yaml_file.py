"""Reading a YAML configuration file with the line of every key.

The project's file may come from a hostile guest: it is opened without following a symlink, its size
and depth are bounded, and YAML aliases (which can grow without limit) are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import ConfigError

SIZE_LIMIT = 64 * 1024  # bytes
DEPTH_LIMIT = 8  # PyYAML needs quadratic time for deep nesting: 64 KiB of `[` would hang us for minutes


@dataclass(frozen=True)
class Entry:
    """One key's value with its line, counted from 1."""

    value: Any
    line: int


def read(file: Path, *, hostile: bool = False) -> Mapping[str, Entry]:
    """The top-level keys of `file`; empty when there is none. Raises ConfigError `FILE:LINE: …`."""
    return parse(text_of(file, hostile=hostile), file)


def parse(text: str, file: Path) -> Mapping[str, Entry]:
    """The top-level keys of a text that was read from `file`. Raises ConfigError `FILE:LINE: …`."""
    if not text.strip():
        return {}
    import yaml

    try:
        _check_shape(text, file)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{file}:{root.start_mark.line + 1}: expected `key: value` lines.")
        return _entries(loader, root, file)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{file}:{line}: {getattr(error, 'problem', None) or 'not YAML'}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}:1: not YAML: {error}.") from error


def _check_shape(text: str, file: Path) -> None:
    """Refuse aliases and deep nesting before a node is made."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{file}:{line}: YAML aliases (*name) are not allowed here.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_LIMIT:
            raise ConfigError(f"{file}:{line}: nested deeper than {DEPTH_LIMIT}.")


def _entries(loader: Any, root: Any, file: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for key_node, value_node in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in entries:
            raise ConfigError(f"{file}:{line}: duplicate key: {key}.")
        _no_sexagesimals(value_node)
        entries[key] = Entry(_value(loader, value_node, f"{file}:{line}: {key}"), line)
    return entries


def _value(loader: Any, node: Any, where: str) -> Any:
    """The value of a node. Raises ConfigError that begins with `where`."""
    try:
        return loader.construct_object(node, deep=True)
    # PyYAML's constructors raise these besides YAMLError, for `!!bool x`, `!!timestamp x` or `!!int ""`.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        raise ConfigError(
            f"{where}: the value cannot be read as YAML ({kind}).",
            resolution="Put it in quotes, and leave out tags such as `!!timestamp`.",
        ) from error


def _no_sexagesimals(node: Any) -> None:
    """YAML 1.1 reads `1000:22` as the number 60022: here it is a text, two ports."""
    if isinstance(node.value, list):
        for child in node.value:
            for one in child if isinstance(child, tuple) else (child,):
                _no_sexagesimals(one)
    elif ":" in node.value and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        node.tag = "tag:yaml.org,2002:str"


def text_of(file: Path, *, hostile: bool = False) -> str:
    """The file's text, "" when there is none; `hostile`: a symlink is not followed. Raises ConfigError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if hostile else 0)
    try:
        fd = os.open(file, flags)
    except FileNotFoundError:
        return ""
    except OSError as error:
        why = "it is a symlink" if hostile and file.is_symlink() else error.strerror
        raise ConfigError(f"{file}:1: cannot be read: {why}.") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{file}:1: cannot be read: it is not a regular file.")
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise ConfigError(f"{file}:1: larger than {SIZE_LIMIT // 1024} KiB.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8.") from error
