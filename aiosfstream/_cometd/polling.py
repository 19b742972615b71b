"""The one background task: it asks the session for the next step, takes it and reports what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Final

from aiocometd.constants import ConnectionType
from aiocometd.typing import JsonObject

from .. import _tasks as tasks
from .._frames import without_frames
from .._http.failures import Failure
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import AuthenticationError, ReplayError, TransportError
from .exchange import Exchange, Settings
from .mailbox import Mailbox, Signal
from .requests import Requests
from .session import Session
from .states import Action, State

LOGGER = logging.getLogger(__name__)

#: Seconds that the first held connect waits for a subscription that is being made.
GIVE_WAY_TIMEOUT: Final = 1.0


class Polling:
    """Takes the steps of a session. It decides nothing itself.

    :param session: the state of the Bayeux session
    :param exchange: sends messages
    :param mailbox: where events and errors go
    :param settings: the client's side
    :param signal: wakes when the session may have changed
    """

    def __init__(
        self,
        session: Session,
        exchange: Exchange,
        mailbox: Mailbox,
        settings: Settings,
        signal: Signal,
    ) -> None:
        self._session = session
        self._exchange = exchange
        self._mailbox = mailbox
        self._settings = settings
        self._signal = signal
        self._loop = asyncio.get_running_loop()
        self.requests = Requests(
            exchange,
            session,
            signal,
            lambda: settings.host.connection_timeout,
            self._request_done,
        )
        #: Whether it is to end.
        self.closing = False
        #: The background task, once it was started.
        self.task: asyncio.Task[None] | None = None
        #: What is offered to the server in handshakes.
        self.connection_types: Sequence[ConnectionType] = (ConnectionType.LONG_POLLING,)
        #: The reply to the last handshake, while the client is being opened.
        self.last_handshake: JsonObject | None = None
        # What starts the task, from the first connect on until it is started.
        self._pending_start: asyncio.Handle | None = None
        self._context = Context()
        # Whether the task may be cancelled if the session of its connect is lost.
        self._interruptible = False
        self._interrupted = False
        self._suspended = False

    # The task

    def start(self) -> None:
        """Start the task soon, in the context of the caller."""
        self._context = copy_context()
        self._pending_start = self._loop.call_soon(self._give_way, context=self._context)

    def restart(self) -> None:
        """Start the task again, if somebody else has ended it."""
        if self.task is not None and self.task.done() and not self.closing:
            self._start_task()

    def end(self) -> None:
        """Have the task end."""
        self.closing = self.requests.closing = True
        self._cancel_start()

    def _give_way(self) -> None:
        """Let a subscription that is made right after opening use the connection that is there.

        Beside a held connect it would need another one: a TLS handshake, and a socket for each
        client (12 KiB).
        """
        if self.requests.under_way:
            self._pending_start = self._loop.call_later(
                GIVE_WAY_TIMEOUT, self._start_task, context=self._context
            )
        else:
            self._start_task()

    def _start_task(self) -> None:
        self._cancel_start()
        self.task = tasks.start(self._run(), "aiosfstream connection")

    def _cancel_start(self) -> None:
        if self._pending_start is not None:
            self._pending_start.cancel()
            self._pending_start = None

    async def _run(self) -> None:
        """Take step after step until the session has ended."""
        try:
            while self._session.state is not State.STOPPED and not self.closing:
                await self.step()
        except asyncio.CancelledError:
            if self.closing:
                raise
            self._session.recovery.park(self._cancelled_error("the task of the connection"))
        except Exception as bug:
            LOGGER.exception(
                "The connection to %s ends because of an unexpected error; open the client again, and report it",
                self._exchange.url,
            )
            error = TransportError(
                f"The connection to {self._exchange.url} has ended because of an unexpected error: {bug!r}; open the"
                " client again, and report it"
            )
            # The frames that it has passed may hold the token.
            error.__cause__ = without_frames(bug)
            self._session.recovery.stop(error)
        self._notify()

    async def step(self) -> None:
        """Take the next step, and report what came of it."""
        action, delay = self._session.next_step(self._loop.time())
        try:
            await self._STEPS[action](self, delay)
        except asyncio.CancelledError as error:
            if tasks.is_cancelled() or self.closing:
                raise
            disturbance = self._cancelled_error("something that the connection waited for")
            disturbance.__cause__ = error
            self._session.disturbed(disturbance, self._loop.time())
        # Not before the session knows what has become of a connect that they have waited for.
        self._exchange.release()
        self._notify()

    def _cancelled_error(self, what: str) -> TransportError:
        return TransportError(
            f"The connection to {self._exchange.url} is lost, because {what} was cancelled, but not by closing the client;"
            " look for what cancels tasks or closes a shared connector"
        )

    def _notify(self) -> None:
        """Give the application what the last step brought, and wake whoever waits for a change."""
        session = self._session
        errors, session.recovery.errors = session.recovery.errors, []
        for error in errors:
            self._mailbox.fail(error)
        if session.state is not State.CONNECTED:
            self._mailbox.wake()
        self._signal.wake()

    def _request_done(self) -> None:
        """End a held connect whose session is lost, and start to poll if that was to wait."""
        if not self._session.established:
            self._interrupt()
        self._notify()
        if self._pending_start is not None and not self.requests.under_way:
            self._context.run(self._start_task)

    # The steps

    async def _poll(self, delay: float) -> None:
        """Make a connect, unless :meth:`_interrupt` ends it because the session is lost."""
        session = self._session
        self._interruptible = True
        try:
            await _pause(delay)
            await self._wait_for_room()
            await self._store_markers()
            if session.may_connect:
                started = self._loop.time()
                message, epoch = session.connect_message(started), session.epoch
                hold = session.hold_of(message)
                result, events = await self._exchange.send(message, hold=hold)
                now = self._loop.time()
                session.connect_done(result, epoch, events, now - started, now, hold=hold)
        except asyncio.CancelledError:
            if not self._interrupted or self.task is None:
                raise
            if not tasks.take_back(self.task) or self.closing:
                raise
        finally:
            self._interruptible = self._interrupted = False
        if session.state is State.CONNECTED and self.requests.owes_goodbyes:
            self.requests.say_goodbyes()

    def _interrupt(self) -> None:
        """End a held connect of a session that is given up."""
        if self._interruptible and not self._interrupted and self.task is not None:
            self._interrupted = True
            self.task.cancel()

    async def _wait_for_room(self) -> None:
        if self._mailbox.full:
            self._suspend(True)
            await self._mailbox.room()
        self._suspend(False)

    def _suspend(self, suspended: bool) -> None:
        if suspended is not self._suspended:
            self._suspended = suspended
            kind = ConnectionEventKind
            what = kind.FETCHING_SUSPENDED if suspended else kind.FETCHING_RESUMED
            self._settings.report(ConnectionEvent(what))

    async def _store_markers(self) -> None:
        """Have markers stored that wait to be stored in a group."""
        try:
            storing = self._settings.before_poll()
            if storing is not None:
                await storing
        except ReplayError as error:
            # One is enough: each poll would add another until the application receives it.
            if not self._mailbox.has_errors:
                self._mailbox.fail(error)

    async def _handshake(self, delay: float) -> None:
        session = self._session
        await _pause(delay)
        async with self.requests.turn:
            if self.requests.owes_goodbyes:
                await self.requests.say_goodbye()
            if session.recovery.clear_cookies and self._exchange.http_session is not None:
                self._exchange.http_session.cookie_jar.clear()
            offered = [connection_type.value for connection_type in self.connection_types]
            result, _ = await self._exchange.send(session.handshake_message(offered))
            session.handshake_done(result, self._loop.time())
        if isinstance(result, dict) and session.recovery.opening:
            self.last_handshake = result
            self._check_replay_support(result)

    def _check_replay_support(self, reply: JsonObject) -> None:
        ext = reply.get("ext")
        if reply["successful"] and not (isinstance(ext, dict) and ext.get("replay")):
            LOGGER.warning(
                "The server %s does not announce the replay extension: what is published while the"
                " connection is lost may be missed; check the URL and the API version",
                self._exchange.url,
            )

    async def _resubscribe(self, delay: float) -> None:
        session = self._session
        await _pause(delay)
        await self._wait_for_room()
        subscription = session.next_to_resubscribe(self._loop.time())
        if subscription is None:
            return
        message = session.writer.subscribe(subscription.channel)
        result: JsonObject | Failure
        try:
            async with self.requests.turn:
                result, _ = await self._exchange.send(message, subscription)
        except ReplayError as error:
            session.recovery.storage_failed(error, self._loop.time())
        else:
            session.resubscribe_done(subscription, result, self._loop.time())

    async def _log_in(self, delay: float) -> None:
        await _pause(delay)
        try:
            self._exchange.url = await self._settings.host.log_in(self._exchange.authorization)
        except AuthenticationError as error:
            self._session.recovery.authentication_failed(error, self._loop.time())
        else:
            self._session.recovery.authenticated(self._loop.time())

    async def _park(self, delay: float) -> None:
        await self._signal.changed()

    _STEPS: Final[dict[Action, Callable[[Polling, float], Awaitable[None]]]] = {
        Action.AUTHENTICATE: _log_in,
        Action.HANDSHAKE: _handshake,
        Action.SUBSCRIBE: _resubscribe,
        Action.CONNECT: _poll,
        Action.PARK: _park,
    }


async def _pause(delay: float) -> None:
    # Without a delay, not even for a turn of the event loop: the server waits to be asked.
    if delay:
        await asyncio.sleep(delay)
