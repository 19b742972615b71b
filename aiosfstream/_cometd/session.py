"""The Bayeux session without I/O: what is known, what an answer changes, what comes next.

It does no input or output, has no clock and starts no task: the transport asks it for the next
:class:`Step`, takes that step, and reports what came of it together with the time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

from aiocometd.typing import JsonObject

from .._channels import shown
from .._http.failures import Failure, Trouble
from ..events import ConnectionEvent
from ..exceptions import ServerError, TransportError
from .channels import Channels, Subscription, Ticket
from .messages import (
    CONNECT,
    DEFAULT_HOLD,
    DISCONNECT,
    HANDSHAKE,
    find_reply,
    hold_of,
    interval_of,
    refusal,
)
from .once import Once
from .pace import Pace
from .recovery import Recovery
from .renewal import Renewal
from .retry import RetryPolicy
from .salesforce import (
    Verdict,
    ends_session,
    judge_channel,
    judge_failure,
    judge_request,
    judge_session,
)
from .states import Host, Sequel, State, Step
from .writer import Writer

LOGGER = logging.getLogger(__name__)

_ENDED: Final = "Connection closed by the server for good; open the client again to go on"


class Session:
    """The state of one client's session with the server, across renewals.

    :param host: is asked what a session cannot decide
    :param report: called with every change that an observer should know of
    :param policy: delays
    :param rng: where the jitter comes from
    :param limit: the mailbox's limit; the memory for duplicates is sized by it
    :param poll_timeout: seconds that the server is asked to hold a connect; None: its own choice
    """

    def __init__(
        self,
        *,
        host: Host,
        report: Callable[[ConnectionEvent], None],
        policy: RetryPolicy,
        rng: random.Random,
        limit: int = 0,
        poll_timeout: float | None = None,
    ) -> None:
        self._poll_timeout = poll_timeout
        self.channels = Channels(limit, host.first_after_fallback)
        self.recovery = Recovery(host, report, policy, rng, self._leave)
        #: The number of the present session; answers to requests of an earlier one are not used.
        self.epoch = 0
        self.advice: JsonObject = {}
        #: Seconds that the server may hold a connect, as the advice says.
        self.hold = DEFAULT_HOLD
        #: Last reply to a connect.
        self.last_connect: JsonObject | None = None
        self.writer = Writer(self.recovery)
        self._pace = Pace()
        self._renewal = Renewal(host, self.channels, self.recovery)
        self._server_left = False
        self._odd = Once()

    # What comes next

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.recovery.state

    def next_step(self, now: float = 0.0) -> Step:
        """Give the next step and the delay before it, which is given once.

        :param now: the time, in seconds
        """
        step = self.recovery.next_step(now)
        return step if self._renewal.is_done else self._renewal.in_place_of(step, now)

    @property
    def established(self) -> bool:
        """Whether requests beside the connect make sense: the server should know this client."""
        return self.state in (State.CONNECTING, State.CONNECTED)

    @property
    def may_connect(self) -> bool:
        """Whether a connect makes sense."""
        return self.established or self._renewal.probed is not None

    @property
    def waits_for_credentials(self) -> bool:
        """Whether the application has been told that only a person can help."""
        return self.state is State.PARKED or self.recovery.waits_for_person

    @property
    def deferred(self) -> list[str]:
        """The channels that are refused for now and will be tried again."""
        return self._renewal.deferred

    # Connects

    def handshake_message(self, connection_types: list[str]) -> JsonObject:
        """Build a handshake, and forget the advice of the session before.

        Salesforce sends none in its reply; with an old ``reconnect: handshake`` still in force the
        client would handshake for ever.

        :param connection_types: what is offered
        """
        self._advise({})
        return self.writer.handshake(connection_types)

    def connect_message(self, now: float = 0.0) -> JsonObject:
        """Build a connect; the first of a session asks for an answer at once.

        :param now: the time, in seconds
        """
        return self.writer.connect(self._hold_asked_for(now))

    def hold_of(self, connect: JsonObject) -> float:
        """Give the seconds that the server may hold a connect.

        :param connect: the message
        """
        asked = connect.get("advice")
        return self.hold if asked is None else min(asked["timeout"] / 1000, self.hold)

    def _hold_asked_for(self, now: float) -> float | None:
        """Give the seconds that the server is asked to hold a connect, or None for its own choice."""
        if self.state is not State.CONNECTED:
            return 0.0
        # Back in time for the channels that are to be tried again.
        until = self._renewal.seconds_left(now)
        if until is None:
            return self._poll_timeout
        back = min(max(until, 0.1), self.hold)
        return back if self._poll_timeout is None else min(back, self._poll_timeout)

    # Requests and their answers

    def send(self, request: JsonObject, *, stale: bool = False) -> Ticket:
        """Note that *request* is about to be sent.

        :param request: the message
        :param stale: whether it is about a session that was given up
        """
        return self.channels.send(request, -1 if stale else self.epoch)

    def abandon(self, ticket: Ticket, *, lost: bool) -> None:
        """Note that a request brought no answer.

        :param ticket: the request
        :param lost: whether the server may have put events into an answer that is gone
        """
        self.channels.abandon(ticket, lost=lost and ticket.epoch == self.epoch)

    def receive(
        self, messages: list[JsonObject], ticket: Ticket, *, left: int = 0
    ) -> tuple[list[JsonObject], list[JsonObject]]:
        """Take the events out of the messages of an answer, or of a part of it.

        Events may come in any answer. Those of a session that was given up are dropped: they
        come again from the resume points, and would otherwise move these past what was lost.

        :param messages: the messages
        :param ticket: the request that they answer
        :param left: how many messages of the same answer are still to be taken
        :return: the events to deliver, and the other messages, for :meth:`take_reply`
        """
        # Before its channels are subscribed a session should bring nothing; what it brings comes again.
        if ticket.epoch != self.epoch or ticket.request["channel"] == HANDSHAKE:
            if not left:
                self.channels.abandon(ticket, lost=False)
            return [], messages
        return self.channels.receive(messages, ticket, left=left)

    def take_reply(self, others: list[JsonObject], ticket: Ticket) -> JsonObject | None:
        """Take the other messages of an answer.

        Apart from :meth:`receive`, so that events need not wait for it.

        :param others: the messages that are no events
        :param ticket: the request that they answer
        :return: the reply to the request, completed, or None
        """
        reply = find_reply(others, ticket.request)
        if ticket.epoch == self.epoch:
            self.recovery.instance.answers()
            for message in others:
                self._take_meta(message, reply)
        return reply

    def _take_meta(self, message: JsonObject, reply: JsonObject | None) -> None:
        channel = message.get("channel")
        if channel == DISCONNECT and message is not reply:
            if not self._server_left:
                LOGGER.info("The server ended the session; a new one follows")
            self._server_left = True
        elif _is_odd(message, reply) and self._odd.is_new(channel):
            LOGGER.warning(
                "Ignored a message on channel %s with data that is no event; look at what is published there",
                shown(channel),
            )
        advice = message.get("advice")
        if isinstance(advice, dict) and (message is reply or channel == CONNECT):
            self._advise(advice)

    def _advise(self, advice: JsonObject) -> None:
        self.advice = advice
        self.hold = hold_of(advice)
        self.recovery.interval = interval_of(advice)

    # What came of a step

    def handshake_done(self, result: JsonObject | Failure, now: float) -> None:
        """Take the outcome of a handshake.

        :param result: the reply, or why there is none
        :param now: the time, in seconds
        """
        self._server_left = False
        if isinstance(result, Failure):
            self.recovery.failed(result, now)
            return
        verdict = judge_session(result)
        client_id = result.get("clientId")
        if not result["successful"]:
            self.recovery.recover(verdict, refusal(result), now)
        elif verdict is Verdict.FAREWELL:
            self.recovery.stop(ServerError(_ENDED, result))
        elif not isinstance(client_id, str) or not client_id:
            error = TransportError(
                "The reply to /meta/handshake holds no clientId; check that the URL is that of a CometD server"
            )
            self.recovery.recover(Verdict.RENEW_LOST, error, now)
        else:
            self._begin(client_id)

    def _begin(self, client_id: str) -> None:
        self.epoch += 1
        self._renewal.begin(self.channels.subscriptions.values())
        pending = self._renewal.pending
        self.recovery.enter(State.RESUBSCRIBING if pending else State.CONNECTING, "handshake done")
        self.recovery.begun(client_id)

    def connect_done(
        self,
        result: JsonObject | Failure,
        epoch: int,
        events: int,
        elapsed: float,
        now: float,
        *,
        hold: float = DEFAULT_HOLD,
    ) -> None:
        """Take the outcome of a connect.

        :param result: the reply, or why there is none
        :param epoch: the session that it was sent in; another may have been lost meanwhile
        :param events: how many events came with it
        :param elapsed: how long it took, in seconds
        :param now: the time, in seconds
        :param hold: seconds that the server might hold it; 0 if it was to be answered at once
        """
        if epoch != self.epoch:
            return
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        self.last_connect = result
        verdict = judge_session(result)
        if self._server_left and verdict in _FAREWELLS:
            verdict = Verdict.FAREWELL
        if verdict is Verdict.PROCEED:
            self._connected(now, events)
            interval = self.recovery.interval
            delay = self._pace.next_delay(self.advice, interval, events, elapsed, hold)
            self.recovery.connect_after(delay)
        elif verdict is Verdict.STOP:
            self.recovery.stop(ServerError(_ENDED, result))
        else:
            self._recover(verdict, result, now)

    def _connected(self, now: float, events: int) -> None:
        if self._renewal.probed is not None:
            # Its events could be read.
            self._renewal.probed = None
            return
        self._renewal.times_unreadable = 0
        self.recovery.connected(now, events=events, complete=self._renewal.is_done)

    def _recover(self, verdict: Verdict, reply: JsonObject, now: float) -> None:
        """Recover from what a reply says."""
        error = refusal(reply)
        if verdict is Verdict.FAREWELL:
            error = ServerError("The server ended the session; the client renews it", reply)
        self._server_left = False
        self.recovery.recover(verdict, error, now)

    def _failed(self, failure: Failure, now: float, channel: Subscription | None = None) -> None:
        """Take a request without a usable answer, which may have had events in it.

        :param channel: the one channel whose events these are, if it is one
        """
        if failure.trouble is Trouble.UNREADABLE:
            self._renewal.unreadable(failure, channel)
        self.recovery.failed(failure, now)

    # Subscribing again

    def next_to_resubscribe(self, now: float = 0.0) -> Subscription | None:
        """Give the next channel to subscribe again, with the id to resume from, or None if all are.

        :param now: the time, in seconds
        """
        for subscription in self._renewal.due(now):
            if self.channels.subscriptions.get(subscription.channel) is subscription:
                if not subscription.fell_back:
                    subscription.stamp_resume_point()
                return subscription
            self._renewal.settle(subscription)
        if self.state is State.RESUBSCRIBING:
            self.recovery.enter(State.CONNECTING, "all channels subscribed")
        return None

    def resubscribe_done(
        self, subscription: Subscription, result: JsonObject | Failure, now: float
    ) -> None:
        """Take the outcome of subscribing a channel again in a new session.

        :param subscription: the channel
        :param result: the reply, or why there is none
        :param now: the time, in seconds
        """
        if isinstance(result, Failure):
            self._failed(result, now, subscription)
            return
        verdict = judge_channel(result)
        if ends_session(verdict):
            self._recover(verdict, result, now)
        elif verdict is Verdict.PROCEED:
            self.recovery.storage_answered()
            self._renewal.resumed(subscription, now)
        elif self._server_left:
            # Whatever it says of the channel, it says of a session that is gone.
            pass
        elif verdict is Verdict.WAIT:
            self._renewal.defer(subscription, refusal(result), now)
        elif not (verdict is Verdict.FALL_BACK and self._renewal.fall_back(subscription, result)):
            self._renewal.lose(subscription, result)
        if self._server_left:
            self._recover(Verdict.FAREWELL, result, now)

    def disturbed(self, error: TransportError, now: float) -> None:
        """Note that a step was cancelled by something outside of the client: its outcome is lost.

        :param error: what happened
        :param now: the time, in seconds
        """
        self.recovery.recover(Verdict.RENEW_LOST, error, now)

    # Requests beside the connect

    def request_done(
        self,
        request: Subscription | str | None,
        result: JsonObject | Failure,
        epoch: int,
        now: float,
    ) -> Sequel:
        """Take the answer to a request beside the connect.

        :param request: the subscription it was for, the channel it unsubscribes from, or None
        :param result: the reply, or why there is none
        :param epoch: the session that it was sent in
        :param now: the time, in seconds
        :return: what follows for the request
        """
        verdict = _judge_beside(request, result)
        sequel = self._sequel(verdict, result, epoch, now)
        if isinstance(request, Subscription):
            if verdict is Verdict.PROCEED:
                self.channels.accept(request)
            elif (
                verdict is Verdict.FALL_BACK
                and isinstance(result, dict)
                and self._renewal.fall_back(request, result)
            ):
                return Sequel.AT_ONCE
            else:
                self.channels.restore(request)
        elif isinstance(request, str) and verdict is Verdict.PROCEED:
            self.channels.forget(request)
        self._renewal.drop_unwanted()
        return sequel

    def _sequel(
        self, verdict: Verdict, result: JsonObject | Failure, epoch: int, now: float
    ) -> Sequel:
        """Have the session renewed if a request has shown that it cannot be used any more."""
        is_present = epoch == self.epoch
        if isinstance(result, Failure):
            if is_present and verdict in (Verdict.LOG_IN, Verdict.RENEW_LOST):
                self.recovery.recover(verdict, result.error, now, result.retry_after)
                # Whether the server has acted on a lost request is not known: it is not repeated.
                return Sequel.RENEWED if verdict is Verdict.LOG_IN else Sequel.DONE
            return Sequel.DONE
        if ends_session(verdict):
            # A session that has been given up already tells nothing new.
            if is_present:
                self._recover(verdict, result, now)
            return Sequel.RENEWED
        if self._server_left and is_present:
            self._recover(Verdict.FAREWELL, result, now)
            return Sequel.DONE if verdict is Verdict.PROCEED else Sequel.RENEWED
        # What is refused in a session that was given up meanwhile may be refused because of that.
        return Sequel.DONE if is_present or verdict is Verdict.PROCEED else Sequel.RENEWED

    def _leave(self) -> None:
        """Give the session up: channels go back to where its requests under way started."""
        self._renewal.end()
        self.channels.rewind(self.epoch)
        self.epoch += 1


#: What a connect's reply may say in a session that the server has ended, whose last messages come in any order.
_FAREWELLS: Final = (Verdict.PROCEED, Verdict.RETRY, Verdict.RENEW, Verdict.STOP)


def _is_odd(message: JsonObject, reply: JsonObject | None) -> bool:
    return message is not reply and message.get("data") is not None


def _judge_beside(request: Subscription | str | None, result: JsonObject | Failure) -> Verdict:
    if isinstance(result, Failure):
        return judge_failure(result)
    return judge_channel(result) if isinstance(request, Subscription) else judge_request(result)
