"""Events, a storage as users write them, and looks into what storages remember beside markers."""

from __future__ import annotations

import asyncio
from typing import Any

from aiosfstream._in_flight import Line
from aiosfstream._internals import Slot
from aiosfstream._notes import Notes
from aiosfstream.replay import ReplayMarker, ReplayMarkerStorage, direct_store_of, store_marker

CHANNEL = "/event/Low_Ink__e"
TOPIC = "/topic/Invoices"
OLD, MIDDLE, NEW = (
    "2017-04-09T18:31:40.517Z",
    "2017-04-09T18:31:40.518Z",
    "2018-01-01T00:00:00.000Z",
)

Message = dict[str, Any]


def platform(replay_id: Any, date: Any = NEW, channel: Any = CHANNEL) -> Message:
    """Return a platform event."""
    data = {"payload": {"CreatedDate": date, "Ink__c": 1}, "event": {"replayId": replay_id}}
    return {"channel": channel, "data": data}


def push_topic(replay_id: Any, date: Any = NEW, channel: Any = TOPIC) -> Message:
    """Return a notification of a PushTopic."""
    event = {"createdDate": date, "replayId": replay_id, "type": "updated"}
    return {"channel": channel, "data": {"event": event, "sobject": {"Id": "a00"}}}


def generic(replay_id: Any, date: Any = NEW, channel: Any = "/u/News") -> Message:
    """Return a generic event."""
    data = {"event": {"createdDate": date, "replayId": replay_id}, "payload": "CreatedDate"}
    return {"channel": channel, "data": data}


def change(replay_id: Any, stamp: Any = 1501010206653, channel: Any = "/data/Account") -> Message:
    """Return a change event, whose record is far older than the change."""
    header = {"commitTimestamp": stamp, "changeType": "UPDATE"}
    payload = {"ChangeEventHeader": header, "CreatedDate": "2001-01-01T00:00:00Z"}
    return {"channel": channel, "data": {"payload": payload, "event": {"replayId": replay_id}}}


class SlowStorage(ReplayMarkerStorage):
    """A storage as users write them, which waits, and fails on demand."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}
        self.failures: list[BaseException] = []
        self.writes: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        await asyncio.sleep(0)
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.markers[subscription] = replay_marker
        self.writes.append(replay_marker.replay_id)


_NOTES = Slot("notes of a marker storage", Notes)


def notes_of(storage: ReplayMarkerStorage) -> Notes:
    """Return what *storage* remembers."""
    return _NOTES.of(storage)


def lines_of(storage: ReplayMarkerStorage) -> dict[str, Line]:
    """Return the messages in flight of *storage*."""
    return notes_of(storage).in_flight.lines


async def store_directly(storage: ReplayMarkerStorage, message: dict[str, Any]) -> None:
    """Store a marker as a client that iterates does."""
    store = direct_store_of(storage)
    if store is None or not store(message):
        await store_marker(storage, message)
