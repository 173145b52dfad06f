"""What a user types, checked: sizes, ports, mounts, counts, package and VM names.

Each parser takes the text (or a YAML value) and returns the value or raises ValueError with a
sentence that can stand behind "--option: ".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from _claude_sandbox.system.lookup import Looked, look

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
_UNITS = {"": 1, "k": 1 << 10, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)  # Lima's rule for instances


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


def parse_size(value: object, least: int, most: int = 64 * TIB) -> int:
    """`8GiB`, `8G`, `512MiB` -> bytes (units are binary, as Lima's are), from 1 MiB on in whole MiB.

    Whole, because the VM's file says them so: what is asked for again must equal what was written.
    """
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is no size; write 8GiB or 512MiB")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    size = round(size / MIB) * MIB if size >= MIB else size
    if not least <= size <= most:
        raise ValueError(f"{value} is out of range; {format_size(least)} to {format_size(most)} is possible")
    return size


def parse_memory(value: object) -> int:
    return parse_size(value, 512 * MIB, 8 * TIB)


def parse_disk(value: object) -> int:
    return parse_size(value, GIB)


def format_size(size: int) -> str:
    """Bytes as Lima writes them: `8GiB`, `1536MiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{round(size / MIB)}MiB" if size >= MIB else f"{size}B"


def parse_cpus(value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= 1024:
        raise ValueError(f"{value!r} is no number of CPUs; 1 to 1024 is possible")
    return int(text)


def parse_ports(value: object) -> tuple[Port, ...]:
    """`80:8080,9090` (host:guest; one number is both), or a YAML list of such."""
    ports: dict[int, Port] = {}
    for item in _items(value):
        match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", item, re.ASCII)
        host, guest = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not (1 <= host <= 65535 and 1 <= guest <= 65535):
            raise ValueError(f"{item!r} is no port; write HOST:GUEST, like 80:8080 or 9090 (1 to 65535)")
        if ports.get(host, Port(host, guest)).guest != guest:
            raise ValueError(f"host port {host} is asked for twice")
        ports[host] = Port(host, guest)
    if not ports:
        raise ValueError("no port in it; write HOST:GUEST, like 80:8080")
    return tuple(sorted(ports.values()))


def parse_mount(text: str, base: Path) -> Mount:
    """`DIR`, `DIR:ro` or `DIR:rw`; relative to `base`, `~` is the home directory."""
    path, writable = text, True
    for suffix, mode in ((":ro", False), (":rw", True)):
        if text.endswith(suffix):
            path, writable = text[: -len(suffix)], mode
    if not path:
        raise ValueError("no directory in it; write DIR or DIR:ro")
    looked = look_up(path, base)
    if not looked.real.is_dir():
        raise ValueError(f"no such directory: {looked.real}")
    return Mount(looked.real, writable, looked)


def look_up(path: str, base: Path) -> Looked:
    """A path as a user writes it, from `base`; `~` is the home directory. Raises ValueError, RuntimeError."""
    return look(base / Path(path).expanduser())


def parse_vm_name(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not _NAME.fullmatch(text) or len(text) > 76:
        raise ValueError(f"{value!r} is no VM name; letters, digits and single . _ - between them")
    return text


def parse_template(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not text or text.startswith("-") or any(ord(c) < 32 for c in text):
        raise ValueError(f"{value!r} is not a template; write a YAML file or template:NAME")
    return text


def parse_packages(value: object) -> tuple[str, ...]:
    """Names of the guest distribution's packages."""
    names = tuple(dict.fromkeys(_items(value)))
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{0,100}", name, re.ASCII):
            raise ValueError(f"{name!r} is no package name")
    return names


def parse_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not known; write true or false")
    return value


def parse_on_off(value: object) -> bool:
    """`on` or `off`, which YAML itself reads as true and false."""
    words = {"on": True, "off": False, "true": True, "false": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError(f"{value!r} is not known; write on or off")
    return found


def parse_voice(value: object) -> bool:
    """true or false, in any case: from a flag, a file, or CLAUDE_SANDBOX_VOICE_MODE."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ValueError(f"{value!r} is not known; write true or false")
    return text == "true"


def parse_from_host(value: object) -> bool:
    """`host` or `none`: whether a host setting is passed on to the guest."""
    if value not in ("host", "none", None):
        raise ValueError(f"{value!r} is not known; write host or none")
    return value == "host"


NOTIFY_STATES = ("needs_input", "failed", "done")


def parse_notify(value: object) -> tuple[str, ...]:
    """`on`, `off`, or the states of a Claude session that are told: needs_input, failed, done."""
    if value in (True, "on") or value in (False, "off"):
        return NOTIFY_STATES if value in (True, "on") else ()
    states = tuple(dict.fromkeys(_items(value)))
    if not states or not set(states) <= set(NOTIFY_STATES):
        raise ValueError(f"{value!r} is not known; write on, off, or some of {', '.join(NOTIFY_STATES)}")
    return states


def parse_words(value: object) -> tuple[str, ...]:
    """A command: a YAML list of its words, or one text that is split as a shell would, and run without one."""
    import shlex

    words = (
        tuple(value)
        if isinstance(value, list)
        else tuple(shlex.split(value))
        if isinstance(value, str)
        else ()
    )
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise ValueError(f"{value!r} is no command; write a list of words, or one line")
    return words


def parse_hours(value: object) -> tuple[int, int]:
    """`22:00-07:00` -> minutes of the day, from and until."""
    match = re.fullmatch(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)", str(value).strip(), re.ASCII)
    h1, m1, h2, m2 = map(int, match.groups()) if match else (99, 0, 0, 0)
    if h1 > 23 or h2 > 23 or m1 > 59 or m2 > 59 or (h1, m1) == (h2, m2):
        raise ValueError(f"{value!r} is no time of the day; write FROM-UNTIL, like 22:00-07:00")
    return h1 * 60 + m1, h2 * 60 + m2


def _items(value: object) -> Iterable[str]:
    values = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in values if str(item).strip()]
