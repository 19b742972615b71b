"""Random faults at random moments, from a seed: ``python -m tests.chaos --seed N [--server node]``."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from aiosfstream import (
    AuthenticationError,
    ReplayMarkerStoragePolicy,
    TransportTimeoutError,
)
from aiosfstream.testing import (
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    ForgetSession,
    Garble,
    OAuthError,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
    Truncate,
)
from tests.interop.harness import NodeServer
from tests.support import CHANGE, EVENT, GENERIC, TOPIC, FastClient, replay_id

CHANNELS = (EVENT, CHANGE, TOPIC, GENERIC)
NONE = {"reconnect": "none", "interval": 0}
FAULTS: tuple[tuple[Any, ...], ...] = (
    (CutBefore(),),
    (CutAfter(),),
    (Truncate(),),
    (Truncate(3),),
    (Garble(),),
    (Garble(b"[]"),),
    (Status(503),),
    (Status(408),),
    (Status(401),),
    (Status(429, headers={"Retry-After": "0"}),),
    (ForgetSession(),),
    (RevokeTokens(),),
    (RevokeTokens(), ForgetSession()),
    (Duplicate(),),
    (Delay(0.02), CutAfter()),
    (Refuse("401::Authentication invalid", "503::Server is too busy.", NONE),),
    (Refuse("403::Unknown client", advice=NONE, bare=True),),
    (Refuse("402::session_unknown", advice={"reconnect": "handshake"}),),
    (Delay(0.01), Duplicate()),
)
#: Refusals of a connect that would be final for a subscription.
CONNECT_FAULTS: tuple[Any, ...] = (
    Refuse("500::Internal", advice={"reconnect": "retry"}),
    Refuse("403::Organization total events daily limit exceeded", advice=NONE),
)
TOKEN_FAULTS: tuple[Any, ...] = (
    Status(503),
    CutBefore(),
    OAuthError("server_error"),
    Status(200, "nonsense"),
)
PLACES = ("/meta/connect", "/meta/connect", "/meta/connect", "/meta/handshake", "/meta/subscribe")
NODE_FAULTS = ("cut before", "cut after", "truncate", "replace", "status", "reply")
#: Seconds after which a run counts as hung.
LIMIT = 90.0


@dataclass
class Outcome:
    """What became of a run.

    :ivar published: the replay ids of each channel, in order
    :ivar received: those that arrived
    :ivar told: the errors that the consumer got on the way
    """

    published: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    received: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    told: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether as many events arrived as were published."""
        return sum(map(len, self.received.values())) >= sum(map(len, self.published.values()))


class Ours:
    """Drives the server of ``aiosfstream.testing``."""

    def __init__(self, server: StreamingServer, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self.credentials: Any = server.credentials

    async def publish(self, *channels: str) -> list[Any]:
        """Publish an event on each of *channels*."""
        return self._server.publish_many([(channel, "x") for channel in channels])

    async def trouble(self) -> None:
        """Let something go wrong."""
        rng, server = self._rng, self._server
        chance = rng.random()
        if chance < 0.06:
            server.add_fault(rng.choice(CONNECT_FAULTS), on="/meta/connect")
        elif chance < 0.72:
            server.add_fault(*rng.choice(FAULTS), on=rng.choice(PLACES))
        elif chance < 0.80:
            server.add_fault(rng.choice(TOKEN_FAULTS), on="token")
        elif chance < 0.85:
            server.expire_sessions()
        elif chance < 0.89:
            server.cut_connections()
        elif chance < 0.93:
            server.revoke_tokens()
        elif chance < 0.97:
            server.disconnect_clients(rng.choice(("none", "handshake")))
        else:
            await server.restart()

    async def calm(self) -> None:
        """Let nothing more go wrong."""
        self._server.clear_faults()


class Node:
    """Drives the CometD project's own server."""

    def __init__(self, server: NodeServer, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self.credentials: Any = server.credentials

    async def publish(self, *channels: str) -> list[Any]:
        """Publish an event on each of *channels*."""
        return list(await self._server.publish(*channels))

    async def trouble(self) -> None:
        """Let something go wrong."""
        chance = self._rng.random()
        if chance < 0.8:
            kind, place = self._rng.choice(NODE_FAULTS), self._rng.choice(PLACES)
            options: dict[str, Any] = (
                {"reply": {"error": "403::Unknown client"}} if kind == "reply" else {}
            )
            await self._server.fault(kind, on=place, **options)
        else:
            server = self._server
            troubles = (
                server.revoke,
                server.expire,
                server.restart,
                server.reroute,
                server.disconnect,
            )
            await self._rng.choice(troubles)()

    async def calm(self) -> None:
        """Let nothing more go wrong."""
        await self._server.call("clear")


async def run(seed: int, server: str = "ours", events: int = 1000) -> Outcome:
    """Let a client live through a run.

    :param seed: decides everything that chance decides
    :param server: ``ours`` or ``node``
    :param events: how many events are published, about
    :return: what became of it
    """
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        drive: Ours | Node
        if server == "node":
            drive = Node(await stack.enter_async_context(NodeServer()), rng)
        else:
            ours = StreamingServer(
                advise_multiple_clients=False,
                max_batch=rng.choice((5, 50, 1000)),
                text_replay_ids=rng.random() < 0.2,
            )
            drive = Ours(await stack.enter_async_context(ours), rng)
        outcome = await asyncio.wait_for(live(drive, rng, events), LIMIT)
        if isinstance(drive, Ours):
            outcome.violations = ours.violations
        return outcome


async def live(drive: Ours | Node, rng: random.Random, events: int) -> Outcome:
    """Publish, break, and receive until all has arrived."""
    outcome = Outcome()
    first = dict(zip(CHANNELS, await drive.publish(*CHANNELS), strict=True))
    manual = rng.random() < 0.5
    policy = ReplayMarkerStoragePolicy.MANUAL if manual else ReplayMarkerStoragePolicy.AUTOMATIC
    client = FastClient(
        **drive.credentials,
        replay=first,
        replay_storage_policy=policy,
        request_timeout=0.5,
        connection_timeout=rng.choice((0.2, 5.0)),
        max_pending_count=rng.choice((1, 10, 100, 0)),
    )
    async with client:
        for channel in CHANNELS:
            await client.subscribe(channel)
        publishing = asyncio.create_task(publish(drive, rng, events, outcome))
        try:
            while not (publishing.done() and outcome.complete):
                if publishing.done():
                    await drive.calm()
                await consume(client, rng, outcome)
            await publishing
        finally:
            publishing.cancel()
    return outcome


async def publish(drive: Ours | Node, rng: random.Random, events: int, outcome: Outcome) -> None:
    """Publish in bursts, and break something every now and then."""
    left = events
    while left > 0:
        channels = [rng.choice(CHANNELS) for _ in range(rng.randrange(1, 12))]
        left -= len(channels)
        if rng.random() < 0.3:
            await drive.trouble()
        for channel, one in zip(channels, await drive.publish(*channels), strict=True):
            outcome.published[channel].append(one)
        await asyncio.sleep(rng.random() * 0.008)


async def consume(client: FastClient, rng: random.Random, outcome: Outcome) -> None:
    """Receive in one way or another."""
    ways: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: receive_one(client, outcome, 0.5),
        lambda: receive_one(client, outcome, rng.random() * 0.004),
        lambda: iterate(client, outcome, rng.randrange(1, 40)),
    )
    if rng.random() < 0.03:
        await asyncio.sleep(0.03)
    try:
        await rng.choice(ways)()
    except (AuthenticationError, TransportTimeoutError) as error:
        outcome.told.append(type(error).__name__)
    except asyncio.TimeoutError:
        pass


async def receive_one(client: FastClient, outcome: Outcome, timeout: float) -> None:
    """Receive with a time-out that may strike at any moment."""
    await take(client, await asyncio.wait_for(client.receive(), timeout), outcome)


async def iterate(client: FastClient, outcome: Outcome, count: int) -> None:
    """Receive with ``async for`` for a while."""

    async def loop() -> None:
        left = count
        async for message in client:
            await take(client, message, outcome)
            left -= 1
            if left == 0:
                break

    await asyncio.wait_for(loop(), 0.5)


async def take(client: FastClient, message: dict[str, Any], outcome: Outcome) -> None:
    """Process a message."""
    outcome.received[message["channel"]].append(replay_id(message))
    if client.replay_storage_policy is ReplayMarkerStoragePolicy.MANUAL:
        async with client.replay_storage(message):
            pass


def judge(seed: int, server: str, outcome: Outcome) -> None:
    """Assert that every event arrived once and in order, and say how to see it again if not."""
    again = f"see it again: python -m tests.chaos --seed {seed} --server {server}"
    for channel in CHANNELS:
        published, received = outcome.published[channel], outcome.received[channel]
        lost = [one for one in published if one not in set(received)]
        doubled = len(received) - len(set(received))
        assert received == published, f"{channel}: {len(lost)} lost, {doubled} twice; {again}"
    assert outcome.violations == [], again


def main() -> None:
    """Replay one seed, or try many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1, help="how many seeds from that one on")
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--server", choices=["ours", "node"], default="ours")
    options = parser.parse_args()
    total, failures = 0, 0
    for seed in range(options.seed, options.seed + options.runs):
        outcome = asyncio.run(run(seed, options.server, options.events))
        total += sum(map(len, outcome.received.values()))
        try:
            judge(seed, options.server, outcome)
        except AssertionError as error:
            failures += 1
            print(error)
    print(f"{options.runs} runs, {total} events, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
