"""Markers in a real Redis: atomic, and still there after it was killed."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiosfstream import ReplayError, ReplayMarker, ReplayOption
from aiosfstream.replay import overwrite_with, should_store
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
    assert found == {
        b"date": NEW.encode(),
        b"instant": b"1514764800.0",
        b"org": b"",
        b"replay_id": b'"A1"',
    }


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


async def test_a_key_with_something_else_is_named(client: Redis) -> None:
    await client.set("m:org", "text")
    with pytest.raises(ReplayError, match=r"WRONGTYPE.*key 'm:org'.*prefix of its own"):
        await RedisStorage(client, prefix="m:").open_for(ONE)


# What a client may be


def test_a_synchronous_client_is_refused() -> None:
    with pytest.raises(TypeError, match=r"one of redis.asyncio, not the synchronous 'Redis'"):
        RedisStorage(redis.Redis(), prefix="m:")  # type: ignore[arg-type]


def test_a_client_of_a_cluster_will_do() -> None:
    cluster = RedisCluster(host="127.0.0.1", port=1)
    assert repr(RedisStorage(cluster, prefix="m:")) == "RedisStorage(prefix='m:', default_id=None)"


async def command(client: Any, *words: str) -> Any:
    """Send a command that redis-py has no method for."""
    return await client.execute_command(*words)


@contextlib.asynccontextmanager
async def cluster_of_one(folder: Path) -> AsyncIterator[RedisCluster]:
    """Give a cluster with a single node."""
    with RedisServer(folder, cluster=True) as server:
        async with connected(server.url) as node:
            await command(node, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            for _ in range(1000):
                # A dict, or text, as the version of redis-py has it.
                if "ok" in str(await command(node, "CLUSTER INFO"))[:30]:
                    break
                await asyncio.sleep(0.01)
        async with RedisCluster(host="127.0.0.1", port=server.port) as cluster:
            yield cluster


async def test_a_cluster_conforms(tmp_path: Path) -> None:
    async with cluster_of_one(tmp_path) as cluster:
        storage = RedisStorage(cluster, prefix="m:")
        await storage.open_for(ONE)
        await check_marker_storage(lambda: RedisStorage(cluster, prefix="c:"), overlapping=True)


# The rights of the user


async def test_what_it_may_not_do_is_found_out_at_opening(
    client: Redis, shared_server: RedisServer
) -> None:
    rights = ["~m:*", "+eval", "+hmget", "+hset"]
    await command(client, "ACL", "SETUSER", "app", "on", ">pw", "resetkeys", "-@all", *rights)
    url = shared_server.url.replace("//", "//app:pw@")
    for missing in (None, "-eval", "-hmget", "-hset", "resetkeys"):
        if missing is not None:
            await command(client, "ACL", "SETUSER", "app", missing)
        async with connected(url) as limited:
            storage = RedisStorage(limited, prefix="m:")
            if missing is None:
                await storage.open_for(ONE)
                await storage.open_for(None)
                await storage.extract_replay_id(event(1))
                assert await storage.get_replay_id(CHANNEL) == 1
            else:
                with pytest.raises(ReplayError, match="EVAL, HMGET and HSET") as caught:
                    await storage.open_for(ONE)
                assert "pw" not in str(caught.value)
        if missing is not None:
            await command(client, "ACL", "SETUSER", "app", *rights)
    await command(client, "ACL", "DELUSER", "app")


# The org


ONE, OTHER = "00D000000000001", "00D000000000002"


async def test_markers_of_another_org_are_refused(client: Redis) -> None:
    storage = RedisStorage(client, prefix="m:")
    await storage.open_for(None)
    await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
    for org_id in (ONE, ONE + "EAA", None, ONE):
        await storage.open_for(org_id)
        assert await storage.get_replay_id(CHANNEL) == 1
    with pytest.raises(ReplayError, match=f"belong to the org {ONE}.*{OTHER}.*start-anew"):
        await RedisStorage(client, prefix="m:").open_for(OTHER)
    await RedisStorage(client, prefix="other:").open_for(OTHER)


async def test_with_another_org_it_starts_anew_if_it_is_told_to(
    client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> RedisStorage:
        return RedisStorage(client, prefix="m:", default_id=-2, other_org="start-anew")

    before = make()
    # One that names no org, and one that does.
    await before.extract_replay_id(event(7))
    await before.open_for(ONE)
    await before.extract_replay_id(event(8, channel="/event/B"))
    assert [await before.get_replay_id(key) for key in (CHANNEL, "/event/B")] == [7, 8]
    after = make()
    await after.open_for(OTHER)
    assert f"Left the markers of the org {ONE}" in caplog.text
    for storage in (after, make()):
        await storage.open_for(OTHER)
        assert [await storage.get_replay_id(key) for key in (CHANNEL, "/event/B")] == [-2, -2]
    # Older than the markers that mean nothing, which do not stay.
    for channel in (CHANNEL, "/event/B"):
        await after.extract_replay_id(event(1, OLD, channel))
        assert await after.get_replay_marker(channel) == ReplayMarker(OLD, 1)
    await after.extract_replay_id(event(0, "2001-01-01T00:00:00Z"))
    assert await after.get_replay_id(CHANNEL) == 1


def test_there_are_two_ways_to_deal_with_another_org() -> None:
    with pytest.raises(ValueError, match="other_org should be"):
        RedisStorage(Redis(), prefix="m:", other_org="ignore")  # type: ignore[arg-type]


# The rule, in Lua


async def test_redis_follows_the_rule(client: Redis) -> None:
    dates = [
        OLD,
        NEW,
        "2017-04-09T18:31:40.517+0000",
        "",
        "?",
        "1501010206653",
        "9999-01-01T00:00:00Z",
    ]
    ids = [0, 5, 9, 10, 180, 181, 2**53, 2**53 + 1, 2**64, -1, -2, "5", "a", True, 1.5]
    rng = random.Random(3)
    storage = RedisStorage(client, prefix="m:")
    for number in range(300):
        expected: ReplayMarker | None = None
        for _ in range(4):
            new = ReplayMarker(rng.choice(dates), rng.choice(ids))  # type: ignore[arg-type]
            await storage.set_unless_newer(f"/u/{number}", new)
            expected = new if should_store(expected, new) else expected
            found = await storage.get_replay_marker(f"/u/{number}")
            assert found == expected
            assert type(found and found.replay_id) is type(expected and expected.replay_id)


async def test_a_date_of_the_far_future_that_is_stored_already_does_not_stay(client: Redis) -> None:
    stored: dict[Any, Any] = {
        "date": "9999-01-01T00:00:00Z",
        "instant": "253370764800.0",
        "replay_id": "7",
    }
    await client.hset(f"m:{CHANNEL}", mapping=stored)
    storage = RedisStorage(client, prefix="m:")
    await storage.extract_replay_id(event(9, OLD))
    assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 9)


# Servers that come and go


class Forwarder:
    """An address behind which the server can change, as that of a failover."""

    def __init__(self, port: int) -> None:
        self.port = port
        #: Sent in place of the answers to the next scripts.
        self.instead: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"redis://127.0.0.1:{port}/0"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream, sink = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.create_task(self._answer(upstream, writer))
        try:
            while data := await reader.read(65536):
                if self.instead and b"EVAL" in data:
                    writer.write(self.instead.pop(0))
                else:
                    sink.write(data)
        finally:
            answers.cancel()
            writer.close()
            sink.close()

    @staticmethod
    async def _answer(upstream: Any, writer: Any) -> None:
        while data := await upstream.read(65536):
            writer.write(data)


async def test_a_failover_goes_unnoticed(tmp_path: Path) -> None:
    """The old primary is a replica now, and its connections stay open."""
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as old, RedisServer(folders[1]) as new:
        forwarder = Forwarder(old.port)
        async with forwarder as url, connected(url) as client, connected(old.url) as demoted:
            storage = RedisStorage(client, prefix="m:")
            await storage.open_for(ONE)
            await storage.extract_replay_id(event(1))
            await command(demoted, "REPLICAOF", "127.0.0.1", str(new.port))
            with pytest.raises(ReplayError, match=r"READONLY|read only replica"):
                await storage.extract_replay_id(event(2))
            with pytest.raises(ReplayError, match="address of the primary"):
                await storage.open_for(ONE)
            forwarder.port = new.port
            await storage.extract_replay_id(event(3))
            assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 3)
        async with connected(new.url) as client:
            marker = await RedisStorage(client, prefix="m:").get_replay_marker(CHANNEL)
            assert marker == ReplayMarker(NEW, 3)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is starting"),
        (b"-READONLY You can't write against a read only replica.\r\n", "address of the primary"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "RedisCluster"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "reachable"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "reachable"),
    ],
)
async def test_what_may_pass_is_tried_once_more(
    shared_server: RedisServer, answer: bytes, advice: str
) -> None:
    forwarder = Forwarder(shared_server.port)
    options: dict[str, Any] = {"protocol": 2}
    async with forwarder as url, connected(url, **options) as client:
        await client.flushdb()
        storage = RedisStorage(client, prefix="m:")
        await storage.extract_replay_id(event(1))
        forwarder.instead = [answer]
        await storage.extract_replay_id(event(2))
        assert await storage.get_replay_id(CHANNEL) == 2
        forwarder.instead = [answer, answer]
        with pytest.raises(ReplayError, match=advice):
            await storage.extract_replay_id(event(3))
        assert forwarder.instead == []
        await storage.extract_replay_id(event(3))
        assert await storage.get_replay_id(CHANNEL) == 3


async def test_a_command_that_was_given_up_leaves_no_answer_behind(server: RedisServer) -> None:
    async with connected(server.url, max_connections=1) as client:
        storage = RedisStorage(client, prefix="m:")
        for number in range(5):
            await storage.set_replay_marker(f"/u/{number}", ReplayMarker(NEW, number))
        for number in range(5):
            server.pause()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(storage.get_replay_marker(f"/u/{number}"), 0.05)
            server.resume()
            other = (number + 1) % 5
            assert await storage.get_replay_id(f"/u/{other}") == other


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
        assert notes_of(storage).overwriting == {}
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 1)
        await storage.extract_replay_id(event(0, "2001-01-01T00:00:00Z"))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 1)


async def test_a_client_whose_redis_dies_delivers_each_event(server: RedisServer) -> None:
    """The message whose marker could not be stored comes again, and no other."""
    async with StreamingServer() as org, connected(server.url) as client:
        storage = RedisStorage(client, prefix="m:", default_id=ReplayOption.ALL_EVENTS)
        published = [org.publish(CHANNEL, {"Ink__c": number}) for number in range(10)]
        async with client_for(org, replay=storage) as consumer:
            await consumer.subscribe(CHANNEL)
            received = await receive(consumer, 4)
            server.kill()
            with pytest.raises(ReplayError, match="in Redis cannot be used"):
                await receive(consumer)
            server.start()
            received += await receive(consumer, 6)
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
