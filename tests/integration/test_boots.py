"""Sandboxes coming up, on real VMs: what a boot without cloud-init owes Lima and its user, and what it survives.

After the day of test_a_day.py, with the same person and tools VM. The tests follow each other; real boots are
numbered. Two are slow: cloud-init does them.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from _claude_sandbox.base_vm import lima_yaml as base_vm_lima_yaml
from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.disks import qcow2
from tests.support.machine import Person, with_pid, words_of

pytestmark = pytest.mark.vm
GUEST = Path(__file__).resolve().parents[2] / "_claude_sandbox" / "guest"
SIZE = ("--cpus", "2", "--memory", "2GiB")
ONE, TWO, THREE = ("claude-sandbox-boots-one", "claude-sandbox-boots-two", "claude-sandbox-boots-three")


@pytest.fixture(scope="module")
def one(user: Person) -> Path:
    return user.project("work", "boots-one", files={"hello.txt": "one\n"})


@pytest.fixture(scope="module")
def two(user: Person) -> Path:
    return user.project("work", "boots-two", files={"hello.txt": "two\n"})


@pytest.fixture(scope="module")
def three(user: Person) -> Path:
    return user.project("work", "boots-three", files={"hello.txt": "three\n"})


def guest(user: Person, project: Path, script: str, code: int | None = 0) -> str:
    """What a shell script in the project's sandbox prints."""
    return user.cs("shell", "--", "sh", "-c", script, cwd=project, code=code).out.strip()


def way(user: Person, project: Path) -> str:
    """How this boot was set up: `fast`, or cloud-init and why."""
    return guest(user, project, "cat /run/claude-sandbox/boot")


def identity(user: Person, project: Path) -> list[str]:
    """What no two machines share: machine-id, ssh host key, host name."""
    lines = guest(
        user, project, "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; hostname"
    )
    assert len(lines.split()) == 3, lines
    return lines.split()


def test_the_tools_vm_is_rebuilt_under_a_sandbox(user: Person, two: Path) -> None:
    """Boots 1 to 3: what stands on the old disk runs on, and starts again; the old disk goes with it.

    From the day's tools VM with every tool to a small one, which is the base of what follows; root's day
    (test_main_path_as_root.py, which comes later) finds its image in the cache.
    """
    user.cs("create", *SIZE, cwd=two)
    old = qcow2.chain(user.instance(TWO) / "disk")[1]
    user.cs("rebuild-tools-vm", "--from-packages", "--only", "claude,git,python3", *SIZE, "--disk", "8GiB",
            timeout=2400)  # fmt: skip
    assert qcow2.chain(user.instance("tools-vm") / "disk")[1] != old
    assert guest(user, two, "cat hello.txt; command -v node > /dev/null && echo old") == "two\nold"
    user.cs("restart", cwd=two)
    assert guest(user, two, "cat hello.txt") == "two"
    assert str(old) not in user.cs("prune", "--cache", "--dry-run").out
    user.cs("delete", "-y", cwd=two)
    assert str(old) in user.cs("prune", "--cache", "--dry-run").out
    assert user.vms() == {}  # freed it is in tests/blackbox/test_disks.py: here images would go with it


def test_two_clones_boot_at_once(user: Person, one: Path, two: Path) -> None:
    """Boots 4 and 5. Each is a machine of its own."""
    argv = user.argv([str(user.checkout / "claude-sandbox"), "create", *SIZE])
    running = [
        subprocess.Popen(argv, cwd=project, env=user.env(), stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for project in (one, two)
    ]  # fmt: skip
    for process in running:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    assert user.vms() == {ONE: "Running", TWO: "Running"}
    assert way(user, one) == way(user, two) == "fast"
    assert not set(identity(user, one)) & set(identity(user, two))
    for name in (ONE, TWO):
        own = sum(f.stat().st_blocks * 512 for f in user.instance(name).iterdir() if f.stat().st_nlink == 1)
        assert own < 50 << 20, f"{name} takes {own >> 20} MiB of disk"
    begun = time.monotonic()
    user.cs("stop", cwd=two)
    assert time.monotonic() - begun < 60  # before udev has shown logind the power button


def test_it_is_a_whole_machine(user: Person, one: Path) -> None:
    """What Lima and systemd promise a session, with an init of our own."""
    out = guest(
        user, one,
        "systemctl is-system-running --wait; systemctl --failed --plain --no-legend; test -d /run/user/$(id -u) && test -O /run/user/$(id -u) && echo runtime;"
        "loginctl --no-legend list-sessions | grep -q . && echo session; sudo -n true && echo sudo;"
        "getent hosts $(hostname) > /dev/null && echo named; systemctl is-active lima-guestagent;"
        "getent hosts host.lima.internal | cut -d' ' -f1; test $(stat -c %a /tmp) = 1777 && echo tmp",
    )  # fmt: skip
    assert out.split() == ["running", "runtime", "session", "sudo", "named", "active", "192.168.5.2", "tmp"]
    drift = abs(float(guest(user, one, "date +%s.%N")) - time.time())
    assert drift < 30, f"the guest's clock is {drift:.0f} s off"
    before = identity(user, one)
    begun = time.monotonic()
    user.cs("stop", cwd=one)
    assert time.monotonic() - begun < 60  # the power button, not Lima's three minutes
    user.cs("start", cwd=one)  # boot 6
    assert way(user, one) == "fast" and identity(user, one) == before


def test_mounts_and_disk_follow_the_configuration(user: Person, one: Path) -> None:
    """Boot 7: mounts added later, a writable one inside one that is not, and a larger disk."""
    outer = user.project("work", "shared", files={"kept.txt": "kept\n"})
    inner = user.project("work", "shared", "there", files={"there.txt": "there\n"})
    user.cs("restart", "--mount", str(inner), "--mount", f"{outer}:ro", "--disk", "12GiB", cwd=one)
    assert way(user, one) == "fast"
    script = f"cd {outer} && cat there/there.txt kept.txt; touch x 2> /dev/null || echo refused"
    assert guest(user, one, script) == "there\nkept\nrefused"
    guest(user, one, f"echo back > {inner}/back.txt")
    assert (inner / "back.txt").read_text() == "back\n" and not (outer / "x").exists()
    size = int(guest(user, one, "df --output=size -B1 / | tail -n 1"))
    assert size > 11 << 30
    # The project's own directories are the sandbox's already: it could lead us elsewhere by them.
    (one / "vendor").mkdir()
    user.own(one)
    assert "cannot be shared" in user.cs("restart", "--mount", f"{one / 'vendor'}:ro", cwd=one, code=1).err
    assert guest(user, one, "echo still here") == "still here"


def test_a_power_cut_at_any_time(user: Person, one: Path) -> None:
    """Boots 8 to 10: QEMU dies when all is up, early in a boot, and late in one; the next start works."""
    guest(user, one, "echo synced > ~/kept; sync")
    power_cut(user, ONE)
    for cpu_seconds in (5, 12):  # the kernel, or our init; then services and the first logins
        start = subprocess.Popen(
            user.argv([str(user.checkout / "claude-sandbox"), "start"]), cwd=one, env=user.env(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(functools.partial(has_worked, user.instance(ONE), cpu_seconds), 120)
        power_cut(user, ONE)
        _, err = start.communicate(timeout=300)
        assert start.returncode == 1 and "Error" in err and "Traceback" not in err, err
    user.cs("start", cwd=one)
    assert way(user, one) == "fast"
    assert guest(user, one, "cat ~/kept; systemctl --failed --plain --no-legend") == "synced"


def has_worked(directory: Path, cpu_seconds: float) -> bool:
    """Whether this VM's QEMU has used so much of the CPU: how far a boot is, however busy the machine."""
    try:
        pid = int((directory / "qemu.pid").read_text())
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return False
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used >= cpu_seconds and str(directory) in words_of(pid)  # not the one before, which has died


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def power_cut(user: Person, name: str) -> None:
    """QEMU of this VM ends without a word, by its process id."""
    pid = int((user.instance(name) / "qemu.pid").read_text())
    assert str(user.instance(name)) in words_of(pid)
    with_pid(pid)
    wait_for(lambda: not words_of(pid), 30)


def test_a_sandbox_as_base(user: Person, one: Path, three: Path) -> None:
    """Boot 11: a clone of a clone; it shares the disks below and is a machine of its own."""
    guest(user, one, "echo from-the-base > ~/base.txt")
    first = identity(user, one)
    user.cs("stop", cwd=one)
    user.cs("create", "-c", ONE, cwd=three)
    assert guest(user, three, "cat ~/base.txt ~/kept hello.txt") == "from-the-base\nsynced\nthree"
    assert way(user, three) == "fast" and not set(first) & set(identity(user, three))
    chains = [qcow2.chain(user.instance(name) / "disk") for name in (ONE, THREE, "tools-vm")]
    assert all(len(chain) <= 4 for chain in chains)
    assert len({chain[-1] for chain in chains}) == 1


def test_a_cidata_of_an_unknown_kind(user: Person, three: Path) -> None:
    """Boot 12, slow: our init meets what it does not know, hands over to cloud-init and says so."""
    guest(
        user,
        three,
        "sudo sed -i 's/ resolv_conf | bootcmd/ another_key | bootcmd/' /usr/lib/claude-sandbox/cidata.sh",
    )
    said = user.cs("restart", cwd=three).err
    assert "set up by cloud-init" in said and "user-data: resolv_conf" in said
    assert way(user, three) == "cloud-init: user-data: resolv_conf"
    assert guest(user, three, "cat hello.txt; sudo -n true && cat ~/base.txt") == "three\nfrom-the-base"


def test_an_image_without_our_init(user: Person, one: Path, three: Path) -> None:
    """Boot 13, slow: all of ours is taken out, as in a base that somebody else made."""
    stock = (user.checkout / "bench" / "stock.sh").read_text()
    user.cs("shell", "--", "sudo", "sh", "-s", cwd=three, input=stock)
    user.cs("restart", cwd=three)
    assert guest(user, three, "test -e /usr/lib/claude-sandbox/init || cloud-init status") == "status: done"
    assert guest(user, three, "cat hello.txt ~/kept") == "three\nsynced"
    for project in (one, three):
        user.cs("delete", "-y", cwd=project)


def as_lima_runs(name: str, tools: str, account: str) -> str:
    """A shell script that does with a script of tools-vm.yaml what Lima's boot.sh does, as root."""
    text = (GUEST / "provision" / name).read_text().replace("{{.User}}", account)
    pins = {**base_vm_lima_yaml.load()["param"], "tools": tools}
    exports = "".join(f"export PARAM_{key}={shlex.quote(str(value))}\n" for key, value in pins.items())
    names = ",".join(f"PARAM_{key}" for key in pins)
    run = (
        "/tmp/provision"
        if name == "system.sh"
        else f"sudo -iu {account} --preserve-env={names} /tmp/provision"
    )
    return f"cat > /tmp/provision <<'SCRIPT'\n{text}\nSCRIPT\nchmod 755 /tmp/provision\n{exports}{run} 2>&1 </dev/null\n"


def test_the_scripts_for_ubuntus_image_as_far_as_registries_allow(user: Person, two: Path) -> None:
    """The distribution's packages are installed; what needs a vendor's host fails at once, and says so.

    What is run by hand only, and what never ran, is in docs/tools-vm.md.
    """
    user.cs("start", cwd=two)  # boot 14
    me = guest(user, two, "id -un")

    def run(name: str, tools: str) -> list[str]:
        script = as_lima_runs(name, tools, me)
        out = user.cs("shell", "--", "sudo", "sh", "-s", cwd=two, input=script, timeout=400).out
        print(out)
        return [line for line in out.splitlines() if line.startswith("claude-sandbox: ")]

    # The host's CAs as in an image that is being built, and no vendor's host wherever this runs.
    cas = "\n".join(apt_sources.extra_cas())
    user.cs("shell", "--", "sudo", "tee", "-a", apt_sources.BUNDLE, cwd=two, input=cas)
    guest(user, two, "echo 'proxy = http://127.0.0.1:9' | tee ~/.curlrc | sudo tee /root/.curlrc")
    assert run("system.sh", "git jq tree docker docker-compose go") == [
        "claude-sandbox: packages", "claude-sandbox: zram", "claude-sandbox: docker",
        "claude-sandbox: docker FAILED (7)", "claude-sandbox: go", "claude-sandbox: go FAILED (7)",
    ]  # fmt: skip
    assert guest(user, two, "jq -n 6*7; tree --version | cut -c1-4") == "42\ntree"
    assert run("system.sh", "go") == [], "a second boot runs nothing"
    assert run("user.sh", "claude node typescript rustc uv gopls java kotlin") == [
        line
        for name, code in (("claude", 7), ("node", 7), ("npm_packages", 127), ("rust", 7), ("gopls", 127), ("uv", 7), ("jvm", 7))
        for line in (f"claude-sandbox: {name}", f"claude-sandbox: {name} FAILED ({code})")
    ]  # fmt: skip
    assert run("user.sh", "claude") == []
    assert guest(user, two, "ls -d /tmp/tmp.* 2> /dev/null; rm ~/.curlrc") == "", "they clean up"
    user.cs("delete", "-y", cwd=two)
    assert user.vms() == {}
