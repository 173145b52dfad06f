"""Real VMs: an ordinary user and root, each from nothing, with one image and one Lima build in a cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from machine import Person, Stub, account  # noqa: E402

# Outside the checkout and outside the homes: what can be cached between runs of CI.
CACHE = Path("/var/cache/claude-sandbox-tests")
# For whoever writes a test: the homes and their VMs stay, and the next run goes on from there.
KEEP = bool(os.environ.get("KEEP_TEST_VMS"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.xdist_group("vm"))  # one after the other (scripts/test)


@pytest.fixture(scope="session")
def as_root() -> None:
    """These tests make an account and run as it and as root. Missing means failed, never skipped."""
    if os.geteuid() != 0:
        pytest.fail(
            "the real-VM tests make a user and therefore run as root; `scripts/test --fast` leaves them out"
        )


@pytest.fixture(scope="session")
def user(as_root: None) -> Iterator[Person]:
    """An ordinary user with an empty home and a fresh copy of the checkout."""
    entry = account()
    home = Path(entry.pw_dir)
    person = Person(entry.pw_name, home)
    if not KEEP:
        person.clean_up()  # what a run that was killed left
    home.mkdir(mode=0o755, exist_ok=True)
    person.settle(CACHE / "user")
    yield person
    if not KEEP:
        person.clean_up()


@pytest.fixture(scope="session")
def root(user: Person) -> Iterator[Person]:
    """Root itself, in a home of its own, with the same cached image as the user."""
    home = Path("/root/.claude-sandbox-test")
    person = Person(None, home)
    if not KEEP:
        person.clean_up()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    person.settle(CACHE / "root")
    seed(CACHE / "user" / "claude-sandbox", CACHE / "root" / "claude-sandbox")
    yield person
    if not KEEP:
        person.clean_up()


def seed(there: Path, here: Path) -> None:
    """Root's cache gets the image and the Lima build that the user's day made, as its own files."""
    for kind in ("images/*", "lima-*"):
        for source in there.glob(kind):
            target = here / source.relative_to(there)
            if not target.exists() and not source.name.startswith("."):
                target.parent.mkdir(parents=True, exist_ok=True)
                copying = ["cp", "-r", "--preserve=mode,timestamps", "--reflink=auto"]
                subprocess.run([*copying, str(source), str(target)], check=True)


@pytest.fixture(scope="session")
def stub() -> Iterator[Stub]:
    import socket
    import time

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "stub_api.py"), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Stub(port)
    finally:
        process.terminate()
        process.wait(10)
