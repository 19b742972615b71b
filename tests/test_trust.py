"""Whom a client trusts with its token, and what it takes from a server that refuses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosfstream import AuthenticationError, ReplayOption
from aiosfstream.testing import Alter, RevokeTokens, StreamingServer
from tests.support import EVENT, client_for, held, receive, soon

#: Messages that a client may have pending, and events that each refusal brings.
LIMIT, AT_ONCE = 10, 50


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server that does not slow anybody down."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


def move(reply: dict[str, Any]) -> dict[str, Any]:
    """Give the answer of a token endpoint whose org has another host than before."""
    return {**reply, "instance_url": reply["instance_url"].replace("127.0.0.1", "localhost")}


@pytest.mark.parametrize("hosts", [[], ["example.com"], ["localhost", ".example.com"], {"127.0.0"}])
async def test_a_token_goes_to_no_host_that_is_not_allowed(
    server: StreamingServer, hosts: Any
) -> None:
    with pytest.raises(AuthenticationError, match=r"'127\.0\.0\.1' is not among the allowed_hosts"):
        await client_for(server, allowed_hosts=hosts).open()
    assert server.count("/meta/handshake") == 0


@pytest.mark.parametrize("hosts", [None, ["127.0.0.1"], ("example.com", "127.0.0.1")])
async def test_a_token_goes_to_a_host_that_is_allowed(server: StreamingServer, hosts: Any) -> None:
    async with client_for(server, allowed_hosts=hosts):
        assert server.count("/meta/handshake") == 1


async def test_an_org_that_moves_is_followed_with_a_warning(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Alter(move), on="token")
        server.add_fault(RevokeTokens(), on="/meta/connect")
        for _ in range(2):
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
    [record] = [one for one in caplog.records if "has moved" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert "from 127.0.0.1:" in record.getMessage()
    assert "to localhost:" in record.getMessage()


async def test_an_org_that_moves_to_a_host_that_is_not_allowed_is_not_followed(
    server: StreamingServer,
) -> None:
    options = {"replay": ReplayOption.ALL_EVENTS, "allowed_hosts": ["127.0.0.1"]}
    async with client_for(server, **options) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Alter(move), on="token", times=None)
        handshakes = server.count("/meta/handshake")
        server.revoke_tokens()
        server.cut_connections()
        with pytest.raises(AuthenticationError, match="'localhost' is not among"):
            while True:
                await soon(client.receive())
        assert server.count("/meta/handshake") <= handshakes + 1
        assert "127.0.0.1" in client.url


@pytest.mark.parametrize("error", ["503::busy", "401::no", "403::Unknown client", None])
@pytest.mark.parametrize("on", ["/meta/handshake", "/meta/connect", "/meta/subscribe"])
async def test_refusals_that_bring_events_fill_no_memory(
    server: StreamingServer, on: str, error: str | None
) -> None:
    sent = 0

    def refuse(messages: list[Any]) -> list[Any]:
        nonlocal sent
        replies = [{**one, "successful": False, "error": error} for one in messages if error]
        first, sent = sent + 1, sent + AT_ONCE
        return replies + [
            {"channel": EVENT, "data": {"event": {"replayId": number}, "payload": {}}}
            for number in range(first, sent + 1)
        ]

    async with client_for(
        server, replay=ReplayOption.ALL_EVENTS, max_pending_count=LIMIT
    ) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Alter(refuse), on=on, times=None)
        server.expire_sessions()
        for _ in range(100):
            await asyncio.sleep(0.005)
            assert client.pending_count <= LIMIT + AT_ONCE
        assert sent
