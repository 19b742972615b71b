"""No access token in a frame, an argument, an attribute or a cause of any error of a CometD request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiosfstream import AiosfstreamException, Client, TransportTimeoutError
from aiosfstream.testing import (
    Alter,
    CutAfter,
    CutBefore,
    Garble,
    Hang,
    Redirect,
    Refuse,
    Status,
    StreamingServer,
    Truncate,
)
from tests.leaks import leaks_of
from tests.support import EVENT, FastClient, client_for, held, soon

#: What a server or a gateway may answer; ``TOKEN`` stands for the access token.
FAULTS: dict[str, Callable[[str], Any]] = {
    "unauthorized": lambda token: Status(401, f"you sent {token}"),
    "forbidden": lambda token: Status(403, f"you sent {token}"),
    "not there": lambda token: Status(404, f"you sent {token}"),
    "server error": lambda token: Status(500, f"you sent {token}"),
    "too many": lambda token: Status(429, f"you sent {token}"),
    "no Bayeux": lambda token: Status(200, f"you sent {token}"),
    "garbage": lambda token: Garble(f"you sent {token}".encode()),
    "redirect": lambda token: Redirect(f"https://example.com/{token}"),
    "cut before": lambda token: CutBefore(),
    "cut after": lambda token: CutAfter(),
    "truncated": lambda token: Truncate(),
    "hanging": lambda token: Hang(),
    "refused": lambda token: Refuse(f"403::you sent {token}", f"401::you sent {token}"),
}


def issued(server: StreamingServer) -> list[str]:
    """Note the tokens that are issued."""
    tokens: list[str] = []
    issue = server.oauth.issue

    def note() -> str:
        tokens.append(token := issue())
        return token

    server.oauth.issue = note  # type: ignore[method-assign]
    return tokens


async def error_of(doing: Awaitable[object]) -> AiosfstreamException | None:
    """Give the error that comes out, if one does."""
    try:
        await soon(doing)
    except AiosfstreamException as error:
        return error
    return None


def client_of(server: StreamingServer) -> FastClient:
    return client_for(server, request_timeout=0.3, connection_timeout=0.3)


def check(error: AiosfstreamException | None, tokens: list[str], server: StreamingServer) -> None:
    if error is not None:
        secrets = [*tokens, server.oauth.password, server.oauth.consumer_secret]
        assert leaks_of(error, secrets) == []


@pytest.mark.parametrize("on", ["/meta/handshake", "/meta/connect"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_opening_makes_nothing_public(fault: str, on: str) -> None:
    async with StreamingServer() as server:
        tokens = issued(server)
        # The next one, which the client will get.
        expected = "00D000000000001!AQ.test_1_token"
        server.add_fault(FAULTS[fault](expected), on=on, times=None)
        error = await error_of(client_of(server).open())
        assert tokens[:1] == [expected]
        assert error is not None
        check(error, tokens, server)


@pytest.mark.parametrize("offered", [["websocket", "{}"], "{}", {"a": ["{}\x1b[2J\n"]}])
async def test_a_server_without_long_polling_makes_nothing_public(offered: Any) -> None:
    async with StreamingServer() as server:
        tokens = issued(server)
        text = json.dumps(offered).replace("{}", "00D000000000001!AQ.test_1_token")

        def offer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**one, "supportedConnectionTypes": json.loads(text)} for one in messages]

        server.add_fault(Alter(offer), on="/meta/handshake")
        error = await error_of(client_of(server).open())
        assert tokens
        assert str(error).isprintable()
        check(error, tokens, server)


@pytest.mark.parametrize("on", ["/meta/subscribe", "/meta/connect", "/u/x"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_stream_makes_nothing_public(
    fault: str, on: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with StreamingServer() as server:
        tokens = issued(server)
        client = client_of(server)
        async with client:
            await held(server)
            server.add_fault(FAULTS[fault](tokens[0]), on=on, times=None)
            error: AiosfstreamException | None = None
            if on == "/meta/subscribe":
                error = await error_of(client.subscribe(EVENT))
            elif on == "/u/x":
                error = await error_of(client.publish("/u/x", {"a": 1}))
            else:
                server.cut_connections()
                error = await error_of(client.receive())
            check(error, tokens, server)
            server.clear_faults()
        for record in caplog.records:
            assert not any(token in str(record.__dict__) for token in tokens)


async def test_the_outer_time_out_of_a_request_shows_nothing() -> None:
    async with StreamingServer() as server:
        tokens = issued(server)
        server.add_fault(Hang(), on="/meta/handshake")
        client = Client(client_of(server).authenticator)
        with pytest.raises(asyncio.TimeoutError) as caught:
            await asyncio.wait_for(client.open(), 0.5)
        assert tokens
        assert leaks_of(caught.value, [*tokens, server.oauth.password]) == []


async def test_a_loss_that_lasts_shows_nothing() -> None:
    async with StreamingServer() as server:
        tokens = issued(server)
        client = client_of(server)
        async with client:
            await held(server)
            await client.subscribe(EVENT)
            server.add_fault(CutBefore(), on="/meta/connect", times=None)
            server.publish(EVENT)
            await soon(client.receive())
            with pytest.raises(TransportTimeoutError) as caught:
                await soon(client.receive())
            assert caught.value.__cause__ is not None
            assert leaks_of(caught.value, tokens) == []
            server.clear_faults()
