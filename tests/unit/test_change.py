"""Flags on an existing sandbox: never silently ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox import change, paths, template, vm
from _claude_sandbox import shares as sharing
from _claude_sandbox.config import Config
from _claude_sandbox.context import Context
from _claude_sandbox.errors import StartError, UsageError
from _claude_sandbox.values import GIB, MIB, Mount, Port

NAME = "claude-sandbox-app"


@pytest.fixture
def project(home: Path) -> Path:
    path = home / "app"
    path.mkdir()
    return path


def config(project: Path, **changes: Any) -> Config:
    """What somebody set is also in `sources`."""
    given = {key: "--flag" for key in changes}
    return Config(**{"project": project, "settings": paths.default_settings(), **changes}, sources=given)


@pytest.fixture
def document(ctx: Context, project: Path) -> dict[str, Any]:
    meant = template.Meant(
        mark=vm.mark_for(NAME, project),
        user=ctx.user,
        shares=sharing.shares_for(ctx, config(project)),
        ports=(Port(8080, 80),),
        cpus=2,
        memory=4 * GIB,
        disk=20 * GIB,
    )
    return template.build({}, meant)


def test_what_nobody_set_stays(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    assert change.wanted(ctx, config(project), document) == change.Change(document, ())


def test_the_same_again_is_no_change(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    same = config(project, cpus=2, memory=4 * GIB, disk=20 * GIB, ports=(Port(8080, 80),), mounts=())
    assert change.wanted(ctx, same, document) == change.Change(document, ())


def test_every_kind_of_change_is_made_and_told(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    (home / "data").mkdir()
    asked = config(
        project, cpus=3, memory=1536 * MIB, disk=21 * GIB, ports=(Port(9090, 9090),), mounts=(Mount(home / "data", False),)
    )  # fmt: skip
    found = change.wanted(ctx, asked, document)
    new = found.document
    assert (new["cpus"], new["memory"], new["disk"]) == (3, "1536MiB", "21GiB")
    assert template.ports_of(new) == (Port(9090, 9090),) and new["portForwards"][-1] == template.IGNORE_ALL
    shares, before = template.shares_of(new), template.shares_of(document)
    assert (shares[0], shares[-1]) == (before[0], before[-1])
    assert [(s.location, s.writable) for s in shares[1:-1]] == [(home / "data", False)]
    assert len(found.words) == 5 and "cpus 2 → 3" in found.words and "memory 4GiB → 1536MiB" in found.words
    assert new["param"] == document["param"]


def test_a_disk_never_shrinks(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="can only grow: this sandbox has 20GiB"):
        change.wanted(ctx, config(project, disk=19 * GIB), document)


def test_other_settings_keep_the_mounts_and_the_other_way_round(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    (home / "data").mkdir()
    (home / "own").mkdir()
    with_data = change.wanted(ctx, config(project, mounts=(Mount(home / "data"),)), document).document
    both = change.wanted(ctx, config(project, settings=home / "own"), with_data).document
    assert [s.location for s in template.shares_of(both)] == [project, home / "data", home / "own"]
    assert [s.writable for s in template.shares_of(both)] == [True, True, False]
    none = change.wanted(ctx, config(project, mounts=()), both).document
    assert [s.location for s in template.shares_of(none)] == [project, home / "own"]


def test_ports_on_a_running_vm(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    same = change.wanted(ctx, config(project, ports=(Port(8080, 80),)), document)
    change.running_ports(NAME, same)
    fewer = change.wanted(ctx, config(project, ports=()), document)
    change.running_ports(NAME, fewer)  # restart takes them away
    more = change.wanted(ctx, config(project, ports=(Port(8080, 80), Port(81, 82))), document)
    with pytest.raises(StartError, match=f"Cannot add ports to running VM {NAME}: 81:82") as caught:
        change.running_ports(NAME, more)
    assert "restart" in (caught.value.resolution or "") and caught.value.exit_code == 1
    elsewhere = change.wanted(ctx, config(project, ports=(Port(8080, 81),)), document)
    assert elsewhere.new_ports == ("8080:81",)


def test_a_moved_project_keeps_the_rest(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    new = home / "other place"
    project.rename(new)
    moved = change.follow_move(document, NAME, project, new, ctx)
    before, after = template.shares_of(document), template.shares_of(moved)
    assert after[0] == template.Share(new, Path("/mnt/project"), True) and after[1:] == before[1:]
    mark = vm.Mark.decode(moved["param"][vm.MARK_PARAM])
    assert mark is not None and mark.name == NAME and mark.project == new and mark.same_directory(new)
    assert moved["cpus"] == document["cpus"]
