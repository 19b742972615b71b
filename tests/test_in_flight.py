"""Markers after processing: never ahead of a message that is still being processed."""

import asyncio
import gc
import logging
import threading
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import _in_flight as module
from aiosfstream.exceptions import ReplayError
from aiosfstream.replay import (
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStorageContextManager,
    attach,
    overwrite_with,
)
from tests.markers import (
    CHANNEL,
    MIDDLE,
    NEW,
    OLD,
    TOPIC,
    Message,
    SlowStorage,
    lines_of,
    notes_of,
    platform,
    push_topic,
)
from tests.support import soon


class Job:
    """A message in flight, which a test ends."""

    def __init__(self, storage: ReplayMarkerStorage, message: Message) -> None:
        self._manager = storage(message)

    async def begin(self) -> "Job":
        await self._manager.__aenter__()
        return self

    async def succeed(self) -> None:
        await self._manager.__aexit__(None, None, None)

    async def fail(self, error: BaseException | None = None) -> None:
        error = error or ValueError("processing")
        await self._manager.__aexit__(type(error), error, None)


def places(storage: ReplayMarkerStorage) -> int:
    """Count what is kept of the messages of a channel, one place for what is due included."""
    place: Any = lines_of(storage)[CHANNEL].front
    count = 0
    while place is not None:
        place, count = place.next, count + 1
    return count


async def jobs(storage: ReplayMarkerStorage, *received: Message) -> list[Job]:
    """Put messages in flight, in this order."""
    return [await Job(storage, message).begin() for message in received]


async def test_the_marker_is_stored_after_the_processing() -> None:
    storage = SlowStorage()
    async with storage(platform(1)):
        assert storage.writes == []
    assert storage.writes == [1]


async def test_a_failed_message_is_not_stored_and_its_error_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(1)):
            raise ValueError("processing of a secret")
    assert storage.writes == []
    assert f"{CHANNEL} failed with ValueError" in caplog.text
    assert "secret" not in caplog.text
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_what_finishes_early_is_held_back() -> None:
    storage = SlowStorage()
    first, second, third = await jobs(storage, platform(1), platform(2), platform(3))
    await second.succeed()
    await third.succeed()
    assert storage.writes == []
    await first.succeed()
    assert storage.writes == [3]


async def test_a_message_is_in_flight_from_the_call_on() -> None:
    storage = SlowStorage()
    first, second = storage(platform(1)), storage(platform(2))
    async with second:
        pass
    assert storage.writes == []
    async with first:
        pass
    assert storage.writes == [2]


async def test_channels_do_not_wait_for_each_other() -> None:
    storage = SlowStorage()
    slow, quick = await jobs(storage, platform(1), push_topic(1))
    await quick.succeed()
    assert storage.markers == {TOPIC: ReplayMarker(NEW, 1)}
    await slow.succeed()


async def test_channels_of_one_subscription_wait_for_each_other() -> None:
    storage = SlowStorage()
    attach(storage, {"/event/A": "/event/*", "/event/B": "/event/*"})
    slow, quick = await jobs(
        storage, platform(1, channel="/event/A"), platform(2, channel="/event/B")
    )
    await quick.succeed()
    assert storage.markers == {}
    await slow.succeed()
    assert storage.markers == {"/event/*": ReplayMarker(NEW, 2)}


async def test_a_failure_lets_later_ones_pass() -> None:
    storage = SlowStorage()
    first, second, third = await jobs(storage, platform(1), platform(2), platform(3))
    await third.succeed()
    await first.succeed()
    assert storage.writes == [1]
    await second.fail()
    assert storage.writes == [1, 3]


async def test_what_is_held_back_is_what_one_after_the_other_would_have_left() -> None:
    storage = SlowStorage()
    slow, newer, older, bare = await jobs(
        storage, platform(1, OLD), platform(3, NEW), platform(2, MIDDLE), platform(None)
    )
    for job in (bare, older, newer):
        await job.succeed()
    assert storage.writes == []
    await slow.succeed()
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 3)}


class Counting(SlowStorage):
    """Overrides, with the types that an earlier release had for them."""

    calls = 0

    def __call__(self, message: Message) -> ReplayMarkerStorageContextManager:
        self.calls += 1
        return super().__call__(message)

    async def get_replay_id(self, subscription: str) -> int:
        return await super().get_replay_id(subscription) or -2


async def test_the_types_of_overrides_are_those_of_earlier_releases() -> None:
    storage = Counting()
    assert await storage.get_replay_id(CHANNEL) == -2
    async with storage(platform(1)):
        pass
    assert (storage.calls, storage.writes) == (1, [1])


async def test_a_context_manager_says_what_it_is_for() -> None:
    storage, message = MappingStorage({}), platform(1)
    manager = ReplayMarkerStorageContextManager(replay_storage=storage, message=message)
    assert manager.replay_storage is storage
    assert manager.message is message
    async with manager:
        pass
    assert storage.mapping == {CHANNEL: ReplayMarker(NEW, 1)}


async def test_a_storage_that_is_a_mock_is_asked_to_extract() -> None:
    storage, message = mock.MagicMock(), mock.sentinel.message
    storage.extract_replay_id = mock.AsyncMock()
    async with ReplayMarkerStorageContextManager(storage, message):
        storage.extract_replay_id.assert_not_called()
    storage.extract_replay_id.assert_awaited_once_with(message)


async def test_a_subclass_of_the_context_manager_may_use_any_name() -> None:
    class Manager(ReplayMarkerStorageContextManager):
        _storage = _message = _place = _entered = _ended = _fail = "mine"

    class Forgetful(ReplayMarkerStorageContextManager):
        def __init__(self) -> None:
            pass

    storage = SlowStorage()
    async with Manager(storage, platform(1)):
        pass
    assert storage.writes == [1]
    with pytest.raises(ReplayError, match="Forgetful was made without its constructor"):
        await Forgetful().__aenter__()


async def test_a_context_manager_is_entered_once() -> None:
    manager = MappingStorage({})(platform(1))
    async with manager:
        with pytest.raises(ReplayError, match="once only"):
            await manager.__aenter__()


async def test_a_storage_that_fails_at_the_end_of_a_block() -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(OLD, 0)
    storage.failures = [OSError("disk")]
    with pytest.raises(ReplayError, match="could not be stored"):
        async with storage(platform(1)):
            pass
    assert storage.markers == {CHANNEL: ReplayMarker(OLD, 0)}
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]
    assert lines_of(storage) == {}


async def test_what_could_not_be_stored_goes_along_with_a_failed_message() -> None:
    storage = SlowStorage()
    storage.failures = [OSError("disk")]
    with pytest.raises(ReplayError):
        async with storage(platform(1)):
            pass
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(2)):
            raise ValueError("processing")
    assert storage.writes == [1]


async def test_the_error_of_a_block_is_stronger_than_that_of_the_storage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    first, second = await jobs(storage, platform(1), platform(2))
    await second.succeed()
    storage.failures = [OSError("disk")]
    await first.fail()
    assert "could not be stored" in caplog.text
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]


async def test_stores_of_a_channel_follow_each_other() -> None:
    storage = SlowStorage()
    storage.gate.clear()
    ended = []

    async def process(number: int) -> None:
        async with storage(platform(number)):
            pass
        ended.append(number)
        assert storage.writes[-1] >= number, "the block has ended and the marker is not stored"

    tasks = [asyncio.create_task(process(number)) for number in range(1, 6)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert ended == []
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 5)}
    assert storage.writes == sorted(storage.writes)
    assert lines_of(storage) == {}


async def test_a_slow_store_does_not_end_after_a_later_one() -> None:
    class FirstWaits(SlowStorage):
        async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
            if replay_marker.replay_id == 1:
                await self.gate.wait()
            self.markers[subscription] = replay_marker

    storage = FirstWaits()
    storage.gate.clear()
    first, second = await jobs(storage, platform(1), platform(2))
    tasks = [asyncio.create_task(job.succeed()) for job in (first, second)]
    for _ in range(10):
        await asyncio.sleep(0)
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 2)}


async def test_cancelled_while_storing_it_is_stored_with_the_next() -> None:
    storage = SlowStorage()
    storage.gate.clear()

    async def process() -> None:
        async with storage(platform(1)):
            pass

    task = asyncio.create_task(process())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    storage.gate.set()
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(2)):
            raise ValueError("processing")
    assert storage.writes == [1]


async def test_a_message_that_nobody_processes_does_not_block_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    forgotten: Any = storage(platform(1))
    second = storage(platform(2))
    del forgotten
    gc.collect()
    await asyncio.sleep(0)
    assert "cancelled or never begun" in caplog.text
    async with second:
        pass
    assert storage.writes == [2]


async def test_a_destructor_writes_no_log_where_it_runs() -> None:
    # That may be within a handler that has just taken its lock, as that of a queue has one.
    lock = threading.Lock()
    locked: list[bool] = []
    handler = logging.Handler()
    handler.emit = lambda record: locked.append(lock.locked())  # type: ignore[method-assign]
    module.LOGGER.addHandler(handler)
    try:
        storage = SlowStorage()
        forgotten: Any = storage(platform(1))
        with lock:
            del forgotten
            gc.collect()
        await asyncio.sleep(0)
    finally:
        module.LOGGER.removeHandler(handler)
    assert locked == [False]


async def test_a_forgotten_message_in_the_middle() -> None:
    storage = SlowStorage()
    first, middle, last = storage(platform(1)), storage(platform(2)), storage(platform(3))
    async with last:
        pass
    del middle
    gc.collect()
    async with first:
        pass
    assert storage.writes == [1], "what nobody processed was passed by what had finished before"
    async with storage(platform(4)):
        pass
    assert storage.writes == [1, 4]


async def test_a_program_that_is_shut_down_passes_nothing_unfinished() -> None:
    storage = SlowStorage()
    begun, end = asyncio.Event(), asyncio.Event()

    async def process(number: int, manager: Any) -> None:
        async with manager:
            if number not in {0, 3}:
                begun.set()
                await end.wait()

    # Number 5 is never begun.
    managers = [storage(platform(number)) for number in range(6)]
    tasks = [asyncio.create_task(process(number, managers[number])) for number in range(5)]
    await begun.wait()
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    managers.clear()
    gc.collect()
    assert storage.writes == [0]
    assert [task.cancelled() for task in tasks] == [False, True, True, False, True]


async def test_a_program_that_goes_on_after_a_cancelled_message() -> None:
    storage = SlowStorage()
    cancelled, done = await jobs(storage, platform(1), platform(2))
    await done.succeed()
    await cancelled.fail(asyncio.CancelledError())
    assert storage.writes == []
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]
    assert lines_of(storage) == {}


async def test_a_coroutine_that_is_thrown_away_gives_its_place_back() -> None:
    storage = SlowStorage()

    async def process() -> None:
        async with storage(platform(1)):
            await asyncio.get_running_loop().create_future()

    coroutine = process()
    coroutine.send(None)
    coroutine.close()
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_a_coroutine_that_is_thrown_away_stores_nothing_on_its_way_out() -> None:
    storage = SlowStorage()

    async def process() -> None:
        async with storage(platform(1)):
            await asyncio.get_running_loop().create_future()

    coroutine = process()
    coroutine.send(None)
    async with storage(platform(2)):
        pass
    storage.gate.clear()
    coroutine.close()
    storage.gate.set()
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]


async def test_a_block_that_was_never_left_does_not_block_for_ever() -> None:
    storage = SlowStorage()
    manager: Any = storage(platform(1))
    await manager.__aenter__()
    del manager
    gc.collect()
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_memory_is_not_for_what_was_forgotten() -> None:
    storage = SlowStorage()
    stuck = (await jobs(storage, platform(0)))[0]
    for number in range(1, 200):
        storage(platform(number))
    assert len(notes_of(storage).in_flight.abandoned) <= 1
    assert places(storage) <= 3
    await stuck.succeed()
    assert lines_of(storage) == {}


async def test_the_first_message_behind_a_fallback_fails_and_the_next_overwrites() -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(NEW, 90)
    first, second, third = platform(1, MIDDLE), platform(2, MIDDLE), platform(3, OLD)
    overwrite_with(storage, first)
    with pytest.raises(ValueError, match="processing"):
        async with storage(first):
            raise ValueError("processing")
    for message in (second, third):
        async with storage(message):
            pass
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 2)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
async def test_overwriting_behind_a_fallback_in_any_order(order: tuple[int, ...]) -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(NEW, 90)
    received = [platform(1, NEW), platform(2, OLD), platform(3, MIDDLE)]
    overwrite_with(storage, received[1])
    running = await jobs(storage, *received)
    for index in order:
        await running[index].succeed()
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 3)}
    async with storage(platform(4, OLD)):
        pass
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 3)}


class Owner:
    """Stands for a client."""


async def test_storing_ends_in_the_time_of_the_client_that_was_opened_last() -> None:
    storage, one, other = SlowStorage(), Owner(), Owner()
    attach(storage, {}, client=one)
    attach(storage, {}, client=other, timeout=0.01)
    storage.gate.clear()
    [first] = await jobs(storage, platform(1))
    with pytest.raises(ReplayError, match="SlowStorage has not answered within 0.01 seconds"):
        await soon(first.succeed())
    storage.gate.set()
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_memory_is_for_what_is_in_flight() -> None:
    storage = SlowStorage()
    stuck = (await jobs(storage, platform(0)))[0]
    for number in range(1, 2000):
        async with storage(platform(number)):
            pass
    assert places(storage) == 2
    await stuck.succeed()
    assert storage.writes == [1999]
    assert lines_of(storage) == {}


@given(
    st.permutations(range(6)),
    st.lists(st.sampled_from([None, ValueError("x"), asyncio.CancelledError()]), min_size=6),
)
def test_cancelling_moves_no_marker(order: list[int], outcomes: list[BaseException | None]) -> None:
    async def run() -> None:
        storage = SlowStorage()
        running = await jobs(storage, *[platform(number) for number in range(6)])
        ended: set[int] = set()
        for number in order:
            error, before = outcomes[number], dict(storage.markers)
            ended.add(number)
            await (running[number].succeed() if error is None else running[number].fail(error))
            if isinstance(error, asyncio.CancelledError):
                assert storage.markers == before
            for marker in storage.markers.values():
                assert ended.issuperset(range(marker.replay_id)), "it ran ahead"
                assert outcomes[marker.replay_id] is None

    asyncio.run(run())


@given(st.data())
def test_a_stored_marker_never_passes_a_message_in_flight(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8), "messages")
    order = data.draw(st.permutations(range(count)), "order in which they finish")
    succeeds = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), "succeed")
    store_fails = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), "stores fail")
    asyncio.run(finish_in_order(order, succeeds, store_fails))


async def finish_in_order(order: list[int], succeeds: list[bool], store_fails: list[bool]) -> None:
    """Finish messages and compare what is stored with the plain statement of what should be."""
    storage = SlowStorage()
    running = await jobs(storage, *[platform(number) for number in range(len(order))])
    finished: set[int] = set()
    for step, number in enumerate(order):
        finished.add(number)
        storage.failures = [OSError("disk")] if store_fails[step] else []
        try:
            await (running[number].succeed() if succeeds[number] else running[number].fail())
            failed = bool(store_fails[step] and not storage.failures)
        except ReplayError:
            failed = True
        passed = 0
        while passed in finished:
            passed += 1
        due = [done for done in range(passed) if succeeds[done]]
        stored = storage.markers.get(CHANNEL)
        if stored is not None:
            assert stored.replay_id in due, "it ran ahead"
        if due and not failed:
            assert stored == ReplayMarker(NEW, due[-1]), "it lags behind"


def test_messages_in_flight_in_one_loop_may_finish_in_another() -> None:
    storage = SlowStorage()

    async def contend(*running: Job) -> None:
        storage.gate = asyncio.Event()
        tasks = [asyncio.create_task(job.succeed()) for job in running]
        for _ in range(5):
            await asyncio.sleep(0)
        storage.gate.set()
        await asyncio.gather(*tasks)

    async def first_loop() -> Job:
        *early, last = await jobs(storage, platform(1), platform(2), platform(3))
        await contend(*early)
        return last

    async def second_loop(leftover: Job) -> None:
        await contend(leftover, *await jobs(storage, platform(4), platform(5)))

    leftover = asyncio.run(first_loop())
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 2)}
    asyncio.run(second_loop(leftover))
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 5)}
