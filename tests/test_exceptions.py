"""The exception tree, and how foreign errors come into it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, ClassVar

import pytest
from aiocometd import exceptions as cometd
from hypothesis import given
from hypothesis import strategies as st

import aiosfstream
from aiosfstream import exceptions
from aiosfstream import exceptions as ours
from aiosfstream._text import fit
from aiosfstream.exceptions import (
    EXCEPTION_PAIRS,
    AiosfstreamException,
    AuthenticationError,
    ServerError,
    TransportError,
    translate_errors,
    translate_errors_context,
)

LOOK_IT_UP = 'See "Streaming API Error Codes" in Salesforce\'s Streaming API Developer Guide.'


def exceptions_of(module: Any) -> dict[str, type[Exception]]:
    """Give the exceptions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == module.__name__
    }


def test_each_exception_of_aiocometd_has_its_counterpart() -> None:
    for name, theirs in exceptions_of(cometd).items():
        counterpart = getattr(ours, name.replace("Aiocometd", "Aiosfstream"))
        assert issubclass(counterpart, theirs)
        assert EXCEPTION_PAIRS[theirs] is counterpart


def test_all_of_ours_are_in_one_tree_and_exported() -> None:
    for name, exception in exceptions_of(ours).items():
        assert issubclass(exception, AiosfstreamException)
        assert getattr(aiosfstream, name) is exception


@pytest.mark.parametrize(
    ("error", "code", "args", "message"),
    [
        ("403::Unknown client", 403, [], "Unknown client"),
        (
            "400::API version in the URI is mandatory. URI format: '/cometd/43.0'",
            400,
            [],
            "API version in the URI is mandatory. URI format: '/cometd/43.0'",
        ),
        (
            "403:denied_by_security_policy:create_denied",
            403,
            ["denied_by_security_policy"],
            "create_denied",
        ),
        ("404:a,b:c", 404, ["a", "b"], "c"),
        ("404", 404, None, None),
        ("4040::x", None, [], "x"),
        ("x::y", None, [], "y"),
        ("²³¹::x", None, [], "x"),
        ("nonsense", None, None, None),
        ("", None, None, None),
        (None, None, None, None),
        (5, None, None, None),
    ],
)
def test_the_parts_of_an_error(error: Any, code: Any, args: Any, message: Any) -> None:
    server_error = ServerError("Refused.", {"error": error})
    assert server_error.error_code == code
    assert server_error.error_args == args
    assert server_error.error_message == message


def test_a_server_error_without_a_response() -> None:
    error = ServerError("Closed", None)
    assert error.args == ("Closed", None)
    assert (error.message, error.response, error.error, error.failure_reason) == (
        "Closed",
        None,
        None,
        None,
    )
    assert str(error) == "Closed."


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (
            {"error": "403::No access."},
            "Subscribe request failed: 403::No access. Check the channel's name and the user's"
            " permissions for it.",
        ),
        (
            {"error": "401::x", "ext": {"sfdc": {"failureReason": "503::busy"}}},
            "Subscribe request failed: 401::x; reason: 503::busy. Try again later.",
        ),
        (
            {"subscription": "/event/A", "error": "403::x"},
            "Subscribe request failed (channel /event/A): 403::x. Check the channel's name and the"
            " user's permissions for it.",
        ),
        (
            {"channel": "/meta/connect", "error": "403::Unknown client"},
            "Subscribe request failed (channel /meta/connect): 403::Unknown client. A new session is"
            " needed: try again.",
        ),
        (
            {"error": "403::Organization total events daily limit exceeded"},
            "Subscribe request failed: 403::Organization total events daily limit exceeded. Wait until"
            " the limit allows it again, or use fewer clients and events.",
        ),
        (
            {"error": "400::The replayId {82} you provided was invalid."},
            "Subscribe request failed: 400::The replayId {82} you provided was invalid. Use another"
            " replay id, or ReplayOption.NEW_EVENTS.",
        ),
        ({"ext": {"sfdc": 5}}, f"Subscribe request failed. {LOOK_IT_UP}"),
        ({"ext": 5, "subscription": 7}, f"Subscribe request failed. {LOOK_IT_UP}"),
        ({"successful": True}, "Subscribe request failed."),
    ],
)
def test_a_server_error_is_a_sentence(response: dict[str, Any], text: str) -> None:
    assert str(ServerError("Subscribe request failed.", response)) == text


def test_a_channel_is_named_once() -> None:
    error = ServerError("Channel /event/A is lost", {"subscription": "/event/A", "error": "403::x"})
    assert str(error).startswith("Channel /event/A is lost: 403::x. ")


def test_an_authentication_error_carries_what_the_endpoint_said() -> None:
    error = AuthenticationError(
        "refused", error="a", error_description="b", status=400, retryable=True
    )
    assert (error.error, error.error_description, error.status, error.retryable) == (
        "a",
        "b",
        400,
        True,
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.error, copy.retryable) == ("refused", "a", True)
    assert AuthenticationError().retryable is False


class Unlisted(cometd.TransportTimeoutError):
    """A subclass that somebody else made."""


@pytest.mark.parametrize("theirs", [*exceptions_of(cometd).values(), Unlisted])
def test_translation(theirs: type[Exception]) -> None:
    arguments: tuple[Any, ...] = (
        ("text", {"error": "400::x"}) if theirs is cometd.ServerError else ("text",)
    )
    original = theirs(*arguments)

    @translate_errors
    def function() -> None:
        raise original

    with pytest.raises(AiosfstreamException) as caught:
        function()
    assert caught.value.__cause__ is original
    assert isinstance(
        caught.value, theirs if theirs is not Unlisted else cometd.TransportTimeoutError
    )
    assert caught.value.args == arguments


def test_an_odd_server_error_is_translated() -> None:
    class Odd(cometd.ServerError):
        def __init__(self) -> None:
            Exception.__init__(self)

    with pytest.raises(ServerError) as caught, translate_errors_context():
        raise Odd
    assert caught.value.response is None


def test_ours_and_others_pass_as_they_are() -> None:
    for error in (TransportError("ours"), ZeroDivisionError("other")):
        with pytest.raises(type(error)) as caught, translate_errors_context():
            raise error
        assert caught.value is error
        assert caught.value.__cause__ is None


async def test_coroutine_functions() -> None:
    @translate_errors
    async def function(error: Exception | None) -> int:
        """Say something."""
        if error is not None:
            raise error
        return 5

    assert inspect.iscoroutinefunction(function)
    assert function.__doc__ == "Say something."
    assert await function(None) == 5
    for error in (cometd.TransportError("x"), TransportError("x")):
        with pytest.raises(TransportError):
            await function(error)


async def test_async_generators() -> None:
    @translate_errors
    async def function(error: Exception | None) -> AsyncIterator[int]:
        yield 1
        if error is not None:
            raise error

    assert inspect.isasyncgenfunction(function)
    assert [one async for one in function(None)] == [1]
    for error in (cometd.TransportError("x"), TransportError("x")):
        with pytest.raises(TransportError):
            [one async for one in function(error)]


def test_functions() -> None:
    @translate_errors
    def function(value: int) -> int:
        return value

    assert function(3) == 3


def test_translate_gives_ours_back() -> None:
    error = TransportError("x")
    assert ours.translate(error) is error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = st.from_regex(r"[0-9²]{0,4}:?[^:]{0,5}:?.{0,10}", fullmatch=True)
RESPONSES = st.fixed_dictionaries(
    {},
    optional={
        "error": TEXTS | JSON,
        "subscription": st.just("/event/A") | JSON,
        "ext": st.fixed_dictionaries(
            {"sfdc": st.fixed_dictionaries({"failureReason": TEXTS | JSON})}
        )
        | st.fixed_dictionaries({"sfdc": JSON})
        | JSON,
    },
)


@given(RESPONSES)
def test_any_refusal_can_be_told(response: dict[str, Any]) -> None:
    error = ServerError("Subscribe request failed.", response)
    text = str(error)
    assert text.startswith("Subscribe request failed")
    assert text.endswith(".")
    for part in (error.error, error.failure_reason):
        assert part is None or fit(part).rstrip(".") in text
    code, args, message = error.error_code, error.error_args, error.error_message
    assert code is None or 0 <= code <= 999
    assert (args is None) is (message is None)
    if code is not None and args is not None and message is not None:
        assert error.error == f"{code:03}:{','.join(args)}:{message}"


async def test_a_translated_generator_ends_the_one_inside_it() -> None:
    ended = []

    @translate_errors
    async def function() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            ended.append(True)

    generator = function()
    assert await generator.__anext__() == 1
    await generator.aclose()
    assert ended == [True]


async def test_an_error_of_a_generator_that_is_being_closed_is_translated() -> None:
    @translate_errors
    async def function() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            raise cometd.TransportError("x")

    generator = function()
    await generator.__anext__()
    with pytest.raises(TransportError):
        await generator.aclose()


def test_the_cause_of_a_translated_error_is_not_said_twice() -> None:
    original = cometd.ServerError("Refused.", {"error": "403::x"})
    translated = ours.translate(original)
    assert str(translated).count("403::x") == 1
    assert isinstance(translated, cometd.ServerError)
    assert translated.response is original.response


# Texts from elsewhere


HOSTILE = "\x1b[31mred\r\n2026 ERROR forged\u2028\u202egnp\x9b " + "x" * 100_000


def test_what_a_server_says_is_one_short_line() -> None:
    response = {
        "channel": "/meta/subscribe",
        "subscription": f"/event/{HOSTILE}",
        "successful": False,
        "error": f"403::{HOSTILE}",
        "ext": {"sfdc": {"failureReason": f"401::{HOSTILE}"}},
    }
    error = ServerError(f"Subscribe request failed for {HOSTILE}.", response)
    text = str(error)
    assert text.isprintable()
    assert len(text) < 1500
    assert "Subscribe request failed for" in text
    assert "403::" in text
    assert "401::" in text
    # As it came.
    assert error.response is response
    assert error.error == f"403::{HOSTILE}"
    assert error.error_code == 403


class Counting(str):
    """A text that notes when all of it is looked at."""

    __slots__ = ()
    looked_at: ClassVar[list[int]] = []

    def __getitem__(self, key: Any) -> str:
        """Take a part."""
        part = str.__getitem__(self, key)
        self.looked_at.append(len(part))
        return part


def test_of_a_huge_text_only_the_beginning_is_looked_at() -> None:
    error = ServerError("Connect request failed.", {"error": Counting("1" * 10_000_000)})
    Counting.looked_at.clear()
    assert len(str(error)) < 600
    assert Counting.looked_at
    assert max(Counting.looked_at) < 1000


def test_what_is_no_message_is_no_reason_to_fail() -> None:
    odd: list[Any] = [None, [], "text", 7, {"ext": []}, {"ext": {"sfdc": 7}, "error": []}]
    for response in odd:
        error = ServerError("Handshake failed.", response)
        assert str(error).startswith("Handshake failed.")
        assert (error.error, error.failure_reason, error.error_code) == (None, None, None)


def test_a_lost_channel_says_where_it_can_be_resumed() -> None:
    error = ServerError("Lost.", {"error": "404::x"})
    assert error.replay_id is None
    error.replay_id = 17
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert other.replay_id == 17
        assert other.args == error.args


def test_names_of_the_old_release() -> None:
    assert exceptions.Func.__bound__ == exceptions.FuncType
