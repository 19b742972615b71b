"""One request and its answer: status, shape, size and time-out turned into our errors.

Nothing here decides what to do about a failure; it only says which kind it is. Used by the transport
for CometD messages and by the authenticators for token requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final, NamedTuple

import aiohttp
from aiocometd.typing import JsonObject, SSLValidationMode
from yarl import URL

from ..exceptions import TransportError
from .bodies import Dumper, Loader, dump_json, parse_json
from .deadline import Deadline

__all__ = [
    "Answer",
    "Dumper",
    "Failure",
    "Loader",
    "Trouble",
    "bayeux_messages",
    "dump_json",
    "parse_json",
    "post",
    "status_failure",
]

#: Bytes. Salesforce asks clients to take at least 10 MB in one response.
MAX_ANSWER_SIZE: Final = 64 * 1024 * 1024
#: Seconds. Longer waits that a server asks for are cut to this.
MAX_RETRY_AFTER: Final = 3600.0
EXCERPT_SIZE: Final = 200


class Trouble(Enum):
    """What a failed request means for the session it belongs to."""

    #: It certainly never reached the server: refused, no such host, no TLS.
    NOT_SENT = auto()
    #: It was sent and its answer was not received whole, or something on the way answered for the
    #: server: whatever the server put into the answer is gone.
    LOST = auto()
    #: HTTP 429.
    THROTTLED = auto()
    #: HTTP 401 without a Bayeux message.
    UNAUTHORIZED = auto()
    #: HTTP 403 without a Bayeux message.
    FORBIDDEN = auto()
    #: HTTP 3xx; never followed, since the request carries a token.
    REDIRECTED = auto()
    #: Another HTTP 4xx, or a request that cannot be made at all: the same request will not do better.
    REJECTED = auto()


#: What to do about each kind of failure, or what it means for what was asked.
_NEXT_STEPS: Final = {
    Trouble.NOT_SENT: "; check the URL, the network and the proxy",
    Trouble.LOST: "; try again, unless the server must not do it twice",
    Trouble.THROTTLED: "; wait before the next request",
    Trouble.UNAUTHORIZED: "; the token is refused, log in again",
    Trouble.FORBIDDEN: "; check that the user may use the API",
    Trouble.REDIRECTED: "; use the URL of that host if it is the right one",
    Trouble.REJECTED: "; check the URL and what is sent",
}


@dataclass(frozen=True)
class Failure:
    """A request without a usable answer.

    :ivar trouble: what kind of failure it is
    :ivar error: the exception to raise when the failure is reported to somebody
    :ivar status: the HTTP status, if there was one
    :ivar retry_after: seconds that the server asked to wait, if it did
    """

    trouble: Trouble
    error: TransportError
    status: int | None = None
    retry_after: float | None = None


class Answer(NamedTuple):
    """A whole HTTP response, whatever its status.

    :ivar response: kept, because its disposal takes as long as the delivery of an event, which may go
        first
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    response: aiohttp.ClientResponse | None = None


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout: aiohttp.ClientTimeout,
    ssl: SSLValidationMode | None = None,
    deadline: Deadline | None = None,
    target: URL | None = None,
) -> Answer | Failure:
    """Post *body* and read the whole answer. Redirects are not followed.

    :param session: the session whose cookies and connections are used
    :param url: where to post to
    :param body: the request's body
    :param headers: the request's headers
    :param timeout: how long each phase may take, in seconds
    :param ssl: how to verify TLS, as aiohttp takes it; None: as usual
    :param deadline: ends it in time, if it is prepared for the task that calls this
    :param target: the URL, where it has been parsed already
    :return: the answer, or the failure with the exception that describes it
    """
    if deadline is not None:
        deadline.start()
    try:
        request = session.post(
            target or url,
            data=body,
            headers=headers,
            timeout=timeout,
            ssl=True if ssl is None else ssl,
            allow_redirects=False,
            raise_for_status=False,
        )
        # Thousands of clients wait here, and aiohttp has what it needs of these.
        del body, headers
        response = await request
        content: bytes | None = None
        try:
            if response.content.is_eof():
                # Mostly all of it is there already.
                content = response.content.read_nowait()
            else:
                content = await _read(response.content, deadline)
        finally:
            # With its last byte read, a response gives its connection back by itself.
            if content is None:
                response.close()
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        return _failed(url, error)
    except asyncio.CancelledError:
        if deadline is None or not deadline.take_back():
            raise
        return _failed(url, asyncio.TimeoutError(f"no piece of it in {deadline.silence:g} seconds"))
    finally:
        if deadline is not None:
            deadline.stop()
    if content is None or len(content) > MAX_ANSWER_SIZE:
        return _failure(Trouble.LOST, url, f"answered with more than {MAX_ANSWER_SIZE} bytes")
    return Answer(url, response.status, response.headers, content, response)


async def _read(stream: aiohttp.StreamReader, deadline: Deadline | None) -> bytes | None:
    """Read the body, or give None if it is longer than anything a sound server sends."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_SIZE:
            return None
        chunks.append(chunk)
        if deadline is not None:
            deadline.extend()
    return b"".join(chunks)


def _failed(url: str, error: Exception) -> Failure:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        trouble = Trouble.REJECTED if error.status == 407 else Trouble.NOT_SENT
        return _failure(trouble, url, f"not reached: the proxy answered {error.status}", error)
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return _failure(Trouble.NOT_SENT, url, f"not reached: {_describe(error)}", error)
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return _failure(Trouble.REJECTED, url, "not a URL that can be posted to", error)
    if isinstance(error, ValueError):
        return _failure(Trouble.REJECTED, url, f"the request cannot be made: {error}", error)
    if isinstance(error, asyncio.TimeoutError):
        return _failure(Trouble.LOST, url, f"no answer in time: {_describe(error)}", error)
    return _failure(Trouble.LOST, url, f"the connection failed: {_describe(error)}", error)


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _failure(
    trouble: Trouble,
    url: str,
    what: str,
    cause: BaseException | None = None,
    *,
    status: int | None = None,
    retry_after: float | None = None,
) -> Failure:
    error = TransportError(f"Request to {url} failed: {what}{_NEXT_STEPS[trouble]}")
    error.__cause__ = cause
    error.status = status
    return Failure(trouble, error, status, retry_after)


def status_failure(answer: Answer, authorization: str = "") -> Failure:
    """Say what an answer means whose body says nothing.

    :param answer: an HTTP response without a message that could be understood
    :param authorization: the request's header of this name: its token must not be quoted from the body
    :return: the failure
    """
    status = answer.status
    what = f"HTTP status {status}, body {_excerpt(answer.body, authorization)}"
    retry_after = None
    if 300 <= status < 400:
        trouble = Trouble.REDIRECTED
        what = (
            f"HTTP status {status} sends elsewhere, to host {_redirect_host(answer)!r}; redirects are not"
            " followed with a token"
        )
    elif status == 401:
        trouble = Trouble.UNAUTHORIZED
    elif status == 403:
        trouble = Trouble.FORBIDDEN
    elif status == 429:
        trouble = Trouble.THROTTLED
        retry_after = _retry_after(answer)
    elif status == 408 or not 400 <= status < 500:
        trouble = Trouble.LOST
        retry_after = _retry_after(answer)
    else:
        trouble = Trouble.REJECTED
    return _failure(trouble, answer.url, what, status=status, retry_after=retry_after)


def _redirect_host(answer: Answer) -> str:
    location = answer.headers.get("Location", "")
    try:
        return URL(location).host or location or "unknown"
    except ValueError:
        return "unknown"


def _retry_after(answer: Answer) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _excerpt(body: bytes, authorization: str) -> str:
    secret = authorization.rpartition(" ")[2]
    text = body[: EXCERPT_SIZE + len(secret)].decode("utf-8", "replace")
    if secret:
        text = text.replace(secret, "...")
    return repr(text[:EXCERPT_SIZE]) if text else "empty"


def bayeux_messages(
    answer: Answer, loads: Loader, authorization: str = ""
) -> list[JsonObject] | Failure:
    """Get the Bayeux messages out of an answer of any status.

    A lone object stands for a list of one. Salesforce sends messages with a status of 400 and 401 as
    well; with such a status only what has the marks of a Bayeux message counts as one.

    :param answer: the answer
    :param loads: the application's JSON function
    :param authorization: the request's header of this name: its token must not be quoted in an error
    :return: the messages, at least one; or what their absence means
    """
    if answer.status == 200:
        messages = _messages(answer.body, loads)
        return messages or status_failure(answer, authorization)
    # An error page need not be parsed to see that it is none of ours.
    if answer.body.lstrip()[:1] in (b"[", b"{"):
        messages = _messages(answer.body, loads)
        if any("channel" in message or "successful" in message for message in messages):
            return messages
    return status_failure(answer, authorization)


def _messages(body: bytes, loads: Loader) -> list[JsonObject]:
    try:
        value = parse_json(body, loads)
    except ValueError:
        return []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return []
    # By way of the set, since this looks at every event.
    if (kinds := set(map(type, value))) != {dict} and not all(issubclass(k, dict) for k in kinds):
        return []
    return value if all(value) else []
