"""The check for marker storages: it passes on sound ones and finds what is wrong with others."""

import asyncio
import contextlib
import json
import shelve
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from aiosfstream.replay import (
    ConstantReplayId,
    DurableStorage,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    marker_of,
    should_store,
)
from aiosfstream.storages.sqlite import SQLiteStorage
from aiosfstream.testing.conformance import check_marker_storage

Message = dict[str, Any]


class JsonFile(ReplayMarkerStorage):
    """A storage as users write them: two methods."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        return json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        await asyncio.sleep(0)
        value = self.read().get(subscription)
        return None if value is None else ReplayMarker(*value)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        await asyncio.sleep(0)
        self._path.write_text(json.dumps({**self.read(), subscription: replay_marker}), "utf-8")


async def test_a_dict_conforms() -> None:
    mapping: dict[str, Any] = {}
    await check_marker_storage(lambda: MappingStorage(mapping))
    assert mapping, "it has been put to the test"


async def test_a_shelf_conforms(tmp_path: Path) -> None:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[ReplayMarkerStorage]:
        with shelve.open(str(tmp_path / "markers")) as shelf:
            yield MappingStorage(shelf)

    await check_marker_storage(opened)


@pytest.mark.parametrize("commit_each", [False, True])
async def test_sqlite_conforms(tmp_path: Path, commit_each: bool) -> None:
    path = tmp_path / "markers.db"
    await check_marker_storage(
        lambda: SQLiteStorage(path, commit_each=commit_each), overlapping=True
    )


async def test_a_storage_of_two_methods_conforms(tmp_path: Path) -> None:
    async def make() -> ReplayMarkerStorage:
        return JsonFile(tmp_path / "markers.json")

    await check_marker_storage(make)


async def test_a_storage_that_reads_before_it_writes_is_not_for_two(tmp_path: Path) -> None:
    path = tmp_path / "markers.json"
    with pytest.raises(AssertionError, match="at the same time"):
        await check_marker_storage(lambda: JsonFile(path), overlapping=True)


class Numbers(MappingStorage):
    """Keeps replay ids as numbers only."""

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        with contextlib.suppress(ValueError):
            marker = ReplayMarker(replay_marker.date, int(replay_marker.replay_id))
            self.mapping[subscription] = marker


class Truthy(MappingStorage):
    """Takes id 0 for none."""

    async def get_replay_id(self, subscription: str) -> Any:
        return await super().get_replay_id(subscription) or None


class LowerCase(MappingStorage):
    """Takes channels for case-insensitive."""

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return await super().get_replay_marker(subscription.lower())

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        await super().set_replay_marker(subscription.lower(), replay_marker)


class Comparing(MappingStorage):
    """Refuses to overwrite what is newer."""

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        if should_store(await self.get_replay_marker(subscription), replay_marker):
            await super().set_replay_marker(subscription, replay_marker)


class Always(MappingStorage):
    """Stores a replayed message too."""

    async def extract_replay_id(self, message: Message) -> None:
        marker = marker_of(self, message)
        if marker is not None:
            await self.set_replay_marker(message["channel"], marker)


class Eager(MappingStorage):
    """Stores the marker of a message before it has been processed."""

    def __call__(self, message: Mapping[str, Any]) -> Any:
        marker = marker_of(self, dict(message))
        assert marker is not None
        self.mapping[message["channel"]] = marker
        return super().__call__(message)


class Demanding(MappingStorage):
    """Cannot store an event without a date."""

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        if subscription != "/u/Odd" or replay_marker.date:
            await super().set_replay_marker(subscription, replay_marker)


class WithQuery(MappingStorage):
    """Leaves the filter in the name of the channel."""

    async def insert_replay_id(self, message: Message) -> None:
        key = message["subscription"]
        message["ext"] = {"replay": {key: await self.get_replay_id(key.partition("?")[0])}}


class Stubborn(MappingStorage):
    """Knows nothing of fallbacks."""

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        if subscription != "/u/Fallback" or subscription not in self.mapping:
            await super().set_replay_marker(subscription, replay_marker)


class Lagging(DurableStorage):
    """Has a direct way that leads nowhere."""

    def __init__(self, mapping: dict[str, Any]) -> None:
        self.mapping = mapping

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return self.mapping.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.mapping[subscription] = replay_marker

    def direct_store(self) -> Callable[[Message], bool]:
        return lambda message: True


@pytest.mark.parametrize(
    ("faulty", "sentence"),
    [
        (Numbers, r"and not ReplayMarker.*'AAAB-7'"),
        (Truthy, "get_replay_id gives None where 0 is stored"),
        (LowerCase, "7 channels"),
        (Comparing, "overwrites whatever is stored"),
        (Always, "a replayed message"),
        (Eager, "the second of two messages in flight"),
        (Demanding, "a message without a date"),
        (WithQuery, "asks to be replayed from"),
        (Stubborn, "after a fallback"),
        (Lagging, "storing without waiting"),
    ],
)
async def test_what_is_wrong_is_found(
    faulty: Callable[[dict[str, Any]], ReplayMarkerStorage], sentence: str
) -> None:
    mapping: dict[str, Any] = {}
    with pytest.raises(AssertionError, match=sentence):
        await check_marker_storage(lambda: faulty(mapping))


async def test_a_storage_that_forgets_is_found() -> None:
    with pytest.raises(AssertionError, match="another one opened"):
        await check_marker_storage(lambda: MappingStorage({}))
    with pytest.raises(AssertionError, match="gives None and not"):
        await check_marker_storage(lambda: ConstantReplayId(-1))


async def test_a_store_that_is_not_empty_is_found() -> None:
    with pytest.raises(AssertionError, match="not empty"):
        await check_marker_storage(lambda: MappingStorage({"/topic/Names": 5}))
