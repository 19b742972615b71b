"""A consumer is killed at random moments: what its durable storage promises holds."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiosfstream.testing import StreamingServer
from tests.support import EVENT

CONSUMER = Path(__file__).parent / "crash_consumer.py"
#: Seconds before a kill within which a commit may still be missing: a group waits for 50 milliseconds,
#: and the machine may be slow.
WINDOW = 0.5
PATIENCE = 30.0


@dataclass
class Kills:
    """What happened to the consumers.

    :ivar published: the replay ids, in order
    :ivar times: when each was killed
    :ivar processed: ids and times, in the order of processing
    """

    published: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    processed: list[tuple[Any, float]] = field(default_factory=list)

    @property
    def ids(self) -> list[Any]:
        """The ids processed."""
        return [one for one, _ in self.processed]


async def kill_again_and_again(folder: Path, policy: str, times: int, seed: int) -> Kills:
    """Publish steadily while consumers are started and killed."""
    rng = random.Random(seed)
    kills = Kills()
    output = folder / "processed"
    async with StreamingServer() as server:
        publishing = asyncio.create_task(publish(server, rng, kills.published))
        for _ in range(times):
            process = await start(server, folder, policy)
            known = len(read(output))
            deadline = time.monotonic() + PATIENCE
            while len(read(output)) <= known:
                assert time.monotonic() < deadline, "the consumer processes nothing"
                await asyncio.sleep(0.005)
            await asyncio.sleep(rng.random() * 0.15)
            process.kill()
            kills.times.append(time.monotonic())
            await process.wait()
        publishing.cancel()
        kills.published.append(server.publish(EVENT))
        process = await start(server, folder, policy)
        deadline = time.monotonic() + PATIENCE
        while not any(one == kills.published[-1] for one, _ in read(output)):
            assert time.monotonic() < deadline, "the last event is not processed"
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    kills.processed = read(output)
    return kills


async def start(server: StreamingServer, folder: Path, policy: str) -> asyncio.subprocess.Process:
    """Start a consumer."""
    arguments = [
        str(CONSUMER),
        server.url,
        str(folder / "state.db"),
        str(folder / "processed"),
        policy,
    ]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments)


async def publish(server: StreamingServer, rng: random.Random, published: list[Any]) -> None:
    """Publish a few events every few milliseconds."""
    while True:
        published += server.publish_many([(EVENT, None)] * rng.randrange(1, 4))
        await asyncio.sleep(0.005)


def read(output: Path) -> list[tuple[Any, float]]:
    """Read what was processed; the last line may be written only in part."""
    if not output.exists():
        return []
    lines = output.read_text().rpartition("\n")[0].splitlines()
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def check_order_and_repetitions(kills: Kills) -> int:
    """Assert that only what was processed just before a kill is processed again.

    :return: how many were
    """
    number = {one: place for place, one in enumerate(kills.published)}
    seen: dict[Any, float] = {}
    repeated = 0
    previous = -1
    for one, moment in kills.processed:
        if number[one] <= previous:
            killed = max(kill for kill in kills.times if kill <= moment)
            assert killed - seen[one] < WINDOW
        if one in seen:
            repeated += 1
        seen[one] = moment
        previous = number[one]
    return repeated


@pytest.mark.timeout(300)
async def test_manual_processes_every_event(tmp_path: Path) -> None:
    kills = await kill_again_and_again(tmp_path, "MANUAL", 50, seed=1)
    assert len(kills.times) == 50
    assert set(kills.ids) == set(kills.published)
    check_order_and_repetitions(kills)


async def test_automatic_loses_one_event_a_kill_at_the_most(tmp_path: Path) -> None:
    kills = await kill_again_and_again(tmp_path, "AUTOMATIC", 10, seed=2)
    assert len(set(kills.published) - set(kills.ids)) <= len(kills.times)
    check_order_and_repetitions(kills)
