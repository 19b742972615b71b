"""What an answer can wait for."""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol


class Waitable(Protocol):
    """Anything with a coroutine method ``wait()``, such as an ``asyncio.Event`` or a :class:`Gate`."""

    async def wait(self) -> object:
        """Wait until it is set."""


class Gate:
    """An event that any thread may set, for servers that run in a thread of their own.

    Where the test and the server share an event loop, an ``asyncio.Event`` does as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._is_open

    def open(self) -> None:
        """Let everything through that waits, now and later."""
        with self._lock:
            self._is_open = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Wait until it is open."""
        event = asyncio.Event()
        with self._lock:
            if self._is_open:
                return
            self._waiting.append((asyncio.get_running_loop(), event))
        await event.wait()
