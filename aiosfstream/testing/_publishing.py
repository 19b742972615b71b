"""Publishing events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ._events import Members, envelope
from ._names import check_channel, check_publishable
from ._parts import Controlled, control


class Publishing(Controlled):
    """What an org publishes and stores."""

    @control
    def publish(
        self,
        channel: str,
        payload: Any = None,
        *,
        date: datetime | None = None,
        replay_id: Any = None,
    ) -> int | str:
        """Publish an event in the form that Salesforce uses for the kind of channel.

        :param channel: ``/event/...``, ``/data/...``, ``/topic/...`` or ``/u/...``
        :param payload: the fields; a string for a generic event. The fields of a
            ``ChangeEventHeader`` in it replace those of the header.
        :param date: when it was created; None: now
        :param replay_id: its replay id, which may be that of another event; None: a new one
        :return: its replay id
        :raises TypeError: if the channel is not a string
        :raises ValueError: if the channel is not one to publish on
        """
        return self._publish([(channel, payload)], date, replay_id)[0]

    @control
    def publish_many(
        self, events: Iterable[tuple[str, Any]], *, date: datetime | None = None
    ) -> list[int | str]:
        """Publish events together, so that they can be in one answer.

        :param events: channels and payloads
        :param date: when they were created; None: now
        :return: their replay ids
        :raises TypeError: if a channel is not a string
        :raises ValueError: if the channel is not one to publish on
        """
        return self._publish(list(events), date, None)

    def _publish(
        self, events: list[tuple[str, Any]], date: datetime | None, replay_id: Any
    ) -> list[int | str]:
        for channel, _ in events:
            check_publishable(channel)
        ids = []
        for channel, payload in events:
            new_id = self.parts.bus.next_id() if replay_id is None else replay_id
            content = {} if payload is None else payload
            self.parts.bus.store(channel, envelope(channel, content, new_id, date), new_id)
            ids.append(new_id)
        self._delivered()
        return ids

    def _delivered(self) -> None:
        self.parts.bayeux.sessions.deliver()
        self.parts.changes.notify()

    @control
    def publish_data(self, channel: str, data: Any, replay_id: Any = None) -> int | str:
        """Publish an event with exactly this *data*, however odd.

        :param channel: the channel
        :param data: the message's ``data``
        :param replay_id: its replay id; None: a new one
        :return: that id
        :raises TypeError: if the channel is not a string
        :raises ValueError: if the channel is not one to publish on
        """
        check_publishable(channel)
        stored_id: int | str = self.parts.bus.next_id() if replay_id is None else replay_id
        self.parts.bus.store(channel, data, stored_id)
        self._delivered()
        return stored_id

    @control
    def replay_ids(self, channel: str) -> list[Any]:
        """Return the replay ids of the events that are retained on *channel*, in order."""
        events = self.parts.bus.channel(check_channel(channel)).events
        return [event.replay_id for event in events]

    @control
    def discard_events(self, channel: str | None = None, *, keep: int = 0) -> None:
        """Let the retention window pass. Discarded ids are invalid from then on.

        :param channel: the channel; None: all of them
        :param keep: how many of the newest events to keep
        """
        if channel is not None:
            check_channel(channel)
        self.parts.bus.discard(channel, keep)

    @control
    def reset_ids(self) -> None:
        """Start the replay ids again, like in an org that was migrated or restored.

        Stored events are discarded, and the next ids are the same as the first ones.
        """
        self.parts.bus.discard(None, 0)
        self.parts.bus.reset_ids()

    @control
    def add_members(self, channel: str, *members: str, own_names: bool = True) -> None:
        """Let a channel carry the events of other channels: a custom channel or a wildcard.

        ``/data/ChangeEvents`` carries all change events from the start, under its own name.

        :param channel: the channel, such as ``/data/Sales__chn`` or ``/event/*``
        :param members: the others, with ``*`` for anything
        :param own_names: whether events come with the name of the channel that they were published
            on, instead of the subscribed one's
        :raises ValueError: if a name is not that of a channel
        """
        for name in (channel, *members):
            check_channel(name)
        self.parts.bus.members[channel] = Members(members, own_names)
