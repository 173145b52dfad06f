"""What `setup` would run on each platform, and that Lima is put in place whole or not (issue item 2)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import install as host_install
from _claude_sandbox.host import install_lima, inventory, run_as
from _claude_sandbox.host.inventory import Missing
from _claude_sandbox.system.run import Command, Result
from tests.support.recording import Recorder, Told, failed

ALL = (
    "qemu-system-x86_64",
    "qemu-img",
    "ssh",
    "tmux",
    "firmware",
    "mmdebstrap",
    "newuidmap",
    "mke2fs",
    "unshare",
)
NAME = install_lima.release_name()


@pytest.fixture
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(programs, missing)`: what is on PATH, and what `host` finds missing."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(run_as, "is_root", lambda: False)
    monkeypatch.setattr(inventory, "machine", lambda: "x86_64")
    monkeypatch.setattr(inventory, "missing_for_packages", lambda project=None: [])
    monkeypatch.setattr(install_lima, "release_reachable", lambda: True)

    def make(programs: str, missing: str, optional: str = "") -> None:
        there = programs.split()
        monkeypatch.setattr(shutil, "which", lambda name, **_: f"/bin/{name}" if name in there else None)
        lost = [Missing(name, "for a test") for name in missing.split()]
        lost += [Missing(name, "for a test", False) for name in optional.split()]
        lima = [item for item in lost if item.name == "lima"]
        monkeypatch.setattr(inventory, "missing_lima", lambda _runner: list(lima))
        monkeypatch.setattr(
            inventory, "missing_system", lambda _project=None: [i for i in lost if i not in lima]
        )

    return make


Machine = Callable[..., None]


def lines(recorder: Recorder, everything: bool = False) -> list[str]:
    return host_install.plan(recorder, everything=everything).describe()


def test_nothing_missing_is_no_plan_and_no_network(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("apt-get", "", "tmux firmware")
    monkeypatch.setattr(install_lima, "release_reachable", lambda: pytest.fail("asked the network"))
    assert host_install.plan(recorder) == host_install.SetupPlan()


def test_the_verb_setup_takes_the_optional_too(machine: Machine, recorder: Recorder) -> None:
    machine("apt-get sudo", "", "tmux")
    assert lines(recorder, everything=True)[-1].endswith("install -y --no-install-recommends tmux")


@pytest.mark.parametrize(
    ("manager", "wanted"),
    [
        (
            "apt-get",
            "-y --no-install-recommends qemu-system-x86 qemu-utils openssh-client tmux ovmf",
        ),
        ("dnf", "sudo dnf install -y qemu-system-x86 qemu-img openssh-clients tmux edk2-ovmf"),
        ("pacman", "sudo pacman -Sy --needed --noconfirm qemu-system-x86 qemu-img openssh tmux edk2-ovmf"),
    ],
)
def test_packages_of_each_manager(machine: Machine, recorder: Recorder, manager: str, wanted: str) -> None:
    machine(f"{manager} sudo", "qemu-system-x86_64 qemu-img ssh", "tmux firmware")
    assert lines(recorder)[-1].endswith(wanted) and lines(recorder)[-1].startswith("sudo ")


def test_root_needs_no_sudo(machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("dnf", "qemu-img")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert lines(recorder) == ["dnf install -y qemu-img"]


def test_macos_has_lima_from_brew(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("brew", "lima", "tmux")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert lines(recorder) == ["NONINTERACTIVE=1 brew install tmux lima"]


@pytest.mark.spec("1.10")
def test_linux_has_lima_from_its_release(machine: Machine, recorder: Recorder) -> None:
    machine("apt-get", "lima")
    text = "\n".join(lines(recorder))
    assert f"{install_lima.RELEASES}/{NAME}" in text and "sha256sum -c" in text


def test_else_from_go_and_then_packages_for_the_image_too(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("apt-get go sudo", "lima")
    monkeypatch.setattr(install_lima, "release_reachable", lambda: False)
    monkeypatch.setattr(
        inventory, "missing_for_packages", lambda project=None: [Missing("mmdebstrap", "builds", False)]
    )
    text = "\n".join(lines(recorder))
    assert f"go get -tool github.com/lima-vm/lima/v2/cmd/limactl@v{inventory.PINNED_LIMA}" in text
    assert "--no-install-recommends mmdebstrap" in text


def test_no_way_to_lima(machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("apt-get", "lima")
    monkeypatch.setattr(install_lima, "release_reachable", lambda: False)
    with pytest.raises(HostSetupError, match="no Go toolchain"):
        host_install.plan(recorder)


def test_a_system_without_a_known_manager(machine: Machine, recorder: Recorder) -> None:
    machine("zypper", "ssh qemu-img")
    with pytest.raises(HostSetupError, match="lacks ssh, qemu-img"):
        host_install.plan(recorder)


def test_what_a_manager_does_not_have_is_left_out(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("pacman", "ssh", "mmdebstrap")
    plan = host_install.plan(recorder)
    assert plan.missing_text() == "ssh"


def test_root_that_will_be_another_gets_packages_only(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine("apt-get", "lima ssh")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(run_as, "user_to_become", lambda _project: object())
    plan = host_install.plan(recorder, project=tmp_path)
    assert [step.kind for step in plan.steps] == [host_install.PACKAGES]
    machine("apt-get", "lima ssh")
    monkeypatch.setattr(run_as, "user_to_become", lambda _project: None)
    both = host_install.plan(recorder, project=tmp_path)
    assert [step.kind for step in both.steps] == [host_install.PACKAGES, host_install.RELEASE]
    assert both.packages_only().missing_text() == "ssh"


def test_a_user_for_the_namespace(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("apt-get", "user")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert lines(recorder) == ["useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin claude-sandbox"]


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_everything_that_can_be_missing_has_a_package(manager: str) -> None:
    for machine in ("x86_64", "aarch64"):
        names = [name.replace("x86_64", machine) for name in ALL]
        assert all(host_install.package(manager, name, machine) for name in names)


# -- carrying it out -----------------------------------------------------------------------------------


def step(*argv: str) -> host_install.SetupPlan:
    return host_install.SetupPlan((), (host_install.Step("A step", host_install.PACKAGES, (Command(argv),)),))


def test_a_failing_step_is_told_in_its_words(machine: Machine, recorder: Recorder) -> None:
    machine("apt-get sudo", "")
    recorder.on("apt-get", then=failed("E: Unable to locate package qemu-system-x86"))
    with pytest.raises(HostSetupError, match="Unable to locate package") as caught:
        host_install.apply(step("apt-get", "install"), recorder, Told())
    assert "setup.log" in str(caught.value)


def test_sudo_is_asked_on_the_terminal_first(
    machine: Machine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("sudo", "")
    host_install.apply(step("sudo", "dnf", "x"), recorder, Told())
    assert recorder.argvs() == [("sudo", "-n", "true"), ("sudo", "dnf", "x")]
    recorder.on("sudo", "-n", then=failed("a password is required"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    host_install.apply(step("sudo", "dnf", "x"), recorder, Told())
    assert [call.how for call in recorder.calls[2:]] == ["run", "foreground", "run"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(HostSetupError, match="sudo dnf x"):
        host_install.apply(step("sudo", "dnf", "x"), recorder, Told())


def test_without_sudo_the_commands_are_printed(machine: Machine, recorder: Recorder) -> None:
    machine("apt-get", "")
    with pytest.raises(HostSetupError, match="apt-get install -y qemu-utils") as caught:
        host_install.apply(step("sudo", "apt-get", "install", "-y", "qemu-utils"), recorder, Told())
    assert "as root" in str(caught.value) and recorder.calls == []


# -- Lima ----------------------------------------------------------------------------------------------


def archive(*extra: tarfile.TarInfo) -> bytes:
    """A small release: bin/limactl, a link beside it, the guest agent."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in (
            ("./bin/limactl", b"#!/bin/sh\n"),
            ("share/lima/lima-guestagent.Linux-x86_64.gz", b"x"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o755
            tar.addfile(info, io.BytesIO(text))
        link = tarfile.TarInfo("share/doc")
        link.type, link.linkname = tarfile.SYMTYPE, "../bin"
        tar.addfile(link)
        for info in extra:
            tar.addfile(info)
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | Exception]:
    """What the release's addresses answer."""
    body = archive()
    files: dict[str, bytes | Exception] = {
        NAME: body,
        "SHA256SUMS": f"{'0' * 64}  other.tar.gz\n{hashlib.sha256(body).hexdigest()} *{NAME}\n".encode(),
    }

    def urlopen(url: str, timeout: float) -> contextlib.AbstractContextManager[io.BytesIO]:
        answer = files[url.rsplit("/", 1)[1]]
        if isinstance(answer, Exception):
            raise answer
        return contextlib.closing(io.BytesIO(answer))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return files


def quiet(_text: str) -> None:
    pass


def leftovers() -> list[Path]:
    places = (install_lima.cached().parent, inventory.own_limactl().parents[2])
    return [entry for place in places if place.is_dir() for entry in place.glob(".lima-*")]


def test_a_release_is_installed_with_its_checksum(served: dict[str, bytes | Exception]) -> None:
    assert install_lima.release_reachable()
    install_lima.install_release(quiet)
    assert stat.S_IMODE(inventory.own_limactl().stat().st_mode) & 0o111
    assert (inventory.own_limactl().parents[1] / "share/lima/lima-guestagent.Linux-x86_64.gz").exists()
    assert leftovers() == []
    served[NAME] = OSError("gone")  # the cache has it now
    shutil.rmtree(inventory.own_limactl().parents[1])
    install_lima.install_release(quiet)
    assert inventory.own_limactl().exists()


def test_an_old_lima_is_replaced_as_a_whole(served: dict[str, bytes | Exception]) -> None:
    tree = inventory.own_limactl().parents[1]
    (tree / "share").mkdir(parents=True)
    (tree / "share" / "old").touch()
    install_lima.install_release(quiet)
    assert inventory.own_limactl().exists() and not (tree / "share" / "old").exists() and leftovers() == []


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        (NAME, b"something else", "checksum"),
        (NAME, OSError("Connection reset by peer"), "Connection reset"),
        ("SHA256SUMS", OSError("Name or service not known"), "Name or service not known"),
        ("SHA256SUMS", b"garbage\n", "has no"),
    ],
)
def test_a_bad_download_leaves_nothing(
    served: dict[str, bytes | Exception], name: str, answer: bytes | Exception, words: str
) -> None:
    served[name] = answer
    with pytest.raises(HostSetupError, match=words):
        install_lima.install_release(quiet)
    assert not inventory.own_limactl().exists() and not install_lima.cached().exists() and leftovers() == []


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("/etc/evil"),
        member("bin/../../evil"),
        member("bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("bin/link", tarfile.SYMTYPE, "../../outside"),
        member("hard", tarfile.LNKTYPE, "../outside"),
        member("bin/device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name}->{info.linkname}",
)
def test_an_archive_stays_in_its_directory(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive(bad))
    (tmp_path / "out").mkdir()
    with pytest.raises(HostSetupError, match="outside"):
        install_lima.extract(tmp_path / "a.tar.gz", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cut_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive()[:-40])
    with pytest.raises(HostSetupError, match="Cannot unpack"):
        install_lima.extract(tmp_path / "a.tar.gz", tmp_path)


def build(command: Command) -> Result:
    """What `go install` and `go build` leave."""
    if command.argv[1] == "install":
        program = Path(str(command.env["GOBIN"])) / "limactl"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    elif command.argv[1] == "build":
        agent = Path(command.argv[command.argv.index("-o") + 1])
        agent.parent.mkdir(parents=True)
        agent.write_text("agent")
    return Result(0)


def test_lima_from_go(home: Path, recorder: Recorder, tmp_path: Path) -> None:
    recorder.on("go", then=build)
    install_lima.install_with_go(recorder, quiet, tmp_path / "log")
    assert [argv[1] for argv in recorder.argvs()] == ["mod", "get", "get", "install", "build"]
    assert f"version.Version={inventory.PINNED_LIMA}" in recorder.argvs()[3][3]
    agent = recorder.calls[4].command
    assert (agent.env["CGO_ENABLED"], agent.env["GOOS"]) == ("0", "linux")
    assert inventory.own_limactl().exists() and leftovers() == []
    install_lima.install_with_go(recorder, quiet, tmp_path / "log")
    assert len(recorder.calls) == 5  # cached


@pytest.mark.parametrize(
    "answer", [failed("go: module lookup disabled"), KeyboardInterrupt()], ids=["fails", "Ctrl-C"]
)
def test_a_broken_build_leaves_nothing(
    home: Path, recorder: Recorder, tmp_path: Path, answer: Result | BaseException
) -> None:
    recorder.on("go", then=build)
    recorder.on("go", "build", then=answer)
    with pytest.raises((HostSetupError, KeyboardInterrupt)):
        install_lima.install_with_go(recorder, quiet, tmp_path / "log")
    assert not inventory.own_limactl().exists() and not install_lima.cached().exists() and leftovers() == []
