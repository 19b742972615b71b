"""``listen``: print the events of channels."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from ..client import API_VERSION, Client, ReplayMarkerStoragePolicy
from ..replay import ConstantReplayId, ReplayMarkerStorage, ReplayOption
from .channels import Replay, parse_channel, parse_replay
from .console import UsageError, say
from .credentials import authenticator_from, credentials_from
from .network import network_from
from .output import Output, standard_output
from .status import StatusLine
from .words import in_words

__all__ = ["run_listen"]

FALLBACKS: Final = {"new": ReplayOption.NEW_EVENTS, "all": ReplayOption.ALL_EVENTS}
#: Seconds between two looks at whether the reader has taken the next lines.
LOOK: Final = 0.05
#: Seconds that the reader has for the last lines.
PATIENCE: Final = 2.0


async def run_listen(options: argparse.Namespace) -> int:
    """Print events until interrupted, or until there were enough."""
    starts = [parse_channel(text) for text in options.channels]
    default = parse_replay(options.replay, "--replay says where channels start")
    output = standard_output()
    async with AsyncExitStack() as stack:
        storage = await _open_storage(options, default, stack)
        status = StatusLine(len(starts), output)
        stack.callback(status.make_room)
        client = _make_client(options, storage, status)
        receipts = Receipts(client, output) if options.state is not None else None
        if receipts is not None:
            # After the client is closed: the reader may take the last lines meanwhile.
            stack.push_async_callback(receipts.settle)
        await stack.enter_async_context(client)
        for channel, start in starts:
            await client.subscribe(channel, replay=start)
        tasks = [print_events(client, output, status, receipts, options), output.reader_gone()]
        if receipts is not None:
            tasks.append(receipts.keep_storing())
        await first_of(*tasks)
    return 0


def _make_client(
    options: argparse.Namespace, storage: ReplayMarkerStorage, status: StatusLine
) -> Client:
    _, authenticator = authenticator_from(credentials_from(options.token_file))
    network = network_from(options)
    try:
        return Client(
            authenticator,
            replay=storage,
            replay_fallback=None if options.fallback is None else FALLBACKS[options.fallback],
            replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
            connection_timeout=options.timeout,
            api_version=options.api_version or API_VERSION,
            session_factory=network.session_factory,
            ssl=network.ssl,
            observer=status.observe,
        )
    except ValueError as error:
        raise UsageError(in_words(str(error))) from error


async def _open_storage(
    options: argparse.Namespace, default: Replay, stack: AsyncExitStack
) -> ReplayMarkerStorage:
    """Make the storage that ``--state`` and ``--replay`` ask for."""
    start: Any = default
    if options.state is None:
        return ConstantReplayId(start)
    from ..storages.sqlite import SQLiteStorage

    storage = await stack.enter_async_context(SQLiteStorage(options.state, default_id=start))
    # From here on `markers` leaves the file alone, even while there is no connection yet.
    await storage.open_for(None)
    return storage


async def print_events(
    client: Client,
    output: Output,
    status: StatusLine,
    receipts: Receipts | None,
    options: argparse.Namespace,
) -> None:
    """Print events until there were enough, or the client is closed.

    :raises BrokenPipeError: if the reader of the output is gone
    """
    printed = 0
    async for message in client:
        status.make_room()
        await output.write(line_of(message, pretty=options.pretty))
        if receipts is not None:
            receipts.add(message)
        printed += 1
        status.count(printed)
        if printed == options.count:
            return


def line_of(message: Mapping[str, Any], *, pretty: bool) -> str:
    """Give an event as it is printed.

    :param message: the event
    :param pretty: whether it takes several lines
    """
    return json.dumps(message, indent=2 if pretty else None) + "\n"


class Receipts:
    """The events whose lines have been written and may not have left yet.

    The marker of an event is stored once the reader of a pipe or a socket has taken its whole line, or
    once it is written where that is a file or a terminal.

    :param client: whose storage the markers go to
    :param output: where the lines went
    """

    def __init__(self, client: Client, output: Output) -> None:
        self._client = client
        self._output = output
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._added = asyncio.Event()

    def add(self, message: dict[str, Any]) -> None:
        """Take up that all of an event has been written.

        :param message: the event
        """
        self._waiting.append((self._output.written, message))
        self._added.set()

    async def keep_storing(self) -> None:
        """Store the markers of lines as they leave, until cancelled.

        :raises ReplayError: if one cannot be stored
        """
        while True:
            await self._added.wait()
            self._added.clear()
            # No reader tells what it has taken.
            while await self._store():  # noqa: ASYNC110
                await asyncio.sleep(LOOK)

    async def _store(self) -> bool:
        """Store the markers of what has left, and say whether something is still there."""
        taken = self._output.taken
        while self._waiting and self._waiting[0][0] <= taken:
            async with self._client.replay_storage(self._waiting[0][1]):
                pass
            self._waiting.popleft()
        return bool(self._waiting)

    async def settle(self) -> None:
        """Give the reader a moment to take the last lines, and say so if it does not.

        :raises ReplayError: if a marker cannot be stored
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while await self._store():
            if self._output.is_broken or loop.time() > deadline:
                break
            await asyncio.sleep(LOOK)
        if self._waiting:
            events = f"{len(self._waiting)} event{'s' * (len(self._waiting) != 1)}"
            say(
                f"aiosfstream: {events} had not been taken from the output; they come again next time"
            )


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run several at once until the first of them ends, and end the others.

    :param coroutines: what to run
    :raises Exception: what the first one raises
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
