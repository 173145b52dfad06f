"""What is checked before a start: free ports, nothing of the VM running, and that Lima shares only what we meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _claude_sandbox.config.parsers import Port
from _claude_sandbox.disks import store as disks_store
from _claude_sandbox.errors import LimaError, RefusedError, StartError
from _claude_sandbox.lima import vm_processes
from _claude_sandbox.lima.context import Context
from _claude_sandbox.vm import lima_yaml


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


def check_configuration_and_disk(ctx: Context, name: str, document: Mapping[str, Any]) -> None:
    """What would keep a VM from starting, or must not be started. Raises RefusedError, StartError."""

    def check() -> None:
        check_effective(ctx, name, document)
        disks_store.check_backing_files(ctx.lima.home, ctx.lima.home / name, ctx.progress.note)

    ctx.effects.do(f"check the configuration and the disk of {name}", check, None)


def check_nothing_runs(ctx: Context, name: str) -> None:
    """Two VMs on one disk would destroy it. Raises StartError."""
    left = vm_processes.running(ctx.lima.home / name)
    if left:
        raise StartError(
            f"{name} was not started: of an earlier start, {vm_processes.words(left)} still runs.",
            resolution="`claude-sandbox stop -f` ends it; `claude-sandbox start` then starts it.",
        )


def check_effective(ctx: Context, name: str, document: Mapping[str, Any]) -> None:
    """Compare what Lima would use with `document` (spec 4.3). Raises RefusedError, StartError."""
    own = ctx.lima.home / name / "lima.yaml"
    try:
        effective = ctx.lima.config(name)
    except LimaError as error:
        raise StartError(
            f"Lima cannot read the configuration of {name}: {own}", details=error.details
        ) from error
    extra = lima_yaml.differences(effective, document)
    if extra:
        config = ctx.lima.home / "_config"
        added = [str(config / f) for f in ("default.yaml", "override.yaml") if (config / f).exists()]
        raise RefusedError(
            f"{name} was not started: it would also get {'; '.join(extra)}.",
            details=f"It comes from {' or '.join(added)}, which Lima adds to every VM."
            if added
            else f"It is in {own}.",
            resolution="Take it out there, or set LIMA_HOME to another directory for sandboxes.",
        )
