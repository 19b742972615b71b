"""Replay: where a subscription starts, and remembering how far the application has come."""

from __future__ import annotations

import asyncio
import logging
import math
import reprlib
import weakref
from abc import abstractmethod
from collections.abc import Callable, Container, Mapping, MutableMapping
from enum import IntEnum, unique
from types import TracebackType
from typing import Any, Final, NamedTuple

from aiocometd.constants import MetaChannel
from aiocometd.extensions import Extension
from aiocometd.typing import Headers, JsonObject, Payload

from ._channels import key_of, shown
from ._dates import LATEST, UNKNOWN, instant
from ._holds import Hold
from ._in_flight import Place, channel_of
from ._internals import Slot
from ._notes import ANY, EVERYTHING, Attachment, Notes
from ._text import fit
from ._within import within
from .exceptions import ReplayError

__all__ = [
    "ConstantReplayId",
    "DefaultMappingStorage",
    "DefaultReplayIdMixin",
    "DurableStorage",
    "MappingStorage",
    "ReplayMarker",
    "ReplayMarkerStorage",
    "ReplayMarkerStorageContextManager",
    "ReplayOption",
    "should_store",
]

LOGGER = logging.getLogger(__name__)

_HANDSHAKE: Final[str] = MetaChannel.HANDSHAKE.value
_SUBSCRIBE: Final[str] = MetaChannel.SUBSCRIBE.value
#: Warnings that a storage gives at most: a server could make up names without end.
MAX_NAMES: Final = 1000

#: What a storage remembers. Subclasses need not call the constructor, and may use any name.
_NOTES: Final = Slot("notes of a marker storage", Notes)


@unique
class ReplayOption(IntEnum):
    """Where a subscription without a replay id starts."""

    #: With what is published after the subscription.
    NEW_EVENTS = -1
    #: With everything that is still in the retention window.
    ALL_EVENTS = -2


class ReplayMarker(NamedTuple):
    """How far a channel has been consumed.

    Replay ids are opaque: usually an int, but any JSON value that the server sends is kept unchanged.
    """

    #: When the event was created, as the server says; empty if it does not say.
    date: str
    #: The event's replay id.
    replay_id: int


def should_store(stored: ReplayMarker | None, new: ReplayMarker) -> bool:
    """Say whether a marker takes the place of the stored one: the rule for storing a marker.

    A replayed message must not move the marker back, so it does unless the stored one is newer. The
    dates are compared as instants, since their forms differ between kinds of event. One that is
    missing, not understood, or more than a day ahead of this machine's clock is older than any other.
    Of two events of the same moment, the one with the larger replay id is the newer, if both ids are
    whole numbers; if not, it is the one that was handed over last.

    :param stored: the stored marker, or None
    :param new: the marker of a message that was handed over
    :return: True if *new* is to be stored
    """
    if stored is None:
        return True
    texts = stored.date.__class__ is str is new.date.__class__
    if texts and follows(stored, new):
        return True
    before, after = instant(stored.date), instant(new.date)
    if before != after or before == UNKNOWN:
        return before <= after
    # Ids are opaque, and begin again after a migration; but never within a millisecond. To keep the
    # stored marker is the safe side in any case: it was handed over too, so nothing is passed.
    return not (is_ordinal(stored.replay_id) and is_ordinal(new.replay_id)) or (
        stored.replay_id <= new.replay_id
    )


def is_ordinal(replay_id: object) -> bool:
    """Say whether a replay id is a whole number, which ids of the same moment are ordered by.

    :param replay_id: the id
    """
    return replay_id.__class__ is int and replay_id >= 0


def follows(stored: ReplayMarker, new: ReplayMarker) -> bool:
    """Tell without parsing that a marker takes the place of the stored one.

    Two dates in UTC, or two numbers, of the same length are in the order of their texts.

    :param stored: the stored marker; its date and that of the new one are texts
    :param new: the new marker
    :return: False may mean that it takes parsing to tell
    """
    before, date = stored[0], new[0]
    if len(before) != len(date) or before > date:
        return False
    if before[-1:] == date[-1:] == "Z":
        latest = LATEST.text
    elif before.isdigit() and date.isdigit():
        latest = LATEST.milliseconds
    else:
        return False
    if date >= latest:
        return False
    known, replay_id = stored[1], new[1]
    return before < date or (
        known.__class__ is int is replay_id.__class__ and 0 <= known <= replay_id
    )


#: Makes a marker from its class and a pair, in half the time that calling the class takes.
make_marker: Final = tuple.__new__


def usual_marker(client: Attachment, message: JsonObject) -> tuple[str, ReplayMarker] | None:
    """Give the key and the marker of an event that has the usual form and is on an ordinary channel.

    :param client: what a client has told the storage
    :param message: an event
    :return: both, as :meth:`ReplayMarkerStorage.get_message_date` and the event have them; None: it takes
        a closer look
    """
    try:
        channel = message["channel"]
        if channel not in client.ordinary or channel in client.aliases:
            return None
        data = message["data"]
        event = data["event"]
        replay_id = event["replayId"]
        if "createdDate" in event:
            date = event["createdDate"]
        else:
            payload = data["payload"]
            if "ChangeEventHeader" in payload:
                date = str(payload["ChangeEventHeader"]["commitTimestamp"])
            else:
                date = payload["CreatedDate"]
    except (KeyError, TypeError):
        return None
    if replay_id is None or date.__class__ is not str or not date:
        return None
    return channel, make_marker(ReplayMarker, (date, replay_id))


class ReplayMarkerStorage(Extension):
    """Remembers the marker of the last message of each channel.

    Write :meth:`get_replay_marker` and :meth:`set_replay_marker` to keep markers wherever you like::

        class MyStorage(ReplayMarkerStorage):
            async def get_replay_marker(self, subscription): ...
            async def set_replay_marker(self, subscription, replay_marker): ...

    If they raise an exception, the application gets :exc:`~aiosfstream.ReplayError`, and no event is
    lost.
    """

    #: Where the next subscription starts, once, in place of the stored marker. The application may set
    #: it; a client has its own ``replay_fallback``.
    replay_fallback: ReplayOption | None = None

    # What a subclass writes

    @abstractmethod
    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Return the stored marker.

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
        """Do nothing: a message's marker is stored when it is handed over, not when it arrives.

        :param payload: the messages that have arrived
        :param headers: the headers of the answer
        """

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Announce the replay extension in handshakes, and put replay ids into subscriptions.

        :param payload: the messages to be sent
        :param headers: the headers of the request, left alone
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
        key = key_of(message["subscription"])
        replay_id = _take_fallback(self, key)
        if replay_id is None:
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
        """Return the replay id after which a channel starts.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the id, or None to leave it to the server, which then sends new events
        """
        marker = await self.get_replay_marker(subscription)
        return None if marker is None else marker.replay_id

    async def extract_replay_id(self, message: JsonObject) -> None:
        """Store the marker of a message, unless the stored one is newer.

        A message without a replay id is not stored, and one without a date is stored as older than any
        other. Both are logged once for each channel.

        :param message: an event
        :raises ReplayError: if the marker cannot be read or stored
        """
        notes = _NOTES.of(self)
        try:
            usual = None
            if self.get_message_date is _DATE_OF:
                usual = usual_marker(notes.attached[-1], message)
            if usual is None:
                await _store_carefully(self, notes, message)
            elif isinstance(self, DurableStorage):
                await self.set_unless_newer(*usual)
            elif should_store(await self.get_replay_marker(usual[0]), usual[1]):
                await self.set_replay_marker(*usual)
        except ReplayError:
            raise
        except Exception as error:
            raise _failed("stored", notes.key_of(message), error) from error

    @staticmethod
    def get_message_date(message: JsonObject) -> str:
        """Return the date of an event.

        :param message: a PushTopic, generic, platform or change event
        :return: its date as the server wrote it; a change event's ``commitTimestamp`` (milliseconds)
            as text, since its ``CreatedDate`` is that of the record
        :raises ReplayError: if there is none
        """
        data = message.get("data")
        date = _dict(data, "event").get("createdDate")
        if not _is_date(date):
            payload = _dict(data, "payload")
            if "ChangeEventHeader" in payload:
                date = _dict(payload, "ChangeEventHeader").get("commitTimestamp")
            else:
                date = payload.get("CreatedDate")
        if _is_date(date):
            return str(date)
        raise ReplayError(
            f"No message creation date found in a message on {shown(message.get('channel'))}. It should have"
            " event.createdDate, payload.CreatedDate or a ChangeEventHeader."
        )

    # Storing after processing

    # Any, so that a TypedDict and the narrower parameter of a subclass are both sound for type checkers.

    def __call__(self, message: Any) -> ReplayMarkerStorageContextManager:
        """Store the marker of *message* after its processing::

            async with client.replay_storage(message):
                ...  # process it

        The marker is stored if the block succeeds. With several messages in flight, called in the order
        in which they were received, it never passes one whose block has not ended. A block that fails
        has ended: decide inside the block what to do with its message. A block that is cancelled or
        never entered holds the marker back until another block succeeds, so a program that is shut
        down loses nothing.

        :param message: the message, in flight from this call on
        :return: a context manager to be entered once
        """
        return ReplayMarkerStorageContextManager(self, message)


_DATE_OF: Final = ReplayMarkerStorage.get_message_date


async def _store_carefully(storage: ReplayMarkerStorage, notes: Notes, message: JsonObject) -> None:
    """Store the marker of any message, unless there is none, or its channel is not subscribed."""
    marker = marker_of(storage, message)
    if marker is None:
        return
    key = notes.key_of(message)
    if not notes.is_subscribed(key):
        _warn_once(storage, message, "belongs to no subscription: its marker is not stored")
    elif notes.overwrites(key, message):
        await storage.set_replay_marker(key, marker)
        notes.overwritten(key, message)
    elif isinstance(storage, DurableStorage):
        await storage.set_unless_newer(key, marker)
    elif should_store(await storage.get_replay_marker(key), marker):
        await storage.set_replay_marker(key, marker)


class DurableStorage(ReplayMarkerStorage):
    """Base of storages that can do more for a client than read and write a marker.

    A storage whose markers outlive the program, or that several programs use at once, should derive
    from this class and override what it can do better::

        class MyStorage(DurableStorage):
            async def get_replay_marker(self, subscription): ...
            async def set_replay_marker(self, subscription, replay_marker): ...
            async def set_unless_newer(self, subscription, replay_marker): ...
    """

    #: Whether markers may wait in memory until :meth:`flush` is called.
    buffers: bool = False

    async def set_unless_newer(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, unless the stored one is newer: the rule is :func:`~aiosfstream.replay.should_store`.

        The inherited method reads first and then writes, so two programs that store at once can move a
        marker back. Override it where the database can compare and store in one step.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        """
        if should_store(await self.get_replay_marker(subscription), replay_marker):
            await self.set_replay_marker(subscription, replay_marker)

    async def flush(self) -> None:
        """Store what waits in memory.

        A client calls it before each request, before ``receive()`` waits, and when it is closed.

        :raises ReplayError: if that fails. What was not stored is kept
        """

    def begin_flush(self) -> bool:
        """Begin to store what waits in memory, without waiting for the end.

        :return: whether it has begun; if not, only :meth:`flush` will do
        :raises ReplayError: the failure of the last attempt
        """
        return False

    async def open_for(self, org_id: str | None) -> None:
        """Get ready, for the markers of one org. A client calls it at each opening.

        :param org_id: the id of the org, of 15 or 18 characters; None if it is not known
        :raises ReplayError: if the storage cannot be used, or has markers of another org
        """

    def direct_store(self) -> Callable[[JsonObject], bool] | None:
        """Return a function that stores the marker of an ordinary message without waiting.

        It returns whether it has done so. If not,
        :meth:`~aiosfstream.ReplayMarkerStorage.extract_replay_id` is called for the message. Both must
        have the same result.

        :return: the function; None: ``extract_replay_id()`` is called for every message
        """
        return None


class _Rules:
    """What a storage decides about the messages of its clients."""

    def __init__(self, storage: ReplayMarkerStorage) -> None:
        self._storage = storage
        self._notes = _NOTES.of(storage)

    def key_of(self, message: JsonObject) -> str:
        """Give the key that the marker of *message* is stored under."""
        return self._notes.key_of(message)

    def furthest(self, earlier: JsonObject, later: JsonObject) -> JsonObject:
        """Give the message whose marker stays if those of both are stored, one after the other."""
        key, notes = self._notes.key_of(later), self._notes
        if not notes.overwrites(key, later):
            first, second = marker_of(self._storage, earlier), marker_of(self._storage, later)
            if second is None or (first is not None and not should_store(first, second)):
                return earlier
        notes.hand_on(key, earlier, later)
        return later

    def passed_over(self, message: JsonObject) -> None:
        """Note that the marker of *message* will not be stored."""
        # If it was to replace a marker that cannot be resumed from, the next message does that.
        self._notes.hand_on(self.key_of(message), message, ANY)

    def hold_of(self, key: str) -> Hold | None:
        """Give what holds the marker of *key*, or None."""
        return self._notes.hold_of(key)

    async def take(self, message: JsonObject) -> None:
        """Store the marker of *message*, which is being handed over, as far as it may move on."""
        key = self._notes.key_of(message)
        hold = self._notes.hold_of(key)
        if hold is None:
            await self._store(key, message)
        else:
            is_over = hold.would_be_over(message) and not self._notes.in_flight.has_part_of(
                key, hold
            )
            await self._store_or_hold(key, hold, message, is_over=is_over)
            hold.taken(message)

    async def store(self, message: JsonObject) -> None:
        """Store the marker of *message*, which is processed, as far as it may move on."""
        key = self._notes.key_of(message)
        hold = self._notes.hold_of(key)
        if hold is None:
            await self._store(key, message)
        else:
            is_over = self._notes.is_over(key, hold)
            await self._store_or_hold(key, hold, message, is_over=is_over)

    async def release(self, key: str, hold: Hold) -> None:
        """Store the marker that was held back, if it may move on now."""
        withheld = hold.withheld
        if withheld is not None and self._notes.is_over(key, hold):
            await self._store_held(key, hold, withheld)
            if hold.withheld is withheld:
                hold.withheld = None
        self._notes.let_go(key, hold)

    async def _store_or_hold(
        self, key: str, hold: Hold, message: JsonObject, *, is_over: bool
    ) -> None:
        earlier = hold.withheld
        furthest = message if earlier is None else self.furthest(earlier, message)
        if is_over:
            await self._store_held(key, hold, furthest)
            hold.withheld = None
        else:
            await self._move_back(key, hold, message)
            hold.withheld = furthest

    async def _store_held(self, key: str, hold: Hold, message: JsonObject) -> None:
        await self._store(key, message)
        if hold.displaced is not None:
            displaced = ReplayMarker(*hold.displaced)
            if should_store(await self._read(key), displaced):
                await self._write(key, displaced)
            hold.displaced = None

    async def _move_back(self, key: str, hold: Hold, message: JsonObject) -> None:
        """Store the marker of *message* if it is older than the stored one: a later subscription starts there."""
        marker = marker_of(self._storage, message)
        # What the server has refused is no place to go on from in any case.
        if marker is None or instant(marker.date) == UNKNOWN or key in self._notes.overwriting:
            return
        stored = await self._read(key)
        if stored is not None and not should_store(stored, marker):
            await self._write(key, marker)
            hold.displaced = hold.displaced or stored

    async def _read(self, key: str) -> ReplayMarker | None:
        try:
            return await self._storage.get_replay_marker(key)
        except ReplayError:
            raise
        except Exception as error:
            raise _failed("read", key, error) from error

    async def _write(self, key: str, marker: ReplayMarker) -> None:
        try:
            await self._storage.set_replay_marker(key, marker)
        except ReplayError:
            raise
        except Exception as error:
            raise _failed("stored", key, error) from error

    async def _store(self, key: str, message: JsonObject) -> None:
        await self._storage.extract_replay_id(message)
        if self._notes.overwrites(key, message):
            # A storage with an extract_replay_id() of its own does not know that it should overwrite.
            marker = marker_of(self._storage, message)
            if marker is not None:
                await self._storage.set_replay_marker(key, marker)
            self._notes.overwritten(key, message)


# What a client says to its storage. Not methods of it: a storage may use any name for its own.


def attach(
    storage: ReplayMarkerStorage,
    aliases: Mapping[str, str],
    *,
    subscribed: Container[str] = EVERYTHING,
    client: object | None = None,
    timeout: float | None = None,
    direct: Container[str] | None = None,
    holds: dict[str, Hold] | None = None,
) -> None:
    """Tell a storage which channels a client has. All is looked at whenever a message comes.

    :param storage: the storage
    :param aliases: delivered channel -> subscribed key, where they differ
    :param subscribed: the keys of which markers are stored: of all channels that have been subscribed
        since the client was opened, since messages may still wait after an ``unsubscribe``
    :param client: whose these are; a storage that several clients share needs it
    :param timeout: seconds that storing a marker at the end of a block may take; None: no limit
    :param direct: those of *subscribed* that have one subscription; None: all
    :param holds: by key, what keeps a marker that several subscriptions share from moving on. What is
        over is removed
    """
    reference = None if client is None else weakref.ref(client)
    said = Attachment(aliases, subscribed, reference, timeout, direct, holds)
    _NOTES.of(storage).attach(said)


def marker_of(storage: ReplayMarkerStorage, message: JsonObject) -> ReplayMarker | None:
    """Give the marker of a message, or None if it has none; with one warning a channel.

    :param storage: the storage, which may have its own way to find the date
    :param message: an event
    """
    if not isinstance(channel_of(message), str):
        _warn_once(
            storage,
            message,
            "names no channel: its marker is not stored, it cannot be resumed from",
        )
        return None
    replay_id = _dict(message.get("data"), "event").get("replayId")
    if replay_id is None:
        _warn_once(
            storage,
            message,
            "has no replay id: its marker is not stored, it cannot be resumed from",
        )
        return None
    try:
        date = storage.get_message_date(message)
    except ReplayError:
        _warn_once(storage, message, "has no date: its marker counts as older than any other")
        date = ""
    return ReplayMarker(date, replay_id)


def _take_fallback(storage: ReplayMarkerStorage, key: str) -> int | None:
    """Give the fallback that the application has set for the next subscription, once."""
    fallback = storage.replay_fallback
    # A subclass may use this name for something of its own.
    if isinstance(fallback, bool) or not isinstance(fallback, int):
        return None
    try:
        storage.replay_fallback = None
    except AttributeError:
        # A property of a subclass's own.
        return None
    # The stored marker is obsolete: that of the next event replaces it, even if its date is earlier.
    _NOTES.of(storage).overwrite_with(key, ANY)
    return fallback


def _warn_once(storage: ReplayMarkerStorage, message: JsonObject, what: str) -> None:
    warned = _NOTES.of(storage).warned
    channel = channel_of(message)
    key = (f"{channel!s:.100}", what)
    if key not in warned and len(warned) < MAX_NAMES:
        warned.add(key)
        LOGGER.warning("A message on %s %s", shown(channel), what)


async def store_marker(storage: ReplayMarkerStorage, message: JsonObject) -> None:
    """Store the marker of a message that was handed over.

    :param storage: the storage
    :param message: an event
    :raises Exception: what the storage raises; nothing is lost by doing it again
    """
    notes = _NOTES.of(storage)
    if notes.overwriting or notes.has_holds:
        await _Rules(storage).take(message)
    else:
        await storage.extract_replay_id(message)


async def release_markers(
    storage: ReplayMarkerStorage, holds: Mapping[str, Hold], *, nothing_left: bool
) -> None:
    """Store the markers that were held back and may move on.

    :param storage: the storage
    :param holds: by key, what holds markers
    :param nothing_left: whether the application has taken all that has come
    :raises Exception: what the storage raises; they go on waiting
    """
    rules = _Rules(storage)
    for key, hold in list(holds.items()):
        if nothing_left:
            hold.nothing_left()
        await rules.release(key, hold)


def overwrite_with(storage: ReplayMarkerStorage, message: JsonObject) -> None:
    """Have the marker of a message replace the stored one, which cannot be resumed from, even if that is newer.

    :param storage: the storage
    :param message: an event, the first after a fallback
    """
    if not _stores_nothing(storage):
        notes = _NOTES.of(storage)
        notes.overwrite_with(notes.key_of(message), message)


async def flush(storage: ReplayMarkerStorage) -> None:
    """Store the markers that wait in memory.

    :param storage: the storage
    :raises ReplayError: if that fails; they go on waiting
    """
    if isinstance(storage, DurableStorage):
        await storage.flush()


async def open_for(storage: ReplayMarkerStorage, org_id: str | None) -> None:
    """Tell a storage that a client is about to use it.

    :param storage: the storage
    :param org_id: the id of the org, of 15 or 18 characters; None if it is not known
    :raises ReplayError: if the storage cannot be used, or has markers of another org
    """
    if isinstance(storage, DurableStorage):
        await storage.open_for(org_id)


def attachment_of(storage: ReplayMarkerStorage) -> Attachment:
    """Give what the client that was attached last has said, and which channels are ordinary.

    :param storage: the storage
    """
    return _NOTES.of(storage).attached[-1]


def direct_store_of(storage: ReplayMarkerStorage) -> Callable[[JsonObject], bool] | None:
    """Return a function that stores the marker of an ordinary message without waiting.

    It returns whether it has done so; if not, :func:`store_marker` is to be called. Ask for it anew after
    :func:`attach`. At 200 events a response it makes iterating 61 % faster.

    :param storage: the storage
    :return: the function; None: :func:`store_marker` is to be called for every message
    """
    if isinstance(storage, DurableStorage):
        return storage.direct_store()
    if isinstance(storage, MappingStorage) and _MAPPING.are_those_of(storage):
        return _direct_store_in(storage)
    return store_nothing if _stores_nothing(storage) else None


def _stores_nothing(storage: ReplayMarkerStorage) -> bool:
    """Say whether no message would ever use up what is noted for it."""
    return isinstance(storage, ConstantReplayId) and _CONSTANT.are_those_of(storage)


class _Block:
    """How far the processing of a message has come.

    :ivar place: of the message among those in flight
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.entered = self.ended = False


_BLOCK: Final[Slot[_Block | None]] = Slot("block", lambda: None)


class ReplayMarkerStorageContextManager:
    """Stores the marker of a message if its block succeeds; see :class:`ReplayMarkerStorage`.

    :param replay_storage: where to
    :param message: the message
    """

    def __init__(self, replay_storage: ReplayMarkerStorage, message: JsonObject) -> None:
        #: Where the marker is stored.
        self.replay_storage = replay_storage
        #: The message.
        self.message = message
        notes = _NOTES.of(replay_storage)
        _BLOCK.put(self, _Block(notes.in_flight.start(_Rules(replay_storage), message)))

    async def __aenter__(self) -> None:
        """Begin processing.

        :raises ReplayError: if it was entered before
        """
        block = _block_of(self)
        if block.entered:
            raise ReplayError(
                f"The processing of a message on {shown(channel_of(self.message))} can be entered once only: call the"
                " storage for each message."
            )
        block.entered = True

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """End processing.

        :raises ReplayError: if the marker cannot be stored; the stored one stays
        """
        block = _block_of(self)
        block.ended = True
        storage, in_flight = self.replay_storage, _NOTES.of(self.replay_storage).in_flight
        if exc_type is None:
            await _finish(storage, block.place, succeeded=True)
        elif issubclass(exc_type, Exception):
            await _fail(storage, block.place, exc_type)
        else:
            # Cancelled, or even destroyed: this is no time to wait for a storage.
            in_flight.abandon(block.place)

    def __del__(self) -> None:
        block = _BLOCK.of(self)
        if block is not None and not block.ended:
            _NOTES.of(self.replay_storage).in_flight.drop(block.place)


def _block_of(manager: ReplayMarkerStorageContextManager) -> _Block:
    block = _BLOCK.of(manager)
    if block is None:
        raise ReplayError(
            f"{type(manager).__name__} was made without its constructor: call super().__init__() in its own."
        )
    return block


async def _finish(storage: ReplayMarkerStorage, place: Place, *, succeeded: bool) -> None:
    """Note the end of a block, and store the marker that this makes due, within the client's time limit."""
    seconds = attachment_of(storage).timeout
    finishing = _NOTES.of(storage).in_flight.finish(_Rules(storage), place, succeeded=succeeded)
    try:
        await within(seconds, finishing)
    except asyncio.TimeoutError as error:
        raise ReplayError(
            f"The replay marker of a message on {shown(channel_of(place.message))} could not be stored:"
            f" {type(storage).__name__} has not answered within {seconds} seconds; look whether"
            " it can be reached"
        ) from error


async def _fail(storage: ReplayMarkerStorage, place: Place, exc_type: type[BaseException]) -> None:
    LOGGER.warning(
        "Processing a message on %s failed with %s, its marker is not stored; a new start gives it"
        " again only if no later one has been stored by then",
        shown(channel_of(place.message)),
        exc_type.__name__,
    )
    try:
        await _finish(storage, place, succeeded=False)
    except ReplayError as error:
        # Of a message whose own block succeeded; the error of this block is what counts here.
        LOGGER.warning("%s", error)


class MappingStorage(ReplayMarkerStorage):
    """Keeps markers in a mapping: a dict, a :class:`shelve.Shelf`, or what behaves like one.

    :param mapping: channels to markers. A value may also be a date and a replay id as a pair or as
        ``{"date": ..., "replay_id": ...}``, or a plain replay id or option; it is replaced by a marker
        when the first message is handed over. It is asked by ``mapping[channel]``, so the default of a
        :class:`~collections.defaultdict` counts
    :raises TypeError: if it is not a mutable mapping
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
        """Give the marker of *subscription*.

        :return: the marker, or None if there is none
        :raises ReplayError: if the mapping has something else there
        """
        try:
            # Not get(): a defaultdict, or a subclass with its own __getitem__, may have an answer.
            value = self.mapping[subscription]
        except KeyError:
            return None
        return read_marker(subscription, value)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Put *replay_marker* into the mapping, as the value of *subscription*."""
        self.mapping[subscription] = replay_marker


def _direct_store_in(storage: MappingStorage) -> Callable[[JsonObject], bool]:
    mapping, client = storage.mapping, attachment_of(storage)

    def store(message: JsonObject) -> bool:
        usual = usual_marker(client, message)
        if usual is None:
            return False
        channel, marker = usual
        try:
            stored = mapping[channel]
        except (KeyError, TypeError, ValueError, AttributeError):
            # None yet, or something that get_replay_marker() tells of.
            return False
        if stored.__class__ is not ReplayMarker or not follows(stored, marker):
            return False
        mapping[channel] = marker
        return True

    return store


class DefaultReplayIdMixin:
    """Adds a replay id for channels without a marker.

    :param default_id: a replay option or replay id; None: leave it to the server
    :param kwargs: for the classes that it is combined with
    """

    def __init__(self, default_id: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Where a channel without a marker starts.
        self.default_id = default_id

    async def get_replay_id(self, subscription: str) -> int | None:
        """Give the id of the stored marker, or the default.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the id; None if there is no default either
        """
        inherited: Any = getattr(super(), "get_replay_id", None)
        marker_of: Any = getattr(self, "get_replay_marker", None)
        replay_id: int | None = None
        if inherited is not None:
            replay_id = await inherited(subscription)
        elif marker_of is not None:
            marker: ReplayMarker | None = await marker_of(subscription)
            replay_id = None if marker is None else marker.replay_id
        return self.default_id if replay_id is None else replay_id


class DefaultMappingStorage(DefaultReplayIdMixin, MappingStorage):
    """A :class:`MappingStorage` with a starting point for channels without a marker.

    :param mapping: channels to markers
    :param default_id: a replay option or replay id
    :raises TypeError: if *mapping* is not a mutable mapping
    """

    def __init__(self, mapping: MutableMapping[str, Any], default_id: int) -> None:
        super().__init__(default_id=default_id, mapping=mapping)

    def __repr__(self) -> str:
        """Show the contents, as far as they are short."""
        return f"{type(self).__name__}(mapping={reprlib.repr(self.mapping)}, default_id={self.default_id!r})"


class ConstantReplayId(DefaultReplayIdMixin, ReplayMarkerStorage):
    """Stores nothing: every subscription starts from the same option or id.

    :param default_id: a replay option or replay id
    :param kwargs: for the classes that a subclass combines it with
    """

    def __init__(self, default_id: int, **kwargs: Any) -> None:
        super().__init__(default_id, **kwargs)

    def __repr__(self) -> str:
        """Show the id."""
        return f"{type(self).__name__}(default_id={self.default_id!r})"

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give None: there is no marker of *subscription*."""
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store nothing."""

    async def extract_replay_id(self, message: JsonObject) -> None:
        """Store nothing, so that no message can fail by what it lacks."""


def store_nothing(_message: JsonObject) -> bool:
    """Say that the marker of a message is stored, since none is to be.

    :param _message: the message
    """
    return True


class Hooks:
    """The methods of a class that take part in storing, which a subclass or a test may replace.

    :param cls: the class
    :param names: more of its methods
    """

    def __init__(self, cls: type[ReplayMarkerStorage], *names: str) -> None:
        own = ("extract_replay_id", "get_replay_marker", "set_replay_marker", "get_message_date")
        self._functions = {name: getattr(cls, name) for name in (*own, *names)}

    def are_those_of(self, storage: ReplayMarkerStorage) -> bool:
        """Say whether none has been replaced: in a subclass, in the class or in an object.

        :param storage: the object
        """
        cls = type(storage)
        return all(
            getattr(cls, name) is hook and _function(getattr(storage, name)) is hook
            for name, hook in self._functions.items()
        )


_MAPPING: Final = Hooks(MappingStorage)
_CONSTANT: Final = Hooks(ConstantReplayId)


def _function(attribute: Any) -> Any:
    # A method has its function in there; a static method is one already.
    return getattr(attribute, "__func__", attribute)


def _failed(what: str, key: str, error: Exception) -> ReplayError:
    reason = f"{type(error).__name__}: {fit(error)}"
    return ReplayError(
        f"The replay marker of channel {shown(key)} could not be {what}: {reason}. Look at the storage; the next"
        " attempt asks it again."
    )


def _dict(value: object, name: str) -> dict[str, Any]:
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _is_date(value: object) -> bool:
    if isinstance(value, str):
        return value != ""
    return isinstance(value, int) and not isinstance(value, bool)


#: Shows any value in a line, however deep or long it is.
_SHORT: Final = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 100


def read_marker(channel: str, value: Any) -> ReplayMarker | None:
    """Understand what people keep as the marker of a channel.

    :param channel: the channel
    :param value: a marker, a pair of date and replay id, ``{"date": ..., "replay_id": ...}``, a plain
        replay id, or None
    :return: the marker; None for None
    :raises ReplayError: if it is anything else
    """
    if value is None or (isinstance(value, ReplayMarker) and _is_json(value.replay_id)):
        return value
    if isinstance(value, dict) and "replay_id" in value:
        date, replay_id = value.get("date"), value["replay_id"]
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        date, replay_id = value
    else:
        date, replay_id = None, value
    if not _is_id(replay_id) or not (date is None or date == "" or _is_date(date)):
        raise ReplayError(
            f"{_SHORT.repr(value)} is stored for channel {shown(channel)}, which is no replay marker. Give it a ReplayMarker,"
            " a date and a replay id, or a replay id."
        )
    return ReplayMarker("" if date is None else str(date), replay_id)


def _is_json(value: object) -> bool:
    """Say whether a replay id may have come from a server, which may use any JSON value but these."""
    return isinstance(value, (int, float, str, list, dict)) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (int, str)) and not isinstance(value, bool)
