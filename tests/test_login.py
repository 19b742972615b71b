"""``aiosfstream login``: the web server flow with PKCE."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from aiosfstream import AuthenticationError, RefreshTokenAuthenticator
from aiosfstream._cli.login import Tokens, challenge_of, code_of, log_in
from aiosfstream.testing import CutAfter, Garble, OAuthError, Status, StreamingServer
from tests.commands import PATIENCE, environment, start
from tests.support import EVENT, FastAuthClient, receive, soon, until


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Logging in with a browser


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Person:
    """Somebody with a browser, who opens what they are shown.

    :param visit: what they do with the URL
    """

    def __init__(self, visit: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._visit = visit
        self.urls: list[str] = []
        self.pages: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, url: str) -> None:
        self.urls.append(url)
        self._tasks.add(asyncio.create_task(self._visit(url)))

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)


async def browse(url: str) -> tuple[int, str]:
    """Open *url* and go wherever it leads."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def login_arguments(server: StreamingServer, port: int) -> dict[str, Any]:
    return {"login_url": server.login_url, "port": port, "timeout": 10.0}


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def test_a_login_gives_a_refresh_token_that_works(server: StreamingServer) -> None:
    pages: list[tuple[int, str]] = []

    async def visit(url: str) -> None:
        pages.append(await browse(url))

    person, port = Person(visit), free_port()
    oauth = server.oauth
    tokens = await log_in(
        oauth.consumer_key, oauth.consumer_secret, show=person, **login_arguments(server, port)
    )
    await person.done()
    assert tokens == Tokens(oauth.refresh_token, server.instance_url)
    assert oauth.refresh_token not in repr(tokens)
    assert [(status, "You are logged in" in page) for status, page in pages] == [(200, True)]
    query = asked(person.urls[0])
    assert query["redirect_uri"] == f"http://localhost:{port}/callback"
    assert query["code_challenge_method"] == "S256"
    assert query["scope"] == "api refresh_token"
    form = next(request.form for request in server.requests if request.kind == "token")
    assert challenge_of(form["code_verifier"]) == query["code_challenge"]
    assert 43 <= len(form["code_verifier"]) <= 128
    assert form["code_verifier"] not in person.urls[0]
    assert oauth.consumer_secret not in person.urls[0]
    authenticator = RefreshTokenAuthenticator(
        oauth.consumer_key, oauth.consumer_secret, tokens.refresh_token, login_url=server.login_url
    )
    async with FastAuthClient(authenticator) as client:
        await client.subscribe(EVENT)
        wanted = server.publish(EVENT)
        assert await receive(client) == [wanted]


async def test_a_login_of_an_app_without_a_secret_sends_none(server: StreamingServer) -> None:
    async def visit(url: str) -> None:
        await browse(url)

    person = Person(visit)
    await log_in(server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port()))
    await person.done()
    form = next(request.form for request in server.requests if request.kind == "token")
    assert "client_secret" not in form


async def test_a_redirect_of_somebody_else_is_ignored(server: StreamingServer) -> None:
    pages: list[int] = []

    async def visit(url: str) -> None:
        callback = asked(url)["redirect_uri"]
        forged = ("code=stolen", "code=stolen&state=x", "error=access_denied&state=%FF", "")
        visits = [f"{callback}?{query}" for query in forged]
        for address in (*visits, callback.replace("callback", "other"), url):
            status, _ = await browse(address)
            pages.append(status)

    person = Person(visit)
    tokens = await log_in(
        server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port())
    )
    await person.done()
    assert tokens.refresh_token == server.refresh_token
    assert pages == [400, 400, 400, 400, 404, 200]
    assert server.count("token") == 1


async def test_a_login_that_is_denied_says_so(server: StreamingServer) -> None:
    pages: list[Any] = []

    async def visit(url: str) -> None:
        query = asked(url)
        denied = f"error=access_denied&error_description=end-user+denied&state={query['state']}"
        twice = [browse(f"{query['redirect_uri']}?{denied}") for _ in range(2)]
        pages.extend(await asyncio.gather(*twice, return_exceptions=True))

    person = Person(visit)
    with pytest.raises(AuthenticationError, match="access_denied: end-user denied") as caught:
        await log_in(
            server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port())
        )
    await person.done()
    assert caught.value.error == "access_denied"
    assert any(page[0] == 400 for page in pages if isinstance(page, tuple))
    assert server.count("token") == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, "it was denied"),
        ({"code": ""}, "it was denied"),
        ({"error": "access_denied"}, "did not allow it"),
        ({"error": "redirect_uri_mismatch"}, "callback URLs"),
        ({"error": "x\x1b[2J\r\ny" + "z" * 9999}, "x [2J yzzz"),
    ],
)
def test_a_redirect_without_a_code_is_an_error_fit_for_a_terminal(
    answer: dict[str, str], said: str
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        code_of(answer)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


async def test_a_login_that_nobody_answers_ends(server: StreamingServer) -> None:
    port = free_port()
    with pytest.raises(AuthenticationError, match=r"nobody authorized the app within 0\.05"):
        await log_in("key", "", login_url=server.login_url, port=port, show=str, timeout=0.05)
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it is refused
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_login_on_a_port_that_is_taken_says_so(server: StreamingServer) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    shown: list[str] = []
    with pytest.raises(AuthenticationError, match=f"port {port}") as caught:
        await log_in("key", "", login_url=server.login_url, port=port, show=shown.append)
    assert isinstance(caught.value.__cause__, OSError)
    assert shown == []


async def test_a_login_with_a_host_that_cannot_be_right_is_refused_first() -> None:
    shown: list[str] = []
    with pytest.raises(ValueError, match=r"use a\.my\.salesforce\.com"):
        await log_in(
            "key", "", login_url="a.lightning.force.com", port=free_port(), show=shown.append
        )
    assert shown == []


async def test_a_login_that_is_cancelled_leaves_nothing(server: StreamingServer) -> None:
    port = free_port()
    shown: list[str] = []
    login = asyncio.create_task(
        log_in("key", "", login_url=server.login_url, port=port, show=shown.append)
    )
    await until(lambda: shown)
    before = asyncio.all_tasks()
    login.cancel()
    await asyncio.wait({login})
    assert login.cancelled()
    assert asyncio.all_tasks() <= before
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it is refused
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OAuthError("invalid_grant", "invalid code verifier"), "invalid code verifier"),
        (OAuthError("invalid_client", "invalid client credentials"), "consumer secret"),
        (
            Garble(json.dumps({"access_token": "x", "instance_url": "https://a.com"}).encode()),
            "scope",
        ),
        (
            Garble(
                json.dumps(
                    {"access_token": "x", "instance_url": "https://a.com", "refresh_token": 7}
                ).encode()
            ),
            "scope",
        ),
        (Garble(b'{"refresh_token": "x"}'), "no access_token"),
        (Status(503), "Network request failed"),
        (CutAfter(), "Network request failed"),
    ],
)
async def test_a_code_that_is_not_exchanged_is_an_error_without_it(
    server: StreamingServer, fault: Any, message: str
) -> None:
    async def visit(url: str) -> None:
        await browse(url)

    server.add_fault(fault, on="token")
    person = Person(visit)
    with pytest.raises(AuthenticationError, match=message) as caught:
        await log_in(
            server.oauth.consumer_key,
            server.oauth.consumer_secret,
            show=person,
            **login_arguments(server, free_port()),
        )
    await person.done()
    form = next(request.form for request in server.requests if request.kind == "token")
    for secret in (form["code"], form["code_verifier"], server.oauth.consumer_secret):
        assert secret not in f"{caught.value} {caught.value!r}"


def test_a_challenge_is_the_one_of_the_specification() -> None:
    # RFC 7636, appendix B
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert challenge_of(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


# As a process


async def test_logging_in_with_the_browser(server: StreamingServer, tmp_path: Path) -> None:
    output = tmp_path / "token"
    env = environment(server)
    process = await start(
        "login", "--no-browser", "--port", "17171", "--output", str(output), env=env
    )
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    async with aiohttp.ClientSession() as browser:
        # Somebody else's answer is not followed.
        async with browser.get("http://localhost:17171/callback?state=wrong&code=x") as answer:
            assert answer.status == 400
        async with browser.get(url) as answer:
            assert answer.status == 200
            assert "logged in" in await answer.text()
    assert await soon(process.wait(), PATIENCE) == 0
    assert output.read_text().strip() == server.refresh_token
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


async def test_a_log_in_that_is_denied(server: StreamingServer) -> None:
    process = await start("login", "--no-browser", "--port", "17172", env=environment(server))
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    state = url.partition("state=")[2].partition("&")[0]
    denial = (
        f"http://localhost:17172/callback?state={state}&error=access_denied&error_description=no"
    )
    async with aiohttp.ClientSession() as browser, browser.get(denial) as answer:
        assert answer.status == 400
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert output == b""
    assert b"access_denied: no" in errors
