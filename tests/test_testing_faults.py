"""What the test server does on demand, seen by a plain HTTP client."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosfstream import (
    AccessTokenAuthenticator,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
)
from aiosfstream.auth import AuthenticatorBase
from aiosfstream.testing import (
    Advise,
    AlterBody,
    ByteOrderMark,
    Call,
    Compress,
    CutAfter,
    CutBefore,
    Delay,
    Deliver,
    Drip,
    Farewell,
    Fault,
    Gate,
    Hang,
    Head,
    Hold,
    HoldBody,
    Insert,
    OAuthError,
    Overtake,
    Refuse,
    Status,
    StreamingServer,
    Truncate,
)
from aiosfstream.testing._credentials import key_pair
from tests.support import CHANGE, EVENT, TOPIC, soon
from tests.test_testing import Browser, Message

CONNECT = "/meta/connect"
SUBSCRIBE = "/meta/subscribe"


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A session with cookies, which decompresses nothing."""
    jar = aiohttp.CookieJar(quote_cookie=False, unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, auto_decompress=False) as http:
        yield http


@pytest.fixture
async def browser(server: StreamingServer, http: aiohttp.ClientSession) -> Browser:
    """A client that has shaken hands."""
    browser = Browser(server, http)
    await browser.shake_hands()
    return browser


async def raw(browser: Browser, channel: str = CONNECT) -> tuple[int, Any, bytes]:
    """Send a message and give status, headers and body of the answer."""
    message = {
        "channel": channel,
        "clientId": browser.client_id,
        "connectionType": "long-polling",
        "advice": {"timeout": 0},
    }
    url, headers = browser.server.url + browser.path, {"Authorization": f"Bearer {browser.token}"}
    async with browser.http.post(url, json=[message], headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


def ids(messages: list[Message]) -> list[Any]:
    """Give the replay ids of the events among messages."""
    return [message["data"]["event"]["replayId"] for message in messages if "data" in message]


# What is refused


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("cut", TypeError, "'cut' is no fault: use a value of aiosfstream.testing, one of Advise"),
        (CutAfter, TypeError, r"give add_fault\(\) a value, CutAfter\(\)"),
        (None, TypeError, "None is no fault"),
    ],
)
async def test_what_is_no_fault_is_refused(
    server: StreamingServer, fault: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        server.add_fault(fault)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("connect", "/meta/connect"),
        ("/meta/conect", "/meta/connect"),
        ("/meta/subcribe", "/meta/subscribe"),
        ("tokens", "token"),
        ("authorise", "authorize"),
        ("", None),
        ("cometd", None),
    ],
)
async def test_a_request_that_there_is_not_is_refused(
    server: StreamingServer, name: str, meant: str | None
) -> None:
    with pytest.raises(ValueError, match="no request is called") as refused:
        server.add_fault(CutAfter(), on=name)
    assert (f"did you mean {meant!r}?" in str(refused.value)) is (meant is not None)


async def test_a_plan_that_nothing_can_meet_is_refused(server: StreamingServer) -> None:
    with pytest.raises(ValueError, match="needs a fault"):
        server.add_fault(on=CONNECT)
    with pytest.raises(ValueError, match="times should be 1 or more"):
        server.add_fault(CutAfter(), times=0)
    with pytest.raises(ValueError, match="Status is met before there is an answer"):
        server.add_fault(Status(503), answering=bool)


@pytest.mark.parametrize(
    ("channel", "told"),
    [
        ("Order__e", "did you mean '/event/Order__e'"),
        ("/Order__e", "did you mean '/event/Order__e'"),
        ("/events/Order__e", "did you mean '/event/Order__e'"),
        ("/event/", "go on with a name"),
        ("AccountChangeEvent", "did you mean '/data/AccountChangeEvent'"),
        ("/meta/connect", "should begin with"),
        ("", "should begin with"),
        ("/topic/T?Status='a'", "use '/topic/T'"),
        ("/event/Order__e/", "use '/event/Order__e'"),
        ("/event/*", "which is for subscriptions"),
    ],
)
async def test_events_that_no_channel_is_for_are_refused(
    server: StreamingServer, channel: str, told: str
) -> None:
    for publish in (server.publish, lambda name: server.publish_many([(EVENT, {}), (name, {})])):
        with pytest.raises(ValueError, match=r"channel should") as refused:
            publish(channel)
        assert told in str(refused.value)
    with pytest.raises(ValueError, match="channel should"):
        server.publish_data(channel, {})
    assert server.replay_ids(EVENT) == []


async def test_other_mistakes_are_refused(server: StreamingServer) -> None:
    for mistake in (
        lambda: server.deny("Order__e", "403::x"),
        lambda: server.limit_channels(EVENT, "Order__e"),
        lambda: server.discard_events("Order__e"),
        lambda: server.replay_ids("Order__e"),
        lambda: server.add_members("/data/Sales__chn", "AccountChangeEvent"),
    ):
        with pytest.raises(ValueError, match="channel should begin with"):
            mistake()
    with pytest.raises(TypeError, match="channel should be a str"):
        server.publish(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reconnect should be one of"):
        server.disconnect_clients("hanshake")
    with pytest.raises(ValueError, match="on should be one of"):
        server.disconnect_clients(on="/meta/unsubscribe")
    with pytest.raises(ValueError, match="status should be from 300"):
        await server.move_instance(status=200)


# How often


async def test_faults_until_told_otherwise(server: StreamingServer, browser: Browser) -> None:
    busy = server.add_fault(Refuse("503::busy"), on=CONNECT, times=None)
    once = server.add_fault(Refuse("500::once"), on=CONNECT)
    errors = [(await browser.connect())[0]["error"] for _ in range(5)]
    assert errors == ["503::busy"] * 5
    server.clear_faults(busy)
    assert (await browser.connect())[0]["error"] == "500::once"
    assert (await browser.connect())[0]["successful"]
    assert (busy.met, busy.is_over, once.met, once.is_over) == (5, False, 1, True)


async def test_faults_that_depend_on_the_answer(server: StreamingServer, browser: Browser) -> None:
    refused = server.add_fault(CutAfter(), on=CONNECT, answering=lambda _: False)
    await browser.connect()
    assert refused.met == 0
    await browser.subscribe(EVENT)
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    # The connect is there already; what it is answered with is not.
    lost = server.add_fault(
        CutAfter(), on=CONNECT, answering=lambda answer: any("data" in one for one in answer)
    )
    server.publish(EVENT)
    with pytest.raises(aiohttp.ClientError):
        await soon(held)
    assert lost.is_over
    assert ids(await browser.connect()) == []


# Refusals


async def test_refusals_with_a_status_and_headers(
    server: StreamingServer, browser: Browser
) -> None:
    server.add_fault(
        Refuse("403::limit exceeded", advice={"reconnect": "retry"}, status=429, headers=RETRY)
    )
    status, headers, body = await raw(browser)
    assert (status, headers["Retry-After"]) == (429, "7")
    assert json.loads(body)[0]["advice"] == {"reconnect": "retry"}
    server.add_fault(OAuthError("invalid_grant", "retry your request", 503, RETRY), on="token")
    async with browser.http.post(server.url + "/services/oauth2/token") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
        assert (await answer.json())["error_description"] == "retry your request"


RETRY = {"Retry-After": "7"}


async def test_a_page_with_huge_headers(server: StreamingServer) -> None:
    policy = "x" * 11_000
    server.add_fault(Status(401, headers={"Content-Security-Policy": policy}))
    async with aiohttp.ClientSession(max_field_size=20_000) as http:
        browser = Browser(server, http)
        status, headers, body = await raw(browser)
    assert (status, headers["Content-Security-Policy"]) == (401, policy)
    assert body.startswith(b"<html>")


# Farewells


@pytest.mark.parametrize("successful", [True, False])
@pytest.mark.parametrize("connect_first", [True, False])
async def test_a_farewell_with_a_subscription(
    server: StreamingServer, browser: Browser, successful: bool, connect_first: bool
) -> None:
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.disconnect_clients(
        "none", on=SUBSCRIBE, successful=successful, connect_first=connect_first
    )
    if connect_first:
        await soon(held)
    answered: list[bool] = []
    server.add_fault(Call(lambda _: answered.append(held.done())), on=SUBSCRIBE)
    goodbye, subscribed = await browser.send(SUBSCRIBE, subscription=EVENT)
    assert answered == [connect_first]
    assert goodbye == {"channel": "/meta/disconnect"}
    assert subscribed["successful"] is successful
    assert subscribed.get("error") == (None if successful else "403::subscribe_failed")
    [connected] = await soon(held)
    assert connected["advice"] == {"reconnect": "none", "interval": 0}
    assert connected["successful"] is successful
    assert (await browser.subscribe(EVENT))["error"] == "403::Unknown client"
    assert (await browser.connect())[0]["advice"]["reconnect"] == "handshake"


async def test_a_successful_connect_that_says_goodbye(
    server: StreamingServer, browser: Browser
) -> None:
    await browser.subscribe(EVENT)
    wanted = server.publish(EVENT)
    server.disconnect_clients("none", successful=True, connect_first=False)
    goodbye, event, reply = await browser.connect()
    assert (goodbye["channel"], ids([event])) == ("/meta/disconnect", [wanted])
    assert (reply["successful"], reply["advice"]["reconnect"]) == (True, "none")


async def test_a_held_connect_says_goodbye_at_once(
    server: StreamingServer, browser: Browser
) -> None:
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    server.disconnect_clients(connect_first=False)
    assert (await soon(held))[0] == {"channel": "/meta/disconnect"}


async def test_a_farewell_put_together(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Refuse("403::subscribe_failed"), Farewell(), on=SUBSCRIBE)
    goodbye, refused = await browser.send(SUBSCRIBE, subscription=EVENT)
    assert (goodbye, refused["error"]) == (
        {"channel": "/meta/disconnect"},
        "403::subscribe_failed",
    )
    assert server.sessions == []
    await browser.shake_hands()
    server.add_fault(Advise({"reconnect": "none"}), Farewell(first=False), on=CONNECT)
    reply, goodbye = await browser.connect()
    assert (reply["successful"], reply["advice"]) == (True, {"reconnect": "none"})
    assert goodbye == {"channel": "/meta/disconnect"}


# Order


async def test_events_in_the_answer_to_a_subscription(
    server: StreamingServer, browser: Browser
) -> None:
    wanted = [server.publish(EVENT) for _ in range(3)]
    for first in (True, False):
        server.add_fault(Deliver(first=first), on=SUBSCRIBE)
        answer = await browser.send(
            SUBSCRIBE, subscription=EVENT, ext={"replay": {EVENT: wanted[0]}}
        )
        assert ids(answer) == wanted[1:]
        assert ("data" in answer[0]) is first
        assert ids(await browser.connect()) == []


@pytest.mark.parametrize("make", [Gate, asyncio.Event])
async def test_a_subscription_overtakes_an_answer(
    server: StreamingServer, browser: Browser, make: type[Gate | asyncio.Event]
) -> None:
    gate = make()
    await browser.subscribe(EVENT)
    held = asyncio.create_task(raw(browser))
    server.add_fault(HoldBody(gate), on=CONNECT)
    first = server.publish(EVENT)
    await server.wait_for(lambda server: server.count(CONNECT))
    later = server.publish(EVENT)
    server.add_fault(Deliver(), on=SUBSCRIBE)
    answer = await browser.send(SUBSCRIBE, subscription=TOPIC)
    assert not held.done()
    assert ids(answer) == [later]
    gate.open() if isinstance(gate, Gate) else gate.set()
    _, _, body = await soon(held)
    assert ids(json.loads(body)) == [first]


async def test_the_newest_event_comes_first(server: StreamingServer, browser: Browser) -> None:
    server.max_batch = 2
    events = [server.publish(EVENT) for _ in range(4)]
    await browser.subscribe(EVENT, {EVENT: events[0]})
    live = server.publish(EVENT)
    server.add_fault(Overtake(), on=CONNECT)
    answers = [ids(await browser.connect()) for _ in range(4)]
    assert answers == [[live], events[1:3], events[3:], []]
    later = server.publish(EVENT)
    assert ids(await browser.connect()) == [later]


# Slow answers


async def test_an_answer_in_drops(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(Drip(10, 0.01), on=CONNECT)
    url = server.url + browser.path
    headers = {"Authorization": f"Bearer {browser.token}"}
    message = {"channel": CONNECT, "clientId": browser.client_id, "connectionType": "long-polling"}
    async with browser.http.post(
        url, json=[{**message, "advice": {"timeout": 0}}], headers=headers
    ) as answer:
        arrived = [len(piece) async for piece in answer.content.iter_any()]
    assert len(arrived) > 3
    assert sum(arrived) == int(answer.headers["Content-Length"])


async def test_waiting_for_a_gate(server: StreamingServer, browser: Browser) -> None:
    gates = {after: Gate() for after in (False, True)}
    for after, gate in gates.items():
        server.add_fault(Hold(gate, after=after), on=SUBSCRIBE)
        subscribing = asyncio.create_task(browser.subscribe(f"/topic/T{after}"))
        number = 1 + after
        await server.wait_for(lambda server, n=number: server.count(SUBSCRIBE) == n)  # type: ignore[misc]
        if after:
            await server.wait_for(lambda server: "/topic/TTrue" in server.subscriptions)
        assert (f"/topic/T{after}" in server.subscriptions) is after
        assert not subscribing.done()
        gate.open()
        assert (await soon(subscribing))["successful"]
        assert gate.is_open


async def test_a_gate_opens_once_for_all(server: StreamingServer) -> None:
    gate = Gate()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.to_thread(gate.open)
    await soon(asyncio.gather(*waiting))
    await soon(gate.wait())


async def test_what_is_held_ends_with_the_server(http: aiohttp.ClientSession) -> None:
    for fault in (Hold(Gate()), HoldBody(Gate()), Hang(), Drip(1, 60.0), Delay(60.0)):
        async with StreamingServer() as server:
            server.add_fault(fault)
            asking = asyncio.create_task(http.get(server.url + "/x"))
            await server.wait_for(lambda server: server.count("other"))
        await soon(asyncio.wait([asking]))
        if not asking.exception():
            asking.result().close()


# Odd bodies


async def test_bodies_in_another_form(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(ByteOrderMark(), Head(400), on=CONNECT)
    status, _, body = await raw(browser)
    assert (status, body[:3]) == (400, b"\xef\xbb\xbf")
    assert json.loads(body.decode("utf-8-sig"))[0]["successful"]
    for encoding, unpack in (
        ("gzip", gzip.decompress),
        ("x-gzip", gzip.decompress),
        ("deflate", zlib.decompress),
    ):
        server.add_fault(Compress(encoding), Head(headers={"X-A": "b"}), on=CONNECT)
        status, headers, body = await raw(browser)
        assert (status, headers["Content-Encoding"], headers["X-A"]) == (200, encoding, "b")
        assert json.loads(unpack(body))[0]["successful"]


async def test_other_values_among_the_messages(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(
        Insert((None, "x", {}), first=True), Insert(([{"a": 1}], {"data": None})), on=CONNECT
    )
    found: list[Any] = list(await browser.connect())
    assert found.pop(3)["successful"]
    assert found == [None, "x", {}, [{"a": 1}], {"data": None}]


async def test_bodies_that_cannot_be_read(server: StreamingServer, browser: Browser) -> None:
    await browser.subscribe(EVENT)
    server.publish(EVENT, {"Text__c": "\ud83d"})
    _, _, body = await raw(browser)
    assert rb'"Text__c": "\ud83d"' in body
    for odd in (b"\xff", b"\x01"):
        server.publish(EVENT, {"Text__c": "@"})
        server.add_fault(AlterBody(lambda body, odd=odd: body.replace(b"@", odd)), on=CONNECT)  # type: ignore[misc]
        _, _, body = await raw(browser)
        assert odd in body


async def test_faults_go_together(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(
        Refuse("500::x"), Insert((None,)), ByteOrderMark(), HoldBody(Gate(), 5), Truncate(9)
    )
    asking = asyncio.create_task(raw(browser))
    await server.wait_for(lambda server: server.count(CONNECT))
    assert not asking.done()
    server.cut_connections()
    with pytest.raises(aiohttp.ClientError):
        await soon(asking)


# Connections


async def test_reused_connections(server: StreamingServer, browser: Browser) -> None:
    server.add_fault(CutBefore(reused=True), times=2)
    with pytest.raises(aiohttp.ClientError):
        await browser.connect()
    assert (await browser.connect())[0]["successful"]
    assert [request.reused for request in server.requests] == [False, True, False]


async def test_idle_connections_are_closed(http: aiohttp.ClientSession) -> None:
    async with StreamingServer(keepalive_timeout=0.02) as server:
        browser = Browser(server, http)
        await browser.shake_hands()
        assert http.connector is not None
        await asyncio.sleep(0.1)
        await browser.connect()
        assert [request.reused for request in server.requests] == [False, False]


async def test_connects_held_for_less_than_is_told(
    server: StreamingServer, browser: Browser
) -> None:
    server.hold_timeout, server.advised_timeout = 0.05, 110.0
    [reply] = await soon(browser.connect(advice=None), 2)
    assert reply["advice"]["timeout"] == 110_000


# Several clients


async def test_a_session_left_behind_slows_the_next_one_down(
    server: StreamingServer, browser: Browser
) -> None:
    left = browser.client_id
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    held.cancel()
    await browser.shake_hands()
    for _ in range(2):
        # This one is not held: its client is to poll.
        [reply] = await soon(browser.connect(advice=None))
        assert (reply["advice"]["multiple-clients"], reply["advice"]["interval"]) == (True, 2000)
    await browser.send("/meta/disconnect", clientId=left)
    [reply] = await browser.connect()
    assert (reply["advice"]["interval"], "multiple-clients" in reply["advice"]) == (0, False)
    [reply] = await browser.connect()
    assert "advice" not in reply


async def test_a_session_that_holds_no_connect_slows_nobody_down(
    server: StreamingServer, browser: Browser
) -> None:
    await browser.connect()
    await browser.shake_hands()
    [reply] = await browser.connect()
    assert "multiple-clients" not in reply["advice"]
    assert len(server.sessions) == 2


async def test_a_slot_stays_taken(server: StreamingServer, browser: Browser) -> None:
    server.max_clients = 1
    held = asyncio.create_task(browser.connect(advice=None))
    await server.wait_for(lambda server: server.held_connects)
    held.cancel()
    left = browser.client_id
    assert not (await browser.shake_hands())["successful"]
    await browser.send("/meta/disconnect", clientId=left)
    assert (await browser.shake_hands())["successful"]


# Orgs and ids


async def test_ids_begin_again(server: StreamingServer, browser: Browser) -> None:
    old = [server.publish(EVENT) for _ in range(5)]
    await browser.subscribe(EVENT, {EVENT: -2})
    first = await browser.connect()
    server.reset_ids()
    assert server.replay_ids(EVENT) == []
    assert "was invalid" in (await browser.subscribe(EVENT, {EVENT: old[-1]}))["error"]
    assert [server.publish(EVENT) for _ in range(5)] == old
    second = await browser.connect()
    assert ids(second) == ids(first) == old
    uuids = [{one["data"]["event"]["EventUuid"] for one in got[:-1]} for got in (first, second)]
    assert uuids[0].isdisjoint(uuids[1])


async def test_several_events_with_one_id(server: StreamingServer, browser: Browser) -> None:
    await browser.subscribe(EVENT)
    for number in range(3):
        assert server.publish(EVENT, {"N__c": number}, replay_id=7) == 7
    answer = await browser.connect()
    assert ids(answer) == [7, 7, 7]
    assert len({event["data"]["event"]["EventUuid"] for event in answer[:-1]}) == 3
    await browser.subscribe(EVENT, {EVENT: 7})
    later = server.publish(EVENT)
    assert ids(await browser.connect()) == [later]
    server.discard_events(EVENT, keep=2)
    assert (await browser.subscribe(EVENT, {EVENT: 7})).get("error") is None


async def test_another_org(server: StreamingServer, browser: Browser) -> None:
    old = server.publish(EVENT)
    first = await token_reply(server, browser.http)
    server.replace_org()
    second = await token_reply(server, browser.http)
    assert server.replay_ids(EVENT) == []
    assert server.publish(EVENT) == old
    assert first["id"] != second["id"]
    assert server.oauth.org_id in second["id"]
    assert second["access_token"].startswith(server.oauth.org_id[:15])
    assert (await browser.connect())[0]["error"] == "401::Authentication invalid"
    server.replace_org("00D000000000099AAA")
    assert "/id/00D000000000099AAA/" in (await token_reply(server, browser.http))["id"]


async def token_reply(server: StreamingServer, http: aiohttp.ClientSession) -> Any:
    """Log in."""
    form = {"grant_type": "client_credentials", **_client(server)}
    async with http.post(f"{server.url}/services/oauth2/token", data=form) as answer:
        return await answer.json()


def _client(server: StreamingServer) -> dict[str, str]:
    given = server.client_credentials
    return {"client_id": given["consumer_key"], "client_secret": given["consumer_secret"]}


async def test_the_identity(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    reply = await token_reply(server, http)
    headers = {"Authorization": f"Bearer {reply['access_token']}"}
    async with http.get(reply["id"], headers=headers) as answer:
        found = await answer.json()
    assert found["organization_id"] == server.oauth.org_id
    assert (found["id"], found["username"]) == (reply["id"], server.oauth.username)
    for wrong, text in (({}, "Missing_OAuth_Token"), ({"Authorization": "Bearer x"}, "Bad_OAuth")):
        async with http.get(reply["id"], headers=wrong) as answer:
            assert (answer.status, (await answer.text())[: len(text)]) == (403, text)
    assert server.count("identity") == 3


async def test_moving_to_another_server(server: StreamingServer, browser: Browser) -> None:
    async with StreamingServer() as other:
        await server.move_instance(other, status=421)
        assert server.instance_url == other.instance_url
        reply = await token_reply(server, browser.http)
        assert reply["instance_url"] == other.instance_url
        assert (await raw(browser))[0] == 421
        there = Browser(other, browser.http)
        for token in (reply["access_token"], server.new_access_token()):
            there.token = token
            assert (await there.shake_hands())["successful"]
        # And back.
        await server.move_instance()
        assert server.instance_url.startswith("http://127.0.0.1")
        assert server.instance_url != other.instance_url


async def test_an_old_place_that_does_not_answer(server: StreamingServer, browser: Browser) -> None:
    await server.move_instance(status=None)
    asking = asyncio.create_task(raw(browser))
    await server.wait_for(lambda server: server.count(CONNECT))
    assert not asking.done()
    asking.cancel()


async def test_the_same_port_and_events_in_another_program(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    file = tmp_path / "events"
    async with StreamingServer(events_file=file) as server:
        port = int(server.url.rpartition(":")[2])
        kept = [server.publish(EVENT, {"A__c": "é"}), server.publish(TOPIC), server.publish(EVENT)]
        server.discard_events(TOPIC)
    with file.open("a") as half_written:
        half_written.write('["/event/Low_In')
    async with StreamingServer(events_file=file, port=port) as server:
        assert server.url.endswith(f":{port}")
        assert server.replay_ids(EVENT) == [kept[0], kept[2]]
        assert server.replay_ids(TOPIC) == []
        new = server.publish(EVENT)
        assert isinstance(new, int)
        assert new > int(kept[2])
        browser = Browser(server, http)
        await browser.shake_hands()
        await browser.subscribe(EVENT, {EVENT: kept[0]})
        assert ids(await browser.connect()) == [kept[2], new]


# Channels


async def test_a_channel_with_a_slash_at_its_end(server: StreamingServer, browser: Browser) -> None:
    first = server.publish(EVENT)
    assert (await browser.subscribe(f"{EVENT}/", {f"{EVENT}/": first}))["successful"] is False
    assert (await browser.subscribe(f"{EVENT}/", {EVENT: first}))["successful"]
    second = server.publish(EVENT)
    event, _ = await browser.connect()
    assert (event["channel"], ids([event])) == (EVENT, [second])
    [reply] = await browser.send("/meta/unsubscribe", subscription=EVENT)
    assert reply["successful"]
    assert server.subscriptions == set()


async def test_all_change_events(server: StreamingServer, browser: Browser) -> None:
    first = server.publish(CHANGE)
    await browser.subscribe("/data/ChangeEvents", {"/data/ChangeEvents": first})
    second = server.publish("/data/ContactChangeEvent")
    event, _ = await browser.connect()
    assert (event["channel"], ids([event])) == ("/data/ChangeEvents", [second])
    await browser.subscribe(CHANGE)
    both = server.publish(CHANGE)
    *events, _ = await browser.connect()
    assert ids(events) == [both, both]
    assert {event["channel"] for event in events} == {CHANGE, "/data/ChangeEvents"}


@pytest.mark.parametrize("own_names", [True, False])
async def test_a_custom_channel(server: StreamingServer, browser: Browser, own_names: bool) -> None:
    custom = "/data/Sales__chn"
    server.add_members(custom, CHANGE, "/data/Contact*", own_names=own_names)
    await browser.subscribe(custom)
    wanted = [server.publish(CHANGE), server.publish("/data/ContactChangeEvent")]
    server.publish("/data/LeadChangeEvent")
    *events, _ = await browser.connect()
    assert ids(events) == wanted
    names = {CHANGE, "/data/ContactChangeEvent"} if own_names else {custom}
    assert {event["channel"] for event in events} == names


async def test_wildcards(server: StreamingServer, browser: Browser) -> None:
    assert "denied" in (await browser.subscribe("/event/*"))["error"]
    server.add_members("/event/*", "/event/*")
    assert (await browser.subscribe("/event/*", {"/event/*": -2}))["successful"]
    await browser.subscribe(EVENT)
    wanted = [server.publish(EVENT), server.publish("/event/Other__e"), server.publish(EVENT)]
    assert ids(await browser.connect()) == wanted


# Logging in


@pytest.mark.parametrize("rotate", [False, True])
async def test_credentials_for_every_flow(rotate: bool) -> None:
    async with StreamingServer(rotate_refresh_tokens=rotate) as server:
        authenticators: list[AuthenticatorBase] = [
            PasswordAuthenticator(**server.credentials),
            RefreshTokenAuthenticator(**server.refresh_token_credentials),
            ClientCredentialsAuthenticator(**server.client_credentials),
            JWTBearerAuthenticator(**server.jwt_credentials),
            AccessTokenAuthenticator(**server.access_token_credentials),
        ]
        for authenticator in authenticators:
            await authenticator.authenticate()
            assert authenticator.access_token in server.oauth.tokens
            assert authenticator.instance_url == server.instance_url


async def test_the_key_of_ones_own(server: StreamingServer) -> None:
    async with StreamingServer(jwt_public_key="mine") as own:
        with pytest.raises(RuntimeError, match="private key that belongs to it"):
            _ = own.jwt_credentials
    assert server.jwt_credentials == server.jwt_credentials


async def test_keys_need_cryptography(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    key_pair.cache_clear()
    with pytest.raises(RuntimeError, match=r"aiosfstream\[jwt\]"):
        _ = server.jwt_credentials


async def test_a_server_that_is_not_running() -> None:
    server = StreamingServer()
    with pytest.raises(RuntimeError, match="StreamingServer is not running"):
        await server.pause()
    server.cut_connections()
    server.add_fault(Fault())
