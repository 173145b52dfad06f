"""Where everything lives, and that nobody else's directory is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _claude_sandbox import paths
from _claude_sandbox.errors import HostSetupError


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


def test_the_runtime_directory_is_short(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = os.environ["XDG_RUNTIME_DIR"]
    if os.uname().sysname == "Linux":
        assert paths.runtime_dir() == Path(base) / "claude-sandbox"
    monkeypatch.setattr(paths, "private_dir", lambda path: path)
    for unusable in ("", "/" + "x" * 60, "/proc/nowhere"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert str(paths.runtime_dir()) == f"/tmp/claude-sandbox-{os.getuid()}"


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
