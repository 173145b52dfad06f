"""How a path is looked up: every directory on the way, and no symlink where none may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _claude_sandbox.system.lookup import identity, identity_of, look, open_directories


def test_through_which_directories_a_path_leads(home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    (home / "guest").mkdir()
    (home / "guest" / "way").symlink_to("../a")
    (home / "link").symlink_to(home / "guest" / "way")
    found = look(home / "link" / "b")
    assert found.real == home / "a" / "b" == (home / "link" / "b").resolve()
    assert {home, home / "guest", home / "a"} <= set(found.through) and found.links == (home, home / "guest")
    assert found.passes([home / "guest"]) == home / "guest" == found.follows_link_in([home / "guest"])
    assert look(home / "a" / "b").passes([home / "a"]) == home / "a"
    assert look(home / "a" / "b").follows_link_in([home]) is None
    assert look(home / "a").passes([home / "a"]) is None  # its own name is looked up above it
    assert look(home / "guest" / ".." / "a").passes([home / "guest"]) is None  # `..` cannot be led astray
    assert look(home / "none" / "x").real == home / "none" / "x"


def test_a_loop_is_an_error(home: Path) -> None:
    (home / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop"):
        look(home / "loop" / "x")


def test_which_directory_a_path_is_without_following_anything(home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    (home / "link").symlink_to("a")
    (home / "file").touch()
    assert identity(home / "a" / "b") == identity_of((home / "a" / "b").stat())
    for path in (home / "link", home / "link" / "b", home / "file", home / "none"):
        with pytest.raises(OSError):
            identity(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux shows them")
def test_what_a_process_holds_open(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY)
    try:
        word = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
        found = open_directories(os.getpid(), word)
        assert found is not None and found[identity_of(home.stat())] == str(home)
        assert open_directories(os.getpid(), "somebody else's") is None
    finally:
        os.close(fd)
