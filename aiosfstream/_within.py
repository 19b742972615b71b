"""A time limit for the application's own coroutines, which mostly do not wait at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeVar, cast

from ._tasks import timeout

ResultT = TypeVar("ResultT")


def _as_it_is(error: Exception) -> Exception:
    return error


async def within(
    seconds: float | None,
    awaitable: Awaitable[ResultT],
    explain: Callable[[Exception], Exception] = _as_it_is,
) -> ResultT:
    """Await something for a limited time.

    A timer is set only once it waits. Setting one for each message takes a quarter of the time that a
    message costs with a storage of the application's own.

    :param seconds: the limit; None: no limit
    :param awaitable: what is awaited
    :param explain: makes the error to raise of what it raises, or of a time-out
    :return: what it gives
    :raises asyncio.TimeoutError: if it takes longer; it is cancelled then
    """
    try:
        steps = awaitable.__await__()
        try:
            waits_for = next(steps)
        except StopIteration as end:
            return cast(ResultT, end.value)
        async with timeout(seconds):
            return cast(ResultT, await _Rest(waits_for, steps))
    except Exception as error:
        explained = explain(error)
        if explained is error:
            raise
        raise explained from error


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
