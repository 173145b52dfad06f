"""What the hooks server knows of a sandbox; files of an older version whose tag went by the path as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from _claude_sandbox.hooks import registration as hooks_registration
from _claude_sandbox.hooks.registration import Registration
from _claude_sandbox.lima import limactl


@pytest.fixture
def one(tmp_path: Path) -> Registration:
    (tmp_path / "lima" / "app").mkdir(parents=True)
    (tmp_path / "link").symlink_to("lima")
    directory = tmp_path / "link" / "app"
    return Registration("app", directory, "/p/app", "lima-app", directory / "ssh.config", 1000)


def put_older(one: Registration, directory: Path) -> Path:
    file = one.write(directory)
    return file.rename(directory / f"{limactl.tag_as_written(one.dir)}.json")


def test_a_tag_is_the_same_through_a_symlink(one: Registration, tmp_path: Path) -> None:
    real = replace(one, dir=tmp_path / "lima" / "app")
    assert one.tag == real.tag == limactl.tag_as_written(real.dir) != limactl.tag_as_written(one.dir)


def test_one_of_an_older_version_is_found_and_renamed(one: Registration, tmp_path: Path) -> None:
    places = tmp_path / "sandboxes"
    places.mkdir()
    put_older(one, places)
    assert hooks_registration.all_in(places) == [one]
    assert [file.stem for file in places.iterdir()] == [one.tag]


def test_two_for_one_vm_become_one(one: Registration, tmp_path: Path) -> None:
    places = tmp_path / "sandboxes"
    places.mkdir()
    put_older(one, places)
    newer = replace(one, dir=tmp_path / "lima" / "app", project="/newer")
    newer.write(places)
    assert hooks_registration.all_in(places) == [newer]
    assert [file.stem for file in places.iterdir()] == [one.tag]


def test_under_a_strange_name_it_is_none(one: Registration, tmp_path: Path) -> None:
    places = tmp_path / "sandboxes"
    places.mkdir()
    one.write(places).rename(places / "0123456789ab.json")
    assert hooks_registration.all_in(places) == []
