"""Which VM is a project's: by its mark, never by its name alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from _claude_sandbox.errors import HostSetupError, SandboxExistsError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Lima
from _claude_sandbox.system.files import birth
from _claude_sandbox.vm import lookup as vm_lookup
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm.journal import Journal
from tests.support.recording import Recorder, listed, put_instance


def project(home: Path, name: str) -> Path:
    path = home / name
    path.mkdir(parents=True)
    return path


def row(ctx: Context, mark: vm_mark.Mark, name: str | None = None) -> dict[str, object]:
    """What Lima lists; `name` for a copy that carries another's mark."""
    name = name or mark.name
    return {"Name": name, "Dir": str(ctx.lima.home / name), "Param": {vm_mark.MARK_PARAM: mark.encode()}}


def test_found_by_its_name_without_asking_lima(ctx: Context, home: Path, recorder: Recorder) -> None:
    app = project(home, "app")
    put_instance(ctx, "claude-sandbox-app", vm_mark.mark_for("claude-sandbox-app", app))
    found = vm_lookup.find(ctx, app)
    assert found is not None and found.name == "claude-sandbox-app" and recorder.calls == []


def test_two_projects_of_one_name_have_two_vms(ctx: Context, home: Path) -> None:
    one, other = project(home, "a/app"), project(home, "b/app")
    put_instance(ctx, "claude-sandbox-app", vm_mark.mark_for("claude-sandbox-app", one))
    assert vm_lookup.find(ctx, other) is None
    name = vm_lookup.free_name(ctx, other)
    assert name != "claude-sandbox-app" and name.startswith("claude-sandbox-app-")
    put_instance(ctx, name, vm_mark.mark_for(name, other))
    assert (vm_lookup.find(ctx, one), vm_lookup.find(ctx, other)) == (
        ctx.lima.read_instance_files("claude-sandbox-app"),
        ctx.lima.read_instance_files(name),
    )


def test_found_under_another_name_by_its_mark(ctx: Context, home: Path, recorder: Recorder) -> None:
    app = project(home, "app")
    mark = vm_mark.mark_for("claude-sandbox-old", app)
    recorder.on("limactl", "list", then=listed(row(ctx, mark)))
    found = vm_lookup.find(ctx, app)
    assert found is not None and found.name == "claude-sandbox-old"


def test_what_is_not_ours(ctx: Context, home: Path, recorder: Recorder) -> None:
    """A hand-made VM of our name, a clone that carries a sandbox's mark, and the tools VM."""
    app = project(home, "app")
    mark = vm_mark.mark_for("claude-sandbox-app-x", app)
    put_instance(ctx, "claude-sandbox-app")
    tools = vm_mark.Mark(vm_mark.TOOLS, "tools-vm")
    recorder.on(
        "limactl", "list",
        then=listed(row(ctx, mark, "copy"), row(ctx, tools), {"Name": "claude-sandbox-app", "Dir": "/x"}),
    )  # fmt: skip
    assert (
        vm_lookup.list_ours(ctx) == []
        and vm_lookup.find(ctx, app) is None
        and vm_lookup.find_moved(ctx, app) is None
    )
    assert vm_lookup.free_name(ctx, app) == vm_lookup.candidates(ctx, app)[1]


@pytest.mark.spec("4.2")
def test_a_mark_of_another_schema_is_explained(ctx: Context, home: Path) -> None:
    app = project(home, "app")
    directory = put_instance(ctx, "claude-sandbox-app")
    (directory / "lima.yaml").write_text(f"param:\n  {vm_mark.MARK_PARAM}: 7;sandbox;claude-sandbox-app;x\n")
    with pytest.raises(SandboxExistsError, match=r"made by another version .*mark 7"):
        vm_lookup.find(ctx, app)


def test_a_moved_project_is_recognised_only_when_the_old_place_is_gone(
    ctx: Context, home: Path, recorder: Recorder
) -> None:
    old = project(home, "old")
    mark = vm_mark.mark_for("claude-sandbox-old", old)
    recorder.on("limactl", "list", then=listed(row(ctx, mark)))
    new = home / "new"
    old.rename(new)
    found = vm_lookup.find_moved(ctx, new)
    assert found is not None and found[0].name == "claude-sandbox-old" and found[1]
    assert vm_lookup.find(ctx, new) is None  # asked, never assumed
    old.mkdir()
    assert vm_lookup.find_moved(ctx, new) is None
    assert vm_lookup.find_moved(ctx, home) is None


@pytest.mark.parametrize("schema", [1, 2])
def test_a_new_directory_with_the_inode_of_a_removed_one_is_not_moved(
    ctx: Context, home: Path, recorder: Recorder, schema: int
) -> None:
    """ext4 gives a new directory the inode that was freed last; here the mark is made to say so."""
    old = project(home, "old")
    mark = vm_mark.mark_for("claude-sandbox-old", old)
    put_instance(ctx, "claude-sandbox-old")
    old.rmdir()
    time.sleep(0.02)  # a coarse clock stamps a birth
    new = project(home, "new")
    reused = replace(mark, inode=new.stat().st_ino, born=mark.born if schema == 2 else 0)
    recorder.on("limactl", "list", then=listed(row(ctx, reused)))
    assert birth(new) > mark.born > 0
    assert vm_lookup.find_moved(ctx, new) is None


def test_where_no_birth_is_known_it_is_not_sure(
    ctx: Context, home: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = project(home, "old")
    mark = replace(vm_mark.mark_for("claude-sandbox-old", old), born=0)  # an older version's
    put_instance(ctx, "claude-sandbox-old")
    recorder.on("limactl", "list", then=listed(row(ctx, mark)))
    new = home / "new"
    old.rename(new)
    found = vm_lookup.find_moved(ctx, new)
    assert found is not None and found[0].name == "claude-sandbox-old" and not found[1]
    for unknown in (ctx.lima.home, home):  # each may be on a file system that records none
        monkeypatch.setattr(
            vm_lookup, "birth", lambda path, unknown=unknown: 0 if path.parent == unknown else time.time_ns()
        )
        assert vm_lookup.find_moved(ctx, new) == found


def test_a_name_under_construction_is_not_free(ctx: Context, home: Path) -> None:
    app = project(home, "app")
    Journal(ctx.lima.home, "claude-sandbox-app").begin(home / "b" / "app")
    assert vm_lookup.free_name(ctx, app) == vm_lookup.candidates(ctx, app)[1]


def test_both_names_taken(ctx: Context, home: Path) -> None:
    app = project(home, "app")
    for name in vm_lookup.candidates(ctx, app):
        put_instance(ctx, name)
    with pytest.raises(SandboxExistsError, match=r"Both names .* are taken"):
        vm_lookup.free_name(ctx, app)


@pytest.mark.parametrize("macos", [True, False])
def test_a_lima_home_without_room_says_how_long_it_may_be(
    ctx: Context, recorder: Recorder, macos: bool
) -> None:
    def at(length: int) -> Context:
        return replace(ctx, lima=Lima(recorder, Path("/" + "x" * (length - 1))), macos=macos)

    with pytest.raises(HostSetupError, match="LIMA_HOME is too long") as caught:
        vm_lookup.candidates(at(70), Path("/app"))
    most = int("".join(filter(str.isdigit, (caught.value.resolution or "").partition("at most")[2])))
    plain, hashed = vm_lookup.candidates(at(most), Path("/home/me/application"))
    assert plain != hashed and most + len(hashed) + 27 <= (103 if macos else 107)
    with pytest.raises(HostSetupError):
        vm_lookup.candidates(at(most + 1), Path("/app"))
