"""An hour of failures on a clock of paper: how often a session asks a server that does it no good."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream._cometd.states import Action
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream.exceptions import AuthenticationError
from tests.table import UNKNOWN, A, B, Table, failure, receive

HOUR = 3600.0
#: Seconds that each answer takes.
TOOK = 0.01
NONE = {"reconnect": "none"}
HANDSHAKE = {"reconnect": "handshake", "interval": 0}
BUSY = {"error": "401::x", "ext": {"sfdc": {"failureReason": "503::Server is too busy."}}}

#: What may come of a request: fields of a reply, or how it failed.
OUTCOMES: dict[str, Any] = {
    "well": {},
    "well, with advice": {"advice": {"reconnect": "retry", "interval": 0}},
    "goodbye": {},
    "lost": Trouble.LOST,
    "not sent": Trouble.NOT_SENT,
    "throttled": Trouble.THROTTLED,
    "HTTP 401": Trouble.UNAUTHORIZED,
    "HTTP 403": Trouble.FORBIDDEN,
    "token refused": {"error": "401::Authentication invalid", "advice": NONE},
    "unknown client": UNKNOWN,
    "busy": {**BUSY, "advice": NONE},
    "a limit": {"error": "403::Organization concurrent user limit exceeded"},
    "cookie": {"error": "400::no BAYEUX_BROWSER cookie present"},
    "an error": {"error": "500::x"},
    "advice handshake": {"error": "403::x", "advice": HANDSHAKE},
}


class Hour:
    """Lives for an hour on the outcomes of a cycle, and counts.

    :param cycle: names of outcomes, one after the other, over and over
    :param logins: how log-ins end
    """

    def __init__(self, *cycle: str, logins: list[AuthenticationError | None] | None = None) -> None:
        self._cycle = cycle
        self._logins = logins or [None]
        self._taken = 0
        self.asked: Counter[Action] = Counter()
        self.ended_at = HOUR
        self._table = Table().open(A, B, start=0)
        self._live()

    @property
    def requests(self) -> int:
        """How many CometD requests there were."""
        asked = self.asked
        return asked[Action.HANDSHAKE] + asked[Action.SUBSCRIBE] + asked[Action.CONNECT]

    @property
    def logins(self) -> int:
        """How many log-ins there were."""
        return self.asked[Action.AUTHENTICATE]

    def _live(self) -> None:
        table, session = self._table, self._table.session
        table.now = 0.0
        while True:
            step = session.next_step(table.now)
            table.now += step.delay + TOOK
            if table.now > HOUR:
                break
            if step.action is Action.STOP:
                self.ended_at = table.now
                break
            if step.action is Action.PARK:
                # An application that asks again at once.
                table.recovery.unpark()
            elif step.action is Action.AUTHENTICATE:
                self._log_in()
            else:
                self._request(step.action)
                continue
            self.asked[step.action] += 1

    def _log_in(self) -> None:
        error = self._logins[self.logins % len(self._logins)]
        if error is None:
            self._table.recovery.authenticated(self._table.now)
        else:
            self._table.recovery.authentication_failed(error, self._table.now)

    def _request(self, action: Action) -> None:
        table, session = self._table, self._table.session
        subscription = None
        if action is Action.HANDSHAKE:
            request = session.handshake_message(["long-polling"])
        elif action is Action.CONNECT:
            request = session.connect_message(table.now)
        else:
            subscription = session.next_to_resubscribe(table.now)
            if subscription is None:
                return
            request = session.writer.subscribe(subscription.channel)
            table.channels.stamp(request, subscription)
        self.asked[action] += 1
        epoch = session.epoch
        result = self._outcome(request)
        if action is Action.HANDSHAKE:
            session.handshake_done(result, table.now)
        elif subscription is None:
            hold = session.hold_of(request)
            session.connect_done(result, epoch, 0, TOOK, table.now, hold=hold)
        else:
            session.resubscribe_done(subscription, result, table.now)

    def _outcome(self, request: dict[str, Any]) -> dict[str, Any] | Failure:
        table, session = self._table, self._table.session
        name = self._cycle[self._taken % len(self._cycle)]
        self._taken += 1
        outcome = OUTCOMES[name]
        ticket = session.send(request)
        if isinstance(outcome, Trouble):
            session.abandon(ticket, lost=outcome is Trouble.LOST)
            return failure(outcome, status=401 if outcome is Trouble.UNAUTHORIZED else None)
        others = [{"channel": "/meta/disconnect"}] if name == "goodbye" else []
        _, reply = receive(session, [*others, table.reply(request, **outcome)], ticket)
        assert reply is not None
        return reply


#: With bounds that double from 1 to 10 seconds, full jitter makes about 720 attempts an hour; from 10
#: to 300 seconds about 30; refused credentials come to rest at one attempt in 15 minutes.
RETRIES, PATIENT, SELDOM = (650, 800), (20, 50), (9, 20)
#: Log-ins that look for an instance that is silent: after 10 seconds, 20, 40 ... and 900.
LOOKED_FOR = (7, 12)


@pytest.mark.parametrize(
    ("outcome", "action", "bounds", "logins"),
    [
        ("lost", Action.HANDSHAKE, RETRIES, LOOKED_FOR),
        ("not sent", Action.HANDSHAKE, RETRIES, LOOKED_FOR),
        ("throttled", Action.CONNECT, PATIENT, (0, 0)),
        ("an error", Action.HANDSHAKE, PATIENT, (0, 0)),
        ("unknown client", Action.HANDSHAKE, RETRIES, (0, 0)),
        ("advice handshake", Action.HANDSHAKE, RETRIES, (0, 0)),
        ("goodbye", Action.HANDSHAKE, RETRIES, (0, 0)),
        ("busy", Action.HANDSHAKE, PATIENT, (0, 0)),
        ("a limit", Action.HANDSHAKE, PATIENT, (0, 0)),
        ("token refused", Action.HANDSHAKE, SELDOM, SELDOM),
        ("HTTP 401", Action.HANDSHAKE, SELDOM, SELDOM),
        ("HTTP 403", Action.HANDSHAKE, SELDOM, SELDOM),
    ],
)
def test_an_hour_of_one_failure(
    outcome: str, action: Action, bounds: tuple[int, int], logins: tuple[int, int]
) -> None:
    hour = Hour(outcome)
    assert bounds[0] <= hour.asked[action] <= bounds[1]
    assert logins[0] <= hour.logins <= logins[1]
    # Nothing is asked behind the back of what is counted.
    assert hour.requests <= 3 * bounds[1]
    assert hour.ended_at == HOUR


@pytest.mark.parametrize(
    "outcome",
    ["unknown client", "token refused", "HTTP 401", "HTTP 403", "lost", "goodbye", "busy"],
)
def test_an_hour_of_sessions_that_work_for_a_moment(outcome: str) -> None:
    # A handshake, two subscriptions and a connect go well each time, and the next connect does not:
    # a success so short makes nothing forgotten.
    hour = Hour(outcome, "well", "well", "well", "well")
    assert 20 <= hour.asked[Action.HANDSHAKE] <= 800
    assert hour.requests <= 5 * 800
    assert hour.logins <= 800
    assert hour.ended_at == HOUR


@pytest.mark.parametrize("outcome", ["unknown client", "token refused"])
def test_an_hour_of_sessions_that_hold(outcome: str) -> None:
    # The pauses between the empty answers are what they hold for.
    hour = Hour(outcome, *["well"] * 15)
    # Each is made up for at once.
    assert hour.asked[Action.HANDSHAKE] > 60
    assert hour.asked[Action.CONNECT] > 700


def test_cookies_that_are_refused_again_and_again_end_it() -> None:
    hour = Hour("cookie")
    assert hour.ended_at < 60.0
    assert hour.requests <= 5


@pytest.mark.parametrize(
    ("error", "bounds"),
    [
        (AuthenticationError("down", retryable=True), RETRIES),
        (
            AuthenticationError(
                "", error="invalid_grant", error_description="login rate exceeded", retryable=True
            ),
            PATIENT,
        ),
        (AuthenticationError("refused"), SELDOM),
    ],
)
def test_an_hour_of_log_ins_that_fail(error: AuthenticationError, bounds: tuple[int, int]) -> None:
    hour = Hour("token refused", logins=[error])
    assert bounds[0] <= hour.logins <= bounds[1]
    assert hour.requests == 1


def test_an_hour_of_empty_answers_at_once() -> None:
    # No long poll at all: after the first few answers one in five seconds.
    assert 700 <= Hour("well").requests <= 760


@given(
    st.lists(st.sampled_from([*OUTCOMES]), min_size=1, max_size=6),
    st.lists(
        st.sampled_from(
            [None, None, AuthenticationError("x"), AuthenticationError("x", retryable=True)]
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_no_mixture_of_failures_makes_a_storm(
    cycle: list[str], logins: list[AuthenticationError | None]
) -> None:
    # A connection that held for a while makes earlier failures forgotten. So all that a server can
    # provoke, however it mixes success and failure, is one round of recovery in each such while.
    rounds = HOUR / RetryPolicy().settled
    hour = Hour(*cycle, logins=logins)
    assert hour.requests <= 8 * rounds
    # Salesforce refuses a user's log-ins beyond 3600 an hour.
    assert hour.logins <= rounds
