"""Taking messages out of the mailbox, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from aiocometd.typing import JsonObject

from .._channels import shown
from .._text import fit
from ..exceptions import ClientInvalidOperation, ReplayError
from .mailbox import Mailbox, Turn

#: Stores the marker of a message without waiting; says whether it has done so.
Store = Callable[[JsonObject], bool]


class Source(Protocol):
    """Where an iteration takes its messages from."""

    @property
    def mailbox(self) -> Mailbox | None:
        """What was fetched and not taken yet; None: never opened."""

    @property
    def turn(self) -> Turn:
        """The turn to take messages, which one task has at a time."""

    @property
    def direct(self) -> Store | None:
        """Stores the marker of an ordinary message without waiting; None if nothing can."""

    @property
    def groups(self) -> bool:
        """Whether markers are stored in groups, of which each pause would make one more."""

    async def receive(self) -> JsonObject:
        """Wait for the next message, and give it once its marker is stored."""


async def iterate(source: Source) -> AsyncIterator[JsonObject]:
    """Iterate like aiocometd's client: receive messages until the client is closed.

    What is pending is taken without the chain of calls below ``receive()``. With 200 events a response
    that makes iterating 85 % faster.

    :param source: where the messages come from
    """
    while True:
        took_some = False
        for message in _pending(source):
            took_some = True
            yield message
        if took_some and source.mailbox:
            # receive() would not wait either, so the next request would not be sent.
            await asyncio.sleep(0)
        try:
            message = await source.receive()
        except ClientInvalidOperation:
            return
        yield message


def _pending(source: Source) -> Iterator[JsonObject]:
    """Take what is pending, until something out of the ordinary is next or fetching can go on."""
    mailbox, turn = source.mailbox, source.turn
    if mailbox is None:
        return
    items = mailbox.items
    # While other tasks wait in receive(), messages are taken one at a time, in turn.
    while items and not turn.taken and (store := source.direct) is not None:
        message = items[0]
        # receive() raises errors, and what aiocometd makes an error of.
        if isinstance(message, Exception) or "successful" in message:
            return
        try:
            if not store(message):
                return
        except ReplayError:
            raise
        except Exception as error:
            raise storing_failed(message, error) from error
        items.popleft()
        has_room_again = mailbox.make_room()
        yield message
        if has_room_again and not source.groups:
            return


def storing_failed(message: JsonObject, error: Exception) -> ReplayError:
    """Make the error that tells that the marker of a message could not be stored.

    :param message: the message, which stays the next one
    :param error: what the storage has raised
    """
    return ReplayError(
        f"The replay marker of a message on {shown(message.get('channel'))} could not be stored:"
        f" {type(error).__name__}: {fit(error)};"
        " the next receive() gives this message again"
    )
