"""Many clients in one process: what one costs in memory, to open, and while it is idle or busy.

``python -m benchmarks.crowd CLIENT URL COUNT SECONDS`` opens them all at once and then watches them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from aiosfstream import AccessTokenAuthenticator, Client
from benchmarks.bare import BareClient
from benchmarks.processes import (
    Stopwatch,
    allow_many_files,
    measure_python,
    resident,
    say,
)
from benchmarks.report import Section, Series, Table
from benchmarks.script import CHANNEL
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import Settings

LABELS: Final = {"bare": "bare long-polls", "dict": "aiosfstream"}
FIGURES: Final = {
    "memory": ("KiB a client", 1 / 1024, 1),
    "opening": ("s to open all", 1.0, 2),
    "cpu": ("CPU ms/s afterwards", 1000.0, 1),
}
#: Seconds between two looks at whether the server holds a connect of every client.
LOOK: Final = 0.01


def run(settings: Settings) -> Section:
    """Watch both kinds of clients, first idle, then with an event a second each."""
    idle = Script(events=0, hold=settings.crowd_hold)
    busy = Script(events=1_000_000, batch=1, period=1.0)
    tables, figures = [], {}
    for name, script, title in (
        ("idle", idle, f"idle, answered every {settings.crowd_hold:g} s"),
        ("busy", busy, "an event a second each"),
    ):
        series = _measure(settings, script)
        tables.append(_table(f"{settings.clients:,} clients in one process, {title}", series))
        figures[name] = {
            client: {key: one.values for key, one in of.items()} for client, of in series.items()
        }
    return Section(tables, {"clients": settings.clients, **figures})


def _measure(settings: Settings, script: Script) -> dict[str, dict[str, Series]]:
    series = {name: {key: Series() for key in (*FIGURES, "events")} for name in LABELS}
    for turn in range(settings.crowd_repeat):
        for name in sorted(LABELS, reverse=bool(turn % 2)):
            with ServerProcess(script) as server:
                figures = measure_python(
                    "crowd", name, server.url, settings.clients, settings.crowd_seconds
                )
            for key, one in series[name].items():
                one.values.append(figures[key])
    return series


def _table(title: str, series: dict[str, dict[str, Series]]) -> Table:
    columns = ["client"]
    for what, _, _ in FIGURES.values():
        columns += [what, "range", "to bare"]
    columns.append("events/s")
    rows = []
    for name, label in LABELS.items():
        row = [label]
        for key, (_, scale, digits) in FIGURES.items():
            one, base = series[name][key], series["bare"][key]
            row += [one.text(digits, scale), one.range(digits, scale), f"{one.over(base):.2f}"]
        rows.append([*row, series[name]["events"].text()])
    return Table(
        title,
        columns,
        rows,
        "Each client has a session of its own and makes a handshake, a connect and a subscription"
        " before it polls. Opened all at once; memory and CPU with a poll of each held by the server.",
    )


# In the process that is measured

#: Takes the next events of a client and gives their number.
Taker = Callable[[], Awaitable[int]]


async def open_bare(url: str, stack: AsyncExitStack) -> Taker:
    """Open a bare client."""
    client = await stack.enter_async_context(BareClient(url))

    async def take() -> int:
        return sum(message["channel"] == CHANNEL for message in await client.connect())

    return take


async def open_client(url: str, stack: AsyncExitStack) -> Taker:
    """Open a client."""
    authenticator = AccessTokenAuthenticator(url, "00Dx0000000BV7z!token")
    client = await stack.enter_async_context(Client(authenticator, replay={}))
    await client.subscribe(CHANNEL)
    messages = aiter(client)

    async def take() -> int:
        await anext(messages)
        return 1

    return take


class Crowd:
    """The clients of the process that is measured."""

    def __init__(self, name: str, url: str, count: int) -> None:
        self._open = open_bare if name == "bare" else open_client
        self._url = url
        self._count = count
        self._received = 0

    async def watch(self, seconds: float) -> dict[str, float]:
        """Open them all, and give what they cost."""
        async with AsyncExitStack() as warm_up:
            await self._open(self._url, warm_up)
        before, watch = resident(), Stopwatch()
        async with AsyncExitStack() as stack:
            takers = await asyncio.gather(
                *(self._open(self._url, stack) for _ in range(self._count))
            )
            tasks = [asyncio.create_task(self._consume(take)) for take in takers]
            await self._until_all_wait()
            opening, _ = watch.read()
            memory = (resident() - before) / self._count
            received = self._received
            watch.start()
            await asyncio.sleep(seconds)
            wall, cpu = watch.read()
            received = self._received - received
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {
            "memory": memory,
            "opening": opening,
            "cpu": cpu / wall,
            "events": received / wall,
        }

    async def _consume(self, take: Taker) -> None:
        while True:
            taken = await take()
            self._received += taken

    async def _until_all_wait(self) -> None:
        held = 0
        # With an event a second each, a few are always between two connects.
        while held < self._count * 0.95:
            await asyncio.sleep(LOOK)
            held = (await self._stats())["held"]

    async def _stats(self) -> Any:
        host, port = self._url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /stats HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().rpartition(b"content-length:")[2])
        body = await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()
        return json.loads(body)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("client", choices=sorted(LABELS))
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    allow_many_files()
    crowd = Crowd(arguments.client, arguments.url, arguments.count)
    say(**asyncio.run(crowd.watch(arguments.seconds)))


if __name__ == "__main__":
    main()
