"""Tasks of the engine, and who has cancelled them."""

from __future__ import annotations

import asyncio

import pytest

from aiosfstream import _tasks as tasks
from tests.support import soon


async def test_a_task_knows_who_has_cancelled_it() -> None:
    seen: list[bool] = []

    async def work() -> None:
        seen.append(tasks.is_cancelled())
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        try:
            await cancelled
        except asyncio.CancelledError:
            # Somebody else's.
            seen.append(tasks.is_cancelled())
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(tasks.is_cancelled())
            task = asyncio.current_task()
            assert task is not None
            tasks.take_back(task)
            seen.append(tasks.is_cancelled())

    task = tasks.start(work(), "a name")
    assert task.get_name() == "a name"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await soon(task)
    assert seen == [False, False, True, False]


async def test_clean_up_is_not_interrupted() -> None:
    steps: list[str] = []
    going_on = asyncio.Event()

    async def clean_up() -> None:
        steps.append("begun")
        await going_on.wait()
        steps.append("done")

    task = asyncio.create_task(tasks.uninterrupted(clean_up()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel("why")
        await asyncio.sleep(0)
    assert steps == ["begun"]
    going_on.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert steps == ["begun", "done"]
    # The one that came, and no new one.
    assert caught.value.args in (("why",), ())


async def test_the_first_cancellation_goes_on() -> None:
    going_on = asyncio.Event()
    caught: list[BaseException] = []

    async def clean_up() -> None:
        await going_on.wait()

    async def work() -> None:
        try:
            await tasks.uninterrupted(clean_up())
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel("first")
    await asyncio.sleep(0)
    task.cancel("second")
    await asyncio.sleep(0)
    going_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [error.args for error in caught] == [("first",)]


async def test_what_clean_up_raises_is_given() -> None:
    error = ZeroDivisionError()

    async def fail() -> None:
        raise error

    async def end() -> None:
        raise asyncio.CancelledError

    async def succeed() -> None:
        await asyncio.sleep(0)

    assert await tasks.uninterrupted(fail()) is error
    assert await tasks.uninterrupted(end()) is None
    assert await tasks.uninterrupted(succeed()) is None
