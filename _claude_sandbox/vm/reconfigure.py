"""Changed flags on an existing VM: applied when it is stopped, reported when it runs (spec 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _claude_sandbox.config.table import Config
from _claude_sandbox.disks import qcow2
from _claude_sandbox.disks import users as disks_users
from _claude_sandbox.errors import ClaudeSandboxError, SandboxExistsError, StartError, UsageError
from _claude_sandbox.lima.context import Context, homes
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system.units import format_size, parse_size
from _claude_sandbox.vm import first_boot, lima_yaml, mounts
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import shares as vm_shares
from _claude_sandbox.vm.lima_yaml import Document
from _claude_sandbox.vm.origin import Origin, installed


@dataclass(frozen=True)
class Change:
    """The document as it should be, and in words what differs (`ports` apart: they are an error)."""

    document: Document
    words: tuple[str, ...]
    new_ports: tuple[str, ...] = ()


def plan_change(ctx: Context, config: Config, document: Document) -> Change:
    """Compare what somebody set (flags, environment, files) with the VM's own document.

    What nobody set stays as it is. Raises UsageError for a disk that would shrink.
    """
    new, words = dict(document), []
    if config.cpus and config.given("cpus") and config.cpus != document.get("cpus"):
        new["cpus"] = config.cpus
        words.append(f"cpus {document.get('cpus')} → {config.cpus}")
    for key, size in (("memory", config.memory), ("disk", config.disk)):
        if size is None or not config.given(key):
            continue
        have = parse_size(document.get(key) or ("100GiB" if key == "disk" else "4GiB"), 1)
        if key == "disk" and size < have:
            raise UsageError(f"A disk can only grow: this sandbox has {format_size(have)} already.")
        if size != have:
            new[key] = format_size(size)
            words.append(f"{key} {format_size(have)} → {format_size(size)}")
    have_ports = lima_yaml.ports_of(document)
    added = tuple(str(p) for p in config.ports if p not in have_ports) if config.given("ports") else ()
    if config.given("ports") and config.ports != have_ports:
        new["portForwards"] = lima_yaml.forwards(config.ports)
        words.append(f"ports → {', '.join(map(str, config.ports))}")
    if config.given("mounts") or config.given("settings"):
        asked = _shares(ctx, config, document)
        if asked != lima_yaml.shares_of(document):
            new["mounts"] = lima_yaml.mounts(asked)
            words.append("mounts → " + ", ".join(str(s.location) for s in asked))
    return Change(new, tuple(words), added)


def _shares(ctx: Context, config: Config, document: Document) -> tuple[lima_yaml.Share, ...]:
    """The shares that the flags ask for; a kind that no flag names stays as it is."""
    asked = vm_shares.shares_for(ctx, config)
    have = lima_yaml.shares_of(document)
    if not config.given("mounts"):
        asked = (asked[0], *have[1:-1], asked[-1])
    if not config.given("settings"):
        asked = (*asked[:-1], have[-1])
    return asked


def check_origin(ctx: Context, config: Config, name: str, origin: Origin | None) -> None:
    """What was typed as -c or -t counts when a sandbox is made. Raises SandboxExistsError when it was another one.

    What the environment or a file says is for the next sandbox, and no error.
    """
    for key, have in (("clone-from", origin and origin.base), ("template", origin and origin.template)):
        flag = config.sources.get(key, "")
        asked = config.clone_from if key == "clone-from" else config.template
        if not flag.startswith("--") or have == asked:
            continue
        if origin is None or not origin.known:
            ctx.progress.warn(
                f"{flag} {asked} has no effect: {name} is there already (it is not recorded what it was made from)."
            )
            continue
        raise SandboxExistsError(
            f"{flag} {asked} cannot be applied: {name} exists already, {origin}.",
            resolution=f"Leave {flag} out; or `claude-sandbox delete` (Claude's conversations in it go), then the "
            "same command again makes a new one.",
        )


def missing_packages(config: Config, origin: Origin | None) -> tuple[str, ...]:
    """The packages that somebody asks for and that were not installed here yet."""
    have = origin.packages if origin else ()
    return tuple(name for name in config.packages if name not in have)


def report_pending(ctx: Context, config: Config, words: Sequence[str]) -> None:
    """What a running VM cannot get now. Typed, it is a warning: -q must not make it disappear."""
    typed = any(source.startswith("--") for source in config.sources.values())
    if words:
        say = ctx.progress.warn if typed else ctx.progress.note
        say(f"`claude-sandbox restart` applies: {'; '.join(words)}.")


def install(ctx: Context, instance: Instance, packages: tuple[str, ...]) -> None:
    """Packages that a file asks for since the sandbox was made. Trouble is a warning: the VM runs."""
    try:
        first_boot.install(ctx, instance, packages)
    except ClaudeSandboxError as error:
        ctx.progress.warn(f"{error} The next start tries again.")
    else:
        ctx.effects.silently(lambda: installed(instance.dir, packages), None)


def reverted(new: Document, old: Document, directory: Path) -> Document:
    """The old document again; a disk that has grown meanwhile keeps its size: it cannot shrink."""
    header = qcow2.read(directory / disks_users.DISK)
    before = parse_size(old.get("disk") or "100GiB", 1)
    return {**old, "disk": new["disk"]} if header and header.size > before and "disk" in new else dict(old)


def check_running_ports(name: str, change: Change) -> None:
    """Raise StartError when ports are asked for that the running VM does not forward."""
    if change.new_ports:
        raise StartError(
            f"Cannot add ports to running VM {name}: {', '.join(change.new_ports)}",
            resolution="`claude-sandbox restart` with the same -p applies it.",
        )


def follow_move(document: Document, name: str, old: Path, new: Path, ctx: Context) -> Document:
    """The document of a sandbox whose project directory was moved from `old` to `new`."""
    shares = [
        replace(share, location=new, point=mounts.mount_point(new, homes(ctx.user)))
        if share.location == old
        else share
        for share in lima_yaml.shares_of(document)
    ]
    mark = vm_mark.mark_for(name, new)
    return {
        **document,
        "mounts": lima_yaml.mounts(shares),
        "param": {**document.get("param", {}), vm_mark.MARK_PARAM: mark.encode()},
    }
