"""One log-in at a time, however many ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any


async def in_time(awaitable: Awaitable[Any], seconds: float) -> Any:
    """Await the application's code for so long and no longer."""
    # Until Python 3.11 `wait_for` lets go of what fails while it is being cancelled.
    future = asyncio.ensure_future(awaitable)
    future.add_done_callback(retrieve)
    return await asyncio.wait_for(future, seconds)


def retrieve(future: asyncio.Future[Any]) -> None:
    """Take note of an exception that nobody may wait for any more."""
    if not future.cancelled():
        future.exception()


async def wait_patiently(task: asyncio.Task[None], timeout: float) -> None:
    """Wait for *task*, whether or not the caller is cancelled once more meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not task.done() and (left := deadline - loop.time()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=left)
