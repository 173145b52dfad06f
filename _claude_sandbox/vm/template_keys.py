"""What a template or a base VM may say in a sandbox's Lima YAML: an allow-list of Lima's keys.

What is not on it could reach the host: its microphone, screen, networks and disks, files that Lima reads
or programs that it runs there (`ansible`). `allowed` leaves such keys out and names them. Keys that we set
ourselves (template.REPLACED) are left out without a word: mounts, forwards, ssh, the user.
The schema is Lima's pkg/limatype/lima_yaml.go (2.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import RefusedError

Document = dict[str, Any]

# Ours alone: whatever a base says of these is replaced (vm.lima_yaml.build), not added to.
REPLACED = frozenset({
    "base", "minimumLimaVersion", "message", "mounts", "mountType", "mountInotify", "portForwards", "ssh", "user",
    "propagateProxyEnv", "copyToHost",
})  # fmt: skip

# Only the guest, or the host's share of work for it, is meant by these: any value.
_ANY = None
_FILE: Document = {"location": _ANY, "arch": _ANY, "digest": _ANY, "vmType": _ANY}
_ROSETTA: Document = {"enabled": _ANY, "binfmt": _ANY}
_ALLOWED: Document = {
    "vmType": _ANY, "os": _ANY, "arch": _ANY, "cpuType": _ANY, "cpus": _ANY, "memory": _ANY, "disk": _ANY,
    "images": {**_FILE, "kernel": {**_FILE, "cmdline": _ANY}, "initrd": _FILE},
    "vmOpts": {"qemu": {"minimumVersion": _ANY, "cpuType": _ANY},
               "vz": {"rosetta": _ROSETTA, "diskImageFormat": _ANY}},
    "rosetta": _ROSETTA,
    "mountTypesUnsupported": _ANY,
    "firmware": {"legacyBIOS": _ANY, "images": _FILE},
    "provision": {"mode": _ANY, "script": _ANY, "skipDefaultDependencyResolution": _ANY, "content": _ANY,
                  "overwrite": _ANY, "owner": _ANY, "path": _ANY, "permissions": _ANY, "expression": _ANY,
                  "format": _ANY},
    "probes": {"mode": _ANY, "description": _ANY, "script": _ANY, "hint": _ANY},
    "upgradePackages": _ANY,
    "containerd": {"system": _ANY, "user": _ANY, "archives": _FILE},
    "guestInstallPrefix": _ANY,
    "env": _ANY, "param": _ANY, "timezone": _ANY,
    "dns": _ANY, "hostResolver": {"enabled": _ANY, "ipv6": _ANY, "hosts": _ANY},
    "caCerts": {"removeDefaults": _ANY, "files": _ANY, "certs": _ANY},
    "plain": _ANY,
}  # fmt: skip
_VALUES = {
    "vmType": ("qemu", "vz", "default"),  # others are programs of the host, or need them
    "provision.mode": ("system", "user", "boot", "dependency", "data", "yq"),  # ansible runs on the host
    "probes.mode": ("readiness",),
}


def allowed(document: Mapping[str, Any]) -> tuple[Document, list[str]]:
    """What of `document` a sandbox may get, and the names of what it may not, sorted: `audio`, `provision.file`.

    What is switched off (null, "", none, false, empty) is left out without being named.
    """
    named: set[str] = set()
    rest = {key: value for key, value in document.items() if key not in REPLACED}
    return _kept(rest, _ALLOWED, "", named), sorted(named)


def _kept(value: Mapping[str, Any], rule: Document, where: str, named: set[str]) -> Document:
    kept: Document = {}
    for key, inner in value.items():
        name = f"{where}{key}"
        if key not in rule or not _fits(name, inner):
            named |= set() if _off(inner) else {name}
        elif rule[key] is _ANY:
            kept[key] = inner
        elif isinstance(inner, Mapping):
            kept[key] = _kept(inner, rule[key], f"{name}.", named)
        elif isinstance(inner, list) and all(isinstance(each, Mapping) for each in inner):
            kept[key] = list(_entries(inner, rule[key], f"{name}.", named))
        elif not _off(inner):
            named.add(name)
    return kept


def _entries(inner: list[Any], rule: Document, where: str, named: set[str]) -> Iterator[Document]:
    """A list's entries; one that has to lose something goes as a whole: half a script is none."""
    for each in inner:
        lost: set[str] = set()
        kept = _kept(each, rule, where, lost)
        named |= lost
        if not lost:
            yield kept


def _fits(name: str, value: object) -> bool:
    return name not in _VALUES or value is None or value in _VALUES[name]


def _off(value: object) -> bool:
    """Whether a value asks for nothing."""
    if isinstance(value, Mapping):
        return all(_off(inner) for inner in value.values())
    return not value or value == "none"


# -- files of the host ---------------------------------------------------------------------------


def host_files(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each file of the host that Lima would read for a VM: the key's name, and the path as it is written there."""
    for image in _maps(document.get("images")):
        for name, part in (("images", image), *((f"images.{k}", image.get(k)) for k in ("kernel", "initrd"))):
            yield from _local(name, part)
    for key, inner in (("firmware", "images"), ("containerd", "archives")):
        for entry in _maps(_map(document.get(key)).get(inner)):
            yield from _local(f"{key}.{inner}", entry)
    for file in _map(document.get("caCerts")).get("files") or []:
        yield "caCerts.files", str(file)


def _local(name: str, entry: object) -> Iterator[tuple[str, str]]:
    location = str(_map(entry).get("location") or "")
    if location and not re.match(r"https?://", location):
        yield name, location.removeprefix("file://")


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: object) -> list[Mapping[str, Any]]:
    return [_map(each) for each in value] if isinstance(value, list) else []


def host_path(text: str) -> Path | None:
    """An absolute path of `host_files`; None for one that would depend on where Lima looks."""
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    return path if path.is_absolute() else None


def check_self_contained(text: str, origin: str) -> None:
    """Raise RefusedError when a template that a guest may have written names other files.

    Lima puts those into it (`base:`, `file:`) before anybody sees it: a key of the host would become a
    script in the guest, and what was approved could change. Lima's own templates are no such files.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RefusedError(f"{origin} is not readable YAML.", details=str(error)) from error
    named = {name for name, value in _references(document) if not _is_limas(str(value))}
    if named:
        raise _refused(origin, sorted(named))


def _is_limas(locator: str) -> bool:
    return locator.startswith("template:") and ".." not in locator


def _references(document: object) -> Iterator[tuple[str, object]]:
    top = _map(document)
    base = top.get("base") or []
    for entry in base if isinstance(base, list) else [base]:
        yield "base", _map(entry).get("url", "") if isinstance(entry, Mapping) else entry
    for key in ("provision", "probes"):
        for step in _maps(top.get(key)):
            yield from ((f"{key}.file", step["file"]) for _ in (0,) if step.get("file"))


def refuse(origin: str, names: list[str]) -> None:
    """Raise RefusedError when a template says what only we may."""
    if names:
        raise _refused(origin, names)


def _refused(origin: str, names: list[str]) -> RefusedError:
    return RefusedError(
        f"{origin} was not used: a sandbox must not get {', '.join(names)} from a template.",
        details="These reach the host: its devices, networks, files or programs (docs/security.md).",
        resolution="Take them out of a copy of the template, and use that with -t.",
    )


# -- Lima's effective configuration --------------------------------------------------------------


def reaching(effective: Mapping[str, Any], meant: Mapping[str, Any]) -> list[str]:
    """What of the effective config reaches the host beyond `meant`, besides mounts and forwards, in words."""
    found = [f"{name} {value}" for name, value in _devices(effective)]
    ours = {*host_files(meant), *((name, str(host_path(text))) for name, text in host_files(meant))}
    first = {image.get("location") for image in _maps(meant.get("images"))}
    for name, text in host_files({**effective, "images": _before(effective.get("images"), first)}):
        if (name, text) not in ours:
            found.append(f"{name} {text}")
    return found


def _devices(effective: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, inner in (("audio", "device"), ("video", "display")):
        value = _map(effective.get(key)).get(inner)
        if not _off(value):
            yield f"{key}.{inner}", str(value)
    for network in _maps(effective.get("networks")):
        yield "networks", str(network.get("lima") or network.get("socket") or "vzNAT")
    for disk in effective.get("additionalDisks") or []:
        yield "additionalDisks", str(_map(disk).get("name") or disk)
    if effective.get("nestedVirtualization"):
        yield "nestedVirtualization", "true"
    if any(not _fits("provision.mode", step.get("mode")) for step in _maps(effective.get("provision"))):
        yield "provision.mode", "ansible"
    if _map(effective.get("ssh")).get("loadDotSSHPubKeys"):
        yield "ssh.loadDotSSHPubKeys", "true"


def _before(images: object, ours: set[Any]) -> list[Mapping[str, Any]]:
    """Images that come before ours, and so would be used in their place."""
    before = []
    for image in _maps(images):
        if image.get("location") in ours:
            break
        before.append(image)
    return before if ours else []
