"""What a hostile guest tries with what is shared: symlinks, planted project files, templates (spec 3.2, 4.3, 4.8)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.box import Box, Ended

APP = "claude-sandbox-app"
IMAGE = {"location": "https://images.example/x.img", "arch": "x86_64"}


@pytest.fixture
def made(ready: Box) -> Box:
    """With a running sandbox of the project `app`."""
    assert (ended := ready.run("create")).code == 0, ended.text
    return ready


@pytest.fixture
def secret(ready: Box) -> Path:
    path = ready.home / ".aws"
    path.mkdir()
    (path / "credentials").write_text("aws_secret=1\n")
    return path


def shared(box: Box, name: str = APP) -> list[str]:
    """What Lima would share with a VM."""
    answer = box.limactl("list", "--format", "{{json .Config}}", name)
    return [mount["location"] for mount in answer.json()["mounts"]]


def wishes(box: Box, text: str) -> Path:
    file = box.project() / ".claude-sandbox.yaml"
    file.write_text(text)
    return file


def refused(ended: Ended, *words: str) -> None:
    assert ended.code != 0 and "Traceback" not in ended.text and "inside claude-sandbox" not in ended.text
    for word in words:
        assert word in ended.err, ended.err


# -- approvals are bound to where they lead --------------------------------------------------------


@pytest.mark.spec("3.2")
def test_a_mount_below_the_project_is_refused_before_anybody_is_asked(ready: Box, secret: Path) -> None:
    data = ready.project() / "data"
    data.mkdir()
    file = wishes(ready, "cpus: 1\nmounts: [./data]\n")
    refused(ready.run("create"), f"{file}:2:", "leads through the project")
    refused(ready.run("approve", "-y"), f"{file}:2:")
    data.rmdir()
    data.symlink_to(secret)
    refused(ready.run("create"), f"{file}:2:", "leads through the project")
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("3.2")
def test_a_sandbox_that_shares_below_its_project_does_not_follow_what_the_guest_made_of_it(
    ready: Box, secret: Path
) -> None:
    """As an earlier version made it; the project's file wants it still."""
    assert ready.run("create").code == 0
    assert ready.run("stop").code == 0
    data = ready.project() / "data"
    data.mkdir()
    document = ready.config(APP)
    mount = {"location": str(data), "mountPoint": str(data), "writable": True}
    document["mounts"].insert(1, {**document["mounts"][0], **mount})
    (ready.lima_home / APP / "lima.yaml").write_text(yaml.safe_dump(document))
    assert (ended := ready.run("start")).code == 0, ended.text
    data.rmdir()
    data.symlink_to(secret)
    wishes(ready, "mounts: [./data]\n")
    refused(ready.run("restart"), "symlink", str(data))
    # Found before anything was stopped; a start finds it, too.
    assert ready.vms()[APP] == "Running" and str(secret) not in json.dumps(ready.config(APP))
    assert ready.run("stop").code == 0
    refused(ready.run("start"), "leads through the project")
    (ready.project() / ".claude-sandbox.yaml").unlink()
    refused(ready.run("start"), "symlink", str(data))
    assert ready.vms()[APP] == "Stopped" and str(secret) not in json.dumps(ready.config(APP))


@pytest.mark.spec("3.2")
def test_an_approval_is_for_where_a_mount_leads(ready: Box, secret: Path) -> None:
    (ready.root / "data").mkdir()
    link = ready.root / "link"
    link.symlink_to(ready.root / "data")
    file = wishes(ready, f"mounts: ['{link}:ro']\n")
    asked = ready.run("create")
    refused(asked, str(file), str(ready.root / "data"))
    assert ready.run("approve", "-y").code == 0
    assert ready.run("create").code == 0
    assert shared(ready)[1] == str(ready.root / "data")
    link.unlink()
    link.symlink_to(secret)
    refused(ready.run("start"), "approv", str(secret))
    refused(ready.run("create"), "approv", str(secret))
    link.unlink()
    link.symlink_to(ready.root / "data")
    assert ready.run("start").code == 0


def test_an_approval_of_an_older_version_is_asked_for_again(ready: Box) -> None:
    import hashlib

    (ready.root / "data").mkdir()
    file = wishes(ready, f"mounts: ['{ready.root / 'data'}']\n")
    approvals = ready.home / ".local" / "state" / "claude-sandbox" / "approvals.json"
    approvals.parent.mkdir(parents=True)
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    approvals.write_text(json.dumps({str(ready.project()): old}))
    refused(ready.run("create"), "approv", str(ready.root / "data"))


def test_settings_below_the_project_are_refused(ready: Box) -> None:
    keys = ready.home / ".ssh"
    keys.mkdir()
    (keys / "id_ed25519").write_text("private key")
    (ready.project() / "link").symlink_to(keys)
    file = wishes(ready, "settings: ./link\n")
    refused(ready.run("create"), f"{file}:1:")
    file.unlink()
    refused(ready.run("create", "-s", "link"), "cannot be shared")
    (ready.project() / "mine").mkdir()
    refused(ready.run("create", "-s", "mine"), "cannot be shared", "the settings directory")
    refused(ready.run("create", "-s", "."), str(ready.project()))
    assert ready.vms() == {"tools-vm": "Stopped"}


@pytest.mark.spec("3.2")
def test_a_template_is_approved_with_its_content(ready: Box) -> None:
    template = ready.project() / "vm.yaml"
    template.write_text(json.dumps({"images": [IMAGE], "env": {"WHO": "good"}}))
    wishes(ready, "template: ./vm.yaml\n")
    refused(ready.run("create"), "approv", "sha256:")
    assert ready.run("approve", "-y").code == 0
    template.write_text(json.dumps({"images": [IMAGE], "env": {"WHO": "evil"}}))
    refused(ready.run("create"), "approv")
    template.write_text(json.dumps({"images": [IMAGE], "env": {"WHO": "good"}}))
    assert (ended := ready.run("create")).code == 0, ended.text
    assert ready.config(APP)["env"] == {"WHO": "good"}


@pytest.mark.parametrize("written", ["file://{}", "{}", "./a:b.yaml", "FILE://{}"])
def test_a_template_file_is_one_however_it_is_written(ready: Box, written: str) -> None:
    """What looks like a locator of Lima's would not be bound to its content."""
    template = ready.project() / "a:b.yaml"
    template.write_text(json.dumps({"images": [IMAGE], "audio": {"device": "default"}}))
    wishes(ready, f"template: '{written.format(template)}'\n")
    asked = ready.run("create")
    refused(asked)
    assert "sha256:" in asked.err or "there is nothing in" in asked.err, asked.err
    wishes(ready, f"template: 'template:../../..{template}'\n")
    refused(ready.run("approve", "-y"), "is not a template")


def test_an_approved_template_is_not_read_again_by_lima(ready: Box) -> None:
    """What was hashed is what Lima gets: never the path, which the guest can write."""
    template = ready.project() / "vm.yaml"
    template.write_text(json.dumps({"images": [IMAGE]}))
    wishes(ready, "template: ./vm.yaml\n")
    assert ready.run("approve", "-y").code == 0
    assert ready.run("create").code == 0
    assert not [argv for argv in ready.calls() if str(template) in argv]


# -- nothing leads through what another guest can write ---------------------------------------------


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("how", ["flag", "user file", "settings"])
def test_what_lies_in_another_sandbox_s_project_is_refused(ready: Box, secret: Path, how: str) -> None:
    other = ready.project("other")
    (other / "data").mkdir()
    assert ready.run("create", cwd=other).code == 0
    words: tuple[str, ...] = ()
    if how == "user file":
        file = ready.home / ".config" / "claude-sandbox" / "config.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"mounts: ['{other}/data:ro']\n")
    else:
        words = ("--mount", f"{other}/data:ro") if how == "flag" else ("-s", f"{other}/data")
    refused(ready.run("create", *words), "claude-sandbox-other", str(other))
    (other / "data").rmdir()
    (other / "data").symlink_to(secret)
    refused(ready.run("create", *words), "claude-sandbox-other", str(other))
    assert sorted(ready.vms()) == ["claude-sandbox-other", "tools-vm"]


def test_another_project_itself_can_be_shared(ready: Box) -> None:
    """Its guest cannot replace it: its name is in a directory that no guest can write."""
    other = ready.project("other")
    assert ready.run("create", cwd=other).code == 0
    assert (ended := ready.run("create", "--mount", f"{other}:ro")).code == 0, ended.text
    assert shared(ready)[1] == str(other)


def test_a_writable_mount_is_the_guest_s_too(ready: Box) -> None:
    (ready.root / "work" / "sub").mkdir(parents=True)
    assert ready.run("create", "--mount", str(ready.root / "work")).code == 0
    other = ready.project("other")
    refused(ready.run("create", "--mount", str(ready.root / "work" / "sub"), cwd=other), APP)
    refused(
        ready.run("create", "--mount", str(ready.project()), "--mount", str(ready.project() / "x"), cwd=other)
    )


def test_the_order_of_mounts_does_not_matter(ready: Box) -> None:
    outer = ready.home / "shared"
    (outer / "sub").mkdir(parents=True)
    for first, second in ((outer, outer / "sub"), (outer / "sub", outer)):
        refused(ready.run("create", "--mount", str(first), "--mount", str(second)), f"leads through {outer}")


def test_a_loop_of_symlinks_stops_no_other_sandbox(ready: Box) -> None:
    """Made by the guest of the outer project, where the inner one was."""
    assert ready.run("create").code == 0
    inner = ready.project() / "inner"
    inner.mkdir()
    assert ready.run("create", cwd=inner).code == 0 and ready.run("stop", cwd=inner).code == 0
    inner.rmdir()
    inner.symlink_to(inner)
    other = ready.project("other")
    for words in (("create",), ("shell", "--", "true")):
        assert (ended := ready.run(*words, cwd=other)).code == 0, ended.text


def test_a_project_is_not_found_by_a_guest_s_symlink(ready: Box, secret: Path) -> None:
    outer = ready.project("outer")
    assert ready.run("create", cwd=outer).code == 0
    (outer / "inner").mkdir()
    (outer / "trap").symlink_to(secret)
    refused(ready.run("create", "-d", str(outer / "trap")), "symlink", "claude-sandbox-outer")
    refused(ready.run("create", cwd=outer / "trap", env={"PWD": str(outer / "trap")}), "symlink")
    assert (ended := ready.run("create", "-d", str(outer / "inner"))).code == 0, ended.text


@pytest.mark.spec("5.1")
def test_a_link_in_the_settings_to_what_a_guest_can_write_is_left_out(made: Box) -> None:
    settings = made.home / ".claude-sandbox" / ".claude"
    (made.project() / "agents").mkdir()
    (made.project() / "agents" / "a.md").write_text("planted\n")
    (made.home / "dotfiles").mkdir()
    (made.home / "dotfiles" / "CLAUDE.md").write_text("mine\n")
    (settings / "agents").symlink_to(made.project() / "agents")
    (settings / "CLAUDE.md").symlink_to(made.home / "dotfiles" / "CLAUDE.md")
    ended = made.run()
    inside = made.guest(APP) / "home" / ".claude"
    assert ended.code == 0 and "agents" in ended.err and not (inside / "agents").exists()
    assert (inside / "CLAUDE.md").read_text() == "mine\n"


# -- the moment between our look and QEMU's ---------------------------------------------------------


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("verb", ["create", "start"])
def test_a_directory_swapped_in_the_moment_of_the_start(
    ready: Box, secret: Path, verb: str, back: bool
) -> None:
    """A guest of an outer sandbox replaces an inner project while Lima starts."""
    outer = ready.project("outer")
    assert ready.run("create", cwd=outer).code == 0
    inner = outer / "inner"
    inner.mkdir()
    if verb == "start":
        assert ready.run("create", "-d", str(inner)).code == 0
        assert ready.run("stop", "-d", str(inner)).code == 0
    ready.fault("start", swap=[str(inner), str(secret), *(["back"] if back else [])])
    ended = ready.run(verb, "-d", str(inner))
    refused(ended, str(secret), "stopped")
    assert ready.vms().get("claude-sandbox-inner", "Stopped") == "Stopped"


# -- what is never shared ---------------------------------------------------------------------------

TRUSTED = (".cache", ".cache/claude-sandbox", ".claude", ".config/autostart", ".config/systemd/user", ".local/bin",
           ".gnupg", ".local/share/applications", ".config/fish", ".config", ".local", ".config/git",
           "Library/LaunchAgents", ".ssh")  # fmt: skip


@pytest.mark.spec("4.8")
@pytest.mark.parametrize("place", TRUSTED)
def test_what_the_host_runs_or_trusts_is_refused(ready: Box, place: str) -> None:
    where = ready.home / place
    where.mkdir(parents=True, exist_ok=True)
    for words in (("--mount", str(where)), ("--mount", f"{where}:ro"), ("-d", str(where))):
        refused(ready.run("create", *words), "cannot be shared")
    assert ready.vms() == {"tools-vm": "Stopped"}


def test_the_runtime_directory_and_what_would_contain_it(ready: Box) -> None:
    without: dict[str, str | None] = {"XDG_RUNTIME_DIR": None}
    refused(ready.run("create", "-d", "/tmp", env=without), "/tmp cannot be shared")
    refused(ready.run("create", "-d", "/tmp"), "/tmp cannot be shared")
    refused(ready.run("create", "--mount", str(ready.runtime)), "cannot be shared")
    if os.path.isdir("/run/user"):
        refused(ready.run("create", "--mount", "/run/user"), "cannot be shared")


def test_a_directory_on_path(ready: Box) -> None:
    tools = ready.root / "tools" / "bin"
    tools.mkdir(parents=True)
    env = {"PATH": f"{ready.env['PATH']}:{tools}:{ready.project() / 'venv' / 'bin'}"}
    for words in (("--mount", str(tools)), ("--mount", str(tools.parent)), ("-d", str(tools))):
        refused(ready.run("create", *words, env=env), "PATH")
    (ready.project() / "venv" / "bin").mkdir(parents=True)
    ended = ready.run("create", "--mount", f"{tools.parent}:ro", env=env)
    assert ended.code == 0 and "Warning: Programs of this project are on your PATH" in ended.err, ended.text
    assert str(ready.project() / "venv" / "bin") in ended.err


def test_a_sandbox_that_shares_such_a_place_already_does_not_start_again(made: Box) -> None:
    """An earlier version allowed it."""
    made.run("stop")
    (made.home / ".claude").mkdir()
    document = made.config(APP)
    where = str(made.home / ".claude")
    document["mounts"].insert(1, {**document["mounts"][0], "location": where, "mountPoint": where})
    (made.lima_home / APP / "lima.yaml").write_text(yaml.safe_dump(document))
    refused(made.run("start"), "cannot be shared", where)
    (made.root / "x").mkdir()
    assert (ended := made.run("start", "--mount", str(made.root / "x"))).code == 0, ended.text


@pytest.mark.spec("4.8")
@pytest.mark.parametrize(
    "place", ["~", "LIMA_HOME", ".ssh", ".gnupg", ".claude-sandbox", ".claude/projects", "/"]
)
def test_settings_that_a_sandbox_must_not_read(ready: Box, place: str) -> None:
    where = {"~": ready.home, "LIMA_HOME": ready.lima_home, "/": Path("/")}.get(place, ready.home / place)
    where.mkdir(parents=True, exist_ok=True)
    for words in (("create",), ("start",), ()):
        refused(ready.run(*words, "-s", str(where)), "cannot be shared", "settings")
    assert ready.vms() == {"tools-vm": "Stopped"}


def test_a_running_sandbox_does_not_get_such_settings_either(made: Box) -> None:
    keys = made.home / ".ssh"
    keys.mkdir()
    (keys / "id_ed25519").write_text("private key")
    refused(made.run("-s", str(keys)), "cannot be shared")
    refused(made.run("shell", "-s", str(keys), "--", "true"), "cannot be shared")
    assert not (made.guest(APP) / "home" / ".claude" / "id_ed25519").exists()


def test_settings_beside_the_default_ones_are_fine(ready: Box) -> None:
    mine = ready.home / ".claude-sandbox" / "work"
    mine.mkdir(parents=True)
    assert (ended := ready.run("create", "-s", str(mine))).code == 0, ended.text


# -- templates --------------------------------------------------------------------------------------

FORBIDDEN: dict[str, Any] = {
    "audio": {"device": "coreaudio"},
    "video": {"display": "vnc"},
    "networks": [{"lima": "shared"}],
    "additionalDisks": [{"name": "data"}],
    "nestedVirtualization": True,
    "provision.mode": None,
    "provision.playbook": None,
    "vmOpts.krunkit": None,
    "somethingNew": {"path": "/etc"},
    "vmType": "wsl2",
}
NESTED: dict[str, Any] = {
    "provision.mode": {"provision": [{"mode": "ansible"}]},
    "provision.playbook": {"provision": [{"mode": "system", "playbook": "x.yaml"}]},
    "vmOpts.krunkit": {"vmOpts": {"krunkit": {"gpu": True}}},
}


@pytest.mark.spec("4.5")
@pytest.mark.parametrize("key", sorted(FORBIDDEN))
@pytest.mark.parametrize("origin", ["-t", "project file"])
def test_a_template_does_not_reach_the_host(ready: Box, key: str, origin: str) -> None:
    document = {"images": [IMAGE], **NESTED.get(key, {key: FORBIDDEN[key]})}
    words = _template(ready, document, origin)
    refused(ready.run("create", *words), "was not used", key)
    assert ready.vms() == {"tools-vm": "Stopped"}


def _template(box: Box, document: dict[str, Any], origin: str) -> tuple[str, ...]:
    if origin == "-t":
        (box.root / "vm.yaml").write_text(json.dumps(document))
        return ("-t", str(box.root / "vm.yaml"))
    (box.project() / "vm.yaml").write_text(json.dumps(document))
    wishes(box, "template: vm.yaml\n")
    assert box.run("approve", "-y").code == 0
    return ()


HOST_FILES: dict[str, Any] = {
    "images": {"images": [{"location": "FILE", "arch": "x86_64"}]},
    "images.kernel": {"images": [{**IMAGE, "kernel": {"location": "FILE"}}]},
    "images.initrd": {"images": [{**IMAGE, "initrd": {"location": "file://FILE"}}]},
    "firmware.images": {"images": [IMAGE], "firmware": {"images": [{"location": "FILE"}]}},
    "containerd.archives": {"images": [IMAGE], "containerd": {"archives": [{"location": "FILE"}]}},
    "caCerts.files": {"images": [IMAGE], "caCerts": {"files": ["FILE"]}},
    "provision.file": {"images": [IMAGE], "provision": [{"mode": "system", "file": "FILE"}]},
    "base": {"images": [IMAGE], "base": "FILE"},
}


@pytest.mark.spec("4.5")
@pytest.mark.parametrize("key", sorted(HOST_FILES))
@pytest.mark.parametrize("origin", ["project file", "-t in the project"])
def test_a_template_that_a_guest_may_write_names_no_file_of_the_host(
    ready: Box, key: str, origin: str
) -> None:
    (ready.root / "file").write_text("x")
    document = json.loads(json.dumps(HOST_FILES[key]).replace("FILE", str(ready.root / "file")))
    words = _template(ready, document, "project file")
    if origin != "project file":
        (ready.project() / ".claude-sandbox.yaml").unlink()
        words = ("-t", "vm.yaml")
    refused(ready.run("create", *words), "was not used", key)
    assert ready.vms() == {"tools-vm": "Stopped"}


def test_the_user_s_own_template_has_local_images(ready: Box) -> None:
    (ready.root / "x.img").write_text("image")
    ready.project("app")
    words = _template(ready, {"images": [{"location": str(ready.root / "x.img"), "arch": "x86_64"}]}, "-t")
    assert (ended := ready.run("create", *words)).code == 0, ended.text
    shutil.copy(ready.root / "x.img", ready.project("b") / "x.img")
    (ready.project("b") / "vm.yaml").write_text(
        json.dumps({"images": [{"location": str(ready.project("b") / "x.img"), "arch": "x86_64"}]})
    )
    assert (ended := ready.run("create", "-t", "vm.yaml", cwd=ready.project("b"))).code == 0, ended.text


def test_not_even_his_own_template_reads_keys(ready: Box) -> None:
    (ready.home / ".ssh").mkdir()
    (ready.home / ".ssh" / "id_ed25519").write_text("private key")
    words = _template(ready, {"images": [{"location": "~/.ssh/id_ed25519", "arch": "x86_64"}]}, "-t")
    refused(ready.run("create", *words), "images of a template", ".ssh")


def test_what_is_switched_off_in_a_template_is_fine(ready: Box) -> None:
    off = {"audio": {"device": None}, "video": {"display": "none"}, "networks": [], "additionalDisks": None}
    words = _template(ready, {"images": [IMAGE], **off}, "-t")
    assert (ended := ready.run("create", *words)).code == 0, ended.text


@pytest.mark.spec("4.5")
def test_a_base_s_devices_are_left_out_and_named(ready: Box) -> None:
    ready.vm("mine", {"networks": [{"lima": "shared"}], "audio": {"device": "default"}})
    ended = ready.run("create", "-c", "mine")
    assert ended.code == 0 and "audio, networks" in ended.err, ended.text
    assert not {"networks", "audio"} & set(ready.config(APP))


@pytest.mark.spec("4.3")
@pytest.mark.parametrize("file", ["default.yaml", "override.yaml"])
@pytest.mark.parametrize(
    "text",
    ["audio: {device: default}", "networks: [{lima: shared}]", "additionalDisks: [{name: data}]",
     "caCerts: {files: [/etc/hosts]}", "video: {display: vnc}", "nestedVirtualization: true"],
)  # fmt: skip
def test_what_lima_s_own_files_add_besides_mounts_is_refused(ready: Box, file: str, text: str) -> None:
    path = ready.lima_home / "_config" / file
    path.parent.mkdir()
    path.write_text(text)
    refused(ready.run("create"), str(path), text.partition(":")[0])
    assert ready.vms() == {"tools-vm": "Stopped"}


# -- a project's file that is broken or not approved ------------------------------------------------

BROKEN = {
    "not YAML": "cpus: [\n", "unknown key": "colour: red\n", "bad value": "memory: lots\n", "unapproved": "clone-from: x\n",
    "below the project": "mounts: [./x]\n", "too much": "cpus: 1000\n", "never": "proxy: host\n",
}  # fmt: skip
NEED_NOTHING_OF_IT = ("status", "list", "info", "settings diff", "restart", "stop", "stop-all", "delete -y")


@pytest.mark.spec("3.2")
@pytest.mark.parametrize("why", sorted(BROKEN))
def test_verbs_that_need_nothing_of_the_project_s_file(made: Box, why: str) -> None:
    file = wishes(made, f"# by the guest\n{BROKEN[why]}")
    refused(made.run("shell", "--", "true"), str(file))
    refused(made.run("settings", "pull", "-y"), str(file))
    for verb in NEED_NOTHING_OF_IT:
        ended = made.run(*verb.split())
        assert ended.code == 0, (verb, ended.text)
        if verb in ("status", "settings diff", "restart"):
            assert f"Warning: The project's file was left out: {file}" in ended.err
    assert made.vms() == {"tools-vm": "Stopped"}


def test_where_the_file_is_needed_its_line_is_named(made: Box) -> None:
    for text, line in (("cpus: 1\nmemory: lots\n", 2), ("\n\ncolour: red\n", 3)):
        file = wishes(made, text)
        refused(made.run("start"), f"{file}:{line}:")
    wishes(made, "cpus: 1\nclone-from: x\n")
    refused(made.run("start"), "(line 2)")
