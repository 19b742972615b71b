"""Answers that are odd, late or of no use, and how fast the client asks again."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import orjson
import pytest

from aiosfstream import (
    Client,
    ClientError,
    ConnectionEventKind,
    ReplayOption,
    SalesforceStreamingClient,
    ServerError,
    TransportError,
    TransportTimeoutError,
)
from aiosfstream.testing import (
    Alter,
    AlterBody,
    ByteOrderMark,
    Compress,
    CutBefore,
    Garble,
    Head,
    Insert,
    Refuse,
    Status,
    StreamingServer,
)
from tests.support import EVENT, GENERIC, client_for, held, receive, soon, until
from tests.world import Observer, answered, publish, sent

ALL = ReplayOption.ALL_EVENTS
Kind = ConnectionEventKind


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Answers that can hardly be read


@pytest.mark.parametrize(
    ("as_sent", "as_read"),
    [(b"\\ud83d", "\ud83d"), (b"\xff", "\ufffd"), (b"\x01", "\x01"), (b"\n", "\n")],
)
@pytest.mark.parametrize("with_orjson", [False, True])
async def test_what_json_should_not_have_in_it_is_read(
    server: StreamingServer, as_sent: bytes, as_read: str, with_orjson: bool
) -> None:
    functions: dict[str, Any] = (
        {"json_loads": orjson.loads, "json_dumps": orjson.dumps} if with_orjson else {}
    )
    server.add_fault(
        AlterBody(lambda body: body.replace(b"HERE", as_sent)), on="/meta/connect", times=None
    )
    async with client_for(server, **functions) as client:
        await client.subscribe(EVENT)
        server.publish(EVENT, {"Text__c": "HERE"})
        got = [(await soon(client.receive()))["data"]["payload"]["Text__c"]]
        server.publish(EVENT, {"Text__c": "good"})
        got.append((await soon(client.receive()))["data"]["payload"]["Text__c"])
        assert got[0] in (as_read, "\ufffd")
        assert got[1] == "good"
    assert server.count("/meta/handshake") == 1


@pytest.mark.parametrize("body", [b"[{", b"[" * 5000, b"[\xff\xfe nonsense]"])
async def test_an_answer_that_can_never_be_read_is_told_and_skipped(
    server: StreamingServer, body: bytes
) -> None:
    is_bad = True

    def spoil(answer: bytes) -> bytes:
        return body if b"POISON" in answer and is_bad else answer

    server.add_fault(AlterBody(spoil), on="/meta/connect", times=None)
    async with client_for(server, connection_timeout=None) as client:
        await client.subscribe(EVENT)
        await client.subscribe(GENERIC)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        server.publish(EVENT, {"Text__c": "POISON"})
        with pytest.raises(ServerError, match=EVENT) as caught:
            await soon(client.receive())
        assert caught.value.replay_id == first
        assert repr(first) in str(caught.value)
        await server.wait_for(lambda server: server.subscriptions == {EVENT, GENERIC})
        await held(server)
        # Both channels go on.
        ids = [*publish(server, EVENT, 1), *publish(server, GENERIC, 1)]
        assert await receive(client, 2) == ids
        assert client.subscriptions == {EVENT, GENERIC}


@pytest.mark.parametrize("body", [b"<html></html>", b"\xff\xfe nonsense", b'["text"]', b"[]", b""])
async def test_an_answer_of_something_else_than_the_server_is_an_outage(
    server: StreamingServer, body: bytes
) -> None:
    async with client_for(server, connection_timeout=0.2) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(Garble(body), on="/meta/connect", times=None)
        server.cut_connections()
        # However often it is the same, no event is skipped.
        missed = publish(server, EVENT, 2)
        with pytest.raises(TransportTimeoutError):
            await soon(client.receive())
        await answered(server, "/meta/handshake", 8)
        server.clear_faults()
        assert await _after_time_outs(client, 2) == missed


async def _after_time_outs(client: Client, count: int) -> list[Any]:
    ids: list[Any] = []
    while len(ids) < count:
        with suppress(TransportTimeoutError):
            ids += await receive(client)
    return ids


async def test_an_answer_larger_than_the_limit(server: StreamingServer) -> None:
    async with client_for(server, max_response_size=4000, connection_timeout=None) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        server.publish(EVENT, {"Text__c": "x" * 5000})
        with pytest.raises(ServerError, match="max_response_size") as caught:
            await soon(client.receive())
        assert caught.value.replay_id == first
        await held(server)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids


@pytest.mark.parametrize("on", ["/meta/connect", "/meta/handshake", "/meta/subscribe"])
async def test_the_status_counts_however_long_the_headers_are(
    server: StreamingServer, on: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        page = Status(401, headers={"Content-Security-Policy": "x" * 11_000})
        server.add_fault(page, on=on)
        server.expire_sessions()
        missed = publish(server, EVENT, 1)
        assert await receive(client) == missed
    assert server.count("token") == 2


async def test_connections_that_a_proxy_closes_when_they_are_used_again(
    server: StreamingServer,
) -> None:
    server.add_fault(CutBefore(reused=True), on="/meta/handshake", times=None)
    server.add_fault(CutBefore(reused=True), on="/meta/disconnect", times=None)
    for _ in range(3):
        async with client_for(server) as client:
            await client.subscribe(EVENT)
            for _ in range(2):
                ids = publish(server, EVENT, 1)
                assert await receive(client) == ids
                await held(server)
                server.expire_sessions()
                await answered(server, "/meta/handshake", 1)
                await held(server)
    assert server.sessions == []


def _without_data(messages: list[Any]) -> list[Any]:
    return [message if "data" in message else {**message, "data": None} for message in messages]


@pytest.mark.parametrize(
    "fault",
    [
        ByteOrderMark(),
        Compress("x-gzip"),
        Compress("gzip"),
        Compress("deflate"),
        Insert((None, "text", {}, 7)),
        Insert((None, "text", {}, []), first=True),
        Alter(lambda messages: [messages]),
        Alter(_without_data),
        Head(400),
    ],
)
async def test_what_can_be_understood_is(server: StreamingServer, fault: Any) -> None:
    server.add_fault(fault, when=lambda request: request.kind == "cometd", times=None)
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        for _ in range(2):
            ids = publish(server, EVENT, 2)
            assert await receive(client, 2) == ids
    assert server.count("/meta/handshake") == 1


async def test_a_refusal_with_status_400_behind_a_byte_order_mark(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        refusal = Refuse("403::Unknown client", status=400, advice={"reconnect": "handshake"})
        server.add_fault(refusal, ByteOrderMark(), on="/meta/connect")
        await held(server)
        [second] = publish(server, EVENT, 1)
        assert await receive(client) == [second]
        await answered(server, "/meta/handshake", 2)
        missed = publish(server, EVENT, 1)
        assert await receive(client) == missed


async def test_cookies_come_back_byte_for_byte(server: StreamingServer) -> None:
    cookies = 'odd="quoted, value=1"; Path=/; Partitioned; Priority=High; HttpOnly'
    async with client_for(server) as client:
        server.add_fault(Head(headers={"Set-Cookie": cookies}), on="/meta/subscribe")
        await client.subscribe(EVENT)
        await client.subscribe(GENERIC)
        header = sent(server, "/meta/subscribe")[-1].headers["Cookie"]
        assert 'odd="quoted, value=1"' in header.split("; ")
        assert "Partitioned" not in header
        assert "Priority" not in header
        expired = "odd=x; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
        server.add_fault(Head(headers={"Set-Cookie": expired}), on="/meta/subscribe")
        await client.subscribe(EVENT, replay=ALL)
        await client.subscribe(GENERIC)
        assert "odd" not in sent(server, "/meta/subscribe")[-1].headers["Cookie"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Garble(), "Please log in"),
        (Garble(b"[{"), "JSON"),
        (Status(407), "proxy"),
        (Status(413), "413"),
        (Refuse("400::Unsupported API version.", status=400), "Unsupported API version"),
    ],
)
async def test_errors_tell_what_the_server_has_said(
    server: StreamingServer, fault: Any, told: str
) -> None:
    server.add_fault(fault, on="/meta/handshake")
    with pytest.raises((TransportError, ServerError), match=told) as caught:
        await client_for(server).open()
    assert "message=" not in str(caught.value)


# How fast it asks


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, "3", True, [1]])
def test_a_poll_timeout_that_makes_no_sense(value: Any) -> None:
    with pytest.raises(ValueError, match="poll_timeout"):
        SalesforceStreamingClient(
            consumer_key="k", consumer_secret="s", username="u", password="p", poll_timeout=value
        )


async def test_a_server_that_answers_each_connect_soon_is_asked_at_a_pace(
    server: StreamingServer,
) -> None:
    server.hold_timeout, server.advised_timeout = 0.08, 110.0
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await answered(server, "/meta/connect", 8)
        connects = [request.time for request in sent(server, "/meta/connect")]
        gaps = [later - earlier for earlier, later in pairwise(connects)]
        assert gaps[-1] >= 0.4
        assert sum(gaps) >= 0.8
        # An event comes no later for all that, and the pace is forgotten.
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids


async def test_quick_faults_that_were_recovered_from_are_forgotten(server: StreamingServer) -> None:
    observer = Observer()
    client = SalesforceStreamingClient(**server.credentials, observer=observer)
    async with client:
        await client.subscribe(EVENT, replay=ALL)
        for number in range(6):
            await held(server)
            if number == 3:
                server.cut_connections()
            elif number % 2:
                server.revoke_tokens()
            else:
                server.expire_sessions()
            ids = publish(server, EVENT, 1)
            assert await receive(client) == ids
    delays = [event.delay for event in observer.events if event.delay is not None]
    assert len(delays) == 6
    assert max(delays) <= 1.0


# What the application asks for and hears


async def test_one_end_is_told_once(server: StreamingServer) -> None:
    observer = Observer()
    client = client_for(server, observer=observer)
    await client.open()
    await client.subscribe(EVENT)
    await held(server)
    server.add_fault(Status(413), on="/meta/connect", times=None)
    publish(server, EVENT, 1)
    assert len(await receive(client)) == 1
    with pytest.raises(TransportError):
        await soon(client.receive())
    for _ in range(2):
        await client.close()
    assert observer.count(Kind.CLOSED) == 1
    [closed] = [event for event in observer.events if event.kind is Kind.CLOSED]
    assert isinstance(closed.error, TransportError)


async def test_a_suspension_is_followed_by_its_end(server: StreamingServer) -> None:
    observer = Observer()
    async with client_for(server, observer=observer, max_pending_count=2) as client:
        await client.subscribe(EVENT)
        for _ in range(3):
            await held(server)
            ids = publish(server, EVENT, 4)
            await until(lambda: observer.kinds()[-1] is Kind.FETCHING_SUSPENDED)
            # A session that is lost meanwhile tells nothing twice.
            server.expire_sessions()
            assert await receive(client, 4) == ids
            await held(server)
        ids = publish(server, EVENT, 4)
        await until(lambda: observer.kinds()[-1] is Kind.FETCHING_SUSPENDED)
    told = [
        kind
        for kind in observer.kinds()
        if kind in (Kind.FETCHING_SUSPENDED, Kind.FETCHING_RESUMED)
    ]
    # The last one is ended by closing.
    assert told == [Kind.FETCHING_SUSPENDED, Kind.FETCHING_RESUMED] * 3 + [Kind.FETCHING_SUSPENDED]
    assert observer.kinds()[-1] is Kind.CLOSED


@pytest.mark.parametrize("operation", ["publish", "subscribe"])
@pytest.mark.parametrize(
    "channel", ["", "/", "event", "/meta/subscribe", "/meta/disconnect", "/meta/connect", "/meta/x"]
)
async def test_names_that_are_no_channels_are_refused(
    server: StreamingServer, operation: str, channel: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        requests = len(server.requests)
        with pytest.raises(ClientError, match="channel"):
            if operation == "publish":
                await client.publish(channel, {"x": 1})
            else:
                await client.subscribe(channel)
        assert len(server.requests) == requests
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
