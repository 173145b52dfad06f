"""Where everything lives, and that nobody else's directory is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system import paths, runtime_dir

ROOT = Path(__file__).resolve().parents[3]


def test_everything_follows_the_home_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.default_settings() == home / ".claude-sandbox" / ".claude"
    assert paths.lima_home() == home / ".lima"
    for place in (
        paths.config_file(),
        paths.data_dir(),
        paths.state_dir(),
        paths.cache_dir(),
        paths.logs_dir(),
    ):
        assert place.is_relative_to(home) and "claude-sandbox" in str(place)
    assert not paths.token_file().is_relative_to(paths.default_settings())  # it must not be mounted
    monkeypatch.setenv("LIMA_HOME", "/vms")
    assert paths.lima_home() == Path("/vms")


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="XDG is Linux's")
def test_xdg_variables_are_respected(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert paths.config_file() == tmp_path / "CONFIG" / "claude-sandbox" / "config.yaml"
    assert paths.state_dir() == tmp_path / "STATE" / "claude-sandbox"
    assert paths.data_dir() == tmp_path / "DATA" / "claude-sandbox"
    assert paths.cache_dir() == tmp_path / "CACHE" / "claude-sandbox"


def test_state_and_logs_are_private(home: Path) -> None:
    for place in (paths.state_dir(), paths.logs_dir(), paths.runtime_dir()):
        assert place.is_dir() and place.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def shared(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /tmp, and a user without XDG_RUNTIME_DIR."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    place = home.parent / "tmp"
    place.mkdir()
    monkeypatch.setattr(runtime_dir, "SHARED", str(place))
    return place


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="XDG is Linux's")
def test_the_runtime_directory_lies_in_a_usable_xdg_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(os.environ["XDG_RUNTIME_DIR"])
    assert paths.runtime_dir() == base / "claude-sandbox" / runtime_dir.key()
    assert all(
        place.stat().st_mode & 0o777 == 0o700 for place in (base / "claude-sandbox", paths.runtime_dir())
    )
    monkeypatch.setattr(runtime_dir, "SHARED", str(home.parent))
    open_to_all = home.parent / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)  # a container that sets XDG_RUNTIME_DIR=/tmp
    for unusable in ("", "/" + "x" * 60, "/proc/nowhere", "relative", str(open_to_all)):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert paths.runtime_dir().parent == home.parent
    assert list(open_to_all.iterdir()) == []


def test_sockets_below_it_have_short_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """104 bytes on macOS, the ending zero included."""
    longest = [f"/{'f' * 12}.ssh.{'x' * 16}", f"/audio/in/{'f' * 12}.sock", f"/hooks/in/{'f' * 12}.sock"]
    room = max(map(len, longest))
    assert len("/tmp/claude-sandbox-0123456789ab") + room <= 103
    base = home.parent / "xdg"
    for length in range(20, 104):
        full = Path(f"{base}{'ü' * 50}"[:length])
        full.mkdir(mode=0o700, exist_ok=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(full))
        assert len(os.fsencode(runtime_dir.path())) + room <= 103


def test_it_belongs_to_a_home_and_a_lima_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [paths.runtime_dir()]
    state = [paths.servers_dir("hooks")]
    for name, value in (("LIMA_HOME", home / "vms"), ("HOME", home.parent / "second")):
        value.mkdir()
        monkeypatch.setenv(name, str(value))
        seen.append(paths.runtime_dir())
        state.append(paths.servers_dir("hooks"))
    assert len({*seen}) == len({*state}) == 3
    assert state[0].name == "hooks", "where the last release had it"


def test_a_symlink_on_the_way_is_no_other_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".lima").mkdir()
    first = paths.runtime_dir()
    for name, target in (("link", home), ("lima", home / ".lima")):
        (home.parent / name).symlink_to(target)
    monkeypatch.setenv("HOME", str(home.parent / "link"))
    assert paths.runtime_dir() == first
    monkeypatch.setenv("LIMA_HOME", str(home.parent / "lima"))
    assert paths.runtime_dir() == first and paths.servers_dir("hooks").name == "hooks"
    assert runtime_dir.lima_home() == os.path.realpath(paths.lima_home())


def test_without_xdg_its_name_cannot_be_foreseen_and_is_kept(shared: Path) -> None:
    assert runtime_dir.path() == "" and list(shared.iterdir()) == [], "nothing is made by asking"
    place = paths.runtime_dir()
    assert place.parent == shared and len(place.name) == len("claude-sandbox-") + 12
    assert place.stat().st_mode & 0o777 == 0o700
    assert paths.runtime_dir() == place == Path(runtime_dir.path())
    assert os.readlink(paths.state_dir() / f"runtime-{runtime_dir.key()}") == str(place)
    place.rmdir()  # a cleaner of /tmp
    assert paths.runtime_dir() == place and place.is_dir()


@pytest.mark.parametrize("taken", ["somebody else's", "a symlink", "a file"])
def test_a_name_that_somebody_took_is_given_up(
    shared: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    place = paths.runtime_dir()
    place.rmdir()
    if taken == "a file":
        place.touch()
    elif taken == "a symlink":
        (shared / "elsewhere").mkdir()
        place.symlink_to(shared / "elsewhere")
    else:
        place.mkdir()
        real = os.lstat

        def lstat(path: object, **how: Any) -> os.stat_result:
            info = real(str(path), **how)
            return (
                os.stat_result([*info[:4], info.st_uid + 1, *info[5:]]) if str(path) == str(place) else info
            )

        monkeypatch.setattr(os, "lstat", lstat)
    other = paths.runtime_dir()
    assert other != place and other.parent == shared
    assert paths.runtime_dir() == other


def test_the_place_of_the_last_release_may_belong_to_anybody(shared: Path) -> None:
    """Whoever made /tmp/claude-sandbox-UID first stopped everything."""
    (shared / f"claude-sandbox-{os.getuid()}").touch()
    assert paths.runtime_dir().is_dir()


def test_two_first_commands_agree_on_one(shared: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from _claude_sandbox.system import paths, runtime_dir;"
        f"runtime_dir.SHARED = {str(shared)!r}; sys.stdin.read(1); print(paths.runtime_dir())"
    )
    run = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for each in run:
        assert each.stdin
        each.stdin.write("x")
        each.stdin.flush()
    assert {each.communicate()[0] for each in run} == {f"{runtime_dir.path()}\n"}
    assert list(shared.iterdir()) == [Path(runtime_dir.path())]


@pytest.mark.parametrize("step", ["symlink", "replace", "mkdir"])
def test_killed_while_it_is_made_the_next_run_makes_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    paths.state_dir()
    with monkeypatch.context() as killed:
        real = getattr(os, step)

        def die(*arguments: Any, **how: Any) -> None:
            if step == "mkdir" and not str(arguments[0]).startswith(str(shared)):
                real(*arguments, **how)  # the state directory
            else:
                raise KeyboardInterrupt

        killed.setattr(os, step, die)
        with pytest.raises(KeyboardInterrupt):
            runtime_dir.make()
    assert list(shared.iterdir()) == [], "nothing is left of it"
    place = paths.runtime_dir()
    assert list(shared.iterdir()) == [place]


def test_a_state_directory_of_others_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "theirs").mkdir()
    (shared / "state").mkdir()
    (shared / "state" / "claude-sandbox").symlink_to(shared / "theirs")
    monkeypatch.setenv("XDG_STATE_HOME", str(shared / "state"))
    with pytest.raises(HostSetupError, match="Cannot use"):
        paths.runtime_dir()


def test_the_record_lies_in_the_state_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reckoned without platformdirs, for speed."""
    assert Path(runtime_dir._state()) == paths.state_dir()
    if os.uname().sysname == "Linux":
        for value in (str(home / "state"), "relative", ""):
            monkeypatch.setenv("XDG_STATE_HOME", value)
            assert Path(runtime_dir._state()) == paths.state_dir()


def test_every_place_that_it_may_have_is_known(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = shared / f"claude-sandbox-{os.getuid()}"
    assert former in paths.runtime_places() and list(shared.iterdir()) == [], "nothing is made by asking"
    made = paths.runtime_dir()
    assert made in paths.runtime_places()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared.parent / "run"))
    found = paths.runtime_places()
    assert made in found, "in another environment of this user"
    if os.uname().sysname == "Linux":
        assert paths.runtime_dir() in found and shared.parent / "run" / "claude-sandbox" in found


def test_another_user_s_link_is_none_of_these_places(shared: Path) -> None:
    """It could lead to the user's projects, none of which could then be shared."""
    former = shared / f"claude-sandbox-{os.getuid()}"
    former.symlink_to(shared.parent / "home")
    places = paths.runtime_places()
    assert former not in places and [place.parent for place in places] == [shared], "/tmp itself still counts"


def test_an_open_directory_of_ours_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.mkdir(mode=0o755)
    assert paths.private_dir(place) == place and place.stat().st_mode & 0o777 == 0o700
    assert (paths.private_dir(tmp_path / "a" / "b" / "c")).is_dir()


def test_somebody_else_s_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(HostSetupError, match="is not a directory of yours"):
        paths.private_dir(tmp_path / "link")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    with pytest.raises(HostSetupError, match="is not a directory of yours"):
        paths.private_dir(theirs)


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("gone")
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "dangling"):
        with pytest.raises(HostSetupError, match=f"Cannot use {place}") as caught:
            paths.private_dir(place)
        assert "XDG" in (caught.value.resolution or "")


def test_lima_home_is_where_lima_takes_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMA_HOME", raising=False)
    (home / "big").mkdir()
    (home / ".lima").symlink_to("big")
    assert paths.lima_home() == home / "big" and paths.lima_home_as_written() == home / ".lima"
    monkeypatch.setenv("LIMA_HOME", str(home / "none" / ".." / "big" / "not-yet"))
    assert paths.lima_home() == home / "big" / "not-yet"
    monkeypatch.delenv("LIMA_HOME")
    (home / "big").rmdir()
    with pytest.raises(HostSetupError, match="leads to big, which is not there"):
        paths.lima_home()
