"""Which failure is worth another try, and when."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.retry import (
    Backoff,
    Verdict,
    failure_reason,
    hold_of,
    interval_of,
    is_replay_error,
    judge_reply,
    judge_request,
    judge_trouble,
    reconnect_advice,
)
from aiosfstream._http.post import Trouble

HANDSHAKE, RETRY, NONE = ({"reconnect": word} for word in ("handshake", "retry", "none"))
SIMULTANEOUS = (
    "403::To protect all customers from excessive use and Denial of Service attacks, we limit the"
    " number of simultaneous connections per server. Your request has been denied because this limit"
    " has been exceeded. Please try your request again later."
)


def refusal(error: Any = None, advice: Any = None, reason: Any = None) -> dict[str, Any]:
    """Make an unsuccessful reply."""
    reply: dict[str, Any] = {"successful": False}
    if error is not None:
        reply["error"] = error
    if advice is not None:
        reply["advice"] = advice
    if reason is not None:
        reply["ext"] = {"sfdc": {"failureReason": reason}}
    return reply


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (refusal("401::Authentication invalid", NONE), Verdict.LOG_IN),
        (refusal("403::Handshake denied", NONE, "401::Authentication invalid"), Verdict.LOG_IN),
        (refusal("403::Handshake denied", NONE), Verdict.STOP),
        (
            refusal("401::Authentication invalid", NONE, "503::Server is too busy."),
            Verdict.RENEW_LATER,
        ),
        (refusal("403::Handshake denied", NONE, SIMULTANEOUS), Verdict.RENEW_LATER),
        (refusal("403::Organization concurrent user limit exceeded", NONE), Verdict.RENEW_LATER),
        (refusal("403::Organization total events daily limit exceeded"), Verdict.RENEW_LATER),
        (refusal("403::Unknown client", HANDSHAKE), Verdict.RENEW),
        (refusal("403::Unknown client", NONE), Verdict.RENEW),
        (refusal("403::unknown  client."), Verdict.RETRY),
        (refusal("403::UNKNOWN CLIENT"), Verdict.RENEW),
        (refusal("403::Client has not completed handshake"), Verdict.RENEW),
        (refusal("402::session_unknown", HANDSHAKE), Verdict.RENEW),
        (refusal("402::unknown_session"), Verdict.RENEW),
        (
            refusal(
                "400::Client c has established a session, but no BAYEUX_BROWSER cookie present"
            ),
            Verdict.RENEW_COOKIES,
        ),
        (
            refusal("400::Authenticated user id does not match the session's user id", NONE),
            Verdict.RENEW_COOKIES,
        ),
        (refusal("400::Invalid connection type x"), Verdict.RETRY),
        (refusal("500::x", RETRY), Verdict.RETRY),
        (refusal("500::x", HANDSHAKE), Verdict.RENEW),
        (refusal("500::x", NONE), Verdict.STOP),
        (refusal("500::x", {"reconnect": "retry", "interval": -1}), Verdict.STOP),
        (refusal(), Verdict.RETRY),
        (refusal(5, "x", 7), Verdict.RETRY),
        ({"successful": True}, Verdict.PROCEED),
        ({"successful": True, "advice": RETRY}, Verdict.PROCEED),
        ({"successful": True, "advice": HANDSHAKE}, Verdict.RENEW),
        ({"successful": True, "advice": NONE}, Verdict.STOP),
        ({"successful": True, "error": ""}, Verdict.PROCEED),
    ],
)
def test_judging_a_handshake_or_connect(reply: dict[str, Any], verdict: Verdict) -> None:
    assert judge_reply(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ({"successful": True}, Verdict.PROCEED),
        (refusal("401::Authentication invalid"), Verdict.LOG_IN),
        (refusal("403::Unknown client"), Verdict.RENEW),
        (refusal("x", None, "503::Server is too busy."), Verdict.RENEW_LATER),
        (refusal("403::Subscription limit exceeded for this topic"), Verdict.PROCEED),
        (
            refusal(
                "403::Unable to create channel dynamically, maximum channel limit has been exceeded"
            ),
            Verdict.PROCEED,
        ),
        (refusal("403::Organization total events daily limit exceeded"), Verdict.PROCEED),
        (refusal("403:denied_by_security_policy:create_denied", NONE), Verdict.PROCEED),
        (refusal("404::Unknown channel"), Verdict.PROCEED),
        (refusal("403::Organization concurrent user limit exceeded"), Verdict.RENEW_LATER),
        (refusal("x", HANDSHAKE, SIMULTANEOUS), Verdict.RENEW_LATER),
        (refusal("500::x", HANDSHAKE), Verdict.PROCEED),
    ],
)
def test_judging_a_request_beside_the_connect(reply: dict[str, Any], verdict: Verdict) -> None:
    assert judge_request(reply) is verdict


def test_every_trouble_has_a_verdict() -> None:
    verdicts = {trouble: judge_trouble(trouble) for trouble in Trouble}
    assert verdicts[Trouble.LOST] is Verdict.RENEW_LOST
    assert verdicts[Trouble.NOT_SENT] is verdicts[Trouble.THROTTLED] is Verdict.RETRY
    assert verdicts[Trouble.UNAUTHORIZED] is verdicts[Trouble.FORBIDDEN] is Verdict.LOG_IN
    assert verdicts[Trouble.REDIRECTED] is verdicts[Trouble.REJECTED] is Verdict.STOP


@pytest.mark.parametrize(
    ("error", "replay"),
    [
        (
            "400::The replayId {82} you provided was invalid. Please provide a valid ID, -2 to replay all"
            " events, or -1 to replay only new events.",
            True,
        ),
        ("400::The replayId {82} you provided was invalid.  Please provide a valid ID", True),
        ("400::The replayId 82 you provided was invalid", True),
        ("400::the replay id {a\nb} you provided was invalid", True),
        (
            "400::The replayId for channel {/topic/x} wasn't found using the provided replay ID map {{}}."
            " Ensure that the channel name you provided in the replay map is valid",
            True,
        ),
        ("400::The channel you requested to subscribe to doesn't exist {/event/x}", False),
        ("403::The replayId {82} you provided was invalid", False),
        ("400::Channel name not specified", False),
        ("", False),
        (None, False),
    ],
)
def test_refused_replay_ids(error: Any, replay: bool) -> None:
    assert is_replay_error(refusal(error)) is replay


def test_the_failure_reason_is_the_true_cause() -> None:
    assert failure_reason(refusal("a", reason="b")) == "b"
    assert failure_reason(refusal("a", reason="")) == "a"
    assert failure_reason({"ext": {"sfdc": []}, "error": "a"}) == "a"
    assert failure_reason({"ext": [], "error": ["a"]}) == ""


@pytest.mark.parametrize(
    ("advice", "word"),
    [
        (NONE, "none"),
        (RETRY, "retry"),
        ({"reconnect": "x"}, ""),
        ({"interval": -0.1}, "none"),
        ({}, ""),
        ([], ""),
    ],
)
def test_reconnect_advice(advice: Any, word: str) -> None:
    assert reconnect_advice({"advice": advice}) == word


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [
        (0, 0),
        (2000, 2),
        (500.0, 0.5),
        (10**9, 30),
        (10**400, 0),
        (-5, 0),
        ("9", 0),
        (True, 0),
        (None, 0),
        (float("nan"), 0),
        (float("inf"), 0),
    ],
)
def test_the_interval_is_in_milliseconds(interval: Any, seconds: float) -> None:
    assert interval_of({"interval": interval}) == seconds
    assert interval_of({}) == 0


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(110_000, 110), (0, 1), (10, 1), (10**7, 600), (-5, 1), ("9", 110), (True, 110), (None, 110)],
)
def test_the_timeout_is_in_milliseconds(timeout: Any, seconds: float) -> None:
    assert hold_of({"timeout": timeout}) == seconds
    assert hold_of({}) == 110


@given(
    st.dictionaries(
        st.sampled_from(["reconnect", "interval", "timeout"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    )
)
def test_any_advice_gives_sound_numbers(advice: dict[str, Any]) -> None:
    assert 0 <= interval_of(advice) <= 30
    assert 1 <= hold_of(advice) <= 600
    assert reconnect_advice({"advice": advice}) in ("", "retry", "handshake", "none")


def test_backoff_doubles_up_to_its_cap_with_full_jitter() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(7))
    bounds, delays = [], []
    for _ in range(2000):
        bounds.append(backoff.bound)
        delays.append(backoff.next_delay())
    assert bounds[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert all(0 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    late = delays[6:]
    assert min(late) < 1
    assert max(late) > 59
    assert 28 < sum(late) / len(late) < 32
    assert backoff.attempts == 2000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
REASONS = JSON | st.sampled_from(
    [
        "401::Authentication invalid",
        "402::session_unknown",
        "403::Unknown client",
        "503::Server is too busy.",
        "400::no BAYEUX_BROWSER cookie present",
        "400::The replayId {1} you provided was invalid.",
        "403::Organization concurrent user limit exceeded",
        SIMULTANEOUS,
    ]
)
REPLIES = st.fixed_dictionaries(
    {"successful": st.booleans()},
    optional={
        "error": REASONS,
        "ext": JSON
        | st.fixed_dictionaries({"sfdc": st.fixed_dictionaries({"failureReason": REASONS})}),
        "advice": JSON | st.sampled_from([NONE, RETRY, HANDSHAKE]),
    },
)


@given(REPLIES)
def test_any_reply_gets_a_verdict(reply: dict[str, Any]) -> None:
    advised = reconnect_advice(reply)
    verdict, request = judge_reply(reply), judge_request(reply)
    assert request in Verdict
    assert isinstance(failure_reason(reply), str)
    if reply["successful"]:
        assert request is Verdict.PROCEED
        assert (verdict is Verdict.STOP) is (advised == "none")
    else:
        assert verdict is not Verdict.PROCEED
        # A replay id costs nobody the session, and a lost session nobody the channel.
        assert not is_replay_error(reply) or request is Verdict.PROCEED


@given(st.floats(0.001, 1e3), st.floats(1.0, 1e6), st.integers(0, 3000), st.integers())
def test_no_delay_is_beyond_its_cap(
    initial: float, factor: float, attempts: int, seed: int
) -> None:
    backoff = Backoff(initial, initial * factor, random.Random(seed))
    backoff.attempts = attempts
    before = backoff.bound
    assert initial <= before <= initial * factor
    assert 0.0 <= backoff.next_delay() <= before
    assert before <= backoff.bound


def test_the_delays_of_many_clients_are_spread() -> None:
    first = [Backoff(10.0, 60.0, random.Random(seed)).next_delay() for seed in range(1000)]
    in_each_second = [sum(second <= delay < second + 1 for delay in first) for second in range(10)]
    assert min(in_each_second) > 60
    assert max(in_each_second) < 150
