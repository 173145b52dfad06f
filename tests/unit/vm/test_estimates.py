"""Estimates from this host's last runs, and how stages show them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from _claude_sandbox.errors import StartError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.system import paths
from _claude_sandbox.system.effects import DryEffects
from _claude_sandbox.system.terminal import LineProgress
from _claude_sandbox.vm import estimates as vm_estimates


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def run(ctx: Context, clock: list[float], seconds: float, kind: str = "start") -> None:
    with vm_estimates.stage(ctx, "Starting x", kind):
        clock[0] += seconds


def test_the_median_of_the_last_runs_is_the_estimate(ctx: Context, clock: list[float]) -> None:
    assert vm_estimates.usual("start") is None
    for seconds in (900, 900, 12, 10, 14, 11, 13):
        run(ctx, clock, seconds)
    run(ctx, clock, 100, "clone")
    assert vm_estimates.usual("start") == 12 and vm_estimates.usual("clone") == 100


def test_a_failure_and_a_dry_run_do_not_count(ctx: Context, clock: list[float]) -> None:
    with pytest.raises(StartError), vm_estimates.stage(ctx, "Starting x", "start"):
        raise StartError("no")
    run(dataclasses.replace(ctx, effects=DryEffects(print)), clock, 5)
    assert vm_estimates.usual("start") is None


@pytest.mark.parametrize("text", ["", "[]", '{"start": 3}', '{"start": ["x", -1, null]}', "\0"])
def test_a_spoilt_file_is_no_matter(ctx: Context, clock: list[float], text: str) -> None:
    (paths.state_dir() / "timings.json").write_text(text)
    assert vm_estimates.usual("start") is None
    run(ctx, clock, 5)
    assert vm_estimates.usual("start") == 5


def test_what_is_shown(ctx: Context, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = dataclasses.replace(ctx, progress=LineProgress())
    for _ in range(2):
        with vm_estimates.stage(shown, "Starting x", "start") as say:
            for text, seconds in (("boot", 7.0), ("network", 0.01), ("boot", 1.0), ("guest agent", 0.5)):
                say(text)
                clock[0] += seconds
    first, done, second, _ = capsys.readouterr().err.splitlines()
    assert first == "Starting x …" and done == "Starting x: 8.5 s (boot 8.0, guest agent 0.5)"
    assert second == "Starting x … (usually about 8 s)"


@pytest.mark.parametrize(("usual", "words"), [(0.3, "1 s"), (13, "13 s"), (103, "105 s"), (170, "3 min")])
def test_an_estimate_is_rounded(
    usual: float, words: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with LineProgress().stage("x", usual):
        pass
    assert f"(usually about {words})" in capsys.readouterr().err
