"""The runtime directory: each HOME has its own, nobody's hand stops us, and servers live and end with theirs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.system import daemon, runtime_dir
from tests.support.box import Box
from tests.support.hookplay import PATIENCE, Guest, old_server, wait_for

APP = "claude-sandbox-app"
NOBODY = 65534
Env = Mapping[str, str | None]


@pytest.fixture
def homes(box: Box) -> Iterator[list[Env]]:
    """Two HOMEs of one user, each with its LIMA_HOME, and one XDG_RUNTIME_DIR."""
    found: list[Env] = []
    for name in ("one", "two"):
        for part in ("", "/lima"):
            (box.root / f"{name}{part}").mkdir()
        found.append({"HOME": str(box.root / name), "LIMA_HOME": str(box.root / name / "lima")})
    yield found
    for env in found:
        box.run("stop-all", env=env)


@pytest.fixture
def without_xdg(box: Box) -> Iterator[Env]:
    """Nothing is left in the real /tmp."""
    env = {"XDG_RUNTIME_DIR": None}
    yield env
    box.run("stop-all", env=env)
    for place in recorded(box):
        shutil.rmtree(place, ignore_errors=True)


def recorded(box: Box) -> list[Path]:
    return [Path(os.readlink(link)) for link in (box.home / ".local/state/claude-sandbox").glob("runtime-*")]


def server(box: Box, env: Env) -> dict[str, object]:
    place = box.runtime / "claude-sandbox" / runtime_dir.key({k: v for k, v in env.items() if v})
    return daemon.read_pid_file(daemon.Daemon("", "", place / "hooks", Path(), Path()))


# -- each HOME its own -------------------------------------------------------------------------------


def test_two_homes_of_one_user_share_no_server(box: Box, homes: list[Env]) -> None:
    one, two = homes
    for env in homes:
        assert box.run("restart-hooks", env=env).code == 0
    first = server(box, one)
    assert first["pid"] != server(box, two)["pid"]
    assert box.run("stop-all", env=two).code == 0
    assert server(box, two) == {} and server(box, one) == first
    assert box.run("status", "--json", env=one).json()["hooks_server"] == "Running"
    assert box.run("status", "--json", env=two).json()["hooks_server"] == "Not running"
    assert box.run("uninstall", "-y", env=two).code == 0
    assert server(box, one) == first, "nor does an uninstall reach the other's"


def test_uninstall_takes_the_runtime_directory(box: Box) -> None:
    assert box.run("restart-hooks").code == 0
    assert box.runtime_dir().is_dir()
    assert (ended := box.run("uninstall", "-y")).code == 0, ended.text
    assert not box.runtime_dir().exists()


# -- /tmp --------------------------------------------------------------------------------------------


def test_without_xdg_a_server_runs_and_uninstall_leaves_nothing(box: Box, without_xdg: Env) -> None:
    assert box.run("restart-hooks", env=without_xdg).code == 0
    assert box.run("status", "--json", env=without_xdg).json()["hooks_server"] == "Running"
    (place,) = recorded(box)
    assert place.parent == Path("/tmp") and place.stat().st_mode & 0o777 == 0o700
    assert (ended := box.run("uninstall", "-y", env=without_xdg)).code == 0, ended.text
    assert not place.exists() and recorded(box) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory for somebody else")
def test_another_user_who_takes_the_name_stops_nothing(box: Box, without_xdg: Env) -> None:
    box.tools_vm()
    assert box.run("create", "-y", env=without_xdg).code == 0
    (place,) = recorded(box)
    shutil.rmtree(place)
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    try:
        for verb in (["status"], ["list"], ["shell", "--", "true"], ["stop-all"]):
            assert (ended := box.run(*verb, env=without_xdg)).code == 0, ended.text
        assert recorded(box) != [place]
    finally:
        shutil.rmtree(place)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory for somebody else")
def test_another_user_who_has_the_last_release_s_name_stops_nothing(box: Box, without_xdg: Env) -> None:
    place = Path(f"/tmp/claude-sandbox-{os.getuid()}")
    if place.exists():
        pytest.skip("this machine has one")
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    try:
        for verb in ("status", "list", "restart-hooks", "stop-all"):
            assert (ended := box.run(verb, env=without_xdg)).code == 0, ended.text
    finally:
        place.rmdir()


# -- servers and their place -------------------------------------------------------------------------


@pytest.fixture
def within(box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """We ourselves are in the box's world."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "LIMA_HOME"):
        monkeypatch.setenv(name, box.env[name])
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield box
    daemon_client.stop()


def test_a_server_whose_directory_was_removed_ends_and_harms_no_other(within: Box) -> None:
    """A cleaner of /tmp, or somebody's rm: nobody would find it again, and the next command starts another."""
    daemon_client.ensure()
    old = psutil.Process(int(server(within, within.env)["pid"]))  # type: ignore[call-overload]
    shutil.rmtree(within.runtime_dir())
    daemon_client.ensure()
    old.wait(PATIENCE)
    assert daemon.running(daemon_client.daemon()) and daemon_client.ask("GET", "/state")["sandboxes"] == []
    assert server(within, within.env)["pid"] != old.pid


def test_a_server_keeps_its_directory_from_cleaners(within: Box) -> None:
    """They take what looks unused for days; registrations and locks are written once."""
    old = [hooks_client.registrations() / "x.txt", within.runtime_dir() / "some.ssh"]
    left = within.runtime_dir() / "killed.session"  # it holds a login
    for file in (*old, left):
        file.touch()
        os.utime(file, (1, 1))
    daemon_client.ensure()
    wait_for(lambda: all(time.time() - file.stat().st_mtime < 60 for file in old))
    assert left.stat().st_mtime == 1


def last_release(box: Box, env: Mapping[str, str]) -> psutil.Process:
    """A hooks server in the one directory that all HOMEs of a user shared."""
    return old_server(box.runtime / "claude-sandbox" / "hooks", daemon_client.VERB, {**box.env, **env})


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_last_release_s_server_is_replaced_and_its_sandboxes_go_on(within: Box) -> None:
    directory = within.lima_home / APP
    directory.mkdir()
    guest = Guest(Registration(APP, directory, "/p/app", "lima-x", directory / "ssh.config", 1000))
    guest.boots()
    place = within.runtime / "claude-sandbox" / "hooks" / "sandboxes"
    old = last_release(within, {})
    place.mkdir(mode=0o700)
    guest.registration.write(place)
    assert "last release" in within.run("doctor").out
    daemon_client.ensure()
    wait_for(lambda: ended(old))
    assert list(place.iterdir()) == [], "they are ours now"
    wait_for(guest.socket.exists)
    guest.deliver(guest.line("UserPromptSubmit"))
    assert "last release" not in within.run("doctor").out


def test_stop_all_stops_the_last_release_s_server(within: Box) -> None:
    old = last_release(within, {})
    assert within.run("stop-all").code == 0
    wait_for(lambda: ended(old))


def test_another_home_s_server_of_the_last_release_is_left_alone(within: Box) -> None:
    other = within.root / "other"
    other.mkdir()
    old = last_release(within, {"HOME": str(other)})
    try:
        daemon_client.ensure()
        daemon_client.stop()
        assert not ended(old)
    finally:
        old.terminate()
        old.wait(PATIENCE)
