"""The events of an org: envelopes, replay ids and the retention window."""

from __future__ import annotations

import heapq
import itertools
import random
import uuid
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qsl

from ._event_file import EventFile, Row

#: As in the Streaming API Developer Guide, "Streaming API Error Codes", braces included.
INVALID_REPLAY_ID = (
    "400::The replayId {{{id}}} you provided was invalid.  Please provide a valid ID, -2 to replay all"
    " events, or -1 to replay only new events."
)
MISSING_REPLAY_ID = (
    "400::The replayId for channel {{{channel}}} wasn't found using the provided replay ID map"
    " {{{map}}}. Ensure that the channel name you provided in the replay map is valid and matches the"
    " channel name used for subscribing."
)


class Refused(Exception):
    """A request that the server refuses, with the text of the error."""


@dataclass(frozen=True)
class Event:
    """A stored event.

    :ivar replay_id: its replay id
    :ivar order: its place among the events of all channels
    :ivar message: what is sent
    """

    replay_id: Any
    order: int
    message: dict[str, Any]


@dataclass
class Channel:
    """The stored events of one channel.

    :ivar events: those that are retained
    :ivar places: replay id -> the event's place; of several with one id, that of the last
    """

    events: list[Event] = field(default_factory=list)
    places: dict[Any, int] = field(default_factory=dict)

    def discard(self, count: int) -> None:
        """Forget the oldest *count* events."""
        for event in self.events[:count]:
            if self.places.get(event.replay_id) == event.order:
                del self.places[event.replay_id]
        del self.events[:count]

    def since(self, place: int) -> Iterator[Event]:
        """Give the events from a place on."""
        first = bisect_left(self.events, place, key=lambda event: event.order)
        for index in range(first, len(self.events)):
            yield self.events[index]


@dataclass(frozen=True)
class Members:
    """The channels whose events another channel carries as well.

    :ivar patterns: their names, with ``*`` for anything
    :ivar own_names: whether events come with the name of their own channel, instead of the
        subscribed one's
    """

    patterns: tuple[str, ...]
    own_names: bool


@dataclass
class Cursor:
    """How far a session has come.

    :ivar due: subscription -> the place of the first event that may still have to be sent
    :ivar sent: the places of events that were sent before older ones
    """

    due: dict[str, int] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)


class EventBus:
    """All channels of an org.

    :param text_ids: whether replay ids are text
    :param seed: where the gaps between replay ids come from
    :param file: keeps the events when the program ends; None: nothing does
    """

    def __init__(
        self, *, text_ids: bool = False, seed: int = 0, file: EventFile | None = None
    ) -> None:
        self.channels: dict[str, Channel] = {}
        self.members = {"/data/ChangeEvents": Members(("/data/*ChangeEvent",), own_names=False)}
        self._text_ids = text_ids
        self._seed = seed
        self._end = 0
        self._file = file
        self.reset_ids()
        for name, data, replay_id in file.read() if file else ():
            self._append(name, data, replay_id)
            self._skip_ids(replay_id)

    def reset_ids(self) -> None:
        """Let replay ids begin again, with the same ones as at first."""
        self._last_id = 0
        self._gaps = random.Random(self._seed)

    def channel(self, name: str) -> Channel:
        """Give a channel, which exists from then on."""
        return self.channels.setdefault(channel_name(name), Channel())

    def next_id(self) -> int | str:
        """Make a replay id; they are not contiguous."""
        self._last_id += self._gaps.choice((1, 1, 2, 5))
        return str(self._last_id) if self._text_ids else self._last_id

    def _skip_ids(self, replay_id: Any) -> None:
        """Let the ids to come be above one that exists already."""
        with suppress(TypeError, ValueError, OverflowError):
            self._last_id = max(self._last_id, int(replay_id))

    def store(self, name: str, data: Any, replay_id: Any) -> None:
        """Append an event to a channel."""
        self._append(name, data, replay_id)
        if self._file is not None:
            self._file.append(channel_name(name), data, replay_id)

    def _append(self, name: str, data: Any, replay_id: Any) -> None:
        channel = self.channel(name)
        channel.places[replay_id] = self._end
        message = {"data": data, "channel": channel_name(name)}
        channel.events.append(Event(replay_id, self._end, message))
        self._end += 1

    def discard(self, name: str | None, keep: int) -> None:
        """Forget events.

        :param name: their channel; None: all channels
        :param keep: how many of the newest stay
        """
        for channel in list(self.channels.values()) if name is None else [self.channel(name)]:
            channel.discard(max(0, len(channel.events) - keep))
        if self._file is not None:
            self._file.replace(self._rows())

    def _rows(self) -> Iterator[Row]:
        for event in heapq.merge(
            *(channel.events for channel in self.channels.values()), key=lambda event: event.order
        ):
            yield event.message["channel"], event.message["data"], event.replay_id

    def start(self, subscription: str, replay: Any) -> int:
        """Find where a subscription starts.

        :param subscription: the channel, with its query
        :param replay: the replay map of the request, or None
        :return: the place of the first event to send
        :raises Refused: if the id is not known or the map lacks the channel
        """
        name = channel_name(subscription)
        self.channel(name)
        if not isinstance(replay, dict):
            return self._end
        if name not in replay:
            shown = ", ".join(f"{key}={value}" for key, value in replay.items())
            raise Refused(MISSING_REPLAY_ID.format(channel=subscription, map=f"{{{shown}}}"))
        replay_id = replay[name]
        if replay_id == -1:
            return self._end
        if replay_id == -2:
            return 0
        if isinstance(replay_id, (int, str)):
            for channel in self._sources(name):
                if replay_id in channel.places:
                    return channel.places[replay_id] + 1
        raise Refused(INVALID_REPLAY_ID.format(id=replay_id))

    def has_events(self, cursor: Cursor) -> bool:
        """Say whether something is due, and move the cursor past what filters hold back."""
        for subscription, place in cursor.due.items():
            if next(self._due(subscription, place, cursor.sent), None) is not None:
                return True
            cursor.due[subscription] = self._end
        return False

    def take(self, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Take what is due, in order, each event once, and move the cursor past it.

        :param cursor: how far the session has come
        :param limit: how many at the most
        """
        found = self._find(cursor, limit)
        end = found[-1][0] + 1 if len(found) >= limit else self._end
        for subscription, place in cursor.due.items():
            cursor.due[subscription] = max(place, end)
        cursor.sent = {place for place in cursor.sent if place >= end}
        return [message for _, message in found]

    def take_newest(self, cursor: Cursor, count: int) -> list[dict[str, Any]]:
        """Take the newest of what is due: the older ones are still to be sent.

        :param cursor: how far the session has come
        :param count: how many at the most
        """
        found = self._find(cursor, self._end + 1)[-count:]
        cursor.sent.update(place for place, _ in found)
        return [message for _, message in found]

    def _find(self, cursor: Cursor, limit: int) -> list[tuple[int, dict[str, Any]]]:
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for subscription, place in cursor.due.items():
            due = self._due(subscription, place, cursor.sent)
            for event, message in itertools.islice(due, limit):
                found[event.order, message["channel"]] = message
        keys = sorted(found)
        # An event that two channels carry goes out on both at once.
        last = keys[limit - 1][0] if len(keys) > limit else self._end
        return [(place, found[place, name]) for place, name in keys if place <= last]

    def _due(
        self, subscription: str, place: int, sent: set[int]
    ) -> Iterator[tuple[Event, dict[str, Any]]]:
        name = channel_name(subscription)
        members = self.members.get(name)
        sources = [channel.since(place) for channel in self._sources(name)]
        one = len(sources) == 1
        for event in sources[0] if one else heapq.merge(*sources, key=lambda event: event.order):
            if event.order in sent or not passes_filter(subscription, event.message):
                continue
            own_name = members is None or members.own_names
            yield event, event.message if own_name else {**event.message, "channel": name}

    def _sources(self, name: str) -> list[Channel]:
        """Give the channels whose events a subscription gets."""
        members = self.members.get(name)
        others = (
            []
            if members is None
            else [
                channel
                for other, channel in self.channels.items()
                if other != name
                and any(fnmatchcase(other, pattern) for pattern in members.patterns)
            ]
        )
        return [self.channel(name), *others]


def channel_name(subscription: str) -> str:
    """Give the channel of a subscription: no query of a filtered PushTopic, no slash at its end."""
    return subscription.partition("?")[0].rstrip("/")


def subscription_key(subscription: Any) -> str:
    """Write a subscription as one does who writes no slash at the end of its channel."""
    name, question_mark, query = str(subscription).partition("?")
    return f"{name.rstrip('/')}{question_mark}{query}"


def envelope(channel: str, payload: Any, replay_id: Any, date: datetime | None) -> dict[str, Any]:
    """Wrap a payload as Salesforce does for the kind of channel.

    :param channel: the channel
    :param payload: the record's fields; text for a generic event. The fields of a
        ``ChangeEventHeader`` in it replace those of the header.
    :param replay_id: the event's replay id
    :param date: when it was created; None: now
    :return: the ``data`` of the message
    """
    moment = date or datetime.now(timezone.utc)
    text = moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    if channel.startswith("/topic/"):
        event = {"createdDate": text, "replayId": replay_id, "type": "created"}
        return {"event": event, "sobject": payload}
    if channel.startswith("/u/"):
        return {"event": {"createdDate": text, "replayId": replay_id}, "payload": payload}
    fields = dict(payload) if isinstance(payload, dict) else {"Value__c": payload}
    if channel.startswith("/data/"):
        return _change_event(channel, fields, replay_id, moment)
    payload = {"CreatedDate": text, "CreatedById": "005000000000001AAA", **fields}
    event = {"EventUuid": str(uuid.uuid4()), "replayId": replay_id}
    return {"schema": "dffQ2QLzDNHqwB8_sHMxdA", "payload": payload, "event": event}


def _change_event(
    channel: str, fields: dict[str, Any], replay_id: Any, moment: datetime
) -> dict[str, Any]:
    header = {
        "entityName": entity_name(channel),
        "recordIds": ["001000000000001AAA"],
        "changeType": "CREATE",
        "changeOrigin": "com/salesforce/api/rest/66.0",
        "transactionKey": str(uuid.uuid4()),
        "sequenceNumber": 1,
        "commitTimestamp": int(moment.timestamp() * 1000),
        "commitNumber": 92847272780,
        "commitUser": "005000000000001AAA",
        "changedFields": [],
        **fields.pop("ChangeEventHeader", {}),
    }
    payload = {"ChangeEventHeader": header, **fields}
    return {
        "schema": "IeRuaY6cbI_HsV8Rv1Mc5g",
        "payload": payload,
        "event": {"replayId": replay_id},
    }


def entity_name(channel: str) -> str:
    """Give the object whose changes a channel carries; one of several for those that carry more."""
    name = channel.rpartition("/")[2]
    if not name.endswith("ChangeEvent"):
        return "Account"
    entity = name.removesuffix("ChangeEvent")
    return entity + "c" if entity.endswith("__") else entity


def passes_filter(subscription: str, message: dict[str, Any]) -> bool:
    """Say whether a filtered PushTopic subscription lets a message through: ``&`` means "or"."""
    query = subscription.partition("?")[2]
    if not query:
        return True
    record = message["data"].get("sobject", {}) if isinstance(message["data"], dict) else {}
    return any(str(record.get(name)) == value.strip("'") for name, value in parse_qsl(query))
