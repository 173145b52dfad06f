"""An instance of the fake limactl: what is in its directory, and what its status is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import fakelib
import limaconfig
from fakelib import alive, fatal
from limaconfig import Invalid

TYPE_CHECKING = False  # see limaconfig.py
if TYPE_CHECKING:
    from typing import Any

    from limaconfig import Document

# As dirnames.LimaDir: filepath.EvalSymlinks of a directory that is there.
_WRITTEN = os.environ.get("LIMA_HOME") or os.environ["HOME"] + "/.lima"
HOME = Path(os.path.realpath(_WRITTEN) if os.path.exists(_WRITTEN) else _WRITTEN)
VERSION = os.environ.get("FAKE_LIMA_VERSION", "2.2.0")
NAME = re.compile(r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$")
UNIX_PATH_MAX = 108


class Instance:
    """What `store.Inspect` finds: status "" when lima.yaml cannot be read or is invalid."""

    def __init__(self, name: str) -> None:
        if not NAME.match(name):
            fatal(
                f"instance name `{name}` is not a valid identifier: identifier `{name}` must match {NAME.pattern}"
            )
        self.name = name
        self.dir = HOME / name
        self.config: Document | None = None
        self.errors: list[str] = []
        self.status = ""
        self.agent = self.driver = 0
        self.protected = (self.dir / "protected").exists()

    def inspect(self) -> Instance:
        """Raises FileNotFoundError when there is no lima.yaml."""
        try:
            self.config = limaconfig.load(self.dir, HOME)
            limaconfig.validate(self.config)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.config, self.errors = None, [f"open {self.dir}/lima.yaml: {error.strerror or error}".lower()]
            return self
        except Invalid as error:
            self.config, self.errors = None, [str(error)]
            return self
        self.agent, self.driver = alive(self.dir / "ha.pid"), alive(self.dir / "qemu.pid")
        agent_sock = self.dir / "ha.sock"
        if self.agent and not agent_sock.exists():
            problem = f"stat {agent_sock}: no such file or directory"
            self.errors.append(f"failed to connect to `{agent_sock}`: {problem}")
        elif self.agent and not fakelib.answers(agent_sock):
            problem = (
                f'Get "http://lima-hostagent/v1/info": dial unix {agent_sock}: connect: connection refused'
            )
            self.errors.append(f"failed to get Info from `{agent_sock}`: {problem}")
        elif self.agent and not self.driver:
            self.errors.append("host agent is running but driver is not")
        elif self.driver and not self.agent:
            self.errors.append("qemu driver is running but host agent is not")
        self.status = "Broken" if self.errors else "Running" if self.agent else "Stopped"
        return self

    def field(self, name: str) -> Any:
        config = self.config or {}
        version = self.dir / "lima-version"
        port = re.search(r"^ +Port (\d+)$", _text(self.dir / "ssh.config"), re.MULTILINE)
        return {
            "Name": self.name, "Hostname": f"lima-{self.name}", "Status": self.status, "Dir": str(self.dir),
            "VMType": config.get("vmType", ""), "Arch": config.get("arch", ""), "CPUs": config.get("cpus", 0),
            "Memory": limaconfig.size(config["memory"]) if config else 0,
            "Disk": limaconfig.size(config["disk"]) if config else 0,
            "SSHLocalPort": int(port[1]) if port and config else 0,
            "SSHConfigFile": str(self.dir / "ssh.config") if config else "",
            "HostAgentPID": self.agent, "DriverPID": self.driver, "Config": self.config,
            "SSHAddress": "127.0.0.1" if config else "", "Protected": self.protected and bool(config),
            "LimaVersion": _text(version) if config else "", "Param": config.get("param") or None,
        }[name]  # fmt: skip

    def as_json(self) -> str:
        names = ("Name", "Hostname", "Status", "Dir", "VMType", "Arch", "CPUs", "Memory", "Disk",
                 "SSHConfigFile", "Config", "SSHAddress", "Protected", "LimaVersion", "Param")  # fmt: skip
        small = {
            "VMType": "vmType",
            "CPUs": "cpus",
            "SSHConfigFile": "sshConfigFile",
            "SSHAddress": "sshAddress",
        }
        return json.dumps({small.get(n, n[0].lower() + n[1:]): self.field(n) for n in names})

    def mounts(self) -> list[tuple[str, str]]:
        return [(m["location"], m["mountPoint"]) for m in (self.config or {}).get("mounts", [])]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def names() -> list[str]:
    try:
        return sorted(e.name for e in HOME.iterdir() if e.is_dir() and e.name[0] not in "._")
    except FileNotFoundError:
        return []
    except OSError as error:
        fatal(f"open {HOME}: {(error.strerror or '').lower()}")


def check_new(name: str, verb: str) -> None:
    directory = Instance(name).dir
    if directory.exists():
        fatal(f"instance `{name}` already exists" + (f" (`{directory}`)" if verb == "create" else ""))
    longest = directory / "ssh.sock.1234567890123456"
    if len(os.fsencode(longest)) >= UNIX_PATH_MAX:
        fatal(
            f"instance name `{name}` too long: `{longest}` must be less than UNIX_PATH_MAX={UNIX_PATH_MAX} "
            f"characters, but is {len(os.fsencode(longest))}"
        )
