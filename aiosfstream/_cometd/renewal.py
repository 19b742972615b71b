"""Which channels are to be subscribed again, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from aiocometd.typing import JsonObject

from .._http.failures import Failure
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import ServerError, TransportError
from .channels import Channels, Subscription
from .messages import refusal
from .recovery import Recovery
from .salesforce import NEW_EVENTS, ReplayId
from .states import Action, Host, State, Step

LOGGER = logging.getLogger(__name__)

#: How often an answer that cannot be read is asked for before its events are skipped.
MAX_UNREADABLE: Final = 3


class Renewal:
    """The channels of the session before that are not yet subscribed in the present one.

    Some may have been refused for now, by a limit or a busy server. They are tried again later, while
    the others go on.

    :param host: has the fallback
    :param channels: what each channel has received
    :param recovery: the states of the session
    """

    def __init__(self, host: Host, channels: Channels, recovery: Recovery) -> None:
        self._host = host
        self._channels = channels
        self._recovery = recovery
        self._waiting: list[Subscription] = []
        self._deferred: dict[Subscription, float] = {}
        # Whether channels are subscribed one by one, with a connect after each.
        self._one_by_one = False
        #: The channel whose events the next connect is to bring, if they are fetched one by one.
        self.probed: Subscription | None = None
        # What is in the last answer that could not be read.
        self._unreadable = b""
        #: How often that has come in a row.
        self.times_unreadable = 0

    def begin(self, subscriptions: Iterable[Subscription]) -> None:
        """Begin anew, in a new session.

        :param subscriptions: the channels
        """
        self._waiting = list(subscriptions)
        self._deferred.clear()
        # With a connect after each it shows which of them brings what cannot be read.
        self._one_by_one = self.times_unreadable >= MAX_UNREADABLE
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

    @property
    def is_done(self) -> bool:
        """Whether every channel is subscribed again, or given up."""
        return not self._waiting and not self._deferred and self.probed is None

    def in_place_of(self, step: Step, now: float) -> Step:
        """Give the next step as it is while not every channel is subscribed.

        :param step: what would come next otherwise
        :param now: the time, in seconds
        """
        state = self._recovery.state
        if state is State.RESUBSCRIBING and self.probed is not None:
            return Step(Action.CONNECT, step.delay)
        if state is State.CONNECTED and self.due(now):
            return Step(Action.SUBSCRIBE, step.delay)
        return step

    def due(self, now: float) -> list[Subscription]:
        """Give the channels to be subscribed now.

        :param now: the time, in seconds
        """
        return [*self._waiting, *(one for one, time in self._deferred.items() if time <= now)]

    def drop_unwanted(self) -> None:
        """Stop trying channels again that were unsubscribed, or subscribed anew, meanwhile."""
        for subscription in list(self._deferred):
            if self._channels.subscriptions.get(subscription.channel) is not subscription:
                self.settle(subscription)

    def seconds_left(self, now: float) -> float | None:
        """Give the seconds until a channel is to be tried again, or None if there is none.

        :param now: the time, in seconds
        """
        return min(self._deferred.values()) - now if self._deferred else None

    def settle(self, subscription: Subscription) -> None:
        """Note that nothing more is to be done about a channel.

        :param subscription: the channel
        """
        if subscription in self._waiting:
            self._waiting.remove(subscription)
            if self._one_by_one:
                self.probed = subscription
        was_deferred = self._deferred.pop(subscription, None) is not None
        if was_deferred and not self._deferred and self._recovery.state is State.CONNECTED:
            self._recovery.recovered()

    def unreadable(self, failure: Failure, channel: Subscription | None) -> None:
        """Note that an answer could not be read, and skip its events if it has come too often.

        :param failure: says why not
        :param channel: whose events are in it, if they can only be those of one
        """
        is_same = failure.digest == self._unreadable
        self._unreadable = failure.digest
        self.times_unreadable = self.times_unreadable + 1 if is_same else 1
        suspect = channel or self.probed
        if suspect is not None and self.times_unreadable > MAX_UNREADABLE:
            self.times_unreadable = 0
            self._skip(suspect, failure.error)

    def _skip(self, subscription: Subscription, cause: TransportError) -> None:
        """Go on with the new events of a channel, since those before cannot be read."""
        replay_id = subscription.resume
        error = ServerError(
            f"Events on {subscription.channel} after replay id {replay_id!r:.200} cannot be read and are skipped, the"
            f" subscription goes on with new events; fetch what is missing in another way. {cause}",
            None,
        )
        error.replay_id = replay_id
        error.__cause__ = cause
        self._channels.fall_back(subscription, NEW_EVENTS)
        self._recovery.errors.append(error)
        self._report(ConnectionEventKind.FALLBACK_USED, subscription, NEW_EVENTS, error=error)

    def resumed(self, subscription: Subscription, now: float) -> None:
        """Note that a channel is subscribed again.

        :param subscription: the channel
        :param now: the time, in seconds
        """
        self.settle(subscription)
        self._channels.resumed(subscription)
        lost_since = self._recovery.lost_since
        # Only now is it known what the storage had. A fallback has been reported already.
        from_now_on = subscription.sent_start in (None, NEW_EVENTS) and not subscription.fell_back
        if from_now_on and lost_since is not None:
            LOGGER.warning(
                "%s is subscribed again for new events only, since none was received before: what was"
                " published in the last %.1f seconds is not delivered; subscribe with a replay id or"
                " keep markers to have it",
                subscription.channel,
                now - lost_since,
            )
        self._report(ConnectionEventKind.CHANNEL_RESUMED, subscription, subscription.stamp)

    def defer(self, subscription: Subscription, error: ServerError, now: float) -> None:
        """Try a channel again later, while the others go on.

        :param subscription: the channel
        :param error: the refusal
        :param now: the time, in seconds
        """
        self._recovery.note_loss(error, now)
        delay = self._recovery.delays.busy(subscription.channel)
        if subscription in self._waiting:
            self._waiting.remove(subscription)
        self._deferred[subscription] = now + delay
        self._recovery.report_retry(delay, error, channel=subscription.channel)

    def fall_back(self, subscription: Subscription, reply: JsonObject) -> bool:
        """Try another starting point, once.

        :param subscription: the channel
        :param reply: the refusal of its replay id
        :return: whether there is a fallback that has not been tried yet
        """
        if subscription.fell_back:
            return False
        fallback = self._host.fallback_for(subscription.channel)
        if fallback is None:
            return False
        self._channels.fall_back(subscription, fallback)
        self._report(
            ConnectionEventKind.FALLBACK_USED, subscription, fallback, error=refusal(reply)
        )
        return True

    def lose(self, subscription: Subscription, reply: JsonObject) -> None:
        """Give a channel up that is refused for good, and tell the application.

        :param subscription: the channel
        :param reply: the refusal
        """
        self.settle(subscription)
        self._channels.give_up(subscription)
        replay_id = subscription.resume
        where = "" if replay_id is None else f", which resumes after replay id {replay_id!r:.200}"
        error = ServerError(
            f"Channel {subscription.channel} cannot be resumed and is not subscribed any more;"
            f" subscribe to it again{where}, or with another replay option",
            reply,
        )
        error.replay_id = replay_id
        self._recovery.errors.append(error)
        self._report(ConnectionEventKind.CHANNEL_LOST, subscription, replay_id, error=error)

    def _report(
        self,
        kind: ConnectionEventKind,
        subscription: Subscription,
        replay_id: ReplayId,
        error: ServerError | None = None,
    ) -> None:
        event = ConnectionEvent(
            kind, channel=subscription.channel, error=error, replay_id=replay_id
        )
        self._recovery.report(event)
