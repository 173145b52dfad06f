"""Every verb and option as a user meets it: output, exit code, --json, --dry-run (spec §1 and §2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from _claude_sandbox.vm import naming
from tests.support.box import ROOT, Box

APP = "claude-sandbox-app"
VERBS = (
    "shell", "create", "start", "stop", "restart", "stop-all", "status", "list", "info", "delete", "prune",
    "update", "rebuild-tools-vm", "setup", "doctor", "settings", "login", "approve", "completion", "uninstall",
    "version", "events", "restart-hooks", "watch", "next", "reply", "notify",
)  # fmt: skip


@pytest.fixture
def made(ready: Box) -> Box:
    """A box in which the project `app` has a running sandbox."""
    ended = ready.run("create")
    assert ended.code == 0, ended.text
    ready.forget_calls()
    return ready


# -- help, version, usage ------------------------------------------------------------------------


@pytest.mark.spec("2.2")
@pytest.mark.parametrize(
    "words", [("--help",), ("-h",), ("help",), ("--version",), ("version",), ("shell", "-h")]
)
def test_help_and_version_need_nothing_installed(box: Box, words: tuple[str, ...]) -> None:
    argv = [sys.executable, "-S", "-E", "-s", str(ROOT / "claude_sandbox.py"), *words]
    done = subprocess.run(argv, env={"PATH": "/nonexistent"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "claude-sandbox" in done.stdout and not done.stderr
    assert box.log() == []


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_s_help_has_examples(box: Box, verb: str) -> None:
    ended = box.run(verb, "--help")
    assert ended.code == 0 and "examples:" in ended.out and verb in ended.out


@pytest.mark.spec("2.2")
def test_unknown_command_names_the_nearest(box: Box) -> None:
    ended = box.run("staus")
    assert ended.code == 2 and "Unknown command: staus" in ended.err and "status" in ended.err


@pytest.mark.spec("2.2")
def test_unknown_option_names_the_nearest(box: Box) -> None:
    ended = box.run("status", "--jsn")
    assert ended.code == 2 and "--jsn" in ended.err and "--json" in ended.err


@pytest.mark.spec("2.2")
@pytest.mark.parametrize(
    "words",
    [
        ("create", "-p", "80:99999"), ("create", "-p", "0"), ("create", "-p", "a:b"), ("create", "-p", ""),
        ("create", "-p", "80:1:2"), ("create", "--cpus", "0"), ("create", "--cpus", "x"),
        ("create", "--memory", "8 apples"), ("create", "--memory", "1KiB"), ("create", "--disk", "-1GiB"),
        ("create", "-c", "../evil"), ("create", "-c", "a b"), ("create", "--mount", "/nonexistent-dir"),
        ("create", "-t", "--evil"), ("stop", "--", "x"), ("stop", "extra"), ("settings", "explode"),
        ("completion", "powershell"), ("create", "--cpus"),
    ],
)  # fmt: skip
def test_bad_values_are_usage_errors_before_anything_is_made(ready: Box, words: tuple[str, ...]) -> None:
    ended = ready.run(*words)
    assert ended.code == 2, ended.text
    assert ended.err.startswith("Error: ") and "Traceback" not in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("2.1")
def test_missing_directory(box: Box) -> None:
    ended = box.run("-d", str(box.root / "gone"), "status")
    assert ended.code == 1 and f"Directory not found: {box.root / 'gone'}" in ended.err


@pytest.mark.spec("2.1")
def test_options_before_and_after_the_verb(ready: Box) -> None:
    other = ready.project("other")
    assert ready.run("-d", str(other), "create", "--cpus", "1").code == 0
    assert ready.run("info", "-d", str(other), "--json").json()["sandbox"]["cpus"] == 1
    assert ready.run("--json", "-d", str(other), "info").json()["sandbox"]["name"] == "claude-sandbox-other"


@pytest.mark.spec("2.1")
def test_sizes_ports_and_mounts_arrive_in_the_vm_s_config(ready: Box) -> None:
    extra = ready.project("extra")
    ended = ready.run(
        "create", "--cpus", "3", "--mem", "3GiB", "--disk", "30GiB", "-p", "18080:8080,19090",
        "--mount", f"{extra}:ro",
    )  # fmt: skip
    assert ended.code == 0, ended.text
    config = ready.config(APP)
    assert (config["cpus"], config["memory"], config["disk"]) == (3, "3GiB", "30GiB")
    assert [(r["hostIP"], r["hostPort"], r["guestPort"]) for r in config["portForwards"][:-1]] == [
        ("127.0.0.1", 18080, 8080),
        ("127.0.0.1", 19090, 19090),
    ]
    assert [(m["mountPoint"], m["writable"]) for m in config["mounts"]][1] == (str(extra), False)


# -- the bare command ----------------------------------------------------------------------------


@pytest.mark.spec("1.1", "6.1")
def test_bare_command_creates_and_runs_claude(ready: Box) -> None:
    project = ready.project()
    ended = ready.run()
    assert ended.code == 0, ended.text
    assert f"fake claude in {project}" in ended.out
    (run,) = ready.claude_runs(APP)
    assert run["cwd"] == str(project)
    assert run["args"] == ["--permission-mode", "bypassPermissions"]
    assert ready.vms() == {APP: "Running", "tools-vm": "Stopped"}


@pytest.mark.spec("1.1")
def test_bare_command_again_uses_the_running_vm(made: Box) -> None:
    assert made.run().code == 0
    assert made.calls("limactl", "start") == [] and made.calls("limactl", "clone") == []
    assert len(made.claude_runs(APP)) == 1


@pytest.mark.spec("4.7")
def test_bare_command_starts_a_stopped_vm(made: Box) -> None:
    made.run("stop")
    assert made.run().code == 0
    assert len(made.claude_runs(APP)) == 1 and made.vms()[APP] == "Running"


def test_claude_s_exit_code_is_ours(made: Box) -> None:
    (made.guest(APP) / "claude.rc").write_text("7")
    assert made.run().code == 7


@pytest.mark.spec("2.1")
def test_arguments_behind_the_dashes_go_to_claude_unchanged(made: Box) -> None:
    words = ["--resume", "it's", "a b", "$HOME", "--", "-d", "*"]
    made.run("--", *words)
    assert made.claude_runs(APP)[-1]["args"] == ["--permission-mode", "bypassPermissions", *words]


@pytest.mark.spec("6.1")
def test_the_user_s_own_permission_mode_wins(made: Box) -> None:
    made.run("--", "--permission-mode", "plan")
    assert made.claude_runs(APP)[-1]["args"] == ["--permission-mode", "plan"]
    made.run("--", "--permission-mode=plan")
    assert made.claude_runs(APP)[-1]["args"] == ["--permission-mode=plan"]


def test_a_vm_without_claude_is_a_clear_error(made: Box) -> None:
    (made.guest(APP) / "home" / ".local" / "bin" / "claude").unlink()
    ended = made.run()
    assert ended.code == 1 and "no `claude`" in ended.err and "Traceback" not in ended.err


# -- tmux ----------------------------------------------------------------------------------------


@pytest.mark.spec("1.1", "6.2")
def test_new_tmux_session_detach_and_attach_again(made: Box) -> None:
    made.with_tmux()
    (made.guest(APP) / "claude.sleep").write_text("30")
    ended = made.tty(talk=[("fake claude in", "\x02d")])
    assert ended.code == 0 and "Detached" in ended.out
    (session,) = sessions(made)
    assert session.startswith(f"{APP}-")
    again = made.tty(talk=[("fake claude in", "\x02d")])
    assert again.code == 0 and sessions(made) == [session]
    assert len(ran(made)) == 1
    other = made.tty("--new", talk=[("fake claude in", "\x02d")])
    assert other.code == 0 and len(sessions(made)) == 2 and len(ran(made)) == 2


def ran(box: Box) -> list[str]:
    """Claude processes begun (they note themselves before they sleep)."""
    return [line for line in (box.guest(APP) / "claude.log").read_text().splitlines() if line == "end"]


def sessions(box: Box) -> list[str]:
    done = subprocess.run(
        [str(box.bin / "tmux"), "list-sessions", "-F", "#{session_name}"], env=box.env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.spec("6.2")
def test_exit_code_comes_through_tmux(made: Box) -> None:
    made.with_tmux()
    (made.guest(APP) / "claude.rc").write_text("9")
    assert made.tty().code == 9


@pytest.mark.spec("6.2")
def test_the_session_s_environment_reaches_it_without_a_trace(made: Box) -> None:
    """A running tmux server does not hand on our environment, and argv would show the secret."""
    made.with_tmux()
    subprocess.run(
        [str(made.bin / "tmux"), "new-session", "-d", "-s", "old", "sleep 60"], env=made.env, check=True
    )
    assert made.tty(env={"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-secret"}).code == 0
    assert made.claude_runs(APP)[-1]["env"]["CLAUDE_CODE_OAUTH_TOKEN"] == "sk-ant-oat01-secret"
    left = [p for p in made.runtime.rglob("*.session")]
    assert left == []


@pytest.mark.spec("6.2")
def test_inside_tmux_the_session_is_renamed(made: Box) -> None:
    made.with_tmux()
    (made.guest(APP) / "claude.sleep").write_text("2")
    command = " ".join(made.argv())
    subprocess.run(
        [str(made.bin / "tmux"), "new-session", "-d", "-s", "work", "-c", str(made.project()), command],
        env=made.env, check=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while sessions(made) == ["work"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sessions(made) == [APP]


@pytest.mark.spec("6.2")
def test_without_tmux_claude_runs_directly(made: Box) -> None:
    ended = made.tty()
    assert ended.code == 0 and "fake claude in" in ended.out


# -- shell ---------------------------------------------------------------------------------------


@pytest.mark.spec("1.2")
def test_shell_reads_commands_from_stdin(made: Box) -> None:
    ended = made.run("shell", input="pwd; echo to-stderr >&2; exit 3\n")
    assert ended.code == 3
    assert ended.out.splitlines()[0] == str(made.project()) and "to-stderr" in ended.err


@pytest.mark.spec("1.2")
def test_shell_runs_a_command_in_the_login_environment(made: Box) -> None:
    ended = made.run("shell", "--", "sh", "-c", 'command -v claude; echo "$1"; exit 4', "sh", "a 'b' $c")
    assert ended.code == 4
    path, argument = ended.out.splitlines()
    assert path.endswith("/.local/bin/claude") and argument == "a 'b' $c"


@pytest.mark.spec("1.2")
def test_shell_on_a_terminal_is_a_login_shell(made: Box) -> None:
    ended = made.tty("shell", talk=[("/p/app", "shopt -q login_shell && echo log''in; pwd; exit 5\n")])
    assert ended.code == 5 and "login" in ended.out and str(made.project()) in ended.out


# -- stop, restart, stop-all ---------------------------------------------------------------------


@pytest.mark.spec("1.3")
def test_stop(made: Box) -> None:
    ended = made.run("stop")
    assert ended.code == 0 and APP in ended.text
    assert made.vms()[APP] == "Stopped"
    assert made.run("stop").code == 0


@pytest.mark.spec("1.3")
def test_stop_without_a_vm_is_success(box: Box) -> None:
    assert box.run("stop").code == 0
    assert box.run("stop", "-f").code == 0


@pytest.mark.spec("1.3")
def test_stop_by_force_when_broken(made: Box) -> None:
    directory = made.lima_home / APP
    os.kill(int((directory / "ha.pid").read_text()), 9)
    (directory / "ha.pid").unlink()
    assert made.vms()[APP] == "Broken"
    assert made.run("stop", "-f").code == 0
    assert made.vms()[APP] == "Stopped"
    assert made.run("stop", "-f").code == 0


@pytest.mark.spec("1.3")
def test_restart_applies_changed_settings(made: Box) -> None:
    assert made.run("restart", "--cpus", "3", "-p", "18081").code == 0
    config = made.config(APP)
    assert config["cpus"] == 3 and config["portForwards"][0]["hostPort"] == 18081
    assert made.vms()[APP] == "Running"
    assert len((made.guest(APP) / "boots").read_text().split()) == 2


def test_restart_without_a_vm(box: Box) -> None:
    ended = box.run("restart")
    assert ended.code == 1 and "no sandbox" in ended.err


@pytest.mark.spec("1.4")
def test_stop_all_stops_ours_only(made: Box) -> None:
    made.run("create", cwd=made.project("two"))
    made.vm("claude-sandbox-foreign")
    made.limactl("start", "claude-sandbox-foreign")
    ended = made.run("stop-all")
    assert ended.code == 0
    assert made.vms() == {
        APP: "Stopped", "claude-sandbox-two": "Stopped", "claude-sandbox-foreign": "Running", "tools-vm": "Stopped",
    }  # fmt: skip


@pytest.mark.spec("1.11")
@pytest.mark.parametrize("verb", ["stop", "restart", "stop-all"])
def test_asks_on_a_terminal_when_claude_works(made: Box, verb: str) -> None:
    claude_works(made, APP)
    ended = made.tty(verb, talk=[("Claude is working in", "n\n")])
    assert ended.code == 1 and made.vms()[APP] == "Running"
    assert made.tty(verb, talk=[("Claude is working in", "y\n")]).code == 0
    assert made.vms()[APP] == ("Running" if verb == "restart" else "Stopped")


@pytest.mark.spec("1.11")
def test_does_not_ask_without_a_terminal(made: Box) -> None:
    claude_works(made, APP)
    assert made.run("stop").code == 0
    assert made.vms()[APP] == "Stopped"


def claude_works(box: Box, name: str) -> None:
    """As Claude says it of itself: a session file of a live process."""
    directory = box.guest(name) / "home" / ".claude" / "sessions"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{os.getpid()}.json").write_text(json.dumps({"pid": os.getpid(), "status": "busy"}))


# -- status, list, info --------------------------------------------------------------------------


@pytest.mark.spec("1.6")
def test_status_of_an_empty_host(box: Box) -> None:
    ended = box.run("status")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "=== Claude Sandbox Status ===",
        "Base VM: (not set)",
        "Template: template:default",
        "Hooks server: Not running",
        "Audio server: Not running",
        "VMs:",
        "  No sandbox VMs created yet",
    ]


@pytest.mark.spec("1.6")
def test_status_lists_ours_with_project_and_resources(made: Box) -> None:
    made.vm("claude-sandbox-foreign")
    lines = made.run("status").out.splitlines()
    (line,) = [line for line in lines if line.startswith("  ")]
    assert line.startswith(f"  {APP}: Running") and str(made.project()) in line and "GiB" in line
    made.run("stop")
    assert f"  {APP}: Stopped" in made.run("status").out


@pytest.mark.spec("1.6")
def test_status_as_json(made: Box) -> None:
    data = made.run("status", "--json").json()
    assert data["vms"][0]["name"] == APP and data["vms"][0]["project"] == str(made.project())
    assert data["hooks_server"] == "Not running"


@pytest.mark.spec("3.1")
def test_status_shows_base_and_template_from_the_environment(box: Box) -> None:
    out = box.run("status", env={"CLAUDE_SANDBOX_BASE_VM": "mine"}).out
    assert "Base VM: mine" in out
    out = box.run("status", env={"CLAUDE_SANDBOX_TEMPLATE": "template:ubuntu-lts"}).out
    assert "Template: template:ubuntu-lts" in out


def test_status_never_changes_anything(made: Box) -> None:
    made.run("status")
    assert {argv[0] for argv in made.calls()} <= {"list", "--version"}


@pytest.mark.spec("1.10")
def test_list_and_info(made: Box) -> None:
    out = made.run("list").out
    assert APP in out and "Running" in out and str(made.project()) in out
    assert [row["name"] for row in made.run("list", "--json").json()] == [APP]
    info = made.run("info")
    assert info.code == 0 and str(made.project()) in info.out and "read-only" in info.out
    assert made.run("info", "--json").json()["sandbox"]["status"] == "Running"
    missing = made.run("info", cwd=made.project("none"))
    assert missing.code == 1 and "no sandbox" in missing.err


# -- create, start -------------------------------------------------------------------------------


@pytest.mark.spec("1.10")
def test_create_does_not_attach(ready: Box) -> None:
    assert ready.run("create").code == 0
    assert ready.claude_runs(APP) == [] and ready.vms()[APP] == "Running"


def test_create_twice_is_an_error(made: Box) -> None:
    ended = made.run("create")
    assert ended.code == 1 and APP in ended.err


@pytest.mark.spec("1.10")
def test_start_does_not_attach(made: Box) -> None:
    made.run("stop")
    assert made.run("start").code == 0
    assert made.claude_runs(APP) == [] and made.vms()[APP] == "Running"
    assert made.run("start").code == 0


# -- delete, prune -------------------------------------------------------------------------------


@pytest.mark.spec("1.7")
def test_delete_removes_the_vm_and_no_file_of_the_project(made: Box) -> None:
    (made.project() / "file").write_text("x")
    assert made.run("delete").code == 0
    assert made.vms() == {"tools-vm": "Stopped"}
    assert (made.project() / "file").read_text() == "x"
    assert made.run("delete").code == 0


@pytest.mark.spec("1.7")
def test_delete_asks_on_a_terminal(made: Box) -> None:
    ended = made.tty("delete", talk=[("[y/N]", "\n")])
    assert ended.code == 1 and APP in made.vms()
    assert made.tty("delete", talk=[("[y/N]", "y\n")]).code == 0
    assert APP not in made.vms()


@pytest.mark.spec("1.7")
@pytest.mark.parametrize("option", ["-y", "-f"])
def test_delete_without_a_question(made: Box, option: str) -> None:
    assert made.tty("delete", option).code == 0
    assert APP not in made.vms()


@pytest.mark.spec("1.8")
def test_prune_only_what_we_made(made: Box) -> None:
    made.run("create", cwd=made.project("two"))
    made.run("stop")
    made.vm("claude-sandbox-foreign")
    made.limactl("clone", APP, "claude-sandbox-copy")
    ended = made.run("prune")
    assert ended.code == 0 and "2" in ended.text
    assert sorted(made.vms()) == ["claude-sandbox-copy", "claude-sandbox-foreign", "tools-vm"]
    assert made.run("prune").code == 0


@pytest.mark.spec("1.8")
def test_prune_by_prefix(made: Box) -> None:
    made.run("create", cwd=made.project("two"))
    assert made.run("prune", "claude-sandbox-t").code == 0
    assert sorted(made.vms()) == [APP, "tools-vm"]
    assert made.run("prune", "tools").code == 0
    assert sorted(made.vms()) == [APP, "tools-vm"]


@pytest.mark.spec("1.8")
def test_prune_asks_on_a_terminal(made: Box) -> None:
    ended = made.tty("prune", talk=[("[y/N]", "n\n")])
    assert ended.code == 1 and APP in made.vms()
    assert made.tty("prune", "-y").code == 0 and APP not in made.vms()


@pytest.mark.spec("1.8")
def test_prune_orphans(made: Box) -> None:
    gone = made.project("gone")
    made.run("create", cwd=gone)
    gone.rmdir()
    assert made.run("prune", "--orphans", "--dry-run").out.startswith("1 sandbox to delete:\n")
    assert made.run("prune", "--orphans").code == 0
    assert sorted(made.vms()) == [APP, "tools-vm"]


def test_prune_with_nothing_to_delete_says_so(made: Box) -> None:
    nothing = "There is nothing to delete.\n"
    for words in (("--orphans",), ("--orphans", "--dry-run"), ("other", "--dry-run"), ("other",)):
        assert made.run("prune", *words).out == nothing, words
    assert made.run("prune", "--orphans", "--dry-run", "--json").json() == []
    assert made.run("prune", "--orphans", "-q").out == ""
    assert made.run("delete").code == 0
    assert made.run("prune", "--dry-run").out == nothing


# -- dry runs ------------------------------------------------------------------------------------


@pytest.mark.spec("1.10")
@pytest.mark.parametrize(
    "words", [(), ("shell", "--", "true"), ("create",), ("start",), ("restart",), ("stop",), ("delete",), ("prune",),
              ("stop-all",), ("update",), ("uninstall",)],
)  # fmt: skip
def test_dry_run_of_an_existing_sandbox_changes_nothing(made: Box, words: tuple[str, ...]) -> None:
    before = (made.vms(), (made.lima_home / APP / "lima.yaml").read_text())
    ended = made.run(*words[:1], "--dry-run", *words[1:])
    assert "Traceback" not in ended.err
    assert ended.code == (1 if words == ("create",) else 0), ended.text
    assert (made.vms(), (made.lima_home / APP / "lima.yaml").read_text()) == before
    assert {argv[0] for argv in made.calls()} <= {"list", "--version", "template"}
    assert made.claude_runs(APP) == []


@pytest.mark.spec("1.10")
def test_dry_run_of_create_prints_the_commands(ready: Box) -> None:
    ended = ready.run("create", "--dry-run")
    assert ended.code == 0, ended.text
    assert f"clone --tty=false tools-vm {APP}" in ended.text and "start --tty=false" in ended.text
    assert ready.vms() == {"tools-vm": "Stopped"}


# -- the small verbs -----------------------------------------------------------------------------


@pytest.mark.spec("1.10")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(box: Box, shell: str) -> None:
    ended = box.run("completion", shell)
    assert ended.code == 0 and "rebuild-tools-vm" in ended.out and "stop-all" in ended.out
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=ended.out, text=True, check=False).returncode == 0


@pytest.mark.spec("2.1")
def test_quiet_and_verbose(ready: Box) -> None:
    assert ready.run("create", "-q").err.count("Cloning") == 0
    ended = ready.run("stop", "-v")
    assert "limactl" in ended.err and "stop" in ended.err


def test_errors_as_json(box: Box) -> None:
    ended = box.run("info", "--json")
    assert ended.code == 1 and "no sandbox" in ended.json()["error"]["message"]


@pytest.mark.spec("1.10")
def test_doctor(ready: Box) -> None:
    ended = ready.run("doctor")
    assert ended.code in (0, 1) and ("✓" in ended.out)
    checks = ready.run("doctor", "--json").json()
    assert all(
        {"name", "ok"} <= set(check) for check in (checks if isinstance(checks, list) else checks["checks"])
    )


@pytest.mark.spec("5.3")
def test_login_stores_a_token_and_forgets_it(box: Box) -> None:
    token = "sk-ant-oat01-" + "a" * 80
    assert box.run("login", input=token + "\n").code == 0
    file = box.home / ".claude-sandbox" / "oauth-token"
    assert file.read_text().strip() == token and file.stat().st_mode & 0o777 == 0o600
    assert box.run("login", "--forget").code == 0
    assert not file.exists()


@pytest.mark.spec("1.10")
def test_uninstall_says_what_it_would_remove(made: Box) -> None:
    ended = made.tty("uninstall", talk=[("[y/N]", "n\n")])
    assert ended.code == 1 and str(made.home) in ended.out and APP in made.vms()


@pytest.mark.spec("1.10", "5.2")
def test_settings_diff_and_pull(made: Box) -> None:
    settings = made.home / ".claude-sandbox" / ".claude"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "CLAUDE.md").write_text("host\n")
    assert made.run().code == 0
    guest = made.guest(APP) / "home" / ".claude" / "CLAUDE.md"
    assert guest.read_text() == "host\n"
    guest.write_text("guest\n")
    ended = made.run("settings", "diff")
    assert ended.code == 0 and "CLAUDE.md" in ended.out and "+guest" in ended.out
    assert (settings / "CLAUDE.md").read_text() == "host\n"
    assert made.run("settings", "pull", "-y").code == 0
    assert (settings / "CLAUDE.md").read_text() == "guest\n"


@pytest.mark.spec("5.2")
def test_settings_files_are_removed_from_the_guest_too(made: Box) -> None:
    settings = made.home / ".claude-sandbox" / ".claude"
    (settings / "commands").mkdir(parents=True, exist_ok=True)
    (settings / "commands" / "x.md").write_text("x")
    made.run()
    there = made.guest(APP) / "home" / ".claude" / "commands" / "x.md"
    assert there.read_text() == "x"
    (settings / "commands" / "x.md").unlink()
    made.run()
    assert not there.exists()


def test_the_front_door_is_importable() -> None:
    import claude_sandbox

    assert callable(claude_sandbox.main)
    assert Path(claude_sandbox.__file__).name == "claude_sandbox.py"
    assert naming.PREFIX == "claude-sandbox-"


# -- the tools VM, updates -----------------------------------------------------------------------

OFFLINE = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


@pytest.mark.spec("1.9")
def test_a_failed_rebuild_leaves_the_old_one(ready: Box) -> None:
    """mmdebstrap is not on this PATH and no image host answers."""
    ended = ready.run("rebuild-tools-vm", env=OFFLINE)
    assert ended.code == 1 and "Traceback" not in ended.err and "an error inside" not in ended.err
    assert ready.vms() == {"tools-vm": "Stopped"} and (ready.lima_home / "tools-vm" / "protected").exists()
    assert ready.run("create").code == 0


@pytest.mark.parametrize(("words", "named"), [(("../x",), "../x"), (("--only", "claud"), "claude")])
def test_rebuild_checks_its_words_first(ready: Box, words: tuple[str, ...], named: str) -> None:
    ended = ready.run("rebuild-tools-vm", *words, env=OFFLINE)
    assert ended.code == 2 and named in ended.err


def test_rebuild_never_touches_a_foreign_vm_of_that_name(box: Box) -> None:
    box.vm("tools-vm")
    ended = box.run("rebuild-tools-vm", env=OFFLINE)
    assert ended.code == 1 and "tools-vm" in ended.err and box.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("1.11")
def test_asks_before_a_base_is_stopped_in_which_claude_works(made: Box) -> None:
    claude_works(made, APP)
    ended = made.tty("create", "-c", APP, cwd=made.project("two"), talk=[("Claude is working in", "n\n")])
    assert ended.code == 1 and sorted(made.vms()) == [APP, "tools-vm"]
    assert made.vms()[APP] == "Running"


@pytest.mark.spec("4.12")
def test_update_brings_a_newer_claude(made: Box) -> None:
    ended = made.run("update")
    assert ended.code == 0 and "2.1.329" in ended.out
    (made.guest(APP) / "no-network").touch()
    failed = made.run("update")
    assert failed.code == 1 and "reached" in failed.err and "Traceback" not in failed.err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_update_shows_nothing_that_steers_the_terminal(made: Box, flags: tuple[str, ...]) -> None:
    """Whoever is root in the guest decides what its `claude --version` prints."""
    evil = r"printf '9.9 \033]0;owned\007\033]52;c;ZXZpbA==\007\033[2J\302\2332J\342\200\256x\r\n\n'"
    (made.guest(APP) / "home" / ".bash_profile").write_text(f"claude() {{ {evil}; }}\n")
    ended = made.run("update", *flags)
    assert ended.code == 0 and "9.9" in ended.out
    assert all(c.isprintable() or c == "\n" for c in ended.text), ascii(ended.text)


def test_a_guest_s_nested_session_files_do_not_stop_a_stop(made: Box) -> None:
    """Whether Claude is busy is asked of the guest; its answer may be anything."""
    file = made.guest(APP) / "home" / ".claude" / "sessions" / "1.json"
    file.parent.mkdir(parents=True)
    file.write_text("[" * 4000)
    ended = made.tty("stop")
    assert ended.code == 0 and made.vms()[APP] == "Stopped", ended.text
