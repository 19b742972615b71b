"""What an id says and what it does not: ids that begin again, orgs that are replaced, names of channels."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import (
    AuthenticationError,
    ReplayError,
    ReplayMarker,
    ReplayOption,
    ServerError,
    SQLiteStorage,
)
from aiosfstream.testing import CutAfter, Duplicate, Gate, Hold, StreamingServer
from tests.support import CHANGE, EVENT, GENERIC, TOPIC, client_for, held, receive, soon, until
from tests.world import nothing_more, program, publish, sent

ALL, NEW = ReplayOption.ALL_EVENTS, ReplayOption.NEW_EVENTS
CHANNELS = [EVENT, GENERIC, TOPIC, CHANGE]


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Ids that begin again


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("fallback", [ALL, NEW])
async def test_ids_that_begin_again_are_those_of_new_events(
    server: StreamingServer, channel: str, fallback: ReplayOption
) -> None:
    markers: dict[str, Any] = {}
    async with program(server, markers, replay_fallback=fallback) as client:
        await client.subscribe(channel)
        first = publish(server, channel, 5)
        assert await receive(client, 5) == first
        await held(server)
        gate = Gate()
        server.add_fault(Hold(gate), on="/meta/handshake")
        server.expire_sessions()
        server.reset_ids()
        gate.open()
        # After the fallback, so that it is no matter which.
        await until(lambda: len(sent(server, "/meta/subscribe")) == 3)
        await held(server)
        again = publish(server, channel, 3)
        assert again == first[:3]
        assert await receive(client, 3) == again
        # The marker of the org as it was would be refused again.
        assert markers[channel].replay_id == again[-1]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_an_equal_id_is_no_duplicate_in_one_session(
    server: StreamingServer, channel: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(channel)
        now = datetime.now(timezone.utc)
        for second in range(3):
            server.publish(
                channel, {"Same__c": 1}, replay_id=7, date=now + timedelta(seconds=second)
            )
        assert await receive(client, 3) == [7, 7, 7]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_what_is_sent_twice_is_delivered_once(server: StreamingServer, channel: str) -> None:
    async with client_for(server) as client:
        await client.subscribe(channel)
        await held(server)
        server.add_fault(Duplicate(), on="/meta/connect", answering=lambda answer: len(answer) > 1)
        ids = publish(server, channel, 3)
        assert await receive(client, 3) == ids
        assert await nothing_more(client)


async def test_events_without_anything_but_a_payload(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        data = [{"event": {"replayId": 7}, "payload": {"Number__c": number}} for number in (1, 2)]
        server.add_fault(Duplicate(), on="/meta/connect", times=None)
        for one in data:
            server.publish_data(EVENT, one, replay_id=7)
        got = [(await soon(client.receive()))["data"] for _ in range(2)]
        assert got == data
        assert await nothing_more(client)


async def test_an_explicit_subscription_begins_a_new_memory(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT, replay=ALL)
        ids = publish(server, EVENT, 3)
        assert await receive(client, 3) == ids
        await client.subscribe(EVENT, replay=ALL)
        assert await receive(client, 3) == ids


async def test_ids_begin_again_without_a_fallback(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        first = publish(server, EVENT, 5)
        assert await receive(client, 5) == first
        await held(server)
        server.reset_ids()
        server.expire_sessions()
        with pytest.raises(ServerError, match=EVENT) as caught:
            await soon(client.receive())
        assert caught.value.replay_id == first[-1]
        await client.subscribe(EVENT, replay=NEW)
        again = publish(server, EVENT, 5)
        assert await receive(client, 5) == again == first


# Another org


@pytest.mark.parametrize("other_org", ["refuse", "start-anew"])
async def test_markers_know_their_org(
    server: StreamingServer, tmp_path: Path, other_org: Any
) -> None:
    path = tmp_path / "markers.db"
    publish(server, EVENT, 5)
    async with SQLiteStorage(path) as storage, client_for(server, replay=storage) as client:
        await client.subscribe(EVENT, replay=ALL)
        assert len(await receive(client, 5)) == 5
    server.replace_org()
    orders = publish(server, EVENT, 9)
    async with SQLiteStorage(path, default_id=ALL, other_org=other_org) as storage:
        client = client_for(server, replay=storage)
        if other_org == "refuse":
            with pytest.raises(ReplayError, match="other_org"):
                await client.open()
            assert client.closed
        else:
            async with client:
                await client.subscribe(EVENT)
                assert await receive(client, 9) == orders
    # What was refused has changed nothing.
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    connection.close()


async def test_another_org_in_mid_stream_is_told_and_nothing_is_skipped(
    server: StreamingServer, tmp_path: Path
) -> None:
    def storage() -> SQLiteStorage:
        return SQLiteStorage(tmp_path / "markers.db", default_id=ALL, other_org="start-anew")

    async with storage() as markers, client_for(server, replay=markers) as client:
        await client.subscribe(EVENT)
        first = publish(server, EVENT, 3)
        assert await receive(client, 3) == first
        await held(server)
        gate = Gate()
        server.add_fault(Hold(gate), on="/meta/handshake")
        server.replace_org()
        # The last id that was received is one of the new org as well.
        orders = publish(server, EVENT, 9)
        assert first[-1] in orders
        gate.open()
        for _ in range(2):
            with pytest.raises(AuthenticationError, match="another org"):
                await soon(client.receive())
        assert not client.closed
    assert server.count("token") == 2
    async with storage() as markers, client_for(server, replay=markers) as client:
        await client.subscribe(EVENT)
        assert await receive(client, 9) == orders


async def test_a_short_and_a_long_id_are_those_of_one_org(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await held(server)
        server.replace_org("00D000000000001")
        await until(lambda: server.count("token") == 2)
        await soon(client.subscribe(EVENT))
        wanted = publish(server, EVENT, 1)
        assert await receive(client) == wanted


async def test_markers_without_an_org_go_on(server: StreamingServer, tmp_path: Path) -> None:
    ids = publish(server, EVENT, 5)
    async with SQLiteStorage(tmp_path / "markers.db") as storage:
        # As an application writes them that has never logged in.
        await storage.set_replay_marker(EVENT, ReplayMarker("", ids[2]))
        async with client_for(server, replay=storage) as client:
            await client.subscribe(EVENT)
            assert await receive(client, 2) == ids[3:]


# Names of channels


async def test_a_slash_at_the_end_of_a_name_changes_nothing(server: StreamingServer) -> None:
    markers: dict[str, Any] = {}
    ids = publish(server, EVENT, 5)
    async with program(server, markers) as client:
        await client.subscribe(f"{EVENT}/", replay=ids[1])
        assert await receive(client, 3) == ids[2:]
        assert markers.keys() == {EVENT}
        await held(server)
        server.add_fault(CutAfter(), on="/meta/connect", times=1)
        for number in range(2):
            ids += publish(server, EVENT, 1)
            server.expire_sessions()
            assert await receive(client) == [ids[-1]], number
            await held(server)
    ids += publish(server, EVENT, 1)
    for name in (f"{EVENT}/", EVENT):
        async with program(server, dict(markers)) as client:
            await client.subscribe(name)
            assert await receive(client) == [ids[-1]]


async def test_a_slash_before_the_filter_of_a_pushtopic(server: StreamingServer) -> None:
    markers: dict[str, Any] = {}
    ids = server.publish_many([(TOPIC, {"Status": status}) for status in "abab"])
    async with program(server, markers) as client:
        await client.subscribe(f"{TOPIC}/?Status='a'", replay=ids[0])
        assert await receive(client) == [ids[2]]
    assert markers.keys() == {TOPIC}
