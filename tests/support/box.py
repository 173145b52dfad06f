"""A closed world for the whole program: a home, a LIMA_HOME, and a PATH where the fakes come first."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from _claude_sandbox.system import runtime_dir as system_runtime_dir
from _claude_sandbox.vm import mark as vm_mark

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
PROGRAMS = ("limactl", "ssh", "qemu-img", "qemu-system-x86_64", "unshare")
HIDDEN = {*PROGRAMS, "tmux", "sudo", "docker", "go", "brew", "apt-get", "mmdebstrap"}
TIMEOUT = 60.0  # seconds; a test that takes this long has found a hang


@dataclass(frozen=True)
class Ended:
    """A finished program. Under a terminal `out` is everything it showed and `err` is empty."""

    code: int
    out: str
    err: str = ""

    @property
    def text(self) -> str:
        return self.out + self.err

    def json(self) -> Any:
        return json.loads(self.out)


def kill(*pids: int) -> None:
    """And wait until they are gone: a container's init may take seconds to reap."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


@dataclass
class Box:
    """Where one test plays. `root` is short: Lima's socket paths must fit under it."""

    root: Path
    system: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home, self.lima_home = self.root / "h", self.root / "l"
        self.bin, self.faults, self.runtime = self.root / "bin", self.root / "f", self.root / "r"
        for directory in (self.home, self.lima_home, self.bin, self.faults, self.root / "p"):
            directory.mkdir()
        self.runtime.mkdir(mode=0o700)
        self._log, self._pids = self.root / "calls", self.root / "pids"
        lifeline = self.root / "lifeline"
        os.mkfifo(lifeline)
        self._lifeline = os.open(lifeline, os.O_RDWR)  # closed by whatever ends this process
        for program in PROGRAMS:
            self.fake(program)
        self.env = {
            "HOME": str(self.home), "USER": "tester", "LOGNAME": "tester", "SHELL": "/bin/bash",
            "PATH": f"{self.bin}:{self.system}/bin", "LIMA_HOME": str(self.lima_home), "TERM": "xterm-256color",
            "XDG_RUNTIME_DIR": str(self.runtime), "TMUX_TMPDIR": str(self.runtime), "LANG": "C.UTF-8",
            "FAKE_LIMA_FAULTS": str(self.faults), "FAKE_LIMA_LOG": str(self._log),
            "FAKE_LIMA_PIDS": str(self._pids),
            "CLAUDE_SANDBOX_HOOKS": "off",  # a server of its own is for the tests that are about it
            "FAKE_LIMA_LIFELINE": str(lifeline),
            "FAKE_SITE": str(Path(yaml.__file__).parents[1]), "FAKE_GUEST_SYSTEM_PATH": f"{self.system}/bin", "PYTHONPYCACHEPREFIX": str(self.system / "pyc"),
        }  # fmt: skip

    # -- the world -------------------------------------------------------------------------------

    def fake(self, program: str) -> None:
        """Put a fake on PATH, run by this very Python."""
        target = FAKES / program
        if target.read_text().startswith("#!/usr/bin/env python3"):
            script = self.bin / program
            quick = f"-S -E -X 'pycache_prefix={self.system}/pyc'"
            script.write_text(f"#!/bin/sh\nexec '{sys.executable}' {quick} '{target}' \"$@\"\n")
            script.chmod(0o755)
        else:
            (self.bin / program).symlink_to(target)

    def without(self, program: str) -> None:
        """Take a program off PATH."""
        (self.bin / program).unlink()

    def with_tmux(self) -> None:
        """The real tmux, on a server of this box's own (TMUX_TMPDIR)."""
        real = shutil.which("tmux", path="/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin")
        if real is None:
            left_out("tmux")
        (self.bin / "tmux").symlink_to(real)

    def runtime_dir(self) -> Path:
        """The program's own directory for sockets, here."""
        return self.runtime / "claude-sandbox" / system_runtime_dir.key(self.env)

    def hooks_state(self) -> Path:
        """Where this LIMA_HOME's hooks server keeps its log and state."""
        return self.home / ".local/state/claude-sandbox" / f"hooks-{system_runtime_dir.key(self.env)}"

    def project(self, name: str = "app") -> Path:
        path = self.root / "p" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def fault(self, verb: str, **wish: object) -> None:
        """Let the fake's `verb` (or `verb.<n>`: its n-th call from now on) go wrong; see fakes/README.md."""
        (self.faults / verb).write_text(json.dumps(wish))

    def mend(self) -> None:
        """No more faults, and calls are counted from 1 again."""
        for entry in self.faults.iterdir():
            entry.unlink()

    def limactl(self, *arguments: str, check: bool = True) -> Ended:
        """Use the fake ourselves, without faults and unlogged."""
        env = {k: v for k, v in self.env.items() if k not in ("FAKE_LIMA_FAULTS", "FAKE_LIMA_LOG")}
        ended = self._run([str(self.bin / "limactl"), *arguments], self.root, env, None)
        assert not check or ended.code == 0, ended.err
        return ended

    def vm(self, name: str, document: Mapping[str, object] | None = None) -> Path:
        """A stopped VM that somebody made by hand; its directory."""
        text = {
            "images": [{"location": "https://images.example/x.img", "arch": "x86_64"}],
            **(document or {}),
        }
        path = self.root / f"{name}.json"  # JSON is YAML
        path.write_text(json.dumps(text))
        self.limactl("create", "--tty=false", f"--name={name}", str(path))
        return self.lima_home / name

    def tools_vm(self, name: str = "tools-vm") -> Path:
        """A stopped tools VM of ours with `claude` in it."""
        mark = vm_mark.Mark(vm_mark.TOOLS, name).encode()
        directory = self.vm(
            name,
            {
                "vmType": "qemu", "cpus": 2, "memory": "2GiB", "disk": "20GiB", "mountType": "9p",
                "user": {"name": "tester", "uid": 1000, "home": "/home/tester.guest"},
                "param": {vm_mark.MARK_PARAM: mark}, "containerd": {"system": False, "user": False},
                "provision": [{"mode": "system", "script": f"#!/bin/sh\n# PARAM_{vm_mark.MARK_PARAM}\n"}],
            },
        )  # fmt: skip
        self.limactl("protect", name)
        return directory

    # -- running ---------------------------------------------------------------------------------

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "claude_sandbox.py"), *arguments]

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,
    ) -> Ended:
        """The program without a terminal, to its end."""
        return self._run(self.argv(*arguments), cwd or self.project(), self._env(env), input)

    def spawn(
        self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """The program without a terminal, not waited for. Its own group: a test may signal it as Ctrl-C does."""
        return subprocess.Popen(
            self.argv(*arguments),
            preexec_fn=heed_ctrl_c, cwd=cwd or self.project(), env=self._env(env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip

    def tty(
        self,
        *arguments: str,
        talk: Sequence[tuple[str, str]] = (),
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Ended:
        """The program on a terminal. `talk` is what to wait for in its output and what to type then."""
        return converse(self.argv(*arguments), cwd or self.project(), self._env(env), talk)

    def _env(self, env: Mapping[str, str | None] | None) -> dict[str, str]:
        merged: dict[str, str | None] = {**self.env, **(env or {})}
        return {key: value for key, value in merged.items() if value is not None}

    def _run(self, argv: list[str], cwd: Path, env: dict[str, str], input: str | None) -> Ended:
        done = subprocess.run(
            argv,
            preexec_fn=heed_ctrl_c, cwd=cwd, env=env, input=input or "", capture_output=True, text=True, timeout=TIMEOUT, check=False,
            errors="replace",
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    # -- looking ---------------------------------------------------------------------------------

    def calls(self, program: str = "limactl", verb: str | None = None) -> list[list[str]]:
        """argv of each call of a fake so far, oldest first; only those that hold `verb` as a word."""
        entries = self.log()
        found = [entry["argv"] for entry in entries if entry["program"] == program]
        return [argv for argv in found if verb is None or verb in argv]

    def log(self) -> list[dict[str, Any]]:
        text = self._log.read_text() if self._log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def forget_calls(self) -> None:
        self._log.unlink(missing_ok=True)

    def vms(self) -> dict[str, str]:
        """Every instance and its status."""
        lines = self.limactl("list", "--format", "[{{json .Name}},{{json .Status}}]").out.splitlines()
        return {name: status for name, status in map(json.loads, lines)}

    def config(self, name: str) -> dict[str, Any]:
        """An instance's lima.yaml."""
        document = yaml.safe_load((self.lima_home / name / "lima.yaml").read_text())
        assert isinstance(document, dict)
        return document

    def guest(self, name: str) -> Path:
        """What is inside the fake VM: home/, claude.log, system.log, boots."""
        return self.lima_home / name / "guest"

    def claude_runs(self, name: str) -> list[dict[str, Any]]:
        """What each `claude` in the VM got: {"cwd", "args", "env"}."""
        path = self.guest(name) / "claude.log"
        runs: list[dict[str, Any]] = []
        run: dict[str, Any] = {"cwd": "", "args": [], "env": {}}
        for line in path.read_text().splitlines() if path.exists() else []:
            key, _, value = line.partition("=")
            if line == "end":
                runs.append(run)
                run = {"cwd": "", "args": [], "env": {}}
            elif key == "cwd":
                run["cwd"] = value
            elif key == "arg":
                run["args"].append(value)
            else:
                run["env"][key] = value
        return runs

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End, by id, the helper processes that our fakes started, and remove everything."""
        if (self.bin / "tmux").exists():
            subprocess.run(
                [str(self.bin / "tmux"), "kill-server"], env=self.env, capture_output=True, check=False
            )
        for line in self._pids.read_text().splitlines() if self._pids.exists() else []:
            if belongs_to(int(line), self.root):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)
        os.close(self._lifeline)
        for directory, _, _ in os.walk(self.root):
            with contextlib.suppress(OSError):
                os.chmod(directory, 0o700)
        shutil.rmtree(self.root, ignore_errors=True)


def heed_ctrl_c() -> None:
    """For a child: a shell that runs pytest in the background has it ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def belongs_to(pid: int, root: Path) -> bool:
    """Whether that process still is a helper of ours, not somebody who got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if Path("/proc/self").exists():
            return False
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=False
        ).stdout
    return os.fsencode(root) in command


def converse(argv: list[str], cwd: Path, env: dict[str, str], talk: Iterable[tuple[str, str]]) -> Ended:
    """Run on a pseudo-terminal of 100 columns; each (expected, typed) pair in its turn."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            heed_ctrl_c()
            os.chdir(cwd)
            os.execve(argv[0], argv, {**env, "COLUMNS": "100", "LINES": "40"})
        finally:
            os._exit(127)
    shown, waiting, deadline = b"", list(talk), time.monotonic() + TIMEOUT
    seen = 0
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([terminal], [], [], 0.2)
            if ready:
                try:
                    block = os.read(terminal, 65536)
                except OSError:  # Linux: the other side is closed
                    break
                if not block:
                    break
                shown += block
                continue
            # Nothing came for 0.2 s: a program that still draws (tmux) may throw typed keys away.
            if waiting and waiting[0][0].encode() in shown[seen:]:
                seen = len(shown)
                os.write(terminal, waiting.pop(0)[1].encode())
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    text = shown.decode("utf-8", "replace").replace("\r\n", "\n")
    code = os.waitstatus_to_exitcode(status)
    assert not waiting, f"never shown: {waiting[0][0]!r} in\n{text}"
    return Ended(code if code >= 0 else 128 - code, text)


def need(*programs: str) -> None:
    """Skip the test where one of these is missing; scripts/test says how to get it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        left_out(*missing)


def left_out(*programs: str) -> NoReturn:
    """In CI missing means failed."""
    why = f"not installed: {', '.join(programs)}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def link_system(where: Path) -> None:
    """Links to the programs that every machine of this kind has, without those that a test must not meet.

    On Debian and Ubuntu these are the essential packages': what we start besides (git and ps were once
    found so) is missing here as it is on a new machine, unless a test brings it.
    """
    where.mkdir()
    essential = essential_programs()
    for directory in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for entry in os.scandir(directory) if os.path.isdir(directory) else ():
            link = where / entry.name
            if (
                (not essential or entry.name in essential)
                and entry.name not in HIDDEN
                and not entry.name.startswith(("qemu-", "lima"))
                and not link.is_symlink()
            ):
                link.symlink_to(entry.path)


def essential_programs() -> set[str]:
    """The names in the bin directories of Debian's essential packages; empty where there is no dpkg."""
    if shutil.which("dpkg-query") is None:
        return set()
    shown = ask("dpkg-query", "-W", "-f", "${Essential} ${Package}\n")
    packages = [line.split()[1] for line in shown if line.startswith("yes ")]
    paths = map(Path, ask("dpkg-query", "-L", *packages))
    # awk, sh, which and the like are links of update-alternatives, in no package's list.
    alternatives = {"awk", "sh", "which", "pager", "nawk"}
    return {path.name for path in paths if path.parent.name in ("bin", "sbin")} | alternatives


def ask(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def short_directory() -> Path:
    """A directory of few characters: `/tmp/csb-abcdefgh`."""
    return Path(os.path.realpath(tempfile.mkdtemp(prefix="csb-", dir="/tmp")))
