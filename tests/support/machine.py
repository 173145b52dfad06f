"""A person at a machine: an account with an empty home and a fresh copy of the checkout.

The real-VM tests type what a new user would type and look at what comes out. `Person` runs the
launcher under that account with a bare environment (only what reaches the package registries is
handed on), in a home of its own; where no account can be made that is a directory of the test's.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "cs-tester"
# What a package client needs to reach its registry from here; nothing of Claude's, Lima's or ours.
_HANDED_ON = ("PIP_", "UV_", "SSL_", "NODE_EXTRA", "GOPROXY", "GOSUMDB", "GOFLAGS", "NPM_CONFIG_", "npm_config_",
              "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
              "CURL_CA", "REQUESTS_CA", "GIT_SSL", "CI")  # fmt: skip
_PATH = "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Person:
    """`account` None is whoever runs the tests."""

    account: str | None
    home: Path
    extra: dict[str, str] = field(default_factory=dict)

    def settle(self, cache: Path) -> None:
        """Move in: a copy of the checkout, and ~/.cache on what outlives the test (by symlink)."""
        copy_checkout(self.checkout)
        cache.mkdir(parents=True, exist_ok=True)
        link = self.home / ".cache"
        if not link.is_symlink():
            link.symlink_to(cache)
        self.own(cache)
        self.own(self.home)

    @property
    def checkout(self) -> Path:
        return self.home / "claude-sandbox"

    @property
    def lima_home(self) -> Path:
        return self.home / ".lima"

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        handed = {k: v for k, v in os.environ.items() if k.startswith(_HANDED_ON)}
        name = self.account or pwd.getpwuid(os.geteuid()).pw_name
        own = {"HOME": str(self.home), "USER": name, "LOGNAME": name, "PATH": _PATH, "LANG": "C.UTF-8",
               "TERM": "xterm-256color", "SHELL": "/bin/bash"}  # fmt: skip
        return {**handed, **own, **self.extra, **(more or {})}

    def argv(self, argv: Sequence[str], more: Mapping[str, str] | None = None) -> list[str]:
        """The whole command line: another account's environment has to be spelled out."""
        if self.account is None:
            return list(argv)
        pairs = [f"{key}={value}" for key, value in self.env(more).items()]
        return ["runuser", "-u", self.account, "--", "env", "-i", *pairs, *argv]

    def run(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float = 1500,
        code: int | None = 0,
    ) -> Ended:
        """Run to the end; `code` is the exit code that is expected (None: any)."""
        done = subprocess.run(
            self.argv(argv, env),
            cwd=cwd or self.home,
            env=self.env(env),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        ended = Ended(done.returncode, done.stdout, done.stderr)
        if code is not None:
            assert ended.code == code, f"{argv}: exit code {ended.code}\n{ended.out}\n{ended.err}"
        return ended

    def cs(self, *arguments: str, **keywords: Any) -> Ended:
        """`claude-sandbox ARGUMENTS`, as a person types it."""
        return self.run(str(self.checkout / "claude-sandbox"), *arguments, **keywords)

    def killed_when(
        self, condition: Callable[[], bool], *arguments: str, cwd: Path, timeout: float = 600
    ) -> None:
        """Start `claude-sandbox`, and SIGKILL the program (not its children) once `condition` holds."""
        argv = [str(self.checkout / "claude-sandbox"), *arguments]
        process = subprocess.Popen(
            self.argv(argv), cwd=cwd, env=self.env(), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + timeout
        try:
            while not condition():
                assert process.poll() is None, (
                    f"{arguments} ended with {process.returncode} before it was killed"
                )
                assert time.monotonic() < deadline, f"the moment to kill {arguments} never came"
                time.sleep(0.02)
        finally:
            # Under runuser the program is a child of ours by one step: kill it, not the step.
            for pid in [*children(process.pid), process.pid]:
                with_pid(pid)
            process.wait(30)

    def project(self, *parts: str, files: Mapping[str, str] | None = None) -> Path:
        """A project directory below the home, owned by this person."""
        path = self.home.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        for name, text in (files or {}).items():
            (path / name).write_text(text)
        if self.account:
            self.own(self.home)
        return path

    def own(self, path: Path) -> None:
        if self.account:
            entry = pwd.getpwnam(self.account)
            for top, directories, names in os.walk(path):
                for name in [".", *directories, *names]:
                    os.chown(os.path.join(top, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def instance(self, name: str) -> Path:
        return self.lima_home / name

    def vms(self) -> dict[str, str]:
        """Name and status of every sandbox of ours."""
        return {box["name"]: box["status"] for box in self.cs("list", "--json").json()}

    def clean_up(self) -> None:
        """Every VM of this person goes, whatever a failed test left; what is in the cache stays."""
        if (self.checkout / "claude-sandbox").exists():
            self.cs("prune", "-y", code=None, timeout=600)
            self.cs("stop-all", code=None, timeout=600)  # the servers
        for pidfile in self.lima_home.glob("*/*.pid"):
            pid = int(pidfile.read_text() or 0)
            if str(pidfile.parent) in words_of(pid):  # not a stranger that has this id by now
                with_pid(pid)
        shutil.rmtree(self.home, ignore_errors=True)


@dataclass
class Stub:
    """The stub of the Messages API, on this host's loopback."""

    port: int

    @property
    def env(self) -> dict[str, str]:
        """What the person has set: the base URL is the host's own loopback."""
        return {
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self.port}",
            "ANTHROPIC_AUTH_TOKEN": "stub-token-for-tests",
            "CLAUDE_CODE_MAX_RETRIES": "1",
        }

    def log(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_log", timeout=10) as answer:
            value = json.load(answer)
        assert isinstance(value, list)
        return value


class Screen:
    """A terminal of 110 by 35: a tmux server of the test's own, run by the person who sits before it."""

    def __init__(self, person: Person) -> None:
        self.person = person

    def tmux(self, *arguments: str) -> str:
        return self.person.run("tmux", "-S", str(self.person.home / "screen"), *arguments, code=None).out

    def open(self, where: Path, env: dict[str, str], *argv: str) -> None:
        pairs = [f"{key}={value}" for key, value in env.items()]
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "110", "-y", "35", "-c", str(where), "--",
                  "env", "-u", "TMUX", "-u", "TMUX_PANE", *pairs, *argv)  # fmt: skip

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.wait_for(text)
        self.tmux("send-keys", "Enter")

    def wait_for(self, text: str, seconds: float = 180) -> str:
        """Until the screen shows it, wrapped or not."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.tmux("capture-pane", "-p")
            if squeezed(text) in squeezed(shown):
                return shown
            assert time.monotonic() < deadline, f"{text!r} never came on the screen:\n{shown}"
            time.sleep(0.5)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(0.5)


def squeezed(text: str) -> str:
    """Without white space: a long line is wrapped and indented."""
    return "".join(text.split())


def children(pid: int) -> list[int]:
    """The direct child of runuser; nothing for a program that was started directly."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[0] != b"runuser":
            return []
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def words_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def with_pid(pid: int) -> None:
    """SIGKILL a process that a test started, if it is still there."""
    if pid > 1:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def account(name: str = ACCOUNT) -> pwd.struct_passwd:
    """The ordinary user of these tests, made when it is missing (subuids included, for mmdebstrap)."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
        entry = pwd.getpwnam(name)
    return entry


def copy_checkout(to: Path) -> None:
    """The tracked and new files as a fresh clone would have them."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name, follow_symlinks=False)
