"""How a setting's value is chosen among the places that may set it; the precedence is numbered in `load`."""

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


def _from_flags(flags: Mapping[str, Any]) -> dict[str, _Given]:
    return {
        row.key: _Given(flags[row.key], next(f for f in row.flags if f.startswith("--")), Path.cwd())
        for row in SETTINGS
        if flags.get(row.key) is not None
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    return {
        row.key: _Given(environ[row.env], row.env, Path.cwd())
        for row in SETTINGS
        if row.env and environ.get(row.env)
    }


def _from_file(file: Path, entries: Mapping[str, Entry], *, in_project: bool = False) -> dict[str, _Given]:
    """Raises ConfigError for a key that is not a setting."""
    for key, entry in entries.items():
        if key not in BY_KEY:
            import difflib

            near = difflib.get_close_matches(key, BY_KEY, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(sorted(BY_KEY))}."
            raise ConfigError(f"{file}:{entry.line}: unknown key {key!r}.{hint}")
    return {
        key: _Given(entry.value, f"{file}:{entry.line}", file.parent, in_project)
        for key, entry in entries.items()
    }


def _from_users_file() -> dict[str, _Given]:
    return _from_file(paths.config_file(), read(paths.config_file()))


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
    given = {  # the last one wins
        # 5. the default, which Config has
        **_from_users_file(),  # 4. the user's file
        **_from_file(
            file, parse(wishes.text, file), in_project=True
        ),  # 3. the project's file, as far as it may
        **_from_environment(environ),  # 2. the environment
        **_from_flags(flags),  # 1. the command line
    }
    values = {row: _parse(row, given[row.key]) for row in SETTINGS if row.key in given}
    for row, value in values.items():
        found = given[row.key]
        if found.in_project and row.in_project == APPROVAL:
            wishes.add(row.key, found.raw, value, found.source)
    wishes.check()
    looked = {row.key: value for row, value in values.items() if isinstance(value, Looked)}
    looked["project"] = _project_looked(flags.get("dir"), environ, project)
    config = Config(
        project,
        **{row.field: _resolved(row, value) for row, value in values.items()},
        sources={row.key: given[row.key].source for row in values},
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
    for key, given in _from_flags(flags).items():
        _parse(BY_KEY[key], given)


def users_own(prefix: str) -> dict[str, Any]:
    """The settings whose key starts with `prefix`, by field, from the user's file alone (there is no project).

    Raises ConfigError.
    """
    given = _from_users_file()
    return {
        row.field: _resolved(row, _parse(row, given[row.key])) if row.key in given else row.default
        for row in SETTINGS
        if row.key.startswith(prefix)
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


def _parse(row: Setting, given: _Given) -> Any:
    if given.in_project and row.in_project == NEVER:
        raise ConfigError(f"{given.source}: {row.key} can only be set in {paths.config_file()}.")
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
