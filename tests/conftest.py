"""For every test: nothing of the developer's own environment, and `box`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import Box, link_system, short_directory
from tests.support.recording import ctx, home, recorder  # noqa: F401  (fixtures of the unit tests)

# A test must not depend on, or hand on, what the person who runs it has set.
for _name in list(os.environ):
    if _name.startswith(("ANTHROPIC_", "CLAUDE", "LIMA_")) or _name in (
        "TMUX",
        "SUDO_UID",
        "SUDO_GID",
        "SUDO_USER",
    ):
        del os.environ[_name]


@pytest.fixture(scope="session")
def system_programs() -> Iterator[Path]:
    """bin/: this machine's programs without those that a test must not meet; pyc/: compiled Python."""
    where = short_directory()
    link_system(where / "bin")
    yield where
    shutil.rmtree(where, ignore_errors=True)


@pytest.fixture
def box(system_programs: Path) -> Iterator[Box]:
    """A closed world for the whole program (tests/support/box.py)."""
    world = Box(short_directory(), system_programs)
    yield world
    world.close()


@pytest.fixture
def ready(box: Box) -> Box:
    """A box in which the tools VM is there."""
    box.tools_vm()
    return box
