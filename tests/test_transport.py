"""The transport: its interface, its one background task, and what else can go wrong in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import aiohttp
import pytest
from aiocometd import ConnectionType, Extension
from aiocometd.constants import TransportState

from aiosfstream import (
    AuthenticationError,
    Client,
    ConnectionEvent,
    ConnectionEventKind,
    ReplayError,
    ReplayOption,
    SQLiteStorage,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from aiosfstream._cometd.client import transport_of
from aiosfstream._cometd.requests import GOODBYE_TIMEOUT
from aiosfstream._cometd.states import State
from aiosfstream._cometd.transport import (
    END_TIMEOUT,
    REFUSAL_GRACE,
    REPLAY,
    LongPollingTransport,
)
from aiosfstream._http.failures import Trouble
from aiosfstream.testing import (
    CutAfter,
    Delay,
    ForgetSession,
    Hang,
    OAuthError,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
)
from tests.bench import Bench, bench
from tests.support import (
    EVENT,
    TOPIC,
    cancelled_at,
    client_for,
    held,
    receive,
    replay_id,
    soon,
    until,
)
from tests.table import BUSY, TOKEN, A, B, Message, event, failure
from tests.test_recovery import BrokenStorage

CONNECT = "/meta/connect"


def the_transport_of(client: Client) -> LongPollingTransport:
    """Give the transport of a client that was opened."""
    transport = transport_of(client)
    assert transport is not None
    return transport


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


async def test_the_interface_of_aiocometds_transports(server: StreamingServer) -> None:
    async with client_for(server) as client:
        transport = the_transport_of(client)
        assert transport.connection_type is ConnectionType.LONG_POLLING
        assert transport.endpoint == client.url
        assert transport.client_id == server.sessions[0].client_id
        assert transport.state.name == "CONNECTED"
        assert transport.subscriptions == set()
        assert transport.last_connect_result is not None
        assert transport.last_connect_result["successful"]
        assert transport.reconnect_advice["timeout"] == 110_000
        session = transport.http_session
        assert session is not None
        transport.http_session = session
        with pytest.raises(TransportInvalidOperation):
            await transport.connect()
        waiting = asyncio.create_task(transport.wait_for_state(TransportState.DISCONNECTED))
    await soon(waiting)
    assert transport.state is TransportState.DISCONNECTED
    transport.http_session = None
    await transport.close()


async def test_the_states_of_a_client(server: StreamingServer) -> None:
    client = client_for(server)
    server.add_fault(Hang(), on=CONNECT)
    opening = asyncio.create_task(client.open())
    await server.wait_for(lambda server: server.count(CONNECT) == 1)
    assert client.state.name == "CONNECTING"
    opening.cancel()
    await asyncio.wait([opening])
    await client.open()
    await server.pause()
    await until(lambda: client.state is TransportState.CONNECTING)
    await server.resume()
    await until(lambda: client.state is TransportState.CONNECTED)
    server.add_fault(Hang(), on="/meta/disconnect")
    closing = asyncio.create_task(client.close())
    await until(lambda: client.state is TransportState.DISCONNECTING)
    await soon(client.close())
    await soon(closing)
    assert client.state is TransportState.DISCONNECTED


# A session on the table


@asynccontextmanager
async def transport_on_the_table() -> AsyncIterator[tuple[Bench, LongPollingTransport]]:
    """Make a transport whose session is fed by hand."""
    async with bench() as made:
        http_session = made.exchange.http_session
        assert http_session is not None
        yield (
            made,
            LongPollingTransport(
                made.exchange.url, made.session, made.mailbox, http_session, made.settings
            ),
        )


async def test_while_a_channel_is_refused_for_now_not_all_is_well() -> None:
    async with transport_on_the_table() as (made, transport):
        table = made.table
        table.subscribe(A)
        table.subscribe(B)
        assert transport.state.name == "CONNECTED"
        table.lose_session()
        table.handshake()
        table.resubscribe(**BUSY)
        table.resubscribe_all()
        table.connect()
        assert table.is_in(State.CONNECTED)
        assert transport.state.name == "CONNECTING"
        assert transport.subscriptions == {A, B}
        assert str(transport.loss_error()).startswith(
            f"Channels of the server {transport.endpoint} are refused since"
        )
        assert A in str(transport.loss_error())


async def test_disconnecting_twice_waits_for_the_first_goodbye() -> None:
    async with transport_on_the_table() as (made, transport):
        gate = asyncio.Event()

        async def answer_late(message: Message) -> list[Message]:
            await gate.wait()
            return [{"successful": True}]

        made.behaviour = answer_late
        waiting = asyncio.create_task(transport.wait_for_state(TransportState.DISCONNECTING))
        first = asyncio.create_task(transport.disconnect())
        await until(lambda: made.channels_received() == ["/meta/disconnect"])
        await soon(waiting)
        second = asyncio.create_task(transport.disconnect())
        await asyncio.wait({second}, timeout=0.05)
        assert not second.done()
        gate.set()
        await soon(asyncio.gather(first, second))
        assert transport.state is TransportState.DISCONNECTED
        assert len(made.received) == 1


@pytest.mark.parametrize("closes", [False, True])
async def test_an_event_that_waits_for_a_backlog_does_not_come_without_it(
    monkeypatch: pytest.MonkeyPatch, *, closes: bool
) -> None:
    """With its marker stored, the next opening would begin after the backlog."""
    monkeypatch.setattr("aiosfstream._cometd.exchange.BACKLOG_PAUSE", 0.02)
    async with transport_on_the_table() as (made, transport):
        live = event(A, 9, event={"replayId": 9, "createdDate": "2999-01-01T00:00:00.000Z"})
        made.behaviour = lambda message: [live, {"successful": True}]
        token = REPLAY.set(ReplayOption.ALL_EVENTS.value)
        await soon(transport.subscribe(A))
        REPLAY.reset(token)
        assert len(made.mailbox) == 0
        if closes:
            transport.abort()
            await asyncio.sleep(0.1)
            assert len(made.mailbox) == 0
        else:
            await until(lambda: len(made.mailbox) == 1)


async def test_disconnecting_may_be_cancelled_and_ends_it_nevertheless() -> None:
    async with transport_on_the_table() as (made, transport):
        made.behaviour = lambda message: asyncio.sleep(30, [])
        closing = asyncio.create_task(transport.disconnect())
        await until(lambda: made.received)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(closing)
        assert transport.state is TransportState.DISCONNECTED


async def test_a_task_that_does_not_end_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the few seconds that closing a client may take.
    assert END_TIMEOUT + GOODBYE_TIMEOUT <= 6.0
    monkeypatch.setattr("aiosfstream._cometd.transport.END_TIMEOUT", 0.05)
    async with transport_on_the_table() as (made, transport):
        gate = asyncio.Event()

        async def go_on() -> None:
            while not gate.is_set():
                with suppress(asyncio.CancelledError):
                    await gate.wait()

        stubborn = transport._requests.run(go_on(), "stubborn")
        await asyncio.sleep(0)
        try:
            await soon(transport.disconnect())
            assert not stubborn.done()
            assert made.channels_received() == ["/meta/disconnect"]
        finally:
            gate.set()
        await soon(stubborn)


async def test_one_of_its_own_tasks_may_close_it() -> None:
    async with transport_on_the_table() as (made, transport):
        closing = transport._requests.run(transport.disconnect(), "an extension")
        await soon(closing)
        assert transport.state is TransportState.DISCONNECTED
        assert made.channels_received() == ["/meta/disconnect"]


def test_it_is_alive_in_its_own_event_loop_only() -> None:
    async def make() -> LongPollingTransport:
        async with transport_on_the_table() as (_, transport):
            return transport

    async def lives(transport: LongPollingTransport) -> bool:
        return transport.is_alive

    own, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    transport = own.run_until_complete(make())
    assert own.run_until_complete(lives(transport))
    assert not other.run_until_complete(lives(transport))
    own.close()
    assert not other.run_until_complete(lives(transport))
    other.close()


async def test_a_goodbye_is_said_to_a_session_that_was_left() -> None:
    async with transport_on_the_table() as (made, transport):
        left = made.table.recovery.client_id
        made.table.fail(failure(Trouble.LOST))
        assert transport.client_id is None
        await soon(transport.disconnect())
        assert [message["clientId"] for message in made.received] == [left]


async def test_a_goodbye_that_is_not_answered_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiosfstream._cometd.transport.GOODBYE_TIMEOUT", 0.05)
    async with transport_on_the_table() as (made, transport):
        made.behaviour = lambda message: asyncio.sleep(30, [])
        closing = asyncio.create_task(transport.disconnect())
        await until(lambda: made.received)
        goodbyes = {task for task in asyncio.all_tasks() if "goodbye" in task.get_name()}
        await soon(closing)
        assert transport.state is TransportState.DISCONNECTED
        await asyncio.wait(goodbyes, timeout=1.0)
        assert [task.done() for task in goodbyes] == [True, True]


async def test_what_is_under_way_ends_before_the_goodbye() -> None:
    async with transport_on_the_table() as (made, transport):
        begun, cancelled, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def finish_first() -> None:
            try:
                begun.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                await gate.wait()

        under_way = transport._requests.run(finish_first(), "a log-in with a new refresh token")
        await begun.wait()
        closing = asyncio.create_task(transport.disconnect())
        await soon(cancelled.wait())
        await asyncio.wait({closing}, timeout=0.05)
        assert made.received == []
        gate.set()
        await soon(closing)
        assert under_way.done()
        assert made.channels_received() == ["/meta/disconnect"]


async def test_a_loss_is_reported_a_time_out_later_and_again_after_another() -> None:
    async with transport_on_the_table() as (made, transport):
        table = made.table
        assert transport.loss_deadline(5.0) is None
        table.fail(failure(Trouble.NOT_SENT))
        assert table.recovery.lost_since == table.now
        assert transport.loss_deadline(5.0) == table.now + 5.0
        assert transport.loss_deadline(None) is transport.loss_deadline(0) is None
        before = asyncio.get_running_loop().time()
        error = transport.loss_error()
        assert error.__cause__ is table.recovery.last_error
        reported_again = transport.loss_deadline(5.0)
        assert reported_again is not None
        assert before <= reported_again - 5.0 <= asyncio.get_running_loop().time()
        # A loss after that report is not reported sooner for it.
        table.connect()
        assert transport.loss_deadline(5.0) is None
        table.now += before + 1000.0
        table.fail(failure(Trouble.NOT_SENT))
        assert transport.loss_deadline(5.0) == table.now + 5.0


async def test_a_refusal_is_told_rather_than_a_loss() -> None:
    async with transport_on_the_table() as (made, transport):
        table = made.table
        table.connect(**TOKEN)
        lost = table.now
        assert transport.loss_deadline(5.0) == lost + 7.5
        # Another token is refused as well, so the attempt under way may be the last one.
        table.recovery.authenticated(table.now)
        table.handshake(**TOKEN)
        assert transport.loss_deadline(5.0) == lost + 7.5 + REFUSAL_GRACE
        table.recovery.authentication_failed(AuthenticationError("refused"), table.now)
        # The application has been told, and the rest is up to a person.
        assert transport.loss_deadline(5.0) is None


class Failing(Extension):
    """An extension with a mistake in it."""

    def __init__(self) -> None:
        self.fails_on = ""
        self.error: Exception = ZeroDivisionError("a mistake")

    async def outgoing(self, payload: list[dict[str, Any]], headers: dict[str, str]) -> None:
        """Make the mistake."""
        if payload[0]["channel"] == self.fails_on:
            raise self.error

    async def incoming(self, payload: list[dict[str, Any]], headers: Any = None) -> None:
        """Make no mistake."""


def client_with(server: StreamingServer, extension: Extension) -> Client:
    """Make a client with one more extension."""
    client = client_for(server, replay=ReplayOption.ALL_EVENTS)
    assert client.extensions is not None
    client.extensions.append(extension)
    return client


async def test_a_mistake_in_the_background_is_told_once_and_not_retried(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    extension = Failing()
    async with client_with(server, extension) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        extension.fails_on = CONNECT
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        with pytest.raises(TransportError, match="a mistake") as caught:
            await soon(client.receive())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert client.closed
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_receiving_goes_on_after_somebody_has_cancelled_the_background_task(
    server: StreamingServer,
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        task = the_transport_of(client)._polling.task
        assert task is not None
        task.cancel()
        with pytest.raises(TransportError, match="cancelled, but not by closing the client"):
            await soon(client.receive())
        receiving = asyncio.create_task(receive(client))
        await until(lambda: client.state is TransportState.CONNECTED)
        assert [server.publish(EVENT)] == await soon(receiving)


async def test_a_mistake_beside_the_connect_reaches_the_caller(server: StreamingServer) -> None:
    extension = Failing()
    async with client_with(server, extension) as client:
        extension.fails_on = "/meta/unsubscribe"
        with pytest.raises(ZeroDivisionError):
            await client.unsubscribe(EVENT)
        extension.fails_on = "/meta/subscribe"
        with pytest.raises(ReplayError, match=EVENT):
            await client.subscribe(EVENT)
        extension.error = TransportError("of ours")
        with pytest.raises(TransportError, match="of ours"):
            await client.subscribe(EVENT)
        extension.fails_on = ""
        await client.subscribe(EVENT)


async def test_a_storage_that_fails_while_a_channel_without_a_resume_point_is_resubscribed(
    server: StreamingServer,
) -> None:
    class Unknown(BrokenStorage):
        """Leaves the start to the server."""

        async def get_replay_id(self, subscription: str) -> int | None:
            await self.get_replay_marker(subscription)
            return None

    storage = Unknown()
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT)
        await held(server)
        storage.failures = 5
        server.expire_sessions()
        with pytest.raises(ReplayError, match="could not be read"):
            await soon(client.receive())
        assert not client.closed
        receiving = asyncio.create_task(client.receive())
        await held(server)
        server.publish(EVENT)
        await soon(receiving)


async def test_a_flush_that_fails_is_told(server: StreamingServer, tmp_path: Any) -> None:
    path = tmp_path / "markers.db"
    storage = SQLiteStorage(path)
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        await storage.close()
        path.unlink()
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(b"this is no database" * 100)
        wanted = [server.publish(EVENT), server.publish(EVENT)]
        assert await receive(client) == wanted[:1]
        with pytest.raises(ReplayError, match=str(path)):
            await receive(client, 2)
        path.unlink()
    await storage.close()
    async with storage:
        marker = await storage.get_replay_marker(EVENT)
    assert marker is not None
    assert marker.replay_id in wanted


async def test_markers_that_cannot_be_stored_at_the_end_are_logged(
    server: StreamingServer, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "markers.db"
    storage = SQLiteStorage(path)
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        server.publish(EVENT)
        await until(lambda: client.pending_count == 1)
        await storage.close()
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(b"this is no database" * 100)
        await soon(client.receive())
    assert any("could not be stored" in record.getMessage() for record in caplog.records)
    path.unlink()
    await storage.close()


# Requests during a renewal


async def test_a_request_waits_for_a_renewal(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await held(server)
        server.add_fault(Delay(0.1), on="/meta/handshake")
        server.expire_sessions()
        await until(lambda: client.state is TransportState.CONNECTING)
        await soon(client.subscribe(EVENT))
        assert server.subscriptions == {EVENT}


async def test_a_request_waits_no_longer_than_connection_timeout(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.05) as client:
        await held(server)
        server.add_fault(Hang(), on="/meta/handshake", times=100)
        server.expire_sessions()
        await until(lambda: client.state is TransportState.CONNECTING)
        with pytest.raises(TransportTimeoutError, match="not sent"):
            await soon(client.subscribe(EVENT))
        server.clear_faults()


async def test_a_request_while_the_credentials_are_refused(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await held(server)
        server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token", times=9)
        server.revoke_tokens()
        with pytest.raises(AuthenticationError):
            await soon(client.receive())
        with pytest.raises(AuthenticationError, match="authentication failure"):
            await soon(client.subscribe(EVENT))
        server.clear_faults()
        receiving = asyncio.create_task(client.receive())
        await until(lambda: client.state is TransportState.CONNECTED)
        await soon(client.subscribe(EVENT))
        server.publish(EVENT)
        await soon(receiving)


async def test_a_request_while_each_new_token_is_refused(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.1) as client:
        await held(server)
        server.add_fault(Status(403), on=CONNECT, times=1)
        server.add_fault(Status(403), on="/meta/handshake", times=1000)
        server.cut_connections()
        with pytest.raises((AuthenticationError, TransportTimeoutError)):
            await soon(client.receive())
        await until(lambda: the_transport_of(client)._session.state is State.PARKED)
        with pytest.raises(AuthenticationError, match="403"):
            await soon(client.subscribe(EVENT))
        server.clear_faults()
        while client.state is not TransportState.CONNECTED:
            with suppress(AuthenticationError, TransportTimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(client.receive(), 0.1)


async def test_a_request_after_the_end(server: StreamingServer) -> None:
    async with client_for(server) as client:
        transport = the_transport_of(client)
        await held(server)
        server.add_fault(Refuse("400::x", advice={"reconnect": "none"}), on=CONNECT)
        server.publish(TOPIC)
        server.add_fault(ForgetSession(), on=CONNECT)
        server.cut_connections()
        await until(lambda: client.state is TransportState.SERVER_DISCONNECTED or client.closed)
        with pytest.raises(Exception, match="400::x"):
            await client.subscribe(EVENT)
        assert client.closed
    with pytest.raises(TransportInvalidOperation):
        await transport.subscribe(EVENT)


async def test_a_lost_answer_beside_the_connect_renews_the_session(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        for operation in ("subscribe", "unsubscribe"):
            await held(server)
            handshakes = server.count("/meta/handshake")
            server.add_fault(CutAfter(), on=f"/meta/{operation}")
            with pytest.raises(TransportError):
                await getattr(client, operation)(TOPIC)
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
            assert server.count("/meta/handshake") == handshakes + 1


async def test_a_request_that_finds_its_session_gone_is_tried_again(
    server: StreamingServer,
) -> None:
    async with client_for(server) as client:
        for fault in (ForgetSession(), RevokeTokens(), Status(401)):
            await held(server)
            server.add_fault(fault, on="/meta/subscribe")
            await soon(client.subscribe(EVENT))
            assert client.subscriptions == {EVENT}
            await soon(client.unsubscribe(EVENT))


async def test_a_subscription_right_after_opening_uses_the_connection_that_is_there(
    server: StreamingServer,
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        meta = [request.channel for request in server.requests if request.kind == "cometd"]
        assert meta == ["/meta/handshake", CONNECT, "/meta/subscribe", CONNECT]


async def test_a_first_subscription_without_an_answer_does_not_keep_events_away(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosfstream._cometd.polling.GIVE_WAY_TIMEOUT", 0.01)
    server.add_fault(Hang(), on="/meta/subscribe")
    async with client_for(server) as client:
        subscribing = asyncio.create_task(client.subscribe(EVENT))
        await held(server)
        assert not subscribing.done()
        subscribing.cancel()
        await asyncio.wait([subscribing])


async def test_a_first_subscription_that_finds_its_session_gone_has_it_renewed(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosfstream._cometd.polling.GIVE_WAY_TIMEOUT", 3600.0)
    server.add_fault(ForgetSession(), on="/meta/subscribe")
    async with client_for(server) as client:
        await soon(client.subscribe(EVENT))
        await held(server)


async def test_the_background_task_has_the_context_of_who_has_opened(
    server: StreamingServer,
) -> None:
    """Where a tracing library, for one, keeps what a log record or a request belongs to."""
    operation: ContextVar[str] = ContextVar("operation", default="none")
    seen: dict[ConnectionEventKind, str] = {}

    def observe(event: ConnectionEvent) -> None:
        seen[event.kind] = operation.get()

    for subscribes in (True, False):
        operation.set("opening")
        async with client_for(server, observer=observe) as client:
            operation.set("subscribing")
            if subscribes:
                await client.subscribe(EVENT)
            await held(server)
            server.expire_sessions()
            await until(lambda: ConnectionEventKind.SESSION_RENEWED in seen)
        assert seen.pop(ConnectionEventKind.SESSION_RENEWED) == "opening"


async def requests_under_way(client: Client, count: int) -> list[int]:
    """Take *count* messages without waiting between them; give how many requests were under way at each."""
    seen = []
    async for _ in client:
        seen.append(len(the_transport_of(client)._session.channels._tickets))
        if len(seen) == count:
            break
    return seen


@pytest.mark.parametrize(
    ("events", "limit", "expected"),
    [
        # With the application first: there is no hurry.
        (1, 100, [0]),
        # There may be more: the server makes its next answer ready meanwhile.
        (5, 100, [1] * 5),
        (5, 0, [1] * 5),
        # Full: the next request goes out when there is room.
        (6, 5, [0] * 2 + [1] * 4),
        (10, 3, [0] * 8 + [1] * 2),
    ],
)
async def test_the_next_request_is_on_its_way_while_a_backlog_is_handed_over(
    server: StreamingServer, events: int, limit: int, expected: list[int]
) -> None:
    for _ in range(events):
        server.publish(EVENT)
    async with client_for(
        server, replay=ReplayOption.ALL_EVENTS, max_pending_count=limit
    ) as client:
        await client.subscribe(EVENT)
        assert await soon(requests_under_way(client, events)) == expected


async def test_markers_that_are_committed_in_groups_are_not_committed_more_often_for_that(
    server: StreamingServer, tmp_path: Any
) -> None:
    for _ in range(10):
        server.publish(EVENT)
    async with (
        SQLiteStorage(tmp_path / "markers.db", default_id=-2) as storage,
        client_for(server, replay=storage, max_pending_count=3) as client,
    ):
        await client.subscribe(EVENT)
        assert await soon(requests_under_way(client, 10)) == [0] * 10


async def test_a_reader_that_is_cancelled_where_fetching_goes_on_loses_nothing(
    server: StreamingServer,
) -> None:
    wanted = [server.publish(EVENT) for _ in range(10)]
    options: dict[str, Any] = {"replay": ReplayOption.ALL_EVENTS, "max_pending_count": 3}
    outcomes = []
    for number in range(1, 5):
        async with client_for(server, **options) as client:
            await client.subscribe(EVENT)
            await until(lambda: client.pending_count == 10)
            received: list[Any] = []
            reached, _ = await cancelled_at(collect(client, received, 10), number)
            outcomes.append((reached, len(received)))
            received += await receive(client, 10 - len(received))
            assert received == wanted
    # In the two turns that it gives to fetching.
    assert outcomes == [(True, 8)] * 2 + [(False, 10)] * 2


async def collect(client: Client, into: list[Any], count: int) -> None:
    async for message in client:
        into.append(replay_id(message))
        if len(into) == count:
            return


class WithCookie(Extension):
    """Has a cookie of its own to send."""

    async def outgoing(self, payload: list[dict[str, Any]], headers: dict[str, str]) -> None:
        """Send it."""
        headers["cookie"] = "own=1"

    async def incoming(self, payload: list[dict[str, Any]], headers: Any = None) -> None:
        """Do nothing."""


async def test_an_extension_may_send_cookies_too(server: StreamingServer) -> None:
    async with client_with(server, WithCookie()) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    cookies = [request.headers["Cookie"] for request in server.requests if request.messages]
    assert cookies[0] == "own=1"
    assert len(cookies) >= 5
    assert all(one.startswith("own=1; BAYEUX_BROWSER=") for one in cookies[1:])


async def test_a_session_with_a_cookie_jar_of_its_own(server: StreamingServer) -> None:
    def factory(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True, quote_cookie=False))

    async with client_for(
        server, replay=ReplayOption.ALL_EVENTS, session_factory=factory
    ) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    assert server.count("/meta/handshake") == 1


async def test_an_endpoint_that_is_no_url(server: StreamingServer) -> None:
    client = client_for(server)
    client.get_cometd_url = lambda *_: "http://127.0.0.1:port/cometd/66.0"  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="not a URL that can be posted to"):
        await client.open()


async def test_something_that_cannot_be_serialised(server: StreamingServer) -> None:
    async with client_for(server) as client:
        with pytest.raises(TransportError, match="not serialisable"):
            await client.publish("/x", {"object": object()})
        await client.subscribe(EVENT)


async def test_an_authenticator_that_has_lost_its_token(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await held(server)
        client.authenticator.access_token = None
        await soon(client.subscribe(EVENT))
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


def test_the_logger_is_the_documented_one() -> None:
    assert logging.getLogger("aiosfstream.client").parent is logging.getLogger("aiosfstream")
