"""One request and its answer, against servers that misbehave."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest
import trustme

from aiosfstream import TransportError
from aiosfstream._http import post as _http
from aiosfstream._http.deadline import Limits, limits_for
from aiosfstream._http.post import Answer, Failure, Trouble
from tests.support import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Server:
    """Answers each connection with some bytes."""

    def __init__(self) -> None:
        self.answer = b""
        self.hang = False
        #: Whether the connection ends with a reset, as when a machine on the way restarts.
        self.reset = False
        self.requests: list[bytes] = []
        self.url = ""
        self._release = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            writer.write(self.answer)
            await writer.drain()
            if self.hang:
                await self._release.wait()
            if self.reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def respond(self, status: int, body: bytes, **headers: str) -> None:
        """Answer with a whole response."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server."""
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/cometd"
    yield server
    server._release.set()
    listener.close()
    await listener.wait_closed()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session."""
    async with aiohttp.ClientSession() as session:
        yield session


async def post(session: aiohttp.ClientSession, url: str, **options: Any) -> Answer | Failure:
    """Post something, and give up soon."""
    options.setdefault("limits", Limits(connect=5, silence=0.3, total=5))
    return await _http.post(session, url, b"[]", options.pop("headers", {}), **options)


async def test_a_whole_answer(session: aiohttp.ClientSession, server: Server) -> None:
    server.respond(200, b'[{"channel": "/meta/connect"}]')
    answer = await post(session, server.url)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, b'[{"channel": "/meta/connect"}]')
    assert server.requests[0].startswith(b"POST /cometd")


async def test_gzip_and_chunks(session: aiohttp.ClientSession, server: Server) -> None:
    server.respond(200, gzip.compress(b"[1, 2]"), Content_Encoding="gzip")
    answer = await post(session, server.url)
    assert isinstance(answer, Answer)
    assert answer.body == b"[1, 2]"
    server.answer = (
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n"
    )
    answer = await post(session, server.url)
    assert isinstance(answer, Answer)
    assert answer.body == b"[1]"


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_answer_that_is_too_large(
    session: aiohttp.ClientSession,
    server: Server,
    compressed: bool,
) -> None:
    body = b" " * 1001
    if compressed:
        server.respond(200, gzip.compress(body), Content_Encoding="gzip")
    else:
        server.respond(200, body)
    failure = await post(session, server.url, max_size=1000)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.UNREADABLE
    assert "1000 bytes" in str(failure.error)


async def test_refused(session: aiohttp.ClientSession) -> None:
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    failure = await post(session, f"http://127.0.0.1:{port}/")
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.NOT_SENT
    assert isinstance(failure.error, TransportError)
    assert isinstance(failure.error.__cause__, aiohttp.ClientConnectorError)
    assert f"127.0.0.1:{port}" in str(failure.error)


async def test_a_connection_that_is_not_made_in_time(session: aiohttp.ClientSession) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            # Nobody accepts, so the kernel soon leaves the next one waiting.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        failure = await _http.post(
            session,
            f"http://127.0.0.1:{listener.getsockname()[1]}/",
            b"[]",
            {},
            limits=Limits(connect=0.1, silence=5, total=5),
        )
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.NOT_SENT


async def test_tls_where_there_is_none(session: aiohttp.ClientSession) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    failure = await post(session, f"https://127.0.0.1:{port}/", ssl=False)
    listener.close()
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.NOT_SENT


async def test_tls_is_verified_unless_told_otherwise(session: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = Server()
    server.respond(200, b"[]")
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    for option in (None, True):
        failure = await post(session, url, ssl=option)
        assert isinstance(failure, Failure)
        assert failure.trouble is Trouble.NOT_SENT
        assert "certificate" in str(failure.error)
    assert server.requests == []
    for accepting in (trusting, False):
        assert isinstance(await post(session, url, ssl=accepting), Answer)
    listener.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n[1", b"nonsense\r\n\r\n"]
)
async def test_cut_or_nonsense(
    session: aiohttp.ClientSession, server: Server, answer: bytes
) -> None:
    server.answer = answer
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n[1"])
async def test_no_answer_in_time(
    session: aiohttp.ClientSession, server: Server, answer: bytes
) -> None:
    server.answer, server.hang = answer, True
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/", "http://"])
async def test_no_url(session: aiohttp.ClientSession, url: str) -> None:
    failure = await post(session, url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.REJECTED


async def test_a_header_that_cannot_be_sent(session: aiohttp.ClientSession, server: Server) -> None:
    failure = await _http.post(session, server.url, b"", {"X": "a\r\nb"}, limits=limits_for(1))
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.REJECTED


@pytest.mark.parametrize(("status", "trouble"), [(407, Trouble.REJECTED), (502, Trouble.NOT_SENT)])
async def test_a_proxy_that_refuses(
    session: aiohttp.ClientSession, server: Server, status: int, trouble: Trouble
) -> None:
    server.respond(status, b"")
    async with aiohttp.ClientSession(proxy=server.url) as proxied:
        failure = await post(proxied, "https://example.invalid/")
    assert isinstance(failure, Failure)
    assert failure.trouble is trouble
    assert str(status) in str(failure.error)


PARTIAL = b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n[" + b" " * 100


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 X\r\nConte", PARTIAL])
async def test_a_connection_that_is_reset(
    session: aiohttp.ClientSession, server: Server, answer: bytes
) -> None:
    server.answer, server.reset = answer, True
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    assert isinstance(failure.error.__cause__, (aiohttp.ClientError, OSError))
    # The session is as good as before.
    server.reset = False
    server.respond(200, b"[]")
    assert isinstance(await post(session, server.url), Answer)


COMPRESSED = gzip.compress(b"[1, 2, 3]" * 100)
CHUNKED = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("body", [b"no gzip at all", COMPRESSED[:2] + b"\0" * 50])
async def test_a_broken_encoding(
    session: aiohttp.ClientSession, server: Server, body: bytes
) -> None:
    server.respond(200, body, Content_Encoding="gzip")
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST


@pytest.mark.parametrize("rest", [b"", b"5\r\n[1, ", b"2\r\n[1\r\n", b"zz\r\n[1]\r\n"])
async def test_chunks_that_do_not_end(
    session: aiohttp.ClientSession, server: Server, rest: bytes
) -> None:
    server.answer = CHUNKED + rest
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST


@pytest.mark.parametrize("count", [1000, 1001])
async def test_the_largest_answer(
    session: aiohttp.ClientSession,
    server: Server,
    count: int,
) -> None:
    body = b" " * count
    plain = f"HTTP/1.1 200 X\r\nContent-Length: {count}\r\nConnection: close\r\n\r\n".encode()
    for answer in (plain + body, CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (count, body)):
        server.answer = answer
        result = await post(session, server.url, max_size=1000)
        assert isinstance(result, Answer if count <= 1000 else Failure)


async def test_a_server_that_trickles_is_given_up_in_the_end(
    session: aiohttp.ClientSession, server: Server
) -> None:
    server.answer, server.hang = PARTIAL, True
    failure = await post(session, server.url, limits=Limits(connect=5, silence=5, total=0.5))
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    assert "no answer in time" in str(failure.error)


async def test_a_cancelled_request_is_no_failure(
    session: aiohttp.ClientSession, server: Server
) -> None:
    server.hang = True
    task = asyncio.create_task(post(session, server.url))
    await until(lambda: server.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_redirect_is_not_followed(session: aiohttp.ClientSession, server: Server) -> None:
    server.respond(307, b"", Location=server.url)
    answer = await post(session, server.url)
    assert isinstance(answer, Answer)
    assert (answer.status, len(server.requests)) == (307, 1)
