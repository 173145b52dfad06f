"""What a sandbox is made of: configuration, names, ownership, mounts, ports, settings, login (spec §3 to §7)."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from _claude_sandbox.system import files
from _claude_sandbox.vm import mark as vm_mark
from tests.support.box import Box

APP = "claude-sandbox-app"
TOKEN = "sk-ant-oat01-not-a-real-one"


@pytest.fixture
def made(ready: Box) -> Box:
    assert (ended := ready.run("create")).code == 0, ended.text
    ready.forget_calls()
    return ready


def mark(box: Box, name: str) -> vm_mark.Mark:
    found = vm_mark.Mark.decode(box.config(name)["param"][vm_mark.MARK_PARAM])
    assert found is not None
    return found


def locations(box: Box, name: str) -> list[str]:
    """The host directories that Lima would share."""
    answer = box.limactl("list", "--format", "{{json .Config}}", name)
    return [mount["location"] for mount in answer.json()["mounts"]]


# -- environment and files -----------------------------------------------------------------------


@pytest.mark.spec("3.1")
def test_environment_variables_choose_base_template_and_settings(ready: Box) -> None:
    ready.tools_vm("mine")
    mine = ready.root / "settings"
    mine.mkdir()
    env = {"CLAUDE_SANDBOX_BASE_VM": "mine", "CLAUDE_SANDBOX_SETTINGS": str(mine)}
    assert ready.run("create", env=env).code == 0
    assert ready.calls("limactl", "clone")[0][-2:] == ["mine", APP]
    assert locations(ready, APP)[-1] == str(mine)
    assert (
        ready.run("create", cwd=ready.project("b"), env={"CLAUDE_SANDBOX_TEMPLATE": "template:default"}).code
        == 0
    )
    assert len(ready.calls("limactl", "create")) == 1


@pytest.mark.spec("3.2")
def test_flag_beats_environment_beats_project_file_beats_user_file(ready: Box) -> None:
    user = ready.home / ".config" / "claude-sandbox" / "config.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("cpus: 1\nmemory: 1GiB\ndisk: 25GiB\n")
    (ready.project() / ".claude-sandbox.yaml").write_text("cpus: 2\nmemory: 1536MiB\n")
    assert (ended := ready.run("create", "--cpus", "3")).code == 0, ended.text
    config = ready.config(APP)
    assert (config["cpus"], config["memory"], config["disk"]) == (3, "1536MiB", "25GiB")


@pytest.mark.spec("3.2")
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("cpus: 2\nmemroy: 4GiB\n", 2, "memroy"),
        ("memory: lots\n", 1, "lots"),
        ("\n\nports: [99999]\n", 3, "99999"),
        ("proxy: host\n", 1, "proxy"),
        ("a: [\n", 2, ""),
    ],
)
def test_errors_in_a_project_file_name_file_and_line(ready: Box, text: str, line: int, words: str) -> None:
    file = ready.project() / ".claude-sandbox.yaml"
    file.write_text(text)
    ended = ready.run("create")
    assert ended.code == 1 and f"{file}:{line}:" in ended.err and words in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("3.2")
def test_a_project_file_needs_approval_for_mounts_bound_to_its_content(ready: Box) -> None:
    extra = ready.project("extra")
    file = ready.project() / ".claude-sandbox.yaml"
    file.write_text(f"mounts: ['{extra}:ro']\n")
    refused = ready.run("create")
    assert refused.code == 1 and "approv" in refused.err and str(extra) in refused.err
    assert ready.run("create", "-y").code == 1, "yes to everything is no look at the file"
    assert ready.run("approve").code == 1, "nobody looked"
    assert ready.run("approve", "-y").code == 0
    assert ready.run("create").code == 0
    assert locations(ready, APP)[1] == str(extra)
    file.write_text(f"mounts: ['{extra}']\n")
    assert ready.run("start").code == 1


@pytest.mark.spec("3.2")
def test_a_project_file_stays_within_the_user_s_limits(ready: Box) -> None:
    (ready.project() / ".claude-sandbox.yaml").write_text("cpus: 1000\n")
    ended = ready.run("create")
    assert ended.code == 1 and "cpus" in ended.err and ":1:" in ended.err


def test_a_project_file_that_is_a_symlink_or_a_fifo_is_refused(ready: Box) -> None:
    file = ready.project() / ".claude-sandbox.yaml"
    file.symlink_to("/etc/passwd")
    assert ready.run("create").code == 1
    file.unlink()
    os.mkfifo(file)
    assert ready.run("create").code == 1


@pytest.mark.spec("3.3")
def test_what_claude_finds_in_its_environment(made: Box) -> None:
    env = {
        "TZ": "Europe/Berlin",
        "TERM": "xterm-kitty",
        "CLAUDE_CODE_SESSION_ID": "x",
        "CLAUDE_CODE_SSE_PORT": "1",
    }
    made.run(env=env)
    seen = made.claude_runs(APP)[-1]["env"]
    assert len(seen["CLAUDE_SANDBOX_UUID"]) == 36
    assert seen["UV_PROJECT_ENVIRONMENT"] == ".venv-agent"
    assert seen["TZ"] == "Europe/Berlin" and "UTF-8" in seen["LANG"] and seen["TERM"] == "xterm-256color"
    assert "CLAUDE_CODE_SESSION_ID" not in seen and "CLAUDE_CODE_SSE_PORT" not in seen
    made.run(env={"UV_PROJECT_ENVIRONMENT": "mine"})
    again = made.claude_runs(APP)[-1]["env"]
    assert again["UV_PROJECT_ENVIRONMENT"] == "mine"
    assert again["CLAUDE_SANDBOX_UUID"] != seen["CLAUDE_SANDBOX_UUID"]


@pytest.mark.spec("3.4")
def test_one_credential_arrives_and_never_in_an_argv_or_a_log(made: Box) -> None:
    env = {"CLAUDE_CODE_OAUTH_TOKEN": TOKEN, "ANTHROPIC_API_KEY": "sk-ant-api03-other"}
    ended = made.run("-v", env=env)
    seen = made.claude_runs(APP)[-1]["env"]
    assert seen["CLAUDE_CODE_OAUTH_TOKEN"] == TOKEN and "ANTHROPIC_API_KEY" not in seen
    hidden = base64.b64encode(TOKEN.encode())[:-4].decode()
    everything = json.dumps([call["argv"] for call in made.log()]) + ended.text
    for file in (made.home / ".local" / "state").rglob("*"):
        everything += file.read_text(errors="replace") if file.is_file() else ""
    assert TOKEN not in everything and hidden not in everything
    assert "sk-ant-api03-other" not in everything


@pytest.mark.spec("3.4")
def test_a_loopback_base_url_points_to_the_host(made: Box) -> None:
    env = {
        "ANTHROPIC_BASE_URL": "http://localhost:8082/v1", "ANTHROPIC_AUTH_TOKEN": "t", "ANTHROPIC_MODEL": "m",
        "API_TIMEOUT_MS": "5",
    }  # fmt: skip
    made.run(env=env)
    seen = made.claude_runs(APP)[-1]["env"]
    assert seen["ANTHROPIC_BASE_URL"] == "http://192.168.5.2:8082/v1"
    assert (
        seen["ANTHROPIC_MODEL"] == "m"
        and seen["API_TIMEOUT_MS"] == "5"
        and seen["ANTHROPIC_AUTH_TOKEN"] == "t"
    )


@pytest.mark.spec("3.5")
def test_proxy_only_when_the_user_says_so(made: Box) -> None:
    env = {"https_proxy": "http://proxy.example:3128"}
    ask = ("shell", "--", "sh", "-c", "echo [$https_proxy]")
    assert made.run(*ask, env=env).out.strip() == "[]"
    assert made.config(APP)["propagateProxyEnv"] is False
    user = made.home / ".config" / "claude-sandbox" / "config.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("proxy: host\n")
    assert made.run(*ask, env=env).out.strip() == "[http://proxy.example:3128]"


# -- names and ownership -------------------------------------------------------------------------


@pytest.mark.spec("4.1")
@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("My App", "my-app"),
        ("...", "project"),
        ("a__b--c", "a-b-c"),
        ("Ünïcode", "n-code"),
        ("日本", "project"),
    ],
)
def test_names(ready: Box, directory: str, name: str) -> None:
    assert ready.run("create", cwd=ready.project(directory)).code == 0
    assert f"claude-sandbox-{name}" in ready.vms()


@pytest.mark.spec("4.1")
def test_a_long_name_is_cut_to_lima_s_limits(ready: Box) -> None:
    assert (ended := ready.run("create", cwd=ready.project("x" * 200))).code == 0, ended.text
    (name,) = set(ready.vms()) - {"tools-vm"}
    assert len(f"lima-{name}") <= 63


@pytest.mark.spec("4.1")
def test_two_projects_of_one_basename_get_two_vms(made: Box) -> None:
    second = made.root / "p" / "sub" / "app"
    second.mkdir(parents=True)
    assert made.run("create", cwd=second).code == 0
    (name,) = set(made.vms()) - {"tools-vm", APP}
    assert name.startswith(f"{APP}-") and mark(made, name).project == second
    assert made.run("info", "--json", cwd=second).json()["sandbox"]["name"] == name
    assert made.run("info", "--json").json()["sandbox"]["name"] == APP


def test_a_foreign_vm_of_our_name_is_left_alone(ready: Box) -> None:
    ready.vm(APP)
    assert ready.run("create").code == 0
    assert len(ready.vms()) == 3 and "param" not in ready.config(APP)
    assert ready.run("delete").code == 0
    assert sorted(ready.vms()) == [APP, "tools-vm"]


def test_the_same_project_through_a_symlink_is_one_project(made: Box) -> None:
    link = made.root / "link"
    link.symlink_to(made.project())
    assert made.run("info", "--json", "-d", str(link)).json()["sandbox"]["name"] == APP


@pytest.mark.spec("4.2")
def test_the_mark_names_instance_and_project(made: Box) -> None:
    found, info = mark(made, APP), made.project().stat()
    born = files.birth(made.project())
    assert found == vm_mark.Mark(vm_mark.SANDBOX, APP, made.project(), info.st_dev, info.st_ino, born)


@pytest.mark.spec("4.2")
def test_a_hand_made_clone_is_not_ours(made: Box) -> None:
    made.run("stop")
    made.limactl("clone", APP, "claude-sandbox-copy")
    assert [row["name"] for row in made.run("list", "--json").json()] == [APP]


@pytest.mark.spec("4.2")
def test_a_moved_project_is_recognised_and_asked_about(made: Box) -> None:
    made.run("stop")
    new = made.root / "p" / "renamed"
    made.project().rename(new)
    ended = made.run("start", cwd=new)
    assert ended.code == 1 and "moved" in ended.err and APP in ended.err
    ended = made.tty("start", cwd=new, talk=[("moved", "y\n")])
    assert ended.code == 0, ended.text
    assert mark(made, APP).project == new and locations(made, APP)[0] == str(new)
    assert sorted(made.vms()) == [APP, "tools-vm"]


def test_a_new_directory_with_a_used_inode_is_not_the_old_project(made: Box) -> None:
    """ext4 reuses inodes at once; the mark is made to name the new directory's, with the old one's birth."""
    old, new = mark(made, APP), made.root / "p" / "new"
    made.project().rmdir()
    time.sleep(0.02)
    new.mkdir()
    file = made.lima_home / APP / "lima.yaml"
    for born in (old.born, 0):  # 0: of a version before this one
        reused = dataclasses.replace(mark(made, APP), inode=new.stat().st_ino, born=born)
        file.write_text(file.read_text().replace(mark(made, APP).encode(), reused.encode()))
        assert (ended := made.run("create", cwd=new)).code == 0, ended.text
        assert "moved" not in ended.text and locations(made, "claude-sandbox-new")[0] == str(new)
        assert made.run("delete", cwd=new).code == 0
        assert APP in made.vms()


def test_a_directory_that_may_be_moved_is_asked_about_whatever_yes_says(made: Box) -> None:
    """Of an older version's mark, only the inode is known. The remedy reaches that sandbox and no other."""
    assert made.run("create", cwd=made.project("app2")).code == 0
    file = made.lima_home / APP / "lima.yaml"
    older = dataclasses.replace(mark(made, APP), born=0)
    file.write_text(file.read_text().replace(mark(made, APP).encode(), older.encode()))
    new = made.root / "p" / "renamed"
    made.project().rename(new)
    ended = made.run("start", "-y", cwd=new)
    assert ended.code == 1 and "may be" in ended.err and "prune" not in ended.err
    remedy = ended.err[ended.err.index("limactl delete") :].split()
    assert remedy == ["limactl", "delete", "--force", APP], remedy
    assert made.tty("start", "-y", cwd=new, talk=[("or a new one", "y\n")]).code == 0
    assert mark(made, APP).project == new


def test_a_moved_project_may_get_a_new_sandbox(made: Box) -> None:
    made.run("stop")
    new = made.root / "p" / "renamed"
    made.project().rename(new)
    assert made.tty("start", cwd=new, talk=[("moved", "n\n")]).code == 0
    assert sorted(made.vms()) == [APP, "claude-sandbox-renamed", "tools-vm"]


# -- LIMA_HOME, bases, templates -----------------------------------------------------------------


@pytest.mark.spec("4.3")
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("default.yaml", "mounts: [{location: '/srv', writable: true}]"),
        ("default.yaml", "portForwards: [{guestPort: 81}]"),
        ("override.yaml", "mounts: [{location: '/srv', writable: true}]"),
        ("override.yaml", "portForwards: [{guestPort: 81}]"),
        ("override.yaml", "ssh: {forwardAgent: true}"),
    ],
)
def test_what_lima_would_add_is_refused_with_the_reason(ready: Box, file: str, text: str) -> None:
    path = ready.lima_home / "_config" / file
    path.parent.mkdir()
    path.write_text(text)
    ended = ready.run("create")
    assert ended.code == 1, ended.text
    assert str(path) in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.3")
def test_an_agent_forward_added_later_is_refused_at_the_next_start(made: Box) -> None:
    made.run("stop")
    (made.lima_home / "_config").mkdir()
    (made.lima_home / "_config" / "override.yaml").write_text("ssh: {forwardAgent: true}")
    ended = made.run("start")
    assert ended.code == 1 and "forwardAgent" in ended.err and made.vms()[APP] == "Stopped"


@pytest.mark.spec("4.4")
def test_a_base_that_runs_is_stopped_first_and_started_again(ready: Box) -> None:
    ready.limactl("start", "tools-vm")
    assert ready.run("create").code == 0
    assert ready.vms() == {APP: "Running", "tools-vm": "Running"}


@pytest.mark.spec("4.4")
def test_a_named_base_that_is_missing(ready: Box) -> None:
    ended = ready.run("create", "-c", "nope")
    assert ended.code == 1 and "nope" in ended.err and "--clone-from" in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.4")
def test_no_base_and_no_terminal_is_made_from_the_template(box: Box) -> None:
    ended = box.run("create")
    assert ended.code == 0, ended.text
    assert box.vms() == {APP: "Running"}


@pytest.mark.spec("4.5")
def test_a_template_s_home_mount_is_replaced(box: Box) -> None:
    assert box.run("create", "-t", "template:default").code == 0
    found = locations(box, APP)
    assert found == [str(box.project()), str(box.home / ".claude-sandbox" / ".claude")]


def test_a_template_file(box: Box) -> None:
    file = box.root / "my.yaml"
    file.write_text(
        "images: [{location: 'https://images.example/x', arch: x86_64}]\nmounts: [{location: '/srv'}]\n"
    )
    assert (ended := box.run("create", "-t", str(file))).code == 0, ended.text
    assert all("/srv" != m["location"] for m in box.config(APP)["mounts"])


@pytest.mark.spec("4.5")
def test_a_guest_without_9p_is_refused(box: Box) -> None:
    ended = box.run("create", "-t", "template:debian-12")
    assert ended.code == 1 and "sshfs" in ended.err and box.vms() == {}


@pytest.mark.spec("4.5")
def test_a_foreign_base_loses_its_mounts_and_forwards(ready: Box) -> None:
    ready.vm(
        "mine", {"mounts": [{"location": "/srv", "writable": True}], "portForwards": [{"guestPort": 22}]}
    )
    assert (ended := ready.run("create", "-c", "mine")).code == 0, ended.text
    config = ready.config(APP)
    assert all(m["location"] != "/srv" for m in config["mounts"]) and len(config["portForwards"]) == 1
    assert ready.config("mine")["mounts"][0]["location"] == "/srv"


@pytest.mark.spec("4.12")
def test_a_base_without_claude_gets_it_or_fails_loudly(ready: Box) -> None:
    bare = ready.vm("bare")
    claude = bare / "guest" / "home" / ".local" / "bin" / "claude"
    claude.unlink()
    assert (ended := ready.run("-c", "bare")).code == 0, ended.text
    assert len(ready.claude_runs(APP)) == 1
    (bare / "guest" / "no-network").touch()
    ended = ready.run("create", "-c", "bare", cwd=ready.project("b"))
    assert ended.code == 1 and "npm error code ENOTFOUND" in ended.err
    assert "claude-sandbox-b" not in ready.vms()


@pytest.mark.spec("4.6")
def test_changed_flags_on_a_stopped_vm_are_applied(made: Box) -> None:
    made.run("stop")
    assert made.run("start", "--cpus", "3", "--disk", "40GiB", "-p", "18082").code == 0
    config = made.config(APP)
    assert (
        config["cpus"] == 3 and config["disk"] == "40GiB" and config["portForwards"][0]["guestPort"] == 18082
    )


@pytest.mark.spec("4.6")
def test_a_disk_cannot_shrink(made: Box) -> None:
    made.run("stop")
    ended = made.run("start", "--disk", "2GiB")
    assert ended.code == 2 and "only grow" in ended.err


@pytest.mark.spec("4.6")
def test_changed_flags_on_a_running_vm_are_told(made: Box) -> None:
    ended = made.run("start", "--cpus", "3")
    assert ended.code == 0 and "restart" in ended.err and made.config(APP)["cpus"] != 3


@pytest.mark.spec("4.6")
def test_ports_on_a_running_vm(ready: Box) -> None:
    assert ready.run("create", "-p", "18083:80").code == 0
    ended = ready.run("start", "-p", "18084:80")
    assert ended.code == 1 and "Cannot add ports to running VM" in ended.err
    assert ready.run("start", "-p", "18083:80").code == 0


@pytest.mark.spec("4.6")
def test_a_taken_host_port_is_an_error_before_anything_is_made(ready: Box) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = ready.run("create", "-p", f"{port}:80")
    assert ended.code == 1 and f"{port}" in ended.err and "taken" in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.7")
def test_a_vm_whose_config_lima_cannot_read_is_explained(made: Box) -> None:
    made.run("stop")
    (made.lima_home / APP / "lima.yaml").open("a").write("\ncpus: [\n")
    ended = made.run("start")
    assert ended.code == 1 and str(made.lima_home / APP / "lima.yaml") in ended.err


# -- mounts and ports ----------------------------------------------------------------------------


@pytest.mark.spec("4.8")
def test_the_project_is_at_its_own_path(made: Box) -> None:
    project, settings = made.config(APP)["mounts"]
    assert project["mountPoint"] == str(made.project()) and project["writable"] is True
    assert settings["writable"] is False and settings["9p"]["cache"] in ("mmap", "none")


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("name", ["a b", "it's", "x[1]", "a:b", 'q"q', "{{.Dir}}", "$HOME", "#1"])
def test_an_odd_path_is_at_mnt_project_and_said_once(ready: Box, name: str) -> None:
    project = ready.project(name)
    ended = ready.run(cwd=project)
    assert ended.code == 0, ended.text
    assert ended.err.count("/mnt/project") == 1
    (own,) = set(ready.vms()) - {"tools-vm"}
    assert ready.config(own)["mounts"][0]["mountPoint"] == "/mnt/project"
    assert os.path.samefile(ready.claude_runs(own)[0]["cwd"], project)


@pytest.mark.spec("4.8")
def test_a_path_with_unicode_letters_stays(ready: Box) -> None:
    project = ready.project("日本語-é")
    assert ready.run("create", cwd=project).code == 0
    (own,) = set(ready.vms()) - {"tools-vm"}
    assert ready.config(own)["mounts"][0]["mountPoint"] == str(project)


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("name", [b"a,b", b"a\nb", b"a\xffb", b"a\\b"])
def test_a_path_that_the_host_s_side_cannot_carry_is_a_clear_error(ready: Box, name: bytes) -> None:
    project = Path(os.fsdecode(os.fsencode(ready.root) + b"/p/" + name))
    project.mkdir()
    ended = ready.run("create", cwd=project)
    assert ended.code == 1 and "cannot be shared" in ended.err and "Traceback" not in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("place", ["home", "lima", "ssh", "settings", "state", "checkout", "root"])
def test_what_must_not_be_shared_is_refused(ready: Box, place: str) -> None:
    from tests.support.box import ROOT

    (ready.home / ".ssh").mkdir()
    settings = ready.home / ".claude-sandbox" / ".claude" / "x"
    settings.mkdir(parents=True)
    state = ready.home / ".local" / "state" / "claude-sandbox" / "x"
    state.mkdir(parents=True)
    where = {
        "home": ready.home, "lima": ready.lima_home, "ssh": ready.home / ".ssh", "settings": settings,
        "state": state, "checkout": ROOT / "tests", "root": Path("/"),
    }[place]  # fmt: skip
    for words in (("-d", str(where)), ("--mount", str(where)), ("--mount", f"{where}:ro")):
        ended = ready.run("create", *words)
        assert ended.code == 1 and "cannot be shared" in ended.err, (words, ended.text)
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("4.10")
def test_the_ignore_rule_is_last_and_nothing_else_is_forwarded(made: Box) -> None:
    config = made.config(APP)
    (rule,) = config["portForwards"]
    assert rule == {
        "guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any", "guestPortRange": [1, 65535], "ignore": True,
    }  # fmt: skip
    assert config["ssh"]["forwardAgent"] is False


@pytest.mark.spec("4.11")
def test_resources_default_to_half_of_the_host(made: Box) -> None:
    assert made.config(APP)["cpus"] == max(1, (os.cpu_count() or 2) // 2)
    assert made.config(APP)["memory"].endswith("GiB")


# -- settings and login --------------------------------------------------------------------------


@pytest.mark.spec("5.1")
def test_settings_are_mounted_read_only_outside_the_home_and_copied_in(made: Box) -> None:
    settings = made.home / ".claude-sandbox" / ".claude"
    (settings / "hooks").mkdir(parents=True, exist_ok=True)
    (settings / "hooks" / "h.sh").write_text("#!/bin/sh\n")
    (settings / "hooks" / "h.sh").chmod(0o755)
    elsewhere = made.home / "dotfiles.md"
    elsewhere.write_text("linked\n")
    (settings / "CLAUDE.md").symlink_to(elsewhere)
    assert made.run().code == 0
    inside = made.guest(APP) / "home" / ".claude"
    assert (inside / "CLAUDE.md").read_text() == "linked\n" and not (inside / "CLAUDE.md").is_symlink()
    assert os.access(inside / "hooks" / "h.sh", os.X_OK)
    (inside / "hooks" / "h.sh").write_text("#!/bin/sh\nevil\n")
    assert (settings / "hooks" / "h.sh").read_text() == "#!/bin/sh\n"


@pytest.mark.spec("4.13")
def test_no_dialog_at_the_first_run(made: Box) -> None:
    assert made.run(env={"ANTHROPIC_API_KEY": "sk-ant-api03-" + "k" * 40}).code == 0
    state = json.loads((made.guest(APP) / "home" / ".claude.json").read_text())
    assert state["hasCompletedOnboarding"] is True
    assert any(project["hasTrustDialogAccepted"] for project in state["projects"].values())
    assert state["customApiKeyResponses"]["approved"] == ["k" * 20]


@pytest.mark.spec("5.3")
def test_the_host_s_credential_is_handed_over_and_comes_back(made: Box) -> None:
    import time

    file = made.home / ".claude-sandbox" / ".claude" / ".credentials.json"
    file.parent.mkdir(parents=True, exist_ok=True)

    def credential(tag: str, hours: float) -> str:
        oauth = {
            "accessToken": f"sk-ant-oat01-{tag}", "refreshToken": f"sk-ant-ort01-{tag}",
            "expiresAt": int((time.time() + hours * 3600) * 1000), "scopes": ["user:inference"],
            "subscriptionType": "max",
        }  # fmt: skip
        return json.dumps({"claudeAiOauth": oauth})

    file.write_text(credential("old", 1))
    file.chmod(0o600)
    assert made.run().code == 0
    inside = made.guest(APP) / "home" / ".claude" / ".credentials.json"
    assert "oat01-old" in inside.read_text() and inside.stat().st_mode & 0o777 == 0o600
    inside.write_text(credential("new", 8))
    ended = made.run()
    assert ended.code == 0 and "oat01-new" in file.read_text() and APP in ended.err
    assert any("oat01-old" in f.read_text() for f in file.parent.glob(".credentials.json.*"))
    assert "oat01-new" not in ended.text


@pytest.mark.spec("5.4")
def test_the_user_s_own_claude_directory_is_warned_about(ready: Box) -> None:
    own = ready.home / ".claude"
    own.mkdir()
    ended = ready.run("-s", str(own))
    assert ended.code == 0 and "Warning" in ended.err and str(own) in ended.err
    assert locations(ready, APP)[-1] == str(own)


# -- running, host -------------------------------------------------------------------------------


@pytest.mark.spec("6.3")
def test_lima_s_log_is_in_a_file_that_errors_name(ready: Box) -> None:
    ready.fault("start", fail="driver exploded")
    ended = ready.run("create")
    assert ended.code == 1 and "driver exploded" in ended.err
    (log,) = [word for word in ended.err.split() if word.endswith(f"{APP}.log")]
    assert "driver exploded" in Path(log).read_text()


@pytest.mark.spec("4.14")
def test_a_late_guest_agent_is_a_warning(ready: Box) -> None:
    ready.fault("start", degraded="guest agent does not seem to be running; port forwards will not work")
    ended = ready.run("create")
    assert ended.code == 0 and "agent" in ended.err and ready.vms()[APP] == "Running"


@pytest.mark.spec("4.14")
def test_a_slow_host_agent_is_tried_once_more(ready: Box) -> None:
    ready.fault("start.1", slow_agent=True)
    assert (ended := ready.run("create")).code == 0, ended.text
    assert len(ready.calls("limactl", "start")) == 2


def test_missing_mounts_in_the_guest_are_an_error(made: Box) -> None:
    made.run("stop")
    (made.guest(APP) / "no-mounts").touch()
    ended = made.run("start")
    assert ended.code == 1 and "mount" in ended.err


@pytest.mark.spec("7.1")
def test_locks_are_not_in_lima_s_directories_and_sockets_are_short(made: Box) -> None:
    made.run()
    assert not list(made.lima_home.rglob("*.lock"))
    sockets = [p for p in made.runtime.rglob("*.ssh")]
    assert sockets and all(len(os.fsencode(p)) < 104 for p in sockets)


def test_without_limactl(box: Box) -> None:
    box.without("limactl")
    ended = box.run("status")
    assert ended.code == 1 and "Lima" in ended.err and "setup" in ended.err


def test_an_unwritable_state_directory(ready: Box) -> None:
    state = ready.home / ".local" / "state"
    state.parent.mkdir(parents=True, exist_ok=True)
    if state.exists():
        shutil.rmtree(state)
    state.write_text("")
    ended = ready.run("create")
    assert ended.code == 1 and str(state) in ended.err and "Traceback" not in ended.err
