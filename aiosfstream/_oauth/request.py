"""The token request: a form goes out, an answer or the error that tells why there is none comes back."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiocometd.typing import SSLValidationMode

from .._frames import without_frames
from .._http import post as _http
from .._http.bodies import Loader, parse_json
from .._http.deadline import Limits
from .._text import Secret, fit
from ..exceptions import AuthenticationError
from .answers import clock_lag, unreachable, wait_of
from .state import secrets_of
from .urls import host_of, is_loopback, is_secure

__all__ = ["Form", "Reply", "ask", "lend_session"]

#: The fields of a token request. What is secret stays hidden until the body is written.
Form = Mapping[str, "str | Secret"]

_HEADERS: Final = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Accept": "application/json",
}
#: Bytes. An answer has a few hundred.
_MAX_SIZE: Final = 1024 * 1024
#: Statuses that say that there is no token endpoint at the URL.
_WRONG_URL: Final = (404, 405, 410)


@dataclass
class _Loan:
    """A client's session, lent to one authenticator.

    :ivar session: the session; None once it was given back
    :ivar ssl: how TLS is verified
    :ivar borrower: the authenticator that may use it; None: the first that asks
    """

    session: aiohttp.ClientSession | None
    ssl: SSLValidationMode | None
    borrower: object | None


_LOAN: ContextVar[_Loan | None] = ContextVar("aiosfstream_lent_session", default=None)


@contextmanager
def lend_session(
    session: aiohttp.ClientSession, ssl: SSLValidationMode | None, to: object | None = None
) -> Iterator[None]:
    """Let the token requests of one authenticator use a client's session, with its proxy and its TLS.

    A task that a callback starts in the block gets a copy of its context: so another authenticator must
    not find the session there, and nobody may use it once the block has ended.

    :param session: the session
    :param ssl: how TLS is verified, as aiohttp takes it
    :param to: the authenticator; None: the first one that asks
    """
    loan = _Loan(session, ssl, to)
    token = _LOAN.set(loan)
    try:
        yield
    finally:
        _LOAN.reset(token)
        loan.session = None


def _borrowed(
    authenticator: object, url: str
) -> tuple[aiohttp.ClientSession | None, SSLValidationMode | None]:
    loan = _LOAN.get()
    if loan is None or loan.session is None or loan.session.closed:
        return None, None
    if loan.borrower is None:
        loan.borrower = authenticator
    if loan.borrower is not authenticator:
        return None, None
    # Without TLS the credentials go to this machine, and to no proxy elsewhere that could read them.
    if urlsplit(url).scheme == "http" and _has_proxy_elsewhere(loan.session, url):
        return None, None
    return loan.session, loan.ssl


def _has_proxy_elsewhere(session: aiohttp.ClientSession, url: str) -> bool:
    """Say whether a request without TLS would leave this machine by way of a proxy."""
    proxy = getattr(session, "_default_proxy", None)
    if proxy is None and session.trust_env and not proxy_bypass(urlsplit(url).hostname or ""):
        proxy = getproxies().get("http")
    return proxy is not None and not is_loopback(host_of(str(proxy)))


class Reply(NamedTuple):
    """An answer of the token endpoint.

    :ivar status: the HTTP status
    :ivar content: the answer
    :ivar clock_lag: seconds that the endpoint's clock is ahead of ours, if it says so
    :ivar retry_after: seconds that it asks to wait, if it does
    """

    status: int
    content: dict[str, Any]
    clock_lag: float | None
    retry_after: float | None


async def ask(
    authenticator: object, url: str, form: Form, *, timeout: float, loads: Loader
) -> Reply | AuthenticationError:
    """Post a form to a token endpoint, with the session that was lent to *authenticator* or a new one.

    Nothing is raised here: an error tracker would find the form in the frame.

    :param authenticator: who asks
    :param url: the token URL
    :param form: the fields
    :param timeout: how many seconds it may take
    :param loads: parses the answer
    :return: the answer, or the error that says why there is none
    """
    secrets = secrets_of(authenticator)
    where = fit(url, secrets=secrets)
    if not is_secure(url):
        return AuthenticationError(
            f"Authentication failed: the token URL {where} is not an https URL, nothing was sent there; set"
            " another login_url"
        )
    answer = await _post(authenticator, url, form, timeout)
    if isinstance(answer, UnicodeError):
        return AuthenticationError(
            f"Authentication failed: nothing was sent to {where}: a character of the key, the user or the"
            " password cannot be sent; check them"
        )
    if isinstance(answer, _http.Failure):
        cause = without_frames(answer.error, secrets=secrets)
        told = unreachable(
            fit(cause, secrets=secrets, limit=600),
            retryable=answer.trouble is not _http.Trouble.REJECTED,
        )
        told.__cause__ = cause
        return told
    return _understood(answer, where, loads)


async def _post(
    authenticator: object, url: str, form: Form, timeout: float
) -> _http.Answer | _http.Failure | UnicodeError:
    """Write the form and send it."""
    try:
        body = urlencode(
            {name: v.reveal() if isinstance(v, Secret) else v for name, v in form.items()}
        ).encode()
    except UnicodeError:
        return UnicodeError()
    send = functools.partial(
        _http.post,
        url=url,
        body=body,
        headers=_HEADERS,
        limits=Limits(timeout, timeout, timeout),
        max_size=_MAX_SIZE,
        secrets=secrets_of(authenticator),
    )
    session, ssl = _borrowed(authenticator, url)
    if session is not None:
        return await send(session, ssl=ssl)
    async with aiohttp.ClientSession() as session:
        return await send(session)


def _understood(answer: _http.Answer, where: str, loads: Loader) -> Reply | AuthenticationError:
    wait = wait_of(answer.headers.get("Retry-After", ""))
    try:
        content = parse_json(answer.body, loads)
    except ValueError:
        # Not chained: it might quote the body, and that a token.
        content = None
    if isinstance(content, dict) and not 300 <= answer.status < 400:
        return Reply(answer.status, content, clock_lag(answer.headers.get("Date", "")), wait)
    return _no_answer(answer, where, wait)


def _no_answer(answer: _http.Answer, where: str, wait: float | None) -> AuthenticationError:
    status = answer.status
    what, step = f"answered with HTTP status {status} and no JSON object", "try again later"
    retryable = not (300 <= status < 400 or status in _WRONG_URL)
    if 300 <= status < 400:
        host = fit(host_of(answer.headers.get("Location", "")), limit=100)
        what = (
            f"sends elsewhere, with HTTP status {status} to host {host!r}, where the credentials do not go"
            " unasked"
        )
        step = "if it is the org's host, give it as login_url"
    elif status in _WRONG_URL:
        step = "nobody can log in there, check login_url"
    return unreachable(
        f"{where} {what}: {step}", status=status, retryable=retryable, retry_after=wait
    )
