"""Where a Claude runs, whether somebody looks at it, and what is typed into its pane: with a real tmux."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from _claude_sandbox.errors import ClaudeSandboxError, RefusedError, SandboxNotFoundError
from _claude_sandbox.hooks.attention import Session
from _claude_sandbox.system import processes
from _claude_sandbox.system.processes import Identity
from _claude_sandbox.system.run import LocalRunner
from _claude_sandbox.terminals import focus as terminals_focus
from _claude_sandbox.terminals import records as terminals_records
from _claude_sandbox.terminals import reply as terminals_reply
from _claude_sandbox.terminals.records import Record
from tests.support.recording import Recorder
from tests.support.tmux_server import UUID, Server, server, until

__all__ = ["server"]
RUNNER = LocalRunner()
SCREENS = Path(__file__).parent / "screens"


def session(record: Record, state: str = "done", seq: int = 7, **changes: object) -> Session:
    values = {"since_ns": time.time_ns() - 10**10, "message": "", "seq": seq, **changes}
    return Session("s", record.sandbox, record.project, record.uuid, state, **values)  # type: ignore[arg-type]


def send(
    record: Record, text: str, state: str = "done", now: Session | None = None
) -> terminals_reply.Replied:
    asked = session(record, state)
    return terminals_reply.reply(asked, text, RUNNER, now=lambda: now or asked)


def typed(log: Path) -> bytes:
    return log.read_bytes() if log.exists() else b""


# -- records ---------------------------------------------------------------------------------------


def test_a_launch_leaves_a_record_while_it_runs(
    home: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.delenv("TMUX", raising=False)
    told: list[str] = []
    with terminals_records.recorded(
        recorder, uuid=UUID.format(1), sandbox="vm", project="/p", warn=told.append
    ) as started:
        assert terminals_records.everything() == []
        started(os.getpid())
        [record] = terminals_records.everything()
        assert (record.sandbox, record.project, record.tmux) == ("vm", "/p", None)
        assert record.desktop["DISPLAY"] == ":7" and "SECRET_TOKEN" not in record.desktop
        assert terminals_records.of(record.uuid, "vm") == record
        assert terminals_records.of(record.uuid, "another") is None  # a guest names what it likes
        [file] = terminals_records.directory().iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
    assert (
        terminals_records.everything() == []
        and not told
        and not list(terminals_records.directory().iterdir())
    )


def test_a_record_that_cannot_be_written_is_a_warning(home: Path, recorder: Recorder) -> None:
    told: list[str] = []
    with terminals_records.recorded(
        recorder, uuid="../x", sandbox="vm", project="/p", warn=told.append
    ) as started:
        started(os.getpid())
    assert len(told) == 1 and terminals_records.read("../x") is None


def test_what_a_killed_launch_left_is_known_as_stale_and_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen(["sleep", "60"])
    known = processes.identity(gone.pid)
    assert known is not None
    terminals_records.write(Record(UUID.format(1), "vm", "/p", None, known, ""))
    terminals_records.write(
        Record(UUID.format(2), "vm", "/p", None, Identity(os.getpid(), "", 1), "")
    )  # another's number
    (terminals_records.directory() / f"{UUID.format(3)}.json").write_text("{")
    assert [record.uuid for record in terminals_records.everything()] == [UUID.format(1)]
    true = psutil.Process.create_time
    for step in (-3600.0, 3.0, 120.0):  # the host's clock is put right
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, step=step: true(self) + step)
        assert terminals_records.of(UUID.format(1), "vm") and len(terminals_records.everything()) == 1
    gone.kill()
    gone.wait()
    assert terminals_records.everything() == [] and list(terminals_records.directory().iterdir()) == []


# -- does somebody look at it ----------------------------------------------------------------------


def test_a_pane_is_looked_at_when_a_client_shows_it_and_keys_come(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = server.pane("cat")
    record = server.record(other)
    assert not terminals_records.looked_at(record, RUNNER)  # nobody is attached
    server.attach()
    assert not terminals_records.looked_at(record, RUNNER)  # its window is not the one on show
    server.tmux("select-window", "-t", other)
    assert terminals_records.looked_at(record, RUNNER)
    monkeypatch.setattr(terminals_records, "LOOKING", -1)  # no key for long: tmux says `focused` all the same
    assert not terminals_records.looked_at(record, RUNNER)


def test_with_focus_events_the_focus_counts(server: Server) -> None:
    pane = server.pane("cat")
    record = server.record(pane)
    server.tmux("set-option", "-s", "focus-events", "on")
    server.tmux("select-window", "-t", pane)
    terminal = server.attach()
    terminal.type(b"\x1b[O")
    until(lambda: not terminals_records.looked_at(record, RUNNER))
    terminal.type(b"\x1b[I")
    until(lambda: terminals_records.looked_at(record, RUNNER))


def test_without_tmux_the_terminal_s_last_key_counts(home: Path) -> None:
    import pty

    master, slave = pty.openpty()
    record = Record(UUID.format(1), "vm", "/p", None, Identity(os.getpid(), "", 0), os.ttyname(slave))
    now = time.time()
    os.utime(record.tty, (now, now))
    assert terminals_records.looked_at(record, RUNNER)
    os.utime(record.tty, (now - 600, now))
    assert not terminals_records.looked_at(record, RUNNER)
    os.close(master)
    os.close(slave)
    assert not terminals_records.looked_at(
        Record(UUID.format(1), "vm", "/p", None, Identity(1, "", 0), ""), RUNNER
    )


# -- going there -----------------------------------------------------------------------------------


def test_a_click_shows_the_pane_on_the_attached_terminal(server: Server) -> None:
    server.attach()
    record = server.record(server.pane("cat"))
    brought = terminals_focus.bring(record, RUNNER)
    assert brought.shown
    assert server.tmux("list-clients", "-F", "#{pane_id}") == record.tmux.pane  # type: ignore[union-attr]


def test_a_client_of_another_session_is_switched(server: Server) -> None:
    server.tmux("new-session", "-d", "-s", "claude-sandbox-app-99", "cat")
    pane = server.tmux("display-message", "-p", "-t", "claude-sandbox-app-99:", "#{pane_id}")
    server.attach("main")
    assert terminals_focus.bring(server.record(pane), RUNNER).shown
    assert server.tmux("list-clients", "-F", "#{session_name} #{pane_id}") == f"claude-sandbox-app-99 {pane}"


def test_with_no_terminal_attached_the_way_there_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    brought = terminals_focus.bring(server.record(server.pane("cat")), RUNNER)
    assert not brought.shown and brought.hint == f"Attach with: tmux -S {server.socket} attach -t main"


def test_a_pane_that_is_gone(server: Server) -> None:
    pane = server.pane("cat")
    record = server.record(pane)
    server.tmux("kill-pane", "-t", pane)
    assert terminals_focus.bring(record, RUNNER) == terminals_focus.Brought(
        False, hint="Its tmux pane is gone."
    )


def test_a_window_is_raised_by_its_number(recorder: Recorder) -> None:
    record = Record(
        UUID.format(1), "vm", "/p", None, Identity(1, "", 0), "", {"WINDOWID": "12345", "DISPLAY": ":1"}
    )
    assert terminals_focus.bring(record, recorder).raised
    [call] = recorder.calls
    assert call.argv == ("wmctrl", "-i", "-a", "0x3039") and call.command.env["DISPLAY"] == ":1"
    for odd in ({"WINDOWID": "-1; id", "DISPLAY": ":1"}, {"WINDOWID": "5"}, {}):
        assert not terminals_focus.bring(
            Record(UUID.format(1), "vm", "/p", None, Identity(1, "", 0), "", odd), recorder
        ).raised
    assert len(recorder.calls) == 1


# -- answering -------------------------------------------------------------------------------------


def test_a_text_is_pasted_whole_and_sent(server: Server) -> None:
    pane, log = server.claude(SCREENS / "prompt.txt")
    text = "first $(id) 'line'\n\tsecond; `x` ünï 🎉\x1b[201~\x03 -"
    sent = send(server.record(pane), text)
    assert (sent.kind, sent.seq) == ("text", 7)
    expected = "first $(id) 'line'\n\tsecond; `x` ünï 🎉[201~ -"
    until(lambda: typed(log).endswith(b"\r"))
    assert typed(log) == b"\x1b[200~" + expected.encode() + b"\x1b[201~\r"
    assert server.tmux("list-buffers") == ""  # nothing of it stays


def test_while_the_user_scrolls_it_reaches_claude_all_the_same(server: Server) -> None:
    pane, log = server.claude(SCREENS / "prompt.txt")
    server.tmux("copy-mode", "-t", pane)
    send(server.record(pane), "hello")
    until(lambda: typed(log).endswith(b"\r"))
    assert typed(log) == b"\x1b[200~hello\x1b[201~\r"


@pytest.mark.parametrize(("name", "text", "key"), [("permission", "no", b"4"), ("question", "Blue", b"2")])
def test_an_open_dialog_takes_its_choices_as_a_key(server: Server, name: str, text: str, key: bytes) -> None:
    pane, log = server.claude(SCREENS / f"{name}.txt")
    record = server.record(pane)
    with pytest.raises(RefusedError, match="does not offer that"):
        send(record, "something else", "needs_input")
    assert send(record, text, "needs_input").kind == "choice"
    until(lambda: typed(log))
    time.sleep(0.2)
    assert typed(log) == key  # neither paste nor Enter


def refused(record: Record, why: str, text: str = "rm -rf /", **keywords: object) -> None:
    with pytest.raises(ClaudeSandboxError, match=why):
        send(record, text, **keywords)  # type: ignore[arg-type]


def test_what_is_no_longer_asked_is_not_answered(server: Server) -> None:
    pane, log = server.claude(SCREENS / "permission.txt")
    record = server.record(pane)
    refused(record, "no longer asks", "yes", state="needs_input", now=session(record, "needs_input", seq=8))
    refused(record, "no longer asks", "yes", state="needs_input", now=session(record, "working"))
    refused(record, "is at work", "yes", state="working")
    refused(record, "has ended", "yes", state="ended")
    refused(record, "no text", "  \x1b ")
    assert typed(log) == b""


def test_several_answers_are_left_to_claude_s_screen(server: Server) -> None:
    pane, log = server.claude(SCREENS / "several.txt")
    refused(server.record(pane), "Several answers", "1", state="needs_input")
    assert typed(log) == b""


def test_shell_mode_and_a_draft_are_left_alone(server: Server) -> None:
    pane, log = server.claude(SCREENS / "bash.txt")
    refused(server.record(pane), "no prompt")
    other, second = server.claude(SCREENS / "prompt.txt", "9")
    refused(server.record(other), "typed at Claude's prompt")
    assert typed(log) == typed(second) == b""


def test_the_user_s_own_shell_never_gets_it(server: Server) -> None:
    """The pane's foreground process must be the recorded ssh itself."""
    log = server.directory / "ran"
    pane = server.pane("bash", "--norc", "-i")
    until(
        lambda: (
            "$" in server.tmux("capture-pane", "-p", "-t", pane)
            or "#" in server.tmux("capture-pane", "-p", "-t", pane)
        )
    )
    server.tmux("send-keys", "-t", pane, f"sleep 600 & echo $! > {log}", "Enter")
    until(lambda: typed(log).strip())
    refused(server.record(pane, int(typed(log))), "another program has the keyboard")  # in the background
    refused(server.record(pane, os.getpid()), "another program has the keyboard")  # elsewhere
    server.tmux("send-keys", "-t", pane, f"sh -c 'echo $$ > {log}.2; exec sleep 600'", "Enter")
    second = Path(f"{log}.2")
    until(lambda: typed(second).strip())
    record = server.record(pane, int(typed(second)))
    found = terminals_records.server(record, RUNNER)
    assert found and terminals_records.in_foreground(record, found[1], RUNNER)
    assert not terminals_records.in_foreground(record, dataclasses.replace(found[1], tty="/dev/tty"), RUNNER)
    if sys.platform == "linux":  # where there may be no ps (a small Debian); macOS has no /proc
        assert terminals_records.in_foreground(record, found[1], Recorder())
    refused(record, "shows no prompt")
    server.tmux("send-keys", "-t", pane, "C-c", "")
    until(lambda: not terminals_records.alive(record))
    with pytest.raises(SandboxNotFoundError):
        send(record, "rm -rf /")
    assert "rm -rf" not in server.tmux("capture-pane", "-p", "-t", pane)


def test_without_tmux_it_is_said_what_to_do(home: Path) -> None:
    record = Record(UUID.format(1), "vm", "/p", None, Identity(os.getpid(), "", 0), "/dev/pts/9")
    me = processes.identity(os.getpid())
    assert me is not None
    terminals_records.write(Record(record.uuid, "vm", "/p", None, me, record.tty))
    refused(record, "/dev/pts/9 without tmux")
    terminals_records.directory().joinpath(f"{record.uuid}.json").unlink()
    with pytest.raises(SandboxNotFoundError, match="No terminal of this host"):
        send(record, "x")


def test_another_tmux_server_in_the_old_one_s_place(server: Server) -> None:
    pane, log = server.claude(SCREENS / "prompt.txt")
    record = server.record(pane)
    assert record.tmux is not None
    terminals_records.write(dataclasses.replace(record, tmux=dataclasses.replace(record.tmux, server_pid=1)))
    refused(record, "pane of .* is gone")
    assert typed(log) == b""
