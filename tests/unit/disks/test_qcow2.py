"""The header of a qcow2 disk, of the real qemu-img where there is one, and hostile ones."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import fakedisk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.disks import qcow2, qemu_img
from _claude_sandbox.disks.qcow2 import DiskError

REAL = shutil.which("qemu-img")
GIB = 1 << 30


def test_a_disk_alone_and_an_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    fakedisk.write(base, 8 * GIB)
    fakedisk.write(top, 8 * GIB, str(base))
    assert qcow2.read(base) == qcow2.Header(3, 8 * GIB)
    assert qcow2.read(top) == qcow2.Header(3, 8 * GIB, str(base), "qcow2")
    assert qcow2.chain(top) == [top, base]
    assert qcow2.chain(base) == [base]


@pytest.mark.skipif(REAL is None, reason="qemu-img is not installed")
def test_what_the_real_qemu_img_writes(tmp_path: Path) -> None:
    def run(*argv: str) -> None:
        subprocess.run(argv, check=True, capture_output=True)

    base, top, odd = tmp_path / "base", tmp_path / "top", tmp_path / "o, b:c é"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(base), "1G")
    run(*qemu_img.overlay(base, top).argv)
    assert qcow2.read(base) == qcow2.Header(3, GIB)
    assert qcow2.read(top) == qcow2.Header(3, GIB, str(base), "qcow2")
    odd.mkdir()
    shutil.copy(base, odd / "x")
    run(*qemu_img.overlay(odd / "x", odd / "y").argv)
    assert qcow2.chain(odd / "y") == [odd / "y", odd / "x"]
    run("qemu-img", "snapshot", "-c", "s", str(top))
    header = qcow2.read(top)
    assert header is not None and not header.plain
    flat = tmp_path / "flat"
    run(*qemu_img.flatten(top, flat).argv)
    assert qcow2.chain(flat) == [flat]
    old = tmp_path / "old"
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        "-b",
        str(base),
        "-F",
        "qcow2",
        str(old),
    )
    assert qcow2.read(old) == qcow2.Header(2, GIB, str(base), "qcow2")


def test_relative_names_start_at_the_overlay_and_a_missing_file_ends_the_chain(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    fakedisk.write(tmp_path / "d" / "top", backing="../base")
    assert qcow2.chain(tmp_path / "d" / "top")[1:] == [tmp_path / "d" / "../base"]
    assert qcow2.chain(tmp_path / "none") == [tmp_path / "none"]


def test_no_disk_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512))
    (tmp_path / "empty").touch()
    assert qcow2.read(tmp_path / "raw") is None and qcow2.read(tmp_path / "empty") is None
    with pytest.raises(DiskError, match="not a regular file"):
        qcow2.read(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DiskError, match="not a regular file"):
        qcow2.read(tmp_path / "fifo")


def test_an_endless_chain(tmp_path: Path) -> None:
    fakedisk.write(tmp_path / "a", backing="b")
    fakedisk.write(tmp_path / "b", backing="a")
    with pytest.raises(DiskError, match="more than 16 files"):
        qcow2.chain(tmp_path / "a")


def spoilt(path: Path, at: int, form: str, value: int) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (4, ">I", 1), (4, ">I", 4), (4, ">I", 0),  # version
        (20, ">I", 8), (20, ">I", 63),  # cluster bits
        (8, ">Q", 1 << 63), (8, ">Q", 16), (8, ">Q", 65530),  # where the name stands
        (16, ">I", 0), (16, ">I", 1024), (16, ">I", 0xFFFFFFFF),  # its length
        (100, ">I", 0xFFFFFFFF),  # header length
    ],
)  # fmt: skip
def test_what_cannot_be(tmp_path: Path, at: int, form: str, value: int) -> None:
    fakedisk.write(tmp_path / "x", backing="/golden/file")
    with pytest.raises(DiskError):
        qcow2.read(spoilt(tmp_path / "x", at, form, value))


@pytest.mark.parametrize(("at", "form"), [(32, ">I"), (60, ">I"), (72, ">Q")])
def test_what_must_not_be_frozen(tmp_path: Path, at: int, form: str) -> None:
    """Encrypted, with internal snapshots, dirty."""
    fakedisk.write(tmp_path / "x")
    header = qcow2.read(spoilt(tmp_path / "x", at, form, 1))
    assert header is not None and not header.plain


def test_a_format_that_is_not_said(tmp_path: Path) -> None:
    fakedisk.write(tmp_path / "x", backing="/golden/file")
    header = qcow2.read(spoilt(tmp_path / "x", 104, ">I", 0))
    assert header is not None and header.backing == "/golden/file" and header.backing_format is None


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(qcow2.MAGIC + tail)
    try:
        header = qcow2.read(path)
    except DiskError:
        return
    assert header is not None and (header.backing is None or 0 < len(header.backing) <= qcow2.NAME_MAX)
