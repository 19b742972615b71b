"""The session without I/O: fed by hand, with a clock of paper."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.session import (
    MAX_COOKIE_RENEWALS,
    MAX_NAMES,
    MIN_MEMORY,
    Action,
    Session,
    State,
    Subscription,
    Ticket,
    key_of,
    may_deliver,
)
from aiosfstream._http.post import Failure, Trouble
from aiosfstream.events import ConnectionEvent, ConnectionEventKind
from aiosfstream.exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ReplayError,
    ServerError,
    TransportError,
)

A, B = "/event/A__e", "/event/B__e"
Message = dict[str, Any]
UNKNOWN: dict[str, Any] = {
    "error": "403::Unknown client",
    "advice": {"reconnect": "handshake", "interval": 0},
}
INVALID_ID = "400::The replayId {1} you provided was invalid. Please provide a valid ID"


def receive(
    session: Session, messages: list[Message], ticket: Ticket
) -> tuple[list[Message], Message | None]:
    """Let an answer arrive: give its events, and the reply in it."""
    events, others = session.receive(messages, ticket)
    return events, session.take_reply(others, ticket)


class Table:
    """A session on the table, with what it tells its surroundings."""

    def __init__(
        self, *, fallback: Any = None, limit: int = 0, poll_timeout: float | None = None
    ) -> None:
        self.now = 0.0
        self.events: list[ConnectionEvent] = []
        self.overwritten: list[Message] = []
        self.refusals: list[str] = []
        self.fallback = fallback
        self.session = Session(
            host=self,
            report=self.events.append,
            policy=RetryPolicy(),
            rng=random.Random(1),
            limit=limit,
            poll_timeout=poll_timeout,
        )

    @property
    def connection_timeout(self) -> float | None:
        return 10.0

    def fallback_for(self, channel: str) -> Any:
        self.refusals.append(channel)
        return self.fallback

    def first_after_fallback(self, message: Message) -> None:
        self.overwritten.append(message)

    async def log_in(self, refused: str | None) -> str:
        raise NotImplementedError

    def open(self, *channels: str, start: Any = None) -> Table:
        """Open it and subscribe channels."""
        self.handshake()
        self.connect()
        self.session.opening = False
        for channel in channels:
            self.subscribe(channel, start)
        return self

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

    def handshake(self, **fields: Any) -> None:
        """Shake hands."""
        assert self.session.next_step().action is Action.HANDSHAKE
        _, reply = self.exchange(self.session.handshake_message(["long-polling"]), **fields)
        self.session.handshake_done(reply, self.now)

    def connect(self, *events: Message, elapsed: float = 1.0, **fields: Any) -> list[Message]:
        """Connect, and give the events that were delivered."""
        assert self.session.next_step().action is Action.CONNECT
        epoch = self.session.epoch
        delivered, reply = self.exchange(self.session.connect_message(), *events, **fields)
        self.now += elapsed
        self.session.connect_done(reply, epoch, len(delivered), elapsed, self.now)
        return delivered

    def subscribe(
        self, channel: str, start: Any = None, *events: Message, **fields: Any
    ) -> Subscription:
        """Subscribe a channel."""
        subscription = self.session.channels.add(channel, start)
        message = self.session.subscribe_message(subscription)
        self.session.channels.stamp(message, subscription)
        _, reply = self.exchange(message, *events, **fields)
        self.session.request_done(subscription, reply, self.session.epoch, self.now)
        return subscription

    def resubscribe(self, **fields: Any) -> Message:
        """Subscribe the next channel again, and give the message sent."""
        assert self.session.next_step().action is Action.SUBSCRIBE
        subscription = self.session.next_to_resubscribe()
        assert subscription is not None
        message = self.session.subscribe_message(subscription)
        self.session.channels.stamp(message, subscription)
        _, reply = self.exchange(message, **fields)
        self.session.resubscribe_done(subscription, reply, self.now)
        return message

    def renew(self) -> list[Any]:
        """Go through a renewal, and give the replay maps sent."""
        self.handshake()
        maps: list[Any] = []
        while self.session.state is State.RESUBSCRIBING:
            if len(maps) == len(self.session.subscriptions):
                assert self.session.next_to_resubscribe() is None
                break
            maps.append(self.resubscribe().get("ext", {}).get("replay"))
        self.connect()
        return maps

    def kinds(self) -> list[ConnectionEventKind]:
        """Give the kinds of what was reported."""
        return [event.kind for event in self.events]


def event(channel: str, replay_id: Any, **fields: Any) -> Message:
    """Make an event."""
    return {"channel": channel, "data": {"event": {"replayId": replay_id}}, **fields}


def failure(
    trouble: Trouble, retry_after: float | None = None, status: int | None = None
) -> Failure:
    """Make a failure."""
    error = TransportError(f"failed: {trouble.name}")
    error.status = status
    return Failure(trouble, error, status, retry_after)


# Messages out


def test_message_ids_are_never_used_twice() -> None:
    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.renew()
    ids = [table.session.connect_message()["id"], table.session.publish_message("/x", {})["id"]]
    assert len(set(ids)) == 2
    assert int(ids[0]) > 5


def test_the_first_connect_asks_for_an_answer_at_once() -> None:
    table = Table(poll_timeout=2.5)
    table.handshake()
    assert table.session.connect_message()["advice"] == {"timeout": 0}
    table.connect()
    assert table.session.connect_message()["advice"] == {"timeout": 2500}
    assert "advice" not in Table().open().session.connect_message()


def test_advice_is_forgotten_at_a_handshake() -> None:
    table = Table().open()
    table.connect(advice={"reconnect": "retry", "interval": 2000, "timeout": 5000})
    assert table.session.hold == 5.0
    assert table.session.next_step().delay == 2.0
    table.connect(**UNKNOWN)
    table.session.handshake_message([])
    assert table.session.advice == {}
    assert table.session.hold == 110.0


def test_a_stamp_replaces_what_an_extension_left() -> None:
    subscription = Subscription(A, A, stamp=7)
    for ext in ({}, {"replay": {A: 1}}, {"replay": 5}, 5, None):
        message: Message = {"ext": ext}
        Table().session.stamp(message, subscription)
        assert message["ext"]["replay"] == {A: 7}
    message = {"ext": {"replay": {B: 1}, "other": 2}}
    Table().session.stamp(message, subscription)
    assert message == {"ext": {"replay": {B: 1, A: 7}, "other": 2}}


def test_without_a_stamp_the_extensions_word_stands() -> None:
    for ext, start in (({"replay": {A: 0}}, 0), ({"replay": None}, None), (None, None)):
        subscription = Subscription(A, A)
        message: Message = {"ext": ext}
        Table().session.stamp(message, subscription)
        assert message == {"ext": ext}
        assert subscription.start == start


# Messages in


def test_replies_and_events_are_told_apart() -> None:
    table = Table().open(A)
    delivered = table.connect(event(A, 1), event(A, 2))
    assert [message["data"]["event"]["replayId"] for message in delivered] == [1, 2]


def test_duplicates_are_dropped_by_channel_and_id() -> None:
    table = Table().open(A, B)
    delivered = table.connect(event(A, 1), event(A, 1), event(B, 1), event(A, "1"), event(A, 2))
    assert [(m["channel"], m["data"]["event"]["replayId"]) for m in delivered] == [
        (A, 1),
        (B, 1),
        (A, "1"),
        (A, 2),
    ]
    assert table.connect(event(A, 2), event(B, 1)) == []


@pytest.mark.parametrize(
    "data",
    [
        None,
        "x",
        1,
        [],
        {},
        {"event": None},
        {"event": []},
        {"event": {}},
        {"event": {"replayId": None}},
    ],
)
def test_events_without_an_id_are_always_delivered(data: Any) -> None:
    table = Table().open(A)
    message = {"channel": A, "data": data}
    assert table.connect(dict(message), dict(message)) == [message, message]


def test_ids_of_any_json_type_pass() -> None:
    table = Table().open(A)
    ids: list[Any] = [1, "x", 1.5, [1], {"a": 1}, False]
    assert len(table.connect(*(event(A, one) for one in ids))) == len(ids)
    assert len(table.connect(*(event(A, one) for one in ids))) == 1
    table.connect(event(A, [2]))
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: [2]}]


@pytest.mark.parametrize("channel", [None, 5, [], {}, "/meta/connect", "/meta/x"])
def test_data_on_no_channel_is_no_event(channel: Any) -> None:
    table = Table().open(A)
    assert table.connect({"channel": channel, "data": {}}, event(A, 1)) == [event(A, 1)]
    assert table.connect({"data": {}}) == []


def test_what_is_neither_reply_nor_event_is_passed_over() -> None:
    table = Table().open(A)
    other = {"channel": "/meta/subscribe", "id": "99", "successful": True, "advice": {"timeout": 1}}
    assert table.connect(other, {"channel": "/service/x"}, {}) == []
    assert table.session.state is State.CONNECTED
    assert table.session.advice == {}


def test_whose_advice_counts() -> None:
    table = Table()
    table.handshake(advice={"timeout": 2000})
    assert table.session.hold == 2.0
    table.connect(advice={"timeout": 3000})
    table.connect(advice="nonsense")
    assert table.session.hold == 3.0
    # A connect's reply may come with the answer to another request, and another's with a connect's.
    connect = {"channel": "/meta/connect", "id": "99", "advice": {"timeout": 4000}}
    table.exchange(table.session.publish_message("/service/x", {}), connect)
    assert table.session.hold == 4.0


def test_the_reply_to_a_publish_may_have_data() -> None:
    table = Table().open("/chat")
    events, reply = table.exchange(table.session.publish_message("/chat", {}), data={})
    assert events == []
    assert reply["successful"] is True


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ({"successful": True}, True),
        ({"error": "403::Unknown client"}, True),
        ({"error": "Timed out"}, False),
        ({"error": 504}, False),
        ({"advice": {"reconnect": "handshake"}}, True),
        ({"id": 1, "successful": True}, True),
        ({"id": "1", "successful": True}, True),
        ({"id": "99", "successful": True}, False),
        ({"channel": "/meta/subscribe", "successful": True}, False),
        ({"channel": "/meta/connect"}, False),
        ({}, False),
    ],
)
def test_finding_the_reply(reply: Message, found: bool) -> None:
    session = Table().session
    request = session.connect_message()
    _, answer = receive(session, [reply], session.send(request))
    assert (answer is not None) is found
    if answer is not None:
        assert answer["channel"] == "/meta/connect"
        assert answer["id"] == request["id"]
        assert isinstance(answer["successful"], bool)


@pytest.mark.parametrize(
    ("kind", "fields", "successful"),
    [
        ("handshake", {}, False),
        ("connect", {"error": ""}, False),
        ("subscribe", {"successful": "true"}, False),
        ("unsubscribe", {}, True),
        ("unsubscribe", {"error": "400::x"}, False),
        ("disconnect", {"successful": None}, True),
    ],
)
def test_a_missing_successful(kind: str, fields: Message, successful: bool) -> None:
    session = Table().session
    messages = {
        "handshake": session.handshake_message([]),
        "connect": session.connect_message(),
        "subscribe": session.subscribe_message(Subscription(A, A)),
        "unsubscribe": session.unsubscribe_message(A),
        "disconnect": session.disconnect_message("x"),
    }
    request = messages[kind]
    reply = {"id": request["id"], "error": None, **fields}
    _, answer = receive(session, [reply], session.send(request))
    assert answer is not None
    assert answer["successful"] is successful
    if "subscribe" in kind:
        assert answer["subscription"] == A


def test_what_belongs_to_a_lost_session_is_not_used() -> None:
    table = Table().open(A)
    ticket = table.session.send(table.session.unsubscribe_message(B))
    table.connect(**UNKNOWN)
    events, reply = receive(table.session, [event(A, 9), {"successful": True}], ticket)
    assert events == []
    assert reply is not None
    epoch = table.session.epoch - 1
    assert table.session.request_done(reply, epoch, 0) is False
    assert table.session.request_done({**reply, "successful": False, **UNKNOWN}, epoch, 0) is True
    assert table.session.request_done(failure(Trouble.LOST), epoch, 0) is False
    table.session.connect_done(reply, epoch, 0, 1.0, 0)
    assert table.session.state is State.NO_SESSION


def test_a_lost_answer_rewinds_to_what_was_known_when_it_was_asked_for() -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1))
    side = table.session.send(table.session.unsubscribe_message(B))
    table.connect(event(A, 3), event(B, 4))
    table.session.abandon(side, lost=True)
    table.session.request_done(failure(Trouble.LOST), table.session.epoch, table.now)
    # B had no id then, so what came later must do.
    assert table.renew() == [{A: 1}, {B: 4}]
    assert [m["data"]["event"]["replayId"] for m in table.connect(event(A, 2), event(A, 3))] == [2]


def test_a_request_under_way_when_the_session_is_lost_rewinds_as_well() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    first = table.session.send(table.session.unsubscribe_message(B))
    table.connect(event(A, 2))
    second = table.session.send(table.session.unsubscribe_message(B))
    table.connect(event(A, 3))
    table.connect(**UNKNOWN)
    table.session.abandon(first, lost=True)
    table.session.abandon(second, lost=False)
    assert table.renew() == [{A: 1}]


def hang(table: Table) -> Ticket:
    """Send something that is not answered yet."""
    return table.session.send(table.session.publish_message("/service/x", {}))


def lose(table: Table, ticket: Ticket) -> None:
    """Let the answer be lost, and the session with it."""
    table.session.abandon(ticket, lost=True)
    table.session.request_done(failure(Trouble.LOST), ticket.epoch, table.now)


def test_a_request_sent_later_does_not_undo_the_rewinding() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    lost = hang(table)
    table.connect(event(A, 3))
    table.session.send(table.session.connect_message())
    lose(table, lost)
    assert table.renew() == [{A: 1}]


def test_an_answer_that_an_earlier_session_never_got_rewinds_no_later_one() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    late = hang(table)
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 1}]
    table.connect(event(A, 2))
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 2}]
    table.session.abandon(late, lost=True)
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 2}]


@pytest.mark.parametrize("start", [-2, 7])
def test_a_lost_answer_may_have_held_the_first_event(start: int) -> None:
    table = Table().open()
    before = hang(table)
    table.subscribe(A, start)
    table.connect(event(A, 9))
    lose(table, before)
    assert table.renew() == [{A: start}]


def test_a_subscription_under_way_when_the_session_is_lost_starts_over() -> None:
    table = Table().open()
    subscription = table.session.subscribe(A, -2)
    message = table.session.subscribe_message(subscription)
    table.session.stamp(message, subscription)
    ticket = table.session.send(message)
    table.connect(event(A, 9))
    table.connect(**UNKNOWN)
    _, reply = receive(table.session, [table.reply(message)], ticket)
    assert reply is not None
    table.session.request_done(reply, ticket.epoch, table.now)
    assert table.session.subscribe_done(subscription, reply) is False
    assert table.renew() == [{A: -2}]


def test_a_session_that_is_lost_while_its_events_are_delivered() -> None:
    """The application takes events before the reply that came with them is looked at."""
    table = Table().open()
    request = table.session.connect_message()
    ticket = table.session.send(request)
    messages = [
        event(A, 9),
        table.reply(request, advice={"reconnect": "none"}),
        {"channel": "/meta/disconnect"},
    ]
    events, others = table.session.receive(messages, ticket)
    table.connect(**UNKNOWN)
    advice = table.session.advice
    reply = table.session.take_reply(others, ticket, len(events))
    assert events == messages[:1]
    assert reply is not None
    assert table.session.advice is advice, "it is that of a session that is gone"
    table.renew()
    table.connect()
    assert table.session.state is State.CONNECTED, "the new session did not end"


@pytest.mark.parametrize("start", [None, -2, 5])
def test_a_refused_subscription_leaves_what_others_must_rewind_to(start: int | None) -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    before = hang(table)
    subscription = table.session.subscribe(A, start)
    message = table.session.subscribe_message(subscription)
    table.session.stamp(message, subscription)
    at_once = hang(table)
    table.connect(event(A, 2))
    later = hang(table)
    _, reply = table.exchange(message, error="403::No access on channel")
    table.session.subscribe_done(subscription, reply)
    table.connect(event(A, 3))
    points = [[*ticket.points.values()] for ticket in (before, at_once, later)]
    assert points == [[1], [1], [2]]
    lose(table, later)
    # Older ones were under way as well.
    assert table.renew() == [{A: 1}]


def test_a_refused_subscription_before_the_first_event() -> None:
    table = Table().open(A)
    ticket = hang(table)
    table.subscribe(A, 5, error="403::No access on channel")
    assert ticket.points == {}
    table.connect(**UNKNOWN)
    assert table.renew() == [None]


def test_a_request_that_was_not_sent_rewinds_nothing() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    ticket = table.session.send(table.session.unsubscribe_message(B))
    table.connect(event(A, 2))
    table.session.abandon(ticket, lost=False)
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 2}]


def test_the_memory_is_bounded_and_keeps_the_newest() -> None:
    table = Table(limit=10).open(A)
    for start in range(0, 10_000, 500):
        table.connect(*(event(A, number) for number in range(start, start + 500)))
    position = table.session._positions[A]
    assert MIN_MEMORY <= len(position.seen) <= 2 * (MIN_MEMORY + 510)
    assert table.connect(event(A, 9_999), event(A, 9_500)) == []
    assert len(table.connect(event(A, 1))) == 1


def test_a_whole_response_is_remembered_however_large() -> None:
    table = Table().open(A)
    window = [event(A, number) for number in range(5 * MIN_MEMORY)]
    assert len(table.connect(*window)) == len(window)
    table.connect(event(A, -1))
    assert table.connect(*window) == []


def test_names_are_bounded() -> None:
    table = Table().open("/event/*")
    for number in range(2 * MAX_NAMES + 10):
        table.connect(event(f"/event/{number}", number), event(f"/other/{number}", number))
    assert len(table.session._owners) <= MAX_NAMES + 1
    assert len(table.session._strangers) <= MAX_NAMES
    assert len(table.session.aliases) <= MAX_NAMES
    # The newest are those that are kept: what is looked up has its alias.
    for number in (MAX_NAMES + 10, 2 * MAX_NAMES + 9, 1, MAX_NAMES + 10):
        table.session._index()
        table.connect(event(f"/event/{number}", -number))
        assert table.session.aliases[f"/event/{number}"] == "/event/*"
        assert [*table.session.aliases][-1] == f"/event/{number}"


# Whose event it is


@pytest.mark.parametrize(
    ("subscribed", "channel", "covers"),
    [
        ("/event/*", "/event/A", True),
        ("/event/*", "/event", False),
        ("/event/*", "/event/a/b", False),
        ("/event/**", "/event/a/b", True),
        ("/event/**", "/topic/a", False),
        ("/event/Mine__chn", "/event/A__e", True),
        ("/data/Mine__chn", "/event/A__e", False),
        ("/data/ChangeEvents", "/data/AccountChangeEvent", True),
        ("/event/A__e", "/event/B__e", False),
    ],
)
def test_what_a_subscription_may_deliver(subscribed: str, channel: str, covers: bool) -> None:
    assert may_deliver(subscribed, channel) is covers


def test_events_of_a_custom_channel_move_its_resume_point() -> None:
    custom = "/event/Mine__chn"
    table = Table().open(custom)
    assert len(table.connect(event(A, 5), event(B, 5), event(A, 5))) == 2
    assert table.session.aliases == {A: custom, B: custom}
    table.connect(**UNKNOWN)
    assert table.renew() == [{custom: 5}]
    table.subscribe(A)
    assert table.session.aliases == {B: custom}


def test_an_event_that_may_be_anybodys(caplog: pytest.LogCaptureFixture) -> None:
    table = Table().open("/event/One__chn", "/event/Two__chn")
    assert len(table.connect(event(A, 1), event(A, 1))) == 2
    assert table.session.aliases == {}
    assert len(caplog.records) == 1


def test_a_filtered_pushtopic_has_one_position_with_its_channel() -> None:
    filtered = "/topic/T?a=1"
    table = Table().open("/topic/T", filtered)
    table.connect(event("/topic/T", 3))
    table.connect(**UNKNOWN)
    assert table.renew() == [{"/topic/T": 3}, {"/topic/T": 3}]
    table.session.unsubscribe_done(filtered, {"successful": True})
    assert table.connect(event("/topic/T", 3)) == []
    table.session.unsubscribe_done("/topic/T", {"successful": True})
    table.session.unsubscribe_done("/topic/T", failure(Trouble.LOST))
    assert table.session.subscriptions == {}
    assert len(table.connect(event("/topic/T", 3))) == 1


def test_key_of() -> None:
    assert key_of("/topic/T?a=1&b='?'") == key_of("/topic/T") == "/topic/T"


# Resubscribing


@pytest.mark.parametrize(
    ("start", "sent"), [(-1, -1), (-2, -2), (7, 7), ("x", "x"), (None, None), (0, 0)]
)
def test_before_the_first_event_it_starts_as_it_did(start: Any, sent: Any) -> None:
    table = Table().open(A, start=start)
    table.connect(**UNKNOWN)
    assert table.renew() == [None if sent is None else {A: sent}]


@pytest.mark.parametrize("start", [-1, -2, 7, None])
def test_after_the_first_event_it_resumes_from_there(start: Any) -> None:
    table = Table().open(A, start=start)
    table.connect(event(A, 0))
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 0}]
    resumed = [one for one in table.events if one.kind is ConnectionEventKind.CHANNEL_RESUMED]
    assert [(one.channel, one.replay_id) for one in resumed] == [(A, 0)]


def test_an_explicit_subscription_forgets_what_was() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.subscribe(A, -2)
    assert len(table.connect(event(A, 1))) == 1


def test_a_refused_explicit_subscription_leaves_things_as_they_were() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.subscribe(A, 5, event(A, 2), error="403::No access on channel")
    assert table.connect(event(A, 1), event(A, 2)) == []
    assert set(table.session.subscriptions) == {A}
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: 2}]
    table.subscribe(B, 5, error="403::No access on channel")
    assert set(table.session._positions) == {A}
    subscription = table.session.subscribe(B, None)
    table.session.subscribe_done(subscription, None)
    subscription = table.session.subscribe(B, None)
    table.session.subscribe_done(subscription, failure(Trouble.LOST))
    assert set(table.session._positions) == {A}


def test_a_fallback_is_tried_once() -> None:
    table = Table(fallback=-2).open(A, start=1)
    table.connect(event(A, 5))
    table.connect(**UNKNOWN)
    table.handshake()
    assert table.resubscribe(error=INVALID_ID)["ext"]["replay"] == {A: 5}
    assert table.resubscribe()["ext"]["replay"] == {A: -2}
    assert table.refusals == [A]
    assert table.session.next_to_resubscribe() is None
    table.connect(event(A, 8), event(A, 9))
    assert [message["data"]["event"]["replayId"] for message in table.overwritten] == [8]
    assert ConnectionEventKind.FALLBACK_USED in table.kinds()


def test_each_renewal_may_use_the_fallback() -> None:
    table = Table(fallback=-2).open(A, start=1)
    for _ in range(3):
        table.connect(**UNKNOWN)
        table.handshake()
        table.resubscribe(error=INVALID_ID)
        assert table.resubscribe()["ext"]["replay"] == {A: -2}
        assert table.session.next_to_resubscribe() is None
        table.connect()
    assert table.refusals == [A] * 3
    table.connect(event(A, 8))
    assert A in table.session._plain, "later events take the long way"


def test_it_starts_again_where_the_extensions_let_it_start() -> None:
    table = Table().open()
    subscription = table.session.subscribe(A, None)
    message = table.session.subscribe_message(subscription)
    message["ext"] = {"replay": {A: -1}}
    table.session.stamp(message, subscription)
    _, reply = table.exchange(message)
    assert table.session.subscribe_done(subscription, reply) is False
    assert subscription.previous is None
    table.connect(**UNKNOWN)
    assert table.renew() == [{A: -1}]


def test_what_may_be_missed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    table = Table().open(A, start=-1)
    table.subscribe(B, -2)
    table.session.connect_done(failure(Trouble.LOST), table.session.epoch, 0, 1.0, 10.0)
    table.now = 22.5
    table.renew()
    [record] = [one for one in caplog.records if one.levelname == "WARNING"]
    assert A in record.getMessage()
    assert "published in the last 12.5 seconds is not delivered" in record.getMessage()


def test_a_fallback_that_is_refused_as_well() -> None:
    table = Table(fallback=-2).open(A, start=1)
    table.connect(**UNKNOWN)
    table.handshake()
    table.resubscribe(error=INVALID_ID)
    table.resubscribe(error=INVALID_ID)
    assert [type(error) for error in table.session.errors] == [ServerError]
    assert table.session.subscriptions == {}
    assert table.session.next_to_resubscribe() is None
    assert ConnectionEventKind.CHANNEL_LOST in table.kinds()


def test_without_a_fallback_the_channel_is_lost_and_named() -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1))
    table.connect(**UNKNOWN)
    table.handshake()
    table.resubscribe(error=INVALID_ID)
    [error] = table.session.errors
    assert A in str(error)
    assert set(table.session.subscriptions) == {B}


def test_a_first_subscription_may_fall_back() -> None:
    table = Table(fallback=-1).open()
    subscription = table.session.subscribe(A, None)
    reply = table.reply(table.session.subscribe_message(subscription), error=INVALID_ID)
    assert table.session.subscribe_done(subscription, reply) is True
    assert subscription.stamp == -1
    assert table.session.subscribe_done(subscription, reply) is False


@pytest.mark.parametrize(
    "fields",
    [UNKNOWN, {"error": "x", "ext": {"sfdc": {"failureReason": "503::Server is too busy."}}}],
)
def test_a_session_lost_while_resubscribing(fields: Message) -> None:
    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.handshake()
    table.resubscribe(**fields)
    assert table.session.state is State.NO_SESSION
    assert set(table.session.subscriptions) == {A}


def test_a_channel_that_was_dropped_meanwhile_is_not_resubscribed() -> None:
    table = Table().open(A, B)
    table.connect(**UNKNOWN)
    table.handshake()
    table.session.unsubscribe_done(A, {"successful": True})
    assert table.resubscribe()["subscription"] == B


def test_a_goodbye_while_resubscribing() -> None:
    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.handshake()
    subscription = table.session.next_to_resubscribe()
    assert subscription is not None
    message = table.session.subscribe_message(subscription)
    _, reply = table.exchange(message, {"channel": "/meta/disconnect"})
    table.session.resubscribe_done(subscription, reply, 0)
    assert table.session.state is State.NO_SESSION


def test_a_goodbye_beside_the_connect() -> None:
    table = Table().open(A)
    request = table.session.unsubscribe_message(B)
    _, reply = table.exchange(request, {"channel": "/meta/disconnect", "successful": True})
    assert table.session.request_done(reply, table.session.epoch, 0) is False
    assert table.session.state is State.NO_SESSION


def test_a_goodbye_while_opening() -> None:
    for times, state in ((1, State.NO_SESSION), (2, State.STOPPED)):
        table = Table()
        for _ in range(times):
            table.handshake()
            table.connect({"channel": "/meta/disconnect"})
        assert table.session.state is state


def test_a_failed_resubscription_is_repeated() -> None:
    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.handshake()
    subscription = table.session.next_to_resubscribe()
    assert subscription is not None
    table.session.resubscribe_done(subscription, failure(Trouble.NOT_SENT), 0)
    assert table.session.state is State.RESUBSCRIBING
    assert table.session.next_to_resubscribe() is subscription


# Recovery


def test_a_first_loss_is_recovered_at_once_and_repeated_ones_with_backoff() -> None:
    table = Table().open(A)
    delays = []
    for _ in range(30):
        table.connect(elapsed=0.1)
        table.connect(elapsed=0.1, **UNKNOWN)
        step = table.session.next_step()
        delays.append(step.delay)
        table.session._delay = 0
        table.renew()
    assert delays[0] == 0.0
    assert max(delays) > 10.0
    assert max(delays) <= 60.0


def test_a_connection_that_holds_makes_failures_forgotten() -> None:
    table = Table().open(A)
    for _ in range(5):
        table.connect(elapsed=0.1, **UNKNOWN)
        table.renew()
    table.connect(elapsed=10.0)
    table.connect(elapsed=10.0)
    table.connect(**UNKNOWN)
    assert table.session.next_step().delay == 0.0
    for _ in range(3):
        table.renew()
        table.connect(elapsed=0.1, **UNKNOWN)
    table.renew()
    # Held, and then lost without a word in between.
    table.now += 100
    table.connect(**UNKNOWN)
    assert table.session.next_step().delay == 0.0


def test_a_busy_server_that_has_recovered_starts_anew() -> None:
    table = Table().open(A)
    for _ in range(6):
        table.connect(elapsed=0.1, **BUSY)
        table.renew()
    assert table.session._busy.bound == 300.0
    table.connect(elapsed=10.0)
    table.connect(**BUSY)
    assert table.session.next_step().delay <= 10.0


def test_what_a_loss_and_its_end_leave_behind() -> None:
    table = Table().open(A)
    cause = failure(Trouble.LOST)
    table.session.connect_done(cause, table.session.epoch, 0, 1.0, 3.0)
    assert table.session.last_error is cause.error
    assert [(one.kind, one.error) for one in table.events[-2:]] == [
        (ConnectionEventKind.CONNECTION_LOST, cause.error),
        (ConnectionEventKind.RETRYING, cause.error),
    ]
    table.session.handshake_done(failure(Trouble.NOT_SENT), 5.0)
    # Lost is lost: it is told once, and counted from the beginning.
    assert table.kinds().count(ConnectionEventKind.CONNECTION_LOST) == 1
    assert table.session.lost_since == 3.0
    table.renew()
    assert table.session.last_error is None
    assert table.session.lost_since is None
    assert table.session.last_connect is not None
    assert table.session.last_connect["successful"] is True


@pytest.mark.parametrize("trouble", [Trouble.NOT_SENT, Trouble.THROTTLED])
def test_a_request_that_was_not_sent_is_repeated_in_the_same_session(trouble: Trouble) -> None:
    table = Table().open(A)
    client_id = table.session.client_id
    table.session.connect_done(failure(trouble, 7.0), table.session.epoch, 0, 1.0, 5.0)
    assert table.session.state is State.CONNECTING
    assert table.session.client_id == client_id
    assert table.session.next_step().delay >= 7.0
    assert table.session.lost_since == 5.0
    table.connect()
    assert table.session.lost_since is None
    assert table.session.state is State.CONNECTED


def test_a_lost_answer_gives_up_the_session_with_a_goodbye() -> None:
    table = Table().open(A)
    table.session.connect_done(failure(Trouble.LOST, 3.0), table.session.epoch, 0, 1.0, 5.0)
    assert table.session.farewell_id == "client"
    assert table.session.client_id is None
    assert table.session.next_step().delay >= 3.0
    table.session.handshake_done(failure(Trouble.LOST), 6.0)
    assert table.session.state is State.NO_SESSION


def test_a_handshake_without_a_client_id_is_no_handshake() -> None:
    for client_id in (None, "", 5):
        table = Table().open(A)
        table.connect(**UNKNOWN)
        table.handshake(clientId=client_id)
        assert table.session.state is State.NO_SESSION
        assert "no clientId" in str(table.session.last_error)
        assert table.events[-1].kind is ConnectionEventKind.RETRYING
        assert table.events[-1].delay == table.session.next_step().delay > 0.0


def test_what_a_handshake_puts_an_end_to() -> None:
    table = Table().open(A)
    table.session.connect_done(failure(Trouble.LOST), table.session.epoch, 0, 1.0, 0.0)
    assert table.session.farewell_id == "client"
    table.session.next_step()
    goodbye = {"channel": "/meta/disconnect"}
    _, reply = table.exchange(table.session.handshake_message([]), goodbye)
    table.session.handshake_done(reply, table.now)
    assert table.session.farewell_id is None
    # A goodbye in the answer to a handshake is to the session before.
    table.resubscribe()
    assert table.session.next_to_resubscribe() is None
    table.connect()
    assert table.session.state is State.CONNECTED
    assert table.kinds()[-3:] == [
        ConnectionEventKind.SESSION_RENEWED,
        ConnectionEventKind.CHANNEL_RESUMED,
        ConnectionEventKind.CONNECTED,
    ]


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"advice": {"reconnect": "none"}}, State.STOPPED),
        ({"advice": {"reconnect": "handshake"}}, State.CONNECTING),
        ({"advice": {"interval": -1}}, State.STOPPED),
        ({"error": "400::x", "advice": {"reconnect": "none"}}, State.STOPPED),
        ({"error": "400::x"}, State.NO_SESSION),
    ],
)
def test_advice_with_a_handshake(fields: Message, state: State) -> None:
    table = Table().open()
    table.connect(**UNKNOWN)
    table.handshake(**fields)
    assert table.session.state is state


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"advice": {"reconnect": "none"}}, State.STOPPED),
        ({"advice": {"reconnect": "handshake"}}, State.NO_SESSION),
        ({"error": "500::x", "advice": {"reconnect": "retry"}}, State.CONNECTING),
        ({"error": "500::x"}, State.CONNECTING),
        ({"error": "500::x", "advice": {"reconnect": "none"}}, State.STOPPED),
        ({"error": "401::Authentication invalid", "advice": {"reconnect": "none"}}, State.NO_TOKEN),
        ({"error": "403::Organization total events daily limit exceeded"}, State.NO_SESSION),
    ],
)
def test_advice_with_a_connect(fields: Message, state: State) -> None:
    table = Table().open(A)
    table.connect(**fields)
    assert table.session.state is state
    if state is State.STOPPED:
        assert isinstance(table.session.stop_error, ServerError)
        assert table.session.next_step().action is Action.STOP
        assert table.kinds()[-1] is ConnectionEventKind.CLOSED


def test_cookies_are_thrown_away_three_times() -> None:
    table = Table().open(A)
    refusal: dict[str, Any] = {
        "error": "400::Client x has established a session, but no BAYEUX_BROWSER cookie present"
    }
    for _ in range(MAX_COOKIE_RENEWALS):
        table.connect(**refusal)
        assert table.session.state is State.NO_SESSION
        assert table.session.clear_cookies
        table.handshake()
        assert not table.session.clear_cookies
        table.resubscribe()
        table.session.next_to_resubscribe()
    table.connect(**refusal)
    assert table.session.state is State.STOPPED


def test_a_refused_token() -> None:
    table = Table().open(A)
    table.connect(error="401::Authentication invalid")
    assert table.session.next_step().action is Action.AUTHENTICATE
    table.session.authenticated(table.now)
    table.renew()
    assert table.session.state is State.CONNECTED
    assert ConnectionEventKind.REAUTHENTICATED in table.kinds()


@pytest.mark.parametrize(
    "fields",
    [
        {"error": "401::Authentication invalid"},
        {"error": "400::no BAYEUX_BROWSER cookie present"},
    ],
)
def test_only_failures_in_a_row_count(fields: Message) -> None:
    table = Table().open(A)
    for _ in range(10):
        table.connect(**fields)
        if table.session.next_step().action is Action.AUTHENTICATE:
            table.session.authenticated(table.now)
        table.renew()
    assert table.session.errors == ()
    assert table.session.state is State.CONNECTED


def test_refusals_before_a_success_do_not_count() -> None:
    table = Table().open()
    delays = []
    for _ in range(3):
        table.connect(error="401::Authentication invalid")
        table.session.authentication_failed(AuthenticationError("refused"), table.now)
        table.session.unpark()
        delays.append(table.session.next_step().delay)
        table.session.authenticated(table.now)
        table.renew()
    assert delays == [5.0] * 3


def test_a_new_token_that_connects_refuse_is_renewed_a_few_times() -> None:
    table = Table().open()
    logins = 0
    while table.session.state is not State.PARKED:
        table.connect(error="401::Authentication invalid")
        if table.session.state is State.NO_TOKEN:
            logins += 1
            table.session.next_step()
            table.session.authenticated(table.now)
            table.handshake()
    assert logins == 3
    [error] = table.session.errors
    assert isinstance(error, AuthenticationError)
    assert isinstance(error.__cause__, ServerError)


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (403, TransportError)])
def test_a_new_token_that_the_handshake_refuses(status: int, kind: type[Exception]) -> None:
    table = Table().open()
    trouble = Trouble.UNAUTHORIZED if status == 401 else Trouble.FORBIDDEN
    table.session.connect_done(failure(trouble, status=status), table.session.epoch, 0, 1.0, 0)
    assert table.session.next_step().action is Action.AUTHENTICATE
    table.session.authenticated(0)
    table.session.handshake_done(failure(trouble, status=status), 0)
    assert table.session.state is State.PARKED
    assert [type(error) for error in table.session.errors] == [kind]
    assert table.session.waits_for_credentials
    table.session.unpark()
    wanted = Action.AUTHENTICATE if status == 401 else Action.HANDSHAKE
    assert table.session.next_step().action is wanted


def test_refused_credentials_wait_for_the_application() -> None:
    table = Table().open()
    table.session.unpark()
    assert table.session.state is State.CONNECTED
    table.connect(error="401::Authentication invalid")
    delays = []
    for _ in range(12):
        table.session.authentication_failed(AuthenticationError("refused"), 0)
        assert table.session.next_step().action is Action.PARK
        table.session.unpark()
        delays.append(table.session.next_step().delay)
        assert table.session.waits_for_credentials
    assert delays[:4] == [5.0, 10.0, 20.0, 40.0]
    assert delays[-1] == 900.0
    table.session.authenticated(77.0)
    assert table.session.lost_since == 77.0
    assert not table.session.waits_for_credentials


@pytest.mark.parametrize(
    ("text", "bound"), [("server_error", 60.0), ("login rate exceeded", 300.0)]
)
def test_a_log_in_that_may_succeed_later_is_repeated(text: str, bound: float) -> None:
    table = Table().open()
    table.connect(error="401::Authentication invalid")
    error = AuthenticationError(
        "later", error="invalid_grant", error_description=text, retryable=True
    )
    delays = []
    for _ in range(40):
        table.session.authentication_failed(error, 0)
        assert table.session.last_error is error
        step = table.session.next_step()
        assert step.action is Action.AUTHENTICATE
        delays.append(step.delay)
    assert bound / 2 < max(delays) <= bound


def test_a_log_in_that_may_succeed_later_is_no_refusal() -> None:
    table = Table().open()
    table.connect(error="401::Authentication invalid")
    table.session.authentication_failed(AuthenticationError("refused"), 0)
    table.session.unpark()
    assert table.session.waits_for_credentials
    table.session.authentication_failed(AuthenticationError("down", retryable=True), 0)
    assert not table.session.waits_for_credentials


TOKEN: Message = {"error": "401::Authentication invalid", "advice": {"reconnect": "none"}}
BUSY: Message = {"error": "x", "ext": {"sfdc": {"failureReason": "503::Server is too busy."}}}
COOKIE: Message = {"error": "400::no BAYEUX_BROWSER cookie present"}


STAYS = None
NO_SESSION, NO_TOKEN, STOPPED = State.NO_SESSION, State.NO_TOKEN, State.STOPPED
HANDSHAKE_ADVICE = {"reconnect": "handshake"}
DENIED = {"error": "403:denied_by_security_policy:create_denied", "advice": {"reconnect": "none"}}
LIMIT = {"error": "403::Organization total events daily limit exceeded"}
CONNECTIONS = {"error": "403::Organization concurrent user limit exceeded"}
TRUE_CAUSE = {
    "error": "403::Handshake denied",
    "ext": {"sfdc": {"failureReason": "401::Authentication invalid"}},
    "advice": {"reconnect": "none"},
}

#: What happens, and the state that it leads to: on a connect, on a handshake, on subscribing again,
#: and beside the connect. A connect that is to be repeated waits as CONNECTING.
FAILURES: list[tuple[Any, State, State, State | None, State | None]] = [
    (failure(Trouble.NOT_SENT), State.CONNECTING, NO_SESSION, STAYS, STAYS),
    (failure(Trouble.THROTTLED, 3.0), State.CONNECTING, NO_SESSION, STAYS, STAYS),
    (failure(Trouble.LOST), NO_SESSION, NO_SESSION, NO_SESSION, NO_SESSION),
    (failure(Trouble.REJECTED, status=404), STOPPED, STOPPED, STOPPED, STAYS),
    (failure(Trouble.REDIRECTED, status=302), STOPPED, STOPPED, STOPPED, STAYS),
    (failure(Trouble.UNAUTHORIZED, status=401), NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN),
    (failure(Trouble.FORBIDDEN, status=403), NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN),
    (TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN),
    (TRUE_CAUSE, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN),
    (UNKNOWN, NO_SESSION, NO_SESSION, NO_SESSION, NO_SESSION),
    ({"error": "402::session_unknown"}, NO_SESSION, NO_SESSION, NO_SESSION, NO_SESSION),
    (COOKIE, NO_SESSION, NO_SESSION, NO_SESSION, NO_SESSION),
    # Who subscribes is told that the server is busy; what holds the session waits until it is not.
    (BUSY, NO_SESSION, NO_SESSION, NO_SESSION, STAYS),
    ({**BUSY, "advice": {"reconnect": "none"}}, NO_SESSION, NO_SESSION, NO_SESSION, STAYS),
    (CONNECTIONS, NO_SESSION, NO_SESSION, NO_SESSION, STAYS),
    (LIMIT, NO_SESSION, NO_SESSION, STAYS, STAYS),
    (DENIED, STOPPED, STOPPED, STAYS, STAYS),
    ({"error": "500::x"}, State.CONNECTING, NO_SESSION, STAYS, STAYS),
    ({"error": "500::x", "advice": HANDSHAKE_ADVICE}, NO_SESSION, NO_SESSION, STAYS, STAYS),
    ({"error": "500::x", "advice": {"reconnect": "none"}}, STOPPED, STOPPED, STAYS, STAYS),
    ({"error": "500::x", "advice": {"interval": -1}}, STOPPED, STOPPED, STAYS, STAYS),
]


@pytest.mark.parametrize(("outcome", "connect", "handshake", "resubscribe", "beside"), FAILURES)
def test_where_each_failure_leads(
    outcome: Any,
    connect: State,
    handshake: State,
    resubscribe: State | None,
    beside: State | None,
) -> None:
    table = Table().open(A)
    table.session.connect_done(_as_result(table, outcome), table.session.epoch, 0, 1.0, 1.0)
    assert table.session.state is connect

    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.session.handshake_done(_as_result(table, outcome), table.now)
    assert table.session.state is handshake

    table = Table().open(A, B)
    table.connect(**UNKNOWN)
    table.handshake()
    subscription = table.session.next_to_resubscribe()
    assert subscription is not None
    result = _as_result(table, outcome)
    table.session.resubscribe_done(subscription, result, table.now)
    assert table.session.state is (resubscribe or State.RESUBSCRIBING)
    # Only a refusal that concerns the channel alone costs the channel, and says so.
    costs = resubscribe is STAYS and not isinstance(outcome, Failure)
    assert (A not in table.session.subscriptions) is costs
    assert len(table.session.errors) == costs

    table = Table().open(A)
    again = table.session.request_done(_as_result(table, outcome), table.session.epoch, 1.0)
    assert table.session.state is (beside or State.CONNECTED)
    # After a lost answer nobody knows whether the request was carried out, so it is not repeated.
    lost = isinstance(outcome, Failure) and outcome.trouble is Trouble.LOST
    assert again is (beside is not STAYS and not lost)


@pytest.mark.parametrize("on_connect", [False, True])
@pytest.mark.parametrize(
    ("outcome", "makes_up"),
    [
        (failure(Trouble.NOT_SENT), None),
        (failure(Trouble.LOST), None),
        (failure(Trouble.THROTTLED), None),
        (failure(Trouble.REJECTED), None),
        (failure(Trouble.REDIRECTED), None),
        ({"error": "500::x"}, None),
        (BUSY, None),
        (UNKNOWN, Action.HANDSHAKE),
        (COOKIE, Action.HANDSHAKE),
        (TOKEN, Action.AUTHENTICATE),
        (failure(Trouble.UNAUTHORIZED, status=401), Action.AUTHENTICATE),
        (failure(Trouble.FORBIDDEN, status=403), Action.AUTHENTICATE),
    ],
)
def test_opening_makes_up_for_one_refused_token_and_one_lost_session(
    outcome: Message | Failure, makes_up: Action | None, on_connect: bool
) -> None:
    table = Table()
    session = table.session
    for wanted in (makes_up, None):
        if on_connect:
            table.handshake()
            session.connect_done(_as_result(table, outcome), session.epoch, 0, 1.0, 0.0)
        else:
            session.handshake_done(_as_result(table, outcome), 0.0)
        step = session.next_step()
        if wanted is None:
            break
        # At once, as somebody waits for it.
        assert (step.action, step.delay) == (wanted, 0.0)
        if wanted is Action.AUTHENTICATE:
            session.authenticated(0.0)
    assert step.action is Action.STOP
    error = session.stop_error
    if isinstance(outcome, Failure):
        refused = outcome.status == 401
        assert isinstance(error, AuthenticationError) if refused else error is outcome.error
    elif outcome is TOKEN:
        assert isinstance(error, AuthenticationError)
        assert isinstance(error.__cause__, ServerError)
    else:
        assert isinstance(error, ServerError)
    # Nobody observes a client that has not opened, but for a new token.
    assert set(table.kinds()) <= {ConnectionEventKind.REAUTHENTICATED}


def _as_result(table: Table, outcome: Message | Failure) -> Any:
    if isinstance(outcome, Failure):
        return outcome
    return table.reply(table.session.connect_message(), **outcome)


def test_opening_blames_the_token_for_nothing_else() -> None:
    table = Table()
    table.handshake(**TOKEN)
    table.session.next_step()
    table.session.authenticated(0.0)
    table.handshake()
    for _ in range(2):
        table.session.connect_done(_as_result(table, UNKNOWN), table.session.epoch, 0, 1.0, 0.0)
        if table.session.next_step().action is Action.HANDSHAKE:
            table.handshake()
    assert type(table.session.stop_error) is ServerError


def test_opening_tells_that_the_new_token_is_refused() -> None:
    table = Table()
    table.handshake(error="403::Handshake denied", ext={"sfdc": {"failureReason": "401::x"}})
    assert table.session.next_step().action is Action.AUTHENTICATE
    table.session.authentication_failed(AuthenticationError("refused"), 0)
    assert isinstance(table.session.stop_error, AuthenticationError)


def test_a_storage_that_fails_during_a_renewal() -> None:
    table = Table().open(A)
    table.connect(**UNKNOWN)
    table.handshake()
    error = ReplayError("locked")
    for _ in range(2):
        table.session.storage_failed(error, table.now)
        step = table.session.next_step()
        assert step.action is Action.SUBSCRIBE
        assert step.delay > 0.0
        assert table.session.last_error is error
    table.session.storage_failed(error, table.now)
    assert table.session.errors == (error,)
    assert table.session.next_step().action is Action.PARK
    assert table.kinds()[-1] is ConnectionEventKind.STORAGE_FAILED
    table.session.unpark()
    assert table.session.waits_for_credentials
    table.renew()
    assert not table.session.waits_for_credentials
    # It was read in the end, so the next renewal may try as often again.
    table.connect(**UNKNOWN)
    table.handshake()
    for _ in range(2):
        table.session.storage_failed(error, table.now)
        assert table.session.next_step().action is Action.SUBSCRIBE
    assert len(table.session.errors) == 1


def test_what_has_ended_is_not_set_going_by_what_was_under_way() -> None:
    table = Table().open(A)
    late = hang(table)
    table.connect(advice={"reconnect": "none"})
    assert table.session.state is State.STOPPED
    error = table.session.stop_error
    lose(table, late)
    assert table.session.next_step().action is Action.STOP
    assert table.session.stop_error is error


def test_a_mistake_in_the_program_ends_it() -> None:
    table = Table().open(A)
    error = TransportError("a bug")
    table.session.crashed(error)
    assert table.session.stop_error is error


def test_requests_beside_the_connect() -> None:
    table = Table().open(A)
    session = table.session
    assert session.request_done(failure(Trouble.NOT_SENT), session.epoch, 0) is False
    assert session.request_done(failure(Trouble.REJECTED), session.epoch, 0) is False
    assert session.next_step().action is Action.CONNECT
    assert session.request_done(failure(Trouble.UNAUTHORIZED), session.epoch, 0) is True
    assert session.next_step().action is Action.AUTHENTICATE
    table = Table().open(A)
    reply = table.reply(table.session.unsubscribe_message(A), **UNKNOWN)
    assert table.session.request_done(reply, table.session.epoch, 0) is True
    assert table.session.state is State.NO_SESSION


def test_a_server_that_answers_at_once_with_nothing_is_slowed_down() -> None:
    table = Table().open()
    delays = []
    for _ in range(20):
        table.connect(elapsed=0.001)
        delays.append(table.session._delay)
        table.session.next_step()
    assert delays[:8] == pytest.approx([0.0, 0.0, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert delays[-1] == 5.0
    for events, elapsed in (([], 0.05), ([event(A, 1)], 0.001)):
        table.connect(*events, elapsed=elapsed)
        assert table.session.next_step().delay == 0.0
        table.connect(elapsed=0.001)
        assert table.session.next_step().delay == 0.0


# Whatever comes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["channel", "id", "successful", "advice", "error", "data", "ext", "clientId", "subscription"]
)
CHANNELS = st.sampled_from([A, B, "/meta/connect", "/meta/disconnect", "/meta/handshake"])
MESSAGES = st.dictionaries(NAMES, JSON | CHANNELS | st.just(None), max_size=6)


@given(st.lists(st.lists(MESSAGES, max_size=5), max_size=8))
def test_no_message_is_too_odd(responses: list[list[Message]]) -> None:
    table = Table(fallback=-2).open(A)
    session = table.session
    for messages in responses:
        step = session.next_step()
        if step.action is not Action.CONNECT:
            break
        epoch = session.epoch
        request = session.connect_message()
        events, reply = receive(session, messages, session.send(request))
        assert all("data" in one for one in events)
        if reply is not None:
            session.connect_done(reply, epoch, len(events), 1.0, table.now)
        assert 0.0 <= session.next_step().delay < 400.0


def test_a_session_that_is_lost_before_the_fallback_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = Table(fallback=-2).open(A)
    table.connect(event(A, 5))
    table.connect(**UNKNOWN)
    table.handshake()
    subscription = table.session.next_to_resubscribe()
    assert subscription is not None
    message = table.session.subscribe_message(subscription)
    _, reply = table.exchange(message, {"channel": "/meta/disconnect"}, error=INVALID_ID)
    table.session.resubscribe_done(subscription, reply, table.now)
    assert table.renew() == [{A: -2}]
    assert caplog.records == []


def test_a_channel_that_is_unsubscribed_while_it_is_subscribed_anew() -> None:
    table = Table().open(A)
    subscription = table.session.subscribe(A, 5)
    table.session.unsubscribe_done(A, {"successful": True})
    table.session.subscribe_done(subscription, None)
    assert table.session.subscriptions == {}
    assert len(table.connect(event(A, 1))) == 1


RESULTS = st.lists(
    st.dictionaries(NAMES, JSON | CHANNELS, max_size=4)
    | st.fixed_dictionaries(
        {"successful": st.booleans()},
        optional={
            "clientId": st.sampled_from(["again", "", 5]),
            "error": st.sampled_from(
                ["401::x", "402::x", UNKNOWN["error"], INVALID_ID, "503::x", COOKIE["error"], 7]
            ),
            "advice": st.sampled_from([{"reconnect": "handshake"}, {"interval": 10**9}, []]),
            "subscription": JSON,
        },
    ),
    max_size=3,
)


@given(st.lists(RESULTS, max_size=30), st.booleans())
def test_no_result_of_any_step_is_too_odd(results: list[list[Message]], opening: bool) -> None:
    table = Table(fallback=-2) if opening else Table(fallback=-2).open(A, B)
    session = table.session
    for messages in results:
        step = session.next_step()
        assert 0.0 <= step.delay <= 900.0
        table.now += 1.0 + step.delay
        if step.action is Action.STOP:
            assert session.stop_error is not None
            break
        take_step(table, step.action, messages)
        assert len(session._tickets) == 0
        assert all(isinstance(error, AiosfstreamException) for error in session.errors)
        if session.established:
            request = session.publish_message("/service/x", {})
            _, reply = receive(session, [dict(one) for one in messages], session.send(request))
            session.request_done(reply or failure(Trouble.LOST), session.epoch, table.now)
    # A channel is subscribed, or the application has been told that it is not.
    told = {event.channel for event in table.events if event.error is not None}
    assert opening or {A, B} <= told | session.subscriptions.keys()


def take_step(table: Table, action: Action, messages: list[Message]) -> None:
    """Take a step that is answered with *messages*."""
    session = table.session
    if action is Action.AUTHENTICATE:
        session.authenticated(table.now)
        return
    if action is Action.PARK:
        assert session.waits_for_credentials
        session.unpark()
        return
    subscription = session.next_to_resubscribe() if action is Action.SUBSCRIBE else None
    if action is Action.HANDSHAKE:
        request = session.handshake_message(["long-polling"])
    elif subscription is not None:
        request = session.subscribe_message(subscription)
        session.stamp(request, subscription)
    elif action is Action.CONNECT:
        request = session.connect_message()
    else:
        return
    epoch = session.epoch
    events, reply = receive(session, [dict(one) for one in messages], session.send(request))
    result = reply or failure(Trouble.LOST)
    if action is Action.HANDSHAKE:
        session.handshake_done(result, table.now)
    elif subscription is not None:
        session.resubscribe_done(subscription, result, table.now)
    else:
        session.connect_done(result, epoch, len(events), 0.5, table.now)
