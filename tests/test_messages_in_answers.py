"""Bayeux messages in answers of all kinds."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from aiocometd.typing import JsonObject
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._http.bodies import Loader
from aiosfstream._http.post import Answer, Failure, Trouble, bayeux_messages


def messages(status: int, body: bytes, loads: Loader = json.loads) -> list[JsonObject] | Failure:
    """Get the messages of an answer."""
    return bayeux_messages(Answer("http://x", status, {}, body), loads, "token")


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (200, b"", Trouble.LOST),
        (200, b"{}", Trouble.LOST),
        (200, b"[]", Trouble.LOST),
        (200, b"[{}]", Trouble.LOST),
        (200, b"[1]", Trouble.LOST),
        (200, b"[{}, 1]", Trouble.LOST),
        (200, b"5", Trouble.LOST),
        (200, b"<html>", Trouble.LOST),
        (200, b'[{"channel":', Trouble.LOST),
        (200, b"\xff\xfe", Trouble.LOST),
        (200, b"[" * 5000, Trouble.LOST),
        (204, b"", Trouble.LOST),
        (400, b"<html>", Trouble.REJECTED),
        (401, b"<html>", Trouble.UNAUTHORIZED),
        (401, b'[{"errorCode":"INVALID_SESSION_ID"}]', Trouble.UNAUTHORIZED),
        (403, b"", Trouble.FORBIDDEN),
        (404, b"[broken", Trouble.REJECTED),
        (408, b"", Trouble.LOST),
        (413, b"", Trouble.REJECTED),
        (429, b"", Trouble.THROTTLED),
        (500, b"", Trouble.LOST),
        (503, b"", Trouble.LOST),
    ],
)
def test_what_an_answer_without_messages_means(status: int, body: bytes, trouble: Trouble) -> None:
    failure = messages(status, body)
    assert isinstance(failure, Failure)
    assert failure.trouble is trouble
    assert failure.status == failure.error.status == status
    assert str(status) in str(failure.error)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize("body", [b'{"successful":false}', b' [{"channel":"/meta/connect"}]'])
def test_messages_come_with_any_status(status: int, body: bytes) -> None:
    found = messages(status, body)
    assert isinstance(found, list)
    assert len(found) == 1


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
    found = messages(status, body, loads)
    if isinstance(found, Failure):
        assert found.status == found.error.status == status
    else:
        assert found
        assert all(isinstance(message, dict) and message for message in found)
        assert status == 200 or any(
            "channel" in message or "successful" in message for message in found
        )
