"""The shapes of Bayeux messages: answers, replies, advice."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.messages import (
    MAX_DEPTH,
    bayeux_messages,
    find_reply,
    hold_of,
    interval_of,
    is_event,
    is_meta,
    reconnect_advice,
    refusal,
)
from aiosfstream._cometd.writer import Writer
from aiosfstream._http.failures import Answer, Failure, Trouble
from tests.table import A, Message

CONNECT = "/meta/connect"


def messages_in(body: bytes | str, status: int = 200, loads: Any = json.loads) -> Any:
    """Give the messages in an answer, or the trouble."""
    raw = body.encode() if isinstance(body, str) else body
    found = bayeux_messages(Answer("http://x", status, {}, raw), loads, "Bearer secret-token")
    return found.trouble if isinstance(found, Failure) else found


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ('[{"a": 1}]', [{"a": 1}]),
        ('{"a": 1}', [{"a": 1}]),
        ('[[{"a": 1}], {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('[null, {"a": 1}, "text", 5, {}, true, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('\ufeff[{"a": 1}]', [{"a": 1}]),
        ('  [{"a": "\\ud83d"}]', [{"a": "\ufffd"}]),
        (b'[{"a": "\xff"}]', [{"a": "\ufffd"}]),
        ('[{"a": "\x01"}]', [{"a": "\x01"}]),
        ("[" * MAX_DEPTH + '{"a": 1}' + "]" * MAX_DEPTH, [{"a": 1}]),
    ],
)
def test_what_can_be_understood_is(body: bytes | str, messages: list[Message]) -> None:
    assert messages_in(body, loads=orjson.loads) == messages


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{}",
        "[null]",
        "[{}]",
        "",
        "5",
        "<html></html>",
        "[" * (MAX_DEPTH + 1) + '{"a": 1}' + "]" * (MAX_DEPTH + 1),
    ],
)
def test_an_answer_without_a_message_is_lost(body: str) -> None:
    assert messages_in(body) is Trouble.LOST


def test_an_answer_that_cannot_be_read_may_come_again() -> None:
    assert messages_in('[{"a": 1') is Trouble.UNREADABLE


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_messages_count_whatever_the_status(status: int) -> None:
    for message in ({"channel": CONNECT}, {"successful": False}):
        assert messages_in("\ufeff" + json.dumps([message]), status) == [message]


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (400, Trouble.REJECTED),
        (401, Trouble.UNAUTHORIZED),
        (403, Trouble.FORBIDDEN),
        (429, Trouble.THROTTLED),
        (503, Trouble.LOST),
        (302, Trouble.REDIRECTED),
    ],
)
@pytest.mark.parametrize(
    "body", ['[{"errorCode": "X"}]', "<html></html>", "", "[]", '[{"a": 1', "{}"]
)
def test_without_a_message_the_status_counts(status: int, trouble: Trouble, body: str) -> None:
    assert messages_in(body, status) is trouble


def test_an_error_page_is_not_parsed() -> None:
    def fail(body: Any) -> Any:
        raise AssertionError(body)

    assert messages_in("<html></html>", 503, fail) is Trouble.LOST


def test_a_token_is_not_quoted() -> None:
    body = b"Bearer secret-token is no good"
    for answer in (
        Answer("http://x", 401, {}, body),
        Answer("http://x", 200, {}, body),
        Answer("http://x", 200, {}, b'["' + body),
    ):
        failure = bayeux_messages(answer, json.loads, "Bearer secret-token")
        assert isinstance(failure, Failure)
        assert "secret-token" not in str(failure.error) + failure.reason


# Kinds of messages


def test_what_is_an_event() -> None:
    assert is_event({"channel": A, "data": None})
    assert is_event({"data": 1})
    assert not is_event({"channel": A})
    assert not is_event({"channel": CONNECT, "data": {}})
    assert is_meta(CONNECT)
    assert not is_meta(A)
    assert not is_meta(None)


# Replies


REQUEST: Message = {"channel": CONNECT, "id": "7", "clientId": "c"}


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ({"successful": True}, True),
        ({"error": "403::Unknown client"}, True),
        ({"error": "Timed out"}, False),
        ({"error": 504}, False),
        ({"error": "403"}, False),
        ({"advice": {"reconnect": "handshake"}}, True),
        ({"id": 7, "successful": True}, True),
        ({"id": "7"}, True),
        ({"id": None, "successful": True}, True),
        ({"id": "99", "successful": True}, False),
        ({"channel": "/meta/subscribe", "successful": True}, False),
        ({"channel": CONNECT}, False),
        ({"channel": CONNECT, "data": None, "successful": True}, True),
        ({"channel": CONNECT, "data": {}, "successful": True}, True),
        ({"data": {}, "id": "7"}, False),
        ({}, False),
    ],
)
def test_finding_the_reply(reply: Message, *, found: bool) -> None:
    answer = find_reply([dict(reply)], REQUEST)
    assert (answer is not None) is found
    if answer is not None:
        assert answer["channel"] == CONNECT
        assert answer["id"] == "7"
        assert isinstance(answer["successful"], bool)


def test_the_first_that_fits_is_the_reply() -> None:
    others: list[Message] = [{"channel": "/meta/disconnect"}, {"id": "6", "successful": True}]
    first, second = {"id": "7", "successful": True, "n": 1}, {"id": "7", "successful": True, "n": 2}
    answer = find_reply([*others, first, second], REQUEST)
    assert answer is not None
    assert answer["n"] == 1


class Client:
    """Somebody with an id."""

    client_id: str | None = "c"


@pytest.mark.parametrize(
    ("kind", "fields", "successful"),
    [
        ("handshake", {}, False),
        ("connect", {"error": ""}, False),
        ("subscribe", {"successful": "true"}, False),
        ("subscribe", {"successful": 1}, False),
        ("unsubscribe", {}, True),
        ("unsubscribe", {"error": "400::x"}, False),
        ("disconnect", {"successful": None}, True),
        ("publish", {}, True),
        ("publish", {"error": "400::x"}, False),
        ("publish", {"error": "400::x", "successful": True}, True),
        ("connect", {"error": "400::x", "successful": True}, True),
    ],
)
def test_a_missing_successful(kind: str, fields: Message, *, successful: bool) -> None:
    writer = Writer(Client())
    requests = {
        "handshake": writer.handshake([]),
        "connect": writer.connect(None),
        "subscribe": writer.subscribe(A),
        "unsubscribe": writer.unsubscribe(A),
        "disconnect": writer.disconnect("x"),
        "publish": writer.publish("/x", {}),
    }
    request = requests[kind]
    answer = find_reply([{"id": request["id"], "error": None, **fields}], request)
    assert answer is not None
    assert answer["successful"] is successful
    if "subscribe" in kind:
        assert answer["subscription"] == A
    else:
        assert "subscription" not in answer


def test_a_reply_keeps_its_own_subscription() -> None:
    request = Writer(Client()).subscribe(A + "/")
    answer = find_reply([{"id": request["id"], "subscription": A}], request)
    assert answer is not None
    assert answer["subscription"] == A


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ("/meta/handshake", "Handshake request failed."),
        (CONNECT, "Connect request failed."),
        ("/meta/subscribe", "Subscribe request failed."),
        ("/meta/unsubscribe", "Unsubscribe request failed."),
        ("/x", "Request failed."),
    ],
)
def test_the_error_of_a_refusal(channel: str, text: str) -> None:
    reply = {"channel": channel, "successful": False, "error": "400::x"}
    error = refusal(reply)
    assert error.args == (text, reply)
    assert "400::x" in str(error)


# Advice

NONE, RETRY = {"reconnect": "none"}, {"reconnect": "retry"}


@pytest.mark.parametrize(
    ("advice", "word"),
    [
        (NONE, "none"),
        (RETRY, "retry"),
        ({"reconnect": "handshake"}, "handshake"),
        ({"reconnect": "x"}, ""),
        ({"reconnect": "retry", "interval": -1}, "none"),
        ({"interval": -0.1}, "none"),
        ({"interval": 0}, ""),
        ({}, ""),
        ([], ""),
        (None, ""),
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
        (29_999, 29.999),
        (30_001, 30),
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
    [
        (110_000, 110),
        (0, 0.1),
        (10, 0.1),
        (200, 0.2),
        (10**7, 600),
        (-5, 0.1),
        ("9", 110),
        (True, 110),
        (None, 110),
        (float("nan"), 110),
    ],
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
    assert 0.1 <= hold_of(advice) <= 600
    assert reconnect_advice({"advice": advice}) in ("", "retry", "handshake", "none")


# Whatever comes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["channel", "successful", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
BODIES = st.binary(max_size=50) | JSON.map(
    lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
)


@given(BODIES, st.sampled_from([200, 204, 302, 400, 401, 403, 404, 429, 500, 503]))
@pytest.mark.parametrize("loads", [json.loads, orjson.loads])
def test_any_body_gives_messages_or_a_failure(loads: Any, body: bytes, status: int) -> None:
    found = bayeux_messages(Answer("http://x", status, {}, body), loads, "token")
    if isinstance(found, Failure):
        assert found.status == found.error.status == status
    else:
        assert found
        assert all(isinstance(message, dict) and message for message in found)
        assert status == 200 or any(
            "channel" in message or "successful" in message for message in found
        )
