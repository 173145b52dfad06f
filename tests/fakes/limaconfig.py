"""The part of Lima's config handling that the fake limactl needs: defaults, merging, validation.

Shapes and messages are those of Lima 2.2.0 (pkg/limayaml), compared with the real program.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs more than all else here, at every call of a fake
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]
SYSTEM_POINTS = ("/", "/bin", "/dev", "/etc", "/home", "/opt", "/sbin", "/tmp", "/usr", "/var")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Invalid(Exception):
    """What Lima would put into the instance's errors; `warnings` are told on the way."""


def parse(text: str, where: Path | str) -> Document:
    try:
        document = json.loads(text)  # JSON is YAML, and quicker
    except ValueError:
        document = _yaml(text, where)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise Invalid(f"failed to unmarshal YAML (main file `{where}`): cannot unmarshal into LimaYAML")
    return document


def _yaml(text: str, where: Path | str) -> object:
    sys.path.append(os.environ.get("FAKE_SITE", ""))
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise Invalid(f"failed to unmarshal YAML (main file `{where}`): {first}") from error


def size(text: object) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)i?[bB]?", str(text))
    if not match:
        raise Invalid(f"field `memory` has an invalid value: invalid size: '{text}'")
    return int(float(match[1]) * UNITS[match[2]])


def load(directory: Path, lima_home: Path) -> Document:
    """The effective config of the instance in `directory`. Raises OSError or Invalid."""
    path = directory / "lima.yaml"
    document = parse(path.read_text(encoding="utf-8", errors="surrogateescape"), path)
    if document.get("param") is not None:
        check_param(document)
    extra = [_optional(lima_home / "_config" / f"{name}.yaml") for name in ("default", "override")]
    return fill(document, directory, *extra)


def _optional(path: Path) -> Document:
    return parse(path.read_text(), path) if path.exists() else {}


def fill(document: Document, directory: Path, default: Document, override: Document) -> Document:
    """What `limactl list --format '{{json .Config}}'` shows: defaults filled in, files merged."""
    merged: Document = {**default, **{k: v for k, v in document.items() if v is not None}, **override}
    user = merged.get("user") or {}
    param = {str(k): str(v) for k, v in (merged.get("param") or {}).items()}
    home = user.get("home") or f"/home/{user.get('name', 'lima')}.guest"
    mounts: dict[str, Document] = {}
    for source in (default, document, override):
        for mount in source.get("mounts") or []:
            filled = _mount(mount, directory, home, param)
            mounts[filled["mountPoint"]] = {**mounts.get(filled["mountPoint"], {}), **filled}
    rules = [
        _rule(rule) for source in (override, document, default) for rule in source.get("portForwards") or []
    ]
    ssh = {"localPort": 0, "loadDotSSHPubKeys": False, "forwardAgent": False, "forwardX11": False,
           "forwardX11Trusted": False}  # fmt: skip
    for source in (default, document, override):
        ssh.update(source.get("ssh") or {})
    return {
        **merged,
        "vmType": merged.get("vmType") or "qemu",
        "arch": merged.get("arch") or "x86_64",
        "cpus": merged.get("cpus") or 2,
        "memory": str(merged.get("memory") or "2GiB"),
        "disk": str(merged.get("disk") or "100GiB"),
        "mounts": list(mounts.values()),
        "mountType": merged.get("mountType") or _mount_type(merged),
        "portForwards": rules,
        "ssh": ssh,
        "param": param,
        "propagateProxyEnv": merged.get("propagateProxyEnv", True) is not False,
        "plain": bool(merged.get("plain")),
        "user": {
            "comment": "",
            "shell": "/bin/bash",
            "uid": os.getuid(),
            "name": "lima",
            **user,
            "home": home,
        },
    }


def _mount_type(document: Document) -> str:
    return "reverse-sshfs" if "9p" in (document.get("mountTypesUnsupported") or []) else "9p"


def _mount(mount: Document, directory: Path, home: str, param: dict[str, str]) -> Document:
    host = {"Home": os.environ.get("HOME", "/"), "Dir": str(directory), "Name": directory.name}
    location = expand(str(mount.get("location", "")), host, param)
    if location == "~" or location.startswith("~/"):
        location = os.environ.get("HOME", "/") + location[1:]
    point = expand(str(mount.get("mountPoint") or location), {"Home": home, "Name": directory.name}, param)
    writable = bool(mount.get("writable"))
    plan9 = {"securityModel": "none", "protocolVersion": "9p2000.L", "msize": "128KiB",
             "cache": "mmap" if writable else "fscache", **(mount.get("9p") or {})}  # fmt: skip
    return {"location": location, "mountPoint": point, "writable": writable, "9p": plan9, "virtiofs": {}}


def expand(text: str, names: dict[str, str], param: dict[str, str]) -> str:
    """The Go templates that occur in our documents and in Lima's own."""
    text = re.sub(r"\{\{with \.Param\.\w+\}\}\{\{end\}\}", "", text)

    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return param.get(match[1], "<no value>")
        if match[2] is not None:
            return names.get(match[2], match[0])
        return "{{"

    return re.sub(r'\{\{ ?\.Param\.(\w+) ?\}\}|\{\{ ?\.(\w+) ?\}\}|\{\{"\{\{"\}\}', value, text)


def _rule(rule: Document) -> Document:
    """A port forward with Lima's defaults (pkg/limayaml FillPortForwardDefaults)."""
    guest = rule.get("guestPort", 0)
    span = list(rule.get("guestPortRange") or ([guest, guest] if guest else [1, 65535]))
    host = rule.get("hostPort", 0) or guest
    filled: Document = {
        "guestIPMustBeZero": bool(rule.get("guestIPMustBeZero", rule.get("guestIP") == "0.0.0.0")),
        "guestIP": rule.get("guestIP") or "127.0.0.1",
        "guestPortRange": span,
        "hostIP": rule.get("hostIP") or "127.0.0.1",
        "hostPortRange": [host, host] if host else span,
        "proto": rule.get("proto") or "any",
    }
    if guest:
        filled.update(guestPort=guest, hostPort=host)
    filled.update(
        {k: rule[k] for k in ("guestSocket", "hostSocket", "reverse", "ignore", "static") if rule.get(k)}
    )
    return filled


def validate(config: Document) -> list[str]:
    """Warnings. Raises Invalid as pkg/limayaml/validate.go does."""
    warnings, errors = [], []
    size(config["memory"])
    size(config["disk"])
    for index, mount in enumerate(config["mounts"]):
        location, point, field = mount["location"], mount["mountPoint"], f"field `mounts[{index}]"
        if not location.startswith("/"):
            errors.append(f"{field}.location` must be an absolute path, got `{location}`")
        elif os.path.exists(location) and not os.path.isdir(location):
            errors.append(f"{field}.location` refers to a non-directory path: `{location}`: %!w(<nil>)")
        elif not os.path.exists(location):
            warnings.append(f"{field}.location` refers to a non-existent directory: `{location}`:")
        if point in SYSTEM_POINTS:
            errors.append(f"{field}.mountPoint` must not be a system path such as /etc or /usr")
        elif point == config["user"]["home"]:
            errors.append(f"{field}.mountPoint` is the reserved internal home directory `{point}`")
    if config["mountType"] in (config.get("mountTypesUnsupported") or []):
        unsupported = " ".join(config["mountTypesUnsupported"])
        errors.append(
            f"field `mountType` must not be one of [{unsupported}] (`mountTypesUnsupported`), got `{config['mountType']}`"
        )
    if errors:
        raise Invalid("\n".join(errors))
    return warnings


def check_param(document: Document) -> None:
    """Every param has a plain name, a printable value and a use, or Lima refuses the whole file."""
    texts = [str(v) for p in document.get("provision") or [] for v in p.values()]
    texts += [str(p.get("script", "")) for p in document.get("probes") or []]
    texts += [
        str(v)
        for p in document.get("portForwards") or []
        for v in (p.get("guestSocket"), p.get("hostSocket"))
    ]
    texts += [str(v) for m in document.get("mounts") or [] for v in (m.get("location"), m.get("mountPoint"))]
    for key, value in (document.get("param") or {}).items():
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", str(key)):
            raise Invalid(f"param `{key}` name does not match regex `^[a-zA-Z][a-zA-Z0-9_]*$`")
        odd = next((c for c in str(value) if not c.isprintable() and c not in "\t "), None)
        if odd is not None:
            raise Invalid(f"param `{key}` value contains unprintable character `{odd!r}`")
        use = re.compile(r"\{\{[^}]*\.Param\." + key + r"[^}]*\}\}|\bPARAM_" + key + r"\b")
        if not any(use.search(text) for text in texts):
            raise Invalid(
                f"field `param` key `{key}` is not used in any provision, probe, copyToHost, or portForward"
            )
