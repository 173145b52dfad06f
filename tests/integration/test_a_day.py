"""A day with claude-sandbox on a machine that has nothing, on real VMs, as an ordinary user.

The tests follow each other as the hours of that day do: each starts from what the one before left.
Real boots, in order: the tools VM; the first project (once killed while it boots, then whole); stop
and start; the second project. Never two at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from _claude_sandbox.base_vm import catalogue as base_vm_catalogue
from _claude_sandbox.disks import qcow2
from tests.support.machine import Person, Screen, Stub, wait_until

pytestmark = pytest.mark.vm
NAME, SECOND = "claude-sandbox-app", "claude-sandbox-app-"


@pytest.fixture(scope="module")
def app(user: Person) -> Path:
    """The first project, with a file name that is not plain."""
    return user.project("work", "app", files={"hello.txt": "from the host\n", "ünï cödé.txt": "x\n"})


@pytest.fixture(scope="module")
def twin(user: Person) -> Path:
    """Another project with the same basename."""
    return user.project("play", "app", files={"hello.txt": "from the twin\n"})


@pytest.mark.spec("1.10")
def test_setup_installs_lima_qemu_and_the_rest(user: Person, app: Path) -> None:
    """Root installs the packages and the project's owner gets Lima: `sudo claude-sandbox setup -y`."""
    whole = {**user.env(), "HOME": str(user.home)}
    done = subprocess.run(
        [str(user.checkout / "claude-sandbox"), "setup", "-y"],
        cwd=app, env=whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    checks = user.cs("doctor", "--json", code=None).json()
    assert checks["ready"], checks
    again = user.cs("setup")
    assert "has everything" in again.out


@pytest.mark.spec("1.9", "8.2")
def test_the_default_tools_vm_is_built_from_packages(user: Person) -> None:
    """Every tool, and sizes by this host: what a newcomer gets, and what the rest of the day is about."""
    user.cs("rebuild-tools-vm", "--from-packages", timeout=2400)
    status = user.cs("status")
    assert "Base VM: tools-vm" in status.out
    assert "No sandbox VMs created yet" in status.out
    assert (user.lima_home / "tools-vm" / "protected").exists()


@pytest.mark.spec("6.3")
def test_killed_during_the_clone_the_next_run_starts_over(user: Person, app: Path) -> None:
    half = user.instance(NAME)
    user.killed_when(lambda: any(half.glob("*")), "create", cwd=app)
    time.sleep(0.3)
    assert not (user.home / ".lima" / NAME / "ssh.config").exists()
    # Before READY: QEMU runs, the guest does not answer yet.
    user.killed_when(lambda: (half / "qemu.pid").exists() and (half / "ha.sock").exists(), "create", cwd=app)
    assert user.vms().get(NAME) != "Stopped"


@pytest.mark.spec("1.1")
def test_claude_works_in_the_sandbox(user: Person, app: Path, stub: Stub) -> None:
    """The bare command creates by clone what the killed runs did not finish, and runs the real Claude."""
    write = {"tool": "Write", "input": {"file_path": f"{app}/made.txt", "content": "made in the sandbox\n"}}
    prompt = "make it STUB:" + json.dumps([write, {"text": "all done"}])
    done = user.cs("--", "-p", prompt, cwd=app, env=stub.env)
    assert "all done" in done.out
    assert f"Removing {NAME}" in done.err
    assert "late" not in done.err, "the guest agent is there when Lima looks for it"
    assert (app / "made.txt").read_text() == "made in the sandbox\n"
    assert (app / "made.txt").stat().st_uid == app.stat().st_uid
    headers = [
        {k.lower(): v for k, v in entry["headers"].items()} for entry in stub.log() if "headers" in entry
    ]
    assert any("stub-token-for-tests" in h.get("authorization", "") for h in headers), (
        "the credential arrived"
    )
    assert user.vms() == {NAME: "Running"}


# Runs in the guest: NAME=VALUE lines about this boot. What a boot waited for is in the journal.
BOOT = r"""
entered() { systemctl show --property=ActiveEnterTimestampMonotonic --value "$1"; }
agent=$(entered lima-guestagent.service)
for unit in claude-sandbox-swap.service docker.socket; do
    [ "$(entered $unit)" -gt 0 ] && [ "$(entered $unit)" -le "$agent" ] && echo "$unit=before READY"
done
while read -r device _ size _; do [ "$device" != /dev/zram0 ] || echo "swap=$size"; done < /proc/swaps
while read -r key size _; do [ "$key" != MemTotal: ] || echo "memory=$size"; done < /proc/meminfo
grep -q '\[zstd\]' /sys/block/zram0/comp_algorithm && echo compression=zstd
echo "docker=$(timeout 120 docker version --format '{{.Server.Version}}' 2>&1)"
echo "system=$(systemctl is-system-running --wait)"
echo "failed=$(systemctl --failed --plain --no-legend | tr '\n' ' ')"
echo "stuck=$(sudo journalctl -b -q -o cat --grep='timed out|dependency failed|waited for' \
    _PID=1 + _SYSTEMD_UNIT=claude-sandbox-late.service | tr '\n' ' ')"
"""


@pytest.mark.spec("4.15")
def test_ready_means_ready(user: Person, app: Path) -> None:
    """Of all units that the default installs none failed, was waited for in vain, or came after READY."""
    said = user.cs("shell", "--", "bash", "-c", BOOT, cwd=app).out
    boot = dict(line.split("=", 1) for line in said.splitlines())
    assert boot.pop("claude-sandbox-swap.service") == boot.pop("docker.socket") == "before READY", said
    assert abs(int(boot.pop("swap")) * 10 / int(boot.pop("memory")) - 1) < 0.01
    assert boot.pop("docker")[0].isdigit(), said
    assert boot == {"compression": "zstd", "system": "running", "failed": "", "stuck": ""}


@pytest.mark.spec("4.15")
def test_every_promised_tool_runs_in_a_sandbox(user: Person, app: Path) -> None:
    """They ran in the tools VM when it was built; here as whoever works in a clone runs them."""
    promised = [tool for tool in base_vm_catalogue.TOOLS if tool.packages]
    lines = [f"( {tool.verify} ) > /dev/null 2>&1 < /dev/null || echo {tool.name}" for tool in promised]
    assert len(promised) > 30
    assert user.cs("shell", cwd=app, input="set -o pipefail; cd /\n" + "\n".join(lines) + "\n").out == ""


def test_claudes_exit_code_is_ours(user: Person, app: Path, stub: Stub) -> None:
    prompt = "fail STUB:" + json.dumps([{"error": 400, "type": "invalid_request_error", "message": "no"}])
    assert user.cs("--", "-p", prompt, cwd=app, env=stub.env, code=None).code == 1


@pytest.mark.spec("4.8")
def test_both_sides_see_what_the_other_writes(user: Person, app: Path) -> None:
    assert user.cs("shell", "--", "cat", "hello.txt", "ünï cödé.txt", cwd=app).out == "from the host\nx\n"
    (app / "later.txt").write_text("later\n")
    assert user.cs("shell", "--", "cat", "later.txt", cwd=app).out == "later\n"
    user.cs(
        "shell", "--", "sh", "-c", "echo changed > hello.txt; mkdir -p d; ln -s ../hello.txt d/link", cwd=app
    )
    assert (app / "hello.txt").read_text() == "changed\n"
    assert (app / "d" / "link").is_symlink()
    done = user.cs("shell", cwd=app, input="pwd; exit 7\n", code=7)
    assert done.out == f"{app}\n"


@pytest.mark.spec("3.4")
def test_the_environment_arrives(user: Person, app: Path) -> None:
    script = (
        'echo "$CLAUDE_SANDBOX_UUID|$UV_PROJECT_ENVIRONMENT|$LANG|$TZ|$ANTHROPIC_API_KEY|$CLAUDE_SANDBOX_ENV"'
    )
    env = {"ANTHROPIC_API_KEY": "sk-ant-test-key-0123456789", "TZ": "Europe/Berlin"}
    line = user.cs("shell", "--", "sh", "-c", script, cwd=app, env=env).out.strip()
    uuid, venv, lang, zone, key, envelope = line.split("|")
    assert len(uuid) == 36
    assert (venv, lang, zone, key, envelope) == (
        ".venv-agent", "C.UTF-8", "Europe/Berlin", "sk-ant-test-key-0123456789", "",
    )  # fmt: skip
    processes = user.cs("shell", "--", "ps", "axww", cwd=app, env=env).out
    assert "sk-ant-test" not in processes


@pytest.mark.spec("5.1")
def test_settings_come_in_and_cannot_be_changed_from_the_guest(user: Person, app: Path) -> None:
    settings = user.home / ".claude-sandbox" / ".claude"
    (settings / "CLAUDE.md").write_text("be brief\n")
    (settings / "settings.json").write_text('{"env": {"FROM_HOST": "1"}}\n')
    user.own(settings)
    assert user.cs("shell", "--", "sh", "-c", "cat ~/.claude/CLAUDE.md", cwd=app).out == "be brief\n"
    tries = (
        "cd /mnt/claude-sandbox/settings && for w in 'touch x' 'rm CLAUDE.md' 'chmod 777 .'; do sudo $w; done"
    )
    remount = "sudo mount -o remount,rw /mnt/claude-sandbox/settings; sudo sh -c 'echo bad > CLAUDE.md'"
    user.cs("shell", "--", "bash", "-c", f"{tries}; {remount}; true", cwd=app)
    assert sorted(p.name for p in settings.iterdir()) == ["CLAUDE.md", "settings.json"]
    assert (settings / "CLAUDE.md").read_text() == "be brief\n"
    # What the guest changes for itself stays its own, is shown, and comes back only when asked for.
    user.cs("shell", "--", "sh", "-c", "echo mine > ~/.claude/notes.md", cwd=app)
    assert "notes.md" in user.cs("settings", "diff", cwd=app).out
    assert not (settings / "notes.md").exists()
    user.cs("settings", "pull", "-y", "notes.md", cwd=app)
    assert (settings / "notes.md").read_text() == "mine\n"


# A container of one program that waits, to be started again with the machine.
CONTAINER = r"""
mkdir -p /tmp/image && cd /tmp/image
printf '#include <unistd.h>\nint main(void) { for (;;) pause(); }\n' | gcc -static -x c - -o waits
tar -c waits | docker import - waits
docker run --detach --restart always --network none waits /waits
"""


def test_stop_then_start_again_and_a_kill_before_the_attach(user: Person, app: Path) -> None:
    user.cs("shell", "--", "sh", "-c", "echo kept > ~/kept", cwd=app)
    user.cs("shell", "--", "sh", "-euc", CONTAINER, cwd=app)
    user.cs("stop", cwd=app)
    assert user.vms() == {NAME: "Stopped"}
    user.cs("stop", cwd=app)
    linked_disk(user, app)
    stamp = user.instance(NAME) / "claude-sandbox.ready"
    stamp.unlink(missing_ok=True)
    user.killed_when(stamp.exists, "shell", "--", "sleep", "60", cwd=app)
    assert user.cs("shell", "--", "sh", "-c", "cat ~/kept hello.txt", cwd=app).out == "kept\nchanged\n"
    # No `docker` command has asked for the daemon.
    back = "for i in $(seq 180); do pgrep -x waits && exit; sleep 1; done; exit 1"
    user.cs("shell", "--", "sh", "-c", back, cwd=app)


def linked_disk(user: Person, app: Path) -> None:
    """The stopped sandbox stands on the tools VM's golden disk, which nobody wrote to; its loss is told."""
    disk, golden = qcow2.chain(user.instance(NAME) / "disk")
    assert qcow2.chain(user.instance("tools-vm") / "disk")[1:] == [golden]
    with golden.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest().startswith(golden.stem)
    assert disk.stat().st_blocks * 512 < 300 << 20  # what the tests before wrote, Claude's files included
    assert f"golden disk {golden.stem[:12]}: " in user.cs("doctor", code=None).out
    aside = golden.with_suffix(".aside")
    golden.rename(aside)
    lost = user.cs("start", cwd=app, code=1)
    assert str(golden) in lost.err and f"{NAME}, tools-vm" in lost.err
    assert user.vms() == {NAME: "Stopped"}
    aside.rename(golden)


@pytest.mark.spec("4.10")
def test_a_twin_gets_its_own_vm_with_ports_and_the_login(user: Person, app: Path, twin: Path) -> None:
    """Also: a login made in one VM is there in the next."""
    credential = {
        "claudeAiOauth": {
            "accessToken": "access-" + "a" * 20, "refreshToken": "refresh-" + "b" * 20,
            "expiresAt": int((time.time() + 7200) * 1000), "scopes": ["user:inference"], "subscriptionType": "pro",
        }
    }  # fmt: skip
    user.cs(
        "shell",
        cwd=app,
        input=f"umask 077; cat > ~/.claude/.credentials.json <<'E'\n{json.dumps(credential)}\nE\n",
    )
    port = free_port()
    user.cs("start", "-p", f"{port}:8000", cwd=twin)
    names = set(user.vms())
    assert len(names) == 2 and all(name.startswith("claude-sandbox-app") for name in names)
    assert user.cs("shell", "--", "cat", "hello.txt", cwd=twin).out == "from the twin\n"
    there = user.cs("shell", "--", "sh", "-c", "cat ~/.claude/.credentials.json; stat -c %a ~/.claude/.credentials.json",
                    cwd=twin).out  # fmt: skip
    assert "access-aaaa" in there and there.rstrip().endswith("600")
    serve = "for p in 8000 8001; do python3 -m http.server $p >/dev/null 2>&1 & done; sleep 4; echo up"
    user.cs("shell", "--", "bash", "-c", f"setsid nohup bash -c '{serve}; sleep 3600' >/dev/null 2>&1 & sleep 6",
            cwd=twin)  # fmt: skip
    assert "hello.txt" in fetch(port)
    with pytest.raises(OSError):
        fetch(8001)
    assert "Cannot add ports to running VM" in user.cs("start", "-p", "8001", cwd=twin, code=1).err
    user.cs("start", "-p", f"{port}:8000", cwd=twin)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(port: int, tries: int = 30) -> str:
    for attempt in range(tries):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if attempt == (tries - 1 if port != 8001 else 2):
                raise
            time.sleep(1)
    raise AssertionError


@pytest.fixture
def screen(user: Person) -> Iterator[Screen]:
    shown = Screen(user)
    yield shown
    shown.tmux("kill-server")


def _clients(user: Person) -> set[str]:
    """Of the person's own tmux server."""
    return set(user.run("tmux", "list-clients", "-F", "#{client_pid}", code=None).out.split())


@pytest.mark.spec("4.13", "6.2")
def test_the_tui_under_tmux(user: Person, app: Path, stub: Stub, screen: Screen) -> None:
    """Claude's prompt with no dialog before it; an answer; detach and attach again; the end."""
    command = str(user.checkout / "claude-sandbox")
    screen.open(
        app, stub.env, "sh", "-c", f"{command} --new; echo detached=$?; {command}; echo ended=$?; sleep 600"
    )
    assert "❯" in screen.wait_for("bypass permissions on")
    screen.type("hello there")
    screen.wait_for("stub reply")
    sessions = user.run("tmux", "list-sessions", "-F", "#{session_name}").out.split()
    assert len(sessions) == 1 and sessions[0].startswith(f"{NAME}-")
    before = _clients(user)
    user.run("tmux", "detach-client", "-s", sessions[0])
    # `claude-sandbox` again: the same Claude. Until it is attached the screen may still show the first one.
    wait_until(lambda: _clients(user) - before, 180, "another client")
    screen.wait_for("bypass permissions on")
    assert user.run("tmux", "list-sessions", "-F", "#{session_name}").out.split() == sessions
    screen.type("/exit")
    screen.tmux("send-keys", "Enter")
    assert "detached=0" in screen.wait_for("ended=0")
    assert user.run("tmux", "list-sessions", code=None).code != 0, "the session ended with Claude"


@pytest.mark.spec("1.8")
def test_delete_and_prune_leave_everything_else_alone(user: Person, app: Path, twin: Path) -> None:
    foreign = user.lima_home / "claude-sandbox-foreign"
    foreign.mkdir()
    plain = "images: [{location: /nonexistent.qcow2, arch: x86_64}]\nmounts: []\n"
    (foreign / "lima.yaml").write_text(plain)
    user.own(foreign)
    before = {p.name: p.read_bytes() for p in app.iterdir() if p.is_file()}
    user.cs("delete", "-y", cwd=app)
    user.cs("delete", "-y", cwd=app)
    assert {p.name: p.read_bytes() for p in app.iterdir() if p.is_file()} == before
    left = user.vms()
    assert len(left) == 1
    done = user.cs("prune", "-y")
    assert "1 sandbox to delete" in done.out
    assert user.vms() == {}
    assert (foreign / "lima.yaml").read_text() == plain
    assert (user.lima_home / "tools-vm" / "lima.yaml").exists()
    assert (twin / "hello.txt").exists()
    assert os.listdir(user.home / ".local/state/claude-sandbox/journal") == []
