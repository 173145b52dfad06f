"""Root on Linux: whom we become, and the user namespace otherwise (issue item 3)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import inventory, run_as
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system import program
from tests.support.recording import Recorder, failed

ROOT = Path(__file__).resolve().parents[3]
as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")


def person(uid: int, name: str = "jane", home: str = "/home/jane") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid + 1, "", home, "/bin/sh"))


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """We are root, unshare is there, and so is one ordinary user."""
    monkeypatch.setattr(run_as, "is_root", lambda: True)
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    limit = tmp_path / "max_user_namespaces"
    limit.write_text("9000\n")
    monkeypatch.setattr(run_as, "_USERNS_LIMIT", limit)
    monkeypatch.setattr(pwd, "getpwall", lambda: [person(0, "root"), person(1000), person(65534, "nobody")])
    return limit


def test_an_ordinary_user_stays_as_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_as, "is_root", lambda: False)
    assert run_as.become_user(tmp_path) is None
    assert run_as.limactl_prefix() == ()
    assert run_as.guest_user().uid == os.getuid()
    assert inventory.limactl_env() == {}


@pytest.mark.parametrize("uid", ["", "0", "-1", "1000; id", "99999999999"])
def test_a_sudo_uid_that_names_nobody(root: Path, monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    assert run_as.user_to_become(Path("/")) is None


def test_sudo_s_caller_comes_before_the_owner(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    people = {1234: person(1234, "caller"), 1235: person(1235, "owner")}
    monkeypatch.setattr(run_as, "_person", lambda uid: people.get(uid))
    monkeypatch.setattr(run_as, "_owner", lambda _project: people[1235])
    for value, name in (("1234", "caller"), ("7", "owner"), (None, "owner")):
        if value is None:
            monkeypatch.delenv("SUDO_UID")
        else:
            monkeypatch.setenv("SUDO_UID", value)
        taken = run_as.user_to_become(tmp_path)
        assert taken is not None and taken.pw_name == name


def test_someone_without_a_home_of_their_own_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = os.stat(tmp_path).st_uid + 77
    for home in (str(tmp_path), "/nonexistent"):
        monkeypatch.setattr(pwd, "getpwuid", lambda uid, home=home: person(uid, home=home))
        assert run_as._person(other) is None


def test_the_namespace_takes_1000_or_the_lowest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_as.limactl_prefix() == ("unshare", "--user", "--map-user=1000", "--map-group=1001")
    monkeypatch.setattr(
        pwd, "getpwall", lambda: [person(0), person(1007), person(1003, "B.B"), person(65534)]
    )
    assert run_as.limactl_prefix()[2] == "--map-user=1003"
    assert run_as.guest_user() == lima_context.GuestUser("lima", 1003)
    assert set(inventory.limactl_env()) == {"HOME", "USER"}


def test_no_ordinary_user_is_an_error_with_the_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwall", lambda: [person(0), person(65534, "nobody")])
    with pytest.raises(HostSetupError, match="useradd --uid 1000"):
        run_as.limactl_prefix()


def test_forbidden_namespaces_are_explained(
    root: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_as.limactl_prefix(recorder)[0] == "unshare"
    assert recorder.argvs() == [(*run_as.limactl_prefix(), "true")]
    recorder.on("unshare", then=failed("unshare: unshare failed: Operation not permitted"))
    with pytest.raises(HostSetupError, match="Operation not permitted"):
        run_as.limactl_prefix(recorder)
    root.write_text("0\n")
    with pytest.raises(HostSetupError, match="forbidden"):
        run_as.limactl_prefix()
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    with pytest.raises(HostSetupError, match="util-linux"):
        run_as.limactl_prefix()


@given(st.text(max_size=20))
def test_guest_names_are_what_linux_takes(name: str) -> None:
    got = run_as.guest_name(name)
    assert got == name or got == "lima"
    assert got != "admin" and got[0] in "abcdefghijklmnopqrstuvwxyz_"
    assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789_-" for c in got)


@pytest.mark.parametrize("name", ["admin", "Jane", "jane.doe", "1st", "", "jané", "x\n"])
def test_names_that_become_lima(name: str) -> None:
    assert run_as.guest_name(name) == "lima"


@as_root
def test_root_becomes_the_owner_for_good(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a process of its own: there is no way back."""
    script = f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
import pwd
from _claude_sandbox.host import run_as
os.environ.update(XDG_DATA_HOME="/root/x", HOME="/root", SUDO_UID="1")
entry = pwd.struct_passwd(("daemon", "x", 1, 1, "", "/", "/bin/sh"))
run_as._person = lambda uid: entry if uid == 1 else None
run_as._check_readable = lambda entry: None
print(run_as.become_user(pathlib.Path("/")))
print(os.getresuid(), os.getresgid(), os.environ["HOME"], os.environ["USER"], os.environ.get("XDG_DATA_HOME"))
try:
    os.setuid(0)
except PermissionError:
    print("no way back")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd="/"
    )
    first, second, third = ended.stdout.splitlines()
    assert "daemon" in first and "sudo" in first
    assert second == "(1, 1, 1) (1, 1, 1) / daemon None"
    assert third == "no way back"


@as_root
def test_a_user_who_cannot_read_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    monkeypatch.setattr(program, "PACKAGE", hidden)
    with pytest.raises(HostSetupError, match="cannot read this program"):
        run_as._check_readable(person(1, "daemon"))


# -- root with somebody's HOME -----------------------------------------------------------------------


@as_root
def test_root_takes_its_own_home_and_nobody_else_s_xdg_directories(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jane, own = tmp_path / "jane", tmp_path / "own"
    for path in (jane, own):
        path.mkdir()
    os.chown(jane, 4321, 4321)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(jane))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(jane))
    monkeypatch.setenv("XDG_STATE_HOME", str(jane / "not" / "there"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(own / "cache"))
    monkeypatch.setenv("USER", "jane")
    run_as.leave_other_homes()
    assert os.environ["HOME"] == pwd.getpwuid(0).pw_dir and os.environ["USER"] == "root"
    kept = {name for name in os.environ if name.startswith("XDG_")}
    assert kept == {"XDG_CACHE_HOME"}
    monkeypatch.setenv("HOME", str(own / "new"))
    run_as.leave_other_homes()
    assert os.environ["HOME"] == str(own / "new")


@as_root
def test_root_that_stays_root_leaves_another_s_lima_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_as, "user_to_become", lambda _project: None)
    for owner, kept in ((0, True), (4321, False)):
        os.chown(tmp_path, owner, owner)
        monkeypatch.setenv("LIMA_HOME", str(tmp_path / "lima"))
        assert run_as.become_user(tmp_path) is None
        assert ("LIMA_HOME" in os.environ) is kept
