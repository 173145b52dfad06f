"""Real VMs: an ordinary user and root, each from nothing, with one image and one Lima build in a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Person, Stub, account

HERE = Path(__file__).resolve().parent

# Outside the checkout and outside the homes: what can be cached between runs of CI.
CACHE = Path("/var/cache/claude-sandbox-tests")
HOME = ".claude-sandbox-test"  # of a person that has no account of its own
# For whoever writes a test: the homes and their VMs stay, and the next run goes on from there.
KEEP = bool(os.environ.get("KEEP_TEST_VMS"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.xdist_group("vm"))  # one after the other (scripts/test)
            if "root" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.as_root)


@pytest.fixture(scope="session")
def user() -> Iterator[Person]:
    """An ordinary user with an empty home and a fresh copy of the checkout: an account made for it by root;
    for anybody else that user itself, in a home beside the own one."""
    if os.geteuid() == 0:
        entry = account()
        yield from moved_in(Person(entry.pw_name, Path(entry.pw_dir)), 0o755, CACHE / "user")
    else:
        own = Path.home()
        yield from moved_in(Person(None, own / HOME), 0o700, own / ".cache" / "claude-sandbox-tests" / "user")


@pytest.fixture(scope="session")
def root() -> Iterator[Person]:
    """Root itself, in a home of its own."""
    if os.geteuid() != 0:
        pytest.skip("root's own VMs need root: scripts/test runs this by sudo where it may")
    yield from moved_in(Person(None, Path("/root") / HOME), 0o700, CACHE / "root")


def moved_in(person: Person, mode: int, cache: Path) -> Iterator[Person]:
    if not KEEP:
        person.clean_up()  # what a run that was killed left
    person.home.mkdir(mode=mode, parents=True, exist_ok=True)
    for there in (Path.home() / ".cache" / "claude-sandbox", CACHE / "user" / "claude-sandbox"):
        if there != cache / "claude-sandbox":
            seed(there, cache / "claude-sandbox", link=person.account is None)
    person.settle(cache)
    yield person
    if not KEEP:
        person.clean_up()


def seed(there: Path, here: Path, *, link: bool) -> None:
    """A person's cache gets, as that person's own files, the images, npm packages and the Lima build that
    whoever runs the tests has (root's first command in CI), or the day's user: an image is built once.
    `link`: these files are that person's already, and stay as they are."""
    for kind in ("images/*", "lima-*", "npm/*"):
        for source in there.glob(kind) if os.access(there, os.R_OK | os.X_OK) else ():
            target = here / source.relative_to(there)
            if not target.exists() and not source.name.startswith(".") and source.suffix != ".lock":
                half = target.with_name(f".seed-{target.name}")
                shutil.rmtree(half, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                linked = link and source.stat().st_dev == target.parent.stat().st_dev
                copying = ["cp", "-r", "--preserve=mode,timestamps", "--link" if linked else "--reflink=auto"]
                subprocess.run([*copying, str(source), str(half)], check=True)
                half.rename(target)


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
