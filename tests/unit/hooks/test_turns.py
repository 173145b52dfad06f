"""A flood of one sandbox takes neither the time nor the place of another one's notifications and readers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from _claude_sandbox.hooks import feed as hooks_feed
from _claude_sandbox.hooks import turns as hooks_turns
from _claude_sandbox.hooks.attention import Session
from _claude_sandbox.hooks.feed import Feed
from _claude_sandbox.hooks.turns import Turns
from _claude_sandbox.notify import notifier as notify_notifier
from tests.support.box import short_directory
from tests.unit.notify.test_channels import Memory, event, transitions


def test_sandboxes_take_turns_and_each_keeps_its_order() -> None:
    async def run() -> list[str]:
        queue = Turns()
        for each in transitions(*(event("Stop", n, "a") for n in (1, 2, 3)), event("Stop", 4, "b")):
            assert queue.put_newest(each)
        assert queue.qsize() == 4
        got = []
        while not queue.empty():
            got.append(await queue.get())
            queue.task_done()
        await asyncio.wait_for(queue.join(), 1)
        return [f"{each.after.sandbox}{each.after.seq}" for each in got]

    assert asyncio.run(run()) == ["a1", "b4", "a2", "a3"]


def test_of_one_sandbox_the_oldest_give_way() -> None:
    async def run() -> None:
        queue = Turns()
        many = transitions(
            *(event("Stop", n, "a") for n in range(hooks_turns.MOST + 5)), event("Stop", 999, "b")
        )
        assert [queue.put_newest(each) for each in many].count(False) == 5
        assert (await queue.get()).after.seq == 5 and (await queue.get()).after.sandbox == "b"

    asyncio.run(run())


def test_a_flood_delays_no_other_sandbox_s_notification(home: Path) -> None:
    channel, log, asked = Memory(), list[str](), list[str]()

    def looked_at(session: Session) -> bool:
        asked.append(session.sandbox)
        return False

    async def run() -> None:
        notifier = notify_notifier.Notifier(
            log=log.append, channels=[channel], secondary=[], looked_at=looked_at
        )
        flood = [event("Stop" if n % 2 else "UserPromptSubmit", n, "flood") for n in range(1, 3000)]
        for each in transitions(*flood, event("Stop", 5000, "quiet", last_assistant_message="done")):
            notifier.enqueue(each)
        while not any("quiet" in line for line in channel.log):
            await asyncio.sleep(0.001)
        await notifier.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert asked.index("quiet") <= 5
    assert len(log) == 1 and "too many changes" in log[0]


def test_a_long_greeting_does_not_count_as_being_behind() -> None:
    """Guests decide how long it is; a reader that just came was dropped at the next event."""
    path = short_directory() / "events.sock"

    async def run() -> int:
        feed = Feed(path, lambda: [b"x" * (2 * hooks_feed.BEHIND)])
        await feed.start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        while not feed._writers:
            await asyncio.sleep(0.01)
        feed.publish([b"event\n"])
        got = len(await reader.readexactly(2 * hooks_feed.BEHIND)) + len(await reader.readexactly(6))
        writer.close()
        await feed.close()
        return got

    assert asyncio.run(run()) == 2 * hooks_feed.BEHIND + 6
    path.parent.rmdir()
