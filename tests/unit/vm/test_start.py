"""Starting: what is checked before, which failures are none, and what is left after the others."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.config.parsers import Port
from _claude_sandbox.errors import RefusedError, StartError
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.lima import readiness, vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.system import lookup as system_lookup
from _claude_sandbox.system import paths
from _claude_sandbox.system.effects import DryEffects
from _claude_sandbox.system.run import Command, Result
from _claude_sandbox.vm import checks as vm_checks
from _claude_sandbox.vm import document as vm_document
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import shares
from _claude_sandbox.vm import start as vm_start
from _claude_sandbox.vm import stop as vm_stop
from _claude_sandbox.vm.journal import Journal
from _claude_sandbox.vm.lima_yaml import Share
from _claude_sandbox.vm.mark import project_of
from tests.support.recording import CHILD, Recorder, failed, listed, put_instance, told

NAME = "claude-sandbox-app"
DEGRADED = 'time="t" level=fatal msg="degraded, status={Running:true Degraded:true}"'
SLOW_AGENT = 'time="t" level=fatal msg="hostagent did not start up in 5s (hint: see logs)"'


@pytest.fixture
def project(home: Path) -> Path:
    path = home / "app"
    path.mkdir()
    return path


@pytest.fixture
def document(project: Path) -> dict[str, Any]:
    mark = vm_mark.mark_for(NAME, project)
    spec = vm_lima_yaml.SandboxSpec(
        mark=mark, user=lima_context.GuestUser("me", 1000), shares=(Share(project, project, True),)
    )
    return vm_lima_yaml.build({}, spec)


@pytest.fixture
def directory(ctx: Context, recorder: Recorder, document: dict[str, Any]) -> Path:
    """The instance's; Lima would use just what we spec, and says Running when it is asked."""
    place = put_instance(ctx, NAME, pid=os.getpid())
    recorder.on("limactl", "list", then=listed({"Name": NAME, "Status": "Running", "Dir": str(place)}))
    shown(recorder, document)
    return place


def shown(recorder: Recorder, config: dict[str, Any]) -> None:
    recorder.on(
        "limactl", "list", "--format", "{{json .Config}}", then=Result(0, json.dumps(config).encode())
    )


# -- starting ----------------------------------------------------------------------------------------


def test_a_start_that_works(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    ctx = replace(ctx, start_env=lambda: {"QEMU_SYSTEM_X86_64": "qemu -accel tcg"})
    journal = Journal(ctx.lima.home, NAME)
    journal.begin(Path("/p"))
    recorder.on("limactl", "start", then=Result(0, b"", b'time="t" level=info msg="READY."'))
    instance = vm_start.start(ctx, NAME, document, journal)
    assert instance.status == "Running" and recorder.verbs() == ["list", "start", "list"]
    start = next(call for call in recorder.calls if "start" in call.argv)
    assert start.command.env["QEMU_SYSTEM_X86_64"] == "qemu -accel tcg"
    assert "READY" in (paths.logs_dir() / f"{NAME}.log").read_text()
    assert readiness.was_ready(instance) and told(ctx).warnings == []


def test_the_config_is_checked_before_anything_is_started(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    shown(recorder, {**document, "ssh": {"forwardAgent": True}})
    with pytest.raises(RefusedError, match=r"would also get ssh\.forwardAgent"):
        vm_start.start(ctx, NAME, document)
    assert "start" not in recorder.verbs()


def test_a_late_guest_agent_is_a_warning_when_ssh_and_mounts_work(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    recorder.on("limactl", "start", then=failed(DEGRADED))
    instance = vm_start.start(ctx, NAME, document)
    assert instance.status == "Running" and readiness.was_ready(instance)
    assert len(told(ctx).warnings) == 1 and "guest agent is late" in told(ctx).warnings[0]
    assert "stop" not in recorder.verbs()


@pytest.mark.parametrize("broken", ["connection", "boot scripts"])
def test_a_degraded_vm_that_cannot_be_used_is_stopped_and_told(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any], broken: str
) -> None:
    recorder.on("limactl", "start", then=failed(DEGRADED))
    recorder.on(*(("sh",) if broken == "connection" else ("ssh",)), then=failed("", 1))
    with pytest.raises(StartError, match=f"{NAME} did not start") as caught:
        vm_start.start(ctx, NAME, document)
    assert "degraded" in (caught.value.details or "") and f"{NAME}.log" in (caught.value.resolution or "")
    assert recorder.argvs()[-1] == ("limactl", "stop", "--tty=false", "--force", NAME)


def test_an_overloaded_host_gets_a_second_try(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    recorder.on("limactl", "start", then=[failed(SLOW_AGENT), Result(0)])
    assert vm_start.start(ctx, NAME, document).status == "Running"
    assert recorder.verbs() == ["list", "start", "stop", "start", "list"]


def test_but_not_a_third(ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]) -> None:
    recorder.on("limactl", "start", then=failed(SLOW_AGENT))
    with pytest.raises(StartError, match="did not start") as caught:
        vm_start.start(ctx, NAME, document)
    assert recorder.verbs() == ["list", "start", "stop", "start", "stop"]
    assert "5s" in (caught.value.details or "")


def test_another_failure_is_told_at_once(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    recorder.on("limactl", "start", then=failed('time="t" level=fatal msg="qemu: no space"'))
    with pytest.raises(StartError) as caught:
        vm_start.start(ctx, NAME, document)
    assert caught.value.details == "qemu: no space" and recorder.verbs() == ["list", "start", "stop"]
    assert not readiness.was_ready(Instance(NAME, "Stopped", directory))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_start_leaves_no_vm_running(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any], interrupt: BaseException
) -> None:
    recorder.on("limactl", "start", then=interrupt)
    with pytest.raises(type(interrupt)):
        vm_start.start(ctx, NAME, document)
    assert recorder.argvs()[-1] == ("limactl", "stop", "--tty=false", "--force", NAME)


def test_a_vm_that_stops_at_once_is_told(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    recorder.on("limactl", "list", then=listed({"Name": NAME, "Status": "Stopped", "Dir": str(directory)}))
    shown(recorder, document)
    with pytest.raises(StartError, match="stopped right after its start"):
        vm_start.start(ctx, NAME, document)


def test_a_dry_start_only_says_so(ctx: Context, recorder: Recorder, document: dict[str, Any]) -> None:
    instance = vm_start.start(replace(ctx, effects=DryEffects(print)), NAME, document)
    assert recorder.verbs() == ["start"] and instance.name == NAME and not (ctx.lima.home / NAME).exists()


def test_limactl_s_process_is_in_the_journal_while_it_runs(
    ctx: Context,
    recorder: Recorder,
    directory: Path,
    document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(Journal, "note_child", lambda _self, pid: noted.append(pid))
    vm_start.start(ctx, NAME, document, Journal(ctx.lima.home, NAME))
    assert noted == [CHILD]


# -- readiness ---------------------------------------------------------------------------------------


def test_a_stamp_is_for_one_boot(ctx: Context, directory: Path) -> None:
    instance = Instance(NAME, "Running", directory)
    assert not readiness.was_ready(instance)
    vm_document.record_ready(instance, {})
    assert readiness.was_ready(instance)
    (directory / "ha.pid").unlink()
    assert not readiness.was_ready(instance)
    (directory / "ha.pid").write_text(f"{os.getpid()}\n")
    os.utime(directory / "ha.pid", (1, 1))
    assert not readiness.was_ready(instance)  # the same id, another boot


def test_waiting_for_a_vm_that_somebody_else_starts(
    ctx: Context, recorder: Recorder, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    instance = Instance(NAME, "Running", directory)
    recorder.on("ssh", then=[failed("", 255), failed("", 1), Result(0)])
    vm_start.wait_ready(ctx, instance, {})
    assert readiness.was_ready(instance)
    asked = len(recorder.calls)
    vm_start.wait_ready(ctx, instance, {})
    assert len(recorder.calls) == asked  # a warm attach asks nobody
    (directory / "ha.pid").write_text("1\n")
    recorder.on("ssh", then=failed("", 255))
    with pytest.raises(StartError, match="does not get ready"):
        vm_start.wait_ready(ctx, instance, {}, timeout=5)


# -- shares ------------------------------------------------------------------------------------------


def test_a_shared_directory_that_is_gone_is_never_made_anew(project: Path, document: dict[str, Any]) -> None:
    shares.check_shares(document)
    project.rmdir()
    with pytest.raises(StartError, match=f"Directory not found: {project}") as caught:
        shares.check_shares(document)
    assert "prune --orphans" in (caught.value.resolution or "") and not project.exists()


def test_one_that_became_a_file_or_a_symlink_is_not_shared(project: Path, document: dict[str, Any]) -> None:
    project.rmdir()
    project.touch()
    with pytest.raises(StartError, match="is not a directory any more"):
        shares.check_shares(document)
    project.unlink()
    (project.parent / ".ssh").mkdir()
    project.symlink_to(".ssh")
    with pytest.raises(RefusedError, match=r"has become a symlink to .*\.ssh"):
        shares.check_shares(document)


def test_one_that_cannot_be_opened_is_not_called_a_symlink(
    project: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(directory: Path) -> system_lookup.Identity:
        raise PermissionError(errno.EACCES, "Permission denied", str(directory))

    monkeypatch.setattr(shares, "identity", closed)
    with pytest.raises(StartError, match="cannot be opened: Permission denied"):
        shares.check_shares(document)


def test_a_symlink_on_the_way_counts_too(home: Path) -> None:
    (home / "a" / "p").mkdir(parents=True)
    document = {"mounts": vm_lima_yaml.mounts([Share(home / "a" / "p", Path("/p"), True)])}
    shares.check_shares(document)
    (home / "a").rename(home / "b")
    (home / "a").symlink_to("b")
    with pytest.raises(RefusedError, match="has become a symlink"):
        shares.check_shares(document)


# -- ports -------------------------------------------------------------------------------------------


def test_a_taken_port_is_told_before_the_start() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(StartError, match=f"Host port {port} is taken") as caught:
            vm_checks.check_ports((Port(port, 80),))
        assert "-p OTHER:80" in (caught.value.resolution or "")
    vm_checks.check_ports((Port(port, 80),))
    vm_checks.check_ports(())


@pytest.mark.spec("4.6")
def test_a_port_below_1024_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.bind

    def bind(self: socket.socket, address: tuple[str, int]) -> None:
        if address[1] < 1024:
            raise PermissionError(13, "Permission denied")
        real(self, address)

    class Ordinary(socket.socket):
        pass

    Ordinary.bind = bind  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(socket, "socket", Ordinary)
    with pytest.raises(StartError, match="Host port 80 is below 1024") as caught:
        vm_checks.check_ports((Port(80, 8080),))
    assert "-p 8080:8080" in (caught.value.resolution or "")


# -- what Lima would really use ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "extra", "words"),
    [
        ("override.yaml", {"mounts": [{"location": "/srv"}]}, "mount of /srv at /srv"),
        ("default.yaml", {"portForwards": [{"guestPort": 5, "hostPort": 6}]}, "port forward"),
        (None, {"propagateProxyEnv": True}, "propagateProxyEnv"),
    ],
)
def test_a_refusal_says_what_and_where(
    ctx: Context,
    recorder: Recorder,
    directory: Path,
    document: dict[str, Any],
    file: str | None,
    extra: Any,
    words: str,
) -> None:
    where = directory / "lima.yaml"
    if file:
        (ctx.lima.home / "_config").mkdir()
        where = ctx.lima.home / "_config" / file
        where.touch()
    merged = {
        key: [*value, *document[key]] if isinstance(value, list) else value for key, value in extra.items()
    }
    shown(recorder, {**document, **merged})
    with pytest.raises(RefusedError, match=words) as caught:
        vm_checks.check_effective(ctx, NAME, document)
    assert str(where) in (caught.value.details or "") and "LIMA_HOME" in (caught.value.resolution or "")


def test_a_config_that_lima_cannot_read_names_the_file(
    ctx: Context, recorder: Recorder, directory: Path
) -> None:
    recorder.on("limactl", "list", then=Result(0, b"null\n"))
    with pytest.raises(StartError, match=f"cannot read the configuration of {NAME}: {directory}/lima.yaml"):
        vm_checks.check_effective(ctx, NAME, {})


@pytest.mark.parametrize("content", [b"a: [", b"- a\n", b"\xff\xfe", None])
def test_an_unreadable_lima_yaml_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "lima.yaml").write_bytes(content)
    with pytest.raises(StartError, match=str(tmp_path / "lima.yaml")):
        vm_document.read(Instance("x", "Stopped", tmp_path))


def test_a_document_is_written_and_read_back(ctx: Context, project: Path, document: dict[str, Any]) -> None:
    place = put_instance(ctx, NAME)
    odd = {
        **document,
        "mounts": vm_lima_yaml.mounts([Share(Path("/p/ä: #{{x}}"), Path("/mnt/project"), True)]),
    }
    vm_document.write(ctx, place, odd)
    assert vm_document.read(Instance(NAME, "Stopped", place)) == odd
    found = ctx.lima.read_instance_files(NAME)
    assert found is not None and project_of(found) == project


# -- stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "force", "argv"),
    [
        ("Stopped", False, None),
        ("Stopped", True, ("stop", "--tty=false", "--force", NAME)),
        ("Running", False, ("stop", "--tty=false", NAME)),
        ("Running", True, ("stop", "--tty=false", "--force", NAME)),
        ("Broken", False, ("stop", "--tty=false", "--force", NAME)),
    ],
)
def test_stopping(
    ctx: Context, recorder: Recorder, status: str, force: bool, argv: tuple[str, ...] | None
) -> None:
    vm_stop.stop(ctx, Instance(NAME, status, put_instance(ctx, NAME)), force=force)
    assert recorder.argvs() == ([("limactl", *argv)] if argv else [])


def test_stopping_ends_our_own_connection_first(ctx: Context, recorder: Recorder) -> None:
    instance = Instance(NAME, "Running", put_instance(ctx, NAME))
    ctx.guest(instance).control_path.touch()
    vm_stop.stop(ctx, instance)
    assert [argv[0] for argv in recorder.argvs()] == ["ssh", "limactl"] and "exit" in recorder.argvs()[0]


@pytest.fixture
def qemu(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process like Lima's: it names its pid file in the instance directory."""
    line = ["sh", "-c", "sleep 60; :", "-pidfile", f"{home}/.lima/{NAME}/qemu.pid"]
    process = subprocess.Popen(line, start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def test_pid_files_of_other_processes_are_removed_before_lima_kills_them(
    ctx: Context, qemu: subprocess.Popen[bytes]
) -> None:
    directory = put_instance(ctx, NAME)
    (directory / "ha.sock").touch()
    (directory / "ha.pid").write_text(f"{os.getpid()}\n")  # alive, but no process of Lima's
    (directory / "qemu.pid").write_text(f"{qemu.pid}\n")
    assert vm_processes.make_pid_files_true(directory)
    assert not (directory / "ha.pid").exists()
    assert (directory / "qemu.pid").exists() and (directory / "ha.sock").exists()  # something of it runs
    assert not vm_processes.make_pid_files_true(directory)
    os.utime(
        directory / "qemu.pid", (1, 1)
    )  # the clock was put right after the start: still the VM's process
    assert not vm_processes.make_pid_files_true(directory) and (directory / "qemu.pid").exists()
    (directory / "qemu.pid").write_text(f"{os.getpid()}\n")
    assert vm_processes.make_pid_files_true(directory)  # what runs gets its pid file again
    assert (directory / "qemu.pid").read_text() == f"{qemu.pid}\n"
    os.killpg(qemu.pid, 9)
    qemu.wait()
    assert vm_processes.make_pid_files_true(directory)
    assert not list(directory.glob("*.pid")) and not (directory / "ha.sock").exists()
    assert (directory / "lima.yaml").exists()


def test_pid_files_without_a_process_or_with_garbage(ctx: Context) -> None:
    directory = put_instance(ctx, NAME)
    (directory / "ha.pid").write_text(f"{2**22 + 1}\n")
    (directory / "x.pid").write_text("garbage")
    assert vm_processes.make_pid_files_true(directory)
    assert [p.name for p in directory.glob("*.pid")] == ["x.pid"]


def test_a_forced_stop_does_not_let_lima_kill_somebody_else(ctx: Context, recorder: Recorder) -> None:
    directory = put_instance(ctx, NAME)
    (directory / "ha.pid").write_text(f"{os.getpid()}\n")

    def there(_command: Command) -> Result:
        assert not (directory / "ha.pid").exists()
        return failed("nothing to stop")

    recorder.on("limactl", "stop", then=there)
    vm_stop.force_stop(ctx, NAME)  # Lima's complaint is no error of ours
    assert recorder.verbs() == ["stop"]


def test_what_can_be_done_early_begins_when_the_guest_answers(
    ctx: Context, recorder: Recorder, directory: Path, document: dict[str, Any]
) -> None:
    lines = (
        '[hostagent] Waiting for the essential requirement 2 of 3: "user session is ready for ssh"',
        "[hostagent] The essential requirement 2 of 3 is satisfied",
        "READY.",
    )
    recorder.on("limactl", "start", then=Result(0, b"", "\n".join(lines).encode()))
    heard: list[str] = []
    vm_start.start(ctx, NAME, document, on_ssh_ready=lambda coming: heard.append(coming.name))
    assert heard == [NAME]
    start = next(call for call in recorder.calls if "start" in call.argv)
    guest = ctx.guest(Instance(NAME, "Stopped", directory))
    env = start.command.env
    assert env["CLAUDE_SANDBOX_CONTROL"] == str(guest.control_path)
    assert env["CLAUDE_SANDBOX_SHARED"] == str(directory / "ssh.sock")  # where Lima looks for its own
    assert shlex.split(env["CLAUDE_SANDBOX_MASTER"] or "") == list(guest.master(directory / "ssh.sock")[1:])
    vm_start.start(ctx, NAME, document)
    later = [call for call in recorder.calls if "start" in call.argv][-1]
    assert "CLAUDE_SANDBOX_MASTER" not in later.command.env
