"""qemu-img: argv for images. Pure builders; the caller's runner carries them out."""

from __future__ import annotations

from pathlib import Path

from _claude_sandbox.run import Command


def convert(source: Path, target: Path) -> Command:
    """A raw image as qcow2 (what Lima likes best: facts/lima.md §10); holes stay holes."""
    return Command(("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(target)))


def check(image: Path) -> Command:
    return Command(("qemu-img", "check", "-q", str(image)))
