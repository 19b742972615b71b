"""The service loop: handlers, failures, outages, and the end."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import aiosfstream
from aiosfstream import (
    AuthenticationError,
    Client,
    DefaultMappingStorage,
    HandlerFailure,
    Handlers,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    Retry,
    ServerError,
    TransportError,
    TransportTimeoutError,
    run,
    run_program,
    service,
)
from aiosfstream.service import ExitStatus, exit_status, is_passing
from aiosfstream.testing import Hang, OAuthError, Refuse, Status, StreamingServer
from tests.support import (
    CHANGE,
    EVENT,
    GENERIC,
    TOPIC,
    FastClient,
    client_for,
    held,
    replay_id,
    soon,
    until,
)

ORDER = "/event/Order__e"
REFUSED = OAuthError("invalid_client", "invalid client credentials")
#: Tries once only.
STOP = Retry(attempts=1)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _no_long_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(service, "LONGEST_DELAY", 0.05)


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


class Seen:
    """A handler that notes what it is called with, and where the test decides how long that takes."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.done: list[Any] = []
        self.gates: dict[Any, asyncio.Event] = {}

    def hold(self, number: Any) -> asyncio.Event:
        """Let the handler wait with an event until what is returned is set."""
        return self.gates.setdefault(number, asyncio.Event())

    async def __call__(self, message: dict[str, Any]) -> None:
        number = replay_id(message)
        self.begun.append(number)
        if number in self.gates:
            await self.gates[number].wait()
        self.done.append(number)


class Running:
    """A service that runs while the test goes on."""

    def __init__(self, client: Client, handlers: Any, **options: Any) -> None:
        self.stop = asyncio.Event()
        self.client = client
        options.setdefault("signals", ())
        self.task = asyncio.create_task(run(client, handlers, stop=self.stop, **options))

    async def end(self) -> None:
        """Ask it to stop and wait until it has."""
        self.stop.set()
        await soon(self.task)

    async def failure(self, of: type[BaseException]) -> BaseException:
        """Wait until it fails, and give the error."""
        with pytest.raises(of) as caught:
            await soon(self.task)
        return caught.value


@asynccontextmanager
async def running(client: Client, handlers: Any, **options: Any) -> AsyncIterator[Running]:
    """Run a service; it must have ended, or be able to end well, at the end of the block."""
    service = Running(client, handlers, **options)
    try:
        yield service
        if not service.task.done():
            await service.end()
    finally:
        service.task.cancel()
        await asyncio.wait([service.task])


def keeping(
    server: StreamingServer, markers: dict[str, ReplayMarker], **options: Any
) -> aiosfstream.SalesforceStreamingClient:
    """Make a client that starts with what is stored and keeps its markers in a dict."""
    storage = DefaultMappingStorage(markers, ReplayOption.ALL_EVENTS)
    return client_for(server, replay=storage, **options)


def policy_of(client: Client) -> ReplayMarkerStoragePolicy:
    """Give the policy of now, which a type checker would think cannot change."""
    return client.replay_storage_policy


def stored(markers: dict[str, ReplayMarker], channel: str = EVENT) -> Any:
    """Give the replay id that a restart would begin behind."""
    return markers[channel].replay_id if channel in markers else None


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Give what the service has logged at a level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "aiosfstream.service" and record.levelno == level
    ]


# The loop


async def test_events_are_processed_in_order_and_markers_follow(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    client = keeping(server, markers)
    ids = [server.publish(EVENT) for _ in range(3)]
    gate = seen.hold(ids[1])
    async with running(client, {EVENT: seen}) as service:
        await until(lambda: seen.begun == ids[:2])
        assert seen.done == ids[:1]
        assert stored(markers) == ids[0], "the marker is stored behind the work"
        assert policy_of(client) is ReplayMarkerStoragePolicy.MANUAL
        gate.set()
        await until(lambda: seen.done == ids)
        await service.end()
    assert stored(markers) == ids[2]
    assert client.closed
    assert policy_of(client) is ReplayMarkerStoragePolicy.AUTOMATIC
    assert server.sessions == [], "it left without a goodbye"


async def test_each_channel_has_its_handler(server: StreamingServer) -> None:
    handlers = Handlers()
    seen: list[str] = []

    @handlers.on(EVENT, ORDER)
    async def event(message: dict[str, Any]) -> None:
        seen.append("event " + message["channel"])

    @handlers.on(CHANGE)
    async def change(message: dict[str, Any]) -> None:
        seen.append("change " + message["channel"])

    async with running(client_for(server), handlers):
        await held(server)
        await server.wait_for(lambda server: server.subscriptions == {EVENT, ORDER, CHANGE})
        for channel in (EVENT, CHANGE, ORDER):
            server.publish(channel)
        await until(lambda: len(seen) == 3)
    assert seen == [f"event {EVENT}", f"change {CHANGE}", f"event {ORDER}"]


@pytest.mark.parametrize("concurrency", [2, 5])
async def test_several_at_a_time_and_the_marker_passes_none(
    server: StreamingServer, concurrency: int
) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    ids = [server.publish(EVENT) for _ in range(12)]
    first = seen.hold(ids[0])
    gates = [seen.hold(number) for number in ids[1:concurrency]]
    async with running(keeping(server, markers), {EVENT: seen}, concurrency=concurrency):
        await until(lambda: len(seen.begun) == concurrency)
        await asyncio.sleep(0.02)
        assert seen.begun == ids[:concurrency], "more at a time than wanted"
        for gate in gates:
            gate.set()
        await until(lambda: len(seen.done) == len(ids) - 1)
        assert stored(markers) is None, "the marker passed an event in work"
        first.set()
        await until(lambda: stored(markers) == ids[-1])


async def test_a_plain_function_may_block(server: StreamingServer) -> None:
    threads: list[int] = []
    gate = threading.Event()

    def handler(message: dict[str, Any]) -> None:
        assert gate.wait(10)
        threads.append(threading.get_ident())

    markers: dict[str, ReplayMarker] = {}
    number = server.publish(EVENT)
    async with running(keeping(server, markers), {EVENT: handler}):
        await held(server)
        gate.set()
        await until(lambda: stored(markers) == number)
    assert threads != [threading.get_ident()]


async def test_other_callables(server: StreamingServer) -> None:
    done: list[Any] = []

    async def handler(where: str, message: dict[str, Any]) -> None:
        done.append((where, message["channel"]))

    async with running(
        client_for(server),
        {
            EVENT: functools.partial(handler, "partial"),
            ORDER: lambda message: handler("lambda", message),
        },
    ):
        await held(server)
        await server.wait_for(lambda server: server.subscriptions == {EVENT, ORDER})
        server.publish(EVENT)
        server.publish(ORDER)
        await until(lambda: len(done) == 2)
    assert done == [("partial", EVENT), ("lambda", ORDER)]


async def test_automatic_stores_before_the_handler(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    number = server.publish(EVENT)
    gate = seen.hold(number)
    policy = ReplayMarkerStoragePolicy.AUTOMATIC
    async with running(
        keeping(server, markers), {EVENT: seen}, replay_storage_policy=policy
    ) as service:
        await until(lambda: seen.begun)
        assert stored(markers) == number
        gate.set()
        await service.end()


async def test_an_open_client_is_left_open(server: StreamingServer) -> None:
    seen = Seen()
    before = server.publish(EVENT)
    async with client_for(server) as client:
        await client.subscribe(EVENT, replay=ReplayOption.ALL_EVENTS)
        async with running(client, {EVENT: seen}):
            await until(lambda: seen.done == [before])
            assert server.count("/meta/subscribe") == 1, "it would begin somewhere else"
        assert not client.closed
        assert client.subscriptions == {EVENT}


async def test_a_slash_at_the_end_makes_no_other_channel(server: StreamingServer) -> None:
    seen = Seen()
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        async with running(client, {EVENT + "/": seen, ORDER: seen}):
            await server.wait_for(lambda server: ORDER in server.subscriptions)
            number = server.publish(EVENT)
            await until(lambda: seen.done == [number])
    assert server.count("/meta/subscribe") == 2


async def test_it_ends_when_somebody_closes_the_client(server: StreamingServer) -> None:
    client = client_for(server)
    async with running(client, {EVENT: Seen()}) as service:
        await held(server)
        await client.close()
        await soon(service.task)


# Which handler


@pytest.mark.parametrize(
    ("subscribed", "channel", "found"),
    [
        (TOPIC + "?Status='paid'", TOPIC, True),
        (EVENT + "/", EVENT, True),
        ("/event/*", EVENT, True),
        ("/**", EVENT, True),
        ("/data/*", EVENT, False),
        ("/data/ChangeEvents", CHANGE, True),
        ("/event/Mine__chn", EVENT, True),
        ("/event/Mine__chn", CHANGE, False),
        (ORDER, EVENT, False),
        (EVENT.removesuffix("__e"), EVENT, False),
    ],
)
async def test_the_handler_of_a_channel(subscribed: str, channel: str, found: bool) -> None:
    calls: list[Any] = []

    async def handler(message: dict[str, Any]) -> None:
        calls.append(message)

    router = service._Router({GENERIC: pytest.fail, subscribed: handler})
    if found:
        await router.call({"channel": channel})
        assert calls == [{"channel": channel}]
    else:
        with pytest.raises(LookupError, match=f"{channel}, which has no handler"):
            await router.call({"channel": channel})


async def test_the_channels_own_handler_comes_before_a_wider_one() -> None:
    calls: list[Any] = []
    router = service._Router({"/event/*": lambda _: calls.append("all"), EVENT: calls.append})
    await router.call({"channel": EVENT})
    assert calls == [{"channel": EVENT}]


async def test_mistakes_in_the_arguments(server: StreamingServer) -> None:
    client = client_for(server)
    with pytest.raises(ValueError, match="at least one channel"):
        await run(client, {})
    with pytest.raises(TypeError, match=f"{EVENT} should be a function, not 'str'"):
        await run(client, {EVENT: "print"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="have another handler"):
        await run(client, {TOPIC + "?A=1": print, TOPIC + "?A=2": repr})
    wrong: dict[str, Any]
    for wrong in ({"concurrency": 0}, {"login_attempts": 0}, {"grace": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await run(client, {EVENT: print}, **wrong)
    handlers = Handlers()
    handlers.on(EVENT)(print)
    with pytest.raises(ValueError, match=f"{EVENT} has a handler already"):
        handlers.on(ORDER, EVENT)(repr)
    assert policy_of(client) is ReplayMarkerStoragePolicy.AUTOMATIC
    with pytest.raises(TypeError, match="handlers is a 'list'"):
        await run(client, [print])  # type: ignore[arg-type]


class Yielding:
    """A handler with a yield in its method."""

    def __call__(self, message: Any) -> Any:
        yield message


def yielding(message: Any) -> Any:
    """Do nothing when it is called."""
    yield message


async def yielding_async(message: Any) -> Any:
    """Do nothing when it is called."""
    yield message


@pytest.mark.parametrize(
    "handler", [yielding, yielding_async, functools.partial(yielding), Yielding()]
)
async def test_a_handler_with_a_yield_is_refused(server: StreamingServer, handler: Any) -> None:
    with pytest.raises(TypeError, match=f"handler of {EVENT} has a yield"):
        await run(client_for(server), {EVENT: handler})
    assert server.requests == []


@pytest.mark.parametrize("make", [yielding, yielding_async])
async def test_a_handler_that_gives_a_generator_has_failed(
    server: StreamingServer, make: Any
) -> None:
    """Its body has not run, so its event is not processed."""
    markers: dict[str, ReplayMarker] = {}
    server.publish(EVENT)

    def handler(message: Any) -> Any:
        return make(message)

    ended = Running(keeping(server, markers), {EVENT: handler}, on_error=STOP)
    assert "gives a generator" in str(await ended.failure(TypeError))
    assert markers == {}


# Failing handlers


async def test_a_handler_in_a_thread_may_run_out_of_items(server: StreamingServer) -> None:
    """A future takes no StopIteration: the service would wait for ever."""
    markers: dict[str, ReplayMarker] = {}
    server.publish(EVENT)

    def handler(_message: Any) -> None:
        next(iter(()))

    ended = Running(keeping(server, markers), {EVENT: handler}, on_error=STOP)
    error = await ended.failure(RuntimeError)
    assert "StopIteration" in str(error)
    assert isinstance(error.__cause__, StopIteration)
    assert markers == {}


class Unusual(BaseException):
    """What ``except Exception`` does not catch, such as a BaseExceptionGroup."""


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_handler_raises_what_is_no_exception(
    server: StreamingServer, caplog: pytest.LogCaptureFixture, in_thread: bool
) -> None:
    """It ends the service: with a worker that has gone no marker would ever be stored again."""
    markers: dict[str, ReplayMarker] = {}
    number = server.publish(EVENT)

    def plain(_message: Any) -> None:
        raise Unusual

    async def coroutine(_message: Any) -> None:
        raise Unusual

    client = keeping(server, markers)
    await Running(client, {EVENT: plain if in_thread else coroutine}).failure(Unusual)
    assert markers == {}
    assert any(f"event {number} on {EVENT}" in text for text in records(caplog, logging.ERROR))


def failing(
    *numbers: Any, times: float = math.inf
) -> tuple[Seen, Callable[[Any], Awaitable[None]]]:
    """Make a handler that fails for some events, the first *times* times."""
    seen, left = Seen(), dict.fromkeys(numbers, times)

    async def handler(message: dict[str, Any]) -> None:
        number = replay_id(message)
        if left.get(number, 0) > 0:
            left[number] -= 1
            seen.begun.append(number)
            raise ValueError(f"no stock for {number}")
        await seen(message)

    return seen, handler


async def test_a_handler_that_fails_is_called_again(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    markers: dict[str, ReplayMarker] = {}
    first, second = server.publish(EVENT), server.publish(EVENT)
    seen, handler = failing(first, times=2)
    async with running(keeping(server, markers), {EVENT: handler}, on_error=Retry(initial=0.001)):
        await until(lambda: stored(markers) == second)
    assert seen.begun == [first, first, first, second]
    warnings = records(caplog, logging.WARNING)
    assert len(warnings) == 2
    assert f"event {first} on {EVENT} failed, attempt 2: ValueError: no stock" in warnings[1]


async def test_without_an_on_error_nothing_is_skipped(server: StreamingServer) -> None:
    """The default goes on trying, and then ends the service."""
    assert Retry(attempts=10, initial=1.0, cap=60.0, then=None) == service.RETRY_THEN_STOP
    failure = HandlerFailure({}, ValueError("x"), 1)
    delays = [Retry()(HandlerFailure({}, failure.error, attempt)) for attempt in range(1, 10)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    with pytest.raises(ValueError, match="x"):
        Retry()(HandlerFailure({}, failure.error, 10))
    assert Retry(attempts=math.inf)(HandlerFailure({}, failure.error, 100_000)) == 60.0


async def test_an_event_can_be_put_aside(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    markers: dict[str, ReplayMarker] = {}
    aside: list[HandlerFailure] = []
    first, second = server.publish(EVENT), server.publish(EVENT)
    seen, handler = failing(first)

    async def put_aside(failure: HandlerFailure) -> None:
        assert stored(markers) is None
        aside.append(failure)

    policy = Retry(attempts=2, initial=0.001, then=put_aside)
    async with running(keeping(server, markers), {EVENT: handler}, on_error=policy):
        await until(lambda: stored(markers) == second)
    [failure] = aside
    assert (replay_id(failure.message), failure.attempt) == (first, 2)
    assert isinstance(failure.error, ValueError)
    assert seen.done == [second]
    assert any(f"event {first} on {EVENT} was put aside" in text for text in records(caplog, 30))


async def test_a_failure_that_stops_leaves_the_event_to_the_next_start(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    markers: dict[str, ReplayMarker] = {}
    first, second, third = (server.publish(EVENT) for _ in range(3))
    _, handler = failing(second)
    async with running(keeping(server, markers), {EVENT: handler}, on_error=STOP) as service:
        error = await service.failure(ValueError)
    assert str(error) == f"no stock for {second}"
    assert exit_status(error) is ExitStatus.FAILED
    assert stored(markers) == first
    assert server.sessions == []
    assert "Stopping, since event" in records(caplog, logging.ERROR)[0]
    assert any("Events that were not processed: 1;" in text for text in records(caplog, 30))
    seen = Seen()
    async with running(keeping(server, markers), {EVENT: seen}):
        await until(lambda: seen.done == [second, third])


async def test_no_marker_passes_an_event_that_stops_the_service(server: StreamingServer) -> None:
    """Those that were received later may finish; they come again as well."""
    markers: dict[str, ReplayMarker] = {}
    ids = [server.publish(EVENT) for _ in range(3)]
    seen, handler = failing(ids[0])
    gate = seen.hold(ids[1])
    async with running(
        keeping(server, markers), {EVENT: handler}, on_error=STOP, concurrency=2
    ) as service:
        await until(lambda: ids[1] in seen.begun)
        gate.set()
        await service.failure(ValueError)
    assert ids[1] in seen.done
    assert stored(markers) is None


async def test_the_first_of_several_failures_is_told(server: StreamingServer) -> None:
    first, second = server.publish(EVENT), server.publish(EVENT)
    begun: list[Any] = []
    gate = asyncio.Event()

    async def handler(message: dict[str, Any]) -> None:
        begun.append(replay_id(message))
        if begun[-1] == second:
            await gate.wait()
        else:
            await until(lambda: len(begun) == 2)
            gate.set()
        raise ValueError(f"no stock for {replay_id(message)}")

    async with running(
        keeping(server, {}), {EVENT: handler}, on_error=STOP, concurrency=2
    ) as service:
        error = await service.failure(ValueError)
    assert str(error) == f"no stock for {first}"


async def test_an_end_in_the_pause_before_another_attempt(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    number = server.publish(EVENT)
    seen, handler = failing(number)
    on_error = Retry(initial=100, cap=100)
    async with running(keeping(server, markers), {EVENT: handler}, on_error=on_error) as service:
        await until(lambda: seen.begun)
        await service.end()
    assert seen.begun == [number]
    assert stored(markers) is None


@pytest.mark.parametrize("outcome", [True, "soon"])
async def test_what_on_error_must_give(server: StreamingServer, outcome: Any) -> None:
    _, handler = failing(server.publish(EVENT))
    client = keeping(server, {})
    async with running(client, {EVENT: handler}, on_error=lambda _: outcome) as service:
        error = await service.failure(TypeError)
    assert "on_error should give a delay in seconds or None" in str(error)
    assert isinstance(error.__cause__, ValueError)


async def test_what_on_error_raises_ends_the_service(server: StreamingServer) -> None:
    _, handler = failing(server.publish(EVENT))

    async def on_error(failure: HandlerFailure) -> None:
        raise OSError("the disk is full")

    async with running(keeping(server, {}), {EVENT: handler}, on_error=on_error) as service:
        await service.failure(OSError)


async def test_a_cancellation_that_a_handler_made_itself_is_a_failure(
    server: StreamingServer,
) -> None:
    async def handler(message: dict[str, Any]) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    server.publish(EVENT)
    async with running(keeping(server, {}), {EVENT: handler}, on_error=STOP) as service:
        error = await service.failure(RuntimeError)
    assert "was cancelled" in str(error)


async def test_an_event_without_a_handler_is_not_skipped(server: StreamingServer) -> None:
    async with client_for(server) as client:
        await client.subscribe(ORDER)
        async with running(client, {EVENT: Seen()}, on_error=STOP) as service:
            await server.wait_for(lambda server: EVENT in server.subscriptions)
            server.publish(ORDER)
            error = await service.failure(LookupError)
    assert ORDER in str(error)


class Unreliable(DefaultMappingStorage):
    """A storage that fails when it is told to."""

    error: Exception | None = None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        if self.error is not None:
            raise self.error
        await super().set_replay_marker(subscription, replay_marker)


async def test_a_marker_that_cannot_be_stored_is_stored_with_the_next(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    markers: dict[str, ReplayMarker] = {}
    storage = Unreliable(markers, ReplayOption.ALL_EVENTS)
    seen = Seen()
    storage.error = OSError("the disk is full")
    number = server.publish(EVENT)
    async with running(client_for(server, replay=storage), {EVENT: seen}):
        await until(lambda: records(caplog, logging.ERROR))
        assert f"event {number} on {EVENT} was processed" in records(caplog, logging.ERROR)[0]
        storage.error = None
        number = server.publish(EVENT)
        await until(lambda: stored(markers) == number)


async def test_a_storage_with_an_error_of_its_own_ends_the_service(
    server: StreamingServer,
) -> None:
    class Broken(DefaultMappingStorage):
        async def extract_replay_id(self, message: dict[str, Any]) -> None:
            raise KeyError("a bug")

    server.publish(EVENT)
    storage = Broken({}, ReplayOption.ALL_EVENTS)
    async with running(client_for(server, replay=storage), {EVENT: Seen()}) as service:
        await service.failure(KeyError)


# Outages and refusals


async def test_the_start_waits_for_the_server(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    number = server.publish(EVENT)
    await server.pause()
    async with running(keeping(server, {}), {EVENT: seen}):
        await until(lambda: len(records(caplog, logging.WARNING)) >= 3)
        assert "Cannot start streaming, trying again in" in records(caplog, logging.WARNING)[0]
        await server.resume()
        await until(lambda: seen.done == [number])


@pytest.mark.parametrize(
    ("fault", "on"),
    [
        (Status(503), "token"),
        (Status(429), "/meta/handshake"),
        (Refuse("403::Organization concurrent user limit exceeded"), "/meta/handshake"),
        (Refuse("503::Server is too busy"), "/meta/subscribe"),
        (Refuse("500::Internal server error"), "/meta/handshake"),
        (Refuse("429::Too many requests"), "/meta/subscribe"),
        (Status(403, '[{"errorCode":"REQUEST_LIMIT_EXCEEDED"}]'), "/meta/handshake"),
    ],
)
async def test_the_start_waits_out_what_passes(
    server: StreamingServer, fault: Any, on: str
) -> None:
    seen = Seen()
    number = server.publish(EVENT)
    server.add_fault(fault, on=on, times=2)
    async with running(keeping(server, {}), {EVENT: seen}):
        await until(lambda: seen.done == [number])


async def test_long_outages_are_waited_out(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen = Seen()
    client = keeping(server, {}, connection_timeout=0.05)
    # Trouble at the start does not hide the first outage.
    server.add_fault(Status(503), on="/meta/handshake")
    async with running(client, {EVENT: seen}) as service:
        for outages in (1, 2):
            await held(server)
            before = still_trying(caplog, logging.INFO)
            await server.pause()
            await until(lambda: still_trying(caplog, logging.INFO) > before)  # noqa: B023
            assert still_trying(caplog, logging.WARNING) == outages, "one warning an outage"
            await server.resume()
            server.publish(EVENT)
            await until(lambda: len(seen.done) == outages)  # noqa: B023
        assert not service.task.done()


def still_trying(caplog: pytest.LogCaptureFixture, level: int) -> int:
    """Count the records of an outage that lasts."""
    return sum("still trying to reconnect" in text for text in records(caplog, level))


async def test_lost_sessions_and_revoked_tokens_are_no_trouble(server: StreamingServer) -> None:
    seen = Seen()
    async with running(keeping(server, {}), {EVENT: seen}):
        for number in range(1, 4):
            await held(server)
            server.expire_sessions()
            server.revoke_tokens()
            server.publish(EVENT)
            await until(lambda: len(seen.done) == number)  # noqa: B023
    assert seen.done == sorted(set(seen.done))


async def test_a_lost_channel_ends_it(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    number = server.publish(EVENT)
    async with running(keeping(server, markers), {EVENT: seen, ORDER: seen}) as service:
        await until(lambda: stored(markers) == number)
        await held(server)
        server.deny(EVENT, "403:denied_by_security_policy:create_denied")
        server.expire_sessions()
        error = await service.failure(ServerError)
    assert EVENT in str(error)
    assert exit_status(error) is ExitStatus.UNAVAILABLE
    assert server.sessions == []


async def test_a_channel_that_is_refused_at_the_start_ends_it(server: StreamingServer) -> None:
    server.deny(EVENT, "403:denied_by_security_policy:create_denied")
    async with running(client_for(server), {EVENT: Seen()}) as service:
        await service.failure(ServerError)
    assert server.count("/meta/subscribe") == 1
    assert server.sessions == []


async def test_an_address_without_an_endpoint_ends_it(server: StreamingServer) -> None:
    server.add_fault(Status(404), on="/meta/handshake", times=99)
    async with running(client_for(server), {EVENT: Seen()}) as service:
        error = await service.failure(TransportError)
    assert exit_status(error) is ExitStatus.UNAVAILABLE


async def test_refused_credentials_end_the_start_at_once(server: StreamingServer) -> None:
    server.add_fault(REFUSED, on="token", times=99)
    async with running(client_for(server), {EVENT: Seen()}) as service:
        error = await service.failure(AuthenticationError)
    assert exit_status(error) is ExitStatus.REFUSED
    assert server.count("token") == 1


@pytest.mark.parametrize("attempts", [1, 3])
async def test_refused_credentials_end_it_after_a_few_attempts(
    server: StreamingServer, attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(client_for(server), {EVENT: Seen()}, login_attempts=attempts) as service:
        await held(server)
        server.add_fault(REFUSED, on="token", times=99)
        server.revoke_tokens()
        await service.failure(AuthenticationError)
    assert server.count("token") == 1 + attempts
    assert len(records(caplog, logging.ERROR)) == attempts - 1


async def test_a_refusal_that_passes_is_survived(server: StreamingServer) -> None:
    seen = Seen()
    async with running(client_for(server), {EVENT: seen}):
        await held(server)
        server.add_fault(REFUSED, on="token", times=2)
        server.revoke_tokens()
        await server.wait_for(lambda server: server.count("token") == 4)
        await held(server)
        server.publish(EVENT)
        await until(lambda: seen.done)


async def test_refusals_of_long_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = service._Credentials(2, 0)
    assert credentials.may_try_again(AuthenticationError("no"))
    monkeypatch.setattr(service, "REFUSALS_FORGOTTEN", 0.0)
    assert credentials.may_try_again(AuthenticationError("no"))
    monkeypatch.undo()
    assert not credentials.may_try_again(AuthenticationError("no"))
    assert not credentials.may_try_again(AuthenticationError("later", retryable=True))


async def test_a_pause_before_refused_credentials_end_it(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_fault(REFUSED, on="token", times=99)
    async with running(client_for(server), {EVENT: Seen()}, pause_when_refused=100) as service:
        await until(lambda: records(caplog, logging.ERROR))
        assert "this ends in 100 s" in records(caplog, logging.ERROR)[0]
        assert not service.task.done()
        await service.end()
    async with running(client_for(server), {EVENT: Seen()}, pause_when_refused=0.01) as service:
        await service.failure(AuthenticationError)


async def test_the_pause_when_it_was_logged_in_before(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(
        client_for(server), {EVENT: Seen()}, login_attempts=1, pause_when_refused=100
    ) as service:
        await held(server)
        server.add_fault(REFUSED, on="token", times=99)
        server.revoke_tokens()
        await until(lambda: any("this ends in 100 s" in text for text in records(caplog, 40)))
        assert not service.task.done()


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (TransportError("cut"), True),
        (TransportTimeoutError("gone"), True),
        (AuthenticationError("no"), False),
        (AuthenticationError("later", retryable=True), True),
        (ServerError("no", {"error": "404::Unknown channel"}), False),
        (ServerError("no", {"error": "403::limit exceeded"}), True),
        (ServerError("no", {"error": "400::The maximum length is exceeded"}), False),
        (ServerError("no", {"error": "500::Internal server error"}), True),
        (ServerError("no", {"error": "429::Too many requests"}), True),
        (ServerError("no", {"error": "403::Unknown client"}), True),
        (ServerError("no", {"error": "401::Authentication invalid"}), False),
        (ServerError("no", {"error": "400::The replayId {7} you provided was invalid."}), False),
        (
            ServerError(
                "no", {"error": "403", "ext": {"sfdc": {"failureReason": "503::Too busy"}}}
            ),
            True,
        ),
        (ServerError("no", None), False),
        (aiosfstream.ClientError("no long polling"), False),
        (ReplayError("unreadable"), False),
    ],
)
def test_what_passes(error: aiosfstream.AiosfstreamException, passing: bool) -> None:
    assert is_passing(error) is passing


@pytest.mark.parametrize(
    ("status", "passing"), [(302, False), (404, False), (408, True), (429, True), (500, True)]
)
def test_which_statuses_pass(status: int, passing: bool) -> None:
    error = TransportError("no")
    error.status = status
    assert is_passing(error) is passing


def test_a_limit_of_requests_passes() -> None:
    error = TransportError("HTTP status 403, REQUEST_LIMIT_EXCEEDED: TotalRequests Limit exceeded.")
    error.status = 403
    assert is_passing(error)
    error.args = ("HTTP status 403, API_DISABLED_FOR_ORG",)
    assert not is_passing(error)


class Troubled(FastClient):
    """A client whose ``receive()`` raises what a test gives it."""

    def __init__(self, server: StreamingServer, *errors: Exception, closes: bool = False) -> None:
        super().__init__(
            **server.credentials, replay=DefaultMappingStorage({}, ReplayOption.ALL_EVENTS)
        )
        self.errors = list(errors)
        self.closes = closes
        self.received = 0

    async def receive(self) -> dict[str, Any]:
        """Give the first message, and raise the errors before the second."""
        if self.errors and self.received == 1:
            if self.closes:
                await self.close()
            raise self.errors.pop(0)
        message = await super().receive()
        self.received += 1
        return message


@pytest.mark.parametrize(
    "error",
    [
        ReplayError("The markers cannot be read"),
        AuthenticationError("The log-in server is busy", retryable=True),
        ServerError("Refused", {"error": "403::Organization total events daily limit exceeded"}),
    ],
)
@pytest.mark.parametrize("closes", [False, True])
async def test_receiving_goes_on_after_what_passes(
    server: StreamingServer,
    error: Exception,
    closes: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = Seen()
    ids = [server.publish(EVENT) for _ in range(3)]
    first = seen.hold(ids[0])
    client = Troubled(server, error, closes=closes)
    async with running(client, {EVENT: seen}, concurrency=2):
        await until(lambda: any("Cannot receive" in text for text in records(caplog, 30)))
        await asyncio.sleep(0.1)
        assert client.closed is closes, "what is being processed would come again"
        first.set()
        await until(lambda: ids[2] in seen.done)
    assert len(seen.done) == len(set(seen.done))


async def test_the_pauses_grow_while_receiving_fails(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(service, "LONGEST_DELAY", 0.064)
    seen = Seen()
    ids = [server.publish(EVENT) for _ in range(2)]
    client = Troubled(server, *(ReplayError("The markers cannot be read") for _ in range(8)))
    async with running(client, {EVENT: seen}):
        await until(lambda: seen.done == ids)
    delays = [
        float(str(record.args[1]))
        for record in caplog.records
        if isinstance(record.args, tuple) and "Cannot receive" in record.getMessage()
    ]
    longest = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.064]
    assert all(limit / 2 <= delay <= limit for delay, limit in zip(delays, longest, strict=True))
    assert delays != longest, "all services would be back at once"


async def test_a_channel_that_is_lost_for_now_is_subscribed_to_again(
    server: StreamingServer,
) -> None:
    class Losing(Troubled):
        async def receive(self) -> dict[str, Any]:
            if self.errors and self.received == 1:
                await self.unsubscribe(EVENT)
            return await super().receive()

    seen = Seen()
    server.publish(EVENT)
    limit = ServerError("Refused", {"error": "403::Subscription limit exceeded for this topic"})
    client = Losing(server, limit)
    async with running(client, {EVENT: seen, ORDER: seen}):
        await until(lambda: client.errors == [] and EVENT in client.subscriptions)
        number = server.publish(EVENT)
        await until(lambda: number in seen.done)


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_when_the_handler_has_finished(
    server: StreamingServer, number: signal.Signals
) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    ids = [server.publish(EVENT) for _ in range(3)]
    gate = seen.hold(ids[0])
    async with running(
        keeping(server, markers), {EVENT: seen}, signals=(signal.SIGINT, signal.SIGTERM)
    ) as service:
        await until(lambda: seen.begun)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        assert not service.task.done()
        gate.set()
        await soon(service.task)
    assert seen.begun == ids[:1], "it took another one"
    assert stored(markers) == ids[0]
    assert server.sessions == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_second_signal_cancels_what_runs(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    number = server.publish(EVENT)
    seen.hold(number)
    async with running(
        keeping(server, markers), {EVENT: seen}, signals=[signal.SIGTERM], grace=100
    ) as service:
        await until(lambda: seen.begun)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: any("SIGTERM: stopping" in text for text in records(caplog, 20)))
        os.kill(os.getpid(), signal.SIGTERM)
        await soon(service.task)
    assert seen.done == []
    assert stored(markers) is None
    assert server.sessions == []
    assert "SIGTERM again: cancelling handlers that still run: 1" in records(
        caplog, logging.WARNING
    )


async def test_the_time_to_finish_is_limited(
    server: StreamingServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two handlers ignores that it is cancelled; the marker does not pass the other."""
    markers: dict[str, ReplayMarker] = {}
    first, second = server.publish(EVENT), server.publish(EVENT)
    begun: list[Any] = []

    async def handler(message: dict[str, Any]) -> None:
        begun.append(replay_id(message))
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            if replay_id(message) == first:
                raise

    async with running(
        keeping(server, markers), {EVENT: handler}, concurrency=2, grace=0.01
    ) as service:
        await until(lambda: begun == [first, second])
        await service.end()
    assert stored(markers) is None
    assert any("Events that were not processed: 1;" in text for text in records(caplog, 30))


async def test_a_handler_that_the_service_cancels_has_not_failed(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen, aside = Seen(), list[HandlerFailure]()
    seen.hold(server.publish(EVENT))
    async with running(
        keeping(server, markers), {EVENT: seen}, on_error=aside.append, grace=0.01
    ) as service:
        await until(lambda: seen.begun)
        await service.end()
    assert aside == []
    assert markers == {}


async def test_a_stop_after_a_failure_lets_the_others_finish(server: StreamingServer) -> None:
    first, second = server.publish(EVENT), server.publish(EVENT)
    seen, handler = failing(first)
    gate = seen.hold(second)
    async with running(
        keeping(server, {}), {EVENT: handler}, on_error=STOP, concurrency=2
    ) as service:
        await until(lambda: len(seen.begun) == 2)
        await server.wait_for(lambda server: server.count("/meta/connect") > 0)
        service.stop.set()
        await asyncio.sleep(0.02)
        gate.set()
        await service.failure(ValueError)
    assert seen.done == [second]


async def test_a_handler_that_fails_when_it_is_cancelled_is_not_called_again(
    server: StreamingServer,
) -> None:
    server.publish(EVENT)
    begun = asyncio.Event()

    async def handler(message: dict[str, Any]) -> None:
        begun.set()
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise ValueError("cannot clean up") from None

    on_error = Retry(initial=100, cap=100)
    async with running(keeping(server, {}), {EVENT: handler}, on_error=on_error) as service:
        await begun.wait()
        service.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(service.task)


async def test_cancelled_it_says_goodbye(server: StreamingServer) -> None:
    markers: dict[str, ReplayMarker] = {}
    seen = Seen()
    number = server.publish(EVENT)
    seen.hold(number)
    async with running(keeping(server, markers), {EVENT: seen}) as service:
        await until(lambda: seen.begun)
        service.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(service.task)
    assert stored(markers) is None
    assert server.sessions == []


@pytest.mark.parametrize("on", ["token", "/meta/handshake", "/meta/subscribe"])
async def test_a_stop_during_the_start(server: StreamingServer, on: str) -> None:
    server.add_fault(Hang(), on=on)
    async with running(client_for(server), {EVENT: Seen()}) as service:
        await server.wait_for(lambda server: server.count(on) == 1)
        await service.end()
        assert service.client.closed


def test_it_runs_in_another_thread_without_signals() -> None:
    """Python handles signals in its main thread only."""
    outcome: list[Any] = []

    async def main() -> None:
        async with StreamingServer() as server:
            stop, seen = asyncio.Event(), Seen()
            task = asyncio.create_task(run(client_for(server), {EVENT: seen}, stop=stop))
            await held(server)
            await server.wait_for(lambda server: EVENT in server.subscriptions)
            server.publish(EVENT)
            await until(lambda: seen.done)
            stop.set()
            await soon(task)
            outcome.extend(seen.done)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(30)
    assert len(outcome) == 1


# Programs


async def fail(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (ServerError("The channel is gone", None), 69),
        (TransportError("no endpoint"), 69),
        (ReplayError("unreadable"), 74),
        (AuthenticationError("refused"), 77),
        (KeyboardInterrupt(), 130),
        (asyncio.CancelledError(), 143),
    ],
)
def test_the_status_of_a_program(
    error: BaseException | None, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(fail(error))
    assert caught.value.code == status
    if isinstance(error, aiosfstream.AiosfstreamException):
        assert str(error) in records(caplog, logging.ERROR)


def test_a_bug_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program(fail(ZeroDivisionError()))
    assert exit_status(ZeroDivisionError()) is ExitStatus.FAILED
    assert exit_status(None) is ExitStatus.STOPPED


def test_warnings_of_a_program_are_seen_and_sigterm_cancels_it() -> None:
    program = (
        "import asyncio, logging, os, signal, aiosfstream\n"
        "async def main():\n"
        "    logging.getLogger('aiosfstream.client').warning('something is missing')\n"
        "    logging.getLogger('aiosfstream.client').info('routine')\n"
        "    logging.getLogger('aiocometd.client').warning('messages are pending')\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        await asyncio.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned up')\n"
        "aiosfstream.run_program(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 143
    assert done.stdout == "cleaned up\n"
    assert "WARNING aiosfstream.client: something is missing" in done.stderr
    assert "routine" not in done.stderr
    assert "pending" not in done.stderr
