"""An x86 kernel without its compression: QEMU loads the plain one in a tenth of the time.

Unpacking itself costs a kernel 3 to 6 s under emulation (docs/performance.md). The layout of a bzImage is
the kernel's x86 boot protocol (Documentation/arch/x86/boot.rst: setup_sects, payload_offset and
payload_length). QEMU enters an ELF kernel by its PVH note (type 18 of "Xen"), and takes none without it.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

_HEADER = 0x202  # of "HdrS"
_PVH_NOTE = struct.pack("<I", 18) + b"Xen\0"


def unpack(file: Path) -> bool:
    """Replace a bzImage by the plain kernel in it; False leaves the file as it is (another format)."""
    plain = payload(file.read_bytes())
    if plain is None:
        return False
    file.write_bytes(plain)
    return True


def payload(image: bytes) -> bytes | None:
    """The ELF kernel inside a bzImage that QEMU can start; None where there is none."""
    if image[_HEADER : _HEADER + 4] != b"HdrS" or len(image) < 0x250:
        return None
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    plain = _decompressed(image[begin : begin + length])
    if plain is None or not plain.startswith(b"\x7fELF") or _PVH_NOTE not in plain:
        return None
    return plain


def _decompressed(packed: bytes) -> bytes | None:
    """None for another packing, and for one that ends too early."""
    try:
        if packed.startswith(b"\xfd7zXZ\0"):
            xz = lzma.LZMADecompressor()
            plain = xz.decompress(packed)
            return plain if xz.eof else None
        if packed.startswith(b"\x1f\x8b"):
            gz = zlib.decompressobj(16 + zlib.MAX_WBITS)
            plain = gz.decompress(packed)
            return plain if gz.eof else None
    except (lzma.LZMAError, zlib.error):
        return None
    return None
