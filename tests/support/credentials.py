"""What the tests of the login share: credentials, a keychain, and a guest whose scripts run on this host."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from _claude_sandbox.system.run import Command, Result

HOUR = 3600 * 1000


def oauth(hours: float = 8, access: str = "sk-ant-oat01-abcdefgh", **more: Any) -> bytes:
    value = {
        "accessToken": access, "refreshToken": "sk-ant-ort01-abcdefgh",
        "expiresAt": int(time.time() * 1000 + hours * HOUR), "scopes": ["user:inference"],
        "subscriptionType": "max", "rateLimitTier": None, **more,
    }  # fmt: skip
    return json.dumps({"claudeAiOauth": value}).encode()


class FakeRunner:
    """Answers `security`; records argv and stdin."""

    def __init__(self, item: bytes | None = None, stderr: bytes = b"") -> None:
        self.item, self.stderr = item, stderr
        self.calls: list[tuple[tuple[str, ...], bytes]] = []

    def run(self, command: Command, *, input: bytes = b"", **_: Any) -> Result:
        self.calls.append((command.argv, input))
        if "-w" in command.argv:
            return Result(44) if self.item is None else Result(0, self.item + b"\n")
        return Result(0, b"", self.stderr)


class ShGuest:
    """Runs the guest's scripts on this host in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(exist_ok=True)

    @property
    def file(self) -> Path:
        return self.home / ".claude" / ".credentials.json"

    def run(self, script: str, *arguments: str, input: bytes = b"", timeout: float = 60) -> Result:
        done = subprocess.run(
            ["sh", "-c", script, "sh", *arguments], check=False, input=input, capture_output=True, timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)
