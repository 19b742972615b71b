"""One client in Python that takes every event that the server has, as fast as it can.

``python -m benchmarks.drain CLIENT URL EVENTS`` says how long it took from the first event to the
last one, in seconds and in seconds of CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiosfstream import Client, RefreshTokenAuthenticator, ReplayMarkerStorage, SQLiteStorage
from benchmarks.bare import PATH, BareClient
from benchmarks.processes import Stopwatch, say
from benchmarks.script import CHANNEL

Message = dict[str, Any]


class Missed(RuntimeError):
    """Raised when a client did not get every event once and in order."""


def check(last: Message, seen: int, expected: int) -> None:
    """Make sure that what was measured was also right."""
    replay_id = last["data"]["event"]["replayId"]
    if seen != expected or replay_id != expected:
        raise Missed(f"{seen} of {expected} events seen, the last one has replay id {replay_id}")


def client_for(url: str, **options: Any) -> Client:
    """Make a client that logs in at the server."""
    return Client(RefreshTokenAuthenticator("key", "secret", "token", login_url=url), **options)


async def bare(url: str, events: int, watch: Stopwatch, loads: Callable[[bytes], Any]) -> None:
    """Count the events in a bare loop."""
    seen = 0
    async with BareClient(url, loads) as client:
        while seen < events:
            for message in await client.connect():
                if message["channel"] == CHANNEL:
                    seen += 1
                    if seen == 1:
                        watch.start()
                    last = message
        result = watch.read()
    check(last, seen, events)
    report(result)


async def iterate(url: str, events: int, watch: Stopwatch, **options: Any) -> None:
    """Count the events as applications do: ``async for message in client``."""
    seen = 0
    async with client_for(url, **options) as client:
        await client.subscribe(CHANNEL)
        async for message in client:
            seen += 1
            last = message
            if seen == 1:
                watch.start()
            elif seen == events:
                break
        result = watch.read()
    check(last, seen, events)
    report(result)


async def receive(url: str, events: int, watch: Stopwatch) -> None:
    """Count the events with ``await client.receive()``."""
    seen = 0
    async with client_for(url, replay={}) as client:
        await client.subscribe(CHANNEL)
        while seen < events:
            last = await client.receive()
            seen += 1
            if seen == 1:
                watch.start()
        result = watch.read()
    check(last, seen, events)
    report(result)


def report(result: tuple[float, float]) -> None:
    """Say how long it took."""
    say(wall=result[0], cpu=result[1])


async def run_bare(url: str, events: int, watch: Stopwatch) -> None:
    await bare(url, events, watch, json.loads)


async def run_bare_orjson(url: str, events: int, watch: Stopwatch) -> None:
    import orjson

    await bare(url, events, watch, orjson.loads)


async def run_dict(url: str, events: int, watch: Stopwatch) -> None:
    await iterate(url, events, watch, replay={})


async def run_orjson(url: str, events: int, watch: Stopwatch) -> None:
    import orjson

    await iterate(url, events, watch, replay={}, json_loads=orjson.loads, json_dumps=orjson.dumps)


async def run_constant(url: str, events: int, watch: Stopwatch) -> None:
    await iterate(url, events, watch)


class WrittenStorage(ReplayMarkerStorage):
    """A storage as an application writes it: the two methods that it has to."""

    def __init__(self) -> None:
        super().__init__()
        self.markers: dict[str, Any] = {}

    async def get_replay_marker(self, subscription: str) -> Any:
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: Any) -> None:
        self.markers[subscription] = replay_marker


async def run_written(url: str, events: int, watch: Stopwatch) -> None:
    await iterate(url, events, watch, replay=WrittenStorage())


async def run_sqlite(url: str, events: int, watch: Stopwatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with SQLiteStorage(str(Path(folder) / "markers.db")) as storage:
            await iterate(url, events, watch, replay=storage)


async def run_socket(url: str, events: int, watch: Stopwatch) -> None:
    """Read the answers without looking at them, to see what the server itself can do."""
    client = BareClient(url)
    await client.open()
    await asyncio.get_running_loop().run_in_executor(
        None, _read_all, url, client.connect_body(), events, watch
    )
    report(watch.read())
    await client.__aexit__()


def _read_all(url: str, body: bytes, events: int, watch: Stopwatch) -> None:
    host, port = url.removeprefix("http://").split(":")
    request = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (
        PATH.encode(),
        len(body),
        body,
    )
    end = b'"replayId":%d}' % events
    watch.start()
    with socket.create_connection((host, int(port))) as connection:
        tail = b""
        while end not in tail:
            connection.sendall(request)
            tail = _read_answer(connection)


def _read_answer(connection: socket.socket) -> bytes:
    data = connection.recv(262_144)
    head, _, rest = data.partition(b"\r\n\r\n")
    missing = int(head.lower().rpartition(b"content-length:")[2]) - len(rest)
    tail = rest
    while missing > 0:
        tail = connection.recv(262_144)
        missing -= len(tail)
    return tail[-500:]


CLIENTS: Final[dict[str, Callable[[str, int, Stopwatch], Awaitable[None]]]] = {
    "bare": run_bare,
    "bare-orjson": run_bare_orjson,
    "dict": run_dict,
    "orjson": run_orjson,
    "constant": run_constant,
    "written": run_written,
    "sqlite": run_sqlite,
    "receive": receive,
    "socket": run_socket,
}


def main() -> None:
    """Run the client that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drain", description=__doc__)
    parser.add_argument("client", choices=sorted(CLIENTS))
    parser.add_argument("url")
    parser.add_argument("events", type=int)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    run = CLIENTS[arguments.client]
    profile = cProfile.Profile(builtins=True)
    if arguments.profile:
        profile.enable()
    asyncio.run(_run(run, arguments.url, arguments.events))
    if arguments.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


async def _run(
    run: Callable[[str, int, Stopwatch], Awaitable[None]], url: str, events: int
) -> None:
    await run(url, events, Stopwatch())


if __name__ == "__main__":
    main()
