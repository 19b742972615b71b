"""The queue between fetching and receiving."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._cometd.mailbox import Mailbox, Signal, Turn
from tests.support import soon, until


def message(number: int) -> dict[str, Any]:
    """Make a message."""
    return {"number": number}


async def test_order_errors_and_counting() -> None:
    mailbox = Mailbox(10)
    assert mailbox.take() is None
    mailbox.extend([message(1), message(2)])
    mailbox.fail(ValueError("between"))
    mailbox.extend([message(3)])
    assert (len(mailbox), mailbox.qsize(), mailbox.has_errors) == (3, 3, True)
    assert mailbox.take() == message(1)
    mailbox.put_back(message(1))
    assert [mailbox.take(), mailbox.take()] == [message(1), message(2)]
    with pytest.raises(ValueError, match="between"):
        mailbox.take()
    assert (len(mailbox), mailbox.has_errors) == (1, False)
    assert mailbox.take() == message(3)


@pytest.mark.parametrize(
    ("limit", "full"), [(2, [False, False, True]), (0, [False] * 3), (-1, [False] * 3)]
)
def test_when_it_is_full(limit: int, full: list[bool]) -> None:
    mailbox = Mailbox(limit)
    found = []
    for number in range(3):
        found.append(mailbox.full)
        mailbox.extend([message(number)])
    assert found == full


async def test_waiting_for_room() -> None:
    mailbox = Mailbox(2)
    await soon(mailbox.room())
    mailbox.extend([message(number) for number in range(4)])
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    for _ in range(2):
        mailbox.take()
        mailbox.make_room()
    assert not waiting.done()
    mailbox.take()
    await soon(waiting)
    assert mailbox.suspended is None
    mailbox.make_room()


async def test_room_is_not_there_any_more_when_the_waiter_looks() -> None:
    mailbox = Mailbox(1)
    mailbox.extend([message(1)])
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    mailbox.take()
    mailbox.extend([message(2)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.take()
    await soon(waiting)


async def test_an_error_that_waits_takes_no_room() -> None:
    mailbox = Mailbox(1)
    mailbox.extend([message(1)])
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    mailbox.fail(ValueError())
    mailbox.take()
    await soon(waiting)


async def test_closing() -> None:
    mailbox = Mailbox(1)
    mailbox.extend([message(1), message(2)])
    mailbox.fail(ValueError())
    room = asyncio.create_task(mailbox.room())
    change = asyncio.create_task(mailbox.changed())
    await until(lambda: mailbox.suspended is not None)
    mailbox.close()
    await soon(room)
    await soon(change)
    assert mailbox.closed
    assert len(mailbox) == 2
    assert not mailbox.has_errors
    mailbox.close()
    mailbox.discard()
    assert mailbox.take() is None


async def test_waiting_for_a_change() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.changed()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    signal.wake()
    await soon(asyncio.gather(waiting[0], waiting[2]))
    assert waiting[1].cancelled()
    await soon(signal.changed(0.001))
    assert signal._waiters == []


async def test_a_timer_does_not_outlive_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def note(*arguments: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*arguments))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", note)
    signal = Signal()
    waiting = asyncio.create_task(signal.changed(1000.0))
    await asyncio.sleep(0)
    signal.wake()
    await waiting
    [timer] = timers
    assert timer.cancelled()


async def test_waking_and_time_at_once() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.changed(0.0))
    await asyncio.sleep(0)
    signal.wake()
    await soon(waiting)
    gone = asyncio.create_task(signal.changed())
    await asyncio.sleep(0)
    gone.cancel()
    signal.wake()
    with pytest.raises(asyncio.CancelledError):
        await gone


@given(
    st.integers(-1, 5),
    st.lists(
        st.sampled_from(["extend", "fail", "take", "put back", "close", "discard"]), max_size=40
    ),
)
def test_it_is_a_list_that_counts_messages(limit: int, operations: list[str]) -> None:
    mailbox, model = Mailbox(limit), list[Any]()
    closed = False
    for number, operation in enumerate(operations, 1):
        if operation == "extend":
            mailbox.extend([message(number), message(-number)])
            model += [message(number), message(-number)]
        elif operation == "fail":
            mailbox.fail(ValueError(number))
            model.append(number)
        elif operation == "put back":
            mailbox.put_back(message(number))
            model.insert(0, message(number))
        elif operation == "close":
            mailbox.close()
            model, closed = [one for one in model if isinstance(one, dict)], True
        elif operation == "discard":
            mailbox.discard()
            model.clear()
        elif model and not isinstance(model[0], dict):
            with pytest.raises(ValueError, match=f"^{model.pop(0)}$"):
                mailbox.take()
        else:
            assert mailbox.take() == (model.pop(0) if model else None)
        messages = sum(isinstance(one, dict) for one in model)
        assert len(mailbox) == mailbox.qsize() == messages
        assert mailbox.has_errors is (messages < len(model))
        assert mailbox.full is (0 < limit <= messages)
        assert mailbox.closed is closed


async def test_who_waits_for_room_may_give_up() -> None:
    mailbox = Mailbox(1)
    mailbox.extend([message(1)])
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert mailbox.suspended is None
    again = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    mailbox.take()
    # Nobody is harmed by being told twice.
    mailbox.make_room()
    await soon(again)


@pytest.mark.parametrize("change", ["extend", "fail", "put_back", "close"])
async def test_each_change_wakes_the_reader(change: str) -> None:
    mailbox = Mailbox(1)
    waiting = asyncio.create_task(mailbox.changed())
    await asyncio.sleep(0)
    {
        "extend": lambda: mailbox.extend([message(1)]),
        "fail": lambda: mailbox.fail(ValueError()),
        "put_back": lambda: mailbox.put_back(message(1)),
        "close": mailbox.close,
    }[change]()
    await soon(waiting)


async def test_a_turn_is_passed_on_however_who_waits_is_cancelled() -> None:
    turn = Turn()
    await turn.take()
    waiting = [asyncio.create_task(turn.take()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    turn.release()
    # The turn is with the second, who is cancelled before it can take it.
    waiting[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [task.cancelled() for task in waiting[:2]] == [True, True]
    await soon(waiting[2])
    assert turn.taken
    waiting[3].cancel()
    turn.release()
    await asyncio.sleep(0)
    turn.release()
    assert not turn.taken


async def test_a_turn_is_given_in_the_order_of_asking() -> None:
    turn, order = Turn(), list[int]()

    async def take(number: int) -> None:
        async with turn:
            order.append(number)
            await asyncio.sleep(0)

    await soon(asyncio.gather(*(take(number) for number in range(5))))
    assert order == [0, 1, 2, 3, 4]
    assert not turn.taken


async def test_a_turn_ends_with_a_block_that_fails() -> None:
    turn = Turn()
    with pytest.raises(ZeroDivisionError):
        async with turn:
            assert turn.taken
            raise ZeroDivisionError
    assert not turn.taken


def test_a_loop_that_has_ended_takes_no_turn_along() -> None:
    turn = Turn()

    async def take_and_wait() -> asyncio.Task[None]:
        await turn.take()
        waiting = asyncio.create_task(turn.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        return waiting

    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(take_and_wait())
    loop.close()

    async def take_and_pass_on() -> None:
        await soon(turn.take())
        assert turn.taken
        turn.release()
        assert not turn.taken

    asyncio.run(take_and_pass_on())
    # Nobody can end it any more, and what is left of it harms nobody.
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = waiting.get_coro()
    assert coroutine is not None
    coroutine.close()
    assert not turn.taken


def test_a_turn_that_was_passed_on_to_another_loop_belongs_to_that() -> None:
    turn = Turn()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(turn.take())
    waiting = second.create_task(turn.take())
    second.run_until_complete(asyncio.sleep(0))
    turn.release()
    second.run_until_complete(waiting)
    first.close()
    another = second.create_task(turn.take())
    second.run_until_complete(asyncio.sleep(0))
    assert not another.done()
    turn.release()
    second.run_until_complete(another)
    second.close()


def test_a_signal_wakes_nobody_whose_loop_has_ended() -> None:
    signal = Signal()

    async def wait() -> asyncio.Task[None]:
        waiting = asyncio.create_task(signal.changed())
        await asyncio.sleep(0)
        return waiting

    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(wait())
    loop.close()
    signal.wake()
    assert signal._waiters == []
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = waiting.get_coro()
    assert coroutine is not None
    coroutine.close()


async def test_whether_room_was_waited_for() -> None:
    mailbox = Mailbox(2)
    mailbox.extend([message(1), message(2), message(3)])
    mailbox.make_room()
    assert not mailbox.has_room_again
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    mailbox.items.popleft()
    mailbox.make_room()
    assert not mailbox.has_room_again
    mailbox.items.popleft()
    mailbox.make_room()
    assert mailbox.has_room_again
    await soon(waiting)
