"""Flags on an existing sandbox: never silently ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.config.parsers import Mount, Port
from _claude_sandbox.config.table import Config
from _claude_sandbox.errors import StartError, UsageError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.system import paths
from _claude_sandbox.system.units import GIB, MIB
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import reconfigure
from _claude_sandbox.vm import shares as vm_shares

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
    spec = vm_lima_yaml.SandboxSpec(
        mark=vm_mark.mark_for(NAME, project),
        user=ctx.user,
        shares=vm_shares.shares_for(ctx, config(project)),
        ports=(Port(8080, 80),),
        cpus=2,
        memory=4 * GIB,
        disk=20 * GIB,
    )
    return vm_lima_yaml.build({}, spec)


def test_what_nobody_set_stays(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    assert reconfigure.plan_change(ctx, config(project), document) == reconfigure.Change(document, ())


def test_the_same_again_is_no_change(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    same = config(project, cpus=2, memory=4 * GIB, disk=20 * GIB, ports=(Port(8080, 80),), mounts=())
    assert reconfigure.plan_change(ctx, same, document) == reconfigure.Change(document, ())


def test_every_kind_of_change_is_made_and_told(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    (home / "data").mkdir()
    asked = config(
        project, cpus=3, memory=1536 * MIB, disk=21 * GIB, ports=(Port(9090, 9090),), mounts=(Mount(home / "data", False),)
    )  # fmt: skip
    found = reconfigure.plan_change(ctx, asked, document)
    new = found.document
    assert (new["cpus"], new["memory"], new["disk"]) == (3, "1536MiB", "21GiB")
    assert (
        vm_lima_yaml.ports_of(new) == (Port(9090, 9090),)
        and new["portForwards"][-1] == vm_lima_yaml.IGNORE_ALL
    )
    shares, before = vm_lima_yaml.shares_of(new), vm_lima_yaml.shares_of(document)
    assert (shares[0], shares[-1]) == (before[0], before[-1])
    assert [(s.location, s.writable) for s in shares[1:-1]] == [(home / "data", False)]
    assert len(found.words) == 5 and "cpus 2 → 3" in found.words and "memory 4GiB → 1536MiB" in found.words
    assert new["param"] == document["param"]


def test_a_disk_never_shrinks(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="can only grow: this sandbox has 20GiB"):
        reconfigure.plan_change(ctx, config(project, disk=19 * GIB), document)


def test_other_settings_keep_the_mounts_and_the_other_way_round(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    (home / "data").mkdir()
    (home / "own").mkdir()
    with_data = reconfigure.plan_change(
        ctx, config(project, mounts=(Mount(home / "data"),)), document
    ).document
    both = reconfigure.plan_change(ctx, config(project, settings=home / "own"), with_data).document
    assert [s.location for s in vm_lima_yaml.shares_of(both)] == [project, home / "data", home / "own"]
    assert [s.writable for s in vm_lima_yaml.shares_of(both)] == [True, True, False]
    none = reconfigure.plan_change(ctx, config(project, mounts=()), both).document
    assert [s.location for s in vm_lima_yaml.shares_of(none)] == [project, home / "own"]


def test_ports_on_a_running_vm(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    same = reconfigure.plan_change(ctx, config(project, ports=(Port(8080, 80),)), document)
    reconfigure.check_running_ports(NAME, same)
    fewer = reconfigure.plan_change(ctx, config(project, ports=()), document)
    reconfigure.check_running_ports(NAME, fewer)  # restart takes them away
    more = reconfigure.plan_change(ctx, config(project, ports=(Port(8080, 80), Port(81, 82))), document)
    with pytest.raises(StartError, match=f"Cannot add ports to running VM {NAME}: 81:82") as caught:
        reconfigure.check_running_ports(NAME, more)
    assert "restart" in (caught.value.resolution or "") and caught.value.exit_code == 1
    elsewhere = reconfigure.plan_change(ctx, config(project, ports=(Port(8080, 81),)), document)
    assert elsewhere.new_ports == ("8080:81",)


def test_a_moved_project_keeps_the_rest(
    ctx: Context, project: Path, document: dict[str, Any], home: Path
) -> None:
    new = home / "other place"
    project.rename(new)
    moved = reconfigure.follow_move(document, NAME, project, new, ctx)
    before, after = vm_lima_yaml.shares_of(document), vm_lima_yaml.shares_of(moved)
    assert after[0] == vm_lima_yaml.Share(new, Path("/mnt/project"), True) and after[1:] == before[1:]
    mark = vm_mark.Mark.decode(moved["param"][vm_mark.MARK_PARAM])
    assert mark is not None and mark.name == NAME and mark.project == new and mark.same_directory(new)
    assert moved["cpus"] == document["cpus"]
