"""Starting, stopping and deleting instances of the fake limactl."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import fakedisk
import fakelib
import limamake
from fakelib import fatal, logrus
from limainstance import HOME, Instance

TYPE_CHECKING = False  # see limaconfig.py
if TYPE_CHECKING:
    from typing import Any

TMP_SUFFIXES = (".pid", ".sock", ".tmp")


def start(options: dict[str, str], arguments: list[str], fault: fakelib.Fault) -> int:
    name = arguments[0]
    instance = Instance(name)
    try:
        instance.inspect()
    except FileNotFoundError:
        # The trap of the real one: an unknown name becomes a new VM from template:default.
        logrus("info", f"Creating an instance `{name}` from template:default (Not from template:{name})")
        logrus("warning", "This form is deprecated. Use `limactl create --name=... template:default` instead")
        limamake.make(name, limamake.TEMPLATES["default"], fault)
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
    if fault.get("exits") or broken_disk(directory / "disk"):
        fakelib.end_helper(agent)
        stop_files(directory)
        fatal(f"exiting, status={{Running:false Degraded:false Exiting:true}} (hint: see `{log}`)")
    if swap := fault.get("swap"):
        os.rename(swap[0], f"{swap[0]}.before")
        os.symlink(swap[1], swap[0])
    (directory / "serial.log").unlink(missing_ok=True)
    driver = fakelib.spawn_helper(
        "qemu-system-x86_64", directory, "-name", f"lima-{instance.name}", "-pidfile", f"{directory}/qemu.pid",
        shared=[location for location, _ in instance.mounts()],
    )  # fmt: skip
    if swap and len(swap) > 2:  # and back again
        os.unlink(swap[0])
        os.rename(f"{swap[0]}.before", swap[0])
    (directory / "qemu.pid").write_text(f"{driver}\n")
    port = int(config["ssh"]["localPort"]) or 60000 + zlib.crc32(os.fsencode(directory)) % 5000
    (directory / "ssh.config").write_text(ssh_config(instance, port))
    logrus("info", f"SSH Local Port: {port}")
    (directory / "cidata.iso").write_bytes(b"fake")
    fault.at("booting")
    console(directory, fault.get("console"))
    if fault.get("hangs"):
        os.waitpid(agent, 0)
        fatal("host agent process has exited: signal: killed")
    if fault.get("timeout"):
        fatal("did not receive an event with the `running` status")
    requirements(instance)
    console(directory, fault.get("later_console"))
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


def console(directory: Path, says: list[list[Any]] | None) -> None:
    """What the guest's kernel writes on its serial port: [seconds to wait before, text] in turn."""
    for pause, text in says or []:
        time.sleep(pause)
        with (directory / "serial.log").open("a") as file:
            file.write(text)


def broken_disk(disk: Path) -> bool:
    """Whether QEMU would not start: a file that the disk stands on is missing."""
    try:
        fakedisk.content(disk)
    except FileNotFoundError:
        return True
    return False


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
    if fault.get("leaves"):
        stop_files(instance.dir)
        return 0
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
    fakelib.end_masters(instance.dir)
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
    fakelib.end_masters(instance.dir)
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
        if not fault.get("leaves"):
            stop_forcibly(instance)
        fault.at("during")
        limamake.remove(instance.dir)
        logrus("info", f"Deleted `{name}` (`{instance.dir}`)")
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
