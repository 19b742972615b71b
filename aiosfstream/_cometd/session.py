"""The Bayeux session without I/O: what is known, what an answer changes, what comes next.

It does no input or output, has no clock and starts no task: the transport asks it for the next
:class:`Step`, takes that step, and reports what came of it together with the time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, Final

from aiocometd.typing import JsonObject

from .._http.failures import Failure, Trouble
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import ReplayError, ServerError, TransportError
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
from .recovery import Recovery
from .renewal import Renewal
from .retry import RetryPolicy
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
from .states import Action, Host, Sequel, State, Step

LOGGER = logging.getLogger(__name__)

#: So often an answer that cannot be read is asked for, before what is in it is skipped.
MAX_UNREADABLE: Final = 3

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
        self._host = host
        self._poll_timeout = poll_timeout
        self.channels = Channels(limit, host.first_after_fallback)
        self.recovery = Recovery(host, report, policy, rng, self._leave)
        #: Which session answers belong to; those of an earlier one are not used.
        self.epoch = 0
        self.advice: JsonObject = {}
        #: Last reply to a connect.
        self.last_connect: JsonObject | None = None
        self._pace = Pace()
        self._renewal = Renewal()
        self._message_id = 0
        self._server_left = False
        # What the last answer that could not be read had in it, and how often that came in a row.
        self._unreadable = b""
        self._times_unreadable = 0

    # What comes next

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.recovery.state

    def next_step(self, now: float = 0.0) -> Step:
        """Give the next step, and with it the delay before, which is then used up.

        :param now: the time, in seconds
        """
        action, delay = self.recovery.next_step()
        if self.state is State.RESUBSCRIBING and self._renewal.probed is not None:
            action = Action.CONNECT
        elif self.state is State.CONNECTED and self._renewal.due(now):
            action = Action.SUBSCRIBE
        return Step(action, delay)

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

    @property
    def hold(self) -> float:
        """Seconds that the server may hold a connect, as the advice says."""
        return hold_of(self.advice) if self.advice else DEFAULT_HOLD

    # Outgoing messages

    def handshake_message(self, connection_types: list[str]) -> JsonObject:
        """Build a handshake. The advice of the session before is forgotten with it.

        Salesforce sends none in its reply; with an old ``reconnect: handshake`` still in force the
        client would handshake for ever.
        """
        self._advise({})
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
        message = self._message(
            CONNECT, clientId=self.recovery.client_id, connectionType="long-polling"
        )
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
        # Back in time for the channels that are to be tried again.
        until = self._renewal.seconds_left(now)
        wishes = [self._poll_timeout, None if until is None else min(max(until, 0.1), self.hold)]
        return min((wish for wish in wishes if wish is not None), default=None)

    def subscribe_message(self, subscription: Subscription) -> JsonObject:
        """Build a subscribe; :meth:`Channels.stamp` adds the replay id after the extensions."""
        return self._client_message(SUBSCRIBE, subscription=subscription.channel)

    def unsubscribe_message(self, channel: str) -> JsonObject:
        """Build an unsubscribe."""
        return self._client_message(UNSUBSCRIBE, subscription=channel)

    def publish_message(self, channel: str, data: JsonObject) -> JsonObject:
        """Build a publish."""
        return self._client_message(channel, data=data)

    def disconnect_message(self, client_id: str) -> JsonObject:
        """Build a disconnect."""
        return self._message(DISCONNECT, clientId=client_id)

    def _client_message(self, channel: str, **fields: Any) -> JsonObject:
        return self._message(channel, clientId=self.recovery.client_id, **fields)

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
            self.recovery.instance.answers()
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
            self._advise(advice)

    def _advise(self, advice: JsonObject) -> None:
        self.advice = advice
        self.recovery.interval = interval_of(advice) if advice else 0.0

    # What came of a step

    def handshake_done(self, result: JsonObject | Failure, now: float) -> None:
        """Take the outcome of a handshake."""
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
        one_by_one = self._times_unreadable >= MAX_UNREADABLE
        self._renewal.begin(self.channels.subscriptions.values(), one_by_one=one_by_one)
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
            delay = self._pace.next_delay(result, self.advice, events, elapsed, hold)
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
        self._times_unreadable = 0
        self.recovery.connected(now, events=events, complete=not self._renewal.deferred)

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
            same = failure.digest == self._unreadable
            self._unreadable = failure.digest
            self._times_unreadable = self._times_unreadable + 1 if same else 1
            suspect = channel or self._renewal.probed
            if suspect is not None and self._times_unreadable > MAX_UNREADABLE:
                self._skip(suspect, failure.error)
        self.recovery.failed(failure, now)

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
        self._times_unreadable = 0
        self.channels.fall_back(subscription, NEW_EVENTS)
        self.recovery.errors.append(error)
        self._report_channel(
            ConnectionEventKind.FALLBACK_USED, subscription, NEW_EVENTS, error=error
        )

    # Subscribing again

    def next_to_resubscribe(self, now: float = 0.0) -> Subscription | None:
        """Give the next channel to subscribe again, with the id to resume from, or None if all are.

        :param now: the time, in seconds
        """
        for subscription in self._renewal.due(now):
            if self.channels.subscriptions.get(subscription.channel) is subscription:
                if not subscription.fell_back:
                    subscription.aim()
                return subscription
            self._settle(subscription)
        if self.state is State.RESUBSCRIBING:
            self.recovery.enter(State.CONNECTING, "all channels subscribed")
        return None

    def _settle(self, subscription: Subscription) -> None:
        if self._renewal.settle(subscription) and self.state is State.CONNECTED:
            self.recovery.recovered()

    def resubscribe_done(
        self, subscription: Subscription, result: JsonObject | Failure, now: float
    ) -> None:
        """Take the outcome of subscribing a channel again in a new session."""
        if isinstance(result, Failure):
            self._failed(result, now, subscription)
            return
        verdict = judge_channel(result)
        if ends_session(verdict):
            self._recover(verdict, result, now)
        elif verdict is Verdict.PROCEED:
            self.recovery.storage_answered()
            self._resumed(subscription, now)
        elif self._server_left:
            # Whatever it says of the channel, it says of a session that is gone.
            pass
        elif verdict is Verdict.WAIT:
            self._defer(subscription, refusal(result), now)
        elif not (verdict is Verdict.FALL_BACK and self._fall_back(subscription, result)):
            self._lose_channel(subscription, result)
        if self._server_left:
            self._recover(Verdict.FAREWELL, result, now)

    def _resumed(self, subscription: Subscription, now: float) -> None:
        self._settle(subscription)
        lost_since = self.recovery.lost_since
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
        self._report_channel(ConnectionEventKind.CHANNEL_RESUMED, subscription, subscription.stamp)

    def _defer(self, subscription: Subscription, error: ServerError, now: float) -> None:
        """Try a channel again later, while the others go on."""
        self.recovery.note_loss(error, now)
        delay = self.recovery.delays.busy(subscription.channel)
        self._renewal.defer(subscription, now + delay)
        self.recovery.report_retry(delay, error, channel=subscription.channel)

    def _fall_back(self, subscription: Subscription, reply: JsonObject) -> bool:
        """Try another starting point, once."""
        if subscription.fell_back:
            return False
        fallback = self._host.fallback_for(subscription.channel)
        if fallback is None:
            return False
        self.channels.fall_back(subscription, fallback)
        self._report_channel(
            ConnectionEventKind.FALLBACK_USED, subscription, fallback, error=refusal(reply)
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
        self.recovery.errors.append(error)
        self._report_channel(ConnectionEventKind.CHANNEL_LOST, subscription, replay_id, error=error)

    def _report_channel(
        self,
        kind: ConnectionEventKind,
        subscription: Subscription,
        replay_id: ReplayId,
        error: ServerError | None = None,
    ) -> None:
        event = ConnectionEvent(
            kind, channel=subscription.channel, error=error, replay_id=replay_id
        )
        self.recovery.report(event)

    def storage_failed(self, error: ReplayError, now: float) -> None:
        """Take the failure of a marker storage that was read for a channel without a resume point."""
        self.recovery.storage_failed(error, now)

    def disturbed(self, error: TransportError, now: float) -> None:
        """Take a step that was ended by something else than its outcome: what came of it is lost."""
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
        """Have the session renewed if a request has shown that it is of no use."""
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
        return Sequel.DONE

    def _leave(self) -> None:
        """Give the session up: channels go back to where its requests under way started."""
        self._renewal.end()
        self.channels.rewind(self.epoch)
        self.epoch += 1


#: What a connect's reply may say in a session that the server has ended: it says goodbye in pieces.
_FAREWELLS: Final = (Verdict.PROCEED, Verdict.RETRY, Verdict.RENEW, Verdict.STOP)


def _judge_beside(request: Subscription | str | None, result: JsonObject | Failure) -> Verdict:
    if isinstance(result, Failure):
        return judge_failure(result)
    return judge_channel(result) if isinstance(request, Subscription) else judge_request(result)
