"""No secret in a frame, an argument, an attribute or a cause of any error of a token request."""

from __future__ import annotations

import asyncio
import base64
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest

from aiosfstream import (
    AccessTokenAuthenticator,
    AiosfstreamException,
    AuthenticationError,
    AuthenticatorBase,
    Client,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
)
from aiosfstream._oauth.flight import log_in, log_in_again
from aiosfstream._oauth.state import secrets_of
from aiosfstream.auth import lend_session
from tests.leaks import leaks_of
from tests.support import soon
from tests.test_secrets import PRIVATE

SECRET = "s3cret/of+the&app"
PASSWORD = "pä55w<o>rd &more%"
REFRESH_TOKEN = "5Aep861TSESvWeug_xvFHRBTTbf1YkQ"
ACCESS_TOKEN = "00D000000000001!AQcAQH0dMHZfz972Szmpkb58urFRkgeBGsxL"
NEW_TOKEN = "5Aep861_new_refresh_token_that_rotated"
PROXY_PASSWORD = "pr0xy-pa55word"
ALL = [
    SECRET,
    PASSWORD,
    REFRESH_TOKEN,
    ACCESS_TOKEN,
    NEW_TOKEN,
    PROXY_PASSWORD,
    PRIVATE.splitlines()[3],
]


def token_of() -> str:
    """Fail, with a token at hand."""
    token = ACCESS_TOKEN
    raise KeyError(len(token))


async def store(token: str) -> None:
    """Fail to store a token."""
    copy = token
    raise OSError(f"cannot write {copy}")


class Own(AuthenticatorBase):
    """Makes its own request, as badly as it can."""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        form = {"password": PASSWORD, "client_secret": SECRET}
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.post(self._token_url, data=form) as response,
        ):
            return response.status, await response.json()


FLOWS: dict[str, Callable[[str], AuthenticatorBase]] = {
    "password": lambda url: PasswordAuthenticator("key", SECRET, "me", PASSWORD, login_url=url),
    "refresh token": lambda url: RefreshTokenAuthenticator(
        "key", SECRET, REFRESH_TOKEN, login_url=url, on_token_refreshed=store
    ),
    "client credentials": lambda url: ClientCredentialsAuthenticator("key", SECRET, login_url=url),
    "jwt": lambda url: JWTBearerAuthenticator("key", "me", PRIVATE, login_url=url),
    "callable": lambda url: AccessTokenAuthenticator(url, token_of),
    "own": lambda url: Own(login_url=url),
}


def http(status: int, body: str, headers: str = "") -> bytes:
    """Make a response that ends with the connection."""
    return (
        f"HTTP/1.1 {status} Reason\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}"
        f"\r\n{body}"
    ).encode()


#: What each flow sends, and a server may send back.
SENT = {
    "password": f"{SECRET} {PASSWORD}",
    "refresh token": f"{SECRET} {REFRESH_TOKEN}",
    "client credentials": SECRET,
}
ECHO = "you sent SENT"
TOKENS = f'"access_token": "{ACCESS_TOKEN}", "refresh_token": "{NEW_TOKEN}"'
ANSWERS = {
    "refused": http(400, f'{{"error": "invalid_grant", "error_description": "{ECHO}", {TOKENS}}}'),
    "unauthorized": http(401, ECHO),
    "not there": http(404, ECHO),
    "server error": http(500, ECHO),
    "server error in JSON": http(503, f'{{"error": "{ECHO}"}}', "Retry-After: 7\r\n"),
    "too many": http(429, f'{{"error": "{ECHO}"}}', "Retry-After: 7\r\n"),
    "redirect": http(302, ECHO, f"Location: https://x/{ACCESS_TOKEN}?{ECHO}\r\n"),
    "redirect to nowhere": http(302, "", "Location: http://[x]@\r\n"),
    "no JSON": http(200, f"{{{TOKENS}"),
    "no UTF-8": http(200, "{" + TOKENS).replace(b"{", b"\xff", 1),
    "no instance": http(200, f"{{{TOKENS}}}"),
    "bad instance": http(200, f'{{{TOKENS}, "instance_url": "{ECHO}"}}'),
    "instance in clear": http(200, f'{{{TOKENS}, "instance_url": "http://example.com"}}'),
    "token for no header": http(
        200, f'{{"access_token": "{ACCESS_TOKEN}\\n", "instance_url": "https://example.com"}}'
    ),
    "garbage": ECHO.encode() + b"\r\n\r\n",
    "bad header": b"HTTP/1.1 200 OK\r\nX: " + ECHO.encode() + b"\x00\r\n\r\n",
    "cut": http(200, f"{{{TOKENS}}}", "Content-Length: 1000\r\n"),
    "bad encoding": http(200, ECHO, "Content-Encoding: gzip\r\n"),
    "nothing": b"",
}


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """Serve the same answer to everybody; None: none at all."""
    never = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await never.wait()
            writer.write(answer or b"")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        never.set()


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": lambda text: urllib.parse.quote(text, safe=""),
    "Basic": lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
}


async def error_of(doing: Awaitable[object]) -> AuthenticationError:
    """Give the error that comes out."""
    with pytest.raises(AuthenticationError) as caught:
        await soon(doing)
    return caught.value


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("flow", FLOWS)
async def test_no_answer_makes_anything_public(flow: str, answer: str) -> None:
    sent = SENT.get(flow, "nothing").encode()
    raw = ANSWERS[answer].replace(b"SENT", sent)
    async with answering(raw) as url:
        authenticator = FLOWS[flow](url)
        errors = [await error_of(authenticator.authenticate())]
        errors.append(await error_of(log_in(authenticator)))
        client = Client(FLOWS[flow](url))
        errors.append(await error_of(client.open()))
        authenticator.access_token = ACCESS_TOKEN
        errors.append(await error_of(log_in_again(authenticator, f"Bearer {ACCESS_TOKEN}")))
        authenticator.access_token = ACCESS_TOKEN
        errors.append(await error_of(authenticator.reauthenticate(f"Bearer {ACCESS_TOKEN}")))
    for error in errors:
        assert leaks_of(error, ALL) == []
        assert str(error)
        assert isinstance(error.__cause__, (type(None), Exception))


@pytest.mark.parametrize("flow", FLOWS)
async def test_an_endpoint_that_is_not_reached_makes_nothing_public(flow: str) -> None:
    async with answering(None) as url:
        pass
    for where in (url, "https://127.0.0.1:1", "https://no-such-host.invalid"):
        error = await error_of(FLOWS[flow](where).authenticate())
        assert leaks_of(error, ALL) == []
        assert error.__cause__ is not None


@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow != "callable"])
async def test_a_time_out_makes_nothing_public(flow: str) -> None:
    async with answering(None) as url:
        authenticator = FLOWS[flow](url)
        authenticator.request_timeout = 0.05
        error = await error_of(authenticator.authenticate())
        assert leaks_of(error, ALL) == []
        assert error.retryable
        authenticator.request_timeout = 30
        # An outer time-out shows the cancellation as its cause.
        with pytest.raises(asyncio.TimeoutError) as caught:
            await asyncio.wait_for(authenticator.authenticate(), 0.05)
        assert leaks_of(caught.value, ALL) == []


@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow not in ("callable", "own")])
async def test_a_proxy_makes_nothing_public(flow: str) -> None:
    authenticator = FLOWS[flow]("https://example.invalid")
    async with answering(http(407, "no", "Proxy-Authenticate: Basic\r\n")) as url:
        proxy = url.replace("//", f"//me:{PROXY_PASSWORD}@")
        factory = partial(aiohttp.ClientSession, proxy=proxy)
        refused = await error_of(Client(authenticator, session_factory=factory).open())
    dead = await error_of(Client(authenticator, session_factory=factory).open())
    for error in (refused, dead):
        assert leaks_of(error, ALL) == []
        assert any("roxy" in str(part) for part in (error, error.__cause__))


async def test_a_token_that_cannot_be_stored_is_not_shown() -> None:
    answer = http(200, f'{{{TOKENS}, "instance_url": "https://example.com"}}')
    async with answering(answer) as url:
        error = await error_of(FLOWS["refresh token"](url).authenticate())
    assert leaks_of(error, ALL) == []
    assert "OSError at test_leaks.py, line " in str(error)
    assert isinstance(error.__cause__, OSError)


async def test_characters_that_cannot_be_sent_are_not_shown() -> None:
    authenticator = PasswordAuthenticator("key", SECRET, "me", PASSWORD + "\ud800")
    error = await error_of(authenticator.authenticate())
    assert leaks_of(error, [*ALL, PASSWORD]) == []
    assert "cannot be sent" in str(error)


async def test_the_state_of_an_authenticator_shows_nothing() -> None:
    for flow in FLOWS.values():
        authenticator = flow("https://example.com")
        authenticator.access_token = ACCESS_TOKEN
        for value in (authenticator, vars(authenticator), *vars(authenticator).values()):
            text = repr(value)
            assert not any(secret in text for secret in ALL)
        assert ACCESS_TOKEN in [secret.reveal() for secret in secrets_of(authenticator)]


async def test_a_key_that_is_refused_is_not_shown() -> None:
    for key in (PRIVATE[:-60], PRIVATE.replace("PRIVATE", "PUBLIC"), PRIVATE[200:]):
        with pytest.raises(ValueError, match="private_key") as caught:
            JWTBearerAuthenticator("key", "me", key)
        assert leaks_of(caught.value, PRIVATE.splitlines()[5:15]) == []


KEY = PRIVATE
SECRETS_OF_CONSTRUCTORS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (PasswordAuthenticator, ("key", SECRET, "me", PASSWORD), {"login_url": "acme"}),
    (PasswordAuthenticator, ("key", SECRET, "", PASSWORD), {}),
    (PasswordAuthenticator, ("key", SECRET, "me", PASSWORD.encode("latin-1")), {}),
    (PasswordAuthenticator, (None, SECRET, "me", PASSWORD), {}),
    (PasswordAuthenticator, ("key", SECRET, "me", PASSWORD), {"nonsense": 1}),
    (RefreshTokenAuthenticator, ("", SECRET, REFRESH_TOKEN), {}),
    (RefreshTokenAuthenticator, ("key", SECRET, REFRESH_TOKEN), {"login_url": "acme.my"}),
    (RefreshTokenAuthenticator, ("key", None, REFRESH_TOKEN), {}),
    (ClientCredentialsAuthenticator, ("key", SECRET), {"login_url": None}),
    (ClientCredentialsAuthenticator, ("", SECRET), {"login_url": "https://a.my.site.com"}),
    (ClientCredentialsAuthenticator, ("key", SECRET), {"login_url": "test.salesforce.com"}),
    (JWTBearerAuthenticator, ("key", "", KEY), {}),
    (JWTBearerAuthenticator, ("key", "me", KEY.encode()), {"login_url": "https//x"}),
    (JWTBearerAuthenticator, ("key", "me", KEY[:-60]), {}),
    (AccessTokenAuthenticator, ("acme", ACCESS_TOKEN), {}),
    (AccessTokenAuthenticator, ("https://acme.my.salesforce.com", ACCESS_TOKEN + "\n\xe9"), {}),
    (AccessTokenAuthenticator, ("https://acme.my.salesforce.com", ACCESS_TOKEN.encode()), {}),
]


@pytest.mark.parametrize(("kind", "arguments", "options"), SECRETS_OF_CONSTRUCTORS)
def test_what_cannot_be_constructed_is_not_shown(
    kind: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(*arguments, **options)
    assert leaks_of(caught.value, [*ALL, *PRIVATE.splitlines()[5:15]]) == []


@pytest.mark.parametrize("kind", [AuthenticationError, OSError, KeyError])
async def test_an_override_of_authenticate_shows_nothing(kind: type[Exception]) -> None:
    class Override(Own):
        async def authenticate(self) -> None:
            password = PASSWORD
            raise kind(len(password))

    authenticator = Override()
    for doing in (log_in(authenticator), log_in_again(authenticator, f"Bearer {ACCESS_TOKEN}")):
        assert leaks_of(await error_of(doing), ALL) == []


async def test_a_lent_session_shows_nothing() -> None:
    async with answering(ANSWERS["garbage"]) as url, aiohttp.ClientSession() as session:
        authenticator = FLOWS["password"](url)
        with lend_session(session, None):
            error = await error_of(authenticator.authenticate())
    assert leaks_of(error, ALL) == []


def test_the_walker_finds_what_is_there() -> None:
    with pytest.raises(AiosfstreamException) as caught:
        try:
            raise ValueError({"x": SECRET})
        except ValueError as error:
            raise AiosfstreamException("nothing") from error
    assert leaks_of(caught.value, [SECRET])
    for text in FORMS.values():
        assert leaks_of(AiosfstreamException(text(SECRET)), [SECRET])
    assert leaks_of(AiosfstreamException("nothing"), [SECRET]) == []
