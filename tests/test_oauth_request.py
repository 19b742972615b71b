"""The token request: with whose session it is made, and which answers are none."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from aiosfstream import AuthenticationError, Client, PasswordAuthenticator
from aiosfstream.auth import lend_session
from tests.oauth import (
    INSTANCE,
    KEY,
    PASSWORD,
    REPLY,
    SECRET,
    TOKEN,
    USER,
    answer,
    endpoint,
    failure,
    password,
    refreshing,
)

MARK = {"X-Mine": "lent"}


def is_lent(head: str) -> bool:
    return "X-Mine: lent" in head


async def test_a_session_is_lent_to_one_authenticator() -> None:
    async with endpoint() as served, aiohttp.ClientSession(headers=MARK) as session:
        first, second = password(served.url), password(served.url)
        with lend_session(session, None, to=first):
            await second.authenticate()
            await first.authenticate()
            await asyncio.create_task(first.authenticate())
        await first.authenticate()
        with lend_session(session, None):
            await second.authenticate()
            await first.authenticate()
    assert [is_lent(head) for head in served.heads] == [False, True, True, False, True, False]


async def test_a_task_of_a_callback_does_not_find_the_session() -> None:
    tasks: list[asyncio.Task[None]] = []
    async with endpoint() as other, endpoint(answer({**REPLY, "refresh_token": "new"})) as served:
        strangers = [password(other.url) for _ in range(2)]

        async def later(number: int) -> None:
            if number:
                await done.wait()
            await strangers[number].authenticate()

        async def again() -> None:
            await done.wait()
            await authenticator.authenticate()

        def store(token: str) -> None:
            tasks.extend(asyncio.create_task(later(number)) for number in range(2))

        done = asyncio.Event()
        authenticator = refreshing(served.url, on_token_refreshed=store)
        async with aiohttp.ClientSession(headers=MARK) as session:
            with lend_session(session, None, to=authenticator):
                await authenticator.authenticate()
                await tasks[0]
                afterwards = asyncio.create_task(again())
            # Nor does the one that it was lent to, once it was given back.
            done.set()
            await asyncio.gather(tasks[1], afterwards)
            assert [is_lent(head) for head in served.heads] == [True, False]
            assert [is_lent(head) for head in other.heads] == [False, False]


@asynccontextmanager
async def proxy(host: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve as a proxy that takes everything and answers nothing of use."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Proxy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(handle, "0.0.0.0" if host != "127.0.0.1" else host, 0)
    async with listener:
        yield f"http://{host}:{listener.sockets[0].getsockname()[1]}", seen


@pytest.fixture
def name_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> str:
    """Resolve a name that looks like another machine's."""
    resolve = aiohttp.resolver.ThreadedResolver.resolve

    async def here(self: Any, host: str, *args: Any, **options: Any) -> Any:
        return await resolve(
            self, "127.0.0.1" if host.endswith(".invalid") else host, *args, **options
        )

    for name in ("ThreadedResolver", "AsyncResolver"):
        monkeypatch.setattr(getattr(aiohttp.resolver, name), "resolve", here)
    return "proxy.invalid"


@pytest.mark.parametrize("way", ["session", "environment"])
async def test_credentials_in_clear_go_to_no_proxy(
    name_of_this_machine: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint() as served, proxy(name_of_this_machine) as (url, seen):
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        options: Any = {"proxy": url} if way == "session" else {"trust_env": True}
        async with aiohttp.ClientSession(**options) as session:
            authenticator = password(served.url)
            with lend_session(session, None, to=authenticator):
                await authenticator.authenticate()
        assert seen == []
        assert len(served.forms) == 1


async def test_a_proxy_on_this_machine_may_be_used() -> None:
    async with endpoint() as served, proxy("127.0.0.1") as (url, seen):
        factory = functools.partial(aiohttp.ClientSession, proxy=url)
        with pytest.raises(AuthenticationError):
            await Client(password(served.url), session_factory=factory).open()
        assert len(seen) == 1
        assert served.forms == []


async def test_with_tls_the_proxy_of_the_session_is_used(name_of_this_machine: str) -> None:
    async with proxy(name_of_this_machine) as (url, seen):
        factory = functools.partial(aiohttp.ClientSession, proxy=url)
        with pytest.raises(AuthenticationError):
            await Client(password("https://example.invalid"), session_factory=factory).open()
    assert [head.split()[0] for head in seen] == [b"CONNECT"]


@pytest.mark.parametrize(
    "location",
    [
        "http://[x]@",
        "http://[",
        "",
        "//",
        "https://evil.example/x",
        "\x7f",
        "x" * 5000,
        "https://" + "x" * 5000,
    ],
)
async def test_a_redirect_to_anywhere_is_told(location: str) -> None:
    async with endpoint(answer(b"", 302, {"Location": location})) as served:
        error = await failure(password(served.url))
    assert "sends elsewhere, with HTTP status 302" in str(error)
    assert not error.retryable
    assert len(str(error)) < 400


async def test_an_answer_of_any_size_is_none() -> None:
    async with endpoint(answer(b'"' + b"x" * 2_000_000)) as served:
        error = await failure(password(served.url))
    assert "1048576 bytes" in str(error)


async def test_an_instance_in_clear_is_for_a_log_in_on_this_machine() -> None:
    local = {**REPLY, "instance_url": "http://127.0.0.1:8080"}
    async with endpoint(answer(local)) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        assert authenticator.instance_url == "http://127.0.0.1:8080"


async def test_an_instance_in_clear_of_another_machine_is_refused(
    name_of_this_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = {**REPLY, "instance_url": "http://127.0.0.1:8080"}
    async with endpoint(answer(local)) as served:

        class Own(PasswordAuthenticator):
            _token_url = "https://example.invalid/services/oauth2/token"

        # As if the answer came with TLS.
        monkeypatch.setattr("aiosfstream._oauth.request.urlencode", lambda form: "x=y")
        port = served.url.rpartition(":")[2]
        Own._token_url = f"http://example.invalid:{port}/services/oauth2/token"
        monkeypatch.setattr("aiosfstream._oauth.request.is_secure", lambda url: True)
        error = await failure(Own(KEY, SECRET, USER, PASSWORD))
    assert "its instance_url is on http" in str(error)
    assert not error.retryable


async def test_the_request_timeout_is_a_number_of_seconds_or_the_default() -> None:
    for nonsense in (None, "10", True, 0, -1, float("nan"), float("inf"), object()):
        async with endpoint() as served:
            authenticator = password(served.url)
            authenticator.request_timeout = nonsense  # type: ignore[assignment]
            await authenticator.authenticate()
            assert authenticator.access_token == TOKEN
    assert INSTANCE
