"""Markers in an SQLite file: killed, full, locked, shared, and never ahead of the application."""

import asyncio
import contextlib
import gc
import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosfstream import ReplayError, ReplayMarker, ReplayOption, SQLiteStorage
from aiosfstream.replay import (
    MappingStorage,
    attach,
    direct_store_of,
    overwrite_with,
    should_store,
    store_marker,
)
from aiosfstream.storages import _groups, _marker_file, sqlite
from aiosfstream.storages._groups import Pending
from aiosfstream.storages.sqlite import groups_of
from aiosfstream.testing import StreamingServer
from tests.markers import notes_of, store_directly
from tests.support import client_for, receive, until

CHANNEL = "/event/Low_Ink__e"
OLD, MIDDLE, NEW = (
    "2017-04-09T18:31:40.517Z",
    "2017-04-09T18:31:40.518Z",
    "2018-01-01T00:00:00.000Z",
)


def event(replay_id: Any, date: Any = NEW, channel: str = CHANNEL) -> dict[str, Any]:
    """Return a platform event."""
    data = {"payload": {"CreatedDate": date}, "event": {"replayId": replay_id}}
    return {"channel": channel, "data": data}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "markers.db"


def committed(path: Path, channel: str = CHANNEL) -> Any:
    """Look into the file as another program would; None if the channel has no marker there."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            row = database.execute(
                "SELECT replay_id FROM replay_markers WHERE channel = ?", (channel,)
            ).fetchone()
        except sqlite3.OperationalError:
            return None
    return None if row is None else row[0]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from writing, as another process that writes does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a locked file fail at once."""
    monkeypatch.setattr(_marker_file, "BUSY_TIMEOUT", 0.02)


# Keeping


def is_writing(storage: SQLiteStorage) -> bool:
    """Tell whether the storage's thread commits a group."""
    job = groups_of(storage).job
    return job is not None and job.running()


async def test_a_marker_is_one_row(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        for number in range(3):
            await storage.extract_replay_id(event(number))
            await storage.flush()
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT * FROM replay_markers").fetchall()
        assert rows == [(CHANNEL, NEW, 1514764800.0, "2")]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("make", [str, Path])
async def test_it_can_be_used_without_being_entered_and_again_after_close(
    path: Path, make: Callable[[Path], Any]
) -> None:
    storage = SQLiteStorage(make(path))
    await storage.extract_replay_id(event(1))
    assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 1)
    await storage.close()
    await storage.close()
    assert committed(path) == "1"
    await storage.extract_replay_id(event(2))
    assert await storage.get_replay_id(CHANNEL) == 2
    await storage.close()
    assert committed(path) == "2"


async def test_a_default_serves_channels_without_a_marker(path: Path) -> None:
    async with SQLiteStorage(path, default_id=ReplayOption.ALL_EVENTS) as storage:
        assert await storage.get_replay_id(CHANNEL) == -2
        await storage.extract_replay_id(event(0))
        assert await storage.get_replay_id(CHANNEL) == 0


def test_its_repr_names_the_file() -> None:
    assert repr(SQLiteStorage("a.db")) == "SQLiteStorage('a.db', default_id=None)"


async def test_an_event_without_an_id_is_passed_over(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(None))
        assert await storage.get_replay_marker(CHANNEL) is None


async def test_an_id_that_json_cannot_express_spoils_no_group(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with pytest.raises(ReplayError, match="cannot be stored"):
            await storage.set_unless_newer(CHANNEL, ReplayMarker(NEW, object()))  # type: ignore[arg-type]
        await storage.set_unless_newer(CHANNEL, ReplayMarker(NEW, 1))
        await storage.flush()
        assert committed(path) == "1"


async def test_what_is_pending_does_not_come_back_after_it_was_deleted(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(1))
        await storage.delete_replay_marker(CHANNEL)
        assert await storage.markers() == {}


async def test_what_cannot_be_written_as_utf_8(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event("\ud800", "\ud800", "/event/\ud800"))
        await storage.flush()
        found = await storage.get_replay_marker("/event/\ud800")
        assert found == ReplayMarker("?", "\ud800")  # type: ignore[arg-type]


async def test_what_json_cannot_express_is_refused_and_spoils_nothing(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(1))
        marker: Any = ReplayMarker(NEW, object())  # type: ignore[arg-type]
        with pytest.raises(ReplayError, match="cannot be stored"):
            await storage.set_replay_marker(CHANNEL, marker)
        await storage.flush()
    assert committed(path) == "1"


def test_a_storage_may_outlive_its_event_loop(path: Path) -> None:
    storage = SQLiteStorage(path)

    async def store(number: int) -> None:
        await storage.extract_replay_id(event(number))

    async def store_and_flush(number: int) -> None:
        await asyncio.gather(*(storage.extract_replay_id(event(number)) for _ in range(3)))
        await asyncio.gather(storage.flush(), storage.flush())

    asyncio.run(store(1))
    asyncio.run(store_and_flush(2))
    assert committed(path) == "2"
    asyncio.run(store(3))
    asyncio.run(storage.close())
    assert committed(path) == "3"


async def test_forgetting_to_close_leaves_no_file_open(path: Path) -> None:
    storage: Any = SQLiteStorage(path)
    await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
    threads = [t for t in threading.enumerate() if t.name.startswith("aiosfstream sqlite")]
    assert len(threads) == 1
    del storage
    gc.collect()
    await until(lambda: not threads[0].is_alive())
    # An open connection would keep the log beside the file.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("is_over", [False, True])
def test_a_storage_of_a_loop_that_has_ended_is_closed_too(path: Path, *, is_over: bool) -> None:
    storage: Any = SQLiteStorage(path)
    loop = asyncio.new_event_loop()
    try:
        if is_over:
            loop.run_until_complete(storage.extract_replay_id(event(1)))
        loop.run_until_complete(storage.markers())
        [thread] = [t for t in threading.enumerate() if t.name.startswith("aiosfstream sqlite")]
    finally:
        loop.close()
    del storage
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


#: Drops a storage where the garbage collector may do so: while its thread gives work to another one.
DROPPED = """
import asyncio, gc, sys
from concurrent.futures import thread
from aiosfstream import SQLiteStorage

async def main():
    storage = SQLiteStorage(sys.argv[1])
    await storage.markers()
    storage.itself = storage
    del storage
    with thread._global_shutdown_lock:
        gc.collect()
    print("went on")

asyncio.run(main())
"""


def test_a_destructor_takes_no_lock(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, path],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "went on\n", done.stderr


# Committing in groups


async def test_a_turn_of_the_loop_is_committed_without_being_asked(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        for number in range(5):
            await storage.extract_replay_id(event(number))
        assert committed(path) is None
        await until(lambda: committed(path) == "4")


async def test_what_comes_during_a_commit_is_committed_after_it(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path):
            await storage.extract_replay_id(event(1))
            await until(lambda: groups_of(storage).job is not None)
            await storage.extract_replay_id(event(2))
            await asyncio.sleep(0)
        await until(lambda: committed(path) == "2")


async def test_a_commit_of_another_event_loop_is_waited_for(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path):
            await storage.extract_replay_id(event(1))
            await until(lambda: groups_of(storage).job is not None)
            # As if that loop had ended, and this were the next one.
            groups_of(storage).job_loop = None
            flushing = asyncio.create_task(storage.flush())
            await asyncio.sleep(0)
            assert not flushing.done()
        await flushing
        assert committed(path) == "1"


async def test_one_that_waits_for_a_commit_may_be_cancelled(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path):
            await storage.extract_replay_id(event(1))
            first, second = (asyncio.create_task(storage.flush()) for _ in range(2))
            await until(lambda: len(groups_of(storage).waiters) == 2)
            first.cancel()
            await asyncio.wait([first])
        await second
        assert first.cancelled()
        assert committed(path) == "1"


@pytest.mark.parametrize("direct", [False, True])
async def test_a_long_turn_is_committed_while_it_lasts(path: Path, direct: bool) -> None:
    async with SQLiteStorage(path) as storage:
        store = direct_store_of(storage)
        assert store is not None
        deadline = time.monotonic() + 10
        number = 0
        while committed(path) is None and time.monotonic() < deadline:
            number += 1
            if direct:
                assert store(event(number))
            else:
                await storage.extract_replay_id(event(number))
        assert 1 <= int(committed(path)) <= number


async def test_flush_commits_all_that_came_before_it(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        for number in range(50):
            await storage.extract_replay_id(event(number))
            if number % 3:
                await asyncio.sleep(0)
            await storage.flush()
            assert committed(path) == str(number)


async def test_flushing_at_the_same_time(path: Path) -> None:
    async with SQLiteStorage(path) as storage:

        async def store(number: int) -> None:
            channel = f"/event/{number}"
            await storage.extract_replay_id(event(number, channel=channel))
            await storage.flush()
            assert committed(path, channel) == str(number)

        await asyncio.gather(*(store(number) for number in range(30)))


async def test_commit_each_has_it_on_the_disk_before_the_message_goes_on(path: Path) -> None:
    async with SQLiteStorage(path, commit_each=True) as storage:
        assert direct_store_of(storage) is None
        for number in range(3):
            await storage.extract_replay_id(event(number))
            assert committed(path) == str(number)
        database = groups_of(storage).file._database
        assert database is not None
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_a_marker_is_read_before_it_is_committed(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(OLD, 1))
        await storage.extract_replay_id(event(3, NEW))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 3)
        await storage.extract_replay_id(event(2, MIDDLE))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 3)


async def test_what_is_pending_does_not_hide_what_is_newer(path: Path) -> None:
    async with SQLiteStorage(path) as storage, SQLiteStorage(path) as other:
        await other.set_replay_marker(CHANNEL, ReplayMarker(NEW, 9))
        await storage.extract_replay_id(event(1, OLD))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 9)


BAD = "/event/Bad__e", Pending(ReplayMarker(NEW, object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_marker_is_read_though_its_group_fails(path: Path, *, meanwhile: bool) -> None:
    storage = SQLiteStorage(path)
    groups = groups_of(storage)
    await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 9))
    groups.add(CHANNEL, Pending(ReplayMarker(OLD, 1), overwrites=True))
    groups.add(*BAD)
    storage.begin_flush()
    assert groups.writing
    if meanwhile:
        groups.add(CHANNEL, Pending(ReplayMarker(MIDDLE, 2)))
    expected = ReplayMarker(MIDDLE, 2) if meanwhile else ReplayMarker(OLD, 1)
    assert await storage.get_replay_marker(CHANNEL) == expected
    with pytest.raises(ReplayError, match="Bad__e"):
        await storage.close()


async def test_what_is_pending_is_read_rather_than_what_is_being_written(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(OLD, 1), overwrites=True))
        storage.begin_flush()
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(MIDDLE, 2)))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(MIDDLE, 2)


async def test_a_marker_is_read_though_it_is_committed_meanwhile(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        reading = asyncio.ensure_future(storage.get_replay_marker(CHANNEL))
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(NEW, 1)))
        await asyncio.sleep(0)
        deadline = time.monotonic() + 10
        # The event loop hears of both only after this.
        while committed(path) is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)  # noqa: ASYNC251 - it is to be held up
        assert await reading == ReplayMarker(NEW, 1)


async def test_what_overwrites_still_does_after_it_was_merged(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 9))
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(OLD, 1), overwrites=True))
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(MIDDLE, 2)))
        await storage.flush()
        assert committed(path) == "2"


async def test_a_forked_process_commits_nothing_of_its_parent(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        groups_of(storage).add(CHANNEL, Pending(ReplayMarker(OLD, 1), overwrites=True))
        groups_of(storage).leave_to_parent()
        await storage.flush()
        assert committed(path) is None
        groups_of(storage).file.close()


async def test_a_forked_process_leaves_the_connection_and_the_lock_to_its_parent(
    path: Path,
) -> None:
    storage = SQLiteStorage(path)
    await storage.extract_replay_id(event(1))
    await storage.flush()
    file = groups_of(storage).file
    database = file._database
    assert database is not None
    with file.lock:
        # As if another thread was using it just then.
        file.leave_to_parent()
        assert not file.lock.locked()
        assert database.execute("SELECT 1").fetchone() == (1,)
    _marker_file._LEFT.remove(database)
    database.close()
    await storage.close()


@pytest.mark.usefixtures("impatient")
async def test_a_note_that_cannot_be_renewed_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.open_for(None)
        monkeypatch.setattr("aiosfstream.storages._presence.RENEWAL", 0.0)
        with locked(path):
            await storage.flush()
        assert "locked" in caplog.text


async def test_an_event_without_a_date_is_told_of_on_the_direct_way_too(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStorage(path) as storage:
        await store_directly(storage, event(1, ""))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker("", 1)
    assert "has no date" in caplog.text


@pytest.mark.parametrize("direct", [False, True])
async def test_the_first_message_behind_a_fallback_overwrites(path: Path, direct: bool) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 90))
        before, first, second = event(91, OLD), event(1, OLD), event(2, MIDDLE)
        overwrite_with(storage, first)
        for message in (before, first, second):
            await (store_directly if direct else store_marker)(storage, message)
        assert notes_of(storage).overwriting == {}
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(MIDDLE, 2)
        await storage.flush()
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(MIDDLE, 2)


async def test_a_channel_that_turns_out_to_belong_to_another_subscription(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        aliases: dict[str, str] = {}
        attach(storage, aliases)
        store = direct_store_of(storage)
        assert store is not None
        assert store(event(1))
        aliases[CHANNEL] = "/event/*"
        assert not store(event(2))
        await store_marker(storage, event(2))
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 1)
        assert await storage.get_replay_marker("/event/*") == ReplayMarker(NEW, 2)


@pytest.mark.parametrize("hook", ["extract_replay_id", "get_message_date"])
def test_there_is_no_direct_way_around_a_hook(hook: str) -> None:
    subclass = type("Storage", (SQLiteStorage,), {hook: lambda *args: None})
    assert direct_store_of(subclass("markers.db")) is None
    storage = SQLiteStorage("markers.db")
    assert direct_store_of(storage) is not None
    vars(storage)["extract_replay_id"] = None
    assert direct_store_of(storage) is None


async def test_the_direct_way_has_the_results_of_a_mapping(path: Path) -> None:
    rng = random.Random(7)
    dates = [OLD, MIDDLE, NEW, None, "1501010206653", "2017-04-09T18:31:40+0000", "", 5]
    mapping = MappingStorage({})
    async with SQLiteStorage(path) as storage:
        for storing in (mapping, storage):
            attach(storing, {"/event/A": "/event/*"})
        for _ in range(2000):
            channel = rng.choice([CHANNEL, "/event/A", "/event/B"])
            message = event(rng.randrange(100), rng.choice(dates), channel)
            if rng.random() < 0.05:
                overwrite_with(mapping, message)
                overwrite_with(storage, message)
            for storing in (mapping, storage):
                await store_directly(storing, message)
            if rng.random() < 0.02:
                await storage.flush()
        for channel in (CHANNEL, "/event/*", "/event/B"):
            assert await storage.get_replay_marker(channel) == mapping.mapping[channel]


# Files that cannot be used


def not_a_database(path: Path) -> None:
    path.write_text("These are the minutes of a meeting, and no database.\n" * 50, "utf-8")


def something_else(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE customers (name TEXT)")


def folder(path: Path) -> None:
    path.mkdir()


def no_folder(path: Path) -> None:
    path.parent.rmdir()


def content(path: Path) -> bytes | None:
    """Return what is in a file, None if there is no file."""
    return path.read_bytes() if path.is_file() else None


def put_in_the_way(path: Path) -> None:
    """Make the file unusable."""
    for entry in path.parent.iterdir():
        entry.unlink()
    path.mkdir()


def clear_the_way(path: Path) -> None:
    """Make it usable again."""
    path.rmdir()


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (not_a_database, "file is not a database. Give the storage a path of its own"),
        (something_else, "a database of something else. Give the storage a path of its own"),
        (folder, "unable to open database file. Look whether its folder exists"),
        (no_folder, "unable to open database file. Look whether its folder exists"),
    ],
)
async def test_a_file_that_cannot_be_used_is_left_alone(
    path: Path, prepare: Callable[[Path], None], sentence: str
) -> None:
    prepare(path)
    before = content(path)
    storage = SQLiteStorage(path)
    with pytest.raises(ReplayError, match=sentence) as caught:
        await storage.__aenter__()
    assert repr(str(path)) in str(caught.value)
    with pytest.raises(ReplayError, match=sentence):
        await storage.insert_replay_id({"channel": "/meta/subscribe", "subscription": CHANNEL})
    await storage.extract_replay_id(event(1))
    with pytest.raises(ReplayError, match=sentence):
        await storage.flush()
    with pytest.raises(ReplayError, match=sentence):
        await storage.close()
    assert content(path) == before


async def test_when_the_file_can_be_used_after_all_nothing_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_in_the_way(path)
    storage = SQLiteStorage(path)
    store = direct_store_of(storage)
    assert store is not None
    for number in range(5):
        store(event(number))
        with pytest.raises(ReplayError, match="unable to open"):
            await storage.flush()
    assert len([record for record in caplog.records if record.name == sqlite.LOGGER.name]) == 1
    clear_the_way(path)
    store(event(7, channel="/event/Other__e"))
    await storage.flush()
    assert committed(path) == "4"
    assert committed(path, "/event/Other__e") == "7"
    await storage.close()
    caplog.clear()
    put_in_the_way(path)
    store(event(8))
    with pytest.raises(ReplayError, match="unable to open"):
        await storage.flush()
    assert len(caplog.records) == 1, "it went well in between"
    clear_the_way(path)
    await storage.close()


async def test_a_group_that_failed_goes_along_with_the_next_turn(path: Path) -> None:
    put_in_the_way(path)
    storage = SQLiteStorage(path)
    await storage.extract_replay_id(event(1))
    await until(lambda: groups_of(storage).failure is not None)
    clear_the_way(path)
    await storage.extract_replay_id(event(2, channel="/event/Other__e"))
    await until(lambda: committed(path) == "1")
    assert committed(path, "/event/Other__e") == "2"
    await storage.close()


@pytest.mark.usefixtures("impatient")
async def test_what_failed_is_merged_with_what_came_meanwhile(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 90))
        with locked(path):
            first = event(1, MIDDLE)
            overwrite_with(storage, first)
            with pytest.raises(ReplayError, match="locked"):
                await storage.extract_replay_id(first)
            await storage.extract_replay_id(event(5, NEW, "/event/Other__e"))
            await storage.extract_replay_id(event(6, OLD, "/event/Third__e"))
            flushing = asyncio.create_task(storage.flush())
            await until(lambda: groups_of(storage).job is not None)
            await storage.extract_replay_id(event(2, OLD))
            await storage.extract_replay_id(event(4, MIDDLE, "/event/Other__e"))
            await storage.extract_replay_id(event(7, NEW, "/event/Third__e"))
            with pytest.raises(ReplayError, match="locked. Another process"):
                await flushing
        await storage.flush()
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(MIDDLE, 1)
    assert committed(path, "/event/Other__e") == "5"
    assert committed(path, "/event/Third__e") == "7"


async def test_a_flush_that_finds_a_group_failing_tries_once_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_marker_file, "BUSY_TIMEOUT", 0.02)
    async with SQLiteStorage(path) as storage:
        with locked(path):
            monkeypatch.setattr(_marker_file, "BUSY_TIMEOUT", 5.0)
            await storage.extract_replay_id(event(1))
            await until(lambda: groups_of(storage).job is not None)
            flushing = asyncio.create_task(storage.flush())
            await until(lambda: groups_of(storage).failure is not None)
        await flushing
    assert committed(path) == "1"


def test_a_commit_that_outlives_its_event_loop(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SQLiteStorage(path)

    async def store() -> None:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
        lock.__enter__()
        await storage.extract_replay_id(event(2))
        await until(lambda: is_writing(storage))

    lock = locked(path)
    asyncio.run(store())
    job = groups_of(storage).job
    lock.__exit__(None, None, None)
    assert job is not None
    job.result(10)
    assert committed(path) == "2"
    asyncio.run(storage.close())
    assert caplog.records == []


async def test_a_locked_file_does_not_hold_up_the_loop(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path):
            flushing = asyncio.create_task(storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1)))
            await until(lambda: is_writing(storage))
            started = time.monotonic()
            for _ in range(1000):
                await asyncio.sleep(0)
            assert time.monotonic() - started < _marker_file.BUSY_TIMEOUT / 2
            assert not flushing.done()
        await flushing
    assert committed(path) == "1"


@pytest.mark.usefixtures("impatient")
async def test_a_marker_that_stays_locked_out_is_an_error_and_kept(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path), pytest.raises(ReplayError, match="locked"):
            await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
        await storage.flush()
    assert committed(path) == "1"


async def test_cancelling_a_flush_loses_nothing(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        with locked(path):
            await storage.extract_replay_id(event(1))
            flushing = asyncio.create_task(storage.flush())
            await until(lambda: groups_of(storage).job is not None)
            flushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flushing
            await storage.extract_replay_id(event(2))
        await storage.flush()
        assert committed(path) == "2"


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


READ_ONLY = """
import asyncio, os, sys
from aiosfstream import ReplayError, SQLiteStorage
from aiosfstream.replay import ReplayMarker
# Root may write everything.
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
async def main():
    storage = SQLiteStorage(sys.argv[1])
    try:
        await storage.set_replay_marker("/u/Other", ReplayMarker("", 1))
    except ReplayError as error:
        print(error)
    try:
        await storage.__aenter__()
    except ReplayError as error:
        print(error)
asyncio.run(main())
"""


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Let everybody read the file and nobody write it."""
    above = [entry for entry in path.parents if not entry.stat().st_mode & 0o001]
    modes = {entry: entry.stat().st_mode for entry in (path, path.parent, *above)}
    try:
        for entry in above:
            entry.chmod(modes[entry] | 0o011)
        path.parent.chmod(0o555)
        path.chmod(0o444)
        yield
    finally:
        for entry, mode in modes.items():
            entry.chmod(mode)


async def test_a_file_that_may_only_be_read(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
    with read_only(path):
        done = run_python(READ_ONLY, path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert "attempt to write a readonly database. Allow this program to write" in first
    assert committed(path) == "1"


async def test_a_database_that_is_full(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(1))
        await storage.flush()
        database = groups_of(storage).file._database
        assert database is not None
        database.execute("PRAGMA max_page_count = 1")
        for number in range(200):
            await storage.extract_replay_id(event(number, channel=f"/u/{number}"))
        with pytest.raises(ReplayError, match="full. Make room on the disk"):
            await storage.flush()
        # The limit was that of the connection, so now there is room.
        await storage.flush()
    assert [committed(path, f"/u/{number}") for number in (0, 199)] == ["0", "199"]


FULL_DISK = """
import asyncio, resource, sys
from aiosfstream import ReplayError, SQLiteStorage
from aiosfstream.replay import ReplayMarker
def event(number):
    data = {"event": {"createdDate": "2018-01-01T00:00:00.000Z", "replayId": number}}
    return {"channel": f"/u/{number}", "data": data}
async def main():
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with SQLiteStorage(sys.argv[1]) as storage:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, unlimited[1]))
        number, error = 0, None
        while error is None and number < 20_000:
            number += 1
            await storage.extract_replay_id(event(number))
            try:
                await storage.flush()
            except ReplayError as caught:
                error = caught
        print(error)
        await storage.extract_replay_id(event(number + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        await storage.flush()
        print(number + 1)
asyncio.run(main())
"""


def test_a_full_disk_is_an_error_and_nothing_is_lost(path: Path) -> None:
    done = run_python(FULL_DISK, path)
    assert done.returncode == 0, done.stderr
    error, count = done.stdout.splitlines()
    assert f"The marker file {str(path)!r} cannot be used: " in error
    assert "full" in error
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT count(*) FROM replay_markers").fetchone()
        assert found == (int(count),)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# The file itself


@pytest.mark.parametrize("path", ["", b"", ":memory:"])
def test_what_sqlite_takes_for_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="path should be the name of a file"):
        SQLiteStorage(path)


async def test_what_is_committed_is_in_the_file_alone(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        for number in range(5):
            await storage.extract_replay_id(event(number))
            await storage.extract_replay_id(event(number, channel=f"/event/{number}"))
            await storage.flush()
            copy = copy_alone(path)
            assert committed(copy) == str(number)
            assert committed(copy, f"/event/{number}") == str(number)
            assert all(entry.stat().st_size == 0 for entry in sidecars(path))
    assert sidecars(path) == []


def copy_alone(path: Path) -> Path:
    """Copy the file, and nothing that is beside it."""
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    return copy


def sidecars(path: Path) -> list[Path]:
    """Return the files that SQLite keeps beside a file."""
    return [
        path.with_name(path.name + end)
        for end in ("-journal", "-wal", "-shm")
        if path.with_name(path.name + end).exists()
    ]


def old_file(path: Path) -> sqlite3.Connection:
    """Make a file as the release before this one did."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA application_id = {_marker_file.APPLICATION_ID}")
    database.execute(_marker_file.CREATE_MARKERS)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(
        "INSERT INTO replay_markers VALUES (?, ?, ?, ?)", (CHANNEL, OLD, 1491762700.517, "7")
    )
    return database


async def test_a_file_with_a_log_is_changed_over(path: Path) -> None:
    old_file(path).close()
    async with SQLiteStorage(path) as storage:
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(OLD, 7)
        await storage.open_for("00D000000000001")
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 8))
        copy = copy_alone(path)
    assert committed(copy) == "8"


async def test_a_log_that_another_process_keeps_is_emptied_at_each_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_marker_file, "CHANGE_OVER_TIMEOUT", 0.05)
    with contextlib.closing(old_file(path)) as other:
        assert other.execute("SELECT count(*) FROM replay_markers").fetchone() == (1,)
        async with SQLiteStorage(path) as storage:
            await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 8))
            copy = copy_alone(path)
    assert committed(copy) == "8"


def remove(path: Path) -> None:
    """Delete the file and all that is beside it."""
    for entry in (path, *sidecars(path)):
        entry.unlink()


async def test_a_file_that_is_deleted_is_noticed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(OLD, 1))
        remove(path)
        with pytest.raises(ReplayError, match="deleted or replaced while it was open"):
            await storage.get_replay_marker(CHANNEL)
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 2))
        assert committed(path) == "2"
        remove(path)
        old_file(path).close()
        await storage.extract_replay_id(event(3))
        with pytest.raises(ReplayError, match="deleted or replaced"):
            await storage.flush()
        assert "It is tried again" in caplog.text
    assert committed(path) == "3"


def mode_of(path: Path) -> int:
    """Return who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


def set_mode(path: Path, mode: int) -> None:
    """Let others use a file."""
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
async def test_a_file_is_for_its_owner_alone(path: Path, mode: int) -> None:
    before = os.umask(0)
    try:
        async with SQLiteStorage(path) as storage:
            await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
            for entry in (path, *sidecars(path)):
                assert mode_of(entry) == 0o600
        set_mode(path, mode)
        async with SQLiteStorage(path) as storage:
            assert mode_of(path) == 0o600
            assert await storage.get_replay_id(CHANNEL) == 1
    finally:
        os.umask(before)


def make_link(path: Path, target: Path) -> None:
    """Put a symbolic link there."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


async def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for exists in (False, True):
        if exists:
            target.write_bytes(b"")
        make_link(path, target)
        with pytest.raises(ReplayError, match="symbolic link"):
            await SQLiteStorage(path).__aenter__()
        assert content(target) == (b"" if exists else None)


async def test_a_device_is_no_file() -> None:
    with pytest.raises(ReplayError, match="no regular file"):
        await SQLiteStorage("/dev/null").__aenter__()


READ_ONLY_FILE = READ_ONLY.replace(
    'storage.set_replay_marker("/u/Other", ReplayMarker("", 1))', "storage.open_for(None)"
)


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o644])
async def test_a_file_that_may_only_be_read_is_refused_at_opening(path: Path, mode: int) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
    with read_only(path):
        # The folder may be written: it is the file that must not be.
        set_mode(path.parent, 0o777)
        set_mode(path, mode | 0o044)
        done = run_python(READ_ONLY_FILE, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("readonly database. Allow this program to write") == 2, done.stdout


FORKED = """
import asyncio, os, sys, warnings
from aiosfstream import SQLiteStorage
from aiosfstream.replay import ReplayMarker
def event(number):
    data = {"event": {"createdDate": "2018-01-01T00:00:00.000Z", "replayId": number}}
    return {"channel": "/u/Forked", "data": data}
storage = SQLiteStorage(sys.argv[1])
async def begin():
    await storage.set_replay_marker("/u/Forked", ReplayMarker("", 1))
    # Pending, being written, or both, when the process forks.
    for number in range(2, 2 + int(sys.argv[2])):
        await storage.extract_replay_id(event(number))
        if number % 2:
            await asyncio.sleep(0)
async def go_on(first):
    print("read", await storage.get_replay_id("/u/Forked"), flush=True)
    for number in range(first, first + 20):
        await storage.extract_replay_id(event(number))
        await storage.flush()
    print("ended", await storage.get_replay_id("/u/Forked"), flush=True)
loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
# Python warns of it from 3.12 on: other modules may be less careful.
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
child = os.fork()
if not child:
    # The event loop of the parent, with the same epoll, must not be closed here.
    status = 1
    try:
        asyncio.run(asyncio.wait_for(go_on(100), 30))
        status = 0
    finally:
        os._exit(status)
loop.run_until_complete(asyncio.wait_for(go_on(200), 30))
_, status = os.waitpid(child, 0)
loop.run_until_complete(storage.close())
loop.close()
print("child", status)
"""


@pytest.mark.parametrize("pending", range(6))
def test_a_process_that_is_forked_opens_the_file_anew(path: Path, pending: int) -> None:
    done = run_python(FORKED, path, pending)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("ended") == 2
    assert "child 0" in done.stdout
    assert committed(path, "/u/Forked") == "219"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_fork_waits_for_the_end_of_a_transaction(path: Path) -> None:
    file = _marker_file.MarkerFile(str(path))
    file.open()
    with locked(path):
        writing = threading.Thread(
            target=file.write, args=([_marker_file.Row("/u/A", NEW, "1", False)],)
        )
        writing.start()
        while not file.lock.locked():
            time.sleep(0.001)
        forking = threading.Thread(target=fork_and_exit)
        forking.start()
        forking.join(0.1)
        assert forking.is_alive(), "forked in the middle of a transaction"
    writing.join(10)
    forking.join(10)
    assert not forking.is_alive()
    file.close()
    assert committed(path, "/u/A") == "1"


def fork_and_exit() -> None:
    """Fork a process that ends at once."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


# The org


ONE, OTHER = "00D000000000001", "00D000000000002"


async def test_markers_of_another_org_are_refused(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.open_for(None)
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
        await storage.open_for(ONE)
        # The same org: its id in the long form, or not known.
        await storage.open_for(ONE + "EAA")
        await storage.open_for(None)
    async with SQLiteStorage(path) as storage:
        await storage.open_for(ONE + "EAA")
        with pytest.raises(ReplayError, match=f"belongs to the org {ONE}.*{OTHER}.*start-anew"):
            await storage.open_for(OTHER)
        with pytest.raises(ReplayError, match="belongs to the org"):
            await storage.open_for(ONE.lower())
        assert await storage.get_replay_marker(CHANNEL) == ReplayMarker(NEW, 1)


async def test_with_another_org_it_starts_anew_if_it_is_told_to(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStorage(path, default_id=-2, other_org="start-anew") as storage:
        await storage.open_for(ONE)
        await storage.extract_replay_id(event(7))
        await storage.open_for(ONE)
        assert await storage.get_replay_id(CHANNEL) == 7
        await storage.extract_replay_id(event(8, channel="/event/Pending__e"))
        await storage.open_for(OTHER)
        assert await storage.get_replay_id(CHANNEL) == -2
        assert await storage.get_replay_id("/event/Pending__e") == -2
    assert f"Dropped the markers of the org {ONE}" in caplog.text
    with pytest.raises(ReplayError, match=f"belongs to the org {OTHER}"):
        await SQLiteStorage(path).open_for(ONE)


async def test_a_file_of_an_earlier_release_goes_on_and_notes_its_org(path: Path) -> None:
    old_file(path).close()
    async with SQLiteStorage(path, other_org="start-anew") as storage:
        await storage.open_for(ONE)
        assert await storage.get_replay_id(CHANNEL) == 7
        await storage.open_for(OTHER)
        assert await storage.get_replay_id(CHANNEL) is None


def test_there_are_two_ways_to_deal_with_another_org() -> None:
    with pytest.raises(ValueError, match="other_org should be"):
        SQLiteStorage("markers.db", other_org="ignore")  # type: ignore[arg-type]


# Beginning to commit


async def test_one_need_not_wait_for_a_commit(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(1))
        assert storage.begin_flush()
        assert groups_of(storage).job is not None
        await until(lambda: committed(path) == "1")


async def test_one_that_does_not_wait_is_told_of_a_failure_the_next_time(path: Path) -> None:
    put_in_the_way(path)
    storage = SQLiteStorage(path)
    await storage.extract_replay_id(event(1))
    assert storage.begin_flush()
    await until(lambda: groups_of(storage).failure is not None)
    clear_the_way(path)
    with pytest.raises(ReplayError, match="unable to open"):
        storage.begin_flush()
    await until(lambda: committed(path) == "1")
    assert storage.begin_flush()
    await storage.close()


# The rule, in SQL

rule_dates = st.sampled_from(
    [
        OLD,
        MIDDLE,
        NEW,
        "2017-04-09T18:31:40.517+0000",
        "",
        "?",
        "1501010206653",
        "9999-01-01T00:00:00Z",
    ]
)
rule_ids = st.sampled_from(
    [0, 5, 9, 10, 180, 181, 2**53, 2**53 + 1, 2**64, -1, -2, "5", "a", True, 1.5]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(rule_dates, rule_ids), min_size=2, max_size=8))
def test_the_database_follows_the_rule(markers: list[tuple[str, Any]]) -> None:
    expected: ReplayMarker | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = _marker_file.MarkerFile(f"{folder}/markers.db")
        for date, replay_id in markers:
            new = ReplayMarker(date, replay_id)
            file.write([_marker_file.Row(CHANNEL, date, json.dumps(replay_id), False)])
            expected = new if should_store(expected, new) else expected
            found = file.read(CHANNEL)
            assert found == expected
            assert type(found and found.replay_id) is type(expected and expected.replay_id)
        file.close()


async def test_a_date_of_the_far_future_that_is_stored_already_does_not_stay(path: Path) -> None:
    old_file(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE replay_markers SET date = '9999-01-01T00:00:00Z', instant = 253370764800"
        )
    async with SQLiteStorage(path) as storage:
        await storage.extract_replay_id(event(9, OLD))
    assert committed(path) == "9"


# More than one process

WRITER = """
import asyncio, sys
from aiosfstream import SQLiteStorage
def event(number):
    date = f"2018-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"
    return {"channel": "/u/Shared", "data": {"event": {"createdDate": date, "replayId": number}}}
async def main(path, first, last, step):
    print("ready", flush=True)
    sys.stdin.readline()
    async with SQLiteStorage(path) as storage:
        for number in range(first, last, step):
            await storage.extract_replay_id(event(number))
            await storage.flush()
asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""


async def test_processes_that_start_and_write_at_once_never_move_a_marker_back(path: Path) -> None:
    ranges = [(0, 400, 1), (0, 400, 2), (399, -1, -1), (0, 400, 7)]
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, path, *map(str, numbers),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for numbers in ranges
    ]  # fmt: skip
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert await writer.stdout.readline() == b"ready\n"
        outcome = asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
        seen = [-1]
        while not outcome.done():
            seen.append(int(committed(path, "/u/Shared") or -1))
            await asyncio.sleep(0)
        errors = [stderr.decode() for _, stderr in await outcome]
    finally:
        for writer in writers:
            if writer.returncode is None:
                writer.kill()
                await writer.wait()
    assert errors == [""] * len(writers)
    assert seen == sorted(seen), "a marker was moved back"
    assert committed(path, "/u/Shared") == "399"


async def test_another_process_makes_the_file_at_the_same_moment(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        storage = SQLiteStorage(path)
        entering = asyncio.create_task(storage.__aenter__())
        groups = groups_of(storage)
        await until(lambda: bool(groups.thread and groups.thread._threads))
        other.execute(f"PRAGMA application_id = {_marker_file.APPLICATION_ID}")
        other.execute(_marker_file.CREATE_MARKERS)
        await asyncio.sleep(0.01)
        other.execute("COMMIT")
        await entering
        await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 1))
    assert committed(path) == "1"
    await storage.close()


async def test_another_process_reads_the_file_before_it_has_a_log(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA application_id = {_marker_file.APPLICATION_ID}")
        other.execute(_marker_file.CREATE_MARKERS)
        other.execute("BEGIN")
        assert other.execute("SELECT * FROM replay_markers").fetchall() == []
        storage = SQLiteStorage(path)
        entering = asyncio.create_task(storage.__aenter__())
        await asyncio.wait([entering], timeout=0.05)
        assert not entering.done()
        other.execute("ROLLBACK")
        await entering
    await storage.close()


async def test_many_open_one_new_file_at_once(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / f"{number}.db"
        storages = [SQLiteStorage(path) for _ in range(5)]
        await asyncio.gather(*(storage.__aenter__() for storage in storages))
        await asyncio.gather(*(storage.extract_replay_id(event(7)) for storage in storages))
        await asyncio.gather(*(storage.close() for storage in storages))
        assert committed(path) == "7"


HANDED_OVER = """
import asyncio, os, sys, time
from aiosfstream import SQLiteStorage
def event(number):
    data = {"event": {"createdDate": "2018-01-01T00:00:00.000Z", "replayId": number}}
    return {"channel": "/u/Killed", "data": data}
async def main(path, first, commit_each):
    storage = SQLiteStorage(path, commit_each=commit_each)
    store = storage.direct_store()
    for number in range(first, first + 10_000_000):
        # What the application has seen of an event is in this pipe before its marker can be stored.
        os.write(1, b"%d %d\\n" % (number, time.monotonic_ns()))
        if store is None:
            await storage.extract_replay_id(event(number))
        else:
            assert store(event(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"))
"""
KILLS = 12


async def test_only_a_commit_that_overwrites_rows_in_their_place_does_not_wait_for_the_disk(
    path: Path,
) -> None:
    async with SQLiteStorage(path) as storage:

        async def synchronous(*events: dict[str, Any]) -> int:
            for one in events:
                await storage.extract_replay_id(one)
            await storage.flush()
            database = groups_of(storage).file._database
            assert database is not None
            (mode,) = database.execute("PRAGMA synchronous").fetchone()
            assert isinstance(mode, int)
            return mode

        full, off = 2, 0
        assert await synchronous(event(1, OLD)) == full, "a new row"
        assert await synchronous(event(2, OLD)) == off
        assert await synchronous(event(10, OLD)) == full, "a longer id"
        assert await synchronous(event(11, MIDDLE)) == off
        assert await synchronous(event(12, NEW)) == full, "an instant without a fraction"
        assert await synchronous(event(12, NEW.replace("Z", "0Z"))) == full, "a longer date"
        assert await synchronous(event(13), event(1, channel="/event/Other__e")) == full
        assert await synchronous(event(14), event(2, channel="/event/Other__e")) == off
        await storage.open_for(ONE)
        assert await synchronous() == full
        await storage.close()
        assert await synchronous(event(15)) == full, "another process may have changed it"


@pytest.mark.parametrize("commit_each", [False, True])
def test_a_killed_program_loses_nothing_and_repeats_little(path: Path, commit_each: bool) -> None:
    """Kill a program while it hands events over: the marker is never ahead, nor far behind."""
    rng = random.Random(4)
    first = repeated = events = 0
    longest = 0.0
    for _ in range(KILLS):
        lines = rng.randrange(1, 100 if commit_each else 10_000)
        seen = run_and_kill([path, first, commit_each], lines)
        events += len(seen)
        stored = committed(path, "/u/Killed")
        marker = -1 if stored is None else int(stored)
        assert marker <= max(seen), "the marker ran ahead of the application"
        assert marker >= first - 1, "a marker that was stored is gone"
        again = [number for number in seen if number > marker]
        repeated = max(repeated, len(again))
        if again:
            longest = max(longest, seen[again[-1]] - seen[again[0]])
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        first = marker + 1
    print(f"kills {KILLS}, events {events}, lost 0, repeated {repeated} of {longest:.3f} s at most")
    assert first > 0, "nothing was ever stored"
    if commit_each:
        assert repeated <= 1
    # 50 milliseconds and the time of a commit, on a machine that may be busy with other things.
    assert longest < 1


def run_and_kill(arguments: list[object], lines: int) -> dict[int, float]:
    """Kill the program after so many lines; return the events it has handed over, and when."""
    command = [sys.executable, "-c", HANDED_OVER, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        output = b"".join(program.stdout.readline() for _ in range(lines))
        program.kill()
        output += program.stdout.read()
    pairs = [line.split() for line in output.splitlines()]
    return {int(number): int(moment) / 1e9 for number, moment in pairs}


async def test_a_storage_that_is_dropped_as_part_of_a_cycle_closes_its_file(path: Path) -> None:
    storage = SQLiteStorage(path)
    await storage.__aenter__()
    file = groups_of(storage).file
    assert file in _groups._RUNNING.values()
    vars(storage)["itself"] = storage
    del storage
    gc.collect()
    await until(lambda: file._database is None)
    assert file not in _groups._RUNNING.values()


# With a client


async def test_a_client_commits_before_it_waits(path: Path) -> None:
    async with StreamingServer() as server, SQLiteStorage(path, default_id=-2) as storage:
        client = client_for(server, replay=storage)
        async with client:
            await client.subscribe(CHANNEL)
            published = server.publish_many([(CHANNEL, {"Ink__c": n}) for n in range(5)])
            assert await receive(client, 5) == published
            waiting = asyncio.create_task(client.receive())
            await until(lambda: committed(path) == str(published[-1]))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_a_client_commits_when_it_is_closed(path: Path) -> None:
    async with StreamingServer() as server:
        storage = SQLiteStorage(path, default_id=-2)
        async with client_for(server, replay=storage) as client:
            await client.subscribe(CHANNEL)
            (published,) = server.publish_many([(CHANNEL, {"Ink__c": 1})])
            assert await receive(client) == [published]
        assert committed(path) == str(published)
        await storage.close()


async def test_a_client_reports_a_file_that_fails_and_goes_on(path: Path) -> None:
    async with StreamingServer() as server, SQLiteStorage(path, default_id=-2) as storage:
        async with client_for(server, replay=storage) as client:
            await client.subscribe(CHANNEL)
            first = server.publish(CHANNEL, {"Ink__c": 1})
            assert await receive(client) == [first]
            await storage.flush()
            await storage.close()
            put_in_the_way(path)
            second = server.publish(CHANNEL, {"Ink__c": 2})
            received: list[Any] = []
            with pytest.raises(ReplayError, match="unable to open"):
                while True:
                    received += await receive(client)
            assert received == [second]
            clear_the_way(path)
            third = server.publish(CHANNEL, {"Ink__c": 3})
            while third not in received:
                with contextlib.suppress(ReplayError):
                    received += await receive(client)
            assert received == [second, third]
        assert committed(path) == str(third)
