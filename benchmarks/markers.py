"""What storing a marker costs, for each kind of storage.

``python -m benchmarks.markers KIND COUNT`` says the seconds of one marker, taken in groups as the
client does while it drains a backlog, and each awaited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shelve
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiosfstream import MappingStorage, ReplayMarkerStorage, SQLiteStorage
from aiosfstream.replay import direct_store_of, flush, store_marker
from benchmarks.processes import measure_python, say
from benchmarks.report import Section, Series, Table
from benchmarks.script import event
from benchmarks.settings import Settings

LABELS: Final = {
    "dict": "dict",
    "shelve": "shelve.Shelf",
    "sqlite": "SQLiteStorage",
    "sqlite-each": "SQLiteStorage, commit_each=True",
    "redis": "RedisStorage, Redis on the same machine",
}
#: Messages between two requests, before which a storage writes what it has gathered.
GROUP: Final = 200
#: One in so many is awaited alone, since that can take a write to the disk each.
SHARE_ALONE: Final = 10
#: Seconds for Redis to start.
PATIENCE: Final = 20


def run(settings: Settings) -> Section:
    """Measure each storage."""
    kinds = [kind for kind in LABELS if kind != "redis" or shutil.which("redis-server")]
    series = {kind: {"grouped": Series(), "awaited": Series()} for kind in kinds}
    for _ in range(settings.repeat):
        for kind in kinds:
            figures = measure_python("markers", kind, settings.markers)
            for key, one in series[kind].items():
                if figures[key] is not None:
                    one.values.append(figures[key])
    return Section(
        [_table(settings, series)],
        {kind: {key: one.values for key, one in of.items()} for kind, of in series.items()},
    )


def _table(settings: Settings, series: dict[str, dict[str, Series]]) -> Table:
    rows = []
    for kind, of in series.items():
        row = [LABELS[kind]]
        for one in of.values():
            row += [one.text(2, 1e6), one.range(2, 1e6)] if one.values else ["n/a", ""]
        rows.append(row)
    return Table(
        "Storing a marker",
        ("storage", "us, draining", "range", "us, each awaited", "range"),
        rows,
        f"{settings.markers:,} markers of one channel, or a tenth of that where each is awaited; medians"
        f" of {settings.repeat}. Draining: handed over without waiting, and written before the next"
        f" request, every {GROUP} of them.",
    )


# In the process that is measured


@asynccontextmanager
async def make_storage(kind: str, folder: Path) -> AsyncIterator[ReplayMarkerStorage]:
    """Make a storage of a kind, with its file in *folder*."""
    if kind == "dict":
        yield MappingStorage({})
    elif kind == "shelve":
        with shelve.open(str(folder / "markers")) as shelf:  # noqa: S301 - a file of our own
            yield MappingStorage(shelf)
    elif kind == "redis":
        async with redis_storage(folder) as storage:
            yield storage
    else:
        path = folder / "markers.db"
        async with SQLiteStorage(path, commit_each=kind == "sqlite-each") as storage:
            yield storage


@asynccontextmanager
async def redis_storage(folder: Path) -> AsyncIterator[ReplayMarkerStorage]:
    """Start a Redis that keeps everything in memory, and make a storage in it."""
    from redis.asyncio import Redis

    from aiosfstream.storages.redis import RedisStorage

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    server = await asyncio.create_subprocess_exec(
        "redis-server", *options, stdout=subprocess.DEVNULL
    )
    try:
        async with Redis(port=port) as client:
            await _until_it_answers(client)
            yield RedisStorage(client, prefix="benchmark:")
    finally:
        server.kill()
        await server.wait()


async def _until_it_answers(client: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await client.ping()
            return
        except OSError:
            pass
        except Exception as error:
            if type(error).__name__ != "ConnectionError" or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


async def time_markers(kind: str, count: int) -> dict[str, float | None]:
    """Give the seconds that a marker takes in a group, if it can be in one, and by itself."""
    alone = max(count // SHARE_ALONE, 1)
    messages = [json.loads(event(number)) for number in range(1, count + alone + 1)]
    with tempfile.TemporaryDirectory() as folder:
        async with make_storage(kind, Path(folder)) as storage:
            store = direct_store_of(storage)
            grouped = (
                None if store is None else await _time_groups(storage, store, messages[:count])
            )
            started = time.perf_counter()
            for message in messages[count:]:
                await storage.extract_replay_id(message)
            await flush(storage)
            awaited = (time.perf_counter() - started) / alone
            marker = await storage.get_replay_marker(messages[-1]["channel"])
            if marker is None or marker.replay_id != count + alone:
                raise RuntimeError(f"{kind}: the last marker was not stored, but {marker}")
    return {"grouped": grouped, "awaited": awaited}


async def _time_groups(
    storage: ReplayMarkerStorage,
    store: Callable[[dict[str, Any]], bool],
    messages: list[dict[str, Any]],
) -> float:
    started = time.perf_counter()
    for first in range(0, len(messages), GROUP):
        for message in messages[first : first + GROUP]:
            if not store(message):
                await store_marker(storage, message)
        await flush(storage)
    return (time.perf_counter() - started) / len(messages)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.markers", description=__doc__)
    parser.add_argument("kind", choices=sorted(LABELS))
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    say(**asyncio.run(time_markers(arguments.kind, arguments.count)))


if __name__ == "__main__":
    main()
