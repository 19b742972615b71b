"""More than one machine: what is killed is taken over, and nothing is lost."""

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from aiosfstream.testing import StreamingServer
from tests.programs import PATIENCE, Program, Programs, repeated, wait_until
from tests.redis_server import RedisServer

ORDER = "/event/Order__e"
#: Seconds until the lock of a dead machine is free, short for the test.
LEASE = 3.0


@pytest.fixture
async def org() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture
async def programs(
    org: StreamingServer, redis: RedisServer, tmp_path: Path
) -> AsyncIterator[Programs]:
    programs = Programs(tmp_path, org, REDIS_URL=redis.url, LEASE=LEASE, IDLE=1000)
    yield programs
    await programs.stop()


class Publisher:
    """Publishes orders one after another, until it is stopped."""

    def __init__(self, org: StreamingServer) -> None:
        self._org = org
        self.ids: list[Any] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.ids.append(self._org.publish(ORDER, {"Number__c": len(self.ids) + 1}))
            await asyncio.sleep(0.01)

    async def stop(self) -> int:
        """Stop and return how many were published."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return len(self.ids)


def is_active(program: Program) -> bool:
    """Tell whether a program of the example ``standby`` has the lock, as far as it knows."""
    states = [line for line in program.lines() if not line.startswith("processed")]
    return program.running and bool(states) and states[-1] == "active"


async def test_a_standby_goes_on_when_the_active_one_is_killed(
    org: StreamingServer, programs: Programs
) -> None:
    pair = [programs.start("standby", "one"), programs.start("standby", "two")]
    publisher = Publisher(org)
    kills, pauses = 4, []
    for _ in range(kills):
        await programs.until_processed(len(programs.processed()) + 20)
        # On a busy machine one may have the lock no longer and not know it yet.
        await wait_until(lambda: sum(map(is_active, pair)) == 1)  # noqa: B023
        active, other = sorted(pair, key=is_active, reverse=True)
        before = len(other.lines())
        await active.end(signal.SIGKILL)
        killed = time.monotonic()
        await wait_until(lambda: len(other.lines()) > before + 1)  # noqa: B023
        pauses.append(time.monotonic() - killed)
        active.note("killed")
        pair = [other, programs.start("standby", active.output.stem)]
    published = await publisher.stop()
    await programs.until_processed(published)
    processed = programs.processed()
    assert sorted(processed) == list(range(1, published + 1))
    again = repeated(processed)
    print(
        f"kills {kills}, events {published}, lost 0, repeated {again},"
        f" taken over within {max(pauses):.1f} s"
    )
    # What was processed and not noted yet when the machine died, unless one was too slow to keep its
    # lock: then both process the same events until it finds that out.
    assert again <= kills or any("standing by" in line for line in programs.lines())
    assert max(pauses) < LEASE + 8


async def test_one_that_hung_while_the_other_took_over_steps_back(
    org: StreamingServer, programs: Programs
) -> None:
    pair = [programs.start("standby", "one"), programs.start("standby", "two")]
    publisher = Publisher(org)
    await programs.until_processed(20)
    await wait_until(lambda: sum(map(is_active, pair)) == 1)
    hung, other = sorted(pair, key=is_active, reverse=True)
    hung.send(signal.SIGSTOP)
    await wait_until(lambda: is_active(other))
    await programs.until_processed(len(programs.processed()) + 20)
    hung.send(signal.SIGCONT)
    await wait_until(lambda: not is_active(hung))
    assert is_active(other)
    await programs.until_processed(len(programs.processed()) + 20)
    await other.end(signal.SIGKILL)
    await wait_until(lambda: is_active(hung))
    published = await publisher.stop()
    await programs.until_processed(published)
    assert sorted(programs.processed()) == list(range(1, published + 1))


async def test_machines_that_lose_redis_come_back(
    org: StreamingServer, redis: RedisServer, programs: Programs
) -> None:
    pair = [programs.start("standby", "one"), programs.start("standby", "two")]
    publisher = Publisher(org)
    await programs.until_processed(20)
    redis.kill()
    await wait_until(lambda: any("standing by" in line for line in programs.lines()))
    redis.start()
    await programs.until_processed(len(publisher.ids) + 20)
    published = await publisher.stop()
    await programs.until_processed(published)
    assert sorted(programs.processed()) == list(range(1, published + 1))
    assert all(program.running for program in pair)


async def test_fan_out_processes_each_event_and_the_marker_passes_none(
    org: StreamingServer, redis: RedisServer, programs: Programs
) -> None:
    rng = random.Random(8)
    workers = [programs.start("fan_out_worker", f"worker{number}") for number in range(3)]
    forwarder = programs.start("fan_out_forwarder")
    publisher = Publisher(org)
    kills = 10
    async with Redis.from_url(redis.url) as client:
        for kill in range(kills):
            await programs.until_processed(len(programs.processed()) + rng.randrange(5, 30))
            if kill % 2:
                await forwarder.end(signal.SIGKILL)
                await check_marker(client, programs, publisher)
                forwarder = programs.start("fan_out_forwarder")
            else:
                victim = rng.randrange(len(workers))
                await workers[victim].end(signal.SIGKILL)
                workers[victim] = programs.start("fan_out_worker", workers[victim].output.stem)
        published = await publisher.stop()
        await programs.until_processed(published)
        processed = programs.processed()
        assert sorted(processed) == list(range(1, published + 1))
        await until_empty(client)
    again = repeated(processed)
    print(f"kills {kills}, events {published}, lost 0, repeated {again}")
    # One that a worker had in its hands, or one that the forwarder had not noted.
    assert again <= kills


async def check_marker(client: Redis, programs: Programs, publisher: Publisher) -> None:
    """Demand that what the marker says is done is in the stream, or processed already."""
    stored: Any = await client.hget(f"orders:markers:{ORDER}", "replay_id")
    entries: Any = await client.xrange("orders")
    safe = set(programs.processed())
    for _, fields in entries:
        safe.add(json.loads(fields[b"event"])["data"]["payload"]["Number__c"])
    done = publisher.ids.index(json.loads(stored)) + 1
    assert safe.issuperset(range(1, done + 1)), "the marker ran ahead of the stream"


async def until_empty(client: Redis) -> None:
    """Wait until everything has been acknowledged and taken out of the stream."""
    deadline = time.monotonic() + PATIENCE
    while await client.xlen("orders") or (await client.xpending("orders", "workers"))["pending"]:
        assert time.monotonic() < deadline, "something is left in the stream"
        await asyncio.sleep(0.02)
