"""Where a host directory appears in the guest, and what is never shared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.errors import RefusedError
from _claude_sandbox.system import program
from _claude_sandbox.vm import mounts

HOMES = (Path("/home/me"), Path("/home/me.guest"))
plain = st.text("abcXYZ019._/@+-", min_size=1, max_size=30)


@pytest.mark.parametrize(
    "path",
    ["/home/me/app", "/root/app", "/tmp/x", "/srv/a@b+c_d-e.f", "/home/me/Grüße", "/home/me/日本語/プロジェクト",
     "/mnt/data", "/opt/x", "/var/www/site", "/home/other", "/Users/me/app", "/mnt/limasomething", "/runner/work"],
)  # fmt: skip
def test_the_same_path_where_it_works(path: str) -> None:
    assert mounts.mount_point(Path(path), HOMES) == Path(path)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/home", "/home/me", "/home/me.guest", "/root", "/tmp", "/usr", "/opt", "/srv", "/mnt", "/var", "/media",
        "/proc/1", "/sys/x", "/dev/shm/app", "/run/user/1000/app", "/boot/x", "/etc/app", "/usr/src/app", "/lib/x",
        "/var/lib/app", "/var/run/app", "/mnt/lima-cidata", "/mnt/lima-x/app", "/mnt/claude-sandbox/settings",
    ],
)  # fmt: skip
def test_places_that_the_guest_needs(path: str) -> None:
    assert mounts.mount_point(Path(path), HOMES) == mounts.FALLBACK


@pytest.mark.parametrize(
    "bad", [*" :'\"[]{}#\\,$`*?!&;|<>()~=%^", "\t", "\u00a0", "\u200d", "\u202e", "\udcff"]
)
def test_characters_that_lima_cannot_carry_into_the_guest(bad: str) -> None:
    assert mounts.mount_point(Path(f"/home/me/a{bad}b"), HOMES) == mounts.FALLBACK


@given(plain)
def test_a_mount_point_is_a_plain_absolute_path(text: str) -> None:
    point = mounts.mount_point(Path("/home/me/p") / text.lstrip("/"), HOMES)
    assert point.is_absolute() and str(point).isascii()


@pytest.mark.spec("4.8")
@given(st.text(max_size=20).filter(lambda t: "\0" not in t))
def test_no_character_that_breaks_cloud_init_gets_through(text: str) -> None:
    point = str(mounts.mount_point(Path("/home/me/p" + text.replace("/", "")), HOMES))
    assert not set(point) & set(" \t\n:'\"[]{}#\\,$`") and point.isprintable()


@pytest.mark.parametrize(
    "name", ["a b", "a:b", "{{x}}", "a#b", "Grüße", "'", '"', "a\u00a0b", "a\u200db", "$(id)"]
)
def test_what_the_host_side_can_carry(name: str) -> None:
    mounts.check_carriable(Path("/p") / name)


@pytest.mark.parametrize(
    ("name", "what"),
    [("a,b", "a comma"), ("a\\b", "a backslash"), ("a\nb", "control"), ("a\x7fb", "control"), ("a\udcffb", "UTF-8"),
     ("a\ue000b", "control"), ("a\x85b", "control")],
)  # fmt: skip
def test_what_it_cannot(name: str, what: str) -> None:
    with pytest.raises(RefusedError, match=what) as caught:
        mounts.check_carriable(Path("/p") / name)
    assert caught.value.brief.isprintable()  # the terminal does not get what the name is made of


@given(st.text(max_size=20).filter(lambda t: "\0" not in t))
def test_carriable_is_decided_for_any_name(text: str) -> None:
    bad = any(c in ",\\" or ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in text)
    try:
        mounts.check_carriable(Path("/p") / text.replace("/", ""))
    except RefusedError:
        return
    assert not bad


SECRETS = (".lima", ".ssh", ".claude-sandbox/.claude", ".claude-sandbox", ".local/state/claude-sandbox",
           ".local/share/claude-sandbox", ".config/claude-sandbox")  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("relation", ["itself", "below", "above"])
@pytest.mark.parametrize("writable", [True, False])
def test_the_keys_to_the_host_are_never_shared(
    home: Path, monkeypatch: pytest.MonkeyPatch, secret: str, relation: str, writable: bool
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    place = home / secret
    place.mkdir(parents=True)
    path = {"itself": place, "below": place / "deep" / "er", "above": place.parent}[relation]
    with pytest.raises(RefusedError, match="cannot be shared with a sandbox"):
        mounts.check_shareable(path, home / ".claude-sandbox" / ".claude", writable)


def test_an_ordinary_project_is_shared(home: Path) -> None:
    for path in (home / "projects" / "app", home / ".limabean", home / ".sshfs", Path("/srv/app")):
        mounts.check_shareable(path, home / ".claude-sandbox" / ".claude", True)


def test_own_settings_and_lima_s_directories_are_meant_wherever_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMA_HOME", str(tmp_path / "vms"))
    (tmp_path / "real").mkdir()
    (tmp_path / "settings").symlink_to("real")
    cases = {tmp_path / "vms" / "x": "Lima's directory", tmp_path / "real" / "x": "the settings directory"}
    for path, words in cases.items():
        with pytest.raises(RefusedError, match=f"lies in {words}"):
            mounts.check_shareable(path, tmp_path / "settings", True)


def test_the_running_checkout_is_not_a_project(home: Path) -> None:
    checkout = program.PACKAGE.parent
    for path in (checkout, checkout / "docs", checkout.parent):
        with pytest.raises(RefusedError, match="the running claude-sandbox"):
            mounts.check_shareable(path, home / "settings", True)


def test_the_document_has_the_same_list() -> None:
    """`python -c 'from _claude_sandbox.vm import mounts; print(mounts.table())'` prints it."""
    document = (program.PACKAGE.parent / "docs" / "security.md").read_text(encoding="utf-8")
    assert mounts.table() in document


@pytest.mark.parametrize(
    "text", [text for row in mounts.LIST for text in row.shown if text.startswith("~/") and not row.above]
)
def test_every_place_of_the_list_is_refused_whether_it_is_there_or_not(home: Path, text: str) -> None:
    place = home / text[2:]
    for path in (place, place / "deep" / "er", place.parent):
        for writable in (True, False):
            with pytest.raises(RefusedError, match="cannot be shared with a sandbox"):
                mounts.check_shareable(path, None, writable)


@pytest.mark.parametrize(
    "variable", ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "CLAUDE_CONFIG_DIR", "XDG_RUNTIME_DIR"]
)
def test_places_that_a_variable_moves(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "moved"))
    below = {"XDG_CONFIG_HOME": "autostart", "XDG_DATA_HOME": "applications"}.get(variable, "x")
    with pytest.raises(RefusedError):
        mounts.check_shareable(tmp_path / "moved" / below, None, False)


def test_the_same_directory_under_another_name_is_the_same(home: Path, tmp_path: Path) -> None:
    """By device and inode, as a bind mount or another spelling on macOS shows it; a symlink that is taken for a
    resolved path has them too."""
    (home / ".ssh" / "deep").mkdir(parents=True)
    (home / ".ssh" / "deep" / "key").mkdir()
    bound = tmp_path / "bound"
    bound.symlink_to(home / ".ssh")
    assert mounts.relation(bound / "deep", home / ".ssh") == mounts.LIES_IN
    assert mounts.relation(bound, home / ".ssh" / "deep" / "key") == mounts.CONTAINS
    with pytest.raises(RefusedError, match="your keys"):
        mounts.check_shareable(bound, None, False)
    assert mounts.relation(home / ".ssh" / "x", home / "." / ".ssh") == mounts.LIES_IN
    assert mounts.relation(home, home / ".ssh") == mounts.CONTAINS
    assert mounts.relation(tmp_path, home / ".ssh") in (None, mounts.CONTAINS)


def test_what_only_contains_the_place_of_all_is_refused(home: Path) -> None:
    for path in (Path("/tmp"), Path("/var"), Path("/etc"), Path("/usr")):
        with pytest.raises(RefusedError):
            mounts.check_shareable(path, None, True)
    mounts.check_shareable(Path("/tmp/app"), None, True)
    mounts.check_shareable(Path("/usr/src/app"), None, True)


def test_a_directory_on_path(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools" / "bin"
    tools.mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tools}:relative::/usr/bin")
    for path in (tools, tools / "below", tools.parent):
        with pytest.raises(RefusedError, match="PATH"):
            mounts.check_shareable(path, None, True)
        mounts.check_shareable(path, None, False)
    assert mounts.check_shareable(tools.parent, None, True, project=True) == [tools]
    with pytest.raises(RefusedError, match="PATH"):
        mounts.check_shareable(tools, None, True, project=True)
    monkeypatch.setenv("PATH", f"{home}:/:/usr/bin")  # every project would lie in these
    monkeypatch.setenv("ZDOTDIR", str(home))
    assert mounts.check_shareable(home / "app", None, True, project=True) == []


def test_what_may_be_read_as_settings(home: Path, tmp_path: Path) -> None:
    for name in (".claude", ".claude-sandbox/.claude", ".claude-sandbox/other", "settings", ".config/other"):
        mounts.check_readable(home / name)
    (home / ".claude").mkdir()
    mounts.check_readable(home / ".claude")
    for path in (Path("/tmp"), Path("/var/tmp")):
        with pytest.raises(RefusedError, match="as the settings directory"):
            mounts.check_readable(path)
    for name in ("", ".ssh", ".lima", ".claude/projects", ".claude-sandbox", ".gnupg/x", ".config"):
        with pytest.raises(RefusedError, match="as the settings directory"):
            mounts.check_readable(home / name)


def test_parents_are_opened_from_the_top() -> None:
    points = (Path("/root/a/b"), Path("/srv/x"), Path("/mnt/project"))
    parents = mounts.guest_parents(points)
    assert set(parents) == {Path("/root"), Path("/root/a"), Path("/srv"), Path("/mnt")}
    assert parents.index(Path("/root")) < parents.index(Path("/root/a"))
