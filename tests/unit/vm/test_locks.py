"""The locks of projects, names, bases and builds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from _claude_sandbox.system import paths
from _claude_sandbox.system.files import lock
from _claude_sandbox.vm import locks as vm_locks


def test_locks_are_by_project_and_in_our_own_directory(home: Path) -> None:
    one, other = vm_locks.project_lock_path(Path("/a/app")), vm_locks.project_lock_path(Path("/b/app"))
    assert one != other and one == vm_locks.project_lock_path(Path("/a/app"))
    for path in (one, other, vm_locks.base_lock_path("tools-vm")):
        assert path.is_relative_to(paths.state_dir())
    assert vm_locks.base_lock_path("a") != vm_locks.base_lock_path("b")
    with vm_locks.names_lock(pytest.fail):
        assert (paths.state_dir() / "locks" / "names.lock").exists()


@pytest.mark.parametrize(
    "name", ["golden", "names", "credential", "builds", "a.build", "base-a", "project-0"]
)
def test_no_name_makes_a_lock_of_another_kind(home: Path, name: str) -> None:
    """Each of them can be held with all the others, those of a base called `a` too."""
    locks = paths.state_dir() / "locks"
    with (
        vm_locks.build_lock("a", pytest.fail),
        vm_locks.base_lock("a", pytest.fail),
        vm_locks.names_lock(pytest.fail),
        lock(locks / "golden.lock", timeout=0),
        lock(locks / "credential.lock", timeout=0),
        lock(vm_locks.project_lock_path(Path("/a")), timeout=0),
        # Except in a moment of an update: as `a.build.lock` an older version held the build of `a`.
        contextlib.nullcontext() if name == "a.build" else vm_locks.base_lock(name, pytest.fail),
        vm_locks.build_lock(name, pytest.fail),
    ):
        assert vm_locks.base_lock_path(name) not in (
            vm_locks.build_lock_path(name),
            vm_locks.build_lock_path("a"),
        )


def test_two_builds_at_once_and_nothing_pruned_meanwhile(home: Path) -> None:
    with (
        vm_locks.build_lock("a", pytest.fail),
        vm_locks.build_lock("b", pytest.fail),
        vm_locks.no_build() as idle,
    ):
        assert not idle
    with vm_locks.no_build() as idle:
        assert idle
