"""Making a VM: the base, what is shared, sizes; and nothing half-made stays (more in blackbox/test_faults)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.config.parsers import Mount
from _claude_sandbox.config.table import Config
from _claude_sandbox.errors import ClaudeSandboxError, CreateError, RefusedError, UsageError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system import paths
from _claude_sandbox.system.run import Command, Result
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import cleanup, mounts
from _claude_sandbox.vm import create as vm_create
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import shares as vm_shares
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.lima_yaml import Share
from tests.support.recording import Recorder, failed, listed, put_instance, told

NAME = "claude-sandbox-app"


@pytest.fixture
def project(home: Path) -> Path:
    path = home / "projects" / "app"
    path.mkdir(parents=True)
    return path


def config(project: Path, **changes: Any) -> Config:
    return Config(**{"project": project, "settings": paths.default_settings(), **changes})


# -- the base ----------------------------------------------------------------------------------------


def base(
    ctx: Context, recorder: Recorder, name: str, status: str = "Stopped", text: str = "disk: 20GiB\n"
) -> Instance:
    mark = vm_mark.Mark(vm_mark.TOOLS, name)
    directory = put_instance(ctx, name, mark, text=text)
    recorder.on(
        "limactl", "list",
        then=listed({"Name": name, "Status": status, "Dir": str(directory), "Param": {vm_mark.MARK_PARAM: mark.encode()}}),
    )  # fmt: skip
    return Instance(name, status, directory, param={vm_mark.MARK_PARAM: mark.encode()})


def test_the_tools_vm_is_the_default_base_when_it_is_there(
    ctx: Context, recorder: Recorder, project: Path
) -> None:
    assert vm_create.base_of(ctx, config(project)) is None
    base(ctx, recorder, "tools-vm")
    found = vm_create.base_of(ctx, config(project))
    assert found is not None and found.name == "tools-vm"
    assert vm_create.base_of(ctx, config(project, template="template:default")) is None


def test_a_named_base_must_be_there_and_whole(ctx: Context, recorder: Recorder, project: Path) -> None:
    asked = config(project, clone_from="mine", sources={"clone-from": "--clone-from"})
    with pytest.raises(CreateError, match="Base VM not found: mine") as caught:
        vm_create.base_of(ctx, asked)
    assert "--clone-from" in (caught.value.details or "") and caught.value.exit_code == 1
    base(ctx, recorder, "mine", "Broken")
    with pytest.raises(CreateError, match="Base VM mine is Broken"):
        vm_create.base_of(ctx, asked)
    base(ctx, recorder, "other", "Running")
    found = vm_create.base_of(ctx, config(project, clone_from="other"))
    assert found is not None and found.status == "Running"


# -- what is shared ----------------------------------------------------------------------------------


def test_the_project_the_mounts_and_the_settings_read_only(ctx: Context, project: Path, home: Path) -> None:
    (home / "data").mkdir()
    shares = vm_shares.shares_for(ctx, config(project, mounts=(Mount(home / "data", False),)))
    assert shares == (
        Share(project, project, True),
        Share(home / "data", home / "data", False),
        Share(home / ".claude-sandbox" / ".claude", mounts.SETTINGS_POINT, False),
    )
    made = home / ".claude-sandbox"
    assert (made / ".claude").is_dir() and made.stat().st_mode & 0o777 == 0o700
    assert told(ctx).notes == []


def test_an_odd_path_appears_elsewhere_and_it_is_said_once(ctx: Context, home: Path) -> None:
    odd = home / "my project"
    odd.mkdir()
    assert vm_shares.shares_for(ctx, config(odd))[0] == Share(odd, Path("/mnt/project"), True)
    assert len(told(ctx).notes) == 1 and "/mnt/project" in told(ctx).notes[0]


@pytest.mark.parametrize("name", ["lima cidata", "Claude Sandbox", "project ", "a b"])
def test_an_odd_mount_does_not_hide_what_lima_or_we_put_below_mnt(
    ctx: Context, project: Path, home: Path, name: str
) -> None:
    (home / name).mkdir()
    shares = vm_shares.shares_for(ctx, config(project, mounts=(Mount(home / name),)))
    point = shares[1].point
    for taken in (mounts.SETTINGS_POINT, mounts.FALLBACK, Path("/mnt/lima-cidata")):
        assert not point.is_relative_to(taken) and not taken.is_relative_to(point)


def test_what_is_refused(ctx: Context, project: Path, home: Path) -> None:
    for bad, words in ((home, "contains"), (home / ".lima", "lies in")):
        with pytest.raises(RefusedError, match=words):
            vm_shares.shares_for(ctx, config(bad))
        with pytest.raises(RefusedError, match=words):
            vm_shares.shares_for(ctx, config(project, mounts=(Mount(bad, False),)))
    with pytest.raises(RefusedError, match="comma"):
        vm_shares.shares_for(ctx, config(home / "a,b"))
    for name in ("x/a b", "y/a b"):
        (home / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="same place"):
        vm_shares.shares_for(ctx, config(project, mounts=(Mount(home / "x/a b"), Mount(home / "y/a b"))))


def test_settings_that_somebody_named_are_not_made(ctx: Context, project: Path, home: Path) -> None:
    asked = config(project, settings=home / "none", sources={"settings": "--settings"})
    with pytest.raises(UsageError, match="Settings directory not found"):
        vm_shares.shares_for(ctx, asked)
    assert not (home / "none").exists()


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.spec("4.11")
@pytest.mark.parametrize(
    ("total", "gib"), [(64, 16), (16, 8), (7.8, 3), (1, 1), (0.5, 1), (32, 16), (33, 16)]
)
def test_half_of_the_memory_up_to_16_gib(monkeypatch: pytest.MonkeyPatch, total: float, gib: int) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"total": int(total * GIB)})())
    assert vm_create.default_memory() == gib * GIB


@pytest.mark.parametrize(("host", "cpus"), [(8, 4), (3, 1), (1, 1), (None, 1)])
def test_half_of_the_cores(monkeypatch: pytest.MonkeyPatch, host: int | None, cpus: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    assert vm_create.default_cpus() == cpus


# -- failing -----------------------------------------------------------------------------------------


def half_made(ctx: Context) -> list[str]:
    """What of a sandbox is there: its directory, its journal."""
    found = [NAME] if (ctx.lima.home / NAME).exists() else []
    return [*found, "journal"] if Journal(ctx.lima.home, NAME).exists() else found


def writes_half(ctx: Context, then: Result | BaseException) -> Any:
    def clone(_command: Command) -> Result:
        assert half_made(ctx) == ["journal"]  # written before the first byte of the VM
        (ctx.lima.home / NAME).mkdir()
        (ctx.lima.home / NAME / "disk").write_text("half")
        if isinstance(then, BaseException):
            raise then
        return then

    return clone


@pytest.mark.parametrize(
    "how", [failed("disk full"), KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left")]
)
def test_a_clone_that_fails_or_is_interrupted_leaves_nothing(
    ctx: Context, recorder: Recorder, project: Path, how: Result | BaseException
) -> None:
    origin = base(ctx, recorder, "tools-vm")
    recorder.on("limactl", "clone", then=writes_half(ctx, how))
    with pytest.raises(CreateError if isinstance(how, Result) else type(how)) as caught:
        vm_create.create(ctx, config(project), origin)
    if isinstance(caught.value, CreateError):
        assert "what was begun has been removed" in caught.value.brief and "disk full" in (
            caught.value.details or ""
        )
    assert half_made(ctx) == [] and origin.dir.exists() and list(project.iterdir()) == []


def test_a_running_base_is_stopped_first_and_started_again_even_after_a_failure(
    ctx: Context, recorder: Recorder, project: Path
) -> None:
    origin = base(ctx, recorder, "tools-vm", "Running")
    recorder.on("limactl", "clone", then=failed("no"))
    with pytest.raises(CreateError):
        vm_create.create(ctx, config(project), origin)
    changes = [argv[1:] for argv in recorder.argvs() if argv[0] == "limactl" and argv[1] != "list"]
    assert [(c[0], c[-1]) for c in changes] == [("stop", "tools-vm"), ("clone", NAME), ("start", "tools-vm")]


@pytest.mark.spec("4.4")
def test_too_little_space_or_too_small_a_disk_is_told_before_the_clone(
    ctx: Context, recorder: Recorder, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = base(ctx, recorder, "tools-vm", text="disk: 20GiB\n")
    with pytest.raises(UsageError, match="smaller than the base VM tools-vm, which has 20GiB"):
        vm_create.create(ctx, config(project, disk=10 * GIB), origin)
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: shutil._ntuple_diskusage(9, 9, GIB // 2))
    with pytest.raises(CreateError, match="Not enough space"):
        vm_create.create(ctx, config(project), origin)
    assert "clone" not in recorder.verbs() and half_made(ctx) == []


def test_a_refusal_stays_one(ctx: Context, recorder: Recorder, project: Path) -> None:
    origin = base(ctx, recorder, "tools-vm", text="disk: 20GiB\nplain: true\n")
    with pytest.raises(RefusedError, match="plain"):
        vm_create.create(ctx, config(project), origin)
    assert half_made(ctx) == []


def test_what_a_killed_run_left_is_removed_by_the_next(
    ctx: Context, recorder: Recorder, project: Path
) -> None:
    origin = base(ctx, recorder, "tools-vm")
    Journal(ctx.lima.home, NAME).begin(project)
    directory = put_instance(ctx, NAME)
    (directory / "ha.pid").write_text("999999999\n")
    recorder.on("limactl", "clone", then=writes_half(ctx, failed("no")))  # asserts that nothing is left
    with pytest.raises(CreateError):
        vm_create.create(ctx, config(project), origin)
    assert ("limactl", "delete", "--tty=false", "--force", NAME) in recorder.argvs()
    assert any("an earlier run did not finish" in note for note in told(ctx).notes)


def test_half_made_vms_of_others_are_left_alone(
    ctx: Context, recorder: Recorder, project: Path, home: Path
) -> None:
    origin = base(ctx, recorder, "tools-vm")
    other = Journal(ctx.lima.home, NAME)
    other.begin(home / "elsewhere" / "app")
    put_instance(ctx, NAME)
    recorder.on("limactl", "clone", then=failed("no"))
    with pytest.raises(CreateError):
        vm_create.create(ctx, config(project), origin)
    assert half_made(ctx) == [NAME, "journal"]


def test_a_directory_that_is_a_symlink_is_not_followed(ctx: Context, home: Path) -> None:
    (home / "precious").mkdir()
    (home / "precious" / "file").touch()
    (ctx.lima.home / NAME).symlink_to(home / "precious")
    cleanup.remove_half_made(ctx, NAME)
    assert (home / "precious" / "file").exists()


def test_clean_up_is_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGINT)
    with cleanup.uninterrupted():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is before
    problems: list[BaseException] = []

    def in_a_thread() -> None:
        try:
            with cleanup.uninterrupted():
                pass
        except ValueError as problem:  # signal.signal() outside the main thread
            problems.append(problem)

    thread = threading.Thread(target=in_a_thread)  # the API runs verbs in threads
    thread.start()
    thread.join()
    assert problems == []


def test_the_error_tree_is_shown_in_words() -> None:
    error = CreateError("What.", details="Their words.", resolution="Do this.")
    assert str(error) == "What.\nTheir words.\nDo this." and isinstance(error, ClaudeSandboxError)
