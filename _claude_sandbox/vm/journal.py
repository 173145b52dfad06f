"""What is being made right now, so that a kill at any instant leaves something recognisable.

One small file per VM under construction, in our state directory, written before the first byte of
the VM and removed once it was ready. A VM with such a file was never ready: it holds nothing of
value, and the next run removes it. The file also names the limactl process that may have outlived us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from _claude_sandbox.system import paths, processes
from _claude_sandbox.system.files import write_json
from _claude_sandbox.system.jsonio import read_object


def _tag(lima_home: Path, name: str) -> str:
    import hashlib

    return f"{name}-{hashlib.sha256(os.fsencode(lima_home)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Journal:
    """The file that says that the VM `name` is under construction for `project`."""

    lima_home: Path
    name: str

    @property
    def path(self) -> Path:
        directory = paths.private_dir(paths.state_dir() / "journal")
        path, written = directory / f"{_tag(self.lima_home, self.name)}.json", paths.lima_home_as_written()
        older = directory / f"{_tag(written, self.name)}.json"
        # Killed before an update, with LIMA_HOME behind a symlink.
        if older != path and self.lima_home == paths.lima_home() and not path.exists():
            with contextlib.suppress(FileNotFoundError):
                older.rename(path)
        return path

    def begin(self, project: Path) -> None:
        write_json(self.path, {"version": 1, "name": self.name, "project": str(project)})

    def exists(self) -> bool:
        return self.path.exists()

    def project(self) -> Path | None:
        text = (read_object(self.path) or {}).get("project")
        return Path(text) if isinstance(text, str) else None

    def note_child(self, pid: int) -> None:
        """Remember the process that works on the VM."""
        found = processes.identity(pid)
        if found is not None:
            write_json(self.path, {**(read_object(self.path) or {}), "child": found.to_json()})

    def end_child(self) -> None:
        """End that process if it still runs: a limactl that outlived a killed claude-sandbox."""
        data = read_object(self.path) or {}
        child = data.get("child")
        if isinstance(child, int):  # an older version's
            child = {"pid": child, "started": data.get("child_started")}
        known = processes.from_json(child)
        if known is None or not processes.same(known):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(known.pid, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while processes.same(known):
                if time.monotonic() > deadline:
                    os.kill(known.pid, signal.SIGKILL)
                    break
                time.sleep(0.05)

    def end(self) -> None:
        self.path.unlink(missing_ok=True)
