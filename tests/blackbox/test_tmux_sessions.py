"""Which tmux session belongs to which sandbox, and what a launch leaves behind (spec 6.2), with a real tmux."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.box import Box

APP = "claude-sandbox-app"


@pytest.fixture
def made(ready: Box) -> Box:
    """A box in which the project `app` has a running sandbox."""
    ended = ready.run("create")
    assert ended.code == 0, ended.text
    return ready


def ran(box: Box) -> list[str]:
    """Claude processes begun in `app` (they note themselves before they sleep)."""
    log = box.guest(APP) / "claude.log"
    return [line for line in log.read_text().splitlines() if line == "end"] if log.exists() else []


def sessions(box: Box) -> list[str]:
    done = subprocess.run(
        [str(box.bin / "tmux"), "list-sessions", "-F", "#{session_name}"], env=box.env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.spec("6.2")
def test_another_project_s_session_is_not_ours_by_its_name(made: Box) -> None:
    """`app-2` renames the user's session to `claude-sandbox-app-2`: for `app` that looks like its own of process 2."""
    made.with_tmux()
    assert made.run("create", cwd=made.project("app-2")).code == 0
    for name in (APP, f"{APP}-2"):
        (made.guest(name) / "claude.sleep").write_text("30")
    command = " ".join(made.argv())
    subprocess.run(
        [str(made.bin / "tmux"), "new-session", "-d", "-s", "work", "-c", str(made.project("app-2")), command],
        env=made.env, check=True,
    )  # fmt: skip
    until(lambda: sessions(made) == [f"{APP}-2"] and made.claude_runs(f"{APP}-2") != [])
    ended = made.tty(talk=[("fake claude in", "\x02d")])
    assert ended.code == 0 and len(ran(made)) == 1, "it has a Claude of its own"
    assert len(sessions(made)) == 2
    (own,) = (name for name in sessions(made) if name != f"{APP}-2")
    made.tty(talk=[("fake claude in", "\x02d")])
    assert len(ran(made)) == 1, "to which it comes back"
    rename = [str(made.bin / "tmux"), "rename-session", "-t", f"={own}", "my-name"]
    subprocess.run(rename, env=made.env, check=True)
    made.tty(talk=[("fake claude in", "\x02d")])
    assert len(ran(made)) == 1 and "my-name" in sessions(made), "whatever the user calls it"


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def test_a_session_of_the_last_release_is_ours_by_its_record(made: Box) -> None:
    made.with_tmux()
    (made.guest(APP) / "claude.sleep").write_text("30")
    made.tty(talk=[("fake claude in", "\x02d")])
    (session,) = sessions(made)
    unmark = [str(made.bin / "tmux"), "set-option", "-u", "-t", f"={session}:", "@claude-sandbox"]
    subprocess.run(unmark, env=made.env, check=True)
    made.tty(talk=[("fake claude in", "\x02d")])
    assert sessions(made) == [session] and len(ran(made)) == 1
    for record in made.runtime.rglob("sessions/*.json"):
        record.unlink()
    made.tty(talk=[("fake claude in", "\x02d")])
    assert len(sessions(made)) == 2, "without both it is anybody's"


def test_a_launch_removes_the_login_that_a_killed_one_left(made: Box) -> None:
    """A session's file holds the credential; a launch that was killed never had it read."""
    where = made.runtime_dir()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    left, future, fresh = (where / f"{APP}-{n}.session" for n in (1, 2, 3))
    for file, age in ((left, 400), (future, -400), (fresh, 10)):
        file.write_text('{"env": {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-secret"}}')
        os.utime(file, (time.time() - age,) * 2)
    assert made.run().code == 0
    assert not left.exists() and not future.exists(), "older than five minutes, or the clock has stepped"
    assert fresh.exists(), "its launch may be about to read it"
