"""The locks: of names, projects, base VMs and builds of the tools VM.

A lock's file name begins with its kind, up to the first `-`, so that no name that a user gives can be
another kind's: base-NAME, build-NAME, project-HASH; builds, credential, golden and names are one each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import lock

# Beginnings of the names that are, or were, another lock's.
_KINDS = ("base-", "build-", "builds.", "credential.", "golden.", "names.", "project-")

Note = Callable[[str], None]
"""Says a sentence to the user: that, and for whom, we wait."""


@contextlib.contextmanager
def names_lock(note: Note) -> Iterator[None]:
    """Held while a name is chosen and its journal begun, a matter of milliseconds."""
    with lock(
        _locks() / "names.lock",
        timeout=30,
        on_wait=lambda who: note(f"Waiting for {who}, which chooses a name …"),
    ):
        yield


def project_lock_path(project: Path) -> Path:
    """The lock of a project and its VM; in our state directory, never in Lima's (spec 7.1)."""
    digest = hashlib.sha256(os.fsencode(project)).hexdigest()[:16]
    return _locks() / f"project-{digest}.lock"


def base_lock_path(name: str) -> Path:
    return _locks() / f"base-{name}.lock"


def build_lock_path(name: str) -> Path:
    return _locks() / f"build-{name}.lock"


def _locks() -> Path:
    return paths.state_dir() / "locks"


@contextlib.contextmanager
def base_lock(name: str, note: Note) -> Iterator[None]:
    """Held while a base VM is copied, or exchanged for its successor."""
    with _named_lock(base_lock_path(name), f"{name}.lock", f"{name} is in use", note):
        yield


@contextlib.contextmanager
def build_lock(name: str, note: Note) -> Iterator[None]:
    """Held while a tools VM is built, with a share of `no_build`'s."""
    with (
        _named_lock(build_lock_path(name), f"{name}.build.lock", f"{name} is being built", note),
        lock(
            _locks() / "builds.lock",
            shared=True,
            on_wait=lambda who: note(f"Waiting for {who}, which removes what builds have left."),
        ),
    ):
        yield


@contextlib.contextmanager
def no_build() -> Iterator[bool]:
    """Whether no tools VM is being built; none can begin while this is held."""
    with contextlib.ExitStack() as stack:
        older = sorted(_locks().glob("*.build.lock"))  # as _named_lock says
        try:
            for path in (_locks() / "builds.lock", *older):
                stack.enter_context(lock(path, timeout=0))
        except (ClaudeSandboxError, OSError):  # held, or a full disk: disks can be freed all the same
            stack.close()
            yield False
        else:
            yield True


@contextlib.contextmanager
def _named_lock(path: Path, older: str, state: str, note: Note) -> Iterator[None]:
    """The lock and the one of its former name, for a claude-sandbox that was begun before an update and still
    runs: 0.1.0 before its release had NAME.lock and NAME.build.lock, where a base called `golden` met
    golden.lock. Such a name has no older lock here.
    """

    def on_wait(who: str) -> None:
        note(f"{state}: waiting for {who} …")

    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(path, on_wait=on_wait))
        if not older.startswith(_KINDS):
            stack.enter_context(lock(_locks() / older, on_wait=on_wait))
        yield
