"""The queue between the task that fetches messages and the application, and what tasks wait with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

from aiocometd.typing import JsonObject

#: Stands for the queue of a mailbox that nothing has been in yet: an empty deque of its own would cost
#: each of thousands of idle clients 700 bytes. Nothing can be added to it.
_NOTHING: Final[deque[JsonObject | Exception]] = deque(maxlen=0)


class Signal:
    """Wakes all who wait for a change; each looks for itself at what has changed."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        # A tuple: where nobody waits, the empty one of all of them.
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def wake(self) -> None:
        """Let every waiter look again."""
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, timeout: float | None = None) -> None:
        """Wait until :meth:`wake` is called or *timeout* seconds have passed.

        Takes nothing, so cancelling it loses nothing.
        """
        waiter = self.waiter()
        loop = waiter.get_loop()
        timer = None if timeout is None else loop.call_later(timeout, _resolve, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self.forget(waiter)

    def waiter(self) -> asyncio.Future[None]:
        """Give what :meth:`wake` will resolve; whoever awaits it calls :meth:`forget` behind."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        return waiter

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """Let go of what :meth:`waiter` gave, if it was given up before it was resolved."""
        if waiter in self._waiters:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Turn:
    """Lets one task at a time through, in the order in which they came.

    Unlike an :class:`asyncio.Lock` it belongs to no event loop while nobody waits, and costs an
    attribute look-up where there is nobody to wait for.
    """

    __slots__ = ("_queue", "taken")

    def __init__(self) -> None:
        self.taken = False
        # A tuple, since there are thousands of clients and hardly ever one who waits: the empty one is that
        # of all of them.
        self._queue: tuple[asyncio.Future[None], ...] = ()

    async def wait(self) -> None:
        """Wait until the turn is passed on to the caller."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue = (*self._queue, place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self.release()
            else:
                self._queue = tuple(other for other in self._queue if other is not place)
            raise

    def release(self) -> None:
        """Pass the turn on to the next who waits, if there is one."""
        while self._queue:
            place, *rest = self._queue
            self._queue = tuple(rest)
            if not place.done():
                place.set_result(None)
                return
        self.taken = False


class Mailbox(Signal):
    """Messages in order, with errors at the places in that order where they belong.

    The limit is a pause, not a hard cap: a server that has sent an event does not send it again, so
    a whole response is always taken; what is suspended is asking for the next one.

    :param limit: how many messages make it full; 0 or less: never full
    """

    __slots__ = ("_errors", "closed", "items", "limit", "suspends")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        #: Whether no more will come. What is in it can still be taken.
        self.closed = False
        #: Messages and errors. Read by the hot path, which takes messages out of it directly.
        self.items = _NOTHING
        self._errors = 0
        #: What fetching waits for while it is suspended, otherwise None.
        self.suspends: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """Give the number of messages; errors are not counted."""
        return len(self.items) - self._errors

    def qsize(self) -> int:
        """Give the number of messages, under the name that aiocometd's client asks for."""
        return len(self.items) - self._errors

    @property
    def has_errors(self) -> bool:
        """Whether an error waits to be raised."""
        return self._errors > 0

    @property
    def full(self) -> bool:
        """Whether fetching should pause."""
        return 0 < self.limit <= len(self)

    @property
    def surplus(self) -> int:
        """How many messages have to be taken before fetching may go on; 0 while it may."""
        limit, pending = self.limit, len(self)
        return pending - limit + 1 if 0 < limit <= pending else 0

    def extend(self, messages: Iterable[JsonObject], *, wake: bool = True) -> None:
        """Add messages, more than the limit if need be.

        :param messages: the messages
        :param wake: whether to wake the reader; otherwise whoever calls this does so soon
        """
        self._own_items().extend(messages)
        if wake:
            self.wake()

    def fail(self, error: Exception) -> None:
        """Add an error behind the messages that are there, to be raised once."""
        self._own_items().append(error)
        self._errors += 1
        self.wake()

    def _own_items(self) -> deque[JsonObject | Exception]:
        if self.items is _NOTHING:
            self.items = deque()
        return self.items

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
        if self.suspends is not None:
            self.make_room()
        return item

    def make_room(self) -> None:
        """Let fetching go on, if enough has been taken."""
        if self.suspends is not None and not self.full:
            _resolve(self.suspends)

    def put_back(self, message: JsonObject) -> None:
        """Return a message that was taken and not delivered, to be the next again."""
        self._own_items().appendleft(message)
        self.wake()

    async def room(self) -> None:
        """Wait until the mailbox is not full. One task may wait at a time."""
        while self.full and not self.closed:
            self.suspends = asyncio.get_running_loop().create_future()
            try:
                await self.suspends
            finally:
                self.suspends = None

    def close(self) -> None:
        """Take no more. Errors are dropped: who has closed need not be told what failed before."""
        self.closed = True
        if self._errors:
            kept = [item for item in self.items if not isinstance(item, Exception)]
            # In place: a reader may be taking messages out of it.
            self.items.clear()
            self.items.extend(kept)
            self._errors = 0
        if self.suspends is not None:
            _resolve(self.suspends)
        self.wake()

    def discard(self) -> None:
        """Forget what is in it."""
        self.items.clear()
        self._errors = 0
