"""An instance's lima.yaml on the disk: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _claude_sandbox.errors import StartError
from _claude_sandbox.lima import readiness
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import Instance
from _claude_sandbox.vm import lima_yaml


def parse(text: str) -> Any:
    """YAML by the C loader, which takes a tenth of the time, where PyYAML was built with it. Raises YAMLError."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dump(document: Mapping[str, Any]) -> bytes:
    import yaml

    text: str = yaml.safe_dump(dict(document), allow_unicode=True, sort_keys=False, width=10_000)
    return text.encode("utf-8")


def read(instance: Instance) -> lima_yaml.Document:
    """The instance's own lima.yaml. Raises StartError that names the file."""
    import yaml

    file = instance.dir / "lima.yaml"
    try:
        document = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StartError(
            f"The configuration of {instance.name} cannot be read: {file}",
            details=str(error),
            resolution="Fix the file, or `claude-sandbox delete` and create the sandbox again.",
        ) from error
    if not isinstance(document, dict):
        raise StartError(f"The configuration of {instance.name} is not a Lima YAML: {file}")
    return document


def write(ctx: Context, directory: Path, document: Mapping[str, Any]) -> None:
    """Replace the lima.yaml of an instance directory."""
    ctx.write(directory / "lima.yaml", dump(document))


def record_ready(instance: Instance, document: Mapping[str, Any]) -> None:
    """Remember that this boot was ready, with the document's facts that a warm attach needs (lima/readiness.py)."""
    shared = lima_yaml.shares_of(document)
    readiness.record(instance, str(shared[0].point) if shared else "", lima_yaml.uid_of(document))
