"""Registrations of the last release, which all HOMEs of a user had in one directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from _claude_sandbox.hooks import registration as hooks_registration
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.lima import limactl


@pytest.fixture
def places(home: Path) -> tuple[Path, Path]:
    """The last release's and ours."""
    found = home / "former", home / "ours"
    for place in found:
        place.mkdir()
    return found


def registered(lima_home: Path, name: str = "app") -> Registration:
    return Registration(
        name, lima_home / name, "/p/app", f"lima-{name}", lima_home / name / "ssh.config", 1000
    )


def test_our_own_are_moved_and_those_of_another_home_stay(home: Path, places: tuple[Path, Path]) -> None:
    former, ours = places
    mine, other = registered(home / ".lima"), registered(home / "other" / ".lima")
    for each in (mine, other):
        each.write(former)
    hooks_registration.take_over(former, ours)
    assert hooks_registration.all_in(ours) == [mine] and hooks_registration.all_in(former) == [other]


def test_through_a_symlink_it_gets_the_vm_s_one_path(home: Path, places: tuple[Path, Path]) -> None:
    former, ours = places
    (home / "disk").mkdir()
    (home / ".lima").symlink_to(home / "disk")
    registered(home / ".lima").write(former)
    hooks_registration.take_over(former, ours)
    (found,) = hooks_registration.all_in(ours)
    assert found.dir == home / "disk" / "app" and hooks_registration.all_in(former) == []


def test_what_a_launch_wrote_since_stays(home: Path, places: tuple[Path, Path]) -> None:
    former, ours = places
    mine = registered(home / ".lima")
    mine.write(former)
    newer = replace(mine, project="/newer")
    newer.write(ours)
    hooks_registration.take_over(former, ours)
    assert hooks_registration.all_in(ours) == [newer] and hooks_registration.all_in(former) == []


def test_another_home_s_registration_keeps_the_name_under_which_its_server_knows_it(
    home: Path, places: tuple[Path, Path]
) -> None:
    former, ours = places
    (home / "disk").mkdir()
    (home / "link").symlink_to(home / "disk")
    as_written = home / "link" / "app"
    other = (
        registered(home / "link").write(former).rename(former / f"{limactl.tag_as_written(as_written)}.json")
    )
    hooks_registration.take_over(former, ours)
    assert list(former.iterdir()) == [other] and list(ours.iterdir()) == []
