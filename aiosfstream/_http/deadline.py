"""A time limit for one request after the other of the same task."""

from __future__ import annotations

import asyncio
import sys
from typing import Any


class Deadline:
    """Ends what a task waits for when its time is over.

    All requests of the task share a timer, which is set again only when it rings. Those that aiohttp
    sets for each request take a tenth of the time that a connect costs, and with thousands of clients
    fill the event loop's heap with timers that were cancelled.

    :param loop: the event loop of the task
    :param once: whether it is for a single request, and lets go of its timer behind that
    :ivar silence: seconds until something must have come
    :ivar passed: whether the time is over, and the task was cancelled for it
    """

    __slots__ = (
        "_before",
        "_end",
        "_last_end",
        "_loop",
        "_once",
        "_task",
        "_timer",
        "_total",
        "passed",
        "silence",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, *, once: bool = False) -> None:
        self._loop = loop
        self._once = once
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: When the time is over; None while nothing is waited for.
        self._end: float | None = None
        self._last_end = 0.0
        self._total = 0.0
        #: How many times the task had been told to end before.
        self._before = 0
        self.silence = 0.0
        self.passed = False

    def prepare(self, task: asyncio.Task[Any], silence: float, total: float) -> None:
        """Set what counts for the next request.

        :param task: what is cancelled when the time is over
        :param silence: seconds until something must have come
        :param total: seconds until everything must have come
        """
        self._task = task
        self.silence = silence
        self._total = total

    def start(self) -> None:
        """Begin to count, as was prepared."""
        assert self._task is not None
        now = self._loop.time()
        self._last_end = now + self._total
        self._end = end = now + self.silence
        self.passed = False
        self._before = _cancelling(self._task)
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._ring)
        elif end < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(end, self._ring)

    def extend(self) -> None:
        """Count the silence anew, since something has come."""
        self._end = min(self._last_end, self._loop.time() + self.silence)

    def stop(self) -> None:
        """Count no more."""
        self._end = None
        if self._once:
            self.close()

    def take_back(self) -> bool:
        """Take back the cancellation of the task; say whether nobody else has cancelled it."""
        if not self.passed or self._task is None:
            return False
        if sys.version_info >= (3, 11):
            self._task.uncancel()
        return _cancelling(self._task) <= self._before

    def close(self) -> None:
        """Let go of the timer."""
        self._end = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._end is None or self._task is None:
            return
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._ring)
            return
        self._end = None
        self.passed = True
        self._task.cancel()


if sys.version_info >= (3, 11):

    def _cancelling(task: asyncio.Task[Any]) -> int:
        """Give how often *task* was cancelled."""
        return task.cancelling()

else:

    def _cancelling(_: asyncio.Task[Any]) -> int:
        """Give 0: Python 3.10 does not count."""
        return 0
