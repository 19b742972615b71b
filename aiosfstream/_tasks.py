"""Tasks and their time limits, and who has cancelled them; with what Python 3.10 lacks of these.

A ``CancelledError`` may come from something that a task awaits and that was cancelled itself: that is a
failure like any other. Only a task that was asked to end has to end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["is_cancelled", "move", "start", "take_back", "timeout", "uninterrupted"]

ResultT = TypeVar("ResultT")

if sys.version_info >= (3, 11):
    from asyncio import Timeout, timeout

    def move(alarm: Timeout, when: float) -> None:
        """Let *alarm* ring at *when*, by the event loop's clock."""
        alarm.reschedule(when)

    def start(coroutine: Coroutine[Any, Any, ResultT], name: str) -> asyncio.Task[ResultT]:
        """Run *coroutine* in a task of the running event loop."""
        return asyncio.get_running_loop().create_task(coroutine, name=name)

    def is_cancelled() -> bool:
        """Say whether somebody has asked the current task to end."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def take_back(task: asyncio.Task[Any]) -> bool:
        """Take back one request to end *task*; say whether it may go on, as there is no other."""
        return task.uncancel() == 0

else:
    # It comes with aiohttp on this Python.
    from async_timeout import Timeout, timeout

    def move(alarm: Timeout, when: float) -> None:
        """Let *alarm* ring at *when*, by the event loop's clock."""
        alarm.update(when)

    class _Task(asyncio.Task[ResultT]):
        """A task that knows how often it was asked to end; those of Python 3.10 do not."""

        requests_to_end = 0

        def cancel(self, msg: Any = None) -> bool:
            """Ask the task to end."""
            self.requests_to_end += 1
            return super().cancel(msg)

    def start(coroutine: Coroutine[Any, Any, ResultT], name: str) -> asyncio.Task[ResultT]:
        """Run *coroutine* in a task of the running event loop."""
        return _Task(coroutine, loop=asyncio.get_running_loop(), name=name)

    def is_cancelled() -> bool:
        """Say whether somebody has asked the current task to end; True if that cannot be known."""
        task = asyncio.current_task()
        return task.requests_to_end > 0 if isinstance(task, _Task) else task is not None

    def take_back(task: asyncio.Task[Any]) -> bool:
        """Take back one request to end *task*; say whether it may go on, as far as that can be known."""
        if not isinstance(task, _Task):
            return True
        task.requests_to_end -= 1
        return task.requests_to_end == 0


async def uninterrupted(clean_up: Coroutine[Any, Any, None]) -> BaseException | None:
    """Run *clean_up* to its end, and only then go on with a cancellation that came meanwhile.

    :param clean_up: a coroutine that takes a short, bounded time
    :return: what it has raised, or None
    :raises asyncio.CancelledError: the one that came meanwhile, if the calling task was cancelled
    """
    task = asyncio.ensure_future(clean_up)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as caught:
            cancellation = cancellation or caught
    if cancellation is not None:
        raise cancellation
    return None if task.cancelled() else task.exception()
