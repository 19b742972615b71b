"""Bodies: JSON of all kinds, and what can be read of the broken kinds."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import TransportError
from aiosfstream._http.bodies import (
    Loader,
    UnreadableError,
    dump_json,
    looks_like_json,
    parse_json,
    words_of,
)

LOADERS: list[Loader] = [json.loads, orjson.loads]


def failing(text: str) -> Any:
    """Stand in for an application's function that takes nothing."""
    raise RuntimeError("out of order")


@pytest.mark.parametrize("loads", [*LOADERS, failing])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_sound_bodies(loads: Any, kind: type) -> None:
    assert parse_json(kind(b'[{"a": "\xc3\xa4"}]'), loads) == [{"a": "ä"}]
    assert parse_json(kind(b"\xef\xbb\xbf[1]"), loads) == [1]
    assert parse_json(kind(b"  {}\n"), loads) == {}


def test_the_application_s_function_gets_text() -> None:
    given: list[object] = []

    def loads(text: str) -> Any:
        given.append(text)
        return [text]

    assert parse_json('\ufeff["ä"]'.encode(), loads) == ['["ä"]']
    assert given == ['["ä"]']


@pytest.mark.parametrize("loads", LOADERS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'"a\xffb"', "a\ufffdb"),
        (b'"\xed\xa0\xbd"', "\ufffd" * 3),
        (b'"a\x01\tb\x00"', "a\x01\tb\x00"),
        (b'"line\nbreak"', "line\nbreak"),
        (b"[1, -Infinity]", [1, -math.inf]),
        ('["ä"]'.encode("utf-16"), ["ä"]),
        ('["ä"]'.encode("utf-16-le"), ["ä"]),
        ('["ä"]'.encode("utf-32"), ["ä"]),
        (b"[" + b"9" * 5000 + b"]", [math.inf]),
    ],
)
def test_what_is_read_leniently(loads: Any, body: bytes, expected: Any) -> None:
    assert parse_json(body, loads) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ude00 \ud83d\ude00 \ud83d"', "\ufffd \U0001f600 \ufffd"),
        (rb'{"\ud83d": ["\udc00x"]}', {"\ufffd": ["\ufffdx"]}),
        (rb'"\\ud83d"', r"\ud83d"),
    ],
)
def test_half_of_a_pair_is_replaced_where_the_function_refuses_it(
    body: bytes, expected: Any
) -> None:
    assert parse_json(body, orjson.loads) == expected
    assert parse_json(body, failing) == expected


def test_not_a_number_is_read() -> None:
    [value] = parse_json(b"[NaN]", orjson.loads)
    assert math.isnan(value)


UNREADABLE = [
    b"",
    b"<html>",
    b"[",
    b'[{"a": 1},',
    b'[{"a": "b',
    b"[1, 2",
    b"[1 2]",
    b"[" * 100_000,
    b"\x80\x81",
    b"[1]]",
]


@pytest.mark.parametrize("loads", [*LOADERS, failing])
@pytest.mark.parametrize("body", UNREADABLE)
def test_what_cannot_be_read(loads: Any, body: bytes) -> None:
    with pytest.raises(UnreadableError, match="not JSON: ") as raised:
        parse_json(body, loads)
    assert raised.value.digest
    # Those of parsers hold the whole body.
    assert raised.value.__cause__ is raised.value.__context__ is None


def digest(body: bytes) -> bytes:
    with pytest.raises(UnreadableError) as raised:
        parse_json(body, json.loads)
    return raised.value.digest


def test_the_digest_tells_what_cannot_be_read() -> None:
    def body(number: int, text: str) -> bytes:
        events = [{"data": "x" * 100}, {"broken": "?"}, {"data": "y" * 100}]
        reply = {"channel": "/meta/connect", "id": str(number), "clientId": "c" * number}
        return json.dumps([reply, *events, reply]).replace('"?"', text).encode()

    assert digest(body(7, "poison")) == digest(body(123, "poison"))
    assert digest(body(7, "poison")) != digest(body(7, "others"))
    assert len(digest(b"[")) == 16


def test_errors_of_the_function_are_fit_to_be_shown() -> None:
    def loads(text: str) -> Any:
        raise ValueError(f"bad\n\x1b[31m{text}")

    with pytest.raises(UnreadableError) as raised:
        parse_json(b"[" + b"x" * 10_000, loads)
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_a_function_that_fails_changes_nothing(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), failing) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), failing) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u d8e3\x00').map(str.encode))
def test_any_body_is_read_or_unreadable(body: bytes) -> None:
    for loads in LOADERS:
        try:
            value = parse_json(body, loads)
        except UnreadableError as error:
            assert error.digest
        else:
            json.dumps(value)


def test_dumping() -> None:
    assert dump_json([1], json.dumps) == b"[1]"
    assert dump_json(["ä"], orjson.dumps) == '["ä"]'.encode()
    with pytest.raises(TransportError, match="not serialisable"):
        dump_json(object(), json.dumps)
    with pytest.raises(TransportError, match="not serialisable"):
        dump_json("\ud83d", lambda value: value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b"[", True), (b" \r\n{", True), (b"\xef\xbb\xbf [", True), (b"<", False), (b"", False)],
)
def test_what_looks_like_json(body: bytes, expected: bool) -> None:
    assert looks_like_json(body) is expected
    assert looks_like_json(bytearray(body)) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ""),
        (b"it was bad", "it was bad"),
        (b"2 <less than> 3", "2 <less than> 3"),
        (
            b'[{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]',
            "INVALID_SESSION_ID: Session expired or invalid",
        ),
        (b'\xef\xbb\xbf{"error": "invalid_grant"}', "invalid_grant"),
        (
            b'{"error": "invalid_grant", "error_description": "expired"}',
            "invalid_grant: expired",
        ),
        (b'{"message": "Service unavailable"}', "Service unavailable"),
        (b'{"unknown": 1}', '{"unknown": 1}'),
        (b"[1", "[1"),
        (b"[[]]", "[[]]"),
        (b"[]", "[]"),
        (b"<html><head><TITLE lang=en>\n Down for maintenance</title>x", "Down for maintenance"),
        (b"<html><title></title><p>Please <b>log in</b></p>", "Please log in"),
        (b"<<<", "<<<"),
    ],
)
def test_the_words_of_an_error_page(body: bytes, expected: str) -> None:
    assert " ".join(words_of(body).split()) == expected


def test_only_the_beginning_of_an_error_page_is_looked_at() -> None:
    for body in (b"x", b"<p>", b"[", b"<title>", b"<"):
        assert len(words_of(body * 10_000_000)) < 20_000
