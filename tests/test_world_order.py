"""Order, and markers that must not run ahead: answers that overtake one another, backlogs, filters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiocometd.extensions import Extension

from aiosfstream import ReplayMarker, ReplayMarkerStoragePolicy, ReplayOption
from aiosfstream.testing import (
    CutAfter,
    Deliver,
    Duplicate,
    Gate,
    Hold,
    HoldBody,
    Overtake,
    StreamingServer,
    Truncate,
)
from tests.support import (
    CHANGE,
    EVENT,
    GENERIC,
    TOPIC,
    client_for,
    held,
    receive,
    soon,
    until,
)
from tests.world import (
    LONG_AGO,
    answered,
    has_events,
    is_about,
    nothing_more,
    pending,
    program,
    publish,
    take,
)

MANUAL, AUTOMATIC = ReplayMarkerStoragePolicy.MANUAL, ReplayMarkerStoragePolicy.AUTOMATIC
ALL, NEW = ReplayOption.ALL_EVENTS, ReplayOption.NEW_EVENTS


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Events that come with other answers than a connect's


@pytest.mark.parametrize("policy", [AUTOMATIC, MANUAL])
async def test_what_comes_beside_a_connect_that_is_being_read_waits_for_it(
    server: StreamingServer, policy: ReplayMarkerStoragePolicy
) -> None:
    markers: dict[str, Any] = {}
    gate = Gate()
    async with program(server, markers, replay_storage_policy=policy) as client:
        await client.subscribe(EVENT)
        first = publish(server, EVENT, 1)
        assert await take(client, 1, manual=policy is MANUAL) == first
        stored = dict(markers)
        await held(server)
        server.add_fault(HoldBody(gate), on="/meta/connect", answering=has_events)
        server.add_fault(Deliver(), on="/meta/subscribe")
        backlog = publish(server, EVENT, 200)
        later = publish(server, EVENT, 5)
        await soon(client.subscribe(GENERIC))
        # A crash here must find everything again.
        assert await nothing_more(client, 0.4)
        assert markers == stored
        gate.open()
        ids = await take(client, 205, manual=policy is MANUAL)
        assert ids == backlog + later
    assert markers[EVENT].replay_id == later[-1]


@pytest.mark.parametrize("fault", [CutAfter(), Truncate()])
async def test_what_has_waited_for_a_connect_that_is_lost_comes_in_order(
    server: StreamingServer, fault: Any
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        first = publish(server, EVENT, 1)
        assert await receive(client) == first
        await held(server)
        gate = Gate()
        waiting = HoldBody(gate) if isinstance(fault, Truncate) else Hold(gate, after=True)
        server.add_fault(waiting, fault, on="/meta/connect", answering=has_events)
        server.add_fault(Deliver(), on="/meta/subscribe", when=is_about(GENERIC))
        lost = publish(server, EVENT, 2)
        later = publish(server, EVENT, 2)
        await soon(client.subscribe(GENERIC))
        gate.open()
        assert await receive(client, 4) == lost + later


async def test_a_connect_waits_for_an_answer_that_was_begun_before_it(
    server: StreamingServer,
) -> None:
    markers: dict[str, Any] = {}
    connecting, subscribing = Gate(), Gate()
    async with program(server, markers) as client:
        await client.subscribe(EVENT)
        await held(server)
        connects = server.count("/meta/connect")
        server.add_fault(Hold(connecting), on="/meta/connect")
        first = publish(server, EVENT, 1)
        assert await receive(client) == first
        stored = dict(markers)
        await answered(server, "/meta/connect", connects + 1)
        backlog = publish(server, EVENT, 5)
        server.add_fault(Deliver(), HoldBody(subscribing), on="/meta/subscribe")
        subscription = asyncio.create_task(client.subscribe(GENERIC))
        await answered(server, "/meta/subscribe", 2)
        later = publish(server, EVENT, 1)
        connecting.open()
        assert await nothing_more(client, 0.3)
        assert markers == stored
        subscribing.open()
        assert await receive(client, 6) == backlog + later
        await soon(subscription)


class Slow(Extension):
    """Takes its time with an answer that brings events to a connect.

    :param error: what it raises then
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self.gate = asyncio.Event()
        self.waits = asyncio.Event()
        self._error = error

    async def incoming(self, payload: Any, headers: Any = None) -> None:
        """Wait."""
        channels = {message["channel"] for message in payload}
        if "/meta/connect" in channels and has_events(payload) and not self.gate.is_set():
            self.waits.set()
            await self.gate.wait()
            if self._error is not None:
                raise self._error

    async def outgoing(self, payload: Any, headers: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("error", [None, ValueError("a bug"), asyncio.CancelledError()])
async def test_nothing_overtakes_an_answer_that_an_extension_looks_at(
    server: StreamingServer, error: BaseException | None
) -> None:
    slow = Slow(error)
    async with client_for(server) as client:
        await client.subscribe(EVENT, replay=ALL)
        assert client.extensions is not None
        client.extensions.append(slow)
        await held(server)
        server.add_fault(Deliver(), on="/meta/subscribe", when=is_about(GENERIC))
        first = publish(server, EVENT, 2)
        await soon(slow.waits.wait())
        later = publish(server, EVENT, 2)
        await soon(client.subscribe(GENERIC))
        assert await nothing_more(client, 0.4)
        slow.gate.set()
        assert await receive(client, 4) == first + later
        assert await nothing_more(client)


@pytest.mark.parametrize("policy", [AUTOMATIC, MANUAL])
async def test_a_backlog_beside_live_events_survives_a_crash(
    server: StreamingServer, policy: ReplayMarkerStoragePolicy
) -> None:
    manual = policy is MANUAL
    server.max_batch = 50
    backlog = publish(server, EVENT, 200, date=LONG_AGO)
    markers: dict[str, Any] = {EVENT: ReplayMarker("", ALL.value)}
    gate = Gate()
    async with program(server, markers, replay_storage_policy=policy) as client:
        server.add_fault(HoldBody(gate), on="/meta/connect", answering=has_events)
        await client.subscribe(EVENT)
        await answered(server, "/meta/connect", 2)
        [live] = publish(server, EVENT, 1)
        server.add_fault(Overtake(1), Deliver(), on="/meta/subscribe", when=is_about(CHANGE))
        await soon(client.subscribe(CHANGE))
        gate.open()
        ids = await take(client, 11, manual=manual)
        # The process is killed here: what it has stored is what there is.
        left = dict(markers)
    async with program(server, left, replay_storage_policy=policy) as client:
        await client.subscribe(EVENT)
        ids += await take(client, 190, manual=manual)
    assert ids == [*backlog, live]


# A live event before the backlog


@pytest.mark.parametrize("channel", [EVENT, GENERIC, CHANGE, TOPIC])
@pytest.mark.parametrize("start", ["marker", "id", "all"])
async def test_a_live_event_before_the_backlog_of_a_first_subscription(
    server: StreamingServer, channel: str, start: str
) -> None:
    server.max_batch = 4
    [old, *backlog] = publish(server, channel, 10, date=LONG_AGO)
    markers: dict[str, Any] = {channel: ReplayMarker("", old)} if start == "marker" else {}
    gate = Gate()
    async with program(server, markers) as client:
        server.add_fault(Hold(gate), Overtake(1), on="/meta/connect")
        replay = {"marker": None, "id": old, "all": ALL}[start]
        await client.subscribe(channel, replay=replay)
        [live] = publish(server, channel, 1)
        gate.open()
        expected = [*([old] if start == "all" else []), *backlog, live]
        for wanted in expected:
            assert await receive(client) == [wanted]
            assert markers[channel].replay_id == wanted


async def test_a_live_event_before_the_backlog_of_a_resubscription(
    server: StreamingServer,
) -> None:
    server.max_batch = 4
    markers: dict[str, Any] = {}
    async with program(server, markers) as client:
        await client.subscribe(EVENT)
        first = publish(server, EVENT, 1, date=LONG_AGO)
        assert await receive(client) == first
        await held(server)
        down, gate = Gate(), Gate()
        connects = server.count("/meta/connect")
        server.add_fault(Hold(down), on="/meta/handshake")
        server.add_fault(Hold(gate), Overtake(1), on="/meta/connect")
        server.expire_sessions()
        backlog = publish(server, EVENT, 10, date=LONG_AGO)
        down.open()
        await answered(server, "/meta/connect", connects + 1)
        live = publish(server, EVENT, 1)
        gate.open()
        for wanted in backlog + live:
            assert await receive(client) == [wanted]
            assert markers[EVENT].replay_id == wanted


async def test_an_answer_with_a_backlog_and_more_than_there_is_room_for(
    server: StreamingServer,
) -> None:
    [old, *backlog] = publish(server, EVENT, 5, date=LONG_AGO)
    gate = Gate()
    async with client_for(server, max_pending_count=3) as client:
        server.add_fault(Hold(gate), on="/meta/connect")
        await client.subscribe(EVENT, replay=old)
        live = publish(server, EVENT, 5)
        # All of them in one answer, in order.
        gate.open()
        assert await receive(client, 9) == backlog + live


async def test_a_session_that_is_lost_before_the_backlog_is_through_loses_nothing(
    server: StreamingServer,
) -> None:
    server.max_batch = 4
    [old, *backlog] = publish(server, EVENT, 10, date=LONG_AGO)
    gate, next_gate = Gate(), Gate()
    async with client_for(server) as client:
        server.add_fault(Hold(gate), Overtake(1), on="/meta/connect")
        await client.subscribe(EVENT, replay=old)
        live = publish(server, EVENT, 1)
        connects = server.count("/meta/connect")
        # The live event has come, and the session is lost before any other has.
        server.add_fault(
            Hold(next_gate), on="/meta/connect", when=lambda _: server.count("/meta/connect") > 2
        )
        gate.open()
        await answered(server, "/meta/connect", max(connects, 2) + 1)
        server.expire_sessions()
        next_gate.open()
        assert await receive(client, 10) == backlog + live
        assert await nothing_more(client)


# Several subscriptions of one name


@pytest.mark.parametrize("replay", [ALL, NEW])
async def test_filters_of_one_pushtopic_resume_each_from_its_own(
    server: StreamingServer, replay: ReplayOption
) -> None:
    a, b = f"{TOPIC}?Status='a'", f"{TOPIC}?Status='b'"
    events = [(TOPIC, {"Status": status}) for status in "aabab"]
    async with client_for(server, replay=replay) as client:
        await client.subscribe(a)
        await client.subscribe(b)
        await held(server)
        ids = server.publish_many(events)
        assert await receive(client, 5) == ids
        await held(server)
        gate = Gate()
        server.add_fault(Hold(gate), on="/meta/handshake")
        server.expire_sessions()
        more = server.publish_many([(TOPIC, {"Status": "a"}), (TOPIC, {"Status": "b"})])
        gate.open()
        assert await receive(client, 2) == more
        assert await nothing_more(client)


async def test_the_marker_of_filters_is_the_lower_of_what_both_have_consumed(
    server: StreamingServer,
) -> None:
    a, b = f"{TOPIC}?Status='a'", f"{TOPIC}?Status='b'"
    markers: dict[str, Any] = {}
    ids = server.publish_many([(TOPIC, {"Status": status}) for status in "babab"])
    async with program(server, markers) as client:
        # The backlog of one is consumed before the other is subscribed at all.
        await client.subscribe(a, replay=ALL)
        assert await receive(client, 2) == [ids[1], ids[3]]
        await client.subscribe(b, replay=ALL)
        assert await receive(client, 1) == [ids[0]]
        left = dict(markers)
    seen = []
    async with program(server, left) as client:
        await client.subscribe(a)
        await client.subscribe(b)
        await held(server)
        while client.pending_count:
            seen += await pending(client)
    assert {ids[2], ids[4]} <= set(seen)


async def test_a_wildcard_beside_one_of_its_channels_repeats_nothing(
    server: StreamingServer,
) -> None:
    changes = "/data/ChangeEvents"
    async with client_for(server, replay=ALL) as client:
        await client.subscribe(changes)
        await client.subscribe(CHANGE)
        await held(server)
        ids = publish(server, CHANGE, 20)
        received = await receive(client, 40)
        assert sorted(received) == sorted(ids * 2)
        for _ in range(2):
            await held(server)
            handshakes = server.count("/meta/handshake")
            server.expire_sessions()
            await answered(server, "/meta/handshake", handshakes + 1)
            await held(server)
            assert client.pending_count == 0
        [last] = publish(server, CHANGE, 1)
        assert await receive(client, 2) == [last, last]
        assert await nothing_more(client)


async def test_a_duplicate_moves_a_resume_point_that_was_set_back(
    server: StreamingServer,
) -> None:
    async with client_for(server, replay=ALL) as client:
        await client.subscribe(EVENT)
        await held(server)
        ids = publish(server, EVENT, 3)
        assert await receive(client, 3) == ids
        await held(server)
        # An answer that is lost sets it back; what it brings again is not new.
        server.add_fault(Duplicate(), CutAfter(), on="/meta/connect")
        server.cut_connections()
        more = publish(server, EVENT, 2)
        assert await receive(client, 2) == more
        await held(server)
        server.expire_sessions()
        await until(lambda: _starts(server)[-1] == more[-1])


def _starts(server: StreamingServer) -> list[Any]:
    requests = [request for request in server.requests if request.name == "/meta/subscribe"]
    return [request.messages[0]["ext"]["replay"].get(EVENT) for request in requests]
