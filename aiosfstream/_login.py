"""The OAuth 2.0 web server flow with PKCE, on a loopback redirect (RFC 7636, RFC 8252)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

from . import _http
from .auth import AUTHORIZE_PATH, TOKEN_PATH, advise, normalize_login_url
from .exceptions import AuthenticationError

PAGE = "<!doctype html><title>aiosfstream</title><p>{text} You can close this page.</p>"


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
    :param show: called with the URL that the person has to open
    :param timeout: seconds to wait for that person
    :return: the tokens
    :raises AuthenticationError: if it is denied, takes too long, or the answer is not understood
    :raises ValueError: if *login_url* cannot be logged in at
    """
    base = normalize_login_url(login_url)
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    challenge = hashlib.sha256(verifier.encode()).digest()
    redirect_uri = f"http://localhost:{port}/callback"
    query = {
        "response_type": "code",
        "client_id": consumer_key,
        "redirect_uri": redirect_uri,
        "scope": "api refresh_token",
        "state": state,
        "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    code = await _wait_for_code(
        f"{base}{AUTHORIZE_PATH}?{urlencode(query)}", state, port, show, timeout
    )
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": consumer_key,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    if consumer_secret:
        form["client_secret"] = consumer_secret
    return await _exchange(base + TOKEN_PATH, form)


async def _wait_for_code(
    url: str, state: str, port: int, show: Callable[[str], object], timeout: float
) -> str:
    answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def callback(request: web.Request) -> web.Response:
        # Somebody else's redirect is not ours to follow: the state proves whose it is.
        if request.query.get("state") != state:
            return _page("This is not the answer that was waited for.", 400)
        if "code" not in request.query:
            reason = request.query.get("error_description") or request.query.get("error", "denied")
            _resolve(answered, AuthenticationError(f"Authentication failed: {reason}"))
            return _page("The authorization was denied.", 400)
        _resolve(answered, request.query["code"])
        return _page("You are logged in.", 200)

    application = web.Application()
    application.router.add_get("/callback", callback)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        show(url)
        return await asyncio.wait_for(answered, timeout)
    except asyncio.TimeoutError:
        raise AuthenticationError(
            f"Authentication failed: nobody authorized the app within {timeout:.0f} seconds"
        ) from None
    finally:
        await runner.cleanup()


def _resolve(future: asyncio.Future[str], outcome: str | AuthenticationError) -> None:
    if future.done():
        return
    if isinstance(outcome, str):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def _page(text: str, status: int) -> web.Response:
    return web.Response(text=PAGE.format(text=text), content_type="text/html", status=status)


async def _exchange(token_url: str, form: dict[str, str]) -> Tokens:
    async with aiohttp.ClientSession() as session:
        answer = await _http.post(
            session,
            token_url,
            urlencode(form).encode(),
            {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=30.0),
        )
    if isinstance(answer, _http.Failure):
        raise AuthenticationError(f"Network request failed: {answer.error}") from answer.error
    try:
        reply = _http.parse_json(answer.body, json.loads)
    except ValueError:
        reply = {}
    if not isinstance(reply, dict):
        reply = {}
    if answer.status != 200:
        error, description = str(reply.get("error", "")), str(reply.get("error_description", ""))
        advice, _ = advise(error, description, answer.status)
        raise AuthenticationError(
            f"Authentication failed: {error or answer.status}: {description}. {advice}".rstrip(),
            error=error,
            error_description=description,
            status=answer.status,
        )
    token, instance_url = reply.get("refresh_token"), reply.get("instance_url")
    if not isinstance(token, str) or not isinstance(instance_url, str):
        raise AuthenticationError(
            "Authentication failed: there is no refresh token in the answer; give the app the scope"
            ' "Perform requests at any time (refresh_token, offline_access)"',
            status=200,
        )
    return Tokens(token, instance_url)
