"""The variables in a real shell, and ssh's argv: our own master, and no secret in any argv."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _claude_sandbox.errors import GuestConnectionError
from _claude_sandbox.lima import ssh
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.lima.remote_command import ENV_VARIABLE
from _claude_sandbox.lima.ssh import Guest
from _claude_sandbox.system.run import Result
from tests.support.recording import Recorder, failed, listen

INSTANCE = Instance("claude-sandbox-app", "Running", Path("/lima/claude-sandbox-app"), 60022)
text = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.text(st.sampled_from("'\"\\$`!\n\r\t {}();&|<>*?~#%=-é\udcff"), max_size=30),
)
names = st.from_regex(r"CS_[A-Z0-9_]{0,6}", fullmatch=True)


@pytest.fixture
def guest(recorder: Recorder, tmp_path: Path) -> Guest:
    return Guest(recorder, INSTANCE, tmp_path)


def in_the_guest(line: str, exports: str, shell: str = "bash") -> bytes:
    """What sshd does with a command: the user's shell gets the line, the variable is in the environment."""
    env = {b"PATH": os.environb[b"PATH"], ENV_VARIABLE.encode(): exports.encode("utf-8", "surrogateescape")}
    return subprocess.run([shell, "-c", line], env=env, capture_output=True, check=True).stdout


@settings(max_examples=30)
@given(st.dictionaries(names, text, max_size=4))
@pytest.mark.parametrize("shell", ["bash", "sh"])  # the guest's user has the one that the base gives it
def test_the_variables_have_exactly_these_values(shell: str, env: dict[str, str]) -> None:
    command = Guest(Recorder(), INSTANCE, Path("/run")).command("env -0 | grep -z ^CS_", env, tty=False)
    exports = command.env[ENV_VARIABLE]
    assert exports is not None
    if env:
        out = in_the_guest(command.argv[-1], exports, shell)
        got = dict(item.split(b"=", 1) for item in out.split(b"\0") if item)
        assert got == {os.fsencode(k): v.encode("utf-8", "surrogateescape") for k, v in env.items()}


def test_the_variable_that_carries_them_does_not_go_on_to_programs() -> None:
    command = Guest(Recorder(), INSTANCE, Path("/run")).command("env", {"CS_A": "1"}, tty=False)
    out = in_the_guest(command.argv[-1], command.env[ENV_VARIABLE] or "").decode()
    assert "CS_A=1" in out.splitlines() and ENV_VARIABLE not in out


@settings(max_examples=30)
@given(st.lists(text, min_size=1, max_size=4))
def test_arguments_reach_a_script_unchanged(arguments: list[str]) -> None:
    recorder = Recorder()
    Guest(recorder, INSTANCE, Path("/run")).run('printf "%s\\0" "$@"', *arguments)
    out = in_the_guest(recorder.argvs()[-1][-1], "")
    assert out.split(b"\0")[:-1] == [a.encode("utf-8", "surrogateescape") for a in arguments]


def test_a_session_s_secret_is_only_in_ssh_s_environment(guest: Guest) -> None:
    secret = "sk-ant-secret"
    for tty in (True, False):
        command = guest.command("exec claude", {"ANTHROPIC_API_KEY": secret}, tty=tty)
        carried = command.env[ENV_VARIABLE] or ""
        assert carried == f"export ANTHROPIC_API_KEY='{secret}'"
        assert list(command.env) == [ENV_VARIABLE]
        shown = " ".join(command.argv) + str(command)
        assert secret not in shown and (command.env[ENV_VARIABLE] or "") not in shown
        assert ("-tt" if tty else "-T") in command.argv


def option(argv: tuple[str, ...], name: str) -> list[str]:
    return [word.removeprefix(f"{name}=") for word in argv if word.startswith(f"{name}=")]


def test_ssh_uses_lima_s_config_and_a_connection_of_our_own(guest: Guest, tmp_path: Path) -> None:
    argv = guest.command("true", {}, tty=False).argv
    assert argv[:3] == ("ssh", "-F", "/lima/claude-sandbox-app/ssh.config")
    assert option(argv, "SendEnv") == [ENV_VARIABLE]
    assert option(argv, "ForwardAgent") == option(argv, "ForwardX11") == ["no"]
    assert option(argv, "ControlPath") == [str(guest.control_path)]
    assert argv[-2] == "lima-claude-sandbox-app"
    other = Guest(guest.runner, Instance("x", "Running", Path("/other/claude-sandbox-app")), tmp_path)
    assert other.control_path != guest.control_path
    # ssh adds 17 bytes while it makes the socket; macOS ends at 104.
    assert len(str(Path("/tmp/claude-sandbox-501") / guest.control_path.name)) + 17 < 104


def test_connecting_starts_one_master_with_keepalive(guest: Guest, recorder: Recorder) -> None:
    guest.connect(timeout=45)
    (call,) = recorder.calls
    master = call.argv[call.argv.index("ssh") :]
    assert option(master, "ControlMaster") == option(master, "ControlPersist") == ["yes"]
    assert option(master, "ServerAliveInterval") == ["15"]
    assert {"-f", "-N"} <= set(master) and master[-1] == INSTANCE.ssh_host
    assert call.timeout == 45


def test_a_standing_master_is_used(home: Path, recorder: Recorder) -> None:
    guest = Guest(recorder, INSTANCE, home)  # a short path
    listen(guest.control_path)
    guest.connect()
    assert recorder.calls == []


def test_a_dead_master_s_socket_is_removed_and_a_new_one_started(guest: Guest, recorder: Recorder) -> None:
    guest.control_path.touch()
    guest.connect()
    assert [call.argv[0] for call in recorder.calls] == ["sh"]
    assert not guest.control_path.exists()


def test_disconnecting(guest: Guest, recorder: Recorder) -> None:
    guest.disconnect()
    assert recorder.calls == []
    guest.control_path.touch()
    guest.disconnect()
    assert recorder.argvs()[0][-3:] == ("-O", "exit", INSTANCE.ssh_host) and not guest.control_path.exists()


def test_a_connection_that_lima_shares_is_not_renewed(guest: Guest, recorder: Recorder) -> None:
    """Lima's forwards hang on it; and it is from a boot that was whole by then (ssh-retry.sh)."""
    shared = guest.control_path.with_name("ssh.sock")
    shared.touch()
    guest.control_path.symlink_to(shared)
    guest.renew()
    assert recorder.calls == [] and guest.control_path.is_symlink()
    guest.control_path.unlink()
    guest.control_path.touch()
    guest.renew()
    assert recorder.argvs()[0][-3:] == ("-O", "exit", INSTANCE.ssh_host)


def test_a_master_elsewhere(guest: Guest, tmp_path: Path) -> None:
    assert option(guest.master(tmp_path / "ssh.sock"), "ControlPath") == [str(tmp_path / "ssh.sock")]


def test_a_script_s_answer_is_bounded_and_its_failure_is_data(guest: Guest, recorder: Recorder) -> None:
    recorder.on("ssh", then=Result(3, b"out", b"err"))
    result = guest.run("exit 3", "a b", input=b"in", timeout=7)
    assert result.returncode == 3 and result.stdout == b"out"
    (call,) = recorder.calls
    assert (call.input, call.timeout, call.limit) == (b"in", 7, ssh.OUTPUT_LIMIT)
    assert "-T" in call.argv and shlex.split(call.argv[-1]) == ["sh", "-c", "exit 3", "sh", "a b"]
    guest.run("x")
    assert recorder.calls[-1].input == b""  # never the user's terminal


def test_ssh_s_own_failures_are_errors(guest: Guest, recorder: Recorder) -> None:
    recorder.on("ssh", then=[failed("Connection reset by peer", 255), Result(124)])
    with pytest.raises(GuestConnectionError, match="No ssh connection to claude-sandbox-app") as caught:
        guest.run("true")
    assert "Connection reset by peer" in (caught.value.details or "")
    with pytest.raises(GuestConnectionError) as caught:
        guest.run("true", timeout=5)
    assert "no answer within 5 s" in (caught.value.details or "")
    recorder.on("sh", then=failed("", 1))
    with pytest.raises(GuestConnectionError):
        guest.connect()
