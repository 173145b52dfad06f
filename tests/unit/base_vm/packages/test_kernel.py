"""A bzImage's payload, from bytes laid out as the kernel's x86 boot protocol says."""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

import pytest

from _claude_sandbox.base_vm.packages import kernel

ELF = b"\x7fELF" + bytes(100) + struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(400)


def gz(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def bzimage(packed: bytes, *, sectors: int = 3, offset: int = 64) -> bytes:
    image = bytearray((sectors + 1) * 512 + offset) + packed + b"rest of the image"
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, offset, len(packed))
    return bytes(image)


@pytest.mark.parametrize("pack", [lzma.compress, gz], ids=["xz", "gzip"])
def test_the_plain_kernel_takes_the_place_of_the_packed(tmp_path: Path, pack: object) -> None:
    file = tmp_path / "kernel"
    # A payload ends with its size.
    file.write_bytes(bzimage(pack(ELF) + struct.pack("<I", len(ELF))))  # type: ignore[operator]
    assert kernel.unpack(file)
    assert file.read_bytes() == ELF


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(2000),  # arm64's Image
        bzimage(b"\x28\xb5\x2f\xfd zstd"),
        bzimage(lzma.compress(ELF)[:-40]),
        bzimage(lzma.compress(b"\x7fELF without the note")),
        bzimage(lzma.compress(b"no ELF" + ELF)),
        bzimage(b"\x1f\x8b broken"),
    ],
)
def test_another_kernel_is_left_alone(tmp_path: Path, image: bytes) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(image)
    assert not kernel.unpack(file)
    assert file.read_bytes() == image
