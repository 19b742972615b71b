"""A time limit for coroutines that mostly do not wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiosfstream._within import within
from tests.support import soon


async def give(value: Any, turns: int = 0) -> Any:
    """Give a value after some turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def wait_for(future: asyncio.Future[Any]) -> Any:
    """Wait for what somebody else gives."""
    return await future


@pytest.mark.parametrize("seconds", [10.0, None])
@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_the_value_is_given(seconds: float | None, turns: int) -> None:
    assert await within(seconds, give("x", turns)) == "x"


async def test_no_timer_is_set_for_what_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[Any] = []
    call_at = loop.call_at

    def note(*arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(arguments)
        return call_at(*arguments, **options)

    monkeypatch.setattr(loop, "call_at", note)
    assert await within(10.0, give("x")) == "x"
    assert timers == []
    assert await within(10.0, give("x", 1)) == "x"
    assert len(timers) == 1


async def test_what_takes_too_long_is_cancelled() -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await soon(within(0.01, wait_for(future)), 5)
    assert future.cancelled()


async def test_without_a_limit_it_may_take_any_time() -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, future.set_result, "x")
    assert await soon(within(None, wait_for(future))) == "x"


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_what_it_raises_is_raised(turns: int) -> None:
    async def fail() -> None:
        await give(None, turns)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(10.0, fail())


@pytest.mark.parametrize("turns", [0, 1])
async def test_an_error_can_be_explained(turns: int) -> None:
    async def fail(error: Exception) -> None:
        await give(None, turns)
        raise error

    def explain(error: Exception) -> Exception:
        return LookupError("explained") if isinstance(error, ZeroDivisionError) else error

    with pytest.raises(LookupError, match="explained") as caught:
        await within(10.0, fail(ZeroDivisionError()), explain)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    other = KeyError("as it is")
    with pytest.raises(KeyError) as unexplained:
        await within(10.0, fail(other), explain)
    assert unexplained.value is other
    assert other.__cause__ is None


async def test_a_time_out_can_be_explained() -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with pytest.raises(LookupError) as caught:
        await soon(within(0.01, wait_for(future), lambda _: LookupError()))
    assert isinstance(caught.value.__cause__, asyncio.TimeoutError)


async def test_what_fails_where_it_waits() -> None:
    async def wait_and_recover(future: asyncio.Future[Any]) -> str:
        try:
            await future
        except ZeroDivisionError:
            await asyncio.sleep(0)
            return "recovered"
        return "well"

    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, ZeroDivisionError())
    assert await within(10.0, wait_and_recover(future)) == "recovered"


async def test_a_cancellation_goes_in_and_comes_out() -> None:
    seen: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(_run(within(10.0, wait())))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert seen == ["cancelled"]


async def _run(awaitable: Any) -> Any:
    return await awaitable


async def test_anything_that_can_be_awaited() -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "x")
    assert await within(10.0, future) == "x"
