"""Puts Lima into our data directory: the release's tarball, or a build from the Go module proxy.

Either way everything happens in a temporary directory beside its place in the cache; what is renamed
to `<cache>/lima-<version>` is whole, and `<data>/lima` is linked from there. So an interrupted run
leaves nothing that a later one trusts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from _claude_sandbox.errors import HostSetupError
from _claude_sandbox.host import inventory
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import lock
from _claude_sandbox.system.run import TIMED_OUT, Command, Runner

RELEASES = f"https://github.com/lima-vm/lima/releases/download/v{inventory.PINNED_LIMA}"
_MODULE = "github.com/lima-vm/lima/v2"
_NETWORK_TIMEOUT = 20.0  # seconds without a byte
_REACH_TIMEOUT = 6.0
BUILD_TIMEOUT = 1800.0  # 85 s on two cores
_LARGEST = 400 * 1024 * 1024  # bytes; the release is about 40 MB

Say = Callable[[str], None]


def release_name() -> str:
    """As the release names its files: Linux-x86_64, Linux-aarch64, Darwin-arm64, Darwin-x86_64."""
    system, machine = os.uname().sysname, os.uname().machine
    return f"lima-{inventory.PINNED_LIMA}-{system}-{machine}.tar.gz"


def release_reachable() -> bool:
    """Whether the release's checksums can be had now (one request of a few seconds)."""
    try:
        return release_name() in _checksums(_REACH_TIMEOUT)
    except (OSError, ValueError):
        return False


def _checksums(timeout: float) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{RELEASES}/SHA256SUMS", timeout=timeout) as answer:
        return str(answer.read(1 << 20).decode("utf-8", "replace"))


def cached() -> Path:
    return paths.cache_dir() / f"lima-{inventory.PINNED_LIMA}"


def release_lines() -> list[str]:
    """The same as `install_release`, as shell commands for the user to read or to type."""
    name, target = release_name(), inventory.own_limactl().parent.parent
    return [
        f"curl -fLO {RELEASES}/{name}",
        f"curl -fL {RELEASES}/SHA256SUMS | grep {name} | sha256sum -c",
        f"mkdir -p '{target}' && tar -xzf {name} -C '{target}'",
    ]


def install_release(say: Say) -> None:
    """Raises HostSetupError: not reachable, wrong checksum, unusable archive."""
    with _building(say) as tree:
        if tree is not None:
            name = release_name()
            archive = tree.parent / name
            say(f"checksums from {RELEASES}")
            wanted = _checksum(name)
            found = _download(f"{RELEASES}/{name}", archive, say)
            if found != wanted:
                raise HostSetupError(
                    f"{name} does not have the checksum that its release states.",
                    details=f"expected {wanted}\nreceived {found}",
                    resolution="Try again; if it stays so, something between you and the release changes files.",
                )
            say("unpacking")
            extract(archive, tree)


def _checksum(name: str) -> str:
    """From lines like `0123…  lima-2.2.0-Linux-x86_64.tar.gz` (with a `*` before a binary file's name)."""
    try:
        text = _checksums(_NETWORK_TIMEOUT)
    except (OSError, ValueError) as error:
        raise _unreachable(f"{RELEASES}/SHA256SUMS", error) from error
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].lstrip("*") == name and len(parts[0]) == 64:
            return parts[0].lower()
    raise HostSetupError(f"The release of Lima {inventory.PINNED_LIMA} has no {name}.")


def _download(url: str, target: Path, say: Say) -> str:
    """Its sha256 in hex."""
    import urllib.request

    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_NETWORK_TIMEOUT) as answer, target.open("wb") as file:
            while block := answer.read(1 << 20):
                size += len(block)
                if size > _LARGEST:
                    raise HostSetupError(f"{url} is larger than any release of Lima.")
                digest.update(block)
                file.write(block)
                say(f"{size >> 20} MiB of {target.name}")
    except (OSError, ValueError) as error:
        raise _unreachable(url, error) from error
    return digest.hexdigest()


def _unreachable(url: str, error: Exception) -> HostSetupError:
    return HostSetupError(
        f"Cannot download {url}.",
        details=str(error),
        resolution="Check the network and proxy, or install Lima yourself: https://lima-vm.io/docs/installation/",
    )


def extract(archive: Path, target: Path) -> None:
    """Unpack; nothing may be, or point, outside of `target`. Raises HostSetupError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                _check_member(member)
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(target, members)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise HostSetupError(f"Cannot unpack {archive.name}.", details=str(error)) from error


def _check_member(member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    ok = member.isreg() or member.isdir() or member.issym() or member.islnk()
    ok = ok and not name.is_absolute() and ".." not in name.parts
    if ok and (member.issym() or member.islnk()):
        link = PurePosixPath(member.linkname)
        base = name.parent if member.issym() else PurePosixPath()
        parts = os.path.normpath(base / link).split("/")
        ok = not link.is_absolute() and parts[0] != ".."
    if not ok:
        raise HostSetupError(f"The archive holds {member.name!r}, which would be outside of its directory.")


# -- from source -----------------------------------------------------------------------------------


def go_commands(work: Path, tree: Path) -> list[Command]:
    """docs/facts/linux-host.md: `go install …@v2.2.0` needs a list of versions that not every proxy serves."""
    goarch = inventory.machine()
    agent = tree / "share" / "lima" / f"lima-guestagent.Linux-{goarch}"
    env: dict[str, str | None] = {"GOBIN": str(tree / "bin"), "GOWORK": "off", "GO111MODULE": "on"}
    stamp = f"-s -w -X {_MODULE}/pkg/version.Version={inventory.PINNED_LIMA}"
    return [
        Command(argv, {**env, **more}, work)
        for argv, more in (
            (("go", "mod", "init", "claude-sandbox-lima"), {}),
            (("go", "get", "-tool", f"{_MODULE}/cmd/limactl@v{inventory.PINNED_LIMA}"), {}),
            (("go", "get", "-tool", f"{_MODULE}/cmd/lima-guestagent@v{inventory.PINNED_LIMA}"), {}),
            (("go", "install", "-ldflags", stamp, f"{_MODULE}/cmd/limactl"), {}),
            (
                ("go", "build", "-ldflags", "-s -w", "-o", str(agent), f"{_MODULE}/cmd/lima-guestagent"),
                {"CGO_ENABLED": "0", "GOOS": "linux"},
            ),
        )
    ]


def go_lines() -> list[str]:
    work = Path("/tmp/lima-build")
    return [f"mkdir -p {work}", *map(str, go_commands(work, inventory.own_limactl().parent.parent))]


def install_with_go(runner: Runner, say: Say, log: Path) -> None:
    """Linux only: on macOS Lima must be signed. Raises HostSetupError with Go's own words."""
    with _building(say) as tree:
        if tree is None:
            return
        work = tree.parent / "module"
        work.mkdir()
        for command in go_commands(work, tree):
            say(" ".join(command.argv[:3]) + " " + command.argv[-1].rsplit("/", 1)[-1])
            result = runner.stream(command, timeout=BUILD_TIMEOUT, on_line=say, logfile=log)
            if not result.ok:
                slow = result.returncode == TIMED_OUT
                raise HostSetupError(
                    f"Building Lima with Go failed at `{' '.join(command.argv[:3])}`.",
                    details=result.last_lines,
                    resolution="Try again when the machine is less busy."
                    if slow
                    else f"Lima {inventory.PINNED_LIMA} needs Go 1.25.7 or newer and a reachable module proxy. Log: {log}",
                )


# -- places ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _building(say: Say) -> Iterator[Path | None]:
    """Yields an empty directory to fill, or None when the cache has this version; then puts it in place."""
    cache = cached()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with lock(paths.state_dir() / "lima-install.lock", on_wait=lambda who: say(f"waiting for {who} …")):
        if (cache / "bin" / "limactl").exists():
            yield None
        else:
            with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".lima-") as directory:
                tree = Path(directory) / "lima"
                tree.mkdir()
                yield tree
                if not os.access(tree / "bin" / "limactl", os.X_OK):
                    raise HostSetupError("What was installed holds no bin/limactl.")
                tree.rename(cache)
        _put_in_place(cache, inventory.own_limactl().parent.parent)


def _put_in_place(cache: Path, target: Path) -> None:
    """`target` becomes a tree of hard links to the cache's, the old one is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".lima-") as directory:
        new, old = Path(directory) / "new", Path(directory) / "old"
        shutil.copytree(cache, new, symlinks=True, copy_function=_link)
        if target.exists():
            target.rename(old)
        new.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # another file system
        shutil.copy2(source, target)


def supports_go() -> bool:
    return sys.platform == "linux" and shutil.which("go") is not None
