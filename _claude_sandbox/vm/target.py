"""What a launch carries from the verb to ssh: a running sandbox, found once, with what its session needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from _claude_sandbox.config.table import Config
from _claude_sandbox.lima import readiness
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.vm import lima_yaml


@dataclass(frozen=True)
class Target:
    """`point` is where the guest has the project, `uid` its user's number."""

    config: Config
    instance: Instance
    point: str
    uid: int

    @classmethod
    def of(cls, config: Config, instance: Instance, document: Mapping[str, Any]) -> Target:
        """`document` is the instance's lima.yaml; the project is its first share."""
        shares = lima_yaml.shares_of(document)
        return cls(config, instance, str(shares[0].point) if shares else "", lima_yaml.uid_of(document))

    @classmethod
    def of_ready_boot(cls, config: Config, instance: Instance) -> Target | None:
        """From what was recorded when this boot was ready: no YAML to parse. None: nothing was, or not all."""
        try:
            boot, point, uid = readiness.recorded(instance)
            number = int(uid)
        except (OSError, ValueError):
            return None
        return cls(config, instance, point, number) if point and boot == readiness.boot_id(instance) else None
