"""Tokens that are refused, and instances that the org has left."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.states import Action, State
from aiosfstream._cometd.tokens import PATIENCE
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import (
    AuthenticationError,
    ServerError,
)
from tests.table import (
    TOKEN,
    A,
    Table,
    event,
    failure,
)

Kind = ConnectionEventKind
POLICY = RetryPolicy()


# The org that has moved


@pytest.mark.parametrize(
    "gone",
    [
        failure(Trouble.REJECTED, status=404),
        failure(Trouble.REJECTED, status=410),
        failure(Trouble.REJECTED, status=421),
        failure(Trouble.REDIRECTED, status=302),
    ],
)
def test_an_instance_that_the_org_has_left(gone: Failure) -> None:
    table = Table().open(A)
    table.connect(event(A, 1))
    table.fail(gone)
    assert table.session.next_step() == (Action.AUTHENTICATE, 0.0)
    assert table.recovery.left_behind == []
    assert table.recovery.errors == []
    table.recovery.authenticated(table.now)
    assert table.renew() == [{A: 1}]
    # Found again, it may move again.
    table.fail(gone)
    assert table.step() is Action.AUTHENTICATE
    table.recovery.authenticated(table.now)
    assert table.step() is Action.HANDSHAKE
    table.session.handshake_done(gone, table.now)
    assert table.recovery.stop_error is gone.error


def test_a_request_that_will_not_do_better_ends_it() -> None:
    table = Table().open(A)
    rejected = table.fail(failure(Trouble.REJECTED, status=413))
    assert table.recovery.stop_error is rejected.error


@pytest.mark.parametrize("trouble", [Trouble.NOT_SENT, Trouble.LOST])
def test_an_instance_that_is_silent_for_too_long(trouble: Trouble) -> None:
    table = Table(connection_timeout=20.0).open(A)
    table.fail(failure(trouble))
    lost_at = table.now
    asked_at: list[float] = []
    while len(asked_at) < 4:
        step = table.session.next_step(table.now)
        table.now += step.delay + 0.5
        if step.action is Action.AUTHENTICATE:
            asked_at.append(table.now - lost_at)
            table.recovery.authenticated(table.now)
        elif step.action is Action.HANDSHAKE:
            table.session.handshake_done(failure(trouble), table.now)
        else:
            ticket = table.session.send(table.session.connect_message())
            table.session.abandon(ticket, lost=trouble is Trouble.LOST)
            table.session.connect_done(failure(trouble), ticket.epoch, 0, 0.5, table.now)
    assert 20.0 <= asked_at[0] < 35.0
    # Seldom and more seldom: log-ins are counted.
    gaps = [later - earlier for earlier, later in pairwise(asked_at)]
    assert gaps[0] >= 40.0
    assert gaps[1] >= 80.0
    assert table.recovery.lost_since == lost_at


def test_how_long_an_instance_may_be_silent_if_nobody_says() -> None:
    for timeout in (None, 0):
        table = Table(connection_timeout=timeout).open(A)
        table.fail(failure(Trouble.LOST))
        table.session.handshake_done(failure(Trouble.LOST), table.now + 9.9)
        assert table.session.state is State.NO_SESSION
        table.session.handshake_done(failure(Trouble.LOST), table.now + 10.0)
        assert table.is_in(State.NO_TOKEN)


def test_a_server_that_answers_has_not_moved() -> None:
    table = Table(connection_timeout=5.0).open(A)
    for trouble in (Trouble.THROTTLED, Trouble.UNREADABLE):
        for _ in range(5):
            epoch = table.session.epoch
            if table.step() is Action.HANDSHAKE:
                table.session.handshake_done(failure(trouble), table.now)
            else:
                table.session.connect_done(failure(trouble), epoch, 0, 1.0, table.now)
            table.now += 10.0
    assert table.session.state is State.NO_SESSION


def test_while_it_opens_nobody_looks_for_the_org() -> None:
    table = Table(connection_timeout=5.0)
    table.handshake()
    table.session.connect_done(failure(Trouble.NOT_SENT), table.session.epoch, 0, 1.0, 100.0)
    assert table.session.state is State.STOPPED


# Tokens


@pytest.mark.parametrize("refusal", [TOKEN, failure(Trouble.UNAUTHORIZED, status=401)])
def test_a_refused_token_is_renewed_at_once(refusal: Any) -> None:
    table = Table().open(A)
    if isinstance(refusal, Failure):
        table.fail(refusal)
    else:
        table.connect(**refusal)
    assert table.session.next_step() == (Action.AUTHENTICATE, 0.0)
    table.recovery.authenticated(table.now)
    table.renew()
    assert table.session.state is State.CONNECTED
    assert Kind.REAUTHENTICATED in table.kinds()
    assert table.recovery.errors == []


def refuse_on_and_on(table: Table, trouble: Trouble, took: float = 0.01) -> tuple[int, float]:
    """Refuse each new token until the application hears of it; give how often and how long."""
    started, logins = table.now, 0
    table.fail(failure(trouble, status=401), elapsed=0.0)
    while table.session.state is not State.PARKED:
        step = table.session.next_step(table.now)
        table.now += step.delay + took
        if step.action is Action.AUTHENTICATE:
            logins += 1
            table.recovery.authenticated(table.now)
        else:
            table.session.handshake_done(failure(trouble, status=401), table.now)
    return logins, table.now - started


@pytest.mark.parametrize("trouble", [Trouble.UNAUTHORIZED, Trouble.FORBIDDEN])
def test_new_tokens_that_are_refused_are_asked_for_until_connection_timeout(
    trouble: Trouble,
) -> None:
    for timeout in (30.0, None, 0):
        table = Table(connection_timeout=timeout).open(A)
        logins, seconds = refuse_on_and_on(table, trouble)
        # Three pages in a row do no harm.
        assert logins > 3
        # The next attempt would have come after that time.
        limit = timeout or PATIENCE
        assert limit - POLICY.cap <= seconds <= limit
        [error] = table.recovery.errors
        assert isinstance(error, AuthenticationError)
        lost = next(one for one in table.events if one.kind is Kind.CONNECTION_LOST)
        assert error.__cause__ is lost.error
        assert str(lost.error) in str(error)
        assert error.status == 401
        assert table.kinds()[-1] is Kind.AUTHENTICATION_FAILED
        assert table.session.waits_for_credentials
        # A token that is refused may be used by nobody else: the server is told.
        assert table.recovery.left_behind == ["client"]


def test_a_request_without_a_token_is_a_matter_of_credentials() -> None:
    table = Table(connection_timeout=1.0).open(A)
    table.fail(failure(Trouble.UNAUTHORIZED), elapsed=0.0)
    while table.session.state is not State.PARKED:
        step = table.session.next_step(table.now)
        table.now += step.delay
        if step.action is Action.AUTHENTICATE:
            table.recovery.authenticated(table.now)
        else:
            table.session.handshake_done(failure(Trouble.UNAUTHORIZED), table.now)
    assert [type(error) for error in table.recovery.errors] == [AuthenticationError]
    table.recovery.unpark()
    assert table.session.next_step() == (Action.AUTHENTICATE, POLICY.refused_initial)


def test_a_refused_token_is_told_with_the_first_reason() -> None:
    table = Table(connection_timeout=1.0).open(A)
    table.connect(
        error="403::Handshake denied", ext={"sfdc": {"failureReason": "401::API_DISABLED"}}
    )
    for _ in range(20):
        if table.session.state is State.PARKED:
            break
        step = table.session.next_step(table.now)
        table.now += step.delay
        if step.action is Action.AUTHENTICATE:
            table.recovery.authenticated(table.now)
        else:
            request = table.session.handshake_message([])
            table.session.handshake_done(table.reply(request, **TOKEN), table.now)
    [error] = table.recovery.errors
    assert isinstance(error, AuthenticationError)
    assert isinstance(error.__cause__, ServerError)
    assert "API_DISABLED" in str(error)


def test_a_log_in_that_is_refused_without_a_refused_token_is_told_as_it_is() -> None:
    table = Table().open(A)
    table.fail(failure(Trouble.REDIRECTED, status=302))
    refused = AuthenticationError("refused")
    table.recovery.authentication_failed(refused, table.now)
    assert table.recovery.errors == [refused]


def test_a_log_in_that_is_refused_says_why_there_was_one() -> None:
    table = Table().open(A)
    cause = table.fail(failure(Trouble.FORBIDDEN, status=403))
    refused = AuthenticationError("refused", error="invalid_grant", status=400)
    table.recovery.authentication_failed(refused, table.now)
    [error] = table.recovery.errors
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith("refused")
    assert str(cause.error) in str(error)
    assert error.__cause__ is cause.error
    assert (error.error, error.status) == ("invalid_grant", 400)
    # The error of the application's own code is not changed.
    assert str(refused) == "refused"


def test_the_text_of_refused_credentials_does_not_grow() -> None:
    table = Table().open(A)
    table.connect(**TOKEN)
    for _ in range(5):
        table.recovery.authentication_failed(AuthenticationError("refused"), table.now)
        table.recovery.unpark()
    texts = [str(error) for error in table.recovery.errors]
    assert len(texts) == 5
    assert len(set(texts)) == 1
    assert texts[0].count("401::Authentication invalid") == 1
    depth, error = 0, table.recovery.errors[-1].__cause__
    while error is not None:
        depth, error = depth + 1, error.__cause__
    assert depth == 1


def test_after_the_application_asks_again_one_refusal_is_enough() -> None:
    table = Table().open(A)
    refuse_on_and_on(table, Trouble.UNAUTHORIZED)
    table.recovery.unpark()
    assert table.session.next_step() == (Action.AUTHENTICATE, POLICY.refused_initial)
    table.recovery.authenticated(table.now)
    assert table.step() is Action.HANDSHAKE
    table.session.handshake_done(failure(Trouble.UNAUTHORIZED, status=401), table.now)
    assert table.session.state is State.PARKED
    assert len(table.recovery.errors) == 2


def test_refused_credentials_wait_for_the_application() -> None:
    table = Table().open()
    table.recovery.unpark()
    assert table.session.state is State.CONNECTED
    table.connect(**TOKEN)
    delays = []
    for _ in range(12):
        table.recovery.authentication_failed(AuthenticationError("refused"), 0)
        assert table.step() is Action.PARK
        assert table.session.waits_for_credentials
        table.recovery.unpark()
        delays.append(table.session.next_step().delay)
        assert table.session.waits_for_credentials
    assert delays[:4] == [5.0, 10.0, 20.0, 40.0]
    assert delays[-1] == 900.0
    table.recovery.authenticated(77.0)
    assert table.recovery.lost_since == 77.0
    assert not table.session.waits_for_credentials


def test_refusals_before_a_success_do_not_count() -> None:
    table = Table().open()
    delays = []
    for _ in range(3):
        table.connect(**TOKEN)
        table.recovery.authentication_failed(AuthenticationError("refused"), table.now)
        table.recovery.unpark()
        delays.append(table.session.next_step().delay)
        table.recovery.authenticated(table.now)
        table.renew()
    assert delays == [5.0] * 3


def later(text: str = "", retry_after: float | None = None) -> AuthenticationError:
    """Make the error of a log-in that may succeed later."""
    error = AuthenticationError(
        "later", error="invalid_grant", error_description=text, retryable=True
    )
    error.retry_after = retry_after
    return error


@pytest.mark.parametrize(
    ("text", "bound"),
    [("server_error", POLICY.cap), ("login rate exceeded", POLICY.busy_cap)],
)
def test_a_log_in_that_may_succeed_later_is_repeated(text: str, bound: float) -> None:
    table = Table().open()
    table.connect(**TOKEN)
    delays = []
    for _ in range(40):
        error = later(text)
        table.recovery.authentication_failed(error, 0)
        assert table.recovery.last_error is error
        step = table.session.next_step()
        assert step.action is Action.AUTHENTICATE
        delays.append(step.delay)
    assert bound / 2 < max(delays) <= bound
    assert table.recovery.errors == []


def test_the_wait_that_a_token_endpoint_asks_for_is_kept() -> None:
    table = Table().open()
    table.connect(**TOKEN)
    table.recovery.authentication_failed(later(retry_after=3000.0), 0)
    assert table.session.next_step() == (Action.AUTHENTICATE, 3000.0)
    # It is busy, so even a short one is followed by longer ones.
    delays = []
    for _ in range(20):
        table.recovery.authentication_failed(later(retry_after=1.0), 0)
        delays.append(table.session.next_step().delay)
    assert min(delays) >= 1.0
    assert max(delays) > POLICY.cap


def test_a_log_in_that_may_succeed_later_is_no_refusal() -> None:
    table = Table().open()
    table.connect(**TOKEN)
    table.recovery.authentication_failed(AuthenticationError("refused"), 0)
    table.recovery.unpark()
    assert table.session.waits_for_credentials
    table.recovery.authentication_failed(later("down"), 0)
    assert not table.session.waits_for_credentials


def test_while_the_login_host_is_down_the_instance_is_asked_as_well() -> None:
    table = Table().open()
    table.fail(failure(Trouble.REDIRECTED, status=302))
    assert table.step() is Action.AUTHENTICATE
    table.recovery.authentication_failed(later("down"), 0)
    # No token was refused, so the one that is there may be good.
    assert table.step() is Action.HANDSHAKE
