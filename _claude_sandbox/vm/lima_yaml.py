"""A sandbox's Lima YAML: a base's or template's document with everything that touches the host replaced.

Mounts, port forwards, copies to the host, proxy and agent forwarding are ours alone; what a base says of
them is dropped, not added to (spec 4.5). Of the rest only what vm/template_keys.py allows is taken over.
`differences` compares what Lima would really use.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.config.parsers import Port
from _claude_sandbox.errors import RefusedError
from _claude_sandbox.lima import context as lima_context
from _claude_sandbox.system.units import format_size
from _claude_sandbox.vm import mark as vm_mark
from _claude_sandbox.vm import template_keys

Document = dict[str, Any]

# The only rule that keeps every other listener in the guest (facts/lima.md §6); must be the last.
IGNORE_ALL: Document = {
    "guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any",
    "guestPortRange": [1, 65535], "ignore": True,
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A host directory and where it appears in the guest."""

    location: Path
    point: Path
    writable: bool


@dataclass(frozen=True)
class SandboxSpec:
    """What a sandbox's VM shall be. Sizes in bytes; None leaves the base's."""

    mark: vm_mark.Mark
    user: lima_context.GuestUser
    shares: tuple[Share, ...]
    ports: tuple[Port, ...] = ()
    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    proxy: bool = False
    ca_files: tuple[str, ...] = ()
    macos: bool = False


def build(base: Mapping[str, Any], spec: SandboxSpec, provision: Sequence[Document] = ()) -> Document:
    """The whole document. `provision` are our scripts, after the base's own.

    What of the base could reach the host is left out; vm.template_keys.allowed names it for the caller.
    Raises RefusedError when the base can only mount by reverse-sshfs or not at all.
    """
    document = copy.deepcopy(template_keys.allowed(base)[0])
    if document.get("plain"):
        raise RefusedError(
            "The base VM is a plain one: it has no mounts.", resolution="Set `plain: false` in it."
        )
    document["mountType"] = _mount_type(document, spec.macos)
    document["mounts"] = mounts(spec.shares)
    document["param"] = {**_used_param(document), vm_mark.MARK_PARAM: spec.mark.encode()}
    document["portForwards"] = forwards(spec.ports)
    document["ssh"] = {"forwardAgent": False, "forwardX11": False, "loadDotSSHPubKeys": False}
    document["user"] = {"name": spec.user.name, "uid": spec.user.uid, "home": spec.user.home}
    document["propagateProxyEnv"] = spec.proxy
    if spec.ca_files:
        document["caCerts"] = {"files": list(spec.ca_files)}
    document.setdefault("containerd", {"system": False, "user": False})
    document["provision"] = [*_scripts(document, spec), *provision]
    for key, size in (("memory", spec.memory), ("disk", spec.disk)):
        if size is not None:
            document[key] = format_size(size)
    if spec.cpus is not None:
        document["cpus"] = spec.cpus
    return document


def _mount_type(document: Mapping[str, Any], macos: bool) -> str:
    vz = macos and document.get("vmType") in (None, "vz", "default")
    kind = "virtiofs" if vz else "9p"
    if kind in (document.get("mountTypesUnsupported") or ()):
        raise RefusedError(
            f"This base VM's kernel cannot mount by {kind}.",
            details="Lima would fall back to reverse-sshfs, through which a guest can reach other host directories.",
            resolution="Use a base with 9p, such as Ubuntu's (template:ubuntu-lts) or the tools VM.",
        )
    return kind


def literal(path: Path) -> str:
    """A path for a field that Lima reads as a Go template: `{{` must stay as it is."""
    return str(path).replace("{{", '{{"{{"}}')


# Lima refuses a param that nothing uses: each of our mounts uses the mark, to no effect.
_USE_MARK = f"{{{{with .Param.{vm_mark.MARK_PARAM}}}}}{{{{end}}}}"


def mounts(shares: Iterable[Share]) -> list[Document]:
    """The `mounts:` list of our document."""
    return [_mount(share) for share in shares]


def _mount(share: Share) -> Document:
    return {
        "location": _USE_MARK + literal(share.location),
        "mountPoint": literal(share.point),
        "writable": share.writable,
        # The default for read-only mounts, fscache, goes stale (facts/checked.md).
        "9p": {"cache": "mmap"},
    }


def shares_of(document: Mapping[str, Any]) -> tuple[Share, ...]:
    """The mounts of a document, ours or Lima's effective one."""
    shares = []
    for mount in document.get("mounts") or []:
        location = _plain(str(mount.get("location", "")))
        point = _plain(str(mount.get("mountPoint") or location))
        shares.append(Share(Path(location), Path(point), bool(mount.get("writable"))))
    return tuple(shares)


def uid_of(document: Mapping[str, Any]) -> int:
    """The uid of the guest's user; Lima's default is the host's own."""
    user = document.get("user")
    uid = user.get("uid") if isinstance(user, dict) else None
    return uid if isinstance(uid, int) else os.getuid()


def _plain(text: str) -> str:
    return text.removeprefix(_USE_MARK).replace('{{"{{"}}', "{{")


def _scripts(document: Mapping[str, Any], spec: SandboxSpec) -> list[Document]:
    """The base's scripts. With mounts, which use the mark, not the one that uses it in the tools VM:
    Lima's boot.sh would run for it alone, at each boot."""
    mark = f"PARAM_{vm_mark.MARK_PARAM}"
    scripts = document.get("provision") or []
    return [s for s in scripts if not (spec.shares and mark in str(s.get("script", "")))]


def _used_param(document: Mapping[str, Any]) -> Document:
    """The base's own params, without its mark: it stays used by the base's scripts."""
    return {k: v for k, v in (document.get("param") or {}).items() if k != vm_mark.MARK_PARAM}


def forwards(ports: Iterable[Port]) -> list[Document]:
    """The `portForwards:` list: these ports to 127.0.0.1, and nothing else."""
    return [*(_forward(port) for port in ports), dict(IGNORE_ALL)]


def _forward(port: Port) -> Document:
    return {"guestPort": port.guest, "hostPort": port.host, "hostIP": "127.0.0.1", "proto": "tcp"}


def ports_of(document: Mapping[str, Any]) -> tuple[Port, ...]:
    """The ports that our document forwards."""
    rules = document.get("portForwards") or []
    return tuple(
        sorted(Port(r["hostPort"], r["guestPort"]) for r in rules if not r.get("ignore") and "guestPort" in r)
    )


def differences(effective: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What of Lima's effective config reaches the host and is not in our document, in plain words.

    Lima merges `_config/default.yaml` and `override.yaml` into every VM, and a user may have edited
    the VM's own file.
    """
    known_shares = set(shares_of(own))
    found = [
        f"mount of {share.location} at {share.point}{' (writable)' if share.writable else ''}"
        for share in shares_of(effective)
        if share not in known_shares
    ]
    known = [_rule(rule) for rule in own.get("portForwards") or []]
    rules = [_rule(rule) for rule in effective.get("portForwards") or []]
    found += [f"port forward {rule}" for rule in rules if rule not in known]
    if _rule(IGNORE_ALL) not in rules:
        found.append("every port of the guest is forwarded")
    ssh = effective.get("ssh") or {}
    found += [f"ssh.{key}" for key in ("forwardAgent", "forwardX11", "forwardX11Trusted") if ssh.get(key)]
    if effective.get("propagateProxyEnv") and not own.get("propagateProxyEnv"):
        found.append("propagateProxyEnv")
    if effective.get("copyToHost"):
        found.append("copyToHost")
    # On Linux virtiofs leaves read-only to the guest, and reverse-sshfs reaches other directories.
    if effective.get("mountType") and effective["mountType"] != own.get("mountType", effective["mountType"]):
        found.append(f"mountType {effective['mountType']}")
    elif effective.get("mountType") == "reverse-sshfs":
        found.append("mountType reverse-sshfs")
    return found + template_keys.reaching(effective, own)


def _rule(rule: Mapping[str, Any]) -> tuple[object, ...]:
    """A forward rule without the defaults that Lima fills in."""
    single = rule.get("guestPort") or 0
    span = rule.get("guestPortRange") or [single, single]
    if single:
        span = [single, single]
    sockets = (rule.get("guestSocket") or "", rule.get("hostSocket") or "")
    ignore = bool(rule.get("ignore"))
    host = () if ignore else (rule.get("hostIP") or "127.0.0.1", rule.get("hostPort") or 0)
    return (ignore, tuple(span), *host, *sockets, bool(rule.get("reverse")))
