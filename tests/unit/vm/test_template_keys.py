"""The allow-list of Lima's keys."""

from __future__ import annotations

from typing import Any

import pytest

from _claude_sandbox.base_vm import lima_yaml as base_vm_lima_yaml
from _claude_sandbox.errors import RefusedError
from _claude_sandbox.vm import template_keys

GOOD: dict[str, Any] = {
    "vmType": "qemu", "arch": "x86_64", "images": [{"location": "/x.img", "arch": "x86_64", "digest": "sha256:0"}],
    "vmOpts": {"qemu": {"cpuType": {"x86_64": "max"}}, "vz": {"rosetta": {"enabled": True, "binfmt": True}}},
    "provision": [{"mode": "system", "script": "#!/bin/sh"}, {"mode": "data", "path": "/x", "content": "y"}],
    "probes": [{"script": "#!/bin/sh", "hint": "x"}], "containerd": {"system": False, "user": False},
    "env": {"A": "b"}, "hostResolver": {"hosts": {"a": "b"}}, "dns": ["1.1.1.1"], "caCerts": {"certs": ["x"]},
    "firmware": {"legacyBIOS": True}, "mountTypesUnsupported": ["9p"], "timezone": "UTC", "upgradePackages": True,
}  # fmt: skip


def test_what_concerns_the_guest_is_kept_as_it_is() -> None:
    assert template_keys.allowed(GOOD) == (GOOD, [])


def test_our_own_tools_vm_has_nothing_else() -> None:
    document = base_vm_lima_yaml.load()
    kept, named = template_keys.allowed(document)
    assert (
        named == ["provision.file"] and kept["images"] == document["images"]
    )  # from_cloud puts the scripts in


def test_what_we_replace_is_left_out_without_a_word() -> None:
    assert template_keys.allowed({key: "x" for key in template_keys.REPLACED}) == ({}, [])


@pytest.mark.parametrize(
    "off", [None, "", "none", False, [], {}, {"device": None}, {"display": "none", "vnc": {}}]
)
def test_what_is_off_is_left_out_without_a_word(off: object) -> None:
    assert template_keys.allowed({"audio": off, "new": off}) == ({}, [])


def test_what_reaches_the_host_is_left_out_and_named() -> None:
    bad = {"audio": {"device": "x"}, "provision": [{"mode": "ansible", "playbook": "x"}], "images": "odd"}
    kept, named = template_keys.allowed(bad)
    assert named == ["audio", "images", "provision.mode", "provision.playbook"]
    assert kept == {"provision": []}


@pytest.mark.parametrize(
    "text", ["base: ./x.yaml", "base: [template:x, /etc/x]", "base: [{url: x.yaml}]", "base: template:../../x",
             "provision: [{file: /x}]", "probes: [{file: {url: /x}}]", "a: [", "!!python/object:x {}"]
)  # fmt: skip
def test_a_template_of_a_guest_names_no_other_file(text: str) -> None:
    with pytest.raises(RefusedError):
        template_keys.check_self_contained(text, "vm.yaml")


def test_but_lima_s_own() -> None:
    template_keys.check_self_contained(
        "base: [template:_images/ubuntu, {url: 'template:x'}]\nenv: {A: b}", "x"
    )
