"""A stand-in for ssh into a fake instance: the remote command runs here, in the instance's guest directory.

`-F INSTANCE/ssh.config [-o K=V]… [-O check|exit] [-f] [-N] [-t|-T] HOST [COMMAND]`. As with the real
one, a variable reaches the command only if both the client's SendEnv and the master's name it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fakelib
import limaconfig

VALUED = "FoOpilLRDJbcEeImQSWw"  # options of ssh that take a value


class Options:
    """ssh's command line, as far as it is used."""

    def __init__(self, argv: list[str]) -> None:
        self.values: dict[str, str] = {}
        self.settings: dict[str, list[str]] = {}
        self.flags: set[str] = set()
        index = 0
        while index < len(argv) and argv[index].startswith("-"):
            letter, rest = argv[index][1], argv[index][2:]
            if letter in VALUED:
                if not rest:
                    index += 1
                    rest = argv[index]
                self._value(letter, rest)
            else:
                self.flags.update(argv[index][1:])
            index += 1
        self.host = argv[index] if index < len(argv) else ""
        self.remote = " ".join(argv[index + 1 :])

    def _value(self, letter: str, value: str) -> None:
        if letter == "o":
            key, _, setting = value.partition("=")
            self.settings.setdefault(key.lower(), []).append(setting)
        else:
            self.values[letter] = value

    def first(self, key: str) -> str:
        return (self.settings.get(key.lower()) or [""])[0]


def unreachable(text: str) -> int:
    print(f"ssh: {text}", file=sys.stderr)
    return 255


def driver_of(instance: Path) -> int:
    """The fake QEMU's process id, 0 when the VM does not run."""
    return fakelib.alive(instance / "qemu.pid")


def master_of(path: Path, instance: Path) -> dict[str, object] | None:
    """What the master recorded when it was made; None when it died with its VM."""
    try:
        record = json.loads(record_of(path).read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("driver") == driver_of(instance) != 0 and path.exists() else None


def record_of(path: Path) -> Path:
    return path.with_suffix(".master")


def control(options: Options, path: Path, instance: Path) -> int:
    if master_of(path, instance) is None:
        print(f"Control socket connect({path}): No such file or directory", file=sys.stderr)
        return 255
    if options.values["O"] == "exit":
        fakelib.end_helper(int(json.loads(record_of(path).read_text())["pid"]))
        path.unlink()
        print("Exit request sent.", file=sys.stderr)
    else:
        print(f"Master running (pid={os.getpid()})", file=sys.stderr)
    return 0


def main() -> int:
    fakelib.log_call("ssh", sys.argv[1:])
    options = Options(sys.argv[1:])
    if "V" in options.flags:
        print("OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.0", file=sys.stderr)
        return 0
    verb = "ssh-control" if "O" in options.values else "ssh-master" if "N" in options.flags else "ssh"
    fault = fakelib.fault_for(verb, sys.argv[1:])
    if fault.get("fail"):
        print(str(fault.get("fail")), file=sys.stderr)
        return int(fault.get("rc") or 255)
    fault.first()
    config = Path(options.values.get("F", "/nonexistent"))
    if not config.exists():
        return unreachable(f"Can't open user config file {config}: No such file or directory")
    instance = config.resolve().parent
    text = config.read_text()
    if f"Host {options.host}\n" not in text:
        return unreachable(f"Could not resolve hostname {options.host}: Name or service not known")
    path = Path(options.first("controlpath") or instance / "ssh.sock")
    if verb == "ssh-control":
        return control(options, path, instance)
    if not driver_of(instance):
        return unreachable("connect to host 127.0.0.1 port 60022: Connection refused")
    sent = {name for setting in options.settings.get("sendenv", []) for name in setting.split()}
    if verb == "ssh-master":
        # One that listens, as long as its VM lives and nobody ends it.
        pid = fakelib.spawn_helper("ssh-master", instance, str(path), listen=path, of_vm=False)
        fakelib.remember_master(instance, pid)
        record = {"driver": driver_of(instance), "sendenv": sorted(sent), "pid": pid}
        record_of(path).write_text(json.dumps(record))
        path.chmod(0o600)
        fault.at("after")
        return 0
    return session(options, instance, path, sent, fault)


def session(options: Options, instance: Path, path: Path, sent: set[str], fault: fakelib.Fault) -> int:
    master = master_of(path, instance)
    if master is not None:
        allowed = master["sendenv"]
        sent &= set(allowed) if isinstance(allowed, list) else set()
    elif path.name == "ssh.sock":
        sent = set()  # Lima's own master sends none of ours
    lima_home = instance.parent
    try:
        mounts = limaconfig.load(instance, lima_home)["mounts"]
    except (OSError, limaconfig.Invalid):
        mounts = []
    argv, environment = fakelib.guest_command(
        instance, [(m["location"], m["mountPoint"]) for m in mounts], options.remote or "exec bash -l"
    )
    environment |= {name: os.environ[name] for name in sent if name in os.environ}
    fault.at("during")
    process = subprocess.Popen(argv, env=environment, cwd=environment["HOME"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = process.wait()
    fault.at("after")
    return code if code >= 0 else 128 - code
