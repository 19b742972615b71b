"""Which channels are to be subscribed again, and when."""

from __future__ import annotations

from collections.abc import Iterable

from .channels import Subscription


class Renewal:
    """The channels of the session before that are not yet subscribed in the present one.

    Some may have been refused for now, by a limit or a busy server. They are tried again later, while
    the others go on.
    """

    def __init__(self) -> None:
        self._waiting: list[Subscription] = []
        self._deferred: dict[Subscription, float] = {}
        # Whether channels are subscribed one by one, with a connect after each.
        self._one_by_one = False
        #: The channel whose events the next connect is to bring, if they are fetched one by one.
        self.probed: Subscription | None = None

    def begin(self, subscriptions: Iterable[Subscription], *, one_by_one: bool) -> None:
        """Begin anew, in a new session.

        :param subscriptions: the channels
        :param one_by_one: whether to connect after each, to learn which of them brings trouble
        """
        self._waiting = list(subscriptions)
        self._deferred.clear()
        self._one_by_one = one_by_one
        self.probed = None
        for subscription in self._waiting:
            subscription.fell_back = False

    def end(self) -> None:
        """Forget what was to be done: the session is given up."""
        self._waiting = []
        self._deferred.clear()
        self.probed = None

    @property
    def pending(self) -> bool:
        """Whether there are channels that have not been tried yet."""
        return bool(self._waiting)

    @property
    def deferred(self) -> list[str]:
        """The channels that are refused for now and will be tried again."""
        return [subscription.channel for subscription in self._deferred]

    def due(self, now: float) -> list[Subscription]:
        """Give the channels to be subscribed now.

        :param now: the time, in seconds
        """
        return [*self._waiting, *(one for one, time in self._deferred.items() if time <= now)]

    def seconds_left(self, now: float) -> float | None:
        """Give the seconds until a channel is to be tried again, or None if there is none.

        :param now: the time, in seconds
        """
        return min((time - now for time in self._deferred.values()), default=None)

    def settle(self, subscription: Subscription) -> bool:
        """Note that nothing more is to be done about a channel; say whether it was the last deferred one.

        :param subscription: the channel
        """
        if subscription in self._waiting:
            self._waiting.remove(subscription)
            if self._one_by_one:
                self.probed = subscription
        return self._deferred.pop(subscription, None) is not None and not self._deferred

    def defer(self, subscription: Subscription, due: float) -> None:
        """Have a channel tried again later.

        :param subscription: the channel
        :param due: when, by the same clock as :meth:`due`
        """
        if subscription in self._waiting:
            self._waiting.remove(subscription)
        self._deferred[subscription] = due
