"""A simulated hour of each failure: how many requests a client makes of it.

The event loop's clock jumps to the next timer whenever nothing is left to do, and the server is a
function: an hour takes well under a second.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from aiosfstream import (
    AiosfstreamException,
    AuthenticationError,
    Client,
    PasswordAuthenticator,
    TransportError,
)
from aiosfstream._cometd import exchange
from aiosfstream._http import post as http
from aiosfstream._http.failures import Answer, Failure, Trouble

HOUR = 3600.0
URL = "https://example.my.salesforce.com"
NONE = {"reconnect": "none", "interval": 0}


class JumpingSelector(selectors.BaseSelector):
    """Does not wait: it moves the clock forward instead."""

    def __init__(self) -> None:
        self._inner = selectors.DefaultSelector()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Give what is ready; if nothing is, let the time pass at once."""
        ready = self._inner.select(0)
        if not ready and timeout:
            self.now += timeout
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        """Pass on."""
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> Any:
        """Pass on."""
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        """Pass on."""
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Any:
        """Pass on."""
        return self._inner.get_map()

    def close(self) -> None:
        """Pass on."""
        self._inner.close()


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Give the simulated time."""
        return self._jumping.now


Behaviour = Callable[[str, dict[str, Any]], Any]


class World:
    """A server that is a function, and the requests that it got.

    :param behaviour: gives the reply's fields, or a failure, or None for a good reply
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.requests: Counter[str] = Counter()
        self.failing = False

    async def post(
        self, session: Any, url: str, body: bytes, headers: Any, **options: Any
    ) -> Answer | Failure:
        """Stand in for ``post()``."""
        await asyncio.sleep(0.05)
        if b"grant_type" in body:
            what, message = "token", {}
        else:
            [message] = json.loads(body)
            what = message["channel"]
        self.requests[what] += 1
        outcome = self._behaviour(what, message) if self.failing else None
        if isinstance(outcome, Failure):
            return outcome
        if isinstance(outcome, tuple):
            return Answer(url, outcome[0], {}, outcome[1])
        if what == "token":
            value: Any = outcome or {"access_token": "token", "instance_url": URL}
            return Answer(url, 400 if outcome else 200, {}, json.dumps(value).encode())
        return Answer(
            url, 200, {}, json.dumps([await self._reply(what, message, outcome)]).encode()
        )

    async def _reply(self, what: str, message: dict[str, Any], outcome: Any) -> dict[str, Any]:
        reply = {"channel": what, "id": message["id"], "successful": outcome is None}
        if outcome is not None:
            return {**reply, **outcome}
        if what == "/meta/connect" and "advice" not in message:
            await asyncio.sleep(110)
        return {**reply, "clientId": "client", "supportedConnectionTypes": ["long-polling"]}


def simulate(monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour) -> tuple[World, Counter[str]]:
    """Let a client live for an hour in which *behaviour* rules.

    :return: what it asked for, and what it raised
    """
    world = World(behaviour)
    for module in (exchange, http):
        monkeypatch.setattr(module, "post", world.post)
    raised: Counter[str] = Counter()

    async def main() -> None:
        client = Client(
            PasswordAuthenticator("key", "secret", "user", "password"), connection_timeout=60.0
        )
        async with client:
            await client.subscribe("/event/A__e")
            await client.subscribe("/event/B__e")
            world.failing = True
            world.requests.clear()
            # What is held when the failure begins ends with it.
            end = asyncio.get_running_loop().time() + HOUR
            while (left := end - asyncio.get_running_loop().time()) > 0 and not client.closed:
                try:
                    await asyncio.wait_for(client.receive(), left)
                except asyncio.TimeoutError as error:
                    if isinstance(error, AiosfstreamException):
                        raised[type(error).__name__] += 1
                except AiosfstreamException as error:
                    raised[type(error).__name__] += 1

    loop = JumpingLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    return world, raised


def failure(trouble: Trouble, retry_after: float | None = None) -> Behaviour:
    """Let every CometD request fail in one way."""
    return lambda what, _: (
        None if what == "token" else Failure(trouble, TransportError("failed"), None, retry_after)
    )


def refusal(
    error: str, advice: Any = None, reason: str | None = None, on: str = "/meta/connect"
) -> Behaviour:
    """Refuse every request on one channel."""
    fields: dict[str, Any] = {"error": error}
    if advice is not None:
        fields["advice"] = advice
    if reason is not None:
        fields["ext"] = {"sfdc": {"failureReason": reason}}
    return lambda what, _: fields if what == on else None


def html(status: int) -> Behaviour:
    """Answer every CometD request with a page."""
    return lambda what, _: None if what == "token" else (status, b"<html></html>")


#: The bounds grow to 10 seconds for the network and to 300 for a busy server, and full jitter makes
#: the mean half of that: about 720 or 24 attempts an hour, of up to five requests each.
NETWORK, BUSY = 3600, 250
#: An instance that is silent is looked for after a minute, 2, 4, 8 and 15, and then every 15.
LOOKED_FOR = 8

CASES: dict[str, tuple[Behaviour, int, int]] = {
    "refused": (failure(Trouble.NOT_SENT), NETWORK, LOOKED_FOR),
    "lost": (failure(Trouble.LOST), NETWORK, LOOKED_FOR),
    "throttled": (failure(Trouble.THROTTLED, 600.0), 12, 0),
    "a page": (html(200), NETWORK, 0),
    "HTTP 503": (html(503), NETWORK, 0),
    "unknown client": (refusal("403::Unknown client", {"reconnect": "handshake"}), NETWORK, 0),
    "unknown client for subscriptions": (
        lambda what, _: (
            {"error": "403::Unknown client", "advice": {"reconnect": "handshake"}}
            if what in ("/meta/subscribe", "/meta/connect")
            else None
        ),
        NETWORK,
        0,
    ),
    "advice retry": (refusal("500::x", {"reconnect": "retry", "interval": 0}), NETWORK, 0),
    "advice handshake on a handshake": (
        lambda what, _: (
            {"error": "500::x", "advice": {"reconnect": "handshake"}}
            if what in ("/meta/handshake", "/meta/connect")
            else None
        ),
        NETWORK,
        0,
    ),
    "busy": (refusal("401::Authentication invalid", NONE, "503::Server is too busy."), BUSY, 0),
    "a limit": (refusal("403::Organization concurrent user limit exceeded", NONE), BUSY, 0),
    "a refused token": (refusal("401::Authentication invalid", NONE), 300, 60),
    "HTTP 401": (html(401), 200, 30),
    "a refused handshake": (
        lambda what, _: (
            {
                "error": "403::Handshake denied",
                "ext": {"sfdc": {"failureReason": "401::x"}},
                "advice": NONE,
            }
            if what == "/meta/handshake"
            else {"error": "401::Authentication invalid", "advice": NONE}
            if what == "/meta/connect"
            else None
        ),
        100,
        30,
    ),
    "refused credentials": (
        lambda what, _: (
            {"error": "invalid_grant", "error_description": "authentication failure"}
            if what == "token"
            else {"error": "401::Authentication invalid", "advice": NONE}
        ),
        30,
        15,
    ),
    "a token endpoint that is down": (
        lambda what, _: (
            Failure(Trouble.NOT_SENT, TransportError("down"))
            if what == "token"
            else {"error": "401::Authentication invalid", "advice": NONE}
        ),
        NETWORK,
        NETWORK,
    ),
    "a log-in rate limit": (
        lambda what, _: (
            {"error": "invalid_grant", "error_description": "login rate exceeded"}
            if what == "token"
            else {"error": "401::Authentication invalid", "advice": NONE}
        ),
        60,
        60,
    ),
    "refused cookies": (refusal("400::no BAYEUX_BROWSER cookie present"), 40, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_an_hour_of(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, most_requests, most_tokens = CASES[case]
    world, raised = simulate(monkeypatch, behaviour)
    assert 1 <= sum(world.requests.values()) <= most_requests, world.requests
    assert world.requests["token"] <= most_tokens
    assert raised, "the application never heard of it"


def test_the_application_hears_of_a_loss_every_connection_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, raised = simulate(monkeypatch, failure(Trouble.NOT_SENT))
    assert raised.keys() == {"TransportTimeoutError"}
    assert 55 <= raised["TransportTimeoutError"] <= 60


def test_refused_credentials_are_tried_more_and_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behaviour, _, _ = CASES["refused credentials"]
    world, raised = simulate(monkeypatch, behaviour)
    assert raised.keys() == {AuthenticationError.__name__}
    # After 5, 10, 20 ... 640 and 900 seconds.
    assert 9 <= world.requests["token"] <= 13


def test_a_quiet_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    world, raised = simulate(monkeypatch, lambda what, message: None)
    assert raised == {}
    assert set(world.requests) <= {"/meta/connect", "/meta/disconnect"}
    assert world.requests["/meta/connect"] <= HOUR / 110 + 2
