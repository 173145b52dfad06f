"""The guest's own init, run by dash with a directory for / and recorded cidata; no VM.

cidata-2.2.0 is what Lima 2.2.0 wrote for a real VM (keys and names changed, mounts added by its template).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GUEST = ROOT / "_claude_sandbox" / "guest"
SCRIPTS = GUEST / "files" / "usr" / "lib" / "claude-sandbox"
RECORDED = ROOT / "tests" / "fakes" / "cidata-2.2.0"
SHELLS = [[name] for name in ("dash",) if shutil.which(name)] or [["sh"]]
if shutil.which("busybox"):
    SHELLS.append(["busybox", "sh"])

FAKES = {
    "mount": 'cat "$3" > "$CLAUDE_SANDBOX_ROOT/mounted"',
    "ssh-keygen": 'while [ "$1" != -f ]; do shift; done; echo private > "$2"; echo public > "$2.pub"',
    "resize2fs": 'echo "$1" >> "$CLAUDE_SANDBOX_ROOT/resized"',
    "growpart": 'echo "growpart $1 $2" >> "$CLAUDE_SANDBOX_ROOT/resized"',
    "update-ca-certificates": 'echo once >> "$CLAUDE_SANDBOX_ROOT/ca-updated"',
    "chown": ":",
}


class Machine:
    """A root directory as a clone of the tools VM has it, and Lima's disk mounted there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("bin", "etc/ssh", "proc/sys/kernel", "proc/self", "run", "mnt", "home/ada.guest/.ssh",
                     "var/lib/claude-sandbox", "usr/local/bin", "usr/local/share", "etc/systemd/system",
                     "sys/dev/block/254:0", "usr/share/zoneinfo/Etc"):  # fmt: skip
            (root / name).mkdir(parents=True)
        for name, text in FAKES.items():
            (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (root / "bin" / name).chmod(0o755)
        self.cidata = root / "mnt" / "lima-cidata"
        shutil.copytree(RECORDED, self.cidata)
        (self.cidata / "boot.Linux").mkdir()
        for name in (self.cidata / "boot.Linux.list").read_text().split():
            (self.cidata / "boot.Linux" / name).touch()
        for name in ("boot.sh", "param.env"):
            (self.cidata / name).touch()
        self.write("mnt/lima-cidata/lima-guestagent", "agent 1")
        self.write("usr/local/bin/lima-guestagent", "agent 1")
        (root / "usr/local/bin/lima-guestagent").chmod(0o755)
        self.write(
            "etc/systemd/system/lima-guestagent.service",
            "ExecStart=/usr/local/bin/lima-guestagent daemon --socket-owner 1000\n",
        )
        self.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada.guest:/bin/bash\n")
        self.write(
            "etc/hosts", "127.0.0.1 localhost\n10.0.0.9 of-the-user\n192.168.5.2\thost.lima.internal\n"
        )
        self.write("etc/hostname", "lima\n")
        self.write(
            "proc/self/mountinfo",
            "21 1 254:0 / / rw - ext4 /dev/root rw\n22 21 0:5 / /dev rw - devtmpfs dev rw\n",
        )
        self.write("sys/dev/block/254:0/size", "16777216\n")
        self.write("sys/dev/block/254:0/uevent", "MAJOR=254\nDEVNAME=vda\n")
        self.write("usr/share/zoneinfo/Etc/UTC", "TZif")
        self.write("var/lib/claude-sandbox/whole", "")
        self.write("var/lib/claude-sandbox/disk", "16777216\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def change(self, name: str, old: str, new: str) -> None:
        file = self.cidata / name
        text = file.read_text()
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new))

    def boot(self, shell: list[str] | None = None, *arguments: str) -> str:
        """Runs init; what it printed."""
        for name in ("lima-ssh-ready", "lima-boot-done"):
            (self.root / "run" / name).unlink(missing_ok=True)
        # No /dev/rtc0 can be made without root; the host's own will do.
        (self.root / "dev").unlink(missing_ok=True)
        (self.root / "dev").symlink_to("/dev")
        done = subprocess.run(
            [*(shell or SHELLS[0]), str(SCRIPTS / "init"), *arguments],
            env={**os.environ, "CLAUDE_SANDBOX_ROOT": str(self.root)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return done.stdout

    @property
    def boot_kind(self) -> str:
        return self.read("run/claude-sandbox/boot").strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root")


def without_clock_script(machine: Machine) -> None:
    """Hosts without /dev/rtc0 would leave Lima's clock script to boot.sh."""
    (machine.cidata / "boot.Linux" / "00-check-rtc-and-wait-ntp.sh").unlink()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda s: s[0])
def test_a_clone_is_set_up(machine: Machine, shell: list[str]) -> None:
    without_clock_script(machine)
    machine.boot(shell)
    assert machine.boot_kind == "fast"
    assert machine.read("run/lima-ssh-ready") == machine.read("run/lima-boot-done") == "iid-1795279309\n"
    assert machine.read("etc/hostname") == machine.read("proc/sys/kernel/hostname") == "lima-base\n"
    assert machine.read("etc/hosts") == (
        "127.0.0.1 localhost\n10.0.0.9 of-the-user\n127.0.1.1\tlima-base\n192.168.5.2\thost.lima.internal\n"
    )
    assert machine.read("etc/environment") == "#LIMA-START\n#LIMA-END\n"
    assert machine.read("etc/resolv.conf") == "nameserver 192.168.5.3\n"
    assert machine.read("etc/timezone") == "Etc/UTC\n"
    assert os.readlink(machine.root / "etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "private\n"
    keys = machine.read("home/ada.guest/.ssh/authorized_keys")
    assert keys.startswith("ssh-ed25519 ") and keys.count("\n") == 1


def test_what_was_done_beside_systemd_s_start_is_not_done_again(machine: Machine) -> None:
    without_clock_script(machine)
    machine.boot(None, "early")
    assert machine.boot_kind == "fast"
    machine.write("run/claude-sandbox/early", "4000001\n")
    machine.write("run/claude-sandbox/early.log", "claude-sandbox: said early\n")
    machine.write("proc/sys/kernel/hostname", "the-base\n")  # systemd has read the old file
    (machine.root / "mounted").unlink()
    assert machine.boot() == "claude-sandbox: said early\n"
    assert not (machine.root / "mounted").exists()
    assert machine.read("proc/sys/kernel/hostname") == "lima-base\n"


def test_the_unit_waits_for_what_has_begun(machine: Machine) -> None:
    machine.write("run/claude-sandbox/early", "4000000\n")
    machine.write("proc/4000000/stat", "")
    timer = threading.Timer(0.7, lambda: shutil.rmtree(machine.root / "proc/4000000"))
    timer.start()
    begun = time.monotonic()
    machine.boot()
    assert time.monotonic() - begun > 0.6


def test_an_early_init_that_was_cut_short_is_done_again(machine: Machine) -> None:
    without_clock_script(machine)
    machine.write("run/claude-sandbox/early", "4000001\n")
    machine.boot()
    assert machine.boot_kind == "fast" and machine.read("mounted")


def test_an_early_init_hands_nothing_over(machine: Machine) -> None:
    """There is no systemd yet that could start cloud-init."""
    machine.change("meta-data", "instance-id", "instance-number")
    assert machine.boot(None, "early") == ""
    assert not (machine.root / "run/claude-sandbox/boot").exists()
    machine.write("run/claude-sandbox/early", "4000001\n")
    assert machine.boot().startswith("handover: ")


def test_mounts_come_parents_first_whatever_their_order(machine: Machine) -> None:
    machine.boot()
    rows = [line.split(" ") for line in machine.read("mounted").splitlines()]
    assert [(row[0], row[1], row[3].split(",")[0]) for row in rows] == [
        ("lima-1", "/home/ada/app", "rw"),
        ("lima-2", "/mnt/claude-sandbox/settings", "ro"),
        ("lima-0", "/home/ada/app/.git/hooks", "ro"),
    ]
    assert {row[2] for row in rows} == {"9p"} and all(len(row) == 6 for row in rows)
    assert all(row[3].endswith("nofail,X-mount.mkdir") for row in rows)


@pytest.mark.parametrize(
    "point", ["/home/ada/my app", "/srv/ünï cödé", "/srv/a, b", '/srv/q"uote', "/srv/[x]"]
)
def test_mount_points_that_are_not_plain(machine: Machine, point: str) -> None:
    machine.change("lima.env", "/mnt/claude-sandbox/settings", point)
    machine.change("user-data", "/mnt/claude-sandbox/settings", point)
    machine.boot()
    assert f"lima-2 {point.replace(' ', chr(92) + '040')} 9p ro," in machine.read("mounted")


def test_virtiofs_and_rosetta(machine: Machine) -> None:
    machine.change("lima.env", "MOUNTTYPE=9p", "MOUNTTYPE=virtiofs")
    machine.change("lima.env", "VMTYPE=qemu", "VMTYPE=vz")
    for access in ("ro", "rw"):
        text = (machine.cidata / "user-data").read_text()
        if f'9p, "{access},trans' in text:
            machine.change("user-data", f'9p, "{access},trans=virtio,version=9p2000.L,msize=131072,cache=mmap,nofail"',
                           f'virtiofs, "{access},nofail"')  # fmt: skip
    machine.change(
        "user-data", "mounts:\n", 'mounts:\n- [vz-rosetta, /mnt/lima-rosetta, virtiofs, defaults, "0", "0"]\n'
    )
    machine.boot()
    mounted = machine.read("mounted")
    assert "vz-rosetta /mnt/lima-rosetta virtiofs defaults,X-mount.mkdir 0 0\n" in mounted
    assert "lima-1 /home/ada/app virtiofs rw,nofail,X-mount.mkdir 0 0\n" in mounted


def test_a_second_boot_writes_nothing(machine: Machine) -> None:
    machine.boot()
    before = {p: p.stat().st_mtime_ns for p in (machine.root / "etc").rglob("*") if p.is_file()}
    machine.boot()
    assert before == {p: p.stat().st_mtime_ns for p in (machine.root / "etc").rglob("*") if p.is_file()}


def test_the_users_own_lines_stay(machine: Machine) -> None:
    machine.write("etc/environment", "OWN=1\n#LIMA-START\nOLD=1\n#LIMA-END\nLAST=1")
    machine.write("mnt/lima-cidata/etc_environment", "#LIMA-START\nNEW=1\n#LIMA-END\n")
    machine.write("home/ada.guest/.ssh/authorized_keys", "ssh-rsa AAAA of-the-user")
    machine.boot()
    assert machine.read("etc/environment") == "OWN=1\nLAST=1\n#LIMA-START\nNEW=1\n#LIMA-END\n"
    assert machine.read("home/ada.guest/.ssh/authorized_keys").startswith(
        "ssh-rsa AAAA of-the-user\nssh-ed25519 "
    )


def test_keys_do_not_follow_a_link_that_the_guest_made(machine: Machine, tmp_path: Path) -> None:
    (machine.root / "home/ada.guest/.ssh/authorized_keys").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in machine.boot()
    assert not (tmp_path / "elsewhere").exists()


def test_a_host_key_that_a_power_cut_left_empty_is_made_anew(machine: Machine) -> None:
    machine.write("etc/ssh/ssh_host_ed25519_key", "")
    machine.write("etc/ssh/ssh_host_ed25519_key.pub", "old")
    machine.boot()
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "private\n"
    machine.write("etc/ssh/ssh_host_ed25519_key", "mine\n")
    machine.boot()
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "mine\n"


def test_a_copy_of_a_sandbox_is_another_machine(machine: Machine) -> None:
    machine.write("proc/sys/kernel/random/uuid", "11111111-2222-3333-4444-555555555555\n")
    machine.write("etc/machine-id", "of-the-base\n")
    machine.boot()
    assert machine.read("etc/machine-id") == "of-the-base\n"  # the first boot: systemd made it just now
    machine.write("etc/ssh/ssh_host_ed25519_key", "of-the-base\n")
    machine.boot()
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "of-the-base\n"
    mac = machine.read("var/lib/claude-sandbox/machine").strip()
    machine.change("network-config", mac, "52:55:55:00:00:01")
    machine.boot()
    assert machine.read("etc/machine-id") == "11111111222233334444555555555555\n"
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "private\n"
    assert machine.read("var/lib/claude-sandbox/machine") == "52:55:55:00:00:01\n"


def test_an_initrd_of_ours_renews_a_copy_before_systemd_starts(machine: Machine) -> None:
    """It has emptied the three files by now, and systemd has made a new id."""
    machine.write("etc/machine-id", "new\n")
    machine.write("etc/ssh/ssh_host_ed25519_key", "")
    machine.write("etc/ssh/ssh_host_ed25519_key.pub", "old\n")
    machine.write("var/lib/claude-sandbox/machine", "")
    machine.boot()
    assert machine.read("etc/machine-id") == "new\n"
    assert machine.read("etc/ssh/ssh_host_ed25519_key.pub") == "public\n"
    assert machine.read("var/lib/claude-sandbox/machine").startswith("52:55:55:")


def test_a_grown_disk(machine: Machine) -> None:
    machine.boot()
    assert not (machine.root / "resized").exists()
    machine.write("sys/dev/block/254:0/size", "20971520\n")
    machine.boot()
    machine.boot()
    assert machine.read("resized") == "/dev/vda\n"
    assert machine.read("var/lib/claude-sandbox/disk") == "20971520\n"


def test_growth_that_was_cut_short_is_done_again(machine: Machine) -> None:
    machine.write("var/lib/claude-sandbox/disk", "")
    machine.boot()
    assert machine.read("resized") == "/dev/vda\n"


def test_a_grown_disk_with_partitions(machine: Machine) -> None:
    block = machine.root / "sys/dev/block"
    shutil.rmtree(block / "254:0")
    disk = machine.root / "sys/devices/vda"
    (disk / "vda1").mkdir(parents=True)
    (block / "254:0").symlink_to(disk / "vda1")
    machine.write("sys/devices/vda/size", "20971520\n")
    machine.write("sys/devices/vda/vda1/size", "16000000\n")
    machine.write("sys/devices/vda/vda1/partition", "1\n")
    machine.write("sys/devices/vda/vda1/uevent", "DEVNAME=vda1\n")
    machine.boot()
    assert machine.read("resized") == "growpart /dev/vda 1\n/dev/vda1\n"


def test_the_hosts_certificates(machine: Machine) -> None:
    # Lines of base64 may look like keys of the file.
    one = "-----BEGIN CERTIFICATE-----\nMIIB\nqau/YUqX\nusers:\n-----END CERTIFICATE-----"
    lines = "".join(f"    {line}\n" for line in one.splitlines())
    machine.change(
        "user-data", "bootcmd:\n", f"ca_certs:\n  trusted:\n  - |\n{lines}  - |\n{lines}bootcmd:\n"
    )
    machine.boot()
    kept = machine.root / "usr/local/share/ca-certificates"
    assert sorted(p.name for p in kept.iterdir()) == [
        "claude-sandbox-host-1.crt",
        "claude-sandbox-host-2.crt",
    ]
    assert (kept / "claude-sandbox-host-1.crt").read_text() == one + "\n"
    machine.boot()
    assert machine.read("ca-updated") == "once\n"
    # A cut between the copies and the bundle.
    (machine.root / "var/lib/claude-sandbox/certificates").unlink()
    machine.boot()
    assert machine.read("ca-updated") == "once\nonce\n"


def test_another_guest_agent_means_all_of_limas_boot_scripts(machine: Machine) -> None:
    machine.write("mnt/lima-cidata/lima-guestagent", "agent 2")
    machine.boot()
    assert machine.boot_kind == "full: another guest agent than on this disk"
    assert not (machine.root / "run/lima-boot-done").exists()
    assert not (machine.root / "run/claude-sandbox/scripts").exists()
    assert machine.read("run/lima-ssh-ready") == "iid-1795279309\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("VSOCK_PORT=0", "VSOCK_PORT=2222"),
        ("VIRTIO_PORT=", "VIRTIO_PORT=io.lima-vm.guest_agent.0"),
        ("CONTAINERD_USER=", "CONTAINERD_USER=1"),
        ("LIMA_CIDATA_PLAIN=\n", "LIMA_CIDATA_PLAIN=\nLIMA_CIDATA_NEW_IN_3=x\n"),
    ],
)
def test_what_only_limas_whole_boot_script_can_do(machine: Machine, old: str, new: str) -> None:
    machine.change("lima.env", old, new)
    machine.boot()
    assert machine.boot_kind.startswith("full: ")


def test_scripts_that_are_left_run_and_no_others(machine: Machine) -> None:
    without_clock_script(machine)
    machine.write("mnt/lima-cidata/boot.Linux/27-new-in-lima.sh", "")
    (machine.cidata / "provision.system").mkdir()
    machine.change("lima.env", "DISKS=0", "DISKS=1\nLIMA_CIDATA_DISK_0_NAME=data")
    machine.boot()
    assert machine.read("run/claude-sandbox/scripts") == "05-lima-disks.sh 27-new-in-lima.sh \n"
    assert not (machine.root / "run/lima-boot-done").exists()
    assert "and provision scripts" in machine.boot_kind


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("lima.env", "LIMA_CIDATA_UID=1000\n", "", "lima.env without UID"),
        ("lima.env", "LIMA_CIDATA_HOME=", "LIMA_HOMEDIR=", "lima.env: LIMA_HOMEDIR"),
        ("lima.env", "PLAIN=", "PLAIN=1", "a plain VM"),
        ("lima.env", "MOUNTTYPE=9p", "MOUNTTYPE=reverse-sshfs", "mounts by reverse-sshfs"),
        ("lima.env", "UPGRADE_PACKAGES=", "UPGRADE_PACKAGES=1", "an upgrade of all packages"),
        ("lima.env", "MOUNTS_2_MOUNTPOINT=/mnt", "MOUNTS_2_MOUNTPOINT=/srv", "a mount in user-data"),
        ("lima.env", "USER=ada", "USER=eve", "another user in user-data"),
        ("meta-data", "instance-id:", "instance:", "meta-data: instance"),
        ("meta-data", "local-hostname: ", "local-hostname: a b", "meta-data without a local-hostname"),
        ("user-data", "bootcmd:", "bootcmd:\n- |\n  echo mine", "a boot script in user-data"),
        ("user-data", "write_files:", "snap: {}\nwrite_files:", "user-data: snap"),
        ("user-data", "    lock_passwd: true", "    lock_passwd: false", "user-data: users:    lock_passwd"),
        ("user-data", '- [lima-0, ', '- [lima-0,', "a mount in user-data"),
        ("user-data", ', 9p, "rw', ', nfs, "rw', "a mount of type nfs"),
        ("user-data", "bootcmd:", "ca_certs:\n  remove_defaults: true\nbootcmd:", "ca_certs"),
        ("user-data", "bootcmd:", "ca_certs:\n  trusted:\nphone_home:\nbootcmd:", "ca_certs"),
        ("network-config", "    dhcp4: true", "    macaddress: '1'", "2 networks"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_to_cloud_init(
    machine: Machine, file: str, old: str, new: str, reason: str
) -> None:
    machine.change(file, old, new)
    assert f"handover: {reason}" in machine.boot()
    assert not (machine.root / "run/lima-ssh-ready").exists()
    assert not (machine.root / "run/lima-boot-done").exists()
    assert machine.read("etc/hostname") == "lima\n"
    # sshd needs one in any case, and it is this clone's own.
    assert machine.read("etc/ssh/ssh_host_ed25519_key") == "private\n"


@pytest.mark.parametrize(
    "name", ["meta-data", "lima.env", "user-data", "network-config", "boot.sh", "param.env"]
)
def test_a_missing_file_is_left_to_cloud_init(machine: Machine, name: str) -> None:
    (machine.cidata / name).unlink()
    if name == "lima.env":
        (machine.cidata / "lima.env.new").touch()
    assert f"handover: no {name}" in machine.boot()


def test_the_first_boot_of_a_base_is_cloud_inits(machine: Machine) -> None:
    (machine.root / "var/lib/claude-sandbox/whole").unlink()
    assert "handover: the first boot of this disk" in machine.boot()


def test_a_user_that_the_disk_does_not_have(machine: Machine) -> None:
    machine.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1001:1001::/home/ada.guest:/bin/bash\n")
    assert "handover: a user that this disk does not have" in machine.boot()


def test_older_lima_without_newer_keys(machine: Machine) -> None:
    """Lima 2.1: no PASSWORDLESS_SUDO, no IID in lima.env, no bootcmd of its own, rsync as a package."""
    without_clock_script(machine)
    lines = (machine.cidata / "lima.env").read_text().splitlines(keepends=True)
    gone = ("PASSWORDLESS_SUDO", "_IID", "NO_CLOUD_INIT")
    (machine.cidata / "lima.env").write_text("".join(x for x in lines if not any(g in x for g in gone)))
    text = (machine.cidata / "user-data").read_text()
    text = text[: text.index("bootcmd:")].replace("mounts:\n", "packages:\n  - rsync\n\nmounts:\n")
    (machine.cidata / "user-data").write_text(text)
    machine.boot()
    assert machine.boot_kind == "fast"


def test_the_scripts_are_in_order_for_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck here")
    scripts = [*SCRIPTS.iterdir(), GUEST / "initrd" / "init", *(GUEST / "provision").glob("*.sh")]
    excluded = "--exclude=SC2154,SC2034,SC1003,SC1091,SC2016"
    done = subprocess.run(
        ["shellcheck", excluded, "--shell=sh", *map(str, [s for s in scripts if b"/bin/bash" not in s.read_bytes()[:12]])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
