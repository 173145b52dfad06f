"""The user's approval of what a project's file asks for; kept where the guest cannot write."""

from __future__ import annotations

import json
from pathlib import Path

from _claude_sandbox.config.yaml_file import text_of
from _claude_sandbox.errors import ConfigError
from _claude_sandbox.system import paths
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object
from _claude_sandbox.system.lookup import Looked


class ApprovalNeeded(ConfigError):
    """A project file asks for what only the user can allow. `approve(project, digest)` allows it."""

    def __init__(self, file: Path, wants: list[str], digest: str) -> None:
        super().__init__(
            f"{file} asks for what needs your approval: {'; '.join(wants)}.",
            details="Whoever can write the project, the sandbox included, can write that file.",
            resolution="Look at it, then run `claude-sandbox approve` in the project.",
        )
        self.wants, self.digest = wants, digest


class Wishes:
    """What a project's file (`text`) asks for that needs the user's approval.

    An approval is bound to the file's content and to what it leads to: the resolved directory of each mount
    and of the settings, the content of a template. It is asked for again when any of these differs.
    """

    def __init__(self, file: Path, text: str) -> None:
        self.file, self.project, self.text = file, file.parent, text
        self.template_text: str | None = None
        self._wants: list[str] = []
        self._targets: list[list[str]] = []

    def add(self, key: str, raw: object, value: object, source: str) -> None:
        """One wish with its parsed value. Raises ConfigError for what lies in the project."""
        found = [mount.looked for mount in value] if isinstance(value, tuple) else [value]
        looked = [each for each in found if isinstance(each, Looked)]
        if key == "template" and looked:
            self.template_text = self._template(looked[0], source)
            content = _sha256(self.template_text)
            targets = [str(looked[0].real), f"sha256:{content}"]
        else:
            for each in looked:
                self._refuse_own(key, each, source)
            targets = [str(each.real) for each in looked]
        line = source.rpartition(":")[2]
        leads = f", which is {', '.join(map(repr, targets))}" if targets else ""
        self._wants.append(f"{key}: {raw!r}{leads} (line {line})")
        self._targets.append([key, *targets])

    def _template(self, looked: Looked, source: str) -> str:
        text = text_of(looked.real, hostile=True)
        if not text.strip():
            raise ConfigError(f"{source}: template: there is nothing in {str(looked.real)!r}.")
        return text

    def _refuse_own(self, key: str, looked: Looked, source: str) -> None:
        """The guest may put a symlink there at any time; and a mount in the project gives it nothing new."""
        if looked.passes([self.project]):
            raise ConfigError(
                f"{source}: {key}: {str(looked.real)!r} cannot be shared: the way to it leads through the project.",
                details="The sandbox has the project anyway, and could lead us elsewhere by a symlink in it.",
                resolution="Name a directory outside of the project, or take that line out.",
            )

    def check(self) -> None:
        """Raise ApprovalNeeded unless the user has approved just this."""
        if not self._wants:
            return
        content = _sha256(self.text)
        digest = _sha256(json.dumps([content, self._targets]))
        if not _approved(self.project, digest):
            raise ApprovalNeeded(self.file, self._wants, digest)


def _sha256(text: str) -> str:
    import hashlib  # 3 ms

    return hashlib.sha256(text.encode()).hexdigest()


def _approvals() -> Path:
    return paths.state_dir() / "approvals.json"


def _approved(project: Path, digest: str) -> bool:
    """Whether it was; an answer of an older version, to the content alone, is another digest."""
    return (read_object(_approvals()) or {}).get(str(project)) == digest


def approve(project: Path, digest: str) -> None:
    """Remember that the user looked at what ApprovalNeeded showed under this digest."""
    write_json(_approvals(), {**(read_object(_approvals()) or {}), str(project): digest})
