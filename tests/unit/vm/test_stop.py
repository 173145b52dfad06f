"""The end of a VM: what is removed, what stays, and whose processes are meant."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from _claude_sandbox.errors import ClaudeSandboxError, LimaError, RefusedError
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.sandbox import removal as sandbox_removal
from _claude_sandbox.sandbox.summary import Sandbox
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.journal import Journal
from tests.support.recording import Recorder, failed, listed, put_instance

NAME = "claude-sandbox-app"


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    # It waits without a fork: what a shell forks has the shell's words until it becomes `sleep`.
    argv = ["sh", "-c", "echo; read -r _; :", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        try:
            yield child
        finally:
            os.killpg(child.pid, 9)


def pids(directory: Path) -> list[int]:
    return sorted(each.pid for each in vm_processes.running(directory))


def test_a_process_is_the_vm_s_by_the_pid_file_that_it_names(ctx: Context, home: Path) -> None:
    directory = put_instance(ctx, NAME)
    other = put_instance(ctx, f"{NAME}2")
    (home / "link").symlink_to(ctx.lima.home)
    elsewhere = home / "elsewhere" / NAME
    elsewhere.mkdir(parents=True)
    with (
        process("--pidfile", f"{directory}/ha.pid", NAME) as agent,
        process("-pidfile", f"{home}/link/{NAME}/qemu.pid") as qemu,
        process(f"--pidfile={other}/ha.pid"),
        process("-pidfile", f"{elsewhere}/qemu.pid"),  # the same name in another LIMA_HOME
        process("vi", f"{directory}/ha.pid"),
    ):
        assert pids(directory) == sorted([agent.pid, qemu.pid])
        assert len(pids(other)) == len(pids(elsewhere)) == 1
    assert pids(directory) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")
def test_another_user_s_process_is_never_the_vm_s(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root anybody's may be the VM's: its VMs run in a user namespace."""
    directory, (me, other, root) = put_instance(ctx, NAME), (65001, 65002, 0)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    for user in (me, other, root):
        argv = ["sh", "-c", "echo; read -r _; :", f"--pidfile={directory}/ha.pid"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, user=user, group=user) as child:
            assert child.stdout is not None and child.stdout.readline() == b"\n"
            found = [
                [each.pid for each in vm_processes.running(directory, *whose)]
                for whose in ((me,), (), (root,))
            ]
            child.kill()
        mine = [] if user == other else [child.pid]
        assert found == [mine, mine, [child.pid]]


def test_lost_pid_files_are_written_again_and_wrong_ones_go(ctx: Context) -> None:
    directory = put_instance(ctx, NAME)
    with process("--pidfile", f"{directory}/ha.pid") as agent:
        (directory / "qemu.pid").write_text(f"{os.getpid()}\n")
        assert vm_processes.make_pid_files_true(directory)
        assert [file.name for file in directory.glob("*.pid")] == ["ha.pid"]
        assert (directory / "ha.pid").read_text() == f"{agent.pid}\n"
        assert not vm_processes.make_pid_files_true(directory)


def test_nothing_is_removed_of_a_vm_that_runs_on(
    ctx: Context, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_stop, "GONE_TIMEOUT", 0.2)
    directory = put_instance(ctx, NAME)
    with process("-pidfile", f"{directory}/qemu.pid") as qemu:
        with pytest.raises(LimaError, match=rf"process {qemu.pid} \(qemu.pid\) still runs"):
            vm_stop.remove(ctx, NAME)
        with pytest.raises(LimaError):
            vm_stop.delete_without_writing(ctx, NAME)
        recorder.on("limactl", "stop", then=failed("no such signal"))
        with pytest.raises(LimaError, match=r"(?s)still runs.*no such signal"):
            vm_stop.remove(ctx, NAME)
    assert (directory / "lima.yaml").exists() and "delete" not in recorder.verbs()
    vm_stop.remove(ctx, NAME)
    assert not directory.exists()


def test_a_protected_one_stays(ctx: Context, recorder: Recorder) -> None:
    directory = put_instance(ctx, NAME)
    (directory / "protected").touch()
    for way in (vm_stop.remove, vm_stop.delete_without_writing):
        with pytest.raises(RefusedError, match="is protected"):
            way(ctx, NAME)
    assert directory.exists() and recorder.calls == []


def test_a_delete_that_was_killed_on_a_full_disk_is_finished(ctx: Context, home: Path) -> None:
    mark = vm_mark.Mark(vm_mark.SANDBOX, NAME, home)
    ours = put_instance(ctx, f".{NAME}.deleted", mark)
    (ours / "disk").touch()
    empty = ctx.lima.home / f".{NAME}2.deleted"
    empty.mkdir()
    others = [
        put_instance(ctx, f".{NAME}3.deleted", mark),  # the mark names another
        put_instance(ctx, f".{NAME}4.deleted", None),
        put_instance(ctx, f".{NAME}5.deleted", vm_mark.Mark(vm_mark.TOOLS, f"{NAME}5")),
        put_instance(ctx, NAME, mark),
    ]
    full = ctx.lima.home / f".{NAME}6.deleted"
    full.mkdir()
    (full / "file").touch()
    vm_stop.remove_put_aside(ctx)
    assert not ours.exists() and not empty.exists()
    assert all(each.exists() for each in [*others, full])


@pytest.mark.parametrize("step", ["rename", "unlink"])
def test_killed_while_it_is_put_aside(
    ctx: Context, home: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put_instance(ctx, NAME, vm_mark.Mark(vm_mark.SANDBOX, NAME, home))
    (directory / "disk").touch()

    def die(*_words: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os if step == "rename" else Path, step, die)
        vm_stop.delete_without_writing(ctx, NAME)
    assert directory.exists() == (step == "rename")  # whole, or not there for Lima
    vm_stop.remove_put_aside(ctx)
    assert directory.exists() == (step == "rename") and not list(ctx.lima.home.glob(".c*"))


def test_prune_looks_again_whose_it_is(ctx: Context, home: Path, recorder: Recorder) -> None:
    """Between the question and the lock somebody may have made another sandbox of that name."""
    mine, other = home / "mine", home / "other"
    for project in (mine, other):
        project.mkdir()
    directory = put_instance(ctx, NAME)
    doomed = [Sandbox(NAME, "Stopped", mine, True)]
    for mark in (
        vm_mark.mark_for(NAME, other),
        vm_mark.Mark(vm_mark.SANDBOX, "another", mine),
        vm_mark.Mark(vm_mark.TOOLS, NAME),
    ):
        row: dict[str, object] = {
            "Name": NAME,
            "Dir": str(directory),
            "Param": {vm_mark.MARK_PARAM: mark.encode()},
        }
        recorder.on("limactl", "list", then=listed(row))
        assert sandbox_removal.prune(ctx, doomed).done == []
        assert "delete" not in recorder.verbs() and directory.exists()
    mark = vm_mark.mark_for(NAME, mine)
    row = {"Name": NAME, "Dir": str(directory), "Param": {vm_mark.MARK_PARAM: mark.encode()}}
    recorder.on("limactl", "list", then=listed(row))
    assert sandbox_removal.prune(ctx, doomed).done == doomed and not directory.exists()


def test_a_delete_that_lima_left_half_done_is_finished_by_the_next_run(
    ctx: Context, home: Path, recorder: Recorder
) -> None:
    mine = home / "app"
    mine.mkdir()
    mark = vm_mark.mark_for(NAME, mine)
    directory = put_instance(ctx, NAME, mark)
    recorder.on("limactl", "delete", then=failed("remove disk: input/output error"))
    for half in (False, True):
        (directory / "disk").touch() if not half else (directory / "disk").unlink()
        with pytest.raises(ClaudeSandboxError, match="limactl delete failed"):
            sandbox_removal.delete(ctx, mine)
        assert Journal(ctx.lima.home, NAME).exists() == half
