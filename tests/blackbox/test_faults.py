"""The fault matrix: what happens when something goes wrong at each step (docs/reliability.md has the table).

Every case ends in one of two ways: the next run goes on from what is there, or nothing is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fakedisk
import pytest

from tests.support.box import Box, Ended, kill

APP = "claude-sandbox-app"

# (call, moment): where create and start can be cut off. A call is the fake's verb with its number.
CREATE_STEPS = (
    ("clone.1", "before"), ("clone.1", "during"), ("clone.1", "after"),
    ("start.1", "before"), ("start.1", "during"), ("start.1", "booting"), ("start.1", "after"),
    ("ssh-master.1", "before"), ("ssh-master.1", "after"),
    ("ssh.1", "before"), ("ssh.1", "during"), ("ssh.1", "after"),
)  # fmt: skip
START_STEPS = tuple(step for step in CREATE_STEPS if step[0] != "clone.1")
# The disk of the base is frozen before the clone; qemu-img makes the overlay that takes its place.
FREEZE_STEPS = (("qemu-img.1", "before"), ("qemu-img.1", "during"), ("qemu-img.1", "after"))
DELETE_STEPS = (("delete.1", "before"), ("delete.1", "during"), ("delete.1", "after"))
STOP_STEPS = (("stop.1", "before"), ("stop.1", "during"), ("stop.1", "after"))


def steps(table: tuple[tuple[str, str], ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("call", "moment"), table, ids=[f"{c}-{m}" for c, m in table])


@pytest.fixture
def made(ready: Box) -> Box:
    assert (ended := ready.run("create")).code == 0, ended.text
    ready.mend()
    ready.forget_calls()
    return ready


def alive(box: Box) -> list[int]:
    """Helper processes of the fakes that still run: those of VMs."""
    pids = (
        [int(line) for line in (box.root / "pids").read_text().split()]
        if (box.root / "pids").exists()
        else []
    )
    return [pid for pid in pids if not ended(pid)]


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def whole(box: Box, name: str = APP) -> None:
    """One good sandbox, the base untouched, no process too many, nothing counted as half-made."""
    assert box.vms() == {name: "Running", "tools-vm": "Stopped"}
    assert len(alive(box)) == 2
    assert not list((box.home / ".local" / "state" / "claude-sandbox" / "journal").glob("*.json"))
    check = box.run("shell", "--", "pwd")
    assert check.code == 0, check.text
    assert (box.lima_home / "tools-vm" / "protected").exists()


def settle(box: Box, seconds: float = 5) -> None:
    """Wait until no fake that outlived its killed parent is at work any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and fakes_at_work(box):
        time.sleep(0.05)


def fakes_at_work(box: Box) -> bool:
    mine = os.fsencode(box.root / "bin")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"/tests/fakes/" in command and mine in environ:
            return True
    return False


# -- Ctrl-C and SIGKILL at every step --------------------------------------------------------------


def test_the_steps_are_all_steps(ready: Box) -> None:
    """A create asks Lima and the guest for nothing that changes something besides the steps above."""
    assert ready.run("create").code == 0
    asked = [(entry["program"], entry["argv"]) for entry in ready.log()]
    changing = [
        argv[0] for program, argv in asked if program == "limactl" and argv[0] not in ("list", "--version")
    ]
    assert changing == ["clone", "start"]


@steps(CREATE_STEPS)
def test_create_killed(ready: Box, call: str, moment: str) -> None:
    ready.fault(call, kill_parent=moment)
    cut = ready.run("create")
    assert cut.code == -signal.SIGKILL
    ready.mend()
    again = ready.run("start")
    assert again.code == 0, again.text
    settle(ready)
    whole(ready)


@pytest.mark.skipif(sys.platform != "linux", reason="disks are linked on Linux only")
@pytest.mark.parametrize("number", ["KILL", "INT"])
@steps(FREEZE_STEPS)
def test_freeze_killed_and_interrupted(ready: Box, call: str, moment: str, number: str) -> None:
    ready.fault(call, kill_parent=moment, signal=number)
    cut = ready.run("create")
    assert cut.code == (-signal.SIGKILL if number == "KILL" else 130), cut.text
    ready.mend()
    settle(ready)
    assert fakedisk.content(ready.lima_home / "tools-vm" / "disk") == b"base;"
    again = ready.run("start")
    assert again.code == 0, again.text
    whole(ready)
    assert fakedisk.backing(ready.lima_home / APP / "disk")
    golden = sorted((ready.home / ".local" / "share" / "claude-sandbox" / "golden").iterdir())
    assert [file.suffix for file in golden] == [".json", ".qcow2"]
    assert not list(ready.lima_home.glob("*/*.tmp"))


@pytest.mark.spec("6.3")
@steps(CREATE_STEPS)
def test_create_interrupted(ready: Box, call: str, moment: str) -> None:
    ready.fault(call, kill_parent=moment, signal="INT")
    cut = ready.run("create")
    ready.mend()
    settle(ready)
    assert cut.code == 130, cut.text
    assert "Traceback" not in cut.err
    assert ready.vms() == {"tools-vm": "Stopped"}
    assert alive(ready) == []
    assert ready.run("start").code == 0
    whole(ready)


@steps(START_STEPS)
def test_start_killed(made: Box, call: str, moment: str) -> None:
    made.run("stop")
    made.mend()
    made.fault(call, kill_parent=moment)
    cut = made.run("start")
    assert cut.code == -signal.SIGKILL
    made.mend()
    settle(made)
    again = made.run("start")
    assert again.code == 0, again.text
    whole(made)


@pytest.mark.spec("6.3")
@steps(START_STEPS)
def test_start_interrupted(made: Box, call: str, moment: str) -> None:
    made.run("stop")
    made.mend()
    made.fault(call, kill_parent=moment, signal="INT")
    cut = made.run("start")
    made.mend()
    settle(made)
    assert cut.code == 130 and "Traceback" not in cut.err
    assert made.vms()[APP] in ("Stopped", "Running")
    assert made.run("start").code == 0
    whole(made)


@steps(STOP_STEPS)
def test_stop_killed(made: Box, call: str, moment: str) -> None:
    made.fault(call, kill_parent=moment)
    made.run("stop")
    made.mend()
    settle(made)
    assert made.run("stop").code == 0
    assert made.vms()[APP] == "Stopped" and alive(made) == []
    assert made.run("start").code == 0
    whole(made)


@steps(DELETE_STEPS)
def test_delete_killed(made: Box, call: str, moment: str) -> None:
    made.fault(call, kill_parent=moment)
    assert made.run("delete").code == -signal.SIGKILL
    made.mend()
    settle(made)
    assert made.run("delete").code == 0
    assert made.vms() == {"tools-vm": "Stopped"} and alive(made) == []
    assert made.run("create").code == 0
    whole(made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_create_terminated_cleans_up_like_ctrl_c(ready: Box, number: int) -> None:
    ready.fault("start.1", kill_parent="booting", signal=signal.Signals(number).name.removeprefix("SIG"))
    cut = ready.run("create")
    ready.mend()
    settle(ready)
    assert cut.code == 128 + number
    assert ready.vms() == {"tools-vm": "Stopped"} and alive(ready) == []


def test_a_limactl_that_outlives_us_is_ended_by_the_next_run(ready: Box) -> None:
    ready.fault("clone.1", kill_parent="during", pause=20)
    assert ready.run("create").code == -signal.SIGKILL
    ready.mend()
    begun = time.monotonic()
    assert ready.run("create").code == 0
    assert time.monotonic() - begun < 15 and not fakes_at_work(ready)
    whole(ready)


def test_template_create_killed_and_interrupted(box: Box) -> None:
    for sign, code in (("KILL", -signal.SIGKILL), ("INT", 130)):
        box.mend()
        box.fault("create.1", kill_parent="during", signal=sign)
        assert box.run("create").code == code
        box.mend()
        settle(box)
        assert box.run("start").code == 0
        assert box.vms() == {APP: "Running"}
        assert box.run("delete").code == 0 and alive(box) == []


def test_from_another_directory_nothing_half_made_is_shown_as_good(ready: Box) -> None:
    ready.fault("clone.1", kill_parent="during", die=True)
    ready.run("create")
    ready.mend()
    other = ready.project("other")
    assert ready.run("status", cwd=other).code == 0
    assert ready.run("list", "--json", cwd=other).json() == []
    assert ready.run("create", cwd=other).code == 0


# -- two at once ---------------------------------------------------------------------------------


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)


def test_two_at_once_for_one_project(ready: Box) -> None:
    ready.fault("clone.1", delay=1)
    first, second = ready.spawn(), ready.spawn()
    results = [finish(first), finish(second)]
    assert [r.code for r in results] == [0, 0], results
    assert len(ready.calls("limactl", "clone")) == 1 and len(ready.calls("limactl", "start")) == 1
    assert sum("waiting for it" in r.err for r in results) == 1
    assert len(ready.claude_runs(APP)) == 2
    whole(ready)


def test_two_projects_at_once(ready: Box) -> None:
    other = ready.root / "p" / "sub" / "app"  # the same basename: they compete for one name
    other.mkdir(parents=True)
    results = [finish(p) for p in (ready.spawn("create"), ready.spawn("create", cwd=other))]
    assert [r.code for r in results] == [0, 0], results
    names = sorted(set(ready.vms()) - {"tools-vm"})
    assert len(names) == 2 and names[0] == APP
    shown = ready.run("list", "--json").json()
    assert {row["project"] for row in shown} == {str(ready.project()), str(other)}


def test_delete_while_another_creates_waits_for_it(ready: Box) -> None:
    ready.fault("clone.1", delay=1)
    first = ready.spawn("create")
    time.sleep(0.6)
    assert ready.run("delete").code == 0
    assert finish(first).code == 0
    assert ready.vms() == {"tools-vm": "Stopped"}


# -- limactl fails, hangs, prints garbage ----------------------------------------------------------


def good_error(ended: Ended, code: int = 1) -> None:
    assert ended.code == code, ended.text
    assert "Error: " in ended.err and "Traceback" not in ended.text and "an error inside" not in ended.err


@pytest.mark.parametrize("verb", ["list", "clone", "start"])
def test_limactl_fails_while_creating(ready: Box, verb: str) -> None:
    ready.fault(verb, fail="it went wrong: EOF", rc=1)
    failed = ready.run("create")
    good_error(failed)
    assert "it went wrong: EOF" in failed.err
    ready.mend()
    assert ready.vms() == {"tools-vm": "Stopped"} and alive(ready) == []
    assert ready.run("create").code == 0
    whole(ready)


@pytest.mark.parametrize("verb", ["list", "version", "clone", "start"])
def test_limactl_prints_garbage_while_creating(ready: Box, verb: str) -> None:
    ready.fault(verb, garbage=True)
    good_error(ready.run("create")) if verb != "version" else ready.run("create")
    ready.mend()
    ready.run("create")
    whole(ready)


@pytest.mark.parametrize(("verb", "words"), [
    ("list", ("prune",)), ("list", ("stop-all",)), ("list", ("uninstall", "-y")),
    ("list", ("info",)), ("stop", ("stop",)), ("stop", ("restart",)), ("start", ("restart",)),
])  # fmt: skip
@pytest.mark.parametrize("how", [{"fail": "it went wrong"}, {"garbage": True}])
def test_limactl_fails_in_other_verbs(
    made: Box, verb: str, words: tuple[str, ...], how: dict[str, object]
) -> None:
    made.fault(verb, **how)
    ended = made.run(*words)
    assert "Traceback" not in ended.text and "an error inside" not in ended.err
    if verb == "list" or "fail" in how:
        good_error(ended)
    made.mend()
    assert made.run("start").code == 0
    whole(made)


@pytest.mark.parametrize("words", ["status", "list"])
def test_tables_need_no_limactl(made: Box, words: str) -> None:
    """They are read from the VMs' own files."""
    made.fault("list", fail="it went wrong")
    ended = made.run(words)
    assert ended.code == 0 and f"{APP}" in ended.out and "Running" in ended.out


@pytest.mark.parametrize("words", [("delete",), ("prune",)])
def test_limactl_delete_fails(made: Box, words: tuple[str, ...]) -> None:
    """Its words; the stopped VM stays as it is, whole."""
    (made.guest(APP) / "home" / "conversation").write_text("precious")
    made.fault("delete", fail="remove disk: device or resource busy")
    failed = made.run(*words)
    good_error(failed)
    assert (
        "device or resource busy" in failed.err
        and "Deleted" not in failed.out
        and "is deleted" not in failed.out
    )
    made.mend()
    assert made.vms() == {APP: "Stopped", "tools-vm": "Stopped"} and alive(made) == []
    assert made.run("start").code == 0  # the same one: a refused delete is no half-done one
    assert (made.guest(APP) / "home" / "conversation").read_text() == "precious"
    assert made.run("delete").code == 0
    assert made.vms() == {"tools-vm": "Stopped"} and alive(made) == []


def test_limactl_delete_says_done_and_left_the_directory(made: Box) -> None:
    made.fault("delete", garbage=True)
    assert made.run("delete").code == 0
    assert not (made.lima_home / APP).exists() and alive(made) == []


@pytest.mark.parametrize(
    "words", [("delete",), ("prune",), ("stop", "-f"), ("stop",), ("stop-all",), ("restart",)]
)
@pytest.mark.parametrize("how", [{"fail": "not permitted"}, {"leaves": True}])
def test_a_vm_that_limactl_does_not_stop_is_never_called_stopped(
    made: Box, words: tuple[str, ...], how: dict[str, object]
) -> None:
    running, files = alive(made), sorted(entry.name for entry in (made.lima_home / APP).iterdir())
    assert len(running) == 2
    made.fault("stop", **how)
    made.fault("delete", **how)
    failed = made.run(*words)
    good_error(failed)
    assert failed.code == 1 and not made.calls("limactl", "start"), failed.text
    for words_of_success in (f"{APP} is stopped", f"{APP} is deleted", "1 sandbox."):
        assert words_of_success not in failed.out
    assert alive(made) == running and (made.lima_home / APP / "disk").exists()
    if "fail" in how:
        assert "not permitted" in failed.err
        assert sorted(entry.name for entry in (made.lima_home / APP).iterdir()) == files
    else:
        assert all(str(pid) in failed.err for pid in running)
    made.mend()
    assert (again := made.run("stop", "-f")).code == 0, again.text  # its pid files were put back
    assert alive(made) == [] and made.run("start").code == 0
    whole(made)


@pytest.fixture
def clock(made: Box) -> Box:
    """The host's clock was set forward by two minutes while the VM ran, as psutil shows it."""
    shift = made.root / "clock"
    shift.mkdir()
    (shift / "sitecustomize.py").write_text(
        "import psutil\nreal = psutil.Process.create_time\n"
        "psutil.Process.create_time = lambda self: real(self) + 120\n"
    )
    made.env["PYTHONPATH"] = str(shift)
    probe = made.root / "clock" / "probe.py"
    probe.write_text(
        "import os, psutil, time; print(psutil.Process(os.getpid()).create_time() - time.time())"
    )
    done = subprocess.run(
        [sys.executable, str(probe)], env=made.env, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 60
    return made


@pytest.mark.parametrize("words", [("stop",), ("stop", "-f"), ("delete",), ("prune",), ("stop-all", "-f")])
def test_after_a_clock_step_done_means_done(clock: Box, words: tuple[str, ...]) -> None:
    assert len(alive(clock)) == 2
    assert (ended := clock.run(*words)).code == 0, ended.text
    assert alive(clock) == []
    assert clock.vms().get(APP, "Stopped") == "Stopped"


@pytest.mark.parametrize("words", [("restart",), ("restart", "-f"), ("start",)])
def test_after_a_clock_step_there_is_one_vm_on_the_disk(clock: Box, words: tuple[str, ...]) -> None:
    assert (ended := clock.run(*words)).code == 0, ended.text
    whole(clock)
    assert len(alive(clock)) == 2


def test_a_vm_whose_pid_files_are_lost_is_not_started_twice(made: Box) -> None:
    """As a version before did it after a clock step."""
    running = alive(made)
    for file in [*(made.lima_home / APP).glob("*.pid"), *(made.lima_home / APP).glob("*.sock")]:
        file.unlink()
    failed = made.run("start")
    good_error(failed)
    assert "still runs" in failed.err and alive(made) == running
    assert made.run("restart").code == 0
    whole(made)
    assert len(alive(made)) == 2 and not set(running) & set(alive(made))


@pytest.mark.parametrize("words", [("delete", "-y"), ("prune", "-y"), ("prune", "-f"), ("uninstall", "-y")])
def test_a_protected_sandbox_is_refused(made: Box, words: tuple[str, ...]) -> None:
    other = made.project("b")
    assert made.run("create", cwd=other).code == 0
    made.limactl("protect", APP)
    refused = made.run(*words)
    good_error(refused)
    assert f"{APP} is protected" in refused.err and f"unprotect {APP}" in refused.err
    assert made.vms()[APP] == "Running" and (made.lima_home / APP / "protected").exists()
    assert ("claude-sandbox-b" in made.vms()) == (words[0] == "delete")  # the others are still done
    made.limactl("unprotect", APP)
    assert made.run(*words).code == 0 and APP not in made.vms()


def test_a_sandbox_whose_directory_was_moved_is_not_called_deleted(made: Box) -> None:
    """Moved to a bigger disk, with a symlink in its place: we follow none, so its files would stay."""
    assert made.run("stop").code == 0
    there = made.root / "bigger-disk"
    (made.lima_home / APP).rename(there)
    (made.lima_home / APP).symlink_to(there)
    refused = made.run("delete", "-y")
    good_error(refused)
    assert f"{APP} is a symlink to {there}" in refused.err and (there / "disk").exists()
    (made.lima_home / APP).unlink()
    there.rename(made.lima_home / APP)
    assert made.run("delete", "-y").code == 0 and APP not in made.vms()


@pytest.fixture
def full_disk(made: Box) -> Box:
    """No new file can be made in our directories."""
    where = made.root / "full"
    where.mkdir()
    (where / "sitecustomize.py").write_text(
        "import errno, os\nreal = os.open\n"
        "def full(path, flags, *rest, **named):\n"
        "    if flags & os.O_CREAT and flags & os.O_EXCL:\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)\n"
        "    return real(path, flags, *rest, **named)\n"
        "os.open = full\n"
    )
    made.env["PYTHONPATH"] = str(where)
    return made


@pytest.mark.parametrize("words", [("stop",), ("stop", "-f"), ("stop-all",), ("delete",), ("prune",)])
def test_a_full_disk_prevents_no_stop_and_no_delete(full_disk: Box, words: tuple[str, ...]) -> None:
    assert (ended := full_disk.run(*words)).code == 0, ended.text
    assert alive(full_disk) == []
    if words[0] in ("delete", "prune"):
        assert full_disk.vms() == {"tools-vm": "Stopped"}
        assert not list(full_disk.lima_home.glob(f".*{APP}*"))
        del full_disk.env["PYTHONPATH"]
        assert full_disk.run("create").code == 0
        whole(full_disk)


def test_a_full_disk_does_not_let_a_protected_one_go(full_disk: Box) -> None:
    full_disk.limactl("protect", APP)
    good_error(full_disk.run("delete"))
    assert full_disk.vms()[APP] == "Running" and len(alive(full_disk)) == 2


@pytest.mark.parametrize("words", [("restart",), ("restart", "-f"), ("start",)])
def test_a_taken_port_is_found_before_anything_is_stopped_or_written(
    made: Box, words: tuple[str, ...]
) -> None:
    if words == ("start",):
        assert made.run("stop").code == 0
    before, text = alive(made), (made.lima_home / APP / "lima.yaml").read_text()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = made.run(*words, "-p", f"{taken.getsockname()[1]}:80")
        good_error(failed)
        assert "taken" in failed.err and alive(made) == before
        assert (made.lima_home / APP / "lima.yaml").read_text() == text
        assert made.run("start").code == 0
    whole(made)


def test_a_disk_that_would_shrink_is_found_before_anything_is_stopped(made: Box) -> None:
    before = alive(made)
    assert made.run("restart", "--disk", "1GiB").code == 2 and alive(made) == before


def test_a_restart_on_its_own_ports(ready: Box) -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    assert ready.run("create", "-p", f"{port}:80").code == 0
    assert ready.run("restart", "-p", f"{port}:81").code == 0
    assert ready.config(APP)["portForwards"][0]["guestPort"] == 81


def test_a_change_with_which_it_does_not_start_is_taken_back(made: Box) -> None:
    had = made.config(APP)["memory"]
    made.fault("start", exits=True)
    good_error(made.run("restart", "--memory", "3GiB"))
    made.mend()
    assert made.config(APP)["memory"] == had and made.run("start").code == 0
    whole(made)


def test_a_rebuild_stops_no_vm_of_somebody_else(box: Box) -> None:
    box.vm("tools-vm")
    box.limactl("start", "tools-vm")
    failed = box.run("rebuild-tools-vm", "--from-packages")
    good_error(failed)
    assert "did not build it" in failed.err and box.vms() == {"tools-vm": "Running"}


@pytest.mark.parametrize("words", [("stop-all",), ("prune",)])
def test_one_failure_does_not_keep_the_others(made: Box, words: tuple[str, ...]) -> None:
    for name in ("b", "c"):
        assert made.run("create", cwd=made.project(name)).code == 0
    made.fault("stop", argv=APP, fail="it went wrong")
    failed = made.run(*words)
    good_error(failed)
    assert "it went wrong" in failed.err and "2 sandboxes" in failed.out
    others = {"stop-all": "Stopped", "prune": None}[words[0]]
    vms = made.vms()
    assert [vms.get(f"claude-sandbox-{name}") for name in "bc"] == [others, others] and vms[APP] == "Running"


@pytest.mark.parametrize("verb", ["list", "clone", "start", "stop"])
def test_a_hanging_limactl_is_given_up_by_ctrl_c(made: Box, verb: str) -> None:
    """Each call has a time limit (unit tests); the user need not wait for it."""
    if verb in ("clone", "start"):
        made.run("delete")
    made.mend()
    made.fault(verb, hang=40)
    process = made.spawn("stop" if verb == "stop" else "info" if verb == "list" else "create")
    deadline = time.monotonic() + 15
    while not made.calls("limactl", verb) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130
    made.mend()
    assert not fakes_at_work(made)


def test_a_failed_question_is_not_an_absent_vm(made: Box) -> None:
    """When Lima does not answer, nothing is created beside what may be there."""
    (made.root / "p" / "app").rename(made.root / "p" / "x")
    (made.root / "p" / "x").rename(made.root / "p" / "app")
    made.fault("list", fail="timeout")
    made.run("stop")
    made.run("create")
    made.mend()
    assert sorted(made.vms()) == [APP, "tools-vm"]


@pytest.mark.parametrize("verb", ["ssh-master", "ssh"])
def test_ssh_fails_while_creating(ready: Box, verb: str) -> None:
    ready.fault(verb, fail="kex_exchange_identification: Connection reset by peer")
    good_error(ready.run("create"))
    ready.mend()
    assert ready.vms() == {"tools-vm": "Stopped"} and alive(ready) == []


def test_a_start_that_times_out_leaves_no_vm_running(made: Box) -> None:
    made.run("stop")
    made.fault("start", timeout=True)
    good_error(made.run("start"))
    made.mend()
    assert made.vms()[APP] == "Stopped" and alive(made) == []


def test_a_host_agent_that_exits(made: Box) -> None:
    made.run("stop")
    made.fault("start", exits=True)
    good_error(made.run("start"))
    made.mend()
    assert made.run("start").code == 0
    whole(made)


# -- disk, base, VM, LIMA_HOME -----------------------------------------------------------------------


def test_disk_full_during_the_clone(ready: Box) -> None:
    ready.fault("clone", partial=True, fail="write /disk: no space left on device")
    failed = ready.run("create")
    good_error(failed)
    assert "no space left on device" in failed.err
    ready.mend()
    assert ready.vms() == {"tools-vm": "Stopped"} and not (ready.lima_home / APP).exists()
    assert ready.run("create").code == 0


def test_base_deleted_between_two_runs(ready: Box) -> None:
    assert ready.run("create").code == 0
    ready.limactl("unprotect", "tools-vm")
    ready.limactl("delete", "-f", "tools-vm")
    assert ready.run("restart").code == 0
    failed = ready.run("create", "-c", "tools-vm", cwd=ready.project("b"))
    good_error(failed)
    assert "tools-vm" in failed.err and sorted(ready.vms()) == [APP]


def test_base_broken(ready: Box) -> None:
    (ready.lima_home / "tools-vm" / "qemu.pid").write_text(str(os.getpid()))
    failed = ready.run("create")
    (ready.lima_home / "tools-vm" / "qemu.pid").unlink()
    good_error(failed)
    assert "tools-vm is Broken" in failed.err and ready.vms() == {"tools-vm": "Stopped"}


def test_base_started_by_somebody_during_the_clone(ready: Box) -> None:
    ready.fault("clone.1", fail="cannot clone a running instance")
    good_error(ready.run("create"))
    ready.mend()
    assert ready.run("create").code == 0


def test_a_running_base_runs_again_after_a_failed_clone(ready: Box) -> None:
    ready.limactl("start", "tools-vm")
    ready.fault("clone", fail="boom")
    good_error(ready.run("create"))
    assert ready.vms() == {"tools-vm": "Running"}


@pytest.mark.parametrize("words", [("stop",), ("delete",), ("status",), ("prune",), ("start",), ()])
def test_vm_deleted_behind_our_back(made: Box, words: tuple[str, ...]) -> None:
    made.limactl("delete", "-f", APP)
    ended = made.run(*words)
    assert ended.code == 0, ended.text
    assert sorted(made.vms()) == ([APP, "tools-vm"] if words in (("start",), ()) else ["tools-vm"])


def test_vm_deleted_just_before_the_start_is_not_made_from_the_default_template(made: Box) -> None:
    """`limactl start UNKNOWN` makes a VM from template:default, which mounts the home directory."""
    made.run("stop")
    made.mend()
    hook = made.bin / "limactl"
    real = hook.read_text()
    hook.write_text(
        real.replace("exec", f'case "$*" in *Config*) rm -rf "{made.lima_home / APP}";; esac\nexec', 1)
    )
    ended = made.run("start")
    hook.write_text(real)
    good_error(ended)
    assert made.vms() == {"tools-vm": "Stopped"}


def test_vm_killed_behind_our_back(made: Box) -> None:
    kill(*alive(made))
    assert (ended := made.run("start")).code == 0, ended.text
    whole(made)


@pytest.mark.spec("4.7")
@pytest.mark.parametrize("dead", ["ha.pid", "qemu.pid"])
def test_half_a_vm_left_running_is_repaired(made: Box, dead: str) -> None:
    kill(int((made.lima_home / APP / dead).read_text()))
    assert (ended := made.run("start")).code == 0, ended.text
    whole(made)


def test_stale_pid_files_after_a_host_reboot(made: Box) -> None:
    """The numbers belong to somebody else now: that process must live."""
    kill(*alive(made))
    with subprocess.Popen(["sleep", "60"]) as innocent:
        for name in ("ha.pid", "qemu.pid"):
            (made.lima_home / APP / name).write_text(f"{innocent.pid}\n")
        try:
            assert (again := made.run("start")).code == 0, again.text
            assert innocent.poll() is None
        finally:
            innocent.kill()
    whole(made)


@pytest.mark.parametrize(
    "words", [("stop",), ("stop", "-f"), ("delete",), ("restart",), ("prune",), ("stop-all", "-f")]
)
def test_stale_pid_files_never_kill_a_stranger(made: Box, words: tuple[str, ...]) -> None:
    kill(*alive(made))
    with subprocess.Popen(["sleep", "60"]) as innocent:
        (made.lima_home / APP / "qemu.pid").write_text(f"{innocent.pid}\n")
        (made.lima_home / APP / "ha.pid").unlink(missing_ok=True)
        try:
            made.run(*words)
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_lima_home_unreadable(ready: Box) -> None:
    shutil_target = ready.root / "file"
    shutil_target.write_text("")
    ended = ready.run("status", env={"LIMA_HOME": str(shutil_target)})
    good_error(ended)
    assert str(shutil_target) in ended.err


@pytest.mark.spec("4.1")
def test_lima_home_too_long(ready: Box) -> None:
    long = ready.root / ("x" * 70)
    ended = ready.run("create", env={"LIMA_HOME": str(long)})
    good_error(ended)
    assert "LIMA_HOME" in ended.err and "too long" in ended.err


def test_lima_home_missing_is_an_empty_one(ready: Box) -> None:
    ended = ready.run("status", env={"LIMA_HOME": str(ready.root / "none")})
    assert ended.code == 0 and "No sandbox VMs created yet" in ended.out


@pytest.mark.spec("7.1")
@pytest.mark.parametrize("version", ["1.2.2", "2.0.3", "2.1.1"])
def test_lima_too_old(ready: Box, version: str) -> None:
    offline = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    ended = ready.run("create", env={"FAKE_LIMA_VERSION": version, **offline})
    good_error(ended)
    assert version in ended.err and "2.1.2" in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


def test_a_development_build_of_lima_is_taken(ready: Box) -> None:
    assert (ended := ready.run("create", env={"FAKE_LIMA_VERSION": "<unknown>"})).code == 0, ended.text


# -- the project directory ------------------------------------------------------------------------


@pytest.mark.spec("4.9")
def test_project_vanished(made: Box) -> None:
    project = made.project()
    made.run("stop")
    project.rmdir()
    ended = made.run("start", "-d", str(project), cwd=made.root)
    good_error(ended)
    assert f"Directory not found: {project}" in ended.err and not project.exists()
    row = made.run("list", "--json", cwd=made.root).json()[0]
    assert row["project_exists"] is False


def test_current_directory_vanished(made: Box) -> None:
    project = made.project("doomed")
    command = ["sh", "-c", 'rmdir "$0"; exec "$@"', str(project), *made.argv("status")]
    done = subprocess.run(command, cwd=project, env=made.env, capture_output=True, text=True, check=False)
    good_error(Ended(done.returncode, done.stdout, done.stderr))
    assert "Directory not found" in done.stderr


def test_project_became_a_file(made: Box) -> None:
    project = made.project()
    made.run("stop")
    project.rmdir()
    project.write_text("")
    good_error(made.run("start", "-d", str(project), cwd=made.root))
    assert made.run("prune", "--orphans", cwd=made.root).code == 0
    assert made.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.9")
def test_project_became_a_symlink_elsewhere(made: Box) -> None:
    project, secret = made.project(), made.root / "secret"
    secret.mkdir()
    made.run("stop")
    project.rmdir()
    project.symlink_to(secret)
    ended = made.run("start", "-d", str(project), cwd=made.root)
    config = json.dumps([made.config(name) for name in made.vms() if name == APP])
    assert str(secret) not in config
    assert made.vms()[APP] == "Stopped" or ended.code != 0


def test_extra_mount_became_a_symlink_elsewhere(ready: Box) -> None:
    extra, secret = ready.project("extra"), ready.root / "secret"
    secret.mkdir()
    assert ready.run("create", "--mount", str(extra)).code == 0
    ready.run("stop")
    extra.rmdir()
    extra.symlink_to(secret)
    ended = ready.run("start")
    good_error(ended)
    assert "symlink" in ended.err and ready.vms()[APP] == "Stopped"


@pytest.mark.spec("4.9")
def test_mount_vanished_is_not_made_anew(ready: Box) -> None:
    extra = ready.project("extra")
    assert ready.run("create", "--mount", str(extra)).code == 0
    ready.run("stop")
    extra.rmdir()
    good_error(ready.run("start"))
    assert not extra.exists()


def test_project_moved_while_its_vm_runs(made: Box) -> None:
    new = made.root / "p" / "moved"
    made.project().rename(new)
    ended = made.run("start", cwd=new)
    assert ended.code == 1 and "moved" in ended.err
    assert sorted(made.vms()) == [APP, "tools-vm"]
