"""What an answer of the token endpoint says, and the errors that tell it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from .._text import Secret, fit
from ..exceptions import AiosfstreamException, AuthenticationError
from .advice import advise
from .urls import host_of, is_base_url, is_loopback

__all__ = [
    "clock_lag",
    "failed",
    "fields_of",
    "is_expired",
    "is_header_safe",
    "is_signed",
    "problem_of",
    "refusal",
    "unreachable",
    "useless",
    "wait_of",
]

#: The fields of an answer that an authenticator keeps.
FIELDS: Final = ("access_token", "token_type", "instance_url", "id", "signature", "issued_at")
#: Those that other servers than Salesforce's send as numbers.
_MAY_BE_NUMBERS: Final = ("id", "signature", "issued_at")
#: Characters. No host has so many, and what is looked up is remembered.
_LONGEST_URL: Final = 2000
#: Seconds. Longer waits that a server asks for are cut to this.
MAX_WAIT: Final = 3600.0
#: Fields of a refusal that its error has. Two or three are usual.
_MOST_FIELDS: Final = 20
#: Characters of a date in a header.
_LONGEST_DATE: Final = 64
_TOKEN: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_TOKEN_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
#: What code that makes its own request may raise because of the network or the answer.
_NETWORK_ERRORS: Final = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    OSError,
    ValueError,
    AiosfstreamException,
)

Secrets = Iterable["str | Secret | None"]


def unreachable(
    what: str,
    reply: Mapping[str, Any] | None = None,
    *,
    status: int | None = None,
    retryable: bool = True,
    retry_after: float | None = None,
) -> AuthenticationError:
    """Make the error for a token endpoint that gave no answer, or none that decides anything.

    :param what: what happened, and what to do
    :param reply: the answer, fit to be shown
    :param status: its HTTP status
    :param retryable: whether the same request may succeed later
    :param retry_after: seconds that the endpoint asked to wait
    """
    return AuthenticationError(
        f"Network request failed: {what}",
        reply,
        status=status,
        retryable=retryable,
        retry_after=retry_after,
    )


def useless(url: str, what: str) -> AuthenticationError:
    """Make the error for an answer that grants a token which cannot be used.

    :param url: the token URL
    :param what: what is wrong with the answer, and what to do
    """
    return AuthenticationError(
        f"Authentication failed: the answer of {url} cannot be used: {what}", status=200
    )


def refusal(
    url: str,
    status: int,
    reply: Mapping[str, Any],
    *,
    secrets: Secrets = (),
    retry_after: float | None = None,
    hint: str = "",
) -> AuthenticationError:
    """Make the error for an answer that refuses a token.

    :param url: the token URL
    :param status: the answer's HTTP status
    :param reply: the answer
    :param secrets: what must not be shown, even if the answer repeats it
    :param retry_after: seconds that the endpoint asked to wait
    :param hint: advice of the flow
    """
    told = {name: reply[name] for name in ("error", "error_description") if name in reply}
    told |= islice(reply.items(), _MOST_FIELDS)
    shown = {fit(name, secrets=secrets): _shown(value, secrets) for name, value in told.items()}
    error, description = (
        value if isinstance(value := shown.get(name), str) else ""
        for name in ("error", "error_description")
    )
    said = ": ".join(text for text in (error, description) if text) or "it does not say why"
    advice, retryable = advise(error, description, status)
    kind = "Network request failed" if status >= 500 or status == 408 else "Authentication failed"
    return AuthenticationError(
        f"{kind}: {url} answered with HTTP status {status:d}: {said.rstrip('.')}. {advice} {hint}".rstrip(),
        shown,
        error=error or None,
        error_description=description or None,
        status=status,
        retryable=retryable,
        retry_after=retry_after,
    )


def failed(what: str, error: Exception, secrets: Secrets = ()) -> AuthenticationError:
    """Make the error for code of the application's own that has raised an exception.

    :param what: the code
    :param error: what it raised
    :param secrets: what must not be shown
    """
    said = fit(error, secrets=secrets) or type(error).__name__
    if isinstance(error, _NETWORK_ERRORS):
        told = unreachable(f"{what} raised {type(error).__name__}: {said}; try again later")
    else:
        told = AuthenticationError(
            f"Authentication failed: {what} raised {type(error).__name__}{place_of(error)}, see the cause"
        )
    told.__cause__ = error
    return told


def place_of(error: BaseException) -> str:
    """Say where an exception was raised: its traceback does not leave the package.

    :param error: the exception
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f" at {PurePath(traceback.tb_frame.f_code.co_filename).name}, line {traceback.tb_lineno}"


def _shown(value: object, secrets: Secrets) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return fit(value, secrets=secrets)


def fields_of(reply: Mapping[str, Any]) -> dict[str, str]:
    """Give the fields of an answer that are kept. A number, where a text is usual, becomes one.

    :param reply: the answer
    """
    fields = {}
    for name in FIELDS:
        value = reply.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and name in _MAY_BE_NUMBERS:
            value = str(value)
        if isinstance(value, str):
            fields[name] = value
    return fields


def problem_of(fields: Mapping[str, str], asked: str | None) -> str | None:
    """Give the reason why a token cannot be used, if there is one.

    :param fields: what the answer has
    :param asked: the token URL that it came from; None: the application's own code gave it
    """
    if not is_header_safe(fields["access_token"]):
        return "its access token has characters that no header may have; check login_url"
    if not _TOKEN_TYPE.fullmatch(fields["token_type"]):
        return "its token_type is no word; check login_url"
    instance_url = fields["instance_url"]
    if len(instance_url) > _LONGEST_URL or not is_base_url(instance_url):
        return "its instance_url is not the https URL of a host; check login_url"
    is_in_clear = urlsplit(instance_url).scheme == "http"
    if is_in_clear and asked is not None and not is_loopback(host_of(asked)):
        return "its instance_url is on http, where anybody could read the token; check login_url"
    return None


def is_header_safe(token: str) -> bool:
    """Say whether *token* can stand in a header.

    :param token: an access token
    """
    return _TOKEN.fullmatch(token) is not None


def is_signed(reply: Mapping[str, Any], secret: str) -> bool:
    """Say whether an answer of the token endpoint is signed with the consumer secret.

    The signature is the base64 form of an HMAC with SHA-256 over ``id`` and ``issued_at`` (REST API
    Developer Guide, "Understanding the Username-Password OAuth Authentication Flow").

    That says that these two come from somebody who knows the secret, and nothing about the rest: neither
    about ``access_token`` nor about ``instance_url``.

    :param reply: the answer
    :param secret: the consumer secret
    """
    signed = [reply.get(name) for name in ("id", "issued_at", "signature")]
    if not all(isinstance(value, str) for value in signed):
        return False
    identity, issued_at, signature = (str(value).encode(errors="replace") for value in signed)
    digest = hmac.new(secret.encode(), identity + issued_at, hashlib.sha256).digest()
    return hmac.compare_digest(base64.b64encode(digest), signature)


def is_expired(reply: Mapping[str, Any]) -> bool:
    """Say whether a JWT assertion had expired when it arrived.

    :param reply: the answer
    """
    return "expired authorization code" in str(reply.get("error_description")).lower()


def clock_lag(date: str) -> float | None:
    """Say how many seconds a server's clock is ahead of ours.

    :param date: its ``Date`` header
    """
    moment = _moment(date)
    return None if moment is None else moment - time.time()


def wait_of(retry_after: str) -> float | None:
    """Say how many seconds a server asks to wait, an hour at most.

    :param retry_after: its ``Retry-After`` header (RFC 9110, 10.2.3): seconds or a date
    """
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_WAIT)
    moment = _moment(text)
    return None if moment is None else min(max(moment - time.time(), 0.0), MAX_WAIT)


def _moment(date: str) -> float | None:
    """Give the seconds since the epoch of a date in a header."""
    try:
        return parsedate_to_datetime(date[:_LONGEST_DATE]).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
