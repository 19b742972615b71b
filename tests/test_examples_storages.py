"""The examples about storages, killed where that is what they are about."""

import asyncio
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiosfstream.testing import StreamingServer
from tests.programs import EXAMPLES, Program, Programs, repeated, wait_until
from tests.redis_server import RedisServer

INK, ORDER = "/event/Low_Ink__e", "/event/Order__e"


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


def numbered(count: int, first: int = 1) -> list[tuple[str, Any]]:
    """Return orders to be published."""
    return [(ORDER, {"Number__c": number}) for number in range(first, first + count)]


async def test_redis_lets_a_later_run_go_on(
    org: StreamingServer, redis: RedisServer, tmp_path: Path
) -> None:
    programs = Programs(tmp_path, org, REDIS_URL=redis.url, PYTHONUNBUFFERED=1)
    try:
        for level in ("0.1", "0.2"):
            org.publish(INK, {"Ink_Percentage__c": level})
            program = programs.start("storage_redis")
            await wait_until(lambda: level in "".join(program.lines()))  # noqa: B023
            await program.end(signal.SIGINT)
        assert len(program.lines()) == 2, "what was delivered before came again"
    finally:
        await programs.stop()


async def test_results_in_the_same_transaction_are_there_once(
    org: StreamingServer, tmp_path: Path
) -> None:
    rng = random.Random(5)
    programs = Programs(tmp_path, org)
    database = tmp_path / "results.db"
    count, kills = 0, 0

    def results() -> list[int]:
        if not database.exists():
            return []
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            try:
                return [row[0] for row in connection.execute("SELECT printer FROM results")]
            except sqlite3.OperationalError:
                return []

    try:
        while kills < 5:
            program = programs.start("storage_own")
            await wait_until(lambda: len(org.subscriptions) > 0)
            for _ in range(rng.randrange(20, 60)):
                count += 1
                org.publish(INK, {"Printer__c": count, "Ink_Percentage__c": 0.1})
                if rng.random() < 0.2:
                    await asyncio.sleep(0.002)
            at_least = len(results()) + 1
            await wait_until(lambda: len(results()) >= at_least)  # noqa: B023
            await program.end(signal.SIGKILL)
            kills += 1
            org.expire_sessions()
        programs.start("storage_own")
        await wait_until(lambda: len(results()) >= count)
    finally:
        await programs.stop()
    assert sorted(results()) == list(range(1, count + 1))
    print(f"kills {kills}, events {count}, lost 0, repeated 0")


async def test_workers_lose_nothing_whatever_ends_them(
    org: StreamingServer, tmp_path: Path
) -> None:
    rng = random.Random(6)
    programs = Programs(tmp_path, org)
    count, ends = (
        400,
        [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGINT, signal.SIGKILL],
    )
    org.publish(ORDER, {"Number__c": -7})
    org.publish_many(numbered(count))
    try:
        for number in ends:
            program = programs.start("storage_workers")
            await programs.until_processed(len(programs.processed()) + rng.randrange(20, 60))
            await program.end(number)
        program = programs.start("storage_workers")
        await programs.until_processed(count)
        await program.end(signal.SIGINT)
        assert "Task exception was never retrieved" not in program.errors
    finally:
        await programs.stop()
    processed = programs.processed()
    assert sorted(processed) == list(range(1, count + 1))
    assert any(line.startswith("put aside -7") for line in programs.lines())
    again = repeated(processed)
    print(f"kills {len(ends)}, events {count}, lost 0, repeated {again}")
    # Five in work, five in the queue, one before it, and what has passed the slowest of them.
    assert again <= 40 * len(ends)


@pytest.mark.parametrize("name", ["test_my_storage.py", "test_atomic_storage.py"])
def test_the_test_of_a_storage_of_ones_own(tmp_path: Path, name: str) -> None:
    example = tmp_path / name
    example.write_text((EXAMPLES / example.name).read_text("utf-8"), "utf-8")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [*command, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


async def test_the_tutorial(tmp_path: Path) -> None:
    environment = {**os.environ, "PORT": str(free_port())}
    org = Program("tutorial_org", tmp_path / "org.out", environment)
    try:
        await wait_until(lambda: len(org.lines()) == 3)
        for line in org.lines():
            name, value = line.removeprefix("export ").split("=", 1)
            environment[name] = value
        orders: list[int] = []
        ends = [0]
        for number in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
            consumer = Program("tutorial_consumer", tmp_path / "consumer.out", environment)
            await wait_until(lambda: len(orders_of(consumer)) > ends[-1])  # noqa: B023
            await consumer.end(number)
            assert complaints_of(consumer) == []
            orders = orders_of(consumer)
            ends.append(len(orders))
        assert sorted(set(orders)) == list(range(1, max(orders) + 1))
        # What the killed program had processed last may come again, and nothing else.
        killed = orders[ends[1] : ends[2]]
        assert len(set(orders[: ends[2]])) == ends[2]
        assert set(orders[: ends[2]]) & set(orders[ends[2] :]) <= set(killed)
        org = await restart_under_the_consumer(org, environment, max(orders))
    finally:
        await org.end(signal.SIGINT)
    assert org.errors == ""


async def restart_under_the_consumer(
    org: Program, environment: dict[str, str], last: int
) -> Program:
    """Do step 5: the consumer outlives a short outage, and misses nothing."""
    consumer = Program("tutorial_consumer", org.output.with_name("consumer.out"), environment)
    await wait_until(lambda: max(orders_of(consumer)) > last)
    await org.end(signal.SIGINT)
    seen = max(orders_of(consumer))
    org = Program("tutorial_org", org.output, environment)
    await wait_until(lambda: max(orders_of(consumer)) > seen + 1)
    await consumer.end(signal.SIGINT)
    assert complaints_of(consumer) == []
    orders = orders_of(consumer)
    assert sorted(set(orders)) == list(range(1, max(orders) + 1))
    return org


def complaints_of(program: Program) -> list[str]:
    """Return what a consumer has written to standard error that is no routine.

    On a busy machine an outage may take long enough to be told, and messages may wait at the end.
    """
    routine = ("still trying", "still pending")
    return [line for line in program.errors.splitlines() if not any(w in line for w in routine)]


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def orders_of(program: Program) -> list[int]:
    return [int(line.split()[1]) for line in program.lines()]
