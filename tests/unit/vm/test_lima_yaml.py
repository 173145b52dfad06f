"""The Lima document: what it forwards and mounts is ours alone, and what Lima adds is seen."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _claude_sandbox.config.parsers import Port
from _claude_sandbox.errors import RefusedError
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system.units import GIB
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm.lima_yaml import IGNORE_ALL, SandboxSpec, Share

MARK = vm_mark.Mark(vm_mark.SANDBOX, "claude-sandbox-app", Path("/home/me/app"), 1, 2)
SHARES = (
    Share(Path("/home/me/app"), Path("/home/me/app"), True),
    Share(Path("/home/me/.claude-sandbox/.claude"), Path("/mnt/claude-sandbox/settings"), False),
)
paths = st.text(
    st.sampled_from("{}\"'. ab-é%$") | st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
).map(lambda t: Path("/p" + t.replace("/", "")))  # fmt: skip


def meant(**changes: Any) -> SandboxSpec:
    return SandboxSpec(
        **{"mark": MARK, "user": lima_context.GuestUser("me", 1000), "shares": SHARES, **changes}
    )


def effective(document: dict[str, Any]) -> dict[str, Any]:
    """As Lima shows it: templates carried out and defaults filled in (pkg/limayaml/defaults.go)."""
    shown = copy.deepcopy(document)
    for mount in shown["mounts"]:
        for key in ("location", "mountPoint"):
            text = mount[key].replace("{{with .Param.csMark}}{{end}}", "")
            mount[key] = text.replace('{{"{{"}}', "{{")
    for rule in shown["portForwards"]:
        rule.setdefault("guestIP", "127.0.0.1")
        rule.setdefault("hostIP", "127.0.0.1")
        if rule.get("guestPort"):
            rule["guestPortRange"] = [rule["guestPort"]] * 2
            rule["hostPortRange"] = [rule["hostPort"]] * 2
        rule.setdefault("hostPortRange", rule["guestPortRange"])
    return shown


BASE: dict[str, Any] = {
    "base": ["template:_images/ubuntu"],
    "message": "hello",
    "minimumLimaVersion": "2.0.0",
    "images": [{"location": "/x.img"}],
    "cpus": 8,
    "mounts": [{"location": "~"}, {"location": "/tmp/lima", "writable": True}],
    "mountType": "reverse-sshfs",
    "portForwards": [{"guestPort": 1, "hostPort": 2}, {"guestSocket": "/x", "hostSocket": "y"}],
    "copyToHost": [{"guest": "/etc/x", "host": "/tmp/x"}],
    "ssh": {"forwardAgent": True, "loadDotSSHPubKeys": True, "localPort": 60022},
    "propagateProxyEnv": True,
    "param": {"other": "1", vm_mark.MARK_PARAM: "somebody else's"},
    "provision": [{"mode": "user", "script": "theirs"}],
    "user": {"name": "evil", "uid": 0},
}


def test_what_touches_the_host_is_replaced_not_added_to() -> None:
    base = copy.deepcopy(BASE)
    document = vm_lima_yaml.build(
        BASE, meant(ports=(Port(8080, 80),)), [{"mode": "system", "script": "ours"}]
    )
    assert BASE == base  # the caller's is untouched
    assert vm_lima_yaml.shares_of(document) == SHARES
    assert vm_lima_yaml.ports_of(document) == (Port(8080, 80),)
    assert document["portForwards"][-1] == IGNORE_ALL
    assert document["ssh"] == {"forwardAgent": False, "forwardX11": False, "loadDotSSHPubKeys": False}
    assert document["propagateProxyEnv"] is False
    assert document["mountType"] == "9p"
    assert document["user"] == {"name": "me", "uid": 1000, "home": "/home/me.guest"}
    assert not {"base", "message", "copyToHost", "minimumLimaVersion"} & set(document)
    assert [step["script"] for step in document["provision"]] == ["theirs", "ours"]
    assert (
        vm_mark.Mark.decode(document["param"][vm_mark.MARK_PARAM]) == MARK
        and document["param"]["other"] == "1"
    )
    assert document["images"] == BASE["images"]


def test_every_mount_uses_the_mark_and_no_stale_cache() -> None:
    """Lima refuses a param that nothing uses; fscache, the read-only default, goes stale."""
    for mount in vm_lima_yaml.build({}, meant())["mounts"]:
        assert ".Param.csMark" in mount["location"]
        assert mount["9p"]["cache"] in ("none", "mmap")
    settings = vm_lima_yaml.build({}, meant())["mounts"][-1]
    assert settings["writable"] is False


def test_resources() -> None:
    kept = vm_lima_yaml.build(BASE, meant())
    assert kept["cpus"] == 8 and "memory" not in kept
    new = vm_lima_yaml.build(
        BASE, meant(cpus=2, memory=3 * GIB, disk=50 * GIB, proxy=True, ca_files=("/ca.pem",))
    )
    assert (new["cpus"], new["memory"], new["disk"]) == (2, "3GiB", "50GiB")
    assert new["propagateProxyEnv"] is True and new["caCerts"] == {"files": ["/ca.pem"]}


@pytest.mark.parametrize(
    ("macos", "base", "kind"),
    [
        (False, {}, "9p"),
        (True, {}, "virtiofs"),
        (True, {"vmType": "vz"}, "virtiofs"),
        (True, {"vmType": "qemu"}, "9p"),
        (False, {"mountTypesUnsupported": ["virtiofs"]}, "9p"),
    ],
)
def test_the_host_enforces_read_only(macos: bool, base: dict[str, Any], kind: str) -> None:
    assert vm_lima_yaml.build(base, meant(macos=macos))["mountType"] == kind


@pytest.mark.parametrize(
    ("macos", "base"), [(False, {"mountTypesUnsupported": ["9p"]}), (True, {"mountTypesUnsupported": ["virtiofs"]})]
)  # fmt: skip
def test_a_base_that_would_fall_back_to_sshfs_is_refused(macos: bool, base: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="cannot mount by") as caught:
        vm_lima_yaml.build(base, meant(macos=macos))
    assert "reverse-sshfs" in (caught.value.details or "")


def test_a_plain_base_is_refused() -> None:
    with pytest.raises(RefusedError, match="plain"):
        vm_lima_yaml.build({"plain": True}, meant())


@given(st.lists(st.tuples(paths, paths, st.booleans()), max_size=3))
def test_shares_of_reads_what_mounts_wrote(rows: list[tuple[Path, Path, bool]]) -> None:
    shares = tuple(Share(*row) for row in rows)
    assert vm_lima_yaml.shares_of({"mounts": vm_lima_yaml.mounts(shares)}) == shares


@given(paths)
def test_a_path_stays_itself_in_a_go_template(path: Path) -> None:
    """Each `{{` opens an action, which is `{{"{{"}}` and prints `{{`; nothing else is one."""
    text, out = vm_lima_yaml.literal(path), ""
    while text:
        if text.startswith("{{"):
            assert text.startswith('{{"{{"}}')
            out, text = out + "{{", text[8:]
        else:
            out, text = out + text[0], text[1:]
    assert out == str(path)


def test_a_yaml_file_keeps_odd_paths(tmp_path: Path) -> None:
    import yaml

    share = Share(Path("/p/a: {b} #'\"é\u00a0{{x}}"), Path("/mnt/project"), True)
    text = yaml.safe_dump({"mounts": vm_lima_yaml.mounts([share])}, allow_unicode=True)
    assert vm_lima_yaml.shares_of(yaml.safe_load(text)) == (share,)


def test_nothing_is_found_when_lima_adds_nothing() -> None:
    document = vm_lima_yaml.build({}, meant(ports=(Port(8080, 80), Port(9090, 9090))))
    assert vm_lima_yaml.differences(effective(document), document) == []


RULE = {"guestPort": 22, "hostPort": 2222, "hostIP": "127.0.0.1"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"mounts": [{"location": "/srv", "mountPoint": "/srv", "writable": True}]}, "mount of /srv at /srv (writable)"),
        ({"mounts": [{"location": "/srv"}]}, "mount of /srv at /srv"),
        # Our own directory, now writable: the settings.
        ({"mounts": [{"location": str(SHARES[1].location), "mountPoint": str(SHARES[1].point), "writable": True}]},
         f"mount of {SHARES[1].location} at {SHARES[1].point} (writable)"),
        ({"portForwards": [RULE]}, "port forward"),
        ({"portForwards": [{"guestPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"}]}, "port forward"),
        ({"portForwards": [{"guestPortRange": [1, 65535], "hostIP": "127.0.0.1"}]}, "port forward"),
        ({"portForwards": [{"guestSocket": "/x", "hostSocket": "/y"}]}, "port forward"),
        ({"portForwards": [{"guestSocket": "/x", "hostSocket": "/run/host.sock", "reverse": True}]}, "port forward"),
        ({"ssh": {"forwardAgent": True}}, "ssh.forwardAgent"),
        ({"ssh": {"forwardX11": True}}, "ssh.forwardX11"),
        ({"ssh": {"forwardX11Trusted": True}}, "ssh.forwardX11Trusted"),
        ({"propagateProxyEnv": True}, "propagateProxyEnv"),
        ({"copyToHost": [{"guest": "/a", "host": "/b"}]}, "copyToHost"),
        ({"mountType": "reverse-sshfs"}, "mountType reverse-sshfs"),
    ],
)  # fmt: skip
def test_what_lima_s_own_files_add_is_named(extra: dict[str, Any], words: str) -> None:
    document = vm_lima_yaml.build({}, meant(ports=(Port(8080, 80),)))
    shown = effective(document)
    for key, value in extra.items():
        shown[key] = [*value, *shown[key]] if isinstance(value, list) and key in shown else value
    found = vm_lima_yaml.differences(shown, document)
    assert len(found) == 1 and found[0].startswith(words), found


@pytest.mark.parametrize("rules", [[], None, [{"guestPort": 80, "hostPort": 8080}]])
def test_without_the_ignore_rule_every_port_would_be_forwarded(rules: Any) -> None:
    document = vm_lima_yaml.build({}, meant(ports=(Port(8080, 80),)))
    shown = {**effective(document), "portForwards": rules}
    assert "every port of the guest is forwarded" in vm_lima_yaml.differences(shown, document)


def test_the_host_s_proxy_is_no_difference_when_it_is_meant() -> None:
    document = vm_lima_yaml.build({}, meant(proxy=True))
    assert vm_lima_yaml.differences(effective(document), document) == []


def test_paths_of_any_bytes_are_told_apart() -> None:
    one, other = (Share(Path(os.fsdecode(b"/p/\xff" + b)), Path("/mnt/project"), True) for b in (b"a", b"b"))
    assert vm_lima_yaml.shares_of({"mounts": vm_lima_yaml.mounts([one])}) != (other,)
