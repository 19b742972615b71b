"""``aiosfstream markers``, as a process of its own, on files and on a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from aiosfstream import ReplayMarker, SQLiteStorage
from aiosfstream.storages.redis import RedisStorage
from aiosfstream.testing import StreamingServer
from tests.commands import PATIENCE, environment, ids, run, start
from tests.redis_server import RedisServer
from tests.support import EVENT, TOPIC, held, soon

DATE = "2026-11-26T09:00:00.000Z"
MARKERS = {EVENT: ReplayMarker(DATE, 42), TOPIC: ReplayMarker("", 7)}


@dataclass
class Store:
    """A store, as a program and as the command line name it."""

    storage: Any
    arguments: list[str]

    async def replay_ids(self) -> dict[str, Any]:
        """Give what is stored now."""
        return {
            channel: marker.replay_id for channel, marker in (await self.storage.markers()).items()
        }


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Give a store with two markers."""
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path / "state.db"
            store = Store(SQLiteStorage(path), [str(path)])
            stack.push_async_callback(store.storage.close)
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            client = await stack.enter_async_context(Redis.from_url(server.url))
            await client.flushall()
            # Keys of other applications, and what a pattern would take for one of ours.
            await client.set("other", "x")
            await client.hset("marXers:[*]:/event/X", "date", "x")
            storage = RedisStorage(client, prefix="markers:[*]:")
            store = Store(storage, [server.url, "--prefix", "markers:[*]:"])
        for channel, marker in MARKERS.items():
            await store.storage.set_replay_marker(channel, marker)
        yield store


async def markers(action: str, store: Store, *arguments: str) -> tuple[int, list[str], str]:
    """Run the command."""
    return await run("markers", action, *store.arguments, *arguments, env=environment())


async def test_a_table(store: Store) -> None:
    status, lines, told = await markers("show", store)
    assert (status, told) == (0, "")
    assert [line.split() for line in lines] == [
        ["CHANNEL", "REPLAY", "ID", "DATE"],
        [EVENT, "42", DATE],
        [TOPIC, "7", "-"],
    ]
    status, lines, _ = await markers("show", store, TOPIC)
    assert (status, len(lines)) == (0, 2)
    status, lines, told = await markers("show", store, "/event/Nope__e")
    assert (status, lines) == (1, [])
    assert "/event/Nope__e" in told


async def test_what_comes_out_goes_in_again(store: Store, tmp_path: Path) -> None:
    status, lines, told = await markers("export", store)
    assert (status, told) == (0, "")
    document = "\n".join(lines)
    assert json.loads(document) == {
        EVENT: {"date": DATE, "replay_id": 42},
        TOPIC: {"date": "", "replay_id": 7},
    }
    assert list(json.loads("\n".join((await markers("export", store, TOPIC))[1]))) == [TOPIC]
    assert (await markers("reset", store, "--all"))[0] == 0
    assert await store.replay_ids() == {}
    file = tmp_path / "markers.json"
    file.write_text(document)
    assert (await markers("set", store, "--from", str(file)))[0] == 0
    assert await store.storage.markers() == MARKERS


async def test_a_document_on_the_standard_input(store: Store) -> None:
    process = await start(
        *("markers", "set", *store.arguments, "--from", "-"),
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
    )
    document = {EVENT: 40, "/event/New__e": {"date": DATE, "replay_id": "abc"}}
    output, errors = await soon(process.communicate(json.dumps(document).encode()), PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert output.decode().splitlines() == [
        f"{EVENT}: 40 (before: 42)",
        '/event/New__e: "abc" (before: no marker)',
    ]
    assert await store.replay_ids() == {EVENT: 40, TOPIC: 7, "/event/New__e": "abc"}


async def test_a_marker_is_set_back(store: Store) -> None:
    status, lines, told = await markers("set", store, f"{EVENT}@40", f"{TOPIC}?x='y'@9")
    assert (status, told) == (0, "")
    assert lines == [f"{EVENT}: 40 (before: 42)", f"{TOPIC}: 9 (before: 7)"]
    assert await store.storage.get_replay_marker(EVENT) == ReplayMarker("", 40)
    status, _, _ = await markers("set", store, f"{EVENT}@41", "--date", DATE)
    assert status == 0
    assert await store.storage.get_replay_marker(EVENT) == ReplayMarker(DATE, 41)


async def test_a_marker_is_taken_away(store: Store) -> None:
    status, lines, told = await markers("reset", store, EVENT)
    assert (status, lines, told) == (0, [f"{EVENT}: no marker (before: 42)"], "")
    assert await store.replay_ids() == {TOPIC: 7}
    status, _, told = await markers("reset", store, EVENT)
    assert status == 1
    assert EVENT in told


async def test_a_store_that_a_consumer_uses_is_left_alone(store: Store) -> None:
    await store.storage.open_for("00D000000000001EAA")
    for action in (["set", f"{EVENT}@1"], ["reset", EVENT], ["reset", "--all"]):
        status, lines, told = await markers(action[0], store, *action[1:])
        assert (status, lines) == (1, [])
        assert "in use by process" in told
        assert "--force" in told
    assert await store.replay_ids() == {EVENT: 42, TOPIC: 7}
    status, lines, told = await markers("show", store)
    assert (status, len(lines)) == (0, 3)
    assert told.startswith("In use by process")
    assert (await markers("set", store, f"{EVENT}@1", "--force"))[0] == 0
    assert (await markers("reset", store, TOPIC, "--force"))[0] == 0
    assert await store.replay_ids() == {EVENT: 1}


async def test_a_store_that_is_closed_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with SQLiteStorage(path) as storage:
        await storage.open_for(None)
        await storage.set_replay_marker(EVENT, MARKERS[EVENT])
        assert len(await storage.consumers()) == 1
    status, _, told = await run("markers", "set", str(path), f"{EVENT}@1", env=environment())
    assert (status, told) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["show"], 2, "STORE"),
        (["dance", "x"], 2, "invalid choice"),
        (["show", "nowhere.db"], 1, "no file 'nowhere.db'"),
        (["export", "nowhere.db"], 1, "no file 'nowhere.db'"),
        (["reset", "nowhere.db", "--all"], 1, "no file 'nowhere.db'"),
        (["set", "nowhere.db", f"{EVENT}@1"], 1, "no file 'nowhere.db'"),
        (["reset", "x.db"], 2, "--all"),
        (["reset", "x.db", EVENT, "--all"], 2, "--all"),
        (["set", "x.db"], 2, "CHANNEL@ID, or --from FILE"),
        (["set", "x.db", EVENT], 2, "CHANNEL@ID with a replay id"),
        (["set", "x.db", f"{EVENT}@new"], 2, "markers reset"),
        (["set", "x.db", f"{EVENT}@-2"], 2, "markers reset"),
        (["set", "x.db", f"{EVENT}@foo"], 2, "'foo'"),
        (["set", "x.db", f"{EVENT}@1", "--from", "y"], 2, "CHANNEL@ID, or --from FILE"),
        (["set", "x.db", "--from", "y", "--date", "z"], 2, "--date"),
        (["set", "x.db", "--from", "nowhere.json"], 1, "nowhere.json"),
        (["show", "x.db", "--prefix", "p"], 2, "--prefix is for a STORE in Redis"),
        (["show", "redis://127.0.0.1:1"], 2, "needs --prefix"),
        (["show", "redis://127.0.0.1:1", "--prefix", "p"], 1, "Redis"),
        (["show", "redis://:hidden@[x", "--prefix", "p"], 2, "URL of a Redis server"),
        (["show", "redis:", "--prefix", "p"], 2, "REDIS_URL"),
    ],
)
async def test_what_cannot_be_done(
    tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    process = await start("markers", *arguments, env=environment(), cwd=str(tmp_path))
    output, errors = await soon(process.communicate(), PATIENCE)
    assert (process.returncode, output) == (status, b"")
    assert text in errors.decode()
    assert "hidden" not in errors.decode()
    assert "Traceback" not in errors.decode()
    # Nothing was made by looking for it.
    assert [entry.name for entry in tmp_path.iterdir()] == []  # noqa: ASYNC240


@pytest.mark.parametrize("document", ["[]", "nonsense", "5", '{"x": 1}', f'{{"{EVENT}": {{}}}}'])
async def test_a_document_that_holds_no_markers(tmp_path: Path, document: str) -> None:
    process = await start(
        *("markers", "set", "x.db", "--from", "-"),
        env=environment(),
        cwd=str(tmp_path),
        stdin=asyncio.subprocess.PIPE,
    )
    output, errors = await soon(process.communicate(document.encode()), PATIENCE)
    assert (process.returncode, output) == (1, b"")
    assert errors.count(b"\n") == 1


async def test_the_url_of_redis_from_a_variable(redis_server: RedisServer, tmp_path: Path) -> None:
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
        storage = RedisStorage(client, prefix="p:")
        await storage.set_replay_marker(EVENT, MARKERS[EVENT])
    file = tmp_path / "url"
    file.write_text(redis_server.url + "\n")
    for variables in ({"REDIS_URL": redis_server.url}, {"REDIS_URL_FILE": str(file)}):
        status, lines, told = await run(
            "markers", "show", "redis:", "--prefix", "p:", env=environment(None, **variables)
        )
        assert (status, told) == (0, "")
        assert EVENT in lines[1]


async def test_the_file_of_a_running_listen_is_left_alone(tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    command = ("markers", "set", state, f"{EVENT}@1")
    async with StreamingServer() as server:
        process = await start("listen", EVENT, "--state", state, env=environment(server))
        await held(server)
        status, lines, told = await run(*command, env=environment())
        assert (status, lines) == (1, [])
        assert f"process {process.pid} on " in told
        process.kill()
        await soon(process.communicate(), PATIENCE)
        # It was killed without a word, and is known to be gone.
        status, _, told = await run(*command, env=environment())
        assert (status, told) == (0, "")
        process = await start(
            "listen", EVENT, "--state", state, "--fallback", "new", env=environment(server)
        )
        await held(server)
        process.terminate()
        await soon(process.communicate(), PATIENCE)
        async with SQLiteStorage(state) as storage:
            assert await storage.consumers() == []


async def test_listen_goes_on_where_a_marker_was_set(tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    async with StreamingServer() as server:
        wanted = [server.publish(EVENT) for _ in range(3)]
        listen = ("listen", EVENT, "--state", state, "--replay", "all", "--count")
        assert ids((await run(*listen, "3", env=environment(server)))[1]) == wanted
        for position, count in ((wanted[0], 2), (wanted[1], 1)):
            channel = f"{EVENT}@{position}"
            assert (await run("markers", "set", state, channel, env=environment()))[0] == 0
            _, lines, _ = await run(*listen, str(count), env=environment(server))
            assert ids(lines) == wanted[-count:]
        assert (await run("markers", "reset", state, EVENT, env=environment()))[0] == 0
        assert ids((await run(*listen, "3", env=environment(server)))[1]) == wanted
