"""What the examples of services do with the events that they receive."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from aiosfstream.testing import Status
from tests.postgres_server import PostgresServer
from tests.programs import wait_until
from tests.redis_server import RedisServer
from tests.services import (
    CHANGE,
    INK,
    ORDER,
    Example,
    account,
    answer_queries,
    change,
    order,
    scene,
)


async def test_a_service_puts_aside_what_fails(tmp_path: Path) -> None:
    async with scene(Example("service", ORDER, order), tmp_path / "it", {}) as it:
        it.org.publish_many([(ORDER, order(number)) for number in (1, -2, 3)])
        it.org.publish(INK, {"Ink_Percentage__c": 0.1})
        for shown in ("order 1", "order 3", "refill"):
            await it.shows(shown)
        aside = it.folder / "put_aside.jsonl"
        await wait_until(aside.exists)
        [entry] = map(json.loads, aside.read_text("utf-8").splitlines())
        assert entry["message"]["data"]["payload"]["Number__c"] == -2
        assert "no such orders" in entry["error"]
        await wait_until(lambda: "was put aside" in it.program.errors)
        await it.streaming()
        await it.program.end(signal.SIGTERM)
        await it.start_again()
        await it.program.end(signal.SIGTERM)
        assert len(it.program.lines()) == 3, "something was processed again"


async def get(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()


async def test_fastapi_serves_what_the_events_say(tmp_path: Path) -> None:
    command = ("-m", "uvicorn", "fastapi_app:app", "--log-level=warning")
    async with scene(Example("fastapi_app", command=command), tmp_path / "it", {}) as it:
        await it.streaming()
        it.org.publish(INK, {"Serial_Number__c": "A7", "Ink_Percentage__c": 0.25})
        await it.shows("noted A7")
        url = f"http://127.0.0.1:{it.port}"
        assert await get(f"{url}/printers/A7") == (200, {"ink": 0.25})
        assert await get(f"{url}/printers/A8") == (200, {"ink": None})
        assert await get(f"{url}/ready") == (200, {"state": "CONNECTED"})
        await it.org.pause()
        status = 200
        while status == 200:
            status, _ = await get(f"{url}/ready")
        assert status == 503
        await it.org.resume()


async def test_fastapi_ends_with_the_stream(tmp_path: Path) -> None:
    command = ("-m", "uvicorn", "fastapi_app:app", "--log-level=warning")
    async with scene(Example("fastapi_app", command=command), tmp_path / "it", {}) as it:
        await it.streaming()
        it.org.deny(INK, "403:denied_by_security_policy:create_denied")
        it.org.expire_sessions()
        assert await it.ended() != 0
        assert "The event stream has ended, and so does the server" in it.program.errors
        assert INK in it.program.errors


async def test_django_saves_orders_once(tmp_path: Path) -> None:
    command = ("-m", "django", "stream_orders")
    example = Example("django_stream_orders", ORDER, order, command=command)
    async with scene(example, tmp_path / "it", {}) as it:
        await it.streaming()
        it.org.publish(ORDER, {"Number__c": 1, "Amount__c": 10})
        it.org.publish(ORDER, {"Number__c": 1, "Amount__c": 20})
        await it.shows("saved 1", times=2)
        with closing(sqlite3.connect(it.folder / "db")) as database:
            rows = database.execute("SELECT number, amount FROM orders_order").fetchall()
        assert rows == [(1, 20)]


async def test_celery_processes_what_was_handed_over(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis:
        urls = {"REDIS_URL": redis.url}
        async with scene(Example("celery_orders", ORDER, order), tmp_path / "it", urls) as it:
            await it.streaming()
            it.org.publish_many([(ORDER, order(number)) for number in range(3)])
            await it.shows("handed over 2")
            # There was no worker until now.
            options = ("--pool=solo", "--loglevel=WARNING", "--without-gossip", "--without-mingle")
            worker = it.start_other(
                "worker", "-m", "celery", "-A", "celery_orders", "worker", *options
            )
            await wait_until(lambda: "processed 2" in "\n".join(worker.lines()) + worker.errors)
            redis.pause()
            it.org.publish(ORDER, order(3))
            redis.resume()
            await wait_until(lambda: "processed 3" in "\n".join(worker.lines()) + worker.errors)


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    with PostgresServer() as postgres:
        engine = create_async_engine(postgres.url)
        yield engine
        await engine.dispose()


async def rows(engine: AsyncEngine, query: str) -> list[Any]:
    """Give the first column of what a query finds, or nothing where there is no table yet."""
    async with engine.begin() as connection:
        if not (await connection.execute(text("SELECT to_regclass('markers')"))).scalar():
            return []
        return list((await connection.execute(text(query))).scalars())


def url_of(engine: AsyncEngine) -> dict[str, str]:
    return {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}


async def test_sql_takes_back_what_a_failing_block_has_written(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    async with scene(Example("sql_orders", ORDER, order), tmp_path / "it", url_of(engine)) as it:
        await it.streaming()
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO stock VALUES ('paper', 1)"))
        ids = [it.org.publish(ORDER, order(number)) for number in (1, 2)]
        await wait_until(lambda: "was put aside" in it.program.errors)
        assert await rows(engine, "SELECT number FROM orders") == [1], "half a result remained"
        assert await rows(engine, "SELECT pieces FROM stock") == [0]
        [aside] = await rows(engine, "SELECT message FROM put_aside")
        assert aside["data"]["payload"]["Number__c"] == 2
        assert await rows(engine, "SELECT replay_id FROM markers") == ids[1:]


async def test_sql_processes_every_event_exactly_once(engine: AsyncEngine, tmp_path: Path) -> None:
    rng = random.Random(7)
    count, kills = 0, 4
    async with scene(Example("sql_orders", ORDER, order), tmp_path / "it", url_of(engine)) as it:
        for _ in range(kills):
            await it.streaming()
            for _ in range(rng.randrange(20, 60)):
                count += 1
                it.org.publish(ORDER, order(count))
            at_least = len(it.program.lines()) + rng.randrange(1, 15)
            await wait_until(lambda: len(it.program.lines()) >= at_least)  # noqa: B023
            await it.program.end(signal.SIGKILL)
            it.org.expire_sessions()
            it.start()
        await it.shows(f"stored {count}")
    found = await rows(engine, "SELECT number FROM orders ORDER BY number")
    assert found == list(range(1, count + 1))
    print(f"kills {kills}, events {count}, lost 0, repeated 0")


def copy_of(folder: Path) -> dict[str, Any]:
    """Give the names of the accounts in the example's copy, by their ids."""
    with closing(sqlite3.connect(folder / "accounts.db")) as database:
        return dict(database.execute("SELECT id, Name FROM accounts"))


async def test_a_copy_begins_with_a_snapshot_and_follows_the_changes(tmp_path: Path) -> None:
    example = Example("snapshot", CHANGE, account)
    async with scene(example, tmp_path / "it", {}) as it:
        await it.shows("snapshot 0")
        await it.streaming()
        it.org.publish(CHANGE, change("CREATE", "1", Name="One", Phone="111"))
        it.org.publish(CHANGE, change("CREATE", "2", "3", Name="Twin"))
        it.org.publish(CHANGE, change("UPDATE", "2", Name="Two"))
        it.org.publish(CHANGE, change("DELETE", "3"))
        await it.shows("DELETE 3")
        assert copy_of(it.folder) == {"1": "One", "2": "Two"}
        # Salesforce could not say what has changed: the records are read again.
        it.answer_queries(**{"1": "First"})
        it.org.publish(CHANGE, change("GAP_UPDATE", "1", "2"))
        await it.shows("GAP_UPDATE 1 2")
        assert copy_of(it.folder) == {"1": "First"}
        it.answer_queries(**{"1": "All", "4": "Anew"})
        it.org.publish(CHANGE, change("GAP_OVERFLOW"))
        await it.shows("snapshot 2")
        assert copy_of(it.folder) == {"1": "All", "4": "Anew"}
        await it.shows("GAP_OVERFLOW")
        # What changes while it does not run comes from the marker, without another snapshot.
        await it.program.end(signal.SIGTERM)
        it.org.publish(CHANGE, change("UPDATE", "4", Name="Later"))
        await it.start_again()
        await it.shows("UPDATE 4")
        assert copy_of(it.folder) == {"1": "All", "4": "Later"}
        assert sum("snapshot" in line for line in it.program.lines()) == 2


async def test_a_snapshot_gets_a_new_token(tmp_path: Path) -> None:
    async with scene(Example("snapshot", CHANGE, account), tmp_path / "it", {}) as it:
        await it.shows("snapshot 0")
        await it.streaming()
        it.org.clear_faults(it.answers)
        it.org.add_fault(Status(401), on="other")
        it.answers = answer_queries(it.org, **{"9": "Nine"})
        tokens = it.org.count("token")
        it.org.publish(CHANGE, change("GAP_OVERFLOW"))
        await it.shows("snapshot 1")
        assert it.org.count("token") == tokens + 1
        assert copy_of(it.folder) == {"9": "Nine"}


async def test_records_as_json(tmp_path: Path) -> None:
    async with scene(Example("logging_json"), tmp_path / "it", {}) as it:
        await it.streaming()
        await it.shows(it.publish())
        await it.program.end(signal.SIGTERM)
        records = [json.loads(line) for line in it.program.errors.splitlines()]
        assert {record["level"] for record in records} == {"INFO"}
        messages = {record["logger"]: record["message"] for record in records}
        assert messages["aiosfstream.service"] == "Stopped"
        assert "aiosfstream.client" in messages
