"""What may not be made for each message: a task, a future, a context manager, a long chain of calls.

Times differ from machine to machine, and so they are the benchmarks' matter; these counts do not.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from aiosfstream import AccessTokenAuthenticator, Client, ReplayMarkerStoragePolicy, SQLiteStorage
from benchmarks.script import CHANNEL
from benchmarks.server import Script, ServerProcess
from tests.support import soon

EVENTS = 2_000
BATCH = 200
RESPONSES = EVENTS // BATCH
#: Futures, or context managers, that a request may make; 3 to 5 today, 26 with a commit to a file.
PER_RESPONSE = 30
#: Calls of Python functions for a message in ``async for``: 13 to 16 today, where 2 are the test's own,
#: 2 tell duplicates by what identifies an event, and 3 are the message's share of its request.
CALLS_PER_MESSAGE = 17

Take = Callable[[Client], AsyncIterator[Any]]


class Counts(Counter[str]):
    """What was made, and which functions were called."""

    @contextmanager
    def counting(self) -> Generator[None, None, None]:
        """Count while the block runs, whatever is made in this thread and its event loop."""
        loop = asyncio.get_running_loop()
        create_future, factory = loop.create_future, loop.get_task_factory()

        def counted_future() -> asyncio.Future[Any]:
            self["futures"] += 1
            return create_future()

        def counted_task(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
            self["tasks"] += 1
            return asyncio.Task(coro, loop=loop, **options)

        loop.create_future = counted_future  # type: ignore[method-assign]
        loop.set_task_factory(counted_task)
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(None)
            loop.set_task_factory(factory)
            del loop.create_future

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self["calls"] += 1
            if frame.f_code.co_name in {"__enter__", "__aenter__"}:
                self["context managers"] += 1


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with ServerProcess(Script(events=EVENTS, batch=BATCH)) as server:
        yield server.url


def client_at(url: str, **options: Any) -> Client:
    return Client(AccessTokenAuthenticator(url, "token"), **options)


async def iterate(client: Client) -> AsyncIterator[Any]:
    async for message in client:
        yield message


async def receive(client: Client) -> AsyncIterator[Any]:
    while True:
        yield await client.receive()


async def count_for(client: Client, take: Take) -> Counts:
    """Take all events and give what was made between the first one and the last one."""
    counts, seen = Counts(), []
    async with client:
        await client.subscribe(CHANNEL)
        messages = take(client)
        seen.append(await soon(anext(messages)))
        with counts.counting():
            async for message in messages:
                seen.append(message)
                if len(seen) == EVENTS:
                    break
    ids = [message["data"]["event"]["replayId"] for message in seen]
    assert ids == list(range(1, EVENTS + 1))
    return counts


class Mixin(Client):
    """A client of an application that takes part in every message."""

    async def receive(self) -> Any:
        return await super().receive()


@pytest.mark.parametrize("take", [iterate, receive])
@pytest.mark.parametrize("kind", [Client, Mixin])
async def test_nothing_is_made_for_a_message(url: str, take: Take, kind: type[Client]) -> None:
    client = kind(AccessTokenAuthenticator(url, "token"), replay={})
    counts = await soon(count_for(client, take), 60)
    for what in ("tasks", "futures", "context managers"):
        assert counts[what] <= PER_RESPONSE * RESPONSES, counts


async def test_nothing_is_made_for_a_message_with_markers_in_a_file(
    url: str, tmp_path: Path
) -> None:
    async with SQLiteStorage(tmp_path / "markers.db") as storage:
        counts = await soon(count_for(client_at(url, replay=storage), iterate), 60)
    for what in ("tasks", "futures", "context managers"):
        assert counts[what] <= PER_RESPONSE * RESPONSES, counts


async def test_what_a_request_makes_is_counted(url: str) -> None:
    counts = await soon(count_for(client_at(url), iterate), 60)
    # Each response is fetched by a request, which has a context manager and a future at the least.
    assert counts["futures"] >= RESPONSES - 1
    assert counts["context managers"] >= RESPONSES - 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"replay": {}},
        {"replay": {}, "replay_storage_policy": ReplayMarkerStoragePolicy.MANUAL},
    ],
)
async def test_a_message_takes_few_calls(url: str, options: dict[str, Any]) -> None:
    counts = await soon(count_for(client_at(url, **options), iterate), 60)
    assert counts["calls"] <= CALLS_PER_MESSAGE * EVENTS, counts
