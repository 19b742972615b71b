"""The OAuth 2.0 web server flow with PKCE, on a loopback redirect (RFC 7636, RFC 8252).

The redirect's host is ``localhost``, the one host for which Salesforce takes a callback URL without
TLS; the port listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import errno
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from aiohttp import web

from .._oauth.advice import advise
from .._oauth.state import hidden, hide
from .._oauth.urls import AUTHORIZE_PATH, normalize_login_url
from .._text import Secret, fit
from ..auth import SecretMixin, lend_session, post_form
from ..exceptions import AuthenticationError
from .browser import Person
from .console import CommandError, UsageError, say
from .credentials import credentials_from
from .files import SecretFile
from .network import Network, network_from
from .output import standard_output
from .words import in_words

PAGE: Final = "<!doctype html><title>aiosfstream</title><p>{text} You can close this page."
SCOPE: Final = "api refresh_token"
CALLBACK: Final = "/callback"
#: What the redirect's host may mean on this machine.
LOOPBACK: Final = ("127.0.0.1", "::1")
#: Of the page that the redirect shows: its URL has the code in it.
PAGE_HEADERS: Final = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
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
    pasted: asyncio.Queue[str] | None = None,
    network: Network | None = None,
) -> Tokens:
    """Let a person authorize the app in their browser.

    :param consumer_key: the app's consumer key
    :param consumer_secret: its consumer secret; empty if it needs none
    :param login_url: where to log in
    :param port: the port of the redirect; ``http://localhost:port/callback`` must be among the app's
        callback URLs
    :param show: called with the URL that the person has to open, once their answer is listened for
    :param timeout: seconds to wait for that person
    :param pasted: where lines come from that may be the URL of the redirect, for a browser elsewhere
    :param network: how the code is exchanged for tokens; None: directly
    :return: the tokens
    :raises AuthenticationError: if the port is taken, it is denied or takes too long, or the answer is
        not understood
    :raises ValueError: if *login_url* cannot be logged in at
    """
    base = normalize_login_url(login_url)
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    redirect = Redirect(state, f"http://localhost:{port}{CALLBACK}")
    query = _authorization(consumer_key, redirect, state, verifier)
    async with _listening(redirect, port):
        show(f"{base}{AUTHORIZE_PATH}?{query}")
        answer = await _answer(redirect, pasted, timeout, base)
        try:
            exchange = CodeExchange(
                consumer_key,
                consumer_secret,
                code=code_of(answer),
                verifier=verifier,
                redirect_uri=redirect.uri,
                login_url=base,
            )
            tokens = await _exchanged(exchange, network)
        except BaseException:
            redirect.tell("You are not logged in: aiosfstream says why.", 400)
            raise
        redirect.tell("You are logged in.", 200)
    return tokens


def _authorization(key: str, redirect: Redirect, state: str, verifier: str) -> str:
    """Give the query that asks a person to authorize the app."""
    return urlencode(
        {
            "response_type": "code",
            "client_id": key,
            "redirect_uri": redirect.uri,
            "scope": SCOPE,
            "state": state,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
    )


async def _answer(
    redirect: Redirect, pasted: asyncio.Queue[str] | None, timeout: float, base: str
) -> Mapping[str, str]:
    """Wait for what the redirect says, whichever way it comes."""
    reading = None if pasted is None else asyncio.ensure_future(_read_pasted(redirect, pasted))
    try:
        return await asyncio.wait_for(redirect.answered, timeout)
    except asyncio.TimeoutError:
        raise AuthenticationError(
            f"Authentication failed: nobody authorized the app within {timeout:g} seconds. Try again, and"
            f" open the URL of {base} in a browser."
        ) from None
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


async def _read_pasted(redirect: Redirect, pasted: asyncio.Queue[str]) -> None:
    """Take the URL of the redirect from what is pasted."""
    while True:
        line = (await pasted.get()).strip()
        if line and not redirect.accept(dict(parse_qsl(urlsplit(line).query))):
            say(f"That is not where this log-in ended: it should begin with {redirect.uri}?")


async def _exchanged(exchange: CodeExchange, network: Network | None) -> Tokens:
    """Exchange the code for tokens.

    :raises AuthenticationError: if that is refused, or gives no refresh token
    """
    if network is None:
        await exchange.authenticate()
    else:
        async with network.session_factory() as session:
            with lend_session(session, network.ssl):
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
    error, description = (
        fit(answer.get(name, ""), limit=MAX_REASON) for name in ("error", "error_description")
    )
    advice, retryable = advise(error, description, 400)
    said = ": ".join(text for text in (error, description) if text) or "it was denied"
    raise AuthenticationError(
        f"Authentication failed: the log-in page gave no code: {said.rstrip('.')}. {advice}",
        error=error or None,
        error_description=description or None,
        retryable=retryable,
    )


class Redirect:
    """Where the browser is sent with the code, and the page that it shows there.

    :param state: what only who began this log-in knows
    :param uri: the URL of the redirect
    """

    def __init__(self, state: str, uri: str) -> None:
        self._state = state
        self.uri = uri
        loop = asyncio.get_running_loop()
        #: What the redirect's query says.
        self.answered: asyncio.Future[Mapping[str, str]] = loop.create_future()
        self._outcome: asyncio.Future[tuple[str, int]] = loop.create_future()

    def accept(self, query: Mapping[str, str]) -> bool:
        """Take what a redirect says, unless it is somebody else's.

        :param query: its query
        :return: whether it belongs to this log-in
        """
        # Anybody can send a browser here.
        given = query.get("state", "").encode(errors="replace")
        if not secrets.compare_digest(given, self._state.encode()):
            return False
        if not self.answered.done():
            self.answered.set_result(query)
        return True

    def tell(self, text: str, status: int) -> None:
        """Let the page say what came of it.

        :param text: the sentence on it
        :param status: its HTTP status
        """
        if not self._outcome.done():
            self._outcome.set_result((text, status))

    async def page(self, request: web.Request) -> web.Response:
        """Answer the browser, once it is known whether the code is worth anything."""
        if not self.accept(dict(request.query)):
            return _page("This is not the answer that was waited for.", 400)
        return _page(*await asyncio.shield(self._outcome))


def _page(text: str, status: int) -> web.Response:
    return web.Response(
        text=PAGE.format(text=text), content_type="text/html", status=status, headers=PAGE_HEADERS
    )


@asynccontextmanager
async def _listening(redirect: Redirect, port: int) -> AsyncIterator[None]:
    """Listen for the redirect."""
    application = web.Application()
    application.router.add_get(CALLBACK, redirect.page)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        for host in LOOPBACK:
            await _listen(runner, host, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        # Not every machine has IPv6. But a port that somebody else has there would get the code.
        if host != LOOPBACK[0] and error.errno not in (errno.EADDRINUSE, errno.EACCES):
            return
        raise AuthenticationError(
            f"Authentication failed: cannot listen for the answer on port {port}; choose another"
            " one, and add it to the app's callback URLs"
        ) from error


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


# The command


async def run_login(options: argparse.Namespace) -> int:
    """Let a person authorize the app, and keep the refresh token."""
    credentials = credentials_from()
    key = credentials.get("CONSUMER_KEY")
    if not key:
        raise UsageError("set SALESFORCE_CONSUMER_KEY to the consumer key of the app")
    file = None if options.output is None else SecretFile(options.output, "--output")
    # Before anybody is asked for anything: a token that cannot be kept is lost.
    if file is None:
        standard_output()
    else:
        file.check()
    person = Person(has_browser=not options.no_browser)

    def show(url: str) -> None:
        say(f"Open this URL to authorize the app:\n{url}")
        say("If your browser is on another machine, paste here the URL that it ends at.")
        person.open(url)

    try:
        tokens = await log_in(
            key,
            credentials.get("CONSUMER_SECRET"),
            login_url=credentials.login_url,
            port=options.port,
            show=show,
            pasted=person.pasted,
            network=network_from(options),
        )
    except ValueError as error:
        raise UsageError(in_words(str(error))) from error
    return await _keep(tokens.refresh_token, file)


async def _keep(token: str, file: SecretFile | None) -> int:
    """Write the token into the file, or print it where there is none or that fails."""
    try:
        if file is not None:
            file.write(token)
            say(f"The refresh token is in {file.path}")
            return 0
    except CommandError as error:
        say(f"aiosfstream: {error} Keep the token from here; it is shown only now:")
        with suppress(CommandError):
            await standard_output().write(escaped(token) + "\n")
            return 1
        say(escaped(token))
        return 1
    await standard_output().write(escaped(token) + "\n")
    return 0


def escaped(token: str) -> str:
    """Write what no token should have, such as what controls a terminal, as Python writes it.

    :param token: a token, which a server has made
    """
    return token.encode("unicode_escape").decode("ascii")
