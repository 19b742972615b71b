"""Keys that several subscriptions share, such as filters of one PushTopic: they have one stored marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aiocometd.typing import JsonObject

from .._holds import Hold


class Sharer(Protocol):
    """What matters here of a subscription."""

    current: bool
    owed: bool


class Sharing:
    """Which keys are shared, and where the stored marker must not move on yet.

    :param by_key: the subscriptions of each key, kept up to date by the caller
    """

    def __init__(self, by_key: Mapping[str, Sequence[Sharer]]) -> None:
        self._by_key = by_key
        #: The keys of all channels that have been subscribed.
        self.keys: set[str] = set()
        #: Those of them that never had more than one subscription.
        self.unshared: set[str] = set()
        #: By key, what keeps the stored marker from passing one of several subscriptions.
        self.holds: dict[str, Hold] = {}

    def added(self, key: str) -> None:
        """Note that a key has one more subscription.

        :param key: the key
        """
        if len(self._by_key[key]) > 1:
            self.unshared.discard(key)
        elif key not in self.keys:
            self.unshared.add(key)
        self.keys.add(key)
        self.begin(key)

    def begin(self, key: str) -> None:
        """Note that a subscription has a backlog, or may have one: a shared marker stays where it is.

        :param key: the key of the subscription
        """
        if len(self._by_key.get(key, ())) > 1:
            self.holds.setdefault(key, Hold()).begin()

    def received(self, key: str, message: JsonObject) -> None:
        """Note that an event has come.

        :param key: the key of its channel
        :param message: the event
        """
        hold = self.holds.get(key)
        if hold is not None:
            hold.received(message)

    def review(self) -> None:
        """Let markers move on that no subscription waits for any more: all have subscribed and have their backlogs."""
        for key, hold in self.holds.items():
            sharers = self._by_key.get(key, ())
            if len(sharers) < 2 or all(one.current and not one.owed for one in sharers):
                hold.end()
