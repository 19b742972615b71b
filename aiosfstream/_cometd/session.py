"""The Bayeux session without I/O: what is known, what an answer changes, what comes next.

It does no input or output, has no clock and starts no task: the transport asks it for the next
:class:`Step`, takes that step, and reports what came of it together with the time. Facts about the
protocol come from the Bayeux specification 1.0 and from Salesforce's Streaming API Developer Guide.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from sys import intern
from typing import Any, Final, NamedTuple, Protocol

from aiocometd.constants import MetaChannel
from aiocometd.typing import JsonObject

from .._http.post import Failure, Trouble
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import AuthenticationError, ReplayError, ServerError, TransportError
from .retry import (
    DEFAULT_HOLD,
    Backoff,
    RetryPolicy,
    Verdict,
    hold_of,
    interval_of,
    is_replay_error,
    judge_reply,
    judge_request,
    judge_trouble,
    reconnect_advice,
)

LOGGER = logging.getLogger(__name__)

#: A replay id as JSON has it: opaque, usually an int, kept with its type. None: no id.
ReplayId = Any

NEW_EVENTS: Final = -1
#: How many replay ids of a channel are remembered at the least, to recognise duplicates.
MIN_MEMORY: Final = 1000
MAX_NAMES: Final = 1000
#: Renewals in a row because of refused cookies.
MAX_COOKIE_RENEWALS: Final = 3
#: Log-ins without a successful connect, where handshakes accept the token and connects refuse it. A
#: token that even the handshake refuses is not asked for again.
MAX_RELOGINS: Final = 3
#: Attempts to read the storage during one renewal before the application hears of it.
MAX_STORAGE_ATTEMPTS: Final = 3
#: An answer in less than this many seconds, without an event, is no long poll.
HASTY: Final = 0.05


#: ``ddd:args:message``, as the Bayeux specification writes errors.
_ERROR_FORM: Final = re.compile(r"\d{3}:")


class _Name(Enum):
    """What is looked at all the time: an enum's own hash and text are functions in Python."""

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.name


class State(_Name):
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


class Action(_Name):
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

# What the hot path looks at: before Python 3.12 a member of an enum is found by a function in Python.
_CONNECTED: Final = State.CONNECTED
_ESTABLISHED: Final = (State.CONNECTING, State.CONNECTED)
_PROCEED: Final = Verdict.PROCEED
_CONNECT: Final[str] = MetaChannel.CONNECT.value
_DISCONNECT: Final[str] = MetaChannel.DISCONNECT.value
_HANDSHAKE: Final[str] = MetaChannel.HANDSHAKE.value
_SUBSCRIBE: Final[str] = MetaChannel.SUBSCRIBE.value
_UNSUBSCRIBE: Final[str] = MetaChannel.UNSUBSCRIBE.value

_REFUSALS: Final = {
    _HANDSHAKE: "Handshake request failed.",
    _CONNECT: "Connect request failed.",
    _SUBSCRIBE: "Subscribe request failed.",
    _UNSUBSCRIBE: "Unsubscribe request failed.",
}


_ENDED: Final = "Connection closed by the server for good; open the client again to go on"


class Step(NamedTuple):
    """What comes next.

    :ivar action: what to do
    :ivar delay: seconds to wait before
    """

    action: Action
    delay: float = 0.0


@dataclass(eq=False, slots=True)
class Position:
    """How far the events of a channel have been received.

    :ivar resume: the last replay id in order of arrival, or the id that the subscription started
        from; None: no id is known yet
    :ivar seen: the last ids received. None is always among them, so that an event without an id
        takes the slow path
    :ivar overwrite: whether the next event replaces the stored marker whatever that says, because
        a fallback has shown it to be of no use
    """

    resume: ReplayId = None
    seen: dict[Hashable, None] = field(default_factory=lambda: {None: None})
    overwrite: bool = False


@dataclass(eq=False, slots=True)
class Subscription:
    """A channel that the application wants.

    :ivar channel: as subscribed, a PushTopic filter's query included
    :ivar key: its name in replay maps and in events: without the query
    :ivar start: where the first subscription started, as it was sent; None: the server's choice
    :ivar stamp: the replay id to send in place of what the extensions say; None: theirs stands
    :ivar fell_back: whether the present attempt uses the fallback already
    :ivar previous: the position that an explicit subscription of the same channel replaces
    """

    channel: str
    key: str
    start: ReplayId = None
    stamp: ReplayId = None
    fell_back: bool = False
    previous: Position | None = None

    @property
    def sent_start(self) -> ReplayId:
        """The replay id in the last message, or None."""
        return self.start if self.stamp is None else self.stamp


@dataclass(eq=False, slots=True)
class Ticket:
    """A request under way.

    :ivar request: the message sent
    :ivar epoch: the session it belongs to
    :ivar points: the resume points when it was sent. If its answer is lost, events in it may be older
        than what other answers brought meanwhile, so these are what must be resumed from
    """

    request: JsonObject
    epoch: int
    points: dict[Position, ReplayId]


class Owner(Protocol):
    """Whose session it is. Not functions, which would be objects of their own in each of thousands."""

    def _choose_fallback(self, channel: str, reply: JsonObject) -> ReplayId:
        """Give the id to use in place of one that *reply* refuses, or None for "report it"."""

    def _overwrite_with(self, message: JsonObject) -> None:
        """Store the marker of *message*, the first of its channel behind a fallback, in any case."""


class Session:
    """The state of one client's session with the server, across renewals.

    :param owner: is asked what a session cannot decide
    :param report: called with every change that an observer should know of
    :param policy: delays
    :param rng: where the jitter comes from
    :param limit: the mailbox's limit; the memory for duplicates is sized by it
    :param poll_timeout: seconds that the server is asked to hold a connect; None: its own choice
    """

    #: A dictionary of so many attributes would have 1.5 KiB in each of thousands of clients.
    __slots__ = (
        "_busy_backoff",
        "_client",
        "_connected_at",
        "_cookie_renewals",
        "_delay",
        "_hasty_answers",
        "_interval",
        "_largest_response",
        "_limit",
        "_message_id",
        "_network_backoff",
        "_owners",
        "_plain",
        "_policy",
        "_poll_timeout",
        "_positions",
        "_refusals",
        "_refused_wait",
        "_relogins",
        "_renewed_while_opening",
        "_report",
        "_rng",
        "_server_left",
        "_storage_attempts",
        "_strangers",
        "_tickets",
        "_to_resubscribe",
        "_token_accepted",
        "advice",
        "aliases",
        "clear_cookies",
        "client_id",
        "epoch",
        "errors",
        "established",
        "farewell_id",
        "hold",
        "last_connect",
        "last_error",
        "lost_since",
        "opening",
        "state",
        "stop_error",
        "subscriptions",
    )

    def __init__(
        self,
        *,
        owner: Owner,
        report: Callable[[ConnectionEvent], None],
        policy: RetryPolicy,
        rng: random.Random,
        limit: int = 0,
        poll_timeout: float | None = None,
    ) -> None:
        self._client = owner
        self._report = report
        self._policy = policy
        self._limit = limit
        self._poll_timeout = poll_timeout

        # This is all of the mutable state.
        self.state = State.NO_SESSION
        #: Whether requests beside the connect make sense: the server should know this client.
        self.established = False
        self.client_id: str | None = None
        #: Which session answers belong to; those of an earlier one are not used.
        self.epoch = 0
        self.advice: JsonObject = {}
        #: Seconds that the server may hold a connect, as the advice says.
        self.hold = DEFAULT_HOLD
        self._interval = 0.0
        self.subscriptions: dict[str, Subscription] = {}
        #: Delivered channel -> subscribed channel, where they differ.
        self.aliases: dict[str, str] = {}
        #: Errors for the application, until the transport takes them.
        self.errors: tuple[Exception, ...] = ()
        #: The end of the session, once it has ended for good.
        self.stop_error: Exception | None = None
        #: Last reply to a connect.
        self.last_connect: JsonObject | None = None
        #: When the connection was lost, by the caller's clock; None while it stands.
        self.lost_since: float | None = None
        self.last_error: Exception | None = None
        #: The client id to say goodbye to, if the session was given up from this side.
        self.farewell_id: str | None = None
        self.clear_cookies = False
        #: Whether a failure ends the attempt, since the application waits for the outcome.
        self.opening = True
        self._delay = 0.0
        self._message_id = 0
        self._to_resubscribe: tuple[Subscription, ...] = ()
        self._positions: dict[str, Position] = {}
        self._plain = self._positions
        self._owners: dict[str, Position | None] = {}
        self._strangers: dict[str, None] = {}
        self._tickets: list[Ticket] = []
        self._largest_response = 0
        self._server_left = False
        self._renewed_while_opening = False
        self._relogins = 0
        self._token_accepted = False
        self._cookie_renewals = 0
        self._storage_attempts = 0
        self._hasty_answers = 0
        self._connected_at: float | None = None
        self._refused_wait = False
        self._rng = rng
        self._network_backoff: Backoff | None = None
        self._busy_backoff: Backoff | None = None
        self._refusals = 0

    # Thousands of clients may go for months without a failure, so these are made for the first.

    @property
    def _network(self) -> Backoff:
        """The delays after trouble on the network."""
        if self._network_backoff is None:
            policy = self._policy
            self._network_backoff = Backoff(policy.initial, policy.cap, self._rng)
        return self._network_backoff

    @property
    def _busy(self) -> Backoff:
        """The delays for a server that is busy."""
        if self._busy_backoff is None:
            policy = self._policy
            self._busy_backoff = Backoff(policy.busy_initial, policy.busy_cap, self._rng)
        return self._busy_backoff

    def _forget_failures(self) -> None:
        self._network_backoff = self._busy_backoff = None

    # What comes next

    def next_step(self) -> Step:
        """Give the next step, and with it the delay before, which is then used up."""
        delay, self._delay = self._delay, 0.0
        return Step(_ACTIONS[self.state], delay)

    @property
    def waits_for_credentials(self) -> bool:
        """Whether the application has been told that the credentials are refused."""
        return self.state is State.PARKED or self._refused_wait

    def _enter(self, state: State, reason: object) -> None:
        if state is not self.state:
            LOGGER.debug("session: %s -> %s: %s", self.state, state, reason)
            self.state = state
            self.established = state in _ESTABLISHED

    def _advise(self, advice: JsonObject) -> None:
        self.advice = advice
        self.hold, self._interval = hold_of(advice), interval_of(advice)

    # Outgoing messages

    def handshake_message(self, connection_types: list[str]) -> JsonObject:
        """Build a handshake. The advice of the session before is forgotten with it.

        Salesforce sends none in its reply; with an old ``reconnect: handshake`` still in force the
        client would handshake for ever.
        """
        if self.advice:
            self._advise({})
        return self._message(
            _HANDSHAKE,
            version="1.0",
            minimumVersion="1.0",
            supportedConnectionTypes=connection_types,
        )

    def connect_message(self) -> JsonObject:
        """Build a connect; the first of a session asks for an answer at once."""
        message = self._message(_CONNECT, clientId=self.client_id, connectionType="long-polling")
        if self.state is not _CONNECTED:
            message["advice"] = {"timeout": 0}
        elif self._poll_timeout is not None:
            message["advice"] = {"timeout": round(self._poll_timeout * 1000)}
        return message

    def subscribe_message(self, subscription: Subscription) -> JsonObject:
        """Build a subscribe; :meth:`stamp` adds the replay id after the extensions."""
        return self._message(_SUBSCRIBE, clientId=self.client_id, subscription=subscription.channel)

    def unsubscribe_message(self, channel: str) -> JsonObject:
        """Build an unsubscribe."""
        return self._message(_UNSUBSCRIBE, clientId=self.client_id, subscription=channel)

    def publish_message(self, channel: str, data: JsonObject) -> JsonObject:
        """Build a publish."""
        return self._message(channel, clientId=self.client_id, data=data)

    def disconnect_message(self, client_id: str) -> JsonObject:
        """Build a disconnect."""
        return self._message(_DISCONNECT, clientId=client_id)

    def _message(self, channel: str, **fields: Any) -> JsonObject:
        # Never reset: an answer of an earlier session must not fit a request of this one.
        self._message_id += 1
        return {"channel": channel, "id": str(self._message_id), **fields}

    def stamp(self, message: JsonObject, subscription: Subscription) -> None:
        """Put the replay id of *subscription* into *message*, or note the one that is there."""
        ext = message.get("ext")
        replay = ext.get("replay") if isinstance(ext, dict) else None
        known = replay if isinstance(replay, dict) else {}
        if subscription.stamp is None:
            subscription.start = known.get(subscription.key)
        else:
            if not isinstance(ext, dict):
                ext = message["ext"] = {}
            ext["replay"] = {**known, subscription.key: subscription.stamp}
        self._note_start(subscription)

    def _note_start(self, subscription: Subscription) -> None:
        """What a subscription starts from is its resume point, until an event brings a later one.

        "New events" is none: starting from there again would not bring what was missed.
        """
        position, start = self._positions.get(subscription.key), subscription.sent_start
        if position is None or start in (None, NEW_EVENTS):
            return
        if position.resume is None:
            position.resume = start
        # The first events may come in the answer to a request that is under way already.
        for ticket in self._tickets:
            ticket.points.setdefault(position, start)

    # Requests under way

    def send(self, request: JsonObject, *, stale: bool = False) -> Ticket:
        """Note that *request* is about to be sent.

        :param request: the message
        :param stale: whether it is about a session that was given up
        """
        points = {
            position: position.resume
            for position in self._positions.values()
            if position.resume is not None
        }
        ticket = Ticket(request, -1 if stale else self.epoch, points)
        self._tickets.append(ticket)
        return ticket

    def abandon(self, ticket: Ticket, *, lost: bool) -> None:
        """Note that a request brought no answer.

        :param ticket: the request
        :param lost: whether the server may have put events into an answer that is gone
        """
        sent_later = self._tickets[self._tickets.index(ticket) + 1 :]
        self._tickets.remove(ticket)
        if lost and ticket.epoch == self.epoch:
            self._rewind(ticket)
            # Their points may lie behind what was lost, and may be gone back to next.
            for other in sent_later:
                other.points.update(ticket.points)

    @staticmethod
    def _rewind(ticket: Ticket) -> None:
        for position, resume in ticket.points.items():
            position.resume = resume

    # Incoming messages

    def receive(
        self, messages: list[JsonObject], ticket: Ticket
    ) -> tuple[list[JsonObject], list[JsonObject]]:
        """Take the events out of the messages of a response.

        Events may come in any response. Those of a session that was given up are dropped: they
        come again from the resume points, and would otherwise move these past what was lost.

        :return: the events to deliver, and the other messages, for :meth:`take_reply`
        """
        self._tickets.remove(ticket)
        if ticket.epoch != self.epoch:
            return [], messages
        publishing = "data" in ticket.request
        # A reply to a publish may look like an event.
        plain = {} if publishing else self._plain
        events: list[JsonObject] = []
        others: list[JsonObject] = []
        for message in messages:
            # The common case in as few operations as can be: this loop is the hot path.
            try:
                replay_id = message["data"]["event"]["replayId"]
                position = plain[message["channel"]]
                seen = position.seen
                if replay_id not in seen:
                    seen[replay_id] = None
                    position.resume = replay_id
                    events.append(message)
                    continue
            except (KeyError, TypeError):
                pass
            if "data" not in message or (publishing and "successful" in message):
                others.append(message)
            elif self._is_news(message):
                events.append(message)
        return events, others

    def take_reply(
        self, others: list[JsonObject], ticket: Ticket, events: int
    ) -> JsonObject | None:
        """Take the other messages of a response.

        Apart from :meth:`receive`, so that events need not wait for it.

        :param others: what that gave
        :param events: how many events the response had
        :return: the reply to the ticket's request, completed, or None
        """
        if len(others) == 1 and _is_whole(others[0], ticket.request):
            reply: JsonObject | None = others[0]
        else:
            reply = self._find_reply(others, ticket.request)
        if ticket.epoch == self.epoch:
            if events:
                self._limit_memory(events)
            for message in others:
                self._take_meta(message, reply)
        return reply

    def _is_news(self, message: JsonObject) -> bool:
        """Say whether an event out of the ordinary is to be delivered, and note where it stands."""
        channel = message.get("channel")
        if not isinstance(channel, str) or channel.startswith("/meta/"):
            LOGGER.warning(
                "Ignored a message on channel %.100r with data that is no event; look at what is published there",
                channel,
            )
            return False
        position = self._owner(channel)
        if position is None:
            self._note_stranger(channel)
            return True
        replay_id = _replay_id(message)
        if replay_id is None:
            return True
        key = self._memory_key(channel, replay_id)
        if key in position.seen:
            LOGGER.debug("Dropped a duplicate on %s: replay id %r", channel, replay_id)
            return False
        position.seen[key] = None
        position.resume = replay_id
        if position.overwrite:
            position.overwrite = False
            self._client._overwrite_with(message)
            self._index()
        return True

    def _memory_key(self, channel: str, replay_id: ReplayId) -> Hashable:
        # Ids of different channels that one subscription covers may be equal.
        hashable = replay_id if isinstance(replay_id, (int, str, float)) else repr(replay_id)
        return hashable if channel in self._positions else (channel, hashable)

    def _owner(self, channel: str) -> Position | None:
        """Give the position of the subscription that an event belongs to."""
        key = key_of(channel)
        if key in self._positions:
            return self._positions[key]
        if channel not in self._owners:
            if len(self._owners) >= MAX_NAMES:
                self._owners.clear()
            keys = [known for known in self._positions if may_deliver(known, channel)]
            self._owners[channel] = self._positions[keys[0]] if len(keys) == 1 else None
            if len(keys) == 1:
                self._note_alias(channel, keys[0])
        return self._owners[channel]

    def _note_alias(self, channel: str, key: str) -> None:
        # The newest last and the oldest forgotten: a server could make up names without end.
        self.aliases.pop(channel, None)
        self.aliases[channel] = key
        if len(self.aliases) > MAX_NAMES:
            del self.aliases[next(iter(self.aliases))]

    def _note_stranger(self, channel: str) -> None:
        if channel not in self._strangers and len(self._strangers) < MAX_NAMES:
            self._strangers[channel] = None
            LOGGER.warning(
                "An event arrived on %.100s, which belongs to no subscription or to several: it is"
                " delivered, but cannot be resumed from; subscribe to one channel or wildcard that has it",
                channel,
            )

    def _limit_memory(self, count: int) -> None:
        self._largest_response = max(self._largest_response, count)
        size = max(MIN_MEMORY, self._limit + self._largest_response)
        for position in self._positions.values():
            excess = len(position.seen) - size
            # In bulk, so that the cost an event does not grow with the memory.
            if excess > size:
                position.seen = {None: None, **dict.fromkeys(islice(position.seen, excess, None))}

    def _find_reply(self, messages: list[JsonObject], request: JsonObject) -> JsonObject | None:
        """Find and complete the reply to *request*; it may lack id and channel."""
        for message in messages:
            if _answers(message, request):
                return _completed(message, request)
        return None

    def _take_meta(self, message: JsonObject, reply: JsonObject | None) -> None:
        channel = message.get("channel")
        if channel == MetaChannel.DISCONNECT and message is not reply:
            LOGGER.info("The server ended the session; a new one follows")
            self._server_left = True
        advice = message.get("advice")
        if isinstance(advice, dict) and (message is reply or channel == MetaChannel.CONNECT):
            message["advice"] = kept = _to_keep(advice)
            self._advise(kept)

    # What came of a step

    def handshake_done(self, result: JsonObject | Failure, now: float) -> None:
        """Take the outcome of a handshake."""
        self.farewell_id = None
        self._server_left = False
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        client_id = result.get("clientId")
        if not result["successful"]:
            self._recover(judge_reply(result), _refusal(result), now)
        elif reconnect_advice(result) == "none":
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
        self._token_accepted = True
        self._to_resubscribe = tuple(self.subscriptions.values())
        for subscription in self._to_resubscribe:
            subscription.fell_back = False
        self._enter(
            State.RESUBSCRIBING if self._to_resubscribe else State.CONNECTING, "handshake done"
        )
        if not self.opening:
            self._report(ConnectionEvent(ConnectionEventKind.SESSION_RENEWED))

    def connect_done(
        self, result: JsonObject | Failure, epoch: int, events: int, elapsed: float, now: float
    ) -> None:
        """Take the outcome of a connect.

        :param result: the reply, or why there is none
        :param epoch: the session that it was sent in; another may have been lost meanwhile
        :param events: how many events came with it
        :param elapsed: how long it took, in seconds
        :param now: the time, in seconds
        """
        if epoch != self.epoch:
            return
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        # With events there is another one soon.
        self.last_connect = result if events and self.last_connect else _to_keep(result)
        verdict = judge_reply(result)
        if self._server_left and verdict in (
            Verdict.PROCEED,
            Verdict.RETRY,
            Verdict.STOP,
            Verdict.RENEW,
        ):
            self._farewell(result, now)
        elif verdict is _PROCEED:
            self._connected(now)
            self._delay = max(self._interval, self._pace(events, elapsed))
        elif verdict is Verdict.STOP:
            self._stop(ServerError(_ENDED, result))
        else:
            self._recover(verdict, _refusal(result), now)

    def _connected(self, now: float) -> None:
        if self._connected_at is None:
            self._connected_at = now
        elif (
            self._network_backoff or self._busy_backoff
        ) and now - self._connected_at >= self._policy.settled:
            self._forget_failures()
        self._relogins = 0
        self._refusals = 0
        self._refused_wait = False
        self._cookie_renewals = 0
        self.last_error = None
        if self.state is not _CONNECTED:
            self._enter(_CONNECTED, "connect answered")
            self._report(ConnectionEvent(ConnectionEventKind.CONNECTED))
        self.lost_since = None

    def _pace(self, events: int, elapsed: float) -> float:
        """Slow down for a server that answers every connect at once with nothing."""
        if events or elapsed >= HASTY:
            self._hasty_answers = 0
            return 0.0
        self._hasty_answers += 1
        return (
            0.0 if self._hasty_answers < 3 else min(5.0, 0.05 * 2.0 ** min(self._hasty_answers, 10))
        )

    def next_to_resubscribe(self) -> Subscription | None:
        """Give the next channel to subscribe again, with the id to resume from, or None if all are."""
        while self._to_resubscribe:
            subscription = self._to_resubscribe[0]
            if self.subscriptions.get(subscription.channel) is subscription:
                if not subscription.fell_back:
                    self._aim(subscription)
                return subscription
            self._resubscribed(subscription)
        self._enter(State.CONNECTING, "all channels subscribed")
        return None

    def _resubscribed(self, subscription: Subscription) -> None:
        self._to_resubscribe = tuple(one for one in self._to_resubscribe if one is not subscription)

    def _aim(self, subscription: Subscription) -> None:
        resume = self._positions[subscription.key].resume
        subscription.stamp = subscription.start if resume is None else resume

    def resubscribe_done(
        self, subscription: Subscription, result: JsonObject | Failure, now: float
    ) -> None:
        """Take the outcome of subscribing a channel again in a new session."""
        if isinstance(result, Failure):
            self._failed(result, now)
            return
        if result["successful"]:
            self._storage_attempts = 0
            self._resumed(subscription, now)
        elif (verdict := judge_request(result)) is not Verdict.PROCEED:
            self._recover(verdict, _refusal(result), now)
            return
        elif not self._fall_back(subscription, result):
            self._lose_channel(subscription, result)
        if self._server_left:
            self._farewell(result, now)

    def _resumed(self, subscription: Subscription, now: float) -> None:
        self._resubscribed(subscription)
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

    def _fall_back(self, subscription: Subscription, reply: JsonObject) -> bool:
        """Try another starting point, once, if the replay id is what was refused."""
        if subscription.fell_back or not is_replay_error(reply):
            return False
        fallback = self._client._choose_fallback(subscription.channel, reply)
        if fallback is None:
            return False
        subscription.fell_back = True
        subscription.stamp = subscription.start = fallback
        position = self._positions[subscription.key]
        position.resume = None
        position.overwrite = True
        self._index()
        self._report(
            ConnectionEvent(
                ConnectionEventKind.FALLBACK_USED,
                channel=subscription.channel,
                error=_refusal(reply),
                replay_id=fallback,
            )
        )
        return True

    def _lose_channel(self, subscription: Subscription, reply: JsonObject) -> None:
        self._resubscribed(subscription)
        self._forget(subscription.channel)
        error = ServerError(
            f"Channel {subscription.channel} cannot be resumed and is not subscribed any more;"
            " subscribe to it again, with a replay option if its replay id is the reason",
            reply,
        )
        self.errors += (error,)
        self._report(
            ConnectionEvent(
                ConnectionEventKind.CHANNEL_LOST, channel=subscription.channel, error=error
            )
        )

    def crashed(self, error: TransportError) -> None:
        """Take the end of the background task through a mistake in the program."""
        self._stop(error)

    def storage_failed(self, error: ReplayError, now: float) -> None:
        """Take the failure of a marker storage that was read for a channel without a resume point."""
        self._note_loss(error, now)
        self._storage_attempts += 1
        if self._storage_attempts % MAX_STORAGE_ATTEMPTS == 0:
            self._drop_session()
            self._park(error)
        else:
            self._retry_after(self._network.next_delay(), error)

    def authenticated(self, now: float) -> None:
        """Note that there is a new token."""
        if self._refused_wait:
            # The application knows why it took so long; from here on it is the network's turn.
            self.lost_since = now
        self._refused_wait = False
        self._token_accepted = False
        self._enter(State.NO_SESSION, "logged in")
        self._report(ConnectionEvent(ConnectionEventKind.REAUTHENTICATED))

    def authentication_failed(self, error: AuthenticationError, now: float) -> None:
        """Take the failure of a new log-in."""
        self._note_loss(error, now)
        if self.opening:
            self._stop(error)
        elif error.retryable:
            self._refused_wait = False
            backoff = self._busy if _is_rate_limit(error) else self._network
            self._retry_after(backoff.next_delay(), error)
        else:
            self._park(error)

    def unpark(self) -> None:
        """Try again, since the application asks for it."""
        if self.state is not State.PARKED:
            return
        self._delay = min(
            self._policy.refused_cap,
            self._policy.refused_initial * 2.0 ** min(self._refusals - 1, 40),
        )
        self._refused_wait = True
        needs_token = isinstance(self.last_error, AuthenticationError)
        # The log-in that follows is the one that an attempt may cost.
        self._relogins = 1 if needs_token else 0
        self._enter(
            State.NO_TOKEN if needs_token else State.NO_SESSION, "the application asks again"
        )

    # Requests beside the connect

    def subscribe(self, channel: str, replay_id: ReplayId) -> Subscription:
        """Start an explicit subscription; what is remembered of the channel is set aside.

        :param channel: the channel
        :param replay_id: where it starts; None: as the extensions say
        """
        key = key_of(channel)
        subscription = Subscription(
            channel, key, start=replay_id, stamp=replay_id, previous=self._positions.get(key)
        )
        self._positions[key] = Position()
        self._index()
        return subscription

    def subscribe_done(
        self, subscription: Subscription, result: JsonObject | Failure | None
    ) -> bool:
        """Take the outcome of an explicit subscription.

        :param result: the reply or failure; None if it was given up
        :return: whether it should be sent again at once, with the fallback
        """
        if isinstance(result, dict):
            if result["successful"]:
                self.subscriptions[subscription.channel] = subscription
                subscription.previous = None
                return False
            if self._fall_back(subscription, result):
                return True
        self._restore(subscription)
        return False

    def _restore(self, subscription: Subscription) -> None:
        """Take up again what was remembered of the channel, with what arrived meanwhile."""
        previous, subscription.previous = subscription.previous, None
        meanwhile = self._positions.pop(subscription.key, None)
        if previous is not None:
            self._positions[subscription.key] = previous
            if meanwhile is not None:
                self._take_over(meanwhile, previous, subscription.sent_start)
        self._index()

    def _take_over(self, meanwhile: Position, previous: Position, start: ReplayId) -> None:
        """Continue *previous* with what *meanwhile* knows beyond where that started."""
        for ticket in self._tickets:
            point = ticket.points.pop(meanwhile, None)
            known = previous.resume if point in (None, start) else point
            if known is not None:
                ticket.points.setdefault(previous, known)
        if meanwhile.resume not in (None, start):
            previous.resume = meanwhile.resume
        previous.seen.update(meanwhile.seen)

    def unsubscribe_done(self, channel: str, result: JsonObject | Failure) -> None:
        """Take the outcome of an unsubscription."""
        if isinstance(result, dict) and result["successful"]:
            self._forget(channel)

    def _forget(self, channel: str) -> None:
        subscription = self.subscriptions.pop(channel, None)
        if subscription is not None and not any(
            other.key == subscription.key for other in self.subscriptions.values()
        ):
            self._positions.pop(subscription.key, None)
            self._index()

    def request_done(self, result: JsonObject | Failure, epoch: int, now: float) -> bool:
        """Take what the answer to a request beside the connect means for the session.

        :param result: the reply, or why there is none
        :param epoch: the session that it was sent in
        :param now: the time, in seconds
        :return: whether the session must be renewed, and the request may then be tried again
        """
        if epoch != self.epoch:
            # That session has been given up already, so its refusals tell nothing new.
            return isinstance(result, dict) and judge_request(result) is not Verdict.PROCEED
        if isinstance(result, Failure):
            if result.trouble in (Trouble.LOST, Trouble.UNREADABLE):
                self._failed(result, now)
                return False
            if result.trouble in (Trouble.UNAUTHORIZED, Trouble.FORBIDDEN):
                self._failed(result, now)
                return True
            return False
        verdict = judge_request(result)
        if verdict in (Verdict.LOG_IN, Verdict.RENEW, Verdict.RENEW_COOKIES):
            self._recover(verdict, _refusal(result), now)
            return True
        if self._server_left:
            self._farewell(result, now)
        return False

    # Recovery

    def _failed(self, failure: Failure, now: float) -> None:
        self._recover(judge_trouble(failure.trouble), failure.error, now, failure.retry_after)

    def _note_loss(self, error: Exception, now: float) -> None:
        self.last_error = error
        if self._connected_at is not None:
            if now - self._connected_at >= self._policy.settled:
                self._forget_failures()
            self._connected_at = None
        if self.lost_since is None:
            self.lost_since = now
            if not self.opening:
                self._report(ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=error))

    def _recover(
        self, verdict: Verdict, error: Exception, now: float, retry_after: float | None = None
    ) -> None:
        """Decide what a failure leads to: the one place where that is done."""
        self._note_loss(error, now)
        if self.opening and not self._worth_another_try(verdict):
            refused_again = verdict is Verdict.LOG_IN and self._relogins
            self._stop(_refused_again(error) if refused_again else error)
        elif verdict is Verdict.STOP:
            self._stop(error)
        elif verdict is Verdict.LOG_IN:
            self._log_in_again(error)
        elif verdict is Verdict.RETRY:
            if self.state is State.CONNECTED:
                self._enter(State.CONNECTING, error)
            delay = max(self._network.next_delay(), self._interval, retry_after or 0.0)
            self._retry_after(delay, error)
        else:
            self._renew(verdict, error, retry_after)

    def _worth_another_try(self, verdict: Verdict) -> bool:
        """While it opens, a client makes up for one refused token and for one lost session only."""
        if verdict is Verdict.LOG_IN:
            return self._relogins == 0
        if verdict in (Verdict.RENEW, Verdict.RENEW_COOKIES) and not self._renewed_while_opening:
            self._renewed_while_opening = True
            return True
        return False

    def _log_in_again(self, error: Exception) -> None:
        self._drop_session()
        self._relogins += 1
        if self._relogins > (MAX_RELOGINS if self._token_accepted else 1):
            self._park(_refused_again(error))
        else:
            self._enter(State.NO_TOKEN, error)
            self._retry_after(self._first_at_once(), error)

    def _renew(self, verdict: Verdict, error: Exception, retry_after: float | None) -> None:
        lost_id = self.client_id
        self._drop_session()
        if verdict is Verdict.RENEW_COOKIES:
            self._cookie_renewals += 1
            if self._cookie_renewals > MAX_COOKIE_RENEWALS:
                self._stop(error)
                return
            self.clear_cookies = True
        if verdict is Verdict.RENEW_LOST:
            self.farewell_id = lost_id or self.farewell_id
            delay = self._network.next_delay()
        elif verdict is Verdict.RENEW_LATER:
            delay = self._busy.next_delay()
        else:
            delay = self._first_at_once()
        self._enter(State.NO_SESSION, error)
        self._retry_after(max(delay, retry_after or 0.0), error)

    def _farewell(self, reply: JsonObject, now: float) -> None:
        """The server has ended the session of its own accord, perhaps those of many clients."""
        self._server_left = False
        error = ServerError("The server ended the session, which has to be renewed", reply)
        self._note_loss(error, now)
        if self.opening and self._renewed_while_opening:
            self._stop(error)
            return
        self._renewed_while_opening = True
        first = self._network.attempts == 0
        self._drop_session()
        self._enter(State.NO_SESSION, "the server has disconnected")
        delay = self._network.next_delay()
        self._retry_after(min(delay, self._policy.farewell) if first else delay, error)

    def _first_at_once(self) -> float:
        """The first attempt follows at once, those after it with backoff."""
        delay = self._network.next_delay()
        return delay if self._network.attempts > 1 else 0.0

    def _retry_after(self, delay: float, error: Exception) -> None:
        self._delay = delay
        if not self.opening:
            attempts = self._network.attempts + self._busy.attempts
            self._report(
                ConnectionEvent(
                    ConnectionEventKind.RETRYING, error=error, attempt=attempts, delay=delay
                )
            )

    def _drop_session(self) -> None:
        """Give the session up; what its requests under way will bring is not used."""
        self.client_id = None
        # The oldest request last, as its points are the ones furthest back. Those of earlier sessions
        # were gone back to when these were given up; what came since then is safe.
        for ticket in reversed(self._tickets):
            if ticket.epoch == self.epoch:
                self._rewind(ticket)
        self.epoch += 1

    def _park(self, error: Exception) -> None:
        self.last_error = error
        self._refusals += 1
        self._drop_session()
        self._enter(State.PARKED, error)
        self.errors += (error,)
        storage = isinstance(error, ReplayError)
        kind = (
            ConnectionEventKind.STORAGE_FAILED
            if storage
            else ConnectionEventKind.AUTHENTICATION_FAILED
        )
        self._report(ConnectionEvent(kind, error=error))

    def _stop(self, error: Exception) -> None:
        # What requests under way bring must not set the session going again.
        self._drop_session()
        self.last_error = self.stop_error = error
        self._enter(State.STOPPED, error)
        if not self.opening:
            self._report(ConnectionEvent(ConnectionEventKind.CLOSED, error=error))

    def _index(self) -> None:
        """Make the table that the hot path looks up: what needs a closer look is not in it."""
        special = [key for key, position in self._positions.items() if position.overwrite]
        # Mostly there is none: then one table serves as both.
        self._plain = {**self._positions} if special else self._positions
        for key in special:
            del self._plain[key]
        self._owners.clear()
        for channel in self.aliases.keys() & self._positions.keys():
            del self.aliases[channel]


def key_of(channel: str) -> str:
    """Give a channel's name in replay maps: a filtered PushTopic's query is no part of it."""
    return channel.partition("?")[0]


def may_deliver(subscribed: str, channel: str) -> bool:
    """Say whether a subscription may bring events of another channel's name.

    :param subscribed: the key of a subscription
    :param channel: the channel of an event
    """
    if subscribed.endswith("/**"):
        return channel.startswith(subscribed[:-2])
    if subscribed.endswith("/*"):
        prefix = subscribed[:-1]
        return channel.startswith(prefix) and "/" not in channel[len(prefix) :]
    if subscribed.endswith("__chn") or subscribed == "/data/ChangeEvents":
        return channel.startswith(subscribed[: subscribed.rindex("/") + 1])
    return False


def _replay_id(message: JsonObject) -> ReplayId:
    data = message.get("data")
    event = data.get("event") if isinstance(data, dict) else None
    replay_id = event.get("replayId") if isinstance(event, dict) else None
    return None if isinstance(replay_id, bool) else replay_id


def _is_whole(message: JsonObject, request: JsonObject) -> bool:
    """Say whether *message* is the reply to *request* and lacks nothing, as nearly all of them."""
    return (
        message.get("id") == request["id"]
        and message.get("channel") == request["channel"]
        and message.get("successful").__class__ is bool
        and "data" not in message
        and ("subscription" not in request or "subscription" in message)
    )


def _answers(message: JsonObject, request: JsonObject) -> bool:
    """Say whether *message* is the reply to *request*.

    Ids come back as numbers or as text. A refusal may have neither id nor channel; as each request
    holds one message, it can only belong to that.
    """
    if "data" in message and "successful" not in message:
        return False
    if message.get("channel", request["channel"]) != request["channel"]:
        return False
    if message.get("id") is not None:
        return str(message["id"]) == str(request["id"])
    if "successful" in message or "advice" in message:
        return True
    # A gateway may answer with an "error" of its own, in place of an answer with events in it.
    error = message.get("error")
    return isinstance(error, str) and _ERROR_FORM.match(error) is not None


def _completed(message: JsonObject, request: JsonObject) -> JsonObject:
    """Fill in what a reply may lack.

    Without ``successful``, one to an unsubscribe or a publish counts as success unless it has an
    error; the others do not.
    """
    message["channel"] = request["channel"]
    message["id"] = request["id"]
    if not isinstance(message.get("successful"), bool):
        strict = request["channel"] in (
            _HANDSHAKE,
            _CONNECT,
            _SUBSCRIBE,
        )
        message["successful"] = not strict and not message.get("error")
    if "subscription" in request:
        message.setdefault("subscription", request["subscription"])
    return message


def _to_keep(parsed: JsonObject) -> JsonObject:
    """Give what is kept of a reply in each of thousands of clients: the names in it are shared."""
    return {
        intern(name) if name.__class__ is str else name: value for name, value in parsed.items()
    }


def _refusal(reply: JsonObject) -> ServerError:
    return ServerError(_REFUSALS.get(reply["channel"], "Request failed."), reply)


def _refused_again(error: Exception) -> Exception:
    """Turn the refusal of a new token into the error that tells so."""
    if isinstance(error, ServerError) or (
        isinstance(error, TransportError) and error.status == 401
    ):
        refused = AuthenticationError(
            "Authentication failed: the server refuses a token that it has just issued; check that the"
            f" user may use the API and the Streaming API, and the session settings. {error}"
        )
        refused.__cause__ = error
        return refused
    return error


def _is_rate_limit(error: AuthenticationError) -> bool:
    return "rate" in f"{error.error} {error.error_description}".lower()
