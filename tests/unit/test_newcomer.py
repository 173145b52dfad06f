"""CI's own parts: the commands taken from README.md, and what is kept between two runs (tests/newcomer.py)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.box import need, short_directory

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "root/.cache/claude-sandbox/images"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build_cache = load("build_cache")
newcomer = load("newcomer")


def test_the_readme_s_two_commands_are_what_ci_runs() -> None:
    first, second = newcomer.commands((ROOT / "README.md").read_text())
    assert first == "mkdir -p ~/projects/app && ./claude-sandbox -d ~/projects/app"
    assert second == "scripts/test"
    assert "newcomer.py" in (ROOT / ".ci" / "run").read_text()


def test_a_terminal_is_typed_at_as_a_person_does(tmp_path: Path) -> None:
    need("tmux", "setpriv")
    place = short_directory()
    terminal = newcomer.Terminal(place, ["bash", "--norc", "-i"])
    try:
        assert "two words" in terminal.run("echo two words", 30)
        with pytest.raises(AssertionError, match="code=3"):
            terminal.run("sh -c 'exit 3'", 30)
        terminal.begin("printf 'Go on? [y/N] '; read answer; echo got-$answer")
        terminal.wait_for("Go on?", 30)
        assert newcomer.squeezed(terminal.screen()).endswith("[y/N]")
        terminal.enter("y")
        terminal.wait_for("got-y", 30)
        with pytest.raises(TimeoutError):
            terminal.wait_for("never", 0)
    finally:
        terminal.close()
        shutil.rmtree(place)
    with pytest.raises(EOFError):
        terminal.screen()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine after a run: an image, half of another one, a lock, a package, Lima, an environment."""
    root = tmp_path / "root"
    files = {f"{IMAGE}/abc/disk.qcow2": "disk", f"{IMAGE}/.new-def/disk.qcow2": "half", f"{IMAGE}/abc.lock": "",
             "var/cache/apt/archives/git_1_amd64.deb": "deb", "var/cache/apt/archives/lock": "",
             "root/.cache/claude-sandbox/lima-2.2.0/bin/limactl": "lima",
             "root/.cache/claude-sandbox/venv-1-2/bin/python": "python"}  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_downloads_and_builds_are_kept_and_nothing_else(root: Path, tmp_path: Path) -> None:
    store, new = tmp_path / "store", tmp_path / "new"
    assert build_cache.save(store, root) == 3 and build_cache.save(store, root) == 0
    assert build_cache.restore(store, new) == 3
    assert names(new) == {
        f"{IMAGE}/abc/disk.qcow2",
        "var/cache/apt/archives/git_1_amd64.deb",
        "root/.cache/claude-sandbox/lima-2.2.0/bin/limactl",
    }


def test_an_image_that_a_test_s_user_built_is_everybody_s(root: Path, tmp_path: Path) -> None:
    store, new = tmp_path / "store", tmp_path / "new"
    small = root / "var/cache/claude-sandbox-tests/user/claude-sandbox/images/small"
    small.mkdir(parents=True)
    (small / "disk.qcow2").write_text("small")
    build_cache.save(store, root)
    build_cache.restore(store, new)
    assert (new / IMAGE / "small" / "disk.qcow2").read_text() == "small"


@pytest.mark.parametrize("harm", ["content", "more", "mode", "hash", "no hash", "old"])
def test_what_is_damaged_or_old_is_made_again(root: Path, tmp_path: Path, harm: str) -> None:
    store, new = tmp_path / "store", tmp_path / "new"
    build_cache.save(store, root)
    disk, hash_file = store / "images/abc/disk.qcow2", store / "sums/images/abc"
    if harm == "content":
        disk.write_text("dusk")
    elif harm == "more":
        (disk.parent / "kernel").write_text("")
    elif harm == "mode":
        disk.chmod(0o777)
    elif harm == "hash":
        hash_file.write_text("0")
    elif harm == "no hash":  # killed before it was written
        hash_file.unlink()
    else:
        os.utime(hash_file, (0, time.time() - build_cache.OLD - 60))
    assert build_cache.restore(store, new) == 2
    assert not (new / IMAGE / "abc").exists() and not disk.exists()
    assert build_cache.save(store, root) == 1  # the next build's


@pytest.mark.skipif(sys.platform != "linux", reason="CI is Linux")
def test_the_directory_of_a_run_that_was_killed_goes_and_that_of_one_that_runs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomer, "WORK", tmp_path)
    killed = tmp_path / f"{newcomer.NAME}killed"
    (killed / "root").mkdir(parents=True)
    Path(f"{killed}.lock").touch()
    with newcomer.new_directory() as first, newcomer.new_directory() as second:
        assert not killed.exists()
        assert first.parent.is_dir() and second.parent.is_dir() and first != second
    assert list(tmp_path.iterdir()) == []


def test_the_shell_of_ci_is_sound() -> None:
    for script in (".ci/run", "scripts/test", "tests/fresh-machine.sh", "claude-sandbox"):
        subprocess.run(["sh", "-n", str(ROOT / script)], check=True)
