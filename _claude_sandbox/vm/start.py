"""Starting one VM, and making sure before the start that it shares only what we meant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.config.parsers import Port
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import GuestConnectionError, LimaError, RefusedError, StartError
from _claude_sandbox.lima import readiness, ssh_retry, vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, START_TIMEOUT, STOPPED, Instance, reword
from _claude_sandbox.system import paths
from _claude_sandbox.vm import estimates, lima_yaml, shares, stop
from _claude_sandbox.vm.journal import Journal

READY_MARK = "/run/lima-boot-done"  # Lima writes it in the guest when everything has run
_ANSWERS = "essential requirement 2 of"  # when it is satisfied, our init, or Lima's scripts, let sessions in
# limactl's words, and what goes on in the VM from then on.
_STAGES = {
    "Downloading": "image",
    "Starting the instance": "VM",
    "Starting QEMU": "boot",
    "Starting VZ": "boot",
    "essential requirement 1 of": "boot",
    "essential requirement 2 of": "network",
    "essential requirement 3 of": "network",
    "guest agent": "guest agent",
    "final requirement": "boot scripts",
}


def read_document(instance: Instance) -> lima_yaml.Document:
    """The instance's own lima.yaml. Raises StartError that names the file."""
    import yaml

    file = instance.dir / "lima.yaml"
    try:
        # The C loader takes a tenth of the time, where PyYAML was built with it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        document = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StartError(
            f"The configuration of {instance.name} cannot be read: {file}",
            details=str(error),
            resolution="Mend the file, or `claude-sandbox delete` and create the sandbox anew.",
        ) from error
    if not isinstance(document, dict):
        raise StartError(f"The configuration of {instance.name} is no Lima YAML: {file}")
    return document


def write_document(ctx: Context, directory: Path, document: lima_yaml.Document) -> None:
    import yaml

    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=10_000)
    ctx.write(directory / "lima.yaml", text.encode("utf-8"))


def start(
    ctx: Context,
    name: str,
    document: Mapping[str, Any],
    journal: Journal | None = None,
    timeout: float = START_TIMEOUT,
    kind: str = "start",
    answers: Callable[[Instance], None] | None = None,
) -> Instance:
    """Start a stopped VM and wait until it is ready (`timeout` in seconds); returns it as Lima sees it then.

    `kind` is for the estimate of how long it takes (vm/estimates.py). `answers` is called as soon as the guest can
    be spoken to over ssh, while Lima still waits for other things; it must not take long. With it Lima's first
    question opens a connection that Lima and we share, if our init has set this boot up as a whole.

    Raises RefusedError (Lima would share more than `document` says), StartError.
    """
    shared = shares.check_shares(document)
    check_ports(lima_yaml.ports_of(document))
    if not ctx.dry:
        check_effective(ctx, name, document)
        _check_nothing_runs(ctx, name)
        disks_store.check(ctx.lima.home, ctx.lima.home / name, ctx.progress.note)
        disks_store.tidy(ctx.lima.home / name)
    logfile = paths.logs_dir() / f"{name}.log"
    coming = Instance(name, STOPPED, ctx.lima.home / name)
    with estimates.stage(ctx, f"Starting {name}", kind) as say, force_stop_if_interrupted(ctx, name):
        for last_try in (False, True):
            # Given a name that is not there, Lima would make a VM from template:default, home mounted.
            if not ctx.dry and not (ctx.lima.home / name / "lima.yaml").exists():
                raise StartError(f"{name} was deleted while it was to be started.")
            watch = shares.Watch(ctx, name, shared, lambda: stop.force_stop(ctx, name))
            result = ctx.lima.start(
                name,
                timeout=timeout,
                env={**ctx.start_env(), **(_own_master(ctx, coming) if answers else {})},
                on_line=lambda line, watch=watch: _hear(line, say, coming, answers, watch),  # type: ignore[misc]
                logfile=logfile,
                on_start=journal.note_child if journal else None,
            )
            watch.look()
            if result.ok:
                break
            words = result.error_text
            if "degraded" in words and _usable(ctx, name):
                ctx.progress.warn(
                    f"{name} is up, but Lima's guest agent is late: the clock may drift. See {logfile}"
                )
                break
            left = _what_is_left(ctx, name)
            # An overloaded host; Lima waits five seconds only (facts/checked.md).
            if last_try or left or "did not start up in 5s" not in words:
                raise StartError(
                    f"{name} did not start.",
                    details="\n".join([reword(words), *left]),
                    resolution=f"Lima's log: {logfile} ; the guest's console: {ctx.lima.home / name / 'serial.log'}",
                )
    if ctx.dry:
        return Instance(name, RUNNING, ctx.lima.home / name)
    instance = ctx.lima.get(name)
    if instance is None or instance.status != RUNNING:
        raise StartError(f"{name} stopped right after its start.", resolution=f"Lima's log: {logfile}")
    stamp(instance, document)
    return instance


def _own_master(ctx: Context, coming: Instance) -> dict[str, str | None]:
    """Lets Lima's first question open the connection that it and we use; that of an earlier boot goes."""
    if ctx.dry:
        return {}
    guest = ctx.guest(coming)
    guest.disconnect()
    return ssh_retry.through(coming.dir, guest.control_path, guest.master)


def _hear(
    line: str,
    say: Callable[[str], None],
    coming: Instance,
    answers: Callable[[Instance], None] | None,
    watch: shares.Watch,
) -> None:
    """One line of limactl's."""
    watch.look()
    if answers is not None and _ANSWERS in line and "is satisfied" in line:
        answers(coming)
    for words, text in _STAGES.items():
        if words in line:
            say(text)
            return


@contextlib.contextmanager
def force_stop_if_interrupted(ctx: Context, name: str) -> Iterator[None]:
    """limactl dies with us but its VM would go on: stop that too (Ctrl-C, SIGTERM)."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        try:
            stop.force_stop(ctx, name)
        except LimaError as error:
            ctx.progress.warn(str(error))
        raise


def _what_is_left(ctx: Context, name: str) -> list[str]:
    """Stop what a failed start left; what could not be stopped, in words."""
    try:
        stop.force_stop(ctx, name)
    except LimaError as error:
        return [str(error)]
    return []


def _check_nothing_runs(ctx: Context, name: str) -> None:
    """Two VMs on one disk would destroy it. Raises StartError."""
    left = vm_processes.running(ctx.lima.home / name)
    if left:
        raise StartError(
            f"{name} was not started: of an earlier start, {vm_processes.words(left)} still runs.",
            resolution="`claude-sandbox stop -f` ends it; `claude-sandbox start` then starts it.",
        )


# -- readiness -----------------------------------------------------------------------------------


def stamp(instance: Instance, document: Mapping[str, Any]) -> None:
    """Remember that this boot was ready (lima/readiness.py)."""
    shared = lima_yaml.shares_of(document)
    readiness.record(instance, str(shared[0].point) if shared else "", lima_yaml.uid_of(document))


def project_point(instance: Instance) -> str:
    """Where a running sandbox has its project (the first of its mounts)."""
    with contextlib.suppress(OSError):
        boot, point, _ = readiness.recorded(instance)
        if point and boot == readiness.boot_id(instance):
            return point
    return str(lima_yaml.shares_of(read_document(instance))[0].point)


def guest_uid(instance: Instance) -> int:
    """The uid of a running sandbox's user."""
    with contextlib.suppress(OSError, ValueError):
        boot, _, uid = readiness.recorded(instance)
        if boot == readiness.boot_id(instance):
            return int(uid)
    return lima_yaml.uid_of(read_document(instance))


def wait_ready(ctx: Context, instance: Instance, timeout: float = 300) -> None:
    """Wait for a VM that somebody else started (or a killed run of ours). Raises StartError."""
    import time

    if ctx.dry or readiness.was_ready(instance):
        return
    deadline = time.monotonic() + timeout
    with ctx.progress.stage(f"Waiting for {instance.name}, which is starting"):
        while not _usable(ctx, instance.name):
            if time.monotonic() > deadline:
                raise StartError(
                    f"{instance.name} runs but does not get ready.",
                    resolution="`claude-sandbox restart` starts it anew; "
                    f"its console: {instance.dir / 'serial.log'}",
                )
            time.sleep(1)
    stamp(instance, read_document(instance))


def _usable(ctx: Context, name: str) -> bool:
    """Whether ssh works and Lima's boot scripts have run."""
    instance = ctx.lima.peek(name)
    if instance is None or instance.status == STOPPED or not instance.ssh_config.exists():
        return False
    guest = ctx.guest(instance)
    try:
        guest.connect(timeout=45)
        return guest.run(f"test -e {READY_MARK}", timeout=30).ok
    except GuestConnectionError:
        return False


# -- checks before a start -----------------------------------------------------------------------


def check_ports(ports: tuple[Port, ...]) -> None:
    """Raise StartError for a host port that cannot be listened on: Lima only logs that."""
    import socket

    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port.host))
            except PermissionError as error:
                raise StartError(
                    f"Host port {port.host} is below 1024, which only root may use.",
                    resolution=f"Take a higher one: -p {port.host + 8000}:{port.guest}",
                ) from error
            except OSError as error:
                raise StartError(
                    f"Host port {port.host} is taken.",
                    details=str(error),
                    resolution=f"Stop what listens there, or take another: -p OTHER:{port.guest}",
                ) from error


def check_effective(ctx: Context, name: str, document: Mapping[str, Any]) -> None:
    """Compare what Lima would use with what we meant (spec 4.3). Raises RefusedError, StartError."""
    try:
        effective = ctx.lima.config(name)
    except LimaError as error:
        raise StartError(
            f"Lima cannot read the configuration of {name}: {ctx.lima.home / name / 'lima.yaml'}",
            details=error.details,
        ) from error
    extra = lima_yaml.differences(effective, document)
    if extra:
        files = [f for f in ("default.yaml", "override.yaml") if (ctx.lima.home / "_config" / f).exists()]
        where = " or ".join(str(ctx.lima.home / "_config" / f) for f in files)
        raise RefusedError(
            f"{name} was not started: it would also get " + "; ".join(extra) + ".",
            details=f"It comes from {where or ctx.lima.home / name / 'lima.yaml'}, which Lima adds to every VM."
            if where
            else f"It stands in {ctx.lima.home / name / 'lima.yaml'}.",
            resolution="Take it out there, or set LIMA_HOME to another directory for sandboxes.",
        )
