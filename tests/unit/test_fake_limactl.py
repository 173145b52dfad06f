"""The fake limactl behaves as the real one (2.2.0) where the program depends on it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from _claude_sandbox.errors import LimaError
from _claude_sandbox.lima.limactl import Lima
from _claude_sandbox.system.run import LocalRunner
from _claude_sandbox.vm.mark import mark_of
from tests.support.box import Box


@pytest.fixture
def lima(box: Box) -> Lima:
    return Lima(LocalRunner(), box.lima_home, executable=str(box.bin / "limactl"), env=box.env)


def test_empty_home_lists_nothing(lima: Lima) -> None:
    assert lima.list() == []
    assert lima.version() == (2, 2, 0)


def test_life_of_an_instance(box: Box, lima: Lima) -> None:
    box.tools_vm("base")
    lima.clone("base", "copy")
    assert [(i.name, i.status, i.protected) for i in lima.list()] == [
        ("base", "Stopped", True),
        ("copy", "Stopped", False),
    ]
    lines: list[str] = []
    assert lima.start("copy", on_line=lines.append).ok
    assert any("READY. Run `limactl shell copy`" in line for line in lines)
    instance = lima.get("copy")
    assert instance is not None and instance.status == "Running" and instance.ssh_port > 0
    found = lima.read_instance_files("copy")
    assert found is not None and found.status == "Running"
    assert mark_of(found) is None  # a copy carries the base's mark, which names the base
    lima.stop("copy")
    assert box.vms() == {"base": "Stopped", "copy": "Stopped"}
    lima.delete("copy")
    assert lima.get("copy") is None


def test_refusals_in_lima_s_words(box: Box, lima: Lima) -> None:
    box.tools_vm("base")
    lima.start("base")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: lima.clone("base", "x"), "cannot clone a running instance"),
        (lambda: lima.clone("nope", "x"), "instance `nope` not found"),
        (lambda: lima.delete("base"), "instance is protected to prohibit accidental removal"),
        (lambda: lima.stop("nope"), "lima.yaml: no such file or directory"),
    ]
    for call, words in cases:
        with pytest.raises(LimaError, match=words):
            call()
    lima.stop("base")
    with pytest.raises(LimaError, match=r"expected status `Running`, got `Stopped`"):
        lima.stop("base")
    with pytest.raises(LimaError, match="is not a valid identifier"):
        lima.clone("base", "bad--name")
    with pytest.raises(LimaError, match="too long"):
        lima.clone("base", "x" * 76)


def test_broken_and_unreadable(box: Box, lima: Lima) -> None:
    directory = box.vm("a")
    (directory / "qemu.pid").write_text(f"{os.getpid()}\n")
    assert box.vms() == {"a": "Broken"}
    (directory / "qemu.pid").write_text(f"{dead_pid()}\n")
    assert box.vms() == {"a": "Stopped"}
    assert not (directory / "qemu.pid").exists()
    (directory / "lima.yaml").write_text("foo: [")
    assert box.vms() == {"a": ""}
    (directory / "lima.yaml").unlink()
    assert box.vms() == {"a": "Broken"}
    with pytest.raises(LimaError, match="it was NOT deleted"):
        lima.delete("a")


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_unused_param_and_mount_of_a_file(box: Box) -> None:
    document = {"images": [{"location": "https://x", "arch": "x86_64"}], "param": {"a": "1"}}
    (box.root / "x.yaml").write_text(json.dumps(document))
    ended = box.limactl("create", "--name=x", str(box.root / "x.yaml"), check=False)
    assert "key `a` is not used" in ended.err and ended.code == 1
    directory = box.vm("y", {"mounts": [{"location": str(box.project("p"))}]})
    box.project("p").rmdir()
    (box.root / "p" / "p").write_text("")
    assert box.vms() == {"y": ""}
    assert directory.exists()


def test_config_merges_lima_s_own_files(box: Box, lima: Lima) -> None:
    box.vm(
        "a",
        {"mounts": [{"location": str(box.project())}], "portForwards": [{"guestPort": 80, "hostPort": 8080}]},
    )
    (box.lima_home / "_config").mkdir()
    (box.lima_home / "_config" / "override.yaml").write_text(
        "mounts: [{location: /srv}]\nssh: {forwardAgent: true}\nportForwards: [{guestPort: 81}]\n"
    )
    config = lima.config("a")
    assert [m["location"] for m in config["mounts"]] == [str(box.project()), "/srv"]
    assert [r["guestPortRange"] for r in config["portForwards"]] == [[81, 81], [80, 80]]
    assert config["ssh"]["forwardAgent"] is True


def test_start_of_an_unknown_name_creates_from_the_default_template(box: Box) -> None:
    box.limactl("start", "--tty=false", "nope")
    assert box.vms() == {"nope": "Running"}


def test_faults(box: Box, lima: Lima) -> None:
    box.tools_vm("base")
    box.fault("list", garbage=True)
    with pytest.raises(LimaError, match="unreadable"):
        lima.list()
    box.fault("list", fail="boom", rc=3)
    with pytest.raises(LimaError, match="boom"):
        lima.list()
    box.mend()
    box.fault("clone.1", partial=True)
    with pytest.raises(LimaError, match="no space left"):
        lima.clone("base", "half")
    assert (box.lima_home / "half" / "disk").exists()
    assert not (box.lima_home / "half" / "lima.yaml").exists()
    lima.clone("base", "whole")
    box.fault("start", degraded="guest agent does not seem to be running")
    result = lima.start("whole")
    assert result.returncode == 1 and "degraded, status=" in result.error_text
    assert box.vms()["whole"] == "Running"


def ssh(
    box: Box, name: str, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    config = box.lima_home / name / "ssh.config"
    return subprocess.run(
        [str(box.bin / "ssh"), "-F", str(config), *arguments], env={**box.env, **(env or {})},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_ssh_passes_only_what_client_and_master_name(box: Box) -> None:
    box.vm("a")
    assert ssh(box, "a", "lima-a", "true").returncode == 255
    box.limactl("start", "a")
    secret = {"CLAUDE_SANDBOX_ENV": "hello"}
    show = 'echo "[$CLAUDE_SANDBOX_ENV]"; pwd'
    send = ("-o", "SendEnv=CLAUDE_SANDBOX_ENV")
    # Through Lima's own master it arrives empty.
    assert ssh(box, "a", *send, "lima-a", show, env=secret).stdout.splitlines()[0] == "[]"
    ours = ("-o", f"ControlPath={box.root}/m")
    assert ssh(box, "a", *ours, "-O", "check", "lima-a").returncode == 255
    assert ssh(box, "a", *ours, *send, "-f", "-N", "lima-a").returncode == 0
    assert ssh(box, "a", *ours, "-O", "check", "lima-a").returncode == 0
    answer = ssh(box, "a", *ours, *send, "lima-a", show, env=secret)
    assert answer.stdout.splitlines() == ["[hello]", str(box.guest("a") / "home")]
    assert ssh(box, "a", *ours, "lima-a", "exit 7").returncode == 7
    box.limactl("stop", "a")
    assert ssh(box, "a", *ours, "-O", "check", "lima-a").returncode == 255
