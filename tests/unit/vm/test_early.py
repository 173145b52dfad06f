"""What is done over ssh while Lima still waits for the guest, and what of it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from _claude_sandbox.config.table import Config
from _claude_sandbox.errors import GuestConnectionError, StartError
from _claude_sandbox.lima.context import Context
from _claude_sandbox.lima.limactl import RUNNING, Instance
from _claude_sandbox.system.run import Result
from _claude_sandbox.vm.early import EarlySetup
from _claude_sandbox.vm.lima_yaml import Share
from _claude_sandbox.vm.target import Target
from tests.support.recording import Recorder, failed, listen, told

NAME = "claude-sandbox-app"
SHARES = (Share(Path("/p"), Path("/p"), True),)


@pytest.fixture
def instance(ctx: Context) -> Instance:
    found = Instance(NAME, RUNNING, ctx.lima.home / NAME)
    listen(ctx.guest(found).control_path)
    return found


def looks(recorder: Recorder) -> int:
    """How often the guest was asked for its mounts."""
    return sum("mountpoint" in argv[-1] for argv in recorder.argvs())


def begun(
    ctx: Context, instance: Instance, prepare: Callable[[Context, Target], str] | None = None
) -> EarlySetup[str]:
    early = EarlySetup(ctx, prepare)
    early.start(Target(Config(Path("/p"), Path("/s")), instance, "/p", 1000), SHARES)
    return early


def test_mounts_that_were_seen_early_are_not_looked_at_again(
    ctx: Context, recorder: Recorder, instance: Instance
) -> None:
    recorder.on("ssh", then=Result(0, b"fast\n"))
    begun(ctx, instance).check_mounts(instance, SHARES)
    assert looks(recorder) == 1 and not any("exit" in argv for argv in recorder.argvs())


def test_what_was_prepared_is_of_the_last_boot(ctx: Context, recorder: Recorder, instance: Instance) -> None:
    recorder.on("ssh", then=[Result(0, b"fast\n"), failed("no connection", 255)])
    early = begun(ctx, instance, prepare=lambda _ctx, target: target.instance.name)
    assert early.wait() and early.prepared == NAME
    early.start(Target(Config(Path("/p"), Path("/s")), instance, "/p", 1000), SHARES)
    assert not early.wait() and early.prepared is None


@pytest.mark.parametrize(
    "answer",
    [
        Result(0, b"fast, then Lima's and provision scripts"),
        Result(0, b"full: another guest agent than on this disk"),
        Result(0, b"cloud-init: user-data: packages"),
        Result(0, b""),  # not our init
        failed("/p is not mounted"),
        failed("no connection", 255),
    ],
)
def test_of_any_other_boot_nothing_early_counts(
    ctx: Context, recorder: Recorder, instance: Instance, answer: Result
) -> None:
    """What runs later may mount, and the connection is from before: both are made anew."""
    recorder.on("ssh", then=answer)
    early = begun(ctx, instance, prepare=lambda _ctx, target: target.instance.name)
    assert not early.wait() and early.prepared is None
    recorder.on("ssh", then=Result(0, b"cloud-init: user-data: packages"))
    early.check_mounts(instance, SHARES)
    assert looks(recorder) == 2 and any("exit" in argv for argv in recorder.argvs())
    assert told(ctx).notes == [
        f"{NAME} was set up by cloud-init, which takes longer, because of: user-data: packages"
    ]


def test_a_mount_that_is_missing_at_the_end_is_an_error(
    ctx: Context, recorder: Recorder, instance: Instance
) -> None:
    recorder.on("ssh", then=failed("/p is not mounted"))
    with pytest.raises(StartError, match="its mounts are missing") as caught:
        begun(ctx, instance).check_mounts(instance, SHARES)
    assert caught.value.details == "/p is not mounted"


def test_what_is_prepared_tells_when_it_has_ended(
    ctx: Context, recorder: Recorder, instance: Instance
) -> None:
    def prepare(quiet: Context, _target: Target) -> str:
        quiet.progress.note("a note")
        quiet.progress.warn("a warning")
        assert told(ctx).notes == []
        raise GuestConnectionError("The launch meets it again, and tells.")

    recorder.on("ssh", then=Result(0, b"fast"))
    early = begun(ctx, instance, prepare=prepare)
    assert early.wait() and early.wait()
    assert told(ctx).notes == ["a note"] and told(ctx).warnings == ["a warning"]


def test_a_bug_is_not_lost(ctx: Context, recorder: Recorder, instance: Instance) -> None:
    def prepare(_ctx: Context, _target: Target) -> str:
        raise KeyError("bug")

    recorder.on("ssh", then=Result(0, b"fast"))
    with pytest.raises(KeyError):
        begun(ctx, instance, prepare=prepare).wait()
