"""How long a stream needs to be back once the server is well, for each trouble of the table.

In simulated time, with the true delays: what is measured is the pause that the client makes on its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

import pytest

from aiosfstream import AiosfstreamException, Client, PasswordAuthenticator, ReplayOption
from aiosfstream import _policy as policy_module
from aiosfstream._cometd import exchange
from aiosfstream._http import post as http
from aiosfstream._http.failures import Answer, Failure, Trouble
from aiosfstream._oauth.state import REQUEST_TIMEOUT
from aiosfstream.exceptions import TransportError
from tests.test_storms import URL, Behaviour, JumpingLoop, failure, html, refusal

#: Seconds for which the server is unwell, at the least and at the most.
SHORTEST, LONGEST = 0.5, 600.0
#: Seconds until the stream is back: the goal at the 99th percentile.
GOAL = 15.0
#: Seconds that a request to the instance may take.
INSTANCE_TIMEOUT = 10.0
#: The same where the org itself asks for patience, or a person must help.
PATIENT_GOAL = 360.0
#: Seconds that the server takes for each answer.
LATENCY = 0.05
HANDSHAKE = {"reconnect": "handshake"}
NONE = {"reconnect": "none"}
EVENT = {
    "channel": "/event/A__e",
    "data": {"event": {"replayId": 2}, "payload": {"CreatedDate": "2026-01-01T00:00:00Z"}},
}


class World:
    """A server that is a function. Once it is well it has an event for who connects.

    :param behaviour: what it does while it is unwell
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.unwell = asyncio.Event()
        self.well = True
        self.subscribed = False

    async def post(
        self, session: Any, url: str, body: bytes, headers: Any, **options: Any
    ) -> Answer | Failure:
        """Stand in for ``post()``."""
        await asyncio.sleep(LATENCY)
        what, message = "token", {}
        if b"grant_type" not in body:
            [message] = json.loads(body)
            what = message["channel"]
        if (
            what == "/meta/connect"
            and self.well
            and not self.unwell.is_set()
            and "advice" not in message
        ):
            await self.unwell.wait()
        elif what == "/meta/connect" and not self.subscribed:
            await asyncio.sleep(message.get("advice", {}).get("timeout", 110_000) / 1000)
        outcome = None if self.well else self._behaviour(what, message)
        if callable(outcome):
            outcome = await outcome()
        if isinstance(outcome, Failure):
            return outcome
        if isinstance(outcome, tuple):
            return Answer(url, outcome[0], {}, outcome[1])
        if what == "token":
            value: Any = outcome or {"access_token": "token", "instance_url": URL}
            return Answer(url, 400 if outcome else 200, {}, json.dumps(value).encode())
        return Answer(url, 200, {}, json.dumps(self._messages(what, message, outcome)).encode())

    def _messages(self, what: str, message: dict[str, Any], outcome: Any) -> list[Any]:
        reply = {"channel": what, "id": message["id"], "successful": outcome is None}
        if outcome is not None:
            return [{**reply, **outcome}]
        reply.update(clientId="client", supportedConnectionTypes=["long-polling"])
        self.subscribed = what == "/meta/subscribe" or (
            self.subscribed and what != "/meta/handshake"
        )
        is_back = what == "/meta/connect" and self.well and self.subscribed
        return [EVENT, reply] if is_back else [reply]


async def measure(world: World, outage: float) -> float:
    """Give the seconds from the moment in which the server is well until an event is handed over."""
    loop = asyncio.get_running_loop()
    client = Client(
        PasswordAuthenticator("key", "secret", "user", "password"),
        connection_timeout=10.0,
        request_timeout=INSTANCE_TIMEOUT,
        replay=ReplayOption.ALL_EVENTS,
    )
    async with client:
        await client.subscribe("/event/A__e")
        await asyncio.sleep(1.0)
        world.well = False
        world.unwell.set()
        well_at = loop.time() + outage
        loop.call_at(well_at, setattr, world, "well", True)
        while True:
            try:
                await client.receive()
                break
            except AiosfstreamException:
                assert not client.closed
        return loop.time() - well_at


def times(
    monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, trials: int, longest: float = LONGEST
) -> list[float]:
    """Measure again and again, after outages of different lengths."""
    monkeypatch.setattr(policy_module, "_CHANCE", random.Random(1))
    lengths = random.Random(2)
    measured = []
    for _ in range(trials):
        loop = JumpingLoop()
        try:
            measured.append(
                loop.run_until_complete(_trial(monkeypatch, behaviour, lengths, longest))
            )
        finally:
            loop.close()
    return sorted(measured)


async def _trial(
    monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, lengths: random.Random, longest: float
) -> float:
    world = World(behaviour)
    for module in (exchange, http):
        monkeypatch.setattr(module, "post", world.post)
    return await measure(world, lengths.uniform(SHORTEST, longest))


def percentile(measured: list[float], percent: float) -> float:
    """Give a percentile of sorted figures."""
    return measured[min(len(measured) - 1, int(len(measured) * percent / 100))]


def once(on: str, **fields: Any) -> Behaviour:
    """Refuse on one channel, as the first sign of what has happened already."""
    return lambda what, _: fields if what == on else None


def silent(*hosts: str) -> Behaviour:
    """Give no answer within the time that a request may take.

    :param hosts: which: "instance", "login"
    """

    def behave(what: str, message: dict[str, Any]) -> Any:
        host, seconds = (
            ("login", REQUEST_TIMEOUT) if what == "token" else ("instance", INSTANCE_TIMEOUT)
        )

        async def wait() -> Failure:
            await asyncio.sleep(seconds)
            return Failure(Trouble.LOST, TransportError("timed out"))

        return wait if host in hosts else None

    return behave


def login(error: str, description: str) -> Behaviour:
    """Refuse the token, and a new one as well."""
    return lambda what, _: (
        {"error": error, "error_description": description}
        if what == "token"
        else {"error": "401::Authentication invalid", "advice": NONE}
    )


def moving(what: str, message: dict[str, Any]) -> Any:
    """Let an instance say that the org has left, while the login host knows nothing of a new one."""
    if what == "token":
        return Failure(Trouble.LOST, TransportError("down"))
    return (404, b"<html></html>")


def limited(what: str, message: dict[str, Any]) -> Any:
    """Refuse the one channel, in a session that is good but for the first connect."""
    if what == "/meta/subscribe":
        return {"error": "403::Subscription limit exceeded for this topic"}
    if what == "/meta/connect" and message["id"] == "4":
        return {"error": "403::Unknown client"}
    return None


#: Trouble with the network, and sessions that are lost: a stream is to be back soon.
SOON: dict[str, Behaviour] = {
    "connections are refused": failure(Trouble.NOT_SENT),
    "connections are cut": failure(Trouble.LOST),
    "a proxy answers with a page": html(200),
    "HTTP 503": html(503),
    "the session is unknown": refusal("403::Unknown client", HANDSHAKE),
    "the session is unknown to subscriptions": lambda what, _: (
        {"error": "402::Unknown client"} if what in ("/meta/subscribe", "/meta/connect") else None
    ),
    "a connect fails, with advice to retry": refusal("400::x", {"reconnect": "retry"}),
    "the token endpoint is down": lambda what, _: (
        Failure(Trouble.NOT_SENT, TransportError("down"))
        if what == "token"
        else {"error": "401::Authentication invalid", "advice": NONE}
    ),
    "the org moves, the login host is down": moving,
    "requests are not answered": silent("instance"),
    "those to the login host are not either": silent("instance", "login"),
}
#: The org itself asks for patience, or a person must help.
LATER: dict[str, Behaviour] = {
    "the server is busy": refusal("503::Server is too busy", NONE, on="/meta/connect"),
    "the server is busy for handshakes as well": lambda what, _: (
        {"error": "503::Server is too busy"}
        if what in ("/meta/handshake", "/meta/connect")
        else None
    ),
    "a limit of a topic": limited,
    "HTTP 429": failure(Trouble.THROTTLED),
    "each new token is refused": html(401),
    "the log-in rate is exceeded": login("invalid_grant", "login rate exceeded"),
    "the credentials are refused": login("invalid_grant", "authentication failure"),
}


@pytest.mark.parametrize("trouble", SOON)
def test_a_stream_is_back_soon(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, SOON[trouble], 30)
    assert percentile(measured, 99) <= GOAL
    assert percentile(measured, 50) <= GOAL * 0.6


@pytest.mark.parametrize("trouble", LATER)
def test_it_takes_minutes_where_somebody_asks_for_them(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = times(monkeypatch, LATER[trouble], 30)
    assert GOAL < percentile(measured, 99) <= PATIENT_GOAL


def main(names: list[str]) -> None:
    """Print the figures of all rows, or of some."""
    troubles = {**SOON, **LATER}
    for trouble in names or troubles:
        with pytest.MonkeyPatch.context() as monkeypatch:
            measured = times(monkeypatch, troubles[trouble], 100)
        figures = [percentile(measured, percent) for percent in (50, 90, 99)]
        print(f"{trouble:45}", *(f"{one:7.1f}" for one in figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
