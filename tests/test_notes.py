"""What a storage remembers: its clients, and which marker replaces a newer one."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aiosfstream.replay import (
    ConstantReplayId,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    attach,
    direct_store_of,
    overwrite_with,
    store_marker,
)
from tests.markers import CHANNEL, TOPIC, Message, SlowStorage, notes_of, platform, store_directly


def numbered(number: int, channel: str = CHANNEL) -> Message:
    """Return an event whose date follows its number."""
    return platform(number, f"2017-04-09T18:{number // 60:02}:{number % 60:02}.000Z", channel)


def stored_id(storage: SlowStorage | MappingStorage, channel: str = CHANNEL) -> Any:
    """Return the id of the stored marker."""
    markers = storage.markers if isinstance(storage, SlowStorage) else storage.mapping
    marker = markers.get(channel)
    return None if marker is None else marker.replay_id


# Whose channels


class Owner:
    """Stands for a client."""


async def test_only_markers_of_subscribed_channels_are_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = MappingStorage({"42": {"total": 7}})
    attach(storage, {"/event/B": "/event/*"}, subscribed={CHANNEL, "/event/*"})
    for channel in (CHANNEL, "/event/B", "/event/C", "42", "orders"):
        await store_directly(storage, numbered(1, channel))
        await store_directly(storage, numbered(2, channel))
    assert set(storage.mapping) == {CHANNEL, "/event/*", "42"}
    assert storage.mapping["42"] == {"total": 7}
    assert "/event/C belongs to no subscription" in caplog.text
    assert len(caplog.records) == 3


async def test_a_channel_that_is_subscribed_later_counts_at_once() -> None:
    storage, subscribed = MappingStorage({}), set[str]()
    attach(storage, {}, subscribed=subscribed)
    await store_directly(storage, numbered(1))
    assert storage.mapping == {}
    subscribed.add(CHANNEL)
    await store_directly(storage, numbered(2))
    assert stored_id(storage) == 2


async def test_clients_that_share_a_storage_do_not_hide_each_others_channels() -> None:
    storage, one, other = MappingStorage({}), Owner(), Owner()
    attach(storage, {}, subscribed={CHANNEL}, client=one)
    attach(storage, {"/event/X": "/event/*"}, subscribed={TOPIC, "/event/*"}, client=other)
    for channel in (CHANNEL, TOPIC, "/event/X", "/event/Y"):
        for number in (1, 2):
            await store_directly(storage, numbered(number, channel))
    assert {channel: marker.replay_id for channel, marker in storage.mapping.items()} == {
        CHANNEL: 2,
        TOPIC: 2,
        "/event/*": 2,
    }
    assert notes_of(storage).key_of(numbered(1, "/event/X")) == "/event/*"
    # Opened again, and one that is gone.
    attach(storage, {}, subscribed={"/event/Y"}, client=one)
    del other
    gc.collect()
    attach(storage, {}, subscribed={"/event/Y"}, client=one)
    assert len(notes_of(storage).attached) == 1
    await store_directly(storage, numbered(3, TOPIC))
    assert stored_id(storage, TOPIC) == 2


async def test_a_way_that_was_direct_before_another_client_came_is_so_no_longer() -> None:
    storage, one, other = MappingStorage({}), Owner(), Owner()
    attach(storage, {}, subscribed={CHANNEL}, client=one)
    await store_directly(storage, numbered(1))
    store = direct_store_of(storage)
    assert store is not None
    assert store(numbered(2))
    attach(storage, {CHANNEL: "/event/*"}, subscribed={"/event/*"}, client=other)
    assert not store(numbered(3))


async def test_a_direct_way_ends_with_what_its_client_said() -> None:
    storage, client = MappingStorage({}), Owner()
    attach(storage, {}, subscribed={CHANNEL}, client=client)
    await store_directly(storage, numbered(1))
    store = direct_store_of(storage)
    assert store is not None
    attach(storage, {}, subscribed={TOPIC}, client=client)
    assert not store(numbered(2))
    assert stored_id(storage) == 1


async def test_a_channel_that_another_one_delivers_has_no_direct_way() -> None:
    storage = MappingStorage({})
    subscribed = {CHANNEL, "/event/*"}
    attach(storage, {}, subscribed=subscribed)
    await store_directly(storage, numbered(1))
    attach(storage, {CHANNEL: "/event/*"}, subscribed=subscribed)
    await store_directly(storage, numbered(2))
    assert (stored_id(storage), stored_id(storage, "/event/*")) == (1, 2)


# A marker that replaces a newer one


async def test_there_is_no_direct_way_while_a_marker_is_to_be_overwritten() -> None:
    storage = MappingStorage({})
    attach(storage, {}, subscribed={CHANNEL})
    await store_directly(storage, numbered(50))
    store = direct_store_of(storage)
    assert store is not None
    first = numbered(1)
    overwrite_with(storage, first)
    assert not store(first)
    await store_marker(storage, first)
    assert stored_id(storage) == 1
    assert notes_of(storage).overwriting == {}
    assert store(numbered(2))


async def test_a_message_that_fails_leaves_overwriting_to_the_next() -> None:
    storage = SlowStorage()
    await store_marker(storage, numbered(50))
    first = numbered(1)
    overwrite_with(storage, first)
    with pytest.raises(ValueError, match="processing"):
        async with storage(first):
            raise ValueError("processing")
    async with storage(numbered(2)):
        pass
    assert storage.writes == [50, 2]


async def test_a_message_whose_block_is_cancelled_leaves_overwriting_to_the_next() -> None:
    storage = SlowStorage()
    await store_marker(storage, numbered(50))
    first = numbered(1)
    overwrite_with(storage, first)
    with pytest.raises(asyncio.CancelledError):
        async with storage(first):
            raise asyncio.CancelledError
    async with storage(numbered(2)):
        pass
    assert storage.writes == [50, 2]


async def test_the_failure_of_another_message_leaves_overwriting_where_it_is() -> None:
    storage = SlowStorage()
    await store_marker(storage, numbered(50))
    first = numbered(1)
    overwrite_with(storage, first)
    with pytest.raises(ValueError, match="processing"):
        async with storage(numbered(3)):
            raise ValueError("processing")
    async with storage(numbered(2)):
        pass
    assert storage.writes == [50]
    async with storage(first):
        pass
    assert storage.writes == [50, 1]


async def test_nothing_piles_up_where_nothing_is_stored() -> None:
    constant = ConstantReplayId(-1)
    overwrite_with(constant, numbered(1))
    assert notes_of(constant).overwriting == {}


class Extracting(ReplayMarkerStorage):
    """Finds and stores markers by itself, as a program of an earlier release may do."""

    def __init__(self) -> None:
        self.markers: dict[str, Any] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.markers[subscription] = replay_marker

    async def extract_replay_id(self, message: Message) -> None:
        new = ReplayMarker(self.get_message_date(message), message["data"]["event"]["replayId"])
        stored = self.markers.get(message["channel"])
        if stored is None or stored.date < new.date:
            self.markers[message["channel"]] = new


async def test_a_storage_with_its_own_way_of_storing_goes_on_from_a_fallback() -> None:
    storage = Extracting()
    storage.markers[CHANNEL] = ReplayMarker("2018-01-01T00:00:00.000Z", 90)
    first = numbered(1)
    overwrite_with(storage, first)
    await store_marker(storage, first)
    assert storage.markers[CHANNEL].replay_id == 1
