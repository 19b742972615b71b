"""Cancellations that nobody asked for, and what happens where two things happen at once."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anyio
import pytest
from aiocometd.constants import TransportState
from aiocometd.extensions import Extension

from aiosfstream import (
    ClientInvalidOperation,
    ConnectionEvent,
    ConnectionEventKind,
    MappingStorage,
    RefreshTokenAuthenticator,
    ReplayMarker,
    ReplayOption,
    TransportError,
)
from aiosfstream.testing import Delay, Gate, Hold, Status, StreamingServer, serve_in_thread
from tests.support import (
    EVENT,
    GENERIC,
    CancelAt,
    FastAuthClient,
    FastClient,
    cancelled_at,
    client_for,
    held,
    receive,
    soon,
    until,
)
from tests.world import answered, publish

ALL = ReplayOption.ALL_EVENTS
Kind = ConnectionEventKind


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# A cancellation that nobody asked for


class Cancelled(Extension):
    """Is cancelled once, as something is whose own task was cancelled.

    :param where: ``incoming`` or ``outgoing``
    :param channel: with which messages
    """

    def __init__(self, where: str, channel: str) -> None:
        self._where = where
        self._channel = channel
        self.armed = False

    async def incoming(self, payload: Any, headers: Any = None) -> None:
        """Be cancelled."""
        await self._meet("incoming", payload)

    async def outgoing(self, payload: Any, headers: Any) -> None:
        """Be cancelled."""
        await self._meet("outgoing", payload)

    async def _meet(self, where: str, payload: Any) -> None:
        if self.armed and where == self._where and payload[-1]["channel"] == self._channel:
            self.armed = False
            task = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(task.cancel)
            await task


@pytest.mark.parametrize("where", ["incoming", "outgoing"])
@pytest.mark.parametrize("channel", ["/meta/connect", "/meta/handshake", "/meta/subscribe"])
async def test_an_extension_whose_task_was_cancelled(
    server: StreamingServer, where: str, channel: str
) -> None:
    extension = Cancelled(where, channel)
    async with client_for(server, connection_timeout=0) as client:
        await client.subscribe(EVENT)
        assert client.extensions is not None
        client.extensions.append(extension)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        extension.armed = True
        server.expire_sessions()
        missed = publish(server, EVENT, 2)
        assert await receive(client, 2) == missed
        assert not extension.armed
        await until(lambda: client.state is TransportState.CONNECTED)


class CancelledStorage(MappingStorage):
    """A storage whose own task is cancelled while it is asked."""

    armed = False

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Be cancelled once."""
        if self.armed:
            self.armed = False
            raise asyncio.CancelledError
        return await super().get_replay_marker(subscription)


async def test_a_storage_whose_task_was_cancelled(server: StreamingServer) -> None:
    storage = CancelledStorage({})
    async with client_for(server, replay=storage, connection_timeout=0) as client:
        await client.subscribe(EVENT)
        await client.subscribe(GENERIC)
        await held(server)
        storage.armed = True
        server.expire_sessions()
        await answered(server, "/meta/handshake", 2)
        await server.wait_for(lambda server: server.subscriptions == {EVENT, GENERIC})
        await held(server)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
        assert not storage.armed


async def test_an_observer_that_is_cancelled(server: StreamingServer) -> None:
    def observe(event: ConnectionEvent) -> None:
        raise asyncio.CancelledError

    async with client_for(server, observer=observe, connection_timeout=0) as client:
        await client.subscribe(EVENT, replay=ALL)
        for _ in range(2):
            await held(server)
            server.expire_sessions()
            ids = publish(server, EVENT, 1)
            assert await receive(client) == ids


async def test_a_background_task_that_somebody_cancels(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        [task] = [one for one in asyncio.all_tasks() if one.get_name() == "aiosfstream connection"]
        task.cancel()
        missed = publish(server, EVENT, 2)
        with pytest.raises(TransportError, match="cancelled"):
            await soon(client.receive())
        assert await receive(client, 2) == missed


async def test_a_shared_connector_that_is_closed(server: StreamingServer) -> None:
    connector = aiohttp.TCPConnector()

    def make(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=connector, connector_owner=False, **options)

    clients = [client_for(server, session_factory=make, connection_timeout=0.3) for _ in range(3)]
    for client in clients:
        await client.open()
        await client.subscribe(EVENT)
    await server.wait_for(lambda server: server.held_connects == 3)
    await connector.close()
    for client in clients:
        with pytest.raises(TransportError) as caught:
            await soon(client.receive())
        assert "unexpected" not in str(caught.value)
        assert client.state is not TransportState.CONNECTED
        await soon(client.close())


# Opening, closing and receiving at once


@pytest.mark.parametrize("on", ["token", "/meta/handshake", "/meta/connect"])
async def test_closing_while_another_task_opens(server: StreamingServer, on: str) -> None:
    gate = Gate()
    server.add_fault(Hold(gate), on=on)
    client = client_for(server)
    opening = asyncio.create_task(client.open())
    await answered(server, on)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    gate.open()
    await soon(closing)
    with pytest.raises(ClientInvalidOperation):
        await soon(opening)
    assert client.closed
    async with client:
        await client.subscribe(EVENT)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids


async def test_the_reason_for_the_end_outlives_a_cancellation(server: StreamingServer) -> None:
    number = 0
    reached = True
    while reached:
        number += 1
        client = client_for(server)
        await client.open()
        await client.subscribe(EVENT)
        await held(server)
        planned = server.add_fault(Status(413), on="/meta/connect", times=None)
        receiving = client.receive()
        publish(server, EVENT, 1)
        assert len(await receive(client)) == 1
        try:
            reached, _ = await cancelled_at(receiving, number)
        except TransportError:
            reached = False
        else:
            with pytest.raises(TransportError, match="413"):
                await soon(client.receive())
        server.clear_faults(planned)
        await client.close()
    assert number > 1


def test_a_client_whose_event_loop_has_died() -> None:
    with serve_in_thread() as server, warnings.catch_warnings():
        # What the loop leaves open is the loop's.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(_go_on(_client_of_a_dead_loop(server), server))
        gc.collect()


def _client_of_a_dead_loop(server: StreamingServer) -> FastClient:
    client = client_for(server)
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[Any]:
        await client.open()
        await client.subscribe(EVENT)
        receiving = asyncio.create_task(client.receive())
        await held(server)
        return receiving

    # Nothing is cancelled: the task that receives takes its turn along.
    receiving = loop.run_until_complete(begin())
    for task in (receiving, *asyncio.all_tasks(loop)):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    return client


async def _go_on(client: FastClient, server: StreamingServer) -> None:
    with pytest.raises(ClientInvalidOperation, match="event loop"):
        await soon(client.receive())
    await soon(client.close())
    async with client:
        await client.subscribe(EVENT)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids


async def test_a_refresh_token_that_rotates_while_the_client_is_closed() -> None:
    async with StreamingServer(rotate_refresh_tokens=True) as server:
        authenticator = RefreshTokenAuthenticator(**server.refresh_token_credentials)
        async with FastAuthClient(authenticator) as client:
            await client.subscribe(EVENT)
            await held(server)
            server.add_fault(Delay(2.4, after=True), on="token")
            server.revoke_tokens()
            await answered(server, "token", 2)
        assert authenticator.refresh_token == server.refresh_token


async def test_the_cancellation_that_comes_out_of_close_is_the_one_that_came(
    server: StreamingServer,
) -> None:
    number, reached = 0, True
    while reached:
        number += 1
        client = client_for(server)
        await client.open()
        await client.subscribe(EVENT)
        await held(server)
        # anyio knows its own cancellations by their text, and lets no others end here.
        with anyio.CancelScope() as scope:
            canceller = CancelAt(client.close(), number, scope.cancel)
            await canceller
        reached = canceller.reached
        await soon(client.close())
        assert client.closed


# Seams


async def test_another_storage_is_asked_from_then_on(server: StreamingServer) -> None:
    ids = publish(server, EVENT, 3)
    old: dict[str, Any] = {EVENT: ReplayMarker("", ids[0])}
    new: dict[str, Any] = {EVENT: ReplayMarker("", ids[1])}
    async with client_for(server, replay=old) as client:
        client.replay_storage = MappingStorage(new)
        await client.subscribe(EVENT)
        assert await receive(client) == [ids[2]]
        assert new[EVENT].replay_id == ids[2]
        assert old[EVENT].replay_id == ids[0]


async def test_the_state_at_the_event_that_tells_of_it(server: StreamingServer) -> None:
    seen: list[tuple[Kind, TransportState]] = []

    def observe(event: ConnectionEvent) -> None:
        seen.append((event.kind, client.state))

    client = client_for(server, observer=observe)
    async with client:
        await client.subscribe(EVENT, replay=ALL)
        await held(server)
        server.cut_connections()
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids
        await until(lambda: [kind for kind, _ in seen].count(Kind.CONNECTED) == 2)
    states = {state for kind, state in seen if kind is Kind.CONNECTED}
    assert states == {TransportState.CONNECTED}
    lost = {state for kind, state in seen if kind is Kind.CONNECTION_LOST}
    assert lost == {TransportState.CONNECTING}


async def test_a_connector_whose_limit_held_connects_use_up(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    connector = aiohttp.TCPConnector(limit=2)

    def make(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=connector, connector_owner=False, **options)

    clients = [
        client_for(server, session_factory=make, request_timeout=0.3, connection_timeout=0.5)
        for _ in range(3)
    ]
    with caplog.at_level(logging.WARNING):
        for client in clients[:2]:
            await client.open()
        await server.wait_for(lambda server: server.held_connects == 2)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(clients[2].open(), 0.3)
    told = [record.getMessage() for record in caplog.records]
    assert any("limit" in text for text in told), told
    # The others are none the worse for it.
    for client in clients[:2]:
        assert client.state is TransportState.CONNECTED
        await soon(client.close())
    await connector.close()


async def test_a_session_that_the_application_closes(server: StreamingServer) -> None:
    made: list[aiohttp.ClientSession] = []

    def make(**options: Any) -> aiohttp.ClientSession:
        made.append(aiohttp.ClientSession(**options))
        return made[-1]

    async with client_for(server, session_factory=make) as client:
        await client.subscribe(EVENT)
        await held(server)
        await made[0].close()
        with pytest.raises(TransportError, match="session was closed") as caught:
            await soon(client.receive())
        assert "unexpected" not in str(caught.value)
