"""The one table of refusals and failures: each row on every path, and as the documentation has it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from aiosfstream import (
    AiosfstreamException,
    AuthenticationError,
    ReplayOption,
    ServerError,
    TransportError,
)
from aiosfstream._cometd.salesforce import FAILURES, REFUSALS, judge_channel, judge_session
from aiosfstream._http.failures import Trouble
from aiosfstream.testing import (
    Call,
    CutAfter,
    CutBefore,
    Farewell,
    Fault,
    Garble,
    OAuthError,
    Redirect,
    Refuse,
    Status,
    StreamingServer,
)
from tests.support import EVENT, client_for, held, receive, soon, until
from tests.world import answered, nothing_more, publish

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "recovery.rst"
LIMIT_PAGE = '[{"errorCode":"REQUEST_LIMIT_EXCEEDED","message":"TotalRequests Limit exceeded."}]'
NONE = {"reconnect": "none", "interval": 0}
ALL = ReplayOption.ALL_EVENTS

#: What an outcome that is no error is: all goes on.
FINE: Final = None
Outcome = type[AiosfstreamException] | None


@dataclass(frozen=True)
class Row:
    """A row of the table, and what it leads to if it happens once.

    :ivar name: as the documentation has it
    :ivar faults: its forms
    :ivar opening: what ``open()`` raises
    :ivar connect: what ``receive()`` raises if it meets the connect of an open client
    :ivar subscribing: what a first ``subscribe()`` raises
    :ivar resubscribing: what ``receive()`` raises if it meets a subscription in a new session
    :ivar logs_in: whether an open client logs in again
    :ivar ends: whether the client is closed by it, where ``receive()`` raises
    """

    name: str
    faults: tuple[tuple[Fault, ...], ...]
    opening: Outcome
    connect: Outcome
    subscribing: Outcome
    resubscribing: Outcome
    logs_in: bool = False
    ends: bool = False


def refuse(*errors: str, **options: Any) -> tuple[tuple[Fault, ...], ...]:
    """Make the forms of a row out of reasons, each as the error and as what is behind another one."""
    plain = [(Refuse(error, **options),) for error in errors]
    behind = [(Refuse("403::Handshake denied", failure_reason=one, **options),) for one in errors]
    return (*plain, *behind)


#: The replies of the server.
REPLIES: Final = (
    Row(
        "the server is busy, or has a problem of its own",
        refuse("503::Server is too busy", "500::An internal error occurred", "429::Too many"),
        ServerError,
        FINE,
        ServerError,
        FINE,
    ),
    Row(
        "a limit is reached: of connections, of events, of a topic",
        (
            *refuse(
                "403::Organization concurrent user limit exceeded",
                "403::Organization total events daily limit exceeded",
                advice=NONE,
            ),
            (Status(403, LIMIT_PAGE),),
        ),
        AiosfstreamException,
        FINE,
        AiosfstreamException,
        FINE,
    ),
    Row(
        "the token is refused",
        (
            *refuse("401::Authentication invalid", "401::Request requires authentication"),
            (Status(401),),
            (Status(403),),
        ),
        FINE,
        FINE,
        FINE,
        FINE,
        logs_in=True,
    ),
    Row(
        "the server no longer knows the session",
        refuse("403::Unknown client", "402::Unknown client", advice={"reconnect": "handshake"}),
        FINE,
        FINE,
        FINE,
        FINE,
    ),
    Row(
        "the session's cookie is missing or belongs to another user",
        refuse(
            "400::Client x has established a session, but no BAYEUX_BROWSER cookie present",
            "400::Authenticated user id does not match the session's user id",
        ),
        FINE,
        FINE,
        FINE,
        FINE,
    ),
    Row(
        "the replay id is unknown, or older than the retention window",
        refuse("400::The replayId {82} you provided was invalid. Please provide a valid ID"),
        ServerError,
        FINE,
        ServerError,
        ServerError,
    ),
    Row(
        "denied, or no such channel",
        refuse("403:denied_by_security_policy:create_denied", "404::Unknown channel"),
        ServerError,
        FINE,
        ServerError,
        ServerError,
    ),
    Row(
        "the server says goodbye",
        (
            (Farewell(),),
            (Farewell(first=False),),
            (Refuse("403::subscribe_failed"), Farewell()),
        ),
        FINE,
        FINE,
        FINE,
        FINE,
    ),
    Row(
        "the server ends the session for good",
        ((Refuse("403::no more", advice=NONE),),),
        ServerError,
        ServerError,
        ServerError,
        ServerError,
        ends=True,
    ),
)
#: Requests without an answer, by the trouble that each is.
SILENCE: Final = (
    Row("a request is not sent", (), TransportError, FINE, TransportError, FINE),
    Row(
        "an answer is lost",
        ((CutAfter(),), (CutBefore(),), (Status(502),), (Status(408),), (Garble(),)),
        TransportError,
        FINE,
        TransportError,
        FINE,
    ),
    Row(
        "an answer cannot be read", ((Garble(b"[{"),),), TransportError, FINE, TransportError, FINE
    ),
    Row("too many requests", ((Status(429),),), TransportError, FINE, TransportError, FINE),
    Row(
        "the org has moved",
        ((Status(404),), (Status(410),), (Status(421),), (Redirect("/elsewhere"),)),
        TransportError,
        FINE,
        TransportError,
        FINE,
        logs_in=True,
    ),
    Row(
        "the request is rejected",
        ((Status(413),), (Status(400),)),
        TransportError,
        TransportError,
        TransportError,
        TransportError,
        ends=True,
    ),
)
#: Where a trouble has its row.
TROUBLES: Final = {
    Trouble.NOT_SENT: "a request is not sent",
    Trouble.LOST: "an answer is lost",
    Trouble.UNREADABLE: "an answer cannot be read",
    Trouble.THROTTLED: "too many requests",
    Trouble.UNAUTHORIZED: "the token is refused",
    Trouble.FORBIDDEN: "the token is refused",
    Trouble.REDIRECTED: "the org has moved",
    Trouble.REJECTED: "the request is rejected",
}
LOGGING_IN: Final = ("logging in fails for now", "the credentials are refused")

CASES = [
    pytest.param(row, faults, id=f"{row.name}-{number}")
    for row in (*REPLIES, *SILENCE)
    for number, faults in enumerate(row.faults)
]


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


async def goes_on(client: Any, server: StreamingServer, outcome: Outcome, row: Row) -> None:
    """Look at what an open client does about what has happened."""
    missed = publish(server, EVENT, 2)
    if outcome is not FINE:
        with pytest.raises(outcome):
            await receive(client, 3)
        if outcome is ServerError and not client.closed:
            # Only the channel is lost.
            await client.subscribe(EVENT)
            assert await receive(client, 2) == missed
        else:
            assert client.closed
            assert row.ends
    else:
        assert await receive(client, 2) == missed
        assert await nothing_more(client, 0.05)
    assert server.count("token") == 1 + row.logs_in


@pytest.mark.parametrize(("row", "faults"), CASES)
async def test_while_it_opens(server: StreamingServer, row: Row, faults: tuple[Fault, ...]) -> None:
    on = "/meta/connect" if any(isinstance(one, Farewell) for one in faults) else "/meta/handshake"
    # Where a kept connection dies, a request is sent once more.
    times = 2 if any(isinstance(one, CutAfter | CutBefore) for one in faults) else 1
    server.add_fault(*faults, on=on, times=times)
    client = client_for(server)
    if row.opening is not FINE:
        with pytest.raises(row.opening):
            await client.open()
        assert client.closed
        server.clear_faults()
    async with client:
        await client.subscribe(EVENT)
        ids = publish(server, EVENT, 1)
        assert await receive(client) == ids


@pytest.mark.parametrize(("row", "faults"), CASES)
async def test_of_a_connect(server: StreamingServer, row: Row, faults: tuple[Fault, ...]) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        await held(server)
        planned = server.add_fault(*faults, on="/meta/connect")
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await until(lambda: planned.met)
        await goes_on(client, server, row.connect, row)


@pytest.mark.parametrize(("row", "faults"), CASES)
async def test_of_a_first_subscription(
    server: StreamingServer, row: Row, faults: tuple[Fault, ...]
) -> None:
    async with client_for(server) as client:
        server.add_fault(*faults, on="/meta/subscribe")
        if row.subscribing is not FINE:
            with pytest.raises(row.subscribing):
                await client.subscribe(EVENT, replay=ALL)
            assert not client.closed
        await client.subscribe(EVENT, replay=ALL)
        ids = publish(server, EVENT, 2)
        assert await receive(client, 2) == ids


@pytest.mark.parametrize(("row", "faults"), CASES)
async def test_of_a_subscription_in_a_new_session(
    server: StreamingServer, row: Row, faults: tuple[Fault, ...]
) -> None:
    async with client_for(server) as client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        planned = server.add_fault(*faults, on="/meta/subscribe")
        server.expire_sessions()
        await until(lambda: planned.met)
        await goes_on(client, server, row.resubscribing, row)


@pytest.mark.parametrize("path", ["opening", "connect", "subscribing", "resubscribing"])
async def test_a_server_that_is_not_reached(server: StreamingServer, path: str) -> None:
    [row] = [row for row in SILENCE if not row.faults]
    assert row.name == TROUBLES[Trouble.NOT_SENT]
    client = client_for(server, connection_timeout=0.3 if path == "subscribing" else 10.0)
    if path == "opening":
        await server.pause()
        with pytest.raises(AuthenticationError) as caught:
            await client.open()
        assert caught.value.retryable
        return
    async with client:
        if path == "subscribing":
            await held(server)
            await server.pause()
            with pytest.raises(TransportError):
                await client.subscribe(EVENT)
            await server.resume()
        await client.subscribe(EVENT, replay=ALL)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        if path == "subscribing":
            return
        await held(server)
        if path == "resubscribing":
            planned = server.add_fault(Call(lambda _: server.pause()), on="/meta/subscribe")
            server.expire_sessions()
            await until(lambda: planned.met)
        else:
            await server.pause()
        await nothing_more(client, 0.1)
        await server.resume()
        await goes_on(client, server, FINE, row)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (LOGGING_IN[0], Status(503)),
        (LOGGING_IN[0], Status(429)),
        (LOGGING_IN[0], CutAfter()),
        (LOGGING_IN[0], Garble()),
        (LOGGING_IN[0], OAuthError("invalid_grant", "retry your request")),
        (LOGGING_IN[0], OAuthError("invalid_grant", "login rate exceeded")),
        (LOGGING_IN[1], OAuthError("invalid_grant", "authentication failure")),
        (LOGGING_IN[1], OAuthError("invalid_client", "invalid client credentials")),
        (LOGGING_IN[1], OAuthError("inactive_user", "user is inactive")),
    ],
)
async def test_of_the_token_endpoint(server: StreamingServer, name: str, fault: Fault) -> None:
    passes = name == LOGGING_IN[0]
    server.add_fault(fault, on="token")
    client = client_for(server)
    with pytest.raises(AuthenticationError) as caught:
        await client.open()
    assert caught.value.retryable is passes
    async with client:
        await client.subscribe(EVENT)
        [first] = publish(server, EVENT, 1)
        assert await receive(client) == [first]
        await held(server)
        server.add_fault(fault, on="token")
        server.revoke_tokens()
        missed = publish(server, EVENT, 2)
        if not passes:
            await answered(server, "token", 3)
            with pytest.raises(AuthenticationError):
                await soon(client.receive())
        assert await receive(client, 2) == missed


# The documentation


def cells() -> list[list[str]]:
    """Give the rows of the tables of the page, without their heads."""
    rows: list[list[str]] = []
    for table in PAGE.read_text().split(".. list-table::")[1:]:
        body = re.split(r"\n(?=\S)", table)[0]
        for row in body.split("\n   * - ")[2:]:
            words = [" ".join(cell.split()) for cell in row.split("\n     - ")]
            rows.append(words)
    return rows


def names() -> list[str]:
    """Give what the rows are about."""
    found = [re.match(r"\*\*(.+?)[:,]?\*\*", row[0]) for row in cells()]
    return [one[1] for one in found if one is not None]


def test_the_page_has_the_rows_of_the_code() -> None:
    documented = [name.lower() for name in names()]
    assert documented[: len(REPLIES)] == [row.name for row in REPLIES]
    assert [row.name for row in REFUSALS] == documented[: len(REFUSALS)]
    rest = documented[len(REPLIES) :]
    assert rest[: len(SILENCE)] == [row.name for row in SILENCE]
    assert tuple(rest[len(SILENCE) :][:2]) == LOGGING_IN
    assert TROUBLES.keys() == FAILURES.keys()
    assert set(TROUBLES.values()) <= set(documented)


def test_the_texts_of_the_page_are_found_in_their_rows() -> None:
    by_name = {row.name: row for row in REFUSALS}
    texts = 0
    for first, *_ in cells():
        found = re.match(r"\*\*(.+?):\*\*", first)
        row = by_name.get(found[1].lower()) if found else None
        for text in re.findall(r"``(\d{3}:.*?)``", first) if row else []:
            assert row is not None
            reply = {"successful": False, "error": text}
            assert judge_channel(reply) is row.channel, text
            if row.session is not judge_session({"successful": False, "error": "404::x"}):
                assert judge_session(reply) is row.session, text
            texts += 1
    assert texts >= 12
