"""What the tests of the client share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from aiosfstream import (
    AuthenticatorBase,
    Client,
    PasswordAuthenticator,
    SalesforceStreamingClient,
)
from aiosfstream._cometd.retry import RetryPolicy
from aiosfstream.client import policy_of
from aiosfstream.testing import StreamingServer

ResultT = TypeVar("ResultT")
Message = dict[str, Any]

EVENT = "/event/Low_Ink__e"
TOPIC = "/topic/InvoiceStatementUpdates"
GENERIC = "/u/TestStreaming"
CHANGE = "/data/AccountChangeEvent"

#: Nobody should wait for a real backoff in a test.
FAST = RetryPolicy(
    initial=0.01,
    cap=0.05,
    busy_initial=0.01,
    busy_cap=0.05,
    refused_initial=0.02,
    refused_cap=0.05,
    farewell=0.01,
    settled=0.2,
)
#: Seconds that no test should need.
PATIENCE = 10.0


class FastClient(SalesforceStreamingClient):
    """A client that recovers without long pauses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        policy_of(self).options.retry = FAST


class FastAuthClient(Client):
    """The same for any authenticator."""

    def __init__(self, authenticator: AuthenticatorBase, **options: Any) -> None:
        super().__init__(authenticator, **options)
        policy_of(self).options.retry = FAST


def client_for(server: StreamingServer, **options: Any) -> FastClient:
    """Make a client that logs in at *server*."""
    options.setdefault("request_timeout", 2.0)
    return FastClient(**server.credentials, **options)


def authenticator_for(server: StreamingServer) -> PasswordAuthenticator:
    """Make an authenticator that logs in at *server*."""
    return PasswordAuthenticator(**server.credentials)


def replay_id(message: Message) -> Any:
    """Give the replay id of an event."""
    return message["data"]["event"]["replayId"]


async def receive(client: Client, count: int = 1) -> list[Any]:
    """Receive *count* messages and give their replay ids."""
    return [replay_id(await soon(client.receive())) for _ in range(count)]


async def soon(awaitable: Awaitable[ResultT], timeout: float = PATIENCE) -> ResultT:
    """Await something that should not take long."""
    return await asyncio.wait_for(awaitable, timeout)


async def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Wait until *condition* holds, looking at it at every turn of the event loop."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


async def held(server: StreamingServer) -> None:
    """Wait until a client waits for events."""
    await server.wait_for(lambda server: server.held_connects >= 1, PATIENCE)


class CancelAt:
    """Awaits a coroutine and cancels the task at its *n*-th suspension.

    :param coroutine: what is awaited
    :param number: at which suspension, counted from one
    :param cancel: what cancels it, in place of the task's method
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        number: int,
        cancel: Callable[[], object] | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._number = number
        self._cancel = cancel
        #: Whether it came to that suspension.
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        """Pass everything on, and count."""
        generator = self._coroutine.__await__()
        error: BaseException | None = None
        suspensions = 0
        while True:
            try:
                future = next(generator) if error is None else generator.throw(error)
            except StopIteration as stop:
                return stop.value
            suspensions += 1
            error = None
            if suspensions == self._number:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(self._cancel or task.cancel)
            try:
                yield future
            except BaseException as caught:
                error = caught


async def cancelled_at(coroutine: Coroutine[Any, Any, Any], number: int) -> tuple[bool, Any]:
    """Run a coroutine in a task that is cancelled at its *number*-th suspension.

    :return: whether it came so far, and its result; None if it was cancelled
    """
    canceller = CancelAt(coroutine, number)

    async def run() -> Any:
        return await canceller

    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done(), "a cancelled operation hangs"
    return canceller.reached, None if task.cancelled() else task.result()
