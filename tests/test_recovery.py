"""Every row of the failure table, with every way of starting a subscription."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiosfstream import (
    AuthenticationError,
    Client,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    ServerError,
    TransportError,
    TransportTimeoutError,
)
from aiosfstream.events import ConnectionEvent, ConnectionEventKind
from aiosfstream.testing import (
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    ForgetSession,
    Garble,
    Hang,
    OAuthError,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
    Truncate,
)
from tests.support import (
    CHANGE,
    EVENT,
    TOPIC,
    client_for,
    held,
    receive,
    replay_id,
    soon,
    until,
)

CONNECT = "/meta/connect"
NONE = {"reconnect": "none", "interval": 0}
LIMIT = (
    "403::To protect all customers from excessive use and Denial of Service attacks, we limit the"
    " number of simultaneous connections per server.  Your request has been denied because this"
    " limit has been exceeded.  Please try your request again later."
)


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server that does not slow down clients whose last session it has not forgotten yet."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


#: What happens to the connect that is answered next, with events in the answer where it has one.
FAULTS: dict[str, tuple[Any, ...]] = {
    "connection cut before": (CutBefore(),),
    "answer lost": (CutAfter(),),
    "answer truncated": (Truncate(),),
    "one byte": (Truncate(1),),
    "a login page": (Garble(),),
    "an empty body": (Garble(b""),),
    "an empty object": (Garble(b"{}"),),
    "an empty list": (Garble(b"[]"),),
    "a list of nonsense": (Garble(b"[1, null]"),),
    "a text": (Garble(b'"hello"'),),
    "not UTF-8": (Garble(b"\xff\xfe[]"),),
    "a gateway's own error": (Garble(b'{"error": "Timed out"}'),),
    "no reply": (Garble(b'[{"channel":"/meta/unknown","successful":true}]'),),
    "HTTP 408": (Status(408),),
    "HTTP 429": (Status(429, headers={"Retry-After": "0"}),),
    "HTTP 500": (Status(500),),
    "HTTP 502 without a body": (Status(502, b""),),
    "HTTP 503": (Status(503, headers={"Retry-After": "0"}),),
    "HTTP 401 with a page": (Status(401),),
    "HTTP 403 with a page": (Status(403),),
    "HTTP 401 with a message": (
        Status(401, b'[{"error":"401::Request requires authentication","successful":false}]'),
    ),
    "unknown client": (ForgetSession(),),
    "unknown client, advice none": (Refuse("403::Unknown client", advice=NONE),),
    "unknown client, no advice": (Refuse("403::Unknown client"),),
    "unknown client, bare": (Refuse("403::Unknown client", bare=True),),
    "vanilla 402": (Refuse("402::session_unknown", advice={"reconnect": "handshake"}),),
    "token revoked": (RevokeTokens(),),
    "token revoked and session lost": (RevokeTokens(), ForgetSession()),
    "busy": (Refuse("401::Authentication invalid", "503::Server is too busy.", NONE),),
    "limit": (Refuse("403::Handshake denied", LIMIT, {"reconnect": "none"}),),
    "daily limit": (Refuse("403::Organization total events daily limit exceeded", advice=NONE),),
    "cookie": (
        Refuse("400::Client c has established a session, but no BAYEUX_BROWSER cookie present"),
    ),
    "another user": (
        Refuse("400::Authenticated user id does not match the session's user id", advice=NONE),
    ),
    "retry": (Refuse("500::Internal", advice={"reconnect": "retry", "interval": 0}),),
    "events twice": (Duplicate(),),
}

STARTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "new events": lambda first: {"replay": ReplayOption.NEW_EVENTS},
    "all events": lambda first: {"replay": ReplayOption.ALL_EVENTS},
    "none": lambda first: {"replay": None},
    "mapping": lambda first: {"replay": {EVENT: first, TOPIC: first}},
    "marker": lambda first: {"replay": {EVENT: ReplayMarker("2020-01-01T00:00:00Z", first)}},
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_every_event_once_whatever_happens(
    server: StreamingServer, fault: str, start: str
) -> None:
    first = server.publish(EVENT)
    async with client_for(server, **STARTS[start](first)) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        if start == "all events":
            wanted.insert(0, first)
        assert await receive(client, len(wanted)) == wanted

        await held(server)
        server.add_fault(*FAULTS[fault], on=CONNECT)
        wanted = server.publish_many([(EVENT, None)] * 3)
        wanted += server.publish_many([(EVENT, None)] * 3)
        wanted.append(server.publish(EVENT))
        assert await receive(client, len(wanted)) == wanted

        last = server.publish(EVENT)
        assert await receive(client) == [last]
        assert client.pending_count == 0
    assert server.violations == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("on", ["/meta/handshake", "/meta/subscribe"])
async def test_a_fault_during_the_renewal(server: StreamingServer, fault: str, on: str) -> None:
    first = server.publish(EVENT)
    async with client_for(server, replay={EVENT: first, TOPIC: first}) as client:
        server.publish(TOPIC)
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        server.add_fault(*FAULTS[fault], on=on, times=2)
        server.expire_sessions()
        wanted = [server.publish(EVENT), server.publish(EVENT)]
        received: list[Any] = []
        while len(received) < 2:
            try:
                received += await receive(client)
            except (AuthenticationError, ServerError, TransportError) as error:
                assert expected_during_renewal(fault, on, error)
                if isinstance(error, (ServerError, TransportError)):
                    return
        assert received == wanted


def expected_during_renewal(fault: str, on: str, error: Exception) -> bool:
    """Say whether *fault*, twice in a row, may reach the application."""
    if isinstance(error, AuthenticationError):
        return "401" in fault or "token" in fault
    if isinstance(error, TransportError):
        return fault == "HTTP 403 with a page"
    refused = ("retry", "daily limit")
    return isinstance(error, ServerError) and on == "/meta/subscribe" and fault in refused


@pytest.mark.parametrize("reconnect", ["handshake", "none"])
async def test_an_unasked_disconnect(server: StreamingServer, reconnect: str) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        server.disconnect_clients(reconnect)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert server.count("token") == 1


async def test_a_server_restart_in_mid_stream(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await receive_one(client, server)
        await server.restart()
        wanted = server.publish_many([(EVENT, None)] * 5)
        assert await receive(client, 5) == wanted


async def receive_one(client: Client, server: StreamingServer) -> None:
    """Give *client* a resume point."""
    wanted = [server.publish(EVENT)]
    assert await receive(client) == wanted


async def test_an_answer_that_never_comes(server: StreamingServer) -> None:
    server.hold_timeout = 0.2
    async with client_for(server, replay=ReplayOption.ALL_EVENTS, request_timeout=0.3) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        server.add_fault(Hang(), on=CONNECT)
        wanted = [server.publish(EVENT), server.publish(EVENT)]
        assert await receive(client, 2) == wanted


async def test_a_consumer_that_stalls_longer_than_the_session_lives(
    server: StreamingServer,
) -> None:
    server.session_timeout = 0.05
    async with client_for(server, replay=ReplayOption.ALL_EVENTS, max_pending_count=3) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 3)
        await until(lambda: client.pending_count == 3)
        await server.wait_for(lambda server: not server.sessions)
        wanted += server.publish_many([(EVENT, None)] * 3)
        assert await receive(client, 6) == wanted
        assert server.count("/meta/handshake") > 1


async def test_fetching_pauses_and_other_requests_go_on(server: StreamingServer) -> None:
    events: list[ConnectionEvent] = []
    options = {"replay": ReplayOption.ALL_EVENTS, "max_pending_count": 2, "observer": events.append}
    async with client_for(server, **options) as client:
        await client.subscribe(EVENT)
        server.publish_many([(EVENT, None)] * 5)
        await until(lambda: client.pending_count == 5)
        await until(lambda: ConnectionEventKind.FETCHING_SUSPENDED in kinds(events))
        connects = server.count(CONNECT)
        await soon(client.subscribe(TOPIC))
        await soon(client.unsubscribe(TOPIC))
        assert server.count(CONNECT) == connects
        await receive(client, 4)
        await until(lambda: server.count(CONNECT) == connects + 1)
        assert ConnectionEventKind.FETCHING_RESUMED in kinds(events)


def kinds(events: list[ConnectionEvent]) -> list[ConnectionEventKind]:
    """Give the kinds of events."""
    return [event.kind for event in events]


async def test_a_moved_instance_is_followed(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        old = client.url
        await held(server)
        server.add_fault(RevokeTokens(), on=CONNECT)
        server.add_fault(Delay(0.1), on="token")
        server.publish(EVENT)
        await receive(client)
        await server.wait_for(lambda server: server.count("token") == 2)
        await server.move_instance()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert client.url != old


async def test_one_log_in_however_many_requests_are_refused(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        server.revoke_tokens()
        channels = [f"/event/Other{number}__e" for number in range(4)]
        await soon(asyncio.gather(*(client.subscribe(channel) for channel in channels)))
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert server.count("token") == 2
        assert client.subscriptions == {EVENT, *channels}


async def test_busy_asks_for_no_token(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await receive_one(client, server)
        for refusal in (FAULTS["busy"], FAULTS["limit"], FAULTS["daily limit"]):
            await held(server)
            server.add_fault(*refusal, on=CONNECT)
            wanted = [server.publish(EVENT), server.publish(EVENT)]
            assert await receive(client, 2) == wanted
        assert server.count("token") == 1


# What the application is told


async def test_refused_credentials_reach_the_application_and_are_tried_again(
    server: StreamingServer,
) -> None:
    async with client_for(
        server, replay=ReplayOption.ALL_EVENTS, connection_timeout=0.05
    ) as client:
        await client.subscribe(EVENT)
        await receive_one(client, server)
        server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token", times=2)
        await held(server)
        server.revoke_tokens()
        for tokens in (2, 3):
            with pytest.raises(AuthenticationError, match="Authentication failed") as caught:
                await soon(client.receive())
            assert caught.value.error == "invalid_grant"
            assert not caught.value.retryable
            assert server.count("token") == tokens
            assert not client.closed
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


async def test_a_new_token_that_is_refused_as_well(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.5) as client:
        await client.subscribe(EVENT)
        refusal = Refuse(
            "403::Handshake denied", "401::Authentication invalid", {"reconnect": "none"}
        )
        server.add_fault(refusal, on="/meta/handshake", times=1000)
        await held(server)
        server.revoke_tokens()
        with pytest.raises(AuthenticationError, match="also after logging in again"):
            await soon(client.receive())
        assert server.count("token") > 2


@pytest.mark.parametrize(
    "fault",
    [
        Status(503),
        Status(200, "<html>maintenance</html>"),
        Status(200, "[1]"),
        Status(200, "{}"),
        CutBefore(),
        Truncate(),
        OAuthError("server_error", "try later"),
        OAuthError("invalid_grant", "login rate exceeded"),
    ],
    ids=str,
)
async def test_a_log_in_that_fails_for_now_is_tried_again(
    server: StreamingServer, fault: Any
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        server.add_fault(fault, on="token", times=2)
        await held(server)
        server.revoke_tokens()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert server.count("token") == 4


async def test_a_lost_connection_is_reported_and_recovered(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS, connection_timeout=0.2) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await server.pause()
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(2):
            with pytest.raises(TransportTimeoutError, match="Lost connection") as caught:
                await soon(client.receive())
            assert isinstance(caught.value.__cause__, TransportError)
        assert loop.time() - started >= 0.4
        assert not client.closed
        await server.resume()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


async def test_the_loss_is_counted_across_short_receives(server: StreamingServer) -> None:
    async with client_for(server, connection_timeout=0.3) as client:
        await client.subscribe(EVENT)
        await server.pause()
        polls = 0
        with pytest.raises(TransportTimeoutError):
            while polls < 1000:
                polls += 1
                try:
                    await asyncio.wait_for(client.receive(), 0.02)
                except asyncio.TimeoutError as error:
                    if isinstance(error, TransportError):
                        raise
        assert polls > 3


async def test_messages_come_before_errors(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 3)
        await until(lambda: client.pending_count == 3)
        server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token")
        await held(server)
        server.revoke_tokens()
        await server.wait_for(lambda server: server.count("token") == 2)
        assert await receive(client, 3) == wanted
        with pytest.raises(AuthenticationError):
            await soon(client.receive())


async def test_an_end_for_good(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 2)
        await until(lambda: client.pending_count == 2)
        await held(server)
        server.add_fault(Refuse("400::Something else", advice=NONE), on=CONNECT)
        server.publish(TOPIC)
        server.add_fault(Refuse("400::Something else", advice=NONE), on=CONNECT)
        server.expire_sessions()
        assert await receive(client, 2) == wanted
        with pytest.raises(ServerError, match="Connection closed by the server.*Something else"):
            await soon(client.receive())
        assert client.closed


@pytest.mark.parametrize(
    ("fault", "text"),
    [(Status(404), "404"), (Redirect("https://elsewhere.example/login"), "elsewhere.example")],
)
async def test_an_answer_that_no_attempt_mends(
    server: StreamingServer, fault: Any, text: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(fault, on=CONNECT, times=2)
        server.publish(EVENT)
        await receive(client)
        with pytest.raises(TransportError, match=text):
            await soon(client.receive())
        assert client.closed
        assert server.count("token") == 2


# Channels that cannot be resumed


async def test_a_lost_channel_is_named_and_the_others_go_on(server: StreamingServer) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        for channel in (EVENT, TOPIC):
            await client.subscribe(channel)
        server.publish(EVENT)
        server.publish(TOPIC)
        await receive(client, 2)
        server.discard_events(EVENT)
        server.expire_sessions()
        with pytest.raises(ServerError, match=EVENT) as caught:
            await soon(client.receive())
        assert caught.value.error_code == 400
        assert client.subscriptions == {TOPIC}
        wanted = [server.publish(TOPIC)]
        assert await receive(client) == wanted
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


async def test_the_fallback_is_used_for_that_channel_only(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    async with client_for(server, replay=stored, replay_fallback=ReplayOption.ALL_EVENTS) as client:
        for channel in (EVENT, TOPIC):
            server.publish(channel)
            await client.subscribe(channel, replay=ReplayOption.ALL_EVENTS)
        await receive(client, 2)
        server.discard_events(EVENT)
        server.expire_sessions()
        wanted = [server.publish(EVENT), server.publish(TOPIC)]
        assert sorted(await receive(client, 2)) == wanted
        sent = [
            request.messages[0]["ext"]["replay"]
            for request in server.requests
            if request.channel == "/meta/subscribe"
        ][2:]
        assert [set(replay) for replay in sent] == [{EVENT}, {EVENT}, {TOPIC}]
        assert sent[1] == {EVENT: -2}
        assert stored[EVENT].replay_id == wanted[0]


async def test_the_stale_marker_is_replaced_after_a_fallback(server: StreamingServer) -> None:
    newest = ReplayMarker("2999-01-01T00:00:00.000Z", 999_999)
    stored: dict[str, Any] = {EVENT: newest}
    async with client_for(server, replay=stored, replay_fallback=ReplayOption.NEW_EVENTS) as client:
        await client.subscribe(EVENT)
        assert stored[EVENT] == newest
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert stored[EVENT].replay_id == wanted[0]
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert stored[EVENT].replay_id == wanted[0]


@pytest.mark.parametrize(
    "error",
    [
        "403::No access on channel",
        "400::The channel you requested to subscribe to doesn't exist {/event/Low_Ink__e}",
        "403:denied_by_security_policy:create_denied",
        "403::Subscription limit exceeded for this topic",
    ],
)
async def test_other_refusals_are_no_reason_for_a_fallback(
    server: StreamingServer, error: str
) -> None:
    server.deny(EVENT, error)
    async with client_for(
        server, replay={EVENT: 1}, replay_fallback=ReplayOption.ALL_EVENTS
    ) as client:
        with pytest.raises(ServerError) as caught:
            await client.subscribe(EVENT)
        assert caught.value.error == error
        assert EVENT in str(caught.value)
        assert server.count("/meta/subscribe") == 1
        assert server.count("token") == 1
        assert client.subscriptions == set()


async def test_a_channel_without_a_resume_point_starts_again_and_says_so(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        subscribes = server.count("/meta/subscribe")
        server.add_fault(Delay(0.05), on="/meta/handshake")
        server.expire_sessions()
        server.publish(EVENT)
        await server.wait_for(lambda server: server.count("/meta/subscribe") > subscribes)
        await held(server)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert any(
            EVENT in record.getMessage() and "not delivered" in record.getMessage()
            for record in caplog.records
        )


# Storage trouble


class BrokenStorage(ReplayMarkerStorage):
    """A storage over a database that fails on demand."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}
        self.failures = 0

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("database is locked")

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the marker, or fail."""
        await asyncio.sleep(0)
        self._fail()
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store the marker, or fail."""
        await asyncio.sleep(0)
        self._fail()
        self.markers[subscription] = replay_marker


async def test_a_failing_storage_loses_nothing(server: StreamingServer) -> None:
    storage = BrokenStorage()
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        wanted = server.publish_many([(EVENT, None)] * 3)
        await until(lambda: client.pending_count == 3)
        received = []
        for position in range(3):
            storage.failures = 2
            for _ in range(2):
                with pytest.raises(ReplayError, match=EVENT) as caught:
                    await soon(client.receive())
                assert isinstance(caught.value.__cause__, OSError)
                assert client.pending_count == 3 - position
            received += await receive(client)
        assert received == wanted
        assert storage.markers[EVENT].replay_id == wanted[-1]


async def test_a_resume_point_in_memory_needs_no_storage(server: StreamingServer) -> None:
    storage = BrokenStorage()
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        storage.failures = 1
        server.expire_sessions()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


async def test_a_first_subscription_tells_that_the_storage_fails(server: StreamingServer) -> None:
    storage = BrokenStorage()
    storage.failures = 1
    async with client_for(server, replay=storage) as client:
        with pytest.raises(ReplayError, match="could not be read"):
            await client.subscribe(EVENT)
        await client.subscribe(EVENT)
        assert client.subscriptions == {EVENT}


@pytest.mark.parametrize("replay", [None, ReplayOption.NEW_EVENTS, ReplayOption.ALL_EVENTS])
@pytest.mark.parametrize(
    "data", [{}, {"event": {}}, {"event": {"replayId": 7}}, "text", None, {"payload": 1}, [1]]
)
async def test_an_odd_event_never_ends_a_stream_that_stores_nothing(
    server: StreamingServer, data: Any, replay: Any
) -> None:
    async with client_for(server, replay=replay) as client:
        await client.subscribe(EVENT)
        server.publish_data(EVENT, data)
        message = await soon(client.receive())
        assert message == {"channel": EVENT, "data": data}


@pytest.mark.parametrize(
    "data", [{}, {"event": {}}, {"event": {"replayId": 7}}, "text", {"payload": 1}]
)
async def test_an_odd_event_is_delivered_and_logged_where_markers_are_stored(
    server: StreamingServer, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stored: dict[str, Any] = {}
    async with client_for(server, replay=stored) as client:
        await client.subscribe(EVENT)
        for _ in range(2):
            server.publish_data(EVENT, data)
            assert (await soon(client.receive()))["data"] == data
            if data == {"event": {"replayId": 7}}:
                break
        warnings = [record for record in caplog.records if record.name == "aiosfstream.replay"]
        assert len(warnings) == 1
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        assert stored[EVENT].replay_id == wanted[0]


async def test_several_channels_in_order(server: StreamingServer) -> None:
    channels = (EVENT, TOPIC, CHANGE)
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        wanted: dict[str, list[Any]] = {channel: [] for channel in channels}
        for channel in channels:
            await client.subscribe(channel)
        for number in range(60):
            channel = channels[number % 3]
            wanted[channel].append(server.publish(channel))
            if number % 7 == 0:
                server.add_fault(CutAfter(), on=CONNECT)
        received: dict[str, list[Any]] = {channel: [] for channel in channels}
        for _ in range(60):
            message = await soon(client.receive())
            received[message["channel"]].append(replay_id(message))
        assert received == wanted
