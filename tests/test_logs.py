"""What is logged when something goes wrong: no traceback, the right level, and what to do."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aiosfstream import (
    AuthenticationError,
    ConnectionEvent,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    ServerError,
    TransportError,
)
from aiosfstream.testing import (
    Alter,
    CutAfter,
    CutBefore,
    Garble,
    Insert,
    OAuthError,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    StreamingServer,
    Truncate,
)
from tests.support import EVENT, TOPIC, client_for, held, receive, soon, until

CONNECT = "/meta/connect"
NONE = {"reconnect": "none", "interval": 0}
#: A channel or URL.
WHERE = re.compile(r"/(event|topic|meta|u|data)/\w+|https?://\S+")
#: Words that introduce a cause: the server's own, an exception's, or a fact of ours.
CAUSE = re.compile(
    r"\d{3}::|HTTP status \d+|\w+Error\b|refused|since|none was received|does not announce|"
    r"has no |names no |belongs to no|failed with|is no event|was cancelled|were not received"
)
NEXT_STEP = re.compile(
    r"open the client|receive\(\)|instead|subscribe|subscribing|is delivered|check|comes? again|"
    r"tried again|goes on|going on|gives it again|counts as|resumed from|look|fix|receive what is pending",
    re.I,
)

Fault = Callable[[StreamingServer], Awaitable[None]]


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server that does not slow down clients whose last session it has not forgotten yet."""
    async with StreamingServer(advise_multiple_clients=False) as server:
        yield server


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that the package logs."""
    caplog.set_level(logging.DEBUG, "aiosfstream")
    return caplog


def records_of(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Give the package's records, which never have a traceback."""
    records = [record for record in log.records if record.name.startswith("aiosfstream")]
    assert records
    for record in records:
        assert record.exc_info is None, record.getMessage()
        assert record.stack_info is None, record.getMessage()
        assert "\n" not in record.getMessage()
    return records


def texts_of(log: pytest.LogCaptureFixture) -> list[str]:
    """Give the texts of what the package has logged."""
    return [one.getMessage() for one in log.records if one.name.startswith("aiosfstream")]


def alarms(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Give level and text of what may need a look, each of which says where, why and what follows."""
    found = []
    for record in records_of(log):
        if record.levelno > logging.INFO:
            text = record.getMessage()
            assert WHERE.search(text), f"names no channel or URL: {text}"
            assert CAUSE.search(text), f"names no cause: {text}"
            assert NEXT_STEP.search(text), f"does not say what follows: {text}"
            found.append((record.levelname, text))
    return found


def infos(log: pytest.LogCaptureFixture) -> str:
    """Give the texts of the routine records."""
    return "\n".join(
        record.getMessage() for record in records_of(log) if record.levelno == logging.INFO
    )


# What a client handles by itself


def on_connect(*faults: object) -> Fault:
    """Let the connect that is answered next go wrong."""

    async def fault(server: StreamingServer) -> None:
        server.add_fault(*faults, on=CONNECT)  # type: ignore[arg-type]

    return fault


async def lose_session(server: StreamingServer) -> None:
    server.expire_sessions()


async def revoke(server: StreamingServer) -> None:
    server.add_fault(RevokeTokens(), on=CONNECT)


async def cut(server: StreamingServer) -> None:
    server.cut_connections()


async def restart(server: StreamingServer) -> None:
    await server.restart()


async def pause(server: StreamingServer) -> None:
    await server.pause()
    await server.resume()


async def say_goodbye(server: StreamingServer) -> None:
    server.disconnect_clients()


ROUTINE: dict[str, tuple[Fault, str]] = {
    "session lost": (lose_session, "Unknown client"),
    "token revoked": (revoke, "Logged in again, a new session follows"),
    "connection cut": (cut, "the connection failed"),
    "cut before the answer": (on_connect(CutBefore()), "the connection failed"),
    "answer lost": (on_connect(CutAfter()), "the connection failed"),
    "answer truncated": (on_connect(Truncate()), "the connection failed"),
    "garbled answer": (on_connect(Garble()), "Please log in"),
    "empty answer": (on_connect(Garble(b"")), "body empty"),
    "503 with Retry-After": (
        on_connect(Status(503, headers={"Retry-After": "0"})),
        "HTTP status 503",
    ),
    "429 with Retry-After": (
        on_connect(Status(429, headers={"Retry-After": "0"})),
        "HTTP status 429",
    ),
    "busy": (
        on_connect(Refuse("401::Authentication invalid", "503::Server is too busy.", NONE)),
        "503::Server is too busy",
    ),
    "server restart": (restart, "/cometd/"),
    "server paused and resumed": (pause, "/cometd/"),
    "server's goodbye": (say_goodbye, "The server ended the session"),
}


@pytest.mark.parametrize("name", ROUTINE)
async def test_routine_is_no_warning(
    server: StreamingServer, log: pytest.LogCaptureFixture, name: str
) -> None:
    fault, cause = ROUTINE[name]
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        first = server.publish(EVENT)
        assert await receive(client) == [first]
        await held(server)
        before = len(log.records)
        await fault(server)
        # The first event may be the answer to the connect that is held already.
        for _ in range(2):
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
        await until(lambda: connected_since(log, before))
    assert alarms(log) == []
    lost = [text for text in infos(log).split("\n") if text.startswith("Connection lost")]
    assert len(lost) >= 1
    assert all(re.search(r"https?://|/meta/", text) for text in lost), lost
    assert cause in infos(log)


def connected_since(log: pytest.LogCaptureFixture, number: int) -> bool:
    """Say whether the client has told since record *number* that it is connected."""
    return any(record.getMessage() == "Connected" for record in log.records[number:])


async def test_attempts_say_when_the_next_follows(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        await server.pause()
        await until(lambda: infos(log).count("Trying again in") >= 2)
        await server.resume()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    assert alarms(log) == []
    texts = [text for text in infos(log).split("\n") if text.startswith("Trying again")]
    assert re.match(
        r"Trying again in \d+\.\d s after \d+ failures, the last: Request to http", texts[0]
    )


# What may need a look


async def test_a_channel_that_cannot_be_resumed(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.deny(EVENT, "403::You do not have access.")
        server.expire_sessions()
        with pytest.raises(ServerError, match="cannot be resumed"):
            await soon(client.receive())
    [(level, text)] = alarms(log)
    assert level == "ERROR"
    assert EVENT in text
    assert "403::You do not have access." in text
    assert "subscribe to it again" in text


async def test_a_fallback(server: StreamingServer, log: pytest.LogCaptureFixture) -> None:
    options = {"replay": {EVENT: 777}, "replay_fallback": ReplayOption.ALL_EVENTS}
    async with client_for(server, **options) as client:
        await client.subscribe(EVENT)
    [(level, text)] = alarms(log)
    assert level == "WARNING"
    assert EVENT in text
    assert "subscribing from the fallback -2 instead" in text
    assert "was invalid" in text


async def test_credentials_that_are_refused_later(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token")
        server.revoke_tokens()
        with pytest.raises(AuthenticationError):
            await soon(client.receive())
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    [(level, text)] = alarms(log)
    assert level == "ERROR"
    assert server.login_url in text
    assert "invalid_grant" in text
    assert "the next receive() tries again" in text
    assert "Check the username" in text


async def test_a_log_in_that_passes_is_routine(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Status(503), on="token")
        server.revoke_tokens()
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    assert alarms(log) == []
    assert f"Network request failed: {server.login_url}" in infos(log)


@pytest.mark.parametrize(
    ("fault", "cause", "error"),
    [
        (Redirect("https://elsewhere.example.com/"), "elsewhere.example.com", TransportError),
        (Status(404), "HTTP status 404", TransportError),
        (Refuse("403::Something else", advice=NONE), "403::Something else", ServerError),
    ],
)
async def test_the_end_for_good(
    server: StreamingServer,
    log: pytest.LogCaptureFixture,
    fault: Redirect | Status | Refuse,
    cause: str,
    error: type[Exception],
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        # The second time after the client has logged in again, to learn where the org is.
        server.add_fault(fault, on=CONNECT, times=2)
        server.publish(EVENT)
        server.publish(EVENT)
        with pytest.raises(error, match=re.escape(cause)):
            while True:
                await soon(client.receive())
    texts = [text for level, text in alarms(log) if level == "ERROR"]
    assert len(texts) == 1
    assert cause in texts[0]
    assert "open the client again" in texts[0]


async def test_events_that_are_missed(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        subscribes = server.count("/meta/subscribe")
        server.expire_sessions()
        await server.wait_for(lambda server: server.count("/meta/subscribe") > subscribes)
        await held(server)
    [(level, text)] = alarms(log)
    assert level == "WARNING"
    assert text.startswith(f"{EVENT} is subscribed again for new events only")
    assert "keep markers" in text


async def test_an_event_of_no_subscription(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    def add_stranger(messages: list[object]) -> list[object]:
        return [{"channel": TOPIC, "data": {"event": {"replayId": 5}, "sobject": {}}}, *messages]

    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Alter(add_stranger), on=CONNECT)
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
        wanted = [5, server.publish(EVENT)]
        assert await receive(client, 2) == wanted
    assert [(level, TOPIC in text) for level, text in alarms(log)] == [("WARNING", True)]


@pytest.mark.parametrize(
    "message",
    [
        {"channel": "/topic/@", "data": {"event": {"replayId": 5}, "payload": {}}},
        {"channel": ["@"], "data": {}},
        {"channel": "/meta/@", "data": {}},
        {"channel": EVENT, "data": {"event": {"replayId": "@"}, "payload": {}}},
    ],
)
async def test_what_a_server_calls_a_channel_writes_no_line_and_no_token(
    server: StreamingServer, log: pytest.LogCaptureFixture, message: dict[str, Any]
) -> None:
    """The same goes for replay ids: of an event that comes twice as well."""
    log.set_level(logging.DEBUG)
    token = "00D000000000001!AQ.test_1_token"
    issue = server.oauth.issue
    tokens: list[str] = []
    server.oauth.issue = lambda: tokens.append(issue()) or tokens[-1]  # type: ignore[func-returns-value, method-assign]
    odd = json.loads(json.dumps(message).replace("@", f"{token}\\u001b[2J\\nERROR forged"))

    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Insert((odd, odd), first=True), on=CONNECT)
        for _ in range(2):
            wanted = server.publish(EVENT)
            while (await soon(client.receive()))["data"]["event"]["replayId"] != wanted:
                pass
        # The events go first.
        await until(lambda: any("..." in text for text in texts_of(log)))
    assert tokens == [token]
    texts = texts_of(log)
    for text in texts:
        assert text.isprintable()
        assert token not in text


async def test_a_message_that_is_no_event(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    def add_nonsense(messages: list[object]) -> list[object]:
        return [{"channel": "/meta/unknown", "data": "nonsense"}, *messages]

    async with client_for(server, replay=ReplayOption.ALL_EVENTS) as client:
        await client.subscribe(EVENT)
        await held(server)
        server.add_fault(Alter(add_nonsense), on=CONNECT)
        for _ in range(3):
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
        # The event goes first.
        await until(lambda: alarms(log) != [])
    assert [(level, "/meta/unknown" in text) for level, text in alarms(log)] == [("WARNING", True)]


async def test_a_server_without_replay(log: pytest.LogCaptureFixture) -> None:
    def without(messages: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{**message, "ext": {}} for message in messages]

    async with StreamingServer() as server:
        server.add_fault(Alter(without), on="/meta/handshake")
        async with client_for(server):
            pass
        [(level, text)] = alarms(log)
        assert level == "WARNING"
        assert server.url in text


class BrokenStorage(ReplayMarkerStorage):
    """A storage that can be broken."""

    broken = False

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        if self.broken:
            raise OSError("no space left on device")
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        if self.broken:
            raise OSError("no space left on device")


async def test_a_storage_that_fails(server: StreamingServer, log: pytest.LogCaptureFixture) -> None:
    storage = BrokenStorage()
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT)
        await held(server)
        storage.broken = True
        server.expire_sessions()
        with pytest.raises(ReplayError, match="could not be read"):
            await soon(client.receive())
    [(level, text)] = alarms(log)
    assert level == "ERROR"
    assert EVENT in text
    assert "no space left on device" in text


async def test_a_storage_that_fails_where_the_id_is_known(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    storage = BrokenStorage()
    async with client_for(server, replay=storage) as client:
        await client.subscribe(EVENT)
        first = server.publish(EVENT)
        assert await receive(client) == [first]
        await held(server)
        storage.broken = True
        server.expire_sessions()
        await server.wait_for(lambda server: server.count("/meta/subscribe") == 2)
        storage.broken = False
        wanted = [server.publish(EVENT)]
        assert await receive(client) == wanted
    texts = alarms(log)
    assert [level for level, _ in texts] == ["WARNING"]
    assert "going on with the id in memory" in texts[0][1]


async def test_processing_that_fails(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    storage = BrokenStorage()
    message = {"channel": EVENT, "data": {"event": {"replayId": 1, "createdDate": "2020-01-01"}}}
    with pytest.raises(LookupError):
        async with storage(message):
            raise LookupError
    await storage.extract_replay_id({"channel": EVENT, "data": {}})
    storage(message)
    await asyncio.sleep(0)
    texts = alarms(log)
    assert [level for level, _ in texts] == ["WARNING"] * 3
    assert all(EVENT in text for _, text in texts)


async def test_messages_that_nobody_received(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    client = client_for(server, replay=ReplayOption.ALL_EVENTS)
    async with client:
        await client.subscribe(EVENT)
        server.publish(EVENT)
        await until(lambda: client.pending_count == 1)
    async with client:
        pass
    [(level, text)] = alarms(log)
    assert level == "WARNING"
    assert "1 messages" in text


async def test_only_a_mistake_in_a_program_has_a_traceback(
    server: StreamingServer, log: pytest.LogCaptureFixture
) -> None:
    """An observer's is the application's own, and could not be found without it."""

    def observer(event: ConnectionEvent) -> None:
        raise ZeroDivisionError

    async with client_for(server, observer=observer):
        pass
    traced = [record for record in log.records if record.exc_info is not None]
    assert traced
    assert all("observer" in record.getMessage() for record in traced)
