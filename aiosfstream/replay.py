"""Replay: where a subscription starts, and remembering how far the application has come."""

from __future__ import annotations

import logging
import reprlib
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import datetime, timezone
from enum import IntEnum, unique
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, cast

from aiocometd.constants import MetaChannel
from aiocometd.extensions import Extension
from aiocometd.typing import Headers, JsonObject, Payload

from ._in_flight import _Line, _Place
from .exceptions import ReplayError

__all__ = [
    "ConstantReplayId",
    "DefaultMappingStorage",
    "DefaultReplayIdMixin",
    "MappingStorage",
    "ReplayMarker",
    "ReplayMarkerStorage",
    "ReplayMarkerStorageContextManager",
    "ReplayOption",
    "should_store",
]

LOGGER = logging.getLogger(__name__)

# Before Python 3.12 a member of an enum is found by a function in Python, and this looks at every request.
_HANDSHAKE: Final[str] = MetaChannel.HANDSHAKE.value
_SUBSCRIBE: Final[str] = MetaChannel.SUBSCRIBE.value
#: Channels that a storage has warned about; more names than this come from no sound server.
MAX_NAMES: Final = 1000


@unique
class ReplayOption(IntEnum):
    """Where a subscription without a replay id starts."""

    #: With what is published after the subscription.
    NEW_EVENTS = -1
    #: With everything that is still in the retention window.
    ALL_EVENTS = -2


class ReplayMarker(NamedTuple):
    """How far a channel has been consumed.

    Replay ids are opaque: usually an int, but whatever JSON value the server sends is kept as it is.
    """

    #: When the event was created, as the server says; empty if it does not say.
    date: str
    #: The event's replay id.
    replay_id: int


def should_store(stored: ReplayMarker | None, new: ReplayMarker) -> bool:
    """Say whether a marker takes the place of the stored one: the rule for storing a marker.

    A replayed message must not move the marker back, so it does unless the stored one is newer. The
    dates are compared as instants, since their forms differ between kinds of event. One that is
    missing or not understood is older than any other.

    :param stored: the stored marker, or None
    :param new: the marker of a message that was handed over
    :return: True if *new* is to be stored
    """
    if stored is None or stored.date == new.date:
        return True
    return _is_later_text(stored.date, new.date) or instant(stored.date) <= instant(new.date)


def _is_later_text(stored: str, new: str) -> bool:
    """Tell without parsing that a date is not earlier; False may mean that it takes parsing to tell.

    Two dates in UTC, or two numbers, of the same length are in the order of their texts.
    """
    if new.__class__ is not str or stored.__class__ is not str or len(stored) != len(new):
        return False
    utc = stored[-1:] == new[-1:] == "Z" and stored[10:11] == new[10:11] == "T"
    return (utc or (stored.isdigit() and new.isdigit())) and stored <= new


#: Makes a marker in half the time that calling its class takes.
make_marker: Final = tuple.__new__


def date_and_id(message: JsonObject) -> tuple[str, Any]:
    """Give date and replay id of an event that has the usual form, as fast as can be.

    :param message: an event
    :return: both, as :meth:`ReplayMarkerStorage.get_message_date` and the event have them
    :raises KeyError: if it has another form
    :raises TypeError: if it has another form
    """
    data = message["data"]
    event = data["event"]
    replay_id = event["replayId"]
    if replay_id is None:
        raise KeyError("replayId")
    if "createdDate" in event:
        return event["createdDate"], replay_id
    payload = data["payload"]
    if "ChangeEventHeader" in payload:
        return str(payload["ChangeEventHeader"]["commitTimestamp"]), replay_id
    return payload["CreatedDate"], replay_id


def instant(date: object) -> float:
    """Give the seconds since the epoch of an event's date.

    :param date: ISO 8601 with ``Z`` or an offset, with or without fractions; or milliseconds since
        the epoch as text, which change events have
    :return: seconds; minus infinity for anything else
    """
    text = str(date)
    if text.isascii() and text.isdigit():
        return int(text) / 1000 if len(text) <= 18 else float("-inf")
    if text[4:5] != "-":
        # Later Pythons understand other forms of ISO 8601 too; the order must not depend on it.
        return float("-inf")
    try:
        parsed = datetime.fromisoformat(_iso(text))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return float("-inf")


def _iso(text: str) -> str:
    """Write a date in the one form that every supported Python can parse."""
    if text.endswith(("Z", "z")):
        text = text[:-1] + "+00:00"
    elif len(text) > 5 and text[-5] in "+-" and text[-4:].isdigit():
        text = f"{text[:-2]}:{text[-2:]}"
    head, dot, tail = text.partition(".")
    if not dot:
        return text
    digits = len(tail) - len(tail.lstrip("0123456789"))
    return f"{head}.{tail[:digits][:6].ljust(6, '0')}{tail[digits:]}"


#: Stands for the next message of a channel, whichever that will be.
_ANY: Final[JsonObject] = {}


class ReplayMarkerStorage(Extension):
    """Remembers the marker of the last message of each channel.

    Write :meth:`get_replay_marker` and :meth:`set_replay_marker` to keep markers wherever you like::

        class MyStorage(ReplayMarkerStorage):
            async def get_replay_marker(self, subscription): ...
            async def set_replay_marker(self, subscription, replay_marker): ...

    What these raise reaches the application as :exc:`~aiosfstream.ReplayError`, and nothing is lost by
    it.
    """

    #: Whether :meth:`flush` has anything to do.
    _buffered: bool = False
    #: Delivered channel -> subscribed channel, where they differ. The client sets it.
    _aliases: Mapping[str, str] = MappingProxyType({})

    _forced_messages: dict[str, JsonObject] | None = None

    # Subclasses need not call __init__, so what it would make is made when it is first needed.

    @property
    def _forced(self) -> dict[str, JsonObject]:
        """Key -> the message whose marker is stored whatever is stored already."""
        # Not by way of __dict__: every client's storage has this, and that would stay in memory.
        if self._forced_messages is None:
            self._forced_messages = {}
        return self._forced_messages

    @property
    def _lines(self) -> dict[str, _Line]:
        lines: dict[str, _Line] = self.__dict__.setdefault("_lines_in_flight", {})
        return lines

    @property
    def _abandoned(self) -> deque[_Place]:
        abandoned: deque[_Place] = self.__dict__.setdefault("_abandoned_places", deque())
        return abandoned

    @property
    def _warned(self) -> set[tuple[str, str]]:
        warned: set[tuple[str, str]] = self.__dict__.setdefault("_warned_of", set())
        return warned

    # What a subclass writes

    @abstractmethod
    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the stored marker.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the marker, or None if there is none
        """

    @abstractmethod
    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, whatever is stored already.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        """

    # The extension

    async def incoming(self, payload: Payload, headers: Headers | None = None) -> None:
        """Do nothing: a message's marker is stored when it is handed over, not when it arrives."""

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Announce the replay extension in handshakes, and put replay ids into subscriptions.

        :raises ReplayError: if the marker cannot be read
        """
        for message in payload:
            if message["channel"] == _HANDSHAKE:
                message.setdefault("ext", {})["replay"] = True
            elif message["channel"] == _SUBSCRIBE:
                await self.insert_replay_id(message)

    async def insert_replay_id(self, message: JsonObject) -> None:
        """Put the replay id of the stored marker into a subscribe message.

        :param message: a subscribe message
        :raises ReplayError: if the marker cannot be read
        """
        key = _key(message["subscription"])
        try:
            replay_id = await self.get_replay_id(key)
        except ReplayError:
            raise
        except Exception as error:
            raise _failed("read", key, error) from error
        if isinstance(replay_id, ReplayOption):
            # Not every JSON function takes an enumeration's member for a number.
            replay_id = int(replay_id)
        if replay_id is not None:
            message.setdefault("ext", {})["replay"] = {key: replay_id}

    async def get_replay_id(self, subscription: str) -> int | None:
        """Give the replay id that a channel starts behind.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the id, or None to leave it to the server, which then sends new events
        """
        marker = await self.get_replay_marker(subscription)
        return None if marker is None else marker.replay_id

    async def extract_replay_id(self, message: JsonObject) -> None:
        """Store the marker of a message, unless the stored one is newer.

        A message without a replay id is passed over, and one without a date is stored as older than
        any; both with one warning a channel.

        :param message: an event
        :raises ReplayError: if the marker cannot be read or stored
        """
        marker = self._marker_of(message)
        if marker is None:
            return
        key = self._subscription_of(message)
        forced = self._is_forced(key, message)
        try:
            if forced or should_store(await self.get_replay_marker(key), marker):
                await self.set_replay_marker(key, marker)
        except ReplayError:
            raise
        except Exception as error:
            raise _failed("stored", key, error) from error
        if forced:
            self._forced.pop(key, None)

    @staticmethod
    def get_message_date(message: JsonObject) -> str:
        """Give the date of an event.

        :param message: a PushTopic, generic, platform or change event
        :return: its date as the server wrote it; a change event's ``commitTimestamp`` (milliseconds)
            as text, since its ``CreatedDate`` is that of the record
        :raises ReplayError: if there is none
        """
        data = message.get("data")
        event, payload = _dict(data, "event"), _dict(data, "payload")
        if "ChangeEventHeader" in payload:
            created = _dict(payload, "ChangeEventHeader").get("commitTimestamp")
        else:
            created = payload.get("CreatedDate")
        for date in (event.get("createdDate"), created):
            if _is_date(date):
                return str(date)
        raise ReplayError(
            f"No message creation date found in a message on {message.get('channel')}. It should have"
            " event.createdDate, payload.CreatedDate or a ChangeEventHeader."
        )

    def _marker_of(self, message: JsonObject) -> ReplayMarker | None:
        if not isinstance(message.get("channel"), str):
            self._warn_once(
                message, "names no channel: its marker is not stored, it cannot be resumed from"
            )
            return None
        replay_id = _dict(message.get("data"), "event").get("replayId")
        if replay_id is None:
            self._warn_once(
                message, "has no replay id: its marker is not stored, it cannot be resumed from"
            )
            return None
        try:
            date = self.get_message_date(message)
        except ReplayError:
            self._warn_once(message, "has no date: its marker counts as older than any other")
            date = ""
        return ReplayMarker(date, replay_id)

    def _warn_once(self, message: JsonObject, what: str) -> None:
        key = (str(message.get("channel")), what)
        if key not in self._warned and len(self._warned) < MAX_NAMES:
            self._warned.add(key)
            LOGGER.warning("A message on %.100s %s", *key)

    def _subscription_of(self, message: JsonObject) -> str:
        channel = message.get("channel")
        return (self._aliases.get(channel) or _key(channel)) if isinstance(channel, str) else ""

    def _overwrite_with(self, message: JsonObject) -> None:
        """Store the marker of this message, when it comes, whatever is stored."""
        self._forced[self._subscription_of(message)] = message

    def _is_forced(self, key: str, message: JsonObject) -> bool:
        waiting = self._forced.get(key) if self._forced else None
        return waiting is not None and (waiting is _ANY or waiting == message)

    async def flush(self) -> None:
        """Store what is still buffered.

        :raises ReplayError: if that fails; it stays buffered
        """

    def direct_store(self) -> Callable[[JsonObject], None] | None:
        """Give a function that stores a message's marker without waiting, with the same result.

        :return: the function, or None where only :meth:`extract_replay_id` will do
        """
        return None

    # Storing after processing

    def __call__(self, message: Mapping[str, Any]) -> ReplayMarkerStorageContextManager:
        """Store the marker of *message* behind its processing::

            async with client.replay_storage(message):
                ...  # process it

        The marker is stored if the block succeeds. With several messages in flight, called in the order
        in which they were received, it never passes one whose block has not ended. A block that fails
        has ended: what is to become of its message is decided inside of the block. One that is
        cancelled, and a message whose block was never entered, keep the marker from passing until
        another block succeeds, so a program that is shut down loses nothing.

        :param message: the message, in flight from this call on
        :return: a context manager to be entered once
        """
        # A TypedDict is a Mapping for type checkers, and no dict.
        return ReplayMarkerStorageContextManager(self, cast(JsonObject, message))

    def _start(self, message: JsonObject) -> _Place:
        self._clear_abandoned()
        key = self._subscription_of(message)
        if key not in self._lines:
            self._lines[key] = _Line(key)
        return self._lines[key].join(message)

    async def _finish(self, place: _Place, *, succeeded: bool) -> None:
        """Note the end of a block and store the marker that this makes due."""
        self._clear_abandoned()
        if not succeeded:
            self._note_failure(place)
        self._leave(place, place.message if succeeded else None)
        await self._store_due(place.line)

    def _note_failure(self, place: _Place) -> None:
        # The stored marker is of no use all the same, so the next message replaces it.
        if self._is_forced(place.line.key, place.message):
            self._forced[place.line.key] = _ANY

    def _leave(self, place: _Place, done: JsonObject | None) -> None:
        in_front = place.line.leave(place)
        in_front.held = self._furthest(in_front.held, self._furthest(done, place.held))

    def _furthest(self, earlier: JsonObject | None, later: JsonObject | None) -> JsonObject | None:
        """Give the one of two messages whose marker stays if both are stored one after the other."""
        if earlier is None or later is None:
            return earlier or later
        key = self._subscription_of(later)
        if self._is_forced(key, later):
            return later
        first, second = self._marker_of(earlier), self._marker_of(later)
        if second is None or (first is not None and not should_store(first, second)):
            return earlier
        if self._is_forced(key, earlier):
            self._forced[key] = later
        return later

    async def _store_due(self, line: _Line) -> None:
        if line.front.held is not None:
            async with line.turn():
                due = line.front.held
                if due is not None:
                    await self.extract_replay_id(due)
                    # Where storing fails it stays due, and is stored with what finishes next.
                    if line.front.held is due:
                        line.front.held = None
        if line.empty and self._lines.get(line.key) is line:
            del self._lines[line.key]

    def _abandon(self, place: _Place) -> None:
        # May run in any thread and at any moment, so it touches nothing that others are changing.
        self._abandoned.append(place)
        LOGGER.warning(
            "The processing of a message on %.100s was cancelled or never begun, its marker is not"
            " stored; a new start gives it again unless one behind it has been stored by then",
            place.message.get("channel"),
        )

    def _clear_abandoned(self) -> None:
        while self._abandoned:
            place = self._abandoned.popleft()
            # It was not processed, so nothing that has finished already may pass it.
            place.held = None
            self._note_failure(place)
            self._leave(place, None)


class ReplayMarkerStorageContextManager:
    """Stores the marker of a message if its block succeeds; see :class:`ReplayMarkerStorage`.

    :param storage: where to
    :param message: the message
    """

    def __init__(self, storage: ReplayMarkerStorage, message: JsonObject) -> None:
        self._storage = storage
        self._message = message
        self._entered = False
        self._ended = False
        self._place = storage._start(message)

    async def __aenter__(self) -> None:
        """Begin processing.

        :raises ReplayError: if it was entered before
        """
        if self._entered:
            raise ReplayError(
                f"The processing of a message on {self._message.get('channel')} can be entered once only: call the"
                " storage for each message."
            )
        self._entered = True

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """End processing.

        :raises ReplayError: if the marker cannot be stored; the stored one stays
        """
        self._ended = True
        if exc_type is None:
            await self._storage._finish(self._place, succeeded=True)
        elif issubclass(exc_type, Exception):
            await self._fail(exc_type)
        else:
            # Cancelled, or even destroyed: this is no time to wait for a storage.
            self._storage._abandon(self._place)

    async def _fail(self, exc_type: type[BaseException]) -> None:
        channel = self._message.get("channel")
        LOGGER.warning(
            "Processing a message on %.100s failed with %s, its marker is not stored; a new start gives it"
            " again only if none behind it has been stored by then",
            channel,
            exc_type.__name__,
        )
        try:
            await self._storage._finish(self._place, succeeded=False)
        except ReplayError as error:
            # Of a message whose own block succeeded; the error of this block is what counts here.
            LOGGER.warning("%s", error)

    def __del__(self) -> None:
        place = getattr(self, "_place", None)
        if place is not None and not self._ended:
            self._storage._abandon(place)


class MappingStorage(ReplayMarkerStorage):
    """Keeps markers in a mapping: a dict, a :class:`shelve.Shelf`, or what behaves like one.

    :param mapping: channels to markers. A plain replay id as a value is understood as well, and is
        replaced by a marker when the first message is handed over
    :raises TypeError: if it is no mutable mapping
    """

    def __init__(self, mapping: MutableMapping[str, Any]) -> None:
        if not isinstance(mapping, MutableMapping):
            raise TypeError(
                f"mapping parameter should be an instance of MutableMapping, not {type(mapping).__name__!r}"
            )
        #: The mapping.
        self.mapping = mapping

    def __repr__(self) -> str:
        """Show the contents, as far as they are short."""
        return f"{type(self).__name__}(mapping={reprlib.repr(self.mapping)})"

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the marker of *subscription*, or None."""
        return _as_marker(self.mapping.get(subscription))

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Put *replay_marker* into the mapping."""
        self.mapping[subscription] = replay_marker

    def direct_store(self) -> Callable[[JsonObject], None] | None:
        """Give a function that stores a marker at once, unless a part of storing has been replaced."""
        if not _is_plain(self):
            return None
        mapping, aliases, forced = self.mapping, self._aliases, self._forced

        def store(message: JsonObject) -> None:
            try:
                # The common case: a later event of the same kind, on its own channel. This looks at
                # the event as date_and_id() does; calling that would take a sixth of the time.
                data = message["data"]
                event = data["event"]
                replay_id = event["replayId"]
                if "createdDate" in event:
                    date = event["createdDate"]
                elif "ChangeEventHeader" in (payload := data["payload"]):
                    date = str(payload["ChangeEventHeader"]["commitTimestamp"])
                else:
                    date = payload["CreatedDate"]
                channel = message["channel"]
                before = mapping[channel][0]
                if (
                    before <= date
                    and len(before) == len(date)
                    and (before[-1] == date[-1] == "Z" or date.isdigit())
                    and replay_id is not None
                    and not forced
                    and channel not in aliases
                ):
                    mapping[channel] = make_marker(ReplayMarker, (date, replay_id))
                    return
            except (KeyError, TypeError, IndexError):
                # Anything out of the ordinary is looked at again, with care.
                pass
            _run_now(self.extract_replay_id(message))

        return store


class DefaultReplayIdMixin:
    """Adds a replay id for channels without a marker.

    :param default_id: a replay option or replay id
    """

    def __init__(self, default_id: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Where a channel without a marker starts.
        self.default_id = default_id

    async def get_replay_id(self, subscription: str) -> int | None:
        """Give the id of the stored marker, or the default."""
        replay_id: int | None = await super().get_replay_id(subscription)  # type: ignore[misc]
        return self.default_id if replay_id is None else replay_id


class DefaultMappingStorage(DefaultReplayIdMixin, MappingStorage):
    """A :class:`MappingStorage` with a starting point for channels without a marker.

    :param mapping: channels to markers
    :param default_id: a replay option or replay id
    :raises TypeError: if *mapping* is no mutable mapping
    """

    def __init__(self, mapping: MutableMapping[str, Any], default_id: int) -> None:
        super().__init__(default_id=default_id, mapping=mapping)

    def __repr__(self) -> str:
        """Show the contents, as far as they are short."""
        return f"{type(self).__name__}(mapping={reprlib.repr(self.mapping)}, default_id={self.default_id!r})"


class ConstantReplayId(DefaultReplayIdMixin, ReplayMarkerStorage):
    """Stores nothing: every subscription starts from the same option or id.

    :param default_id: a replay option or replay id
    """

    def __init__(self, default_id: int) -> None:
        super().__init__(default_id=default_id)

    def __repr__(self) -> str:
        """Show the id."""
        return f"{type(self).__name__}(default_id={self.default_id!r})"

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give None."""
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store nothing."""

    async def extract_replay_id(self, message: JsonObject) -> None:
        """Store nothing, so that no message can fail by what it lacks."""

    def direct_store(self) -> Callable[[JsonObject], None] | None:
        """Give a function that does nothing, unless storing has been replaced."""
        if type(self).extract_replay_id is ConstantReplayId.extract_replay_id and not _has_own(
            self
        ):
            return _store_nothing
        return None


def _store_nothing(message: JsonObject) -> None:
    pass


#: The parts of storing that a subclass or a test may replace.
_HOOKS: Final = ("extract_replay_id", "get_replay_marker", "set_replay_marker", "get_message_date")
_PLAIN: Final = {name: getattr(MappingStorage, name) for name in _HOOKS}


def _is_plain(storage: MappingStorage) -> bool:
    cls = type(storage)
    return all(getattr(cls, name) is hook for name, hook in _PLAIN.items()) and not _has_own(
        storage
    )


def _has_own(storage: ReplayMarkerStorage) -> bool:
    return any(
        _function(getattr(storage, name)) is not getattr(type(storage), name) for name in _HOOKS
    )


def _function(attribute: Any) -> Any:
    # Of a method. What is static is a function already.
    return getattr(attribute, "__func__", attribute)


def _run_now(coroutine: Awaitable[None]) -> None:
    """Run a coroutine that waits for nothing."""
    iterator = coroutine.__await__()
    try:
        next(iterator)
    except StopIteration:
        return
    raise AssertionError("a mapping is never waited for")


def _key(channel: str) -> str:
    """Give a channel's name in replay maps: a filtered PushTopic's query is no part of it."""
    return channel.partition("?")[0]


def _failed(what: str, key: str, error: Exception) -> ReplayError:
    reason = f"{type(error).__name__}: {error!s:.300}"
    return ReplayError(
        f"The replay marker of channel {key} could not be {what}: {reason}. Look at the storage; the next"
        " attempt asks it again."
    )


def _dict(value: object, name: str) -> dict[str, Any]:
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _is_date(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and value != "")


def _as_marker(value: Any) -> ReplayMarker | None:
    """Understand what people keep in mappings: a marker, a pair, or a plain replay id."""
    if value is None or isinstance(value, ReplayMarker):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return ReplayMarker("" if value[0] is None else str(value[0]), value[1])
    return ReplayMarker("", value)
