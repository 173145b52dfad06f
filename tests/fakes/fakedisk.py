"""qcow2 files as small as they can be: a real header (QEMU's docs/interop/qcow2.txt), then any bytes.

The content is not mapped: what an overlay holds is behind its header, what it shows is the chain's joined.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"QFI\xfb"
_HEADER = ">4sIQIIQIIQQIIQQQQII"  # version 3: 104 bytes
_START = 2048  # where our content begins
GIB = 1 << 30


def write(
    path: Path, size: int = 20 * GIB, backing: str = "", content: bytes = b"", snapshots: int = 0
) -> None:
    name = backing.encode()
    format_ = struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2") if name else b""
    extensions = format_ + struct.pack(">II", 0, 0)
    at = 104 + len(extensions) if name else 0
    head = struct.pack(
        _HEADER, MAGIC, 3, at, len(name), 16, size, 0, 1, 65536, 131072, 1, snapshots, 0, 0, 0, 0, 4, 104
    )
    path.write_bytes((head + extensions + name).ljust(_START, b"\0") + content)


def is_disk(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def size(path: Path) -> int:
    number: int = struct.unpack_from(">Q", path.read_bytes(), 24)[0]
    return number


def backing(path: Path) -> str:
    """The file below; "" for none."""
    data = path.read_bytes()
    at, length = struct.unpack_from(">QI", data, 8)
    return data[at : at + length].decode()


def content(path: Path) -> bytes:
    """What the VM sees. Raises FileNotFoundError where the chain is broken."""
    below = backing(path)
    return (content(path.parent / below) if below else b"") + path.read_bytes()[_START:]
