"""One request and its answer, against servers that misbehave."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import aiohttp
import orjson
import pytest

from aiosfstream import TransportError, _http
from aiosfstream._http import Answer, Failure, Trouble

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Server:
    """Answers each connection with some bytes."""

    def __init__(self) -> None:
        self.answer = b""
        self.hang = False
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
    timeout = aiohttp.ClientTimeout(total=5, sock_read=0.2)
    return await _http.post(session, url, b"[]", {}, timeout=timeout, **options)


async def messages(session: aiohttp.ClientSession, server: Server) -> Any:
    """Post something and read messages from the answer."""
    answer = await post(session, server.url)
    assert isinstance(answer, Answer)
    return _http.bayeux_messages(answer, json.loads, "token")


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_http, "MAX_ANSWER_SIZE", 1000)
    body = b" " * 1001
    if compressed:
        server.respond(200, gzip.compress(body), Content_Encoding="gzip")
    else:
        server.respond(200, body)
    failure = await post(session, server.url)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
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


async def test_tls_where_there_is_none(session: aiohttp.ClientSession, server: Server) -> None:
    failure = await post(session, server.url.replace("http:", "https:"), ssl=False)
    assert isinstance(failure, Failure)
    assert failure.trouble in (Trouble.NOT_SENT, Trouble.LOST)


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
    failure = await _http.post(
        session, server.url, b"", {"X": "a\r\nb"}, timeout=aiohttp.ClientTimeout(total=1)
    )
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
async def test_what_an_answer_without_messages_means(
    session: aiohttp.ClientSession, server: Server, status: int, body: bytes, trouble: Trouble
) -> None:
    server.respond(status, body)
    failure = await messages(session, server)
    assert isinstance(failure, Failure)
    assert failure.trouble is trouble
    assert failure.status == failure.error.status == status
    assert str(status) in str(failure.error)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize("body", [b'{"successful":false}', b' [{"channel":"/meta/connect"}]'])
async def test_messages_come_with_any_status(
    session: aiohttp.ClientSession, server: Server, status: int, body: bytes
) -> None:
    server.respond(status, body)
    found = await messages(session, server)
    assert isinstance(found, list)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("99999999999", 3600),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("1.5", None),
    ],
)
async def test_retry_after(
    session: aiohttp.ClientSession, server: Server, value: str, seconds: float | None
) -> None:
    for status in (429, 503):
        server.respond(status, b"", Retry_After=value)
        failure = await messages(session, server)
        assert failure.retry_after == seconds


async def test_retry_after_a_date(session: aiohttp.ClientSession, server: Server) -> None:
    for offset, low, high in ((30, 20, 30), (-30, 0, 0), (10**6, 3600, 3600)):
        date = datetime.now(timezone.utc) + timedelta(seconds=offset)
        server.respond(429, b"", Retry_After=format_datetime(date, usegmt=True))
        failure = await messages(session, server)
        assert low <= failure.retry_after <= high


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://login.example/x?y", "login.example"),
        ("/elsewhere", "/elsewhere"),
        ("", "unknown"),
        ("http://[", "unknown"),
    ],
)
async def test_redirects_are_told_and_not_followed(
    session: aiohttp.ClientSession, server: Server, location: str, host: str
) -> None:
    server.respond(302, b"", Location=location)
    failure = await messages(session, server)
    assert failure.trouble is Trouble.REDIRECTED
    assert f"host '{host}'" in str(failure.error)
    assert len(server.requests) == 1


async def test_a_token_is_not_quoted(session: aiohttp.ClientSession, server: Server) -> None:
    server.respond(400, b"your token was 'token', was it not? " + b"x" * 500)
    failure = await messages(session, server)
    assert "token'" not in str(failure.error).replace("your token was", "")
    assert len(str(failure.error)) < 400


def test_json_functions_of_all_kinds() -> None:
    assert _http.parse_json(b"\xef\xbb\xbf[1]", json.loads) == [1]
    assert _http.parse_json(b"[1]", json.loads) == [1]
    assert _http.parse_json(b"[1]", orjson.loads) == [1]
    assert _http.parse_json('["ä"]'.encode(), lambda text: text) == '["ä"]'
    assert _http.dump_json([1], json.dumps) == b"[1]"
    assert _http.dump_json([1], orjson.dumps) == b"[1]"
    for loads in (json.loads, orjson.loads, lambda text: 1 / 0):
        with pytest.raises(ValueError, match="not JSON"):
            _http.parse_json(b"{", loads)
    with pytest.raises(TransportError, match="not serialisable"):
        _http.dump_json(object(), json.dumps)
