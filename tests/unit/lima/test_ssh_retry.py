"""The ssh that Lima finds during a start, against a server that comes up late; no VM."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from _claude_sandbox.lima import ssh_retry

# As the real one: 255 when there is no connection, or no first word within ConnectTimeout.
REAL = f"""#!{sys.executable}
import os, re, socket, sys
line = " ".join(sys.argv[1:])
if "CLAUDE_SANDBOX_MASTER" in os.environ:
    shared, state = os.environ["CLAUDE_SANDBOX_SHARED"], os.environ["STATE"]
    with open(state + ".log", "a") as log:
        print(line, file=log)
    if "-N" in sys.argv:
        if not os.path.exists(state):
            sys.exit(255)
        socket.socket(socket.AF_UNIX).bind(shared)
        sys.exit(0)
    if "-O" in sys.argv:
        os.unlink(shared)
        sys.exit(0)
    if "grep" in sys.argv:
        sys.exit(not os.path.exists(state + ".fast"))
    print("over", "master" if "-S" in sys.argv else "its own", sys.stdin.read())
    sys.exit(int(open(state).read()))
if found := re.search(r"ConnectTimeout=(\\d+) .*-p (\\d+) 127.0.0.1 -- (\\S+)", line):
    try:
        with socket.create_connection(("127.0.0.1", int(found[2])), timeout=int(found[1])) as s:
            s.settimeout(int(found[1]))
            if not s.recv(20).startswith(b"SSH-"):
                sys.exit(255)
    except OSError:
        sys.exit(255)
    print("script:", sys.stdin.read(), end="")
    sys.exit(int(found[3]))
print("real:", line)
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ssh that comes first on Lima's PATH; the one after it prints its arguments."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "ssh").write_text(REAL)
    (real / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{real}:{os.environ['PATH']}")
    env = ssh_retry.environment(tmp_path)
    monkeypatch.setenv("PATH", env["PATH"] or "")
    return tmp_path / "ssh-wait" / "ssh"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(*arguments: str, code: int = 0) -> tuple[str, float]:
    begun = time.monotonic()
    done = subprocess.run(
        ["ssh", *arguments], input="true", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout, time.monotonic() - begun


def serve(port: int, *, after: float, silent: int) -> threading.Thread:
    """Listens `after` seconds from now; `silent` connections get no word, as when slirp lost them."""

    def run() -> None:
        time.sleep(after)
        with socket.create_server(("127.0.0.1", port)) as server:
            held = [server.accept()[0] for _ in range(silent)]
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            for each in (*held, connection):
                each.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_it_is_first_on_the_path_and_private(found: Path) -> None:
    assert found.stat().st_mode & 0o777 == 0o700
    before = found.stat().st_mtime_ns
    ssh_retry.environment(found.parent.parent)
    assert found.stat().st_mtime_ns == before


def test_waits_for_a_guest_that_is_not_there_yet(found: Path) -> None:
    port = free_port()
    server = serve(port, after=1.0, silent=0)
    out, seconds = ask("-F", "/dev/null", "-p", str(port), "127.0.0.1", "--", "0")
    assert out == "script: true"
    assert 0.9 < seconds < 10
    server.join(5)


def test_a_lost_question_is_asked_again(found: Path) -> None:
    port = free_port()
    server = serve(port, after=0, silent=2)
    out, seconds = ask("-p", str(port), "127.0.0.1", "--", "3", code=3)
    assert out == "script: true" and seconds < 15
    server.join(5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-V",),
        ("-F", "x", "-O", "check", "-p", "1", "127.0.0.1"),
        ("-F", "x", "-p", "1", "127.0.0.1", "-N", "-f", "-L", "a:b"),
        ("-p", "1", "example.org", "--", "true"),
    ],
)
def test_everything_else_goes_straight_on(found: Path, arguments: tuple[str, ...]) -> None:
    out, seconds = ask(*arguments)
    assert out == f"real: {' '.join(arguments)}\n"
    assert seconds < 5


QUESTION = ("-o", "ControlMaster=no", "-o", "ControlPath=none", "-p", "1", "127.0.0.1", "--", "sh")


@pytest.fixture
def state(found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guest whose sshd answers as soon as this file is there, with the exit code in it. With state.fast our
    init has set it up."""

    def master(socket: Path) -> tuple[str, ...]:
        return ("ssh", "-F", "a file", "-f", "-N", socket.name)

    monkeypatch.chdir(tmp_path)
    for name, value in ssh_retry.through(Path(), Path("control"), master).items():
        monkeypatch.setenv(name, value or "")
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    (tmp_path / "state.fast").touch()
    return tmp_path / "state"


def log(state: Path) -> list[str]:
    file = state.with_name("state.log")
    lines = file.read_text().splitlines()
    file.unlink()
    return lines


def test_the_first_question_opens_the_connection_and_the_next_goes_over_it(state: Path) -> None:
    threading.Timer(0.5, lambda: state.write_text("0")).start()
    assert ask(*QUESTION)[0] == "over master true\n"
    asked = log(state)
    assert "-o ConnectTimeout=1 -F a file -f -N ssh.sock" in asked
    assert sum(line.startswith("-F /dev/null -S ssh.sock -o ControlMaster=no") for line in asked) == 1
    assert ask(*QUESTION)[0] == "over master true\n"
    assert len(log(state)) == 1


def test_our_place_leads_to_that_very_connection(state: Path) -> None:
    """Not to one that Lima opens there later, which would hide the variables that we send."""
    state.write_text("0")
    ask(*QUESTION)
    here = state.parent
    assert (here / "control").samefile(here / "ssh.sock")
    (here / "ssh.sock").unlink()
    (here / "ssh.sock").touch()
    assert (here / "control").exists() and not (here / "control").samefile(here / "ssh.sock")


@pytest.mark.parametrize("code", [0, 1])
def test_in_a_boot_that_is_not_whole_each_question_logs_in_anew(state: Path, code: int) -> None:
    """What is not there yet (groups, variables) would be missing in this connection for good."""
    state.write_text(str(code))
    state.with_name("state.fast").unlink()
    ask(*QUESTION, code=code)
    assert log(state)[-1] == "-F /dev/null -S ssh.sock -O exit 127.0.0.1"
    assert not (state.parent / "control").is_symlink() and not (state.parent / "ssh.sock").exists()


def test_a_no_ends_the_connection(state: Path) -> None:
    state.write_text("1")
    ask(*QUESTION, code=1)
    assert log(state)[-1] == "-F /dev/null -S ssh.sock -O exit 127.0.0.1"
    state.write_text("0")
    ask(*QUESTION)
    assert any("-N" in line for line in log(state))


def test_what_an_earlier_boot_left_goes(tmp_path: Path) -> None:
    for name in ("ssh.sock", "claude-sandbox.sock"):
        (tmp_path / name).touch()
    control = tmp_path / "control"
    control.symlink_to(tmp_path / "claude-sandbox.sock")
    ssh_retry.through(tmp_path, control, lambda socket: ("ssh", str(socket)))
    assert list(tmp_path.iterdir()) == []


def test_limas_own_question_finds_the_connection_at_its_place(state: Path) -> None:
    state.write_text("0")
    out, _ = ask(
        "-o", "ControlMaster=auto", "-o", 'ControlPath="/x/ssh.sock"', "-p", "1", "127.0.0.1", "--", "sh"
    )
    assert out == "over its own true\n"
