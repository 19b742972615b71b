"""What every marker storage must do, as a check that anyone can run on their own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

from aiosfstream.replay import (
    ReplayMarker,
    ReplayMarkerStorage,
    direct_store_of,
    flush,
    overwrite_with,
    store_marker,
)

__all__ = ["check_marker_storage"]

Made: TypeAlias = "ReplayMarkerStorage | AbstractAsyncContextManager[ReplayMarkerStorage]"
Factory: TypeAlias = "Callable[[], Made | Awaitable[Made]]"

#: Dates in the order of the instants that they name, in the forms that Salesforce writes.
DATES: Final = (
    "2017-04-09T18:31:40Z",
    "2017-04-09T18:31:40.001+0000",
    "1491762700002",
    "2017-04-09T18:31:40.003Z",
    "2017-04-09T20:31:40.004+0200",
    "2017-04-09T18:31:41Z",
)
#: Replay ids are opaque: these must come back as they are.
IDS: Final[tuple[Any, ...]] = (1, 0, -2, 2**53 + 1, 2**63, "AAAB-7", "", "\u00e9\u2603")
CHANNELS: Final = (
    "/topic/Names",
    "/topic/names",
    "/u/notifications/Names",
    "/data/Employee__ChangeEvent",
    "/event/" + "N" * 200,
    "/event/*",
    '/event/O\'Hara "x" %s {y} \u00e9\u2603',
)
OVERLAPPING: Final = 40


async def check_marker_storage(factory: Factory, *, overlapping: bool = False) -> None:
    """Check that a marker storage keeps what the client promises.

    For the tests of your own storage::

        async def test_my_storage(database):
            await check_marker_storage(lambda: MyStorage(database))

    :param factory: called several times, makes a storage, or an async context manager that gives one;
        all of them on the same store, which is empty at first
    :param overlapping: whether two storages that are used at the same time must not move a marker
        back either. A storage whose :meth:`~aiosfstream.ReplayMarkerStorage.extract_replay_id` is the
        inherited one reads before it writes, so it cannot promise that; one that compares and stores
        in a single step of its database can, and should, where more than one machine is at work
    :raises AssertionError: if it does something else, with a sentence that says what
    """
    for check in _CHECKS:
        await check(factory)
    await _check_that_markers_outlive_their_storage(factory)
    if overlapping:
        await _check_overlapping(factory)


@asynccontextmanager
async def _opened(factory: Factory) -> AsyncIterator[ReplayMarkerStorage]:
    made = factory()
    if inspect.isawaitable(made):
        made = await made
    if isinstance(made, AbstractAsyncContextManager):
        async with made as storage:
            yield storage
            await flush(storage)
    else:
        yield made
        await flush(made)


def _demand(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


def _event(channel: str, replay_id: Any, date: str | None) -> dict[str, Any]:
    event = {"replayId": replay_id, "createdDate": date}
    return {"channel": channel, "data": {"event": event, "sobject": {}}}


async def _demand_marker(
    storage: ReplayMarkerStorage, channel: str, expected: ReplayMarker | None, after: str
) -> None:
    found = await storage.get_replay_marker(channel)
    same = found == expected and (expected is None) == (found is None)
    same = same and type(getattr(found, "replay_id", None)) is type(
        getattr(expected, "replay_id", None)
    )
    _demand(same, f"After {after}, get_replay_marker gives {found!r} and not {expected!r}.")


async def _check_empty(factory: Factory) -> None:
    async with _opened(factory) as storage:
        for channel in CHANNELS:
            found = await storage.get_replay_marker(channel)
            _demand(
                found is None,
                f"The store is not empty at first, or get_replay_marker gives {found!r} where it"
                " should give None.",
            )


async def _check_values(factory: Factory) -> None:
    async with _opened(factory) as storage:
        for number, replay_id in enumerate(IDS):
            channel = f"/u/Values{number}"
            for date in ("", *DATES):
                marker = ReplayMarker(date, replay_id)
                await storage.set_replay_marker(channel, marker)
                await _demand_marker(storage, channel, marker, f"set_replay_marker({marker})")
            found = await storage.get_replay_id(channel)
            _demand(
                found == replay_id, f"get_replay_id gives {found!r} where {replay_id!r} is stored."
            )


async def _check_overwriting(factory: Factory) -> None:
    async with _opened(factory) as storage:
        newer, older = ReplayMarker(DATES[-1], 9), ReplayMarker(DATES[0], 3)
        for marker in (newer, older, ReplayMarker("", 2)):
            await storage.set_replay_marker("/u/Overwriting", marker)
            await _demand_marker(
                storage,
                "/u/Overwriting",
                marker,
                "set_replay_marker, which overwrites whatever is stored,",
            )


async def _check_channels(factory: Factory) -> None:
    async with _opened(factory) as storage:
        for number, channel in enumerate(CHANNELS):
            await storage.set_replay_marker(channel, ReplayMarker(DATES[0], number))
        for number, channel in enumerate(CHANNELS):
            expected = ReplayMarker(DATES[0], number)
            await _demand_marker(
                storage, channel, expected, f"storing markers of {len(CHANNELS)} channels"
            )


async def _check_order(factory: Factory) -> None:
    async with _opened(factory) as storage:
        for number, date in enumerate(DATES):
            await storage.extract_replay_id(_event("/u/Order", number, date))
            await _demand_marker(
                storage, "/u/Order", ReplayMarker(date, number), f"a message of {date}"
            )
        last = ReplayMarker(DATES[-1], len(DATES) - 1)
        for number, date in enumerate(DATES[:-1]):
            await storage.extract_replay_id(_event("/u/Order", number, date))
            await _demand_marker(
                storage, "/u/Order", last, f"a replayed message, of {date}, after it"
            )
        await storage.extract_replay_id(_event("/u/Order", 99, DATES[-1]))
        await _demand_marker(
            storage, "/u/Order", ReplayMarker(DATES[-1], 99), "another message of the same moment"
        )


async def _check_odd_messages(factory: Factory) -> None:
    async with _opened(factory) as storage:
        await storage.extract_replay_id(_event("/u/Odd", None, DATES[0]))
        await _demand_marker(storage, "/u/Odd", None, "a message without a replay id")
        await storage.extract_replay_id(_event("/u/Odd", 1, None))
        await _demand_marker(storage, "/u/Odd", ReplayMarker("", 1), "a message without a date")
        dated = ReplayMarker(DATES[0], 2)
        await storage.extract_replay_id(_event("/u/Odd", 2, DATES[0]))
        await _demand_marker(storage, "/u/Odd", dated, "a message with a date after one without")
        await storage.extract_replay_id(_event("/u/Odd", 3, None))
        await _demand_marker(storage, "/u/Odd", dated, "a message without a date after one with")


async def _check_filters(factory: Factory) -> None:
    async with _opened(factory) as storage:
        await storage.extract_replay_id(_event("/topic/Filter", 7, DATES[0]))
        subscription = "/topic/Filter?Status='open'"
        message: dict[str, Any] = {"channel": "/meta/subscribe", "subscription": subscription}
        await storage.outgoing([message], {})
        found = message.get("ext", {}).get("replay")
        _demand(
            found == {"/topic/Filter": 7},
            f"A subscription of {subscription} asks to be replayed from {found!r}.",
        )


async def _check_fallback(factory: Factory) -> None:
    async with _opened(factory) as storage:
        await storage.set_replay_marker("/u/Fallback", ReplayMarker(DATES[-1], 90))
        first, second = _event("/u/Fallback", 1, DATES[1]), _event("/u/Fallback", 2, DATES[0])
        overwrite_with(storage, first)
        await store_marker(storage, first)
        expected = ReplayMarker(DATES[1], 1)
        after = "the first message after a fallback, which replaces the useless marker,"
        await _demand_marker(storage, "/u/Fallback", expected, after)
        await storage.extract_replay_id(second)
        await _demand_marker(storage, "/u/Fallback", expected, "an older message after that one")


async def _check_processing(factory: Factory) -> None:
    async with _opened(factory) as storage:
        first, second, third = (
            storage(_event("/u/Blocks", number, date)) for number, date in enumerate(DATES[:3])
        )
        async with second:
            pass
        await _demand_marker(storage, "/u/Blocks", None, "the second of two messages in flight")
        try:
            async with third:
                raise LookupError
        except LookupError:
            pass
        async with first:
            pass
        await _demand_marker(
            storage, "/u/Blocks", ReplayMarker(DATES[1], 1), "the first two of three, one failed,"
        )


async def _check_direct_way(factory: Factory) -> None:
    async with _opened(factory) as storage:
        store = direct_store_of(storage)
        if store is None:
            return
        events = [_event("/u/Direct", number, date) for number, date in enumerate(DATES)]
        for event in (*events, events[0]):
            if not store(event):
                await store_marker(storage, event)
        expected = ReplayMarker(DATES[-1], len(DATES) - 1)
        await _demand_marker(storage, "/u/Direct", expected, "storing without waiting")
        await flush(storage)
        await _demand_marker(storage, "/u/Direct", expected, "flush")


_CHECKS: Final = (
    _check_empty,
    _check_values,
    _check_overwriting,
    _check_channels,
    _check_order,
    _check_odd_messages,
    _check_filters,
    _check_fallback,
    _check_processing,
    _check_direct_way,
)


async def _check_that_markers_outlive_their_storage(factory: Factory) -> None:
    async with _opened(factory) as storage:
        await storage.extract_replay_id(_event("/u/Outlive", "a", DATES[0]))
        await storage.extract_replay_id(_event("/u/Outlive", "b", DATES[1]))
    async with _opened(factory) as storage:
        await _demand_marker(
            storage,
            "/u/Outlive",
            ReplayMarker(DATES[1], "b"),  # type: ignore[arg-type]
            "its storage was closed and another one opened on the same store",
        )


async def _check_overlapping(factory: Factory) -> None:
    async with _opened(factory) as one, _opened(factory) as other:
        events = [
            _event("/u/Overlapping", number, f"2017-04-09T18:31:{number:02}.000Z")
            for number in range(OVERLAPPING)
        ]
        # From both ends, so that each of them writes what is older than what the other has written.
        await asyncio.gather(
            *(one.extract_replay_id(event) for event in events),
            *(other.extract_replay_id(event) for event in reversed(events)),
        )
        await asyncio.gather(flush(one), flush(other))
        last = ReplayMarker(f"2017-04-09T18:31:{OVERLAPPING - 1:02}.000Z", OVERLAPPING - 1)
        for storage in (one, other):
            await _demand_marker(
                storage, "/u/Overlapping", last, "two storages stored messages at the same time"
            )
