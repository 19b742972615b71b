"""Messages whose processing has begun: their markers wait for those that came before them."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from aiocometd.typing import JsonObject

from ._channels import shown
from ._holds import Hold

__all__ = ["InFlight", "Place", "Rules"]

LOGGER = logging.getLogger("aiosfstream.replay")


class Rules(Protocol):
    """What a storage decides about messages in flight."""

    def key_of(self, message: JsonObject) -> str:
        """Give the key that the marker of *message* is stored under."""

    def hold_of(self, key: str) -> Hold | None:
        """Give what holds the marker of *key*, or None."""

    def furthest(self, earlier: JsonObject, later: JsonObject) -> JsonObject:
        """Give the message whose marker stays if those of both are stored, one after the other."""

    def passed_over(self, message: JsonObject) -> None:
        """Note that the marker of *message* will not be stored."""

    async def store(self, message: JsonObject) -> None:
        """Store the marker of *message*."""


class Place:
    """The place of a message among those of its channel that are being processed.

    :ivar message: the message
    :ivar hold: what the message was consumed during, if its marker was held then
    :ivar held: the finished message, of those right after it, whose marker is to be stored once this
        one has finished too
    :ivar line: where the place is
    """

    def __init__(self, line: Line, message: JsonObject) -> None:
        self.line = line
        self.message = message
        self.hold: Hold | None = None
        self.held: JsonObject | None = None
        self.before: Place | None = None
        self.next: Place | None = None


class Line:
    """The messages of one channel that are being processed, in the order of the calls.

    One that has finished leaves its place, and the place before it holds what is to be stored of it.
    So memory grows with what is in flight and not with what waits for the slowest.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        # Belongs to no message: nothing comes before what this place holds.
        self.front = self._last = Place(self, {})
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is in flight, nor left to be stored."""
        return self._last is self.front and self.front.held is None

    @property
    def first(self) -> Place | None:
        """The place of the message that has been in flight for longest."""
        return self.front.next

    def join(self, message: JsonObject) -> Place:
        """Give *message* the last place."""
        place = Place(self, message)
        place.before, self._last.next = self._last, place
        self._last = place
        return place

    def leave(self, place: Place) -> Place:
        """Take *place* out, and give the one before it."""
        before, following = place.before, place.next
        assert before is not None
        before.next = following
        if following is None:
            self._last = before
        else:
            following.before = before
        place.before = place.next = None
        return before

    def turn(self) -> asyncio.Lock:
        """Give the running loop's lock for storing: an earlier store must not end after a later one."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock


class InFlight:
    """The messages of one storage that are being processed.

    Each method takes the rules of the storage, so that this object keeps nothing alive.
    """

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        #: Places whose blocks will not end any more, until the next call that changes the lines.
        self.abandoned: list[Place] = []

    def start(self, rules: Rules, message: JsonObject) -> Place:
        """Put *message* in flight, after those that are.

        :param rules: of the storage
        :param message: the message
        :return: its place, to be finished or abandoned
        """
        self._clear_abandoned(rules)
        key = rules.key_of(message)
        if key not in self.lines:
            self.lines[key] = Line(key)
        place = self.lines[key].join(message)
        hold = rules.hold_of(key)
        if hold is not None:
            place.hold = None if hold.is_over else hold
            hold.taken(message)
        return place

    def has_part_of(self, key: str, hold: Hold) -> bool:
        """Say whether a message is in flight that came while the marker of its channel was held.

        :param key: the key of the channel
        :param hold: what has held the marker
        """
        line = self.lines.get(key)
        # If the first one came later, all have.
        return line is not None and line.first is not None and line.first.hold is hold

    async def finish(self, rules: Rules, place: Place, *, succeeded: bool) -> None:
        """Note the end of a block, and store the marker that this makes due.

        :param rules: of the storage
        :param place: of the message
        :param succeeded: whether the message was processed
        """
        self._clear_abandoned(rules)
        if not succeeded:
            rules.passed_over(place.message)
        self._leave(rules, place, place.message if succeeded else None)
        await self._store_due(rules, place.line)

    def abandon(self, place: Place) -> None:
        """Note that a message was not processed: its block was cancelled or never entered.

        :param place: of the message
        """
        self.abandoned.append(place)
        _warn_of(place)

    def drop(self, place: Place) -> None:
        """Note what :meth:`abandon` notes, in a destructor.

        :param place: of the message
        """
        # May run in any thread and at any moment, so it touches nothing that others are changing, and does not
        # even write a log: the handler's locks may be taken, by this very thread.
        self.abandoned.append(place)
        try:
            asyncio.get_running_loop().call_soon(_warn_of, place)
        except RuntimeError:
            # Nothing else runs in this thread.
            _warn_of(place)

    def _leave(self, rules: Rules, place: Place, done: JsonObject | None) -> None:
        before = place.line.leave(place)
        for later in (done, place.held):
            if later is not None:
                before.held = later if before.held is None else rules.furthest(before.held, later)

    async def _store_due(self, rules: Rules, line: Line) -> None:
        if line.front.held is not None:
            async with line.turn():
                due = line.front.held
                if due is not None:
                    await rules.store(due)
                    # Where storing fails it stays due, and is stored with what finishes next.
                    if line.front.held is due:
                        line.front.held = None
        if line.empty and self.lines.get(line.key) is line:
            del self.lines[line.key]

    def _clear_abandoned(self, rules: Rules) -> None:
        while self.abandoned:
            place = self.abandoned.pop(0)
            # It was not processed, so nothing that has finished already may pass it.
            place.held = None
            rules.passed_over(place.message)
            self._leave(rules, place, None)


def _warn_of(place: Place) -> None:
    LOGGER.warning(
        "The processing of a message on %s was cancelled or never begun, its marker is not"
        " stored; a new start gives it again unless a later one has been stored by then",
        shown(channel_of(place.message)),
    )


def channel_of(message: JsonObject) -> object:
    """Give what *message* has for a channel, whatever it is."""
    return message.get("channel") if isinstance(message, dict) else None
