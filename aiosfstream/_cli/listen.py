"""``listen``: print the events of channels."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from .console import UsageError, emit
from .credentials import authenticator_from

if TYPE_CHECKING:
    from ..client import Client
    from ..events import ConnectionEvent
    from ..replay import ReplayMarkerStorage

__all__ = ["parse_channel", "run_listen"]

#: Seconds between two writes of the status line.
STATUS_INTERVAL: Final = 0.5


async def run_listen(options: argparse.Namespace) -> int:
    """Print events until interrupted, or until there were enough."""
    from ..client import API_VERSION, Client, ReplayMarkerStoragePolicy

    starts = [parse_channel(text) for text in options.channels]
    authenticator = authenticator_from(os.environ)
    async with AsyncExitStack() as stack:
        storage = await open_storage(options, stack)
        status = StatusLine(len(starts))
        stack.callback(status.clear)
        try:
            client = Client(
                authenticator,
                replay=storage,
                replay_fallback=None
                if options.fallback is None
                else parse_replay(options.fallback),
                replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
                connection_timeout=options.timeout,
                api_version=options.api_version or API_VERSION,
                observer=status.observe,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        await stack.enter_async_context(client)
        for channel, start in starts:
            await client.subscribe(channel, replay=start)
        await print_events(client, status, options.count)
    return 0


async def print_events(client: Client, status: StatusLine, count: int | None) -> None:
    """Print events, and store the marker of each behind it."""
    printed = 0
    async for message in client:
        async with client.replay_storage(message):
            status.clear()
            emit(message)
        printed += 1
        status.count(printed)
        if count is not None and printed >= count:
            return


def parse_channel(text: str) -> tuple[str, Any]:
    """Split ``CHANNEL@ID``; a ``@`` in the channel's name is none before an id."""
    channel, at, start = text.rpartition("@")
    if not at:
        channel, start = text, ""
    if not channel.startswith("/"):
        raise UsageError(
            f"{text!r} is no channel: it should start with a slash, as in /event/My_Event__e"
        )
    return channel, parse_replay(start) if start else None


def parse_replay(text: str) -> Any:
    """Understand ``new``, ``all`` or a replay id, which is a number or else text."""
    from ..replay import ReplayOption

    options = {"new": ReplayOption.NEW_EVENTS, "all": ReplayOption.ALL_EVENTS}
    if text in options:
        return options[text]
    try:
        return int(text)
    except ValueError:
        return text


async def open_storage(options: argparse.Namespace, stack: AsyncExitStack) -> ReplayMarkerStorage:
    """Make the storage that ``--state`` and ``--replay`` ask for."""
    from ..replay import ConstantReplayId

    default = parse_replay(options.replay)
    if options.state is None:
        return ConstantReplayId(default)
    from ..storages.sqlite import SQLiteStorage

    return await stack.enter_async_context(SQLiteStorage(options.state, default_id=default))


class StatusLine:
    """One line on a terminal that tells how it goes; nothing where there is no terminal.

    :param channels: how many channels are listened to
    """

    def __init__(self, channels: int) -> None:
        self._shown = sys.stderr.isatty()
        self._channels = channels
        self._state = "connecting"
        self._printed = 0
        self._visible = False
        self._written_at = 0.0
        self._window: tuple[float, int] = (time.monotonic(), 0)

    def observe(self, event: ConnectionEvent) -> None:
        """Take up a change of the connection."""
        if event.channel is None:
            self._state = event.kind.value
        self._write(at_once=True)

    def count(self, printed: int) -> None:
        """Take up that an event was printed."""
        self._printed = printed
        self._write(at_once=False)

    def _write(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not self._shown or (not at_once and now - self._written_at < STATUS_INTERVAL):
            return
        since, before = self._window
        rate = (self._printed - before) / max(now - since, 0.001)
        if now - since > 5:
            self._window = (now, self._printed)
        self.clear()
        channels = f"{self._channels} channel{'s' * (self._channels != 1)}"
        text = f"{self._printed} events, {rate:.1f}/s, {channels}, {self._state}"
        print(text, end="", file=sys.stderr, flush=True)
        self._visible = True
        self._written_at = now

    def clear(self) -> None:
        """Take the line away, to make room for an event."""
        if self._visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._visible = False
