"""One message out, the messages of the answer back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from aiohttp import web

from aiosfstream._cometd import exchange as module
from aiosfstream._cometd.messages import MAX_HOLD
from aiosfstream._http.deadline import limits_for
from aiosfstream._http.failures import Failure, Trouble
from aiosfstream._text import Secret
from aiosfstream.exceptions import AuthenticationError, ReplayError, TransportError
from tests.bench import Bench, bench
from tests.support import soon, until
from tests.table import A, B, Message, event, failure

OK: Message = {"successful": True}


def publish(made: Bench) -> Message:
    """Build a message."""
    return made.session.writer.publish("/service/x", {})


async def test_what_is_sent() -> None:
    async with bench() as made:
        message = publish(made)
        reply, events = await made.exchange.send(message)
        assert made.received == [message]
        assert isinstance(reply, dict)
        assert (reply["id"], reply["successful"], events) == (message["id"], True, 0)
        [headers] = made.headers
        assert headers["Authorization"] == "Bearer token"
        assert made.exchange.authorization == Secret("Bearer token")
        assert headers["Content-Type"] == "application/json;charset=UTF-8"
        assert headers["Accept"] == "application/json"
        # The token's extension is the last out and the first in.
        assert made.order == ["storage out", "auth out", "auth in", "storage in"]
        assert made.session.channels._tickets == []


async def test_events_of_any_answer_are_delivered() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.behaviour = lambda message: [event(A, 1), dict(OK), event(A, 2)]
        _, events = await made.exchange.send(publish(made))
        assert events == 2
        assert made.taken() == [1, 2]


async def test_events_of_a_session_that_is_gone_are_not() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.behaviour = lambda message: [event(A, 1), dict(OK)]
        message = made.session.writer.disconnect("old")
        reply, events = await made.exchange.send(message, stale=True)
        assert isinstance(reply, dict)
        assert (events, made.taken()) == (0, [])


# Before sending


async def test_a_stamp_wins_over_that_of_an_extension() -> None:
    async with bench() as made:
        made.storage.replay = {A: 1, B: 2}
        subscription = made.session.channels.add(A, 7)
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert made.received[0]["ext"]["replay"] == {A: 7, B: 2}
        subscription = made.session.channels.add(A, None)
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert made.received[1]["ext"]["replay"] == {A: 1, B: 2}
        assert subscription.start == 1


async def test_a_storage_that_fails_though_the_id_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as made:
        made.storage.out = ReplayError("locked")
        subscription = made.session.channels.add(A, 7)
        result, _ = await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert isinstance(result, dict)
        assert made.received[0]["ext"]["replay"] == {A: 7}
        assert "locked" in caplog.records[-1].getMessage()
        subscription = made.session.channels.add(A, None)
        with pytest.raises(ReplayError, match="locked"):
            await made.exchange.send(made.session.writer.subscribe(A), subscription)
        with pytest.raises(ReplayError, match="locked"):
            await made.exchange.send(publish(made))
        assert len(made.received) == 1
        assert made.session.channels._tickets == []


async def test_an_extension_with_a_mistake() -> None:
    async with bench() as made:
        made.storage.out = ZeroDivisionError("a mistake")
        for start in (None, 7):
            subscription = made.session.channels.add(A, start)
            with pytest.raises(ReplayError, match=f"{A}.*a mistake") as caught:
                await made.exchange.send(made.session.writer.subscribe(A), subscription)
            assert caught.value.__cause__ is made.storage.out
        with pytest.raises(ZeroDivisionError):
            await made.exchange.send(publish(made))
        made.storage.out = TransportError("of ours")
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert (result.trouble, result.error) == (Trouble.REJECTED, made.storage.out)


async def test_a_token_that_is_not_there() -> None:
    async with bench() as made:
        made.auth.error = AuthenticationError("no token")
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.UNAUTHORIZED
        assert result.error.__cause__ is made.auth.error
        assert "no token" in str(result.error)
        assert made.received == []


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_session_that_is_closed(forgotten: bool) -> None:
    async with bench() as made:
        assert made.exchange.http_session is not None
        await made.exchange.http_session.close()
        if forgotten:
            made.exchange.http_session = None
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.REJECTED
        assert ("open the client again" if forgotten else "by the application") in str(result.error)


async def test_what_cannot_be_serialised() -> None:
    async with bench() as made:
        message = made.session.writer.publish("/x", {"object": object()})
        result, _ = await made.exchange.send(message)
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.REJECTED


async def test_how_long_a_request_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    async def post(*arguments: Any, **options: Any) -> Failure:
        given.append(options)
        return failure(Trouble.LOST)

    monkeypatch.setattr(module, "post", post)
    async with bench() as made:
        writer = made.session.writer
        for message, hold in (
            (writer.connect(None), 110.0),
            (writer.connect(None), 9999.0),
            (writer.handshake([]), 0.0),
            (writer.subscribe(A), 0.0),
            (writer.unsubscribe(A), 0.0),
            (writer.disconnect("x"), 0.0),
            (writer.publish("/x", {}), 0.0),
        ):
            await made.exchange.send(message, hold=hold)
        holds = [110.0, MAX_HOLD, *[0.0] * 5]
        assert [one["limits"] for one in given] == [limits_for(2.0, hold) for hold in holds]
        # What may be repeated: nothing whose answer may have had events in it, or that is done twice.
        repeatable = [False, False, True, False, True, True, False]
        assert [one["repeatable"] for one in given] == repeatable
        assert all(one["started"] is not None for one in given)
        assert {one["max_size"] for one in given} == {1_000_000}


# Answers that are of no use


def page(status: int) -> web.Response:
    """Make an error page."""
    return web.Response(status=status, text="<html></html>")


@pytest.mark.parametrize(
    ("status", "trouble", "rewinds"),
    [
        (503, Trouble.LOST, True),
        (200, Trouble.LOST, True),
        (429, Trouble.THROTTLED, False),
        (401, Trouble.UNAUTHORIZED, False),
        (404, Trouble.REJECTED, False),
    ],
)
async def test_what_may_have_had_events_in_it_is_gone_back_to(
    status: int, trouble: Trouble, rewinds: bool
) -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.table.connect(event(A, 1))

        def answer(message: Message) -> web.Response:
            made.table.connect(event(A, 2))
            return page(status)

        made.behaviour = answer
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is trouble
        assert made.session.channels.subscriptions[A].resume == (1 if rewinds else 2)
        assert made.session.channels._tickets == []


async def test_an_answer_that_cannot_be_read_is_gone_back_to() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.table.connect(event(A, 1))

        def answer(message: Message) -> web.Response:
            made.table.connect(event(A, 2))
            return web.Response(text='[{"channel": ')

        made.behaviour = answer
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.UNREADABLE
        assert made.session.channels.subscriptions[A].resume == 1


async def test_an_answer_that_an_extension_does_not_take() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.table.connect(event(A, 1))
        made.storage.back = ZeroDivisionError("a mistake")
        made.behaviour = lambda message: [event(A, 2), dict(OK)]
        result, _ = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.LOST
        assert result.error.__cause__ is made.storage.back
        assert "Storage.incoming()" in str(result.error)
        assert made.taken() == []
        assert made.session.channels._tickets == []


async def test_a_request_that_is_cancelled_may_have_had_an_answer() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.table.connect(event(A, 1))
        hang = asyncio.Event()

        async def answer(message: Message) -> list[Message]:
            await hang.wait()
            return [dict(OK)]

        made.behaviour = answer
        sending = asyncio.create_task(made.exchange.send(publish(made)))
        await until(lambda: made.received)
        made.table.connect(event(A, 2))
        sending.cancel()
        await asyncio.wait([sending])
        assert made.session.channels.subscriptions[A].resume == 1
        assert made.session.channels._tickets == []
        hang.set()


async def test_an_answer_without_a_reply() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        made.behaviour = lambda message: [event(A, 1)]
        result, events = await made.exchange.send(publish(made))
        assert isinstance(result, Failure)
        assert result.trouble is Trouble.LOST
        assert "/service/x" in str(result.error)
        assert events == 1
        assert made.taken() == [1]


# Order


class Held:
    """A connect that the endpoint holds.

    :param made: the bench
    """

    def __init__(self, made: Bench) -> None:
        self.made = made
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.started = asyncio.Event()
        self.others: list[Message] = []
        made.behaviour = self._behave
        message = made.session.connect_message()
        self.task = asyncio.create_task(made.exchange.send(message, hold=110.0))

    async def _behave(self, message: Message) -> Any:
        if message["channel"] != "/meta/connect":
            return [*self.others, dict(OK)]
        self.started.set()
        return await self.answer

    async def beside(self, *events: Message) -> None:
        """Have events come with another answer."""
        await soon(self.started.wait())
        self.others = list(events)
        await self.made.exchange.send(publish(self.made))


async def test_events_of_other_answers_wait_for_a_connect_that_is_being_answered() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        held = Held(made)
        await held.beside(event(A, 3), event(A, 4))
        assert made.taken() == []
        held.answer.set_result([event(A, 1), event(A, 2), dict(OK)])
        _, events = await soon(held.task)
        assert events == 2
        made.exchange.release()
        assert made.taken() == [1, 2, 3, 4]


async def test_events_of_other_answers_do_not_wait_for_a_connect_that_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "OVERTAKING", 0.01)
    async with bench() as made:
        made.table.subscribe(A)
        held = Held(made)
        await held.beside(event(A, 1))
        assert made.taken() == []
        await until(lambda: len(made.mailbox))
        assert made.taken() == [1]
        assert not held.task.done()
        held.answer.set_result([dict(OK)])
        await soon(held.task)


async def test_a_connect_whose_answer_has_begun_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "OVERTAKING", 0.01)
    async with bench() as made:
        made.table.subscribe(A)
        held = Held(made)
        await soon(held.started.wait())
        [ticket] = made.session.channels._tickets
        made.exchange._note_answer(ticket)
        await held.beside(event(A, 1))
        await asyncio.sleep(0.05)
        assert made.taken() == []
        held.answer.set_result([dict(OK)])
        await soon(held.task)
        made.exchange.release()
        assert made.taken() == [1]


async def test_what_has_waited_for_a_connect_that_is_lost_comes_again() -> None:
    async with bench() as made:
        made.table.subscribe(A)
        held = Held(made)
        await held.beside(event(A, 3))
        held.answer.set_result(page(503))
        result, _ = await soon(held.task)
        assert isinstance(result, Failure)
        made.session.connect_done(result, made.session.epoch, 0, 1.0, 0.0)
        made.exchange.release()
        assert made.taken() == []
        assert made.session.channels._tickets == []


async def test_a_reply_does_not_wait_for_a_connect() -> None:
    async with bench() as made:
        held = Held(made)
        await held.beside()
        assert made.channels_received() == ["/meta/connect", "/service/x"]
        held.answer.set_result([dict(OK)])
        await soon(held.task)


# Large answers


class Parts:
    """An answer that takes three turns of the event loop, and what happens between them.

    :param made: the bench
    """

    def __init__(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PART", 2)
        made.table.subscribe(A)
        self.made = made
        self.pending: list[int] = []
        self.between: Callable[[], object] = lambda: None
        made.behaviour = lambda message: [*[event(A, number) for number in range(1, 6)], dict(OK)]
        add = made.mailbox.add

        def delivered(messages: Iterable[Message]) -> None:
            add(messages)
            asyncio.get_running_loop().call_soon(self._look)

        monkeypatch.setattr(made.mailbox, "add", delivered)

    def _look(self) -> None:
        self.pending.append(len(self.made.mailbox))
        self.between()


async def test_others_have_their_turn_while_a_large_answer_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as made:
        parts = Parts(made, monkeypatch)
        reply, events = await made.exchange.send(publish(made))
        assert isinstance(reply, dict)
        assert (reply["successful"], events) == (True, 5)
        await until(lambda: len(parts.pending) == 3)
        assert parts.pending == [2, 4, 5]
        assert made.taken() == [1, 2, 3, 4, 5]
        assert made.session.channels._tickets == []


async def test_the_next_request_goes_out_before_several_events_are_read() -> None:
    order: list[str] = []

    async def read() -> None:
        await made.mailbox.changed()
        order.append("read")

    async def write() -> None:
        order.append("sent")

    async with bench() as made:
        made.table.subscribe(A)
        for count in (2, 1):
            made.behaviour = lambda message, count=count: [  # type: ignore[misc]
                *[event(A, 10 * count + number) for number in range(count)],
                dict(OK),
            ]
            reading = asyncio.create_task(read())
            await asyncio.sleep(0)
            await made.exchange.send(publish(made))
            # aiohttp writes a request in a task of its own.
            await asyncio.create_task(write())
            await soon(reading)
    assert order == ["sent", "read", "read", "sent"]


async def test_after_a_loss_it_is_noted_first_that_the_connection_is_back() -> None:
    order: list[str] = []

    async def read() -> None:
        await made.mailbox.changed()
        order.append("read")

    async with bench() as made:
        made.table.subscribe(A)
        made.session.recovery.lost_since = 1.0
        made.behaviour = lambda message: [event(A, 1), dict(OK)]
        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        await made.exchange.send(publish(made))
        order.append("noted")
        await soon(reading)
    assert order == ["noted", "read"]


async def test_what_is_left_of_an_answer_comes_again_if_its_request_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as made:
        parts = Parts(made, monkeypatch)
        made.table.connect(event(A, 0))
        task = asyncio.create_task(made.exchange.send(publish(made)))
        parts.between = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        assert made.taken() == [1, 2]
        assert made.session.channels._tickets == []
        assert made.session.channels.subscriptions[A].resume == 0
        # What comes again, and was delivered, is a duplicate.
        parts.between = lambda: None
        await made.exchange.send(publish(made))
        assert made.taken() == [3, 4, 5]


async def test_what_is_left_of_an_answer_comes_again_if_its_session_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as made:
        parts = Parts(made, monkeypatch)
        made.table.connect(event(A, 0))

        def lose() -> None:
            parts.between = lambda: None
            made.table.session.disturbed(TransportError("lost"), 0.0)
            made.table.handshake()

        parts.between = lose
        _, events = await made.exchange.send(publish(made))
        assert events == 2
        assert made.taken() == [1, 2]
        assert made.session.channels._tickets == []
        assert made.session.channels.subscriptions[A].resume == 0


async def test_events_of_other_answers_wait_for_the_parts_of_a_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PART", 1)
    async with bench() as made:
        made.table.subscribe(A)
        held = Held(made)
        await soon(held.started.wait())
        beside: list[asyncio.Task[Any]] = []
        add = made.mailbox.add

        def delivered(messages: Iterable[Message]) -> None:
            add(messages)
            if not beside:
                late = [event(A, 3), dict(OK, channel="/service/x", id="9")]
                ticket = made.session.send(publish(made))
                made.exchange._note_answer(ticket)
                beside.append(asyncio.create_task(made.exchange._take(late, ticket)))

        monkeypatch.setattr(made.mailbox, "add", delivered)
        held.answer.set_result([event(A, 1), event(A, 2), dict(OK)])
        await soon(held.task)
        await soon(beside[0])
        assert made.taken() == [1, 2]
        made.exchange.release()
        assert made.taken() == [3]


# Backlogs


def dated(replay_id: int, date: str) -> Message:
    """Make an event with a date."""
    message = event(A, replay_id)
    message["data"]["event"]["createdDate"] = date
    return message


EARLY, OLD = "2999-01-01T00:00:00.000Z", "2001-01-01T00:00:00.000Z"


async def test_a_backlog_comes_before_what_is_published_meanwhile() -> None:
    async with bench() as made:
        subscription = made.session.channels.add(A, -2)
        made.behaviour = lambda message: [dated(9, EARLY), dict(OK)]
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        made.session.channels.accept(subscription)
        assert made.taken() == []
        made.behaviour = lambda message: [dated(1, OLD), dated(2, OLD), dict(OK)]
        await made.exchange.send(publish(made))
        assert made.taken() == [1, 2]
        assert subscription.resume == 2
        await until(lambda: len(made.mailbox))
        assert made.taken() == [9]
        assert subscription.resume == 9


async def test_a_backlog_that_is_coming_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_PAUSE", 0.2)
    async with bench() as made:
        subscription = made.session.channels.add(A, -2)
        made.behaviour = lambda message: [dated(9, EARLY), dict(OK)]
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        for number in range(6):
            await asyncio.sleep(0.06)
            made.behaviour = lambda message, number=number: [dated(number, OLD), dict(OK)]  # type: ignore[misc]
            await made.exchange.send(publish(made))
        assert made.taken() == [0, 1, 2, 3, 4, 5]
        await until(lambda: len(made.mailbox))
        assert made.taken() == [9]


async def test_a_backlog_that_there_is_no_room_for_is_not_waited_for() -> None:
    async with bench() as made:
        made.mailbox.limit = 2
        subscription = made.session.channels.add(A, -2)
        made.behaviour = lambda message: [dated(8, EARLY), dated(9, EARLY), dict(OK)]
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert made.taken() == [8, 9]


async def test_a_full_mailbox_does_not_end_a_backlog_that_nothing_waits_for() -> None:
    async with bench() as made:
        made.mailbox.limit = 3
        subscription = made.session.channels.add(A, -2)
        made.behaviour = lambda message: [*(dated(n, OLD) for n in (1, 2, 3)), dict(OK)]
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert made.taken() == [1, 2, 3]
        for answer, taken in ([dated(9, EARLY)], []), ([dated(4, OLD)], [4]):
            made.behaviour = lambda message, answer=answer: [*answer, dict(OK)]  # type: ignore[misc]
            await made.exchange.send(publish(made))
            assert made.taken() == taken
        await until(lambda: len(made.mailbox))
        assert made.taken() == [9]


async def test_a_connect_that_is_held_has_no_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_PAUSE", 0.01)
    async with bench() as made:
        subscription = made.session.channels.add(A, -2)
        await made.exchange.send(made.session.writer.subscribe(A), subscription)
        assert made.session.channels.has_backlog
        held = Held(made)
        await until(lambda: not made.session.channels.has_backlog)
        held.answer.set_result([dated(9, EARLY), dict(OK)])
        await soon(held.task)
        assert made.taken() == [9]
