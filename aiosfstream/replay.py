"""Replay: where a subscription starts, and remembering how far the application has come."""

from __future__ import annotations

import asyncio
import logging
import reprlib
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import datetime, timezone
from enum import IntEnum, unique
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple

from aiocometd.constants import MetaChannel
from aiocometd.extensions import Extension
from aiocometd.typing import Headers, JsonObject, Payload

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
    return instant(stored.date) <= instant(new.date)


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
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text) / 1000
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


class _InFlight:
    """A message whose processing is under way."""

    __slots__ = ("finished", "message", "succeeded")

    def __init__(self, message: JsonObject) -> None:
        self.message = message
        self.finished = False
        self.succeeded = False


class _Track:
    """The messages of one channel that are being processed, in the order of the calls."""

    def __init__(self) -> None:
        self.entries: deque[_InFlight] = deque()
        # Stores of one channel follow each other, or an earlier one could overwrite a later one.
        self.lock = asyncio.Lock()

    def take_finished(self) -> list[JsonObject]:
        """Take the messages that no unfinished one stands before, those that succeeded."""
        succeeded = []
        while self.entries and self.entries[0].finished:
            entry = self.entries.popleft()
            if entry.succeeded:
                succeeded.append(entry.message)
        return succeeded


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

    # Subclasses need not call __init__, so what it would make is made when it is first needed.

    @property
    def _forced(self) -> dict[int, JsonObject]:
        forced: dict[int, JsonObject] = self.__dict__.setdefault("_forced_messages", {})
        return forced

    @property
    def _tracks(self) -> dict[str, _Track]:
        tracks: dict[str, _Track] = self.__dict__.setdefault("_tracks_in_flight", {})
        return tracks

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
            if message["channel"] == MetaChannel.HANDSHAKE:
                message.setdefault("ext", {})["replay"] = True
            elif message["channel"] == MetaChannel.SUBSCRIBE:
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
            raise ReplayError(
                f"The replay marker of channel {key} could not be read: {error!r}"
            ) from error
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
        forced = id(message) in self._forced
        try:
            if forced or should_store(await self.get_replay_marker(key), marker):
                await self.set_replay_marker(key, marker)
        except ReplayError:
            raise
        except Exception as error:
            raise ReplayError(
                f"The replay marker of channel {key} could not be stored: {error!r}"
            ) from error
        if forced:
            self._forced.pop(id(message), None)

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
        header = _dict(payload, "ChangeEventHeader")
        for date in (event.get("createdDate"), header.get("commitTimestamp")):
            if _is_date(date):
                return str(date)
        if not header and _is_date(payload.get("CreatedDate")):
            return str(payload["CreatedDate"])
        raise ReplayError(
            f"No message creation date found in a message on {message.get('channel')}."
        )

    def _marker_of(self, message: JsonObject) -> ReplayMarker | None:
        replay_id = _dict(message.get("data"), "event").get("replayId")
        if replay_id is None:
            self._warn_once(message, "has no replay id: its marker is not stored")
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
        channel = message["channel"]
        return self._aliases.get(channel) or _key(channel)

    def _overwrite_with(self, message: JsonObject) -> None:
        """Store the marker of this message, when it comes, whatever is stored."""
        self._forced[id(message)] = message

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

    def __call__(self, message: JsonObject) -> ReplayMarkerStorageContextManager:
        """Store the marker of *message* behind its processing::

            async with client.replay_storage(message):
                ...  # process it

        The marker is stored if the block succeeds. With several messages in flight, called in the order
        in which they were received, it never passes one whose block has not ended.

        :param message: the message, in flight from this call on
        :return: a context manager to be entered once
        """
        return ReplayMarkerStorageContextManager(self, message)

    def _start(self, message: JsonObject) -> _InFlight:
        entry = _InFlight(message)
        self._tracks.setdefault(self._subscription_of(message), _Track()).entries.append(entry)
        return entry

    async def _finish(self, entry: _InFlight, *, succeeded: bool) -> None:
        """Note the end of a block and store the marker that this makes due."""
        key = self._subscription_of(entry.message)
        track = self._tracks[key]
        entry.finished, entry.succeeded = True, succeeded
        async with track.lock:
            await self._store_finished(track)
        if not track.entries and not track.lock.locked():
            self._tracks.pop(key, None)

    def _abandon(self, entry: _InFlight) -> None:
        entry.finished = True
        LOGGER.warning("A message on %.100s was never processed", entry.message.get("channel"))

    async def _store_finished(self, track: _Track) -> None:
        finished = track.take_finished()
        if not finished:
            return
        # The last one stands for all of them; that one was behind a fallback holds for it as well.
        if any(self._forced.pop(id(message), None) is not None for message in finished):
            self._overwrite_with(finished[-1])
        await self.extract_replay_id(finished[-1])


class ReplayMarkerStorageContextManager:
    """Stores the marker of a message if its block succeeds; see :class:`ReplayMarkerStorage`.

    :param storage: where to
    :param message: the message
    """

    def __init__(self, storage: ReplayMarkerStorage, message: JsonObject) -> None:
        self._storage = storage
        self._message = message
        self._entered = False
        self._entry = storage._start(message)

    async def __aenter__(self) -> None:
        """Begin processing.

        :raises ReplayError: if it was entered before
        """
        if self._entered:
            raise ReplayError("The processing of a message can be entered once only.")
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
        if exc_val is None:
            await self._storage._finish(self._entry, succeeded=True)
            return
        LOGGER.warning(
            "Processing a message on %.100s failed with %s, its marker is not stored",
            self._message.get("channel"),
            type(exc_val).__name__,
        )
        try:
            await self._storage._finish(self._entry, succeeded=False)
        except ReplayError as error:
            LOGGER.warning("%s", error)

    def __del__(self) -> None:
        entry = getattr(self, "_entry", None)
        if entry is not None and not entry.finished and not self._entered:
            self._storage._abandon(entry)


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
                # The common case: a later event of the same kind, on its own channel.
                date, replay_id = date_and_id(message)
                channel = message["channel"]
                stored = mapping[channel]
                if (
                    stored.__class__ is ReplayMarker
                    and stored[0] <= date
                    and len(stored[0]) == len(date)
                    and stored[0][-1] == date[-1]
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
    return any(name in storage.__dict__ for name in _HOOKS)


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
        return ReplayMarker(str(value[0]), value[1])
    return ReplayMarker("", value)
