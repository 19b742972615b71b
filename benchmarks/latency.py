"""From publishing to receiving: how long an event is on its way to the application.

The server writes the time into each event as it sends it; ``time.monotonic_ns`` is one clock for all
processes of a machine. ``python -m benchmarks.latency CLIENT URL EVENTS`` says the percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Final

from benchmarks.bare import BareClient
from benchmarks.drain import client_for
from benchmarks.processes import measure_python, say
from benchmarks.report import Section, Series, Table
from benchmarks.script import CHANNEL
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import Settings

LABELS: Final = {"bare": "bare loop", "dict": "aiosfstream"}
#: Events that are not counted, while the first connection gets warm.
WARM_UP: Final = 20


def run(settings: Settings) -> Section:
    """Measure both clients, in turns."""
    series = {name: (Series(), Series()) for name in LABELS}
    script = Script(
        events=settings.latency_events + WARM_UP, batch=1, period=settings.latency_period
    )
    with ServerProcess(script) as server:
        for turn in range(settings.repeat):
            for name in sorted(LABELS, reverse=bool(turn % 2)):
                figures = measure_python("latency", name, server.url, script.events)
                for one, key in zip(series[name], ("median", "p99"), strict=True):
                    one.values.append(figures[key])
    return Section(
        [_table(settings, series)],
        {name: {"median": mid.values, "p99": high.values} for name, (mid, high) in series.items()},
    )


def _table(settings: Settings, series: dict[str, tuple[Series, Series]]) -> Table:
    rows = []
    for name, label in LABELS.items():
        row = [label]
        for one, base in zip(series[name], series["bare"], strict=True):
            row += [one.text(0, 1e6), one.range(0, 1e6), f"{one.over(base):.2f}"]
        rows.append(row)
    return Table(
        "From publishing to receiving",
        ("client", "median us", "range", "to bare", "99th percentile us", "range", "to bare"),
        rows,
        f"{settings.latency_events:,} events, one every {settings.latency_period * 1000:g} ms;"
        f" medians of {settings.repeat} such runs.",
    )


# In the process that is measured


async def time_bare(url: str, events: int) -> list[int]:
    """Give the nanoseconds that each event took to a bare loop."""
    times: list[int] = []
    async with BareClient(url) as client:
        while len(times) < events:
            times += [
                time.monotonic_ns() - message["data"]["payload"]["Sent__c"]
                for message in await client.connect()
                if message["channel"] == CHANNEL
            ]
    return times


async def time_client(url: str, events: int) -> list[int]:
    """Give the nanoseconds that each event took to an application of the client."""
    times: list[int] = []
    async with client_for(url, replay={}) as client:
        await client.subscribe(CHANNEL)
        async for message in client:
            times.append(time.monotonic_ns() - message["data"]["payload"]["Sent__c"])
            if len(times) == events:
                break
    return times


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("client", choices=sorted(LABELS))
    parser.add_argument("url")
    parser.add_argument("events", type=int)
    arguments = parser.parse_args()
    timed = time_bare if arguments.client == "bare" else time_client
    times = sorted(asyncio.run(timed(arguments.url, arguments.events))[WARM_UP:])
    say(median=times[len(times) // 2] / 1e9, p99=times[len(times) * 99 // 100] / 1e9)


if __name__ == "__main__":
    main()
