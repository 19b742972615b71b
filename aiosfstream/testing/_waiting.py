"""Waiting for something to happen in a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress


class Changes:
    """Tells those who wait whenever something has happened."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Let those who wait look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], object], timeout: float) -> None:
        """Wait until *condition* holds; it is asked after each change.

        :param condition: what is waited for
        :param timeout: seconds
        :raises TimeoutError: if it does not hold in time
        """
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"the server did not come to that in {timeout} seconds: look at its requests and violations"
                )
            # Sessions expire without an event, hence the upper bound.
            await self._next(min(left, 0.1))

    async def _next(self, timeout: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, timeout)
