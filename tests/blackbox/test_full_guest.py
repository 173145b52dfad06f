"""A guest whose disk is full, or that lacks a program, still gives a session: only there can its user fix it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.box import Box

APP = "claude-sandbox-app"
NO_TAR = "#!/bin/sh\necho 'sh: 1: exec: tar: not found' >&2\nexit 127\n"
# As on a full disk: what is only read works.
FULL = """#!/bin/sh
case $* in *x*f*) echo "tar: CLAUDE.md: Cannot write: No space left on device" >&2; exit 2 ;; esac
exec /bin/tar "$@"
"""


@pytest.fixture
def made(ready: Box) -> Box:
    settings = ready.home / ".claude-sandbox" / ".claude"
    settings.mkdir(parents=True)
    (settings / "CLAUDE.md").write_text("be brief\n")
    assert (ended := ready.run("create")).code == 0, ended.text
    return ready


def spoil(box: Box, tar: str) -> dict[str, str | None]:
    """Environment in which the guest has this `tar`."""
    shims = box.root / "shims"
    shims.mkdir(exist_ok=True)
    (shims / "tar").write_text(tar)
    (shims / "tar").chmod(0o755)
    return {"FAKE_GUEST_SYSTEM_PATH": f"{shims}:{box.env['FAKE_GUEST_SYSTEM_PATH']}"}


def in_guest(box: Box) -> Path:
    return box.guest(APP) / "home" / ".claude" / "CLAUDE.md"


@pytest.mark.spec("1.12")
@pytest.mark.parametrize(("tar", "why"), [(NO_TAR, "tar: not found"), (FULL, "No space left on device")])
def test_a_shell_and_claude_go_on_with_a_warning(made: Box, tar: str, why: str) -> None:
    env = spoil(made, tar)
    for _ in range(2):  # no note is left that would hide the warning from the next one
        ended = made.run("shell", "--", "sh", "-c", "echo here; exit 7", env=env)
        assert (ended.code, ended.out) == (7, "here\n")
        assert ended.err.count("Nothing was brought into ~/.claude") == 1
        assert why in ended.err and "df -h" in ended.err
    typed = made.run("shell", env=env, input="echo typed; exit 3\n")
    assert (typed.code, typed.out) == (3, "typed\n") and "Warning: Nothing was brought" in typed.err
    claude = made.run(env=env)
    assert claude.code == 0 and "Warning: Nothing was brought" in claude.err
    assert len(made.claude_runs(APP)) == 1 and not in_guest(made).exists()
    healed = made.run("shell", "--", "true")  # there is room again
    assert healed.code == 0 and "Nothing was brought" not in healed.err
    assert in_guest(made).read_text() == "be brief\n"


def test_a_warm_shell_does_not_need_the_disk(made: Box) -> None:
    for _ in range(2):
        assert made.run("shell", "--", "true").code == 0
    ended = made.run("shell", "--", "echo", "here", env=spoil(made, NO_TAR))
    assert (ended.code, ended.out) == (0, "here\n")


def test_a_stopped_one_is_started_and_entered(made: Box) -> None:
    assert made.run("stop").code == 0
    ended = made.run("shell", "--", "echo", "here", env=spoil(made, NO_TAR))
    assert (ended.code, ended.out) == (0, "here\n") and "Nothing was brought" in ended.err


def test_settings_diff_says_what_is_wrong(made: Box) -> None:
    ended = made.run("settings", "diff", env=spoil(made, NO_TAR))
    assert ended.code == 1 and "did not answer" in ended.err and "claude-sandbox shell -- df -h" in ended.err


def test_hashes_that_were_cut_off_are_made_again(made: Box) -> None:
    """Else the guest's own files would count as removed there until they change."""
    assert made.run("shell", "--", "true").code == 0
    (in_guest(made).parent / "notes.md").write_text("mine\n")
    env = spoil(made, FULL)
    (made.root / "shims" / "sha256sum").write_text("#!/bin/sh\necho 'write error' >&2\nexit 1\n")
    (made.root / "shims" / "sha256sum").chmod(0o755)
    made.run("settings", "diff", env=env)
    healed = made.run("settings", "diff")
    assert "notes.md: added in the sandbox" in healed.out and "CLAUDE.md" not in healed.out, healed.text
