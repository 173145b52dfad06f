"""Starting one VM: checks, limactl, a second try on an overloaded host, and that it is ready."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import GuestConnectionError, LimaError, StartError
from _claude_sandbox.lima import lockup, readiness, ssh_retry
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, START_TIMEOUT, STOPPED, Instance, reword
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import LogFile
from _claude_sandbox.system.run import LOG_KEPT, Result
from _claude_sandbox.vm import checks, document, estimates, lima_yaml, shares, stop
from _claude_sandbox.vm.journal import Journal

READY_MARK = "/run/lima-boot-done"  # Lima writes it in the guest when everything has run
_SSH_READY = (
    "essential requirement 2 of"  # when it is satisfied, our init, or Lima's scripts, let sessions in
)
_TOO_SLOW = "did not start up in 5s"  # an overloaded host; Lima waits five seconds only (facts/checked.md)
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


def start(
    ctx: Context,
    name: str,
    own_document: Mapping[str, Any],
    journal: Journal | None = None,
    timeout: float = START_TIMEOUT,
    kind: str = "start",
    on_ssh_ready: Callable[[Instance], None] | None = None,
) -> Instance:
    """Start a stopped VM and wait until it is ready (`timeout` in seconds); returns it as Lima sees it then.

    `own_document` is its document. `kind` is for the estimate of how long it takes (vm/estimates.py). `on_ssh_ready` is
    called as soon as the guest accepts ssh, while Lima still waits for other things; it must not take long. With
    it Lima's first question opens a connection that Lima and we share, if our init has set this boot up as a whole.
    A guest whose kernel hangs before it has answered (lima/lockup.py) is ended and booted once more.

    Raises RefusedError (Lima would share more than `own_document` says), StartError.
    """
    shared = shares.check_shares(own_document)
    checks.check_ports(lima_yaml.ports_of(own_document))
    checks.check_configuration_and_disk(ctx, name, own_document)
    ctx.effects.silently(lambda: _check_directory(ctx, name), None)
    with estimates.stage(ctx, f"Starting {name}", kind) as say, force_stop_if_interrupted(ctx, name):
        _Start(ctx, name, shared, say, journal, timeout, on_ssh_ready).run()
    return ctx.effects.silently(
        lambda: _started(ctx, name, own_document), Instance(name, RUNNING, ctx.lima.home / name)
    )


def _check_directory(ctx: Context, name: str) -> None:
    checks.check_nothing_runs(ctx, name)
    disks_store.remove_interrupted_copy(ctx.lima.home / name)


def _started(ctx: Context, name: str, own_document: Mapping[str, Any]) -> Instance:
    """The VM as Lima sees it now, recorded as ready. Raises StartError when it runs no more."""
    instance = ctx.lima.get(name)
    if instance is None or instance.status != RUNNING:
        raise StartError(f"{name} stopped right after its start.", resolution=f"Lima's log: {_log_of(name)}")
    document.record_ready(instance, own_document)
    return instance


def _log_of(name: str) -> Path:
    return paths.logs_dir() / f"{name}.log"


@dataclass(frozen=True)
class _Start:
    """The attempts at one start. `shared` is all that the VM may share; `say` shows what it is doing."""

    ctx: Context
    name: str
    shared: shares.Shared
    say: Callable[[str], None]
    journal: Journal | None
    timeout: float
    on_ssh_ready: Callable[[Instance], None] | None

    @property
    def coming(self) -> Instance:
        return Instance(self.name, STOPPED, self.ctx.lima.home / self.name)

    def run(self) -> None:
        """Raises StartError with limactl's words; nothing of the VM runs then."""
        for last_try in (False, True):
            console = lockup.Watch(self.coming.dir)
            result = self._attempt(console)
            if not result.ok and console.words:
                self._end_hung(console, last_try)
                continue
            if result.ok or self._is_up_without_agent(result):
                return
            left = _force_stop(self.ctx, self.name)
            if last_try or left or _TOO_SLOW not in result.error_text:
                raise StartError(
                    f"{self.name} did not start.",
                    details="\n".join([reword(result.error_text), *left]),
                    resolution=f"Lima's log: {_log_of(self.name)} ; "
                    f"the guest's console: {self.coming.dir / 'serial.log'}",
                )

    def _attempt(self, console: lockup.Watch) -> Result:
        effects = self.ctx.effects
        effects.silently(self._check_not_deleted, None)
        watch = shares.ShareWatch(
            self.ctx, self.name, self.shared, lambda: stop.force_stop(self.ctx, self.name)
        )

        def on_line(line: str) -> None:
            console.hear(line)
            watch.look()
            self._on_log_line(line)

        result = self.ctx.lima.start(
            self.name,
            timeout=self.timeout,
            env={**self.ctx.start_env(), **effects.silently(self._shared_connection, {})},
            on_line=on_line,
            logfile=_log_of(self.name),
            on_start=self.journal.note_child if self.journal else None,
            give_up=console.hangs,
        )
        effects.silently(watch.look, None)
        return result

    def _check_not_deleted(self) -> None:
        # Given a name that is not there, Lima would make a VM from template:default, home mounted.
        if not (self.coming.dir / "lima.yaml").exists():
            raise StartError(f"{self.name} was deleted while it was to be started.")

    def _end_hung(self, console: lockup.Watch, last_try: bool) -> None:
        """See that nothing of a hung boot is left. Raises StartError: something is, or it was the second one."""
        log = _log_of(self.name)
        LogFile(log, LOG_KEPT).write(console.last_words())  # the next start truncates the console's file
        if left := _force_stop(self.ctx, self.name):
            raise StartError(
                f"{self.name} did not start: its kernel hung while it booted.",
                details="\n".join([console.words, *left]),
            )
        if last_try:
            raise StartError(
                f"{self.name} did not start: its kernel hung while it booted, and so did a second boot.",
                details=console.words,
                resolution="Try again when this host is less busy; with `--cpus 1` an emulated boot has less to "
                f"wait for. The end of each boot's console: {log}",
            )
        self.ctx.progress.warn(
            f"{self.name} is booted once more: its kernel hung while it booted, in its words: {console.words}"
        )

    def _shared_connection(self) -> dict[str, str | None]:
        """Lets Lima's first question open the connection that it and we use; that of an earlier boot goes."""
        if self.on_ssh_ready is None:
            return {}
        guest = self.ctx.guest(self.coming)
        guest.disconnect()
        return ssh_retry.through(self.coming.dir, guest.control_path, guest.master)

    def _on_log_line(self, line: str) -> None:
        """One line of limactl's."""
        if self.on_ssh_ready is not None and _SSH_READY in line and "is satisfied" in line:
            self.on_ssh_ready(self.coming)
        stage = next((text for words, text in _STAGES.items() if words in line), None)
        if stage is not None:
            self.say(stage)

    def _is_up_without_agent(self, result: Result) -> bool:
        if "degraded" not in result.error_text or not _usable(self.ctx, self.name):
            return False
        self.ctx.progress.warn(
            f"{self.name} is up, but Lima's guest agent is late: the clock may drift. See {_log_of(self.name)}"
        )
        return True


@contextlib.contextmanager
def force_stop_if_interrupted(ctx: Context, name: str) -> Iterator[None]:
    """limactl dies with us but its VM would go on: stop that too (Ctrl-C, SIGTERM)."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        for problem in _force_stop(ctx, name):
            ctx.progress.warn(problem)
        raise


def _force_stop(ctx: Context, name: str) -> list[str]:
    """Stop what a failed start left; what could not be stopped, in words."""
    try:
        stop.force_stop(ctx, name)
    except LimaError as error:
        return [str(error)]
    return []


# -- a VM that somebody else starts --------------------------------------------------------------


def wait_ready(
    ctx: Context, instance: Instance, own_document: Mapping[str, Any], timeout: float = 300
) -> None:
    """Wait for a VM that somebody else started (or our run that was killed). Raises StartError."""
    if not readiness.was_ready(instance):
        ctx.effects.do(
            f"wait until {instance.name} is ready",
            lambda: _wait_ready(ctx, instance, own_document, timeout),
            None,
        )


def _wait_ready(ctx: Context, instance: Instance, own_document: Mapping[str, Any], timeout: float) -> None:
    import time

    deadline = time.monotonic() + timeout
    with ctx.progress.stage(f"Waiting for {instance.name}, which is starting"):
        while not _usable(ctx, instance.name):
            if time.monotonic() > deadline:
                raise StartError(
                    f"{instance.name} runs but does not get ready.",
                    resolution="`claude-sandbox restart` reboots it; "
                    f"its console: {instance.dir / 'serial.log'}",
                )
            time.sleep(1)
    document.record_ready(instance, own_document)


def _usable(ctx: Context, name: str) -> bool:
    """Whether ssh works and Lima's boot scripts have run."""
    instance = ctx.lima.read_instance_files(name)
    if instance is None or instance.status == STOPPED or not instance.ssh_config.exists():
        return False
    guest = ctx.guest(instance)
    try:
        guest.connect(timeout=45)
        return guest.run(f"test -e {READY_MARK}", timeout=30).ok
    except GuestConnectionError:
        return False
