"""A person's desktop without a screen to look at: Xvfb, a session bus, and dunst, which shows notifications."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.support.box import need
from tests.support.machine import Person, children, with_pid

# A bus that starts no daemon by itself: one without a screen would take dunst's place.
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={}</listen><policy context="default"><allow send_destination="*"
 eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""


class Desktop:
    """`env` is what a terminal on it has. Its programs run as the person; `close` ends them."""

    def __init__(self, person: Person) -> None:
        need("Xvfb", "dunst", "dunstctl", "dbus-daemon", "busctl")
        self.person = person
        self._place = person.project("desktop")
        self._started: list[subprocess.Popen[str]] = []
        bus = self._place / "bus"
        (self._place / "bus.conf").write_text(BUS.format(bus))
        (self._place / "dunstrc").write_text("[global]\nmarkup = full\n")
        screen = self._start("Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp")
        assert screen.stdout is not None
        self.env = {
            "DISPLAY": f":{screen.stdout.readline().strip()}",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}",
        }
        self._start("dbus-daemon", f"--config-file={self._place}/bus.conf", "--nofork", "--nopidfile")
        self._wait(bus.exists)
        self._start("dunst", "-conf", str(self._place / "dunstrc"))
        self._wait(lambda: self._ctl("count", "displayed").isdigit())

    def _start(self, *argv: str) -> subprocess.Popen[str]:
        env = getattr(self, "env", {})
        process = subprocess.Popen(
            self.person.argv(argv, env), cwd=self._place, env=self.person.env(env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._started.append(process)
        return process

    def _wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            dead = [process.args for process in self._started if process.poll() is not None]
            assert not dead and time.monotonic() < deadline, f"no desktop: {dead}"
            time.sleep(0.1)

    def _ctl(self, *words: str) -> str:
        return self.person.run("dunstctl", *words, env=self.env, code=None, timeout=30).out.strip()

    def showing(self) -> int:
        """How many notifications are on the screen."""
        return int(self._ctl("count", "displayed"))

    def click(self) -> None:
        """On the newest one."""
        self._ctl("action", "0")

    def shown(self) -> list[str]:
        """`TITLE: BODY` of all that were shown so far, newest first; takes those away that still are."""
        self._ctl("close-all")
        self._wait(lambda: self.showing() == 0)
        entries: list[dict[str, dict[str, Any]]] = json.loads(self._ctl("history"))["data"][0]
        return [f"{each['summary']['data']}: {each['body']['data']}" for each in entries]

    def close(self) -> None:
        for process in reversed(self._started):
            for pid in [*children(process.pid), process.pid]:
                with_pid(pid)
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()
