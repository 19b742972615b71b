"""The client against the CometD project's own server."""

from __future__ import annotations

import asyncio
import os
import shelve
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import (
    AuthenticationError,
    Client,
    ClientCredentialsAuthenticator,
    RefreshTokenAuthenticator,
    ReplayMarker,
    ReplayOption,
    ServerError,
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
)

CONNECT = "/meta/connect"


@pytest.fixture
async def node() -> AsyncIterator[NodeServer]:
    """The server, new for each test."""
    async with NodeServer() as server:
        yield server


def client_for(node: NodeServer, **options: Any) -> FastClient:
    """Make a client that logs in at *node*."""
    options.setdefault("request_timeout", 2.0)
    return FastClient(**node.credentials, **options)


@pytest.mark.parametrize("channel", [EVENT, TOPIC, GENERIC, CHANGE])
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


async def test_replay_options_and_ids(node: NodeServer) -> None:
    first, second, third = await node.publish(EVENT, EVENT, EVENT)
    for start, wanted in ((-2, [first, second, third]), (first, [second, third]), (-1, [])):
        async with client_for(node) as client:
            await client.subscribe(EVENT, replay=start)
            expected = [*wanted, *(await node.publish(EVENT))]
            assert await receive(client, len(expected)) == expected
        await node.call("discard", channel=EVENT, keep=0)
        await restore(node, (first, second, third))


async def restore(node: NodeServer, ids: tuple[int, ...]) -> None:
    """Publish events with given ids while nobody listens."""
    node._ids = iter([*ids, *range(ids[-1] + 1, 10**6)])  # type: ignore[assignment]
    await node.publish(*[EVENT] * len(ids))


async def test_events_in_the_answer_to_a_subscription(node: NodeServer) -> None:
    wanted = await node.publish(*[EVENT] * 5)
    async with client_for(node, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        # They are here already, before any connect could have brought them.
        assert client.pending_count == 5
        assert await receive(client, 5) == wanted


async def test_unsubscribe(node: NodeServer) -> None:
    async with client_for(node) as client:
        await client.subscribe(EVENT)
        await client.subscribe(TOPIC)
        await client.unsubscribe(EVENT)
        assert client.subscriptions == {TOPIC}
        assert await node.call("subscriptions") == [TOPIC]
        _, wanted = await node.publish(EVENT, TOPIC)
        assert await receive(client) == [wanted]


async def test_resume_from_a_shelf_after_a_restart(node: NodeServer, tmp_path: Path) -> None:
    path = str(tmp_path / "markers")
    with shelve.open(path) as shelf:
        async with client_for(node, replay=shelf) as client:
            await client.subscribe(EVENT)
            wanted = await node.publish(EVENT, EVENT)
            assert await receive(client, 2) == wanted
    wanted = await node.publish(EVENT, EVENT)
    await node.call("expire")
    with shelve.open(path) as shelf:
        assert isinstance(shelf[EVENT], ReplayMarker)
        async with client_for(node, replay=shelf) as client:
            await client.subscribe(EVENT)
            assert await receive(client, 2) == wanted


@pytest.mark.parametrize("error", ["403::No access on channel", "404::Unknown channel"])
async def test_a_refused_subscription(node: NodeServer, error: str) -> None:
    await node.call("deny", channel=EVENT, error=error)
    async with client_for(node) as client:
        with pytest.raises(ServerError, match=error.partition("::")[2]):
            await client.subscribe(EVENT)
        assert client.subscriptions == set()
        await client.subscribe(TOPIC)


async def test_an_invalid_replay_id(node: NodeServer) -> None:
    wanted = await node.publish(EVENT)
    async with client_for(node, replay={EVENT: 12345}) as client:
        with pytest.raises(ServerError, match="12345"):
            await client.subscribe(EVENT)
    options = {"replay": {EVENT: 12345}, "replay_fallback": ReplayOption.ALL_EVENTS}
    async with client_for(node, **options) as client:
        await client.subscribe(EVENT)
        assert await receive(client) == wanted


async def test_a_clean_disconnect(node: NodeServer) -> None:
    async with client_for(node) as client:
        await client.subscribe(EVENT)
        assert await node.call("sessions") == 1
        await node.wait_until("held", 1)
    assert await node.call("sessions") == 0
    requests = await node.call("requests")
    assert requests[-1]["channel"] == "/meta/disconnect"
    assert all("BAYEUX_BROWSER=" in request["cookie"] for request in requests[2:])
    assert all(len(request["messages"]) == 1 for request in requests[1:])


@pytest.mark.parametrize(
    "fault",
    ["cut before", "cut after", "truncate", "garble", "status", "hang"],
)
async def test_faults_lose_nothing(node: NodeServer, fault: str) -> None:
    await node.call("configure", timeout=1000)
    async with client_for(node, replay=ReplayOption.ALL_EVENTS, request_timeout=0.5) as client:
        await client.subscribe(EVENT)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted
        await node.wait_until("held", 1)
        await node.fault(fault, on=CONNECT, status=503)
        wanted = await node.publish(EVENT, EVENT)
        wanted += await node.publish(EVENT, EVENT)
        assert await receive(client, 4) == wanted


@pytest.mark.parametrize("http", [False, True])
async def test_a_revoked_token(node: NodeServer, http: bool) -> None:
    await node.call("configure", httpUnauthorized=http)
    async with client_for(node, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted
        await node.call("revoke")
        wanted = await node.publish(EVENT)
        wanted += await node.publish(EVENT)
        assert await receive(client, 2) == wanted
        assert await node.count("token") == 2


async def test_a_server_restart(node: NodeServer) -> None:
    async with client_for(node, replay=ReplayOption.ALL_EVENTS) as client:
        for channel in (EVENT, TOPIC):
            await client.subscribe(channel)
        wanted = await node.publish(EVENT, TOPIC)
        assert await receive(client, 2) == wanted
        await node.call("expire")
        wanted = await node.publish(EVENT, TOPIC)
        assert sorted(await receive(client, 2)) == wanted
        assert client.subscriptions == {EVENT, TOPIC}


async def test_a_server_that_disconnects(node: NodeServer) -> None:
    async with client_for(node, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted
        await node.wait_until("held", 1)
        await node.call("disconnect")
        wanted = await node.publish(EVENT)
        assert await receive(client) == wanted


async def test_publish_over_cometd(node: NodeServer) -> None:
    async with client_for(node) as client, client_for(node) as other:
        await client.subscribe("/chat")
        reply = await other.publish("/chat", {"text": "hello"})
        assert reply["successful"] is True
        assert (await soon(client.receive()))["data"] == {"text": "hello"}


async def test_wrong_credentials(node: NodeServer) -> None:
    credentials = {**node.credentials, "password": "something-else"}
    with pytest.raises(AuthenticationError, match="authentication failure"):
        await FastClient(**credentials).open()


async def test_other_flows(node: NodeServer) -> None:
    key, secret = "consumer-key", "consumer-secret"
    for authenticator in (
        RefreshTokenAuthenticator(key, secret, "refresh-token", login_url=node.url),
        ClientCredentialsAuthenticator(key, secret, login_url=node.url),
    ):
        client: Client = FastAuthClient(authenticator, replay=ReplayOption.ALL_EVENTS)
        async with client:
            channel = f"/event/{type(authenticator).__name__}__e"
            await client.subscribe(channel)
            wanted = await node.publish(channel)
            assert await receive(client) == wanted
            await node.call("revoke")
            wanted = await node.publish(channel)
            assert await receive(client) == wanted


async def test_listen_as_a_process(node: NodeServer) -> None:
    wanted = await node.publish(EVENT, EVENT, EVENT)
    environment = {
        **os.environ,
        "SALESFORCE_CONSUMER_KEY": "consumer-key",
        "SALESFORCE_CONSUMER_SECRET": "consumer-secret",
        "SALESFORCE_USERNAME": "user@example.com",
        "SALESFORCE_PASSWORD": "password-and-security-token",
        "SALESFORCE_LOGIN_URL": node.url,
    }
    command = ["-m", "aiosfstream", "listen", EVENT, "--replay", "all", "--count", "3"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await soon(process.communicate(), 20)
    assert process.returncode == 0, errors
    assert errors == b""
    lines = output.decode().splitlines()
    assert [int(line.rpartition('"replayId": ')[2].partition("}")[0]) for line in lines] == wanted
