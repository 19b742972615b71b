"""The events of an org: envelopes, replay ids and the retention window."""

from __future__ import annotations

import itertools
import random
import uuid
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl

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
    :ivar first: how many were discarded before the first of them
    :ivar positions: replay id -> number of the event
    """

    events: list[Event] = field(default_factory=list)
    first: int = 0
    positions: dict[Any, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The number that the next event will have."""
        return self.first + len(self.events)

    def discard(self, count: int) -> None:
        """Forget the oldest *count* events."""
        for event in self.events[:count]:
            self.positions.pop(event.replay_id, None)
        del self.events[:count]
        self.first += count

    def after(self, order: int) -> int:
        """Give the number of the first event behind a place among the events of all channels."""
        return self.first + bisect_right(self.events, order, key=lambda event: event.order)


class EventBus:
    """All channels of an org.

    :param text_ids: whether replay ids are text
    :param seed: where the gaps between replay ids come from
    """

    def __init__(self, *, text_ids: bool = False, seed: int = 0) -> None:
        self.channels: dict[str, Channel] = {}
        self._text_ids = text_ids
        self._order = itertools.count()
        self._last_id = 0
        self._gaps = random.Random(seed)

    def channel(self, name: str) -> Channel:
        """Give a channel, which exists from then on."""
        return self.channels.setdefault(name, Channel())

    def next_id(self) -> int | str:
        """Make a replay id; they are not contiguous."""
        self._last_id += self._gaps.choice((1, 1, 2, 5))
        return str(self._last_id) if self._text_ids else self._last_id

    def store(self, name: str, data: Any, replay_id: Any) -> None:
        """Append an event to a channel."""
        channel = self.channel(name)
        channel.positions[replay_id] = channel.end
        message = {"data": data, "channel": name}
        channel.events.append(Event(replay_id, next(self._order), message))

    def start(self, subscription: str, replay: Any) -> int:
        """Find where a subscription starts.

        :param subscription: the channel, with its query
        :param replay: the replay map of the request, or None
        :return: the number of the first event to send
        :raises Refused: if the id is not known or the map lacks the channel
        """
        name = channel_name(subscription)
        channel = self.channel(name)
        if not isinstance(replay, dict):
            return channel.end
        if name not in replay:
            shown = ", ".join(f"{key}={value}" for key, value in replay.items())
            raise Refused(MISSING_REPLAY_ID.format(channel=subscription, map=f"{{{shown}}}"))
        replay_id = replay[name]
        if replay_id == -1:
            return channel.end
        if replay_id == -2:
            return channel.first
        if isinstance(replay_id, (int, str)) and replay_id in channel.positions:
            return channel.positions[replay_id] + 1
        raise Refused(INVALID_REPLAY_ID.format(id=replay_id))

    def has_events(self, cursors: dict[str, int]) -> bool:
        """Say whether something is due, and move the cursors past what their filters hold back."""
        for subscription, cursor in cursors.items():
            event = next(self._due(subscription, cursor), None)
            if event is not None:
                return True
            cursors[subscription] = self.channel(channel_name(subscription)).end
        return False

    def take(self, cursors: dict[str, int], limit: int) -> list[dict[str, Any]]:
        """Take what is due, in order, each event once, and move the cursors behind it.

        :param cursors: subscription -> number of the next event
        :param limit: how many at the most
        """
        due: dict[int, dict[str, Any]] = {}
        for subscription, cursor in cursors.items():
            for event in itertools.islice(self._due(subscription, cursor), limit):
                due[event.order] = event.message
        orders = sorted(due)[:limit]
        for subscription, cursor in cursors.items():
            channel = self.channel(channel_name(subscription))
            more = len(orders) == limit
            cursors[subscription] = max(cursor, channel.after(orders[-1])) if more else channel.end
        return [due[order] for order in orders]

    def _due(self, subscription: str, cursor: int) -> Iterator[Event]:
        channel = self.channel(channel_name(subscription))
        for index in range(max(cursor - channel.first, 0), len(channel.events)):
            if passes_filter(subscription, channel.events[index].message):
                yield channel.events[index]


def channel_name(subscription: str) -> str:
    """Give the channel of a subscription: without the query of a filtered PushTopic."""
    return subscription.partition("?")[0]


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
    payload = {"CreatedDate": text, "CreatedById": "005000000000001AAA", **fields}
    event = {"EventUuid": str(uuid.uuid4()), "replayId": replay_id}
    return {"schema": "dffQ2QLzDNHqwB8_sHMxdA", "payload": payload, "event": event}


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
