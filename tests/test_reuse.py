"""Connections that were kept and are dead, as behind proxies that close them without a word."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp
import pytest

from aiosfstream import ReplayOption
from aiosfstream._http import reuse
from aiosfstream._http.deadline import limits_for
from aiosfstream._http.post import Answer, Failure, Trouble, post
from aiosfstream.testing import StreamingServer
from tests.support import EVENT, TOPIC, client_for, held, receive, soon

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


class Peer:
    """A server that answers some requests of each connection, and then lets it die.

    :ivar answers: how many requests of a connection are answered
    :ivar dying: what comes in place of an answer after that
    :ivar requests: the heads of all requests, in order
    :ivar connections: how many connections there were
    """

    def __init__(self) -> None:
        self.answers = 1
        self.dying = b""
        self.reset = False
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.connections += 1
        try:
            for number in range(self.answers + 1):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                self.requests.append(head)
                writer.write(OK if number < self.answers else self.dying)
                await writer.drain()
            if self.reset:
                linger = struct.pack("ii", 1, 0)
                peer = writer.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    listener = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    yield peer
    listener.close()
    await listener.wait_closed()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def send(
    session: aiohttp.ClientSession, peer: Peer, *, repeatable: bool = False
) -> Answer | Failure:
    return await post(session, peer.url, b"[]", {}, limits=limits_for(5), repeatable=repeatable)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_connection_that_is_dead(
    session: aiohttp.ClientSession, peer: Peer, reset: bool
) -> None:
    peer.reset = reset
    assert isinstance(await send(session, peer), Answer)
    assert isinstance(await send(session, peer, repeatable=True), Answer)
    # The dead one got the request, and so did a new one.
    assert (len(peer.requests), peer.connections) == (3, 2)


@pytest.mark.parametrize("reset", [False, True])
async def test_what_does_harm_is_not_repeated(
    session: aiohttp.ClientSession, peer: Peer, reset: bool
) -> None:
    peer.reset = reset
    assert isinstance(await send(session, peer), Answer)
    failure = await send(session, peer)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    assert len(peer.requests) == 2


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_new_connection_that_dies_is_a_failure(
    session: aiohttp.ClientSession, peer: Peer, repeatable: bool
) -> None:
    peer.answers = 0
    failure = await send(session, peer, repeatable=repeatable)
    assert isinstance(failure, Failure)
    assert failure.trouble is Trouble.LOST
    assert "the connection failed" in str(failure.error)
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "dying", [b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\n\r\n[", b"x\r\n\r\n"]
)
async def test_one_that_has_begun_to_answer_was_no_dead_one(
    session: aiohttp.ClientSession, peer: Peer, dying: bytes
) -> None:
    await send(session, peer)
    peer.dying = dying
    answer = await send(session, peer, repeatable=True)
    assert len(peer.requests) == 2
    assert isinstance(answer, Failure) or answer.body == b"["


async def test_connections_are_not_kept_for_a_while_after_that(
    session: aiohttp.ClientSession, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(session, peer)
    assert isinstance(await send(session, peer), Failure)
    for _ in range(3):
        # Not one of these could be repeated.
        assert isinstance(await send(session, peer), Answer)
        assert b"connection: close" in peer.requests[-1].lower()
    assert len(peer.requests) == 5
    loop = asyncio.get_running_loop()
    later = loop.time() + reuse.CAUTION
    monkeypatch.setattr(loop, "time", lambda: later)
    assert reuse.keeps_connections(session)


async def test_many_dead_ones_are_used_up(session: aiohttp.ClientSession, peer: Peer) -> None:
    await asyncio.gather(*(send(session, peer) for _ in range(reuse.ATTEMPTS - 1)))
    assert isinstance(await send(session, peer, repeatable=True), Answer)


async def test_nothing_is_remembered_of_what_is_gone(peer: Peer) -> None:
    async with aiohttp.ClientSession() as session:
        await send(session, peer)
        await send(session, peer)
    before = len(reuse._cautious), len(reuse._used)
    assert before[0] >= 1
    del session
    await asyncio.sleep(0.01)
    gc.collect()
    assert len(reuse._cautious) < before[0]
    assert len(reuse._used) <= before[1]


class Line:
    """A connection through a proxy, which dies when it has been idle for so long."""

    def __init__(self, idle: float) -> None:
        self.dead = asyncio.Event()
        self._idle = idle
        self._alarm: asyncio.TimerHandle | None = None

    async def answer(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what the server sends; after that the line is idle."""
        while data := await upstream.read(65536):
            writer.write(data)
            self._stop()
            self._alarm = asyncio.get_running_loop().call_later(self._idle, self.dead.set)

    async def ask(self, reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass on what the client sends, as long as the line lives."""
        while (data := await reader.read(65536)) and not self.dead.is_set():
            self._stop()
            sink.write(data)

    def _stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()


class ClosingProxy:
    """Passes on what comes, and closes connections that are idle.

    :param idle: seconds between an answer and the next request
    :param silent: whether the client learns that only when it sends the next request
    :ivar closed: how many it has closed
    """

    def __init__(self, idle: float, silent: bool) -> None:
        self.idle, self.silent = idle, silent
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection from a client, whose first request says where to."""
        with suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            host, port = head.split(b"/")[2].split(b":")
            upstream, sink = await asyncio.open_connection(host.decode(), int(port))
            sink.write(head)
            line = Line(self.idle)
            parts = (line.answer(upstream, writer), line.ask(reader, sink), self._close(line))
            tasks = [asyncio.create_task(part) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            sink.close()
        writer.close()

    async def _close(self, line: Line) -> None:
        await line.dead.wait()
        self.closed += 1
        if self.silent:
            await asyncio.sleep(60)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("idle", [0.0, 0.001, 0.02])
async def test_behind_a_proxy_that_closes_what_is_idle(idle: float, silent: bool) -> None:
    proxy = ClosingProxy(idle, silent)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    factory = partial(aiohttp.ClientSession, proxy=url)
    async with StreamingServer() as server:
        wanted: list[Any] = []
        for _ in range(15):
            async with client_for(
                server, session_factory=factory, replay=ReplayOption.ALL_EVENTS
            ) as client:
                await soon(client.subscribe(EVENT))
                assert await receive(client, len(wanted)) == wanted
                for _ in range(2):
                    wanted.append(server.publish(EVENT))
                    assert await receive(client) == wanted[-1:]
                    await asyncio.sleep(2 * idle)
                # The connect is held, so this needs another connection, which is idle after that.
                await held(server)
                await soon(client.subscribe(TOPIC))
                await asyncio.sleep(2 * idle)
                await soon(client.unsubscribe(TOPIC))
    assert proxy.closed
    listener.close()
    await listener.wait_closed()
