"""What a storage remembers: who its clients are, and which markers have to wait."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream.exceptions import ReplayError
from aiosfstream.replay import (
    ConstantReplayId,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    attach,
    direct_store_of,
    flush,
    hold_back,
    key_of_message,
    overwrite_with,
    release,
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
    assert key_of_message(storage, numbered(1, "/event/X")) == "/event/*"
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


# Markers that wait


async def test_a_marker_that_came_ahead_waits_for_the_backlog() -> None:
    storage = SlowStorage()
    live, backlog = numbered(50), [numbered(number) for number in range(1, 4)]
    hold_back(storage, live)
    await store_marker(storage, live)
    assert storage.writes == []
    release(storage, CHANNEL, after=backlog[-1])
    for message in backlog:
        await store_marker(storage, message)
    assert storage.writes == [1, 2, 3, 50]
    assert notes_of(storage).special == {}
    await store_marker(storage, numbered(51))
    assert stored_id(storage) == 51


async def test_several_that_came_ahead_leave_the_newest() -> None:
    storage = SlowStorage()
    early = [numbered(50), numbered(51), numbered(49)]
    hold_back(storage, *early)
    for message in (*early, numbered(1)):
        await store_marker(storage, message)
    assert storage.writes == [1]
    last = numbered(2)
    release(storage, CHANNEL, after=last)
    await store_marker(storage, last)
    assert storage.writes == [1, 2, 51]


async def test_released_without_a_message_it_is_stored_with_the_next() -> None:
    storage = SlowStorage()
    early = numbered(50)
    hold_back(storage, early)
    await store_marker(storage, early)
    release(storage, CHANNEL)
    assert storage.writes == []
    await store_marker(storage, numbered(3))
    assert storage.writes == [3, 50]
    assert notes_of(storage).special == {}


async def test_released_without_a_message_it_is_stored_by_flush() -> None:
    storage = SlowStorage()
    early, other = numbered(50), numbered(7, TOPIC)
    hold_back(storage, early, other)
    for message in (early, other):
        await store_marker(storage, message)
    await flush(storage)
    assert storage.writes == []
    release(storage, CHANNEL)
    await flush(storage)
    assert storage.writes == [50]
    assert set(notes_of(storage).special) == {TOPIC}


async def test_released_before_it_was_handed_over_it_is_like_any_other() -> None:
    storage = SlowStorage()
    early = numbered(50)
    hold_back(storage, early)
    release(storage, CHANNEL)
    assert notes_of(storage).special == {}
    await store_marker(storage, early)
    assert storage.writes == [50]
    release(storage, CHANNEL, after=early)
    assert notes_of(storage).special == {}


async def test_a_message_with_the_same_id_is_another_message() -> None:
    storage = SlowStorage()
    hold_back(storage, numbered(50))
    await store_marker(storage, numbered(50))
    assert storage.writes == [50]


async def test_a_second_backlog_has_its_own_end() -> None:
    storage = SlowStorage()
    first, second, end = numbered(50), numbered(80), numbered(2)
    hold_back(storage, first)
    release(storage, CHANNEL, after=end)
    hold_back(storage, second)
    for message in (first, second, end):
        await store_marker(storage, message)
    assert storage.writes == [2, 50]
    release(storage, CHANNEL)
    await store_marker(storage, numbered(60))
    assert storage.writes == [2, 50, 60, 80]


async def test_what_fails_is_stored_when_the_message_comes_again() -> None:
    storage = SlowStorage()
    early, last = numbered(50), numbered(1)
    hold_back(storage, early)
    await store_marker(storage, early)
    release(storage, CHANNEL, after=last)
    storage.failures = [OSError("disk")]
    with pytest.raises(ReplayError):
        await store_marker(storage, last)
    await store_marker(storage, last)
    assert storage.writes == [1, 50]


async def test_there_is_no_direct_way_while_something_waits() -> None:
    storage = MappingStorage({})
    attach(storage, {}, subscribed={CHANNEL})
    await store_directly(storage, numbered(1))
    store = direct_store_of(storage)
    assert store is not None
    early = numbered(50)
    hold_back(storage, early)
    assert not store(early)
    release(storage, CHANNEL)
    assert store(early)


async def test_blocks_of_messages_that_came_ahead() -> None:
    storage = SlowStorage()
    early, backlog = numbered(50), [numbered(number) for number in range(1, 4)]
    hold_back(storage, early)
    release(storage, CHANNEL, after=backlog[-1])
    blocks = [storage(message) for message in (early, *backlog)]
    for index in (0, 3, 1):
        async with blocks[index]:
            pass
    assert storage.writes == [1]
    async with blocks[2]:
        pass
    assert storage.writes == [1, 3, 50]


async def test_the_end_of_a_backlog_may_be_older_than_what_has_finished_before_it() -> None:
    storage = SlowStorage()
    early, last = numbered(50), numbered(2)
    hold_back(storage, early)
    release(storage, CHANNEL, after=last)
    slow, newer, end, ahead = (
        storage(message) for message in (numbered(1), numbered(70), last, early)
    )
    for block in (ahead, newer, end):
        async with block:
            pass
    assert storage.writes == []
    async with slow:
        pass
    assert stored_id(storage) == 70
    assert notes_of(storage).special == {}


async def test_the_end_of_a_backlog_that_fails_ends_it_with_the_next_message() -> None:
    storage = SlowStorage()
    early, last = numbered(50), numbered(1)
    hold_back(storage, early)
    release(storage, CHANNEL, after=last)
    async with storage(early):
        pass
    with pytest.raises(ValueError, match="processing"):
        async with storage(last):
            raise ValueError("processing")
    assert storage.writes == []
    async with storage(numbered(2)):
        pass
    assert storage.writes == [2, 50]


async def test_opened_again_only_what_is_being_processed_still_waits() -> None:
    storage, client = SlowStorage(), Owner()
    attach(storage, {}, client=client)
    processing, queued = numbered(50), numbered(51)
    hold_back(storage, processing, queued)
    block = storage(processing)
    attach(storage, {}, client=client)
    async with block:
        pass
    assert storage.writes == [], "the events before it come again, and are not processed yet"
    assert notes_of(storage).special == {}
    await store_marker(storage, numbered(1))
    assert storage.writes == [1]


async def test_nothing_piles_up_where_nothing_is_stored() -> None:
    constant, unused = ConstantReplayId(-1), SlowStorage()
    for number in range(200):
        early, last = numbered(number), numbered(number)
        for storage in (constant, unused):
            overwrite_with(storage, early)
            hold_back(storage, early)
            release(storage, CHANNEL, after=last)
    assert notes_of(constant).special == {}
    assert len(notes_of(unused).special[CHANNEL].holds) == 50
    await store_marker(unused, early)
    assert unused.writes == []
    await store_marker(unused, last)
    assert unused.writes == [199, 199]


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
    early = numbered(50)
    hold_back(storage, early)
    await store_marker(storage, early)
    await store_marker(storage, numbered(2))
    assert storage.markers[CHANNEL].replay_id == 2


@given(st.data())
def test_a_marker_never_passes_what_had_to_come_before(data: st.DataObject) -> None:
    early = data.draw(st.lists(st.integers(50, 60), min_size=1, max_size=4, unique=True), "early")
    backlog = data.draw(st.integers(1, 6), "backlog")
    manual = data.draw(st.booleans(), "processed side by side")
    messages = [numbered(number) for number in (*early, *range(1, backlog + 1))]
    order = data.draw(st.permutations(range(len(messages))), "order") if manual else ()

    async def run() -> None:
        storage = SlowStorage()
        hold_back(storage, *messages[: len(early)])
        release(storage, CHANNEL, after=messages[-1])
        blocks = [storage(message) for message in messages] if manual else []
        done = set()
        for index in order or range(len(messages)):
            if manual:
                async with blocks[index]:
                    pass
            else:
                await store_marker(storage, messages[index])
            done.add(messages[index]["data"]["event"]["replayId"])
            stored = stored_id(storage)
            if stored is not None:
                assert done >= set(range(1, min(stored, backlog) + 1)), "it ran ahead"
        assert stored_id(storage) == max(early)
        assert notes_of(storage).special == {}

    asyncio.run(run())
