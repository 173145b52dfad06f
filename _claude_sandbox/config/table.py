"""The settings: a field of `Config` each, with its flags, environment variable, file key, default and help text.

SETTINGS holds the same rows as data: options, completion, `load` and docs/configuration.md are made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from _claude_sandbox.config import parsers
from _claude_sandbox.config.parsers import Mount, Port
from _claude_sandbox.system.lookup import Looked
from _claude_sandbox.system.units import GIB

PROJECT_FILE = ".claude-sandbox.yaml"

# Who may set a row in a project's file, which the guest can write (spec 3.2).
FREE, LIMITED, APPROVAL, NEVER = "free", "limited", "approval", "never"
_PATHS = (parsers.parse_directory, parsers.parse_template, parsers.parse_mounts)


@dataclass(frozen=True)
class Setting:
    """One setting. `field` is its name in Config, `read` its parser (config.parsers).

    Flags without a `metavar` are a switch: they take no value and mean True.
    """

    field: str
    key: str
    read: Callable[..., Any]
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    env: str | None = None
    metavar: str = ""
    in_project: str = NEVER
    repeat: bool = False

    def parse(self, raw: Any, base: Path) -> Any:
        """The value of a text (or YAML value); relative paths start from `base`. Raises ValueError, RuntimeError
        (`~nobody` has no home; a loop of symlinks)."""
        return self.read(raw, base) if self.read in _PATHS else self.read(raw)


def _row(key: str, read: Callable[..., Any], default: Any, *flags: str, **more: Any) -> Any:
    """A field of Config that is a setting."""
    row = {"key": key, "read": read, "default": default, "flags": flags, **more}
    return field(default=default, metadata=row)


# fmt: off
# ruff: noqa: RUF009 - what _row returns is a dataclasses.field
@dataclass(frozen=True)
class Config:
    """What one call of the program was asked for. Sizes in bytes; None: not set by anybody."""

    project: Path
    settings: Path = _row("settings", parsers.parse_directory, None, "-s", "--settings", metavar="DIR",
        env="CLAUDE_SANDBOX_SETTINGS", in_project=APPROVAL,
        help="settings directory shared with sandboxes, read-only")
    clone_from: str | None = _row("clone-from", parsers.parse_vm_name, None, "-c", "--clone-from", metavar="VM",
        env="CLAUDE_SANDBOX_BASE_VM", in_project=APPROVAL,
        help="base VM to clone (default: tools-vm, if it exists)")
    template: str | None = _row("template", parsers.parse_template, None, "-t", "--template", metavar="YAML",
        env="CLAUDE_SANDBOX_TEMPLATE", in_project=APPROVAL,
        help="make the VM from this Lima template instead of a clone (default: template:default)")
    ports: tuple[Port, ...] = _row("ports", parsers.parse_ports, (), "-p", "--ports", metavar="PORTS", in_project=FREE,
        help="ports to forward from 127.0.0.1, HOST:GUEST, comma-separated")
    cpus: int | None = _row("cpus", parsers.parse_cpus, None, "--cpus", metavar="N", in_project=LIMITED,
        help="CPUs of the VM (default: half of the host's)")
    memory: int | None = _row("memory", parsers.parse_memory, None, "--memory", "--mem", metavar="SIZE",
        in_project=LIMITED, help="memory of the VM (default: half of the host's, at most 16GiB)")
    disk: int | None = _row("disk", parsers.parse_disk, None, "--disk", metavar="SIZE", in_project=LIMITED,
        help="disk of the VM; it can only grow (default: the base's)")
    full_clone: bool = _row("full-clone", parsers.parse_switch, False, "--full-clone",
        help="a disk that needs no other file, for people who move VMs around (default: linked to the base's)")
    mounts: tuple[Mount, ...] = _row("mounts", parsers.parse_mounts, (), "--mount", metavar="DIR[:ro]", repeat=True,
        in_project=APPROVAL, help="share another host directory, read-only with :ro (repeatable)")
    voice: bool = _row("voice", parsers.parse_voice, False, "--voice", env="CLAUDE_SANDBOX_VOICE_MODE",
        help="let Claude's /voice record with this host's microphone: docs/voice.md (default: `false`)")
    packages: tuple[str, ...] = _row("packages", parsers.parse_packages, (), in_project=FREE,
        help="packages of the guest's distribution to install when the sandbox is made or next started")
    proxy: bool = _row("proxy", parsers.parse_from_host, False,
        help="`host`: pass the host's proxy variables to the guest")
    ca: bool = _row("ca", parsers.parse_from_host, False, help="`host`: make the guest trust the host's extra CAs")
    hooks: bool = _row("hooks", parsers.parse_on_off, True, env="CLAUDE_SANDBOX_HOOKS",
        help="`off`: do not listen to what Claude reports of itself (default: on)")
    max_cpus: int | None = _row("max-cpus", parsers.parse_cpus, None,
        help="most CPUs that a project file may ask for (default: the host's)")
    max_memory: int | None = _row("max-memory", parsers.parse_memory, None,
        help="most memory that a project file may ask for (default: half of the host's)")
    max_disk: int = _row("max-disk", parsers.parse_disk, 200 * GIB,
        help="largest disk that a project file may ask for")
    notify: tuple[str, ...] = _row("notify", parsers.parse_notify, parsers.NOTIFY_STATES,
        help="what is notified: `on`, `off`, or some of needs_input, failed and done (default: `on`)")
    notify_command: tuple[str, ...] = _row("notify.command", parsers.parse_words, (),
        help="also run this command for each notification, with the event as JSON on stdin: a list of words, or one line")
    notify_quiet: tuple[int, int] | None = _row("notify.quiet", parsers.parse_hours, None,
        help="quiet hours, FROM-UNTIL like `22:00-07:00`: what comes in them is shown at their end if it still waits")
    notify_sound: bool = _row("notify.sound", parsers.parse_on_off, True,
        help="whether notifications make a sound (default: `on`)")
    voice_command: tuple[str, ...] = _row("voice.command", parsers.parse_words, (),
        help="record with this command, which writes raw PCM (16 kHz, mono, signed 16 bit, little-endian) to stdout: "
             "a list of words, or one line")
    # Where each value that somebody set is from, by key: an option, a variable, or FILE:LINE.
    sources: Mapping[str, str] = field(default_factory=dict)
    # How `project`, `settings` and a `template` file were found, by key: where a guest could lead us astray.
    looked: Mapping[str, Looked] = field(default_factory=dict, compare=False, repr=False)
    # The template that a project's file names, as it was approved: never read from the project again.
    template_text: str | None = field(default=None, compare=False, repr=False)

    def given(self, key: str) -> bool:
        """Whether somebody set `key`, rather than our default."""
        return key in self.sources
# fmt: on


SETTINGS = tuple(Setting(each.name, **each.metadata) for each in fields(Config) if each.metadata)
BY_KEY = {row.key: row for row in SETTINGS}
