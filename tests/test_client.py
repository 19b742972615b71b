"""The client's contract, and programs that were written for earlier releases."""

from __future__ import annotations

import asyncio
import dbm.dumb
import inspect
import json
import logging
import re
import shelve
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiocometd
import aiohttp
import orjson
import pytest
from aiocometd.constants import TransportState

import aiosfstream
from aiosfstream import (
    AuthenticationError,
    AuthenticatorBase,
    Client,
    ClientError,
    ClientInvalidOperation,
    ConstantReplayId,
    DefaultMappingStorage,
    MappingStorage,
    RefreshTokenAuthenticator,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SalesforceStreamingClient,
    ServerError,
    TransportError,
)
from aiosfstream import _tasks as tasks
from aiosfstream._cometd.client import ENGINES, mailbox_of, transport_of
from aiosfstream._tasks import uninterrupted
from aiosfstream.client import API_VERSION, COMETD_PATH, CometdClient
from aiosfstream.testing import (
    Garble,
    Hang,
    OAuthError,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
)
from tests.markers import SlowStorage
from tests.support import (
    CHANGE,
    EVENT,
    GENERIC,
    PATIENCE,
    TOPIC,
    FastAuthClient,
    FastClient,
    cancelled_at,
    client_for,
    held,
    receive,
    replay_id,
    soon,
    until,
)
from tests.test_policy import Flushing


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Making a client


def test_the_parameters_are_those_of_earlier_releases() -> None:
    parameters = list(inspect.signature(Client).parameters)
    assert parameters[:9] == [
        "authenticator",
        "replay",
        "replay_fallback",
        "replay_storage_policy",
        "connection_timeout",
        "max_pending_count",
        "json_dumps",
        "json_loads",
        "loop",
    ]


def test_a_wrong_authenticator_is_refused() -> None:
    with pytest.raises(TypeError, match="authenticator should be an instance of AuthenticatorBase"):
        Client("me")  # type: ignore[arg-type]


@pytest.mark.parametrize(("replay", "name"), [("x", "str"), (5, "int"), ([], "list")])
def test_a_wrong_replay_parameter_is_refused(replay: Any, name: str) -> None:
    authenticator = aiosfstream.PasswordAuthenticator("k", "s", "u", "p")
    with pytest.raises(TypeError, match=f"'{name}' is not a valid type for the replay parameter"):
        Client(authenticator, replay=replay)
    assert Client.create_replay_storage(replay) is None


def test_replay_parameters() -> None:
    storage = MappingStorage({})
    mapping: dict[str, Any] = {}
    assert Client.create_replay_storage(storage) is storage
    made = Client.create_replay_storage(mapping)
    assert isinstance(made, MappingStorage)
    assert made.mapping is mapping
    for option in ReplayOption:
        constant = Client.create_replay_storage(option)
        assert isinstance(constant, ConstantReplayId)
        assert constant.default_id == option
    nothing = Client.create_replay_storage(None)
    assert isinstance(nothing, ConstantReplayId)
    assert nothing.default_id == ReplayOption.NEW_EVENTS


@pytest.mark.parametrize("version", ["36.0", "66", "v66.0", "66.1", "", 66.0, None])
def test_a_wrong_api_version_is_refused(version: Any) -> None:
    authenticator = aiosfstream.PasswordAuthenticator("k", "s", "u", "p")
    with pytest.raises(ValueError, match="api_version"):
        Client(authenticator, api_version=version)


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_endpoint(slash: str) -> None:
    url = Client.get_cometd_url(f"https://x.my.salesforce.com{slash}")
    assert url == f"https://x.my.salesforce.com/{COMETD_PATH}/{API_VERSION}"
    url = Client.get_cometd_url(f"https://x.my.salesforce.com{slash}", "60.0")
    assert url == "https://x.my.salesforce.com/cometd/60.0"


def test_a_client_is_made_without_an_event_loop(recwarn: pytest.WarningsRecorder) -> None:
    made: list[Client] = []

    def make() -> None:
        made.append(Client(aiosfstream.PasswordAuthenticator("k", "s", "u", "p")))

    make()
    asyncio.run(asyncio.sleep(0))
    make()
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(made) == 3
    assert list(recwarn) == []


async def test_a_loop_is_ignored_with_a_warning() -> None:
    authenticator = aiosfstream.PasswordAuthenticator("k", "s", "u", "p")
    with pytest.warns(DeprecationWarning, match="loop"):
        Client(authenticator, loop=asyncio.get_running_loop())


# Opening and closing


async def test_open_receive_close(server: StreamingServer) -> None:
    client = client_for(server, replay=ReplayOption.ALL_EVENTS)
    assert client.closed
    assert client.state is TransportState.DISCONNECTED
    assert client.connection_type is None
    assert client.subscriptions == set()
    await client.open()
    assert not client.closed
    assert client.state is TransportState.CONNECTED
    assert client.connection_type is aiocometd.ConnectionType.LONG_POLLING
    assert client.url == f"{server.url}/cometd/{API_VERSION}"
    wanted = [server.publish(EVENT)]
    await client.subscribe(EVENT)
    assert client.subscriptions == {EVENT}
    await until(lambda: client.has_pending_messages)
    assert client.pending_count == 1
    assert await receive(client) == wanted
    await client.close()
    assert client.closed
    assert client.state is TransportState.DISCONNECTED
    assert client.subscriptions == set()
    assert server.sessions == []
    await client.close()
    assert server.count("/meta/disconnect") == 1


async def test_a_client_can_be_opened_again(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    client = client_for(server, replay=stored)
    for _ in range(3):
        async with client:
            await client.subscribe(EVENT)
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
    assert server.count("/meta/handshake") == 3


def test_a_client_can_be_opened_again_in_another_event_loop() -> None:
    async def run(client: Client | None) -> Client:
        async with StreamingServer() as server:
            client = client or client_for(server, replay=ReplayOption.ALL_EVENTS)
            # The server of the second loop is another one.
            setattr(client.authenticator, "_token_url", f"{server.url}/services/oauth2/token")  # noqa: B010 - read-only to type checkers
            async with client:
                wanted = [server.publish(EVENT)]
                await client.subscribe(EVENT)
                assert await receive(client) == wanted
        return client

    client = asyncio.run(run(None))
    asyncio.run(run(client))


async def test_opening_twice(server: StreamingServer) -> None:
    async with client_for(server) as client:
        with pytest.raises(ClientInvalidOperation, match="already open"):
            await client.open()
        await client.subscribe(EVENT)


async def test_opening_twice_at_once(server: StreamingServer) -> None:
    client = client_for(server)
    results = await asyncio.gather(client.open(), client.open(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ClientInvalidOperation]
    await client.subscribe(EVENT)
    await client.close()


async def test_pending_messages_survive_the_end(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    async with client_for(server, replay=stored) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 3)
        await until(lambda: client.pending_count == 3)
    assert await receive(client, 2) == wanted[:2]
    assert stored[EVENT].replay_id == wanted[1]
    assert [replay_id(message) async for message in client] == wanted[2:]
    with pytest.raises(ClientInvalidOperation, match="closed"):
        await client.receive()


async def test_what_is_pending_is_dropped_by_opening_anew(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_for(server, replay=ReplayOption.ALL_EVENTS)
    async with client:
        await client.subscribe(EVENT)
        server.publish(EVENT)
        await until(lambda: client.pending_count == 1)
    async with client:
        assert client.pending_count == 0
    assert any("1 messages" in record.getMessage() for record in caplog.records)


async def test_closing_wakes_who_waits(server: StreamingServer) -> None:
    client = client_for(server)
    await client.open()

    async def iterate() -> list[Any]:
        return [message async for message in client]

    waiting = [asyncio.create_task(iterate()), asyncio.create_task(client.receive())]
    await held(server)
    await soon(client.close())
    assert await soon(waiting[0]) == []
    with pytest.raises(ClientInvalidOperation):
        await soon(waiting[1])


@pytest.mark.parametrize("operation", ["subscribe", "unsubscribe", "publish", "receive"])
async def test_nothing_works_while_it_is_closed(server: StreamingServer, operation: str) -> None:
    arguments: Any = {"publish": ("/x", {}), "receive": ()}.get(operation, ("/x",))
    client = client_for(server)
    with pytest.raises(ClientInvalidOperation):
        await getattr(client, operation)(*arguments)
    async with client:
        pass
    with pytest.raises(ClientInvalidOperation):
        await getattr(client, operation)(*arguments)


@pytest.mark.parametrize(
    ("fault", "on", "error"),
    [
        (OAuthError("invalid_grant", "authentication failure"), "token", AuthenticationError),
        (Status(503), "token", AuthenticationError),
        (Status(503), "/meta/handshake", TransportError),
        (Garble(), "/meta/connect", TransportError),
        (Refuse("400::Unsupported API version."), "/meta/handshake", ServerError),
        (
            Refuse("403::Organization concurrent user limit exceeded"),
            "/meta/handshake",
            ServerError,
        ),
        (Refuse("500::x", advice={"reconnect": "retry"}), "/meta/connect", ServerError),
        (
            Status(302, headers={"Location": "https://login.example/"}),
            "/meta/handshake",
            TransportError,
        ),
    ],
    ids=str,
)
async def test_a_failed_opening_leaves_nothing_and_can_be_repeated(
    server: StreamingServer, fault: Any, on: str, error: type[Exception]
) -> None:
    sessions: list[aiohttp.ClientSession] = []

    def factory(**options: Any) -> aiohttp.ClientSession:
        sessions.append(aiohttp.ClientSession(**options))
        return sessions[-1]

    client = client_for(server, session_factory=factory)
    server.add_fault(fault, on=on)
    tasks = asyncio.all_tasks()
    with pytest.raises(error):
        await client.open()
    assert client.closed
    assert [session.closed for session in sessions] == [True]
    assert {
        task for task in asyncio.all_tasks() - tasks if "aiosfstream" in task.get_name()
    } == set()
    async with client:
        await client.subscribe(EVENT)


async def test_opening_does_not_wait_for_a_server_that_is_down(server: StreamingServer) -> None:
    client = client_for(server)
    await server.pause()
    with pytest.raises(AuthenticationError, match="Network request failed") as caught:
        await soon(client.open())
    assert caught.value.retryable
    await server.resume()


async def test_opening_makes_up_for_one_refused_token(server: StreamingServer) -> None:
    server.add_fault(RevokeTokens(), on="/meta/handshake")
    async with client_for(server):
        assert server.count("token") == 2
    server.add_fault(RevokeTokens(), on="/meta/handshake", times=2)
    with pytest.raises(AuthenticationError, match="also after logging in again"):
        await client_for(server).open()


async def test_opening_makes_up_for_one_lost_session(server: StreamingServer) -> None:
    unknown = Refuse("403::Unknown client", advice={"reconnect": "handshake"})
    server.add_fault(unknown, on="/meta/connect")
    async with client_for(server):
        assert server.count("/meta/handshake") == 2
    server.add_fault(unknown, on="/meta/connect", times=2)
    with pytest.raises(ServerError, match="Unknown client"):
        await client_for(server).open()


async def test_what_waits_to_be_stored_is_stored_before_receiving_waits(
    server: StreamingServer,
) -> None:
    storage = Flushing()
    storage.begins = True
    async with client_for(server, replay=storage) as client:
        await held(server)
        before = storage.flushes
        receiving = asyncio.create_task(client.receive())
        await until(lambda: storage.flushes > before)
        receiving.cancel()
        await asyncio.wait([receiving])


async def test_an_end_is_told_once(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await held(server)
        refused = Refuse("400::Something else", advice={"reconnect": "none"})
        server.add_fault(refused, on="/meta/connect", times=9)
        server.expire_sessions()
        with pytest.raises(ServerError, match="Something else"):
            await soon(client.receive())
        with pytest.raises(ClientInvalidOperation):
            await soon(client.receive())


async def test_an_end_is_told_though_the_call_that_was_to_tell_it_is_cancelled(
    server: StreamingServer,
) -> None:
    refused = Refuse("400::Something else", advice={"reconnect": "none"})
    for number in range(1, 30):
        client = client_for(server)
        await client.open()
        await held(server)
        planned = server.add_fault(refused, on="/meta/connect", times=9)
        server.expire_sessions()
        await until(lambda: client.state is TransportState.SERVER_DISCONNECTED)  # noqa: B023
        server.clear_faults(planned)
        try:
            await cancelled_at(client.receive(), number)
        except ServerError:
            break
        with pytest.raises(ServerError, match="Something else"):
            await soon(client.receive())
        assert client.closed
    assert 1 < number < 29


async def test_an_end_that_was_not_told_is_not_that_of_the_next_session(
    server: StreamingServer,
) -> None:
    client = client_for(server)
    ENGINES.of(client).untold = TransportError("as if the call that was to tell it was cancelled")
    async with client:
        pass
    with pytest.raises(ClientInvalidOperation):
        await client.receive()


async def test_a_store_that_hangs_does_not_hold_up_the_next_session(
    server: StreamingServer,
) -> None:
    storage = SlowStorage()
    storage.gate.clear()
    client = client_for(server, replay=storage)
    async with client:
        await client.subscribe(EVENT)
        server.publish(EVENT)
        await until(lambda: client.pending_count == 1)
        hanging = asyncio.create_task(client.receive())
        await until(lambda: client.pending_count == 0)
    client.replay_storage = MappingStorage({})
    async with client:
        await client.subscribe(EVENT)
        number = server.publish(EVENT)
        assert await receive(client) == [number]
    storage.gate.set()
    await soon(hanging)


async def test_a_client_that_is_closed_holds_no_connection_of_a_shared_connector(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    connector = aiohttp.TCPConnector(limit=2)
    factory = partial(aiohttp.ClientSession, connector=connector, connector_owner=False)
    client = client_for(server, session_factory=factory)
    for _ in range(3):
        async with client:
            await held(server)
    assert "share a connector" not in caplog.text
    await connector.close()


async def test_a_small_connector_of_a_clients_own_is_not_shared(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    def factory(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1), **options)

    async with client_for(server, session_factory=factory):
        assert "share a connector" not in caplog.text


async def test_an_opening_that_is_cancelled_and_closed_at_once_is_cancelled(
    server: StreamingServer,
) -> None:
    server.add_fault(Hang(), on="/meta/handshake")
    client = client_for(server)
    opening = tasks.start(client.open(), "opening")
    await server.wait_for(lambda server: server.count("/meta/handshake") == 1)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening, closing], timeout=PATIENCE)
    assert opening.cancelled()
    assert client.closed


async def test_only_the_opening_that_was_closed_is_told_so(server: StreamingServer) -> None:
    server.add_fault(Hang(), on="/meta/handshake", times=2)
    client = client_for(server)
    for count in (1, 2):
        opening = asyncio.create_task(client.open())
        await server.wait_for(lambda server: server.count("/meta/handshake") == count)  # noqa: B023
        if count == 1:
            await soon(client.close())
            with pytest.raises(ClientInvalidOperation, match="closed while it was being opened"):
                await soon(opening)
        else:
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(opening)


async def test_closing_that_is_cancelled_still_waits_for_what_is_under_way(
    server: StreamingServer,
) -> None:
    client = client_for(server)
    await client.open()
    transport = transport_of(client)
    assert transport is not None
    begun, cancelled, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def finish_first() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            while not gate.is_set():
                with suppress(asyncio.CancelledError):
                    await gate.wait()

    under_way = transport._requests.run(finish_first(), "a log-in with a new refresh token")
    await begun.wait()
    closing = asyncio.create_task(client.close())
    await soon(cancelled.wait())
    closing.cancel()
    await asyncio.wait({closing}, timeout=0.05)
    was_done = closing.done()
    gate.set()
    assert not was_done
    with pytest.raises(asyncio.CancelledError):
        await soon(closing)
    assert under_way.done()
    assert client.closed


async def test_closing_leaves_nothing_where_a_test_has_replaced_the_inherited_method(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def close(client: aiocometd.Client) -> None:
        pass

    client = client_for(server)
    await client.open()
    await held(server)
    monkeypatch.setattr(aiocometd.Client, "close", close)
    # What is under way is ended, not waited for.
    await soon(client.close(), 2.0)
    left = {task.get_name() for task in asyncio.all_tasks() if "aiosfstream" in task.get_name()}
    assert left == set()


@pytest.mark.parametrize("offered", [["websocket"], "long-polling", None, 5])
async def test_no_common_connection_type(server: StreamingServer, offered: Any) -> None:
    reply = [
        {
            "channel": "/meta/handshake",
            "successful": True,
            "clientId": "x",
            "supportedConnectionTypes": offered,
        }
    ]
    server.add_fault(Garble(json.dumps(reply).encode()), on="/meta/handshake")
    with pytest.raises(ClientError, match=re.escape(f"are supported: {offered}")):
        await client_for(server).open()


async def test_closing_is_bounded_whatever_the_server_does(server: StreamingServer) -> None:
    async with client_for(server, request_timeout=30.0) as client:
        await client.subscribe(EVENT)
        server.add_fault(Hang(), on="/meta/disconnect")
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 4


async def test_the_error_of_the_body_is_not_masked(server: StreamingServer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client_for(server) as client:
            await client.subscribe(EVENT)
            server.revoke_tokens()
            raise ZeroDivisionError


# Details of the wire


async def test_the_handshake_announces_replay(server: StreamingServer) -> None:
    async with client_for(server):
        pass
    handshake = next(r for r in server.requests if r.channel == "/meta/handshake").messages[0]
    assert handshake["ext"]["replay"] is True
    assert handshake["supportedConnectionTypes"] == ["long-polling"]
    assert handshake["version"] == "1.0"


async def test_a_missing_replay_support_is_told(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    reply = [
        {
            "channel": "/meta/handshake",
            "successful": True,
            "clientId": "x",
            "supportedConnectionTypes": ["long-polling"],
        }
    ]
    server.add_fault(Garble(json.dumps(reply).encode()), on="/meta/handshake")
    async with client_for(server):
        pass
    assert any("replay extension" in record.getMessage() for record in caplog.records)


async def test_a_filtered_pushtopic(server: StreamingServer) -> None:
    first = server.publish(TOPIC, {"Status": "new"})
    async with client_for(server, replay={TOPIC: first}) as client:
        channel = f"{TOPIC}?Status=open"
        await client.subscribe(channel)
        assert client.subscriptions == {channel}
        server.publish(TOPIC, {"Status": "closed"})
        wanted = [server.publish(TOPIC, {"Status": "open"})]
        assert await receive(client) == wanted
        server.expire_sessions()
        wanted = [server.publish(TOPIC, {"Status": "open"})]
        assert await receive(client) == wanted
    sent = [
        request.messages[0]["ext"]["replay"]
        for request in server.requests
        if request.channel == "/meta/subscribe"
    ]
    assert [list(replay) for replay in sent] == [[TOPIC], [TOPIC]]


@pytest.mark.parametrize("text", [False, True])
async def test_replay_ids_keep_their_type(text: bool) -> None:
    async with StreamingServer(text_replay_ids=text) as server:
        first = server.publish(EVENT)
        stored: dict[str, Any] = {EVENT: first}
        async with client_for(server, replay=stored) as client:
            await client.subscribe(EVENT)
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
            assert type(wanted[0]) is (str if text else int)
            server.expire_sessions()
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
        assert stored[EVENT].replay_id == wanted[0]


async def test_replay_id_zero_is_an_id(server: StreamingServer) -> None:
    server.publish_data(EVENT, {"event": {"replayId": 0}}, 0)
    wanted = [server.publish(EVENT)]
    async with client_for(server, replay={EVENT: 0}) as client:
        await client.subscribe(EVENT)
        assert await receive(client) == wanted


async def test_a_start_for_one_subscription(server: StreamingServer) -> None:
    ids = [server.publish(EVENT) for _ in range(3)]
    async with client_for(server, replay={EVENT: ids[2]}) as client:
        await client.subscribe(EVENT, replay=ids[0])
        assert await receive(client, 2) == ids[1:]
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        assert await receive(client, 3) == ids
        await client.subscribe(EVENT, replay=ReplayMarker("", int(ids[1])))
        assert await receive(client) == ids[2:]


async def test_concurrent_subscriptions_do_not_mix_their_starts(server: StreamingServer) -> None:
    channels = [f"/event/Channel{number}__e" for number in range(5)]
    ids = {channel: [server.publish(channel) for _ in range(2)] for channel in channels}
    async with client_for(server) as client:
        await asyncio.gather(
            *(client.subscribe(channel, replay=ids[channel][0]) for channel in channels)
        )
        received = {replay_id(await soon(client.receive())) for _ in channels}
        assert received == {ids[channel][1] for channel in channels}


@pytest.mark.parametrize("slash", [False, True])
async def test_instance_urls_with_and_without_a_slash(slash: bool) -> None:
    async with StreamingServer(slash=slash) as server, client_for(server) as client:
        assert "//cometd" not in client.url


async def test_the_api_version_is_used(server: StreamingServer) -> None:
    async with client_for(server, api_version="60.0") as client:
        assert client.url.endswith("/cometd/60.0")
    assert {r.path for r in server.requests if r.kind == "cometd"} == {"/cometd/60.0"}


async def test_closing_amid_messages_and_errors_repeats_nothing(server: StreamingServer) -> None:
    wanted = [server.publish(EVENT) for _ in range(4)]
    received = []
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await until(lambda: client.pending_count == len(wanted))
        async for message in client:
            received.append(replay_id(message))
            if len(received) == 1:
                mailbox = mailbox_of(client)
                assert mailbox is not None
                last = mailbox.items.pop()
                mailbox.fail(ServerError("Lost.", {"channel": "/meta/subscribe"}))
                mailbox.items.append(last)
                await client.close()
    assert received == wanted


async def test_cookies_come_back_as_they_were(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
    later = [r for r in server.requests if r.channel not in ("", "/meta/handshake")]
    assert all("sfdc-stream=!//QiKCtgRz/8Ow+tEsT1ng=" in r.headers["Cookie"] for r in later)


async def test_two_clients_share_no_cookies(server: StreamingServer) -> None:
    async with client_for(server), client_for(server):
        cookies = {session.cookie for session in server.sessions}
        assert len(cookies) == 2


async def test_a_poll_timeout_is_sent(server: StreamingServer) -> None:
    async with client_for(server, poll_timeout=0.05):
        await server.wait_for(lambda server: server.count("/meta/connect") >= 3)
    connects = [r.messages[0] for r in server.requests if r.channel == "/meta/connect"]
    assert [connect["advice"] for connect in connects[:2]] == [{"timeout": 0}, {"timeout": 50}]


async def test_a_proxy_is_used_for_all_requests(server: StreamingServer) -> None:
    seen: list[str] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head.split()[1].decode())
        writer.write(b"HTTP/1.1 503 Proxy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    factory = partial(aiohttp.ClientSession, proxy=f"http://127.0.0.1:{port}")
    with pytest.raises(AuthenticationError):
        await client_for(server, session_factory=factory).open()
    listener.close()
    await listener.wait_closed()
    assert seen == [f"{server.url}/services/oauth2/token"]


# Programs of earlier releases


async def test_async_for_over_the_kinds_of_mapping(server: StreamingServer, tmp_path: Path) -> None:
    shelf = shelve.open(str(tmp_path / "shelf"))  # noqa: SIM115
    mapping: Any
    for mapping in ({}, OrderedDict(), shelf, DefaultMappingStorage({}, ReplayOption.ALL_EVENTS)):
        async with client_for(server, replay=mapping) as client:
            await client.subscribe(EVENT)
            server.publish(EVENT)
            async for message in client:
                last = replay_id(message)
                break
        stored = mapping.mapping if isinstance(mapping, DefaultMappingStorage) else mapping
        assert stored[EVENT].replay_id == last
    shelf.close()


async def test_a_shelf_of_the_old_release(server: StreamingServer, tmp_path: Path) -> None:
    for name in ("markers-0.5.0.dat", "markers-0.5.0.dir"):
        data = (Path(__file__).parent / "data" / name).read_bytes()
        (tmp_path / name).write_bytes(data)
    database: Any = dbm.dumb.open(str(tmp_path / "markers-0.5.0"))  # noqa: SIM115
    shelf: shelve.Shelf[Any] = shelve.Shelf(database)
    channel, marker = next(iter(shelf.items()))
    assert type(marker) is ReplayMarker
    server.publish_data(channel, {"event": {"replayId": marker.replay_id}}, marker.replay_id)
    wanted = [server.publish(channel)]
    async with client_for(server, replay=shelf) as client:
        await client.subscribe(channel)
        assert await receive(client) == wanted
    assert shelf[channel].replay_id == wanted[0]
    shelf.close()


async def test_a_storage_over_a_database(server: StreamingServer) -> None:
    class Database(ReplayMarkerStorage):
        """Written as the old documentation shows: nothing but the two methods."""

        rows: dict[str, tuple[str, int]] = {}  # noqa: RUF012

        async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
            await asyncio.sleep(0)
            row = self.rows.get(subscription)
            return None if row is None else ReplayMarker(*row)

        async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
            await asyncio.sleep(0)
            self.rows[subscription] = (replay_marker.date, replay_marker.replay_id)

    for channel in (EVENT, TOPIC, GENERIC, CHANGE):
        async with client_for(server, replay=Database()) as client:
            await client.subscribe(channel)
            wanted = [server.publish(channel)]
            assert await receive(client) == wanted
            assert Database.rows[channel][1] == wanted[0]


async def test_the_manual_policy(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    policy = ReplayMarkerStoragePolicy.MANUAL
    async with client_for(server, replay=stored, replay_storage_policy=policy) as client:
        await client.subscribe(EVENT)
        first, second = server.publish(EVENT), server.publish(EVENT)
        message = await soon(client.receive())
        assert stored == {}
        async with client.replay_storage(message):
            assert stored == {}
        assert stored[EVENT].replay_id == first
        message = await soon(client.receive())
        with pytest.raises(ZeroDivisionError):
            async with client.replay_storage(message):
                raise ZeroDivisionError
        assert replay_id(message) == second
        assert stored[EVENT].replay_id == first


async def test_the_manual_policy_in_async_for(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    policy = ReplayMarkerStoragePolicy.MANUAL
    async with client_for(server, replay=stored, replay_storage_policy=policy) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 3)
        received: list[Any] = []
        async for message in client:
            assert len(received) == 0 or stored[EVENT].replay_id == received[-1]
            async with client.replay_storage(message):
                received.append(replay_id(message))
            if len(received) == 3:
                break
        assert received == wanted


async def test_an_authenticator_with_one_method(server: StreamingServer) -> None:
    class Mine(AuthenticatorBase):
        """Written as the old documentation shows."""

        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            token = server.new_access_token()
            return 200, {"access_token": token, "instance_url": server.url, "token_type": "Bearer"}

    async with FastAuthClient(Mine(), replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        server.revoke_tokens()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted


async def test_a_refresh_token(server: StreamingServer) -> None:
    authenticator = RefreshTokenAuthenticator(
        "consumer-key", "consumer-secret", server.refresh_token, login_url=server.login_url
    )
    async with FastAuthClient(authenticator) as client:
        await client.subscribe(EVENT)


async def test_orjson(server: StreamingServer) -> None:
    options = {"json_dumps": orjson.dumps, "json_loads": orjson.loads}
    async with client_for(server, replay=ReplayOption.ALL_EVENTS, **options) as client:
        wanted = [server.publish(EVENT)]
        await client.subscribe(EVENT)
        assert await receive(client) == wanted
        assert client.authenticator.json_loads is orjson.loads


async def test_aiocometds_exceptions_catch_ours(server: StreamingServer) -> None:
    server.deny(EVENT, "403::Restricted channel")
    async with client_for(server) as client:
        with pytest.raises(aiocometd.exceptions.ServerError) as caught:
            await client.subscribe(EVENT)
        assert isinstance(caught.value, ServerError)
    with pytest.raises(aiocometd.exceptions.ClientInvalidOperation):
        await client.receive()


async def test_a_mixin_takes_part(server: StreamingServer) -> None:
    calls: list[str] = []

    class Mixin(CometdClient):
        async def receive(self) -> dict[str, Any]:
            calls.append("receive")
            return await super().receive()

        async def subscribe(self, channel: str) -> None:
            calls.append("subscribe")
            await super().subscribe(channel)

        async def open(self) -> None:
            calls.append("open")
            await super().open()

        async def close(self) -> None:
            calls.append("close")
            await super().close()

    class Mixed(SalesforceStreamingClient, Mixin):
        pass

    async with Mixed(**server.credentials, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        for _ in range(3):
            server.publish(EVENT)
        received = 0
        async for _ in client:
            received += 1
            if received == 3:
                break
    assert calls == ["open", "subscribe", "receive", "receive", "receive", "close"]


async def test_a_replaced_method_is_called(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(self: Any) -> dict[str, Any]:
        raise aiocometd.exceptions.TransportError("replaced")

    async with client_for(server) as client:
        monkeypatch.setattr(CometdClient, "receive", failing)
        for receiving in (client.receive(), client.__aiter__().__anext__()):
            with pytest.raises(TransportError, match="replaced"):
                await receiving


async def test_an_overridden_extraction_is_honoured(server: StreamingServer) -> None:
    seen: list[Any] = []

    class Mine(MappingStorage):
        async def extract_replay_id(self, message: dict[str, Any]) -> None:
            seen.append(replay_id(message))
            await super().extract_replay_id(message)

    async with client_for(server, replay=Mine({})) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 2)
        received: list[Any] = []
        async for message in client:
            received.append(replay_id(message))
            if len(received) == 2:
                break
    assert seen == received == wanted


async def test_a_mapping_that_fails_in_async_for(server: StreamingServer) -> None:
    class Failing(dict[str, Any]):
        failing = True

        def __setitem__(self, key: str, value: Any) -> None:
            if self.failing:
                raise OSError("disk full")
            super().__setitem__(key, value)

    stored = Failing()
    async with client_for(server, replay=stored) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 2)
        await until(lambda: client.pending_count == 2)
        with pytest.raises(ReplayError, match=EVENT):
            async for _ in client:
                pass
        assert client.pending_count == 2
        stored.failing = False
        assert await receive(client, 2) == wanted


async def test_several_tasks_receive_in_turn(server: StreamingServer) -> None:
    stored: list[Any] = []

    class Slow(ReplayMarkerStorage):
        async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
            return None

        async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
            await asyncio.sleep(0.001)
            stored.append(replay_marker.replay_id)

    async with client_for(server, replay=Slow()) as client:
        await client.subscribe(EVENT, replay=-2)
        wanted = server.publish_many([(EVENT, None)] * 20)
        received = await soon(asyncio.gather(*(client.receive() for _ in range(20))))
        assert [replay_id(message) for message in received] == wanted
        assert stored == wanted


# What is logged


async def test_the_records_that_operators_look_for(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiosfstream.client")
    options = {"replay": {EVENT: 777}, "replay_fallback": ReplayOption.ALL_EVENTS}
    async with client_for(server, **options) as client:
        await client.subscribe(EVENT)
    records = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(level == "DEBUG" and "777" in text for level, text in records)
    assert any(level == "DEBUG" and "PasswordAuthenticator" in text for level, text in records)
    assert any(level == "INFO" and server.url in text for level, text in records)
    warnings_ = [text for level, text in records if level == "WARNING"]
    assert len(warnings_) == 1
    assert "was invalid" in warnings_[0]
    assert "-2" in warnings_[0]


async def test_an_observer_that_fails_harms_nothing(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    def observer(event: aiosfstream.ConnectionEvent) -> None:
        raise ZeroDivisionError

    async with client_for(server, observer=observer, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    assert any("observer failed" in record.getMessage() for record in caplog.records)


async def test_the_connection_is_told_of(server: StreamingServer) -> None:
    events: list[aiosfstream.ConnectionEvent] = []
    async with client_for(server, observer=events.append, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        server.revoke_tokens()
        last = wanted[0]
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    kinds = [event.kind.value for event in events]
    assert kinds == [
        "connected",
        "connection lost",
        "retrying",
        "re-authenticated",
        "session renewed",
        "channel resumed",
        "connected",
        "closed",
    ]
    resumed = next(event for event in events if event.channel is not None)
    assert (resumed.channel, resumed.replay_id) == (EVENT, last)


def test_the_representation_has_no_secret() -> None:
    client = SalesforceStreamingClient(
        consumer_key="key", consumer_secret="hush", username="user", password="quiet"
    )
    assert "user" in repr(client)
    assert "hush" not in repr(client)
    assert "quiet" not in repr(client)


# Details of iterating


async def test_a_policy_that_changes_while_iterating(server: StreamingServer) -> None:
    stored: dict[str, Any] = {}
    async with client_for(server, replay=stored) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 4)
        await until(lambda: client.pending_count == 4)
        received: list[Any] = []
        async for message in client:
            received.append(replay_id(message))
            if len(received) == 2:
                assert stored[EVENT].replay_id == wanted[1]
                client.replay_storage_policy = ReplayMarkerStoragePolicy.MANUAL
            if len(received) == 4:
                break
        assert received == wanted
        assert stored[EVENT].replay_id == wanted[1]


async def test_a_receive_of_ones_own_is_called_while_iterating(server: StreamingServer) -> None:
    calls = 0
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        inherited = client.receive

        async def receive_and_count() -> Any:
            nonlocal calls
            calls += 1
            return await inherited()

        client.receive = receive_and_count  # type: ignore[method-assign]
        wanted = server.publish_many([(EVENT, None)] * 2)
        received: list[Any] = []
        async for message in client:
            received.append(replay_id(message))
            if len(received) == 2:
                break
        assert (received, calls) == (wanted, 2)


class Verifying(FastClient):
    """Looks at each message in a way of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.verified: list[Any] = []

    def _verify_response(self, response: Any) -> None:
        self.verified.append(response)
        super()._verify_response(response)


async def test_a_check_of_ones_own_is_called_while_iterating(server: StreamingServer) -> None:
    async with Verifying(**server.credentials) as client:
        await client.subscribe(EVENT)
        server.publish_many([(EVENT, None)] * 3)
        received: list[Any] = []
        async for message in client:
            received.append(message)
            if len(received) == 3:
                break
        assert client.verified[-3:] == received


async def test_an_event_that_calls_itself_unsuccessful(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        event = {"channel": EVENT, "data": {}, "successful": False}
        connect = {"channel": "/meta/connect", "successful": True}
        await held(server)
        server.add_fault(Garble(json.dumps([event, connect]).encode()), on="/meta/connect")
        # The first answers the connect that is held already, the second the one that is garbled.
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        await held(server)
        server.publish(EVENT)
        await until(lambda: client.pending_count == 1)
        with pytest.raises(ServerError):
            await soon(client.__aiter__().__anext__())


async def test_a_storage_of_ones_own_that_raises_a_replay_error(server: StreamingServer) -> None:
    class Failing(dict[str, Any]):
        failing = True

        def __setitem__(self, key: str, value: Any) -> None:
            if self.failing:
                raise ReplayError("of my own")
            super().__setitem__(key, value)

    stored = Failing()
    async with client_for(server, replay=stored) as client:
        await client.subscribe(EVENT)
        wanted = server.publish_many([(EVENT, None)] * 2)
        await until(lambda: client.pending_count == 2)
        for receiving in (client.receive(), client.__aiter__().__anext__()):
            with pytest.raises(ReplayError, match="of my own"):
                await receiving
        assert client.pending_count == 2
        stored.failing = False
        assert await receive(client, 2) == wanted


async def test_an_extraction_of_ones_own_that_fails(server: StreamingServer) -> None:
    class Mine(MappingStorage):
        async def extract_replay_id(self, message: dict[str, Any]) -> None:
            raise KeyError("a mistake")

    async with client_for(server, replay=Mine({})) as client:
        await client.subscribe(EVENT)
        server.publish(EVENT)
        with pytest.raises(ReplayError, match="a mistake"):
            await soon(client.receive())
        assert client.pending_count == 1


async def test_what_cannot_be_released_is_told() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    assert isinstance(await uninterrupted(fail()), ZeroDivisionError)
