"""The one runner: commands as values, and processes that end when and how they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _claude_sandbox.system import child as system_child
from _claude_sandbox.system.run import Command, CommandNotFound, DryRunner, LocalRunner, Result
from tests.support.recording import Recorder

ROOT = Path(__file__).resolve().parents[3]
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15)
names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True).map("CS_".__add__)


def sh(script: str) -> Command:
    return Command(("sh", "-c", script))


def gone(pid: int) -> bool:
    """Whether the process ends within a few seconds (one that nobody has reaped yet counts)."""
    try:
        process = psutil.Process(pid)
        for _ in range(60):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return True
    return False


# -- commands as text --------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(words, max_size=4), st.dictionaries(names, words, max_size=3))
def test_the_logged_line_can_be_pasted_into_a_shell(arguments: list[str], env: dict[str, str]) -> None:
    show = "import os, sys; sys.stdout.write(repr((sys.argv[1:], {k: v for k, v in os.environ.items() if k[:3] == 'CS_'})))"
    command = Command(
        (sys.executable, "-I", "-S", "-c", show, *arguments), {**env, "CS_GONE": None}, Path("/")
    )
    done = subprocess.run(
        ["bash", "-c", str(command)], capture_output=True, env={"CS_GONE": "x", "LANG": "C.UTF-8"}, check=True
    )
    assert done.stdout.decode() == repr((arguments, env))


@given(st.text(min_size=4, max_size=20), words)
def test_a_hidden_value_is_never_shown(secret: str, other: str) -> None:
    command = Command(("ssh", "x"), {"TOKEN": f"<{secret}>", "OTHER": other}, hidden=frozenset({"TOKEN"}))
    assert f"<{secret}>" not in str(command) and "TOKEN=…" in str(command)
    assert command.environment()["TOKEN"] == f"<{secret}>" and "<" not in str(Command(("ssh",)))


def test_the_environment_is_changed_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS_KEPT", "1")
    monkeypatch.setenv("CS_GONE", "1")
    env = Command(("x",), {"CS_NEW": "2", "CS_GONE": None, "CS_NEVER": None}).environment()
    assert env["CS_KEPT"] == "1" and env["CS_NEW"] == "2" and "CS_GONE" not in env
    assert env["PATH"] == os.environ["PATH"]


# -- running -----------------------------------------------------------------------------------------


def test_output_code_and_input() -> None:
    result = LocalRunner().run(sh("cat; echo err >&2; exit 3"), input=b"in\xff\0")
    assert result == Result(3, b"in\xff\0", b"err\n")
    assert not result.ok and result.error_text == "err" and result.text == "in\udcff\0"
    assert LocalRunner().run(sh("cat")).stdout == b""  # stdin is empty, not ours
    assert LocalRunner().run(sh("kill -TERM $$")).returncode == 128 + 15


def test_directory_and_environment(tmp_path: Path) -> None:
    result = LocalRunner().run(Command(("sh", "-c", "pwd; echo $CS_A"), {"CS_A": "b c"}, tmp_path))
    assert result.text == f"{tmp_path}\nb c\n"


def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    assert LocalRunner().run(sh("exec true"), input=b"x" * 2_000_000).ok


def test_a_flood_on_both_pipes_does_not_block() -> None:
    script = "import sys; sys.stdout.write('o' * 3_000_000); sys.stderr.write('e\\n' * 300_000)"
    result = LocalRunner().run(Command((sys.executable, "-S", "-c", script)), timeout=60)
    assert len(result.stdout) == 3_000_000 and result.ok
    assert len(result.stderr.splitlines()) == 200  # the end of it


def test_the_limit_of_output_is_kept_while_the_rest_is_drained() -> None:
    result = LocalRunner().run(sh("head -c 1000000 /dev/zero; exit 7"), limit=70_000)
    assert (len(result.stdout), result.returncode) == (70_000, 7)
    assert LocalRunner().run(sh("echo abc"), limit=0).stdout == b""


def test_a_time_limit_ends_the_whole_group() -> None:
    begun = time.monotonic()
    result = LocalRunner().run(sh("sleep 60 & echo $!; echo $$; wait"), timeout=0.3)
    assert result.returncode == 124 and time.monotonic() - begun < 20
    assert "no end within 0.3 s" in result.error_text
    assert all(gone(int(pid)) for pid in result.text.split())


def test_one_that_ignores_the_polite_signal_is_killed() -> None:
    result = LocalRunner(grace=0.2).run(sh("trap '' TERM; echo $$; while :; do sleep 1; done"), timeout=0.3)
    assert result.returncode == 124 and gone(int(result.text))


def test_an_interrupt_ends_the_child() -> None:
    pids: list[int] = []

    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalRunner().stream(sh("echo x >&2; sleep 60"), on_line=interrupted, on_start=pids.append)
    assert gone(pids[0])


def test_a_ctrl_c_on_the_terminal_does_not_reach_the_child() -> None:
    """It is in a group of its own: we decide what ends and how."""
    group = Command((sys.executable, "-c", "import os; print(os.getpgid(0))"))
    assert int(LocalRunner().run(group).text) != os.getpgid(0)


def test_lines_come_as_they_are_written_and_go_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    first = threading.Event()
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if not first.is_set():
            (tmp_path / "go").touch()
        first.set()

    wait = f"echo one >&2; until [ -e '{tmp_path}/go' ]; do sleep 0.02; done; printf 'two\\377' >&2"
    LocalRunner().stream(sh(wait), on_line=on_line, logfile=log, timeout=30)
    assert lines == ["one", "two\ufffd"]
    assert log.read_text() == "before\none\ntwo\\xff", "a log that a terminal can show"


def test_the_log_of_what_commands_print_is_bounded(tmp_path: Path) -> None:
    runner = LocalRunner(log_kept=2000)
    log = tmp_path / "vm.log"
    for _ in range(3):
        runner.stream(sh("for i in 1 2 3 4 5 6 7 8 9; do printf '%0300d\\n' $i >&2; done"), logfile=log)
    assert 0 < log.stat().st_size <= 2400 and (tmp_path / "vm.log.1").stat().st_size <= 2000
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    runner = LocalRunner()
    nothing = Command(("claude-sandbox-no-such-program",))
    for start in (runner.run, runner.foreground, runner.exec):
        with pytest.raises(CommandNotFound, match="claude-sandbox-no-such-program was not found on PATH"):
            start(nothing)
    (tmp_path / "x").touch()
    with pytest.raises(CommandNotFound, match="cannot be executed"):
        runner.run(Command((str(tmp_path / "x"),)))
    with pytest.raises(FileNotFoundError):  # not the program: its directory
        runner.run(Command(("true",), cwd=tmp_path / "gone"))


def test_foreground_gives_the_exit_code_and_leaves_our_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert LocalRunner().foreground(sh("exit 5")) == 5
    assert LocalRunner().foreground(sh("kill -KILL $$")) == 137
    assert signal.getsignal(signal.SIGINT) is before


def test_a_foreground_child_gets_ctrl_c_and_we_survive_it() -> None:
    script = "import time, os, signal; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.2); os.kill(os.getpid(), signal.SIGINT)"
    assert LocalRunner().foreground(Command((sys.executable, "-S", "-c", script))) == 130


def test_exec_becomes_the_command(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom _claude_sandbox.system.run import Command, LocalRunner\nprint('first')\n"
        f"LocalRunner().exec(Command(('sh', '-c', 'echo $CS_A $(pwd) $$; exit 9'), {{'CS_A': 'v'}}, Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    out = process.communicate(timeout=30)[0]
    assert out == f"first\nv {tmp_path} {process.pid}\n" and process.returncode == 9


# -- what goes on beside us --------------------------------------------------------------------------


def test_a_child_has_the_descriptors_and_a_stdin_that_stays_open(tmp_path: Path) -> None:
    file = (tmp_path / "kept").open("w")
    child = LocalRunner().spawn(sh(f"echo here >/dev/fd/{file.fileno()}; exec cat"), keep=[file.fileno()])
    assert child.wait(0.3) is None and child.poll() is None  # it reads the pipe
    child.terminate()
    assert child.wait(10) == 128 + 15 and (tmp_path / "kept").read_text() == "here\n"
    with pytest.raises(CommandNotFound):
        LocalRunner().spawn(Command(("claude-sandbox-no-such-program",)))
    file.close()


def test_a_detached_process_has_its_own_session_and_appends_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    child = LocalRunner().spawn_detached(sh("cat; echo out; echo err >&2; exec sleep 60"), log)
    deadline = time.monotonic() + 10
    while "err" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text() == "before\nout\nerr\n" and os.getsid(child.pid) == child.pid
    child.kill()
    assert child.wait(10) == 128 + 9


def test_the_last_lines_are_stderr_s_or_else_stdout_s() -> None:
    assert Result(1, b"out\n", b"\n".join(b"%d" % n for n in range(20))).last_lines.split() == list(
        map(str, range(12, 20))
    )
    assert Result(1, b"\nout\n", b" \n").last_lines == "out"


# -- dry run -----------------------------------------------------------------------------------------


def test_a_dry_run_prints_changes_and_really_asks_questions() -> None:
    real, shown = Recorder(), list[str]()
    real.on("ask", then=Result(0, b"answer"))
    dry = DryRunner(real, shown.append)
    assert dry.run(Command(("rm", "-rf", "a b"))).ok
    assert dry.foreground(Command(("vi",))) == 0
    with pytest.raises(SystemExit) as ended:
        dry.exec(Command(("ssh", "x"), {"T": "secret"}, hidden=frozenset({"T"})))
    assert ended.value.code == 0
    assert real.calls == [] and shown == ["rm -rf 'a b'", "vi", "T=… ssh x"]
    assert dry.run(Command(("ask",)), changes=False, timeout=3, limit=9).stdout == b"answer"
    assert [(c.argv, c.timeout, c.changes, c.limit) for c in real.calls] == [(("ask",), 3, False, 9)]


# -- given up ----------------------------------------------------------------------------------------


def test_a_command_that_is_given_up_ends_with_its_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(system_child, "ASKED_EVERY", 0.05)
    child = tmp_path / "child"
    begun = time.monotonic()
    result = LocalRunner().stream(
        sh(f"sleep 60 & echo $! > '{child}'; wait"), timeout=50, give_up=child.exists
    )
    assert time.monotonic() - begun < 20 and not result.ok and result.returncode == 128 + signal.SIGTERM
    assert gone(int(child.read_text()))


def test_nobody_is_asked_once_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_child, "ASKED_EVERY", 0.01)
    asked: list[float] = []
    assert LocalRunner().stream(sh("sleep 0.3"), give_up=lambda: asked.append(time.monotonic()) or False).ok  # type: ignore[func-returns-value]
    count = len(asked)
    time.sleep(0.2)
    assert 0 < count and len(asked) - count <= 1
