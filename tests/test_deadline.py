"""How long a request may take: each limit is its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from aiosfstream._http.deadline import Limits, limits_for
from aiosfstream._http.post import Answer, Failure, Trouble, post


def test_the_limits_of_a_request() -> None:
    assert limits_for(10) == Limits(connect=10, silence=10, total=40)
    assert limits_for(10, 110) == Limits(connect=10, silence=120, total=150)


class Dripping:
    """A server that sends the parts of an answer one after the other, each after a pause."""

    def __init__(self) -> None:
        self.pause = 0.0
        self.parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", *[b"x"] * 20]
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        self.sent = 0
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in self.parts:
                await asyncio.sleep(self.pause)
                writer.write(part)
                await writer.drain()
                self.sent += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class Drips:
    """Requests to that server."""

    def __init__(self, server: Dripping, url: str, session: aiohttp.ClientSession) -> None:
        self.server, self.url, self.session = server, url, session

    async def take(self, pause: float, silence: float, total: float) -> Answer | Failure:
        """Take an answer whose parts come after *pause* each."""
        self.server.pause = pause
        limits = Limits(connect=5, silence=silence, total=total)
        return await post(self.session, self.url, b"[]", {}, limits=limits)


@pytest.fixture
async def drips() -> AsyncIterator[Drips]:
    server = Dripping()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    async with aiohttp.ClientSession() as session:
        yield Drips(server, url, session)
    listener.close()
    await listener.wait_closed()


async def test_each_piece_counts_the_silence_anew(drips: Drips) -> None:
    # All of it takes twice as long as the silence may.
    answer = await drips.take(pause=0.02, silence=0.2, total=10)
    assert isinstance(answer, Answer)
    assert answer.body == b"x" * 20


async def test_silence_ends_it(drips: Drips) -> None:
    started = time.monotonic()
    failure = await drips.take(pause=5, silence=0.1, total=10)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    assert "no answer in time" in str(failure.error)
    assert time.monotonic() - started < 3


async def test_pieces_do_not_extend_it_for_ever(drips: Drips) -> None:
    started = time.monotonic()
    failure = await drips.take(pause=0.05, silence=0.25, total=0.6)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    # It went on for longer than one silence, and not to the end.
    assert time.monotonic() - started > 0.5
    assert drips.server.sent < 20


async def test_the_total_counts_before_the_first_piece(drips: Drips) -> None:
    started = time.monotonic()
    failure = await drips.take(pause=5, silence=5, total=0.1)
    assert isinstance(failure, Failure)
    assert time.monotonic() - started < 3


async def test_a_request_in_time_leaves_no_timer(drips: Drips) -> None:
    assert isinstance(await drips.take(pause=0, silence=0.2, total=0.3), Answer)
    await asyncio.sleep(0.4)


async def test_a_cancellation_is_no_timeout(drips: Drips) -> None:
    task = asyncio.create_task(drips.take(pause=5, silence=10, total=10))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_beside_the_end_of_the_time_stays_one(drips: Drips) -> None:
    async def cancelled_at_the_end() -> object:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        return await drips.take(pause=5, silence=0.1, total=0.1)

    results = await asyncio.gather(cancelled_at_the_end(), return_exceptions=True)
    assert isinstance(results[0], (asyncio.CancelledError, Failure))
