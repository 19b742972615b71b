"""A session against a model of a server: what was published arrives once and in order, whatever gets lost.

The model keeps what a Bayeux server keeps: which session is alive, and per subscription how far it
has *written* events. An event that it has written into an answer counts as delivered for it, whether
that answer arrives, arrives late, or never.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiosfstream._cometd.channels import Subscription
from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.session import Session
from aiosfstream._cometd.states import Action, Sequel
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream._text import Secret
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import AuthenticationError, TransportError
from tests.table import LIMIT, receive

Message = dict[str, Any]

A, B, C = CHANNELS = ("/event/A__e", "/event/B__e", "/topic/C")
PRIME = 10_007


def id_of(number: int) -> int:
    """Give the replay id of the *number*-th event: ids have no order that a client could use."""
    return number * 7_919 % PRIME


class Server:
    """What a server keeps, and its answers."""

    def __init__(self) -> None:
        self.log: dict[str, list[int]] = {channel: [] for channel in CHANNELS}
        self.client_id: str | None = None
        self.sessions = 0
        self.token_is_good = True
        self.says_goodbye = False
        #: The ids of subscribe requests that it will refuse.
        self.refuses: set[str] = set()
        #: How many of the next subscribe requests are beyond a limit.
        self.is_limited = 0
        #: How far the events of each subscribed channel have been written.
        self.written: dict[str, int] = {}
        #: Where these subscriptions started.
        self.started: dict[str, int] = {}

    def publish(self, channel: str) -> None:
        """Publish one event."""
        self.log[channel].append(id_of(len(self.log[channel]) + 1))

    def forget(self) -> None:
        """Forget the session."""
        self.client_id = None
        self.written = {}

    def answer(self, request: Message, *, repeat: bool, reply_first: bool) -> list[Message]:
        """Act on a request.

        :param repeat: whether the last event that was written is written once more
        :param reply_first: whether the reply stands before the events
        """
        reply = {"channel": request["channel"], "id": request["id"], **self._act(request)}
        if not reply["successful"] or request["channel"] == "/meta/handshake":
            return [reply]
        events = self._write(repeat)
        messages = [reply, *events] if reply_first else [*events, reply]
        if self.says_goodbye:
            self.says_goodbye = False
            self.forget()
            messages.append({"channel": "/meta/disconnect", "successful": True})
        return messages

    def _act(self, request: Message) -> Message:
        if not self.token_is_good:
            advice = {"reconnect": "none"}
            return {"successful": False, "error": "401::Authentication invalid", "advice": advice}
        if request["channel"] == "/meta/handshake":
            self.forget()
            self.sessions += 1
            self.client_id = f"client {self.sessions}"
            return {"successful": True, "clientId": self.client_id}
        if request["clientId"] != self.client_id:
            advice = {"reconnect": "handshake"}
            return {"successful": False, "error": "403::Unknown client", "advice": advice}
        if request["id"] in self.refuses:
            return {"successful": False, "error": "403::No access on channel"}
        if request["channel"] == "/meta/subscribe" and self.is_limited:
            self.is_limited -= 1
            return {"successful": False, **LIMIT}
        if request["channel"] == "/meta/subscribe":
            channel = request["subscription"]
            start = request["ext"]["replay"][channel]
            ids = self.log[channel]
            self.started[channel] = ids.index(start) + 1 if start in ids else 0
            self.written[channel] = self.started[channel]
            assert start in ids or start in (-2, 0), "it asks for an id that there never was"
        return {"successful": True}

    def _write(self, repeat: bool) -> list[Message]:
        events = []
        for channel, written in self.written.items():
            first = max(written - repeat, self.started[channel])
            events += [
                {"channel": channel, "data": {"event": {"replayId": one}}}
                for one in self.log[channel][first:]
            ]
            self.written[channel] = len(self.log[channel])
        return events


@dataclass(eq=False)
class Flight:
    """A request under way, and its answer once the server has written it."""

    request: Message
    epoch: int
    ticket: Any
    subscription: Subscription | None = None
    answer: list[Message] | None = None
    repeats: bool = False
    #: Whether it subscribes a channel again, as a step of the connection itself.
    resubscribes: bool = False

    def holds(self) -> set[tuple[str, int]]:
        """Give the events in the answer."""
        return {
            (one["channel"], one["data"]["event"]["replayId"])
            for one in self.answer or []
            if "data" in one
        }


@dataclass
class Application:
    """What an application has received, and its judgement of it."""

    received: dict[str, list[int]] = field(default_factory=lambda: {one: [] for one in CHANNELS})

    def take(self, events: list[Message], log: dict[str, list[int]], flying: set[Any]) -> None:
        """Receive events.

        :param flying: events in answers of the same session that have been written but not read:
            only these may be overtaken
        """
        for event in events:
            channel, replay_id = event["channel"], event["data"]["event"]["replayId"]
            received = self.received[channel]
            assert replay_id not in received, f"{channel} {replay_id} is delivered twice"
            earlier = log[channel][: log[channel].index(replay_id)]
            missing = {(channel, one) for one in earlier if one not in received}
            assert missing <= flying, f"{channel} {replay_id} comes before {missing}"
            received.append(replay_id)


class World:
    """A client's session, a server, and what flies between them.

    :param rng: decides what happens
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.reported: list[ConnectionEventKind] = []
        self.session = Session(
            host=self,
            report=lambda event: self.reported.append(event.kind),
            policy=RetryPolicy(),
            rng=random.Random(1),
        )
        self.server = Server()
        self.application = Application()
        #: How many events came that had been received, since a channel was subscribed again.
        self.sent_again = 0
        #: The one request of the connection itself: a handshake, a resubscription or a connect.
        self.line: Flight | None = None
        #: The others: those beside the connect, and connects of sessions that were given up.
        self.others: list[Flight] = []

    @property
    def connection_timeout(self) -> float | None:
        return 10.0

    def fallback_for(self, channel: str) -> Any:
        return None

    def first_after_fallback(self, message: Message) -> None:
        raise AssertionError("there is no fallback")

    async def log_in(self, refused: Secret | None) -> str:
        raise NotImplementedError

    # How the transport would do it

    def fly(self, request: Message, subscription: Subscription | None = None) -> Flight:
        if subscription is not None:
            self.session.channels.stamp(request, subscription)
        ticket = self.session.send(request)
        return Flight(request, self.session.epoch, ticket, subscription)

    def advance(self) -> None:
        step = self.session.next_step(self.now)
        assert 0.0 <= step.delay <= RetryPolicy().refused_cap
        self.now += step.delay
        if step.action is Action.HANDSHAKE:
            if not any(one.subscription for one in self.others):
                self.line = self.fly(self.session.handshake_message(["long-polling"]))
        elif step.action is Action.SUBSCRIBE:
            subscription = self.session.next_to_resubscribe(self.now)
            if subscription is not None:
                request = self.session.writer.subscribe(subscription.channel)
                self.line = self.fly(request, subscription)
                self.line.resubscribes = True
        elif step.action is Action.CONNECT:
            self.line = self.fly(self.session.connect_message(self.now))
        elif step.action is Action.AUTHENTICATE:
            self.server.token_is_good = True
            self.session.recovery.authenticated(self.now)
        else:
            assert step.action is Action.PARK, "a session that could go on has ended"
            self.session.recovery.unpark()

    def serve(self, flight: Flight, *, repeat: bool = False, reply_first: bool = False) -> None:
        flight.repeats = repeat
        flight.answer = self.server.answer(flight.request, repeat=repeat, reply_first=reply_first)
        if flight is self.line and flight.subscription is not None:
            self.sent_again += sum(
                replay_id in self.application.received[channel]
                for channel, replay_id in flight.holds()
            )

    def land(self, flight: Flight) -> None:
        """Let the answer arrive."""
        assert flight.answer is not None
        self._remove(flight)
        events, reply = receive(self.session, flight.answer, flight.ticket)
        self.application.take(events, self.server.log, self.flying())
        assert reply is not None
        self._done(flight, reply, len(events))

    def fail(self, flight: Flight, trouble: Trouble) -> None:
        """Let it fail, without an answer that could be read."""
        self._remove(flight)
        self.session.abandon(flight.ticket, lost=trouble is Trouble.LOST)
        self._done(flight, Failure(trouble, TransportError(trouble.name)), 0)

    def flying(self) -> set[tuple[str, int]]:
        """Give the events of this session that the server has written and nobody has read."""
        return {
            event
            for one in self.flights()
            if one.epoch == self.session.epoch
            for event in one.holds()
        }

    def something_flies_twice(self) -> bool:
        """Say whether an answer holds what is received already, or will have been."""
        return any(one.repeats for one in self.flights()) or any(
            replay_id in self.application.received[channel] for channel, replay_id in self.flying()
        )

    def flights(self) -> list[Flight]:
        return [*self.others, *([self.line] if self.line else [])]

    def _remove(self, flight: Flight) -> None:
        if flight is self.line:
            self.line = None
        else:
            self.others.remove(flight)

    def _done(self, flight: Flight, result: Message | Failure, events: int) -> None:
        session, channel = self.session, flight.request["channel"]
        self.now += 0.5
        if channel == "/meta/handshake":
            session.handshake_done(result, self.now)
        elif channel == "/meta/connect":
            session.connect_done(result, flight.epoch, events, 0.5, self.now)
        elif flight.resubscribes:
            if flight.epoch == session.epoch:
                assert flight.subscription is not None
                session.resubscribe_done(flight.subscription, result, self.now)
        else:
            sequel = session.request_done(flight.subscription, result, flight.epoch, self.now)
            assert sequel is not Sequel.AT_ONCE
        if self.line is not None and self.line.epoch != session.epoch:
            # The session was given up under the connect: what becomes of that plays no part any more.
            self.others.append(self.line)
            self.line = None

    # What may happen

    def open(self) -> None:
        for _ in range(2):
            self.go_on()
        self.session.recovery.opening = False
        for channel, start in ((A, 0), (B, -2)):
            self.begin_to_subscribe(channel, start)
            self.serve(self.others[0])
            self.land(self.others[0])

    def begin_to_subscribe(self, channel: str, start: int, *, refused: bool = False) -> None:
        log = self.server.log[channel]
        # Whoever subscribes a channel hears of a limit at once; here it is the next one's.
        self.server.is_limited = 0
        subscription = self.session.channels.add(channel, start)
        request = self.session.writer.subscribe(channel)
        if refused:
            self.server.refuses.add(request["id"])
        else:
            # Who subscribes asks for everything from there on, and may get again what came before.
            self.application.received[channel] = log[: log.index(start) + 1] if start in log else []
        self.others.append(self.fly(request, subscription))

    def go_on(self) -> None:
        """Let the connection take a step that goes well."""
        if self.line is None:
            self.advance()
        if self.line is not None and self.line.answer is None:
            self.serve(self.line)
        if self.line is not None:
            self.land(self.line)

    def publish(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self.server.publish(self.rng.choice(CHANNELS))

    def take_the_next_step(self) -> None:
        if self.line is None:
            self.advance()

    def ask_for_something(self) -> None:
        if self.session.established and len(self.others) < 4:
            self.others.append(self.fly(self.session.writer.publish("/service/x", {})))

    def subscribe_or_unsubscribe(self) -> None:
        if not self.session.established or any(one.subscription for one in self.others):
            return
        if C not in self.session.channels.subscriptions:
            self.begin_to_subscribe(C, self.rng.choice([-2, *self.server.log[C][-1:]]))
        elif self.rng.random() < 0.5 and not self.something_flies_twice():
            # What was remembered of the channel must be taken up again.
            start = self.rng.choice([-2, *self.server.log[A]])
            self.begin_to_subscribe(A, start, refused=True)
        elif not any(channel == C for channel, _ in self.flying()):
            self.session.request_done(C, {"successful": True}, self.session.epoch, self.now)
            self.server.written.pop(C, None)

    def the_server_answers(self) -> None:
        for flight in self.pick(answered=False):
            # A subscription under way stands for the wish to get again what came before.
            repeat = self.rng.random() < 0.1 and not any(one.subscription for one in self.others)
            self.serve(flight, repeat=repeat, reply_first=self.rng.random() < 0.5)

    def an_answer_arrives(self) -> None:
        for flight in self.pick(answered=True):
            self.land(flight)

    def an_answer_is_lost(self) -> None:
        for flight in self.pick(answered=self.rng.random() < 0.8):
            self.fail(flight, Trouble.LOST)

    def a_request_does_not_get_there(self) -> None:
        for flight in self.pick(answered=False):
            self.fail(flight, self.rng.choice((Trouble.NOT_SENT, Trouble.THROTTLED)))

    def the_server_changes_its_mind(self) -> None:
        match self.rng.randrange(5):
            case 0:
                self.server.forget()
            case 1:
                self.server.says_goodbye = True
            case 2:
                self.server.token_is_good = False
            case 3 if not any(one.subscription for one in self.others):
                self.server.is_limited = 1
            case _:
                self.now += 100.0

    def pick(self, *, answered: bool) -> list[Flight]:
        """Give one of the requests under way, if there is one."""
        flights = [one for one in self.flights() if (one.answer is not None) is answered]
        return [self.rng.choice(flights)] if flights else []

    # What must hold

    def check(self) -> None:
        assert self.session.recovery.stop_error is None
        assert all(type(error) is AuthenticationError for error in self.session.recovery.errors)
        assert {A, B} <= self.session.channels.subscriptions.keys()
        assert len(self.session.channels._tickets) == len(self.flights())

    def settle(self) -> None:
        """Let fail what can fail; all that was published arrives then."""
        for flight in self.flights():
            self.fail(flight, Trouble.LOST)
        self.server.says_goodbye = False
        self.server.is_limited = 0
        for _ in range(20):
            self.go_on()
        # What was refused for now is tried again in the end.
        self.now += RetryPolicy().busy_cap
        for _ in range(10):
            self.go_on()
        assert self.session.deferred == []
        for channel in self.session.channels.subscriptions:
            missing = set(self.server.log[channel]) - set(self.application.received[channel])
            assert not missing, f"{channel} lacks {missing}"


#: What may happen, and how often beside the others.
HAPPENINGS: dict[Callable[[World], None], int] = {
    World.publish: 20,
    World.take_the_next_step: 30,
    World.ask_for_something: 15,
    World.subscribe_or_unsubscribe: 5,
    World.the_server_answers: 40,
    World.an_answer_arrives: 30,
    World.go_on: 5,
    World.an_answer_is_lost: 3,
    World.a_request_does_not_get_there: 3,
    World.the_server_changes_its_mind: 2,
}


@pytest.mark.parametrize("seed", range(100))
def test_every_event_arrives_once_and_in_order(seed: int) -> None:
    world = World(random.Random(seed))
    world.open()
    for _ in range(8):
        for happening in world.rng.choices(list(HAPPENINGS), list(HAPPENINGS.values()), k=100):
            happening(world)
            world.check()
        world.settle()
    # Or nothing was tried.
    assert world.server.sessions > 5
    assert len(world.application.received[A]) > 20
    # Resuming means to ask for little more than what is missing.
    assert world.sent_again < sum(len(ids) for ids in world.server.log.values())
