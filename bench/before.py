"""Times quick commands of this checkout against another of our checkouts, in one run, and prints the ratio.

    python bench/before.py CHECKOUT [--runs N]

`status`, a warm `shell -- true` and an attach to a live session, each as a whole process, in two closed worlds
with the tests' fake Lima and ssh (what they take is the same on both sides). Needs the tools of
requirements-dev.lock and tmux. Writes bench/results/before.json; nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pairs import ROOT, compare_rows

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fakes")]

from tests.support.box import Box, converse, link_system, short_directory  # noqa: E402

APP = "claude-sandbox-app"


class World:
    """One checkout with a sandbox that runs and a Claude that is attached to."""

    def __init__(self, checkout: Path) -> None:
        system = short_directory()
        link_system(system / "bin")
        self.box = Box(short_directory(), system)
        self.program = [sys.executable, "-E", "-s", str(checkout / "claude_sandbox.py")]
        self.box.tools_vm()
        self.box.with_tmux()
        self._run("create")
        (self.box.guest(APP) / "claude.sleep").write_text("600")
        self.attach()

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            [*self.program, *words], cwd=self.box.project(), env=self.box.env, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def status(self) -> None:
        self._run("status")

    def shell(self) -> None:
        self._run("shell", "--", "true")

    def attach(self) -> None:
        """Until Claude's screen is there, and the detach is through."""
        ended = converse(self.program, self.box.project(), self.box.env, [("fake claude in", "\x02d")])
        assert ended.code == 0, ended.text


def timed(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    now, before = World(ROOT), World(given.checkout.resolve())
    results = {}
    try:
        for what in ("status", "shell", "attach"):
            for world in (now, before, now, before):
                timed(getattr(world, what))
                time.sleep(0.2)  # a note for a warm shell is not left of files that changed just now
            rows = []
            for number in range(given.runs):
                order = (now, before) if number % 2 == 0 else (before, now)
                spent = {world: timed(getattr(world, what)) for world in order}
                rows.append((spent[now], spent[before]))
            results[what] = compare_rows("now", "before", rows)
            ours, old = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"{what}: {ours * 1000:.0f} ms beside {old * 1000:.0f} ms: {results[what]['median_ratio']:.2f}"
            )
    finally:
        for world in (now, before):
            world.box.close()
    (ROOT / "bench" / "results" / "before.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
