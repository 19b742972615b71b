"""Markers in a real Redis: atomic, and still there after it was killed."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiosfstream import ReplayError, ReplayMarker, ReplayOption
from aiosfstream.replay import overwrite_with
from aiosfstream.storages.redis import RedisStorage
from aiosfstream.testing import StreamingServer
from aiosfstream.testing.conformance import check_marker_storage
from tests.markers import notes_of
from tests.redis_server import RedisServer, free_port
from tests.support import client_for, receive

CHANNEL = "/event/Low_Ink__e"
OLD, NEW = "2017-04-09T18:31:40.517Z", "2018-01-01T00:00:00.000Z"


def event(replay_id: Any, date: str | None = NEW, channel: str = CHANNEL) -> dict[str, Any]:
    """Return a platform event."""
    data = {"payload": {"CreatedDate": date}, "event": {"replayId": replay_id}}
    return {"channel": channel, "data": data}


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Redis]:
    """Give a client that does not try again by itself, as redis-py 5 does by default."""
    options.setdefault("retry", Retry(NoBackoff(), 0))
    async with Redis.from_url(url, **options) as client:
        yield client
        await client.connection_pool.disconnect()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def client(shared_server: RedisServer) -> AsyncIterator[Redis]:
    async with connected(shared_server.url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a server that the test may kill."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize("decode", [False, True])
async def test_redis_conforms(shared_server: RedisServer, decode: bool) -> None:
    async with connected(shared_server.url, decode_responses=decode) as client:
        await client.flushdb()
        await check_marker_storage(lambda: RedisStorage(client, prefix="m:"), overlapping=True)


async def test_a_marker_is_a_hash_of_its_own(client: Redis) -> None:
    await RedisStorage(client, prefix="orders:").extract_replay_id(event("A1"))
    assert await client.keys("*") == [b"orders:/event/Low_Ink__e"]
    found = await client.hgetall("orders:/event/Low_Ink__e")
    assert found == {b"date": NEW.encode(), b"instant": b"1514764800.0", b"replay_id": b'"A1"'}


async def test_applications_do_not_meet(client: Redis) -> None:
    one, other = RedisStorage(client, prefix="one:"), RedisStorage(client, prefix="other:")
    await one.extract_replay_id(event(1))
    assert await other.get_replay_marker(CHANNEL) is None


async def test_a_default_serves_channels_without_a_marker(client: Redis) -> None:
    storage = RedisStorage(client, prefix="m:", default_id=ReplayOption.ALL_EVENTS)
    assert await storage.get_replay_id(CHANNEL) == -2
    await storage.extract_replay_id(event(0))
    assert await storage.get_replay_id(CHANNEL) == 0


async def test_two_clients_never_move_a_marker_back(shared_server: RedisServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(shared_server.url)) for _ in range(3)]
        await clients[0].flushdb()
        storages = [RedisStorage(client, prefix="m:") for client in clients]
        seen: list[Any] = []

        async def watch() -> None:
            while not seen or seen[-1] != 299:
                marker = await storages[2].get_replay_marker(CHANNEL)
                seen.append(-1 if marker is None else marker.replay_id)

        async def write(storage: RedisStorage, numbers: range) -> None:
            for number in numbers:
                date = f"2017-04-09T18:{number // 60:02}:{number % 60:02}Z"
                await storage.extract_replay_id(event(number, date))

        watching = asyncio.create_task(watch())
        await asyncio.gather(
            write(storages[0], range(300)),
            write(storages[1], range(0, 300, 3)),
            write(storages[1], range(299)),
        )
        await asyncio.wait_for(watching, 10)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


async def test_an_event_without_an_id_is_passed_over(client: Redis) -> None:
    await RedisStorage(client, prefix="m:").extract_replay_id(event(None))
    assert await client.keys("*") == []


async def test_markers_survive_a_kill_and_the_connection_comes_back(server: RedisServer) -> None:
    async with connected(server.url) as client:
        storage = RedisStorage(client, prefix="m:")
        await storage.extract_replay_id(event(1))
        server.kill()
        with pytest.raises(ReplayError, match="in Redis cannot be used: ConnectionError") as caught:
            await storage.extract_replay_id(event(2))
        assert caught.value.__cause__ is not None
        with pytest.raises(ReplayError, match="in Redis cannot be used"):
            await storage.get_replay_marker(CHANNEL)
        server.start()
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 1)
        await storage.extract_replay_id(event(2))
        server.kill()
        server.start()
        # The connection that was open is broken now: nobody needs to know.
        await storage.extract_replay_id(event(3))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 3)


async def test_a_redis_that_hangs_is_an_error_and_loses_nothing(server: RedisServer) -> None:
    async with connected(server.url, socket_timeout=0.2) as client:
        storage = RedisStorage(client, prefix="m:")
        await storage.extract_replay_id(event(1))
        server.pause()
        try:
            with pytest.raises(ReplayError, match="cannot be used: Timeout"):
                await storage.extract_replay_id(event(2))
        finally:
            server.resume()
        await storage.extract_replay_id(event(3))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 3)


async def test_a_redis_that_is_not_there() -> None:
    async with connected(f"redis://:secret@127.0.0.1:{free_port()}/0") as client:
        storage = RedisStorage(client, prefix="m:")
        with pytest.raises(ReplayError, match="reachable") as caught:
            await storage.insert_replay_id({"channel": "/meta/subscribe", "subscription": CHANNEL})
        assert "secret" not in str(caught.value)
        assert repr(storage) == "RedisStorage(prefix='m:', default_id=None)"


async def test_other_data_in_its_place_is_an_error(client: Redis) -> None:
    storage = RedisStorage(client, prefix="m:")
    await client.set(f"m:{CHANNEL}", "text")
    for attempt in (storage.get_replay_marker(CHANNEL), storage.extract_replay_id(event(1))):
        with pytest.raises(ReplayError, match="WRONGTYPE"):
            await attempt
    await client.delete(f"m:{CHANNEL}")
    await client.hset(f"m:{CHANNEL}", mapping={"date": NEW, "replay_id": "{"})
    with pytest.raises(ReplayError, match=f"'m:{CHANNEL}' holds no replay marker"):
        await storage.get_replay_marker(CHANNEL)


async def test_what_json_cannot_express_is_an_error(client: Redis) -> None:
    marker: Any = ReplayMarker(NEW, object())  # type: ignore[arg-type]
    with pytest.raises(ReplayError, match="cannot be stored"):
        await RedisStorage(client, prefix="m:").set_replay_marker(CHANNEL, marker)


async def test_text_that_is_not_utf_8(client: Redis) -> None:
    storage = RedisStorage(client, prefix="m:")
    await storage.extract_replay_id(event("\ud800", "\ud800", "/event/\ud800"))
    assert await storage.get_replay_marker("/event/\ud800") == ReplayMarker("?", "\ud800")  # type: ignore[arg-type]


async def test_overwriting_waits_until_it_has_succeeded(server: RedisServer) -> None:
    async with connected(server.url) as client:
        storage = RedisStorage(client, prefix="m:")
        await storage.extract_replay_id(event(90))
        first = event(1, OLD)
        overwrite_with(storage, first)
        server.kill()
        with pytest.raises(ReplayError):
            await storage.extract_replay_id(first)
        server.start()
        await storage.extract_replay_id(first)
        assert notes_of(storage).special == {}
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 1)
        await storage.extract_replay_id(event(0, "2001-01-01T00:00:00Z"))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 1)


async def test_a_client_whose_redis_dies_delivers_each_event(server: RedisServer) -> None:
    """The message whose marker could not be stored comes again, and no other."""
    async with StreamingServer() as org, connected(server.url) as redis:
        storage = RedisStorage(redis, prefix="m:", default_id=ReplayOption.ALL_EVENTS)
        published = [org.publish(CHANNEL, {"Ink__c": number}) for number in range(10)]
        async with client_for(org, replay=storage) as client:
            await client.subscribe(CHANNEL)
            received = await receive(client, 4)
            server.kill()
            with pytest.raises(ReplayError, match="in Redis cannot be used"):
                await receive(client)
            server.start()
            received += await receive(client, 6)
        assert received == published
        marker = await storage.get_replay_marker(CHANNEL)
        assert marker is not None
        assert marker.replay_id == published[-1]


async def test_without_redis_py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "aiosfstream.storages.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r"aiosfstream\[redis\]"):
        import aiosfstream.storages.redis  # noqa: F401


async def test_no_cancellation_is_swallowed(client: Redis) -> None:
    storage = RedisStorage(client, prefix="m:")

    async def store() -> None:
        for number in range(5):
            async with storage(event(number)):
                pass

    for turns in range(200):
        task = asyncio.create_task(store())
        for _ in range(turns % 40):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await storage.extract_replay_id(event(9))
    assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 9)


async def test_a_slow_redis_leaves_the_loop_free(server: RedisServer) -> None:
    async with connected(server.url, socket_timeout=5) as client:
        storage = RedisStorage(client, prefix="m:")
        await storage.extract_replay_id(event(1))
        server.pause()
        storing = asyncio.create_task(storage.extract_replay_id(event(2)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not storing.done()
        server.resume()
        await storing
