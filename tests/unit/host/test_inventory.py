"""What is found on a host: Lima and its version, accelerators, the doctor's checks (issue items 2, 3; spec 7.1)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from _claude_sandbox.cli import doctor
from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import accelerator, install_lima, inventory, run_as
from _claude_sandbox.host import install as host_install
from _claude_sandbox.system import paths, processes
from _claude_sandbox.system.run import TIMED_OUT, CommandNotFound, LocalRunner, Result
from _claude_sandbox.voice import recorder as voice_recorder
from tests.support.recording import Recorder, failed

linux = pytest.mark.skipif(sys.platform != "linux", reason="KVM")
Programs = Callable[..., None]


@pytest.fixture
def programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`programs("qemu-img", …)` puts these on an otherwise empty PATH; an ordinary user looks."""
    bin_ = home / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.setattr(run_as, "is_root", lambda: False)

    def put(*names: str) -> None:
        for name in names:
            (bin_ / name).write_text("#!/bin/sh\n")
            (bin_ / name).chmod(0o755)

    return put


def answers(recorder: Recorder, path: Path | str, version: str) -> None:
    recorder.on(str(path), "--version", then=Result(0, f"limactl version {version}\n".encode()))


def own(version: str, recorder: Recorder) -> Path:
    path = inventory.own_limactl()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    answers(recorder, path, version)
    return path


# -- limactl -----------------------------------------------------------------------------------------


def test_no_limactl(programs: Programs, recorder: Recorder) -> None:
    with pytest.raises(HostSetupError, match="not installed"):
        inventory.find_limactl(recorder)


@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        ("2.2.0", "2.1.2", "ours"),
        ("2.1.5", "2.2.0", "theirs"),
        ("2.2.0", "1.0.3", "ours"),
        ("2.0.1", "2.1.2", "theirs"),
    ],
)
def test_the_newest_wins(
    programs: Programs, recorder: Recorder, home: Path, ours: str, theirs: str, wins: str
) -> None:
    programs("limactl")
    path = {"ours": own(ours, recorder), "theirs": home / "bin" / "limactl"}
    answers(recorder, path["theirs"], theirs)
    assert inventory.find_limactl(recorder).path == str(path[wins])


@pytest.mark.spec("7.1")
@pytest.mark.parametrize("version", ["2.1.1", "2.0.3", "1.2.0"])
def test_lima_too_old(programs: Programs, recorder: Recorder, version: str) -> None:
    own(version, recorder)
    with pytest.raises(HostSetupError, match=rf"too old: .* is {version}") as caught:
        inventory.find_limactl(recorder)
    assert "2.1.2" in str(caught.value) and "setup" in str(caught.value)
    assert [item.name for item in inventory.missing_lima(recorder)] == ["lima"]


def test_a_build_that_does_not_know_its_version_passes(programs: Programs, recorder: Recorder) -> None:
    path = own("<unknown>", recorder)
    assert inventory.find_limactl(recorder) == inventory.LimaBinary(str(path), None)


def test_the_version_is_asked_once_per_file(programs: Programs, recorder: Recorder) -> None:
    path = own("2.2.0", recorder)
    for _ in range(3):
        assert inventory.find_limactl(recorder).version == (2, 2, 0)
    assert len(recorder.calls) == 1
    path.write_text("#!/bin/sh\n# newer\n")
    answers(recorder, path, "2.3.0")
    assert inventory.find_limactl(recorder).version == (2, 3, 0)
    (paths.state_dir() / "limactl.json").write_text("garbage")
    assert inventory.find_limactl(recorder).version == (2, 3, 0)
    assert len(recorder.calls) == 3


def test_a_limactl_that_does_not_run(programs: Programs, recorder: Recorder) -> None:
    recorder.on(str(own("2.2.0", Recorder())), then=failed("cannot execute binary file"))
    with pytest.raises(HostSetupError, match="cannot execute binary file"):
        inventory.find_limactl(recorder)


# -- the rest ----------------------------------------------------------------------------------------


@linux
def test_what_is_missing(programs: Programs) -> None:
    qemu = f"qemu-system-{inventory.machine()}"
    assert {item.name for item in inventory.missing_system() if item.required} == {qemu, "qemu-img", "ssh"}
    programs(qemu, "qemu-img", "ssh")
    assert not [item for item in inventory.missing_system() if item.required]
    assert "tmux" in [item.name for item in inventory.missing_system()]


@linux
def test_root_needs_unshare_and_a_user(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_as, "is_root", lambda: True)
    monkeypatch.setattr(run_as, "user_to_become", lambda _project: None)
    monkeypatch.setattr(run_as, "namespace_user", lambda: None)
    assert {"unshare", "user"} <= {item.name for item in inventory.missing_system()}


# -- accelerator ---------------------------------------------------------------------------------------


@pytest.fixture
def kvm(programs: Programs, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device that opens, QEMU on PATH, and a boot id of this test's own."""
    programs("qemu-system-x86_64", "qemu-system-aarch64")
    device = home / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)
    monkeypatch.setattr(processes, "boot_id", lambda: "one")
    for name in ("QEMU_SYSTEM_X86_64", "QEMU_SYSTEM_AARCH64"):
        monkeypatch.delenv(name, raising=False)
    return device


GOOD, LONG = Result(33, b"RTL"), Result(TIMED_OUT, b"RT", b"no end within 8 s")
TCG = (
    f"-accel tcg,thread=multi,tb-size=512 -cpu max{',erms=off,fsrm=off' * (inventory.machine() == 'x86_64')}"
)


@linux
def test_kvm_that_works(kvm: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.on(f"qemu-system-{inventory.machine()}", then=GOOD)
    assert accelerator.detect(recorder) == accelerator.Accelerator("kvm")
    assert accelerator.detect(recorder) == accelerator.Accelerator("kvm")
    assert len(recorder.calls) == 1  # once per boot
    monkeypatch.setattr(processes, "boot_id", lambda: "two")
    accelerator.detect(recorder)
    assert len(recorder.calls) == 2


@pytest.mark.spec("7.1")
@linux
@pytest.mark.parametrize(
    "result",
    [
        LONG,
        Result(134, b"", b"qemu: error: failed to set MSR 0x10a"),
        Result(0, b"", b""),  # a triple fault, under -no-reboot
        Result(1, b"", b"failed to initialize kvm"),
    ],
    ids=["hangs", "aborts", "triple fault", "no kvm"],
)
def test_kvm_that_opens_and_does_not_work(kvm: Path, recorder: Recorder, result: Result) -> None:
    recorder.on(f"qemu-system-{inventory.machine()}", then=result)
    first, second = accelerator.detect(recorder), accelerator.detect(recorder)
    assert first.kind == second.kind == "tcg" and first.start_env == second.start_env
    (value,) = first.start_env.values()
    assert value and value.endswith(TCG)
    assert first.note and "does not work" in first.note and second.note is None  # said once
    assert second.reason == first.reason


@linux
def test_another_qemu_is_tried_again(kvm: Path, recorder: Recorder, home: Path) -> None:
    recorder.on(f"qemu-system-{inventory.machine()}", then=[LONG, GOOD])
    assert accelerator.detect(recorder).kind == "tcg"
    (home / "bin" / f"qemu-system-{inventory.machine()}").write_text("#!/bin/sh\n# upgraded\n")
    assert accelerator.detect(recorder).kind == "kvm"


@linux
def test_without_a_device_nothing_is_tried(kvm: Path, recorder: Recorder) -> None:
    kvm.unlink()
    first = accelerator.detect(recorder)
    (value,) = first.start_env.values()
    assert first.kind == "tcg" and value and value.endswith(TCG) and first.note
    assert accelerator.detect(recorder).note is None and recorder.calls == []


@linux
def test_a_device_that_is_not_ours(kvm: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != kvm and real(path, mode))
    found = accelerator.detect(recorder)
    assert found.kind == "tcg" and found.start_env and "usermod -aG" in found.remedy


@linux
def test_the_user_s_own_qemu_is_respected(
    kvm: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "QEMU_SYSTEM_AARCH64" if inventory.machine() == "aarch64" else "QEMU_SYSTEM_X86_64"
    monkeypatch.setenv(variable, "my-qemu -accel tcg")
    assert accelerator.detect(recorder).kind == "tcg" and recorder.calls == []


@linux
def test_no_qemu_to_try_with(kvm: Path, recorder: Recorder, home: Path) -> None:
    (home / "bin" / f"qemu-system-{inventory.machine()}").unlink()
    with pytest.raises(CommandNotFound, match="setup"):
        accelerator.detect(recorder)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_probe_is_small(machine: str) -> None:
    assert 40 < len(accelerator.probe_image(machine)) <= 512


@linux
@pytest.mark.skipif(shutil.which(f"qemu-system-{os.uname().machine}") is None, reason="no QEMU")
def test_the_probe_passes_under_emulation() -> None:
    assert accelerator.probe_passed(accelerator.probe(LocalRunner(), "tcg", "max"))


# -- doctor --------------------------------------------------------------------------------------------


@pytest.fixture
def looked(
    programs: Programs, kvm: Path, recorder: Recorder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], dict[str, doctor.Check]]:
    """A ready host; returns the checks by name."""
    programs("qemu-img", "ssh", "tmux")
    own("2.2.0", recorder)
    qemu = f"qemu-system-{inventory.machine()}"
    recorder.on(qemu, then=GOOD)
    recorder.on(qemu, "-version", then=Result(0, b"QEMU emulator version 9.0\nCopyright\n"))
    recorder.on("sysctl", then=Result(0, b"1\n"))
    monkeypatch.setattr(install_lima, "release_reachable", lambda: True)
    monkeypatch.setattr(inventory, "firmware", lambda: "/usr/share/OVMF/OVMF_CODE.fd")
    monkeypatch.setenv("LIMA_HOME", ".lima")  # sockets must fit below it, and pytest's paths are long
    monkeypatch.chdir(home)
    monkeypatch.setattr(doctor, "_CA_PLACES", ())
    for name in (*doctor._CA_VARIABLES, *doctor._PROXIES, *map(str.upper, doctor._PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 0)
    monkeypatch.setattr(
        voice_recorder, "find_command", lambda _command: voice_recorder.CaptureCommand(("arecord",))
    )
    return lambda: {check.name: check for check in doctor.checks(recorder)}


@linux
def test_a_ready_host(looked: Callable[[], dict[str, doctor.Check]]) -> None:
    assert [name for name, check in looked().items() if check.ok is not True] == []


@linux
def test_each_check_has_a_remedy(
    looked: Callable[[], dict[str, doctor.Check]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Recorder,
) -> None:
    for name in ("qemu-img", "ssh", "tmux"):
        (home / "bin" / name).unlink()
    recorder.on(f"qemu-system-{inventory.machine()}", "-machine", then=LONG)
    inventory.own_limactl().unlink()
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.example:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/extra.pem")
    monkeypatch.setattr(install_lima, "release_reachable", lambda: False)
    monkeypatch.setattr(doctor, "TOO_LITTLE_DISK", 1 << 60)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1 << 61)
    found = looked()
    assert {name for name, check in found.items() if check.ok is False} == {
        "lima",
        "qemu-img",
        "ssh",
        "disk space",
    }
    for name in ("tmux", "accelerator", "proxy", "certificates", "downloads"):
        assert found[name].ok is None, name
    assert all(check.remedy for check in found.values() if check.ok is not True)
    assert "secret" not in json.dumps([check.detail for check in found.values()])


@linux
def test_lima_home_too_long(
    looked: Callable[[], dict[str, doctor.Check]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMA_HOME", str(home / ("x" * 90)))
    assert looked()["LIMA_HOME"].ok is False


@linux
@pytest.mark.parametrize("name", ["default.yaml", "override.yaml"])
def test_lima_s_defaults_are_looked_at(
    looked: Callable[[], dict[str, doctor.Check]], home: Path, name: str
) -> None:
    file = home / ".lima" / "_config" / name
    file.parent.mkdir(parents=True)
    for text, bad in (
        ("mounts: [{location: /srv}]", "mounts"),
        ("portForwards: [{guestPort: 80}]\nssh: {forwardAgent: true}", "portForwards, ssh.forwardAgent"),
        ("cpus: 2\nmounts: []", None),
        ("{", "is not valid YAML"),
    ):
        file.write_text(text)
        check = looked().get("Lima's defaults")
        assert (
            (check is None)
            if bad is None
            else (check is not None and check.ok is False and bad in check.detail)
        )


@linux
def test_stale_pid_files(looked: Callable[[], dict[str, doctor.Check]], home: Path) -> None:
    for name, pid in (
        ("claude-sandbox-app", 2**22 - 1),
        ("claude-sandbox-live", os.getpid()),
        ("other", 2**22 - 1),
    ):
        (home / ".lima" / name).mkdir(parents=True)
        (home / ".lima" / name / "ha.pid").write_text(str(pid))
    assert looked()["leftovers"].detail.endswith(": claude-sandbox-app")


@linux
def test_a_host_where_nothing_names_an_npm_registry_wants_npm(
    home: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude Code comes from npm into an image from packages; a new Debian has neither npm nor its settings."""
    if (file := Path("/etc/npmrc")).exists() and "\nregistry" in "\n" + file.read_text():
        pytest.skip("this host's /etc/npmrc names one")
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    programs("mmdebstrap", "newuidmap")
    assert "npm" in [item.name for item in inventory.missing_for_packages()]
    (home / ".npmrc").write_text("fund=false\nregistry = https://npm.example/\n")
    assert "npm" not in [item.name for item in inventory.missing_for_packages()]
    (home / ".npmrc").unlink()
    programs("npm")
    assert "npm" not in [item.name for item in inventory.missing_for_packages()]
    assert host_install.package("apt-get", "npm", "x86_64") == "npm"


@linux
def test_root_installs_what_the_user_behind_it_will_need(
    home: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo claude-sandbox setup`: root builds images without uidmap, the user whose VMs these are does not."""
    programs("mmdebstrap")
    monkeypatch.setattr(run_as, "is_root", lambda: True)
    for behind, wanted in ((None, False), ("jane", True)):
        monkeypatch.setattr(run_as, "user_to_become", lambda project, behind=behind: behind)
        names = [item.name for item in inventory.missing_for_packages(home)]
        assert ("newuidmap" in names) is wanted
