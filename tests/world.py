"""What the tests of the world's oddities share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from aiosfstream import Client, ConnectionEvent, ConnectionEventKind
from aiosfstream.testing import Request, StreamingServer
from tests.support import PATIENCE, Message, client_for, replay_id, soon

#: When what is in a backlog was published.
LONG_AGO = datetime.now(timezone.utc) - timedelta(hours=1)


def has_events(answer: Any) -> bool:
    """Say whether an answer brings events."""
    return any("data" in message for message in answer)


def is_about(channel: str) -> Any:
    """Make a condition: a request that subscribes to *channel*."""
    return lambda request: any(
        message.get("subscription") == channel for message in request.messages
    )


def publish(server: StreamingServer, channel: str, count: int, **options: Any) -> list[Any]:
    """Publish events together and give their replay ids."""
    events = [(channel, {"Number__c": number}) for number in range(count)]
    return server.publish_many(events, **options)


async def answered(server: StreamingServer, what: str, count: int = 1) -> None:
    """Wait until so many requests have come."""
    await server.wait_for(lambda server: server.count(what) >= count, PATIENCE)


def sent(server: StreamingServer, what: str) -> list[Request]:
    """Give the requests of a name."""
    return [request for request in server.requests if request.name == what]


async def pending(client: Client) -> list[Any]:
    """Take what is there and give the replay ids."""
    return [replay_id(await soon(client.receive())) for _ in range(client.pending_count)]


async def nothing_more(client: Client, seconds: float = 0.2) -> bool:
    """Say whether no message comes for a moment."""
    try:
        await asyncio.wait_for(client.receive(), seconds)
    except asyncio.TimeoutError:
        return True
    return False


class Observer:
    """Keeps what a client tells."""

    def __init__(self) -> None:
        self.events: list[ConnectionEvent] = []

    def __call__(self, event: ConnectionEvent) -> None:
        """Keep an event."""
        self.events.append(event)

    def kinds(self) -> list[ConnectionEventKind]:
        """Give the kinds of events."""
        return [event.kind for event in self.events]

    def count(self, kind: ConnectionEventKind) -> int:
        """Count the events of a kind."""
        return self.kinds().count(kind)


@asynccontextmanager
async def program(
    server: StreamingServer, markers: dict[str, Any], **options: Any
) -> AsyncIterator[Client]:
    """Run a client whose markers are in a dict, as a program that was started anew does."""
    async with client_for(server, replay=markers, **options) as client:
        yield client


async def take(client: Client, count: int, *, manual: bool = False) -> list[Any]:
    """Take and process messages as an application does, and give their replay ids."""
    ids = []
    for _ in range(count):
        message: Message = await soon(client.receive())
        if manual:
            async with client.replay_storage(message):
                ids.append(replay_id(message))
        else:
            ids.append(replay_id(message))
    return ids
