"""The session without I/O: fed by hand, with a clock of paper."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.renewal import MAX_UNREADABLE
from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.states import Action, Sequel, State
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import (
    AiosfstreamException,
    ServerError,
)
from tests.table import (
    BUSY,
    COOKIE,
    DENIED,
    GOODBYE,
    INVALID_ID,
    LIMIT,
    TOKEN,
    UNKNOWN,
    A,
    B,
    Message,
    Table,
    event,
    failure,
    ids_of,
    receive,
)

Kind = ConnectionEventKind
POLICY = RetryPolicy()


# Messages out


def test_message_ids_are_never_used_twice() -> None:
    table = Table().open(A)
    table.lose_session()
    table.renew()
    ids = [table.session.connect_message()["id"], table.session.writer.publish("/x", {})["id"]]
    assert len(set(ids)) == 2
    assert int(ids[0]) > 5


def test_the_first_connect_asks_for_an_answer_at_once() -> None:
    table = Table(poll_timeout=2.5)
    table.handshake()
    first = table.session.connect_message()
    assert first["advice"] == {"timeout": 0}
    assert table.session.hold_of(first) == 0.0
    table.connect()
    later = table.session.connect_message()
    assert later["advice"] == {"timeout": 2500}
    assert table.session.hold_of(later) == 2.5
    plain = Table().open().session
    assert "advice" not in plain.connect_message()
    assert plain.hold_of(plain.connect_message()) == 110.0


def test_a_server_holds_no_longer_than_it_says() -> None:
    table = Table(poll_timeout=60.0).open()
    table.connect(advice={"timeout": 5000})
    assert table.session.hold_of(table.session.connect_message()) == 5.0


def test_after_a_failed_connect_an_answer_is_asked_for_at_once() -> None:
    table = Table().open()
    table.fail(failure(Trouble.NOT_SENT))
    assert table.session.connect_message()["advice"] == {"timeout": 0}


def test_advice_is_forgotten_at_a_handshake() -> None:
    table = Table().open()
    table.connect(advice={"reconnect": "retry", "interval": 2000, "timeout": 5000})
    assert table.session.hold == 5.0
    assert table.session.next_step().delay == 2.0
    table.lose_session()
    table.session.handshake_message([])
    assert table.session.advice == {}
    assert table.session.hold == 110.0


# Messages in


def test_whose_advice_counts() -> None:
    table = Table()
    table.handshake(advice={"timeout": 2000})
    assert table.session.hold == 2.0
    table.connect(advice={"timeout": 3000})
    table.connect(advice="nonsense")
    assert table.session.hold == 3.0
    # A connect's reply may come with the answer to another request, and another's with a connect's.
    connect = {"channel": "/meta/connect", "id": "99", "advice": {"timeout": 4000}}
    table.exchange(table.session.writer.publish("/service/x", {}), connect)
    assert table.session.hold == 4.0


def test_what_is_neither_reply_nor_event_is_passed_over() -> None:
    table = Table().open(A)
    other = {"channel": "/meta/subscribe", "id": "99", "successful": True, "advice": {"timeout": 1}}
    assert table.connect(other, {"channel": "/service/x"}, {}) == []
    assert table.session.state is State.CONNECTED
    assert table.session.advice == {}


def test_a_session_that_is_lost_while_its_events_are_delivered() -> None:
    """The application takes events before the reply that came with them is looked at."""
    table = Table().open()
    request = table.session.connect_message()
    ticket = table.session.send(request)
    messages = [event(A, 9), table.reply(request, advice={"timeout": 7000}), GOODBYE]
    events, others = table.session.receive(messages, ticket)
    table.lose_session()
    advice = table.session.advice
    reply = table.session.take_reply(others, ticket)
    assert events == messages[:1]
    assert reply is not None
    assert table.session.advice is advice, "it is that of a session that is gone"
    table.renew()
    table.connect()
    assert table.session.state is State.CONNECTED, "the new session did not end"


# Handshakes


def test_a_handshake_without_a_client_id_is_no_handshake() -> None:
    for client_id in (None, "", 5):
        table = Table().open(A)
        table.lose_session()
        table.handshake(clientId=client_id)
        assert table.session.state is State.NO_SESSION
        assert "no clientId" in str(table.recovery.last_error)
        assert table.events[-1].kind is Kind.RETRYING
        assert table.events[-1].delay == table.session.next_step().delay > 0.0


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
    table.lose_session()
    table.handshake(**fields)
    assert table.session.state is state
    if state is State.STOPPED:
        assert isinstance(table.recovery.stop_error, ServerError)
        assert table.step() is Action.STOP


def test_a_new_session_is_reported_and_another_epoch() -> None:
    table = Table().open(A)
    epoch = table.session.epoch
    table.lose_session()
    table.renew()
    assert table.session.epoch > epoch
    assert table.kinds()[-3:] == [Kind.SESSION_RENEWED, Kind.CHANNEL_RESUMED, Kind.CONNECTED]
    assert Kind.SESSION_RENEWED not in Table().open().kinds()


def test_a_goodbye_in_the_answer_to_a_handshake_is_to_the_session_before() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake(GOODBYE)
    table.resubscribe_all()
    table.connect()
    assert table.session.state is State.CONNECTED


# Connects


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        # Whoever is served is not turned away.
        ({"advice": {"reconnect": "none"}}, State.NO_SESSION),
        ({"advice": {"interval": -1}}, State.NO_SESSION),
        ({"advice": {"reconnect": "handshake"}}, State.NO_SESSION),
        ({"error": "400::x", "advice": {"reconnect": "retry"}}, State.CONNECTING),
        ({"error": "400::x"}, State.CONNECTING),
        ({"error": "400::x", "advice": {"reconnect": "none"}}, State.STOPPED),
    ],
)
def test_advice_with_a_connect(fields: Message, state: State) -> None:
    table = Table().open(A)
    table.connect(**fields)
    assert table.session.state is state
    if state is State.STOPPED:
        assert isinstance(table.recovery.stop_error, ServerError)
        assert table.step() is Action.STOP


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"advice": {"reconnect": "none"}}, ()),
        ({}, (GOODBYE,)),
        ({"advice": {"reconnect": "none"}}, (GOODBYE,)),
        ({"advice": {"reconnect": "handshake"}}, (GOODBYE,)),
        ({"error": "400::x", "advice": {"reconnect": "none"}}, (GOODBYE,)),
        ({"error": "400::x"}, (GOODBYE,)),
    ],
)
def test_a_farewell_is_followed_by_a_new_session(
    fields: Message, others: tuple[Message, ...]
) -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    assert ids_of(table.connect(event(A, 2), *others, **fields)) == [2]
    assert table.session.state is State.NO_SESSION
    step = table.session.next_step()
    assert 0.0 < step.delay <= POLICY.farewell
    # Who says goodbye keeps nothing.
    assert table.recovery.left_behind == []
    assert table.renew() == [{A: 2}]


def test_a_goodbye_and_a_refused_token_at_once() -> None:
    table = Table().open(A)
    table.connect(GOODBYE, **TOKEN)
    assert table.session.state is State.NO_TOKEN


def test_what_a_connect_leaves_behind() -> None:
    table = Table().open(A)
    table.connect(field=1)
    assert table.session.last_connect is not None
    assert table.session.last_connect["field"] == 1


def test_the_interval_of_the_advice_is_kept() -> None:
    table = Table().open()
    table.connect(advice={"interval": 3000}, elapsed=60.0)
    assert table.session.next_step() == (Action.CONNECT, 3.0)
    # Used up.
    assert table.session.next_step() == (Action.CONNECT, 0.0)
    table.connect(elapsed=60.0, error="400::x")
    assert table.session.next_step().delay >= 3.0


def test_a_server_that_answers_at_once_with_nothing_is_slowed_down() -> None:
    table = Table().open()
    delays = []
    for _ in range(20):
        table.connect(elapsed=0.001)
        delays.append(table.session.next_step().delay)
    assert delays[:2] == [0.0, 0.0]
    assert delays[2:] == sorted(delays[2:])
    assert 4.0 < delays[-1] <= 5.0
    table.connect(event(A, 1), elapsed=0.001)
    assert table.session.next_step().delay == 0.0


def test_the_first_connect_of_a_session_is_no_short_poll() -> None:
    table = Table().open()
    for _ in range(10):
        table.lose_session()
        table.renew()
    assert table.session.next_step().delay == 0.0


# Requests beside the connect


def test_a_request_that_succeeds() -> None:
    table = Table().open()
    subscription = table.subscribe(A)
    assert table.sequel is Sequel.DONE
    assert table.channels.subscriptions == {A: subscription}
    assert table.unsubscribe(A) is Sequel.DONE
    assert table.channels.subscriptions == {}
    reply = table.reply(table.session.writer.publish("/x", {}))
    assert table.session.request_done(None, reply, table.session.epoch, 0) is Sequel.DONE


def test_a_first_subscription_may_fall_back_once() -> None:
    table = Table(fallback=-1).open()
    subscription = table.channels.add(A, None)
    reply = table.reply(table.session.writer.subscribe(subscription.channel), **INVALID_ID)
    epoch = table.session.epoch
    assert table.session.request_done(subscription, reply, epoch, 0) is Sequel.AT_ONCE
    assert subscription.stamp == -1
    assert table.session.request_done(subscription, reply, epoch, 0) is Sequel.DONE
    assert table.channels.subscriptions == {}
    assert table.refusals == [A]


def test_a_first_subscription_without_a_fallback() -> None:
    table = Table().open()
    table.subscribe(A, 5, **INVALID_ID)
    assert table.sequel is Sequel.DONE
    assert table.channels.subscriptions == {}
    assert table.refusals == [A]


def test_an_unsubscribe_that_is_refused_changes_nothing() -> None:
    table = Table().open(A)
    for fields in (INVALID_ID, DENIED, LIMIT, BUSY):
        assert table.unsubscribe(A, **fields) is Sequel.DONE
    done = table.session.request_done(A, failure(Trouble.NOT_SENT), table.session.epoch, 0)
    assert done is Sequel.DONE
    assert set(table.channels.subscriptions) == {A}
    assert table.refusals == []


def test_a_goodbye_beside_the_connect() -> None:
    table = Table().open(A)
    assert table.unsubscribe(B, GOODBYE) is Sequel.DONE
    assert table.session.state is State.NO_SESSION
    # A request that is refused together with it may do better in the next session.
    table = Table().open(A)
    assert table.unsubscribe(B, GOODBYE, error="403::x") is Sequel.RENEWED
    assert table.session.state is State.NO_SESSION


def test_a_subscribe_that_is_refused_with_a_goodbye() -> None:
    table = Table().open(A)
    table.subscribe(B, None, GOODBYE, error="403::subscribe_failed")
    assert table.sequel is Sequel.RENEWED
    assert set(table.channels.subscriptions) == {A}
    assert table.session.state is State.NO_SESSION


def test_a_goodbye_that_a_connect_comes_before() -> None:
    table = Table().open(A)
    request = table.session.writer.unsubscribe(B)
    ticket = table.session.send(request)
    table.connect(advice={"reconnect": "none"})
    assert table.session.state is State.NO_SESSION
    _, reply = receive(table.session, [GOODBYE, table.reply(request)], ticket)
    assert reply is not None
    assert table.session.request_done(B, reply, ticket.epoch, table.now) is Sequel.DONE
    table.renew()
    assert table.is_in(State.CONNECTED)


def test_what_a_request_of_a_lost_session_tells_is_nothing_new() -> None:
    table = Table().open(A)
    epoch = table.session.epoch
    table.lose_session()
    table.renew()
    events = len(table.events)
    request = table.session.writer.unsubscribe(B)
    for fields in (UNKNOWN, TOKEN):
        reply = table.reply(request, **fields)
        # But it was not done.
        assert table.session.request_done(B, reply, epoch, 0) is Sequel.RENEWED
    for what in (Trouble.LOST, Trouble.UNAUTHORIZED):
        assert table.session.request_done(B, failure(what), epoch, 0) is Sequel.DONE
    assert table.session.state is State.CONNECTED
    assert len(table.events) == events


def test_what_has_ended_is_not_set_going_by_what_was_under_way() -> None:
    table = Table().open(A)
    late = table.hang()
    table.connect(error="400::x", advice={"reconnect": "none"})
    assert table.session.state is State.STOPPED
    error = table.recovery.stop_error
    table.lose(late)
    assert table.step() is Action.STOP
    assert table.recovery.stop_error is error


# Answers that cannot be read


def unreadable(what: str = "x", status: int | None = 200) -> Failure:
    """Make an answer that cannot be read for one reason."""
    return replace(failure(Trouble.UNREADABLE, status=status), digest=what.encode())


def come_back(table: Table) -> None:
    """Subscribe again, with a connect wherever one comes next."""
    while table.session.state is State.RESUBSCRIBING:
        if table.step() is Action.CONNECT:
            table.connect()
        elif table.session.next_to_resubscribe(table.now) is not None:
            table.resubscribe()


def lose_answers(table: Table, times: int) -> None:
    """Lose the session to the same unreadable answer, and get a new one, several times."""
    for number in range(times):
        table.fail(unreadable())
        table.handshake()
        if number < times - 1:
            come_back(table)


def test_what_cannot_be_read_is_found_and_skipped() -> None:
    table = Table().open(A, B)
    table.connect(event(A, 1), event(B, 2))
    lose_answers(table, MAX_UNREADABLE)
    assert table.recovery.errors == []
    # One by one now, to see which brings it.
    assert table.resubscribe()["subscription"] == A
    assert table.step() is Action.CONNECT
    assert table.session.may_connect
    assert not table.session.established
    table.connect()
    assert table.session.state is State.RESUBSCRIBING
    assert table.recovery.lost_since is not None
    assert table.resubscribe()["subscription"] == B
    cause = table.fail(unreadable())
    [error] = table.recovery.errors
    assert isinstance(error, ServerError)
    assert B in str(error)
    assert "after replay id 2" in str(error)
    assert error.replay_id == 2
    assert error.__cause__ is cause.error
    used = [one for one in table.events if one.kind is Kind.FALLBACK_USED]
    assert [(one.channel, one.replay_id, one.error) for one in used] == [(B, -1, error)]
    # The other one goes on where it was, and all at once again.
    table.handshake()
    assert table.resubscribe_all() == [{A: 1}, {B: -1}]
    table.connect(event(B, 9))
    assert table.is_in(State.CONNECTED)
    assert table.recovery.lost_since is None
    assert ids_of(table.overwritten) == [9]
    table.lose_session()
    assert table.renew() == [{A: 1}, {B: 9}]


def test_what_cannot_be_read_in_the_answer_to_a_subscribe() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    lose_answers(table, MAX_UNREADABLE)
    subscription = table.next_subscription()
    table.session.resubscribe_done(subscription, unreadable(), table.now)
    [error] = table.recovery.errors
    assert isinstance(error, ServerError)
    assert error.replay_id == 1
    assert table.renew() == [{A: -1}]


def test_different_answers_that_cannot_be_read_are_no_reason_to_skip() -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    for number in range(5 * MAX_UNREADABLE):
        table.fail(unreadable(str(number)))
        assert table.renew() == [{A: 1}]
    assert table.recovery.errors == []


def test_an_answer_that_can_be_read_begins_the_count_anew() -> None:
    table = Table().open(A)
    for _ in range(5):
        table.now += 100.0
        lose_answers(table, MAX_UNREADABLE - 1)
        come_back(table)
        table.connect()
    assert table.recovery.errors == []


def test_a_session_that_is_lost_while_channels_come_one_by_one() -> None:
    table = Table().open(A, B)
    lose_answers(table, MAX_UNREADABLE)
    table.resubscribe()
    assert table.step() is Action.CONNECT
    table.lose_session()
    assert not table.session.may_connect
    table.handshake()
    # Still one by one, from the beginning.
    assert table.resubscribe()["subscription"] == A
    assert table.step() is Action.CONNECT


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
        if table.step() is not Action.CONNECT:
            break
        epoch = session.epoch
        request = session.connect_message()
        events, reply = receive(session, messages, session.send(request))
        assert all("data" in one for one in events)
        if reply is not None:
            session.connect_done(reply, epoch, len(events), 1.0, table.now)
        assert 0.0 <= session.next_step().delay < 400.0


RESULTS = st.lists(
    st.dictionaries(NAMES, JSON | CHANNELS, max_size=4)
    | st.fixed_dictionaries(
        {"successful": st.booleans()},
        optional={
            "clientId": st.sampled_from(["again", "", 5]),
            "error": st.sampled_from(
                [
                    "401::x",
                    "402::x",
                    UNKNOWN["error"],
                    INVALID_ID["error"],
                    LIMIT["error"],
                    DENIED["error"],
                    COOKIE["error"],
                    "503::x",
                    7,
                ]
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
        step = session.next_step(table.now)
        assert 0.0 <= step.delay <= 900.0
        table.now += 1.0 + step.delay
        if step.action is Action.STOP:
            assert table.recovery.stop_error is not None
            break
        take_step(table, step.action, messages)
        assert len(table.channels._tickets) == 0
        assert all(isinstance(error, AiosfstreamException) for error in table.recovery.errors)
        if session.established:
            request = session.writer.publish("/service/x", {})
            _, reply = receive(session, [dict(one) for one in messages], session.send(request))
            session.request_done(None, reply or failure(Trouble.LOST), session.epoch, table.now)
    # A channel is subscribed, or the application has been told that it is not.
    told = {one.channel for one in table.events if one.error is not None}
    assert opening or {A, B} <= told | table.channels.subscriptions.keys()


def take_step(table: Table, action: Action, messages: list[Message]) -> None:
    """Take a step that is answered with *messages*."""
    session = table.session
    if action is Action.AUTHENTICATE:
        table.recovery.authenticated(table.now)
        return
    if action is Action.PARK:
        assert session.waits_for_credentials
        table.recovery.unpark()
        return
    subscription = None
    if action is Action.HANDSHAKE:
        request = session.handshake_message(["long-polling"])
    elif action is Action.SUBSCRIBE:
        subscription = session.next_to_resubscribe(table.now)
        if subscription is None:
            return
        request = session.writer.subscribe(subscription.channel)
        table.channels.stamp(request, subscription)
    else:
        request = session.connect_message(table.now)
    epoch = session.epoch
    events, reply = receive(session, [dict(one) for one in messages], session.send(request))
    result = reply or failure(Trouble.LOST)
    if action is Action.HANDSHAKE:
        session.handshake_done(result, table.now)
    elif subscription is not None:
        session.resubscribe_done(subscription, result, table.now)
    else:
        session.connect_done(result, epoch, len(events), 0.5, table.now)


def test_nothing_is_subscribed_again_while_all_is_well() -> None:
    table = Table().open(A)
    assert table.session.next_to_resubscribe(table.now) is None
    assert table.is_in(State.CONNECTED)
