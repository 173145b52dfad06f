"""What goes into the root of a from-packages image besides packages, as tar files for mmdebstrap."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

from _claude_sandbox.base_vm.packages import apt_sources
from _claude_sandbox.base_vm.packages.recipe import Recipe
from _claude_sandbox.errors import CreateError
from _claude_sandbox.system import npm
from _claude_sandbox.system.run import Runner


def write_early(recipe: Recipe, target: Path) -> None:
    """What must be there before packages are installed: how the kernel's package makes its initrd; a place for links.

    The JDK's alternatives need the manuals' directory, which excluding the manuals would leave out.
    """
    with tarfile.open(target, "w") as tar:
        manuals = tarfile.TarInfo("usr/share/man/man1")
        manuals.type, manuals.mode, manuals.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
        tar.addfile(manuals)
        for name, data in recipe.files.items():
            if name.startswith("etc/initramfs-tools/"):
                add_file(tar, name, data)


def write_overlay(runner: Runner, recipe: Recipe, target: Path, logfile: Path) -> None:
    """Our files, the host's extra CAs, and what comes from npm as a whole."""
    with tarfile.open(target, "w") as tar:
        for name, data in recipe.files.items():
            if not name.startswith("etc/initramfs-tools/"):
                add_file(tar, name, data)
        lines = [apt_sources.without_credentials(line) for line in recipe.sources]
        add_file(tar, "etc/apt/sources.list", ("\n".join(lines) + "\n").encode())
        for number, pem in enumerate(recipe.cas):
            add_file(tar, f"usr/local/share/ca-certificates/host-{number}.crt", pem.encode() + b"\n")
        if "claude" in recipe.names:
            package = npm.fetch(
                runner,
                f"@anthropic-ai/claude-code-linux-{recipe.arch.npm}",
                recipe.pins["claude"],
                logfile=logfile,
            )
            copy_members(package, tar, {"package/claude": "usr/local/bin/claude"})
        if "node" in recipe.names:
            package = npm.fetch(runner, f"node-linux-{recipe.arch.npm}", recipe.pins["node"], logfile=logfile)
            copy_members(package, tar, {"package/bin/node": "usr/local/bin/node"})
        if "npm" in recipe.names:
            package = npm.fetch(runner, "npm", recipe.pins["npm"], logfile=logfile)
            copy_members(package, tar, {"package/": "usr/local/lib/node_modules/npm/"})


def add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    """Owned by root, with the parents that it needs."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, int(time.time())
    tar.addfile(info, io.BytesIO(data))


def copy_members(package: Path, into: tarfile.TarFile, names: Mapping[str, str]) -> None:
    """Copy files of an npm tarball; a key that ends in / takes all below it.

    Raises CreateError when a named file is not there.
    """
    missing = set(names)
    with tarfile.open(package, "r|gz") as source:
        for member in source:
            key = next(
                (k for k in names if member.name == k or (k.endswith("/") and member.name.startswith(k))),
                None,
            )
            if key is None or not member.isfile() or ".." in Path(member.name).parts:
                continue
            missing.discard(key)
            info = tarfile.TarInfo(names[key] + member.name.removeprefix(key))
            executable = not key.endswith("/") or member.mode & 0o100
            info.size, info.mode, info.mtime = member.size, 0o755 if executable else 0o644, int(time.time())
            into.addfile(info, source.extractfile(member))
    if missing:
        raise CreateError(f"{package.name} does not hold {', '.join(sorted(missing))}.")
