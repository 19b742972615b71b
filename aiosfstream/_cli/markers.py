"""``markers``: look at the stored positions of a consumer, and move them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..replay import ReplayMarker
from ..storages.sqlite import SQLiteStorage
from .channels import parse_channel
from .console import CommandError, UsageError, printable, say
from .files import read_secret
from .import_markers import import_markers, read_markers
from .output import standard_output

if TYPE_CHECKING:
    from ..storages.redis import RedisStorage

    Store = SQLiteStorage | RedisStorage

__all__ = ["run_export", "run_reset", "run_set", "run_show"]

#: How the URL of a Redis server begins.
REDIS: Final = ("redis://", "rediss://", "unix://")
#: Stands for the URL in a variable, since it may have a password.
REDIS_OF_VARIABLE: Final = "redis:"


async def run_show(options: argparse.Namespace) -> int:
    """Print markers as a table."""
    output = standard_output()
    async with AsyncExitStack() as stack:
        store = await _open(options, stack)
        markers = _chosen(options, await store.markers())
        for line in _table(markers):
            await output.write(line)
        for consumer in await store.consumers():
            say(f"In use by {consumer}")
    return 0


async def run_export(options: argparse.Namespace) -> int:
    """Print markers as a JSON document, as ``set --from`` and ``import-markers`` read it."""
    output = standard_output()
    async with AsyncExitStack() as stack:
        store = await _open(options, stack)
        markers = _chosen(options, await store.markers())
    document = {channel: marker._asdict() for channel, marker in sorted(markers.items())}
    await output.write(json.dumps(document, indent=2) + "\n")
    return 0


async def run_set(options: argparse.Namespace) -> int:
    """Put markers in place of those that are stored."""
    wanted = _wanted(options)
    output = standard_output()
    async with AsyncExitStack() as stack:
        store = await _open(options, stack, may_make=options.source is not None)
        await _refuse_if_used(store, options)
        before = await store.markers()
        done = await import_markers(wanted, store, overwrite=True)
        if done.skipped:
            raise CommandError(
                f"There is no marker for {', '.join(map(printable, done.skipped))}: give each channel a replay id,"
                " or an object with date and replay_id"
            )
        for channel, marker in sorted(done.stored.items()):
            old = before.get(channel)
            was = "no marker" if old is None else _id(old)
            await output.write(f"{printable(channel)}: {_id(marker)} (before: {was})\n")
    return 0


async def run_reset(options: argparse.Namespace) -> int:
    """Take markers away, so that their channels start anew."""
    if bool(options.channels) is options.all:
        raise UsageError("markers reset STORE takes channels, or --all for every one in it")
    output = standard_output()
    async with AsyncExitStack() as stack:
        store = await _open(options, stack)
        await _refuse_if_used(store, options)
        for channel, marker in sorted(_chosen(options, await store.markers()).items()):
            await store.delete_replay_marker(channel)
            await output.write(f"{printable(channel)}: no marker (before: {_id(marker)})\n")
    return 0


# Stores


async def _open(
    options: argparse.Namespace, stack: AsyncExitStack, *, may_make: bool = False
) -> Store:
    """Open the store that is named.

    :raises CommandError: if there is none
    :raises UsageError: if it is not clear which one is meant
    """
    if options.store.startswith((*REDIS, REDIS_OF_VARIABLE)):
        return await _open_redis(options, stack)
    if options.prefix is not None:
        raise UsageError(
            "--prefix is for a STORE in Redis, whose name begins with redis://: take it away"
        )
    path = Path(options.store)
    if not may_make and not await asyncio.to_thread(path.exists):
        raise CommandError(f"there is no file {options.store!r}: check its name")
    return await stack.enter_async_context(SQLiteStorage(path))


async def _open_redis(options: argparse.Namespace, stack: AsyncExitStack) -> RedisStorage:
    if options.prefix is None:
        raise UsageError("a store in Redis needs --prefix, as the program gives it to RedisStorage")
    from redis.asyncio import Redis

    from ..storages.redis import RedisStorage

    try:
        client = Redis.from_url(_redis_url(options.store))
    except ValueError as error:
        # Not quoted: there may be a password in it.
        raise UsageError(
            "the store should be the URL of a Redis server, such as redis://127.0.0.1:6379/0"
        ) from error
    stack.push_async_callback(client.aclose)
    return RedisStorage(client, prefix=options.prefix)


def _redis_url(store: str) -> str:
    if store != REDIS_OF_VARIABLE:
        return store
    file = os.environ.get("REDIS_URL_FILE")
    url = read_secret(Path(file), "REDIS_URL_FILE") if file else os.environ.get("REDIS_URL", "")
    if not url:
        raise UsageError(
            "for the store 'redis:' set REDIS_URL, or REDIS_URL_FILE to a file that holds it"
        )
    return url


async def _refuse_if_used(store: Store, options: argparse.Namespace) -> None:
    """Leave a store alone that a consumer is using, unless forced."""
    consumers = await store.consumers()
    if consumers and not options.force:
        raise CommandError(
            f"the store is in use by {'; '.join(consumers)}. End that first: it would go on from where it is, and"
            " overwrite what is set here. Use --force if it is gone"
        )


# Markers


def _chosen(
    options: argparse.Namespace, markers: Mapping[str, ReplayMarker]
) -> dict[str, ReplayMarker]:
    """Give the markers of the channels that are asked for; of all, if none is."""
    names = [text.partition("?")[0] for text in options.channels]
    missing = [name for name in names if name not in markers]
    if missing:
        raise CommandError(
            f"the store has no marker of {', '.join(map(printable, missing))}: see markers show for those it has"
        )
    return {name: markers[name] for name in names or markers}


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    """Give the markers that ``set`` is to store, by channel."""
    if bool(options.channels) is (options.source is not None):
        raise UsageError(
            "markers set takes CHANNEL@ID, or --from FILE with a JSON document of them"
        )
    if options.source is None:
        return dict(_parsed(text, options.date or "") for text in options.channels)
    if options.date is not None:
        raise UsageError(
            "--date belongs to CHANNEL@ID: take it away, the document of --from has dates of its own"
        )
    if str(options.source) != "-":
        return read_markers(options.source)
    try:
        document = json.load(sys.stdin)
    except ValueError as error:
        raise CommandError("the standard input should be a JSON document of markers") from error
    if not isinstance(document, dict):
        raise CommandError(
            "the standard input should be a JSON object of channels and their markers"
        )
    return document


def _parsed(text: str, date: str) -> tuple[str, ReplayMarker]:
    channel, start = parse_channel(text)
    if start is None or (isinstance(start, int) and start < 0):
        raise UsageError(
            f"{text!r} should be CHANNEL@ID with a replay id; markers reset lets a channel start anew"
        )
    replay_id: Any = start
    return channel.partition("?")[0], ReplayMarker(date, replay_id)


def _id(marker: ReplayMarker) -> str:
    return json.dumps(marker.replay_id)


def _table(markers: Mapping[str, ReplayMarker]) -> Iterable[str]:
    rows = [("CHANNEL", "REPLAY ID", "DATE")]
    rows += [
        (printable(channel), _id(marker), printable(marker.date) or "-")
        for channel, marker in sorted(markers.items())
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip() + "\n"
