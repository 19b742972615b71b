"""Which channels are subscribed again, when, and what becomes of those that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.states import Action, Sequel, State
from aiosfstream._http.failures import Trouble
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import (
    ServerError,
)
from tests.table import (
    BUSY,
    COOKIE,
    DENIED,
    GOODBYE,
    INVALID_ID,
    LIMIT,
    UNKNOWN,
    A,
    B,
    Message,
    Table,
    event,
    failure,
    ids_of,
)

Kind = ConnectionEventKind
POLICY = RetryPolicy()


# Resubscribing


@pytest.mark.parametrize(
    ("start", "sent"), [(-1, -1), (-2, -2), (7, 7), ("x", "x"), (None, None), (0, 0)]
)
def test_before_the_first_event_it_starts_as_it_did(start: Any, sent: Any) -> None:
    table = Table().open(A, start=start)
    table.lose_session()
    assert table.renew() == [None if sent is None else {A: sent}]


@pytest.mark.parametrize("start", [-1, -2, 7, None])
def test_after_the_first_event_it_resumes_from_there(start: Any) -> None:
    table = Table().open(A, start=start)
    table.connect(event(A, 0))
    table.lose_session()
    assert table.renew() == [{A: 0}]
    resumed = [one for one in table.events if one.kind is Kind.CHANNEL_RESUMED]
    assert [(one.channel, one.replay_id) for one in resumed] == [(A, 0)]


def test_it_starts_again_where_the_extensions_let_it_start() -> None:
    table = Table().open()
    subscription = table.channels.add(A, None)
    message = table.session.writer.subscribe(subscription.channel)
    message["ext"] = {"replay": {A: -1}}
    table.channels.stamp(message, subscription)
    _, reply = table.exchange(message)
    done = table.session.request_done(subscription, reply, table.session.epoch, 0)
    assert done is Sequel.DONE
    table.lose_session()
    assert table.renew() == [{A: -1}]


def test_channels_are_subscribed_one_after_the_other() -> None:
    table = Table().open(A, B)
    table.lose_session()
    table.handshake()
    assert table.resubscribe()["subscription"] == A
    assert table.session.state is State.RESUBSCRIBING
    assert not table.session.established
    assert table.resubscribe()["subscription"] == B
    assert table.session.next_to_resubscribe() is None
    assert table.is_in(State.CONNECTING)
    assert table.session.established


def test_without_channels_a_connect_follows() -> None:
    table = Table().open()
    table.lose_session()
    table.handshake()
    assert table.step() is Action.CONNECT


def test_a_channel_that_was_dropped_meanwhile_is_not_resubscribed() -> None:
    table = Table().open(A, B)
    table.lose_session()
    table.handshake()
    table.channels.forget(A)
    assert table.resubscribe()["subscription"] == B


@pytest.mark.parametrize(("start", "warns"), [(-1, True), (None, True), (-2, False), (7, False)])
def test_what_may_be_missed_is_said(
    start: int | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table().open(A, start=start)
    table.now = 9.0
    table.fail(failure(Trouble.LOST))
    table.now = 22.5
    table.renew()
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == warns
    if warns:
        assert A in warnings[0].getMessage()
        assert "published in the last 12.5 seconds is not delivered" in warnings[0].getMessage()


def test_a_failed_resubscription_is_repeated() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    subscription = table.next_subscription()
    table.session.resubscribe_done(subscription, failure(Trouble.NOT_SENT), 0)
    assert table.session.state is State.RESUBSCRIBING
    assert table.session.next_step().delay > 0.0
    assert table.next_subscription() is subscription


@pytest.mark.parametrize("fields", [{}, {"error": "403::subscribe_failed"}, INVALID_ID, LIMIT])
def test_a_goodbye_while_resubscribing(fields: Message) -> None:
    table = Table(fallback=-2).open(A)
    table.connect(event(A, 5))
    table.lose_session()
    table.handshake()
    table.resubscribe(GOODBYE, **fields)
    # It says nothing of the channel, whatever it says of that.
    assert table.session.state is State.NO_SESSION
    assert table.recovery.errors == []
    assert set(table.channels.subscriptions) == {A}
    assert table.renew() == [{A: 5}]


@pytest.mark.parametrize("fields", [UNKNOWN, COOKIE, {"error": "402::session_unknown"}])
def test_a_session_lost_while_resubscribing(fields: Message) -> None:
    table = Table().open(A, B)
    table.lose_session()
    table.handshake()
    table.resubscribe(**fields)
    assert table.session.state is State.NO_SESSION
    assert set(table.channels.subscriptions) == {A, B}
    table.handshake()
    assert len(table.resubscribe_all()) == 2


# Channels that are refused


def test_a_fallback_is_tried_once() -> None:
    table = Table(fallback=-2).open(A, start=1)
    table.connect(event(A, 5))
    table.lose_session()
    table.handshake()
    assert table.resubscribe(**INVALID_ID)["ext"]["replay"] == {A: 5}
    assert table.resubscribe()["ext"]["replay"] == {A: -2}
    assert table.refusals == [A]
    assert table.session.next_to_resubscribe() is None
    table.connect(event(A, 8), event(A, 9))
    assert ids_of(table.overwritten) == [8]
    [used] = [one for one in table.events if one.kind is Kind.FALLBACK_USED]
    assert (used.channel, used.replay_id) == (A, -2)
    assert isinstance(used.error, ServerError)


def test_each_renewal_may_use_the_fallback() -> None:
    table = Table(fallback=-2).open(A, start=1)
    for _ in range(3):
        table.lose_session()
        table.handshake()
        table.resubscribe(**INVALID_ID)
        assert table.resubscribe()["ext"]["replay"] == {A: -2}
        assert table.session.next_to_resubscribe() is None
        table.connect()
    assert table.refusals == [A] * 3


def test_a_session_that_is_lost_before_the_fallback_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = Table(fallback=-1).open(A)
    table.connect(event(A, 5))
    table.lose_session()
    table.handshake()
    table.resubscribe(**INVALID_ID)
    subscription = table.next_subscription()
    table.session.resubscribe_done(subscription, failure(Trouble.LOST), table.now)
    assert table.renew() == [{A: -1}]
    assert table.refusals == [A]


def test_a_fallback_to_new_events_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(fallback=-1).open(A)
    table.connect(event(A, 5))
    table.lose_session()
    table.handshake()
    table.resubscribe(**INVALID_ID)
    table.resubscribe()
    assert table.kinds().count(Kind.FALLBACK_USED) == 1
    assert caplog.records == []


def test_a_fallback_that_is_refused_as_well() -> None:
    table = Table(fallback=-2).open(A, start=1)
    table.lose_session()
    table.handshake()
    table.resubscribe(**INVALID_ID)
    table.resubscribe(**INVALID_ID)
    assert [type(error) for error in table.recovery.errors] == [ServerError]
    assert table.channels.subscriptions == {}
    assert table.session.next_to_resubscribe() is None
    assert Kind.CHANNEL_LOST in table.kinds()
    assert table.refusals == [A]


@pytest.mark.parametrize(
    "fields", [INVALID_ID, DENIED, {"error": "404::Unknown channel"}, {"error": ""}]
)
def test_a_channel_that_is_lost_is_named_with_the_id_to_go_on_from(fields: Message) -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1))
    table.lose_session()
    table.handshake()
    table.resubscribe(**fields)
    [error] = table.recovery.errors
    assert isinstance(error, ServerError)
    assert A in str(error)
    assert "after replay id 1" in str(error)
    assert error.replay_id == 1
    lost = table.events[-1]
    assert (lost.kind, lost.channel, lost.error, lost.replay_id) == (Kind.CHANNEL_LOST, A, error, 1)
    assert set(table.channels.subscriptions) == {B}
    # The others go on, and this one where it was.
    assert table.resubscribe_all() == [None]
    table.connect()
    assert table.session.state is State.CONNECTED
    table.subscribe(A)
    table.lose_session()
    assert table.renew() == [None, {A: 1}]


def test_a_channel_that_is_lost_before_its_first_event() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    table.resubscribe(**DENIED)
    [error] = table.recovery.errors
    assert isinstance(error, ServerError)
    assert error.replay_id is None
    assert "replay id" not in str(error)


# Channels that are refused for now


PASSING: list[Message] = [
    LIMIT,
    BUSY,
    {"error": "500::Internal error"},
    {"error": "503::Service unavailable"},
    {"error": "403::Subscription limit exceeded for this topic"},
    {**LIMIT, "advice": {"reconnect": "none"}},
]


@pytest.mark.parametrize("fields", PASSING)
def test_a_channel_that_is_refused_for_now_is_tried_again(fields: Message) -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1), event(B, 2))
    table.lose_session()
    table.handshake()
    table.resubscribe(**fields)
    assert table.session.deferred == [A]
    assert set(table.channels.subscriptions) == {A, B}
    assert table.recovery.errors == []
    retrying = table.events[-1]
    assert (retrying.kind, retrying.channel) == (Kind.RETRYING, A)
    assert isinstance(retrying.error, ServerError)
    assert retrying.delay is not None
    assert 0.0 < retrying.delay <= POLICY.busy_initial
    due = table.now + retrying.delay
    # The other one goes on meanwhile, while the connection counts as lost.
    assert table.resubscribe()["subscription"] == B
    assert table.session.next_to_resubscribe(table.now) is None
    assert ids_of(table.connect(event(B, 3), elapsed=0.01)) == [3]
    assert table.session.state is State.CONNECTED
    assert table.recovery.lost_since is not None
    assert table.recovery.last_error is retrying.error
    assert table.events[-1].kind is not Kind.CONNECTED
    assert table.session.next_step(due - 0.01).action is Action.CONNECT
    table.now = due
    assert table.resubscribe()["ext"]["replay"] == {A: 1}
    assert table.session.deferred == []
    assert table.recovery.lost_since is None
    assert table.recovery.last_error is None
    assert table.events[-1].kind is Kind.CHANNEL_RESUMED
    assert table.events[-2].kind is Kind.CONNECTED
    assert table.step() is Action.CONNECT


def test_a_connect_is_back_in_time_for_what_is_refused_for_now() -> None:
    table = Table(poll_timeout=60.0).open(A, B)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    table.resubscribe_all()
    due = table.now + (table.events[-2].delay or 0.0)
    table.connect(elapsed=0.0)
    for before, asked in ((2.0, 2000), (0.01, 100), (-1.0, 100)):
        message = table.session.connect_message(due - before)
        assert message["advice"]["timeout"] == pytest.approx(asked, abs=1)
    assert table.session.connect_message(due - 600.0)["advice"] == {"timeout": 60_000}


def test_a_refusal_for_now_that_comes_again_waits_longer() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    assert table.session.next_to_resubscribe(table.now) is None
    table.connect(elapsed=0.01)
    lost_since = table.recovery.lost_since
    delays = []
    for _ in range(12):
        delay = table.events[-1].delay
        assert delay is not None
        delays.append(delay)
        table.now += delay
        table.resubscribe(**LIMIT)
        assert table.session.next_step(table.now).action is Action.CONNECT
    assert POLICY.busy_initial < max(delays) <= POLICY.busy_cap
    assert table.recovery.lost_since == lost_since
    assert table.kinds().count(Kind.CONNECTION_LOST) == 1


def test_what_is_refused_for_now_is_subscribed_again_in_the_next_session() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    assert table.session.next_to_resubscribe(table.now) is None
    table.connect(elapsed=0.01)
    table.lose_session()
    assert table.session.deferred == []
    assert table.renew() == [None]
    assert table.recovery.lost_since is None


def test_what_is_refused_for_now_may_turn_out_to_be_refused_for_good() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    assert table.session.next_to_resubscribe(table.now) is None
    table.connect(elapsed=0.01)
    table.now += 100.0
    table.resubscribe(**DENIED)
    assert len(table.recovery.errors) == 1
    assert table.session.deferred == []
    assert table.recovery.lost_since is None


@pytest.mark.parametrize("wish", ["unsubscribe", "subscribe"])
def test_what_is_refused_for_now_and_not_wanted_any_more(wish: str) -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    assert table.session.next_to_resubscribe(table.now) is None
    table.connect(elapsed=0.01)
    if wish == "subscribe":
        table.subscribe(A)
    else:
        table.unsubscribe(A)
    assert table.session.deferred == []
    assert table.recovery.lost_since is None
    assert table.session.next_step(table.now + 1000.0).action is Action.CONNECT
