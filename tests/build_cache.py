"""What CI keeps between two runs: downloads and builds, never an environment, a VM or a home.

`store/KIND/NAME` is an entry, `store/sums/KIND/NAME` the hash of its content, written last. What has no
hash, or another content than its hash says, is removed at the next restore and made again; so is what is
older than three weeks. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

OLD = 21 * 86400  # seconds
PRODUCT = "root/.cache/claude-sandbox"  # where root's claude-sandbox keeps images, Lima and npm packages
# kind -> where its entries go, and where they may have been made, in the fresh root
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "deb": ("var/cache/apt/archives", ("var/cache/apt/archives/*.deb",)),
    "images": (
        f"{PRODUCT}/images",
        (f"{PRODUCT}/images/*", "var/cache/claude-sandbox-tests/*/claude-sandbox/images/*"),
    ),
    "lima": (PRODUCT, (f"{PRODUCT}/lima-*",)),
    "npm": (f"{PRODUCT}/npm", (f"{PRODUCT}/npm/*.tgz",)),
}


def restore(store: Path, root: Path) -> int:
    """Copy every sound entry to its place below `root`; returns how many."""
    count = 0
    with _locked(store):
        for kind, (place, _) in PLACES.items():
            for entry in sorted(_entries(store / kind)):
                if not _sound(store, kind, entry):
                    remove(entry)
                    (store / "sums" / kind / entry.name).unlink(missing_ok=True)
                    continue
                (root / place).mkdir(parents=True, exist_ok=True)
                _copy(entry, root / place / entry.name)
                count += 1
    return count


def save(store: Path, root: Path) -> int:
    """Keep what the run has downloaded or built and the store has not; returns how many."""
    count = 0
    with _locked(store):
        for kind, (_, patterns) in PLACES.items():
            found = {path.name: path for pattern in patterns for path in root.glob(pattern)}
            for name, path in sorted(found.items()):
                if _finished(path) and not (store / "sums" / kind / name).exists():
                    _keep(store, kind, path)
                    count += 1
    return count


def _finished(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix != ".lock" and not path.is_symlink()


def _keep(store: Path, kind: str, path: Path) -> None:
    entry, sums = store / kind / path.name, store / "sums" / kind
    for directory in (entry.parent, sums):
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".new-") as new:
        _copy(path, Path(new) / path.name)
        remove(entry)
        os.replace(Path(new) / path.name, entry)
    text = sums / f".{path.name}"
    text.write_text(digest(entry))
    os.replace(text, sums / path.name)


def _sound(store: Path, kind: str, entry: Path) -> bool:
    sum_file = store / "sums" / kind / entry.name
    if not sum_file.exists() or time.time() - sum_file.stat().st_mtime > OLD:
        return False
    return sum_file.read_text() == digest(entry)


def digest(path: Path) -> str:
    """Over the names, modes, links and bytes of a file or of all below a directory."""
    whole = hashlib.sha256()
    for each in sorted([path, *path.rglob("*")] if path.is_dir() else [path]):
        name = "" if each == path else str(each.relative_to(path))
        content = os.readlink(each) if each.is_symlink() else _content(each) if each.is_file() else "/"
        whole.update(f"{name}\0{each.lstat().st_mode:o}\0{content}\n".encode())
    return whole.hexdigest()


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _copy(source: Path, target: Path) -> None:
    """As the caller's own, by hard links where that can be: who changes a file here changes it there too,
    and its hash tells the next run."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    else:
        _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, os.geteuid(), os.getegid(), follow_symlinks=False)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Two runs of CI at once may use one store."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
