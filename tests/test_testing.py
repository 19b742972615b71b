"""The test server itself, asked by a plain HTTP client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aiosfstream.testing import (
    CutBefore,
    Delay,
    Duplicate,
    Fault,
    Redirect,
    Refuse,
    StreamingServer,
    Truncate,
)
from tests.support import CHANGE, EVENT, GENERIC, TOPIC, soon

pytest_plugins = ["pytester"]

Message = dict[str, Any]


class Browser:
    """Speaks Bayeux by hand."""

    def __init__(self, server: StreamingServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http
        self.token = server.new_access_token()
        self.client_id = ""
        self.path = "/cometd/66.0"

    async def send(self, channel: str, **fields: Any) -> list[Message]:
        """Send a message and give the whole answer."""
        message = {"channel": channel, "id": "1", **fields}
        if self.client_id and channel != "/meta/handshake":
            message.setdefault("clientId", self.client_id)
        return await self.post([message])

    async def post(self, body: Any) -> list[Message]:
        """Post anything."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with self.http.post(
            self.server.url + self.path, json=body, headers=headers
        ) as answer:
            found: list[Message] = await answer.json(content_type=None)
            return found

    async def shake_hands(self) -> Message:
        """Shake hands."""
        [reply] = await self.send(
            "/meta/handshake", supportedConnectionTypes=["long-polling"], version="1.0"
        )
        self.client_id = reply.get("clientId", "")
        return reply

    async def connect(self, **fields: Any) -> list[Message]:
        """Connect, and be answered at once unless it says otherwise."""
        fields = {"connectionType": "long-polling", "advice": {"timeout": 0}, **fields}
        return await self.send("/meta/connect", **fields)

    async def subscribe(self, channel: str, replay: Any = None) -> Message:
        """Subscribe a channel."""
        ext = {} if replay is None else {"ext": {"replay": replay}}
        [reply] = await self.send("/meta/subscribe", subscription=channel, **ext)
        return reply


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A session with cookies."""
    jar = aiohttp.CookieJar(quote_cookie=False, unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        yield http


@pytest.fixture
async def browser(server: StreamingServer, http: aiohttp.ClientSession) -> Browser:
    """A client that has shaken hands."""
    browser = Browser(server, http)
    await browser.shake_hands()
    return browser


async def test_a_session_from_beginning_to_end(browser: Browser) -> None:
    [connect] = await browser.connect()
    assert connect["advice"] == {"interval": 0, "timeout": 110_000, "reconnect": "retry"}
    [connect] = await browser.connect()
    assert "advice" not in connect
    assert (await browser.subscribe(EVENT))["successful"]
    wanted = browser.server.publish(EVENT, {"A__c": 1})
    event, connect = await browser.connect(advice=None)
    assert event["data"]["event"]["replayId"] == wanted
    assert event["data"]["payload"]["A__c"] == 1
    assert connect["successful"]
    [reply] = await browser.send("/meta/unsubscribe", subscription=EVENT)
    assert reply["successful"]
    browser.server.publish(EVENT)
    assert len(await browser.connect()) == 1
    [reply] = await browser.send("/meta/disconnect")
    assert reply["successful"]
    assert browser.server.sessions == []
    assert browser.server.violations == []


async def test_the_handshake(browser: Browser) -> None:
    reply = await browser.shake_hands()
    assert reply["ext"] == {"replay": True, "payload.format": True}
    assert "advice" not in reply
    browser.token = "wrong"
    reply = await browser.shake_hands()
    assert reply["error"] == "403::Handshake denied"
    assert reply["ext"]["sfdc"]["failureReason"] == "401::Authentication invalid"
    browser.token = ""
    reply = await browser.shake_hands()
    assert reply["ext"]["sfdc"]["failureReason"] == "401::Request requires authentication"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/cometd/36.0", "400::Unsupported API version"),
        ("/cometd/", "400::API version in the URI is mandatory"),
        ("/cometd/66.0/", None),
        ("/cometd/66.0/handshake", None),
    ],
)
async def test_api_versions(browser: Browser, path: str, error: str | None) -> None:
    browser.path = path
    reply = await browser.shake_hands()
    assert reply["successful"] is (error is None)
    assert reply.get("error", "").startswith(error or "")


async def test_a_refused_token(browser: Browser) -> None:
    browser.server.revoke_tokens()
    [reply] = await browser.connect()
    assert reply["error"] == "401::Authentication invalid"
    assert reply["advice"] == {"reconnect": "none", "interval": 0}
    browser.server.http_401 = True
    async with browser.http.post(
        browser.server.url + browser.path, json=[{"channel": "/meta/connect"}]
    ) as answer:
        assert answer.status == 401


async def test_cookies_are_demanded(browser: Browser) -> None:
    browser.http.cookie_jar.clear()
    [reply] = await browser.connect()
    assert reply["error"] == (
        f"400::Client {browser.client_id} has established a session, but no BAYEUX_BROWSER cookie present"
    )
    assert browser.server.violations
    headers = {"Cookie": "BAYEUX_BROWSER=other"}
    browser.http.headers.update(headers)
    [reply] = await browser.connect()
    assert "Authenticated user id does not match" in reply["error"]


async def test_a_quoted_cookie_is_noticed(server: StreamingServer, browser: Browser) -> None:
    browser.http.cookie_jar.clear()
    cookie = f'BAYEUX_BROWSER={server.sessions[0].cookie}; sfdc-stream="!//QiKCtgRz/8Ow+tEsT1ng="'
    browser.http.headers["Cookie"] = cookie
    [reply] = await browser.connect()
    assert reply["error"] == "403::Unknown client"
    assert "routing cookie" in server.violations[0]


async def test_sessions_expire(server: StreamingServer, browser: Browser) -> None:
    server.session_timeout = 0.02
    await server.wait_for(lambda server: not server.sessions)
    [reply] = await browser.connect()
    assert (reply["error"], reply["advice"]["reconnect"]) == ("403::Unknown client", "handshake")


async def test_two_sessions_with_one_cookie(browser: Browser) -> None:
    await browser.shake_hands()
    [reply] = await browser.connect()
    assert reply["advice"]["multiple-clients"] is True
    assert reply["advice"]["interval"] == 2000


async def test_a_held_connect(server: StreamingServer, browser: Browser) -> None:
    server.hold_timeout = 0.05
    started = time.monotonic()
    await browser.connect(advice=None)
    assert time.monotonic() - started >= 0.04
    server.hold_timeout = 110.0
    first = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    second = asyncio.create_task(browser.connect(advice=None))
    await soon(first)
    assert server.violations == ["a second connect while one is held"]
    await server.wait_for(lambda server: server.held_connects)
    server.expire_sessions()
    [reply] = await soon(second)
    assert reply["error"] == "403::Unknown client"


async def test_a_connect_with_others_is_not_held(server: StreamingServer, browser: Browser) -> None:
    answer = await soon(
        browser.post(
            [
                {
                    "channel": "/meta/connect",
                    "clientId": browser.client_id,
                    "connectionType": "long-polling",
                },
                {
                    "channel": "/meta/subscribe",
                    "clientId": browser.client_id,
                    "subscription": EVENT,
                },
            ]
        )
    )
    assert [reply["successful"] for reply in answer] == [True, True]
    assert server.violations == ["several messages in one request"]


@pytest.mark.parametrize("reconnect", ["none", "handshake"])
async def test_an_unasked_disconnect(
    server: StreamingServer, browser: Browser, reconnect: str
) -> None:
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.disconnect_clients(reconnect)
    goodbye, reply = await soon(held)
    assert goodbye == {"channel": "/meta/disconnect"}
    assert reply["advice"]["reconnect"] == reconnect


async def test_replay(server: StreamingServer, browser: Browser) -> None:
    ids = [server.publish(EVENT) for _ in range(3)]
    assert ids == sorted(set(ids))
    for start, wanted in ((-2, ids), (ids[0], ids[1:]), (ids[2], []), (-1, [])):
        assert (await browser.subscribe(EVENT, {EVENT: start}))["successful"]
        *events, _ = await browser.connect()
        assert [event["data"]["event"]["replayId"] for event in events] == wanted
    reply = await browser.subscribe(EVENT, {EVENT: 777})
    assert reply["error"].startswith("400::The replayId {777} you provided was invalid.")
    reply = await browser.subscribe(EVENT, {TOPIC: 1})
    assert "wasn't found using the provided replay ID map {{/topic/" in reply["error"]
    server.discard_events(EVENT, keep=1)
    reply = await browser.subscribe(EVENT, {EVENT: ids[0]})
    assert "was invalid" in reply["error"]
    assert server.replay_ids(EVENT) == ids[2:]
    server.discard_events()
    assert server.replay_ids(EVENT) == []


async def test_refused_subscriptions(server: StreamingServer, browser: Browser) -> None:
    assert (await browser.subscribe(""))["error"] == "400::Channel name not specified"
    assert "leading '/'" in (await browser.subscribe("x"))["error"]
    server.deny(EVENT, "403::Restricted channel")
    assert (await browser.subscribe(EVENT))["error"] == "403::Restricted channel"
    server.allow(EVENT)
    server.limit_channels(TOPIC)
    assert "doesn't exist" in (await browser.subscribe(EVENT))["error"]
    assert (await browser.subscribe(TOPIC))["successful"]
    server.limit_channels()
    assert (await browser.subscribe(EVENT))["successful"]


async def test_other_refusals(server: StreamingServer, browser: Browser) -> None:
    [reply] = await browser.connect(connectionType="websocket")
    assert "Invalid connection type" in reply["error"]
    [reply] = await browser.send(EVENT, data={})
    assert "publish_denied" in reply["error"]
    [reply] = await browser.send("/meta/handshake", supportedConnectionTypes=["websocket"])
    assert "Invalid connection type" in reply["error"]
    for body, status in ((b"x" * 40_000, 413), (b"nonsense", 400), (b"[1]", 400)):
        async with browser.http.post(server.url + browser.path, data=body) as answer:
            assert answer.status == status
    async with browser.http.post(f"{server.url}{browser.path}?access_token=x", json={}) as answer:
        pass
    assert "a CometD request has a query string" in server.violations


async def test_the_envelopes(server: StreamingServer, browser: Browser) -> None:
    for channel, payload in (
        (EVENT, {"A__c": 1}),
        (TOPIC, {"Id": "x"}),
        (GENERIC, "text"),
        (CHANGE, {"Name": "x"}),
    ):
        await browser.subscribe(channel)
        server.publish(channel, payload)
    server.publish(EVENT, "text")
    platform, topic, generic, change, other, _ = await browser.connect()
    assert platform["data"]["payload"]["A__c"] == 1
    assert topic["data"]["sobject"] == {"Id": "x"}
    assert generic["data"]["payload"] == "text"
    header = change["data"]["payload"]["ChangeEventHeader"]
    assert (header["entityName"], type(header["commitTimestamp"])) == ("Account", int)
    assert other["data"]["payload"]["Value__c"] == "text"


async def test_large_backlogs_come_in_batches(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(max_batch=3) as server:
        browser = Browser(server, http)
        await browser.shake_hands()
        wanted = server.publish_many([(EVENT, None), (TOPIC, None)] * 4)
        for channel in (EVENT, TOPIC):
            await browser.subscribe(channel, {channel: -2})
        received: list[Any] = []
        sizes: list[int] = []
        while len(received) < 8:
            *events, _ = await browser.connect()
            sizes.append(len(events))
            received += [event["data"]["event"]["replayId"] for event in events]
        assert (received, sizes) == (wanted, [3, 3, 2])


# Faults


async def test_faults_are_met_in_order(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Refuse("500::one"), on="/meta/connect", times=2)
    server.add_fault(Refuse("500::two", "503::why", {"reconnect": "none"}, bare=True))
    server.add_fault(
        Delay(0.0), Redirect("https://x/"), when=lambda request: request.kind == "cometd"
    )
    errors = [(await browser.connect())[0].get("error") for _ in range(3)]
    assert errors == ["500::one", "500::one", "500::two"]
    async with browser.http.post(
        server.url + browser.path, json=[], allow_redirects=False
    ) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "https://x/")
    server.add_fault(Refuse("500::x"))
    server.clear_faults()
    assert (await browser.connect())[0]["successful"]


async def test_events_twice_and_lost_answers(server: StreamingServer, browser: Browser) -> None:
    await browser.subscribe(EVENT)
    server.publish(EVENT)
    server.add_fault(Duplicate())
    assert len(await browser.connect()) == 3
    server.publish(EVENT)
    for fault in (Truncate(), CutBefore()):
        server.add_fault(fault)
        with pytest.raises((aiohttp.ClientError, json.JSONDecodeError)):
            await browser.connect()
    assert len(await browser.connect()) == 1


async def test_an_unknown_fault_does_nothing(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Fault())
    assert (await browser.connect())[0]["successful"]


async def test_going_down_and_up_again(server: StreamingServer, browser: Browser) -> None:
    await server.pause()
    with pytest.raises(aiohttp.ClientError):
        await browser.connect()
    await server.resume()
    assert (await browser.connect())[0]["successful"]
    await server.restart()
    assert (await browser.connect())[0]["error"] == "403::Unknown client"


async def test_moving_house(server: StreamingServer, browser: Browser) -> None:
    old = server.instance_url
    await server.move_instance(status=307)
    assert server.instance_url != old
    async with browser.http.post(
        server.url + browser.path, json=[{}], allow_redirects=False
    ) as answer:
        assert answer.status == 307
        assert answer.headers["Location"].startswith(server.instance_url)


async def test_what_fails_in_a_handler_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with StreamingServer() as server, aiohttp.ClientSession() as http:
            server.add_fault(Fault(), when=lambda request: bool(1 / 0))
            async with http.post(f"{server.url}/cometd/66.0", json=[]) as answer:
                assert answer.status == 500


async def test_waiting_in_vain(server: StreamingServer) -> None:
    with pytest.raises(TimeoutError):
        await server.wait_for(lambda server: False, 0.01)


def test_steering_from_another_thread() -> None:
    ready = threading.Event()
    servers: list[StreamingServer] = []
    end: list[Any] = []

    async def serve() -> None:
        async with StreamingServer() as server:
            servers.append(server)
            stop = asyncio.Event()
            end.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    [server] = servers
    server.publish(EVENT)
    server.wait_until(lambda server: len(server.replay_ids(EVENT)) == 1)

    async def elsewhere() -> None:
        await server.wait_for(lambda server: True)
        await server.restart()

    asyncio.run(elsewhere())
    [(loop, stop)] = end
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()


# Logging in


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


async def ask(
    server: StreamingServer, http: aiohttp.ClientSession, **form: str
) -> tuple[int, Message]:
    """Make a token request."""
    form = {"client_id": "consumer-key", "client_secret": "consumer-secret", **form}
    async with http.post(f"{server.url}/services/oauth2/token", data=form) as answer:
        return answer.status, await answer.json()


async def test_the_password_flow(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    form = {
        "grant_type": "password",
        "username": server.oauth.username,
        "password": server.oauth.password,
    }
    status, reply = await ask(server, http, **form)
    assert status == 200
    assert reply["instance_url"] == server.instance_url
    assert reply["signature"] == server.oauth.sign(reply["id"], reply["issued_at"])
    assert reply["access_token"] in server.oauth.tokens
    for wrong, error in (
        ({"password": "x"}, "invalid_grant"),
        ({"client_id": "x"}, "invalid_client_id"),
        ({"client_secret": "x"}, "invalid_client"),
        ({"grant_type": "x"}, "unsupported_grant_type"),
    ):
        status, reply = await ask(server, http, **(form | wrong))
        assert (status, reply["error"]) == (400, error)


async def test_rotation(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(rotate_refresh_tokens=True) as server:
        old = server.refresh_token
        _, reply = await ask(server, http, grant_type="refresh_token", refresh_token=old)
        assert reply["refresh_token"] == server.refresh_token != old
        status, reply = await ask(server, http, grant_type="refresh_token", refresh_token=old)
        assert (status, reply["error_description"]) == (400, "expired access/refresh token")


async def test_client_credentials_need_my_domain(http: aiohttp.ClientSession) -> None:
    for my_domain, wanted in ((True, 200), (False, 400)):
        async with StreamingServer(my_domain=my_domain) as server:
            status, _ = await ask(server, http, grant_type="client_credentials")
            assert status == wanted


@pytest.mark.parametrize(
    ("claims", "description"),
    [
        ({}, None),
        ({"exp": 5}, "expired authorization code"),
        ({"aud": "https://x"}, "audience is invalid"),
        ({"iss": "x"}, "client identifier invalid"),
        ({"sub": "x"}, "user hasn't approved this consumer"),
        (None, "invalid assertion"),
    ],
)
async def test_the_jwt_flow(
    http: aiohttp.ClientSession, claims: Message | None, description: str | None
) -> None:
    async with StreamingServer(jwt_public_key=PUBLIC) as server:
        good = {
            "iss": "consumer-key",
            "sub": server.oauth.username,
            "aud": "https://login.salesforce.com",
            "exp": int(time.time()) + 100,
        }
        assertion = "x" if claims is None else jwt.encode(good | claims, KEY, algorithm="RS256")
        status, reply = await ask(
            server,
            http,
            grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
            assertion=assertion,
        )
        assert status == (200 if description is None else 400)
        assert reply.get("error_description") == description


async def test_the_jwt_flow_without_a_certificate(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    status, _ = await ask(server, http, grant_type=grant, assertion="x")
    assert status == 400


async def test_the_web_server_flow(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    verifier = "v" * 50
    challenge = (
        base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    )
    query = {
        "response_type": "code",
        "client_id": "consumer-key",
        "redirect_uri": "http://localhost/x",
        "state": "s",
        "code_challenge": challenge,
    }

    async def authorize(**other: str) -> tuple[int, dict[str, list[str]]]:
        url = f"{server.url}/services/oauth2/authorize"
        async with http.get(url, params=query | other, allow_redirects=False) as answer:
            return answer.status, parse_qs(urlsplit(answer.headers.get("Location", "")).query)

    for wrong in ({"client_id": "x"}, {"response_type": "token"}):
        assert (await authorize(**wrong))[0] == 400
    for other, wanted in (
        ({}, 200),
        ({"code_verifier": "x"}, 400),
        ({"redirect_uri": "x"}, 400),
        ({"client_id": "x"}, 400),
        ({"code": "x"}, 400),
    ):
        status, found = await authorize()
        assert (status, found["state"]) == (302, ["s"])
        form = {
            "code": found["code"][0],
            "redirect_uri": "http://localhost/x",
            "code_verifier": verifier,
        }
        status, reply = await ask(server, http, grant_type="authorization_code", **(form | other))
        assert status == wanted, reply


async def test_odd_token_requests_are_noticed(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    url = f"{server.url}/services/oauth2/token"
    async with http.get(f"{url}?password=x", headers={"Authorization": "Bearer x"}) as answer:
        assert answer.status == 400
    assert len(server.violations) == 2
    assert server.count("token") == 1


# The pytest plugin


def test_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import aiosfstream

        def test_synchronous(salesforce_server):
            async def use():
                async with aiosfstream.SalesforceStreamingClient(**salesforce_server.credentials) as client:
                    await client.subscribe("/event/A__e")
                    wanted = salesforce_server.publish("/event/A__e")
                    message = await client.receive()
                    assert message["data"]["event"]["replayId"] == wanted
                    await salesforce_server.wait_for(lambda server: server.held_connects)
            asyncio.run(use())
            assert salesforce_server.sessions == []

        def test_new_for_each_test(salesforce_server):
            assert salesforce_server.requests == []
        """
    )
    pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_what_fails_in_the_server_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio, aiohttp
        from aiosfstream.testing import Delay

        def test_it(salesforce_server):
            salesforce_server.add_fault(Delay(0), when=lambda request: 1 / 0)
            async def use():
                async with aiohttp.ClientSession() as http:
                    async with http.post(salesforce_server.url + "/cometd/66.0", json=[]):
                        pass
            asyncio.run(use())
        """
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError*"])
