"""What each channel has received, and where it resumes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aiosfstream._channels import key_of
from aiosfstream._cometd.channels import (
    MAX_NAMES,
    MIN_MEMORY,
    Channels,
    Subscription,
    digest_of,
)
from aiosfstream._cometd.states import State
from aiosfstream._http.failures import Trouble
from tests.table import GOODBYE, LIMIT, UNKNOWN, A, B, Message, Table, event, failure, ids_of

CUSTOM = "/event/Mine__chn"
ALL_CHANGES = "/data/ChangeEvents"
CHANGE = "/data/AccountChangeEvent"


def some_channels(limit: int = 0) -> Channels:
    """Make channels without a session."""
    return Channels(limit, lambda message: None)


# Stamps


def test_a_stamp_replaces_what_an_extension_left() -> None:
    subscription = Subscription(A, A, stamp=7)
    for ext in ({}, {"replay": {A: 1}}, {"replay": 5}, 5, None):
        message: Message = {"ext": ext}
        some_channels().stamp(message, subscription)
        assert message["ext"]["replay"] == {A: 7}
    message = {"ext": {"replay": {B: 1}, "other": 2}}
    some_channels().stamp(message, subscription)
    assert message == {"ext": {"replay": {B: 1, A: 7}, "other": 2}}


def test_without_a_stamp_the_extensions_word_stands() -> None:
    for ext, start in (({"replay": {A: 0}}, 0), ({"replay": None}, None), (None, None)):
        subscription = Subscription(A, A)
        message: Message = {"ext": ext}
        some_channels().stamp(message, subscription)
        assert message == {"ext": ext}
        assert subscription.start == subscription.sent_start == start


def test_the_stamp_is_under_the_key() -> None:
    channels = some_channels()
    for channel in ("/topic/T?Status='a'", "/topic/T/"):
        message: Message = {}
        channels.stamp(message, channels.add(channel, 3))
        assert message == {"ext": {"replay": {"/topic/T": 3}}}
    assert channels.sharing.keys == {"/topic/T"}


@pytest.mark.parametrize(("start", "point"), [(7, 7), ("x", "x"), (-2, -2), (0, 0), (-1, None)])
def test_what_a_subscription_starts_from_is_its_resume_point(start: Any, point: Any) -> None:
    channels = some_channels()
    subscription = channels.add(A, start)
    channels.stamp({}, subscription)
    assert subscription.resume == point
    # A later one stands.
    subscription.resume = 99
    channels.stamp({}, subscription)
    assert subscription.resume == 99


# Duplicates


def test_duplicates_are_dropped_by_channel_and_id() -> None:
    table = Table().open(A, B)
    delivered = table.connect(event(A, 1), event(A, 1), event(B, 1), event(A, "1"), event(A, 2))
    assert [(one["channel"], one["data"]["event"]["replayId"]) for one in delivered] == [
        (A, 1),
        (B, 1),
        (A, "1"),
        (A, 2),
    ]
    assert table.connect(event(A, 2), event(B, 1)) == []


#: What identifies an event beside its id, and the same of another event.
IDENTITIES: list[tuple[Message, Message]] = [
    ({"event": {"EventUuid": "a"}}, {"event": {"EventUuid": "b"}}),
    ({"event": {"createdDate": "a"}}, {"event": {"createdDate": "b"}}),
    ({"payload": {"EventUuid": "a"}}, {"payload": {"EventUuid": "b"}}),
    ({"payload": {"CreatedDate": "a"}}, {"payload": {"CreatedDate": "b"}}),
    (
        {"payload": {"ChangeEventHeader": {"commitTimestamp": 1}}},
        {"payload": {"ChangeEventHeader": {"commitTimestamp": 2}}},
    ),
    (
        {"payload": {"ChangeEventHeader": {"transactionKey": "a", "sequenceNumber": 1}}},
        {"payload": {"ChangeEventHeader": {"transactionKey": "a", "sequenceNumber": 2}}},
    ),
    (
        {"payload": {"ChangeEventHeader": {"transactionKey": "a", "sequenceNumber": 1}}},
        {"payload": {"ChangeEventHeader": {"transactionKey": "b", "sequenceNumber": 1}}},
    ),
    # The date of the record is not that of the change.
    (
        {"payload": {"ChangeEventHeader": {"commitTimestamp": 1}, "CreatedDate": "a"}},
        {"payload": {"ChangeEventHeader": {"commitTimestamp": 2}, "CreatedDate": "a"}},
    ),
    ({"payload": {"Number__c": 1}}, {"payload": {"Number__c": 2}}),
    ({"sobject": {"Id": "a"}}, {"sobject": {"Id": "b"}}),
    ({"payload": "a"}, {"payload": "b"}),
]


def with_id(data: Message, replay_id: Any = 5) -> Message:
    """Make an event out of what identifies it."""
    return {
        "channel": A,
        "data": {**data, "event": {**data.get("event", {}), "replayId": replay_id}},
    }


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_an_event_with_the_id_of_another_is_no_duplicate(one: Message, other: Message) -> None:
    table = Table().open(A)
    assert len(table.connect(with_id(one), with_id(other))) == 2
    assert table.connect(with_id(one), with_id(other)) == []


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_the_long_way_tells_events_apart_as_the_short_one_does(
    one: Message, other: Message
) -> None:
    table = Table().open("/event/*", A)
    assert A not in table.channels._sole_owner
    assert len(table.connect(with_id(one), with_id(other))) == 2
    assert table.connect(with_id(one), with_id(other)) == []


def test_what_identifies_an_event_counts_and_nothing_beside_it() -> None:
    uuid, date = {"EventUuid": "u", "replayId": 1}, {"createdDate": "d", "replayId": 1}
    for known in (uuid, date):
        copies = [{"event": known, "payload": number} for number in (1, 2)]
        assert len({digest_of(A, 1, one) for one in copies}) == 1
    first = {"event": {"replayId": 1}, "payload": {"EventUuid": "u", "CreatedDate": "x"}}
    again = {"event": {"replayId": 1}, "payload": {"EventUuid": "u", "CreatedDate": "y"}}
    assert digest_of(A, 1, first) == digest_of(A, 1, again)
    assert digest_of(A, 1, first) != digest_of(B, 1, first)
    assert digest_of(A, 1, first) != digest_of(A, "1", first)


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
    for channels in ((A,), (A, "/event/*")):
        table = Table().open(*channels)
        message = {"channel": A, "data": data}
        assert table.connect(dict(message)) == [message]
        table.lose_session()
        assert table.renew() == [None] * len(channels)


def test_ids_of_any_json_type_pass() -> None:
    ids: list[Any] = [1, "x", 1.5, [1], {"a": 1}, False]
    for channels in ((A,), (A, "/event/*")):
        table = Table().open(*channels)
        assert ids_of(table.connect(*(event(A, one) for one in ids))) == ids
        assert table.connect(*(event(A, one) for one in ids)) == []
        table.connect(event(A, [2]))
        table.lose_session()
        assert table.renew()[0] == {A: [2]}


def test_a_duplicate_moves_the_resume_point_on_again() -> None:
    table = Table().open(A)
    table.connect(event(A, 1), event(A, 2), event(A, 3))
    table.lose(table.hang())
    table.channels.subscriptions[A].resume = 1
    assert table.renew() == [{A: 1}]
    assert table.connect(event(A, 2), event(A, 3)) == []
    table.lose_session()
    assert table.renew() == [{A: 3}]


def test_an_explicit_subscription_forgets_what_was() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.subscribe(A, -2)
    assert len(table.connect(event(A, 1))) == 1


def test_a_fallback_forgets_what_was() -> None:
    table = Table(fallback=-2).open(A)
    table.connect(event(A, 1), event(A, 2))
    table.lose_session()
    table.handshake()
    table.resubscribe(error="400::The replayId {2} you provided was invalid")
    table.resubscribe()
    assert table.session.next_to_resubscribe() is None
    # The ids of an org that was restored begin again.
    assert len(table.connect(event(A, 1), event(A, 2))) == 2
    assert ids_of(table.overwritten) == [1]


def test_the_first_event_after_a_fallback_is_told_on_the_long_way_too() -> None:
    table = Table(fallback=-2).open("/event/*", A)
    table.lose_session()
    table.handshake()
    for _ in range(2):
        table.resubscribe(error="400::The replayId {2} you provided was invalid")
        table.resubscribe()
    assert table.session.next_to_resubscribe() is None
    table.connect(event(A, 1), event(A, 2))
    assert ids_of(table.overwritten) == [1]
    table.connect(event(B, 3))
    assert ids_of(table.overwritten) == [1]


def test_events_take_the_short_way_again_after_a_fallback() -> None:
    table = Table(fallback=-2).open(A)
    subscription = table.channels.subscriptions[A]
    assert table.channels._sole_owner == {A: subscription}
    table.channels.fall_back(subscription, -2)
    assert table.channels._sole_owner == {}
    table.connect(event(A, 8))
    assert table.channels._sole_owner == {A: subscription}


# Memory


def test_the_memory_is_bounded_and_keeps_the_newest() -> None:
    table = Table(limit=10).open(A)
    for start in range(0, 10_000, 500):
        table.connect(*(event(A, number) for number in range(start, start + 500)))
    seen = table.channels.subscriptions[A].seen
    assert MIN_MEMORY <= len(seen) <= 2 * (MIN_MEMORY + 510)
    assert table.connect(event(A, 9_999), event(A, 9_500)) == []
    assert len(table.connect(event(A, 1))) == 1


def test_the_memory_holds_what_waits_to_be_taken() -> None:
    limit = 3 * MIN_MEMORY
    table = Table(limit=limit).open(A)
    for number in range(10 * MIN_MEMORY):
        table.connect(event(A, number))
    newest = range(10 * MIN_MEMORY - limit, 10 * MIN_MEMORY)
    assert table.connect(*(event(A, number) for number in newest)) == []


def test_a_whole_response_is_remembered_however_large() -> None:
    table = Table().open(A)
    window = [event(A, number) for number in range(5 * MIN_MEMORY)]
    assert len(table.connect(*window)) == len(window)
    for number in range(-2 * MIN_MEMORY, 0):
        table.connect(event(A, number))
    assert table.connect(*window[-MIN_MEMORY:]) == []


def test_names_are_bounded() -> None:
    table = Table().open("/event/*")
    for number in range(2 * MAX_NAMES + 10):
        table.connect(event(f"/event/{number}", number), event(f"/other/{number}", number))
    assert len(table.channels._owners) <= MAX_NAMES
    assert len(table.channels.aliases) == MAX_NAMES
    # The newest are those that are kept: what is looked up has its alias.
    for number in (MAX_NAMES + 10, 2 * MAX_NAMES + 9, 1, MAX_NAMES + 10):
        table.channels._index()
        table.connect(event(f"/event/{number}", -number))
        assert table.channels.aliases[f"/event/{number}"] == "/event/*"
        assert [*table.channels.aliases][-1] == f"/event/{number}"


@pytest.mark.parametrize("subscribed", [A, "/event/*"])
def test_names_without_end_are_not_kept(subscribed: str) -> None:
    table = Table().open(subscribed)
    for number in range(50):
        name = f"/event/{number}" + "x" * 100_000
        assert len(table.connect(event(name, number))) == 1
    kept = [*table.channels._owners, *table.channels.aliases]
    assert sum(map(len, kept)) < 100_000


# Whose event it is


def test_key_of() -> None:
    assert key_of("/topic/T?a=1&b='?'") == key_of("/topic/T") == key_of("/topic/T/") == "/topic/T"


def test_a_slash_at_the_end_names_the_same_channel() -> None:
    table = Table().open(A + "/", start=5)
    assert len(table.connect(event(A, 6), event(A, 6))) == 1
    table.lose_session()
    assert table.renew() == [{A: 6}]
    assert table.channels.aliases == {}
    table = Table().open(A, start=5)
    table.connect(event(A + "/", 6))
    table.lose_session()
    assert table.renew() == [{A: 6}]


def test_events_of_a_custom_channel_move_its_resume_point() -> None:
    table = Table().open(CUSTOM)
    assert len(table.connect(event(A, 5), event(B, 5), event(A, 5))) == 2
    assert table.channels.aliases == {A: CUSTOM, B: CUSTOM}
    table.lose_session()
    assert table.renew() == [{CUSTOM: 5}]
    table.subscribe(A)
    assert table.channels.aliases == {B: CUSTOM}


def test_an_event_that_may_be_anybodys(caplog: pytest.LogCaptureFixture) -> None:
    table = Table().open("/event/One__chn", "/event/Two__chn")
    assert len(table.connect(event(A, 1), event(A, 1))) == 2
    assert table.channels.aliases == {}
    assert len(caplog.records) == 1
    table.lose_session()
    assert table.renew() == [None, None]


def test_a_broad_subscription_beside_an_exact_one_moves_with_its_events() -> None:
    table = Table().open(ALL_CHANGES, CHANGE, start=-2)
    table.connect(*(event(CHANGE, number) for number in range(1, 6)))
    table.connect(event("/data/ContactChangeEvent", 9))
    table.lose_session()
    assert table.renew() == [{ALL_CHANGES: 9}, {CHANGE: 5}]
    # Its marker is stored under its own name.
    assert table.channels.aliases == {"/data/ContactChangeEvent": ALL_CHANGES}


def test_a_broad_subscription_has_no_part_in_events_that_it_does_not_cover() -> None:
    for channels in (("/event/*",), ("/event/*", "/topic/T")):
        table = Table().open(*channels)
        table.connect(event("/topic/T", 5))
        assert table.channels.aliases == {}
        table.lose_session()
        assert table.renew()[0] is None


def test_an_event_comes_once_though_two_subscriptions_bring_it() -> None:
    table = Table().open(CHANGE, ALL_CHANGES)
    assert len(table.connect(event(CHANGE, 1), event(CHANGE, 1))) == 1
    table.unsubscribe(CHANGE)
    assert table.connect(event(CHANGE, 1)) == []
    assert table.channels.aliases == {CHANGE: ALL_CHANGES}


def test_two_filters_of_a_pushtopic_have_a_position_each() -> None:
    first, second = "/topic/T?Status='a'", "/topic/T?Status='b'"
    table = Table().open()
    table.subscribe(first, -2)
    table.subscribe(second, 7)
    table.lose_session()
    assert table.renew() == [{"/topic/T": -2}, {"/topic/T": 7}]
    assert len(table.connect(event("/topic/T", 8), event("/topic/T", 8))) == 1
    table.lose_session()
    assert table.renew() == [{"/topic/T": 8}, {"/topic/T": 8}]
    table.unsubscribe(first)
    assert table.connect(event("/topic/T", 8)) == []
    table.unsubscribe(second)
    assert table.session.channels.subscriptions == {}
    assert len(table.connect(event("/topic/T", 8))) == 1


FILTERS = ("/topic/T?Status='a'", "/topic/T?Status='b'")


def ask(table: Table, subscription: Subscription, **known: Any) -> Any:
    """Ask for a subscription, and give the replay id that is sent."""
    message = table.session.writer.subscribe(subscription.channel)
    if known:
        message["ext"] = {"replay": {"/topic/T": known["marker"]}}
    table.channels.stamp(message, subscription, time.time())
    return message.get("ext", {}).get("replay", {}).get("/topic/T")


def two_filters(start: int) -> tuple[Table, list[Subscription]]:
    """Open a session with two filters that have a backlog each."""
    table = Table().open()
    both = [table.channels.add(channel, start) for channel in FILTERS]
    for subscription in both:
        assert ask(table, subscription) == start
        table.channels.accept(subscription)
    return table, both


def test_no_filter_is_moved_on_by_the_backlog_of_another() -> None:
    table, both = two_filters(2)
    assert len(table.connect(event("/topic/T", 4), event("/topic/T", 10))) == 2
    assert [one.resume for one in both] == [2, 2]
    table.lose_session()
    assert table.renew() == [{"/topic/T": 2}, {"/topic/T": 2}]
    # What has come before is known.
    assert ids_of(table.connect(event("/topic/T", 3), event("/topic/T", 4))) == [3]


def test_filters_whose_backlogs_are_complete_go_on_from_the_last_event() -> None:
    table, both = two_filters(2)
    table.connect(event("/topic/T", 4), event("/topic/T", 10))
    table.channels.settle()
    assert [one.resume for one in both] == [10, 10]
    table.connect(event("/topic/T", 11))
    assert [one.resume for one in both] == [11, 11]
    table.channels.settle()
    assert [one.resume for one in both] == [11, 11]


def test_what_was_reached_in_a_session_that_is_lost_counts_no_more() -> None:
    table, both = two_filters(2)
    table.connect(event("/topic/T", 4))
    table.lose_session()
    table.channels.settle()
    assert [one.resume for one in both] == [2, 2]


def test_a_filter_that_is_subscribed_later_stays_where_it_was() -> None:
    table, both = two_filters(2)
    table.channels.settle()
    table.lose_session()
    table.handshake()
    for answer in ({}, LIMIT):
        subscription = table.next_subscription()
        assert ask(table, subscription) == 2
        request = table.session.writer.subscribe(subscription.channel)
        reply = table.reply(request, **answer)
        table.session.resubscribe_done(subscription, reply, table.now)
    assert table.session.next_to_resubscribe(table.now) is None
    table.connect(event("/topic/T", 5))
    table.channels.settle()
    table.connect(event("/topic/T", 6))
    assert [one.resume for one in both] == [6, 2]
    hold = table.channels.sharing.holds["/topic/T"]
    hold.nothing_left()
    assert not hold.is_over


def test_a_filter_starts_where_another_has_started_whose_backlog_still_comes() -> None:
    table = Table().open()
    first, second, third = (table.channels.add(one, None) for one in (*FILTERS, "/topic/T"))
    assert ask(table, first, marker=2) == 2
    table.channels.accept(first)
    # What the application has consumed meanwhile has moved the stored marker.
    assert ask(table, second, marker=7) == 2
    table.channels.accept(second)
    table.channels.settle()
    assert ask(table, third, marker=9) == 9


def test_a_filter_starts_where_it_is_told_to() -> None:
    table = Table().open()
    assert ask(table, table.channels.add(FILTERS[0], None), marker=2) == 2
    assert ask(table, table.channels.add(FILTERS[1], 5), marker=3) == 5
    # Without a marker it is for the server to choose.
    assert ask(table, table.channels.add("/topic/T", None)) is None


@pytest.mark.parametrize("channel", [None, 5, [], {}, "/meta/x"])
def test_data_on_no_channel_is_no_event(channel: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = Table().open(A)
    assert table.connect({"channel": channel, "data": {}}, event(A, 1)) == [event(A, 1)]
    assert table.connect({"data": {}}) == []
    assert any("Ignored a message" in record.getMessage() for record in caplog.records)


def test_a_stranger_is_delivered_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    table = Table().open(A)
    for number in range(3):
        assert len(table.connect(event("/event/Other__e", number))) == 1
    [record] = caplog.records
    assert "/event/Other__e" in record.getMessage()


# Requests whose answer is lost


def test_a_lost_answer_rewinds_to_what_was_known_when_it_was_asked_for() -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1))
    side = table.hang()
    table.connect(event(A, 3), event(B, 4))
    table.lose(side)
    # B had no id then, so what came later must do.
    assert table.renew() == [{A: 1}, {B: 4}]
    assert ids_of(table.connect(event(A, 2), event(A, 3))) == [2]


def test_a_request_under_way_when_the_session_is_lost_rewinds_as_well() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    first = table.hang()
    table.connect(event(A, 2))
    second = table.hang()
    table.connect(event(A, 3))
    table.lose_session()
    table.session.abandon(first, lost=True)
    table.session.abandon(second, lost=False)
    assert table.renew() == [{A: 1}]


def test_a_request_sent_later_does_not_undo_the_rewinding() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    lost = table.hang()
    table.connect(event(A, 3))
    table.session.send(table.session.connect_message())
    table.lose(lost)
    assert table.renew() == [{A: 1}]


def test_a_request_sent_before_is_not_touched_by_a_lost_answer() -> None:
    channels = some_channels()
    subscription = channels.add(A, 1)
    channels.stamp({}, subscription)
    tickets = []
    for point in (1, 2, 3):
        subscription.resume = point
        tickets.append(channels.send({}, 0))
    channels.abandon(tickets[1], lost=True)
    assert subscription.resume == 2
    assert [ticket.points[subscription] for ticket in tickets] == [1, 2, 2]


def test_an_answer_that_an_earlier_session_never_got_rewinds_no_later_one() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    late = table.hang()
    table.lose_session()
    assert table.renew() == [{A: 1}]
    table.connect(event(A, 2))
    table.lose_session()
    assert table.renew() == [{A: 2}]
    table.session.abandon(late, lost=True)
    table.lose_session()
    assert table.renew() == [{A: 2}]


@pytest.mark.parametrize("start", [-2, 7])
def test_a_lost_answer_may_have_held_the_first_event(start: int) -> None:
    table = Table().open()
    before = table.hang()
    table.subscribe(A, start)
    table.connect(event(A, 9))
    table.lose(before)
    assert table.renew() == [{A: start}]


def test_a_subscription_under_way_when_the_session_is_lost_starts_over() -> None:
    table = Table().open()
    subscription = table.channels.add(A, -2)
    message = table.session.writer.subscribe(subscription.channel)
    table.channels.stamp(message, subscription)
    ticket = table.session.send(message)
    table.connect(event(A, 9))
    table.lose_session()
    events, others = table.session.receive([table.reply(message)], ticket)
    reply = table.session.take_reply(others, ticket)
    assert (events, reply) == ([], table.reply(message, subscription=A))
    table.session.request_done(subscription, table.reply(message), ticket.epoch, table.now)
    assert table.renew() == [{A: -2}]


def test_a_request_that_was_not_sent_rewinds_nothing() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    ticket = table.hang()
    table.connect(event(A, 2))
    table.session.abandon(ticket, lost=False)
    table.lose_session()
    assert table.renew() == [{A: 2}]


def test_a_farewell_to_a_session_left_before_rewinds_nothing() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    ticket = table.session.send(table.session.writer.disconnect("x"), stale=True)
    table.connect(event(A, 2))
    table.session.abandon(ticket, lost=True)
    table.lose_session()
    assert table.renew() == [{A: 2}]


# Subscriptions that replace others


@pytest.mark.parametrize("start", [None, -2, 5])
def test_a_refused_subscription_leaves_what_others_must_rewind_to(start: int | None) -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    before = table.hang()
    subscription = table.channels.add(A, start)
    message = table.session.writer.subscribe(subscription.channel)
    table.channels.stamp(message, subscription)
    at_once = table.hang()
    table.connect(event(A, 2))
    later = table.hang()
    _, reply = table.exchange(message, error="403::No access on channel")
    table.session.request_done(subscription, reply, table.session.epoch, table.now)
    table.connect(event(A, 3))
    points = [[*ticket.points.values()] for ticket in (before, at_once, later)]
    assert points == [[1], [1], [2]]
    table.lose(later)
    # Older ones were under way as well.
    assert table.renew() == [{A: 1}]


def test_a_refused_subscription_before_the_first_event() -> None:
    table = Table().open(A)
    ticket = table.hang()
    table.subscribe(A, 5, error="403::No access on channel")
    assert ticket.points == {}
    table.lose_session()
    assert table.renew() == [None]


def test_a_refused_explicit_subscription_leaves_things_as_they_were() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.subscribe(A, 5, event(A, 2), error="403::No access on channel")
    assert table.connect(event(A, 1), event(A, 2)) == []
    assert set(table.channels.subscriptions) == {A}
    table.lose_session()
    assert table.renew() == [{A: 2}]


def test_a_refused_first_subscription_leaves_nothing() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.subscribe(B, 5, error="403::No access on channel")
    assert set(table.channels._sole_owner) == {A}
    subscription = table.channels.add(B, None)
    table.channels.restore(subscription)
    # Once is enough, and twice does no harm.
    table.channels.restore(subscription)
    assert set(table.channels._sole_owner) == {A}


def test_what_was_unsubscribed_meanwhile_is_not_taken_up_again() -> None:
    table = Table().open(A)
    subscription = table.channels.add(A, 5)
    table.unsubscribe(A)
    table.channels.restore(subscription)
    assert table.channels.subscriptions == {}
    assert len(table.connect(event(A, 1))) == 1


def test_an_accepted_subscription_keeps_nothing_of_the_one_before() -> None:
    table = Table().open(A)
    subscription = table.subscribe(A, 5)
    assert subscription.previous is None
    table.channels.restore(subscription)
    assert table.channels.subscriptions == {A: subscription}


def test_a_channel_that_was_given_up_goes_on_where_it_was() -> None:
    table = Table().open(A)
    table.connect(event(A, 1), event(A, 2))
    table.lose_session()
    table.handshake()
    table.resubscribe(error="403::denied")
    assert table.channels.subscriptions == {}
    subscription = table.channels.add(A, None)
    message: Message = {"ext": {"replay": {A: -1}}}
    table.channels.stamp(message, subscription)
    assert message["ext"]["replay"] == {A: 2}
    table.channels.accept(subscription)
    # What was received before does not come twice.
    table.session.next_to_resubscribe()
    assert table.connect(event(A, 2)) == []
    assert table.channels.add(A, None).stamp is None


def test_a_channel_that_was_given_up_starts_where_it_is_told() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.channels.give_up(table.channels.subscriptions[A])
    subscription = table.channels.add(A, -2)
    assert subscription.stamp == -2
    assert subscription.seen == {}


def test_a_channel_that_was_given_up_and_unsubscribed_starts_anew() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.channels.give_up(table.channels.subscriptions[A])
    table.channels.forget(A)
    assert table.channels.add(A, None).stamp is None


def test_a_channel_without_an_id_that_was_given_up_starts_as_it_did() -> None:
    table = Table().open(A)
    table.channels.give_up(table.channels.subscriptions[A])
    assert table.channels.add(A, None).stamp is None


# Other answers


def test_the_reply_to_a_publish_may_have_data() -> None:
    table = Table().open("/chat")
    events, reply = table.exchange(table.session.writer.publish("/chat", {}), data={})
    assert events == []
    assert reply["successful"] is True
    events, _ = table.exchange(table.session.writer.publish("/chat", {}), event("/chat", 1))
    assert ids_of(events) == [1]


def test_what_belongs_to_a_lost_session_is_not_used() -> None:
    table = Table().open(A)
    ticket = table.hang()
    table.lose_session()
    events, others = table.session.receive([event(A, 9), {"successful": True}, GOODBYE], ticket)
    reply = table.session.take_reply(others, ticket)
    assert events == []
    assert reply is not None
    table.session.connect_done(reply, ticket.epoch, 0, 1.0, 0)
    table.session.connect_done(failure(Trouble.REJECTED), ticket.epoch, 0, 1.0, 0)
    assert table.session.state is State.NO_SESSION
    assert table.renew() == [None]
    table.connect()
    assert table.is_in(State.CONNECTED)


def test_events_in_the_answer_to_a_handshake_come_again() -> None:
    table = Table().open(A)
    table.lose_session()
    events, _ = table.exchange(table.session.handshake_message([]), event(A, 1))
    assert events == []
    assert table.renew() == [None]


def test_unknown() -> None:
    """The refusal that these tests end sessions with ends them."""
    table = Table().open(A)
    table.connect(**UNKNOWN)
    assert table.session.state is State.NO_SESSION
