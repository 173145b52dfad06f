"""Bringing the guest's ~/.claude up to date, three-way, and back (spec 5.1, 5.2, 5.4, 3.3).

The guest's scripts run for real, on this host, in a home of their own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.claude_home import guest_state, host_tree, three_way
from _claude_sandbox.claude_home import pull as claude_home_pull
from _claude_sandbox.claude_home import push as claude_home_push
from _claude_sandbox.claude_home.first_run import GitIdentity
from _claude_sandbox.claude_home.push import UpdateReport
from _claude_sandbox.claude_home.three_way import FileState, Manifest
from _claude_sandbox.credentials.exchange import Collected
from _claude_sandbox.credentials.select import TokenLogin
from _claude_sandbox.credentials.variables import Variable
from _claude_sandbox.errors import ClaudeSandboxError, RefusedError, UsageError
from _claude_sandbox.hooks import guest_setup as hooks_guest_setup
from _claude_sandbox.system.run import Result
from tests.support.box import need

# -- the plan --------------------------------------------------------------------------------------

paths_ = st.sampled_from(["a", "b", "hooks/c"])
states = st.dictionaries(
    paths_, st.builds(FileState, st.sampled_from(["1" * 64, "2" * 64, "3" * 64]), st.booleans())
)


def carry_out(
    plan: three_way.SyncPlan, host: three_way.States, guest: three_way.States
) -> dict[str, FileState]:
    after = {path: state for path, state in guest.items() if path not in plan.remove}
    return after | {path: host[path] for path in plan.put}


@pytest.mark.spec("5.2")
@given(states, states, states)
def test_three_way(base: three_way.States, host: three_way.States, guest: three_way.States) -> None:
    plan = three_way.plan_sync(base, host, guest)
    after = carry_out(plan, host, guest)
    for path in {*base, *host, *guest}:
        changed_on_host, changed_in_guest = (side.get(path) != base.get(path) for side in (host, guest))
        if changed_on_host:
            assert after.get(path) == host.get(path), "the host's change is taken over"
        else:
            assert after.get(path) == guest.get(path), "what only the guest changed is kept"
        if changed_in_guest and path in guest and after.get(path) != guest.get(path):
            assert path in plan.save, "nothing of the guest's own is lost"
    assert set(plan.save) <= {*plan.put, *plan.remove}
    again = three_way.plan_sync(host, host, after)
    assert not again.put and not again.remove, "a second launch has nothing to do"


@given(states, states, states, st.data())
def test_an_interrupted_run_is_repaired(
    base: three_way.States, host: three_way.States, guest: three_way.States, data: st.DataObject
) -> None:
    """Some files placed, the manifest still the old one."""
    plan = three_way.plan_sync(base, host, guest)
    done = {path for path in (*plan.put, *plan.remove) if data.draw(st.booleans())}
    half = {p: s for p, s in guest.items() if p not in done} | {p: host[p] for p in done if p in host}
    second = three_way.plan_sync(base, host, half)
    assert carry_out(second, host, half) == carry_out(plan, host, guest)
    assert not set(second.save) & done, "our own half-made work is not taken for the guest's"


@given(states, states)
def test_the_manifest_survives_its_trip(files: three_way.States, mcp: three_way.States) -> None:
    assert Manifest.decode(Manifest(files, mcp).encode()) == Manifest(files, mcp)


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), lambda i: st.dictionaries(
    st.sampled_from(["version", "files", "mcp", "../x", "a"]), i)).map(lambda v: json.dumps(v).encode()))  # fmt: skip
def test_a_hostile_manifest_is_harmless(raw: bytes) -> None:
    found = Manifest.decode(raw)
    assert all(three_way.is_path(path) for path in found.files)


def test_a_manifest_of_another_version_is_none_of_ours() -> None:
    good = Manifest({"a": FileState("1" * 64)}).encode()
    assert Manifest.decode(good.replace(b'"version":1', b'"version":2')) == Manifest()
    entries: dict[str, Any] = {
        "../x": ["1" * 64, ""],
        "a": ["1", ""],
        "b": "x",
        "c": ["1" * 64, "x"],
        "/d": ["1" * 64, ""],
    }
    raw = json.dumps({"version": 1, "files": entries, "mcp": []}).encode()
    assert Manifest.decode(raw) == Manifest({"c": FileState("1" * 64, True)})


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a//b",
        "a/",
        "./a",
        "../a",
        "a/../b",
        "a\nb",
        "a\x1bb",
        "a\\b",
        "a\u202eb",
        "\ud800",
        "x" * 256,
        "a/" * 600 + "a",
    ],
)
def test_paths_that_are_not_carried(path: str) -> None:
    assert not three_way.is_path(path)


def test_hashes_from_a_guest() -> None:
    raw = (
        b"%s  ./a\n\\%s  ./b\\nc\n%s  ./../x\n%s  ./projects/x\nexecutable  ./a\nexecutable  ./nope\n"
        b"link  ./l\nnonsense\n\xff  ./y\n%s  ./plugins/store/x" % ((b"1" * 64,) * 5)
    )
    assert three_way.parse_hashes(raw) == {"a": FileState("1" * 64, True), "l": three_way.LINK}


# -- two homes -------------------------------------------------------------------------------------


class KeyLogin(TokenLogin):
    """An API key from the environment."""

    def __init__(self) -> None:
        super().__init__("ANTHROPIC_API_KEY", Variable("sk-ant-" + "k" * 60 + "TAIL5678901234567890"))


class Handing:
    """Hands over and records what came back."""

    description = "fake"

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.fetched: list[bytes] = []

    def environment(self) -> dict[str, str]:
        return {}

    def hand_over(self) -> bytes | None:
        return self.content

    def bring(self, there: bytes | None, sandbox: str, account: str = "") -> bytes | None:
        return self.content if self.content is not None and there != self.content else None

    def shares(self, sandbox: str) -> bool:
        return True

    def collect(self, fetched: bytes, sandbox: str, account: str = "") -> Collected | None:
        self.fetched.append(fetched)
        return Collected(sandbox, "there")


class World:
    """A host's settings directory and a guest's home."""

    def __init__(self, tmp: Path) -> None:
        self.host, self.home, self.state = tmp / "host" / ".claude", tmp / "guest", tmp / "state"
        self.bin = tmp / "guestbin"
        for path in (self.host, self.home, self.state, self.bin):
            path.mkdir(parents=True)
        self.sudo('#!/bin/sh\nshift\nexec "$@"\n')
        self.guest = self.home / ".claude"
        self.warnings: list[str] = []
        self.calls: list[str] = []
        self.between: Callable[[], None] | None = None
        self.login: Any = KeyLogin()

    def sudo(self, text: str) -> None:
        (self.bin / "sudo").write_text(text)
        (self.bin / "sudo").chmod(0o755)

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        self.calls.append("apply" if "stage" in script else "ask")
        if self.calls[-1] == "apply" and self.between:
            self.between()
        done = subprocess.run(
            ["sh", "-c", script, "sh", *arguments], check=False, input=input, capture_output=True,
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home)},
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def up(self, **more: Any) -> UpdateReport:
        self.calls = []
        cache = claude_home_push.hashes_file(self.host, self.state)
        return claude_home_push.update_guest(
            self, tree=host_tree.scan(self.host, self.warnings.append, cache), login=self.login, sandbox="vm",
            state_dir=self.state, warn=self.warnings.append, **more,
        )  # fmt: skip

    def diff(self) -> dict[str, claude_home_pull.Difference]:
        return {d.path: d for d in claude_home_pull.diff(self, self.host, self.warnings.append)}

    def pull(self, *paths: str) -> list[Path]:
        return claude_home_pull.pull(self, self.host, paths, self.warnings.append)

    def put(self, where: Path, path: str, text: str, mode: int = 0o644) -> None:
        target = where / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def saved(self) -> dict[str, str]:
        root = self.guest / ".sandbox-saved"
        return {
            str(p.relative_to(root)).split("/", 1)[1]: p.read_text() for p in root.rglob("*") if p.is_file()
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(hooks_guest_setup, "HOOK", f"{tmp_path}/root/usr/lib/claude-sandbox/hook.sh")
    monkeypatch.setattr(
        hooks_guest_setup, "SETTINGS", f"{tmp_path}/root/etc/claude-code/managed-settings.d/50-x.json"
    )
    world.put(world.host, "CLAUDE.md", "be kind\n")
    world.put(world.host, "hooks/h.sh", "#!/bin/sh\n", 0o755)
    world.put(world.host, "settings.json", '{"model": "opus"}')
    return world


def test_everything_is_there_and_the_second_launch_costs_one_call(world: World) -> None:
    need("git")  # the guest's part runs here
    report = world.up(identity=GitIdentity("Ada", "ada@example.com"))
    assert report.put == ("CLAUDE.md", "hooks/h.sh", "settings.json") and world.calls == ["ask", "apply"]
    assert (world.guest / "CLAUDE.md").read_text() == "be kind\n"
    assert os.access(world.guest / "hooks/h.sh", os.X_OK)
    assert json.loads((world.guest / "settings.json").read_text()) == {
        "model": "opus", "skipDangerousModePermissionPrompt": True,
    }  # fmt: skip
    claude = json.loads((world.home / ".claude.json").read_text())
    assert claude["customApiKeyResponses"]["approved"] == ["TAIL5678901234567890"]
    assert claude["projects"]["/"]["hasTrustDialogAccepted"]
    assert "ada@example.com" in (world.home / ".gitconfig").read_text()
    assert world.up(identity=GitIdentity("Eve", "e@example.com")) == UpdateReport()
    assert world.calls == ["ask"]
    assert "Eve" not in (world.home / ".gitconfig").read_text()
    assert not list((world.home / ".claude-sandbox").glob("incoming.*"))


@pytest.mark.spec("5.2")
def test_changed_on_one_side_or_on_both(world: World) -> None:
    world.put(world.host, "commands/old.md", "old")
    world.put(world.host, "agents/x.md", "x")
    world.up()
    world.put(world.host, "CLAUDE.md", "host\n")
    world.put(world.guest, "hooks/h.sh", "guest\n", 0o755)
    world.put(world.host, "agents/x.md", "host")
    world.put(world.guest, "agents/x.md", "guest")
    world.put(world.guest, "skills/own/SKILL.md", "own")
    (world.host / "commands/old.md").unlink()
    report = world.up()
    assert set(report.put) == {"CLAUDE.md", "agents/x.md"} and report.removed == ("commands/old.md",)
    assert set(report.kept) == {"hooks/h.sh", "skills/own/SKILL.md"} and report.saved == ("agents/x.md",)
    assert (world.guest / "hooks/h.sh").read_text() == "guest\n"
    assert (world.guest / "agents/x.md").read_text() == "host"
    assert not (world.guest / "commands").exists()
    assert world.saved() == {"agents/x.md": "guest"} and report.saved_in.startswith(".sandbox-saved/")
    assert world.up().round_trips == 1


def test_what_is_set_aside_is_bounded(world: World) -> None:
    """The newest 20 conflicts stay; what has another name is the guest's own."""
    world.up()
    aside = world.guest / ".sandbox-saved"
    for number in range(25):
        world.put(aside, f"202001{number + 1:02}T000000Z/a b/x.md", str(number))
    world.put(aside, "mine/x.md", "mine")
    world.put(world.host, "CLAUDE.md", "host\n")
    world.put(world.guest, "CLAUDE.md", "guest\n")
    report = world.up()
    assert report.saved == ("CLAUDE.md",)
    kept = sorted(p.name for p in aside.iterdir() if p.name != "mine")
    assert len(kept) == 20 and kept[0] == "20200107T000000Z"
    assert f".sandbox-saved/{kept[-1]}" == report.saved_in
    assert (world.guest / report.saved_in / "CLAUDE.md").read_text() == "guest\n"
    assert (aside / "mine/x.md").read_text() == "mine"


def test_claudes_own_state_never_travels(world: World) -> None:
    secret = ["projects/p/1.jsonl", "history.jsonl", ".credentials.json", ".credentials.json.previous", "todos/1",
              "x.lock", "shell-snapshots/s", ".sandbox-saved/t/x", "plugins/store/b.json", "statsig/x"]  # fmt: skip
    for path in secret:
        world.put(world.host, path, "host")
        world.put(world.guest, path, "guest")
    world.put(world.host, "skills/s/uv.lock", "kept")
    report = world.up()
    assert "skills/s/uv.lock" in report.put and not set(secret) & {*report.put, *report.kept}
    assert {(world.guest / path).read_text() for path in secret} == {"guest"}


def test_links_are_resolved_on_the_host_and_odd_things_left_out(world: World, tmp_path: Path) -> None:
    world.put(tmp_path / "dotfiles", "skill/SKILL.md", "dot")
    (world.host / "skills").symlink_to(tmp_path / "dotfiles")
    (world.host / "loop").symlink_to(world.host)
    (world.host / "self").symlink_to("self")
    (world.host / "gone").symlink_to("/nonexistent/x")
    os.mkfifo(world.host / "pipe")
    world.put(world.host, "bad\nname", "x")
    (world.host / os.fsdecode(b"latin\xe9")).write_text("x")
    report = world.up()
    assert (world.guest / "skills/skill/SKILL.md").read_text() == "dot"
    assert not (world.guest / "skills").is_symlink()
    assert len(report.put) == 4
    assert len(world.warnings) == 6 and all("\n" not in text for text in world.warnings)


def test_sizes_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tree, "MAX_FILE", 1 << 20)
    world.put(world.host, "big", "x" * ((1 << 20) + 1))
    assert "big" not in world.up().put and "larger than 1 MiB" in world.warnings[0]
    monkeypatch.setattr(host_tree, "MAX_TOTAL", 10)
    with pytest.raises(ClaudeSandboxError, match="too large"):
        world.up()
    with pytest.raises(ClaudeSandboxError, match="not found"):
        host_tree.scan(world.host / "nope", pytest.fail)


def test_what_claude_writes_into_settings_is_kept_and_our_key_comes_back(world: World) -> None:
    world.up()
    world.put(world.guest, "settings.json", '{"skipDangerousModePermissionPrompt":true,"model":"opus"}')
    assert world.up() == UpdateReport()
    world.put(world.guest, "settings.json", '{"model": "haiku"}')
    assert world.up().kept == ("settings.json",)
    assert json.loads((world.guest / "settings.json").read_text()) == {
        "model": "haiku", "skipDangerousModePermissionPrompt": True,
    }  # fmt: skip
    (world.host / "settings.json").unlink()
    report = world.up()
    assert report.saved == ("settings.json",)
    assert json.loads((world.guest / "settings.json").read_text()) == {
        "skipDangerousModePermissionPrompt": True
    }
    assert "haiku" in world.saved()["settings.json"]


def test_broken_files_in_the_guest_are_set_aside(world: World) -> None:
    world.put(world.home, ".claude.json", "{ broken")
    world.put(world.home, ".claude-sandbox/manifest.json", '{"version":')
    world.put(world.guest, "CLAUDE.md", "mine\n")
    report = world.up()
    assert world.saved() == {"claude.json": "{ broken", "CLAUDE.md": "mine\n"}
    assert set(report.saved) == {"claude.json", "CLAUDE.md"} and world.warnings
    assert json.loads((world.home / ".claude.json").read_text())["hasCompletedOnboarding"]


def test_only_mcp_servers_are_taken_from_claude_json(world: World) -> None:
    world.put(world.home, ".claude.json", '{"userID": "guest", "mcpServers": {"own": {"command": "o"}}}')
    world.put(
        world.host,
        ".claude.json",
        '{"userID": "host", "mcpServers": {"a": {"command": "1"}, "b": {"command": "1"}}}',
    )
    world.up()

    def servers() -> dict[str, Any]:
        value = json.loads((world.home / ".claude.json").read_text())
        assert value["userID"] == "guest"
        return {name: server["command"] for name, server in value["mcpServers"].items()}

    assert servers() == {"own": "o", "a": "1", "b": "1"}
    text = (world.home / ".claude.json").read_text().replace('"command": "1"', '"command": "guest"', 1)
    (world.home / ".claude.json").write_text(text)
    assert world.up().round_trips == 1
    world.put(world.host, ".claude.json", '{"mcpServers": {"a": {"command": "2"}}}')
    report = world.up()
    assert servers() == {"own": "o", "a": "2"} and report.saved == ("mcpServers.json",)
    assert json.loads(world.saved()["mcpServers.json"]) == {"a": {"command": "guest"}}


def test_files_and_directories_in_each_others_place(world: World) -> None:
    world.put(world.guest, "CLAUDE.md/own.txt", "own")
    world.put(world.home, "elsewhere/x", "x")
    (world.guest / "hooks").symlink_to(world.home / "elsewhere")
    world.up()
    assert (world.guest / "CLAUDE.md").is_file() and (world.guest / "hooks/h.sh").is_file()
    assert not (world.guest / "hooks").is_symlink() and not (world.home / "elsewhere/h.sh").exists()
    assert world.saved()["CLAUDE.md/own.txt"] == "own"
    (world.host / "CLAUDE.md").unlink()
    world.put(world.host, "CLAUDE.md/now.md", "now")
    world.up()
    assert (world.guest / "CLAUDE.md/now.md").read_text() == "now"


def test_names_that_look_like_options_or_patterns(world: World) -> None:
    names = ["-rf", "commands/-n", "a b/c d", "*", "$(x)", "é", "'q'", "hooks/-e"]
    for name in names:
        world.put(world.host, name, name)
    world.up()
    assert [(world.guest / name).read_text() for name in names] == names
    for name in names:
        world.put(world.guest, name, "guest")
    for name in names:
        (world.host / name).unlink()
    assert set(world.up().removed) == set(names)
    assert not any((world.guest / name).exists() for name in names)
    assert world.saved() == dict.fromkeys(names, "guest")
    assert (world.guest / "CLAUDE.md").exists()


def test_a_cut_off_tar_changes_nothing(world: World) -> None:
    tars: list[bytes] = []
    real = world.run

    def cut(script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        tars.append(input)
        return real(script, *arguments, input=input[:1024] if input else b"", timeout=timeout)

    world.run = cut  # type: ignore[method-assign]
    with pytest.raises(ClaudeSandboxError, match="could not be brought"):
        world.up()
    assert not (world.home / ".claude.json").exists() and not list(world.guest.iterdir())
    world.run = real  # type: ignore[method-assign]
    assert world.up().put == ("CLAUDE.md", "hooks/h.sh", "settings.json")


@pytest.mark.parametrize("survived", range(6))
def test_killed_after_each_step_the_next_launch_repairs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """`mv` is how every step ends: this one kills the shell that called it, after `survived` moves."""
    world.put(world.host, "agents/x.md", "old")
    world.up()
    world.put(world.guest, "agents/x.md", "guest")
    world.put(world.host, "agents/x.md", "new")
    world.put(world.host, "CLAUDE.md", "new")
    world.put(world.host, "skills/s/SKILL.md", "new")
    world.put(world.host, ".claude.json", '{"mcpServers": {"a": {}}}')
    (world.host / "hooks/h.sh").unlink()
    count, real = tmp_path / "count", shutil.which("mv")
    world.put(
        tmp_path / "bin",
        "mv",
        f'#!/bin/sh\necho >>"{count}"\n[ "$(wc -l <"{count}")" -gt {survived} ] && kill -9 $PPID && exit 1\n'
        f'exec {real} "$@"\n',
        0o755,
    )
    guest_state.fetch(world)  # its own `mv` is not what is killed here
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{before}")
    if survived < 5:
        with pytest.raises(ClaudeSandboxError):
            world.up()
    else:
        world.up()
    monkeypatch.setenv("PATH", before)
    world.up()
    assert {(world.guest / p).read_text() for p in ("CLAUDE.md", "agents/x.md", "skills/s/SKILL.md")} == {
        "new"
    }
    assert not (world.guest / "hooks").exists() and world.saved() == {"agents/x.md": "guest"}
    assert json.loads((world.home / ".claude.json").read_text())["mcpServers"] == {"a": {}}
    assert world.up() == UpdateReport() and not list((world.home / ".claude-sandbox").glob("incoming.*"))


def test_a_file_that_changes_in_between_is_looked_at_again(world: World) -> None:
    def claude_writes() -> None:
        world.put(world.home, ".claude.json", '{"numStartups": 7}')
        world.between = None

    world.between = claude_writes
    assert world.up().round_trips == 4
    assert json.loads((world.home / ".claude.json").read_text())["numStartups"] == 7
    world.put(world.home, ".claude.json", "{}")
    world.between = lambda: world.put(world.home, ".claude.json", f'{{"n": "{len(world.calls)}"}}')
    with pytest.raises(ClaudeSandboxError, match="changed each time"):
        world.up()


def test_the_login_is_handed_over_and_collected(world: World) -> None:
    content = json.dumps(
        {"claudeAiOauth": {"accessToken": "a" * 20, "refreshToken": "r" * 20, "expiresAt": 1}}
    ).encode()
    world.login = Handing(content)
    assert world.up().collected is None
    path = world.guest / ".credentials.json"
    assert json.loads(path.read_bytes()) == json.loads(content) and path.stat().st_mode & 0o777 == 0o600
    path.write_text("{}")
    assert world.up().collected == Collected("vm", "there") and world.login.fetched == [b"{}"]
    assert json.loads(path.read_bytes()) == json.loads(content)


@given(st.binary(max_size=2000), st.integers(0, 4000), st.integers(0, 4000))
def test_no_answer_of_a_guest_raises_anything_but_our_error(noise: bytes, start: int, end: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in (".claude-sandbox/hashes", ".claude.json"):
            claude_home_push._add(archive, name, b"x" * 100)
    raw = buffer.getvalue()
    answer = raw[:start] + noise + raw[end:]

    class Hostile:
        def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
            return Result(0, answer)

    try:
        seen = guest_state.fetch(Hostile())
    except ClaudeSandboxError:
        return
    assert seen.files == {}


# -- what makes Claude tell of itself --------------------------------------------------------------


def test_hooks_come_with_the_first_launch_and_cost_no_call_of_their_own(world: World) -> None:
    report = world.up()
    assert report.hooks and world.calls == ["ask", "apply"]
    assert {path: Path(path).read_bytes() for path in hooks_guest_setup.files()} == hooks_guest_setup.files()
    assert os.access(hooks_guest_setup.HOOK, os.X_OK) and os.access(hooks_guest_setup.SETTINGS, os.R_OK)
    assert world.up() == UpdateReport()
    for path in hooks_guest_setup.files():  # a newer claude-sandbox has others; somebody broke or removed one
        Path(path).write_text("other")
        assert world.up().round_trips == 2 and world.up() == UpdateReport()
        Path(path).unlink()
        assert world.up().round_trips == 2 and world.up() == UpdateReport()
    assert {path: Path(path).read_bytes() for path in hooks_guest_setup.files()} == hooks_guest_setup.files()


def test_without_root_the_rest_is_there_all_the_same(world: World) -> None:
    world.sudo("#!/bin/sh\nexit 1\n")
    assert not world.up().hooks
    assert (world.guest / "CLAUDE.md").read_text() == "be kind\n"
    assert not Path(hooks_guest_setup.HOOK).exists()


# -- diff and pull ---------------------------------------------------------------------------------


def test_diff_tells_who_changed_what(world: World) -> None:
    world.put(world.host, "agents/gone.md", "x")
    world.put(world.host, "agents/both.md", "x")
    world.put(world.host, "run", "x", 0o755)
    world.up()
    assert world.diff() == {}
    world.put(world.guest, "CLAUDE.md", "be kind\nevil \x1b[2J\u202e\n")
    world.put(world.guest, "hooks/new.sh", "new\n")
    (world.guest / "agents/gone.md").unlink()
    world.put(world.host, "late.md", "late")
    (world.host / "run").unlink()
    world.put(world.host, "agents/both.md", "host")
    world.put(world.guest, "agents/both.md", "guest")
    world.put(world.guest, "settings.json", '{"model": "haiku", "skipDangerousModePermissionPrompt": true}')
    (world.guest / "ln").symlink_to("/etc/passwd")
    text = (world.home / ".claude.json").read_text()
    (world.home / ".claude.json").write_text(text.replace("{", '{"mcpServers": {"m": {"command": "x"}},', 1))
    found = world.diff()
    assert {path: (d.side, d.what, d.is_code) for path, d in found.items()} == {
        ".claude.json:mcpServers.m": ("guest", "added", True),
        "CLAUDE.md": ("guest", "changed", False),
        "agents/both.md": ("both", "changed", True),
        "agents/gone.md": ("guest", "removed", True),
        "hooks/new.sh": ("guest", "added", True),
        "late.md": ("host", "added", False),
        "ln": ("guest", "added", False),
        "run": ("host", "removed", True),
        "settings.json": ("guest", "changed", True),
    }
    assert "+evil ?[2J?" in found["CLAUDE.md"].text and "root:" not in found["ln"].text
    assert "skipDangerous" not in found["settings.json"].text


def test_pull_brings_back_and_keeps_the_previous(world: World) -> None:
    world.up()
    world.put(world.guest, "CLAUDE.md", "guest\n")
    world.put(world.guest, "skills/s/run.sh", "run\n", 0o755)
    world.put(world.guest, "settings.json", '{"model": "haiku", "skipDangerousModePermissionPrompt": true}')
    (world.guest / "hooks/h.sh").unlink()
    text = (world.home / ".claude.json").read_text()
    (world.home / ".claude.json").write_text(text.replace("{", '{"mcpServers": {"m": {"command": "x"}},', 1))
    paths = ["CLAUDE.md", "skills/s/run.sh", "settings.json", "hooks/h.sh", ".claude.json:mcpServers.m"]
    assert world.pull(*paths)[0] == world.host / "CLAUDE.md"
    assert (world.host / "CLAUDE.md").read_text() == "guest\n"
    assert os.access(world.host / "skills/s/run.sh", os.X_OK) and not (world.host / "hooks/h.sh").exists()
    assert json.loads((world.host / "settings.json").read_text()) == {"model": "haiku"}
    assert json.loads((world.host / ".claude.json").read_text()) == {"mcpServers": {"m": {"command": "x"}}}
    (backup,) = (world.host / ".sandbox-saved").iterdir()
    assert (backup / "CLAUDE.md").read_text() == "be kind\n" and (backup / "hooks/h.sh").exists()
    assert world.diff() == {}
    assert world.up().put == () and not world.warnings


def test_pull_writes_only_inside_and_through_no_link(world: World, tmp_path: Path) -> None:
    world.up()
    world.put(tmp_path / "out", "x", "out")
    (world.host / "link").symlink_to(tmp_path / "out")
    for path in ("../x", "/x", "a/../../x", "hooks/\x1b"):
        with pytest.raises(UsageError):
            claude_home_pull.write_inside(world.host, path, b"x", False, "t")
    with pytest.raises(RefusedError):
        claude_home_pull.write_inside(world.host, "link/x", b"evil", False, "t")
    with pytest.raises(RefusedError):
        claude_home_pull.write_inside(world.host, "link", b"evil", False, "t")
    with pytest.raises(RefusedError):
        claude_home_pull.write_inside(world.host, "hooks", b"evil", False, "t")
    assert (tmp_path / "out/x").read_text() == "out"
    for path in ("CLAUDE.md", "../../x", "nope"):
        with pytest.raises(UsageError, match="No difference"):
            world.pull(path)
    (world.guest / "ln").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="symlink"):
        world.pull("ln")


def test_differences_are_bounded() -> None:
    lines = b"\n".join(b"%d" % n for n in range(4000))
    assert len(claude_home_pull.unified("x", b"", lines).splitlines()) == claude_home_pull.DIFF_LINES + 1
    assert claude_home_pull.unified("x", b"a\0", b"b").startswith("(not text")
    assert claude_home_pull.unified("x", b"a", b"\n" * 6000).startswith("(too many")
    assert max(map(len, claude_home_pull.unified("x", b"a", b"y" * 9000).splitlines())) == 500


def test_the_users_own_directory_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".claude").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / ".claude")
    assert "your own" in (host_tree.users_own_warning(tmp_path / "link") or "")
    assert host_tree.users_own_warning(tmp_path / ".claude-sandbox" / ".claude") is None
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "other"))
    assert host_tree.users_own_warning(tmp_path / "other") is not None
