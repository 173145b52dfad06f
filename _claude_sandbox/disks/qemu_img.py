"""qemu-img: argv for images. Pure builders; the caller's runner carries them out."""

from __future__ import annotations

from pathlib import Path

from _claude_sandbox.system.run import Command


def convert(source: Path, target: Path) -> Command:
    """A raw image as qcow2 (what Lima likes best: facts/lima.md §10); holes stay holes."""
    return Command(("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(target)))


def flatten(source: Path, target: Path) -> Command:
    """A qcow2 disk with everything below it as one qcow2 file that needs no other."""
    return Command(("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(source), str(target)))


def overlay(backing: Path, target: Path) -> Command:
    """An empty qcow2 disk on top of another. The format is said: QEMU must never guess it from content."""
    argv = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", "qcow2", str(target))
    return Command(argv)


def check(image: Path) -> Command:
    return Command(("qemu-img", "check", "-q", str(image)))
