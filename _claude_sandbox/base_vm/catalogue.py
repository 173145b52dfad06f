"""What the tools VM promises: one table of tools, where each comes from, and how it is tried.

Two modes: `ubuntu` (cloud image, vendors' own installers) and `packages` (nothing but the
distribution's packages, npm, PyPI and Go modules; spec 8.2). What a mode cannot have is None there.
Versions are pinned in tools-vm.yaml, in one place; `least` is what a tool must say of itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from _claude_sandbox.errors import UsageError


@dataclass(frozen=True)
class Source:
    """Where a tool comes from, in words; `apt` are the distribution's packages for it."""

    origin: str
    least: str = ""
    apt: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One row. `verify` is a line for the login shell of the VM's user; it prints the version."""

    name: str
    group: str
    verify: str
    ubuntu: Source | None
    packages: Source | None
    needs: tuple[str, ...] = ()

    def source(self, from_packages: bool) -> Source | None:
        return self.packages if from_packages else self.ubuntu


def _both(name: str, group: str, verify: str, *apt: str, least: str = "") -> Tool:
    """A tool that is a package of the distribution in either mode."""
    source = Source("apt", least, apt or (name,))
    return Tool(name, group, verify, source, source)


_VENDOR = Source("vendor's installer")
_DOCKER = Source("Docker's apt repository", "20.10")
_SDKMAN = Source("SDKMAN")

# fmt: off
TOOLS: tuple[Tool, ...] = (
    Tool("claude", "claude", "claude --version",
         Source("claude.ai installer", "2.1"), Source("npm, native binary", "2.1")),
    # The system's own.
    _both("git", "system", "git --version", least="2.30"),
    _both("curl", "system", "curl --version"),
    _both("wget", "system", "wget --version"),
    _both("jq", "system", "jq --version"),
    _both("ripgrep", "system", "rg --version"),
    _both("tmux", "system", "tmux -V", least="3.0"),
    _both("gnupg", "system", "gpg --version"),
    _both("zip", "system", "zip -v | grep -o 'Zip [0-9.]*'", "zip", "unzip"),
    _both("htop", "system", "htop --version"),
    _both("tree", "system", "tree --version"),
    _both("sox", "system", "sox --version"),
    _both("cc", "system", "gcc --version && g++ --version && make --version",
          "build-essential", "libssl-dev"),
    _both("pkg-config", "system", "pkg-config --version"),
    _both("clang", "system", "clang --version"),
    _both("llvm", "system", "llvm-config --version"),
    _both("cmake", "system", "cmake --version", least="3.16"),
    # Languages.
    _both("python3", "python", "python3 --version && python3 -m pip --version && python3 -m venv --help >/dev/null",
          "python3", "python3-pip", "python3-venv", least="3.11"),
    Tool("uv", "python", "uv --version", _VENDOR, Source("PyPI"), ("python3",)),
    Tool("node", "node", "node --version", Source("fnm", "22"), Source("npm package node-linux", "22")),
    Tool("npm", "node", "npm --version", Source("npm", "10"), Source("npm", "10"), ("node",)),
    Tool("typescript", "node", "tsc --version", Source("npm", "5"), Source("npm", "5"), ("npm",)),
    Tool("ts-node", "node", "ts-node --version && ts-node -T -O '{\"module\":\"commonjs\"}' -e 'console.log(6 * 7)' | grep -x 42",
         Source("npm", "10"), Source("npm", "10"), ("typescript",)),
    Tool("go", "go", "go version",
         Source("go.dev", "1.22"), Source("Go module golang.org/toolchain", "1.22", ("golang-go",))),
    Tool("gopls", "go", "gopls version", Source("Go module"), Source("Go module"), ("go",)),
    Tool("rustc", "rust", "rustc --version", Source("rustup", "1.80"), Source("apt", "1.63", ("rustc",)), ("cc",)),
    Tool("cargo", "rust", "cargo --version", Source("rustup", "1.80"), Source("apt", "", ("cargo",)), ("rustc",)),
    Tool("rust-analyzer", "rust", "rust-analyzer --version", Source("rustup"), None, ("rustc",)),
    Tool("java", "jvm", "javac -version && java -version 2>&1",
         Source("SDKMAN", "21"), Source("apt", "17", ("default-jdk-headless",))),
    Tool("kotlin", "jvm", "kotlin -version 2>&1", _SDKMAN, Source("apt", "1.3", ("kotlin",)), ("java",)),
    Tool("scala", "jvm", "scala -version 2>&1", _SDKMAN, Source("apt", "2.11", ("scala",)), ("java",)),
    Tool("mvn", "jvm", "mvn --version", _SDKMAN, Source("apt", "3.6", ("maven",)), ("java",)),
    Tool("gradle", "jvm", "gradle --version", _SDKMAN, Source("apt", "4.4", ("gradle",)), ("java",)),
    Tool("sbt", "jvm", "cd /tmp && sbt --script-version", _SDKMAN, None, ("java",)),
    # Needs its daemon: the client's own version proves nothing.
    Tool("docker", "docker", "docker version --format '{{.Server.Version}}'",
         # Without apparmor_parser it starts no container where the kernel has AppArmor.
         _DOCKER, Source("apt", "20.10", ("docker.io", "apparmor"))),
    Tool("docker-compose", "docker", "docker compose version", _DOCKER, None, ("docker",)),
    Tool("docker-buildx", "docker", "docker buildx version", _DOCKER, None, ("docker",)),
)
# fmt: on

_BY_NAME = {tool.name: tool for tool in TOOLS}
GROUPS = tuple(dict.fromkeys(tool.group for tool in TOOLS))
_ALIASES = {"rg": "ripgrep", "python": "python3", "rust": "cargo", "tsc": "typescript", "maven": "mvn"}


def choose(only: Sequence[str]) -> tuple[Tool, ...]:
    """The rows for `--only` (names or groups; empty: all), with what they need, in table order.

    Raises UsageError with the nearest known name.
    """
    if not only:
        return TOOLS
    wanted: set[str] = set()
    for word in only:
        members = [tool.name for tool in TOOLS if tool.group == word] if word not in _BY_NAME else [word]
        if not members and word in _ALIASES:
            members = [_ALIASES[word]]
        if not members:
            raise _unknown(word)
        for name in members:
            _add(name, wanted)
    return tuple(tool for tool in TOOLS if tool.name in wanted)


def _add(name: str, into: set[str]) -> None:
    if name not in into:
        into.add(name)
        for need in _BY_NAME[name].needs:
            _add(need, into)


def _unknown(word: str) -> UsageError:
    known = [*_BY_NAME, *GROUPS, *_ALIASES]
    near = difflib.get_close_matches(word, known, 1)
    return UsageError(
        f"Unknown tool: {word}" + (f" (did you mean {near[0]}?)" if near else ""),
        resolution=f"Known are {', '.join(_BY_NAME)}; and the groups {', '.join(GROUPS)}.",
    )


def apt_packages(tools: Sequence[Tool]) -> tuple[str, ...]:
    """The distribution's packages for these tools in the from-packages mode."""
    names = (name for tool in tools if tool.packages for name in tool.packages.apt)
    return tuple(dict.fromkeys(names))


def version_in(output: str) -> str:
    """The first thing that looks like a version, e.g. `jq-1.6` -> `1.6`; "" when nothing does."""
    match = re.search(r"\d{1,9}(?:\.\d{1,9}){1,9}|\b\d{1,9}\b", output, re.ASCII)
    return match[0] if match else ""


def at_least(version: str, least: str) -> bool:
    """Compare dotted numbers; without a least anything does.

    >>> at_least("1.10.2", "1.9"), at_least("1.8", "1.9")
    (True, False)
    """
    return _numbers(version) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version))
