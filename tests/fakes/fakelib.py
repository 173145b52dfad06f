"""What the fake programs share: the call log, fault injection, log lines, helper processes, the guest.

Everything is found through the environment (README.md): FAKE_LIMA_FAULTS, FAKE_LIMA_LOG,
FAKE_LIMA_PIDS, FAKE_LIMA_LIFELINE.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

TYPE_CHECKING = False  # see limaconfig.py
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

FAKES = Path(__file__).resolve().parent
_SHOWN = ("LIMA_HOME", "QEMU_SYSTEM_X86_64", "HOME")
_NAMED = re.compile(r"ANTHROPIC|CLAUDE|TOKEN|KEY|proxy", re.IGNORECASE)


def log_call(program: str, argv: list[str]) -> None:
    """One JSON line: argv, a few variables, and only the names of those that may hold secrets."""
    path = os.environ.get("FAKE_LIMA_LOG")
    if not path:
        return
    entry = {
        "program": program,
        "argv": argv,
        "env": {name: os.environ[name] for name in _SHOWN if name in os.environ},
        "named": sorted(name for name in os.environ if _NAMED.search(name)),
        "ppid": os.getppid(),
        "time": time.time(),
    }
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def logrus(level: str, message: str, **fields: str) -> None:
    """A line on stderr as limactl's logger writes it when stderr is no terminal.

    With a killed reader we go on: in the real one it is the host agent that boots, and it writes to files.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    extra = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
    with contextlib.suppress(BrokenPipeError):
        print(f'time="{stamp}" level={level} msg={_quoted(message)}{extra}', file=sys.stderr, flush=True)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def fatal(message: str, code: int = 1) -> NoReturn:
    logrus("fatal", message)
    raise SystemExit(code)


# -- faults ----------------------------------------------------------------------------------------


class Fault:
    """What a test wants to go wrong with one call of one verb; see README.md for the keys."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish

    def get(self, key: str) -> Any:
        return self.wish.get(key)

    def at(self, moment: str) -> None:
        """Signal the process that called us, when the test asked for it at this moment."""
        if self.wish.get("kill_parent") != moment:
            return
        os.kill(os.getppid(), getattr(signal, "SIG" + self.wish.get("signal", "KILL")))
        if moment == "before":
            time.sleep(0.05)
            raise SystemExit(1)
        if moment == "during":  # a signalled parent ends us here; a killed one leaves us to go on
            time.sleep(self.wish.get("pause", 0.3))
            if self.wish.get("die"):
                os._exit(1)

    def first(self) -> None:
        """What happens before the verb does anything."""
        if self.wish.get("delay"):
            time.sleep(float(self.wish["delay"]))
        self.at("before")
        if self.wish.get("hang"):
            time.sleep(float(self.wish["hang"]))
            raise SystemExit(1)
        if self.wish.get("garbage"):
            sys.stdout.buffer.write(b"\x00\xff{[ <html>Bad Gateway</html> \x1b[31m\n" * 3)
            sys.stdout.flush()
            raise SystemExit(self.wish.get("rc", 0))
        if self.wish.get("fail") and not self.wish.get("late"):
            fatal(str(self.wish["fail"]), int(self.wish.get("rc", 1)))


def fault_for(verb: str, argv: list[str]) -> Fault:
    """The fault file of this call: `<verb>.<n>` for the n-th call, `<verb>`, or `any.<n>`."""
    root = os.environ.get("FAKE_LIMA_FAULTS")
    if not root:
        return Fault({})
    for name in (f"{verb}.{_count(root, verb)}", verb, f"any.{_count(root, 'any')}"):
        path = Path(root) / name
        if path.exists():
            wish = json.loads(path.read_text())
            if wish.get("argv") is None or any(wish["argv"] in argument for argument in argv):
                return Fault(wish)
    return Fault({})


def _count(root: str, verb: str) -> int:
    with open(f"{root}/.count.{verb}", "ab") as file:  # appending one byte is atomic: the size is the number
        file.write(b".")
        file.flush()
        return file.tell()


# -- processes -------------------------------------------------------------------------------------


def alive(pidfile: Path) -> int:
    """The process id in `pidfile` if that process lives, else 0; a stale file is removed, as Lima does."""
    try:
        number = int(pidfile.read_text())
        os.kill(number, 0)
    except FileNotFoundError:
        return 0
    except ProcessLookupError:
        pidfile.unlink(missing_ok=True)
        return 0
    except PermissionError:
        return number
    return number


def spawn_helper(
    name: str,
    directory: Path,
    *arguments: str,
    listen: Path | None = None,
    of_vm: bool = True,
    shared: Iterable[str] = (),
) -> int:
    """A long-lived process that looks like `name ARGUMENTS…` in ps; it waits until it is killed, or until
    the test process is gone, which holds the other end of FAKE_LIMA_LIFELINE.

    It holds the socket `listen` open: who connects finds out whether the process lives. `of_vm`: one of
    the processes of a VM, which tests count. `shared`: directories that it opens as QEMU does for 9p.
    """
    state = directory.parent / "_fake"
    state.mkdir(exist_ok=True)
    program = state / name
    if not program.exists():
        program.symlink_to("/bin/sh")
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    opened = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in shared]
    for fd in opened:
        os.set_inheritable(fd, True)
    argv = [name, "-c", f'cd / && read -r _ <"{os.environ["FAKE_LIMA_LIFELINE"]}"', name, *arguments]
    listener = _listener(listen) if listen else None
    pid = os.posix_spawn(str(program), argv, os.environ, file_actions=null, setsid=True)
    if listener:
        listener.close()
    for fd in opened:
        os.close(fd)
    if of_vm and os.environ.get("FAKE_LIMA_PIDS"):
        with open(os.environ["FAKE_LIMA_PIDS"], "a") as file:
            file.write(f"{pid}\n")
    return pid


def _listener(path: Path) -> Any:
    """A listening socket that a child inherits."""
    import socket

    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(100)
    listener.set_inheritable(True)
    return listener


def answers(path: Path) -> bool:
    """Whether somebody listens on that socket."""
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def end_helper(pid: int) -> None:
    if not pid:
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    for _ in range(200):  # a zombie of an init that does not reap still answers kill(pid, 0)
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.005)


def remember_master(directory: Path, pid: int) -> None:
    """An ssh master ends with its VM: the connection is gone."""
    with (directory.parent / "_fake" / f"masters-{directory.name}").open("a") as file:
        file.write(f"{pid}\n")


def end_masters(directory: Path) -> None:
    masters = directory.parent / "_fake" / f"masters-{directory.name}"
    for line in masters.read_text().split() if masters.exists() else []:
        end_helper(int(line))
    masters.unlink(missing_ok=True)


# Files of the guest that must not be the host's: they are below guest/root.
OWN_FILES = ("/run/lima-", "/tmp/claude-install")

# -- the guest -------------------------------------------------------------------------------------


def make_guest(directory: Path) -> Path:
    """The fake VM's file system: a home directory beside the disk, with `claude` in ~/.local/bin."""
    guest = directory / "guest"
    home = guest / "home"
    if not home.exists():
        (home / ".local" / "bin").mkdir(parents=True)
        # A login shell reads /etc/profile, which sets PATH anew: so the shims are put back here.
        (home / ".bash_profile").write_text('PATH="$HOME/.local/bin:$FAKE_GUEST_PATH"; export PATH\n')
        (home / ".local" / "bin" / "claude").symlink_to(FAKES / "guest" / "claude")
        (guest / "root" / "tmp").mkdir(parents=True)
    return guest


def booted(directory: Path, up: bool) -> None:
    """The marks that a guest has in /run once its boot scripts have run; /run is empty after a stop."""
    run = make_guest(directory) / "root" / "run"
    run.mkdir(exist_ok=True)
    for name in ("lima-ssh-ready", "lima-boot-done"):
        if up:
            (run / name).write_text("iid-1\n")
        else:
            (run / name).unlink(missing_ok=True)


def guest_command(
    directory: Path, mounts: list[tuple[str, str]], remote: str
) -> tuple[list[str], dict[str, str]]:
    """argv and environment that run `remote` as sshd in the guest would: `$SHELL -c`, in the home.

    `mounts` are (location, mount point). The host's own file system is the guest's, so a mount point
    that differs from its location is replaced in the text by a link below the guest's directory.
    """
    guest = make_guest(directory)
    for location, point in mounts:
        if point != location and point.startswith("/mnt/"):
            link = guest / "root" / point.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(location)
            remote = remote.replace(point, str(link))
    for prefix in OWN_FILES:
        remote = remote.replace(prefix, f"{guest}/root{prefix}")
    path = f"{FAKES / 'guestbin'}:{os.environ.get('FAKE_GUEST_SYSTEM_PATH', '/usr/bin:/bin')}"
    environment = {
        "HOME": str(guest / "home"), "USER": "lima", "LOGNAME": "lima", "SHELL": "/bin/bash",
        "PATH": path, "FAKE_GUEST_PATH": path, "FAKE_GUEST": str(guest), "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
    }  # fmt: skip
    return ["bash", "-c", remote], environment
