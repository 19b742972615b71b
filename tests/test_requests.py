"""Requests beside a held connect: one at a time, and never beside a handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from aiohttp import web

from aiosfstream._cometd import requests as module
from aiosfstream._cometd.states import State
from aiosfstream.exceptions import (
    AuthenticationError,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from tests.bench import Bench, bench
from tests.support import soon, until
from tests.table import BUSY, DENIED, INVALID_ID, TOKEN, UNKNOWN, A, B, Message, event

OK: Message = {"successful": True}


def refused(fields: Message) -> list[Message]:
    """Make a refusal."""
    return [{"successful": False, **fields}]


def start(made: Bench, request: Coroutine[Any, Any, Message]) -> asyncio.Task[Message]:
    """Make a request in a task."""
    return asyncio.create_task(request)


class Gate:
    """Holds what the endpoint answers until it is opened."""

    def __init__(self, made: Bench) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        made.behaviour = self._behave

    async def _behave(self, message: Message) -> Any:
        return await asyncio.shield(self.answer)

    def open(self, *messages: Message) -> None:
        """Let the answer go."""
        self.answer.set_result(list(messages) or [dict(OK)])


# What is done


async def test_each_kind_of_request() -> None:
    async with bench() as made:
        reply = await soon(made.requests.subscribe(A, 7))
        assert reply["subscription"] == A
        assert set(made.session.channels.subscriptions) == {A}
        await soon(made.requests.publish("/x", {"a": 1}))
        await soon(made.requests.unsubscribe(A))
        assert made.session.channels.subscriptions == {}
        assert made.channels_received() == ["/meta/subscribe", "/x", "/meta/unsubscribe"]
        assert made.received[0]["ext"]["replay"] == {A: 7}
        assert made.received[1]["data"] == {"a": 1}
        assert not made.requests.tasks
        assert not made.requests.turn.taken
        assert made.changes >= 6


@pytest.mark.parametrize("fields", [DENIED, BUSY, INVALID_ID])
async def test_a_refusal_is_the_callers(fields: Message) -> None:
    async with bench() as made:
        made.behaviour = lambda message: refused(fields)
        for request in (
            made.requests.subscribe(A, None),
            made.requests.unsubscribe(A),
            made.requests.publish("/x", {}),
        ):
            reply = await soon(request)
            assert reply["successful"] is False
        assert len(made.received) == 3
        assert made.session.channels.subscriptions == {}
        assert made.session.state is State.CONNECTED


async def test_a_refused_id_is_replaced_by_the_fallback_at_once() -> None:
    async with bench(fallback=-2) as made:
        made.behaviour = lambda message: (
            [dict(OK)] if message["ext"]["replay"][A] == -2 else refused(INVALID_ID)
        )
        reply = await soon(made.requests.subscribe(A, 7))
        assert reply["successful"]
        assert [one["ext"]["replay"] for one in made.received] == [{A: 7}, {A: -2}]
        made.behaviour = lambda message: refused(INVALID_ID)
        reply = await soon(made.requests.subscribe(B, 7))
        assert reply["successful"] is False
        assert len(made.received) == 4


@pytest.mark.parametrize("fields", [UNKNOWN, TOKEN])
async def test_a_session_that_is_gone_is_waited_for_once(fields: Message) -> None:
    async with bench() as made:
        for again in (False, True):
            made.received.clear()
            left = [2 if again else 1]

            def behave(message: Message, left: list[int] = left) -> Any:
                left[0] -= 1
                return refused(fields) if left[0] >= 0 else [dict(OK)]

            made.behaviour = behave
            asking = start(made, made.requests.subscribe(A, 7))
            for _ in range(1 + again):
                await until(lambda: not made.session.established)
                if made.session.state is State.NO_TOKEN:
                    made.table.recovery.authenticated(0.0)
                await made.renewed()
            if again and fields is TOKEN:
                with pytest.raises(AuthenticationError, match="also after logging in") as caught:
                    await soon(asking)
                assert "401" in str(caught.value.__cause__)
            else:
                assert (await soon(asking))["successful"] is not again
            assert len(made.received) == 2


async def test_an_unsubscribe_that_finds_its_session_gone() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.behaviour = lambda message: refused(UNKNOWN) if len(made.received) == 1 else [dict(OK)]
        asking = start(made, made.requests.unsubscribe(A))
        await until(lambda: not made.session.established)
        await made.renewed()
        assert (await soon(asking))["successful"]
        first, second = made.received
        assert first["id"] != second["id"]
        assert made.session.channels.subscriptions == {}


async def test_a_lost_answer_is_told_and_not_asked_for_again() -> None:
    async with bench() as made:
        made.behaviour = lambda message: web.Response(status=503, text="x")
        for request in (
            made.requests.subscribe(A, None),
            made.requests.unsubscribe(A),
            made.requests.publish("/x", {}),
        ):
            with pytest.raises(TransportError, match="503"):
                await soon(request)
            assert made.session.state is State.NO_SESSION
            await made.renewed()
        assert len(made.received) == 3
        assert made.session.channels.subscriptions == {}


async def test_a_page_of_401_twice() -> None:
    async with bench() as made:
        made.behaviour = lambda message: web.Response(status=401, text="expired")
        asking = start(made, made.requests.publish("/x", {}))
        await until(lambda: made.session.state is State.NO_TOKEN)
        made.table.recovery.authenticated(0.0)
        await made.renewed()
        with pytest.raises(AuthenticationError) as caught:
            await soon(asking)
        assert isinstance(caught.value.__cause__, TransportError)
        assert caught.value.status == 401


async def test_a_session_that_is_lost_while_the_fallback_is_chosen() -> None:
    async with bench(fallback=-2) as made:
        gate = Gate(made)
        asking = start(made, made.requests.subscribe(A, 7))
        await until(lambda: made.received)
        made.table.lose_session()
        gate.open(*refused(INVALID_ID))
        made.behaviour = lambda message: [dict(OK)]
        await made.renewed()
        assert (await soon(asking))["successful"]
        assert set(made.session.channels.subscriptions) == {A}
        assert made.received[-1]["clientId"] == "client"


async def test_a_storage_that_fails_leaves_no_subscription_behind() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.table.connect(event(A, 5))
        made.storage.out = ZeroDivisionError()
        with pytest.raises(Exception, match="ZeroDivisionError"):
            await soon(made.requests.subscribe(A, None))
        assert made.table.connect(event(A, 5)) == []
        made.storage.out = None
        await soon(made.requests.publish("/x", {}))


# Waiting


async def test_requests_are_made_one_after_the_other() -> None:
    async with bench() as made:
        gate = Gate(made)
        asking = [start(made, made.requests.publish(f"/{number}", {})) for number in range(3)]
        await until(lambda: made.received)
        await asyncio.sleep(0.01)
        assert made.channels_received() == ["/0"]
        assert made.requests.under_way
        gate.open()
        await soon(asyncio.gather(*asking))
        assert made.channels_received() == ["/0", "/1", "/2"]
        assert not made.requests.under_way


async def test_a_request_waits_for_a_renewal() -> None:
    async with bench() as made:
        made.table.lose_session()
        asking = start(made, made.requests.publish("/x", {}))
        await asyncio.sleep(0)
        assert not made.requests.under_way
        await asyncio.sleep(0.01)
        assert made.received == []
        await made.renewed()
        assert (await soon(asking))["successful"]


async def test_a_session_that_is_lost_while_a_request_waits_for_its_turn() -> None:
    async with bench() as made:
        await made.requests.turn.take()
        asking = start(made, made.requests.publish("/x", {}))
        await asyncio.sleep(0.01)
        made.table.lose_session()
        made.requests.turn.release()
        await asyncio.sleep(0.01)
        assert made.received == []
        assert not made.requests.turn.taken
        await made.renewed()
        assert (await soon(asking))["successful"]


async def test_a_request_waits_no_longer_than_connection_timeout() -> None:
    async with bench(connection_timeout=0.05) as made:
        made.table.lose_session()
        with pytest.raises(TransportTimeoutError, match="was not sent.*Unknown client") as caught:
            await soon(made.requests.publish("/x", {}))
        assert caught.value.__cause__ is made.table.recovery.last_error
        # It is one limit, however often it looks.
        asking = start(made, made.requests.publish("/x", {}))
        for _ in range(30):
            await asyncio.sleep(0.005)
            made.signal.wake()
        assert asking.done()
        assert isinstance(asking.exception(), TransportTimeoutError)


@pytest.mark.parametrize("timeout", [None, 0])
async def test_a_request_may_wait_for_ever(timeout: float | None) -> None:
    async with bench(connection_timeout=timeout) as made:
        made.table.lose_session()
        asking = start(made, made.requests.publish("/x", {}))
        await asyncio.sleep(0.05)
        assert not asking.done()
        await made.renewed()
        await soon(asking)


async def test_a_session_that_waits_for_a_person() -> None:
    async with bench() as made:
        refusal = AuthenticationError("refused")
        made.table.connect(**TOKEN)
        made.table.recovery.authentication_failed(refusal, 0.0)
        with pytest.raises(AuthenticationError, match="refused") as caught:
            await soon(made.requests.publish("/x", {}))
        # Each caller has an error of its own, with a traceback of its own.
        assert caught.value is not made.table.recovery.last_error
        made.table.recovery.stop(TransportError("the end"))
        with pytest.raises(TransportError, match="no connection.*the end") as lost:
            await soon(made.requests.publish("/x", {}))
        assert lost.value.__cause__ is made.table.recovery.stop_error


# Cancelling and closing


async def test_a_caller_that_is_cancelled_does_not_stop_the_request() -> None:
    async with bench() as made:
        gate = Gate(made)
        asking = start(made, made.requests.subscribe(A, None))
        await until(lambda: made.received)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert made.session.channels.subscriptions == {}
        gate.open()
        await until(lambda: made.session.channels.subscriptions)
        await until(lambda: not made.requests.tasks)


async def test_what_somebody_else_cancels_is_told() -> None:
    async with bench() as made:
        Gate(made)
        asking = start(made, made.requests.publish("/x", {}))
        await until(lambda: made.received)
        [task] = made.requests.tasks
        task.cancel()
        with pytest.raises(TransportError, match="was cancelled"):
            await soon(asking)
        assert not made.requests.turn.taken


async def test_closing_ends_requests() -> None:
    async with bench() as made:
        Gate(made)
        asking = start(made, made.requests.publish("/x", {}))
        await until(lambda: made.received)
        made.requests.closing = True
        with pytest.raises(TransportInvalidOperation, match="was not sent"):
            await soon(made.requests.publish("/y", {}))
        [task] = made.requests.tasks
        task.cancel()
        with pytest.raises(TransportInvalidOperation, match="was closed before"):
            await soon(asking)
        assert len(made.received) == 1


async def test_closing_ends_those_that_wait() -> None:
    async with bench() as made:
        made.table.lose_session()
        asking = start(made, made.requests.publish("/x", {}))
        await asyncio.sleep(0)
        made.requests.closing = True
        made.signal.wake()
        with pytest.raises(TransportInvalidOperation, match="was not sent"):
            await soon(asking)


# Goodbye


async def test_goodbye_to_sessions_that_were_left() -> None:
    async with bench() as made:
        made.table.recovery.left_behind = ["old", "older"]
        assert made.requests.owes_goodbyes
        await soon(made.requests.say_goodbye("present"))
        assert [one["clientId"] for one in made.received] == ["old", "older", "present"]
        assert set(made.channels_received()) == {"/meta/disconnect"}
        assert not made.requests.owes_goodbyes
        assert made.table.recovery.left_behind == []
        await soon(made.requests.say_goodbye())
        assert len(made.received) == 3


async def test_a_goodbye_is_said_until_it_is_answered() -> None:
    async with bench() as made:
        made.table.recovery.left_behind = ["old"]
        made.behaviour = lambda message: web.Response(status=503, text="x")
        for _ in range(3):
            await soon(made.requests.say_goodbye())
            assert made.requests.owes_goodbyes
        # A refusal is an answer: it is not known there.
        made.behaviour = lambda message: refused(UNKNOWN)
        await soon(made.requests.say_goodbye())
        assert not made.requests.owes_goodbyes
        assert len(made.received) == 4
        # What becomes of it says nothing of the present session.
        assert made.session.state is State.CONNECTED


async def test_a_goodbye_that_is_not_answered_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GOODBYE_PATIENCE", 0.03)
    async with bench() as made:
        made.table.recovery.left_behind = ["old"]
        made.behaviour = lambda message: web.Response(status=503, text="x")
        await soon(made.requests.say_goodbye())
        assert made.requests.owes_goodbyes
        await asyncio.sleep(0.04)
        await soon(made.requests.say_goodbye())
        assert not made.requests.owes_goodbyes


async def test_a_goodbye_takes_no_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GOODBYE_TIMEOUT", 0.05)
    async with bench() as made:
        Gate(made)
        made.table.recovery.left_behind = ["old"]
        await soon(made.requests.say_goodbye(), 1.0)
        assert made.requests.owes_goodbyes
        await until(lambda: not made.requests.tasks)


async def test_a_goodbye_that_is_cancelled_leaves_no_task() -> None:
    async with bench() as made:
        Gate(made)
        saying = asyncio.create_task(made.requests.say_goodbye("old"))
        await until(lambda: made.received)
        saying.cancel()
        await asyncio.wait([saying])
        assert saying.cancelled()
        await until(lambda: not made.requests.tasks)
        assert made.requests.owes_goodbyes


async def test_a_goodbye_with_a_mistake_in_an_extension() -> None:
    async with bench() as made:
        made.storage.out = ZeroDivisionError()
        await soon(made.requests.say_goodbye("old"))
        assert made.requests.owes_goodbyes
