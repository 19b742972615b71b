"""Publishing events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ._events import envelope
from ._parts import Controlled, control


class Publishing(Controlled):
    """What an org publishes and keeps."""

    @control
    def publish(
        self, channel: str, payload: Any = None, *, date: datetime | None = None
    ) -> int | str:
        """Publish an event, wrapped as Salesforce does for the kind of channel.

        :param channel: ``/event/...``, ``/data/...``, ``/topic/...`` or ``/u/...``
        :param payload: the record's fields; text for a generic event. The fields of a
            ``ChangeEventHeader`` in it replace those of the header.
        :param date: when it was created; None: now
        :return: its replay id
        """
        return self.publish_many([(channel, payload)], date=date)[0]

    @control
    def publish_many(
        self, events: Iterable[tuple[str, Any]], *, date: datetime | None = None
    ) -> list[int | str]:
        """Publish events together, so that they can be in one answer.

        :param events: channels and payloads
        :param date: when they were created; None: now
        :return: their replay ids
        """
        ids = []
        for channel, payload in events:
            replay_id = self.parts.bus.next_id()
            content = {} if payload is None else payload
            self.parts.bus.store(channel, envelope(channel, content, replay_id, date), replay_id)
            ids.append(replay_id)
        self.parts.bayeux.deliver()
        self.parts.changes.notify()
        return ids

    @control
    def publish_data(self, channel: str, data: Any, replay_id: Any = None) -> int | str:
        """Publish an event with *data* as it is, however odd.

        :param channel: the channel
        :param data: the message's ``data``
        :param replay_id: the id that it can be resumed behind; None: a new one
        :return: that id
        """
        stored_id: int | str = self.parts.bus.next_id() if replay_id is None else replay_id
        self.parts.bus.store(channel, data, stored_id)
        self.parts.bayeux.deliver()
        self.parts.changes.notify()
        return stored_id

    @control
    def replay_ids(self, channel: str) -> list[Any]:
        """Give the replay ids of the events that are retained on *channel*, in order."""
        return [event.replay_id for event in self.parts.bus.channel(channel).events]

    @control
    def discard_events(self, channel: str | None = None, *, keep: int = 0) -> None:
        """Let the retention window pass: discarded ids are invalid from then on.

        :param channel: the channel; None: all of them
        :param keep: how many of the newest events stay
        """
        names = list(self.parts.bus.channels) if channel is None else [channel]
        for name in names:
            stored = self.parts.bus.channel(name)
            stored.discard(max(0, len(stored.events) - keep))
