"""The one background task, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aiosfstream import _tasks as tasks
from aiosfstream._cometd.polling import Polling
from aiosfstream._cometd.states import State
from aiosfstream._text import Secret
from aiosfstream.events import ConnectionEventKind
from aiosfstream.exceptions import AuthenticationError, ReplayError, TransportError
from tests.bench import Bench, bench
from tests.support import soon, until
from tests.table import COOKIE, TOKEN, A, Message, event

Kind = ConnectionEventKind
OK: Message = {"successful": True}


@asynccontextmanager
async def poller(**options: Any) -> AsyncIterator[tuple[Bench, Polling]]:
    """Make a bench with a task that polls."""
    async with bench(**options) as made:
        polling = Polling(made.session, made.exchange, made.mailbox, made.settings, made.signal)
        yield made, polling
        polling.end()
        tasks = [*polling.requests.tasks, *([polling.task] if polling.task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def held_connects(made: Bench) -> Any:
    """Make a server that holds connects, and answers the rest well."""

    async def behave(message: Message) -> Any:
        if message["channel"] == "/meta/connect" and "advice" not in message:
            await asyncio.sleep(30)
        return [{**OK, "clientId": "client"}]

    return behave


async def test_it_polls_until_it_is_ended() -> None:
    async with poller() as (made, polling):
        made.table.subscribe(A)
        made.behaviour = lambda message: [event(A, len(made.received)), dict(OK)]
        polling.start()
        await until(lambda: len(made.mailbox) >= 3)
        polling.end()
        assert polling.task is not None
        await soon(polling.task)
        assert set(made.channels_received()) == {"/meta/connect"}
        assert made.taken()[:3] == [1, 2, 3]


async def test_fetching_is_suspended_while_the_mailbox_is_full() -> None:
    async with poller() as (made, polling):
        made.table.subscribe(A)
        made.mailbox.limit = 2
        made.behaviour = lambda message: [event(A, len(made.received)), dict(OK)]
        polling.start()
        await until(lambda: Kind.FETCHING_SUSPENDED in made.table.kinds())
        await asyncio.sleep(0.02)
        assert len(made.received) == len(made.mailbox) == 2
        assert made.taken() == [1, 2]
        await until(lambda: len(made.received) == 4)
        kinds = [one for one in made.table.kinds() if one.name.startswith("FETCHING")]
        assert kinds[:2] == [Kind.FETCHING_SUSPENDED, Kind.FETCHING_RESUMED]


async def test_markers_are_stored_before_it_waits_and_one_error_is_enough() -> None:
    async with poller() as (made, polling):
        stored: list[int] = []

        async def store() -> None:
            stored.append(len(made.received))
            raise ReplayError("locked")

        polling._settings = made.settings._replace(before_poll=store)
        for _ in range(3):
            await polling.step()
        assert stored == [0, 1, 2]
        with pytest.raises(ReplayError, match="locked"):
            made.mailbox.take()
        assert made.mailbox.take() is None


async def test_a_held_connect_ends_with_its_session() -> None:
    async with poller() as (made, polling):
        made.table.subscribe(A)
        made.behaviour = held_connects(made)
        polling.start()
        await until(lambda: made.received)

        async def refuse_publish(message: Message) -> Any:
            if message["channel"] == "/x" and len(made.received) == 2:
                return [{"successful": False, "error": "403::Unknown client"}]
            return await held_connects(made)(message)

        made.behaviour = refuse_publish
        await soon(polling.requests.publish("/x", {}))
        meta = made.channels_received()
        assert meta[:3] == ["/meta/connect", "/x", "/meta/handshake"]
        assert polling.task is not None
        assert not polling.task.done()


async def test_a_cancellation_by_somebody_else_is_told_and_made_up_for() -> None:
    async with poller() as (made, polling):
        made.behaviour = held_connects(made)
        polling.start()
        await until(lambda: made.received)
        assert polling.task is not None
        polling.task.cancel()
        await until(lambda: made.mailbox.has_errors)
        with pytest.raises(TransportError, match="was cancelled, but not by closing"):
            made.mailbox.take()
        assert made.session.state is State.PARKED
        made.table.recovery.unpark()
        polling.restart()
        await until(lambda: made.session.state is State.CONNECTED)


async def test_a_cancelled_storage_costs_a_session_and_not_the_task() -> None:
    async with poller() as (made, polling):
        made.storage.out = asyncio.CancelledError()  # type: ignore[assignment]
        # In a task of the engine's own: on Python 3.10 only such a one knows that nobody has cancelled it.
        await tasks.start(polling.step(), "step")
        assert made.session.state is State.NO_SESSION
        assert isinstance(made.table.recovery.last_error, TransportError)
        assert isinstance(made.table.recovery.last_error.__cause__, asyncio.CancelledError)
        assert made.table.recovery.left_behind == ["client"]


async def test_a_mistake_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async with poller() as (made, polling):
        made.storage.out = ZeroDivisionError()
        polling.start()
        await until(lambda: polling.task is not None and polling.task.done())
        error = made.table.recovery.stop_error
        assert isinstance(error, TransportError)
        assert error.__cause__ is made.storage.out
        assert made.session.state is State.STOPPED
        polling.restart()
        await soon(polling.task)  # type: ignore[arg-type]


async def test_cookies_are_cleared_where_the_server_asks_for_it() -> None:
    async with poller() as (made, polling):
        assert made.exchange.http_session is not None
        jar = made.exchange.http_session.cookie_jar
        made.behaviour = held_connects(made)
        for fields, kept in (({"error": "402::x"}, 1), (COOKIE, 0)):
            jar.update_cookies({"BAYEUX_BROWSER": "x"})
            made.table.connect(**fields)
            await polling.step()
            assert made.session.state is State.CONNECTING
            assert len(jar) == kept
            made.table.connect()


async def test_sessions_that_were_left_are_told_before_a_handshake_and_after_a_connect() -> None:
    async with poller() as (made, polling):
        made.behaviour = lambda message: (
            web.Response(status=503, text="x")
            if message["channel"] == "/meta/disconnect"
            else [{**OK, "clientId": "new"}]
        )
        made.table.recovery.left_behind = ["old"]
        made.table.lose_session()
        await polling.step()
        assert made.channels_received() == ["/meta/disconnect", "/meta/handshake"]
        made.behaviour = lambda message: [{**OK, "clientId": "new"}]
        await polling.step()
        await until(lambda: not polling.requests.owes_goodbyes)
        assert made.channels_received()[2:] == ["/meta/connect", "/meta/disconnect"]
        assert [one["clientId"] for one in made.received[:1] + made.received[3:]] == ["old", "old"]


async def test_a_handshake_waits_for_its_turn() -> None:
    async with poller() as (made, polling):
        made.table.lose_session()
        await polling.requests.turn.take()
        stepping = asyncio.create_task(polling.step())
        await asyncio.sleep(0.02)
        assert made.received == []
        polling.requests.turn.release()
        made.behaviour = held_connects(made)
        await soon(stepping)
        assert made.channels_received() == ["/meta/handshake"]


async def test_a_new_token_comes_with_the_url() -> None:
    async with poller() as (made, polling):
        asked: list[Any] = []

        async def log_in(refused: Secret | None) -> str:
            asked.append(refused)
            if len(asked) == 1:
                raise AuthenticationError("down", retryable=True)
            return made.exchange.url + "?new"

        made.table.log_in = log_in  # type: ignore[method-assign]
        made.exchange.authorization = Secret("Bearer old")
        made.table.connect(**TOKEN)
        await polling.step()
        assert made.session.state is State.NO_TOKEN
        made.table.recovery.connect_after(0.0)
        await polling.step()
        assert made.table.is_in(State.NO_SESSION)
        assert made.exchange.url.endswith("?new")
        assert asked == [Secret("Bearer old")] * 2


async def test_a_storage_that_fails_at_a_resubscription() -> None:
    async with poller() as (made, polling):
        made.table.subscribe(A)
        made.table.lose_session()
        made.table.handshake()
        made.storage.out = ReplayError("locked")
        await polling.step()
        assert made.session.state is State.RESUBSCRIBING
        assert made.table.recovery.last_error is made.storage.out
        made.storage.out = None
        made.table.recovery.connect_after(0.0)
        await polling.step()
        assert made.channels_received() == ["/meta/subscribe"]


async def test_a_server_without_the_replay_extension_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with poller() as (made, polling):
        made.table.recovery.opening = True
        for ext in ({"replay": True}, {"replay": False}, None):
            made.table.lose_session()
            made.table.recovery._renewed_while_opening = False
            made.behaviour = lambda message, ext=ext: [{**OK, "clientId": "c", "ext": ext}]  # type: ignore[misc]
            await polling.step()
            made.table.connect()
        warnings = [one for one in caplog.records if "replay extension" in one.getMessage()]
        assert len(warnings) == 2
        assert polling.last_handshake is not None
        # Once it is open, neither is of use to anybody.
        polling.last_handshake = None
        made.table.recovery.opening = False
        made.table.lose_session()
        await polling.step()
        assert polling.last_handshake is None
        assert len([one for one in caplog.records if "extension" in one.getMessage()]) == 2


async def test_a_delay_passes_before_a_step() -> None:
    async with poller() as (made, polling):
        for delay in (0.05, 0.0):
            made.table.recovery.connect_after(delay)
            started = asyncio.get_running_loop().time()
            await polling.step()
            assert (asyncio.get_running_loop().time() - started >= 0.05) is (delay > 0)
            made.table.recovery.connect_after(0.0)
