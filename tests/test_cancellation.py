"""Cancelling at every suspension point loses nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from aiosfstream import Client, ReplayMarker, ReplayMarkerStorage, ReplayOption, TransportError
from aiosfstream.testing import Hang, RevokeTokens, StreamingServer
from tests.support import (
    EVENT,
    TOPIC,
    FastClient,
    cancelled_at,
    client_for,
    held,
    receive,
    replay_id,
    soon,
    until,
)

#: No operation has more suspension points than this.
MANY = 200


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


class Watched:
    """Makes clients and knows what they leave behind."""

    def __init__(self, server: StreamingServer) -> None:
        self._server = server
        self.sessions: list[aiohttp.ClientSession] = []

    def client(self, **options: Any) -> FastClient:
        """Make a client."""
        options.setdefault("replay", ReplayOption.ALL_EVENTS)
        return client_for(self._server, session_factory=self._factory, **options)

    def _factory(self, **options: Any) -> aiohttp.ClientSession:
        self.sessions.append(aiohttp.ClientSession(**options))
        return self.sessions[-1]

    async def nothing_is_left(self, client: Client) -> None:
        """Assert that a closed client has left no task and no session."""
        await until(lambda: not own_tasks())
        assert client.closed
        assert all(session.closed for session in self.sessions)
        gc.collect()


def own_tasks() -> list[str]:
    """Give the names of tasks that belong to clients."""
    return [task.get_name() for task in asyncio.all_tasks() if "aiosfstream" in task.get_name()]


async def test_open(server: StreamingServer) -> None:
    watched = Watched(server)
    client = watched.client()
    points = 0
    for number in range(1, MANY):
        reached, _ = await cancelled_at(client.open(), number)
        if not reached:
            break
        points = number
        if not client.closed:
            await client.close()
        await watched.nothing_is_left(client)
    assert points >= 3
    await works(client, server)
    await client.close()
    await watched.nothing_is_left(client)


async def test_open_cancelled_twice(server: StreamingServer) -> None:
    watched = Watched(server)
    client = watched.client()
    server.add_fault(Hang(), on="/meta/connect")
    task = asyncio.create_task(client.open())
    await server.wait_for(lambda server: server.count("/meta/connect") == 1)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await watched.nothing_is_left(client)


async def works(client: Client, server: StreamingServer) -> None:
    """Assert that an open client delivers events."""
    await client.subscribe(EVENT, replay=ReplayOption.NEW_EVENTS)
    wanted = [server.publish(EVENT)]
    received: list[Any] = []
    while wanted[0] not in received:
        received += await receive(client)


@pytest.mark.parametrize("operation", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("trouble", [False, True])
async def test_subscribe_and_unsubscribe(
    server: StreamingServer, operation: str, trouble: bool
) -> None:
    watched = Watched(server)
    for number in range(1, MANY):
        async with watched.client() as client:
            if operation == "unsubscribe":
                await client.subscribe(EVENT)
            if trouble:
                server.add_fault(RevokeTokens(), on=f"/meta/{operation}")
            reached, _ = await cancelled_at(getattr(client, operation)(EVENT), number)
            # It is finished in the background, and subscriptions tells the outcome.
            wanted = {EVENT} if operation == "subscribe" else set()
            await subscribed(client, wanted)
            await works(client, server)
        await watched.nothing_is_left(client)
        if not reached:
            break
    assert not reached


def publish_two(server: StreamingServer, published: list[Any]) -> None:
    """Publish two events and note their ids."""
    published.extend(server.publish_many([(EVENT, None)] * 2))


async def subscribed(client: Client, channels: set[str]) -> None:
    """Wait until *client* is subscribed to *channels*."""
    await until(lambda: client.subscriptions == channels)


class SlowStorage(ReplayMarkerStorage):
    """A storage that suspends several times."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the marker after a while."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store the marker between two suspensions."""
        await asyncio.sleep(0)
        self.markers[subscription] = replay_marker
        await asyncio.sleep(0)


@pytest.mark.parametrize("pending", [False, True])
async def test_receive(server: StreamingServer, pending: bool) -> None:
    """Whether the message is there already or arrives while it is waited for."""
    storage = SlowStorage()
    points = 0
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT)
        for number in range(1, MANY):
            wanted = server.publish_many([(EVENT, None)] * 2) if pending else []
            if pending:
                await until(lambda: client.pending_count == 2)
            else:
                await held(server)
                loop = asyncio.get_running_loop()
                loop.call_soon(publish_two, server, wanted)
            reached, message = await cancelled_at(client.receive(), number)
            received = [] if message is None else [replay_id(message)]
            while len(received) < 2:
                received += await receive(client)
            assert received == wanted
            assert storage.markers[EVENT].replay_id == wanted[-1]
            if not reached:
                break
            points = number
    assert points >= 4


async def test_receive_with_a_timeout_never_loses_a_message(server: StreamingServer) -> None:
    async with client_for(server, replay=SlowStorage()) as client:
        await client.subscribe(EVENT)
        wanted: list[Any] = []
        received: list[Any] = []
        cancelled = 0
        for round_number in range(200):
            wanted.append(server.publish(EVENT))
            try:
                message = await asyncio.wait_for(client.receive(), 0.0001 * (round_number % 30))
            except asyncio.TimeoutError:
                cancelled += 1
            else:
                received.append(replay_id(message))
        while len(received) < len(wanted):
            received += await receive(client)
        assert received == wanted
        assert cancelled > 10


async def test_a_cancelled_reader_does_not_keep_others_waiting(server: StreamingServer) -> None:
    async with client_for(server, replay=SlowStorage()) as client:
        await client.subscribe(EVENT)
        readers = [asyncio.create_task(client.receive()) for _ in range(4)]
        await held(server)
        readers[0].cancel()
        readers[2].cancel()
        wanted = server.publish_many([(EVENT, None)] * 2)
        received = await soon(asyncio.gather(readers[1], readers[3]))
        assert [replay_id(message) for message in received] == wanted


async def test_close(server: StreamingServer) -> None:
    watched = Watched(server)
    points = 0
    for number in range(1, MANY):
        client = watched.client()
        await client.open()
        await client.subscribe(EVENT)
        reached, _ = await cancelled_at(client.close(), number)
        await client.close()
        await watched.nothing_is_left(client)
        if not reached:
            break
        points = number
    assert points >= 2


async def test_the_context_manager(server: StreamingServer) -> None:
    watched = Watched(server)
    client = watched.client()

    async def use() -> None:
        async with client:
            await client.subscribe(TOPIC)

    for number in range(1, MANY):
        reached, _ = await cancelled_at(use(), number)
        await watched.nothing_is_left(client)
        if not reached:
            break
    assert not reached


async def test_closing_during_a_request(server: StreamingServer) -> None:
    watched = Watched(server)
    async with watched.client() as client:
        server.add_fault(Hang(), on="/meta/subscribe")
        task = asyncio.create_task(client.subscribe(EVENT))
        await server.wait_for(lambda server: server.count("/meta/subscribe") == 1)
    with pytest.raises(TransportError, match="closed"):
        await soon(task)
    await watched.nothing_is_left(client)


async def test_closing_during_recovery(server: StreamingServer) -> None:
    watched = Watched(server)
    async with watched.client() as client:
        await client.subscribe(EVENT)
        await server.pause()
        task = asyncio.create_task(client.subscribe(TOPIC))
        await asyncio.sleep(0.02)
    with pytest.raises(TransportError):
        await soon(task)
    await watched.nothing_is_left(client)
    await server.resume()
