"""What the tests rely on in the server, asked for request by request, without the client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.interop import harness
from tests.interop.harness import NodeProcess, NodeServer, install
from tests.support import CHANGE, EVENT, TOPIC, soon

APP = {"client_id": "consumer-key", "client_secret": "consumer-secret"}
HANDSHAKE: dict[str, Any] = {
    "channel": "/meta/handshake",
    "version": "1.0",
    "supportedConnectionTypes": ["long-polling"],
    "ext": {"replay": True},
}


class Caller:
    """Sends what it is told to, and keeps cookies."""

    def __init__(self, node: NodeServer, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.http = http
        self.token: str | None = None
        self.client_id = ""
        self.path = "/cometd/66.0"

    async def log_in(self, **form: str) -> tuple[int, dict[str, Any]]:
        """Make a token request."""
        url = f"{self.node.url}/services/oauth2/token"
        async with self.http.post(url, data=form) as answer:
            return answer.status, await answer.json()

    async def send(self, channel: str, **fields: Any) -> Any:
        """Send one message.

        :return: the messages of the answer, or its HTTP status if it has none
        """
        message = {"channel": channel, "id": "7", "clientId": self.client_id, **fields}
        return await self.post(json.dumps([message]))

    async def post(self, body: str) -> Any:
        """Send a body."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = self.node.url + self.path
        async with self.http.post(url, data=body, headers=headers) as answer:
            text = await answer.text()
            return json.loads(text) if text.startswith("[") else answer.status

    async def open(self) -> dict[str, Any]:
        """Log in and shake hands.

        :return: the reply
        """
        _, token = await self.log_in(grant_type="client_credentials", **APP)
        self.token = token["access_token"]
        (reply,) = await self.send(**HANDSHAKE)
        self.client_id = reply["clientId"]
        return dict(reply)

    async def subscribe(self, channel: str, replay: Any = -1) -> Any:
        """Subscribe with a replay id."""
        ext = {"replay": {channel: replay}}
        return await self.send("/meta/subscribe", subscription=channel, ext=ext)

    def connect(self) -> Any:
        """Ask for events."""
        return self.send("/meta/connect", connectionType="long-polling")


@pytest.fixture
async def caller(node: NodeServer) -> AsyncIterator[Caller]:
    """Not logged in yet."""
    jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        yield Caller(node, http)


def ids(messages: list[dict[str, Any]]) -> list[Any]:
    """Give the replay ids of the events in an answer."""
    return [one["data"]["event"]["replayId"] for one in messages if "data" in one]


# The token endpoint


@pytest.mark.parametrize(
    ("form", "error", "description"),
    [
        ({"grant_type": "magic"}, "unsupported_grant_type", "grant type not supported"),
        (
            {**APP, "grant_type": "password", "client_id": "?"},
            "invalid_client_id",
            "client identifier invalid",
        ),
        (
            {**APP, "grant_type": "password", "client_secret": "?"},
            "invalid_client",
            "invalid client credentials",
        ),
        (
            {**APP, "grant_type": "password", "username": "user@example.com", "password": "?"},
            "invalid_grant",
            "authentication failure",
        ),
        (
            {**APP, "grant_type": "refresh_token", "refresh_token": "?"},
            "invalid_grant",
            "expired access/refresh token",
        ),
        (
            {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"},
            "invalid_grant",
            "invalid assertion",
        ),
    ],
)
async def test_refused_log_ins(
    caller: Caller, form: dict[str, str], error: str, description: str
) -> None:
    expected = {"error": error, "error_description": description}
    assert await caller.log_in(**form) == (400, expected)


async def test_a_refresh_token_that_rotates_is_good_once(caller: Caller) -> None:
    await caller.node.login(rotate=True)
    form = {**APP, "grant_type": "refresh_token", "refresh_token": "refresh-token"}
    status, reply = await caller.log_in(**form)
    assert status == 200
    assert (await caller.log_in(**form))[0] == 400
    status, _ = await caller.log_in(**{**form, "refresh_token": reply["refresh_token"]})
    assert status == 200


# Who may ask, and where


async def test_the_handshake_announces_replay(caller: Caller) -> None:
    reply = await caller.open()
    assert reply["ext"]["replay"] is True
    # The CometD project's server advises at the handshake, which Salesforce does not.
    assert reply["advice"] == {"reconnect": "retry", "interval": 0, "timeout": 20000}


async def test_a_token_is_required(caller: Caller) -> None:
    error = "401::Request requires authentication"
    assert await caller.send(**HANDSHAKE) == [{"error": error, "successful": False}]


async def test_a_revoked_token_is_refused(caller: Caller) -> None:
    await caller.open()
    await caller.node.revoke()
    (reply,) = await caller.send(**HANDSHAKE)
    assert reply["error"] == "403::Handshake denied"
    assert reply["ext"]["sfdc"]["failureReason"] == "401::Authentication invalid"
    assert reply["advice"] == {"reconnect": "none"}
    (reply,) = await caller.connect()
    assert reply["error"] == "401::Authentication invalid"
    assert reply["id"] == 7
    await caller.node.behave(unauthorizedPages=True)
    assert await caller.connect() == 401


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/cometd/", "400::API version in the URI is mandatory"),
        ("/cometd/36.0", "400::Unsupported API version"),
        ("/elsewhere", 404),
    ],
)
async def test_the_path_matters(caller: Caller, path: str, found: Any) -> None:
    caller.path = path
    answer = await caller.send(**HANDSHAKE)
    error = answer if isinstance(answer, int) else answer[0]["error"].partition(". ")[0]
    assert error == found


async def test_a_request_has_a_limit(caller: Caller) -> None:
    await caller.open()
    assert await caller.send("/meta/subscribe", subscription="/" + "x" * 32768) == 413


async def test_the_cookie_is_required(caller: Caller) -> None:
    await caller.open()
    caller.http.cookie_jar.clear()
    (reply,) = await caller.connect()
    assert reply["error"] == "402::session_unknown"
    assert reply["advice"] == {"reconnect": "handshake", "interval": 0}
    # Only for connects is there any advice.
    (reply,) = await caller.subscribe(EVENT)
    assert reply["error"] == "402::session_unknown"
    assert "advice" not in reply


async def test_the_cookies_as_salesforce_asks_for_them(caller: Caller) -> None:
    await caller.node.behave(salesforce=True)
    await caller.open()
    jar = caller.http.cookie_jar
    assert isinstance(jar, aiohttp.CookieJar)
    jar.clear(lambda cookie: cookie.key == "sfdc-stream")
    (reply,) = await caller.connect()
    assert reply["error"] == "403::Unknown client"
    assert reply["advice"] == {"reconnect": "handshake", "interval": 0}
    # Its answer has set the routing cookie anew.
    (reply,) = await caller.subscribe(EVENT)
    assert reply["successful"] is True
    jar.clear(lambda cookie: cookie.key == "BAYEUX_BROWSER")
    (reply,) = await caller.connect()
    assert reply["error"].startswith(f"400::Client {caller.client_id} has established a session")
    await caller.node.reroute()
    (reply,) = await caller.connect()
    assert reply["error"] == "403::Unknown client"


# Replay


async def test_replay(caller: Caller) -> None:
    node = caller.node
    await caller.open()
    first, second, third = await node.publish(EVENT, TOPIC, EVENT)
    for start, wanted in ((-1, []), (-2, [first, third]), (first, [third]), (third, [])):
        messages = await caller.subscribe(EVENT, start)
        # Events stand before the reply.
        assert ids(messages) == wanted
        assert messages[-1]["successful"] is True
        await caller.send("/meta/unsubscribe", subscription=EVENT)
    await node.discard(EVENT, keep=1)
    assert ids(await caller.subscribe(EVENT, -2)) == [third]
    await caller.send("/meta/unsubscribe", subscription=EVENT)
    for unknown in (first, second, str(third)):
        (reply,) = await caller.subscribe(EVENT, unknown)
        assert reply["error"] == (
            f"400::The replayId {{{unknown}}} you provided was invalid.  Please provide a valid ID, -2"
            " to replay all events, or -1 to replay only new events."
        )
    (reply,) = await caller.send("/meta/subscribe", subscription=EVENT, ext={"replay": {TOPIC: -2}})
    assert reply["error"].startswith(
        f"400::The replayId for channel {{{EVENT}}} wasn't found using the provided replay ID map"
        f" {{{{{TOPIC}=-2}}}}. Ensure"
    )
    assert await node.subscriptions() == []


async def test_refused_channels(caller: Caller) -> None:
    await caller.open()
    await caller.node.deny(TOPIC, "403::No access on channel")
    await caller.node.limit(EVENT)
    (reply,) = await caller.subscribe(TOPIC)
    assert reply["error"] == "403::No access on channel"
    (reply,) = await caller.subscribe("/event/Missing__e")
    assert reply["error"] == "403::subscribe_denied"
    for channel in (EVENT, CHANGE):
        (reply,) = await caller.subscribe(channel)
        assert reply["successful"] is True


async def test_events_come_with_any_answer_and_together(caller: Caller) -> None:
    await caller.open()
    await caller.subscribe(EVENT)
    waiting = asyncio.ensure_future(caller.connect())
    await caller.node.held()
    wanted = await caller.node.publish(EVENT, EVENT, EVENT)
    messages = await soon(waiting)
    assert ids(messages) == wanted
    # Nobody waits now: the next answer takes them along, whatever was asked.
    wanted = await caller.node.publish(EVENT, EVENT)
    assert ids(await caller.send("/meta/unsubscribe", subscription="/other")) == wanted


# Trouble


async def test_ends_of_a_session(caller: Caller) -> None:
    node = caller.node
    await caller.open()
    waiting = asyncio.ensure_future(caller.connect())
    await node.held()
    await node.expire()
    # So CometD's own server ends the connect of a session that it sweeps away.
    assert await soon(waiting) == 500
    assert await node.sessions() == 0
    (reply,) = await caller.connect()
    assert reply["error"] == "402::session_unknown"

    await caller.open()
    waiting = asyncio.ensure_future(caller.connect())
    await node.held()
    await node.disconnect()
    told, reply = await soon(waiting)
    assert told == {"channel": "/meta/disconnect", "successful": True}
    assert reply["successful"] is True
    assert await node.sessions() == 0

    await caller.open()
    await caller.send("/meta/disconnect")
    assert await node.sessions() == 0


@pytest.mark.parametrize("command", ["restart", "cut", "down"])
async def test_ends_of_connections(caller: Caller, command: str) -> None:
    node = caller.node
    await caller.open()
    waiting = asyncio.ensure_future(caller.connect())
    await node.held()
    await node.call(command)
    with pytest.raises(aiohttp.ClientError):
        await soon(waiting)
    assert await node.sessions() == (1 if command == "cut" else 0)
    if command == "down":
        with pytest.raises(aiohttp.ClientConnectorError):
            await caller.connect()
        await node.up()
    (reply,) = await caller.send(**HANDSHAKE)
    assert reply["successful"] is True


@pytest.mark.parametrize(
    ("kind", "options", "seen", "delivered"),
    [
        ("status", {"status": 503}, 503, False),
        ("cut before", {}, aiohttp.ClientError, False),
        ("hang", {}, asyncio.TimeoutError, False),
        ("cut after", {}, aiohttp.ClientError, True),
        ("truncate", {}, aiohttp.ClientError, True),
        ("replace", {"status": 502}, 502, True),
        ("hang after", {}, asyncio.TimeoutError, True),
        ("delay", {"delay": 1}, None, True),
        ("late", {"delay": 1}, None, True),
    ],
)
async def test_faults(
    caller: Caller, kind: str, options: dict[str, Any], seen: Any, delivered: bool
) -> None:
    node = caller.node
    wanted = await node.publish(EVENT)
    await caller.open()
    await node.fault(kind, on="/meta/subscribe", **options)
    subscribing = asyncio.wait_for(caller.subscribe(EVENT, -2), 0.5)
    if isinstance(seen, type):
        with pytest.raises(seen):
            await subscribing
    elif seen is not None:
        assert await subscribing == seen
    else:
        assert ids(await subscribing) == wanted
    assert await node.subscriptions() == ([EVENT] if delivered else [])
    # The server has done with what it wrote, wherever that went.
    assert ids(await caller.send("/meta/unsubscribe", subscription=EVENT)) == []
    await caller.open()
    assert ids(await caller.subscribe(EVENT, -2)) == wanted


async def test_a_refusal_of_ones_own(caller: Caller) -> None:
    await caller.open()
    extra = [{"channel": "/meta/disconnect"}]
    reply = {"error": "403::Unknown client", "advice": {"reconnect": "none", "interval": 0}}
    await caller.node.fault("reply", on="/meta/connect", reply=reply, extra=extra)
    told, refused = await caller.connect()
    assert told == extra[0]
    assert refused == {"channel": "/meta/connect", "id": "7", "successful": False, **reply}


# The harness


async def test_two_connects_of_a_session_are_noticed(caller: Caller) -> None:
    node = caller.node
    await caller.open()
    first = asyncio.ensure_future(caller.connect())
    await node.held()
    second = asyncio.ensure_future(caller.connect())
    assert await soon(first) == 500
    await caller.send("/meta/disconnect")
    await soon(second)
    with pytest.raises(AssertionError, match="2 connects of"):
        await node.check()
    await node.call("reset")


async def test_a_process_of_ones_own_starts_and_ends() -> None:
    async with NodeServer() as node:
        process = node.process._process
        assert process.poll() is None
        assert await node.sessions() == 0
    assert process.poll() is not None


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.js").write_text("throw new Error('out of order');", "utf-8")
    monkeypatch.setattr(harness, "HERE", tmp_path)
    monkeypatch.setattr(harness, "install", lambda folder: None)
    with pytest.raises(AssertionError, match="out of order"), NodeProcess():
        pass


def test_missing_node_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package-lock.json").write_text("{}", "utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="npm is missing"):
        install(tmp_path)


def test_the_lock_file_names_no_registry() -> None:
    text = (harness.HERE / "package-lock.json").read_text("utf-8")
    assert "integrity" in text
    assert "resolved" not in text
    assert "://" not in text
