"""Let a client live through faults for a long time, and look whether it grows.

    python scripts/soak.py --minutes 60 --plot docs/soak.png --figures docs/soak-figures.txt

A test server in a process of its own publishes at a high rate and breaks something twice a second or so:
sessions and tokens end, connections are cut, answers are spoilt. This process has the client, and samples its
own resident memory, tasks and open sockets. Ends with status 1 if an event is lost, repeated or out of order,
if the client breaks a rule of the protocol, or if memory, tasks or sockets grow. Needs psutil, and matplotlib
for the plot.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiosfstream import (
    AuthenticationError,
    Client,
    PasswordAuthenticator,
    TransportTimeoutError,
    run,
)
from aiosfstream.testing import StreamingServer
from tests.chaos import CHANNELS, PHASE, SHORT_HOLD, Ours
from tests.support import FastAuthClient, replay_id

#: Events in a burst, and seconds between two bursts.
BURST, PAUSE = 40, 0.02
#: How often something breaks with a burst.
TROUBLE = 0.05
#: Events that the server retains for each channel.
RETAINED = 20_000
#: By how much, and by how many MiB, tasks or sockets, the mean of the last third of the samples may exceed
#: that of the second one.
GROWTH, SLACK = 1.05, 1
#: Seconds between two samples, and seconds after the end within which the last events arrive.
PERIOD, GRACE = 2.0, 60.0
#: This program, which serves as well.
PROGRAM = str(Path(__file__).resolve())
MEASURED = ("memory", "tasks", "sockets")


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
        if not third:
            return []
        return [
            name
            for name in MEASURED
            if mean(getattr(self, name)[2 * third :])
            > mean(getattr(self, name)[third : 2 * third]) * GROWTH + SLACK
        ]


@dataclass
class Channel:
    """Compares what was published with what arrived; either may be known first.

    :ivar published: ids that have not arrived
    :ivar received: ids that the server has not told of
    """

    published: deque[Any] = field(default_factory=deque)
    received: deque[Any] = field(default_factory=deque)

    def match(self) -> int:
        """Forget what is in both.

        :return: how many arrived that should not have, or not then
        """
        wrong = 0
        while self.published and self.received:
            one = self.received.popleft()
            if one == self.published[0]:
                self.published.popleft()
            else:
                wrong += 1
        return wrong


@dataclass
class Counts:
    """How far it has come.

    :ivar channels: what is under way
    :ivar received: how many events arrived
    :ivar wrong: how many arrived twice or out of order
    :ivar told: how many errors the consumer got
    :ivar summary: what the server said at its end
    """

    channels: dict[str, Channel] = field(
        default_factory=lambda: {name: Channel() for name in CHANNELS}
    )
    received: int = 0
    wrong: int = 0
    told: int = 0
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether all that was published has arrived, and nothing else."""
        return not any(one.published or one.received for one in self.channels.values())

    @property
    def lost(self) -> int:
        """How many events are missing."""
        return sum(len(one.published) for one in self.channels.values())

    def take(self, message: dict[str, Any]) -> None:
        """Note an event that arrived."""
        channel = self.channels[message["channel"]]
        channel.received.append(replay_id(message))
        self.received += 1
        self.wrong += channel.match()

    def announce(self, events: Iterable[tuple[str, Any]]) -> None:
        """Note events that were published."""
        for name, one in events:
            self.channels[name].published.append(one)
            self.wrong += self.channels[name].match()


def mean(values: list[float]) -> float:
    """Give the mean."""
    return sum(values) / len(values)


# The server's process


def say(value: Any) -> None:
    """Tell the client's process something."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def serve(minutes: float, seed: int) -> None:
    """Publish and break for so many minutes, and serve until the client's process says that it is done."""
    rng = random.Random(seed)
    server = StreamingServer(advise_multiple_clients=False, hold_timeout=SHORT_HOLD)
    async with server:
        drive = Ours(server, rng)
        first = list(zip(CHANNELS, await drive.publish(*CHANNELS), strict=True))
        say({"credentials": server.credentials, "first": first})
        # Nobody is to start publishing before the client is there.
        await asyncio.to_thread(sys.stdin.readline)
        end, troubles = time.monotonic() + minutes * 60, 0
        while time.monotonic() < end:
            if rng.random() < TROUBLE:
                troubles += 1
                await drive.trouble()
            channels = [rng.choice(CHANNELS) for _ in range(BURST)]
            say(list(zip(channels, await drive.publish(*channels), strict=True)))
            server.discard_events(keep=RETAINED)
            await asyncio.sleep(PAUSE)
        await drive.calm()
        say(
            {
                "troubles": troubles,
                "sessions": server.count("/meta/handshake"),
                "log-ins": server.count("token"),
                "violations": server.violations,
            }
        )
        await asyncio.to_thread(sys.stdin.readline)


# The client's process


async def soak(minutes: float, seed: int, *, by_run: bool) -> tuple[Samples, Counts]:
    """Let a client live for so many minutes, in a loop of its own or in that of ``run``."""
    samples, counts = Samples(), Counts()
    command = (PROGRAM, "--serve", f"--minutes={minutes}", f"--seed={seed}")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        hello = json.loads(await process.stdout.readline())
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(make_client(hello))
            for channel in CHANNELS:
                await client.subscribe(channel)
            process.stdin.write(b"go\n")
            listening = asyncio.create_task(listen(process.stdout, counts))
            sampling = asyncio.create_task(sample(samples))
            if by_run:
                await consume_by_run(client, counts, listening)
            while not listening.done():
                await consume(client, counts)
            await listening
            await drain(client, counts)
            sampling.cancel()
        process.stdin.write(b"done\n")
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return samples, counts


def make_client(hello: dict[str, Any]) -> Client:
    """Make a client that wastes no time on a server that hangs."""
    authenticator = PasswordAuthenticator(**hello["credentials"])
    authenticator.request_timeout = PHASE
    return FastAuthClient(
        authenticator,
        replay=dict(hello["first"]),
        request_timeout=PHASE,
        connection_timeout=30.0,
    )


async def listen(reader: asyncio.StreamReader, counts: Counts) -> None:
    """Note what the server tells, until its summary."""
    while True:
        line = await reader.readline()
        if not line:
            raise RuntimeError("The server's process has ended before its time.")
        said = json.loads(line)
        if isinstance(said, dict):
            counts.summary = said
            return
        counts.announce((name, one) for name, one in said)


async def consume(client: Client, counts: Counts) -> None:
    """Receive an event; a failure is told and over with, as programs do it."""
    try:
        counts.take(await asyncio.wait_for(client.receive(), 1.0))
    except asyncio.TimeoutError:
        pass
    except (AuthenticationError, TransportTimeoutError):
        counts.told += 1


async def consume_by_run(client: Client, counts: Counts, listening: asyncio.Task[None]) -> None:
    """Let handlers take the events until the server has told everything."""
    stop = asyncio.Event()
    listening.add_done_callback(lambda _: stop.set())

    async def take(message: dict[str, Any]) -> None:
        counts.take(message)

    # Log-ins are refused on purpose, again and again.
    await run(
        client, dict.fromkeys(CHANNELS, take), stop=stop, signals=(), login_attempts=1_000_000
    )


async def drain(client: Client, counts: Counts) -> None:
    """Receive what is left, and what should not be there any more."""
    deadline = time.monotonic() + GRACE
    while not counts.settled and time.monotonic() < deadline:
        await consume(client, counts)
    await consume(client, counts)


async def sample(samples: Samples) -> None:
    """Measure until it is cancelled."""
    process = psutil.Process()
    started = time.monotonic()
    while True:
        samples.minutes.append((time.monotonic() - started) / 60)
        samples.memory.append(process.memory_info().rss / 2**20)
        samples.tasks.append(float(len(asyncio.all_tasks())))
        samples.sockets.append(float(len(process.net_connections())))
        await asyncio.sleep(PERIOD)


# The report


def plot(samples: Samples, path: Path) -> None:
    """Draw the samples."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(len(MEASURED), 1, sharex=True, figsize=(9, 7))
    for axis, name in zip(axes, MEASURED, strict=True):
        axis.plot(samples.minutes, getattr(samples, name))
        axis.set_ylabel("memory, MiB" if name == "memory" else name)
        axis.set_ylim(0, max(getattr(samples, name)) * 1.15)
    axes[-1].set_xlabel("minutes")
    figure.align_ylabels()
    figure.savefig(path, bbox_inches="tight")


def figures(samples: Samples, counts: Counts) -> dict[str, str]:
    """Give what came of it, in words and numbers."""
    seconds = samples.minutes[-1] * 60
    third = len(samples.minutes) // 3
    found = {
        "Minutes": f"{seconds / 60:.0f}",
        "Events": f"{counts.received:,}, {counts.received / seconds:,.0f} a second",
        "Lost": str(counts.lost),
        "Repeated or out of order": str(surplus_of(counts)),
        **{name.capitalize(): told(value) for name, value in counts.summary.items()},
        "Errors that the consumer got": str(counts.told),
    }
    for name in MEASURED:
        values = getattr(samples, name)
        means = mean(values[third : 2 * third]), mean(values[2 * third :])
        unit = "Memory in MiB" if name == "memory" else name.capitalize()
        found[f"{unit}: start, mean of the second and last third, maximum"] = (
            f"{values[0]:.1f}, {means[0]:.1f}, {means[1]:.1f}, {max(values):.1f}"
        )
    return found


def told(value: Any) -> str:
    """Give what the server has counted, or listed, as text."""
    return f"{value:,}" if isinstance(value, int) else ", ".join(value) or "none"


def surplus_of(counts: Counts) -> int:
    """Give the number of events that came again or too early."""
    return counts.wrong + sum(len(one.received) for one in counts.channels.values())


def report(samples: Samples, counts: Counts, path: Path | None) -> bool:
    """Print what came of it, and write it as a table for the documentation.

    :return: whether all is well
    """
    found = figures(samples, counts)
    for name, value in found.items():
        print(f"{name}: {value}")
    if path is not None:
        rows = [f"   * - {name}\n     - {value}\n" for name, value in found.items()]
        head = ".. list-table::\n   :widths: 60 40\n\n"
        path.write_text(head + "".join(rows), encoding="utf-8")
    grown = samples.grown()
    if grown:
        print(f"has grown: {', '.join(grown)}")
    return not (grown or counts.lost or surplus_of(counts) or counts.summary["violations"])


def main() -> int:
    """Run, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", action="store_true", help="let aiosfstream.run take the events")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    parser.add_argument("--figures", type=Path, help="write a table for the documentation")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.minutes, options.seed))
        return 0
    samples, counts = asyncio.run(soak(options.minutes, options.seed, by_run=options.run))
    if len(samples.minutes) < len(MEASURED):
        print("too short to say anything")
        return 1
    if options.plot is not None:
        plot(samples, options.plot)
    return 0 if report(samples, counts, options.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
