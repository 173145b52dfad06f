"""Names and marks: valid for Lima whatever the directory is called, and never another project's."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import naming

LIMA_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")  # pkg/identifiers of Lima
segment = st.binary(min_size=1, max_size=30).filter(
    lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b"..")
)
directories = st.lists(segment, max_size=4).map(lambda parts: Path("/" + os.fsdecode(b"/".join(parts))))
longest = st.integers(min_value=25, max_value=58)


@pytest.mark.spec("4.1")
@given(directories, longest, st.booleans())
def test_a_name_is_always_one_that_lima_takes(project: Path, most: int, hashed: bool) -> None:
    name = naming.vm_name(project, most, with_hash=hashed)
    assert LIMA_NAME.fullmatch(name) and "--" not in name
    assert len(name) <= most
    assert name.startswith("claude-sandbox-") and name == name.lower()
    assert name == naming.vm_name(project, most, with_hash=hashed)


@given(directories, directories, longest)
def test_two_projects_never_share_the_hashed_name(one: Path, other: Path, most: int) -> None:
    assume(one != other)
    assert naming.vm_name(one, most, with_hash=True) != naming.vm_name(other, most, with_hash=True)


def test_names_of_ordinary_and_odd_directories() -> None:
    cases = {
        "/": "claude-sandbox-root",
        "/home/me/My App": "claude-sandbox-my-app",
        "/src/__init__": "claude-sandbox-init",
        "/src/日本": "claude-sandbox-project",
        "/src/...": "claude-sandbox-project",
        "/src/a.b_c--d": "claude-sandbox-a-b-c-d",
        "/src/Grüße": "claude-sandbox-gr-e",
    }
    assert {path: naming.vm_name(Path(path), 58) for path in cases} == cases
    assert naming.vm_name(Path("/a/app"), 58) == naming.vm_name(Path("/b/app"), 58)
    assert naming.slug("") == "project"
    assert naming.vm_name(Path("/x/abcdefghi-klm"), 25) == "claude-sandbox-abcdefghi"  # no dash at the cut


@given(st.text(max_size=40))
def test_slug_has_only_what_a_host_name_may_have(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", naming.slug(text))
    assert naming.slug(naming.slug(text)) == naming.slug(text)


@given(st.integers(min_value=2, max_value=75), st.booleans())
def test_the_longest_name_fits_lima_s_sockets_and_host_names(length: int, macos: bool) -> None:
    """facts/lima.md §8: LIMA_HOME + name + 27 bytes fit into a socket path; the host name is lima-<name>."""
    home = Path("/" + "x" * (length - 1))
    most = 103 if macos else 107

    def fits(name: int) -> bool:
        return length + name + 27 <= most and len("lima-") + name <= 63

    assert fits(lima_context.longest_name(home, macos))
    assert not fits(lima_context.longest_name(home, macos) + 1)


def test_the_home_is_counted_in_bytes() -> None:
    assert lima_context.longest_name(Path("/é" * 20), False) == lima_context.longest_name(
        Path("/ab" * 20), False
    )


@given(
    directories, st.integers(0, 2**64), st.integers(0, 2**64), st.integers(0, 2**64),
    st.sampled_from([vm_mark.SANDBOX, vm_mark.TOOLS]),
)  # fmt: skip
def test_a_mark_survives_the_way_through_a_file(
    path: Path, device: int, inode: int, born: int, kind: str
) -> None:
    mark = vm_mark.Mark(kind, "claude-sandbox-x", path, device, inode, born)
    text = mark.encode()
    assert text.isascii() and text.isprintable() and " " not in text  # Lima refuses other param values
    assert vm_mark.Mark.decode(text) == mark


def test_a_mark_without_a_project() -> None:
    mark = vm_mark.Mark(vm_mark.TOOLS, "tools-vm")
    assert vm_mark.Mark.decode(mark.encode()) == mark


def test_what_the_documented_mark_means() -> None:
    mark = vm_mark.Mark.decode("1;sandbox;claude-sandbox-app;L2hvbWUvbWUvYXBw;2049;131")
    assert mark == vm_mark.Mark("sandbox", "claude-sandbox-app", Path("/home/me/app"), 2049, 131)
    text = "2;sandbox;claude-sandbox-app;L2hvbWUvbWUvYXBw;2049;131;1764000000123456789"
    assert vm_mark.Mark.decode(text) == dataclasses.replace(mark, born=1764000000123456789)


@given(st.text(max_size=60))
def test_what_is_no_mark_is_none(text: str) -> None:
    assert vm_mark.Mark.decode(text) is None


def test_marks_of_another_schema_or_broken_ones_are_none() -> None:
    good = "1;sandbox;a;L2E=;1;2"
    assert vm_mark.Mark.decode(good) is not None
    for text in (
        "2;sandbox;a;L2E=;1;2",  # a schema to come
        "1;snapshot;a;L2E=;1;2",  # a kind that we do not know
        "1;sandbox;a;L2E;1;2",  # cut base64
        "1;sandbox;a;L2!E=;1;2",  # what is no base64 must not be skipped
        "1;sandbox;a;L2E=;x;2",
        "1;sandbox;a;L2E=;1",
        good + ";3",
        "2;sandbox;a;L2E=;1;2;x",
        "2;sandbox;a;L2E=;1;2;3;4",
        "3;sandbox;a;L2E=;1;2;3",
        "",
    ):
        assert vm_mark.Mark.decode(text) is None, text


def test_the_schema_of_any_version_of_ours_can_be_told() -> None:
    assert vm_mark.mark_schema(vm_mark.Mark(vm_mark.TOOLS, "x").encode()) == 1
    assert (
        vm_mark.mark_schema(vm_mark.Mark(vm_mark.SANDBOX, "x", Path("/p"), 1, 2, 3).encode())
        == vm_mark.SCHEMA
    )
    assert vm_mark.mark_schema("23;anything;else") == 23
    for text in ("", "sandbox;1", ";1", "1", "-1;x", "99999999999;x"):
        assert vm_mark.mark_schema(text) is None


def test_a_moved_directory_is_recognised(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    mark = vm_mark.mark_for("claude-sandbox-old", old)
    assert mark.project == old and mark.kind == vm_mark.SANDBOX
    old.rename(new)
    old.mkdir()
    os.utime(new, (1, 1))  # somebody works in it: only its birth never changes
    assert mark.born and mark.same_directory(new) is True
    assert dataclasses.replace(mark, born=mark.born - 1).same_directory(new) is False  # the inode, used again
    assert dataclasses.replace(mark, born=0).same_directory(new) is None  # an older mark
    assert not mark.same_directory(old)  # another directory in the old place
    assert not mark.same_directory(tmp_path / "gone")


def test_the_guest_s_home_is_not_the_host_s() -> None:
    assert lima_context.GuestUser("me", 501).home == "/home/me.guest"
