"""The tools VM's Lima YAML: while it is built, and as it stays."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _claude_sandbox.base_vm.catalogue import Tool
from _claude_sandbox.base_vm.packages import build as packages_build
from _claude_sandbox.base_vm.packages.recipe import walk
from _claude_sandbox.errors import ConfigError
from _claude_sandbox.system.program import outside_file, package_file
from _claude_sandbox.vm import lima_yaml as vm_lima_yaml

Document = dict[str, Any]


def load() -> Document:
    """tools-vm.yaml: beside the package in a checkout, in it in a wheel. Raises ConfigError."""
    import yaml

    file = outside_file("tools-vm.yaml")
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}:1: cannot be read.", details=str(error)) from error
    wanted = {"images": list, "param": dict, "provision": list}
    if not isinstance(document, dict) or any(not isinstance(document.get(k), t) for k, t in wanted.items()):
        raise ConfigError(
            f"{file}:1: is not the document of a tools VM: it needs images, param and provision."
        )
    return document


def pins(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(version) for name, version in document["param"].items() if name != "tools"}


def image_address(document: Mapping[str, Any], arch: str) -> str | None:
    """The cloud image for this machine (`arch` as Lima says it)."""
    return next((str(i["location"]) for i in document["images"] if i.get("arch") == arch), None)


def from_image(guest_image: packages_build.GuestImage, spec: vm_lima_yaml.SandboxSpec) -> Document:
    """Everything is in the image; nothing is left to provision."""
    return _complete(guest_image.document(), spec, {}, [])


def from_cloud(
    document: Mapping[str, Any], tools: Sequence[Tool], spec: vm_lima_yaml.SandboxSpec
) -> Document:
    """tools-vm.yaml with its scripts inside, and the tools that are wanted."""
    param = {name: str(value) for name, value in document["param"].items()}
    param["tools"] = " ".join(tool.name for tool in tools if tool.ubuntu)
    top = package_file("guest")
    scripts: list[Document] = [
        {
            "mode": "data",
            "path": f"/{name}",
            "content": data.decode(),
            "permissions": "644",
            "overwrite": True,
        }
        for name, data in walk(top / "files")
    ]
    for entry in document["provision"]:
        # `file:` is for people who start tools-vm.yaml by hand; in a wheel it would point nowhere.
        script = (top / "provision" / Path(entry["file"]).name).read_text(encoding="utf-8")
        scripts.append({"mode": entry["mode"], "script": script})
    return _complete({"images": document["images"]}, spec, param, scripts)


def final(built: Mapping[str, Any], mark: str) -> Document:
    """What the finished VM keeps: no script that installs, no version, proxy or CA that a script would use."""
    kept = {key: value for key, value in built.items() if key != "caCerts"}
    return {**kept, "param": {"csMark": mark}, "provision": [_mark_script()], "propagateProxyEnv": False}


def _complete(
    images: Document, spec: vm_lima_yaml.SandboxSpec, param: Mapping[str, str], scripts: list[Document]
) -> Document:
    document = vm_lima_yaml.build({**images, "param": dict(param)}, spec, [_mark_script(), *scripts])
    document["minimumLimaVersion"] = "2.1.2"
    document["vmType"] = "vz" if spec.macos else "qemu"
    if spec.macos and platform.machine() == "arm64":
        document["vmOpts"] = {"vz": {"rosetta": {"enabled": True, "binfmt": True}}}
    return document


def _mark_script() -> Document:
    script = package_file("guest", "provision", "mark.sh")
    return {"mode": "system", "script": script.read_text(encoding="utf-8")}
