"""Linked clones as a user meets them: disks, `prune --cache`, `--full-clone`, a golden file that is gone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import fakedisk
import pytest

from _claude_sandbox.system import files
from tests.support.box import Box

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="disks are linked on Linux only")

APP = "claude-sandbox-app"


def store(box: Box) -> Path:
    return box.home / ".local" / "share" / "claude-sandbox" / "golden"


def golden(box: Box) -> list[Path]:
    return sorted(store(box).glob("*.qcow2"))


def disk(box: Box, name: str = APP) -> Path:
    return box.lima_home / name / "disk"


def fill(path: Path) -> None:
    """The guest wrote more than what is worth a layer."""
    with path.open("ab") as file:
        file.write(b"mine;")
        os.posix_fallocate(file.fileno(), 0, 65 << 20)


@pytest.fixture
def made(ready: Box) -> Box:
    (ready.lima_home / "tools-vm" / "kernel").write_text("kernel")
    assert (ended := ready.run("create")).code == 0, ended.text
    return ready


def test_a_sandbox_is_an_overlay_on_what_was_the_base_s_disk(made: Box) -> None:
    (file,) = golden(made)
    assert fakedisk.backing(disk(made)) == str(file) == fakedisk.backing(disk(made, "tools-vm"))
    assert fakedisk.content(disk(made)) == b"base;"
    assert file.stat().st_mode & 0o777 == 0o400 and store(made).stat().st_mode & 0o777 == 0o700
    kernel = made.lima_home / APP / "kernel"
    assert kernel.samefile(made.lima_home / "tools-vm" / "kernel")
    before = (file.stat().st_mtime_ns, file.read_bytes())
    made.forget_calls()
    assert made.run("create", cwd=made.project("two")).code == 0
    assert made.calls("qemu-img") == [] and golden(made) == [file]
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    checks = {check["name"]: check for check in made.run("doctor", "--json").json()["checks"]}
    row = checks[f"golden disk {file.stem[:12]}"]
    assert row["ok"] is True
    assert row["detail"].endswith("used by claude-sandbox-app, claude-sandbox-two, tools-vm")


@pytest.mark.parametrize("name", ["golden", "names"])
def test_a_base_may_have_any_name(box: Box, name: str) -> None:
    """Its lock is nobody else's: golden.lock, say, is held exclusively while a disk is frozen."""
    box.tools_vm(name)
    ended = box.run("create", "-c", name)
    assert ended.code == 0, ended.text
    assert len(golden(box)) == 1


@pytest.mark.parametrize("older", [False, True], ids=["now", "before-an-update"])
def test_who_waits_for_a_base_is_told_for_whom(ready: Box, older: bool) -> None:
    locks = ready.home / ".local" / "state" / "claude-sandbox" / "locks"
    ready.run("status")  # makes the directory
    with files.lock(locks / ("tools-vm.lock" if older else "base-tools-vm.lock")):
        process = ready.spawn("create")
        assert process.stderr is not None
        line = process.stderr.readline()
        while "waiting for" not in line:
            assert line, "it did not wait"
            line = process.stderr.readline()
        assert f"tools-vm is in use: waiting for process {os.getpid()}" in line
        assert not ready.calls(verb="clone")
    assert process.wait(60) == 0
    process.communicate()


def test_full_clone(made: Box) -> None:
    two = made.project("two")
    ended = made.run("create", "--full-clone", cwd=two)
    assert ended.code == 0, ended.text
    name = "claude-sandbox-two"
    assert fakedisk.backing(disk(made, name)) == "" and fakedisk.content(disk(made, name)) == b"base;"
    assert not (made.lima_home / name / "kernel").samefile(made.lima_home / "tools-vm" / "kernel")
    # An existing sandbox gets it at its next start.
    told = made.run("start", "--full-clone")
    assert "`claude-sandbox restart` applies: a disk of its own" in told.err
    assert fakedisk.backing(disk(made))
    assert made.run("restart", "--full-clone").code == 0
    assert fakedisk.backing(disk(made)) == "" and fakedisk.content(disk(made)) == b"base;"
    shutil.rmtree(store(made))
    assert made.run("restart").code == 0


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_full_clone_of_an_existing_sandbox_killed(made: Box, moment: str) -> None:
    made.run("stop")
    made.mend()
    made.fault("qemu-img.1", argv="convert", kill_parent=moment)
    assert made.run("start", "--full-clone").code == -9
    made.mend()
    time.sleep(0.5)  # the fake goes on when its caller was killed
    assert fakedisk.content(disk(made)) == b"base;"
    assert made.run("start").code == 0
    assert fakedisk.backing(disk(made)) and not list(made.lima_home.glob("*/*.tmp"))
    assert made.run("restart", "--full-clone").code == 0
    assert not fakedisk.backing(disk(made)) and not list(made.lima_home.glob("*/*.tmp"))


def test_a_full_clone_freezes_nothing(ready: Box) -> None:
    assert ready.run("create", "--full-clone").code == 0
    assert golden(ready) == [] and ready.calls("qemu-img") == []
    assert fakedisk.backing(disk(ready)) == ""


def test_a_foreign_base_is_never_changed(box: Box) -> None:
    box.vm("mine", {"vmType": "qemu", "mountType": "9p", "disk": "20GiB"})

    def looks() -> tuple[int, ...]:
        info = disk(box, "mine").stat()
        return info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_nlink

    before = looks()
    assert (ended := box.run("create", "-c", "mine")).code == 0, ended.text
    assert looks() == before and golden(box) == []
    assert fakedisk.backing(disk(box)) == ""


def test_a_base_made_from_a_sandbox(made: Box) -> None:
    fill(disk(made))
    ended = made.run("create", "-c", APP, cwd=made.project("two"))
    assert ended.code == 0, ended.text
    assert made.vms()[APP] == "Running"  # it ran before
    one, two = disk(made), disk(made, "claude-sandbox-two")
    assert fakedisk.backing(one) == fakedisk.backing(two)
    layer = Path(fakedisk.backing(one))
    assert Path(fakedisk.backing(layer)) in golden(made) and len(golden(made)) == 2
    assert fakedisk.content(two).replace(b"\0", b"") == b"base;mine;"


@pytest.mark.parametrize("spoil", ["missing", "cut"])
def test_a_spoilt_golden_file_is_a_clear_error(made: Box, spoil: str) -> None:
    made.run("create", cwd=made.project("two"))
    made.run("stop")
    (file,) = golden(made)
    if spoil == "missing":
        file.unlink()
    else:
        file.chmod(0o600)
        os.truncate(file, 10)
    row = next(line for line in made.run("doctor").out.splitlines() if file.stem[:12] in line)
    assert row.startswith("✗") and "claude-sandbox-app, claude-sandbox-two, tools-vm" in row
    for verb in (("start",), ("shell", "--", "true"), ("create", "-d", str(made.project("three")))):
        made.forget_calls()
        ended = made.run(*verb)
        assert ended.code == 1 and str(file) in ended.err
        assert "claude-sandbox-app, claude-sandbox-two, tools-vm" in ended.err
        assert "rebuild-tools-vm" in ended.err and "claude-sandbox delete" in ended.err
        assert not made.calls("limactl", "start") and not made.calls("limactl", "clone")
    assert made.vms() == {APP: "Stopped", "claude-sandbox-two": "Running", "tools-vm": "Stopped"}
    assert made.run("delete").code == 0


def test_disk_full_while_freezing_means_a_full_copy(ready: Box) -> None:
    ready.fault("qemu-img", fail="qemu-img: disk: No space left on device")
    ended = ready.run("create")
    assert ended.code == 0, ended.text
    assert "full copies" in ended.err and "No space left on device" in ended.err
    assert fakedisk.backing(disk(ready)) == "" == fakedisk.backing(disk(ready, "tools-vm"))
    assert golden(ready) == []


def test_disk_full_while_making_a_full_clone(made: Box) -> None:
    made.fault("qemu-img", fail="qemu-img: No space left on device")
    ended = made.run("create", "--full-clone", cwd=made.project("two"))
    assert ended.code == 1 and "No space left on device" in ended.err
    assert set(made.vms()) == {APP, "tools-vm"}


def test_prune_cache(made: Box) -> None:
    (file,) = golden(made)
    assert made.run("prune", "--cache").out == "There is nothing to free.\n"
    assert made.run("prune", "--cache", "--dry-run").out == "There is nothing to free.\n"
    made.run("delete")
    made.limactl("unprotect", "tools-vm")
    made.limactl("delete", "tools-vm")
    images = made.home / ".cache" / "claude-sandbox" / "images" / "key"
    images.mkdir(parents=True)
    dry = made.run("prune", "--cache", "--dry-run")
    assert dry.code == 0 and str(file) in dry.out and str(images.parent) in dry.out and file.exists()
    asked = made.tty("prune", "--cache", talk=[("[y/N]", "n\n")])
    assert asked.code == 1 and file.exists()
    value = made.run("prune", "--cache", "--json").json()
    assert {entry["path"] for entry in value} == {str(file), str(images.parent)}
    assert not file.exists() and not images.exists() and list(store(made).iterdir()) == []
    for wrong in (("--orphans",), ("claude-sandbox-x",)):
        assert made.run("prune", "--cache", *wrong).code == 2


def test_another_lima_home_keeps_what_it_uses(made: Box) -> None:
    (file,) = golden(made)
    made.run("stop")
    other = made.root / "l2"
    shutil.copytree(made.lima_home, other, symlinks=True)
    (made.lima_home / APP / "ha.pid").unlink(missing_ok=True)
    env = {"LIMA_HOME": str(other)}
    ended = made.run("start", env=env)
    assert ended.code == 0, ended.text
    made.run("delete")
    shutil.rmtree(made.lima_home / "tools-vm")
    assert made.run("prune", "--cache").out == "There is nothing to free.\n"
    assert made.run("stop", env=env).code == 0
    other.rename(made.root / "gone")
    kept = made.run("prune", "--cache")
    assert f"kept: {file}" in kept.out and file.exists()
    assert f"VMs of {other}" in made.run("doctor").out
    assert made.run("prune", "--cache", "-f").code == 0 and file.exists()
    assert made.run("prune", "--cache", "--forget-home", str(other)).code == 0 and not file.exists()


def test_an_unmounted_lima_home_keeps_its_disks(made: Box) -> None:
    """What is left of a mount point is an empty directory, and then whatever somebody makes below it."""
    (file,) = golden(made)
    made.run("stop")
    away = made.root / "away"
    made.lima_home.rename(away)
    made.lima_home.mkdir()
    other = made.root / "l2"
    other.mkdir()
    for env in ({"LIMA_HOME": str(other)}, {}):
        kept = made.run("prune", "--cache", "-y", env=env)
        assert kept.code == 0 and "There is nothing to free." in kept.out, kept.text
        assert f"kept: {file}" in kept.out and f"{made.lima_home} is empty now" in kept.out
    assert f"{made.lima_home}, which is empty" in made.run("doctor").out
    made.vm("below")
    kept = made.run("prune", "--cache", "-y")
    assert f"{made.lima_home} is another directory than it was now" in kept.out and file.exists()
    shutil.rmtree(made.lima_home)
    away.rename(made.lima_home)
    for name in (APP, "tools-vm"):
        assert fakedisk.content(disk(made, name)) == b"base;"
    assert (ended := made.run("start")).code == 0, ended.text


def test_uninstall_keeps_the_disks_of_an_unmounted_lima_home(made: Box) -> None:
    (file,) = golden(made)
    made.run("stop")
    away = made.root / "away"
    made.lima_home.rename(away)
    made.lima_home.mkdir()
    ended = made.run("uninstall", "-y")
    assert ended.code == 0 and f"This stays, for {made.lima_home}: {file}" in ended.out, ended.text
    made.lima_home.rmdir()
    away.rename(made.lima_home)
    assert (ended := made.run("start")).code == 0, ended.text


def test_a_lima_home_that_was_deleted_for_good(made: Box) -> None:
    (file,) = golden(made)
    made.run("stop")
    shutil.rmtree(made.lima_home)
    refused = made.run("prune", "--cache", "--forget-home", str(made.root / "p"))
    assert refused.code == 2 and "No golden disk is kept for" in refused.err
    assert made.run("prune", "--forget-home", str(made.lima_home)).code == 2
    talk = [("Was it deleted for good, with its VMs? [y/N]", "n\n")]
    ended = made.tty("prune", "--cache", "-y", talk=talk)
    assert ended.code == 0 and f"--forget-home {made.lima_home}" in "".join(ended.out.split("\n"))
    assert file.exists()
    talk = [("Was it deleted for good, with its VMs? [y/N]", "y\n"), ("Free it?", "n\n")]
    assert made.tty("prune", "--cache", talk=talk).code == 1 and file.exists()
    assert "Freed" in made.run("prune", "--cache").out and not file.exists()


def test_a_disk_on_another_file_system(made: Box) -> None:
    """The user moved it to a bigger disk and left a symlink: the VM starts, so what it stands on is needed."""
    (file,) = golden(made)
    made.run("stop")
    big = made.root / "big"
    big.mkdir()
    disk(made).rename(big / "app-disk")
    disk(made).symlink_to(big / "app-disk")
    made.limactl("unprotect", "tools-vm")
    made.limactl("delete", "tools-vm")
    assert made.run("prune", "--cache", "-y").out == "There is nothing to free.\n" and file.exists()
    assert (ended := made.run("start")).code == 0, ended.text
    made.run("stop")
    big.rename(made.root / "unmounted")
    for command in (("prune", "--cache", "-y"), ("prune", "--cache", "-y", "-f"), ("uninstall", "--dry-run")):
        ended = made.run(*command)
        assert file.exists()
        if command[0] == "prune":
            assert ended.code == 1 and f"{disk(made)} leads to {big / 'app-disk'}" in ended.err


def test_uninstall_leaves_what_a_foreign_vm_stands_on(made: Box) -> None:
    (file,) = golden(made)
    made.run("stop")
    made.limactl("clone", "tools-vm", "by-hand")
    ended = made.run("uninstall", "-y")
    assert ended.code == 0, ended.text
    assert f"This stays, for by-hand: {file}" in ended.out and file.exists()
    assert made.vms() == {"by-hand": "Stopped"}
    assert os.listdir(store(made).parent) == ["golden"]
    shutil.rmtree(made.lima_home / "by-hand")
    made.run("uninstall", "-y")
    assert not store(made).parent.exists()
