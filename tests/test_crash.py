"""A consumer is killed at random moments: what its durable storage promises holds."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from aiosfstream.testing import StreamingServer
from tests.support import EVENT

CONSUMER = Path(__file__).parent / "crash_consumer.py"
#: Seconds before a kill within which a commit may still be missing: a group waits for 50 milliseconds,
#: its commit takes a while, and a busy machine may run something else meanwhile. Consumers live longer.
WINDOW = 0.2
PATIENCE = 30.0
#: Events that wait for each consumer when it starts.
BACKLOG = 300


class Line(NamedTuple):
    """What a consumer wrote.

    :ivar process: its process id
    :ivar number: the event's place among those published
    :ivar moment: when it processed it
    """

    process: int
    number: int
    moment: float


@dataclass
class Run:
    """What one consumer did in its life.

    :ivar numbers: the places of the events that it processed, in its order
    :ivar moments: when it processed each
    :ivar killed: when it was killed
    """

    numbers: list[int]
    moments: list[float]
    killed: float


@dataclass
class Kills:
    """What happened to the consumers.

    :ivar published: the replay ids, in order
    :ivar killed: process id and time of each kill
    :ivar runs: the consumers, one after the other
    """

    published: list[int | str] = field(default_factory=list)
    killed: dict[int, float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def lost(self) -> set[int]:
        """The places of the events that none processed."""
        return set(range(len(self.published))) - {one for run in self.runs for one in run.numbers}


async def kill_again_and_again(folder: Path, policy: str, times: int, seed: int) -> Kills:
    """Publish steadily while consumers are started and killed."""
    rng = random.Random(seed)
    kills = Kills()
    output = folder / "processed"
    async with StreamingServer() as server:
        publishing = asyncio.create_task(publish(server, rng, kills.published))
        for _ in range(times):
            kills.published += server.publish_many([(EVENT, None)] * BACKLOG)
            known = lines(output)
            async with consumer(server, folder, policy, kills):
                await until_lines(output, known + 1)
                # Soon, while it catches up in large groups, or later, when events come one by one.
                await asyncio.sleep(rng.random() * rng.choice((0.02, 0.5)))
        publishing.cancel()
        kills.published.append(server.publish(EVENT))
        async with consumer(server, folder, policy, kills):
            await until_processed(output, kills.published[-1])
    kills.runs = runs_of(output, kills)
    return kills


@asynccontextmanager
async def consumer(
    server: StreamingServer, folder: Path, policy: str, kills: Kills
) -> AsyncIterator[None]:
    """Start a consumer, kill it at the end, and note when."""
    arguments = [
        str(CONSUMER),
        server.url,
        str(folder / "state.db"),
        str(folder / "processed"),
        policy,
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    try:
        yield
    finally:
        kills.killed[process.pid] = time.monotonic()
        process.kill()
        await process.wait()


async def publish(server: StreamingServer, rng: random.Random, published: list[int | str]) -> None:
    """Publish a few events every few milliseconds."""
    while True:
        published += server.publish_many([(EVENT, None)] * rng.randrange(1, 4))
        await asyncio.sleep(0.005)


def text(output: Path) -> str:
    """Give what was written."""
    return output.read_text() if output.exists() else ""


def lines(output: Path) -> int:
    """Count the lines that were written."""
    return text(output).count("\n")


async def until_lines(output: Path, count: int) -> None:
    """Wait until so much was written."""
    deadline = time.monotonic() + PATIENCE
    while lines(output) < count:
        assert time.monotonic() < deadline, "the consumer processes nothing"
        await asyncio.sleep(0.005)


async def until_processed(output: Path, replay_id: int | str) -> None:
    """Wait until an event was processed."""
    deadline = time.monotonic() + PATIENCE
    while f" {replay_id} " not in text(output):
        assert time.monotonic() < deadline, "the last event is not processed"
        await asyncio.sleep(0.01)


def runs_of(output: Path, kills: Kills) -> list[Run]:
    """Read what each consumer did; the last line may be written only in part."""
    place = {str(one): number for number, one in enumerate(kills.published)}
    words = [line.split() for line in text(output).rpartition("\n")[0].splitlines()]
    found = [Line(int(process), place[one], float(moment)) for process, one, moment in words]
    return [
        Run([line.number for line in run], [line.moment for line in run], kills.killed[process])
        for process, run in (
            (key, list(group)) for key, group in groupby(found, lambda x: x.process)
        )
    ]


def check_each_run(kills: Kills) -> None:
    """Assert that no consumer processed an event twice itself, or one after a later one."""
    for run in kills.runs:
        assert run.numbers == sorted(set(run.numbers))


def check_repetitions(kills: Kills) -> int:
    """Assert that a consumer repeats only what the one before it did just before it was killed.

    :return: how many events were processed again
    """
    repeated = 0
    for earlier, later in zip(kills.runs, kills.runs[1:], strict=False):
        again = [
            moment
            for number, moment in zip(earlier.numbers, earlier.moments, strict=True)
            if number >= later.numbers[0]
        ]
        assert all(earlier.killed - moment < WINDOW for moment in again)
        repeated += len(again)
    return repeated


def check_no_gaps(kills: Kills, allowed: int) -> None:
    """Assert that consumers leave nothing out, and that each kill costs *allowed* events at the most."""
    reached = -1
    for run in kills.runs:
        assert run.numbers[0] - reached - 1 <= allowed
        assert run.numbers == list(range(run.numbers[0], run.numbers[-1] + 1))
        reached = max(reached, run.numbers[-1])


@pytest.mark.timeout(300)
async def test_manual_processes_every_event(tmp_path: Path) -> None:
    kills = await kill_again_and_again(tmp_path, "MANUAL", 50, seed=1)
    assert len(kills.runs) == 51
    assert kills.lost == set()
    check_each_run(kills)
    check_no_gaps(kills, 0)
    assert check_repetitions(kills) < len(kills.published)


async def test_automatic_loses_one_event_a_kill_at_the_most(tmp_path: Path) -> None:
    kills = await kill_again_and_again(tmp_path, "AUTOMATIC", 10, seed=2)
    assert len(kills.runs) == 11
    check_each_run(kills)
    check_no_gaps(kills, 1)
    assert check_repetitions(kills) < len(kills.published)
