"""What a sandbox shares with its guest, and that no guest decides what that is.

A directory that some sandbox's guest can write (its project, its writable mounts) is followed by nothing of
ours: a mount, the settings or the project whose path leads through one is refused or must be free of symlinks.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.config.table import PROJECT_FILE, Config
from _claude_sandbox.config.yaml_file import text_of
from _claude_sandbox.errors import RefusedError, StartError, UsageError
from _claude_sandbox.lima.context import Context, homes
from _claude_sandbox.lima.limactl import param_of
from _claude_sandbox.system.lookup import Identity, Looked, identity, look, open_directories
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import lima_yaml, mounts, naming, template_keys
from _claude_sandbox.vm import mark as vm_mark

Shared = dict[Identity, str]
"""The directories that a VM may share, by device and inode, with their paths."""


def shares_for(ctx: Context, config: Config) -> tuple[lima_yaml.Share, ...]:
    """The project, the user's extra mounts and the settings directory. Raises RefusedError, UsageError."""
    writable = guest_writable(ctx)
    shares = [_project(ctx, config, writable)]
    for own in (config.project, *(mount.path for mount in config.mounts if mount.writable)):
        writable.setdefault(own, "this sandbox")
    for mount in config.mounts:
        mounts.check_carriable(mount.path)
        mounts.check_shareable(mount.path, config.settings, mount.writable)
        _check_own_way(mount.path, mount.looked or look(mount.path), writable)
        shares.append(lima_yaml.Share(mount.path, _point_of(ctx, mount.path), mount.writable))
    points = [share.point for share in shares]
    if len(set(points)) != len(points):
        raise UsageError(f"Two mounts would appear at the same place: {', '.join(map(str, points))}")
    settings = settings_directory(ctx, config, writable)
    mounts.check_carriable(settings)
    return (*shares, lima_yaml.Share(settings, mounts.SETTINGS_POINT, False))


def _project(ctx: Context, config: Config, writable: Mapping[Path, str]) -> lima_yaml.Share:
    """The project's share. It may lie in another sandbox's project, but not be found by a symlink there."""
    mounts.check_carriable(config.project)
    programs = mounts.check_shareable(config.project, config.settings, writable=True, project=True)
    if programs:
        ctx.progress.warn(
            f"Programs of this project are on your PATH, and the sandbox can change them: {', '.join(map(str, programs))}"
        )
    looked = config.looked.get("project")
    root = looked.follows_link_in(writable) if looked else None
    if root is not None:
        raise RefusedError(
            f"{config.project} was found by a symlink in {root}, which {writable[root]} can write.",
            details="Its guest may have made that link.",
            resolution=f"Run claude-sandbox in {config.project} itself, if that is what you want.",
        )
    point = mounts.mount_point(config.project, homes(ctx.user))
    if point == mounts.FALLBACK:
        ctx.progress.note(f"{config.project} appears in the sandbox at {mounts.FALLBACK}.")
    return lima_yaml.Share(config.project, point, True)


def _point_of(ctx: Context, mount: Path) -> Path:
    where = mounts.mount_point(mount, homes(ctx.user))
    return mounts.MOUNTS / naming.slug(mount.name) if where == mounts.FALLBACK else where


def _check_own_way(path: Path, looked: Looked, writable: Mapping[Path, str]) -> None:
    """Raise RefusedError when a guest could lead the way to `path` elsewhere."""
    root = looked.passes(writable)
    if root is not None:
        raise RefusedError(
            f"{path} cannot be shared with a sandbox: the way to it leads through {root}, which {writable[root]} can write.",
            details="A guest could put a symlink there, and so choose what of this host is shared.",
            resolution=f"Share {root} itself, or a directory that no sandbox can write.",
        )


def guest_writable(ctx: Context) -> dict[Path, str]:
    """Every directory that one of our guests can write, resolved, with the name of its sandbox.

    Of all VMs that carry our mark, copies by hand included, from their files.
    """
    found: dict[Path, str] = {}
    for file in sorted(ctx.lima.home.glob("*/lima.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            locations = _writable_of(text) if vm_mark.MARK_PARAM in text else []
        except (OSError, ValueError):
            continue  # Lima cannot start it either
        found |= {_real(location): file.parent.name for location in locations}
    return found


def _real(location: Path) -> Path:
    try:
        return look(location).real
    except ValueError:  # another guest has put a loop of symlinks there: it leads nowhere
        return location


def _writable_of(text: str) -> list[Path]:
    """The writable shares of a lima.yaml; a launch has no time to parse a hundred, most of which share one."""
    mark = vm_mark.Mark.decode(param_of(text).get(vm_mark.MARK_PARAM, ""))
    if mark and mark.project and text.count("writable:") == text.count("writable: false") + 1:
        return [mark.project]
    import yaml  # 8 ms, which the line above mostly saves

    try:
        document = vm_document.parse(text)
    except yaml.YAMLError:
        return []  # Lima cannot start it either
    shares = lima_yaml.shares_of(document) if isinstance(document, dict) else ()
    return [share.location for share in shares if share.writable]


def settings_directory(ctx: Context, config: Config, writable: Mapping[Path, str] | None = None) -> Path:
    """The settings directory, resolved, after all checks; the default one is made. Raises RefusedError, UsageError.

    Called at each launch: what is brought to the guest is read from it by the host.
    """
    if not config.given("settings"):
        config.settings.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.settings.mkdir(mode=0o700, exist_ok=True)
    if not config.settings.is_dir():
        raise UsageError(f"Settings directory not found: {config.settings}")
    looked = config.looked.get("settings") or look(config.settings)
    mounts.check_readable(looked.real)
    known = guest_writable(ctx) if writable is None else writable
    inside = {**known, config.project: "this sandbox"}
    _check_own_way(looked.real, looked, inside)
    if looked.real in inside:
        raise RefusedError(
            f"{looked.real} cannot be the settings directory: {inside[looked.real]} can write it.",
            details="What one sandbox writes there, every other one would run.",
            resolution="Name a directory that no sandbox can write.",
        )
    return looked.real


# -- at each start -------------------------------------------------------------------------------


def check_shares(document: Mapping[str, Any]) -> Shared:
    """What is shared still is what it was, and may still be shared; which directories these are.

    Lima would make a missing one (facts/lima.md §5). Raises StartError, RefusedError.
    """
    shared: Shared = {}
    shares = lima_yaml.shares_of(document)
    settings = next((s.location for s in shares if s.point == mounts.SETTINGS_POINT), None)
    for number, share in enumerate(shares):
        shared[_directory(share)] = str(share.location)
        if share.point == mounts.SETTINGS_POINT and not share.writable:
            mounts.check_readable(share.location)
        else:
            mounts.check_shareable(share.location, settings, share.writable, project=number == 0)
        mounts.check_carriable(share.location)
    return shared


def _directory(share: lima_yaml.Share) -> Identity:
    """Which directory is shared: really one, reached through no symlink."""
    try:
        mode = share.location.stat().st_mode
        real = share.location.resolve(strict=True)
    except OSError as error:
        raise StartError(
            f"Directory not found: {share.location}",
            details=f"{error.strerror}; the sandbox shares it at {share.point}.",
            resolution="Bring it back, or delete the sandbox (`claude-sandbox prune --orphans`).",
        ) from error
    if not stat.S_ISDIR(mode):
        raise StartError(
            f"{share.location} is not a directory any more.", resolution="Bring the directory back."
        )
    if real == share.location:
        try:
            return identity(share.location)
        except OSError as error:
            if error.errno not in (
                errno.ELOOP,
                errno.ENOTDIR,
            ):  # these: a symlink that came in this very moment
                raise StartError(
                    f"{share.location} cannot be opened: {error.strerror}.",
                    resolution="Make it, and the directories above it, usable for your user.",
                ) from error
    raise RefusedError(
        f"{share.location} has become a symlink to {real}.",
        details="A sandbox shares the directory for which it was made, and nothing else.",
        resolution=f"Run claude-sandbox in {real}, or bring the directory back.",
    )


class ShareWatch:
    """Looks at what QEMU has opened to share, as soon as it runs (Linux): between our look at a directory and
    its opening a guest could have put a symlink there. What is not meant stops the VM before it has booted."""

    def __init__(self, ctx: Context, name: str, shared: Shared, stop: Callable[[], None]) -> None:
        self.ctx, self.name, self.shared, self._stop = ctx, name, shared, stop
        self._seen = ctx.macos or not shared

    def look(self) -> None:
        """Raise RefusedError, with the VM stopped, if something else was opened."""
        if self._seen:
            return
        try:
            pid = int((self.ctx.lima.home / self.name / "qemu.pid").read_text())
        except (OSError, ValueError):
            return
        opened = open_directories(pid, f"/{self.name}/") or {}
        found = next((path for which, path in opened.items() if which not in self.shared), None)
        if found is not None:
            self._stop()
            raise RefusedError(
                f"{self.name} was stopped: {found} would have been shared with it.",
                details="A directory was replaced by a symlink in the moment of the start.",
                resolution=f"Look at what writes there: {', '.join(self.shared.values())}",
            )
        self._seen = set(self.shared) <= set(opened)


# -- templates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemplateSource:
    """A template file: where Lima reads it, or the text that it shall read instead, if a guest may write the file."""

    name: str
    text: str | None = None
    from_project_file: bool = False


def template_source(ctx: Context, config: Config, locator: str) -> TemplateSource:
    """Where a template comes from. One that a guest may have written is read once, and names no other file.

    Raises RefusedError, ConfigError.
    """
    looked = config.looked.get("template")
    if looked is None:
        return TemplateSource(locator)
    text = config.template_text
    asked = config.sources.get("template", "").startswith(f"{config.project / PROJECT_FILE}:")
    if text is None and looked.passes({config.project: "", **guest_writable(ctx)}):
        text = text_of(looked.real, hostile=True)
    if text is not None:
        template_keys.check_self_contained(text, locator)
    return TemplateSource(locator, text, asked)


def check_template(
    ctx: Context, config: Config, document: lima_yaml.Document, source: TemplateSource
) -> None:
    """Raise RefusedError for what a template must not say, or a file of the host that it must not read."""
    template_keys.refuse(source.name, template_keys.allowed(document)[1])
    if source.from_project_file:
        template_keys.refuse(source.name, sorted({name for name, _ in template_keys.host_files(document)}))
    known = {config.project: "this sandbox", **guest_writable(ctx)}
    for name, text in template_keys.host_files(document):
        _check_file(name, text, known, source)


def check_base(document: lima_yaml.Document) -> None:
    """Raise RefusedError for a file of the host that Lima would hand to a clone of this base VM at its starts."""
    for name, text in template_keys.host_files({**document, "images": []}):  # its disk is made
        path = template_keys.host_path(text)
        if path is not None:
            mounts.check_readable(_real(path), f"{name} of the base VM")


def _check_file(name: str, text: str, known: Mapping[Path, str], source: TemplateSource) -> None:
    path = template_keys.host_path(text)
    if path is None:
        template_keys.refuse(source.name, [f"{name} {text!r}, which is not an absolute path,"])
        return
    try:
        looked = look(path)
    except ValueError as error:  # a loop of symlinks
        raise RefusedError(f"{source.name} was not used: {name}: {error}.") from error
    mounts.check_readable(looked.real, f"{name} of a template")
    guests = looked.passes(known) is not None
    if looked.follows_link_in(known) or (source.text is not None and not guests):
        template_keys.refuse(source.name, [f"{name} {text!r}"])
