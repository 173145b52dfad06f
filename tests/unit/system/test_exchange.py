"""Exchanging two directories in one step (spec 8.3)."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.system import exchange as system_exchange


def two(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other ü"
    for directory in (one, other):
        directory.mkdir()
        (directory / "what").write_text(directory.name)
    return one, other


@pytest.mark.spec("8.3")
def test_exchange(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    inodes = one.stat().st_ino, other.stat().st_ino
    system_exchange.exchange(one, other)
    assert (one / "what").read_text() == "other ü" and (other / "what").read_text() == "one"
    assert (other.stat().st_ino, one.stat().st_ino) == inodes


def test_both_must_be_there(tmp_path: Path) -> None:
    one, _ = two(tmp_path)
    with pytest.raises(FileNotFoundError):
        system_exchange.exchange(one, tmp_path / "none")
    assert (one / "what").read_text() == "one"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Libc:
        def renameat2(self, *_: object) -> int:
            ctypes.set_errno(number)
            return -1

        renamex_np = renameat2

    monkeypatch.setattr(ctypes, "CDLL", lambda *_a, **_k: Libc())
    one, other = two(tmp_path)
    with pytest.raises(HostSetupError, match="cannot exchange"):
        system_exchange.exchange(one, other)
    assert (one / "what").read_text() == "one"


def test_a_libc_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_a, **_k: object())
    with pytest.raises(HostSetupError):
        system_exchange.exchange(*two(tmp_path))
