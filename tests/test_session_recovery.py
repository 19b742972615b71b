"""What each failure leads to, and the way back from it."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from aiosfstream._cometd.recovery import MAX_COOKIE_RENEWALS, MAX_STORAGE_ATTEMPTS
from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.states import Action, State
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import (
    AuthenticationError,
    ReplayError,
    ServerError,
    TransportError,
)
from tests.table import (
    BUSY,
    COOKIE,
    DENIED,
    GOODBYE,
    LIMIT,
    TOKEN,
    UNKNOWN,
    A,
    B,
    Message,
    Table,
    event,
    failure,
)

Kind = ConnectionEventKind
POLICY = RetryPolicy()


# Recovery


def test_a_first_loss_is_recovered_at_once_and_repeated_ones_with_backoff() -> None:
    table = Table().open(A)
    delays = []
    for _ in range(30):
        table.connect(elapsed=0.1)
        table.connect(elapsed=0.1, **UNKNOWN)
        delays.append(table.session.next_step().delay)
        table.renew()
    assert delays[0] == 0.0
    assert 5.0 < max(delays) <= POLICY.cap


def test_a_connection_that_holds_makes_failures_forgotten() -> None:
    table = Table().open(A)
    for _ in range(5):
        table.connect(elapsed=0.1, **UNKNOWN)
        assert table.session.next_step().delay >= 0.0
        table.renew()
    table.connect(elapsed=POLICY.settled)
    table.lose_session()
    assert table.session.next_step().delay == 0.0
    for _ in range(3):
        table.renew()
        table.connect(elapsed=0.1, **UNKNOWN)
    assert table.session.next_step().delay > 0.0


def test_an_event_makes_failures_forgotten() -> None:
    table = Table().open(A)
    for number in range(5):
        table.connect(event(A, number), elapsed=0.0)
        table.connect(elapsed=0.0, **UNKNOWN)
        assert table.session.next_step().delay == 0.0
        table.renew()


def test_the_time_that_counts_is_that_of_the_present_connection() -> None:
    table = Table().open(A)
    table.now += 100.0
    for _ in range(4):
        table.connect(elapsed=0.1, **UNKNOWN)
        table.renew()
    table.connect(elapsed=0.1, **UNKNOWN)
    assert table.session.next_step().delay > 0.0


def test_another_trouble_is_a_first_failure() -> None:
    table = Table(connection_timeout=None).open(A)
    for _ in range(6):
        table.fail(failure(Trouble.NOT_SENT), elapsed=0.0)
        table.session.next_step()
    assert table.events[-1].attempt == 6
    table.fail(failure(Trouble.THROTTLED), elapsed=0.0)
    delay = table.session.next_step().delay
    assert 0.0 < delay <= POLICY.busy_initial
    table.connect(elapsed=0.0, **TOKEN)
    assert table.session.next_step().delay == 0.0


def test_an_attempt_that_was_not_answered_in_time_has_waited_long_enough() -> None:
    table = Table(connection_timeout=None).open(A)
    table.fail(failure(Trouble.LOST), elapsed=15.0)
    for _ in range(8):
        step = table.session.next_step(table.now)
        assert step.action is Action.HANDSHAKE
        table.now += step.delay + 15.0
        table.session.handshake_done(failure(Trouble.LOST), table.now)
        assert table.events[-1].kind is Kind.RETRYING
        assert table.events[-1].delay == 0.0
        if table.is_in(State.NO_TOKEN):
            assert table.session.next_step(table.now).delay == 0.0
            table.now += 15.0
            slow = AuthenticationError("down", retryable=True)
            table.recovery.authentication_failed(slow, table.now)
    assert table.session.next_step(table.now).delay == 0.0


def test_a_delay_counts_from_the_beginning_of_the_attempt() -> None:
    left: list[float] = []
    whole: list[float] = []
    for elapsed, delays in ((0.5, left), (0.0, whole)):
        table = Table(connection_timeout=None).open(A)
        table.fail(failure(Trouble.NOT_SENT), elapsed=0.0)
        for _ in range(6):
            delay = table.session.next_step(table.now).delay
            delays.append(delay)
            table.now += delay + elapsed
            table.session.connect_done(
                failure(Trouble.NOT_SENT), table.session.epoch, 0, elapsed, table.now
            )
    # The pause before the attempt is no part of it.
    assert left[1:] == pytest.approx([max(delay - 0.5, 0.0) for delay in whole[1:]])
    assert max(left) > 0.5


@pytest.mark.parametrize("trouble", [Trouble.LOST, Trouble.NOT_SENT])
def test_the_time_that_a_connect_was_held_is_no_pause(trouble: Trouble) -> None:
    # Thousands may be cut in one moment.
    table = Table().open(A)
    table.connect()
    table.fail(failure(trouble), elapsed=110.0)
    assert table.session.next_step(table.now).delay > 0.0


def test_a_held_connect_is_no_attempt_while_a_channel_waits() -> None:
    table = Table().open(A, B)
    table.lose_session()
    table.handshake()
    table.resubscribe(**LIMIT)
    table.resubscribe_all()
    table.connect()
    assert table.session.deferred
    table.fail(failure(Trouble.LOST), elapsed=5.0)
    assert table.session.next_step(table.now).delay > 0.0


@pytest.mark.parametrize("trouble", [failure(Trouble.THROTTLED), failure(Trouble.LOST, 40.0)])
def test_what_the_server_asks_to_wait_counts_from_its_answer(trouble: Failure) -> None:
    delays = []
    for elapsed in (0.0, 8.0):
        table = Table(connection_timeout=None).open(A)
        table.fail(failure(Trouble.LOST), elapsed=0.0)
        table.now += table.session.next_step(table.now).delay + elapsed
        table.session.handshake_done(trouble, table.now)
        delays.append(table.session.next_step(table.now).delay)
    assert delays[0] == delays[1] > 0.0


def test_a_busy_server_has_its_pause_however_long_its_answer_took() -> None:
    delays = []
    for elapsed in (0.0, 8.0):
        table = Table(connection_timeout=None).open(A)
        table.fail(failure(Trouble.LOST), elapsed=0.0)
        table.handshake()
        table.resubscribe_all()
        table.connect(elapsed=elapsed, **BUSY)
        assert table.is_in(State.NO_SESSION)
        delays.append(table.session.next_step(table.now).delay)
    assert delays[0] == delays[1] > 0.0


def test_a_farewell_is_answered_with_a_delay_however_long_the_attempt_took() -> None:
    table = Table().open(A)
    table.fail(failure(Trouble.LOST), elapsed=0.0)
    table.handshake()
    table.resubscribe_all()
    # The server says it to many clients in one moment.
    table.connect(GOODBYE, elapsed=5.0)
    assert table.is_in(State.NO_SESSION)
    assert table.session.next_step(table.now).delay > 0.0


def test_what_a_loss_and_its_end_leave_behind() -> None:
    table = Table().open(A)
    cause = table.fail(failure(Trouble.LOST), elapsed=3.0)
    lost_at = table.now
    assert table.recovery.last_error is cause.error
    assert [(one.kind, one.error) for one in table.events[-2:]] == [
        (Kind.CONNECTION_LOST, cause.error),
        (Kind.RETRYING, cause.error),
    ]
    table.session.handshake_done(failure(Trouble.NOT_SENT), 5.0)
    # Lost is lost: it is told once, and counted from the beginning.
    assert table.kinds().count(Kind.CONNECTION_LOST) == 1
    assert table.recovery.lost_since == lost_at
    table.renew()
    assert table.recovery.last_error is None
    assert table.recovery.lost_since is None
    assert table.kinds()[-1] is Kind.CONNECTED
    table.connect()
    assert table.kinds()[-1] is Kind.CONNECTED
    assert table.kinds().count(Kind.CONNECTED) == 2


@pytest.mark.parametrize("trouble", [Trouble.NOT_SENT, Trouble.THROTTLED])
def test_a_request_that_was_not_sent_is_repeated_in_the_same_session(trouble: Trouble) -> None:
    table = Table().open(A)
    client_id = table.recovery.client_id
    table.fail(failure(trouble, 700.0))
    assert table.session.state is State.CONNECTING
    assert table.recovery.client_id == client_id
    assert table.session.next_step().delay >= 700.0
    assert table.recovery.left_behind == []
    table.connect()
    assert table.recovery.lost_since is None
    assert table.is_in(State.CONNECTED)


@pytest.mark.parametrize("trouble", [Trouble.LOST, Trouble.UNREADABLE])
def test_a_lost_answer_gives_up_the_session_with_a_goodbye(trouble: Trouble) -> None:
    table = Table().open(A)
    table.fail(failure(trouble, 700.0))
    assert table.recovery.left_behind == ["client"]
    assert table.recovery.client_id is None
    assert table.session.next_step().delay >= 700.0
    table.session.handshake_done(failure(trouble), 6.0)
    assert table.session.state is State.NO_SESSION
    assert table.recovery.left_behind == ["client"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [(UNKNOWN, False), (COOKIE, False), (BUSY, True), (LIMIT, True), (TOKEN, True)],
)
def test_who_must_be_told_that_a_session_is_left(fields: Message, told: bool) -> None:
    table = Table().open(A)
    table.connect(**fields)
    assert table.recovery.left_behind == ["client"] * told


def test_a_busy_server_that_has_recovered_starts_anew() -> None:
    table = Table().open(A)
    for _ in range(8):
        table.connect(elapsed=0.1, **BUSY)
        table.renew()
    table.connect(elapsed=0.1, **BUSY)
    assert table.session.next_step().delay > POLICY.busy_initial
    table.renew()
    table.connect(elapsed=10.0)
    table.connect(**BUSY)
    assert table.session.next_step().delay <= POLICY.busy_initial


@pytest.mark.parametrize("fields", [BUSY, LIMIT, {"error": "500::x"}, {"error": "503::x"}])
def test_a_busy_server_is_left_alone_for_longer(fields: Message) -> None:
    delays = []
    for _ in range(20):
        table = Table().open(A)
        for _ in range(10):
            table.connect(elapsed=0.0, **fields)
            delays.append(table.session.next_step().delay)
            table.renew()
    assert POLICY.cap < max(delays) <= POLICY.busy_cap


def test_cookies_are_thrown_away_three_times() -> None:
    table = Table().open(A)
    for _ in range(MAX_COOKIE_RENEWALS):
        table.connect(**COOKIE)
        assert table.session.state is State.NO_SESSION
        assert table.recovery.clear_cookies
        table.handshake()
        assert not table.recovery.clear_cookies
        table.resubscribe_all()
    table.connect(**COOKIE)
    assert table.session.state is State.STOPPED
    assert isinstance(table.recovery.stop_error, ServerError)


def test_only_failures_in_a_row_count() -> None:
    for fields in (TOKEN, COOKIE):
        table = Table().open(A)
        for _ in range(10):
            table.now += 100.0
            table.connect(**fields)
            if table.step() is Action.AUTHENTICATE:
                table.recovery.authenticated(table.now)
            table.renew()
        assert table.recovery.errors == []
        assert table.session.state is State.CONNECTED


def test_a_step_that_was_ended_by_something_else() -> None:
    table = Table().open(A)
    error = TransportError("somebody else's cancellation")
    table.session.disturbed(error, table.now)
    assert table.session.state is State.NO_SESSION
    assert table.recovery.last_error is error
    assert table.recovery.left_behind == ["client"]


def test_a_background_task_that_somebody_else_has_ended() -> None:
    table = Table().open(A)
    error = TransportError("cancelled")
    table.recovery.park(error)
    assert table.session.state is State.PARKED
    assert table.recovery.errors == [error]
    assert table.kinds()[-1] is Kind.CONNECTION_LOST
    table.recovery.unpark()
    assert table.session.next_step() == (Action.HANDSHAKE, 0.0)
    assert not table.session.waits_for_credentials


def test_a_mistake_in_the_program_ends_it() -> None:
    table = Table().open(A)
    error = TransportError("a bug")
    table.recovery.stop(error)
    assert table.recovery.stop_error is error
    assert table.step() is Action.STOP
    assert table.recovery.client_id is None


# Opening


@pytest.mark.parametrize("on_connect", [False, True])
@pytest.mark.parametrize(
    ("outcome", "makes_up"),
    [
        (failure(Trouble.NOT_SENT), None),
        (failure(Trouble.LOST), None),
        (failure(Trouble.UNREADABLE), None),
        (failure(Trouble.THROTTLED), None),
        (failure(Trouble.REJECTED, status=413), None),
        (failure(Trouble.REJECTED, status=404), None),
        (failure(Trouble.REDIRECTED, status=302), None),
        (failure(Trouble.FORBIDDEN, status=403, reason="REQUEST_LIMIT_EXCEEDED: x"), None),
        ({"error": "500::x"}, None),
        ({"error": "400::x"}, None),
        (LIMIT, None),
        (BUSY, None),
        (DENIED, None),
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
            session.connect_done(as_result(table, outcome), session.epoch, 0, 1.0, 0.0)
        else:
            session.handshake_done(as_result(table, outcome), 0.0)
        step = session.next_step()
        if wanted is None:
            break
        # At once, as somebody waits for it.
        assert (step.action, step.delay) == (wanted, 0.0)
        if wanted is Action.AUTHENTICATE:
            table.recovery.authenticated(0.0)
    assert step.action is Action.STOP
    error = table.recovery.stop_error
    if makes_up is Action.AUTHENTICATE:
        assert isinstance(error, AuthenticationError)
        assert isinstance(error.__cause__, TransportError | ServerError)
    elif isinstance(outcome, Failure):
        assert str(error) == str(outcome.error)
    else:
        assert type(error) is ServerError
    # Nobody observes a client that has not opened, but for a new token.
    assert set(table.kinds()) <= {Kind.REAUTHENTICATED}


def as_result(table: Table, outcome: Message | Failure) -> Any:
    """Make a result out of an outcome."""
    if isinstance(outcome, Failure):
        # Each has an error of its own.
        return replace(outcome, error=copy(outcome.error))
    return table.reply(table.session.connect_message(), **outcome)


def test_opening_blames_the_token_for_nothing_else() -> None:
    table = Table()
    table.handshake(**TOKEN)
    table.step()
    table.recovery.authenticated(0.0)
    table.handshake()
    for _ in range(2):
        table.session.connect_done(as_result(table, UNKNOWN), table.session.epoch, 0, 1.0, 0.0)
        if table.step() is Action.HANDSHAKE:
            table.handshake()
    assert type(table.recovery.stop_error) is ServerError


@pytest.mark.parametrize("retryable", [False, True])
def test_opening_tells_that_the_log_in_has_failed(retryable: bool) -> None:
    table = Table()
    table.handshake(error="403::Handshake denied", ext={"sfdc": {"failureReason": "401::x"}})
    assert table.step() is Action.AUTHENTICATE
    error = AuthenticationError("refused", retryable=retryable)
    table.recovery.authentication_failed(error, 0)
    assert table.recovery.stop_error is error


def test_a_goodbye_while_opening() -> None:
    for times, state in ((1, State.NO_SESSION), (2, State.STOPPED)):
        table = Table()
        for _ in range(times):
            table.handshake()
            table.connect(GOODBYE)
        assert table.session.state is state


# A storage that fails


def test_a_storage_that_fails_during_a_renewal() -> None:
    table = Table().open(A)
    table.lose_session()
    table.handshake()
    error = ReplayError("locked")
    for _ in range(MAX_STORAGE_ATTEMPTS - 1):
        table.session.recovery.storage_failed(error, table.now)
        step = table.session.next_step()
        assert step.action is Action.SUBSCRIBE
        assert 0.0 < step.delay <= POLICY.cap
        assert table.recovery.last_error is error
        assert table.recovery.errors == []
    table.session.recovery.storage_failed(error, table.now)
    assert table.recovery.errors == [error]
    assert table.step() is Action.PARK
    assert table.kinds()[-1] is Kind.STORAGE_FAILED
    table.recovery.unpark()
    assert table.session.waits_for_credentials
    table.renew()
    assert not table.session.waits_for_credentials
    # It was read in the end, so the next renewal may try as often again.
    table.lose_session()
    table.handshake()
    for _ in range(MAX_STORAGE_ATTEMPTS - 1):
        table.session.recovery.storage_failed(error, table.now)
        assert table.step() is Action.SUBSCRIBE
    assert len(table.recovery.errors) == 1
