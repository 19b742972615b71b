"""What an error tracker finds on an exception after it was cleaned."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiosfstream._frames import without_frames
from aiosfstream._text import MASK
from aiosfstream.exceptions import ServerError, TransportError

TOKEN = "00D000000000001!AQcAQH0dMHZfz972Szmpkb58urFRkgeBGsxL"
PROXY_PASSWORD = "pr0xy-pa55word"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def everything_in(error: BaseException) -> Iterator[str]:
    """Yield what a tracker that asks for all would record."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield from (str(part), repr(part), str(part.args), repr(part.args), repr(vars(part)))
        for name in dir(part):
            if not name.startswith("__") and name != "code":
                yield repr(getattr(part, name, None))
        traceback = part.__traceback__
        while traceback is not None:
            yield from map(repr, traceback.tb_frame.f_locals.values())
            traceback = traceback.tb_next
        waiting += [part.__cause__, part.__context__]


async def answering(answer: bytes) -> tuple[asyncio.Server, str]:
    """Start a server that answers everything with the same bytes, and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


ANSWERS = {
    "garbage": b"you sent " + TOKEN.encode() + b"\r\n\r\n",
    "bad header": b"HTTP/1.1 200 OK\r\nX: " + TOKEN.encode() + b"\x00\r\n\r\n",
    "long line": b"HTTP/1.1 200 OK\r\n" + TOKEN.encode() * 500 + b": x\r\n\r\n",
    "nothing": b"",
    "cut": b"HTTP/1.1 200 OK\r\nX-Echo: " + TOKEN.encode() + b"\r\nContent-Length: 100\r\n\r\n{",
    "bad encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 52\r\n\r\n"
    + TOKEN.encode(),
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + TOKEN.encode(),
    "status": b"HTTP/1.1 500 you sent " + TOKEN.encode() + b"\r\nContent-Length: 0\r\n\r\n",
}


async def fail(url: str, **options: Any) -> Exception:
    """Give the exception of a request with a token in its header and its body."""
    secret_body = f"token={TOKEN}".encode()
    try:
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.post(url, data=secret_body, headers=HEADERS, **options) as response,
        ):
            await response.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        return error
    raise AssertionError("the request succeeded")


@pytest.mark.parametrize("answer", ANSWERS)
async def test_errors_of_aiohttp_keep_their_class_and_lose_the_request(answer: str) -> None:
    server, url = await answering(ANSWERS[answer])
    async with server:
        error = await fail(url)
    kind, status = type(error), getattr(error, "status", None)
    assert any(TOKEN in text for text in everything_in(error))
    assert without_frames(error, secrets=[TOKEN]) is error
    assert type(error) is kind
    assert getattr(error, "status", None) == status
    assert str(error)
    assert [text for text in everything_in(error) if TOKEN in text or "AQcAQH0dMH" in text] == []


async def test_the_credentials_of_a_proxy_go() -> None:
    server, url = await answering(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n")
    proxy = url.replace("//", f"//me:{PROXY_PASSWORD}@")
    async with server:
        refused = await fail("https://example.invalid", proxy=proxy)
    dead = await fail("https://example.invalid", proxy=proxy)
    assert isinstance(refused, aiohttp.ClientHttpProxyError)
    assert isinstance(dead, aiohttp.ClientProxyConnectionError)
    for error in (refused, dead):
        assert any(PROXY_PASSWORD in text for text in everything_in(error))
        without_frames(error)
        for text in everything_in(error):
            assert PROXY_PASSWORD not in text
            assert "bWU6cHIweHktcGE1NXdvcmQ" not in text
    assert refused.status == 407
    assert "Cannot connect to host 127.0.0.1" in str(dead)
    assert dead.port


async def test_a_timeout_and_the_cancellation_behind_it_go() -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_post("/", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    error = await fail(f"http://{host}:{port}/", timeout=aiohttp.ClientTimeout(total=0.1))
    await runner.cleanup()
    assert isinstance(error, asyncio.TimeoutError)
    without_frames(error)
    for text in everything_in(error):
        assert TOKEN not in text


def test_parsers_let_go_of_what_they_parsed() -> None:
    errors: list[Exception] = []
    for parse in (
        lambda: json.loads(f'{{"access_token": "{TOKEN}"'),
        lambda: str(TOKEN.encode() + b"\xff", "utf-8"),
        (TOKEN + "\ud800").encode,
        lambda: TOKEN.nothing,  # type: ignore[attr-defined]
    ):
        with pytest.raises((ValueError, AttributeError)) as caught:
            parse()
        errors.append(caught.value)
        assert str(without_frames(caught.value))
    for error in errors:
        for text in everything_in(error):
            assert TOKEN not in text


def test_causes_contexts_groups_and_arguments_are_reached() -> None:
    inner = [KeyError(f"{TOKEN} {place}") for place in range(4)]
    outer = TransportError("lost")
    outer.__cause__, outer.__context__ = ValueError(inner[2]), inner[1]
    inner[1].__context__ = outer  # A circle.
    inner[0].detail = [f"got {TOKEN}", {TOKEN: (TOKEN, b"x" + TOKEN.encode())}]  # type: ignore[attr-defined]
    inner[1].__cause__ = inner[0]
    inner[0].other = inner[3]  # type: ignore[attr-defined]
    assert without_frames(outer, secrets=[TOKEN]) is outer
    assert outer.args == ("lost",)
    assert inner[0].detail == [f"got {MASK}", {MASK: (MASK, b"x" + MASK.encode())}]  # type: ignore[attr-defined]
    for error in (outer, *inner):
        for text in everything_in(error):
            assert TOKEN not in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_the_members_of_a_group_are_reached() -> None:
    member = ValueError(TOKEN)
    group = globals()["__builtins__"]["ExceptionGroup"]("several", [member])
    without_frames(group, secrets=[TOKEN])
    assert member.args == (MASK,)
    assert group.exceptions == (member,)


def test_a_list_that_contains_itself_ends() -> None:
    circle: list[Any] = [TOKEN]
    circle.append(circle)
    error = ValueError(circle)
    assert TOKEN not in repr(without_frames(error, secrets=[TOKEN]).args)


def test_our_own_errors_keep_what_they_say() -> None:
    response = {"error": "x" * 1000, "successful": False}
    error = ServerError("refused", response)
    without_frames(error)
    assert error.response is response
    assert error.args == ("refused", response)


def test_what_cannot_be_set_stays() -> None:
    class Stubborn(Exception):
        @property
        def reason(self) -> str:
            """The reason."""
            return "none"

    error = Stubborn("why")
    assert str(without_frames(error)) == "why"
    assert error.reason == "none"


def test_an_odd_exception_is_no_reason_to_fail() -> None:
    class Odd(Exception):
        args = property(lambda self: (TOKEN,))

        @property
        def exceptions(self) -> list[Any]:
            """Fail."""
            raise RuntimeError

        def __str__(self) -> str:
            raise RuntimeError

    class Group(Exception):
        exceptions = (1, "two", ValueError(TOKEN))

    for error in (Odd(), Group()):
        try:
            raise error
        except Exception as caught:
            assert without_frames(caught, secrets=[TOKEN]) is error
            assert error.__traceback__ is None
    assert Group.exceptions[2].args == (MASK,)
