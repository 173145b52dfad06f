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

from _claude_sandbox import ssh_wait

# As the real one: 255 when there is no connection, or no first word within ConnectTimeout.
REAL = f"""#!{sys.executable}
import os, re, socket, sys
line = " ".join(sys.argv[1:])
if "CLAUDE_SANDBOX_MASTER" in os.environ:
    control, state = os.environ["CLAUDE_SANDBOX_CONTROL"], os.environ["STATE"]
    with open(state + ".log", "a") as log:
        print(line, file=log)
    if "-N" in sys.argv:
        if not os.path.exists(state):
            sys.exit(255)
        socket.socket(socket.AF_UNIX).bind(control)
        sys.exit(0)
    if "-O" in sys.argv:
        os.unlink(control)
        sys.exit(0)
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
    env = ssh_wait.environment(tmp_path)
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
    ssh_wait.environment(found.parent.parent)
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
    """A guest whose sshd answers as soon as this file is there, with the exit code in it."""
    master = ("ssh", "-F", "a file", "-f", "-N", "lima-x")
    for name, value in ssh_wait.through(Path("control"), master).items():
        monkeypatch.setenv(name, value or "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def log(state: Path) -> list[str]:
    file = state.with_name("state.log")
    lines = file.read_text().splitlines()
    file.unlink()
    return lines


def test_the_first_question_opens_our_master_and_the_next_goes_over_it(state: Path) -> None:
    threading.Timer(0.5, lambda: state.write_text("0")).start()
    assert ask(*QUESTION)[0] == "over master true\n"
    asked = log(state)
    assert len(asked) > 2 and asked[-2] == "-o ConnectTimeout=1 -F a file -f -N lima-x"
    assert asked[-1].startswith("-S control -o ControlMaster=no")
    assert ask(*QUESTION)[0] == "over master true\n"
    assert len(log(state)) == 1


def test_a_no_ends_our_master(state: Path) -> None:
    """The guest is not as far as a session must find it: the next question logs in anew."""
    state.write_text("1")
    ask(*QUESTION, code=1)
    assert log(state)[-1] == "-S control -O exit 127.0.0.1"
    state.write_text("0")
    ask(*QUESTION)
    assert "-N" in log(state)[0]


def test_limas_own_master_stays_its_own(state: Path) -> None:
    state.write_text("0")
    out, _ = ask(
        "-o", "ControlMaster=auto", "-o", 'ControlPath="/x/ssh.sock"', "-p", "1", "127.0.0.1", "--", "sh"
    )
    assert out == "over its own true\n"
