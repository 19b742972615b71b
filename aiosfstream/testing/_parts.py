"""The parts of a server, and how its methods reach them from any thread."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from ._bayeux import Bayeux
from ._events import EventBus
from ._oauth import OAuth
from ._plan import FaultPlan
from ._ports import Addresses
from ._requests import RequestLog
from ._waiting import Changes

FuncT = TypeVar("FuncT", bound=Callable[..., Any])


class Successor(Protocol):
    """A server that an org has moved to."""

    parts: Parts

    @property
    def instance_url(self) -> str:
        """Where it is."""

    def admit(self, token: str) -> None:
        """Let a token in."""


@dataclass
class Parts:
    """What a server is made of.

    :ivar oauth: who may log in
    :ivar bus: the events
    :ivar bayeux: the sessions
    :ivar addresses: where it listens
    :ivar plan: the faults to come
    :ivar log: the requests so far
    :ivar changes: what waits for something to happen
    :ivar violations: mistakes of clients, in words
    :ivar errors: what failed in the server
    :ivar loop: the event loop that it runs in, while it runs
    :ivar thread: the thread of that loop
    :ivar successor: the server that the org has moved to
    """

    oauth: OAuth
    bus: EventBus
    bayeux: Bayeux
    addresses: Addresses
    violations: list[str]
    changes: Changes
    plan: FaultPlan = field(default_factory=FaultPlan)
    log: RequestLog = field(default_factory=RequestLog)
    errors: list[BaseException] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None
    thread: int | None = None
    successor: Successor | None = None

    def is_elsewhere(self) -> bool:
        """Tell whether the server runs in another thread than the caller's."""
        return self.loop is not None and self.thread != threading.get_ident()


class Controlled:
    """The base of what steers a server.

    :param parts: the server's parts
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts


class Done:
    """What has happened already; awaiting it lets clients in the same event loop notice."""

    def __await__(self) -> Generator[Any, None, None]:
        """Let others run."""
        # The end of a connection goes through both transports, and TLS between them.
        for _ in range(10):
            yield from asyncio.sleep(0).__await__()


def control(method: FuncT) -> FuncT:
    """Let a method be called from any thread: it is run in the server's own."""

    @functools.wraps(method)
    def wrapper(self: Controlled, *args: Any, **kwargs: Any) -> Any:
        loop = self.parts.loop
        if loop is None or not self.parts.is_elsewhere():
            return method(self, *args, **kwargs)

        async def call() -> Any:
            return method(self, *args, **kwargs)

        return asyncio.run_coroutine_threadsafe(call(), loop).result(10)

    return cast(FuncT, wrapper)
