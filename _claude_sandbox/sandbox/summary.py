"""A project's VM as the fronts show it, read from files: its state, and everything about one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _claude_sandbox.errors import SandboxNotFoundError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm.mark import mark_of
from _claude_sandbox.vm.origin import DEFAULT_BASE

if TYPE_CHECKING:
    from _claude_sandbox.config.table import Config
    from _claude_sandbox.hooks.attention import Session
    from _claude_sandbox.hooks.event import Event
    from _claude_sandbox.vm.lima_yaml import Share

MISSING = "missing"  # beside Lima's own status words (docs/vocabulary.md)


@dataclass(frozen=True)
class Sandbox:
    """One project's VM as the fronts show it. `memory` and `disk` in bytes."""

    name: str
    status: str
    project: Path | None
    project_exists: bool
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    created: bool = False  # by this call

    @classmethod
    def of(cls, instance: Instance, *, created: bool = False) -> Sandbox:
        mark = mark_of(instance)
        project = mark.project if mark else None
        return cls(
            instance.name, instance.status, project, bool(project and project.is_dir()),
            instance.cpus, instance.memory, instance.disk, created,
        )  # fmt: skip

    @classmethod
    def at(cls, project: Path | str = ".") -> Sandbox:
        """The sandbox of a project directory, from its files alone. Raises SandboxNotFoundError."""
        from _claude_sandbox.config import load as config_load
        from _claude_sandbox.host import run_as
        from _claude_sandbox.lima.limactl import Lima
        from _claude_sandbox.system import paths
        from _claude_sandbox.system.run import LocalRunner

        directory = config_load.project_directory(str(project))
        ctx = Context(Lima(LocalRunner(), paths.lima_home()), run_as.guest_user())
        instance = vm_lookup.by_name(ctx, directory)
        if instance is None:
            raise not_found(directory)
        return cls.of(instance)

    def events(self, *, follow: bool = True, since_ns: int = 0) -> Iterator[Event | Session]:
        """What Claude Code reports from this sandbox: `Event` for each hook event, `Session` for each Claude session
        as it is now and whenever its attention changes (docs/hooks.md).

        With `since_ns` (ns since 1970) first the events of the log from then on. With `follow` it goes on
        until you stop reading, and waits while the hooks server does not run; without, it ends with the log.
        """
        from _claude_sandbox.hooks import feed_client

        found = feed_client.logged(since_ns=since_ns) if since_ns or not follow else []
        yield from (event for event in found if event.sandbox == self.name)
        if follow:
            later = feed_client.follow(after=found[-1].seq if found else None)
            yield from (item for item in later if item.sandbox == self.name)


def existing(ctx: Context, project: Path) -> Instance | None:
    """The project's VM as limactl sees it now."""
    instance = vm_lookup.find(ctx, project)
    return ctx.lima.get(instance.name) if instance else None


def base_name(ctx: Context, config: Config) -> str | None:
    """The base VM of which a new sandbox would be cloned, if there is one."""
    if config.template is not None:
        return None
    name = config.clone_from or DEFAULT_BASE
    return name if config.clone_from or (ctx.lima.home / name / "lima.yaml").exists() else None


def not_found(project: Path) -> SandboxNotFoundError:
    return SandboxNotFoundError(
        f"There is no sandbox for {project}.", resolution="`claude-sandbox create` makes one."
    )


def sandboxes(ctx: Context) -> list[Sandbox]:
    """All our sandboxes, by name."""
    return [Sandbox.of(instance) for instance in vm_lookup.list_from_files(ctx)]


@dataclass(frozen=True)
class Info:
    """Everything about one project's sandbox."""

    sandbox: Sandbox
    shares: tuple[Share, ...]
    ports: tuple[str, ...]
    directory: Path
    ssh_config: Path
    vm_type: str
    lima_version: str


def info(ctx: Context, project: Path) -> Info:
    """Raises SandboxNotFoundError."""
    from _claude_sandbox.vm import document, lima_yaml

    instance = existing(ctx, project)
    if instance is None:
        raise not_found(project)
    meant = document.read(instance)
    return Info(
        Sandbox.of(instance), lima_yaml.shares_of(meant), tuple(map(str, lima_yaml.ports_of(meant))),
        instance.dir, instance.ssh_config, instance.vm_type, instance.lima_version,
    )  # fmt: skip
