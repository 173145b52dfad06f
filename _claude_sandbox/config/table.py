"""The settings: one row each, and how a value is chosen among the places that may set it.

A row says its flags, environment variable, file key, default and help text. The precedence is
numbered in `load`. `docs/configuration.md` is generated from the table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _claude_sandbox.config import parsers
from _claude_sandbox.config.approvals import Wishes
from _claude_sandbox.config.parsers import Mount, Port
from _claude_sandbox.config.yaml_file import Entry, parse, read, text_of
from _claude_sandbox.errors import ClaudeSandboxError, ConfigError, UsageError
from _claude_sandbox.system import paths
from _claude_sandbox.system.lookup import Looked, look

PROJECT_FILE = ".claude-sandbox.yaml"

# Who may set a row in a project's file, which the guest can write (spec 3.2).
FREE, LIMITED, APPROVAL, NEVER = "free", "limited", "approval", "never"


@dataclass(frozen=True)
class Setting:
    """One setting. `parse` gets the text (or YAML value) and the directory that paths start from.

    Flags without a `metavar` are a switch: they take no value and stand for True.
    """

    key: str
    parse: Callable[[Any, Path], Any]
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    env: str | None = None
    metavar: str = ""
    in_project: str = FREE
    repeat: bool = False
    in_files: bool = True

    @property
    def field(self) -> str:
        return self.key.replace("-", "_").replace(".", "_")


def _plain(parse: Callable[[Any], Any]) -> Callable[[Any, Path], Any]:
    return lambda value, _base: parse(value)


def _directory(value: Any, base: Path) -> Looked:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is no directory")
    return parsers.look_up(value, base)


def _template(value: Any, base: Path) -> str | Looked:
    """A file, however it is written, or a locator that Lima resolves: a guest must not pass one off as the other."""
    text = parsers.parse_template(value)
    if not re.match(r"(template|https?|github|oci):", text):
        return _directory(text.removeprefix("file://"), base)
    if text.startswith("template:") and ".." in text:
        raise ValueError(f"{value!r} is not a template; write a YAML file or template:NAME")
    return text


def _mounts(value: Any, base: Path) -> tuple[Mount, ...]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError("write a list of DIR or DIR:ro")
    return tuple(parsers.parse_mount(item, base) for item in items)


SETTINGS = (
    Setting("settings", _directory, None, "settings directory shared with sandboxes, read-only",
            ("-s", "--settings"), "CLAUDE_SANDBOX_SETTINGS", "DIR", APPROVAL),
    Setting("clone-from", _plain(parsers.parse_vm_name), None, "base VM to clone (default: tools-vm, if it exists)",
            ("-c", "--clone-from"), "CLAUDE_SANDBOX_BASE_VM", "VM", APPROVAL),
    Setting("template", _template, None, "make the VM from this Lima template instead of a clone "
            "(default: template:default)",
            ("-t", "--template"), "CLAUDE_SANDBOX_TEMPLATE", "YAML", APPROVAL),
    Setting("ports", _plain(parsers.parse_ports), (), "ports to forward from 127.0.0.1, HOST:GUEST, comma-separated",
            ("-p", "--ports"), None, "PORTS", FREE),
    Setting("cpus", _plain(parsers.parse_cpus), None, "CPUs of the VM (default: half of the host's)",
            ("--cpus",), None, "N", LIMITED),
    Setting("memory", _plain(parsers.parse_memory), None, "memory of the VM (default: half of the host's, "
            "at most 16GiB)", ("--memory", "--mem"), None, "SIZE", LIMITED),
    Setting("disk", _plain(parsers.parse_disk), None, "disk of the VM; it can only grow (default: the base's)",
            ("--disk",), None, "SIZE", LIMITED),
    Setting("full-clone", _plain(parsers.parse_switch), False, "a disk that needs no other file, for people who "
            "move VMs around (default: linked to the base's)", ("--full-clone",), in_project=NEVER),
    Setting("mounts", _mounts, (), "share another host directory, read-only with :ro (repeatable)",
            ("--mount",), None, "DIR[:ro]", APPROVAL, repeat=True),
    Setting("voice", _plain(parsers.parse_voice), False, "let Claude's /voice record with this host's microphone: "
            "docs/voice.md (default: `false`)", ("--voice",), "CLAUDE_SANDBOX_VOICE_MODE", in_project=NEVER),
    Setting("packages", _plain(parsers.parse_packages), (), "packages of the guest's distribution to install "
            "when the sandbox is made or next started"),
    Setting("proxy", _plain(parsers.parse_from_host), False, "`host`: pass the host's proxy variables to the guest",
            in_project=NEVER),
    Setting("ca", _plain(parsers.parse_from_host), False, "`host`: make the guest trust the host's extra CAs",
            in_project=NEVER),
    Setting("hooks", _plain(parsers.parse_on_off), True, "`off`: do not listen to what Claude tells of itself "
            "(default: on)", env="CLAUDE_SANDBOX_HOOKS", in_project=NEVER),
    Setting("max-cpus", _plain(parsers.parse_cpus), None, "most CPUs that a project file may ask for "
            "(default: the host's)", in_project=NEVER),
    Setting("max-memory", _plain(parsers.parse_memory), None, "most memory that a project file may ask for "
            "(default: half of the host's)", in_project=NEVER),
    Setting("max-disk", _plain(parsers.parse_disk), 200 * parsers.GIB, "largest disk that a project file may ask for",
            in_project=NEVER),
    Setting("notify", _plain(parsers.parse_notify), parsers.NOTIFY_STATES, "what is notified: `on`, `off`, or some of "
            "needs_input, failed and done (default: `on`)", in_project=NEVER),
    Setting("notify.command", _plain(parsers.parse_words), (), "also run this command for each notification, with the "
            "event as JSON on stdin: a list of words, or one line", in_project=NEVER),
    Setting("notify.quiet", _plain(parsers.parse_hours), None, "quiet hours, FROM-UNTIL like `22:00-07:00`: what comes in "
            "them is shown at their end if it still waits", in_project=NEVER),
    Setting("notify.sound", _plain(parsers.parse_on_off), True, "whether notifications make a sound (default: `on`)",
            in_project=NEVER),
    Setting("voice.command", _plain(parsers.parse_words), (), "record with this command, which writes raw PCM (16 kHz, "
            "mono, signed 16 bit, little-endian) to stdout: a list of words, or one line", in_project=NEVER),
)  # fmt: skip
BY_KEY = {row.key: row for row in SETTINGS}


@dataclass(frozen=True)
class Config:
    """What one call of the program was asked for. Sizes in bytes; None: not set by anybody."""

    project: Path
    settings: Path
    clone_from: str | None = None
    template: str | None = None
    ports: tuple[Port, ...] = ()
    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    full_clone: bool = False
    mounts: tuple[Mount, ...] = ()
    packages: tuple[str, ...] = ()
    proxy: bool = False
    ca: bool = False
    hooks: bool = True
    notify: tuple[str, ...] = parsers.NOTIFY_STATES
    notify_command: tuple[str, ...] = ()
    notify_quiet: tuple[int, int] | None = None
    notify_sound: bool = True
    voice: bool = False
    voice_command: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    # How `project`, `settings` and a `template` file were found, by key: where a guest could lead us astray.
    looked: Mapping[str, Looked] = field(default_factory=dict, compare=False, repr=False)
    # The template that a project's file names, as it was approved: never read from the project again.
    template_text: str | None = field(default=None, compare=False, repr=False)

    def given(self, key: str) -> bool:
        """Whether somebody set `key`, rather than our default."""
        return key in self.sources


def project_directory(text: str | None) -> Path:
    """The project's resolved path. Raises ClaudeSandboxError "Directory not found: …"."""
    try:
        given = Path(text).expanduser() if text else Path.cwd()
        path = given.resolve()
        found = path.is_dir()
    except FileNotFoundError:  # the current directory was removed
        raise ClaudeSandboxError("Directory not found: the current directory is gone.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ClaudeSandboxError(f"Directory not found: {text}", details=str(error)) from error
    if not found:
        raise ClaudeSandboxError(f"Directory not found: {given}")
    return path


def load(
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    *,
    project: Path | None = None,
    project_file: bool = True,
) -> Config:
    """Choose each setting's value. `flags` holds parsed options by key (only those given), and `dir`.

    `project` is what `project_directory` made of `dir`. Without `project_file` as if the project had none.
    Raises UsageError (flag, environment), ConfigError (file) and ApprovalNeeded.
    """
    project = project or project_directory(flags.get("dir"))
    in_user = read(paths.config_file())
    file = project / PROJECT_FILE
    # Read once: a guest that writes the file meanwhile must not get approved what was not looked at.
    wishes = Wishes(file, text_of(file, hostile=True) if project_file else "")
    in_project = parse(wishes.text, file)
    chosen: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _reject_unknown(paths.config_file(), in_user)
    _reject_unknown(file, in_project)
    for row in SETTINGS:
        if flags.get(row.key) is not None:  # 1. the command line
            raw, source, base = flags[row.key], next(f for f in row.flags if f.startswith("--")), Path.cwd()
        elif row.env and environ.get(row.env):  # 2. the environment
            raw, source, base = environ[row.env], row.env, Path.cwd()
        elif row.key in in_project:  # 3. the project's file, as far as it may
            entry, base = in_project[row.key], project
            raw, source = entry.value, f"{file}:{entry.line}"
            if row.in_project == NEVER:
                raise ConfigError(f"{source}: {row.key} can only be set in {paths.config_file()}.")
        elif row.key in in_user:  # 4. the user's file
            entry, base = in_user[row.key], paths.config_file().parent
            raw, source = entry.value, f"{paths.config_file()}:{entry.line}"
        else:  # 5. the default
            chosen[row.field] = row.default
            continue
        chosen[row.field] = _parse(row, raw, base, source)
        sources[row.key] = source
        if source.startswith(f"{file}:") and row.in_project == APPROVAL:
            wishes.add(row.key, raw, chosen[row.field], source)
    wishes.check()
    looked = {key: value for key, value in chosen.items() if isinstance(value, Looked)}
    looked["project"] = _project_looked(flags.get("dir"), environ, project)
    chosen |= {key: value.real for key, value in looked.items() if key == "settings"}
    chosen |= {key: str(value.real) for key, value in looked.items() if key == "template"}
    return _checked(project, chosen, sources, looked=looked, template_text=wishes.template_text)


def load_leniently(
    flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, project: Path | None = None
) -> tuple[Config, ConfigError | None]:
    """As `load`; without the project's file when that is broken or not approved, and what is wrong with it.

    For what needs nothing of that file, which a guest can write. Raises UsageError, and ConfigError for the
    user's own file.
    """
    try:
        return load(flags, environ, project=project), None
    except ConfigError as error:
        return load(flags, environ, project=project, project_file=False), error


def _project_looked(text: str | None, environ: Mapping[str, str], project: Path) -> Looked:
    """The way to the project as the user wrote it; the current directory as the shell calls it."""
    here = Path(environ.get("PWD") or "/")
    try:
        current = Path.cwd()
        if not here.is_absolute() or not here.samefile(current):
            here = current
        found = look(here / Path(text).expanduser()) if text else look(here)
    except (OSError, ValueError, RuntimeError):
        return look(project)
    return found if found.real == project else look(project)


def check_flags(flags: Mapping[str, Any]) -> None:
    """The values on the command line alone: no file is read. Raises UsageError."""
    for row in SETTINGS:
        if flags.get(row.key) is not None:
            _parse(row, flags[row.key], Path.cwd(), next(f for f in row.flags if f.startswith("--")))


def users_own(prefix: str) -> dict[str, Any]:
    """The settings whose key starts with `prefix`, by field, from the user's file alone (no project is at hand).

    Raises ConfigError.
    """
    user_file = read(paths.config_file())
    _reject_unknown(paths.config_file(), user_file)
    found = {}
    for row in SETTINGS:
        if row.key.startswith(prefix):
            entry = user_file.get(row.key)
            where = f"{paths.config_file()}:{entry.line}" if entry else ""
            base = paths.config_file().parent
            value = row.default if entry is None else _parse(row, entry.value, base, where)
            found[row.field] = value.real if isinstance(value, Looked) else value
    return found


def _parse(row: Setting, raw: Any, base: Path, source: str) -> Any:
    try:
        return row.parse(raw, base)
    except (ValueError, RuntimeError) as error:  # RuntimeError: `~nobody` has no home, a loop of symlinks
        if ":" in source:
            raise ConfigError(f"{source}: {row.key}: {error}.") from error
        raise UsageError(f"{source}: {error}.") from error


def _checked(project: Path, chosen: dict[str, Any], sources: dict[str, str], **more: Any) -> Config:
    """The rules that look at more than one setting."""
    limits = {key: chosen.pop(f"max_{key}") for key in ("cpus", "memory", "disk")}
    for key, limit in limits.items():
        most = limit if limit is not None else _host_limit(key) if key in sources else None
        from_project = sources.get(key, "").startswith(f"{project / PROJECT_FILE}:")
        if from_project and most is not None and chosen[key] > most:
            shown = most if key == "cpus" else parsers.format_size(most)
            raise ConfigError(
                f"{sources[key]}: {key} is more than {shown}, which a project file may ask for.",
                resolution=f"Allow more with `max-{key}` in {paths.config_file()}, or use --{key}.",
            )
    if "template" in sources and "clone-from" in sources:
        first, second = sources["clone-from"], sources["template"]
        if first.startswith("--") == second.startswith("--"):
            raise UsageError(
                f"A VM is made from a base VM or from a template: {first} and {second} are both set."
            )
        # The command line beats what a file or the environment says of the other one.
        loser = "template" if first.startswith("--") else "clone-from"
        chosen[loser.replace("-", "_")] = None
        del sources[loser]
    if chosen["settings"] is None:
        chosen["settings"] = paths.default_settings()
    return Config(project, **chosen, sources=sources, **more)


def _host_limit(key: str) -> int:
    import psutil

    if key == "cpus":
        return os.cpu_count() or 1
    return int(psutil.virtual_memory().total // 2)


def _reject_unknown(file: Path, entries: Mapping[str, Entry]) -> None:
    for key, entry in entries.items():
        row = BY_KEY.get(key)
        if row is None or not row.in_files:
            import difflib

            near = difflib.get_close_matches(key, BY_KEY, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(sorted(BY_KEY))}."
            raise ConfigError(f"{file}:{entry.line}: unknown key {key!r}.{hint}")
