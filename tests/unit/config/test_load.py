"""Precedence for every setting, what a project file may say, and approvals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from _claude_sandbox.config import approvals as config_approvals
from _claude_sandbox.config import load as config_load
from _claude_sandbox.config import table as config_table
from _claude_sandbox.config import yaml_file
from _claude_sandbox.config.approvals import ApprovalNeeded
from _claude_sandbox.config.table import Config
from _claude_sandbox.errors import ClaudeSandboxError, ConfigError, UsageError
from _claude_sandbox.system import paths, units
from _claude_sandbox.system.units import GIB

# Four values for each setting that a Config shows: flag, environment, project file, user file.
SAMPLES: dict[str, tuple[Any, Any, Any, Any]] = {
    "settings": ("/a", "/b", "/c", "/d"),
    "clone-from": ("a", "b", "c", "d"),
    "template": ("template:a", "template:b", "template:c", "template:d"),
    "ports": ("1001", "", "1003:80", [1004]),
    "cpus": ("2", "", 1, 3),
    "memory": ("2GiB", "", "512MiB", "3GiB"),
    "disk": ("20GiB", "", "30GiB", "40GiB"),
    "full-clone": (True, "", None, True),
    "mounts": (["/usr"], "", ["/var:ro"], ["/etc", "/opt:ro"]),
    "packages": (None, "", ["jq"], "git,gh"),
    "proxy": (None, "", None, "host"),
    "ca": (None, "", None, "host"),
    "notify": (None, "", None, ["failed", "done"]),
    "notify.command": (None, "", None, "say 'a b' c"),
    "notify.quiet": (None, "", None, "22:00-7:00"),
    "notify.sound": (None, "", None, "off"),
    "voice": (True, "TRUE", None, True),
    "voice.command": (None, "", None, ["my-rec", "-x"]),
    "hooks": (None, "off", None, "off"),
}
SHOWN = {
    "settings": ["/a", "/b", "/c", "/d"],
    "clone-from": ["a", "b", "c", "d"],
    "template": ["template:a", "template:b", "template:c", "template:d"],
    "ports": ["1001:1001", "", "1003:80", "1004:1004"],
    "cpus": ["2", "", "1", "3"],
    "memory": [str(2 * GIB), "", str(GIB // 2), str(3 * GIB)],
    "disk": [str(20 * GIB), "", str(30 * GIB), str(40 * GIB)],
    "full-clone": ["True", "", "", "True"],
    "mounts": ["/usr", "", "/var:ro", "/etc /opt:ro"],
    "packages": ["", "", "jq", "git gh"],
    "proxy": ["", "", "", "True"],
    "ca": ["", "", "", "True"],
    "notify": ["", "", "", "failed done"],
    "notify.command": ["", "", "", "say a b c"],
    "notify.quiet": ["", "", "", "1320 420"],
    "notify.sound": ["", "", "", "False"],
    "voice": ["True", "True", "", "True"],
    "voice.command": ["", "", "", "my-rec -x"],
    "hooks": ["", "False", "", "False"],
}
LIMIT_KEYS = {"max-cpus", "max-memory", "max-disk"}


@pytest.fixture
def project(home: Path) -> Path:
    path = home / "projects" / "app"
    path.mkdir(parents=True)
    return path


def user_file(text: str) -> Path:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text(text)
    return paths.config_file()


def project_file(project: Path, text: str) -> Path:
    (project / config_table.PROJECT_FILE).write_text(text)
    return project / config_table.PROJECT_FILE


def load(project: Path, flags: Mapping[str, Any] | None = None, **environ: str) -> Config:
    return config_load.load({"dir": str(project), **(flags or {})}, environ)


def approved(project: Path, flags: Mapping[str, Any] | None = None, **environ: str) -> Config:
    try:
        return load(project, flags, **environ)
    except ApprovalNeeded as needed:
        config_approvals.approve(project, needed.digest)
        return load(project, flags, **environ)


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_the_samples_name_every_setting() -> None:
    assert set(SAMPLES) | LIMIT_KEYS == set(config_table.BY_KEY) == {row.key for row in config_table.SETTINGS}


@pytest.mark.parametrize("key", sorted(SAMPLES))
def test_flag_beats_environment_beats_project_beats_user_beats_default(project: Path, key: str) -> None:
    row = config_table.BY_KEY[key]
    flag, environment, in_project, in_user = SAMPLES[key]
    untouched = shown(getattr(load(project), row.field))
    user_file(f"{key}: {in_user!r}\n")
    got = [(3, approved(project))]
    if row.in_project != config_table.NEVER:
        project_file(project, f"{key}: {in_project!r}\n")
        got.append((2, approved(project)))
    environ = {row.env: environment} if row.env else {}
    if row.env:
        got.append((1, approved(project, **environ)))
    if row.flags:
        got.append((0, approved(project, {key: flag}, **environ)))
    for level, loaded in got:
        assert shown(getattr(loaded, row.field)) == SHOWN[key][level]
        assert loaded.given(key)
    assert untouched not in {SHOWN[key][level] for level, _ in got}
    assert not Config(project, project).given(key)


@pytest.mark.spec("2.1")
def test_the_spec_s_names_of_flags_and_variables() -> None:
    """spec 2.1 and 3.1, written out: a rename must be noticed."""
    table = {row.key: (row.flags, row.env) for row in config_table.SETTINGS if row.flags}
    assert table == {
        "settings": (("-s", "--settings"), "CLAUDE_SANDBOX_SETTINGS"),
        "clone-from": (("-c", "--clone-from"), "CLAUDE_SANDBOX_BASE_VM"),
        "template": (("-t", "--template"), "CLAUDE_SANDBOX_TEMPLATE"),
        "ports": (("-p", "--ports"), None),
        "cpus": (("--cpus",), None),
        "memory": (("--memory", "--mem"), None),
        "disk": (("--disk",), None),
        "full-clone": (("--full-clone",), None),
        "mounts": (("--mount",), None),
        "voice": (("--voice",), "CLAUDE_SANDBOX_VOICE_MODE"),
    }


def test_defaults(project: Path, home: Path) -> None:
    loaded = load(project)
    assert loaded.project == project
    assert loaded.settings == home / ".claude-sandbox" / ".claude"
    assert loaded.sources == {}
    assert (loaded.clone_from, loaded.template, loaded.cpus, loaded.memory, loaded.disk) == (None,) * 5
    assert (loaded.ports, loaded.mounts, loaded.packages, loaded.proxy, loaded.ca) == (
        (),
        (),
        (),
        False,
        False,
    )


def test_where_relative_paths_start(project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert load(project, {"settings": "s"}).settings == home / "s"
    assert load(project, CLAUDE_SANDBOX_SETTINGS="~/t").settings == home / "t"
    file = user_file("settings: u\ntemplate: t.yaml\n")
    assert load(project).settings == file.parent / "u"
    assert load(project).template == str(file.parent / "t.yaml")
    project_file(project, "settings: ../v\n")
    assert approved(project).settings == project.parent / "v"


def test_an_empty_variable_is_not_set(project: Path) -> None:
    user_file("clone-from: mine\n")
    assert load(project, CLAUDE_SANDBOX_BASE_VM="").clone_from == "mine"


# -- the project -------------------------------------------------------------------------------------


def test_the_project_is_resolved(project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "link").symlink_to(project)
    assert load(home / "link").project == project
    monkeypatch.chdir(project)
    assert config_load.load({}, {}).project == project
    assert config_load.load({"dir": "~/link/../app"}, {}).project == project


def test_a_missing_project_is_told(
    project: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "file").touch()
    (project / "loop").symlink_to("loop")
    for text in (project / "gone", project / "file", project / "loop", "~nobody-here/x", "a\0b", "x" * 5000):
        with pytest.raises(ClaudeSandboxError, match="Directory not found") as caught:
            config_load.load({"dir": str(text)}, {})
        assert caught.value.exit_code == 1
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    monkeypatch.chdir(doomed)
    doomed.rmdir()
    with pytest.raises(ClaudeSandboxError, match="the current directory is gone"):
        config_load.load({}, {})


# -- errors name their place -------------------------------------------------------------------------


def test_bad_values_name_option_variable_or_line(project: Path) -> None:
    with pytest.raises(UsageError, match=r"--ports: .*invalid port"):
        load(project, {"ports": "http"})
    with pytest.raises(UsageError, match=r"CLAUDE_SANDBOX_BASE_VM: .*invalid VM name"):
        load(project, CLAUDE_SANDBOX_BASE_VM="-x")
    file = user_file("# x\n\nmemory: lots\n")
    with pytest.raises(ConfigError, match=rf"^{file}:3: memory: invalid size 'lots'"):
        load(project)
    user_file("")
    file = project_file(project, "\nports: 70000\n")
    with pytest.raises(ConfigError, match=rf"^{file}:2: ports: "):
        load(project)


@pytest.mark.parametrize(
    "text",
    ["settings: ''", "settings: [a]", "settings: ~nobody-here/x", "mounts: 5", "mounts: [{a: b}]", "mounts: [~nobody-here]",
     "cpus: {}", "cpus: true", "disk: []", "ports: {a: 1}", "ports: [[1]]", "packages: {a: b}", "proxy: true", "ca: yes",
     "clone-from:", "template:", "clone-from: 7", "settings: \"a\\0b\"", "max-disk: 1.5", "mounts: [loop/x]"],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_an_error_with_its_line(project: Path, text: str) -> None:
    file = user_file(f"{text}\n")
    (file.parent / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=rf"^{file}:1: {text.partition(':')[0]}: "):
        load(project)


def test_an_unknown_key_is_told_with_the_nearest_one(project: Path) -> None:
    file = user_file("cpus: 2\nmemroy: 8GiB\n")
    with pytest.raises(ConfigError, match=rf"^{file}:2: unknown key 'memroy'. Did you mean memory\?"):
        load(project)
    user_file("")
    file = project_file(project, "colour: red\n")
    with pytest.raises(ConfigError, match=rf"^{file}:1: unknown key 'colour'. Known are: ca, clone-from, "):
        load(project)


# -- base VM or template -----------------------------------------------------------------------------


def test_the_command_line_decides_between_base_and_template(project: Path) -> None:
    user_file("clone-from: base\n")
    chosen = load(project, {"template": "template:x"})
    assert (chosen.clone_from, chosen.template) == (None, "template:x") and not chosen.given("clone-from")
    user_file("template: template:x\n")
    chosen = load(project, {"clone-from": "base"})
    assert (chosen.clone_from, chosen.template) == ("base", None) and not chosen.given("template")
    with pytest.raises(UsageError, match="both set"):
        load(project, {"clone-from": "base", "template": "template:x"})
    with pytest.raises(UsageError, match=r"CLAUDE_SANDBOX_BASE_VM and .*config.yaml:1 are both set"):
        load(project, CLAUDE_SANDBOX_BASE_VM="base")


# -- what a project's file may ask for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "limit", "over"), [("cpus", 4, 5), ("memory", "4GiB", "5GiB"), ("disk", "30GiB", "31GiB")]
)
def test_a_project_file_stays_within_the_user_s_limits(
    project: Path, key: str, limit: Any, over: Any
) -> None:
    user_file(f"max-{key}: {limit}\n")
    project_file(project, f"{key}: {limit}\n")
    assert load(project).given(key)
    file = project_file(project, f"\n{key}: {over}\n")
    with pytest.raises(ConfigError, match=rf"^{file}:2: {key} is more than {limit}") as caught:
        load(project)
    assert f"max-{key}" in (caught.value.resolution or "")
    assert load(project, {key: str(over)}).given(key)  # the user's own word has no limit
    user_file(f"max-{key}: {limit}\n{key}: {over}\n")
    (project / config_table.PROJECT_FILE).unlink()
    assert load(project).given(key)


def test_limits_without_the_user_s_word(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"total": 16 * GIB})())
    for good in ("cpus: 4", "memory: 8GiB", "disk: 200GiB"):
        project_file(project, good)
        load(project)
    for bad, most in (("cpus: 5", "4"), ("memory: 9GiB", "8GiB"), ("disk: 201GiB", "200GiB")):
        project_file(project, bad)
        with pytest.raises(ConfigError, match=f"more than {most}, "):
            load(project)


def test_what_a_project_file_may_never_set(project: Path) -> None:
    for key in ("voice", "voice.command", "proxy", "ca", "max-cpus", "max-memory", "max-disk"):
        project_file(project, f"{key}: host\n")
        with pytest.raises(ConfigError, match=f"{key} can only be set in"):
            load(project)


def test_what_a_project_file_may_set_freely(project: Path) -> None:
    project_file(project, "ports: [8080, '81:82']\npackages: [jq]\n")
    loaded = load(project)
    assert [str(p) for p in loaded.ports] == ["81:82", "8080:8080"] and loaded.packages == ("jq",)


@pytest.mark.spec("3.2")
@pytest.mark.parametrize("text", ["mounts: [/]", "settings: /tmp", "clone-from: x", "template: template:x"])
def test_what_reaches_the_host_needs_approval_of_this_very_content(project: Path, text: str) -> None:
    file = project_file(project, f"{text}\n")
    with pytest.raises(ApprovalNeeded) as caught:
        load(project)
    key = text.partition(":")[0]
    assert key in caught.value.brief and str(file) in caught.value.brief and len(caught.value.wants) == 1
    config_approvals.approve(project, caught.value.digest)
    assert load(project).given(key)
    assert load(project).given(key)  # once is enough
    project_file(project, f"{text}\n# changed\n")
    with pytest.raises(ApprovalNeeded):
        load(project)
    project_file(project, f"{text}\n")
    assert load(project).given(key)


def test_an_approval_is_for_one_project_and_out_of_the_guest_s_reach(project: Path) -> None:
    project_file(project, "clone-from: x\n")
    approved(project)
    other = project.parent / "other"
    other.mkdir()
    project_file(other, "clone-from: x\n")
    with pytest.raises(ApprovalNeeded):
        load(other)
    found = [p for p in paths.state_dir().rglob("*") if p.is_file()]
    assert found and not any(p.is_relative_to(project) for p in found)
    assert all(p.stat().st_mode & 0o077 == 0 for p in found)


def test_a_file_swapped_while_it_is_read_is_not_approved(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest can write it at any time: what was parsed is what the approval is checked for."""
    good = project_file(project, "clone-from: good\n")
    approved(project)
    good.write_text("clone-from: evil\n")
    real = yaml_file.parse

    def parse_then_put_back(text: str, file: Path) -> Any:
        entries = real(text, file)
        good.write_text("clone-from: good\n")
        return entries

    monkeypatch.setattr(config_load, "parse", parse_then_put_back)
    with pytest.raises(ApprovalNeeded):
        load(project)


def test_a_flag_makes_the_project_s_wish_irrelevant(project: Path) -> None:
    project_file(project, "clone-from: x\n")
    assert load(project, {"clone-from": "mine"}).clone_from == "mine"


def test_the_question_shows_what_is_asked_for_and_nothing_steers_the_terminal(project: Path) -> None:
    project_file(project, 'mounts: ["/\\e]0;x\\a\\e[2J"]\n')
    (project / "sub").mkdir()
    with pytest.raises(ClaudeSandboxError) as caught:
        load(project)
    assert "\x1b" not in caught.value.brief or isinstance(caught.value, ConfigError)
    project_file(project, 'settings: "../\\e[2Jnice"\n')
    with pytest.raises(ApprovalNeeded) as needed:
        load(project)
    assert needed.value.brief.isprintable() and "settings" in needed.value.brief


@pytest.mark.parametrize("kind", ["symlink", "fifo", "big", "alias"])
def test_a_hostile_project_file_is_refused(project: Path, tmp_path: Path, kind: str) -> None:
    file = project / config_table.PROJECT_FILE
    if kind == "symlink":
        (tmp_path / "target").write_text("cpus: 1\n")
        file.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "big":
        file.write_text("# " + "x" * 70_000)
    else:
        file.write_text("ports: &a [80]\npackages: *a\n")
    with pytest.raises(ConfigError, match=str(file)):
        load(project)


def test_the_shown_limit_is_a_size(project: Path) -> None:
    user_file("max-memory: 1GiB\n")
    project_file(project, "memory: 2GiB\n")
    with pytest.raises(ConfigError, match="more than 1GiB"):
        load(project)
    assert config_table.BY_KEY["max-disk"].default == 200 * units.GIB
