"""What a request that failed is called, what it means, and what to do about it.

Nothing here decides what happens next; it only says which kind of failure it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final, NamedTuple

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from yarl import URL

from .._frames import without_frames
from .._text import Secret, fit
from ..exceptions import TransportError
from .bodies import Body, UnreadableError, digest_of, looks_like_json, words_of
from .encodings import EncodingError

#: Seconds. Longer waits that a server asks for are cut to this.
MAX_RETRY_AFTER: Final = 3600.0
#: Characters of the server's own words in an error.
EXCERPT_SIZE: Final = 200
#: Characters of a date in a header.
_LONGEST_DATE: Final = 64

Secrets = Iterable["str | Secret | None"]


class Trouble(Enum):
    """What a failed request means for the session it belongs to."""

    #: It certainly never reached the server: refused, no such host, no TLS.
    NOT_SENT = auto()
    #: It was sent and its answer was not received whole, or something on the way answered for the
    #: server: whatever the server put into the answer is gone.
    LOST = auto()
    #: The server has answered, with what cannot be read or is too large. It may do so again.
    UNREADABLE = auto()
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


@dataclass(frozen=True)
class Failure:
    """A request without a usable answer.

    :ivar trouble: what kind of failure it is
    :ivar error: the exception to raise when the failure is reported to somebody
    :ivar status: the HTTP status, if there was one
    :ivar retry_after: seconds that the server asked to wait, if it did
    :ivar reason: what the server said in its own words, such as ``REQUEST_LIMIT_EXCEEDED: ...``
    :ivar digest: of what is unreadable: equal as long as the same text cannot be read
    """

    trouble: Trouble
    error: TransportError
    status: int | None = None
    retry_after: float | None = None
    reason: str = ""
    digest: bytes = b""


class Answer(NamedTuple):
    """A whole HTTP response, whatever its status.

    :ivar url: where the request went to
    :ivar status: the HTTP status
    :ivar headers: the headers
    :ivar body: the body, without content encodings
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: Body


class Kind(NamedTuple):
    """A kind of failure.

    :ivar trouble: what it means
    :ivar what: what happened, with braces where the details go
    :ivar step: what to do about it
    """

    trouble: Trouble
    what: str
    step: str


_AGAIN: Final = "try again, unless the server must not do it twice"
_BETWEEN: Final = "check what stands between here and the server"

_NO_CONNECTION: Final = Kind(
    Trouble.NOT_SENT,
    "not reached, there was no connection in time",
    "check the URL, the network and the proxy, or the limit of a connector of your own",
)

#: Exceptions, and what they are called: the first that fits counts.
BY_CLASS: Final = (
    (
        aiohttp.ClientProxyConnectionError,
        Kind(Trouble.NOT_SENT, "the proxy is not reached: {}", "check the proxy's address"),
    ),
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        Kind(
            Trouble.NOT_SENT,
            "the certificate of the server is not trusted: {}",
            "check the URL, or give an ssl context that trusts the authority that has signed it",
        ),
    ),
    (
        aiohttp.ClientSSLError,
        Kind(
            Trouble.NOT_SENT,
            "there is no TLS connection to be had: {}",
            "check that the port of the URL is one for https",
        ),
    ),
    (
        aiohttp.ClientConnectorDNSError,
        Kind(
            Trouble.NOT_SENT,
            "not reached, the name of the host is not known: {}",
            "check the URL and the network",
        ),
    ),
    (
        aiohttp.ClientConnectorError,
        Kind(Trouble.NOT_SENT, "not reached: {}", "check the URL, the network and the proxy"),
    ),
    (aiohttp.ConnectionTimeoutError, _NO_CONNECTION),
    (
        (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
        Kind(
            Trouble.REJECTED, "not a URL that can be posted to", "use one that begins with https://"
        ),
    ),
    (
        ValueError,
        Kind(Trouble.REJECTED, "the request cannot be made: {}", "check the URL and the token"),
    ),
    (asyncio.TimeoutError, Kind(Trouble.LOST, "no answer in time", _AGAIN)),
    (LineTooLong, Kind(Trouble.LOST, "the answer has a header that is too long: {}", _BETWEEN)),
    (HttpProcessingError, Kind(Trouble.LOST, "the answer is no HTTP: {}", _BETWEEN)),
    (EncodingError, Kind(Trouble.LOST, "the body of the answer is no good: {}", _BETWEEN)),
    (
        aiohttp.ClientPayloadError,
        Kind(Trouble.LOST, "the connection failed in the middle of the answer: {}", _AGAIN),
    ),
    (BaseException, Kind(Trouble.LOST, "the connection failed: {}", _AGAIN)),
)
_NO_SUCH_PROXY: Final = Kind(
    Trouble.NOT_SENT,
    "the proxy is not reached, its name is not known: {}",
    "check the proxy's address",
)
_PROXY_REFUSES: Final = Kind(
    Trouble.REJECTED,
    "the proxy refuses the credentials it was given, or asks for some: {}",
    "check the user name and password of the proxy",
)
_PROXY_FAILS: Final = Kind(
    Trouble.NOT_SENT, "not reached, the proxy answered {}", "check the proxy"
)

#: HTTP statuses, and what they are called.
BY_STATUS: Final = {
    401: Kind(Trouble.UNAUTHORIZED, "{}", "the token is refused, log in again"),
    403: Kind(Trouble.FORBIDDEN, "{}", "check that the user may use the API"),
    404: Kind(Trouble.REJECTED, "{}", "check the URL and the API version in it"),
    407: _PROXY_REFUSES,
    408: Kind(Trouble.LOST, "{}", _AGAIN),
    413: Kind(Trouble.REJECTED, "{}", "send less at once"),
    429: Kind(Trouble.THROTTLED, "{}", "wait before the next request"),
}
_MOVED: Final = Kind(
    Trouble.REDIRECTED,
    "{}; redirects are not followed with a token",
    "use the URL of that host if it is the right one",
)
_CLOSED: Final = Kind(
    Trouble.REJECTED,
    "the HTTP session was closed by somebody else, or its connector",
    "open the client again, and leave closing of what session_factory gives to it",
)
_REJECTED: Final = Kind(Trouble.REJECTED, "{}", "check the URL and what is sent")
_IN_TROUBLE: Final = Kind(Trouble.LOST, "{}", "wait, then try again")
_NOT_OURS: Final = Kind(
    Trouble.LOST, "{}", "check that the URL is that of a CometD server, and the proxy"
)
_UNREADABLE: Final = Kind(
    Trouble.UNREADABLE, "the answer cannot be read: {}", "ask those who publish what they sent"
)
_TOO_LARGE: Final = Kind(
    Trouble.UNREADABLE, "the answer has more than {} bytes", "give a larger max_response_size"
)


KINDS: Final = (
    *(kind for _, kind in BY_CLASS),
    *BY_STATUS.values(),
    _NO_SUCH_PROXY,
    _PROXY_FAILS,
    _MOVED,
    _CLOSED,
    _REJECTED,
    _IN_TROUBLE,
    _NOT_OURS,
    _UNREADABLE,
    _TOO_LARGE,
)


def error_failure(
    url: str, error: Exception, *, sent: bool = True, secrets: Secrets = ()
) -> Failure:
    """Say what an exception means that ended a request.

    :param url: where the request went to
    :param error: the exception, which becomes the cause; what it holds of the request is taken away
    :param sent: whether anything was sent
    :param secrets: what must not be shown
    :return: the failure
    """
    kind = _NO_SUCH_PROXY if _is_of_a_proxy(error, url) else _kind_of(error)
    if kind.trouble is Trouble.LOST and not sent:
        is_late = isinstance(error, asyncio.TimeoutError)
        kind = _NO_CONNECTION if is_late else kind._replace(trouble=Trouble.NOT_SENT)
    failure = _failure(url, kind, _details_of(error), secrets)
    failure.error.__cause__ = without_frames(error, secrets=secrets)
    return failure


def closed_failure(url: str) -> Failure:
    """Say what it means that the HTTP session is closed."""
    return _failure(url, _CLOSED, "", ())


def too_large(url: str, limit: int, status: int) -> Failure:
    """Say what it means that an answer has more than *limit* bytes."""
    failure = _failure(url, _TOO_LARGE, str(limit), (), status=status)
    return replace(failure, digest=digest_of(_TOO_LARGE.what))


def _is_of_a_proxy(error: Exception, url: str) -> bool:
    """Say whether a name that is not known is that of a proxy: it is not the host of the request."""
    if not isinstance(error, aiohttp.ClientConnectorDNSError):
        return False
    try:
        return error.host != URL(url).raw_host
    except ValueError:
        return False


def _kind_of(error: BaseException) -> Kind:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _PROXY_REFUSES if error.status == 407 else _PROXY_FAILS
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)) and error.__cause__:
        # aiohttp calls it a status of 400, whatever the status was.
        return _kind_of(error.__cause__)
    return next(kind for classes, kind in BY_CLASS if isinstance(error, classes))


def _details_of(error: BaseException) -> str:
    """Give what an exception says, without what aiohttp adds."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"status {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    elif isinstance(error, aiohttp.ClientPayloadError) and error.__cause__ is not None:
        error = error.__cause__
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server has closed it without an answer"
    for name in ("verify_message", "message", "strerror"):
        text = getattr(error, name, None)
        if text and isinstance(text, str):
            return text
    return str(error) or type(error).__name__


def status_failure(answer: Answer, authorization: str = "", *, secrets: Secrets = ()) -> Failure:
    """Say what an answer means whose body holds nothing that could be used.

    :param answer: the answer
    :param authorization: the request's header of this name: its token must not be quoted from the body
    :param secrets: what else must not be shown
    :return: the failure
    """
    status = answer.status
    secrets = (authorization.rpartition(" ")[2], *secrets)
    reason = fit(words_of(answer.body), secrets=secrets, limit=EXCERPT_SIZE)
    if 300 <= status < 400:
        host = fit(_redirect_host(answer), secrets=secrets)
        kind, details = _MOVED, f"HTTP status {status} sends elsewhere, to host {host!r}"
    else:
        kind, details = _kind_of_status(status), f"HTTP status {status}, {reason or 'body empty'}"
    wait = _retry_after(answer) if status >= 400 else None
    failure = _failure(answer.url, kind, details, secrets, status=status)
    return replace(failure, retry_after=wait, reason=reason)


def unreadable(
    answer: Answer, error: UnreadableError, authorization: str = "", *, secrets: Secrets = ()
) -> Failure:
    """Say what an answer means that is no JSON.

    :param answer: the answer
    :param error: why it cannot be read
    :param authorization: the request's header of this name: its token must not be quoted from the body
    :param secrets: what else must not be shown
    :return: :attr:`Trouble.UNREADABLE` if it should have been JSON, as far as that can be told; what its status
        means otherwise, as for an error page
    """
    if answer.status != 200 or not looks_like_json(answer.body):
        return status_failure(answer, authorization, secrets=secrets)
    secrets = (authorization.rpartition(" ")[2], *secrets)
    failure = _failure(answer.url, _UNREADABLE, str(error), secrets, status=answer.status)
    return replace(failure, digest=error.digest)


def _kind_of_status(status: int) -> Kind:
    if 400 <= status < 500:
        return BY_STATUS.get(status, _REJECTED)
    return _IN_TROUBLE if status >= 500 else _NOT_OURS


def _failure(
    url: str, kind: Kind, details: str, secrets: Secrets, *, status: int | None = None
) -> Failure:
    what = kind.what.format(fit(details, secrets=secrets).rstrip("."))
    error = TransportError(f"Request to {fit(url, secrets=secrets)} failed: {what}; {kind.step}")
    error.status = status
    return Failure(kind.trouble, error, status)


def _redirect_host(answer: Answer) -> str:
    location = answer.headers.get("Location", "")
    try:
        return URL(location).host or location or "unknown"
    except (ValueError, IndexError):
        # yarl raises both.
        return "unknown"


def _retry_after(answer: Answer) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(value[:_LONGEST_DATE]).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
