"""Random faults at random moments, from a seed: ``python -m tests.chaos --seed N [--server node]``."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiosfstream import (
    AuthenticationError,
    Client,
    PasswordAuthenticator,
    ReplayMarkerStoragePolicy,
    TransportError,
    TransportTimeoutError,
)
from aiosfstream.testing import (
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    ForgetSession,
    Garble,
    Hang,
    OAuthError,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
    Truncate,
)
from tests.interop.harness import NodeServer
from tests.support import CHANGE, EVENT, GENERIC, TOPIC, FastAuthClient, replay_id

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
    (Hang(),),
)
#: Refusals of a connect that would be final for a subscription.
CONNECT_FAULTS: tuple[Any, ...] = (
    Refuse("500::Internal", advice={"reconnect": "retry"}),
    Refuse("403::Organization total events daily limit exceeded", advice=NONE),
)
TOKEN_FAULTS: tuple[Any, ...] = (
    Status(503),
    CutBefore(),
    Hang(),
    OAuthError("server_error"),
    Status(200, "nonsense"),
)
PLACES = ("/meta/connect", "/meta/connect", "/meta/connect", "/meta/handshake", "/meta/subscribe")
NODE_FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "cut before"},
    {"kind": "cut after"},
    {"kind": "truncate"},
    {"kind": "replace"},
    {"kind": "replace", "body": "[]", "type": "application/json"},
    {"kind": "status"},
    {"kind": "status", "status": 408},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
    {"kind": "reply", "reply": {"error": "403::Unknown client"}},
    {
        "kind": "reply",
        "reply": {"error": "402::Unknown client", "advice": {"reconnect": "handshake"}},
    },
    {"kind": "delay", "delay": 20},
    {"kind": "late", "delay": 20},
    {"kind": "hang"},
    {"kind": "hang after"},
)
NODE_TOKEN_FAULTS = ("cut before", "status", "hang", "replace")
#: Seconds that a connect is held for where it may hang: it is the server that says how long to wait.
SHORT_HOLD = 0.1
#: Seconds that a client waits for each phase of a request.
PHASE = 0.3
#: Seconds after which a run counts as hung.
LIMIT = 60.0


@dataclass
class Outcome:
    """What became of a run.

    :ivar published: the replay ids of each channel, in order
    :ivar received: those that arrived
    :ivar told: the errors that the consumer got on the way
    :ivar violations: what clients did that they must not do
    :ivar hung: whether the run was ended because nothing more arrived
    """

    published: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    received: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    told: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    hung: bool = False

    @property
    def complete(self) -> bool:
        """Whether as many events arrived as were published."""
        return sum(map(len, self.received.values())) >= sum(map(len, self.published.values()))


class Drive(Protocol):
    """What a run needs of a server."""

    credentials: Any

    async def publish(self, *channels: str) -> list[Any]:
        """Publish an event on each of *channels*, and give their replay ids."""
        ...

    async def trouble(self) -> None:
        """Let something go wrong."""
        ...

    async def calm(self) -> None:
        """Let nothing more go wrong."""
        ...

    async def violations(self) -> list[str]:
        """Give what clients did that they must not do."""
        ...


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
        elif chance < 0.70:
            server.add_fault(*rng.choice(FAULTS), on=rng.choice(PLACES))
        elif chance < 0.78:
            server.add_fault(rng.choice(TOKEN_FAULTS), on="token")
        else:
            await self._break(chance)

    async def _break(self, chance: float) -> None:
        rng, server = self._rng, self._server
        if chance < 0.83:
            server.expire_sessions()
        elif chance < 0.87:
            server.cut_connections()
        elif chance < 0.91:
            server.revoke_tokens()
        elif chance < 0.95:
            server.disconnect_clients(rng.choice(("none", "handshake")))
        elif chance < 0.98:
            await server.restart()
        else:
            await server.pause()
            await asyncio.sleep(rng.random() * 0.05)
            await server.resume()

    async def calm(self) -> None:
        """Let nothing more go wrong."""
        self._server.clear_faults()

    async def violations(self) -> list[str]:
        """Give what clients did that they must not do."""
        return self._server.violations


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
        rng, server = self._rng, self._server
        chance = rng.random()
        if chance < 0.7:
            await server.fault(**rng.choice(NODE_FAULTS), on=rng.choice(PLACES))
        elif chance < 0.78:
            await server.fault(rng.choice(NODE_TOKEN_FAULTS), on="token")
        elif chance < 0.97:
            troubles = (
                server.revoke,
                server.expire,
                server.restart,
                server.reroute,
                server.disconnect,
                server.cut,
            )
            await rng.choice(troubles)()
        else:
            await server.down()
            await asyncio.sleep(rng.random() * 0.05)
            await server.up()

    async def calm(self) -> None:
        """Let nothing more go wrong."""
        await self._server.call("clear")

    async def violations(self) -> list[str]:
        """Give what clients did that they must not do."""
        # Not its failures: a fault may strike an answer of which the script has sent the headers already,
        # and the connection is cut then. To the client that is one fault more.
        return list(await self._server.call("violations"))


async def run(seed: int, server: str = "ours", events: int = 1000) -> Outcome:
    """Let a client live through a run.

    :param seed: decides everything that chance decides
    :param server: ``ours`` or ``node``
    :param events: how many events are published, about
    :return: what became of it
    """
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        drive = await (node if server == "node" else ours)(stack, rng)
        outcome = Outcome()
        try:
            await asyncio.wait_for(live(drive, rng, events, outcome), LIMIT)
        except asyncio.TimeoutError:
            outcome.hung = True
        outcome.violations = await drive.violations()
        return outcome


async def ours(stack: AsyncExitStack, rng: random.Random) -> Drive:
    """Start our server, in one of its ways."""
    server = StreamingServer(
        advise_multiple_clients=False,
        hold_timeout=SHORT_HOLD,
        max_batch=rng.choice((5, 50, 1000)),
        text_replay_ids=rng.random() < 0.2,
    )
    return Ours(await stack.enter_async_context(server), rng)


async def node(stack: AsyncExitStack, rng: random.Random) -> Drive:
    """Start the CometD project's server, with a load balancer in front of it."""
    server = await stack.enter_async_context(NodeServer())
    await server.behave(salesforce=True)
    await server.cometd(timeout=int(SHORT_HOLD * 1000))
    return Node(server, rng)


async def check(seed: int, server: str = "ours", events: int = 1000) -> Outcome:
    """Let a client live through a run, and assert that every event arrived once and in order.

    :param seed: decides everything that chance decides
    :param server: ``ours`` or ``node``
    :param events: how many events are published, about
    :return: what became of it
    :raises AssertionError: if not, or if the run fails in another way; it says how to see it again
    """
    again = f"see it again: python -m tests.chaos --seed {seed} --server {server} --events {events}"
    try:
        outcome = await run(seed, server, events)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}; {again}") from error
    judge(outcome, again)
    return outcome


def authenticator(drive: Drive) -> PasswordAuthenticator:
    """Make an authenticator that does not wait long for a token endpoint that hangs."""
    made = PasswordAuthenticator(**drive.credentials)
    made.request_timeout = PHASE
    return made


async def patiently(call: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Call again as long as a busy machine takes more than PHASE for an answer: nothing is broken yet."""
    while True:
        try:
            await call(*args)
        except TransportError:
            continue
        except AuthenticationError as error:
            if not error.retryable:
                raise
        else:
            return


async def live(drive: Drive, rng: random.Random, events: int, outcome: Outcome) -> None:
    """Publish, break, and receive until all has arrived."""
    first = dict(zip(CHANNELS, await drive.publish(*CHANNELS), strict=True))
    manual = rng.random() < 0.5
    policy = ReplayMarkerStoragePolicy.MANUAL if manual else ReplayMarkerStoragePolicy.AUTOMATIC
    client = FastAuthClient(
        authenticator(drive),
        replay=first,
        replay_storage_policy=policy,
        request_timeout=PHASE,
        connection_timeout=rng.choice((0.2, 5.0)),
        max_pending_count=rng.choice((1, 10, 100, 0)),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        await patiently(client.open)
        for channel in CHANNELS:
            await patiently(client.subscribe, channel)
        publishing = asyncio.create_task(publish(drive, rng, events, outcome))
        try:
            while not (publishing.done() and outcome.complete):
                if publishing.done():
                    await drive.calm()
                await consume(client, rng, outcome)
            await publishing
            await farewell(client, drive, outcome)
        finally:
            publishing.cancel()


async def farewell(client: Client, drive: Drive, outcome: Outcome) -> None:
    """Receive one last event of each channel: what arrives a second time arrives before it."""
    for channel, one in zip(CHANNELS, await drive.publish(*CHANNELS), strict=True):
        outcome.published[channel].append(one)
    rng = random.Random(0)
    while any(outcome.received[name][-1:] != outcome.published[name][-1:] for name in CHANNELS):
        await consume(client, rng, outcome)


async def publish(drive: Drive, rng: random.Random, events: int, outcome: Outcome) -> None:
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


async def consume(client: Client, rng: random.Random, outcome: Outcome) -> None:
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


async def receive_one(client: Client, outcome: Outcome, timeout: float) -> None:
    """Receive with a time-out that may strike at any moment."""
    await take(client, await asyncio.wait_for(client.receive(), timeout), outcome)


async def iterate(client: Client, outcome: Outcome, count: int) -> None:
    """Receive with ``async for`` for a while."""

    async def loop() -> None:
        left = count
        async for message in client:
            await take(client, message, outcome)
            left -= 1
            if left == 0:
                break

    await asyncio.wait_for(loop(), 0.5)


async def take(client: Client, message: dict[str, Any], outcome: Outcome) -> None:
    """Process a message."""
    outcome.received[message["channel"]].append(replay_id(message))
    if client.replay_storage_policy is ReplayMarkerStoragePolicy.MANUAL:
        async with client.replay_storage(message):
            pass


def judge(outcome: Outcome, again: str) -> None:
    """Assert that every event arrived once and in order.

    :param again: how to see it again if not
    """
    for channel in CHANNELS:
        published, received = outcome.published[channel], outcome.received[channel]
        lost = len(set(published) - set(received))
        doubled = len(received) - len(set(received))
        assert received == published, f"{channel}: {lost} lost, {doubled} twice; {again}"
    assert not outcome.hung, f"all arrived, but the run did not end; {again}"
    assert outcome.violations == [], f"{outcome.violations}; {again}"


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
        try:
            outcome = asyncio.run(check(seed, options.server, options.events))
        except AssertionError as error:
            failures += 1
            print(error)
        else:
            total += sum(map(len, outcome.received.values()))
    print(f"{options.runs} runs, {total} events, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
