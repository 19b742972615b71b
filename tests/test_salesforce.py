"""The one table of what refusals and failures mean, on every path that asks it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.messages import reconnect_advice
from aiosfstream._cometd.salesforce import (
    FAILURES,
    REFUSALS,
    Verdict,
    ends_session,
    is_broad,
    judge_channel,
    judge_failure,
    judge_request,
    judge_session,
    may_deliver,
)
from aiosfstream._cometd.states import Action, Sequel, State
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream.exceptions import ServerError
from tests.table import A, B, Message, Table, event, failure

HANDSHAKE, RETRY, NONE = ({"reconnect": word} for word in ("handshake", "retry", "none"))

BUSY, LIMIT, TOKEN, GONE, COOKIE, REPLAY_ID, DENIED = (row.name for row in REFUSALS)

#: Texts of Salesforce and of CometD for each row: of the Streaming API Developer Guide, and reported.
EXAMPLES: dict[str, list[str]] = {
    BUSY: [
        "503::Server is too busy. Please try your request again later.",
        "503::Service Unavailable",
        "500::An internal error occurred",
        "500::Internal Server Error",
        "504::Gateway timeout",
        "403::The server is too busy to handle your request",
        "429::Too many requests",
        "408::Request timeout",
        "412::Precondition failed",
    ],
    LIMIT: [
        "403::Organization concurrent user limit exceeded",
        "403::Organization total events daily limit exceeded",
        "403::Subscription limit exceeded for this topic",
        "403::Unable to create channel dynamically, maximum channel limit has been exceeded",
        "403::To protect all customers from excessive use and Denial of Service attacks, we limit the"
        " number of simultaneous connections per server. Your request has been denied because this limit"
        " has been exceeded. Please try your request again later.",
        "403:REQUEST_LIMIT_EXCEEDED:TotalRequests Limit exceeded.",
        "403::REQUEST_LIMIT_EXCEEDED",
        "401::Organization concurrent user limit exceeded",
    ],
    TOKEN: [
        "401::Authentication invalid",
        "401::Request requires authentication",
        "401",
        "401:x:y",
    ],
    GONE: [
        "403::Unknown client",
        "403::UNKNOWN CLIENT",
        "403:unknown_client:x",
        "403::Client has not completed handshake",
        "402::Unknown client",
        "402::session_unknown",
        "402::unknown_session",
        "403::session_unknown",
    ],
    COOKIE: [
        "400::Client x has established a session, but no BAYEUX_BROWSER cookie present",
        "400::no BAYEUX_BROWSER cookie present",
        "400::Authenticated user id does not match the session's user id",
    ],
    REPLAY_ID: [
        "400::The replayId {82} you provided was invalid. Please provide a valid ID, -2 to replay all"
        " events, or -1 to replay only new events.",
        "400::The replayId {82} you provided was invalid.  Please provide a valid ID",
        "400::The replayId 82 you provided was invalid",
        "400::the replay id {a\nb} you provided was invalid",
        "400::The replayId for channel {/topic/x} wasn't found using the provided replay ID map {{}}."
        " Ensure that the channel name you provided in the replay map is valid",
        f"400::The replayId {{{'9' * 1900}}} you provided was invalid",
    ],
    DENIED: [
        "403:denied_by_security_policy:create_denied",
        "403::Handshake denied",
        "403::No access on channel",
        "404::Unknown channel",
        "400::The channel you requested to subscribe to doesn't exist {/event/x}",
        # A name is no reason.
        "400::The channel you requested to subscribe to doesn't exist {/event/Credit_Limit_Changed__e}",
        "404::Unknown channel /event/Credit_Limit_Exceeded__e",
        "403::The replayId {82} you provided was invalid",
        "400::Channel name not specified",
        "400::Invalid connection type x",
        "403::unknown  user.",
        "413::Maximum request size exceeded",
    ],
}
TEXTS = [(name, text) for name, texts in EXAMPLES.items() for text in texts]

#: Where each row leads: of an open client on a connect and on a handshake; while it opens.
SESSIONS: dict[str, tuple[State, State, Action]] = {
    BUSY: (State.NO_SESSION, State.NO_SESSION, Action.STOP),
    LIMIT: (State.NO_SESSION, State.NO_SESSION, Action.STOP),
    TOKEN: (State.NO_TOKEN, State.NO_TOKEN, Action.AUTHENTICATE),
    GONE: (State.NO_SESSION, State.NO_SESSION, Action.HANDSHAKE),
    COOKIE: (State.NO_SESSION, State.NO_SESSION, Action.HANDSHAKE),
    REPLAY_ID: (State.CONNECTING, State.NO_SESSION, Action.STOP),
    DENIED: (State.CONNECTING, State.NO_SESSION, Action.STOP),
}
#: The same of a channel: at a resubscription, what becomes of it, and of a first subscription.
CHANNELS: dict[str, tuple[State, str, Sequel]] = {
    BUSY: (State.RESUBSCRIBING, "deferred", Sequel.DONE),
    LIMIT: (State.RESUBSCRIBING, "deferred", Sequel.DONE),
    TOKEN: (State.NO_TOKEN, "kept", Sequel.RENEWED),
    GONE: (State.NO_SESSION, "kept", Sequel.RENEWED),
    COOKIE: (State.NO_SESSION, "kept", Sequel.RENEWED),
    REPLAY_ID: (State.RESUBSCRIBING, "fell back", Sequel.AT_ONCE),
    DENIED: (State.RESUBSCRIBING, "lost", Sequel.DONE),
}


def refusal(error: Any = None, advice: Any = None, reason: Any = None) -> Message:
    """Make an unsuccessful reply."""
    reply: Message = {"successful": False}
    if error is not None:
        reply["error"] = error
    if advice is not None:
        reply["advice"] = advice
    if reason is not None:
        reply["ext"] = {"sfdc": {"failureReason": reason}}
    return reply


def test_each_row_has_examples_and_a_way_on() -> None:
    names = {row.name for row in REFUSALS}
    assert names == EXAMPLES.keys() == SESSIONS.keys() == CHANNELS.keys()
    assert len(names) == len(REFUSALS)


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_a_text_is_found_in_its_row(name: str, text: str) -> None:
    [row] = [one for one in REFUSALS if one.name == name]
    for reply in (refusal(text), refusal("403::Handshake denied", reason=text)):
        assert judge_session(reply) is row.session
        assert judge_channel(reply) is row.channel
        # Spaces and line ends vary.
        spread = text.replace(" ", "\n ")
        assert judge_channel(refusal(spread)) is row.channel


@pytest.mark.parametrize(("name", "text"), TEXTS)
@pytest.mark.parametrize("advice", [None, RETRY])
@pytest.mark.parametrize("as_reason", [False, True])
def test_where_a_refusal_leads(name: str, text: str, advice: Any, *, as_reason: bool) -> None:
    fields: Message = {"error": "403::Handshake denied" if as_reason else text}
    if as_reason:
        fields["ext"] = {"sfdc": {"failureReason": text}}
    if advice is not None:
        fields["advice"] = advice
    connect, handshake, opening = SESSIONS[name]
    table = Table().open(A)
    table.connect(**fields)
    assert table.session.state is connect
    table = Table().open(A)
    table.lose_session()
    table.handshake(**fields)
    assert table.session.state is handshake
    for on_connect in (False, True):
        table = Table()
        if on_connect:
            table.handshake()
            table.connect(**fields)
        else:
            table.handshake(**fields)
        assert table.step() is opening
    resubscribing(fields, *CHANNELS[name][:2])
    beside(fields, CHANNELS[name][2])


def resubscribing(fields: Message, state: State, fate: str) -> None:
    """Refuse a channel that is subscribed again."""
    table = Table(fallback=-2).open(A, B)
    table.connect(event(A, 5))
    table.lose_session()
    table.handshake()
    table.resubscribe(**fields)
    assert table.session.state is state
    subscription = table.channels.subscriptions.get(A)
    assert (subscription is None) is (fate == "lost")
    # Only a refusal that concerns the channel alone costs the channel, and says so.
    assert [getattr(one, "replay_id", None) for one in table.recovery.errors] == (
        [5] if fate == "lost" else []
    )
    assert table.session.deferred == ([A] if fate == "deferred" else [])
    assert bool(subscription and subscription.fell_back) is (fate == "fell back")
    if subscription is not None and fate != "fell back":
        assert subscription.resume == 5


def beside(fields: Message, sequel: Sequel) -> None:
    """Refuse requests beside the connect."""
    table = Table(fallback=-2).open(A)
    table.subscribe(B, 5, **fields)
    assert table.sequel is sequel
    renewed = sequel is Sequel.RENEWED
    assert (table.session.state is State.CONNECTED) is not renewed
    assert set(table.channels.subscriptions) == {A}
    # Another request has no replay id.
    table = Table().open(A)
    assert (table.unsubscribe(A, **fields) is Sequel.RENEWED) is renewed
    assert set(table.channels.subscriptions) == {A}


@pytest.mark.parametrize("name", [TOKEN, GONE, COOKIE, BUSY, LIMIT])
def test_a_known_reason_counts_more_than_the_advice(name: str) -> None:
    for text in EXAMPLES[name]:
        for advice in (NONE, HANDSHAKE, RETRY):
            assert judge_session(refusal(text, advice)) is judge_session(refusal(text))
            assert judge_channel(refusal(text, advice)) is judge_channel(refusal(text))


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (refusal("403::Handshake denied", NONE), Verdict.STOP),
        (refusal("403::Handshake denied", HANDSHAKE), Verdict.RENEW),
        (refusal("403::Handshake denied", RETRY), Verdict.RETRY),
        (refusal("403::Handshake denied", {"reconnect": "retry", "interval": -1}), Verdict.STOP),
        (
            refusal("401::Authentication invalid", NONE, "503::Server is too busy."),
            Verdict.RENEW_LATER,
        ),
        (refusal("503::busy", None, "401::x"), Verdict.LOG_IN),
        (refusal("403::Unknown client", None, "no code"), Verdict.RENEW),
        (refusal(), Verdict.RETRY),
        (refusal(5, "x", 7), Verdict.RETRY),
        (refusal("something", NONE), Verdict.STOP),
        ({"successful": True}, Verdict.PROCEED),
        ({"successful": True, "advice": RETRY}, Verdict.PROCEED),
        ({"successful": True, "advice": HANDSHAKE}, Verdict.RENEW),
        ({"successful": True, "advice": NONE}, Verdict.FAREWELL),
        ({"successful": True, "advice": {"interval": -1}}, Verdict.FAREWELL),
        ({"successful": True, "error": "401::x"}, Verdict.PROCEED),
    ],
)
def test_judging_a_handshake_or_connect(reply: Message, verdict: Verdict) -> None:
    assert judge_session(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ({"successful": True}, Verdict.PROCEED),
        ({"successful": True, "advice": NONE}, Verdict.PROCEED),
        (refusal("403::No access", HANDSHAKE), Verdict.REFUSED),
        (refusal("", HANDSHAKE), Verdict.RENEW),
        (refusal("no code", NONE), Verdict.REFUSED),
        (refusal(), Verdict.REFUSED),
    ],
)
def test_judging_a_subscribe(reply: Message, verdict: Verdict) -> None:
    assert judge_channel(reply) is verdict


def test_judging_another_request() -> None:
    assert judge_request({"successful": True}) is Verdict.PROCEED
    for row in REFUSALS:
        verdict = judge_request(refusal(EXAMPLES[row.name][0]))
        assert verdict is (row.channel if ends_session(row.channel) else Verdict.REFUSED)
    assert {one for one in Verdict if ends_session(one)} == {
        Verdict.LOG_IN,
        Verdict.RENEW,
        Verdict.RENEW_COOKIES,
    }


# Failures

STAYS = None
NO_SESSION, NO_TOKEN, CONNECTING, STOPPED = (
    State.NO_SESSION,
    State.NO_TOKEN,
    State.CONNECTING,
    State.STOPPED,
)
#: How a request fails, what that means, and where it leads: on a connect, on a handshake, at a
#: resubscription, beside the connect, and whether the request beside it is sent again.
FAILED: list[tuple[Failure, Verdict, State, State, State, State | None, bool]] = [
    (
        failure(Trouble.NOT_SENT),
        Verdict.RETRY,
        CONNECTING,
        NO_SESSION,
        State.RESUBSCRIBING,
        STAYS,
        False,
    ),
    (
        failure(Trouble.THROTTLED, 3.0),
        Verdict.WAIT,
        CONNECTING,
        NO_SESSION,
        State.RESUBSCRIBING,
        STAYS,
        False,
    ),
    (
        failure(Trouble.LOST),
        Verdict.RENEW_LOST,
        NO_SESSION,
        NO_SESSION,
        NO_SESSION,
        NO_SESSION,
        False,
    ),
    (
        failure(Trouble.UNREADABLE),
        Verdict.RENEW_LOST,
        NO_SESSION,
        NO_SESSION,
        NO_SESSION,
        NO_SESSION,
        False,
    ),
    (
        failure(Trouble.UNAUTHORIZED, status=401),
        Verdict.LOG_IN,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        True,
    ),
    (
        failure(Trouble.FORBIDDEN, status=403),
        Verdict.LOG_IN,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        True,
    ),
    (
        failure(Trouble.FORBIDDEN, status=403, reason="REQUEST_LIMIT_EXCEEDED: TotalRequests"),
        Verdict.WAIT,
        CONNECTING,
        NO_SESSION,
        State.RESUBSCRIBING,
        STAYS,
        False,
    ),
    (
        failure(Trouble.REDIRECTED, status=302),
        Verdict.RELOCATE,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        STAYS,
        False,
    ),
    (
        failure(Trouble.REJECTED, status=404),
        Verdict.RELOCATE,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        STAYS,
        False,
    ),
    (
        failure(Trouble.REJECTED, status=410),
        Verdict.RELOCATE,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        STAYS,
        False,
    ),
    (
        failure(Trouble.REJECTED, status=421),
        Verdict.RELOCATE,
        NO_TOKEN,
        NO_TOKEN,
        NO_TOKEN,
        STAYS,
        False,
    ),
    (failure(Trouble.REJECTED, status=400), Verdict.STOP, STOPPED, STOPPED, STOPPED, STAYS, False),
    (failure(Trouble.REJECTED), Verdict.STOP, STOPPED, STOPPED, STOPPED, STAYS, False),
]


def test_every_trouble_has_a_verdict() -> None:
    assert FAILURES.keys() == set(Trouble) == {row[0].trouble for row in FAILED}


@pytest.mark.parametrize(
    ("failed", "verdict", "connect", "handshake", "resubscribe", "beside", "again"), FAILED
)
def test_where_a_failure_leads(
    failed: Failure,
    verdict: Verdict,
    connect: State,
    handshake: State,
    resubscribe: State,
    beside: State | None,
    *,
    again: bool,
) -> None:
    assert judge_failure(failed) is verdict
    table = Table().open(A)
    table.session.connect_done(failed, table.session.epoch, 0, 1.0, 1.0)
    assert table.session.state is connect

    table = Table().open(A)
    table.lose_session()
    table.session.handshake_done(failed, table.now)
    assert table.session.state is handshake

    table = Table().open(A, B)
    table.lose_session()
    table.handshake()
    table.session.resubscribe_done(table.next_subscription(), failed, table.now)
    assert table.session.state is resubscribe
    # No failure costs a channel.
    assert set(table.channels.subscriptions) == {A, B}
    assert table.recovery.errors == []

    table = Table().open(A)
    sequel = table.session.request_done(None, failed, table.session.epoch, 1.0)
    assert table.session.state is (beside or State.CONNECTED)
    assert sequel is (Sequel.RENEWED if again else Sequel.DONE)


# Channels


@pytest.mark.parametrize(
    ("subscribed", "channel", "covers"),
    [
        ("/event/*", "/event/A", True),
        ("/event/*", "/event", False),
        ("/event/*", "/event/a/b", False),
        ("/event/**", "/event/a/b", True),
        ("/event/**", "/event/a", True),
        ("/event/**", "/topic/a", False),
        ("/event/Mine__chn", "/event/A__e", True),
        ("/data/Mine__chn", "/event/A__e", False),
        ("/data/Mine__chn", "/data/AccountChangeEvent", True),
        ("/data/ChangeEvents", "/data/AccountChangeEvent", True),
        ("/data/ChangeEvents", "/event/A__e", False),
        ("/event/A__e", "/event/B__e", False),
        ("/event/A__e", "/event/A__e", False),
    ],
)
def test_what_a_broad_subscription_may_deliver(
    subscribed: str, channel: str, *, covers: bool
) -> None:
    assert may_deliver(subscribed, channel) is covers
    assert is_broad(subscribed) or not covers


@pytest.mark.parametrize("channel", ["/event/A__e", "/data/AccountChangeEvent", "/topic/T", "/u/x"])
def test_an_exact_subscription_is_not_broad(channel: str) -> None:
    assert not is_broad(channel)


# Whatever comes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
REASONS = JSON | st.sampled_from([text for _, text in TEXTS])
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
def test_any_reply_gets_a_verdict(reply: Message) -> None:
    advised = reconnect_advice(reply)
    session, channel, request = judge_session(reply), judge_channel(reply), judge_request(reply)
    if reply["successful"]:
        assert channel is request is Verdict.PROCEED
        assert (session is Verdict.FAREWELL) is (advised == "none")
    else:
        assert Verdict.PROCEED not in (session, channel, request)
        assert Verdict.FAREWELL not in (session, channel, request)
        # A replay id costs nobody the session.
        assert not (channel is Verdict.FALL_BACK and session is Verdict.LOG_IN)
        # A session that is of no use is of no use for any request.
        assert not ends_session(channel) or request is channel
    assert isinstance(str(ServerError("", reply)), str)


@pytest.mark.parametrize(
    "text", ["4" * 100_000, "403::" + "x " * 100_000, "400::the replay id" * 9999]
)
def test_a_long_reason_takes_no_long_time(text: str) -> None:
    assert judge_channel(refusal(text)) in (Verdict.REFUSED, Verdict.FALL_BACK)
