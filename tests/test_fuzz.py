"""Whatever a server answers, only our exceptions come out, nothing spins, nothing dies in silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest
from aiocometd.constants import TransportState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosfstream import AiosfstreamException, PasswordAuthenticator, ReplayOption
from aiosfstream._cometd.client import transport_of
from aiosfstream.replay import MappingStorage
from tests.support import FastAuthClient

#: Seconds that a client may try itself against one server.
SPAN = 0.15
#: More requests than that in such a time are a storm. Each may be answered at once, and the bounds
#: of the delays begin at 10 milliseconds.
STORM = 150

FUZZ = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Answer:
    """What the server answers: ``$id`` and ``$channel`` in it stand for those of the request."""

    body: bytes
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    cut: bool = False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
CHANNELS = st.sampled_from(
    [
        "$channel",
        "/meta/handshake",
        "/meta/connect",
        "/meta/subscribe",
        "/meta/disconnect",
        "/meta/unsubscribe",
        "/event/Fuzz__e",
        "/event/*",
        "/service/x",
        "/",
        "",
    ]
)
ADVICE = (
    st.fixed_dictionaries(
        {},
        optional={
            "reconnect": st.sampled_from(["retry", "handshake", "none", "", 1, None]),
            "interval": st.sampled_from(
                [0, 1, 5, -1, 1e308, "x", None, float("nan"), 10**400, True]
            ),
            "timeout": st.sampled_from([0, 50, -5, 1e308, "x", None, float("inf")]),
        },
    )
    | JSON
)
ERRORS = st.sampled_from(
    [
        "401::Authentication invalid",
        "403::Unknown client",
        "402::session_unknown",
        "403::Handshake denied",
        "400::The replayId {1} you provided was invalid.",
        "503::Server is too busy.",
        "",
        ":::",
        "400",
        7,
        "403::Organization concurrent user limit exceeded",
        "400::no BAYEUX_BROWSER cookie present",
        None,
    ]
)
MESSAGES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "channel": CHANNELS | JSON,
        "id": st.sampled_from(["$id", "0", 1, None]) | JSON,
        "successful": st.booleans() | st.sampled_from(["true", 1, None]),
        "clientId": st.sampled_from(["client", "", None, 5]),
        "error": ERRORS,
        "advice": ADVICE,
        "ext": JSON
        | st.fixed_dictionaries({"sfdc": st.fixed_dictionaries({"failureReason": ERRORS})}),
        "subscription": st.sampled_from(["/event/Fuzz__e", None, 3]),
        "supportedConnectionTypes": st.sampled_from([["long-polling"], [], "x", None, [[]]]),
        "data": JSON | st.fixed_dictionaries({"event": st.fixed_dictionaries({"replayId": JSON})}),
    },
)
GOOD = {
    "channel": "$channel",
    "id": "$id",
    "successful": True,
    "clientId": "client",
    "supportedConnectionTypes": ["long-polling"],
}
BODIES = st.one_of(
    st.lists(MESSAGES, max_size=5).map(json.dumps).map(str.encode),
    st.lists(st.just(GOOD) | MESSAGES, min_size=1, max_size=4).map(json.dumps).map(str.encode),
    JSON.map(json.dumps).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.just(b"[" * 2_000),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Set-Cookie", "Content-Type", "Retry-After", "Location", "X", "Connection"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    ),
    max_size=3,
)
ANSWERS = st.builds(
    Answer,
    body=BODIES,
    status=st.sampled_from(
        [200, 200, 200, 200, 204, 301, 302, 400, 401, 403, 404, 408, 413, 429, 500, 503]
    ),
    headers=HEADERS,
    cut=st.sampled_from([False, False, False, True]),
)


class FuzzServer:
    """Answers token requests well and the others as it is told.

    :param answers: one after the other, over and over
    :param tokens: answers to token requests; None: good ones
    """

    def __init__(self, answers: list[Answer], tokens: list[Answer] | None = None) -> None:
        self._answers: Iterator[Answer] = cycle(answers)
        self._tokens: Iterator[Answer] | None = None if tokens is None else cycle(tokens)
        self.requests = 0
        self.events = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lengths = [
                    line[15:]
                    for line in head.lower().split("\r\n")
                    if line.startswith("content-length:")
                ]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                self.requests += 1
                answer = self._choose(head, body)
                # A server that has something to tell may be asked at once for more.
                self.events += b'"data"' in answer.body
                writer.write(self._encode(answer, body))
                await writer.drain()
                if answer.cut:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _choose(self, head: str, body: bytes) -> Answer:
        if "/services/oauth2/token" not in head.split("\r\n", maxsplit=1)[0]:
            return next(self._answers)
        if self._tokens is not None:
            return next(self._tokens)
        url = f"http://127.0.0.1:{self.port}"
        return Answer(json.dumps({"access_token": "token", "instance_url": url}).encode())

    @staticmethod
    def _encode(answer: Answer, request: bytes) -> bytes:
        body = answer.body
        try:
            message = json.loads(request)[0]
        except ValueError:
            pass
        else:
            body = body.replace(b"$id", str(message["id"]).encode())
            body = body.replace(b"$channel", message["channel"].encode())
        lines = [f"HTTP/1.1 {answer.status} X"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        lines.append(f"Content-Length: {len(body) + (10 if answer.cut else 0)}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def run(server: FuzzServer, use: Callable[[FastAuthClient], Any]) -> None:
    """Let a client loose on *server*, and look at what comes out."""
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        authenticator = PasswordAuthenticator(
            "key", "secret", "user", "password", login_url=f"http://127.0.0.1:{server.port}"
        )
        client = FastAuthClient(
            authenticator,
            replay=MappingStorage({}),
            replay_fallback=ReplayOption.ALL_EVENTS,
            request_timeout=0.1,
            connection_timeout=0.05,
        )
        with suppress(AiosfstreamException, asyncio.TimeoutError):
            await asyncio.wait_for(use(client), SPAN)
        await asyncio.wait_for(client.close(), 10)
        listener.close()
        for _ in range(100):
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0.001)
        assert [task for task in asyncio.all_tasks() if "aiosfstream" in task.get_name()] == []

    asyncio.run(main())
    assert complaints == []
    assert server.requests - server.events < STORM


async def stream(client: FastAuthClient) -> None:
    """Use the client as an application does that never gives up."""
    await client.open()
    for _ in range(2):
        with suppress(AiosfstreamException):
            await client.subscribe("/event/Fuzz__e")
    while not client.closed:
        try:
            await client.receive()
        except AiosfstreamException:
            transport = transport_of(client)
            task = None if transport is None else transport._polling.task
            ended = client.state is TransportState.SERVER_DISCONNECTED
            assert client.closed or ended or (task is not None and not task.done())
            await asyncio.sleep(0.001)


@FUZZ
@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_any_answers_from_the_handshake_on(answers: list[Answer]) -> None:
    run(FuzzServer(answers), stream)


@FUZZ
@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_any_answers_once_it_is_open(answers: list[Answer]) -> None:
    good = Answer(json.dumps([GOOD]).encode())
    run(FuzzServer([good, good, good, *answers]), stream)


@FUZZ
@given(st.lists(ANSWERS, min_size=1, max_size=4))
def test_any_answers_of_the_token_endpoint(answers: list[Answer]) -> None:
    server = FuzzServer([Answer(b"", 401)], answers)
    run(server, stream)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"", json.dumps([GOOD]).encode()])
def test_a_server_that_answers_everything_at_once(body: bytes) -> None:
    good = Answer(json.dumps([GOOD]).encode())
    server = FuzzServer([good, good, good, *[Answer(body)] * 1000])
    run(server, stream)
