"""What each failure of a request is called: the server's own words, what happened, and what to do."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from aiosfstream._http.bodies import UnreadableError
from aiosfstream._http.deadline import Limits, limits_for
from aiosfstream._http.failures import (
    MAX_RETRY_AFTER,
    Answer,
    Failure,
    Trouble,
    error_failure,
    status_failure,
    unreadable,
)
from aiosfstream._http.post import post

TOKEN = "00Dxx0000001!AQEAQ.a/secret+token="
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = Limits(connect=2, silence=2, total=4)


class Server:
    """Answers each connection with some bytes, and closes it."""

    def __init__(self) -> None:
        self.answer = b""
        self.port = 0
        self.hang = asyncio.Event()
        self.hang.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
            await writer.drain()
            await self.hang.wait()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer with a whole response."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    server.hang.set()
    listener.close()
    await listener.wait_closed()


async def fail(url: str, proxy: str | None = None, **options: Any) -> Failure:
    """Make a request that fails."""
    options.setdefault("limits", LIMITS)
    async with aiohttp.ClientSession(proxy=proxy) as session:
        answer = await post(session, url, b"[]", HEADERS, **options)
    if isinstance(answer, Answer):
        answer = status_failure(answer, HEADERS["Authorization"])
    return answer


HTML = b"<html><title>Down for maintenance</title><p>Come back</html>"
REFUSED = b'[{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]'
LIMIT = b'[{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": "TotalRequests Limit exceeded."}]'


@pytest.mark.parametrize(
    ("status", "body", "trouble", "told", "reason"),
    [
        (200, HTML, Trouble.LOST, "check that the URL", "Down for maintenance"),
        (200, b"", Trouble.LOST, "body empty; check that the URL", ""),
        (400, HTML, Trouble.REJECTED, "check the URL and what", "Down for maintenance"),
        (
            401,
            REFUSED,
            Trouble.UNAUTHORIZED,
            "log in again",
            "INVALID_SESSION_ID: Session expired or invalid",
        ),
        (
            403,
            LIMIT,
            Trouble.FORBIDDEN,
            "may use the API",
            "REQUEST_LIMIT_EXCEEDED: TotalRequests Limit exceeded.",
        ),
        (404, b"gone", Trouble.REJECTED, "the API version in it", "gone"),
        (407, b"", Trouble.REJECTED, "the user name and password of the proxy", ""),
        (408, b"", Trouble.LOST, "try again", ""),
        (413, b"", Trouble.REJECTED, "send less at once", ""),
        (429, b"", Trouble.THROTTLED, "wait before", ""),
        (500, HTML, Trouble.LOST, "wait, then try again", "Down for maintenance"),
        (503, b"busy", Trouble.LOST, "wait, then try again", "busy"),
        (599, b"", Trouble.LOST, "wait, then try again", ""),
    ],
)
async def test_statuses(
    server: Server, status: int, body: bytes, trouble: Trouble, told: str, reason: str
) -> None:
    server.respond(status, body)
    failure = await fail(f"http://127.0.0.1:{server.port}/cometd/66.0")
    assert (failure.trouble, failure.reason) == (trouble, reason)
    assert failure.status == failure.error.status == status
    text = str(failure.error)
    assert text.startswith(f"Request to http://127.0.0.1:{server.port}/cometd/66.0 failed: ")
    assert f"HTTP status {status}" in text
    assert told in text
    assert reason.rstrip(".") in text
    assert ("again" in text) == (trouble in (Trouble.LOST, Trouble.UNAUTHORIZED) and status != 200)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (204, Trouble.LOST),
        (299, Trouble.LOST),
        (300, Trouble.REDIRECTED),
        (399, Trouble.REDIRECTED),
        (400, Trouble.REJECTED),
        (499, Trouble.REJECTED),
        (500, Trouble.LOST),
    ],
)
def test_classes_of_statuses(status: int, trouble: Trouble) -> None:
    failure = status_failure(Answer("http://x", status, {"Retry-After": "7"}, b""))
    assert failure.trouble is trouble
    assert failure.retry_after == (7 if status >= 400 else None)


GARBAGE = {
    "no HTTP": (b"garbage\r\n\r\n", "the answer is no HTTP: "),
    "no header": (b"HTTP/1.1 200 OK\r\nno header\x01\r\n\r\n", "the answer is no HTTP: Invalid"),
    "a long header": (
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        "a header that is too long",
    ),
    "nothing": (b"", "the connection failed: the server has closed it without an answer"),
    "half a header": (b"HTTP/1.1 200 OK\r\nX: ", "the connection failed: the server has closed"),
    "half a body": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[",
        "the connection failed in the middle of the answer: Not enough data",
    ),
    "a bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[",
        "chunk size",
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_what_is_no_answer(server: Server, kind: str) -> None:
    server.answer, told = GARBAGE[kind]
    failure = await fail(f"http://127.0.0.1:{server.port}/")
    text = str(failure.error)
    assert failure.trouble is Trouble.LOST
    assert told in text
    # That is what aiohttp says of them, whatever the status was.
    assert "400" not in text.replace(str(server.port), "")
    assert "message=" not in text
    assert text.isprintable()
    assert len(text) < 500


@pytest.mark.parametrize(
    ("body", "encoding", "told"),
    [
        (gzip.compress(b"[1]" * 100, mtime=0)[:-3], "gzip", "compressed data that ends too early"),
        (
            gzip.compress(b"[1]" * 100, mtime=0)[:-3],
            "x-gzip",
            "compressed data that ends too early",
        ),
        (b"[1]", "gzip", "incorrect header"),
        (b"[1]", "br", "an encoding that was not asked for"),
    ],
)
async def test_a_body_that_cannot_be_decoded(
    server: Server, body: bytes, encoding: str, told: str
) -> None:
    server.respond(200, body, Content_Encoding=encoding)
    failure = await fail(f"http://127.0.0.1:{server.port}/")
    assert failure.trouble is Trouble.LOST
    assert told in str(failure.error)
    server.respond(401, body, Content_Encoding=encoding)
    assert (await fail(f"http://127.0.0.1:{server.port}/")).trouble is Trouble.UNAUTHORIZED


async def test_nobody_there() -> None:
    failure = await fail("http://127.0.0.1:1/")
    assert failure.trouble is Trouble.NOT_SENT
    assert "not reached: Connect call failed" in str(failure.error)
    failure = await fail("http://nowhere.invalid/")
    assert failure.trouble is Trouble.NOT_SENT
    assert "the name of the host is not known" in str(failure.error)


def test_an_error_that_says_nothing() -> None:
    failure = error_failure("http://x/", ConnectionAbortedError())
    assert "failed: the connection failed: ConnectionAbortedError; try again" in str(failure.error)
    assert error_failure("http://x/", OSError(), sent=False).trouble is Trouble.NOT_SENT
    assert error_failure("http://x/", ValueError("no"), sent=False).trouble is Trouble.REJECTED


async def test_no_answer_in_time(server: Server) -> None:
    server.hang.clear()
    failure = await fail(f"http://127.0.0.1:{server.port}/", limits=Limits(1, 0.2, 1))
    assert failure.trouble is Trouble.LOST
    assert "no answer in time; try again" in str(failure.error)
    failure = await fail(f"https://127.0.0.1:{server.port}/", limits=Limits(1, 0.2, 1))
    assert failure.trouble is Trouble.NOT_SENT
    assert "there was no connection in time" in str(failure.error)


async def test_a_pool_without_room(server: Server) -> None:
    server.hang.clear()
    url = f"http://127.0.0.1:{server.port}/"
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        first = asyncio.create_task(post(session, url, b"[]", {}, limits=LIMITS))
        await asyncio.sleep(0.05)
        second = await post(session, url, b"[]", {}, limits=Limits(0.1, 2, 4))
        assert isinstance(second, Failure)
        assert second.trouble is Trouble.NOT_SENT
        assert "the limit of a connector" in str(second.error)
        server.hang.set()
        await first


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("host", "trusted", "told"),
    [
        ("127.0.0.1", False, "the certificate of the server is not trusted: unable to get local"),
        ("example.com", True, "the certificate of the server is not trusted: IP address mismatch"),
    ],
)
async def test_certificates(
    server: Server, authority: trustme.CA, host: str, trusted: bool, told: str
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    trusting = ssl.create_default_context()
    if trusted:
        authority.configure_trust(trusting)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    failure = await fail(f"https://127.0.0.1:{port}/", ssl=trusting)
    listener.close()
    assert failure.trouble is Trouble.NOT_SENT
    assert told in str(failure.error)
    assert "give an ssl context" in str(failure.error)
    assert "again" not in str(failure.error)


async def test_proxies(server: Server) -> None:
    secret = "pw+of/proxy"
    proxy = f"http://user:{quote(secret, safe='')}@127.0.0.1:{server.port}"
    for status, url, trouble, told in (
        (407, "https://example.invalid/", Trouble.REJECTED, "the proxy refuses the credentials"),
        (407, "http://example.invalid/", Trouble.REJECTED, "the proxy refuses the credentials"),
        (502, "https://example.invalid/", Trouble.NOT_SENT, "the proxy answered status 502"),
    ):
        server.respond(status)
        failure = await fail(url, proxy=proxy)
        assert failure.trouble is trouble
        assert told in str(failure.error)
        assert "again" not in str(failure.error)
        assert_no_secret(failure, secret)
    failure = await fail("http://example.invalid/", proxy=proxy.replace(str(server.port), "1"))
    assert failure.trouble is Trouble.NOT_SENT
    assert "the proxy is not reached" in str(failure.error)
    assert_no_secret(failure, secret)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_name_of_a_proxy_is_not_known(scheme: str) -> None:
    failure = await fail(f"{scheme}://127.0.0.1:1/", proxy="http://proxy.invalid:3128")
    assert failure.trouble is Trouble.NOT_SENT
    assert "the proxy is not reached, its name is not known" in str(failure.error)
    failure = await fail(f"{scheme}://Example.INVALID/")
    assert failure.trouble is Trouble.NOT_SENT
    assert "the name of the host is not known" in str(failure.error)


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://x/", "http://", "http://[x]@", "http://[", "http://x:99999/", ""]
)
async def test_no_url(url: str) -> None:
    failure = await fail(url)
    assert failure.trouble is Trouble.REJECTED
    assert "again" not in str(failure.error)


async def test_the_user_of_a_url_is_not_shown() -> None:
    failure = await fail("http://user:hunter22@127.0.0.1:1/")
    assert "hunter22" not in str(failure.error)
    assert_no_secret(failure, "hunter22")


async def test_a_session_that_somebody_else_has_closed(server: Server) -> None:
    server.hang.clear()
    connector = aiohttp.TCPConnector(limit=1)
    url = f"http://127.0.0.1:{server.port}/"
    async with aiohttp.ClientSession(connector=connector) as session:
        posting = [
            asyncio.create_task(post(session, url, b"[]", {}, limits=LIMITS)) for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        await connector.close()
        for failure in await asyncio.gather(*posting, return_exceptions=True):
            # Before Python 3.11 it cannot be known who has cancelled those that wait.
            if not isinstance(failure, asyncio.CancelledError):
                assert isinstance(failure, Failure)
                assert "was closed by somebody else" in str(failure.error)
                assert failure.trouble is Trouble.REJECTED
        failure = await post(session, url, b"[]", {}, limits=LIMITS)
        assert isinstance(failure, Failure)
        assert "was closed by somebody else" in str(failure.error)


def traces_of(error: BaseException | None) -> Iterator[object]:
    """Give all that an error tracker would record: arguments, attributes, variables of all frames."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part.args
        yield vars(part)
        yield part
        trace = part.__traceback__
        while trace is not None:
            if "/tests/" not in trace.tb_frame.f_code.co_filename:
                yield trace.tb_frame.f_locals
            trace = trace.tb_next
        waiting += [part.__cause__, part.__context__]


def assert_no_secret(failure: Failure | BaseException, secret: str = TOKEN) -> None:
    """Look for *secret* in whatever form."""
    error = failure.error if isinstance(failure, Failure) else failure
    shown = repr(failure) + "".join(map(repr, traces_of(error)))
    forms = {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
    forms |= {base64.b64encode(f"user:{secret}".encode()).decode()}
    forms |= {base64.b64encode(secret.encode()).decode().rstrip("=")}
    assert not [form for form in forms if form in shown]


ECHO = f"you sent Bearer {TOKEN} {TOKEN}"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        ECHO.encode() + b"\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{ECHO}\x01\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{ECHO}\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nX: {TOKEN}\r\nContent-Length: 900\r\n\r\n{ECHO}".encode(),
        f"HTTP/1.1 404 OK\r\nContent-Length: {len(ECHO)}\r\n\r\n{ECHO}".encode(),
        f"HTTP/1.1 302 OK\r\nLocation: http://{TOKEN}/{TOKEN}\r\n\r\n".encode(),
        f"HTTP/1.1 302 OK\r\nLocation: {TOKEN}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: " + TOKEN.encode() + b"\r\n\r\nx",
    ],
)
async def test_no_failure_holds_the_token(server: Server, answer: bytes) -> None:
    server.answer = answer
    assert_no_secret(await fail(f"http://127.0.0.1:{server.port}/"))


async def test_no_other_failure_holds_the_token(server: Server) -> None:
    for url in ("http://127.0.0.1:1/", f"https://127.0.0.1:{server.port}/", "nonsense"):
        assert_no_secret(await fail(url, limits=Limits(0.2, 0.5, 1)))
    for value in (f"Bearer {TOKEN}\n", f"Bearer {TOKEN}\ud83d"):
        async with aiohttp.ClientSession() as session:
            failure = await post(
                session,
                f"http://127.0.0.1:{server.port}/",
                b"[]",
                {"Authorization": value},
                limits=LIMITS,
            )
        assert isinstance(failure, Failure)
        # aiohttp may leave out what cannot be encoded.
        assert failure.trouble is Trouble.REJECTED or "\n" not in value
        assert_no_secret(failure)


async def test_no_cancellation_holds_the_token(server: Server) -> None:
    server.hang.clear()
    task = asyncio.create_task(fail(f"http://127.0.0.1:{server.port}/"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert_no_secret(raised.value)


async def test_no_bug_holds_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("aiosfstream._http.post.note_answer", broken)
    server.respond(200, b"[]")
    with pytest.raises(RuntimeError, match="a bug") as raised:
        await fail(f"http://127.0.0.1:{server.port}/")
    assert_no_secret(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (200, b"[{", Trouble.UNREADABLE),
        (200, b"\xef\xbb\xbf {", Trouble.UNREADABLE),
        (200, b"<html>", Trouble.LOST),
        (200, b"", Trouble.LOST),
        (503, b"[{", Trouble.LOST),
        (401, b"[{", Trouble.UNAUTHORIZED),
    ],
)
def test_what_cannot_be_read(status: int, body: bytes, trouble: Trouble) -> None:
    answer = Answer("http://x/", status, {}, body)
    failure = unreadable(
        answer, UnreadableError(f"not JSON: {TOKEN}", b"digest"), f"Bearer {TOKEN}"
    )
    assert failure.trouble is trouble
    assert failure.status == status
    assert (failure.digest == b"digest") == (trouble is Trouble.UNREADABLE)
    assert_no_secret(failure)


async def test_what_is_too_large(server: Server) -> None:
    digests = set()
    for size in (1001, 5000):
        server.respond(200, b" " * size)
        failure = await fail(f"http://127.0.0.1:{server.port}/", max_size=1000)
        assert failure.trouble is Trouble.UNREADABLE
        assert "more than 1000 bytes; give a larger max_response_size" in str(failure.error)
        digests.add(failure.digest)
    assert len(digests) == 1
    assert all(digests)
    server.respond(503, b" " * 1001)
    assert (await fail(f"http://127.0.0.1:{server.port}/", max_size=1000)).status == 503


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
        ("Wed, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("1 Jan 2020 00:00:00 +99999999999999999", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    for status in (429, 503):
        failure = status_failure(Answer("http://x", status, {"Retry-After": value}, b""))
        assert failure.retry_after == seconds


def test_retry_after_a_date() -> None:
    for offset, low, high in ((30, 20, 30), (-30, 0, 0), (10**6, 3600, 3600)):
        date = datetime.now(timezone.utc) + timedelta(seconds=offset)
        value = format_datetime(date, usegmt=True)
        failure = status_failure(Answer("http://x", 429, {"Retry-After": value}, b""))
        assert failure.retry_after is not None
        assert low <= failure.retry_after <= high


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://login.example/x?y", "login.example"),
        ("/elsewhere", "/elsewhere"),
        ("", "unknown"),
        ("http://[", "unknown"),
        ("http://[x]@", "unknown"),
    ],
)
def test_redirects_are_told(location: str, host: str) -> None:
    failure = status_failure(Answer("http://x", 302, {"Location": location}, b""))
    assert failure.trouble is Trouble.REDIRECTED
    assert f"host '{host}'" in str(failure.error)


@pytest.mark.parametrize("before", [0, 150, 195, 199, 200, 210])
@pytest.mark.parametrize("secret", ["00D!AQEA.secret", "gar\u00e7on-secret"])
def test_no_part_of_a_secret_is_quoted(before: int, secret: str) -> None:
    body = ("x" * before + secret + " and more").encode()
    failure = status_failure(Answer("http://x", 400, {}, body), secret)
    text = str(failure.error)
    assert not any(secret[: size + 1] in text for size in range(3, len(secret)))
    assert len(text) < 300


def test_without_a_secret_the_beginning_is_quoted() -> None:
    failure = status_failure(Answer("http://x", 400, {}, b"it was bad" + b"x" * 500))
    assert "it was bad" in str(failure.error)
    assert "x" * 201 not in str(failure.error)


DATES = st.from_regex(
    r"\A([A-Z][a-z]{2}, )?[0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9]{1,3}:[0-9]{1,3}(:[0-9]{1,3})?"
    r" ?(GMT|[-+][0-9]{1,5}|[A-Z]{0,4})\Z"
)


@given(st.text() | st.integers().map(str) | DATES, st.sampled_from([403, 408, 429, 500, 503]))
@example("1 Jan 2020 00:00:00 +99999999999999999", 429)
@example("9" * 100_000, 429)
@example("1 Jan " * 20_000, 429)
def test_any_retry_after_gives_a_sound_number_or_none(value: str, status: int) -> None:
    failure = status_failure(Answer("http://x", status, {"Retry-After": value}, b""))
    assert failure.retry_after is None or 0.0 <= failure.retry_after <= MAX_RETRY_AFTER


URLS = st.text("http:/@[]x.%?#\\", max_size=20)


@given(st.text() | URLS)
@example("http://[x]@")
@example("http://[::1")
@example("https://" + "a" * 100_000)
@example("https://good.example\x1b[2J\u2028/")
def test_any_location_can_be_told(value: str) -> None:
    failure = status_failure(Answer("http://x", 302, {"Location": value}, b""))
    assert failure.trouble is Trouble.REDIRECTED
    assert str(failure.error).isprintable()
    assert len(str(failure.error)) < 600


HEADER_NAMES = st.sampled_from(
    ["Retry-After", "Location", "Date", "Content-Type", "Set-Cookie", "Content-Encoding", "X"]
)
VALUES = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=30) | URLS


async def answer_with(lines: list[tuple[str, str]], status: int) -> Answer | Failure:
    server = Server()
    server.respond(status, b"[]")
    head, _, body = server.answer.partition(b"\r\n\r\n")
    extra = "".join(f"\r\n{name}: {value}" for name, value in lines).encode()
    server.answer = head + extra + b"\r\n\r\n" + body
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as session:
        answer = await post(session, f"http://127.0.0.1:{port}/", b"[]", {}, limits=limits_for(2))
    listener.close()
    return answer


@given(
    st.lists(st.tuples(HEADER_NAMES, VALUES), max_size=4),
    st.sampled_from([200, 302, 401, 429, 503]),
)
def test_any_headers_give_an_answer_or_a_failure(lines: list[tuple[str, str]], status: int) -> None:
    answer = asyncio.run(answer_with(lines, status))
    if isinstance(answer, Answer):
        answer = status_failure(answer)
    assert str(answer.error).isprintable()


async def test_large_headers_do_not_hide_the_status(server: Server) -> None:
    for size in (9_000, 11_000, 60_000):
        server.respond(401, HTML, Content_Security_Policy="x" * size)
        failure = await fail(f"http://127.0.0.1:{server.port}/")
        assert failure.trouble is Trouble.UNAUTHORIZED
    server.respond(401, HTML, **{f"X-{number}": "x" for number in range(200)})
    assert (await fail(f"http://127.0.0.1:{server.port}/")).trouble is Trouble.UNAUTHORIZED
    server.answer = b"HTTP/1.1 401 " + b"x" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n"
    assert (await fail(f"http://127.0.0.1:{server.port}/")).trouble is Trouble.UNAUTHORIZED
