"""A session on the table: fed by hand, with a clock of paper."""

from __future__ import annotations

import random
from typing import Any

from aiosfstream._cometd.channels import Subscription, Ticket
from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.session import Session
from aiosfstream._cometd.states import Action, Sequel, State
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream._text import Secret
from aiosfstream.events import ConnectionEvent, ConnectionEventKind
from aiosfstream.exceptions import TransportError

Message = dict[str, Any]

A, B = "/event/A__e", "/event/B__e"

UNKNOWN: Message = {
    "error": "403::Unknown client",
    "advice": {"reconnect": "handshake", "interval": 0},
}
TOKEN: Message = {"error": "401::Authentication invalid", "advice": {"reconnect": "none"}}
BUSY: Message = {"error": "x", "ext": {"sfdc": {"failureReason": "503::Server is too busy."}}}
LIMIT: Message = {"error": "403::Organization total events daily limit exceeded"}
COOKIE: Message = {"error": "400::no BAYEUX_BROWSER cookie present"}
DENIED: Message = {
    "error": "403:denied_by_security_policy:create_denied",
    "advice": {"reconnect": "none"},
}
INVALID_ID: Message = {
    "error": "400::The replayId {1} you provided was invalid. Please provide a valid ID"
}
GOODBYE: Message = {"channel": "/meta/disconnect", "successful": True}


def receive(
    session: Session, messages: list[Message], ticket: Ticket
) -> tuple[list[Message], Message | None]:
    """Let an answer arrive: give its events, and the reply in it."""
    events, others = session.receive(messages, ticket)
    return events, session.take_reply(others, ticket)


def event(channel: str, replay_id: Any, **data: Any) -> Message:
    """Make an event."""
    return {"channel": channel, "data": {"event": {"replayId": replay_id}, **data}}


def ids_of(events: list[Message]) -> list[Any]:
    """Give the replay ids of events."""
    return [one["data"]["event"]["replayId"] for one in events]


def failure(
    trouble: Trouble,
    retry_after: float | None = None,
    status: int | None = None,
    reason: str = "",
) -> Failure:
    """Make a failure."""
    error = TransportError(f"failed: {trouble.name}")
    error.status = status
    return Failure(trouble, error, status, retry_after, reason)


class Table:
    """A session on the table, with what it tells its surroundings.

    :param fallback: the host's answer to each refused replay id
    """

    def __init__(
        self,
        *,
        fallback: Any = None,
        limit: int = 0,
        poll_timeout: float | None = None,
        connection_timeout: float | None = 10.0,
    ) -> None:
        self.now = 0.0
        self.events: list[ConnectionEvent] = []
        self.overwritten: list[Message] = []
        self.refusals: list[str] = []
        self.fallback = fallback
        self._connection_timeout = connection_timeout
        self.sequel = Sequel.DONE
        self.session = Session(
            host=self,
            report=self.events.append,
            policy=RetryPolicy(),
            rng=random.Random(1),
            limit=limit,
            poll_timeout=poll_timeout,
        )
        self.channels = self.session.channels
        self.recovery = self.session.recovery

    # The host

    @property
    def connection_timeout(self) -> float | None:
        """What the application has set."""
        return self._connection_timeout

    def fallback_for(self, channel: str) -> Any:
        """Choose a fallback."""
        self.refusals.append(channel)
        return self.fallback

    def first_after_fallback(self, message: Message) -> None:
        """Note it."""
        self.overwritten.append(message)

    async def log_in(self, refused: Secret | None) -> str:
        """Nobody logs in here: outcomes are given by hand."""
        raise NotImplementedError

    # What happens

    def open(self, *channels: str, start: Any = None) -> Table:
        """Open it and subscribe channels."""
        self.handshake()
        self.connect()
        self.recovery.opening = False
        for channel in channels:
            self.subscribe(channel, start)
        return self

    def step(self) -> Action:
        """Give what comes next."""
        return self.session.next_step(self.now).action

    def is_in(self, state: State) -> bool:
        """Say whether it is in a state, which may be another one than a moment ago."""
        return self.session.state is state

    def reply(self, request: Message, **fields: Any) -> Message:
        """Make a reply to *request*; with an error it is a refusal."""
        reply = {
            "channel": request["channel"],
            "id": request["id"],
            "successful": "error" not in fields,
        }
        if request["channel"] == "/meta/handshake" and "error" not in fields:
            reply["clientId"] = "client"
        return {**reply, **fields}

    def exchange(
        self, request: Message, *others: Message, **fields: Any
    ) -> tuple[list[Message], Any]:
        """Send *request* and receive its reply behind *others*."""
        ticket = self.session.send(request)
        return receive(self.session, [*others, self.reply(request, **fields)], ticket)

    def handshake(self, *others: Message, **fields: Any) -> None:
        """Shake hands."""
        assert self.step() is Action.HANDSHAKE
        request = self.session.handshake_message(["long-polling"])
        _, reply = self.exchange(request, *others, **fields)
        self.session.handshake_done(reply, self.now)

    def connect(self, *events: Message, elapsed: float = 1.0, **fields: Any) -> list[Message]:
        """Connect, and give the events that were delivered."""
        assert self.step() is Action.CONNECT
        epoch, message = self.session.epoch, self.session.connect_message(self.now)
        hold = self.session.hold_of(message)
        delivered, reply = self.exchange(message, *events, **fields)
        self.now += elapsed
        self.session.connect_done(reply, epoch, len(delivered), elapsed, self.now, hold=hold)
        return delivered

    def fail(self, what: Failure, elapsed: float = 1.0) -> Failure:
        """Let a connect fail."""
        assert self.step() is Action.CONNECT
        ticket = self.session.send(self.session.connect_message(self.now))
        self.session.abandon(ticket, lost=what.trouble is Trouble.LOST)
        self.now += elapsed
        self.session.connect_done(what, ticket.epoch, 0, elapsed, self.now)
        return what

    def subscribe(
        self, channel: str, start: Any = None, *events: Message, **fields: Any
    ) -> Subscription:
        """Subscribe a channel."""
        subscription = self.channels.add(channel, start)
        message = self.session.writer.subscribe(subscription.channel)
        self.channels.stamp(message, subscription)
        _, reply = self.exchange(message, *events, **fields)
        self.sequel = self.session.request_done(subscription, reply, self.session.epoch, self.now)
        return subscription

    def unsubscribe(self, channel: str, *others: Message, **fields: Any) -> Sequel:
        """Unsubscribe a channel."""
        epoch = self.session.epoch
        _, reply = self.exchange(self.session.writer.unsubscribe(channel), *others, **fields)
        return self.session.request_done(channel, reply, epoch, self.now)

    def next_subscription(self) -> Subscription:
        """Give the next channel to subscribe again."""
        assert self.step() is Action.SUBSCRIBE
        subscription = self.session.next_to_resubscribe(self.now)
        assert subscription is not None
        return subscription

    def resubscribe(self, *others: Message, **fields: Any) -> Message:
        """Subscribe the next channel again, and give the message sent."""
        subscription = self.next_subscription()
        message = self.session.writer.subscribe(subscription.channel)
        self.channels.stamp(message, subscription)
        _, reply = self.exchange(message, *others, **fields)
        self.session.resubscribe_done(subscription, reply, self.now)
        return message

    def resubscribe_all(self) -> list[Any]:
        """Subscribe all channels again, and give the replay maps sent."""
        maps: list[Any] = []
        while self.session.state is State.RESUBSCRIBING:
            if self.session.next_to_resubscribe(self.now) is None:
                break
            maps.append(self.resubscribe().get("ext", {}).get("replay"))
        return maps

    def renew(self) -> list[Any]:
        """Go through a renewal, and give the replay maps sent."""
        self.handshake()
        maps = self.resubscribe_all()
        self.connect()
        return maps

    def lose_session(self) -> None:
        """Have the server forget the session."""
        self.connect(**UNKNOWN)

    def hang(self) -> Ticket:
        """Send something that is not answered yet."""
        return self.session.send(self.session.writer.publish("/service/x", {}))

    def lose(self, ticket: Ticket) -> None:
        """Let the answer be lost, and the session with it."""
        self.session.abandon(ticket, lost=True)
        self.session.request_done(None, failure(Trouble.LOST), ticket.epoch, self.now)

    def kinds(self) -> list[ConnectionEventKind]:
        """Give the kinds of what was reported."""
        return [one.kind for one in self.events]
