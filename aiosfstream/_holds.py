"""Stored markers that must not move on yet."""

from __future__ import annotations

from typing import Any

from aiocometd.typing import JsonObject

__all__ = ["Hold"]


class Hold:
    """Keeps the stored marker of several subscriptions that share one from passing any of them.

    Filters of one PushTopic have one marker. While a server sends their backlogs, one after the other,
    the marker of an event that was consumed may be ahead of what another subscription still waits for.
    So it is not stored before all backlogs are complete and what has come until then is consumed.
    """

    def __init__(self) -> None:
        #: The message, of those that were consumed, whose marker is to be stored in the end.
        self.withheld: JsonObject | None = None
        #: The stored marker that an older one has replaced, because a subscription was made that starts
        #: before it.
        self.displaced: tuple[str, Any] | None = None
        #: Whether the backlogs are complete and the application has taken them. What it has taken may
        #: still be in flight.
        self.is_over = False
        self._complete = False
        # The last message that came before the backlogs were complete, until it is taken.
        self._last: JsonObject | None = None

    def begin(self) -> None:
        """Note that a backlog is to come."""
        self._complete = self.is_over = False

    def received(self, message: JsonObject) -> None:
        """Note that a message has come.

        :param message: the message
        """
        if not self._complete:
            self._last = message

    def end(self) -> None:
        """Note that all backlogs are complete."""
        self._complete = True
        self.is_over = self._last is None

    def would_be_over(self, message: JsonObject) -> bool:
        """Say whether nothing is left to be taken once *message* is.

        :param message: the message
        """
        return self.is_over or (self._complete and self._is_last(message))

    def taken(self, message: JsonObject) -> None:
        """Note that the application has taken a message.

        :param message: the message
        """
        if self._is_last(message):
            self.nothing_left()

    def nothing_left(self) -> None:
        """Note that the application has taken all that has come."""
        self._last = None
        self.is_over = self._complete

    def _is_last(self, message: JsonObject) -> bool:
        # Equal is enough: under MANUAL a program may hand in a copy.
        return self._last is message or self._last == message
