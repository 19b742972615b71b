"""Let a client live through faults for a long time, and look whether it grows.

    python scripts/soak.py --minutes 60 --plot soak.png

Publishes at a high rate on a test server, breaks something several times a second, and samples resident
memory, tasks and open sockets. Ends with status 1 if an event is lost or repeated, or if memory, tasks or
sockets grow. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiosfstream import AuthenticationError, TransportTimeoutError
from aiosfstream.testing import StreamingServer
from tests.chaos import CHANNELS, Ours
from tests.support import FastClient, replay_id

#: Events in a burst, and seconds between two bursts.
BURST, PAUSE = 40, 0.05
#: Events that the server retains for each channel: more than an outage takes, on a busy machine too.
RETAINED = 20_000
#: By how much the last third of the samples may exceed the second one.
GROWTH = 1.05


@dataclass
class Samples:
    """What was measured.

    :ivar minutes: when
    :ivar memory: resident memory in MiB
    :ivar tasks: tasks in the event loop
    :ivar sockets: open sockets of the process
    """

    minutes: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    tasks: list[float] = field(default_factory=list)
    sockets: list[float] = field(default_factory=list)

    def grown(self) -> list[str]:
        """Give the names of what has grown from the second third to the last."""
        third = len(self.minutes) // 3
        found = []
        for name in ("memory", "tasks", "sockets"):
            values = getattr(self, name)
            before, after = values[third : 2 * third], values[2 * third :]
            if before and mean(after) > mean(before) * GROWTH + 1:
                found.append(name)
        return found


@dataclass
class Counts:
    """How far publishing and receiving have come; ids are compared and forgotten."""

    waiting: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in CHANNELS})
    received: int = 0
    wrong: int = 0


def mean(values: list[float]) -> float:
    """Give the mean."""
    return sum(values) / len(values)


async def soak(minutes: float, seed: int) -> tuple[Samples, Counts, StreamingServer]:
    """Run for so many minutes."""
    rng = random.Random(seed)
    samples, counts = Samples(), Counts()
    end = time.monotonic() + minutes * 60
    async with StreamingServer(advise_multiple_clients=False) as server:
        drive = Ours(server, rng)
        first = dict(zip(CHANNELS, await drive.publish(*CHANNELS), strict=True))
        client = FastClient(
            **server.credentials, replay=first, request_timeout=1.0, connection_timeout=30.0
        )
        async with client:
            for channel in CHANNELS:
                await client.subscribe(channel)
            background = [
                asyncio.create_task(publish(drive, server, rng, counts, end)),
                asyncio.create_task(sample(samples, end)),
            ]
            while time.monotonic() < end or any(counts.waiting.values()):
                if time.monotonic() > end + 60:
                    break
                await consume(client, counts)
            await asyncio.gather(*background)
    return samples, counts, server


async def consume(client: FastClient, counts: Counts) -> None:
    """Receive for a while and compare."""
    try:
        message = await asyncio.wait_for(client.receive(), 1.0)
    except (asyncio.TimeoutError, AuthenticationError, TransportTimeoutError):
        return
    waiting = counts.waiting[message["channel"]]
    counts.received += 1
    if waiting and waiting[0] == replay_id(message):
        del waiting[0]
    else:
        counts.wrong += 1


async def publish(
    drive: Ours, server: StreamingServer, rng: random.Random, counts: Counts, end: float
) -> None:
    """Publish bursts, and break something with every twentieth."""
    while time.monotonic() < end:
        channels = [rng.choice(CHANNELS) for _ in range(BURST)]
        if rng.random() < 0.05:
            await drive.trouble()
        for channel, one in zip(channels, await drive.publish(*channels), strict=True):
            counts.waiting[channel].append(one)
        server.discard_events(keep=RETAINED)
        await asyncio.sleep(PAUSE)
    await drive.calm()


async def sample(samples: Samples, end: float) -> None:
    """Measure every two seconds."""
    process = psutil.Process()
    started = time.monotonic()
    while time.monotonic() < end:
        samples.minutes.append((time.monotonic() - started) / 60)
        samples.memory.append(process.memory_info().rss / 2**20)
        samples.tasks.append(float(len(asyncio.all_tasks())))
        samples.sockets.append(float(len(process.net_connections())))
        await asyncio.sleep(2)


def plot(samples: Samples, path: Path) -> None:
    """Draw the samples."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(9, 7))
    for axis, name in zip(axes, ("memory", "tasks", "sockets"), strict=True):
        axis.plot(samples.minutes, getattr(samples, name))
        axis.set_ylabel("memory, MiB" if name == "memory" else name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path)


def main() -> int:
    """Run, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write a PNG")
    options = parser.parse_args()
    samples, counts, server = asyncio.run(soak(options.minutes, options.seed))
    lost = sum(map(len, counts.waiting.values()))
    print(f"{counts.received} events, {lost} lost, {counts.wrong} repeated or out of order")
    print(f"{server.count('/meta/handshake')} sessions, {server.count('token')} log-ins")
    for name in ("memory", "tasks", "sockets"):
        values = getattr(samples, name)
        print(f"{name}: {values[len(values) // 3]:.1f} at a third, {values[-1]:.1f} at the end")
    if options.plot is not None:
        plot(samples, options.plot)
    grown = samples.grown()
    if grown:
        print(f"has grown: {', '.join(grown)}")
    return 1 if grown or lost or counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
