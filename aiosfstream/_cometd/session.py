"""The Bayeux session without I/O: what is known, what an answer changes, what comes next.

It does no input or output, has no clock and starts no task: the transport asks it for the next
:class:`Step`, takes that step, and reports what came of it together with the time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from copy import copy
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol

from aiocometd.typing import JsonObject

from .._http.failures import Failure, Trouble
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import AuthenticationError, ReplayError, ServerError, TransportError
from .channels import Channels, Subscription, Ticket
from .messages import (
    CONNECT,
    DEFAULT_HOLD,
    DISCONNECT,
    HANDSHAKE,
    SUBSCRIBE,
    UNSUBSCRIBE,
    find_reply,
    hold_of,
    interval_of,
    refusal,
)
from .pace import Pace
from .retry import Delays, RetryPolicy
from .salesforce import (
    NEW_EVENTS,
    ReplayId,
    Verdict,
    ends_session,
    judge_channel,
    judge_failure,
    judge_request,
    judge_session,
)

LOGGER = logging.getLogger(__name__)

#: Renewals in a row because of refused cookies.
MAX_COOKIE_RENEWALS: Final = 3
#: Attempts to read the storage during one renewal before the application hears of it.
MAX_STORAGE_ATTEMPTS: Final = 3
#: Seconds for which tokens that are refused are asked for again, if the application has set no limit.
REFUSAL_PATIENCE: Final = 60.0

_ENDED: Final = "Connection closed by the server for good; open the client again to go on"


class State(Enum):
    """Where the session stands."""

    #: There is none yet, or it was lost: a handshake comes next.
    NO_SESSION = auto()
    #: The token was refused: logging in comes next.
    NO_TOKEN = auto()
    #: The server knows this client; channels of the session before are subscribed again.
    RESUBSCRIBING = auto()
    #: The channels are subscribed; no connect has been answered since.
    CONNECTING = auto()
    #: The last connect was successful.
    CONNECTED = auto()
    #: Going on would not help; waiting until the application asks for another attempt.
    PARKED = auto()
    #: It has ended for good.
    STOPPED = auto()


class Action(Enum):
    """What the transport can do for the session."""

    AUTHENTICATE = auto()
    HANDSHAKE = auto()
    SUBSCRIBE = auto()
    CONNECT = auto()
    PARK = auto()
    STOP = auto()


_ACTIONS: Final = {
    State.NO_SESSION: Action.HANDSHAKE,
    State.NO_TOKEN: Action.AUTHENTICATE,
    State.RESUBSCRIBING: Action.SUBSCRIBE,
    State.CONNECTING: Action.CONNECT,
    State.CONNECTED: Action.CONNECT,
    State.PARKED: Action.PARK,
    State.STOPPED: Action.STOP,
}
_ESTABLISHED: Final = (State.CONNECTING, State.CONNECTED)


class Step(NamedTuple):
    """What comes next.

    :ivar action: what to do
    :ivar delay: seconds to wait before
    """

    action: Action
    delay: float = 0.0


class Sequel(Enum):
    """What follows the answer to a request beside the connect."""

    #: Nothing.
    DONE = auto()
    #: It is sent again, with the fallback.
    AT_ONCE = auto()
    #: It may be sent again once the session is renewed.
    RENEWED = auto()


class Host(Protocol):
    """Whose session it is: what the engine needs of it."""

    @property
    def connection_timeout(self) -> float | None:
        """Seconds that the connection may be lost; None or 0: for ever."""

    def fallback_for(self, channel: str) -> ReplayId:
        """Give the id to use in place of one that is refused, or None for "report it"."""

    def first_after_fallback(self, message: JsonObject) -> None:
        """Store the marker of *message* whatever is stored: that has been shown to be of no use."""

    async def log_in(self, refused: str | None) -> str:
        """Get a new token, unless another one than the header value *refused* is in use already.

        :return: the URL to go on with
        """


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
        self._host = host
        self._report = report
        self._policy = policy
        self._poll_timeout = poll_timeout
        self._delays = Delays(policy, rng)
        self._pace = Pace()
        self.channels = Channels(limit, host.first_after_fallback)
        self.state = State.NO_SESSION
        #: Whether a failure ends the attempt, since the application waits for the outcome.
        self.opening = True
        self.client_id: str | None = None
        #: Which session answers belong to; those of an earlier one are not used.
        self.epoch = 0
        self.advice: JsonObject = {}
        #: Last reply to a connect.
        self.last_connect: JsonObject | None = None
        #: Errors for the application, until the transport takes them.
        self.errors: list[Exception] = []
        #: The end of the session, once it has ended for good.
        self.stop_error: Exception | None = None
        #: When the connection was lost, by the caller's clock; None while all is well.
        self.lost_since: float | None = None
        self.last_error: Exception | None = None
        #: The ids of sessions that were given up from this side: the server still keeps them.
        self.left_behind: list[str] = []
        self.clear_cookies = False
        self._delay = 0.0
        self._message_id = 0
        self._to_resubscribe: list[Subscription] = []
        # Refused for now -> when they are tried again.
        self._deferred: dict[Subscription, float] = {}
        self._server_left = False
        self._renewed_while_opening = False
        self._connected_at: float | None = None
        self._cookie_renewals = 0
        self._storage_attempts = 0
        # How often a person was told that only they can help.
        self._refusals = 0
        self._waits_for_person = False
        # The first refusal of a token since the last connection, and when it came.
        self._first_refusal: tuple[Exception, float] | None = None
        # Whether an instance has said that the org is not there, and when it was last looked for.
        self._is_gone = False
        self._silent_since: float | None = None
        self._relocated_at: float | None = None
        self._relocations = 0

    # What comes next

    def next_step(self, now: float = 0.0) -> Step:
        """Give the next step, and with it the delay before, which is then used up.

        :param now: the time, in seconds
        """
        delay, self._delay = self._delay, 0.0
        if self.state is State.CONNECTED and any(due <= now for due in self._deferred.values()):
            return Step(Action.SUBSCRIBE, delay)
        return Step(_ACTIONS[self.state], delay)

    @property
    def deferred(self) -> list[str]:
        """The channels that are refused for now and will be tried again."""
        return [subscription.channel for subscription in self._deferred]

    @property
    def established(self) -> bool:
        """Whether requests beside the connect make sense: the server should know this client."""
        return self.state in _ESTABLISHED

    @property
    def waits_for_credentials(self) -> bool:
        """Whether the application has been told that the credentials are refused."""
        return self.state is State.PARKED or self._waits_for_person

    @property
    def hold(self) -> float:
        """Seconds that the server may hold a connect, as the advice says."""
        return hold_of(self.advice) if self.advice else DEFAULT_HOLD

    @property
    def _interval(self) -> float:
        return interval_of(self.advice) if self.advice else 0.0

    def _enter(self, state: State, reason: object) -> None:
        if state is not self.state:
            LOGGER.debug("session: %s -> %s: %s", self.state.name, state.name, reason)
            self.state = state

    # Outgoing messages

    def handshake_message(self, connection_types: list[str]) -> JsonObject:
        """Build a handshake. The advice of the session before is forgotten with it.

        Salesforce sends none in its reply; with an old ``reconnect: handshake`` still in force the
        client would handshake for ever.
        """
        self.advice = {}
        return self._message(
            HANDSHAKE,
            version="1.0",
            minimumVersion="1.0",
            supportedConnectionTypes=connection_types,
        )

    def connect_message(self, now: float = 0.0) -> JsonObject:
        """Build a connect; the first of a session asks for an answer at once.

        :param now: the time, in seconds
        """
        message = self._message(CONNECT, clientId=self.client_id, connectionType="long-polling")
        hold = self._hold_asked_for(now)
        if hold is not None:
            message["advice"] = {"timeout": round(hold * 1000)}
        return message

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
        wishes = [] if self._poll_timeout is None else [self._poll_timeout]
        if self._deferred:
            # Back in time for the channels that are to be tried again.
            wishes.append(min(max(min(self._deferred.values()) - now, 0.1), self.hold))
        return min(wishes, default=None)

    def subscribe_message(self, subscription: Subscription) -> JsonObject:
        """Build a subscribe; :meth:`Channels.stamp` adds the replay id after the extensions."""
        return self._message(SUBSCRIBE, clientId=self.client_id, subscription=subscription.channel)

    def unsubscribe_message(self, channel: str) -> JsonObject:
        """Build an unsubscribe."""
        return self._message(UNSUBSCRIBE, clientId=self.client_id, subscription=channel)

    def publish_message(self, channel: str, data: JsonObject) -> JsonObject:
        """Build a publish."""
        return self._message(channel, clientId=self.client_id, data=data)

    def disconnect_message(self, client_id: str) -> JsonObject:
        """Build a disconnect."""
        return self._message(DISCONNECT, clientId=client_id)

    def _message(self, channel: str, **fields: Any) -> JsonObject:
        # Never reset: an answer of an earlier session must not fit a request of this one.
        self._message_id += 1
        return {"channel": channel, "id": str(self._message_id), **fields}

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
        self, messages: list[JsonObject], ticket: Ticket
    ) -> tuple[list[JsonObject], list[JsonObject]]:
        """Take the events out of the messages of an answer.

        Events may come in any answer. Those of a session that was given up are dropped: they
        come again from the resume points, and would otherwise move these past what was lost.

        :return: the events to deliver, and the other messages, for :meth:`take_reply`
        """
        # A new session has no channels, so what comes with it comes again.
        if ticket.epoch != self.epoch or ticket.request["channel"] == HANDSHAKE:
            return [], self.channels.drop(messages, ticket)
        return self.channels.receive(messages, ticket)

    def take_reply(self, others: list[JsonObject], ticket: Ticket) -> JsonObject | None:
        """Take the other messages of an answer.

        Apart from :meth:`receive`, so that events need not wait for it.

        :param others: the messages that are no events
        :param ticket: the request that they answer
        :return: the reply to the request, completed, or None
        """
        reply = find_reply(others, ticket.request)
        if ticket.epoch == self.epoch:
            self._silent_since = None
            for message in others:
                self._take_meta(message, reply)
        return reply

    def _take_meta(self, message: JsonObject, reply: JsonObject | None) -> None:
        channel = message.get("channel")
        if channel == DISCONNECT and message is not reply:
            LOGGER.info("The server ended the session; a new one follows")
            self._server_left = True
        elif message is not reply and message.get("data") is not None:
            LOGGER.warning(
                "Ignored a message on channel %.100r with data that is no event; look at what is published there",
                channel,
            )
        advice = message.get("advice")
        if isinstance(advice, dict) and (message is reply or channel == CONNECT):
            self.advice = advice

    # What came of a step

    def handshake_done(self, result: JsonObject | Failure, now: float) -> None:
        """Take the outcome of a handshake."""
        self._server_left = False
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        verdict = judge_session(result)
        client_id = result.get("clientId")
        if not result["successful"]:
            self._recover(verdict, refusal(result), now)
        elif verdict is Verdict.FAREWELL:
            self._stop(ServerError(_ENDED, result))
        elif not isinstance(client_id, str) or not client_id:
            error = TransportError(
                "The reply to /meta/handshake holds no clientId; check that the URL is that of a CometD server"
            )
            self._recover(Verdict.RENEW_LOST, error, now)
        else:
            self._begin(client_id)

    def _begin(self, client_id: str) -> None:
        self.epoch += 1
        self.client_id = client_id
        self.clear_cookies = False
        self._deferred.clear()
        self._to_resubscribe = list(self.channels.subscriptions.values())
        for subscription in self._to_resubscribe:
            subscription.fell_back = False
        self._enter(
            State.RESUBSCRIBING if self._to_resubscribe else State.CONNECTING, "handshake done"
        )
        if not self.opening:
            self._report(ConnectionEvent(ConnectionEventKind.SESSION_RENEWED))

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
        if self._server_left and verdict in (
            Verdict.PROCEED,
            Verdict.RETRY,
            Verdict.RENEW,
            Verdict.STOP,
        ):
            verdict = Verdict.FAREWELL
        if verdict is Verdict.PROCEED:
            self._connected(now, events)
            self._delay = self._pace.next_delay(result, self.advice, events, elapsed, hold)
        elif verdict is Verdict.STOP:
            self._stop(ServerError(_ENDED, result))
        else:
            self._recover(verdict, _connect_error(verdict, result), now)

    def _connected(self, now: float, events: int) -> None:
        if self._connected_at is None:
            self._connected_at = now
        if events or now - self._connected_at >= self._policy.settled:
            self._delays.reset()
        self._refusals = 0
        self._waits_for_person = False
        self._first_refusal = None
        self._cookie_renewals = 0
        self._is_gone = False
        self._relocated_at = None
        self._relocations = 0
        was_connected = self.state is State.CONNECTED
        self._enter(State.CONNECTED, "connect answered")
        if not self._deferred:
            self._note_recovery(report=not was_connected or self.lost_since is not None)

    def _note_recovery(self, *, report: bool) -> None:
        self.last_error = None
        self.lost_since = None
        if report:
            self._report(ConnectionEvent(ConnectionEventKind.CONNECTED))

    # Subscribing again

    def next_to_resubscribe(self, now: float = 0.0) -> Subscription | None:
        """Give the next channel to subscribe again, with the id to resume from, or None if all are.

        :param now: the time, in seconds
        """
        wanted = self.channels.subscriptions
        due = [one for one, time in self._deferred.items() if time <= now]
        for subscription in [*self._to_resubscribe, *due]:
            if wanted.get(subscription.channel) is subscription:
                if not subscription.fell_back:
                    subscription.aim()
                return subscription
            self._settle(subscription)
        if self.state is State.RESUBSCRIBING:
            self._enter(State.CONNECTING, "all channels subscribed")
        return None

    def _settle(self, subscription: Subscription) -> None:
        """Note that nothing more is to be done about subscribing a channel again."""
        if subscription in self._to_resubscribe:
            self._to_resubscribe.remove(subscription)
        if self._deferred.pop(subscription, None) is not None and not self._deferred:
            self._note_recovery(report=self.state is State.CONNECTED)

    def resubscribe_done(
        self, subscription: Subscription, result: JsonObject | Failure, now: float
    ) -> None:
        """Take the outcome of subscribing a channel again in a new session."""
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        verdict = judge_channel(result)
        if ends_session(verdict):
            self._recover(verdict, refusal(result), now)
        elif verdict is Verdict.PROCEED:
            self._storage_attempts = 0
            self._resumed(subscription, now)
        elif self._server_left:
            # Whatever it says of the channel, it says of a session that is gone.
            pass
        elif verdict is Verdict.WAIT:
            self._defer(subscription, refusal(result), now)
        elif not (verdict is Verdict.FALL_BACK and self._fall_back(subscription, result)):
            self._lose_channel(subscription, result)
        if self._server_left:
            self._recover(Verdict.FAREWELL, _connect_error(Verdict.FAREWELL, result), now)

    def _resumed(self, subscription: Subscription, now: float) -> None:
        self._settle(subscription)
        # Only now is it known what the storage had. A fallback has been reported already.
        from_now_on = subscription.sent_start in (None, NEW_EVENTS) and not subscription.fell_back
        if from_now_on and self.lost_since is not None:
            LOGGER.warning(
                "%s is subscribed again for new events only, since none was received before: what was"
                " published in the last %.1f seconds is not delivered; subscribe with a replay id or"
                " keep markers to have it",
                subscription.channel,
                now - self.lost_since,
            )
        self._report(
            ConnectionEvent(
                ConnectionEventKind.CHANNEL_RESUMED,
                channel=subscription.channel,
                replay_id=subscription.stamp,
            )
        )

    def _defer(self, subscription: Subscription, error: ServerError, now: float) -> None:
        """Try a channel again later, while the others go on."""
        if subscription in self._to_resubscribe:
            self._to_resubscribe.remove(subscription)
        self._note_loss(error, now)
        delay = self._delays.busy(subscription.channel)
        self._deferred[subscription] = now + delay
        self._report_retry(delay, error, channel=subscription.channel)

    def _fall_back(self, subscription: Subscription, reply: JsonObject) -> bool:
        """Try another starting point, once."""
        if subscription.fell_back:
            return False
        fallback = self._host.fallback_for(subscription.channel)
        if fallback is None:
            return False
        self.channels.fall_back(subscription, fallback)
        self._report(
            ConnectionEvent(
                ConnectionEventKind.FALLBACK_USED,
                channel=subscription.channel,
                error=refusal(reply),
                replay_id=fallback,
            )
        )
        return True

    def _lose_channel(self, subscription: Subscription, reply: JsonObject) -> None:
        self._settle(subscription)
        self.channels.give_up(subscription)
        replay_id = subscription.resume
        where = "" if replay_id is None else f", which resumes after replay id {replay_id!r:.200}"
        error = ServerError(
            f"Channel {subscription.channel} cannot be resumed and is not subscribed any more;"
            f" subscribe to it again{where}, or with another replay option",
            reply,
        )
        error.replay_id = replay_id
        self.errors.append(error)
        self._report(
            ConnectionEvent(
                ConnectionEventKind.CHANNEL_LOST,
                channel=subscription.channel,
                error=error,
                replay_id=replay_id,
            )
        )

    def storage_failed(self, error: ReplayError, now: float) -> None:
        """Take the failure of a marker storage that was read for a channel without a resume point."""
        self._note_loss(error, now)
        self._storage_attempts += 1
        if self._storage_attempts % MAX_STORAGE_ATTEMPTS == 0:
            self._park(error)
        else:
            self._retry_after(self._delays.network("storage"), error)

    # Logging in

    def authenticated(self, now: float) -> None:
        """Note that there is a new token."""
        if self._waits_for_person:
            # The application knows why it took so long.
            self.lost_since = now
        self._waits_for_person = False
        self._enter(State.NO_SESSION, "logged in")
        self._report(ConnectionEvent(ConnectionEventKind.REAUTHENTICATED))

    def authentication_failed(self, error: AuthenticationError, now: float) -> None:
        """Take the failure of a new log-in."""
        looks_for_instance = error.retryable and self._first_refusal is None
        # Why the instance does not answer says more than that the login host does not either.
        known = self.last_error if looks_for_instance else None
        self._note_loss(known or error, now)
        if self.opening:
            self._stop(error)
        elif not error.retryable:
            self._park(self._with_first_reason(error))
        else:
            self._waits_for_person = False
            if looks_for_instance:
                # The token may still be good: the instance is asked again as well.
                self._enter(State.NO_SESSION, error)
            limited = _wait_asked_for(error) is not None or _is_rate_limit(error)
            delay = self._delays.busy("login") if limited else self._delays.network("login")
            self._retry_after(max(delay, _wait_asked_for(error) or 0.0), error)

    def unpark(self, now: float = 0.0) -> None:
        """Try again, since the application asks for it."""
        if self.state is not State.PARKED:
            return
        needs_token = isinstance(self.last_error, AuthenticationError)
        needs_person = needs_token or isinstance(self.last_error, ReplayError)
        self._delay = self._delays.refused(self._refusals) if needs_person else 0.0
        self._waits_for_person = needs_person
        if needs_token:
            # What follows is one log-in; another refusal is told at once.
            error = self.last_error
            self._first_refusal = (error, float("-inf")) if error is not None else None
        self._enter(
            State.NO_TOKEN if needs_token else State.NO_SESSION, "the application asks again"
        )

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
        """
        verdict = _judge_beside(request, result)
        sequel = self._sequel(verdict, result, epoch, now)
        if isinstance(request, Subscription):
            if verdict is Verdict.PROCEED:
                self.channels.accept(request)
            elif (
                verdict is Verdict.FALL_BACK
                and isinstance(result, dict)
                and self._fall_back(request, result)
            ):
                return Sequel.AT_ONCE
            else:
                self.channels.restore(request)
        elif isinstance(request, str) and verdict is Verdict.PROCEED:
            self.channels.forget(request)
        return sequel

    def _sequel(
        self, verdict: Verdict, result: JsonObject | Failure, epoch: int, now: float
    ) -> Sequel:
        """Have the session renewed if a request has shown that it has to be."""
        is_present = epoch == self.epoch
        if isinstance(result, Failure):
            if is_present and verdict in (Verdict.LOG_IN, Verdict.RENEW_LOST):
                self._recover(verdict, result.error, now, result.retry_after)
                # Whether the server has acted on a lost request is not known: it is not repeated.
                return Sequel.RENEWED if verdict is Verdict.LOG_IN else Sequel.DONE
            return Sequel.DONE
        if ends_session(verdict):
            # A session that has been given up already tells nothing new.
            if is_present:
                self._recover(verdict, refusal(result), now)
            return Sequel.RENEWED
        if self._server_left and is_present:
            self._recover(Verdict.FAREWELL, _connect_error(Verdict.FAREWELL, result), now)
            return Sequel.DONE if verdict is Verdict.PROCEED else Sequel.RENEWED
        return Sequel.DONE

    # Recovery

    def _failed(self, failure: Failure, now: float) -> None:
        verdict = judge_failure(failure)
        if not self.opening and self._is_silent_too_long(failure, now):
            self._note_loss(failure.error, now)
            self._relocate(failure.error, now)
        else:
            self._recover(verdict, failure.error, now, failure.retry_after)

    def _note_loss(self, error: Exception, now: float) -> None:
        self.last_error = error
        self._connected_at = None
        if self.lost_since is None:
            self.lost_since = now
            if not self.opening:
                self._report(ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=error))

    def _recover(
        self, verdict: Verdict, error: Exception, now: float, retry_after: float | None = None
    ) -> None:
        """Decide what a failure leads to: the one place where that is done."""
        kind = (self.state, verdict)
        self._note_loss(error, now)
        self._server_left = False
        if self.opening and not self._worth_another_try(verdict):
            self._stop(self._with_first_reason(error) if verdict is Verdict.LOG_IN else error)
        elif verdict is Verdict.STOP:
            self._stop(error)
        elif verdict is Verdict.LOG_IN:
            self._log_in_again(error, now, kind)
        elif verdict is Verdict.RELOCATE:
            if self._is_gone:
                # The new answer says the same.
                self._stop(error)
            else:
                self._is_gone = True
                self._relocate(error, now)
        elif verdict in (Verdict.RETRY, Verdict.WAIT):
            self._try_again(verdict, error, kind, retry_after)
        else:
            self._renew(verdict, error, kind, retry_after)

    def _worth_another_try(self, verdict: Verdict) -> bool:
        """While it opens, a client makes up for one refused token and for one lost session only."""
        if verdict is Verdict.LOG_IN:
            return self._first_refusal is None
        renews = verdict in (Verdict.RENEW, Verdict.RENEW_COOKIES, Verdict.FAREWELL)
        if renews and not self._renewed_while_opening:
            self._renewed_while_opening = True
            return True
        return False

    def _try_again(
        self, verdict: Verdict, error: Exception, kind: object, retry_after: float | None
    ) -> None:
        if self.state is State.CONNECTED:
            self._enter(State.CONNECTING, error)
        delay = self._delays.busy(kind) if verdict is Verdict.WAIT else self._delays.network(kind)
        self._retry_after(max(delay, self._interval, retry_after or 0.0), error)

    def _log_in_again(self, error: Exception, now: float, kind: object) -> None:
        first, since = self._first_refusal or (error, now)
        self._first_refusal = first, since
        self._leave(notify=True)
        delay = self._delays.first_at_once(kind)
        if first is not error and now + delay - since >= self._patience:
            self._park(self._with_first_reason(error))
        else:
            self._enter(State.NO_TOKEN, error)
            self._retry_after(delay, error)

    @property
    def _patience(self) -> float:
        return self._host.connection_timeout or REFUSAL_PATIENCE

    def _with_first_reason(self, error: Exception) -> Exception:
        """Make the error that tells a person why the token was refused in the first place."""
        if self._first_refusal is None:
            return error
        first, _ = self._first_refusal
        if isinstance(error, AuthenticationError):
            return error if first is error else _told(error, first)
        refused = isinstance(error, ServerError) or getattr(error, "status", None) in (401, 403)
        return token_refused(error, first) if refused else error

    def _is_silent_too_long(self, failure: Failure, now: float) -> bool:
        """Say whether the instance has been out of reach for so long that the org may have moved."""
        if failure.trouble not in (Trouble.NOT_SENT, Trouble.LOST) or failure.status is not None:
            return False
        if self._silent_since is None:
            self._silent_since = now
        since = max(self._silent_since, self._relocated_at or self._silent_since)
        patience = self._host.connection_timeout or self._policy.relocation
        return now - since >= min(patience * 2.0**self._relocations, self._policy.refused_cap)

    def _relocate(self, error: Exception, now: float) -> None:
        """Log in again to learn where the org is now."""
        self._relocated_at = now
        self._relocations += 1
        self._leave(notify=False)
        self._enter(State.NO_TOKEN, error)
        self._retry_after(self._delays.first_at_once("relocation"), error)

    def _renew(
        self, verdict: Verdict, error: Exception, kind: object, retry_after: float | None
    ) -> None:
        # Whoever does not know the session, or has ended it, need not be told that it is left.
        self._leave(notify=verdict in (Verdict.RENEW_LOST, Verdict.RENEW_LATER))
        if verdict is Verdict.RENEW_COOKIES:
            self._cookie_renewals += 1
            if self._cookie_renewals > MAX_COOKIE_RENEWALS:
                self._stop(error)
                return
            self.clear_cookies = True
        self._enter(State.NO_SESSION, error)
        self._retry_after(max(self._delay_of_renewal(verdict, kind), retry_after or 0.0), error)

    def _delay_of_renewal(self, verdict: Verdict, kind: object) -> float:
        if verdict is Verdict.RENEW_LATER:
            return self._delays.busy(kind)
        if verdict is Verdict.RENEW_LOST:
            return self._delays.network(kind)
        first = self._delays.attempts == 0
        if verdict is Verdict.FAREWELL:
            # Perhaps the server ends many sessions at once, whose clients should not all be back at once.
            delay = self._delays.network(kind)
            return min(delay, self._policy.farewell) if first else delay
        return self._delays.first_at_once(kind)

    def _retry_after(self, delay: float, error: Exception) -> None:
        self._delay = delay
        self._report_retry(delay, error)

    def _report_retry(self, delay: float, error: Exception, channel: str | None = None) -> None:
        if not self.opening:
            self._report(
                ConnectionEvent(
                    ConnectionEventKind.RETRYING,
                    channel=channel,
                    error=error,
                    attempt=self._delays.attempts,
                    delay=delay,
                )
            )

    def _leave(self, *, notify: bool) -> None:
        """Give the session up; what its requests under way will bring is not used.

        :param notify: whether the server may still keep the session, which takes one of the org's
            client slots
        """
        if notify and self.client_id is not None:
            self.left_behind.append(self.client_id)
        self.client_id = None
        self._deferred.clear()
        self.channels.rewind(self.epoch)
        self.epoch += 1

    def _park(self, error: Exception) -> None:
        self.last_error = error
        self._refusals += 1
        self._leave(notify=True)
        self._enter(State.PARKED, error)
        self.errors.append(error)
        self._report(ConnectionEvent(_kind_of(error), error=error))

    def _stop(self, error: Exception) -> None:
        # What requests under way bring must not set the session going again.
        self._leave(notify=False)
        self.last_error = self.stop_error = error
        self._enter(State.STOPPED, error)

    def disturbed(self, error: TransportError, now: float) -> None:
        """Take a step that was ended by something else than its outcome: what came of it is lost."""
        self._recover(Verdict.RENEW_LOST, error, now)

    def suspended(self, error: TransportError) -> None:
        """Take the end of the background task by somebody else: the application can start it again."""
        self._park(error)

    def crashed(self, error: TransportError) -> None:
        """Take the end of the background task through a mistake in the program."""
        self._stop(error)


def _judge_beside(request: Subscription | str | None, result: JsonObject | Failure) -> Verdict:
    if isinstance(result, Failure):
        return judge_failure(result)
    return judge_channel(result) if isinstance(request, Subscription) else judge_request(result)


def _connect_error(verdict: Verdict, reply: JsonObject) -> ServerError:
    if verdict is Verdict.FAREWELL:
        return ServerError("The server ended the session; the client renews it", reply)
    return refusal(reply)


def token_refused(error: Exception, first: Exception) -> AuthenticationError:
    """Make the error that tells that a token is refused although a new one was asked for.

    :param error: the last refusal
    :param first: the first one
    """
    refused = AuthenticationError(
        "Authentication failed: the server refuses the token, also after logging in again; check that the"
        f" user may use the API and the Streaming API, and the session settings. {first}"
    )
    refused.__cause__ = first
    refused.status = getattr(error, "status", None)
    return refused


def _told(error: AuthenticationError, first: Exception) -> AuthenticationError:
    """Tell with a refused log-in why there was one."""
    told = copy(error)
    text, *rest = error.args
    told.args = (f"{text} A new log-in was needed because of: {first}", *rest)
    told.__cause__ = error.__cause__ or first
    return told


def _kind_of(error: Exception) -> ConnectionEventKind:
    if isinstance(error, ReplayError):
        return ConnectionEventKind.STORAGE_FAILED
    if isinstance(error, AuthenticationError):
        return ConnectionEventKind.AUTHENTICATION_FAILED
    return ConnectionEventKind.CONNECTION_LOST


def _wait_asked_for(error: AuthenticationError) -> float | None:
    return getattr(error, "retry_after", None)


def _is_rate_limit(error: AuthenticationError) -> bool:
    return "rate" in f"{error.error} {error.error_description}".lower()
