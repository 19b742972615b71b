"""How long the event loop is blocked by a large answer, compared with parsing it.

``python -m benchmarks.blocks URL EVENTS`` says the seconds of the longest turn of the event loop while
a client takes all events from one answer, and of ``json.loads`` alone for the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.drain import check, client_for
from benchmarks.processes import measure_python, say
from benchmarks.report import Section, Series, Table
from benchmarks.script import CHANNEL, bodies
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import Settings

#: How often ``json.loads`` is timed in each process.
TIMES: Final = 3


def run(settings: Settings) -> Section:
    """Measure answers of each size."""
    rows, figures = [], {}
    for events in settings.blocks:
        blocked, parsing, size = Series(), Series(), 0
        for _ in range(settings.repeat):
            with ServerProcess(Script(events=events, batch=events)) as server:
                said = measure_python("blocks", server.url, events)
            blocked.values.append(said["blocked"])
            parsing.values.append(said["parsing"])
            size = said["size"]
        rows.append(
            (
                f"{events:,}, {size / 1e6:.1f} MB",
                blocked.text(1, 1000),
                blocked.range(1, 1000),
                parsing.text(1, 1000),
                f"{blocked.over(parsing):.2f}",
            )
        )
        figures[str(events)] = {"blocked": blocked.values, "parsing": parsing.values}
    columns = ("events in the answer", "longest turn, ms", "range", "json.loads, ms", "ratio")
    note = f"Medians of {settings.repeat} fresh processes."
    return Section([Table("Blocking the event loop", columns, rows, note)], figures)


# In the process that is measured


class Longest:
    """The longest turn of the event loop, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time each callback of every event loop."""
        original = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            started = time.perf_counter()
            original(handle)
            self.seconds = max(self.seconds, time.perf_counter() - started)

        asyncio.Handle._run = timed  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = original  # type: ignore[method-assign]


async def longest_turn(url: str, events: int) -> float:
    """Give the longest turn of the event loop while a client takes all events."""
    longest, seen = Longest(), 0
    async with client_for(url, replay={}) as client:
        await client.subscribe(CHANNEL)
        with longest.watching():
            async for message in client:
                last = message
                seen += 1
                if seen == events:
                    break
        check(last, seen, events)
    return longest.seconds


def parsing(events: int) -> tuple[float, int]:
    """Give the seconds that ``json.loads`` takes for as many events, and their bytes."""
    body = b"[" + b",".join(bodies(events, events)) + b"]"
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        messages = json.loads(body)
        times.append(time.perf_counter() - started)
        del messages
    return sorted(times)[TIMES // 2], len(body)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocks", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("events", type=int)
    arguments = parser.parse_args()
    alone, size = parsing(arguments.events)
    blocked = asyncio.run(longest_turn(arguments.url, arguments.events))
    say(blocked=blocked, parsing=alone, size=size)


if __name__ == "__main__":
    main()
