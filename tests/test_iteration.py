"""Taking messages out of the mailbox, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from aiosfstream._cometd import iteration as module
from aiosfstream._cometd.iteration import Store, give_way, iterate
from aiosfstream._cometd.mailbox import Mailbox, Turn
from aiosfstream.exceptions import ClientInvalidOperation, ReplayError
from tests.support import until

Message = dict[str, Any]


class Source:
    """A client's side of an iteration, with what it was asked for."""

    def __init__(self, limit: int = 0) -> None:
        self.mailbox: Mailbox | None = Mailbox(limit)
        self.turn = Turn()
        self.stored: list[Message] = []
        self.received: list[Message] = []
        self.store: Store | None = self._store
        self.error: Exception | None = None

    def _store(self, message: Message) -> bool:
        if self.error is not None:
            raise self.error
        if message.get("odd"):
            return False
        self.stored.append(message)
        return True

    @property
    def direct(self) -> Store | None:
        """Give the store."""
        return self.store

    async def receive(self) -> Message:
        """Take the long way; with nothing there, the client is closed."""
        message = self.mailbox.take() if self.mailbox is not None else None
        if message is None or self.mailbox is None:
            raise ClientInvalidOperation("closed")
        self.mailbox.has_room_again = False
        self.received.append(message)
        return message

    def fill(self, *messages: Message) -> list[Message]:
        """Have messages fetched."""
        assert self.mailbox is not None
        self.mailbox.extend(messages)
        return list(messages)


def numbered(count: int, **fields: Any) -> list[Message]:
    """Make messages."""
    return [{"n": number, **fields} for number in range(count)]


async def take_all(source: Source) -> list[Message]:
    """Iterate to the end."""
    return [message async for message in iterate(source)]


async def test_what_is_pending_takes_the_short_way() -> None:
    source = Source()
    wanted = source.fill(*numbered(5))
    assert await take_all(source) == wanted
    assert source.stored == wanted
    assert source.received == []


@pytest.mark.parametrize("field", ["successful", "odd"])
async def test_what_is_out_of_the_ordinary_takes_the_long_way(field: str) -> None:
    source = Source()
    wanted = source.fill({"n": 0}, {"n": 1, field: True}, {"n": 2})
    assert await take_all(source) == wanted
    assert source.stored == [wanted[0], wanted[2]]
    assert source.received == [wanted[1]]


async def test_without_a_direct_store_all_take_the_long_way() -> None:
    source = Source()
    source.store = None
    wanted = source.fill(*numbered(3))
    assert await take_all(source) == wanted
    assert source.received == wanted


async def test_a_store_that_is_taken_away_on_the_way() -> None:
    source = Source()
    wanted = source.fill(*numbered(4))
    taken = []
    async with aclosing(iterate(source)) as messages:  # type: ignore[type-var]
        async for message in messages:
            taken.append(message)
            source.store = None
    assert taken == wanted
    assert source.stored == wanted[:1]
    assert source.received == wanted[1:]


async def test_a_client_that_was_never_opened() -> None:
    source = Source()
    source.mailbox = None
    assert await take_all(source) == []


async def test_while_somebody_else_receives_each_takes_one_at_a_time() -> None:
    source = Source()
    wanted = source.fill(*numbered(4))
    taken = []
    async for message in iterate(source):
        taken.append(message)
        if len(taken) == 2:
            await source.turn.take()
    assert taken == wanted
    assert source.stored == wanted[:2]
    assert source.received == wanted[2:]


async def test_an_error_stands_where_it_belongs() -> None:
    source = Source()
    first = source.fill(*numbered(2))
    assert source.mailbox is not None
    source.mailbox.fail(ZeroDivisionError())
    source.fill({"n": 9})
    messages = iterate(source)
    assert [await anext(messages), await anext(messages)] == first
    with pytest.raises(ZeroDivisionError):
        await anext(messages)
    assert await take_all(source) == [{"n": 9}]


async def test_a_store_that_fails_leaves_the_message_there() -> None:
    source = Source()
    wanted = source.fill({"n": 0, "channel": "/event/A__e"})
    for error in (ReplayError("of ours"), ValueError("locked")):
        source.error = error
        with pytest.raises(ReplayError) as caught:
            await take_all(source)
        if error.args == ("of ours",):
            assert caught.value is error
        else:
            assert caught.value.__cause__ is error
            assert "/event/A__e" in str(caught.value)
            assert "ValueError: locked" in str(caught.value)
    source.error = None
    assert await take_all(source) == wanted


async def test_what_comes_once_there_is_room_again_takes_the_long_way() -> None:
    source = Source(limit=2)
    wanted = source.fill(*numbered(5))
    mailbox = source.mailbox
    assert mailbox is not None
    room = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    assert await take_all(source) == wanted
    # There is room once one is left.
    assert source.received == wanted[4:]
    assert source.stored == wanted[:4]
    await room


async def test_giving_way_takes_as_long_as_sending_a_request() -> None:
    sent = []

    async def write() -> None:
        sent.append("the request")

    async def fetch() -> None:
        # As aiohttp does before Python 3.12.
        await asyncio.create_task(write())

    fetching = asyncio.create_task(fetch())
    await give_way()
    assert sent == ["the request"]
    await fetching


async def test_the_loop_has_no_turn_where_receiving_would_not_wait() -> None:
    source = Source()
    source.fill(*numbered(2), {"odd": True})
    turns = list[str]()
    messages = iterate(source)
    for _ in range(2):
        await anext(messages)
    asyncio.get_running_loop().call_soon(turns.append, "a turn")
    await anext(messages, None)
    assert turns == []


async def test_others_have_their_turn_while_much_is_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_RUN", 2)
    source = Source()
    wanted = source.fill(*numbered(6))
    taken: list[Message] = []
    turns: list[int] = []

    def look() -> None:
        turns.append(len(taken))
        if len(taken) < len(wanted):
            asyncio.get_running_loop().call_soon(look)

    asyncio.get_running_loop().call_soon(look)
    async for message in iterate(source):
        taken += [message]
    assert taken == source.stored == wanted
    assert turns[:2] == [2, 4]
