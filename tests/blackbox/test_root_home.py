"""Root with somebody's HOME leaves nothing of root's in it: the whole program (the launcher: test_launcher.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.box import Box


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")
@pytest.mark.parametrize("verb", ["status", "doctor", "setup", "create", "prune", "completion"])
def test_root_leaves_nothing_in_somebody_s_home(ready: Box, verb: str) -> None:
    """`sudo -E`, and sudo on macOS, keep HOME: a root-owned ~/.cache would stop its owner's programs."""
    os.chown(ready.home, 4321, 4321)
    words = {"completion": ["completion", "bash"], "setup": ["setup", "-y"], "prune": ["prune", "-y"]}
    # Root's own home, where it goes instead, is a private one here: by a passwd of this process's own.
    entries = Path("/etc/passwd").read_text().splitlines()
    passwd, own = ready.root / "passwd", ready.root / "own"
    passwd.write_text("".join(f"{line}\n" for line in entries if not line.startswith("root:")))
    with passwd.open("a") as file:
        file.write(f"root:x:0:0:root:{own}:/bin/sh\n")
    own.mkdir()
    unshare, mount = shutil.which("unshare"), shutil.which("mount")
    assert unshare and mount
    private = '"$1" --bind "$2" /etc/passwd; shift 2; exec "$@"'
    done = subprocess.run(
        [unshare, "--mount", "sh", "-eu", "-c", private, "-", mount, str(passwd),
         *ready.argv(*words.get(verb, [verb]))],
        cwd=ready.project(), env=ready.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 or verb == "doctor", done
    assert [str(path) for path in ready.home.rglob("*") if path.lstat().st_uid == 0] == []
    assert verb == "completion" or any(own.rglob("*"))
