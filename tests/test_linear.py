"""What an answer costs grows with its size and no faster: operations are counted, not seconds."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import aiosfstream
from aiosfstream import ReplayOption
from aiosfstream.testing import Insert, StreamingServer
from tests.support import EVENT, client_for, held, receive, soon

PACKAGE = str(Path(aiosfstream.__file__).parent)
#: Many more than any answer has that is in order, few enough for a test.
MANY = 2000
#: Operations that a message of an answer may cost: some steps, and not a look at all the others.
PER_MESSAGE = 40

#: Messages that a server may send by the thousand.
KINDS: dict[str, Callable[[int], Any]] = {
    "events": lambda number: event(EVENT, number),
    "the same event": lambda number: event(EVENT, 1),
    "ids with one hash": lambda number: event(EVENT, number * (2**61 - 1)),
    "events of other channels": lambda number: event(f"/event/{number}", number),
    "events without an id": lambda number: {"channel": EVENT, "data": {"event": {}}},
    "no events": lambda number: {"channel": f"/event/{number}", "successful": False},
    "data that is no event": lambda number: {"channel": f"/meta/{number}", "data": {}},
    "goodbyes": lambda number: {"channel": "/meta/disconnect"},
    "refusals": lambda number: {"channel": "/meta/connect", "successful": False, "error": "403::"},
    "both": lambda number: {"channel": f"/u/{number}", "data": {}} if number % 2 else {"a": number},
    "lists in lists": lambda number: [[[{"channel": EVENT}]]],
    "texts": lambda number: "x" * 50,
}


def event(channel: str, replay_id: Any) -> dict[str, Any]:
    """Make an event."""
    return {"channel": channel, "data": {"event": {"replayId": replay_id}, "payload": {}}}


class Counted(dict[str, Any]):
    """A JSON object that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return super().__eq__(other)

    __hash__ = None


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count the calls of the package's functions within the block, and comparisons of messages."""
    counts = [0]

    def count(frame: FrameType, what: str, argument: object) -> None:
        place = frame.f_code.co_filename
        is_ours = place.startswith(PACKAGE) and "testing" not in place[len(PACKAGE) :]
        if what == "call" and is_ours:
            counts[0] += 1

    Counted.comparisons = 0
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(before)
        counts[0] += Counted.comparisons


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server that does not slow anybody down."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


@pytest.mark.parametrize("on", ["/meta/connect", "/meta/subscribe"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_costs_a_few_steps_however_many_there_are(
    server: StreamingServer, caplog: pytest.LogCaptureFixture, kind: str, on: str
) -> None:
    caplog.set_level(logging.INFO)
    options = {"json_loads": lambda text: json.loads(text, object_hook=Counted)}
    client = client_for(
        server, replay=ReplayOption.ALL_EVENTS, max_pending_count=3 * MANY, **options
    )
    async with client:
        await client.subscribe(EVENT)
        first = server.publish(EVENT)
        assert await receive(client) == [first]
        await held(server)
        inserted = server.add_fault(Insert(tuple(map(KINDS[kind], range(1, MANY + 1)))), on=on)
        with counting() as counts:
            if on == "/meta/subscribe":
                await asyncio.wait([asyncio.ensure_future(soon(client.subscribe("/event/B__e")))])
            else:
                server.publish(EVENT)
                await held(server)
                server.publish(EVENT)
            await soon(server.wait_for(lambda _: inserted.is_over))
            await held(server)
        assert counts[0] > 50, "nothing was counted"
        assert counts[0] < PER_MESSAGE * MANY, f"{counts[0] / MANY:.0f} a message"
        # Nor does one answer fill the log.
        assert len(caplog.records) < 250
