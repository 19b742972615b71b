"""A time limit for the application's own coroutines, which mostly do not wait at all."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from ._tasks import timeout

ResultT = TypeVar("ResultT")


class within(Generic[ResultT]):  # noqa: N801 - read as a word: await within(10, storage.flush())
    """Awaits something for a limited time.

    A timer is set only once it waits. Setting one for each message takes a quarter of the time that a
    message costs with a storage of the application's own.

    :param seconds: the limit; None: no limit
    :param awaitable: what is awaited
    :raises asyncio.TimeoutError: if it takes longer; it is cancelled then
    """

    def __init__(self, seconds: float | None, awaitable: Awaitable[ResultT]) -> None:
        self._seconds = seconds
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, ResultT]:
        """Await it."""
        steps = self._awaitable.__await__()
        try:
            waits_for = next(steps)
        except StopIteration as end:
            result: ResultT = end.value
            return result
        return (yield from self._against_time(_Rest(waits_for, steps)).__await__())

    async def _against_time(self, rest: _Rest) -> ResultT:
        async with timeout(self._seconds):
            result: ResultT = await rest
            return result


class _Rest:
    """What is left of something that was awaited up to where it first waits.

    :param waits_for: what it waits for
    :param steps: its iterator
    """

    def __init__(self, waits_for: Any, steps: Generator[Any, Any, Any]) -> None:
        self._waits_for = waits_for
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        """Go on awaiting it."""
        waits_for = self._waits_for
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001 - passed on to what waits
                go_on: Any = partial(self._steps.throw, error)
            else:
                go_on = partial(self._steps.send, answer)
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
