"""The OAuth 2.0 web server flow with PKCE, on a loopback redirect (RFC 7636, RFC 8252).

The redirect's host is ``localhost``, the one host for which Salesforce takes a callback URL without
TLS; the port listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from .._oauth.advice import advise
from .._oauth.state import hidden, hide
from .._oauth.urls import AUTHORIZE_PATH, normalize_login_url
from .._text import Secret
from ..auth import SecretMixin, post_form
from ..exceptions import AuthenticationError
from .console import UsageError, say

PAGE: Final = "<!doctype html><title>aiosfstream</title><p>{text} You can close this page."
SCOPE: Final = "api refresh_token"
CALLBACK: Final = "/callback"
#: Characters of an error that a redirect brings.
MAX_REASON: Final = 200


@dataclass(frozen=True)
class Tokens:
    """What a log-in gives.

    :ivar refresh_token: for ``RefreshTokenAuthenticator``
    :ivar instance_url: the org's instance
    """

    refresh_token: str
    instance_url: str

    def __repr__(self) -> str:
        """Show no token."""
        return f"Tokens(instance_url={self.instance_url!r})"


async def log_in(
    consumer_key: str,
    consumer_secret: str,
    *,
    login_url: str,
    port: int,
    show: Callable[[str], object],
    timeout: float = 300.0,
) -> Tokens:
    """Let a person authorize the app in their browser.

    :param consumer_key: the app's consumer key
    :param consumer_secret: its consumer secret; empty if it needs none
    :param login_url: where to log in
    :param port: the port of the redirect; ``http://localhost:port/callback`` must be among the app's
        callback URLs
    :param show: called with the URL that the person has to open, once their answer is listened for
    :param timeout: seconds to wait for that person
    :return: the tokens
    :raises AuthenticationError: if the port is taken, it is denied or takes too long, or the answer is
        not understood
    :raises ValueError: if *login_url* cannot be logged in at
    """
    base = normalize_login_url(login_url)
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    redirect_uri = f"http://localhost:{port}{CALLBACK}"
    query = {
        "response_type": "code",
        "client_id": consumer_key,
        "redirect_uri": redirect_uri,
        "scope": SCOPE,
        "state": state,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    async with _callback(state, port) as answered:
        show(f"{base}{AUTHORIZE_PATH}?{urlencode(query)}")
        try:
            answer = await asyncio.wait_for(answered, timeout)
        except asyncio.TimeoutError:
            raise AuthenticationError(
                f"Authentication failed: nobody authorized the app within {timeout:g} seconds. Try again, and"
                f" open the URL of {base} in a browser."
            ) from None
    exchange = CodeExchange(
        consumer_key,
        consumer_secret,
        code=code_of(answer),
        verifier=verifier,
        redirect_uri=redirect_uri,
        login_url=base,
    )
    await exchange.authenticate()
    if not exchange.refresh_token or exchange.instance_url is None:
        raise AuthenticationError(
            "Authentication failed: there is no refresh token in the answer; add the scope"
            ' "Perform requests at any time (refresh_token, offline_access)" to the app',
            status=200,
        )
    return Tokens(exchange.refresh_token, exchange.instance_url)


def challenge_of(verifier: str) -> str:
    """Give the S256 code challenge for a code verifier (RFC 7636, 4.2).

    :param verifier: the code verifier
    """
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def code_of(answer: Mapping[str, str]) -> str:
    """Give the authorization code that the redirect brought.

    :param answer: the redirect's query
    :raises AuthenticationError: if it brought an error instead
    """
    code = answer.get("code")
    if code:
        return code
    error, description = (_fit(answer.get(name, "")) for name in ("error", "error_description"))
    advice, retryable = advise(error, description, 400)
    said = ": ".join(text for text in (error, description) if text) or "it was denied"
    raise AuthenticationError(
        f"Authentication failed: the log-in page gave no code: {said.rstrip('.')}. {advice}",
        error=error or None,
        error_description=description or None,
        retryable=retryable,
    )


def _fit(text: str) -> str:
    """Make a text from a redirect, which anybody may have made, fit for a terminal."""
    return "".join(character for character in text[:MAX_REASON] if character.isprintable())


@asynccontextmanager
async def _callback(state: str, port: int) -> AsyncIterator[asyncio.Future[Mapping[str, str]]]:
    """Listen for the redirect; what its query says is the future's result."""
    answered: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    async def answer(request: web.Request) -> web.Response:
        # Anybody can send a browser here; only who began this log-in knows the state.
        given = request.query.get("state", "").encode(errors="replace")
        if not secrets.compare_digest(given, state.encode()):
            return _page("This is not the answer that was waited for.", 400)
        if not answered.done():
            answered.set_result(dict(request.query))
        if request.query.get("code"):
            return _page("You are logged in.", 200)
        return _page("The authorization was denied.", 400)

    application = web.Application()
    application.router.add_get(CALLBACK, answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        except OSError as error:
            raise AuthenticationError(
                f"Authentication failed: cannot listen for the answer on port {port}; choose another"
                " one, and add it to the app's callback URLs"
            ) from error
        yield answered
    finally:
        await runner.cleanup()


def _page(text: str, status: int) -> web.Response:
    return web.Response(text=PAGE.format(text=text), content_type="text/html", status=status)


class CodeExchange(SecretMixin):
    """Exchanges an authorization code for a refresh token.

    :param consumer_key: the app's consumer key
    :param consumer_secret: its consumer secret, or an empty text
    :param code: the authorization code
    :param verifier: the code verifier whose challenge was sent before
    :param redirect_uri: where the code was sent
    :param login_url: where to log in
    """

    #: The refresh token; empty before, or if there is none.
    refresh_token: str = hidden()

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        *,
        code: str,
        verifier: str,
        redirect_uri: str,
        login_url: str,
    ) -> None:
        super().__init__(consumer_key, consumer_secret, login_url=login_url)
        self._code = Secret(code)
        self._verifier = Secret(verifier)
        hide(self, self._code, self._verifier)
        self._redirect_uri = redirect_uri
        self.refresh_token = ""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        form: dict[str, str | Secret] = {
            "grant_type": "authorization_code",
            "code": self._code,
            "client_id": self.client_id,
            "redirect_uri": self._redirect_uri,
            "code_verifier": self._verifier,
        }
        if self.client_secret:
            form["client_secret"] = Secret(self.client_secret)
        status, reply = await post_form(self, form)
        token = reply.get("refresh_token")
        self.refresh_token = token if isinstance(token, str) else ""
        return status, reply


async def run_login(options: argparse.Namespace) -> int:
    """Let a person authorize the app."""
    environment = os.environ
    key = environment.get("SALESFORCE_CONSUMER_KEY", "")
    if not key:
        raise UsageError("set SALESFORCE_CONSUMER_KEY to the consumer key of the app")
    sandbox = environment.get("SALESFORCE_SANDBOX", "").lower() in ("1", "true", "yes")
    default = "https://test.salesforce.com" if sandbox else "https://login.salesforce.com"

    def show(url: str) -> None:
        say(f"Open this URL to authorize the app:\n{url}")
        if not options.no_browser:
            import webbrowser

            webbrowser.open(url)

    try:
        tokens = await log_in(
            key,
            environment.get("SALESFORCE_CONSUMER_SECRET", ""),
            login_url=environment.get("SALESFORCE_LOGIN_URL") or default,
            port=options.port,
            show=show,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.output is None:
        print(tokens.refresh_token, flush=True)
    else:
        write_secret(options.output, tokens.refresh_token)
        say(f"The refresh token is in {options.output}")
    return 0


def write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else can read, from its first moment on."""
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
