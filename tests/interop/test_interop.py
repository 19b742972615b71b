"""The client against the CometD project's own server."""

from __future__ import annotations

import asyncio
import json
import shelve
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aiosfstream import (
    AuthenticationError,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    RefreshTokenAuthenticator,
    ReplayMarker,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    ServerError,
    SQLiteStorage,
    TransportError,
    TransportTimeoutError,
)
from tests.interop.harness import NodeServer
from tests.support import (
    CHANGE,
    EVENT,
    GENERIC,
    TOPIC,
    FastAuthClient,
    FastClient,
    receive,
    replay_id,
    soon,
    until,
)

CONNECT = "/meta/connect"
KINDS = [EVENT, TOPIC, GENERIC, CHANGE]
ALL = ReplayOption.ALL_EVENTS
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CERTIFICATE = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
PRIVATE_KEY = KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)

Trouble = Callable[[NodeServer], Awaitable[None]]


def client_for(node: NodeServer, **options: Any) -> FastClient:
    """Make a client that logs in at *node*."""
    options.setdefault("request_timeout", 2.0)
    return FastClient(**node.credentials, **options)


@asynccontextmanager
async def streaming(node: NodeServer, *channels: str, **options: Any) -> AsyncIterator[FastClient]:
    """Open a client that has had an event on each of *channels* and waits for more."""
    async with client_for(node, **options) as client:
        for channel in channels:
            await client.subscribe(channel)
        wanted = await node.publish(*channels)
        assert sorted(await receive(client, len(channels))) == wanted
        await node.held()
        yield client


# Events and where they start


@pytest.mark.parametrize("channel", KINDS)
async def test_the_four_kinds_of_event(node: NodeServer, channel: str) -> None:
    stored: dict[str, Any] = {}
    async with client_for(node, replay=stored) as client:
        await client.subscribe(channel)
        wanted = await node.publish(channel)
        message = await soon(client.receive())
        assert message["channel"] == channel
        assert [replay_id(message)] == wanted
        assert stored[channel].replay_id == wanted[0]
        assert stored[channel].date


@pytest.mark.parametrize(("start", "old"), [(-2, [0, 1, 2]), (-1, []), ("first", [1, 2])])
async def test_replay_options_and_ids(node: NodeServer, start: Any, old: list[int]) -> None:
    stored = await node.publish(EVENT, EVENT, EVENT)
    async with client_for(node) as client:
        await client.subscribe(EVENT, replay=stored[0] if start == "first" else start)
        wanted = [stored[index] for index in old] + await node.publish(EVENT)
        assert await receive(client, len(wanted)) == wanted


@pytest.mark.parametrize("ids", [[0, 7, 3], ["a", "c", "b"]])
async def test_replay_ids_are_opaque(node: NodeServer, ids: list[Any]) -> None:
    first, second, third = await node.publish(EVENT, EVENT, EVENT, ids=ids)
    async with client_for(node, replay={EVENT: first}) as client:
        await client.subscribe(EVENT)
        assert await receive(client, 2) == [second, third]
        await node.expire()
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted


async def test_events_in_the_answer_to_a_subscription(node: NodeServer) -> None:
    wanted = await node.publish(*[EVENT] * 5)
    async with client_for(node, replay=ALL) as client:
        await client.subscribe(EVENT)
        # They are here already, before any connect could have brought them.
        assert client.pending_count == 5
        assert await receive(client, 5) == wanted


async def test_unsubscribe(node: NodeServer) -> None:
    async with streaming(node, EVENT, TOPIC) as client:
        await client.unsubscribe(EVENT)
        assert client.subscriptions == {TOPIC}
        assert await node.subscriptions() == [TOPIC]
        _, wanted = await node.publish(EVENT, TOPIC)
        assert await receive(client) == [wanted]


async def test_subscribe_again_after_unsubscribe(node: NodeServer) -> None:
    async with streaming(node, EVENT, replay=ALL) as client:
        await client.unsubscribe(EVENT)
        await node.publish(EVENT)
        await client.subscribe(EVENT, replay=ReplayOption.NEW_EVENTS)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted


async def test_two_clients_have_their_own_events(node: NodeServer) -> None:
    async with client_for(node) as one, client_for(node) as other:
        await one.subscribe(EVENT)
        await other.subscribe(EVENT)
        await other.subscribe(TOPIC)
        wanted = await node.publish(EVENT, TOPIC)
        assert await receive(one) == wanted[:1]
        assert await receive(other, 2) == wanted
        assert await node.sessions() == 2
        cookies = {request["cookie"] for request in await node.requests(CONNECT)}
        assert len(cookies) == 2


async def test_publish_over_cometd(node: NodeServer) -> None:
    async with client_for(node) as client, client_for(node) as other:
        await client.subscribe("/chat")
        reply = await other.publish("/chat", {"text": "hello"})
        assert reply["successful"] is True
        assert (await soon(client.receive()))["data"] == {"text": "hello"}


# Markers


async def test_resume_from_a_shelf_after_a_restart(node: NodeServer, tmp_path: Path) -> None:
    path = str(tmp_path / "markers")
    with shelve.open(path) as shelf:
        async with streaming(node, EVENT, TOPIC, replay=shelf):
            pass
    wanted = await node.publish(EVENT, TOPIC, EVENT)
    await node.restart()
    with shelve.open(path) as shelf:
        assert all(isinstance(shelf[channel], ReplayMarker) for channel in (EVENT, TOPIC))
        async with client_for(node, replay=shelf) as client:
            await client.subscribe(EVENT)
            await client.subscribe(TOPIC)
            assert sorted(await receive(client, 3)) == wanted
        assert shelf[EVENT].replay_id == wanted[2]


async def test_a_marker_stays_behind_what_was_processed(node: NodeServer, tmp_path: Path) -> None:
    policy = ReplayMarkerStoragePolicy.MANUAL
    async with SQLiteStorage(tmp_path / "markers.sqlite", default_id=-2) as storage:
        options = {"replay": storage, "replay_storage_policy": policy}
        async with client_for(node, **options) as client:
            await client.subscribe(EVENT)
            wanted = await node.publish(EVENT, EVENT, EVENT)
            async with client.replay_storage(await soon(client.receive())):
                pass
            with pytest.raises(ZeroDivisionError):
                async with client.replay_storage(await soon(client.receive())):
                    raise ZeroDivisionError
        async with client_for(node, **options) as client:
            await client.subscribe(EVENT)
            assert await receive(client, 2) == wanted[1:]


# Refusals


@pytest.mark.parametrize(
    "error",
    [
        "403::No access on channel",
        "403:denied_by_security_policy:create_denied",
        "404::Unknown channel",
        f"400::The channel you requested to subscribe to doesn't exist {{{EVENT}}}",
    ],
)
async def test_a_refused_subscription(node: NodeServer, error: str) -> None:
    await node.deny(EVENT, error)
    async with client_for(node, replay={EVENT: -2}, replay_fallback=ALL) as client:
        with pytest.raises(ServerError) as caught:
            await client.subscribe(EVENT)
        assert caught.value.error == error
        assert EVENT in str(caught.value)
        assert client.subscriptions == set()
        # It is not for the fallback to help here, and nothing else is harmed.
        assert await node.count("/meta/subscribe") == 1
        await client.subscribe(TOPIC)
        wanted = await node.publish(TOPIC)
        assert await receive(client) == wanted


async def test_a_channel_that_cometd_refuses(node: NodeServer) -> None:
    await node.limit(EVENT)
    async with client_for(node) as client:
        with pytest.raises(ServerError, match="subscribe_denied") as caught:
            await client.subscribe("/event/Missing__e")
        assert caught.value.error_code == 403
        await client.subscribe(EVENT)
        assert client.subscriptions == {EVENT}


async def test_an_invalid_replay_id(node: NodeServer) -> None:
    await node.publish(EVENT)
    async with client_for(node, replay={EVENT: 12345}) as client:
        with pytest.raises(ServerError, match="12345"):
            await client.subscribe(EVENT)
        assert client.subscriptions == set()


@pytest.mark.parametrize(("fallback", "old"), [(ALL, 1), (ReplayOption.NEW_EVENTS, 0)])
async def test_an_invalid_replay_id_with_a_fallback(
    node: NodeServer, fallback: ReplayOption, old: int
) -> None:
    stored = {EVENT: ReplayMarker("2099-01-01T00:00:00.000Z", 12345)}
    published = await node.publish(EVENT)
    async with client_for(node, replay=stored, replay_fallback=fallback) as client:
        await client.subscribe(EVENT)
        wanted = published[:old] + await node.publish(EVENT)
        assert await receive(client, len(wanted)) == wanted
        # The useless marker is gone, however new it claimed to be.
        assert stored[EVENT].replay_id == wanted[-1]


async def test_wrong_credentials(node: NodeServer) -> None:
    credentials = {**node.credentials, "password": "something-else"}
    with pytest.raises(AuthenticationError, match="authentication failure"):
        await FastClient(**credentials).open()
    assert await node.count("token") == 1
    assert await node.count("/meta/handshake") == 0


@pytest.mark.parametrize("version", ["37.0", "66.0"])
async def test_api_versions(node: NodeServer, version: str) -> None:
    async with client_for(node, api_version=version) as client:
        assert client.url == f"{node.url}/cometd/{version}"


# Cookies, connects, goodbyes


async def test_a_clean_disconnect(node: NodeServer) -> None:
    async with client_for(node) as client:
        await client.subscribe(EVENT)
        assert await node.sessions() == 1
        await node.held()
    assert await node.sessions() == 0
    login, handshake, *others = await node.requests()
    assert (login["channel"], handshake["channel"]) == ("token", "/meta/handshake")
    assert handshake["messages"][0]["ext"] == {"replay": True}
    assert others[-1]["channel"] == "/meta/disconnect"
    assert all("BAYEUX_BROWSER=" in request["cookie"] for request in others)


@pytest.mark.parametrize("kind", ["hang", "cut before", "status", "replace"])
async def test_a_goodbye_that_fails_is_bounded(node: NodeServer, kind: str) -> None:
    async with streaming(node, EVENT) as client:
        await node.fault(kind, on="/meta/disconnect")
        await soon(client.close(), 6)
        assert client.closed


async def test_cookies_of_a_load_balancer(node: NodeServer) -> None:
    await node.behave(salesforce=True)
    async with streaming(node, EVENT) as client:
        # Three times, as in nine hours.
        for _ in range(3):
            await node.reroute()
            wanted = await node.publish(EVENT)
            assert await receive(client) == wanted
            wanted = await node.publish(EVENT)
            assert await receive(client) == wanted
        assert await node.count("token") == 1
        assert await node.count("/meta/handshake") == 4


async def test_a_lost_cookie(node: NodeServer) -> None:
    async with streaming(node, EVENT) as client:
        error = "400::Client 1a2b3c has established a session, but no BAYEUX_BROWSER cookie present"
        await node.fault("reply", on=CONNECT, reply={"error": error})
        wanted = await node.publish(EVENT)
        wanted += await node.publish(EVENT)
        assert await receive(client, 2) == wanted
        # The jar was cleared: the new session has a cookie of its own.
        await node.held()
        cookies = [request["cookie"] for request in await node.requests(CONNECT)]
        assert len(set(cookies)) == 2
        assert await node.count("token") == 1


# Lost connections, lost sessions, lost tokens


async def wait_for_answers(client: FastClient, node: NodeServer) -> None:
    """Publish once more than a client has to have, so that each of the faults met a connect."""
    wanted = await node.publish(EVENT, EVENT)
    wanted += await node.publish(EVENT, EVENT)
    assert await receive(client, 4) == wanted
    assert client.pending_count == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cut before", {}),
        ("cut after", {}),
        ("truncate", {}),
        ("replace", {}),
        ("replace", {"status": 502}),
        ("replace", {"body": "[]", "type": "application/json"}),
        ("replace", {"body": "", "type": "application/json"}),
        ("replace", {"body": '{"message": "Timed out"}', "type": "application/json"}),
        ("replace", {"status": 504, "body": '{"error": "Timed out"}', "type": "application/json"}),
        ("status", {"status": 500}),
        ("status", {"status": 503, "headers": {"Retry-After": "0"}}),
        ("status", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("status", {"status": 408}),
        ("delay", {"delay": 50}),
        ("late", {"delay": 50}),
        ("hang", {}),
        ("hang after", {}),
    ],
)
async def test_faults_of_a_connect_lose_nothing(
    node: NodeServer, kind: str, options: dict[str, Any]
) -> None:
    await node.cometd(timeout=1000)
    async with streaming(node, EVENT, request_timeout=0.3) as client:
        # The connect that is held has met with no fault; the next one does, and the one after it.
        await node.fault(kind, on=CONNECT, times=2, **options)
        await wait_for_answers(client, node)
        await wait_for_answers(client, node)
        assert await node.count("token") == 1


@pytest.mark.parametrize("kind", ["cut after", "truncate", "replace", "hang after"])
async def test_a_lost_answer_to_a_resubscription(node: NodeServer, kind: str) -> None:
    async with streaming(node, EVENT, TOPIC, request_timeout=0.3) as client:
        # The server sends the gap with its answer to the subscription, and takes it for delivered.
        await node.fault(kind, on="/meta/subscribe", times=2)
        await node.expire()
        wanted = await node.publish(EVENT, TOPIC, EVENT, TOPIC)
        assert sorted(await receive(client, 4)) == wanted
        assert client.pending_count == 0


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ({"error": "403::Unknown client", "advice": {"reconnect": "handshake"}}, 1),
        ({"error": "403::Unknown client", "advice": {"reconnect": "none", "interval": 0}}, 1),
        ({"error": "402::session_unknown", "advice": {"reconnect": "handshake"}}, 1),
        ({"error": "401::Authentication invalid", "advice": {"reconnect": "none"}}, 2),
        (
            {
                "error": "401::Authentication invalid",
                "advice": {"reconnect": "none", "interval": 0},
                "ext": {"sfdc": {"failureReason": "503::Server is too busy."}},
            },
            1,
        ),
    ],
    ids=["unknown", "unknown, none", "vanilla", "token", "busy"],
)
async def test_refused_connects_lose_nothing(
    node: NodeServer, reply: dict[str, Any], tokens: int
) -> None:
    async with streaming(node, EVENT) as client:
        await node.fault("reply", on=CONNECT, reply=reply)
        await wait_for_answers(client, node)
        assert await node.count("token") == tokens
        assert await node.count("/meta/handshake") == 2


@pytest.mark.parametrize(
    "reply",
    [
        {"error": "403::Unknown client", "advice": {"reconnect": "none", "interval": 0}},
        {"advice": {"reconnect": "none", "interval": 0}},
        {"successful": True},
    ],
    ids=["unknown", "none", "successful"],
)
async def test_a_disconnect_of_hyperforce(node: NodeServer, reply: dict[str, Any]) -> None:
    async with streaming(node, EVENT) as client:
        await node.fault("reply", on=CONNECT, reply=reply, extra=[{"channel": "/meta/disconnect"}])
        await wait_for_answers(client, node)
        assert await node.count("token") == 1
        assert await node.count("/meta/handshake") == 2


@pytest.mark.parametrize("command", ["expire", "restart", "cut", "disconnect"])
async def test_the_server_gives_up_on_its_clients(node: NodeServer, command: str) -> None:
    async with streaming(node, *KINDS) as client:
        await node.call(command)
        wanted = await node.publish(*KINDS)
        wanted += await node.publish(*KINDS)
        assert sorted(await receive(client, 8)) == wanted
        assert client.subscriptions == set(KINDS)
        assert client.pending_count == 0
        await node.held()
        assert await node.sessions() == 1
        assert await node.count("token") == 1


@pytest.mark.parametrize("pages", [False, True])
async def test_a_revoked_token(node: NodeServer, pages: bool) -> None:
    await node.behave(unauthorizedPages=pages)
    async with streaming(node, EVENT, TOPIC) as client:
        await node.revoke()
        wanted = await node.publish(EVENT, TOPIC)
        wanted += await node.publish(EVENT, TOPIC)
        assert sorted(await receive(client, 4)) == wanted
        assert await node.count("token") == 2
        # The refusal was understood at once: no handshake with the old token.
        assert await node.count("/meta/handshake") == 2


async def test_refused_credentials_are_told_and_mend(node: NodeServer) -> None:
    async with streaming(node, EVENT) as client:
        await node.login(password="changed")
        await node.revoke()
        wanted = await node.publish(EVENT)
        # Behind what had arrived already.
        assert await receive(client) == wanted
        with pytest.raises(AuthenticationError, match="authentication failure"):
            await soon(client.receive())
        assert not client.closed
        await node.login(password=node.credentials["password"])
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted


async def test_the_instance_moves(node: NodeServer) -> None:
    async with streaming(node, EVENT) as client:
        moved = node.url.replace("127.0.0.1", "localhost")
        await node.login(instance_url=f"{moved}/")
        await node.revoke()
        wanted = await node.publish(EVENT)
        wanted += await node.publish(EVENT)
        assert await receive(client, 2) == wanted
        await node.held()
        *_, last = await node.requests(CONNECT)
        assert last["host"].startswith("localhost:")


async def test_a_server_that_is_down_for_a_while(node: NodeServer) -> None:
    async with streaming(node, EVENT, TOPIC, connection_timeout=0.3) as client:
        await node.down()
        wanted = await node.publish(EVENT, TOPIC)
        with pytest.raises(TransportTimeoutError) as caught:
            await soon(client.receive())
        assert isinstance(caught.value.__cause__, TransportError)
        await node.up()
        # Whoever goes on gets everything, as soon as it is there.
        client.connection_timeout = 0
        assert sorted(await receive(client, 2)) == wanted


async def test_a_server_that_is_down_cannot_be_opened(node: NodeServer) -> None:
    client = client_for(node)
    await node.down()
    with pytest.raises(AuthenticationError, match="Network request failed"):
        await client.open()
    await node.up()
    async with client:
        assert not client.closed


async def test_a_slow_consumer_costs_a_session_but_no_event(node: NodeServer) -> None:
    await node.cometd(maxInterval=200)
    async with streaming(node, EVENT, max_pending_count=5) as client:
        wanted = await node.publish(*[EVENT] * 20)
        await until(lambda: client.pending_count == 20)
        # Nothing is fetched now, until the server's sweeper takes the session away.
        await node.wait_until("sessions", 0)
        wanted += await node.publish(*[EVENT] * 20)
        assert await receive(client, 40) == wanted


# A channel that cannot go on


async def test_a_channel_that_cannot_be_resumed_is_told(node: NodeServer) -> None:
    async with streaming(node, EVENT, TOPIC) as client:
        await node.discard(EVENT)
        await node.expire()
        (wanted,) = await node.publish(TOPIC)
        with pytest.raises(ServerError, match="you provided was invalid") as caught:
            while True:
                assert await receive(client) == [wanted]
        assert EVENT in str(caught.value)
        assert client.subscriptions == {TOPIC}
        await node.held()
        assert await node.subscriptions() == [TOPIC]


async def test_a_channel_that_cannot_be_resumed_falls_back(node: NodeServer) -> None:
    async with streaming(node, EVENT, TOPIC, replay_fallback=ALL) as client:
        gone, kept = await node.publish(EVENT, EVENT)
        assert await receive(client, 2) == [gone, kept]
        await node.discard(EVENT)
        await node.restart()
        wanted = await node.publish(EVENT, TOPIC, EVENT)
        assert sorted(await receive(client, 3)) == wanted
        await node.expire()
        wanted = await node.publish(EVENT, TOPIC)
        assert sorted(await receive(client, 2)) == wanted


async def test_a_channel_that_is_denied_later_is_told(node: NodeServer) -> None:
    async with streaming(node, EVENT, TOPIC, replay_fallback=ALL) as client:
        await node.deny(TOPIC, "403::Subscriber does not have access to the entity in this topic")
        await node.expire()
        with pytest.raises(ServerError, match="does not have access") as caught:
            await soon(client.receive())
        assert TOPIC in str(caught.value)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted


# Exactly once through everything


async def break_token(node: NodeServer) -> None:
    """Take the token away, and let the first try to get another fail."""
    await node.fault("status", on="token")
    await node.revoke()


async def lose_two_answers(node: NodeServer) -> None:
    """Lose an answer with events, and the one to the first attempt to get them again."""
    await node.fault("cut after", on=CONNECT)
    await node.fault("truncate", on="/meta/subscribe")


async def refuse_a_handshake(node: NodeServer) -> None:
    """Forget the sessions, and let the first attempt to begin another fail."""
    await node.fault("status", on="/meta/handshake", status=502)
    await node.expire()


TROUBLES: list[Trouble] = [
    NodeServer.expire,
    NodeServer.revoke,
    lose_two_answers,
    NodeServer.cut,
    NodeServer.restart,
    NodeServer.reroute,
    break_token,
    NodeServer.disconnect,
    lambda node: node.fault("replace", on=CONNECT, times=2),
    refuse_a_handshake,
]


async def test_a_stream_through_everything(node: NodeServer) -> None:
    await node.behave(salesforce=True)
    wanted: dict[str, list[Any]] = {channel: [] for channel in KINDS}
    got: dict[str, list[Any]] = {channel: [] for channel in KINDS}
    stored: dict[str, Any] = {}
    async with client_for(node, replay=stored, replay_fallback=None) as client:
        for channel in KINDS:
            await client.subscribe(channel)

        async def publish(count: int) -> None:
            channels = KINDS * count
            for channel, number in zip(channels, await node.publish(*channels), strict=True):
                wanted[channel].append(number)

        async def consume() -> None:
            async for message in client:
                got[message["channel"]].append(replay_id(message))

        consumer = asyncio.create_task(consume())
        await publish(1)
        await until(lambda: got == wanted)
        for trouble in TROUBLES:
            await trouble(node)
            for _ in range(3):
                await publish(5)
            await until(lambda: sum(map(len, got.values())) >= sum(map(len, wanted.values())))
            assert got == wanted
        await client.close()
        await soon(consumer)
    assert got == wanted
    assert {channel: marker.replay_id for channel, marker in stored.items()} == {
        channel: ids[-1] for channel, ids in wanted.items()
    }
    assert await node.count("token") == 4


# Other flows


def refresh_token(node: NodeServer) -> AuthenticatorBase:
    return RefreshTokenAuthenticator(
        "consumer-key", "consumer-secret", "refresh-token", login_url=node.url
    )


def client_credentials(node: NodeServer) -> AuthenticatorBase:
    return ClientCredentialsAuthenticator("consumer-key", "consumer-secret", login_url=node.url)


def jwt_bearer(node: NodeServer) -> AuthenticatorBase:
    return JWTBearerAuthenticator(
        "consumer-key", "user@example.com", PRIVATE_KEY, login_url=node.url
    )


@pytest.mark.parametrize("flow", [refresh_token, client_credentials, jwt_bearer])
async def test_other_flows(
    node: NodeServer, flow: Callable[[NodeServer], AuthenticatorBase]
) -> None:
    await node.login(certificate=CERTIFICATE.decode(), rotate=True)
    async with FastAuthClient(flow(node)) as client:
        await client.subscribe(EVENT)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted
        # Each time a new assertion, or the refresh token that came last.
        for _ in range(2):
            await node.revoke()
            wanted = await node.publish(EVENT)
            wanted += await node.publish(EVENT)
            assert await receive(client, 2) == wanted
    assert await node.count("token") == 3


async def test_an_assertion_that_is_signed_by_another_key_is_refused(node: NodeServer) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = other.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    await node.login(certificate=pem.decode())
    with pytest.raises(AuthenticationError, match="invalid assertion"):
        await FastAuthClient(jwt_bearer(node)).open()


# The command line


@asynccontextmanager
async def listening(node: NodeServer, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start ``aiosfstream listen`` as a process, and end it whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "aiosfstream", "listen", *arguments),
        env=node.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def finish(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """Wait for the end of a process that goes well, and give what it printed."""
    output, errors = await soon(process.communicate(), 20)
    assert process.returncode == 0, errors
    assert errors == b""
    return [json.loads(line) for line in output.decode().splitlines()]


async def test_listen_as_a_process(node: NodeServer) -> None:
    wanted = await node.publish(EVENT, EVENT, EVENT)
    async with listening(node, EVENT, "--replay", "all", "--count", "3") as process:
        printed = await finish(process)
    assert [replay_id(message) for message in printed] == wanted
    assert {message["channel"] for message in printed} == {EVENT}
    assert await node.sessions() == 0


async def test_listen_through_a_restart_of_the_server(node: NodeServer) -> None:
    wanted = await node.publish(EVENT, TOPIC)
    async with listening(node, EVENT, TOPIC, "--replay", "all", "--count", "6") as process:
        assert process.stdout is not None
        # What it has printed of both channels, it has subscribed to: only then does it recover.
        lines = [await soon(process.stdout.readline(), 20) for _ in range(2)]
        wanted += await node.publish(EVENT, TOPIC)
        await node.held()
        await node.restart()
        wanted += await node.publish(EVENT, TOPIC)
        printed = [*map(json.loads, lines), *(await finish(process))]
    assert sorted(replay_id(message) for message in printed) == wanted


async def test_listen_goes_on_where_it_ended(node: NodeServer, tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state.sqlite")]
    wanted = await node.publish(EVENT, EVENT, EVENT)
    printed = []
    for count in ("2", "1"):
        async with listening(node, EVENT, "--replay", "all", *state, "--count", count) as process:
            printed += await finish(process)
    assert [replay_id(message) for message in printed] == wanted
