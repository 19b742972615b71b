"""``demo``: show what the client does when things go wrong."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

from ..client import SalesforceStreamingClient
from ..events import ConnectionEvent, ConnectionEventKind
from ..replay import ReplayOption
from .console import say
from .listen import first_of, line_of
from .output import Output, standard_output

__all__ = ["run_demo"]

DEMO_CHANNEL: Final = "/event/Low_Ink__e"


async def run_demo(options: argparse.Namespace) -> int:
    """Show what the client does when things go wrong."""
    from ..testing import StreamingServer

    output = standard_output()
    sent: list[Any] = []
    received: list[Any] = []
    async with StreamingServer(advise_multiple_clients=False) as server:
        say(f"A test server stands in for Salesforce at {server.url}")
        client = SalesforceStreamingClient(
            **server.credentials, replay=ReplayOption.ALL_EVENTS, observer=narrate
        )
        async with client:
            await client.subscribe(DEMO_CHANNEL)
            publisher = asyncio.create_task(publish_samples(server, options.events, sent))
            try:
                await first_of(
                    print_samples(client, output, options.events, received), output.reader_gone()
                )
                await publisher
            finally:
                publisher.cancel()
    say(f"{len(sent)} events published, {len(received)} received")
    if sent != received:
        say("aiosfstream: not every event arrived once and in order; please report this")
        return 1
    say("Every event arrived once and in order. To connect to an org: aiosfstream listen --help")
    return 0


async def print_samples(
    client: SalesforceStreamingClient, output: Output, count: int, received: list[Any]
) -> None:
    """Print *count* events, and collect their replay ids in *received*."""
    async for message in client:
        await output.write(line_of(message, pretty=False))
        received.append(message["data"]["event"]["replayId"])
        if len(received) == count:
            return


async def publish_samples(server: Any, count: int, sent: list[Any]) -> None:
    """Publish events, and break something every few of them; collect their replay ids in *sent*."""
    from ..testing import CutAfter

    async def cut() -> None:
        say("-- the connection is cut while an answer with events is under way")
        server.add_fault(CutAfter(), on="/meta/connect")

    async def expire() -> None:
        say("-- the server forgets the session")
        server.expire_sessions()

    async def revoke() -> None:
        say("-- the access token is revoked")
        server.revoke_tokens()

    async def restart() -> None:
        say("-- the server restarts")
        await server.restart()

    troubles = {0.2: cut, 0.4: expire, 0.6: revoke, 0.8: restart}
    due = {max(1, int(count * share)): trouble for share, trouble in troubles.items()}
    for number in range(count):
        if number in due:
            await due[number]()
        ink = round(0.2 - 0.2 * number / count, 3)
        sent.append(
            server.publish(DEMO_CHANNEL, {"Printer_Model__c": "XZO-5", "Ink_Percentage__c": ink})
        )
        await asyncio.sleep(0.05)
        # One trouble at a time, for those who read along.
        await server.wait_for(lambda server: server.held_connects, 30)


def narrate(event: ConnectionEvent) -> None:
    """Tell what the client does about it."""
    told = {
        ConnectionEventKind.CONNECTION_LOST,
        ConnectionEventKind.REAUTHENTICATED,
        ConnectionEventKind.SESSION_RENEWED,
        ConnectionEventKind.CHANNEL_RESUMED,
    }
    if event.kind in told:
        after = "" if event.replay_id is None else f", after replay id {event.replay_id}"
        say(f"   client: {event.kind.value}{after}")
