"""Requests beside a held connect: one at a time, and never beside a handshake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Final

from aiocometd.typing import JsonObject

from .. import _tasks as tasks
from .._http.failures import Failure
from ..exceptions import (
    AuthenticationError,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from .exchange import Exchange
from .mailbox import Signal, Turn
from .messages import refusal
from .salesforce import ReplayId, Verdict, judge_channel, judge_failure
from .session import Session
from .states import Sequel, State
from .tokens import token_refused

LOGGER = logging.getLogger(__name__)

#: Seconds for saying goodbye to the server.
GOODBYE_TIMEOUT: Final = 2.0
#: Seconds until one that was not answered is said again; twice as many each further time.
GOODBYE_PAUSE: Final = 1.0
#: Seconds for which the server is told that a session was left, until it answers.
GOODBYE_PATIENCE: Final = 60.0


class Requests:
    """Subscribes, unsubscribes, publishes, and says goodbye to sessions that were left.

    :param exchange: sends the messages
    :param session: the state of the Bayeux session
    :param signal: wakes when the session may have changed
    :param timeout: gives the seconds that a request waits for a lost session; None or 0: for ever
    :param changed: called after each request, since it may have changed the session
    """

    def __init__(
        self,
        exchange: Exchange,
        session: Session,
        signal: Signal,
        timeout: Callable[[], float | None],
        changed: Callable[[], None],
    ) -> None:
        self._exchange = exchange
        self._session = session
        self._signal = signal
        self._timeout = timeout
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        #: The turn to send a request; a handshake takes it too.
        self.turn = Turn()
        #: Whether requests are refused, since the client is being closed.
        self.closing = False
        #: The requests under way.
        self.tasks: set[asyncio.Task[Any]] = set()
        # Sessions that were left -> until when the server is told.
        self._left: dict[str, float] = {}
        self._goodbyes: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a request uses the session; one that waits for its renewal does not."""
        return bool(self.tasks) and self._session.established

    async def subscribe(self, channel: str, replay_id: ReplayId) -> JsonObject:
        """Subscribe to *channel*, from *replay_id*; None: as the extensions say.

        :return: the server's reply
        """
        return await self._finish(self._subscribe(channel, replay_id))

    async def unsubscribe(self, channel: str) -> JsonObject:
        """Unsubscribe from *channel*.

        :return: the server's reply
        """
        message = self._session.writer.unsubscribe
        return await self._finish(self._request(channel, lambda: message(channel)))

    async def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Publish *data* on *channel*.

        :return: the server's reply
        """
        message = self._session.writer.publish
        return await self._finish(self._request(None, lambda: message(channel, data)))

    # One request, once more if the session has to be renewed for it

    async def _subscribe(self, channel: str, replay_id: ReplayId) -> JsonObject:
        first: Exception | None = None
        while True:
            async with self._my_turn():
                result, sequel = await self._try_subscribe(channel, replay_id)
            if sequel is Sequel.DONE or first is not None:
                return _reply_of(result, first)
            first = _error_of(result)

    async def _try_subscribe(
        self, channel: str, replay_id: ReplayId
    ) -> tuple[JsonObject | Failure, Sequel]:
        session = self._session
        subscription, epoch = session.channels.add(channel, replay_id), session.epoch
        sequel = Sequel.AT_ONCE
        try:
            while sequel is Sequel.AT_ONCE:
                message = session.writer.subscribe(channel)
                result, _ = await self._exchange.send(message, subscription)
                sequel = session.request_done(subscription, result, epoch, self._loop.time())
                if sequel is Sequel.AT_ONCE and epoch != session.epoch:
                    return result, Sequel.RENEWED
        finally:
            if sequel is Sequel.AT_ONCE:
                session.channels.restore(subscription)
        return result, sequel

    async def _request(self, channel: str | None, message: Callable[[], JsonObject]) -> JsonObject:
        first: Exception | None = None
        while True:
            async with self._my_turn():
                epoch = self._session.epoch
                result, _ = await self._exchange.send(message())
                sequel = self._session.request_done(channel, result, epoch, self._loop.time())
            if sequel is Sequel.DONE or first is not None:
                return _reply_of(result, first)
            first = _error_of(result)

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        """Wait for a usable session and for the turn."""
        timeout = self._timeout() or None
        deadline = None if timeout is None else self._loop.time() + timeout
        while True:
            await self._wait_established(deadline)
            await self.turn.take()
            if self._session.established:
                break
            self.turn.release()
        try:
            yield
        finally:
            self.turn.release()
            self._changed()

    async def _wait_established(self, deadline: float | None) -> None:
        session = self._session
        while not session.established:
            if self.closing:
                raise self._closing_error()
            if session.state in (State.STOPPED, State.PARKED):
                raise self._unusable_error()
            left = None if deadline is None else deadline - self._loop.time()
            if left is not None and left <= 0:
                raise self._renewal_error()
            await self._signal.changed(left)

    def _unusable_error(self) -> Exception:
        last_error = self._session.recovery.last_error
        if isinstance(last_error, AuthenticationError):
            return copy(last_error)
        error = TransportError(
            f"There is no connection to the server {self._exchange.url}, call receive() to try again or learn that"
            f" it has ended for good: {last_error}"
        )
        error.__cause__ = last_error
        return error

    def _renewal_error(self) -> TransportTimeoutError:
        error = TransportTimeoutError(
            f"The request was not sent: the connection to the server {self._exchange.url} is lost and was not renewed"
            f" in time. It is still being tried, send the request again; the last attempt failed with:"
            f" {self._session.recovery.last_error}"
        )
        error.__cause__ = self._session.recovery.last_error
        return error

    def _closing_error(self) -> TransportInvalidOperation:
        return TransportInvalidOperation(
            f"The request to {self._exchange.url} was not sent, the client is being closed: open it again first"
        )

    # Tasks

    async def _finish(self, request: Coroutine[Any, Any, JsonObject]) -> JsonObject:
        """Run *request* in a task of its own, which goes on when the caller is cancelled.

        Whether the server has acted on a request that is given up half-way could not be known.
        """
        if self.closing:
            request.close()
            raise self._closing_error()
        task = self.run(request, "aiosfstream request")
        await asyncio.wait({task})
        if not task.cancelled():
            reply: JsonObject = task.result()
            return reply
        if self.closing:
            raise TransportInvalidOperation(
                f"The client was closed before {self._exchange.url} answered: open it and look whether that was done"
            )
        raise TransportError(
            f"The request to {self._exchange.url} failed: something that it waited for was cancelled, such as an"
            " extension or a shared connector; try again, unless the server must not do it twice"
        )

    def run(self, request: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a request in a task of its own.

        :param request: the request
        :param name: the task's name
        """
        task = tasks.start(request, name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        self._changed()
        if not task.cancelled() and task.exception() is not None:
            LOGGER.debug("request failed: %r", task.exception())

    # Goodbye

    async def say_goodbye(self, *client_ids: str) -> None:
        """Free the server's side of sessions that were left, as far as it can be reached.

        It keeps one of the org's client slots, and makes the server slow down the next session.

        :param client_ids: ids of other sessions than those that were left before
        """
        now = self._loop.time()
        for client_id in (*self._session.recovery.left_behind, *client_ids):
            self._left.setdefault(client_id, now + GOODBYE_PATIENCE)
        self._session.recovery.left_behind.clear()
        for client_id, until in list(self._left.items()):
            message = self._session.writer.disconnect(client_id)
            task = self.run(self._exchange.send(message, stale=True), "aiosfstream goodbye")
            try:
                # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
                await asyncio.wait({task}, timeout=GOODBYE_TIMEOUT)
            finally:
                task.cancel()
            answered = task.done() and not task.cancelled() and task.exception() is None
            if now >= until or (answered and isinstance(task.result()[0], dict)):
                del self._left[client_id]

    def say_goodbyes(self) -> None:
        """Say goodbye beside the connect, again and again until the server has answered."""
        if self._goodbyes is None or self._goodbyes.done():
            self._goodbyes = self.run(self._repeat_goodbyes(), "aiosfstream goodbyes")

    async def _repeat_goodbyes(self) -> None:
        pause = GOODBYE_PAUSE
        # Without a connection the next handshake does it.
        while self.owes_goodbyes and self._session.state is State.CONNECTED:
            async with self.turn:
                await self.say_goodbye()
            if self.owes_goodbyes:
                await asyncio.sleep(pause)
                pause *= 2

    @property
    def owes_goodbyes(self) -> bool:
        """Whether the server still keeps a session that was left, as far as is known."""
        return bool(self._left or self._session.recovery.left_behind)


def _error_of(result: JsonObject | Failure) -> Exception:
    return result.error if isinstance(result, Failure) else refusal(result)


def _reply_of(result: JsonObject | Failure, first: Exception | None) -> JsonObject:
    """Give the reply, or raise why there is none.

    :param result: the reply or failure
    :param first: why it was sent a second time, if it was
    """
    verdict = judge_failure(result) if isinstance(result, Failure) else judge_channel(result)
    if first is not None and verdict is Verdict.LOG_IN:
        raise token_refused(_error_of(result), first)
    if isinstance(result, Failure):
        raise result.error
    return result
