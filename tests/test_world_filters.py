"""Filters of one PushTopic share a stored marker, which never passes what one of them still waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from aiosfstream import (
    Client,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SQLiteStorage,
)
from aiosfstream.storages.redis import RedisStorage
from aiosfstream.testing import Deliver, Gate, Hold, HoldBody, StreamingServer
from tests.redis_server import RedisServer
from tests.support import TOPIC, client_for, held, receive, soon, until
from tests.world import LONG_AGO, has_events, is_about, nothing_more, take

A, B = f"{TOPIC}?Status='a'", f"{TOPIC}?Status='b'"
MANUAL, AUTOMATIC = ReplayMarkerStoragePolicy.MANUAL, ReplayMarkerStoragePolicy.AUTOMATIC
POLICIES = pytest.mark.parametrize("policy", [AUTOMATIC, MANUAL])


class Own(ReplayMarkerStorage):
    """A storage as an application writes it."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Read."""
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Write."""
        self.markers[subscription] = replay_marker


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["mapping", "own", "sqlite", "redis"])
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[ReplayMarkerStorage]:
    """A storage."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        async with Redis.from_url(server.url) as redis:
            await redis.flushall()
            yield RedisStorage(redis, prefix="m:")
    elif request.param == "sqlite":
        async with SQLiteStorage(tmp_path / "markers.db") as opened:
            yield opened
    else:
        yield Own() if request.param == "own" else MappingStorage({})


class Program:
    """A program that is subscribed to both filters, and was stopped after the first event.

    :param server: the server
    :param storage: where its markers are
    :param policy: when they are stored
    """

    def __init__(
        self,
        server: StreamingServer,
        storage: ReplayMarkerStorage,
        policy: ReplayMarkerStoragePolicy,
    ) -> None:
        self.server = server
        self.storage = storage
        self.policy = policy
        self.of_a: list[Any] = []
        self.of_b: list[Any] = []

    def client(self) -> Client:
        """Start it."""
        return client_for(
            self.server,
            replay=self.storage,
            replay_fallback=ReplayOption.ALL_EVENTS,
            replay_storage_policy=self.policy,
        )

    async def begin(self) -> None:
        """Have it consume one event, and publish what it is to find when it is started anew."""
        async with self.client() as client:
            await client.subscribe(A)
            self.publish("a")
            assert await self.take(client, 1) == self.of_a
            assert await nothing_more(client)
        self.of_a.clear()

    def publish(self, statuses: str) -> None:
        """Publish events of these statuses, long ago."""
        ids = self.server.publish_many(
            [(TOPIC, {"Status": status}) for status in statuses], date=LONG_AGO
        )
        for status, number in zip(statuses, ids, strict=True):
            (self.of_a if status == "a" else self.of_b).append(number)

    async def take(self, client: Client, count: int) -> list[Any]:
        """Take and process messages."""
        return await take(client, count, manual=self.policy is MANUAL)

    async def marker(self) -> Any:
        """Give the replay id that a new start begins with."""
        marker = await self.storage.get_replay_marker(TOPIC)
        return None if marker is None else marker.replay_id

    async def rest(self) -> list[Any]:
        """Start anew, and give all that comes."""
        async with self.client() as client:
            return await self.rest_of(client)

    async def rest_of(self, client: Client) -> list[Any]:
        """Subscribe to both, and give all that comes."""
        await client.subscribe(A)
        await client.subscribe(B)
        await held(self.server)
        ids: list[Any] = []
        while client.pending_count:
            ids += await self.take(client, client.pending_count)
        assert await nothing_more(client, 0.5)
        return ids


@pytest.fixture
async def program(
    server: StreamingServer, storage: ReplayMarkerStorage, policy: ReplayMarkerStoragePolicy
) -> Program:
    """A program with two backlogs."""
    program = Program(server, storage, policy)
    await program.begin()
    program.publish("babababba")
    return program


@asynccontextmanager
async def between_the_backlogs(program: Program, gate: Gate) -> AsyncIterator[Client]:
    """Start it with a server that sends one backlog, and the rest of the other when the gate opens."""
    program.server.add_fault(Deliver(), on="/meta/subscribe", when=is_about(A))
    program.server.add_fault(HoldBody(gate), on="/meta/connect", answering=has_events)
    async with program.client() as client:
        # The first connect waits for both.
        await asyncio.gather(client.subscribe(A), client.subscribe(B))
        await until(lambda: client.pending_count == len(program.of_a))
        try:
            yield client
        finally:
            gate.open()


@POLICIES
async def test_killed_between_the_backlogs(program: Program) -> None:
    before = await program.marker()
    async with between_the_backlogs(program, Gate()) as client:
        assert await program.take(client, len(program.of_a)) == program.of_a
        assert await nothing_more(client, 0.5)
        # A program that is killed leaves this.
        assert await program.marker() == before
    assert sorted(await program.rest()) == sorted([*program.of_a, *program.of_b])
    assert await program.rest() == []


@POLICIES
async def test_a_client_that_is_closed_between_the_backlogs(program: Program) -> None:
    async with between_the_backlogs(program, Gate()) as client:
        assert await program.take(client, len(program.of_a)) == program.of_a
    assert set(await program.rest()) >= set(program.of_b)
    assert await program.rest() == []


@POLICIES
async def test_killed_before_what_has_come_is_consumed(program: Program) -> None:
    gate = Gate()
    before = await program.marker()
    async with between_the_backlogs(program, gate) as client:
        gate.open()
        await until(lambda: client.pending_count == len(program.of_a) + len(program.of_b))
        # Both are complete by now, as far as the client can tell.
        await held(program.server)
        await asyncio.sleep(0.5)
        assert await program.take(client, len(program.of_a)) == program.of_a
        assert await program.take(client, len(program.of_b) - 1) == program.of_b[:-1]
        assert await program.marker() == before
        assert await program.take(client, 1) == program.of_b[-1:]
        assert await program.marker() == max(*program.of_a, *program.of_b)
    assert await program.rest() == []


@POLICIES
@pytest.mark.parametrize("waits", [False, True])
async def test_a_clean_stop_repeats_nothing(program: Program, waits: bool) -> None:
    gate = Gate()
    before = await program.marker()
    async with between_the_backlogs(program, gate) as client:
        gate.open()
        ids = await program.take(client, len(program.of_a) + len(program.of_b))
        assert ids == [*program.of_a, *program.of_b]
        assert await program.marker() == before
        await held(program.server)
        if waits:
            assert await nothing_more(client, 0.5)
            assert await program.marker() == max(ids)
        else:
            await asyncio.sleep(0.5)
    assert await program.rest() == []


@POLICIES
async def test_the_next_event_moves_the_marker_on(program: Program) -> None:
    gate = Gate()
    async with between_the_backlogs(program, gate) as client:
        gate.open()
        await program.take(client, len(program.of_a) + len(program.of_b))
        await held(program.server)
        await asyncio.sleep(0.5)
        last = program.server.publish(TOPIC, {"Status": "a"})
        assert await program.take(client, 1) == [last]
        assert await program.marker() == last
    assert await program.rest() == []


@POLICIES
async def test_a_session_that_is_lost_between_the_backlogs(program: Program) -> None:
    gate = Gate()
    before = await program.marker()
    async with between_the_backlogs(program, gate) as client:
        assert await program.take(client, len(program.of_a)) == program.of_a
        # The rest of the answer never comes.
        program.server.cut_connections()
        program.server.expire_sessions()
        await until(lambda: client.pending_count == len(program.of_b))
        assert await program.marker() == before
        assert await program.take(client, len(program.of_b)) == program.of_b
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == max(*program.of_a, *program.of_b)
    assert await program.rest() == []


@POLICIES
async def test_killed_between_the_backlogs_of_a_session_that_was_renewed(
    program: Program,
) -> None:
    gate = Gate()
    async with program.client() as client:
        assert sorted(await program.rest_of(client)) == sorted([*program.of_a, *program.of_b])
        marker = await program.marker()
        program.of_a.clear()
        program.of_b.clear()
        program.server.add_fault(Deliver(), on="/meta/subscribe", when=is_about(A))
        program.server.add_fault(HoldBody(gate), on="/meta/connect", answering=has_events)
        # Which of the two is subscribed again first is the client's business.
        later = Gate()
        program.server.add_fault(Hold(later), on="/meta/handshake")
        program.server.expire_sessions()
        program.publish("baba")
        later.open()
        await until(lambda: client.pending_count == len(program.of_a))
        assert await program.take(client, len(program.of_a)) == program.of_a
        assert await program.marker() == marker
        gate.open()
        assert await program.take(client, len(program.of_b)) == program.of_b
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == program.of_a[-1]


@POLICIES
async def test_one_that_is_subscribed_while_the_backlog_of_the_other_is_consumed(
    program: Program,
) -> None:
    gate = Gate()
    program.server.add_fault(Deliver(), on="/meta/subscribe", when=is_about(A))
    program.server.add_fault(HoldBody(gate), on="/meta/connect", answering=has_events)
    program.server.add_fault(Hold(gate), on="/meta/subscribe", when=is_about(B))
    async with program.client() as client:
        both = asyncio.gather(client.subscribe(A), client.subscribe(B))
        assert await program.take(client, len(program.of_a)) == program.of_a
        gate.open()
        await both
        assert sorted(await program.take(client, len(program.of_b))) == program.of_b
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == max(*program.of_a, *program.of_b)
    assert await program.rest() == []


@pytest.mark.parametrize("policy", [MANUAL])
async def test_workers_that_end_in_another_order(program: Program) -> None:
    gate = Gate()
    before = await program.marker()
    count = len(program.of_a)
    async with between_the_backlogs(program, gate) as client:
        blocks = []
        for _ in range(count + len(program.of_b)):
            blocks.append(client.replay_storage(await soon(client.receive())))
            gate.open()
        await held(program.server)
        assert await nothing_more(client, 0.5)
        one_of_b = blocks.pop(-2)
        for block in blocks[::-1]:
            async with block:
                pass
            assert await program.marker() == before
        last = program.server.publish(TOPIC, {"Status": "a"})
        async with client.replay_storage(await soon(client.receive())):
            pass
        assert await program.marker() == before
        async with one_of_b:
            pass
        assert await program.marker() == last
    assert await program.rest() == []


@pytest.mark.parametrize("policy", [MANUAL])
async def test_an_application_that_skips_messages(program: Program) -> None:
    gate = Gate()
    async with between_the_backlogs(program, gate) as client:
        gate.open()
        assert await program.take(client, len(program.of_a)) == program.of_a
        assert await receive(client, len(program.of_b)) == program.of_b
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == program.of_a[-1]


@POLICIES
async def test_one_filter_alone_has_its_marker_stored_with_each_message(program: Program) -> None:
    async with program.client() as client:
        await client.subscribe(A)
        for number in program.of_a:
            assert await program.take(client, 1) == [number]
            assert await program.marker() == number


@POLICIES
async def test_one_that_is_unsubscribed_holds_nothing_up(program: Program) -> None:
    gate = Gate()
    async with between_the_backlogs(program, gate) as client:
        await client.unsubscribe(B)
        ids = await program.take(client, len(program.of_a))
        assert ids == program.of_a
        assert await program.marker() == ids[-1]


@POLICIES
async def test_a_start_further_back_takes_the_marker_with_it(program: Program) -> None:
    async with program.client() as client:
        await client.subscribe(A)
        assert await program.take(client, len(program.of_a)) == program.of_a
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == program.of_a[-1]
        await client.subscribe(B, replay=ReplayOption.ALL_EVENTS)
        for _ in program.of_b:
            await program.take(client, 1)
            assert await program.marker() == program.of_b[0]
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() == program.of_a[-1]
    assert await program.rest() == []


@POLICIES
async def test_a_marker_that_is_refused_is_replaced_when_all_is_consumed(program: Program) -> None:
    # It has a later date than all events: such as before the org was restored.
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    refused = ReplayMarker(f"{later:%Y-%m-%dT%H:%M:%S}.000Z", 10**9)
    await program.storage.set_replay_marker(TOPIC, refused)
    async with program.client() as client:
        await asyncio.gather(client.subscribe(A), client.subscribe(B))
        for _ in range(len(program.of_a) + len(program.of_b)):
            await program.take(client, 1)
            assert await program.marker() == refused.replay_id
        # There is the one as well that was consumed before.
        await program.take(client, 1)
        await held(program.server)
        assert await nothing_more(client, 0.5)
        assert await program.marker() in (program.of_a[-1], program.of_b[-1])
    # Of two markers that replace a refused one the last counts, which may be the lower.
    assert set(await program.rest()) <= {program.of_a[-1]}
