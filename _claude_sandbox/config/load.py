"""How a setting's value is chosen among the places that may set it; the precedence is numbered in `_Places.find`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _claude_sandbox.config.approvals import Wishes
from _claude_sandbox.config.table import APPROVAL, BY_KEY, NEVER, PROJECT_FILE, SETTINGS, Config, Setting
from _claude_sandbox.config.yaml_file import Entry, parse, read, text_of
from _claude_sandbox.errors import ClaudeSandboxError, ConfigError, UsageError
from _claude_sandbox.system import paths
from _claude_sandbox.system.lookup import Looked, look
from _claude_sandbox.system.units import format_size


@dataclass(frozen=True)
class _Given:
    """A value as somebody wrote it; relative paths in it start from `base`."""

    raw: Any
    source: str  # an option, a variable, or FILE:LINE
    base: Path
    in_project: bool = False


@dataclass(frozen=True)
class _Places:
    """Where a value may be set. Nothing but the user's file by default."""

    flags: Mapping[str, Any]
    environ: Mapping[str, str]
    project_file: Path
    in_project: Mapping[str, Entry]
    in_user: Mapping[str, Entry]

    def find(self, row: Setting) -> _Given | None:
        """The first that has a value; None leaves the default. Raises ConfigError."""
        if self.flags.get(row.key) is not None:  # 1. the command line
            return _from_flag(row, self.flags)
        if row.env and self.environ.get(row.env):  # 2. the environment
            return _Given(self.environ[row.env], row.env, Path.cwd())
        if entry := self.in_project.get(row.key):  # 3. the project's file, as far as it may
            if row.in_project == NEVER:
                where = f"{self.project_file}:{entry.line}"
                raise ConfigError(f"{where}: {row.key} can only be set in {paths.config_file()}.")
            return _from_file(self.project_file, entry, in_project=True)
        entry = self.in_user.get(row.key)  # 4. the user's file
        return _from_file(paths.config_file(), entry) if entry else None


def _from_flag(row: Setting, flags: Mapping[str, Any]) -> _Given:
    return _Given(flags[row.key], next(f for f in row.flags if f.startswith("--")), Path.cwd())


def _from_file(file: Path, entry: Entry, *, in_project: bool = False) -> _Given:
    return _Given(entry.value, f"{file}:{entry.line}", file.parent, in_project)


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
    file = project / PROJECT_FILE
    # Read once: a guest that writes the file meanwhile must not get approved what was not looked at.
    wishes = Wishes(file, text_of(file, hostile=True) if project_file else "")
    places = _Places(flags, environ, file, _known(file, parse(wishes.text, file)), _users_file())
    given = {row: found for row in SETTINGS if (found := places.find(row))}
    values = {row: _parse(row, found) for row, found in given.items()}
    for row, found in given.items():
        if found.in_project and row.in_project == APPROVAL:
            wishes.add(row.key, found.raw, values[row], found.source)
    wishes.check()
    looked = {row.key: value for row, value in values.items() if isinstance(value, Looked)}
    looked["project"] = _project_looked(flags.get("dir"), environ, project)
    config = Config(
        project,
        **{row.field: _resolved(row, value) for row, value in values.items()},
        sources={row.key: found.source for row, found in given.items()},
        looked=looked,
        template_text=wishes.template_text,
    )
    _check_limits(config)
    config = _base_or_template(config)
    return config if config.given("settings") else replace(config, settings=paths.default_settings())


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


def check_flags(flags: Mapping[str, Any]) -> None:
    """The values on the command line alone: no file is read. Raises UsageError."""
    for row in SETTINGS:
        if flags.get(row.key) is not None:
            _parse(row, _from_flag(row, flags))


def users_own(prefix: str) -> dict[str, Any]:
    """The settings whose key starts with `prefix`, by field, from the user's file alone (there is no project).

    Raises ConfigError.
    """
    places = _Places({}, {}, Path(), {}, _users_file())
    rows = [row for row in SETTINGS if row.key.startswith(prefix)]
    given = {row: places.find(row) for row in rows}
    return {
        row.field: _resolved(row, _parse(row, found)) if found else row.default
        for row, found in given.items()
    }


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


# -- the steps of load ---------------------------------------------------------------------------


def _users_file() -> Mapping[str, Entry]:
    return _known(paths.config_file(), read(paths.config_file()))


def _known(file: Path, entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries, all of which are settings. Raises ConfigError."""
    for key, entry in entries.items():
        if key not in BY_KEY:
            import difflib

            near = difflib.get_close_matches(key, BY_KEY, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(sorted(BY_KEY))}."
            raise ConfigError(f"{file}:{entry.line}: unknown key {key!r}.{hint}")
    return entries


def _parse(row: Setting, given: _Given) -> Any:
    try:
        return row.parse(given.raw, given.base)
    except (ValueError, RuntimeError) as error:
        if ":" in given.source:
            raise ConfigError(f"{given.source}: {row.key}: {error}.") from error
        raise UsageError(f"{given.source}: {error}.") from error


def _resolved(row: Setting, value: Any) -> Any:
    """A path that was looked up, as Config has it."""
    if not isinstance(value, Looked):
        return value
    return str(value.real) if row.key == "template" else value.real


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


def _check_limits(config: Config) -> None:
    """What a project's file asks for stays within the user's limits. Raises ConfigError."""
    for key in ("cpus", "memory", "disk"):
        source = config.sources.get(key, "")
        if not source.startswith(f"{config.project / PROJECT_FILE}:"):
            continue
        most = getattr(config, f"max_{key}") or _host_limit(key)
        if getattr(config, key) > most:
            shown = most if key == "cpus" else format_size(most)
            raise ConfigError(
                f"{source}: {key} is more than {shown}, which a project file may ask for.",
                resolution=f"Allow more with `max-{key}` in {paths.config_file()}, or use --{key}.",
            )


def _host_limit(key: str) -> int:
    import psutil

    if key == "cpus":
        return os.cpu_count() or 1
    return int(psutil.virtual_memory().total // 2)


def _base_or_template(config: Config) -> Config:
    """Only one of them: the command line beats what a file or the environment says of the other. Raises UsageError."""
    if not (config.given("template") and config.given("clone-from")):
        return config
    first, second = config.sources["clone-from"], config.sources["template"]
    if first.startswith("--") == second.startswith("--"):
        raise UsageError(
            f"A VM is made from a base VM or from a template: {first} and {second} are both set."
        )
    base_wins = first.startswith("--")
    loser = "template" if base_wins else "clone-from"
    return replace(
        config,
        clone_from=config.clone_from if base_wins else None,
        template=None if base_wins else config.template,
        sources={key: source for key, source in config.sources.items() if key != loser},
    )
