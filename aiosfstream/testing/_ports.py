"""The ports that a server listens at, which can refuse connections for a while."""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

ResultT = TypeVar("ResultT")

BACKLOG: Final = 1024
#: Switched on, with no time: closing sends a reset.
RESET: Final = struct.pack("ii", 1, 0)


@dataclass
class _Listening:
    server: asyncio.AbstractServer
    accepting: asyncio.Task[None]


class Ports:
    """Some ports of 127.0.0.1.

    None of its methods waits, so they can be used in the middle of a test.

    :param factory: makes the protocol of a connection
    :param ssl_context: speak TLS with it
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        ssl_context: ssl_module.SSLContext | None,
    ) -> None:
        self._factory = factory
        self._ssl_context = ssl_context
        self._listening: dict[int, _Listening] = {}
        self._reserved: dict[int, socket.socket] = {}

    def open(self, port: int = 0) -> int:
        """Listen at a port.

        :param port: its number; 0: any that is free
        :return: its number
        """
        bound = _bind(port)
        number: int = bound.getsockname()[1]
        self._listen(number, bound)
        return number

    def pause(self) -> None:
        """Refuse connections. The ports stay ours: no other program can take them meanwhile."""
        for port, listening in self._listening.items():
            _stop(listening)
            self._reserved[port] = _bind(port)
        self._listening.clear()

    def resume(self) -> None:
        """Accept connections again, at the same ports."""
        for port, bound in self._reserved.items():
            self._listen(port, bound)
        self._reserved.clear()

    def close(self) -> None:
        """Give up the ports."""
        for listening in self._listening.values():
            _stop(listening)
        for bound in self._reserved.values():
            bound.close()
        self._listening.clear()
        self._reserved.clear()

    def _listen(self, port: int, bound: socket.socket) -> None:
        # From here on the kernel lets clients connect, even if nobody accepts them yet.
        bound.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        creating = loop.create_server(
            self._factory,
            sock=bound,
            ssl=self._ssl_context,
            backlog=BACKLOG,
            start_serving=False,
        )
        server = _at_once(creating)
        self._listening[port] = _Listening(server, loop.create_task(server.start_serving()))


class Addresses:
    """Where a server listens: the port that it was started at, and the org's own once it has moved.

    :param ssl_context: speak TLS with it
    :param port: the port to start at; 0: any that is free
    """

    def __init__(self, ssl_context: ssl_module.SSLContext | None, port: int) -> None:
        self.ssl_context = ssl_context
        self.port = port
        #: Where the org is now; None: at another server.
        self.instance_port: int | None = None
        #: How the places that the org has left answer; None: they do not.
        self.moved_status: int | None = 404
        self.ports: Ports | None = None

    def start(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Listen.

        :param factory: makes the protocol of a connection
        """
        self.ports = Ports(factory, self.ssl_context)
        self.port = self.instance_port = self.ports.open(self.port)

    def move(self, status: int | None) -> None:
        """Listen at one more port, which is the org's from now on."""
        self.moved_status = status
        self.instance_port = self.running.open()

    def leave(self, status: int | None) -> None:
        """Let the org be at another server from now on."""
        self.moved_status = status
        self.instance_port = None

    @property
    def running(self) -> Ports:
        """The ports, once the server has been started."""
        if self.ports is None:
            raise RuntimeError(
                "the StreamingServer is not running: use it inside its 'async with' block"
            )
        return self.ports

    def url(self, port: int) -> str:
        """Give the URL of a port."""
        return f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{port}"


def cut(transport: asyncio.BaseTransport | None, *, reset: bool) -> None:
    """Cut a connection now.

    :param transport: the connection; None: it is cut already
    :param reset: with a TCP reset, instead of closing it
    """
    if transport is None:
        return
    connected = transport.get_extra_info("socket")
    if reset and connected is not None and not transport.is_closing():
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    cast(asyncio.WriteTransport, transport).abort()


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections that were cut a moment ago still count as using the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _stop(listening: _Listening) -> None:
    listening.accepting.cancel()
    listening.server.close()


def _at_once(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that has nothing to wait for: a server on a socket that exists."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result
    coroutine.close()
    raise RuntimeError(
        "this loop's create_server() waits for something: use an event loop of asyncio"
    )
