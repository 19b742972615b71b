"""Refusals that pass and refusals that stay, on every path, and instances and sessions that are left."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from aiosfstream import (
    AuthenticationError,
    ConnectionEventKind,
    ReplayOption,
    ServerError,
    TransportError,
    TransportTimeoutError,
)
from aiosfstream.testing import (
    Advise,
    CutAfter,
    CutBefore,
    Farewell,
    Gate,
    Hang,
    Hold,
    OAuthError,
    Redirect,
    Refuse,
    Status,
    StreamingServer,
)
from tests.support import EVENT, GENERIC, client_for, held, receive, replay_id, soon, until
from tests.world import Observer, answered, is_about, nothing_more, publish, sent

ALL, NEW = ReplayOption.ALL_EVENTS, ReplayOption.NEW_EVENTS
Kind = ConnectionEventKind

PASSING = [
    "403::Organization total events daily limit exceeded",
    "403::Subscription limit exceeded for this topic",
    "403::Organization concurrent user limit exceeded",
    "500::An internal error occurred",
    "503::Server is too busy. Please try your request again later.",
]
FINAL = [
    "400::The channel you requested to subscribe to doesn't exist {/event/Low_Ink__e}",
    "403:denied_by_security_policy:create_denied",
    "404::Unknown channel",
]


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# A channel that is refused when it is subscribed again


@pytest.mark.parametrize("error", PASSING)
async def test_a_passing_refusal_costs_no_channel(server: StreamingServer, error: str) -> None:
    observer = Observer()
    async with client_for(server, observer=observer) as client:
        await client.subscribe(EVENT)
        await client.subscribe(GENERIC)
        ids = publish(server, EVENT, 2)
        assert await receive(client, 2) == ids
        await held(server)
        server.deny(EVENT, error)
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        await until(lambda: sum(map(is_about(EVENT), sent(server, "/meta/subscribe"))) >= 4)
        # The other channel goes on meanwhile.
        [other] = publish(server, GENERIC, 1)
        assert await receive(client) == [other]
        assert client.subscriptions == {EVENT, GENERIC}
        server.allow(EVENT)
        assert await receive(client, 2) == missed
        await until(lambda: observer.count(Kind.CONNECTED) == 2)
        assert observer.count(Kind.CHANNEL_LOST) == 0
    assert server.count("token") == 1


async def test_a_passing_refusal_that_lasts_is_an_outage(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.3) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.deny(EVENT, PASSING[0])
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        with pytest.raises(TransportTimeoutError, match="daily limit exceeded") as caught:
            await soon(client.receive())
        assert EVENT in str(caught.value)
        server.allow(EVENT)
        assert await receive(client, 2) == missed


@pytest.mark.parametrize("fault", [Status(503), Status(500), Status(429), CutAfter(), CutBefore()])
async def test_a_resubscription_without_an_answer_costs_no_channel(
    server: StreamingServer, fault: Any
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(fault, on="/meta/subscribe", times=2)
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
        assert client.subscriptions == {EVENT}


@pytest.mark.parametrize("error", FINAL)
@pytest.mark.parametrize("replay", [None, NEW, ALL])
async def test_a_channel_that_is_lost_can_be_resumed(
    server: StreamingServer, error: str, replay: ReplayOption | None
) -> None:
    observer = Observer()
    async with client_for(server, observer=observer) as client:
        await client.subscribe(EVENT)
        await client.subscribe(GENERIC)
        ids = publish(server, EVENT, 2)
        assert await receive(client, 2) == ids
        await held(server)
        server.deny(EVENT, error)
        server.expire_sessions()
        with pytest.raises(ServerError, match=EVENT) as caught:
            await soon(client.receive())
        assert caught.value.replay_id == ids[-1]
        [lost] = [event for event in observer.events if event.kind is Kind.CHANNEL_LOST]
        assert (lost.channel, lost.replay_id) == (EVENT, ids[-1])
        assert client.subscriptions == {GENERIC}
        missed = publish(server, EVENT, 2)
        server.allow(EVENT)
        await client.subscribe(EVENT, replay=replay)
        await held(server)
        more = publish(server, EVENT, 1)
        expected = {None: missed + more, NEW: more, ALL: ids + missed + more}[replay]
        assert await receive(client, len(expected)) == expected
        assert await nothing_more(client)


async def test_a_lost_channel_that_is_refused_again_can_still_be_resumed(
    server: StreamingServer,
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
        await held(server)
        server.deny(EVENT, FINAL[0])
        server.expire_sessions()
        with pytest.raises(ServerError):
            await soon(client.receive())
        missed = publish(server, EVENT, 2)
        with pytest.raises(ServerError):
            await client.subscribe(EVENT)
        server.allow(EVENT)
        await client.subscribe(EVENT)
        assert await receive(client, 2) == missed


# The token endpoint


@pytest.mark.parametrize(
    "fault",
    [
        OAuthError("invalid_grant", "token request is already being processed"),
        OAuthError("invalid_grant", "retry your request"),
        Status(429),
        Status(503, headers={"Retry-After": "0"}),
        Status(500),
        Status(200, "<html>Maintenance</html>"),
        CutAfter(),
    ],
)
async def test_a_passing_refusal_of_the_token_endpoint(server: StreamingServer, fault: Any) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(fault, on="token", times=3)
        server.revoke_tokens()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
    assert server.count("token") == 5
    server.add_fault(fault, on="token")
    with pytest.raises(AuthenticationError) as caught:
        await client_for(server).open()
    assert caught.value.retryable


async def test_the_token_endpoint_says_when_to_come_back(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Status(503, headers={"Retry-After": "1"}), on="token")
        server.revoke_tokens()
        await answered(server, "token", 3)
        await held(server)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
    *_, refused, granted = sent(server, "token")
    assert 1.0 <= granted.time - refused.time < 5.0


# A token that is refused


@pytest.mark.parametrize("on", ["/meta/connect", "/meta/handshake", "/meta/subscribe"])
async def test_three_401_pages_in_a_row(server: StreamingServer, on: str) -> None:
    received: list[Any] = []

    async def consume() -> None:
        async for message in client:
            received.append(replay_id(message))  # noqa: PERF401 - looked at meanwhile

    async with client_for(server) as client:
        await client.subscribe(EVENT)
        consumer = asyncio.create_task(consume())
        [first] = publish(server, EVENT, 1)
        await until(lambda: received == [first])
        await held(server)
        handshakes = server.count("/meta/handshake")
        server.add_fault(Status(401), on=on, times=3)
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        await until(lambda: received[1:] == missed)
        attempts = server.count("/meta/handshake") - handshakes
        assert server.count("token") - 1 <= attempts
    await soon(consumer)


async def test_a_token_that_is_refused_for_longer_than_the_connection_timeout(
    server: StreamingServer,
) -> None:
    async with client_for(server, connection_timeout=0.4) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        reasons = iter(["the first of all", *["another"] * 1000])

        server.add_fault(
            Refuse("403::Handshake denied", failure_reason=f"401::{next(reasons)}"),
            on="/meta/handshake",
        )
        server.add_fault(
            Refuse("403::Handshake denied", failure_reason=f"401::{next(reasons)}"),
            on="/meta/handshake",
            times=None,
        )
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        lost = asyncio.get_running_loop().time()
        with pytest.raises(AuthenticationError, match="the first of all") as caught:
            await soon(client.receive())
        assert asyncio.get_running_loop().time() - lost >= 0.25
        assert "the first of all" in str(caught.value.__cause__)
        assert server.count("token") >= 3
        server.clear_faults()
        assert not client.closed
        assert await receive(client, 2) == missed


# An instance that has moved


@pytest.mark.parametrize("status", [404, 410, 421, 301, 302, 307, 308, None])
async def test_the_org_moves_in_mid_stream(server: StreamingServer, status: int | None) -> None:
    options: dict[str, Any] = {"request_timeout": 0.2} if status is None else {}
    async with client_for(server, connection_timeout=0.5, **options) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        await server.move_instance(status=status)
        missed = publish(server, EVENT, 2)
        ids: list[Any] = []
        while len(ids) < 2:
            try:
                ids += await receive(client)
            except TransportTimeoutError:
                assert status is None
        assert ids == missed
        assert client.url.startswith(server.instance_url)
    assert server.count("token") == 2


@pytest.mark.parametrize("fault", [Status(404), Status(410), Status(421), Redirect("/elsewhere")])
@pytest.mark.parametrize("on", ["/meta/connect", "/meta/handshake", "/meta/subscribe"])
async def test_an_instance_that_sends_away_once(
    server: StreamingServer, fault: Any, on: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(fault, on=on)
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
    assert server.count("token") == 2


async def test_the_org_moves_while_the_login_host_is_down(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(Status(503), on="token", times=3)
        await server.move_instance()
        missed = publish(server, EVENT, 2)
        # The old place says again and again that the org is gone, and nobody yet where it is.
        assert await receive(client, 2) == missed
    assert server.count("token") == 5


@pytest.mark.parametrize("fault", [Status(404), Status(421), Redirect("https://x.example.com/y")])
async def test_a_log_in_that_names_the_same_instance(server: StreamingServer, fault: Any) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(fault, when=lambda request: request.kind == "cometd", on=None, times=None)
        server.expire_sessions()
        told = "x.example.com" if isinstance(fault, Redirect) else str(fault.status)
        with pytest.raises(TransportError, match=re.escape(told)):
            await soon(client.receive())
        assert client.closed
    assert server.count("token") == 2


async def test_a_dead_instance_is_looked_for_elsewhere(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.3, request_timeout=0.1) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(Hang(), when=lambda request: request.kind == "cometd", on=None, times=None)
        server.cut_connections()
        with pytest.raises(TransportTimeoutError):
            await soon(client.receive())
        await answered(server, "token", 2)
        server.clear_faults()
        missed = publish(server, EVENT, 1)
        assert await receive(client) == missed


async def test_another_server_takes_over(server: StreamingServer) -> None:
    async with StreamingServer() as other, client_for(server, replay_fallback=ALL) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        there = publish(other, EVENT, 3, date=None)
        await server.move_instance(other)
        # It has the events of the old one, and knows its ids.
        assert await receive(client, 2) == there[1:]
        assert client.url.startswith(other.url)


# The reason


@pytest.mark.parametrize("code", ["API_DISABLED_FOR_ORG", "API_CURRENTLY_DISABLED"])
async def test_the_reason_for_a_new_log_in_is_kept(server: StreamingServer, code: str) -> None:
    page = json.dumps([{"errorCode": code, "message": "The API is not enabled"}])
    refusal = Status(403, page, content_type="application/json")
    async with client_for(server, connection_timeout=0.2) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(refusal, when=lambda request: request.kind == "cometd", times=None)
        server.expire_sessions()
        with pytest.raises(AuthenticationError, match=code) as caught:
            await soon(client.receive())
        assert code in str(caught.value.__cause__)


async def test_the_reason_is_in_the_error_of_a_refused_log_in(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        refusal = Refuse("403::Handshake denied", failure_reason="401::The session is too old")
        server.add_fault(refusal, on="/meta/handshake", times=None)
        server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token")
        server.expire_sessions()
        with pytest.raises(AuthenticationError, match="The session is too old") as caught:
            await soon(client.receive())
        assert "authentication failure" in str(caught.value)
        assert "The session is too old" in str(caught.value.__cause__)


@pytest.mark.parametrize("on", ["/meta/connect", "/meta/handshake", "/meta/subscribe"])
async def test_a_limit_of_requests_costs_no_log_in(server: StreamingServer, on: str) -> None:
    page = '[{"errorCode":"REQUEST_LIMIT_EXCEEDED","message":"TotalRequests Limit exceeded."}]'
    async with client_for(server, connection_timeout=0.2) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(Status(403, page), on=on, times=None)
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        with pytest.raises(TransportTimeoutError, match="REQUEST_LIMIT_EXCEEDED"):
            await soon(client.receive())
        server.clear_faults()
        assert await receive(client, 2) == missed
    assert server.count("token") == 1


# A farewell in pieces


@pytest.mark.parametrize("reconnect", ["none", "handshake"])
@pytest.mark.parametrize("on", ["/meta/connect", "/meta/subscribe"])
@pytest.mark.parametrize("successful", [True, False])
@pytest.mark.parametrize("connect_first", [True, False])
async def test_a_farewell_in_whatever_pieces(
    server: StreamingServer, reconnect: str, on: str, successful: bool, connect_first: bool
) -> None:
    observer = Observer()
    async with client_for(server, observer=observer) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        gate = Gate()
        server.add_fault(Hold(gate), on="/meta/subscribe")
        subscribing = asyncio.create_task(client.subscribe(GENERIC))
        await answered(server, "/meta/subscribe", 2)
        server.disconnect_clients(
            reconnect, on=on, successful=successful, connect_first=connect_first
        )
        gate.open()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
        await soon(subscribing)
        await server.wait_for(lambda server: server.subscriptions == {EVENT, GENERIC})
        [other] = publish(server, GENERIC, 1)
        assert await receive(client) == [other]
        assert client.subscriptions == {EVENT, GENERIC}
        assert observer.count(Kind.CHANNEL_LOST) == observer.count(Kind.CLOSED) == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("error", ["403::subscribe_failed", "404::unknown", "402::Unknown client"])
async def test_a_farewell_with_a_refusal_during_a_resubscription(
    server: StreamingServer, first: bool, error: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
        await held(server)
        server.add_fault(Refuse(error), Farewell(first=first), on="/meta/subscribe")
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
        assert client.subscriptions == {EVENT}


@pytest.mark.parametrize("advice", ["none", "handshake"])
async def test_the_advice_of_a_successful_connect_is_never_the_end(
    server: StreamingServer, advice: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Advise({"reconnect": advice, "interval": 0}), on="/meta/connect", times=3)
        ids: list[Any] = []
        for _ in range(4):
            new = publish(server, EVENT, 1)
            ids += new
            assert await receive(client) == new
            await held(server)
        assert not client.closed


# A session that is left


@pytest.mark.parametrize(
    "fault",
    [
        Status(401),
        Status(403),
        Refuse("401::Authentication invalid", advice={"reconnect": "none"}),
        CutAfter(),
        Status(502),
    ],
)
@pytest.mark.parametrize("goodbyes", [0, 2])
async def test_a_session_that_is_given_up_is_told(
    server: StreamingServer, fault: Any, goodbyes: int
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(fault, on="/meta/subscribe")
        if goodbyes:
            server.add_fault(CutBefore(), on="/meta/disconnect", times=goodbyes)
        # A first subscription does not try again where the network fails.
        with suppress(TransportError):
            await soon(client.subscribe(GENERIC))
        await server.wait_for(lambda server: len(server.sessions) == 1)
        await held(server)
        # Nothing slows it down: the next answers come without a pause.
        for _ in range(4):
            ids = publish(server, EVENT, 1)
            assert await asyncio.wait_for(receive(client), 1.5) == ids


async def test_a_connect_that_is_cut_leaves_no_session(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT, replay=ALL)
        await held(server)
        server.add_fault(CutBefore(), on="/meta/disconnect", times=2)
        server.cut_connections()
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
        # Though nothing else happens, and the connect stays held.
        await server.wait_for(lambda server: len(server.sessions) == 1)
        for _ in range(3):
            await held(server)
            ids = publish(server, EVENT, 1)
            assert await asyncio.wait_for(receive(client), 1.0) == ids
