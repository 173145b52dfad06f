"""The hooks server as a process: events, restarts, and guests that misbehave while others go on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from _claude_sandbox.daemon import client as daemon_client
from _claude_sandbox.errors import ClaudeSandboxError
from _claude_sandbox.hooks import client as hooks_client
from _claude_sandbox.hooks import log as hooks_log
from _claude_sandbox.system import daemon, processes
from _claude_sandbox.system import program as system_program
from tests.support.box import ROOT, short_directory
from tests.support.hookplay import PATIENCE, Guest, Play, connect, read_answer, request, wait_for


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """A world without a server; whatever runs at the end is stopped."""
    root = short_directory()
    for name, where in (("HOME", "h"), ("XDG_RUNTIME_DIR", "r"), ("LIMA_HOME", "l")):
        (root / where).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(root / where))
    for name in (
        "XDG_STATE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "DISPLAY",
        "DBUS_SESSION_BUS_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    try:
        yield Play(root)
    finally:
        daemon_client.stop()
        shutil.rmtree(root)


@pytest.fixture
def up(play: Play) -> Play:
    daemon_client.ensure()
    return play


def worker() -> int:
    """The process id of the server itself."""
    pid = daemon_client.ask("GET", "/state")["server"]["pid"]
    assert isinstance(pid, int)
    return pid


def parent() -> int:
    pid = daemon.read_pid_file(daemon_client.daemon())["pid"]
    assert isinstance(pid, int)
    return pid


# -- events ----------------------------------------------------------------------------------------


def test_an_event_changes_the_session_and_is_told(up: Play) -> None:
    app = up.sandbox()
    with up.reader() as read:
        assert app.post(app.line("UserPromptSubmit"), app.line("PermissionRequest.Bash")) == (
            200,
            {"last": "00ff00ff:2", "dropped": 0},
        )
        told = [read() for _ in range(4)]
    assert [line["type"] for line in told] == ["event", "session", "event", "session"]
    assert told[2]["data"]["detail"] == "touch xx" and told[3]["state"] == "needs_input"
    assert (told[0]["sandbox"], told[0]["project"]) == (app.name, "/p/claude-sandbox-app")
    wait_for(lambda: [s["wants"] for s in hooks_client.session_dicts()] == ["permission"])  # state.json
    with up.reader() as read:
        assert read()["state"] == "needs_input", "a new reader gets the sessions first"


def test_everything_of_it_is_private(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line())
    wait_for((hooks_client.state_directory() / "state.json").exists)
    for place in (
        daemon_client.directory(),
        hooks_client.state_directory(),
        app.socket.parent,
        hooks_client.registrations(),
    ):
        assert place.stat().st_mode & 0o777 == 0o700
    for file in (
        app.socket,
        daemon_client.control_socket(),
        hooks_client.feed_socket(),
        *hooks_client.state_directory().iterdir(),
    ):
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_sandbox_is_known_by_its_socket_and_not_by_what_it_says(up: Play) -> None:
    app, other = up.sandbox(), up.sandbox("claude-sandbox-other")
    other.deliver(other.line("UserPromptSubmit"))
    lie = json.loads(app.line("PermissionRequest.Bash"))
    lie |= {"project": "/p/claude-sandbox-other", "sandbox": other.name, "name": other.name}
    app.deliver(json.dumps(lie).encode())
    assert up.session(other)["state"] == "working"
    assert up.session(app)["state"] == "needs_input"


def test_what_was_taken_before_is_dropped_and_acknowledged(up: Play) -> None:
    app = up.sandbox()
    first, second = app.line("UserPromptSubmit"), app.line("Stop")
    app.deliver(first, second)
    assert app.deliver(first)["last"] == "00ff00ff:2"
    assert app.deliver(second, first)["last"] == "00ff00ff:2"
    assert up.events() == [(app.name, "00ff00ff:1"), (app.name, "00ff00ff:2")]
    app.spool = "11ff11ff"
    assert app.deliver(app.line(number=1))["last"] == "11ff11ff:1"


def test_a_line_that_is_no_event_never_blocks_the_queue(up: Play) -> None:
    app = up.sandbox()
    answer = app.deliver(b"garbage", app.line("UserPromptSubmit"), b'{"id":"00ff00ff:2", oops', b"[" * 1000)
    assert answer == {"last": "00ff00ff:2", "dropped": 3}
    assert up.session(app)["state"] == "working" and up.state()["server"]["dropped"] == 3


def test_the_sessions_of_a_vm_that_stops_end(up: Play) -> None:
    app, other = up.sandbox(), up.sandbox("claude-sandbox-other")
    for guest in (app, other):
        guest.deliver(guest.line("PermissionRequest.Bash"))
    app.stops()
    wait_for(lambda: up.session(app)["state"] == "ended")
    assert up.session(other)["state"] == "needs_input"
    app.boots()
    app.deliver(app.line("UserPromptSubmit", session_id="s2"))
    assert up.session(app, "s2")["state"] == "working" and up.session(app)["state"] == "ended"


def test_of_a_deleted_vm_nothing_is_kept(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line())
    app.stops()
    app.registration.dir.rmdir()
    daemon_client.refresh()
    assert up.session(app) == {} and not app.socket.exists()
    assert list(hooks_client.registrations().iterdir()) == []


def test_the_next_sandbox_of_a_deleted_one_s_name_begins_with_nothing(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line("PermissionRequest.Bash"))
    file = hooks_client.registrations() / f"{app.registration.tag}.json"
    kept = file.read_bytes()
    file.unlink()  # as `delete` does it
    daemon_client.refresh()
    assert up.session(app) == {}
    file.write_bytes(kept)
    daemon_client.refresh()
    assert up.session(app) == {}
    daemon_client.stop()
    daemon_client.ensure()
    assert up.session(app) == {}, "nor after a restart"


def test_a_reply_closes_the_dialog_that_it_answers(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line("PermissionRequest.Bash"))
    body = {"name": "HostReplied", "sandbox": app.name, "session_id": "s1"}
    assert daemon_client.ask("POST", "/inject", {**body, "answers": 99}) == {"ok": False}
    assert daemon_client.ask("POST", "/inject", {**body, "answers": up.session(app)["seq"]}) == {"ok": True}
    assert up.session(app)["state"] == "working"
    with pytest.raises(ClaudeSandboxError):
        daemon_client.ask("POST", "/inject", {"name": "Stop", "sandbox": app.name})


# -- restarts ----------------------------------------------------------------------------------------


@pytest.mark.spec("1.5")
def test_a_killed_server_comes_back_and_nothing_is_lost_or_taken_twice(up: Play) -> None:
    app = up.sandbox()
    sent = [app.line("Stop" if n % 2 else "UserPromptSubmit") for n in range(300)]

    def guest() -> None:
        """As hooks-deliver: what was not acknowledged is sent again."""
        at = 0
        while at < len(sent):
            with contextlib.suppress(OSError):
                status, answer = app.post(*sent[at : at + 7])
                if status == 200:
                    at = int(answer["last"].partition(":")[2])

    deliverer = threading.Thread(target=guest)
    deliverer.start()
    for _ in range(3):
        pid = wait_for(worker)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: worker() != pid)  # noqa: B023 - it is waited for within the loop
    deliverer.join(PATIENCE)
    assert up.events() == [(app.name, f"00ff00ff:{n}") for n in range(1, 301)]
    assert up.session(app)["state"] == "done" and up.state()["seq"] == 300
    assert "the attention worker ended with 137" in up.log()


def test_a_server_without_its_parent_starts_anew(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line("PermissionRequest.Bash"))
    old = parent()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: daemon.running(daemon_client.daemon()) and parent() != old)
    assert wait_for(lambda: up.session(app))["state"] == "needs_input"


@pytest.mark.spec("1.5")
def test_after_a_stop_and_a_start_all_is_known(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line("UserPromptSubmit"), app.line("PermissionRequest.Bash"))
    before = up.session(app)
    assert daemon_client.stop() and not daemon_client.running() and not daemon_client.stop()
    assert hooks_client.session_dicts() == [], "no server: nobody knows"
    daemon_client.ensure()
    assert up.session(app) == before
    assert app.deliver(app.line("Stop", number=2))["last"] == "00ff00ff:2", "still known"
    app.deliver(app.line("Stop"))
    assert up.session(app)["state"] == "done" and up.state()["seq"] == 3


def test_a_vm_that_went_while_no_server_ran_has_no_session(up: Play) -> None:
    app, gone = up.sandbox(), up.sandbox("claude-sandbox-gone")
    for guest in (app, gone):
        guest.deliver(guest.line("PermissionRequest.Bash"))
    daemon_client.stop()
    app.stops()
    (hooks_client.registrations() / f"{gone.registration.tag}.json").unlink()
    daemon_client.ensure()
    assert {up.session(app)["state"], up.session(gone)["state"]} == {"ended"}


def test_a_server_that_stops_right_after_a_vm_has_seen_it_stop(up: Play) -> None:
    """As `stop-all` does it. The VM's next boot has none of the old sessions."""
    app = up.sandbox()
    app.deliver(app.line("PermissionRequest.Bash"))
    app.stops()
    daemon_client.stop()
    app.boots()
    daemon_client.ensure()
    assert up.session(app)["state"] == "ended"


def test_a_server_of_another_version_is_replaced(up: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    old = parent()
    assert not daemon_client.ensure()
    noted = daemon.read_pid_file(daemon_client.daemon())
    daemon_client.daemon().pid_file.write_text(json.dumps({**noted, "version": "0.0.0+00000000"}))
    assert daemon_client.ensure() and parent() != old


def test_two_starts_at_once_make_one_server(play: Play) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from _claude_sandbox.hooks import client; client.ensure()"
    starts = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [start.wait(PATIENCE) for start in starts] == [0] * 4
    mine = [p for p in psutil.process_iter(["cmdline", "environ"]) if _is_ours(p, play.root)]
    assert len(mine) == 3, "a supervisor and two workers"


def _is_ours(process: psutil.Process, root: Path) -> bool:
    words, env = process.info["cmdline"] or [], process.info["environ"] or {}
    return daemon_client.VERB in words and env.get("HOME") == str(root / "h")


def test_a_second_server_by_hand_leaves_the_first_alone(up: Play) -> None:
    old = parent()
    argv = [sys.executable, str(ROOT / "claude_sandbox.py"), daemon_client.VERB]
    refused = subprocess.run([*argv, "--nonsense"], capture_output=True, timeout=PATIENCE, check=False)
    assert refused.returncode == 2 and b"usage: claude-hooks-server" in refused.stderr
    again = subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False)
    assert again.returncode == 0 and b"runs already" in again.stderr and parent() == old


@pytest.mark.parametrize("noted", ["", "[]", '{"pid": 1}', '{"pid": "x"}', "{", None])
def test_a_stale_pid_file_harms_nothing(play: Play, noted: str | None) -> None:
    file = daemon_client.daemon().pid_file
    if noted is None:  # a process id that belongs to somebody else by now
        noted = json.dumps(
            {"pid": os.getpid(), "started": time.time() - 9999, "version": system_program.version()}
        )
    file.write_text(noted)
    assert not daemon_client.running() and not daemon_client.stop()
    assert daemon_client.ensure() and parent() != os.getpid()
    assert daemon_client.stop()


def test_a_process_that_only_has_the_number_gets_no_signal(up: Play) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    # Another server of ours, of another directory say, that got the number: the verb alone is not enough.
    double = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", daemon_client.VERB])
    try:
        file = daemon_client.daemon().pid_file
        noted = json.loads(file.read_text())
        known = processes.identity(bystander.pid)
        assert known is not None
        older = {"pid": double.pid, "started": psutil.Process(double.pid).create_time() - 60}
        for lie in (
            {**noted, "pid": bystander.pid},
            {**noted, **known.to_json()},
            {**noted, "pid": double.pid},
            older,
        ):
            file.write_text(json.dumps(lie))
            with pytest.raises(ClaudeSandboxError, match="does not stop"):
                daemon.stop(daemon_client.daemon(), ask_to_stop=_say_nothing, timeout=0.2)
        assert bystander.poll() is None and double.poll() is None
        file.write_text(json.dumps(noted))
    finally:
        for each in (bystander, double):
            each.kill()
            each.wait()


def _say_nothing() -> None:
    """The control socket does not answer."""


def test_a_server_that_does_not_answer_is_stopped_by_signal(up: Play) -> None:
    os.kill(worker(), signal.SIGSTOP)
    assert daemon.stop(daemon_client.daemon(), ask_to_stop=_say_nothing, timeout=15)
    assert not daemon_client.running()


# -- the disk ----------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_acknowledged_and_later_everything_comes(up: Play) -> None:
    app = up.sandbox()
    app.deliver(app.line("UserPromptSubmit"))
    pid, size = worker(), (hooks_client.state_directory() / hooks_log.NAME).stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    lines = [app.line("PermissionRequest.Bash"), app.line("Stop")]
    status, answer = app.post(*lines)
    assert status == 503 and "last" not in answer
    assert up.session(app)["state"] == "working"
    assert (hooks_client.state_directory() / hooks_log.NAME).stat().st_size == size, (
        "no torn line stands there"
    )
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert app.deliver(*lines)["last"] == "00ff00ff:3"
    assert up.session(app)["state"] == "done" and worker() == pid


# -- abuse -------------------------------------------------------------------------------------------


def half_open(guest: Guest) -> socket.socket:
    return connect(guest.socket)


def slow_head(guest: Guest) -> socket.socket:
    client = connect(guest.socket)
    client.sendall(b"POST /v1/events HTTP/1.1\r\nHost: ")
    return client


def slow_body(guest: Guest) -> socket.socket:
    client = connect(guest.socket)
    client.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
    return client


@pytest.mark.parametrize("stall", [half_open, slow_head, slow_body])
def test_a_guest_that_stalls_hinders_nobody_else(up: Play, stall: Any) -> None:
    bad, good = up.sandbox("claude-sandbox-bad"), up.sandbox()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            with contextlib.suppress(ConnectionError, BlockingIOError):  # ended at once, or too many wait
                stack.enter_context(stall(bad))
        for _ in range(20):
            assert good.post(good.line("UserPromptSubmit"))[0] == 200
        bad.deliver(bad.line("UserPromptSubmit"))  # its own come when its connections have lived their time


def test_a_64_mib_body_is_refused(up: Play) -> None:
    bad, good = up.sandbox("claude-sandbox-bad"), up.sandbox()
    memory = psutil.Process(worker()).memory_info().rss
    block = b"x" * (1 << 20)
    for head in (b"Content-Length: 67108864\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with connect(bad.socket) as client, contextlib.suppress(ConnectionError):
            client.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head)
            for _ in range(64):
                client.sendall(b"100000\r\n" + block + b"\r\n" if b"chunked" in head else block)
                assert good.post(good.line())[0] == 200
            assert read_answer(client)[0] in (0, 413)
    assert psutil.Process(worker()).memory_info().rss - memory < 32 << 20
    assert bad.post(b" " * ((1 << 20) + 1))[0] == 413
    assert bad.post(bad.line())[0] == 200


def test_a_burst_of_2000_events_comes_through_while_others_go_on(up: Play) -> None:
    bad, good = up.sandbox("claude-sandbox-bad"), up.sandbox()
    burst = [bad.line("PostToolUse.Bash" if n % 2 else "UserPromptSubmit") for n in range(2000)]
    done: list[str] = []

    def flood() -> None:
        done.extend(bad.deliver(*burst[at : at + 500])["last"] for at in range(0, 2000, 500))

    thread = threading.Thread(target=flood)
    thread.start()
    while thread.is_alive():
        assert good.post(good.line())[0] == 200
    assert done[-1] == "00ff00ff:2000"
    assert [id for box, id in up.events() if box == bad.name] == [f"00ff00ff:{n}" for n in range(1, 2001)]


def test_a_flood_is_slowed_down_and_others_are_not(up: Play) -> None:
    bad, good = up.sandbox("claude-sandbox-bad"), up.sandbox()
    statuses = [bad.post(b"x\n" * 4000)[0] for _ in range(4)]
    assert statuses[0] == 200 and statuses[-1] == 429
    assert good.post(good.line())[0] == 200
    assert up.log().count(bad.name) < 10, "its log is no way to fill the disk"


def test_of_many_floods_at_once_one_is_worked_on(up: Play) -> None:
    """Each was below the limit when it came: together minutes of work."""
    bad, good = up.sandbox("claude-sandbox-bad"), up.sandbox()
    whole = request("POST", "/v1/events", b"x\n" * 50_000)
    with contextlib.ExitStack() as stack:
        floods = [stack.enter_context(connect(bad.socket)) for _ in range(20)]
        for each in floods:
            each.sendall(whole[:-1])
        for each in floods:
            each.sendall(whole[-1:])
        assert good.post(good.line())[0] == 200
        statuses = [read_answer(each)[0] for each in floods]
    assert statuses.count(200) == 1 and statuses.count(429) == 19


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100_000, b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50_000, b"POST /v1/events HTTP/1.1\r\n" + b"A: b\r\n" * 5000,
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"\x16\x03\x01" + b"x" * 500,
        b"POST " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        request("POST", "/v1/events", b"{}", "Content-Encoding: gzip"), request("GET", "/v1/events"),
        request("POST", "/stop"), request("POST", "/../../control.sock"), request("BREW", "/v1/events"),
    ],
)  # fmt: skip
def test_bad_http_is_refused(up: Play, data: bytes) -> None:
    app = up.sandbox()
    pid = worker()
    with connect(app.socket) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ValueError):
            status, _ = read_answer(client)
            assert status == 0 or 400 <= status < 500
    assert app.post(app.line())[0] == 200 and worker() == pid


def test_what_a_guest_writes_steers_no_terminal(up: Play) -> None:
    app = up.sandbox()
    evil = 'a\x1b]0;t\x07\u202e<b>x</b>" & do shell script "id"\n\x9b2J'
    app.deliver(app.line("Stop", last_assistant_message=evil, cwd=evil), b'{"id":"00ff00ff:9",\x1b[2J')
    session = up.session(app)
    assert session["message"] == 'a]0;t<b>x</b>" & do shell script "id" 2J'
    kept = up.log() + "".join(
        file.read_text() for file in hooks_log.files(hooks_client.state_directory()) if file.exists()
    )
    assert kept.replace("\n", "").isprintable()


def test_a_guest_cannot_fill_the_memory_with_sessions(up: Play) -> None:
    app, other = up.sandbox(), up.sandbox("claude-sandbox-other")
    other.deliver(other.line("PermissionRequest.Bash"))
    app.deliver(*(app.line("UserPromptSubmit", session_id=f"s{n}") for n in range(500)))
    mine = [s for s in up.state()["sessions"] if s["sandbox"] == app.name]
    assert len(mine) <= 64 and "s499" in {s["session_id"] for s in mine}
    assert up.session(other)["state"] == "needs_input"


def test_a_reader_that_does_not_read_is_dropped(up: Play) -> None:
    app = up.sandbox()
    with connect(hooks_client.feed_socket()) as lazy, up.reader() as read:
        text = "x" * 900
        for _ in range(8):
            app.deliver(*(app.line("Stop", last_assistant_message=text) for _ in range(300)))
            for _ in range(600):
                read()
        data = b"".join(iter(lambda: _received(lazy), b""))
        assert len(data) < 8 << 20, "its connection has ended"


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 16)
    except ConnectionError:
        return b""
