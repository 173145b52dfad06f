"""Atomic files and locks, against real processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.system import files
from _claude_sandbox.system.files import LogFile, lock, write_atomic, write_json
from _claude_sandbox.system.jsonio import read_object

ROOT = Path(__file__).resolve().parents[3]


def test_replaced_as_a_whole_private_and_without_leftovers(tmp_path: Path) -> None:
    file = tmp_path / "state"
    write_atomic(file, b"one")
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("rb") as reader:
        write_atomic(file, b"two", 0o644)
        assert reader.read() == b"one"  # who reads the old one goes on reading the old one
    assert file.read_bytes() == b"two" and file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["state"]


def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", b"ours")
    assert (tmp_path / "target").read_text() == "theirs" and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "state"
    write_atomic(file, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]


def test_a_writer_killed_at_any_instant_leaves_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "state"
    write_json(file, {"n": 0})
    code = (
        "from pathlib import Path\nfrom _claude_sandbox.system.files import write_json\nn = 0\nprint('go', flush=True)\n"
        f"while True:\n    n += 1\n    write_json(Path({str(file)!r}), {{'n': n, 'pad': 'x' * 100000}})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == b"go\n"
    while (read_object(file) or {}).get("n", 0) < 3:
        pass
    process.kill()
    process.communicate()
    state = read_object(file)
    assert state is not None and len(state["pad"]) == 100_000


def test_json_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    assert read_object(file) is None
    for content in (b"", b"{", b"[1]", b"\xff", b"null"):
        file.write_bytes(content)
        assert read_object(file) is None
    write_json(file, {"path": "/\udcff", "n": 1})
    assert read_object(file) == {"path": "/\udcff", "n": 1}
    assert read_object(tmp_path) is None


# -- locks -------------------------------------------------------------------------------------------


@contextmanager
def held(path: Path, shared: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is ended."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom _claude_sandbox.system.files import lock\n"
        f"with lock(Path({str(path)!r}), shared={shared}):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_two_processes_and_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    path = tmp_path / "deep" / "a.lock"
    waits: list[str] = []
    with held(path) as other:
        ours = lock(path, timeout=0.3, on_wait=waits.append)
        with (
            pytest.raises(ClaudeSandboxError, match=r"Another claude-sandbox has held a\.lock for 0\.3 s"),
            ours,
        ):
            pytest.fail("two holders")
        assert waits == [f"process {other.pid}"]
        threading.Timer(0.3, other.kill).start()
        with lock(path, timeout=20):  # the kernel drops it with its holder
            pass
    assert path.exists()


def test_a_free_lock_is_had_at_once_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path / "x", timeout=0, on_wait=pytest.fail):
            pass
    with pytest.raises(RuntimeError), lock(tmp_path / "x"):
        raise RuntimeError
    with lock(tmp_path / "x", timeout=0):
        pass


def test_readers_share_and_keep_writers_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with held(path, shared=True):
        with lock(path, shared=True, timeout=0.3):
            pass
        with pytest.raises(ClaudeSandboxError), lock(path, timeout=0.2):
            pass


def test_a_log_is_bounded_private_and_keeps_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\n")
    path.chmod(0o644)
    log = LogFile(path, 1000)
    for number in range(200):
        log.write(b"%03d %s\n" % (number, b"x" * 30))
    log.write(b"y" * 5000)
    assert path.stat().st_size < 2000
    log.write(b"the end\n")
    kept = tmp_path / "x.log.1"
    assert path.read_bytes() == b"the end\n" and 0 < kept.stat().st_size <= 1000
    assert path.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["x.log", "x.log.1"]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    LogFile(tmp_path / "none" / "x.log").write(b"x")
    (tmp_path / "full.log").symlink_to("/dev/full")
    LogFile(tmp_path / "full.log").write(b"x")
    (tmp_path / "y.log.1").mkdir()  # the previous one cannot be kept: it is bounded all the same
    for _ in range(50):
        LogFile(tmp_path / "y.log", 100).write(b"z" * 30)
    assert (tmp_path / "y.log").stat().st_size <= 130


def test_the_holder_s_command_is_named_without_another_program_s(tmp_path: Path) -> None:
    program, path = tmp_path / "claude_sandbox.py", tmp_path / "a.lock"
    program.write_text("import sys; print('up', flush=True); sys.stdin.read()")
    words = ("create", "-c", "\x1b[2Jgolden", "--", "sh", "-c", "SECRET=1")
    process = subprocess.Popen(
        [sys.executable, str(program), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        path.write_text(f"{process.pid}\n")
        assert files.holder(path) == f"process {process.pid} (create -c [2Jgolden)"
    finally:
        process.kill()
        process.communicate()
    for text in (f"{process.pid}\n", "", "none", "9" * 40):
        path.write_text(text)
        assert files.holder(path) == "another process"
