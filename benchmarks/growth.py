"""A long run, and a consumer that stops: what an event costs, and what memory it takes.

``python -m benchmarks.growth CLIENT URL EVENTS...`` looks at CPU and memory after each number of
events; with ``--stall`` the client's consumer stops after the first one for a while.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from aiosfstream import ConnectionEvent, ConnectionEventKind
from benchmarks.bare import BareClient
from benchmarks.drain import check, client_for
from benchmarks.processes import Stopwatch, measure_python, resident, say
from benchmarks.report import Section, Table
from benchmarks.script import CHANNEL
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import Settings

LABELS: Final = {"dict": "aiosfstream", "bare": "bare loop"}
BATCH: Final = 200
MAX_PENDING: Final = 100
#: Seconds that the consumer stops for, after fetching has been suspended.
STALL: Final = 1.0
MIB: Final = 2**20


def run(settings: Settings) -> Section:
    """Measure the long run of both clients, then the consumer that stops."""
    figures: dict[str, Any] = {}
    for name in LABELS:
        with ServerProcess(Script(events=settings.growth[-1], batch=BATCH)) as server:
            figures[name] = measure_python("growth", name, server.url, *settings.growth)["stages"]
    with ServerProcess(Script(events=settings.events, batch=BATCH)) as server:
        stall = measure_python("growth", "dict", server.url, settings.events, "--stall")
    return Section([_growth_table(figures), _stall_table(stall)], {**figures, "stall": stall})


def _growth_table(figures: dict[str, Any]) -> Table:
    columns = ["after events"]
    for label in LABELS.values():
        columns += [f"{label}: CPU us/event", "resident MiB"]
    stages = zip(*(figures[name] for name in LABELS), strict=True)
    rows = [_growth_row(row) for row in stages]
    note = f"CPU since the row above. {BATCH} events to a response, markers in a dict."
    return Table("A long run in one process", columns, rows, note)


def _growth_row(stages: Sequence[dict[str, float]]) -> list[str]:
    row = [f"{stages[0]['events']:,}"]
    for stage in stages:
        row += [f"{stage['cpu'] * 1e6:.2f}", f"{stage['resident'] / MIB:.1f}"]
    return row


def _stall_table(stall: dict[str, float]) -> Table:
    grown = (stall["stalled"] - stall["before"]) / MIB
    rows = [
        ("messages pending, at most", f"{stall['pending']:,.0f}"),
        ("bound: max_pending_count and one response", f"{MAX_PENDING + BATCH:,}"),
        ("resident memory grown by, MiB", f"{grown:.2f}"),
        ("events received in the end", f"{stall['received']:,.0f}"),
    ]
    return Table("A consumer that stops", ("what", "figure"), rows)


# In the process that is measured


async def _client_events(url: str) -> AsyncIterator[dict[str, Any]]:
    async with client_for(url, replay={}) as client:
        await client.subscribe(CHANNEL)
        async for message in client:
            yield message


async def _bare_events(url: str) -> AsyncIterator[dict[str, Any]]:
    async with BareClient(url) as client:
        while True:
            for message in await client.connect():
                if message["channel"] == CHANNEL:
                    yield message


async def grow(name: str, url: str, stages: Sequence[int]) -> None:
    """Take events, and look at CPU and memory after each of the numbers in *stages*."""
    due, figures, previous, seen = list(stages), [], 0, 0
    watch = Stopwatch()
    events = _client_events(url) if name == "dict" else _bare_events(url)
    async for message in events:
        seen += 1
        last = message
        if seen == due[0]:
            _, cpu = watch.read()
            figures.append({"events": seen, "cpu": cpu / (seen - previous), "resident": resident()})
            previous = due.pop(0)
            if not due:
                break
            watch.start()
    await events.aclose()  # type: ignore[attr-defined]
    check(last, seen, stages[-1])
    say(stages=figures)


async def stall(url: str, events: int) -> None:
    """Stop after the first event until fetching is suspended and some time has passed; then go on."""
    suspended = asyncio.Event()

    def observe(event: ConnectionEvent) -> None:
        if event.kind is ConnectionEventKind.FETCHING_SUSPENDED:
            suspended.set()

    seen = pending = 0
    before = stalled = resident()
    async with client_for(
        url, replay={}, observer=observe, max_pending_count=MAX_PENDING
    ) as client:
        await client.subscribe(CHANNEL)
        async for message in client:
            seen += 1
            last = message
            if seen == 1:
                before = resident()
                await suspended.wait()
                await asyncio.sleep(STALL)
                stalled = resident()
            pending = max(pending, client.pending_count)
            if seen == events:
                break
    check(last, seen, events)
    say(before=before, stalled=stalled, pending=pending, received=seen)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("client", choices=sorted(LABELS))
    parser.add_argument("url")
    parser.add_argument("events", type=int, nargs="+")
    parser.add_argument("--stall", action="store_true")
    arguments = parser.parse_args()
    if arguments.stall:
        asyncio.run(stall(arguments.url, arguments.events[-1]))
    else:
        asyncio.run(grow(arguments.client, arguments.url, arguments.events))


if __name__ == "__main__":
    main()
