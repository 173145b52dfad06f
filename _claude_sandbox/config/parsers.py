"""What a user types, checked: ports, mounts, counts, package and VM names (sizes: system/units.py).

Each parser takes the text (or a YAML value) and returns the value or raises ValueError with words that
follow "--option: ". Those of paths get the directory that relative ones start from, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from _claude_sandbox.system.lookup import Looked, look
from _claude_sandbox.system.units import GIB, MIB, TIB, parse_size

_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)  # Lima's rule for instances
_LOCATOR = re.compile(r"(template|https?|github|oci):")  # what Lima resolves
NOTIFY_STATES = ("needs_input", "failed", "done")


@dataclass(frozen=True, order=True)
class Port:
    """A TCP port of the host's 127.0.0.1 that leads to one in the guest."""

    host: int
    guest: int

    def __str__(self) -> str:
        return f"{self.host}:{self.guest}"


@dataclass(frozen=True)
class Mount:
    """A host directory that the user shares besides the project, and how it was found (system/lookup.py)."""

    path: Path
    writable: bool = True
    looked: Looked | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.path) if self.writable else f"{self.path}:ro"


def _invalid(what: str, value: object, use: str) -> ValueError:
    return ValueError(f"invalid {what} {value!r}; use {use}")


# -- numbers and names ---------------------------------------------------------------------------


def parse_memory(value: object) -> int:
    return parse_size(value, 512 * MIB, 8 * TIB)


def parse_disk(value: object) -> int:
    return parse_size(value, GIB)


def parse_cpus(value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= 1024:
        raise _invalid("number of CPUs", value, "1 to 1024")
    return int(text)


def parse_ports(value: object) -> tuple[Port, ...]:
    """`80:8080,9090` (host:guest; one number is both), or a YAML list of such."""
    ports: dict[int, Port] = {}
    for item in _items(value):
        match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", item, re.ASCII)
        host, guest = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not (1 <= host <= 65535 and 1 <= guest <= 65535):
            raise _invalid("port", item, "HOST:GUEST, like 80:8080 or 9090 (1 to 65535)")
        if ports.get(host, Port(host, guest)).guest != guest:
            raise ValueError(f"host port {host} is asked for twice")
        ports[host] = Port(host, guest)
    if not ports:
        raise _invalid("port", "", "HOST:GUEST, like 80:8080")
    return tuple(sorted(ports.values()))


def parse_vm_name(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not _NAME.fullmatch(text) or len(text) > 76:
        raise _invalid("VM name", value, "letters, digits and single . _ - between them")
    return text


def parse_packages(value: object) -> tuple[str, ...]:
    """Names of the guest distribution's packages."""
    names = tuple(dict.fromkeys(_items(value)))
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{0,100}", name, re.ASCII):
            raise _invalid("package name", name, "the distribution's, like ripgrep")
    return names


def parse_hours(value: object) -> tuple[int, int]:
    """`22:00-07:00` -> minutes of the day, from and until."""
    match = re.fullmatch(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)", str(value).strip(), re.ASCII)
    h1, m1, h2, m2 = map(int, match.groups()) if match else (99, 0, 0, 0)
    if h1 > 23 or h2 > 23 or m1 > 59 or m2 > 59 or (h1, m1) == (h2, m2):
        raise _invalid("hours", value, "FROM-UNTIL, like 22:00-07:00")
    return h1 * 60 + m1, h2 * 60 + m2


# -- choices -------------------------------------------------------------------------------------


def parse_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise _invalid("value", value, "true or false")
    return value


def parse_on_off(value: object) -> bool:
    """`on` or `off`, which YAML itself reads as true and false."""
    found = {"on": True, "off": False, "true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise _invalid("value", value, "on or off")
    return found


def parse_voice(value: object) -> bool:
    """true or false, in any case: from a flag, a file, or CLAUDE_SANDBOX_VOICE_MODE."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise _invalid("value", value, "true or false")
    return text == "true"


def parse_from_host(value: object) -> bool:
    """`host` or `none`: whether a host setting is passed on to the guest."""
    if value not in ("host", "none", None):
        raise _invalid("value", value, "host or none")
    return value == "host"


def parse_notify(value: object) -> tuple[str, ...]:
    """`on`, `off`, or the states of a Claude session that are notified: needs_input, failed, done."""
    if value in (True, "on"):
        return NOTIFY_STATES
    if value in (False, "off"):
        return ()
    states = tuple(dict.fromkeys(_items(value)))
    if not states or not set(states) <= set(NOTIFY_STATES):
        raise _invalid("value", value, f"on, off, or some of {', '.join(NOTIFY_STATES)}")
    return states


def parse_words(value: object) -> tuple[str, ...]:
    """A command: a YAML list of its words, or one text that is split as a shell would, and run without one."""
    import shlex

    words = shlex.split(value) if isinstance(value, str) else value if isinstance(value, list) else []
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise _invalid("command", value, "a list of words, or one line")
    return tuple(words)


# -- paths ---------------------------------------------------------------------------------------


def parse_directory(value: object, base: Path) -> Looked:
    """A path as a user writes it, from `base`; `~` is the home directory. Raises RuntimeError, too."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise _invalid("path", value, "a directory's")
    return look(base / Path(value).expanduser())


def parse_template(value: object, base: Path) -> str | Looked:
    """A file, however it is written, or a locator that Lima resolves: a guest must not pass one off as the other."""
    text = value if isinstance(value, str) else ""
    is_locator = _LOCATOR.match(text)
    unsafe = text.startswith("-") or any(ord(c) < 32 for c in text)
    if not text or unsafe or (text.startswith("template:") and ".." in text):
        raise ValueError(f"{value!r} is not a template; use a YAML file or template:NAME")
    return text if is_locator else parse_directory(text.removeprefix("file://"), base)


def parse_mounts(value: object, base: Path) -> tuple[Mount, ...]:
    """`DIR`, `DIR:ro` or `DIR:rw`, or a list of such."""
    items = value if isinstance(value, list) else [value]
    return tuple(_mount(item, base) for item in items)


def _mount(text: object, base: Path) -> Mount:
    if not isinstance(text, str):
        raise _invalid("mount", text, "DIR or DIR:ro")
    path = text.removesuffix(":ro") if text.endswith(":ro") else text.removesuffix(":rw")
    if not path:
        raise _invalid("mount", text, "DIR or DIR:ro")
    looked = look(base / Path(path).expanduser())
    if not looked.real.is_dir():
        raise ValueError(f"no such directory: {looked.real}")
    return Mount(looked.real, not text.endswith(":ro"), looked)


def _items(value: object) -> Iterable[str]:
    values = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in values if str(item).strip()]
