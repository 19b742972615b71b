"""An exchange with a session on the table, against an endpoint that answers as a test says."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiocometd.extensions import AuthExtension, Extension
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiosfstream._cometd.exchange import Exchange, Settings
from aiosfstream._cometd.mailbox import Mailbox, Signal
from aiosfstream._cometd.requests import Requests
from tests.table import Message, Table

#: What a test answers a message with: messages, a page, or something that gives one of these.
Behaviour = Callable[[Message], Any]


class Auth(AuthExtension):
    """Puts a token into requests, and notes when it was asked."""

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.error: Exception | None = None

    async def outgoing(self, payload: list[Message], headers: dict[str, str]) -> None:
        """Put the token in."""
        self.order.append("auth out")
        if self.error is not None:
            raise self.error
        headers["Authorization"] = "Bearer token"

    async def incoming(self, payload: list[Message], headers: Any = None) -> None:
        """Note it."""
        self.order.append("auth in")

    async def authenticate(self) -> None:
        """Nothing to do."""


class Storage(Extension):
    """Stamps subscriptions as a storage does."""

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.out: Exception | None = None
        self.back: Exception | None = None
        self.replay: Message | None = None

    async def outgoing(self, payload: list[Message], headers: dict[str, str]) -> None:
        """Stamp, or fail."""
        self.order.append("storage out")
        if self.out is not None:
            raise self.out
        if self.replay is not None:
            payload[0]["ext"] = {"replay": dict(self.replay)}

    async def incoming(self, payload: list[Message], headers: Any = None) -> None:
        """Note it, or fail."""
        self.order.append("storage in")
        if self.back is not None:
            raise self.back


class Bench:
    """A session that is open, and what sends for it.

    :param url: the endpoint
    :param http_session: what requests are sent with
    :param options: for the table
    """

    def __init__(self, url: str, http_session: aiohttp.ClientSession, **options: Any) -> None:
        self.table = Table(**options).open()
        self.session = self.table.session
        self.order: list[str] = []
        self.auth, self.storage = Auth(self.order), Storage(self.order)
        self.mailbox = Mailbox(100)
        self.signal = Signal()
        self.changes = 0
        self.settings = Settings(
            host=self.table,
            auth=self.auth,
            extensions=lambda: [self.storage],
            before_poll=lambda: None,
            report=self.table.events.append,
            request_timeout=2.0,
            max_response_size=1_000_000,
            ssl=None,
            json_dumps=json.dumps,
            json_loads=json.loads,
        )
        self.exchange = Exchange(url, self.session, self.mailbox, http_session, self.settings)
        self.requests = Requests(
            self.exchange,
            self.session,
            self.signal,
            lambda: self.table.connection_timeout,
            self._changed,
        )
        #: What the endpoint has received.
        self.received: list[Message] = []
        self.headers: list[Any] = []
        self.behaviour: Behaviour = lambda message: [{"successful": True}]

    def _changed(self) -> None:
        self.changes += 1

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        [message] = await request.json()
        self.received.append(message)
        self.headers.append(request.headers)
        answer = self.behaviour(message)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, web.StreamResponse):
            return answer
        answer = [dict(one) for one in answer]
        for one in answer:
            if "successful" in one:
                one.setdefault("channel", message["channel"])
                one.setdefault("id", message["id"])
        return web.json_response(answer)

    def taken(self) -> list[Any]:
        """Take what is in the mailbox, and give the replay ids."""
        ids = []
        while (message := self.mailbox.take()) is not None:
            ids.append(message["data"]["event"]["replayId"])
        return ids

    def channels_received(self) -> list[str]:
        """Give the channels of the messages received."""
        return [message["channel"] for message in self.received]

    async def renewed(self) -> None:
        """Renew the session as the background task would, and say so."""
        self.table.handshake()
        self.table.resubscribe_all()
        self.table.connect()
        self.signal.wake()
        await asyncio.sleep(0)


@asynccontextmanager
async def bench(**options: Any) -> AsyncIterator[Bench]:
    """Make a bench with an endpoint of its own."""
    app, made = web.Application(), list[Bench]()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await made[0].handle(request)

    app.router.add_post("/cometd", handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as http_session:
        made.append(Bench(str(server.make_url("/cometd")), http_session, **options))
        yield made[0]
        tasks = list(made[0].requests.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
