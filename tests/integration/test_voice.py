"""Sound from the host's (made up) microphone into a real VM: the wrappers as Claude Code calls them."""

from __future__ import annotations

import array
import hashlib
import math
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Person

pytestmark = pytest.mark.vm
NAME = "claude-sandbox-voice"
ARECORD = "arecord -f S16_LE -r 16000 -c 1 -t raw -q -"
REC = "rec -q --buffer 1024 -t raw -r 16000 -e signed -b 16 -c 1 -"

# In the place of Claude, in the very environment that Claude gets: a shell that reads what to do.
AS_CLAUDE = (
    "mkdir -p ~/.claude-sandbox/voice && cd ~/.claude-sandbox/voice && "
    'printf "#!/bin/sh\\nexec bash\\n" >claude && chmod 755 claude'
)
SESSION = f"""
for i in $(seq 300); do command -v arecord >/dev/null && [ -S /run/user/$(id -u)/claude-audio.sock ] && break; sleep 0.2; done
arecord --version >/dev/null && echo found
arecord -f S16_LE -r 16000 -c 1 -t raw /dev/null & probe=$!; sleep 2; kill -0 $probe && echo probe lives; kill $probe
{ARECORD} | sha256sum
{REC} | sha256sum
touch forever; sleep 2
for number in TERM KILL; do
    {ARECORD} >/dev/null & client=$!; sleep 4; kill -$number $client; wait $client; echo $number; sleep 4
done
{ARECORD} >/dev/null 2>&1 & sleep 3
"""


@pytest.fixture(scope="module")
def project(user: Person) -> Iterator[Path]:
    """A sandbox of the tools VM that the day before built, and a microphone that plays a tone."""
    path = user.project("voice")
    samples = (int(16000 * math.sin(i * 0.1728)) for i in range(160_000))
    (user.home / "tone.raw").write_bytes(array.array("h", samples).tobytes())
    recorder = user.home / "recorder"
    recorder.write_text(
        "#!/bin/sh\n"
        f"while [ -e {path}/forever ]; do head -c 3200 {user.home}/tone.raw; sleep 0.1; done\n"
        f"exec cat {user.home}/tone.raw\n"
    )
    recorder.chmod(0o755)
    settings = user.home / ".config/claude-sandbox/config.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    before = settings.read_text() if settings.exists() else ""
    settings.write_text(f"{before}voice.command: [{recorder}]\n")
    user.own(user.home)
    user.cs("create", "-c", "tools-vm", "--cpus", "2", "--memory", "1GiB", cwd=path)
    yield path
    settings.write_text(before)
    user.cs("delete", "-y", cwd=path)


def running(user: Person) -> int:
    """How many capture programs run."""
    found = subprocess.run(
        ["pgrep", "-fc", f"^/bin/sh {user.home}/recorder"], capture_output=True, text=True, check=False
    )
    return int(found.stdout)


@pytest.mark.spec("2.1")
def test_a_tone_arrives_unchanged_and_the_microphone_closes(user: Person, project: Path) -> None:
    user.cs("shell", "--", "sh", "-c", AS_CLAUDE, cwd=project)
    seen: list[tuple[bool, int]] = []  # (status says that it is open, capture programs)
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            status = user.cs("status", "--json", cwd=project).json()["audio_server"]
            seen.append((f"microphone open for {NAME}" in status, running(user)))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = user.cs("--voice", cwd=project, input=SESSION, timeout=300, code=None)
    finally:
        ended.set()
        watcher.join()
    tone = hashlib.sha256((user.home / "tone.raw").read_bytes()).hexdigest()
    assert done.out.splitlines() == ["found", "probe lives", f"{tone}  -", f"{tone}  -", "TERM", "KILL"], (
        done.text
    )
    assert (True, 1) in seen and (False, 0) in seen
    assert max(count for _, count in seen) == 1
    # The last client was left running: with the session its way to the microphone is gone.
    deadline = time.monotonic() + 20
    while running(user) or user.cs("status", "--json", cwd=project).json()["audio_server"] != "Running":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_without_voice_nothing_records(user: Person, project: Path) -> None:
    done = user.cs("shell", cwd=project, input=f"{ARECORD}\n", code=None)
    assert done.code == 127, done.text
    assert running(user) == 0
    user.cs("stop-all", cwd=project)
    assert "Audio server: Not running" in user.cs("status", cwd=project).out
