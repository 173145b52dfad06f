"""A stateful stand-in for limactl 2.2.0; see README.md."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from pathlib import Path

import fakelib
import limaconfig
from fakelib import alive, fatal, logrus
from limaconfig import Invalid

TYPE_CHECKING = False  # see limaconfig.py
if TYPE_CHECKING:
    from typing import Any

    from limaconfig import Document

NAME = re.compile(r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$")
TMP_SUFFIXES = (".pid", ".sock", ".tmp")
UNIX_PATH_MAX = 108
TEMPLATES = {
    "default": 'images:\n- {location: "https://images.example/ubuntu.img", arch: x86_64}\nmounts:\n- {location: "~"}\n',
    "ubuntu-lts": 'images:\n- {location: "https://images.example/ubuntu.img", arch: x86_64}\nmounts:\n- {location: "~"}\n',
    "debian-12": 'images:\n- {location: "https://images.example/debian.img", arch: x86_64}\nmountTypesUnsupported: ["9p"]\n',
}


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


# -- questions -------------------------------------------------------------------------------------


def list_(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    present = names()
    if not present and not arguments:
        logrus("warning", "No instance found. Run `limactl create` to create an instance.")
        return 0
    for name in present:
        if not (HOME / name / "lima.yaml").exists():
            problem = f"stat {HOME}/{name}/lima.yaml: no such file or directory"
            logrus("warning", f"The directory `{HOME}` does not look like a valid Lima directory: {problem}")
            break
    unmatched = [name for name in arguments if name not in present]
    for name in unmatched:
        logrus("warning", f"No instance matching {name} found.")
    found = []
    for name in arguments or present:
        if name in unmatched:
            continue
        instance = Instance(name)
        try:
            instance.inspect()
        except FileNotFoundError:
            instance.status = "Broken"
            instance.errors = [f"open {instance.dir}/lima.yaml: no such file or directory"]
        if instance.errors:
            logrus("warning", f"instance `{name}` has errors", errors="[" + " ".join(instance.errors) + "]")
        found.append(instance)
    for instance in found:
        if "json" in options or options.get("format") == "json":
            print(instance.as_json())
        elif options.get("format"):
            print(render(options["format"], instance))
        else:
            print(f"{instance.name}\t{instance.status}\t{instance.dir}")
    if unmatched:
        fatal("unmatched instances")
    return 0


def render(template: str, instance: Instance) -> str:
    def value(match: re.Match[str]) -> str:
        try:
            content = instance.field(match[2])
        except KeyError:
            fatal(
                f'template: format:1:7: executing "format" at <.{match[2]}>: '
                f"can't evaluate field {match[2]} in type store.FormatData"
            )
        return json.dumps(content) if match[1] else str(content)

    return re.sub(r"\{\{ ?(json )?\.(\w+) ?\}\}", value, template)


def template(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    if arguments[:1] != ["copy"] or len(arguments) != 3:
        fatal('unknown command "template"')
    print(template_text(arguments[1]), end="")
    return 0


def template_text(locator: str) -> str:
    if locator.startswith("template:"):
        name = locator.removeprefix("template:").lstrip("/")
        if name not in TEMPLATES:
            fatal(f"template `{name}.yaml` not found")
        return TEMPLATES[name]
    try:
        return Path(locator).read_text()
    except OSError as error:
        fatal(f"open {locator}: {(error.strerror or '').lower()}")


# -- changes ---------------------------------------------------------------------------------------


def create(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    name = options.get("name") or Path(arguments[0]).stem
    directory = Instance(name).dir
    logrus("info", "Terminal is not available, proceeding without opening an editor")
    make(name, template_text(arguments[0]), fault)
    logrus("info", f"Run `limactl start {name}` to start the instance.")
    return 0 if directory.exists() else 1


def make(name: str, text: str, fault: fakelib.Fault) -> None:
    """As instance.Create: all checks first, then the directory; a failure removes it again."""
    directory = HOME / name
    check_new(name, "create")
    try:
        document = limaconfig.parse(text, directory / "lima.yaml")
        limaconfig.check_param(document)
        config = limaconfig.fill(document, directory, {}, {})
        if not config.get("images"):
            raise Invalid("no images are configured (did you set --image-variant to a value not present?)")
        for warning in limaconfig.validate(config):
            logrus("warning", warning)
    except Invalid as error:
        fatal(str(error))
    directory.mkdir(parents=True, mode=0o700)
    (directory / "lima.yaml").write_text(text)
    (directory / "lima-version").write_text(VERSION)
    fault.at("during")
    (directory / "cloud-config.yaml").write_text("#cloud-config\n")
    location = str(config["images"][0].get("location", ""))
    logrus("info", "Attempting to download the image", arch="x86_64", digest="", location=location)
    if location.startswith("/") and not Path(location).exists():
        remove(directory)
        fatal(f"failed to download the image: stat {location}: no such file or directory")
    (directory / "disk").write_bytes(b"QFI\xfb" + bytes(60))
    fakelib.make_guest(directory)


def remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory)


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


def clone(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    if len(arguments) != 2:
        fatal(f"`limactl clone` accepts 2 arg(s), received {len(arguments)}.\nSee `limactl clone --help`.")
    try:
        old = Instance(arguments[0]).inspect()
    except FileNotFoundError:
        fatal(f"instance `{arguments[0]}` not found")
    if old.status == "Running":
        fatal("cannot clone a running instance")
    check_new(arguments[1], "clone")
    import shutil

    new = HOME / arguments[1]
    new.mkdir(mode=0o700)
    # In the order of filepath.WalkDir: the disk and the rest before lima.yaml.
    for entry in sorted(old.dir.iterdir()):
        if entry.name == "protected" or entry.name.endswith(TMP_SUFFIXES):
            continue
        if entry.name == "lima.yaml":
            fault.at("during")
            if fault.get("partial"):
                fatal(str(fault.get("fail") or "no space left on device"))
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)
    return 0


def start(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    name = arguments[0]
    instance = Instance(name)
    try:
        instance.inspect()
    except FileNotFoundError:
        # The trap of the real one: an unknown name becomes a new VM from template:default.
        logrus("info", f"Creating an instance `{name}` from template:default (Not from template:{name})")
        logrus("warning", "This form is deprecated. Use `limactl create --name=... template:default` instead")
        make(name, TEMPLATES["default"], fault)
        instance.inspect()
    if instance.errors:
        problem = " ".join(instance.errors)
        logrus("error", f'Instance "{name}" has configuration errors', error=problem)
        if instance.config is None:
            fatal(f'instance "{name}" has configuration errors: {problem}')
        logrus("info", f"Using the existing instance `{name}`")
        fatal(f"errors inspecting instance: [{problem}]")
    logrus("info", f"Using the existing instance `{name}`")
    if instance.status == "Running":
        logrus(
            "info", f"The instance `{name}` is already running. Run `limactl shell {name}` to open the shell."
        )
        return 0
    return boot(instance, fault)


def boot(instance: Instance, fault: fakelib.Fault) -> int:
    directory, log = instance.dir, instance.dir / "ha.stderr.log"
    logrus("info", f"Starting the instance `{instance.name}` with internal VM driver `qemu`")
    if fault.get("slow_agent"):
        fatal(f"hostagent (`{directory}/ha.pid`) did not start up in 5s (hint: see `{log}`)")
    for location, _ in instance.mounts():
        Path(location).mkdir(parents=True, exist_ok=True)  # as the real one does
    config = instance.config or {}
    fakelib.booted(directory, False)
    (directory / "ha.stdout.log").write_text("")
    log.write_text("")
    words = ("hostagent", "--pidfile", f"{directory}/ha.pid", instance.name)
    agent = fakelib.spawn_helper("limactl", directory, *words, listen=directory / "ha.sock")
    (directory / "ha.pid").write_text(f"{agent}\n")
    fault.at("during")
    logrus("info", f"[hostagent] hostagent socket created at {directory}/ha.sock")
    logrus(
        "info", f'[hostagent] Starting QEMU (hint: to watch the boot progress, see "{directory}/serial*.log")'
    )
    if fault.get("exits"):
        fakelib.end_helper(agent)
        stop_files(directory)
        fatal(f"exiting, status={{Running:false Degraded:false Exiting:true}} (hint: see `{log}`)")
    driver = fakelib.spawn_helper(
        "qemu-system-x86_64", directory, "-name", f"lima-{instance.name}", "-pidfile", f"{directory}/qemu.pid"
    )
    (directory / "qemu.pid").write_text(f"{driver}\n")
    port = int(config["ssh"]["localPort"]) or 60000 + zlib.crc32(os.fsencode(directory)) % 5000
    (directory / "ssh.config").write_text(ssh_config(instance, port))
    logrus("info", f"SSH Local Port: {port}")
    (directory / "cidata.iso").write_bytes(b"fake")
    fault.at("booting")
    if fault.get("timeout"):
        fatal("did not receive an event with the `running` status")
    requirements(instance)
    fakelib.booted(directory, True)
    with (directory / "guest" / "boots").open("a") as file:
        file.write("boot\n")
    if fault.get("degraded"):
        logrus(
            "warning",
            "DEGRADED. The VM seems running, but file sharing and port forwarding may not work. "
            f"(hint: see `{log}`)",
        )
        fatal(
            f"degraded, status={{Running:true Degraded:true Exiting:false Errors:[{fault.get('degraded')}]}}"
        )
    logrus("info", f"READY. Run `limactl shell {instance.name}` to open the shell.")
    return 0


def requirements(instance: Instance) -> None:
    essential = ("ssh", "user session is ready for ssh", "Explicitly start ssh ControlMaster")
    for number, text in enumerate(essential, 1):
        logrus("info", f'[hostagent] Waiting for the essential requirement {number} of 3: "{text}"')
        logrus("info", f"[hostagent] The essential requirement {number} of 3 is satisfied")
    bind(instance.dir / "ssh.sock")
    for number, probe in enumerate(probes := (instance.config or {}).get("probes") or [], 1):
        label = f"{number} of {len(probes)}"
        text = probe.get("description") or f"user probe {number}/{len(probes)}"
        logrus("info", f'[hostagent] Waiting for the optional requirement {label}: "{text}"')
        logrus("info", f"[hostagent] The optional requirement {label} is satisfied")
    logrus("info", "[hostagent] Waiting for the guest agent to be running")
    logrus("info", "[hostagent] Guest agent is running")
    logrus("info", '[hostagent] Waiting for the final requirement 1 of 1: "boot scripts must have finished"')
    logrus("info", "[hostagent] The final requirement 1 of 1 is satisfied")


def bind(path: Path) -> None:
    import socket

    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def ssh_config(instance: Instance, port: int) -> str:
    user = (instance.config or {})["user"]["name"]
    return f"""# This SSH config file can be passed to 'ssh -F'.
Host lima-{instance.name}
  IdentityFile "{HOME}/_config/user"
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  BatchMode yes
  User {user}
  ControlMaster auto
  ControlPath "{instance.dir}/ssh.sock"
  ControlPersist yes
  Hostname 127.0.0.1
  Port {port}
"""


def stop(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    try:
        instance = Instance(arguments[0]).inspect()
    except FileNotFoundError:
        fatal(f"open {HOME}/{arguments[0]}/lima.yaml: no such file or directory")
    if "force" in options:
        stop_forcibly(instance)
        return 0
    if instance.status != "Running":
        fatal(f"expected status `Running`, got `{instance.status}` (maybe use `limactl stop -f`?)")
    logrus("info", f"Sending SIGINT to hostagent process {instance.agent}")
    logrus("info", "Waiting for the host agent and the driver processes to shut down")
    fakelib.end_helper(instance.agent)
    (instance.dir / "ha.pid").unlink(missing_ok=True)
    fault.at("during")
    fakelib.end_helper(instance.driver)
    fakelib.booted(instance.dir, False)
    stop_files(instance.dir)
    logrus("info", "Waiting for the instance to shut down")
    logrus("info", f"The instance {instance.name} has shut down")
    return 0


def stop_forcibly(instance: Instance) -> None:
    kind = "qemu" if instance.config else ""
    if instance.driver:
        logrus("info", f"Sending SIGKILL to the {kind} driver process {instance.driver}")
    else:
        logrus("info", f"The {kind} driver process seems already stopped")
    fakelib.end_helper(instance.driver)
    if instance.agent:
        logrus("info", f"Sending SIGKILL to the host agent process {instance.agent}")
    else:
        logrus("info", "The host agent process seems already stopped")
    fakelib.end_helper(instance.agent)
    if instance.driver:
        fakelib.booted(instance.dir, False)
    logrus("info", f"Removing *.pid *.sock *.tmp under `{instance.dir}`")
    stop_files(instance.dir)


def stop_files(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name.endswith(TMP_SUFFIXES):
            entry.unlink(missing_ok=True)


def delete(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    for name in arguments:
        try:
            instance = Instance(name).inspect()
        except FileNotFoundError:
            directory = HOME / name
            if not directory.exists():
                logrus("warning", f"Ignoring non-existent instance `{name}`")
                continue
            fatal(
                f"instance `{name}` directory `{directory}` exists but its `lima.yaml` could not be read; it was "
                "NOT deleted, in case it is currently being cloned into. If no `limactl` operation is using it, "
                "remove it manually"
            )
        prefix = f"failed to delete instance `{name}`: "
        if instance.protected and instance.config:
            fatal(
                f"{prefix}instance is protected to prohibit accidental removal (Hint: use `limactl unprotect`)"
            )
        if "force" not in options and instance.status != "Stopped":
            fatal(f"{prefix}expected status `Stopped`, got `{instance.status}`")
        stop_forcibly(instance)
        fault.at("during")
        remove(instance.dir)
        logrus("info", f"Deleted `{name}` (`{instance.dir}`)")
    return 0


def protect(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    return _protection(arguments, True)


def unprotect(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    return _protection(arguments, False)


def _protection(arguments: list[str], wanted: bool) -> int:
    for name in arguments:
        try:
            instance = Instance(name).inspect()
        except FileNotFoundError:
            fatal(
                f"failed to inspect instance `{name}`: open {HOME}/{name}/lima.yaml: no such file or directory"
            )
        mark = instance.dir / "protected"
        if instance.protected == wanted:
            state = "is already" if wanted else "isn't"
            logrus("warning", f"Instance `{name}` {state} protected. Skipping.")
        elif wanted:
            mark.touch(mode=0o400)
            logrus("info", f"Protected `{name}`")
        else:
            mark.unlink()
            logrus("info", f"Unprotected `{name}`")
    return 0


def shell(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    name, *command = arguments
    try:
        instance = Instance(name).inspect()
    except FileNotFoundError:
        fatal(f"instance `{name}` does not exist, run `limactl create {name}` to create a new instance")
    if instance.status == "Stopped":
        fatal(f"instance `{name}` is stopped, run `limactl start {name}` to start the instance")
    remote = "exec " + " ".join("'" + part.replace("'", "'\\''") + "'" for part in command or ["bash", "-l"])
    argv, environment = fakelib.guest_command(instance.dir, instance.mounts(), remote)
    os.chdir(environment["HOME"])
    os.execvpe(argv[0], argv, environment)


VERBS = {
    "list": list_, "ls": list_, "template": template, "tmpl": template, "create": create, "clone": clone,
    "start": start, "stop": stop, "delete": delete, "rm": delete, "protect": protect,
    "unprotect": unprotect, "shell": shell,
}  # fmt: skip
VALUED = ("--format", "--name", "--timeout", "--workdir", "--log-level", "--log-format")
SHORT = {"-f": "--force", "-q": "--quiet", "-y": "--yes"}


def split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and positional arguments; for `shell` everything after the instance is the command."""
    options: dict[str, str] = {}
    positional: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if positional[:1] == ["shell"] and len(positional) >= 2:
            positional.append(argument)
        elif argument in SHORT and not (argument == "-f" and positional[:1] in (["list"], ["ls"])):
            options[SHORT[argument][2:]] = ""
        elif argument == "-f":
            options["format"] = next(rest)
        elif argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            options[key] = value if equals else next(rest) if argument in VALUED else ""
        else:
            positional.append(argument)
    return options, positional


def main() -> int:
    argv = sys.argv[1:]
    fakelib.log_call("limactl", argv)
    options, positional = split(argv)
    verb = "version" if "version" in options else positional[0] if positional else "help"
    fault = fakelib.fault_for(verb, argv)
    fault.first()
    if verb == "version":
        print(f"limactl version {VERSION}")
        return 0
    if verb not in VERBS:
        fatal(f'unknown command "{verb}" for "limactl"')
    code = VERBS[verb](options, positional[1:], fault)
    sys.stdout.flush()
    fault.at("after")
    return code


HOME = Path(os.environ.get("LIMA_HOME") or Path(os.environ["HOME"]) / ".lima")
VERSION = os.environ.get("FAKE_LIMA_VERSION", "2.2.0")
