"""Changed flags on an existing VM: applied when it is stopped, told when it runs (spec 4.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from _claude_sandbox import places, shares, template, vm
from _claude_sandbox.config import Config
from _claude_sandbox.context import Context, homes
from _claude_sandbox.errors import StartError, UsageError
from _claude_sandbox.template import Document
from _claude_sandbox.values import format_size, parse_size


@dataclass(frozen=True)
class Change:
    """The document as it should be, and in words what differs (`ports` apart: they are an error)."""

    document: Document
    words: tuple[str, ...]
    new_ports: tuple[str, ...] = ()


def wanted(ctx: Context, config: Config, document: Document) -> Change:
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
    have_ports = template.ports_of(document)
    added = tuple(str(p) for p in config.ports if p not in have_ports) if config.given("ports") else ()
    if config.given("ports") and config.ports != have_ports:
        new["portForwards"] = template.forwards(config.ports)
        words.append(f"ports → {', '.join(map(str, config.ports))}")
    if config.given("mounts") or config.given("settings"):
        asked = _shares(ctx, config, document)
        if asked != template.shares_of(document):
            new["mounts"] = template.mounts(asked)
            words.append("mounts → " + ", ".join(str(s.location) for s in asked))
    return Change(new, tuple(words), added)


def _shares(ctx: Context, config: Config, document: Document) -> tuple[template.Share, ...]:
    """The shares that the flags ask for; a kind that no flag names stays as it is."""
    asked = shares.shares_for(ctx, config)
    have = template.shares_of(document)
    if not config.given("mounts"):
        asked = (asked[0], *have[1:-1], asked[-1])
    if not config.given("settings"):
        asked = (*asked[:-1], have[-1])
    return asked


def running_ports(name: str, change: Change) -> None:
    """Raise StartError when ports are asked for that the running VM does not forward."""
    if change.new_ports:
        raise StartError(
            f"Cannot add ports to running VM {name}: {', '.join(change.new_ports)}",
            resolution="`claude-sandbox restart` with the same -p applies it.",
        )


def follow_move(document: Document, name: str, old: Path, new: Path, ctx: Context) -> Document:
    """The document of a sandbox whose project directory was moved from `old` to `new`."""
    shares = [
        replace(share, location=new, point=places.mount_point(new, homes(ctx.user)))
        if share.location == old
        else share
        for share in template.shares_of(document)
    ]
    mark = vm.mark_for(name, new)
    return {
        **document,
        "mounts": template.mounts(shares),
        "param": {**document.get("param", {}), vm.MARK_PARAM: mark.encode()},
    }
