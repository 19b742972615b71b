"""One HTTP request and its answer. Nothing here knows Bayeux or OAuth."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
from aiocometd.typing import SSLValidationMode
from multidict import CIMultiDict
from yarl import URL

from .._frames import without_frames
from .._tasks import is_cancelled, move, timeout
from .bodies import Dumper, Loader, dump_json, parse_json
from .cookies import WRITTEN, CookieJar
from .deadline import Limits
from .encodings import ACCEPTED, PIECE, Decoder, EncodingError
from .failures import (
    Answer,
    Failure,
    Secrets,
    Trouble,
    closed_failure,
    error_failure,
    status_failure,
    too_large,
)
from .reuse import ATTEMPTS, RequestBody, has_died_of_reuse, keeps_connections, note_answer

__all__ = [
    "Answer",
    "Dumper",
    "Failure",
    "Loader",
    "Trouble",
    "dump_json",
    "parse_json",
    "post",
    "status_failure",
]

#: Bytes. Salesforce asks clients to take at least 10 MB in one response.
MAX_ANSWER_SIZE: Final = 64 * 1024 * 1024
#: Bytes of one header, and of the status line. Gateways send Content-Security-Policy headers of 11 KiB.
MAX_HEADER_SIZE: Final = 64 * 1024
MAX_HEADERS: Final = 256

_EXPECTED: Final = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    OSError,
    ValueError,
    EncodingError,
)


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    limits: Limits,
    ssl: SSLValidationMode | None = None,
    max_size: int = MAX_ANSWER_SIZE,
    repeatable: bool = False,
    secrets: Secrets = (),
    started: Callable[[], None] | None = None,
) -> Answer | Failure:
    """Post *body* and read the whole answer. Redirects are not followed.

    :param session: the session whose cookies and connections are used
    :param url: where to post to
    :param body: the request's body
    :param headers: the request's headers
    :param limits: how long it may take, in seconds
    :param ssl: how to verify TLS, as aiohttp takes it; None: as usual
    :param max_size: bytes that the answer's body may have, without its content encoding
    :param repeatable: whether it does no harm if the server gets the request twice: it is then made
        again on another connection, if one that was kept turns out to be dead
    :param started: called when the answer begins to come in
    :param secrets: what errors must not show, besides the ``Authorization`` and ``Cookie`` headers
    :return: the answer, or the failure with the exception that describes it
    """
    request = _Request(session, url, body, headers, ssl, limits, repeatable)
    try:
        return await _answer_to(request, limits, max_size, started)
    except BaseException as error:  # noqa: BLE001 - it goes on if it is none of ours
        secrets = (*secrets, *request.secrets)
        failure = _failure_of(error, session, request, secrets)
        if failure is None:
            # The frames of aiohttp hold the token, and so does this one. Not a bare "raise", which
            # until Python 3.11 brings the old frames back.
            bare = without_frames(error, secrets=secrets)
            del body, headers, request, secrets
            raise bare  # noqa: B904
    return failure


def _failure_of(
    error: BaseException, session: aiohttp.ClientSession, request: _Request, secrets: Secrets
) -> Failure | None:
    """Say what *error* means for the request; None if it has nothing to do with that."""
    if session.closed and isinstance(error, (Exception, asyncio.CancelledError)):
        # aiohttp cancels what waits for a connection of a connector that is closed.
        is_ours = not (isinstance(error, asyncio.CancelledError) and is_cancelled())
        return closed_failure(request.url) if is_ours else None
    if isinstance(error, _EXPECTED):
        return error_failure(request.url, error, sent=request.sent, secrets=secrets)
    return None


async def _answer_to(
    request: _Request, limits: Limits, max_size: int, started: Callable[[], None] | None
) -> Answer | Failure:
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.total
    async with timeout(min(limits.silence, limits.total)) as alarm:

        def something_came() -> None:
            move(alarm, min(end, loop.time() + limits.silence))

        response = await request.send()
        if started is not None:
            started()
        body = bytearray()
        try:
            is_whole = await _read_into(body, response, max_size, something_came)
        except EncodingError:
            if response.status < 400:
                raise
            is_whole = False
    if not is_whole and response.status < 400:
        return too_large(request.url, max_size, response.status)
    # Of an error page the status counts, and as much of the rest as there is.
    return Answer(request.url, response.status, response.headers, body)


async def _read_into(
    body: bytearray,
    response: aiohttp.ClientResponse,
    max_size: int,
    something_came: Callable[[], None],
) -> bool:
    """Read the body of *response* into *body*; say whether all of it is there, and not more than is wanted."""
    is_whole = False
    try:
        decoder = Decoder(response.headers.get("Content-Encoding", ""))
        content = response.content
        while not content.at_eof():
            for piece in decoder.decode(await content.readany()):
                body += piece
                if len(body) > max_size:
                    return False
                if len(piece) == PIECE:
                    await asyncio.sleep(0)
            if not content.at_eof():
                something_came()
        decoder.end()
        is_whole = True
    finally:
        # With its last byte read, a response gives its connection back by itself.
        if not is_whole:
            response.close()
    return is_whole


class _Request:
    """One request, made again where a connection that was kept turns out to be dead.

    :param session: what it is made with
    :param url: where it goes to
    :param body: its body
    :param headers: its headers
    :param ssl: how to verify TLS, as aiohttp takes it; None: as usual
    :param limits: how long it may take
    :param repeatable: whether the server may get it twice
    :ivar url: where it goes to
    :ivar sent: whether the server may have got anything of it
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        ssl: SSLValidationMode | None,
        limits: Limits,
        repeatable: bool,
    ) -> None:
        self.url = url
        self.sent = False
        self._session = session
        self._body = body
        self._headers = CIMultiDict(headers)
        self._repeatable = repeatable
        self._ssl = True if ssl is None else ssl
        self._timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect)

    @property
    def secrets(self) -> tuple[str]:
        """The token in its headers."""
        return (self._headers.get("Authorization", "").rpartition(" ")[2],)

    async def send(self) -> aiohttp.ClientResponse:
        """Make the request, and wait for the status and the headers of the answer."""
        target = _parsed(self.url)
        self._headers.setdefault("Accept-Encoding", ACCEPTED)
        has_cookies = self._add_cookies(target)
        left = ATTEMPTS
        while True:
            is_last = not keeps_connections(self._session)
            if is_last:
                self._headers["Connection"] = "close"
            left -= 1
            body = RequestBody(self._body, is_last)
            written = WRITTEN.set(has_cookies)
            try:
                response = await self._post(target, body)
            except aiohttp.ClientConnectionError as error:
                is_harmless = self._repeatable or body.connection is None
                if not (has_died_of_reuse(self._session, body, error) and is_harmless and left):
                    raise
            else:
                note_answer(body)
                return response
            finally:
                WRITTEN.reset(written)
                self.sent = self.sent or body.connection is not None

    def _post(self, target: URL, body: RequestBody) -> Awaitable[aiohttp.ClientResponse]:
        return self._session.post(
            target,
            data=body,
            headers=self._headers,
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=False,
            max_line_size=MAX_HEADER_SIZE,
            max_field_size=MAX_HEADER_SIZE,
            max_headers=MAX_HEADERS,
            ssl=self._ssl,
            timeout=self._timeout,
        )

    def _add_cookies(self, target: URL) -> bool:
        """Write the cookies into the headers, as they came; an application's own jar is left to aiohttp."""
        jar = self._session.cookie_jar
        if not isinstance(jar, CookieJar):
            return False
        cookies = jar.header(target)
        if cookies:
            # An extension may have some of its own.
            own = self._headers.popall("Cookie", ())
            self._headers["Cookie"] = "; ".join((*own, cookies))
        return True


def _parsed(url: str) -> URL:
    try:
        return URL(url)
    except (ValueError, IndexError) as error:
        # yarl raises both.
        raise aiohttp.InvalidURL(url) from error
