"""How a sandbox boots, on real VMs: own identity, mounts, growth, power cuts, and cloud-init as the way out.

Uses the tools VM that the day before built (test_a_day). Six boots, one after the other.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from machine import Person, with_pid

pytestmark = pytest.mark.vm
NAME = "claude-sandbox-booted"
LOOK = """
echo "kind=$(cat /run/claude-sandbox/boot)"
echo "host=$(hostname) id=$(cat /etc/machine-id) key=$(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)"
echo "runtime=$(stat -c %U "$XDG_RUNTIME_DIR")=$(id -un)"
echo "failed=$(systemctl --failed --no-legend | wc -l)"
echo "disk=$(df --output=size -B1M / | tail -1 | tr -d ' ')"
begun=$(date +%s%N); sudo true; echo "sudo=$((($(date +%s%N) - begun) / 1000000))"
echo "clock=$(date +%s)"
"""


@pytest.fixture(scope="module")
def project(user: Person) -> Path:
    if not (user.lima_home / "tools-vm").exists():
        user.cs("setup", "-y")
        user.cs("rebuild-tools-vm", "--from-packages", "--only", "claude,git,python3", "--cpus", "2", "--memory",
                "2GiB", "--disk", "8GiB", timeout=2400)  # fmt: skip
    user.project("boots", "library", files={"lib.txt": "lib\n"})
    user.project("boots", "later", files={"later.txt": "later\n"})
    return user.project("boots", "booted", files={"hello.txt": "from the host\n"})


def look(user: Person, project: Path) -> dict[str, str]:
    """What a sandbox says about itself, checked for what must hold after every boot."""
    lines = user.cs("shell", "--", "bash", "-c", LOOK, cwd=project).out.splitlines()
    said = dict(line.partition("=")[::2] for line in lines)
    assert said["failed"] == "0"
    owner, person = said["runtime"].split("=")
    assert owner == person, "XDG_RUNTIME_DIR is there and the user's"
    assert int(said["sudo"]) < 3000, "the host name is known: no question to the DNS"
    assert abs(int(said["clock"]) - time.time()) < 120
    assert user.cs("shell", "--", "cat", "hello.txt", cwd=project).out == "from the host\n"
    return said


def test_the_first_start_of_a_clone(user: Person, project: Path) -> None:
    user.cs(
        "create", "--cpus", "2", "--memory", "2GiB", "--mount", f"{project.parent}/library:ro", cwd=project
    )
    said = look(user, project)
    assert said["kind"] == "fast"
    assert said["host"].startswith(f"lima-{NAME} id=")
    script = f"cat {project.parent}/library/lib.txt; touch {project.parent}/library/x || touch ./x"
    assert user.cs("shell", "--", "sh", "-c", script, cwd=project).out == "lib\n"
    assert (project / "x").exists() and not (project.parent / "library" / "x").exists()


def test_a_later_start_has_the_same_identity_and_what_was_added(user: Person, project: Path) -> None:
    before = look(user, project)
    begun = time.monotonic()
    user.cs("stop", cwd=project)
    assert time.monotonic() - begun < 60, "the guest heard the power button"
    document = user.instance(NAME) / "lima.yaml"
    size = "disk: 10GiB"
    text = document.read_text()
    assert size not in text and "\ndisk: " in text
    document.write_text(
        "".join(f"{size}\n" if line.startswith("disk: ") else line for line in text.splitlines(True))
    )
    user.cs(
        "start", "--mount", f"{project.parent}/library:ro", "--mount", f"{project.parent}/later", cwd=project
    )
    after = look(user, project)
    assert after["kind"] == "fast" and after["host"] == before["host"]
    assert int(after["disk"]) > int(before["disk"]) + 1500
    assert user.cs("shell", "--", "cat", f"{project.parent}/later/later.txt", cwd=project).out == "later\n"


def test_a_power_cut_at_two_stages_of_the_boot(user: Person, project: Path) -> None:
    before = look(user, project)["host"]
    for cpu_seconds in (6, 12):  # in the kernel or the init; near the first logins
        user.cs("stop", cwd=project)
        pidfile = user.instance(NAME) / "qemu.pid"

        def far_enough(pidfile: Path = pidfile, limit: int = cpu_seconds) -> bool:
            try:
                used = Path(f"/proc/{int(pidfile.read_text())}/stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                return False
            return (int(used[11]) + int(used[12])) / 100 >= limit

        user.killed_when(far_enough, "start", cwd=project)
        with_pid(int(pidfile.read_text()))
        user.cs("start", cwd=project)
        said = look(user, project)
        assert said["kind"] == "fast" and said["host"] == before


def test_what_the_init_does_not_know_is_left_to_cloud_init(user: Person, project: Path) -> None:
    user.cs("stop", cwd=project)
    document = user.instance(NAME) / "lima.yaml"
    before = document.read_text()
    script = "\n- mode: boot\n  script: |\n    #!/bin/sh\n    echo from bootcmd > /etc/from-bootcmd\n"
    assert "provision: []" in before
    document.write_text(before.replace("provision: []", "provision:" + script))
    done = user.cs("start", cwd=project)
    assert "cloud-init" in done.err and "a boot script" in done.err
    assert look(user, project)["kind"] == "cloud-init: a boot script in user-data"
    assert user.cs("shell", "--", "cat", "/etc/from-bootcmd", cwd=project).out == "from bootcmd\n"
    user.cs("delete", "-y", cwd=project)
