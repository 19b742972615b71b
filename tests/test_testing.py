"""The test server itself, asked by a plain HTTP client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from aiosfstream.testing import (
    Alter,
    Call,
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    Fault,
    ForgetSession,
    Garble,
    Hang,
    OAuthError,
    Redirect,
    Refuse,
    Request,
    RevokeTokens,
    Status,
    StreamingServer,
    Truncate,
)
from tests.support import CHANGE, EVENT, GENERIC, TOPIC, soon

Message = dict[str, Any]

#: Seconds that are long enough for something to happen meanwhile.
NOTICED = 0.1


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
        ("/cometd/66", "400::API version in the URI is mandatory"),
        ("/cometd/66.0/", None),
        ("/cometd/66.0/handshake", None),
    ],
)
async def test_api_versions(browser: Browser, path: str, error: str | None) -> None:
    browser.path = path
    reply = await browser.shake_hands()
    assert reply["successful"] is (error is None)
    assert reply.get("error", "").startswith(error or "")
    assert browser.server.requests[-1].status == (200 if error is None else 400)


@pytest.mark.parametrize("path", ["//cometd/66.0", "/other", "/cometdx", "//services/oauth2/token"])
async def test_other_paths_lead_nowhere(browser: Browser, path: str) -> None:
    async with browser.http.post(browser.server.url + path, json=[]) as answer:
        assert answer.status == 404


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


async def test_a_token_that_is_revoked_while_a_connect_is_held(
    server: StreamingServer, browser: Browser
) -> None:
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.revoke_tokens()
    # Another token that is valid by now helps this connect nothing.
    browser.token = server.new_access_token()
    [reply] = await soon(held)
    assert reply["error"] == "401::Authentication invalid"
    assert (await browser.connect())[0]["successful"]


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


async def test_the_routing_cookie_is_demanded(server: StreamingServer, browser: Browser) -> None:
    cookies = {"BAYEUX_BROWSER": server.sessions[0].cookie}
    browser.http.cookie_jar.clear()
    browser.http.cookie_jar.update_cookies(cookies, URL(server.url))
    [reply] = await browser.connect()
    assert reply["error"] == "403::Unknown client"
    assert server.violations == ["the routing cookie did not come back"]


async def test_another_server_sets_another_routing_cookie(
    server: StreamingServer, browser: Browser
) -> None:
    server.expire_sessions()
    [reply] = await browser.connect()
    assert reply["error"] == "403::Unknown client"
    await browser.shake_hands()
    assert (await browser.connect())[0]["successful"]
    sent = [request.headers["Cookie"] for request in server.requests if "Cookie" in request.headers]
    routes = [cookie.partition("sfdc-stream=")[2].partition(";")[0] for cookie in sent]
    # Already the refusal brings the new one, so the handshake comes with it.
    assert routes[0] != routes[1] == routes[2]
    assert server.violations == []


async def test_cookies_are_secure_where_tls_is(http: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with StreamingServer(ssl_context=context) as server:
        assert server.url.startswith("https://127.0.0.1:")
        url, token = f"{server.url}/cometd/66.0", server.new_access_token()
        body = [{"channel": "/meta/handshake", "supportedConnectionTypes": ["long-polling"]}]
        for turn in range(2):
            # Python 3.10 takes a connection over TLS that the server cuts for one that nobody closed.
            headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
            async with http.post(url, json=body, ssl=trusting, headers=headers) as answer:
                cookies = answer.headers.getall("Set-Cookie")
            assert [cookie.endswith("; Secure") for cookie in cookies] == [True, True]
            assert ["; HttpOnly" in cookie for cookie in cookies] == [True, False]
            if turn == 0:
                await server.restart()


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


async def test_too_many_clients(browser: Browser) -> None:
    browser.server.max_clients = 1
    reply = await browser.shake_hands()
    reason = reply["ext"]["sfdc"]["failureReason"]
    assert reason == "403::Organization concurrent user limit exceeded"


async def test_messages_without_a_handshake(server: StreamingServer, browser: Browser) -> None:
    browser.client_id = ""
    reply = await browser.subscribe(EVENT)
    assert reply["error"] == "403::Client has not completed handshake"
    assert server.violations == ["a message without the client id of a handshake"]


async def test_a_connect_whose_socket_died_is_no_second_one(
    server: StreamingServer, browser: Browser
) -> None:
    first = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    first.cancel()
    assert (await browser.connect())[0]["successful"]
    assert server.violations == []


async def test_a_request_beside_a_handshake(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Delay(NOTICED), on="/meta/handshake")
    shaking = asyncio.create_task(browser.send("/meta/handshake"))
    await server.wait_for(lambda server: server.count("/meta/handshake") == 2)
    await browser.connect()
    assert server.violations == ["a request beside a handshake"]
    await soon(shaking)


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


async def test_an_unasked_disconnect_waits_for_a_connect(
    server: StreamingServer, browser: Browser
) -> None:
    server.disconnect_clients("none")
    assert server.sessions == []
    assert (await browser.subscribe(EVENT))["error"] == "403::Unknown client"
    goodbye, reply = await browser.connect(advice=None)
    assert (goodbye["channel"], reply["advice"]["reconnect"]) == ("/meta/disconnect", "none")
    [reply] = await browser.connect()
    assert (reply["error"], reply["advice"]["reconnect"]) == ("403::Unknown client", "handshake")


async def test_events_for_a_dead_socket_are_lost(server: StreamingServer, browser: Browser) -> None:
    start = server.publish(EVENT)
    await browser.subscribe(EVENT)
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    held.cancel()
    lost = server.publish(EVENT)
    await server.wait_for(lambda server: not server.held_connects)
    [reply] = await browser.connect()
    assert reply["successful"]
    await browser.subscribe(EVENT, {EVENT: start})
    event, _ = await browser.connect()
    assert event["data"]["event"]["replayId"] == lost


async def test_a_filtered_push_topic(server: StreamingServer, browser: Browser) -> None:
    filtered = f"{TOPIC}?Status__c='Open'&Owner__c=Ann"
    reply = await browser.subscribe(filtered, {filtered: -2})
    assert f"channel {{{filtered}}} wasn't found" in reply["error"]
    assert (await browser.subscribe(filtered, {TOPIC: -2}))["successful"]
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.publish(TOPIC, {"Status__c": "Closed", "Owner__c": "Bob"})
    await browser.subscribe(EVENT)
    assert server.held_connects == 1, "an event that is held back ends no connect"
    server.publish_many(
        [(TOPIC, {"Status__c": "Open", "N": 1}), (TOPIC, {"Owner__c": "Ann", "N": 2})]
    )
    *events, _ = await soon(held)
    assert [event["data"]["sobject"]["N"] for event in events] == [1, 2]
    assert {event["channel"] for event in events} == {TOPIC}


async def test_an_event_comes_once_for_several_subscriptions(browser: Browser) -> None:
    await browser.subscribe(TOPIC)
    await browser.subscribe(f"{TOPIC}?A=1")
    browser.server.publish(TOPIC, {"A": 1})
    assert len(await browser.connect()) == 2
    assert len(await browser.connect()) == 1


async def test_text_replay_ids(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(text_replay_ids=True) as server:
        browser = Browser(server, http)
        await browser.shake_hands()
        first, second = server.publish(EVENT), server.publish(EVENT)
        assert isinstance(first, str)
        assert "was invalid" in (await browser.subscribe(EVENT, {EVENT: int(first)}))["error"]
        assert (await browser.subscribe(EVENT, {EVENT: first}))["successful"]
        event, _ = await browser.connect()
        assert event["data"]["event"]["replayId"] == second


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
    assert (await browser.subscribe(f"{EVENT}?A=1"))["error"] == "403::Restricted channel"
    server.allow(EVENT)
    wildcard = await browser.subscribe("/event/**")
    assert wildcard["error"] == "403:denied_by_security_policy:create_denied"
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


@pytest.mark.parametrize(
    ("request_", "violation"),
    [
        ({"params": {"access_token": "x"}}, "a CometD request has a query string"),
        ({"json": {"channel": "/meta/connect"}}, "a request body is a lone message, not an array"),
        ({"json": [{"id": "1"}]}, "a request body is no JSON array of messages"),
        ({"data": b"nonsense"}, "a request body is no JSON array of messages"),
        ({"method": "GET"}, "a CometD request is no POST"),
        (
            {"data": b"[]", "headers": {"Content-Type": "text/plain"}},
            "a CometD request's type is text/plain",
        ),
    ],
)
async def test_odd_requests_are_noticed(
    browser: Browser, request_: dict[str, Any], violation: str
) -> None:
    options = {"method": "POST", **request_}
    if not {"json", "data"} & set(options):
        options["json"] = [{"channel": "/meta/connect", "clientId": browser.client_id}]
    async with browser.http.request(url=browser.server.url + browser.path, **options) as answer:
        assert answer.status in (200, 400)
    assert violation in browser.server.violations


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
META = [f"/meta/{name}" for name in ("handshake", "connect", "subscribe", "unsubscribe")]
ODD_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"channel": st.sampled_from(META) | JSON},
        optional={
            "id": JSON,
            "clientId": st.just("client2") | JSON,
            "connectionType": st.just("long-polling") | JSON,
            "supportedConnectionTypes": st.just(["long-polling"]) | JSON,
            "subscription": st.just(EVENT) | JSON,
            "ext": st.fixed_dictionaries({"replay": JSON | st.dictionaries(st.just(EVENT), JSON)})
            | JSON,
            "advice": st.fixed_dictionaries({"timeout": JSON}) | JSON,
        },
    ),
    max_size=3,
)


@given(body=JSON | ODD_MESSAGES)
@settings(max_examples=60)
def test_no_body_breaks_it(body: Any) -> None:
    async def run() -> None:
        jar = aiohttp.CookieJar(quote_cookie=False, unsafe=True)
        async with (
            StreamingServer(hold_timeout=0.001) as server,
            aiohttp.ClientSession(cookie_jar=jar) as http,
        ):
            browser = Browser(server, http)
            await browser.shake_hands()
            assert browser.client_id == "client2"
            headers = {
                "Authorization": f"Bearer {browser.token}",
                "Content-Type": "application/json",
            }
            async with http.post(
                server.url + browser.path, data=json.dumps(body), headers=headers
            ) as answer:
                assert answer.status in (200, 400)
                if answer.status == 200:
                    replies = await answer.json()
                    assert len(replies) == (1 if isinstance(body, dict) else len(body))

    asyncio.run(run())


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


async def test_the_header_of_a_change_event(browser: Browser) -> None:
    header = {"changeType": "DELETE", "recordIds": ["001x"]}
    for channel, entity in (
        ("/data/Employee__ChangeEvent", "Employee__c"),
        ("/data/ChangeEvents", "Account"),
        ("/data/Sales__chn", "Account"),
    ):
        await browser.subscribe(channel)
        browser.server.publish(channel, {"ChangeEventHeader": header})
        change, _ = await browser.connect()
        found = change["data"]["payload"]["ChangeEventHeader"]
        assert (found["changeType"], found["recordIds"]) == ("DELETE", ["001x"])
        assert (found["entityName"], found["sequenceNumber"]) == (entity, 1)


async def test_equal_replay_ids_are_all_delivered(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(max_batch=1) as server:
        browser = Browser(server, http)
        await browser.shake_hands()
        await browser.subscribe(EVENT)
        for number in range(3):
            server.publish_data(EVENT, {"number": number}, replay_id=5)
        numbers = [(await browser.connect())[0]["data"]["number"] for _ in range(3)]
        assert numbers == [0, 1, 2]


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


@pytest.mark.parametrize(
    ("fault", "is_lost"),
    [
        (CutAfter(), True),
        (CutAfter(reset=True), True),
        (Truncate(5), True),
        (Truncate(), True),
        (Garble(), True),
        (Garble(b""), True),
        (CutBefore(), False),
        (CutBefore(reset=True), False),
        (Status(503), False),
        (Status(502, b"[]", {"Retry-After": "1"}, "application/json"), False),
        (Redirect("/elsewhere", 307), False),
        (Refuse("500::x"), False),
    ],
)
async def test_what_is_lost_with_an_answer(
    server: StreamingServer, browser: Browser, fault: Fault, is_lost: bool
) -> None:
    await browser.subscribe(EVENT)
    wanted = server.publish(EVENT)
    server.add_fault(fault, on="/meta/connect")
    body = [
        {
            "channel": "/meta/connect",
            "clientId": browser.client_id,
            "connectionType": "long-polling",
            "advice": {"timeout": 0},
        }
    ]
    headers = {"Authorization": f"Bearer {browser.token}"}
    with suppress(aiohttp.ClientError):
        async with browser.http.post(
            server.url + browser.path, json=body, headers=headers, allow_redirects=False
        ) as answer:
            assert "replayId" not in await answer.text()
    *events, reply = await browser.connect()
    assert reply["successful"]
    assert [event["data"]["event"]["replayId"] for event in events] == ([] if is_lost else [wanted])
    assert len(server.replay_ids(EVENT)) == 1


@pytest.mark.parametrize("fault", [CutBefore, CutAfter])
async def test_closing_and_resetting(
    server: StreamingServer, browser: Browser, fault: type[CutBefore | CutAfter]
) -> None:
    server.add_fault(fault())
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await browser.connect()
    server.add_fault(fault(reset=True))
    with pytest.raises(aiohttp.ClientOSError, match="reset"):
        await browser.connect()
    statuses = [request.status for request in server.requests[-2:]]
    assert statuses == [None, None]


async def test_cutting_held_connects(server: StreamingServer, browser: Browser) -> None:
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.cut_connections()
    with pytest.raises(aiohttp.ClientOSError, match="reset"):
        await soon(held)


async def test_late_answers(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Delay(NOTICED, after=True), on="/meta/subscribe")
    started = time.monotonic()
    late = asyncio.create_task(browser.subscribe(EVENT))
    await server.wait_for(lambda server: EVENT in server.subscriptions)
    assert not late.done()
    assert (await soon(late))["successful"]
    server.add_fault(Delay(NOTICED), on="/meta/unsubscribe")
    late_too = asyncio.create_task(browser.send("/meta/unsubscribe", subscription=EVENT))
    await server.wait_for(lambda server: server.count("/meta/unsubscribe"))
    assert EVENT in server.subscriptions
    await soon(late_too)
    assert time.monotonic() - started >= 2 * NOTICED - 0.01


async def test_a_request_that_hangs_ends_with_the_server(http: aiohttp.ClientSession) -> None:
    async with StreamingServer() as server:
        server.add_fault(Hang())
        hanging = asyncio.create_task(http.post(f"{server.url}/services/oauth2/token"))
        await server.wait_for(lambda server: server.count("token"))
    with pytest.raises(aiohttp.ClientError):
        await soon(hanging)


async def test_functions_as_faults(server: StreamingServer, browser: Browser) -> None:
    seen: list[Request] = []
    server.add_fault(Call(seen.append), Call(lambda _: server.publish(EVENT)), on="/meta/connect")
    await browser.subscribe(EVENT)
    assert len(await browser.connect()) == 2
    assert [(request.channel, request.client_id) for request in seen] == [
        ("/meta/connect", browser.client_id)
    ]

    def without_ids(replies: list[Message]) -> list[Message]:
        return [{**reply, "id": 5} for reply in replies]

    server.add_fault(Alter(without_ids), on="/meta/connect")
    assert [reply["id"] for reply in await browser.connect()] == [5]
    server.add_fault(Alter(lambda reply: {**reply, "token_type": None}), on="token")
    _, token = await ask(server, browser.http, grant_type="client_credentials")
    assert (token["token_type"], token["scope"]) == (None, "api")


async def test_losing_the_session_or_the_token_of_a_request(
    server: StreamingServer, browser: Browser
) -> None:
    server.add_fault(ForgetSession())
    assert (await browser.connect())[0]["error"] == "403::Unknown client"
    server.add_fault(RevokeTokens())
    assert (await browser.connect())[0]["error"] == "401::Authentication invalid"
    server.add_fault(OAuthError("inactive_user", "user is inactive", 401), on="token")
    status, reply = await ask(server, browser.http, grant_type="client_credentials")
    assert (status, reply["error"]) == (401, "inactive_user")


async def test_each_message_is_refused(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Refuse("500::x"))
    client_id = browser.client_id
    body = [{"channel": "/a", "id": number, "clientId": client_id} for number in (1, "2")]
    wanted = {"channel": "/a", "clientId": client_id, "successful": False, "error": "500::x"}
    assert await browser.post(body) == [{**wanted, "id": 1}, {**wanted, "id": "2"}]


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


async def test_pausing_takes_effect_at_once(server: StreamingServer) -> None:
    address = ("127.0.0.1", URL(server.url).port)

    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(address) == 0

    assert is_listening()
    _ = server.pause()
    assert not is_listening()
    _ = server.resume()
    assert is_listening()
    _ = server.pause()
    assert not is_listening()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        # The port stays the server's own while it is paused.
        other.bind(address)
    _ = server.resume()
    assert is_listening()


async def test_leaving_while_paused(http: aiohttp.ClientSession) -> None:
    async with StreamingServer() as server:
        await server.pause()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(server.url)


async def test_nothing_is_left_behind(http: aiohttp.ClientSession) -> None:
    before = asyncio.all_tasks()
    async with StreamingServer() as server:
        browser = Browser(server, http)
        await browser.shake_hands()
        held = asyncio.create_task(browser.connect(advice=None))
        await server.wait_for(lambda server: server.held_connects)
        await server.restart()
    with pytest.raises(aiohttp.ClientError):
        await soon(held)
    assert asyncio.all_tasks() == before


async def test_moving_house(server: StreamingServer, browser: Browser) -> None:
    old = server.instance_url
    await server.move_instance(status=307)
    assert server.instance_url != old
    async with browser.http.post(
        server.url + browser.path, json=[{}], allow_redirects=False
    ) as answer:
        assert answer.status == 307
        assert answer.headers["Location"].startswith(server.instance_url)
    between = server.instance_url
    await server.move_instance()
    for url in (server.url, between):
        async with browser.http.post(url + browser.path, json=[]) as answer:
            assert answer.status == 404
    async with browser.http.post(server.instance_url + browser.path, json=[]) as answer:
        assert answer.status == 400


async def test_what_fails_in_a_handler_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with StreamingServer() as server, aiohttp.ClientSession() as http:
            server.add_fault(Fault(), when=lambda request: bool(1 / 0))
            async with http.post(f"{server.url}/cometd/66.0", json=[]) as answer:
                assert answer.status == 500


async def test_waiting_in_the_wrong_thread(server: StreamingServer) -> None:
    with pytest.raises(RuntimeError, match="wait_for"):
        server.wait_until(lambda server: True)


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


async def test_nothing_is_signed_without_a_secret(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(jwt_public_key=PUBLIC, slash=True) as server:
        claims = {
            "iss": "consumer-key",
            "sub": server.oauth.username,
            "aud": "https://test.salesforce.com",
            "exp": int(time.time()) + 100,
        }
        _, reply = await ask(
            server,
            http,
            grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
            assertion=jwt.encode(claims, KEY, algorithm="RS256"),
        )
        assert {"signature", "issued_at", "refresh_token"} & set(reply) == set()
        assert reply["scope"] == "id full"
        assert reply["instance_url"] == server.url + "/"


async def test_assertions_need_pyjwt(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(RuntimeError, match=r"aiosfstream\[jwt\]"):
        async with (
            StreamingServer(jwt_public_key=PUBLIC) as server,
            http.post(
                f"{server.url}/services/oauth2/token",
                data={"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"},
            ) as answer,
        ):
            assert answer.status == 500


async def test_no_secret_is_shown(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    await ask(server, http, grant_type="client_credentials")
    token = server.new_access_token()
    shown = repr(server.oauth) + repr(server.requests)
    secrets = (server.oauth.consumer_secret, server.oauth.password, server.refresh_token, token)
    assert [secret for secret in secrets if secret in shown] == []


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
        ({"client_secret": "x"}, 400),
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


async def test_who_proves_nothing_needs_the_secret(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    redirect_uri = "http://localhost/x?y=1"
    query = {"response_type": "code", "client_id": "consumer-key", "redirect_uri": redirect_uri}
    for secret, wanted in (({}, 400), ({"client_secret": "consumer-secret"}, 200)):
        url = f"{server.url}/services/oauth2/authorize"
        async with http.get(url, params=query, allow_redirects=False) as answer:
            found = parse_qs(urlsplit(answer.headers["Location"]).query)
        assert found["y"] == ["1"]
        form = {
            "grant_type": "authorization_code",
            "client_id": "consumer-key",
            "redirect_uri": redirect_uri,
            "code": found["code"][0],
            **secret,
        }
        async with http.post(f"{server.url}/services/oauth2/token", data=form) as answer:
            assert answer.status == wanted


async def test_an_authorization_that_is_refused(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    server.add_fault(Redirect("http://localhost/?error=access_denied"), on="authorize")
    url = f"{server.url}/services/oauth2/authorize"
    async with http.get(url, allow_redirects=False) as answer:
        assert answer.headers["Location"] == "http://localhost/?error=access_denied"


async def test_odd_token_requests_are_noticed(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    url = f"{server.url}/services/oauth2/token"
    async with http.get(f"{url}?password=x", headers={"Authorization": "Bearer x"}) as answer:
        assert answer.status == 400
    assert len(server.violations) == 2
    assert server.count("token") == 1
