"""The golden store and freezing: who uses what, what a kill leaves, and what is never done to a disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fakedisk
import pytest

from _claude_sandbox.disks import lima_homes, linked_clone, qcow2
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.disks import users as disks_users
from _claude_sandbox.disks.qcow2 import DiskError
from _claude_sandbox.errors import ClaudeSandboxError, CreateError, StartError, UsageError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.sandbox import prune_cache
from _claude_sandbox.system import exchange as system_exchange
from _claude_sandbox.system import paths
from _claude_sandbox.system.effects import DryEffects
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.run import Command, Result
from _claude_sandbox.system.units import GIB, MIB
from _claude_sandbox.vm import mark as vm_mark
from tests.support.recording import Recorder, failed, put_instance, told


def qemu_img(command: Command) -> Result:
    """What the real one would leave, of the fakes' disks."""
    argv = command.argv
    target = Path(argv[-1])
    if "create" in argv:
        backing = argv[argv.index("-b") + 1]
        fakedisk.write(target, fakedisk.size(Path(backing)), backing)
    else:
        source = Path(argv[-2])
        fakedisk.write(target, fakedisk.size(source), content=fakedisk.content(source))
    return Result(0)


@pytest.fixture
def linux(ctx: Context, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setattr(linked_clone, "SMALL_LAYER", 128 << 10)
    recorder.on("qemu-img", then=qemu_img)
    yield ctx


def base(ctx: Context, name: str = "tools-vm", content: bytes = b"tools;") -> Instance:
    directory = put_instance(ctx, name, vm_mark.Mark(vm_mark.TOOLS, name))
    fakedisk.write(directory / "disk", content=content)
    return instance(ctx, name)


def instance(ctx: Context, name: str) -> Instance:
    return Instance(
        name,
        "Stopped",
        ctx.lima.home / name,
        param={vm_mark.MARK_PARAM: vm_mark.Mark(vm_mark.TOOLS, name).encode()},
    )


def clone(ctx: Context, base: Instance, name: str) -> Instance:
    """As limactl does."""
    shutil.copytree(base.dir, ctx.lima.home / name)
    return instance(ctx, name)


def fill(disk: Path, content: bytes, size: int = 256 << 10) -> None:
    """The guest writes: marked content, and enough of it to be worth a layer."""
    with disk.open("ab") as file:
        file.write(content)
        file.flush()
        end = file.tell()
        os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
        assert end < size


def names() -> list[str]:
    return sorted(entry.name for entry in paths.golden_dir().iterdir())


# -- freezing ----------------------------------------------------------------------------------------


def test_a_base_becomes_an_overlay_on_its_own_disk(linux: Context) -> None:
    tools = base(linux)
    inode, digest = (tools.dir / "disk").stat().st_ino, disks_store.digest(tools.dir / "disk")
    file = linked_clone.move_disk_to_store(linux, tools)
    assert file == paths.golden_dir() / f"{digest[:32]}.qcow2"
    assert file.stat().st_ino == inode  # no byte was copied
    assert file.stat().st_mode & 0o777 == 0o400 and file.stat().st_nlink == 1
    assert paths.golden_dir().stat().st_mode & 0o777 == 0o700
    header = qcow2.read(tools.dir / "disk")
    assert header == qcow2.Header(3, 20 * GIB, str(file), "qcow2")
    assert fakedisk.content(tools.dir / "disk") == b"tools;"
    assert os.access(tools.dir / "disk", os.W_OK)
    assert names() == [file.with_suffix(".json").name, file.name]
    assert sorted(os.listdir(tools.dir)) == ["disk", "lima.yaml"]
    assert linked_clone.move_disk_to_store(linux, tools) is None  # there is no need any more


def test_qemu_img_runs_as_the_user_that_qemu_will_be(linux: Context, recorder: Recorder) -> None:
    linux.lima.prefix = ("unshare", "--user")
    recorder.on("unshare", then=lambda command: qemu_img(Command(command.argv[2:])))
    assert linked_clone.move_disk_to_store(linux, base(linux)) is not None
    assert [argv[:3] for argv in recorder.argvs()] == [("unshare", "--user", "qemu-img")]


def test_the_same_content_is_kept_once(linux: Context) -> None:
    one, other = base(linux, "one"), base(linux, "other")
    assert linked_clone.move_disk_to_store(linux, one) == linked_clone.move_disk_to_store(linux, other)
    assert [each.users for each in disks_store.list_files(linux.lima.home)] == [("one", "other")]


@pytest.mark.parametrize("kind", ["macos", "raw", "snapshots", "symlink", "elsewhere", "none"])
def test_what_is_never_frozen(linux: Context, recorder: Recorder, kind: str) -> None:
    tools = base(linux)
    disk = tools.dir / "disk"
    if kind == "raw":
        disk.write_bytes(bytes(4096))
    elif kind == "snapshots":
        fakedisk.write(disk, snapshots=1)
    elif kind == "symlink":
        disk.rename(tools.dir / "diffdisk")
        disk.symlink_to("diffdisk")
    elif kind == "elsewhere":
        fakedisk.write(disk, backing="/somebody/s/basedisk")
        fill(disk, b"x")
    elif kind == "none":
        disk.unlink()
    before = sorted((e.name, e.lstat().st_ino, e.lstat().st_mtime_ns) for e in tools.dir.iterdir())
    ctx = Context(linux.lima, linux.user, linux.progress, macos=True) if kind == "macos" else linux
    assert linked_clone.move_disk_to_store(ctx, tools) is None
    assert sorted((e.name, e.lstat().st_ino, e.lstat().st_mtime_ns) for e in tools.dir.iterdir()) == before
    assert not recorder.argvs() and not paths.golden_dir().exists()


def test_a_dry_run_only_says_it(linux: Context) -> None:
    tools = base(linux)
    steps: list[str] = []
    dry = Context(linux.lima, linux.user, linux.progress, effects=DryEffects(steps.append))
    assert linked_clone.move_disk_to_store(dry, tools) is None and not paths.golden_dir().exists()
    assert any("move the disk of tools-vm" in step for step in steps)


def test_a_sandbox_as_base_becomes_a_layer_and_chains_stay_short(linux: Context, recorder: Recorder) -> None:
    top = base(linux)
    content = b"tools;"
    for number in range(1, 8):
        linked_clone.move_disk_to_store(linux, top)
        top = clone(linux, top, f"box-{number}")
        assert linked_clone.move_disk_to_store(linux, top) is None  # an empty overlay is not worth a layer
        fill(top.dir / "disk", part := b"box-%d;" % number)
        content += part
        files = qcow2.chain(top.dir / "disk")
        assert len(files) <= linked_clone.MAX_FILES
        assert fakedisk.content(top.dir / "disk").replace(b"\0", b"") == content
    flattened = [argv for argv in recorder.argvs() if "convert" in argv]
    assert len(flattened) == 2
    # The first three share one lower file with the tools VM; nothing is freed while they do.
    assert disks_store.remove_unused(linux.lima.home) == []
    for number in range(1, 8):
        assert fakedisk.content(linux.lima.home / f"box-{number}" / "disk")


def test_little_in_an_overlay_is_copied_instead(linux: Context) -> None:
    tools = base(linux)
    linked_clone.move_disk_to_store(linux, tools)
    fill(tools.dir / "disk", b"x", linked_clone.SMALL_LAYER // 2)
    assert linked_clone.move_disk_to_store(linux, tools) is None
    fill(tools.dir / "disk", b"x", 2 * linked_clone.SMALL_LAYER)
    assert linked_clone.move_disk_to_store(linux, tools) is not None


def another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)


def test_a_store_on_another_file_system_gets_a_sparse_copy(
    linux: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = base(linux)
    disk = tools.dir / "disk"
    with disk.open("r+b") as file:
        file.truncate(80 * MIB)
        file.seek(60 * MIB)
        file.write(b"far")
    before = disk.read_bytes()
    another_file_system(monkeypatch)
    file_ = linked_clone.move_disk_to_store(linux, tools)
    assert file_ is not None and file_.read_bytes() == before
    assert file_.stat().st_blocks * 512 < 2 * MIB
    assert names() == [file_.with_suffix(".json").name, file_.name]


def test_no_room_for_that_copy_means_full_clones_and_says_so(
    linux: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = base(linux)
    another_file_system(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: shutil._ntuple_diskusage(9, 9, GIB // 2))
    assert linked_clone.move_disk_to_store(linux, tools) is None
    assert "full copies" in told(linux).warnings[0] and "Not enough space" in told(linux).warnings[0]
    assert names() == [] and fakedisk.backing(tools.dir / "disk") == ""


# -- somebody else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["started", "written", "fails", "wrong"])
def test_what_goes_wrong_leaves_the_base_as_it_was(linux: Context, recorder: Recorder, how: str) -> None:
    tools = base(linux)
    disk = tools.dir / "disk"
    inode = disk.stat().st_ino

    def meddle(command: Command) -> Result:
        if how == "started":
            (tools.dir / "ha.pid").write_text("1")
        if how == "written":
            os.utime(disk)
        if how == "fails":
            Path(command.argv[-1]).touch()
            return failed("qemu-img: No space left on device")
        done = qemu_img(command)
        if how == "wrong":
            fakedisk.write(Path(command.argv[-1]), backing="/etc/shadow")
        return done

    recorder.on("qemu-img", then=meddle)
    assert linked_clone.move_disk_to_store(linux, tools) is None
    assert len(told(linux).warnings) == 1
    assert disk.stat().st_ino == inode and fakedisk.backing(disk) == ""
    assert names() == [] and not (tools.dir / disks_store.ASIDE).exists()
    (tools.dir / "ha.pid").unlink(missing_ok=True)
    recorder.on("qemu-img", then=qemu_img)
    assert linked_clone.move_disk_to_store(linux, tools) is not None


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int, after: bool) -> None:
    """Let the `call`-th call of a function be the last thing that happens: no clean-up runs either."""
    real: Callable[..., object] = getattr(where, name)
    seen = [0]

    def wrapped(*args: object, **keywords: object) -> object:
        seen[0] += 1
        if seen[0] != call:
            return real(*args, **keywords)
        if after:
            real(*args, **keywords)
        os._exit(9)

    monkeypatch.setattr(where, name, wrapped)


STEPS = (
    (os, "link", 1), (disks_store, "digest", 1), (disks_store, "write_record", 1), (os, "rename", 1), (os, "chmod", 2),
    (system_exchange, "exchange", 1), (linked_clone, "_exchange_disks", 1), (linked_clone, "_qemu_img", 1), (linked_clone, "_move_disk", 1),
)  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "name", "call"), STEPS, ids=[f"{name}" for _, name, _ in STEPS])
@pytest.mark.parametrize("copied", [False, True], ids=["linked", "copied"])
def test_killed_at_any_step_the_base_works_and_the_next_run_freezes_it(
    linux: Context,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    call: int,
    after: bool,
    copied: bool,
) -> None:
    tools = base(linux)
    other = base(linux, "other", b"another;")
    kept = linked_clone.move_disk_to_store(linux, other)
    assert kept is not None
    child = os.fork()
    if child == 0:
        try:
            if copied and name != "link":
                another_file_system(monkeypatch)
            kill_at(monkeypatch, where, name, call, after)
            linked_clone.move_disk_to_store(linux, tools)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert fakedisk.content(tools.dir / "disk") == b"tools;"  # as it stands, it could be started
    linked_clone.move_disk_to_store(linux, tools)
    disks_store.remove_unused(linux.lima.home)
    assert fakedisk.content(tools.dir / "disk") == b"tools;"
    assert fakedisk.content(other.dir / "disk") == b"another;"
    file = Path(fakedisk.backing(tools.dir / "disk"))
    assert file.stat().st_mode & 0o777 == 0o400
    assert names() == sorted(f.with_suffix(s).name for f in (kept, file) for s in (".json", ".qcow2"))
    assert sorted(os.listdir(tools.dir)) == ["disk", "lima.yaml"]
    disks_store.check_backing_files(linux.lima.home, tools.dir)


def test_after_a_kill_a_base_stays_writable_also_while_something_cannot_be_read(linux: Context) -> None:
    """Killed with the disk linked into the store under its golden name."""
    tools = base(linux)
    disk = tools.dir / "disk"
    paths.private_dir(paths.golden_dir())
    os.link(disk, disks_store.path_of(disks_store.digest(disk)))
    (put_instance(linux, "other") / "disk").symlink_to("/nowhere/disk")
    disks_store.remove_leftovers(linux.lima.home)
    assert disk.stat().st_mode & 0o200 and len(names()) == 1
    (linux.lima.home / "other" / "disk").unlink()
    disks_store.remove_leftovers(linux.lima.home)
    assert disk.stat().st_mode & 0o200 and names() == []


def test_a_lima_home_that_does_not_answer_can_be_forgotten(
    linux: Context, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    here, other = linux.lima.home, home / "other"
    here.rename(other)
    here.mkdir()
    assert file is not None
    disks_store.check_backing_files(other, other / "tools-vm")
    disks_store.forget_home(here)
    real = os.scandir, os.listdir

    def broken(number: int) -> Callable[[Path], object]:
        def call(path: Path) -> object:
            if str(path).startswith(str(other)):
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
            return real[number](path)

        return call

    shutil.rmtree(other)
    monkeypatch.setattr(os, "scandir", broken(0))
    monkeypatch.setattr(os, "listdir", broken(1))
    with pytest.raises(DiskError, match="cannot be found out"):
        disks_store.remove_unused(here)
    disks_store.forget_home(other)
    assert [g.path for g in disks_store.remove_unused(here)] == [file]


def test_written_to_after_a_kill_the_half_frozen_content_is_not_kept(linux: Context) -> None:
    """Killed with the disk linked into the store and no overlay yet; then the user starts the VM."""
    tools = base(linux)
    disk = tools.dir / "disk"
    stale = disks_store.path_of(disks_store.digest(disk))
    paths.private_dir(paths.golden_dir())
    os.link(disk, stale)
    with disk.open("ab") as file:
        file.write(b"more;")
    frozen = linked_clone.move_disk_to_store(linux, tools)
    assert frozen is not None and frozen != stale and not stale.exists()
    assert fakedisk.content(disk) == b"tools;more;"


# -- before a start -----------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.chmod(0o600)
    os.truncate(file, 100)


def change(file: Path) -> None:
    file.unlink()
    fakedisk.write(file, content=b"TOOLS;")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.unlink(), "is missing"),
        (cut, "instead of"),
        (change, "was changed"),
        (lambda f: (f.unlink(), f.mkdir()), "not a regular file"),
    ],
    ids=["missing", "cut", "changed", "directory"],
)
def test_a_spoilt_golden_file_is_named_with_the_vms_that_need_it(
    linux: Context, spoil: Callable[[Path], object], words: str
) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    assert file is not None
    box = clone(linux, tools, "claude-sandbox-app")
    disks_store.check_backing_files(linux.lima.home, box.dir)
    spoil(file)
    with pytest.raises(StartError, match=words) as caught:
        disks_store.check_backing_files(linux.lima.home, box.dir)
    assert str(file) in caught.value.brief
    assert "claude-sandbox-app, tools-vm" in (caught.value.details or "")
    assert "rebuild-tools-vm" in (caught.value.resolution or "")


def test_a_file_that_came_back_from_a_backup_is_proved_by_its_content(linux: Context) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    assert file is not None
    copy = file.read_bytes()
    file.unlink()
    file.write_bytes(copy)
    file.with_suffix(".json").unlink()
    disks_store.check_backing_files(linux.lima.home, tools.dir)
    assert file.stat().st_mode & 0o777 == 0o400
    assert disks_users.record(file)["mtime_ns"] == file.stat().st_mtime_ns
    assert disks_users.record(file)["lima_homes"] == [os.path.realpath(linux.lima.home)]


def test_a_vm_without_a_disk_or_with_one_of_its_own_has_nothing_to_check(linux: Context) -> None:
    disks_store.check_backing_files(linux.lima.home, put_instance(linux, "new"))
    disks_store.check_backing_files(linux.lima.home, base(linux).dir)
    directory = put_instance(linux, "odd")
    fakedisk.write(directory / "disk", backing="/gone/basedisk")
    with pytest.raises(StartError, match="/gone/basedisk"):
        disks_store.check_backing_files(linux.lima.home, directory)


# -- who uses what --------------------------------------------------------------------------------------


def test_what_nothing_uses_is_freed_and_nothing_else(linux: Context) -> None:
    tools = base(linux)
    old = linked_clone.move_disk_to_store(linux, tools)
    clone(linux, tools, "box")
    shutil.rmtree(tools.dir)
    new = linked_clone.move_disk_to_store(linux, base(linux, content=b"newer;"))
    assert old is not None and new is not None
    assert disks_store.remove_unused(linux.lima.home) == []
    shutil.rmtree(linux.lima.home / "box")
    assert [g.path for g in disks_store.list_unused(linux.lima.home)] == [old]
    assert disks_store.remove_unused(linux.lima.home, only=["another.qcow2"]) == []
    assert [g.path for g in disks_store.remove_unused(linux.lima.home)] == [old]
    assert names() == [new.with_suffix(".json").name, new.name]


def test_a_disk_put_aside_by_the_user_still_counts(linux: Context) -> None:
    tools = base(linux)
    linked_clone.move_disk_to_store(linux, tools)
    (tools.dir / "disk").rename(tools.dir / "disk.before-upgrade")
    assert disks_store.remove_unused(linux.lima.home) == []


def test_another_lima_home_counts_also_while_it_is_not_there(
    linux: Context, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    other = home / "other"
    shutil.copytree(linux.lima.home, other)
    disks_store.check_backing_files(other, other / "tools-vm")  # before its start there
    shutil.rmtree(tools.dir)
    here = linux.lima.home
    assert [g.users for g in disks_store.list_files(here)] == [(f"tools-vm (in {other})",)]
    assert disks_store.remove_unused(here) == []
    other.rename(home / "unmounted")
    assert disks_store.remove_unused(here) == []
    assert [g.gone for g in prune_cache.kept(here)] == [(other,)]
    disks_store.forget_home(other)
    assert [g.path for g in disks_store.remove_unused(here)] == [file]


def test_what_a_missing_layer_stood_on_is_kept(linux: Context) -> None:
    tools = base(linux)
    lower = linked_clone.move_disk_to_store(linux, tools)
    fill(tools.dir / "disk", b"x")
    upper = linked_clone.move_disk_to_store(linux, tools)
    assert lower is not None and upper is not None
    upper.unlink()
    assert disks_store.remove_unused(linux.lima.home) == []
    assert lower.exists() and upper.with_suffix(".json").exists()


def test_a_vm_that_cannot_be_looked_at_stops_the_freeing(linux: Context) -> None:
    linked_clone.move_disk_to_store(linux, base(linux))
    odd = put_instance(linux, "odd")
    (odd / "disk").write_bytes(qcow2.MAGIC + bytes(10))
    for question in (disks_store.list_files, disks_store.remove_unused, prune_cache.freeable):
        with pytest.raises(DiskError, match="cannot be found out"):
            question(linux.lima.home)
    (odd / "disk").rename(odd / "notes")  # what only looks like a disk is in nobody's way
    assert disks_store.remove_unused(linux.lima.home) == []


def test_an_empty_lima_home_is_not_the_one_that_was_used(linux: Context, home: Path) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    here = linux.lima.home
    here.rename(home / "unmounted")
    here.mkdir()
    assert disks_store.remove_unused(here) == []
    assert [(g.gone, g.why) for g in prune_cache.kept(here)] == [((here,), ("is empty",))]
    put_instance(linux, "below-the-mount-point")
    assert disks_store.remove_unused(here) == []
    assert [g.why for g in prune_cache.kept(here)] == [("is another directory than it was",)]
    # Emptied by the user, it still is the one that it was.
    shutil.rmtree(here)
    (home / "unmounted").rename(here)
    shutil.rmtree(here / "tools-vm")
    assert [g.path for g in disks_store.remove_unused(here)] == [file]


def test_records_of_an_older_version(linux: Context, home: Path) -> None:
    """Paths as they were written, perhaps through a symlink, and no ids."""
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    assert file is not None
    here = linux.lima.home
    link = home / "link"
    link.symlink_to(here)

    def older(*homes: Path) -> None:
        old = {k: v for k, v in disks_users.record(file).items() if k != "home_ids"}
        write_json(file.with_suffix(".json"), {**old, "lima_homes": [str(each) for each in homes]})
        (here / lima_homes.MARKER).unlink(missing_ok=True)

    older(link)
    assert [g.users for g in disks_store.list_files(here)] == [("tools-vm",)]  # once, not "(in …/link)" too
    disks_store.check_backing_files(here, tools.dir)
    assert disks_users.homes_in(disks_users.record(file)) == {here: lima_homes.identity(here)}
    older(here)
    assert (
        disks_store.remove_unused(here) == []
    )  # and the id is written down, as a VM is seen to use the file
    assert disks_users.homes_in(disks_users.record(file)) == {here: lima_homes.identity(here)}
    older(here)
    tools.dir.rename(home / "tools-vm")
    assert [g.why for g in prune_cache.kept(here)] == [("is empty",)] and disks_store.remove_unused(
        here
    ) == []


def test_a_lima_home_is_known_by_its_id_however_it_is_written(linux: Context, home: Path) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    assert file is not None
    here, other, link = linux.lima.home, home / "other", home / "zz-link"
    link.symlink_to(here)
    record = disks_users.record(file)
    both = [str(here), str(link)]  # an older version and this one, one behind the other
    write_json(file.with_suffix(".json"), {**record, "lima_homes": both})
    here.rename(home / "unmounted")
    other.mkdir()
    put_instance(linux, "another")
    assert lima_homes.identify(here) != record["home_ids"][str(here)]  # it has VMs, and an id: not that one
    assert disks_store.remove_unused(here) == []
    assert [g.why for g in prune_cache.kept(here)] == [("is another directory than it was",)]
    shutil.rmtree(here / "another")
    write_json(file.with_suffix(".json"), {**record, "lima_homes": both, "home_ids": {}})
    assert disks_store.remove_unused(here) == []
    assert [g.why for g in prune_cache.kept(here)] == [("is empty",)]  # but for the id, which a base just got
    shutil.rmtree(here)
    here.write_text("a file")
    assert disks_store.remove_unused(other) == []
    assert [g.why for g in prune_cache.kept(other)] == [("is not there",)]


def test_the_store_is_one_however_it_is_written(
    linux: Context, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    assert file is not None
    (home / "data").symlink_to(paths.golden_dir().parent.parent)
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    assert paths.golden_dir() != file.parent and disks_store.remove_unused(linux.lima.home) == []
    assert [g.users for g in disks_store.list_files(linux.lima.home)] == [("tools-vm",)]


def test_a_full_disk_prevents_neither_the_freeing_nor_a_start(
    linux: Context, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With records of an older version, which lack the id."""
    tools = base(linux)
    used, unused = (
        linked_clone.move_disk_to_store(linux, tools),
        linked_clone.move_disk_to_store(linux, base(linux, "other", b"another;")),
    )
    assert used is not None and unused is not None
    here = linux.lima.home
    for file in (used, unused):
        old = {k: v for k, v in disks_users.record(file).items() if k != "home_ids"}
        write_json(file.with_suffix(".json"), old)
    (here / lima_homes.MARKER).unlink()
    shutil.rmtree(here / "other")

    def full(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disks_store, "write_json", full)
    monkeypatch.setattr(lima_homes, "write_atomic", full)
    disks_store.check_backing_files(here, tools.dir)
    assert [g.path for g in disks_store.remove_unused(here)] == [unused] and used.exists()
    other = home / "other"
    shutil.copytree(here, other)
    with pytest.raises(OSError, match="No space left"):  # nobody would know of its VMs
        disks_store.check_backing_files(other, other / "tools-vm")


def test_forgotten_but_there_again_it_is_looked_at(linux: Context, home: Path) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    here = linux.lima.home
    with pytest.raises(UsageError, match="No golden disk is kept"):
        disks_store.forget_home(here)
    here.rename(home / "unmounted")
    here.mkdir()
    disks_store.forget_home(here)
    here_again = disks_users.homes_of([file] if file else [], home / "another")
    assert here in here_again
    assert [g.path for g in disks_store.remove_unused(here)] == [file]


@pytest.mark.parametrize("kind", ["disk", "directory", "aside"])
@pytest.mark.parametrize("mounted", [True, False])
def test_what_was_moved_to_another_file_system_still_counts(
    linux: Context, home: Path, kind: str, mounted: bool
) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    big = home / "big"
    big.mkdir()
    what = {"disk": tools.dir / "disk", "directory": tools.dir, "aside": tools.dir / "disk.old"}[kind]
    if kind == "aside":
        (tools.dir / "disk").rename(what)
    what.rename(big / "moved")
    what.symlink_to(big / "moved")
    if mounted:
        assert disks_store.remove_unused(linux.lima.home) == []
        assert [g.users for g in disks_store.list_files(linux.lima.home)] == [("tools-vm",)]
    else:
        big.rename(home / "unmounted")
        with pytest.raises(DiskError) as caught:
            disks_store.remove_unused(linux.lima.home)
        assert "which cannot be reached" in (caught.value.details or "")
    assert file is not None and file.exists()


@pytest.mark.parametrize("left", [None, b"", b"[]", b'{"version": 1}'])
def test_without_its_record_nobody_knows_who_used_a_file(
    linux: Context, home: Path, left: bytes | None
) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    assert file is not None
    shutil.copytree(here := linux.lima.home, other := home / "other")
    disks_store.check_backing_files(other, other / "tools-vm")
    shutil.rmtree(tools.dir)
    file.with_suffix(".json").unlink()
    if left is not None:
        file.with_suffix(".json").write_bytes(left)
    with pytest.raises(DiskError) as caught:
        disks_store.remove_unused(here)
    assert "which LIMA_HOMEs used" in (caught.value.details or "") and file.exists()
    disks_store.check_backing_files(other, other / "tools-vm")  # whoever starts writes it again
    assert disks_store.remove_unused(here) == [] and file.exists()


@pytest.mark.parametrize("where", ["in the store", "elsewhere", "spoilt"])
def test_a_chain_that_is_broken_stops_the_freeing(linux: Context, home: Path, where: str) -> None:
    tools = base(linux)
    lower = linked_clone.move_disk_to_store(linux, tools)
    fill(tools.dir / "disk", b"x")
    upper = linked_clone.move_disk_to_store(linux, tools)
    assert lower is not None and upper is not None
    if where == "in the store":  # with its record: nothing says any more what it stood on
        upper.unlink()
        upper.with_suffix(".json").unlink()
    else:
        (tools.dir / "disk").rename(home / "layer")
        fakedisk.write(tools.dir / "disk", backing=str(home / "layer"))
        assert disks_store.remove_unused(linux.lima.home) == []
        (home / "layer").unlink() if where == "elsewhere" else (home / "layer").write_bytes(
            qcow2.MAGIC + bytes(9)
        )
    with pytest.raises(DiskError) as caught:
        disks_store.remove_unused(linux.lima.home)
    assert "is missing or cannot be read" in (caught.value.details or "") and lower.exists()


def test_the_record_of_a_missing_file_stays_while_somebody_may_need_it(linux: Context, home: Path) -> None:
    file = linked_clone.move_disk_to_store(linux, base(linux))
    assert file is not None
    file.unlink()
    linux.lima.home.rename(home / "unmounted")
    linux.lima.home.mkdir()
    disks_store.remove_unused(linux.lima.home)
    assert file.with_suffix(".json").exists()


def test_a_directory_that_cannot_be_read_stops_the_freeing(
    linux: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    real = os.scandir

    def scandir(path: Path) -> object:
        if path == tools.dir:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DiskError) as caught:
        disks_store.remove_unused(linux.lima.home)
    assert "Permission denied" in (caught.value.details or "") and file is not None and file.exists()


def test_build_caches_go_unless_something_is_built(linux: Context) -> None:
    images = paths.cache_dir() / "images" / "key"
    images.mkdir(parents=True)
    (images / "disk.qcow2").write_bytes(b"x" * 5000)
    assert [(c.path, c.size) for c in prune_cache.freeable(linux.lima.home)] == [(images.parent, 8192)]
    from _claude_sandbox.system.files import lock
    from _claude_sandbox.vm.locks import build_lock

    with build_lock("tools-vm", pytest.fail):
        assert prune_cache.freeable(linux.lima.home) == [] == prune_cache.free(linux.lima.home)
    with lock(paths.state_dir() / "locks" / "tools-vm.build.lock"):  # one that was begun before an update
        assert prune_cache.freeable(linux.lima.home) == [] == prune_cache.free(linux.lima.home)
    assert [c.path for c in prune_cache.free(linux.lima.home)] == [images.parent]
    assert not images.exists()


# -- what clones share ----------------------------------------------------------------------------------


def test_boot_files_are_shared_read_only(linux: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = base(linux)
    (tools.dir / "kernel").write_text("kernel")
    (tools.dir / "initrd").symlink_to("kernel")
    box = clone(linux, tools, "box")
    linked_clone.share_boot_files(tools.dir, box.dir)
    assert (box.dir / "kernel").samefile(tools.dir / "kernel")
    assert (box.dir / "kernel").stat().st_mode & 0o222 == 0
    assert not (box.dir / "initrd").samefile(tools.dir / "initrd") or (tools.dir / "initrd").is_symlink()
    linked_clone.share_boot_files(tools.dir, box.dir)  # a second time: nothing to do
    another_file_system(monkeypatch)
    third = clone(linux, tools, "third")
    linked_clone.share_boot_files(tools.dir, third.dir)
    assert (third.dir / "kernel").read_text() == "kernel"
    assert sorted(os.listdir(third.dir)) == ["disk", "initrd", "kernel", "lima.yaml"]


def test_a_full_clone_needs_no_other_file(linux: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = base(linux)
    file = linked_clone.move_disk_to_store(linux, tools)
    box = clone(linux, tools, "box")
    fill(box.dir / "disk", b"mine;")
    assert file is not None and linked_clone.is_linked(box.dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: shutil._ntuple_diskusage(9, 9, GIB))
    with pytest.raises(CreateError, match="Not enough space"):
        linked_clone.make_full(linux, box.dir)
    assert linked_clone.is_linked(box.dir)
    monkeypatch.undo()
    linked_clone.make_full(linux, box.dir)
    assert not linked_clone.is_linked(box.dir)
    file.unlink()
    assert fakedisk.content(box.dir / "disk").startswith(b"tools;mine;")
    linked_clone.make_full(linux, box.dir)


def test_a_full_copy_of_a_disk_elsewhere_stays_there(linux: Context, home: Path) -> None:
    tools = base(linux)
    linked_clone.move_disk_to_store(linux, tools)
    moved = home / "moved"
    (tools.dir / "disk").rename(moved)
    (tools.dir / "disk").symlink_to(moved)
    (home / "moved.full.tmp").touch()  # of a killed one
    disks_store.remove_interrupted_copy(tools.dir)
    assert not (home / "moved.full.tmp").exists()
    linked_clone.make_full(linux, tools.dir)
    assert (tools.dir / "disk").is_symlink() and not linked_clone.is_linked(tools.dir)
    assert fakedisk.content(moved) == b"tools;" and not list(home.glob("*.tmp"))


def test_a_full_copy_that_fails_leaves_the_linked_disk(linux: Context, recorder: Recorder) -> None:
    tools = base(linux)
    linked_clone.move_disk_to_store(linux, tools)
    recorder.on("qemu-img", "convert", then=failed("No space left on device"))
    with pytest.raises(ClaudeSandboxError, match="qemu-img failed"):
        linked_clone.make_full(linux, tools.dir)
    assert linked_clone.is_linked(tools.dir) and not disks_store.full_copy_path(tools.dir).exists()
