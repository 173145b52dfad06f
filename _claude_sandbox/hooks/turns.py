"""Transitions that wait for the notifier: sandboxes take turns, and each has only so many.

So a sandbox that changes its sessions a thousand times a second neither delays what another one has to say,
nor takes its place. Imported by the hooks server only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from _claude_sandbox.hooks.attention import Transition

MOST = 200  # of one sandbox; what the oldest of them reported is over by then


class Turns(asyncio.Queue[Transition]):
    """As asyncio.Queue, which has these methods for it. Of one sandbox the oldest comes first."""

    def _init(self, maxsize: int) -> None:
        self._waiting: OrderedDict[str, deque[Transition]] = OrderedDict()

    def _put(self, item: Transition) -> None:
        self._waiting.setdefault(item.after.sandbox, deque()).append(item)

    def _get(self) -> Transition:
        sandbox, waiting = self._waiting.popitem(last=False)
        item = waiting.popleft()
        if waiting:
            self._waiting[sandbox] = waiting  # behind the others
        return item

    def qsize(self) -> int:
        return sum(map(len, self._waiting.values()))

    def empty(self) -> bool:
        return not self._waiting

    def put_newest(self, item: Transition) -> bool:
        """Put it; False when the oldest one of its sandbox had to give way."""
        waiting = self._waiting.get(item.after.sandbox, ())
        fits = len(waiting) < MOST
        if isinstance(waiting, deque) and not fits:
            waiting.popleft()
            self.task_done()
        self.put_nowait(item)
        return fits
