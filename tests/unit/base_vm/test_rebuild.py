"""Building the tools VM beside the old one, trying it, and the swap (spec 1.9, 8.3, 4.14).

Against the fake limactl (tests/fakes): real directories, real kills.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakedisk
import pytest

from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
from _claude_sandbox.base_vm import exchange as base_vm_exchange
from _claude_sandbox.base_vm import lima_yaml as base_vm_lima_yaml
from _claude_sandbox.base_vm import rebuild as base_vm_rebuild
from _claude_sandbox.errors import CreateError, UsageError
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Lima
from _claude_sandbox.system import exchange as system_exchange
from _claude_sandbox.system.run import LocalRunner, Result
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm.mark import mark_of
from tests.support.box import ROOT, Box
from tests.support.recording import Told, told

NAME, TEMPORARY = "tools-vm", "tools-vm-new"

# The rebuild without an image: what the tests of test_image.py are about, and a guest that is this host.
DRIVER = """
import os, sys
from pathlib import Path
from _claude_sandbox.base_vm import exchange, lima_yaml, rebuild
from _claude_sandbox.lima.context import Context, GuestUser
from _claude_sandbox.base_vm.packages.build import GuestImage
from _claude_sandbox.base_vm.packages.recipe import ARCHES
from _claude_sandbox.lima.limactl import Lima
from _claude_sandbox.system.run import LocalRunner

image = Path(os.environ["HOME"]) / "image"
image.mkdir(exist_ok=True)
for name in ("disk.qcow2", "kernel", "initrd"):
    (image / name).write_text(os.environ.get("IMAGE") or name)

def document(build):
    return lima_yaml.from_image(GuestImage(image, ARCHES["x86_64"]), build.spec)

rebuild._document = document
step = os.environ.get("KILL_AT")
if step:
    module, name = step.split(".")
    module = {"rebuild": rebuild, "system_exchange": exchange.system_exchange}.get(module) or getattr(rebuild, module)
    real = getattr(module, name)
    def die(*args, **kwargs):
        if step == "system_exchange.exchange" and args[1].name == "disk":
            return real(*args, **kwargs)  # that of freezing; test_golden.py cuts it off
        if os.environ["KILL_WHEN"] == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), 9)
    setattr(module, name, die)
ctx = Context(Lima(LocalRunner(), Path(os.environ["LIMA_HOME"])), GuestUser("tester", 1000))
request = rebuild.BuildRequest(2, 2 << 30, 20 << 30, only=["claude"], from_packages=True)
report = rebuild.rebuild(ctx, request)
sys.exit(0 if report.ok else 1)
"""


def drive(box: Box, **env: str) -> subprocess.CompletedProcess[str]:
    """One rebuild in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        env={**box.env, "PYTHONPATH": str(ROOT), **env},
        cwd=box.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mark(box: Box, name: str) -> vm_mark.Mark | None:
    env: dict[str, str | None] = {**box.env, "FAKE_LIMA_FAULTS": None, "FAKE_LIMA_LOG": None}
    instance = Lima(LocalRunner(), box.lima_home, executable=str(box.bin / "limactl"), env=env).get(name)
    return mark_of(instance) if instance else None


def inode(box: Box, name: str = NAME) -> int:
    return (box.lima_home / name).stat().st_ino


def assert_whole(box: Box) -> None:
    """A tools VM of ours stands there, stopped, protected, and nothing else does."""
    assert box.vms() == {NAME: "Stopped"}
    assert mark(box, NAME) == vm_mark.Mark(vm_mark.TOOLS, NAME)
    assert (box.lima_home / NAME / "protected").exists()
    assert not (box.lima_home / NAME / base_vm_exchange.NOTE).exists()
    assert not (box.lima_home / TEMPORARY).exists()


# -- the good way ------------------------------------------------------------------------------------


def test_the_first_one(box: Box) -> None:
    done = drive(box)
    assert done.returncode == 0, done.stderr
    assert_whole(box)
    document = (box.lima_home / NAME / "lima.yaml").read_text()
    assert "PARAM_csMark" in document and "forwardAgent: false" in document and "mounts: []" in document
    assert not (box.lima_home / NAME / "cidata.iso").exists()
    verbs = [argv[0] for argv in box.calls()]
    assert [v for v in verbs if v in ("create", "start", "stop", "protect")] == [
        "create",
        "start",
        "stop",
        "protect",
    ]


@pytest.mark.spec("1.9", "8.3")
def test_a_new_one_takes_the_place_of_the_old(box: Box) -> None:
    box.tools_vm()
    before = inode(box)
    done = drive(box)
    assert done.returncode == 0, done.stderr
    assert_whole(box)
    assert inode(box) != before


@pytest.mark.skipif(sys.platform != "linux", reason="disks are linked on Linux only")
def test_a_rebuild_freezes_its_disk_and_frees_only_what_nothing_uses(box: Box) -> None:
    def below(name: str) -> Path:
        return Path(fakedisk.backing(box.lima_home / name / "disk"))

    assert drive(box, IMAGE="one;").returncode == 0
    first = below(NAME)
    assert fakedisk.content(first) == b"one;"
    assert (ended := box.run("create")).code == 0, ended.text
    assert box.run("stop").code == 0
    assert drive(box, IMAGE="two;").returncode == 0
    second = below(NAME)
    assert fakedisk.content(second) == b"two;" and below("claude-sandbox-app") == first
    assert (ended := box.run("start")).code == 0, ended.text
    assert fakedisk.content(box.lima_home / "claude-sandbox-app" / "disk") == b"one;"
    assert drive(box, IMAGE="three;").returncode == 0
    assert first.exists() and not second.exists() and below(NAME).exists()
    assert box.run("delete").code == 0
    assert_whole(box)
    assert str(first) in box.run("prune", "--cache").out and not first.exists()


def test_a_tools_vm_called_golden(box: Box) -> None:
    driver = DRIVER.replace('only=["claude"]', 'name="golden", only=["claude"]')
    done = subprocess.run(
        [sys.executable, "-c", driver], env={**box.env, "PYTHONPATH": str(ROOT)}, cwd=box.root,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert box.vms() == {"golden": "Stopped"}


@pytest.mark.skipif(sys.platform != "linux", reason="disks are linked on Linux only")
def test_a_rebuild_keeps_what_a_disk_elsewhere_stands_on(box: Box) -> None:
    """The user moved an old sandbox's disk to another file system and left a symlink."""
    assert drive(box, IMAGE="one;").returncode == 0
    (first,) = (box.home / ".local/share/claude-sandbox/golden").glob("*.qcow2")
    assert (ended := box.run("create")).code == 0, ended.text
    assert box.run("stop").code == 0
    disk, moved = box.lima_home / "claude-sandbox-app" / "disk", box.root / "moved"
    disk.rename(moved)
    disk.symlink_to(moved)
    assert drive(box, IMAGE="two;").returncode == 0
    assert first.exists() and fakedisk.content(disk) == b"one;"
    moved.rename(box.root / "unmounted")
    done = drive(box, IMAGE="three;")
    assert done.returncode == 0, done.stderr
    assert first.exists()
    (box.root / "unmounted").rename(moved)
    assert (ended := box.run("start")).code == 0, ended.text


def test_a_clone_and_the_exchange_do_not_meet(box: Box) -> None:
    """A sandbox is cloned while a rebuild is done: the exchange waits until the copy is whole.

    Without freezing (as on macOS): that waits for the clone too, but for one that has begun before it only.
    """
    box.tools_vm()
    before = inode(box)
    box.fault("clone", delay=120)  # it is ended below, in the middle of the clone
    create = box.spawn("create")
    wait_for(lambda: box.calls(verb="clone"))
    box.mend()
    rebuild = subprocess.Popen(
        [sys.executable, "-c", DRIVER.replace("report =", "rebuild.linked_clone.move_disk_to_store = lambda ctx, base: None\nreport =")],
        env={**box.env, "PYTHONPATH": str(ROOT)}, cwd=box.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Its last step before the exchange: from then on only the lock keeps it.
    wait_for(lambda: box.calls(verb="protect"))
    note = box.lima_home / TEMPORARY / base_vm_exchange.NOTE
    wait_for(note.exists)
    time.sleep(1.5)
    assert rebuild.poll() is None and inode(box) == before and note.exists()
    create.send_signal(signal.SIGTERM)
    assert create.wait(30) == 143
    create.communicate()
    assert rebuild.wait(60) == 0
    assert_whole(box)
    assert inode(box) != before


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.spec("1.9")
def test_a_missing_tool_swaps_nothing(box: Box) -> None:
    box.tools_vm()
    before = inode(box)
    driver = DRIVER.replace("report =", "from dataclasses import replace\n"
        "table = rebuild.choose\n"
        "rebuild.choose = lambda only: tuple(replace(t, verify='false') for t in table(only))\nreport =")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", driver],
        env={**box.env, "PYTHONPATH": str(ROOT)},
        cwd=box.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and not done.stderr
    assert_whole(box)
    assert inode(box) == before


# -- what is already there ---------------------------------------------------------------------------


def test_a_foreign_vm_is_never_touched(box: Box) -> None:
    directory = box.vm(NAME)
    done = drive(box)
    assert "SandboxExistsError" in done.stderr and "did not build it" in done.stderr
    assert directory.exists() and mark(box, NAME) is None
    assert not box.calls(verb="create")


def test_a_copy_of_ours_is_foreign(box: Box) -> None:
    box.tools_vm("other")
    box.limactl("clone", "--tty=false", "other", NAME)
    assert "SandboxExistsError" in drive(box).stderr


def test_a_directory_that_is_no_vm(box: Box) -> None:
    (box.lima_home / NAME).mkdir()
    (box.lima_home / NAME / "notes").write_text("mine")
    assert "SandboxExistsError" in drive(box).stderr
    assert (box.lima_home / NAME / "notes").read_text() == "mine"


def test_a_running_one_is_not_replaced(box: Box) -> None:
    box.tools_vm()
    box.limactl("start", "--tty=false", NAME)
    done = drive(box)
    assert "CreateError" in done.stderr and "is Running" in done.stderr
    assert box.vms() == {NAME: "Running"}


def test_a_foreign_vm_under_the_temporary_name(box: Box) -> None:
    box.vm(TEMPORARY)
    assert "SandboxExistsError" in drive(box).stderr
    assert box.vms() == {TEMPORARY: "Stopped"}


def test_a_finished_tools_vm_under_the_temporary_name(box: Box) -> None:
    """`rebuild-tools-vm tools-vm-new` made it; it is not what a killed rebuild of tools-vm left."""
    box.tools_vm(TEMPORARY)
    assert "SandboxExistsError" in drive(box).stderr
    assert box.vms() == {TEMPORARY: "Stopped"}


def test_a_hand_made_clone_under_the_temporary_name(box: Box) -> None:
    """It carries the mark of its source, and the note of a swap too: still it is not ours."""
    box.tools_vm()
    base_vm_exchange.write_note(box.lima_home / NAME)
    box.limactl("clone", "--tty=false", NAME, TEMPORARY)
    assert (box.lima_home / TEMPORARY / base_vm_exchange.NOTE).exists()
    assert "SandboxExistsError" in drive(box).stderr
    assert (box.lima_home / TEMPORARY).exists()


# -- faults and kills --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["create", "start", "stop", "protect"])
def test_a_failing_limactl_leaves_the_old_one(box: Box, verb: str) -> None:
    box.tools_vm()
    before = inode(box)
    box.fault(verb, fail="disk I/O error", rc=1)
    done = drive(box)
    assert "CreateError" in done.stderr and "disk I/O error" in done.stderr
    box.mend()
    assert inode(box) == before
    if verb == "stop":  # the new one runs on, and nothing is removed under it: the next rebuild does that
        assert box.vms() == {NAME: "Stopped", f"{NAME}-new": "Running"}
        assert (again := drive(box)).returncode == 0, again.stderr
    assert_whole(box)


MOMENTS = [(verb, when) for verb in ("create", "start", "stop") for when in ("before", "during", "after")]
KILLS = [
    *((*moment, old) for moment in [*MOMENTS, ("start", "booting")] for old in (True, False)),
    *(("delete", when, True) for when in ("before", "during", "after")),
]


@pytest.mark.parametrize(("verb", "when", "old"), KILLS)
def test_killed_in_limactl(box: Box, verb: str, when: str, old: bool) -> None:
    if old:
        box.tools_vm()
    box.fault(verb, kill_parent=when, die=True)
    assert drive(box).returncode == -9
    box.mend()
    if old:
        assert mark(box, NAME) == vm_mark.Mark(vm_mark.TOOLS, NAME), "the tools VM works at any instant"
    done = drive(box)
    assert done.returncode == 0, done.stderr
    assert_whole(box)


STEPS = [
    "rebuild._build_and_try",
    "linked_clone.move_disk_to_store",
    "linked_clone._exchange_disks",
    "rebuild._replace_old",
    "exchange.put_in_place",
    "exchange.write_note",
    "vm_document.write",
    "system_exchange.exchange",
    "exchange.remove",
]


@pytest.mark.spec("8.3")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_between(box: Box, step: str, when: str) -> None:
    box.tools_vm()
    assert drive(box, KILL_AT=step, KILL_WHEN=when).returncode == -9
    assert mark(box, NAME) == vm_mark.Mark(vm_mark.TOOLS, NAME)
    assert (box.lima_home / NAME / "protected").exists()
    done = drive(box)
    assert done.returncode == 0, done.stderr
    assert_whole(box)


# -- in this process ---------------------------------------------------------------------------------


def rebuild(home: Path, name: str = NAME, only: Sequence[str] = ()) -> base_vm_rebuild.BuildReport:
    ctx = Context(Lima(LocalRunner(), home / ".lima"), lima_context.GuestUser("me", 1000), Told())
    return base_vm_rebuild.rebuild(
        ctx, base_vm_rebuild.BuildRequest(1, GIB, 20 * GIB, name, only, from_packages=True)
    )


def test_names_and_tools_are_checked_first(home: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        rebuild(home, name="x" * 70)
    with pytest.raises(UsageError, match="Unknown tool"):
        rebuild(home, only=["nonsense"])


@pytest.mark.spec("8.2")
def test_the_mode_is_found_out(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_vm_rebuild, "reachable", lambda _: False)
    assert base_vm_rebuild.build_from_packages(ctx, None) and "distribution's packages" in told(ctx).notes[0]
    monkeypatch.setattr(base_vm_rebuild, "reachable", lambda _: True)
    assert not base_vm_rebuild.build_from_packages(ctx, None)
    assert base_vm_rebuild.build_from_packages(ctx, True)


def test_without_packages_a_mac_cannot_go_on(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_vm_rebuild, "reachable", lambda _: False)
    with pytest.raises(CreateError, match="cannot be reached"):
        base_vm_rebuild.build_from_packages(replace(ctx, macos=True), None)


def test_what_cannot_be_reached() -> None:
    assert not base_vm_rebuild.reachable("http://127.0.0.1:1/x.img")
    assert not base_vm_rebuild.reachable("no address")


def test_a_report_is_ok_without_what_the_mode_cannot_have() -> None:
    check = base_vm_rebuild.ToolCheck("git", True, "2", "")
    report = base_vm_rebuild.BuildReport("x", (check, replace(check, ok=None)), Path("log"), 1.0, True)
    assert report.ok and not replace(report, tools=(check, replace(check, ok=False))).ok


# -- the documents -----------------------------------------------------------------------------------

MEANT = vm_lima_yaml.SandboxSpec(
    mark=vm_mark.Mark(vm_mark.TOOLS, TEMPORARY),
    user=lima_context.GuestUser("me", 501),
    shares=(),
    cpus=4,
    memory=8 << 30,
    disk=100 << 30,
)


def test_the_cloud_document() -> None:
    chosen = base_vm_catalogue.choose(["claude", "uv"])
    document = base_vm_lima_yaml.from_cloud(base_vm_lima_yaml.load(), chosen, MEANT)
    assert document["param"]["tools"] == "claude python3 uv" and "csMark" in document["param"]
    assert document["user"] == {"name": "me", "uid": 501, "home": "/home/me.guest"}
    assert (document["memory"], document["disk"], document["cpus"]) == ("8GiB", "100GiB", 4)
    assert document["mounts"] == [] and document["mountType"] == "9p" and document["vmType"] == "qemu"
    data = {entry["path"]: entry for entry in document["provision"] if entry["mode"] == "data"}
    assert "/etc/ssh/sshd_config.d/90-claude-sandbox.conf" in data
    scripts = "".join(entry.get("script", "") for entry in document["provision"])
    assert all(f"PARAM_{name}" in scripts for name in document["param"])
    assert not any("file" in entry for entry in document["provision"])


def test_the_cloud_document_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    document = base_vm_lima_yaml.from_cloud(
        base_vm_lima_yaml.load(), base_vm_catalogue.TOOLS, replace(MEANT, macos=True)
    )
    assert document["vmType"] == "vz" and document["mountType"] == "virtiofs"
    assert document["vmOpts"]["vz"]["rosetta"]["enabled"] is True


def test_what_the_finished_one_keeps() -> None:
    built = base_vm_lima_yaml.from_cloud(base_vm_lima_yaml.load(), base_vm_catalogue.TOOLS, MEANT)
    final = base_vm_lima_yaml.final(built, vm_mark.Mark(vm_mark.TOOLS, NAME).encode())
    assert final["param"] == {"csMark": "1;tools;tools-vm;;0;0"} and len(final["provision"]) == 1
    assert "PARAM_csMark" in final["provision"][0]["script"]
    assert final["images"] == built["images"]


def test_the_hosts_cas_and_proxy_are_for_the_downloads_of_the_build_only(home: Path) -> None:
    spec = replace(MEANT, proxy=True, ca_files=("/etc/host.crt",))
    built = base_vm_lima_yaml.from_cloud(base_vm_lima_yaml.load(), base_vm_catalogue.TOOLS, spec)
    assert built["caCerts"] == {"files": ["/etc/host.crt"]} and built["propagateProxyEnv"] is True
    final = base_vm_lima_yaml.final(built, vm_mark.Mark(vm_mark.TOOLS, NAME).encode())
    assert "caCerts" not in final and final["propagateProxyEnv"] is False


def test_what_the_ubuntu_scripts_said_is_in_the_log(tmp_path: Path) -> None:
    class Guest:
        def run(self, script: str) -> Result:
            assert base_vm_rebuild.PROVISIONING_LOG in script
            return Result(0, b"claude-sandbox: docker FAILED (6)\n")

    build: Any = SimpleNamespace(from_packages=False, logfile=tmp_path / "log")
    base_vm_rebuild._keep_provisioning(build, Guest())  # type: ignore[arg-type]
    assert "docker FAILED" in build.logfile.read_text()
    build.from_packages, build.logfile = True, tmp_path / "none"
    base_vm_rebuild._keep_provisioning(build, Guest())  # type: ignore[arg-type]
    assert not build.logfile.exists()


def test_a_note_is_only_for_its_own_directory(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert not base_vm_exchange.has_note(one)
    base_vm_exchange.write_note(one)
    assert base_vm_exchange.has_note(one)
    (other / base_vm_exchange.NOTE).write_bytes((one / base_vm_exchange.NOTE).read_bytes())
    assert not base_vm_exchange.has_note(other)
    system_exchange.exchange(one, other)
    assert base_vm_exchange.has_note(other) and not base_vm_exchange.has_note(one)
    assert json.loads((other / base_vm_exchange.NOTE).read_text())["version"] == 1
