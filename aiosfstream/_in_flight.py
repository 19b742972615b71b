"""Messages whose processing has begun: their markers wait for those that came before them."""

from __future__ import annotations

import asyncio

from aiocometd.typing import JsonObject


class _Place:
    """The place of a message among those of its channel that are being processed.

    :ivar message: the message
    :ivar held: what is to be stored of the finished ones right behind it, once it has finished too
    :ivar line: where the place is
    """

    __slots__ = ("behind", "held", "in_front", "line", "message")

    def __init__(self, line: _Line, message: JsonObject) -> None:
        self.line = line
        self.message = message
        self.held: JsonObject | None = None
        self.in_front: _Place | None = None
        self.behind: _Place | None = None


class _Line:
    """The messages of one channel that are being processed, in the order of the calls.

    One that has finished leaves its place, and the place in front holds what is to be stored of it.
    So memory grows with what is in flight and not with what waits for the slowest.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        # Belongs to no message: nothing stands before what this place holds.
        self.front = self._last = _Place(self, {})
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is in flight, nor left to be stored."""
        return self._last is self.front and self.front.held is None

    def join(self, message: JsonObject) -> _Place:
        """Give *message* the last place."""
        place = _Place(self, message)
        place.in_front, self._last.behind = self._last, place
        self._last = place
        return place

    def leave(self, place: _Place) -> _Place:
        """Take *place* out, and give the one that stood in front of it."""
        in_front, behind = place.in_front, place.behind
        assert in_front is not None
        in_front.behind = behind
        if behind is None:
            self._last = in_front
        else:
            behind.in_front = in_front
        place.in_front = place.behind = None
        return in_front

    def turn(self) -> asyncio.Lock:
        """Give the running loop's lock for storing: an earlier store must not end behind a later."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock
