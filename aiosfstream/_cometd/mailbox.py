"""The queue between the task that fetches messages and the application, and what tasks wait with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from aiocometd.typing import JsonObject


class Signal:
    """Wakes all who wait for a change; each looks for itself at what has changed."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Let every waiter look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _resolve(waiter)

    async def changed(self, timeout: float | None = None) -> None:
        """Wait until :meth:`wake` is called or *timeout* seconds have passed.

        Takes nothing, so cancelling it loses nothing.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        timer = None if timeout is None else loop.call_later(timeout, _resolve, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_result(None)


class Turn:
    """Lets one task at a time through, in the order in which they came.

    Unlike an :class:`asyncio.Lock` it belongs to an event loop only while one of its tasks has the turn,
    and is free again if that loop has ended.
    """

    def __init__(self) -> None:
        #: Whether a task has the turn, or had it when its event loop ended.
        self.taken = False
        self._holder: asyncio.AbstractEventLoop | None = None
        self._queue: list[asyncio.Future[None]] = []

    def try_take(self) -> bool:
        """Take the turn if it is free, and say whether it was; :meth:`release` ends it."""
        if self.taken:
            return False
        self.taken = True
        self._holder = asyncio.get_running_loop()
        return True

    async def take(self) -> None:
        """Wait for the turn; :meth:`release` ends it."""
        if self._holder is not None and self._holder.is_closed():
            self.taken = False
        if not self.try_take():
            await self._wait(asyncio.get_running_loop())
            self._holder = asyncio.get_running_loop()

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        place: asyncio.Future[None] = loop.create_future()
        self._queue.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self.release()
            elif place in self._queue:
                self._queue.remove(place)
            raise

    def release(self) -> None:
        """Pass the turn on to the next who waits, if there is one."""
        while self._queue:
            place = self._queue.pop(0)
            if not place.done() and not place.get_loop().is_closed():
                place.set_result(None)
                return
        self.taken = False

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        await self.take()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """End the turn."""
        self.release()


class Mailbox(Signal):
    """Messages in order, with errors at the places in that order where they belong.

    The limit is a pause, not a hard cap: a server that has sent an event does not send it again, so
    a whole response is always taken; what is suspended is asking for the next one.

    :param limit: how many messages make it full; 0 or less: never full
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        #: Whether no more will come. What is in it can still be taken.
        self.closed = False
        #: Messages and errors.
        self.items: deque[JsonObject | Exception] = deque()
        self._errors = 0
        #: What fetching waits for while it is suspended, otherwise None.
        self.suspended: asyncio.Future[None] | None = None
        #: Whether fetching may go on, but has not had its turn since.
        self.has_room_again = False

    def __len__(self) -> int:
        """Give the number of messages; errors are not counted."""
        return len(self.items) - self._errors

    def qsize(self) -> int:
        """Give the number of messages, under the name that aiocometd's client asks for."""
        return len(self)

    @property
    def has_errors(self) -> bool:
        """Whether an error waits to be raised."""
        return self._errors > 0

    @property
    def full(self) -> bool:
        """Whether fetching should pause."""
        return 0 < self.limit <= len(self)

    def would_be_full(self, more: int) -> bool:
        """Say whether fetching should pause with so many messages more.

        :param more: how many
        """
        return more > 0 and 0 < self.limit <= len(self) + more

    def add(self, messages: Iterable[JsonObject]) -> None:
        """Add messages, more than the limit if need be; :meth:`wake` is still to be called.

        :param messages: the messages
        """
        self.items.extend(messages)

    def extend(self, messages: Iterable[JsonObject]) -> None:
        """Add messages, more than the limit if need be, and wake who waits for them.

        :param messages: the messages
        """
        self.add(messages)
        self.wake()

    def fail(self, error: Exception) -> None:
        """Add an error after the messages that are there, to be raised once.

        :param error: the error
        """
        self.items.append(error)
        self._errors += 1
        self.wake()

    def take(self) -> JsonObject | None:
        """Take the next message without waiting.

        :return: the message, or None if there is none
        :raises Exception: the error that stands next
        """
        if not self.items:
            return None
        item = self.items.popleft()
        if isinstance(item, Exception):
            self._errors -= 1
            raise item
        self.make_room()
        return item

    def make_room(self) -> None:
        """Let fetching go on if enough has been taken."""
        if self.suspended is not None and not self.full:
            _resolve(self.suspended)
            self.suspended = None
            self.has_room_again = True

    def put_back(self, message: JsonObject) -> None:
        """Return a message that was taken and not delivered, to be the next again.

        :param message: the message
        """
        self.items.appendleft(message)
        self.wake()

    async def room(self) -> None:
        """Wait until the mailbox is not full. One task may wait at a time."""
        while self.full and not self.closed:
            self.suspended = asyncio.get_running_loop().create_future()
            try:
                await self.suspended
            finally:
                self.suspended = None

    def close(self) -> None:
        """Take no more messages. Errors are dropped: nobody asks why a connection failed that is closed."""
        self.closed = True
        if self._errors:
            kept = [item for item in self.items if not isinstance(item, Exception)]
            # In place: a reader may be taking messages out of it.
            self.items.clear()
            self.items.extend(kept)
            self._errors = 0
        if self.suspended is not None:
            _resolve(self.suspended)
        self.wake()

    def discard(self) -> None:
        """Forget what is in it."""
        self.items.clear()
        self._errors = 0
