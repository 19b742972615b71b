"""The long-polling transport: aiocometd's Transport interface on aiohttp.

One background task asks the session for the next step, takes it and reports what came of it. It
decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

import aiohttp
from aiocometd.constants import ConnectionType, TransportState
from aiocometd.transports.abc import Transport
from aiocometd.typing import JsonObject

from .._http.failures import Failure
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import (
    AuthenticationError,
    ReplayError,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from . import tasks
from .exchange import Exchange, Settings
from .mailbox import Mailbox, Signal
from .requests import GOODBYE_TIMEOUT, Requests
from .salesforce import ReplayId
from .session import Session
from .states import Action, State

LOGGER = logging.getLogger(__name__)

#: Where the subscription that is being made starts, as given to ``Client.subscribe(replay=...)``:
#: aiocometd's ``subscribe(channel)`` has no room for an argument.
REPLAY: ContextVar[ReplayId] = ContextVar("aiosfstream_replay", default=None)

#: Seconds that tasks have to end. A log-in that has rotated a refresh token is finished first.
END_TIMEOUT: Final = 3.5
#: Seconds that the first held connect waits for a subscription that is being made.
GIVE_WAY_TIMEOUT: Final = 1.0


class LongPollingTransport(Transport):
    """Moves messages between a session, a server and a mailbox.

    It must be made in the event loop that it is used in.

    :param url: the CometD endpoint
    :param session: the state of the Bayeux session
    :param mailbox: where events go
    :param http_session: what requests are sent with; owned by whoever made it
    :param settings: the client's side
    """

    def __init__(
        self,
        url: str,
        session: Session,
        mailbox: Mailbox,
        http_session: aiohttp.ClientSession,
        settings: Settings,
    ) -> None:
        self._session = session
        self._mailbox = mailbox
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._signal = Signal()
        self._exchange = Exchange(url, session, mailbox, http_session, settings)
        self._requests = Requests(
            self._exchange,
            session,
            self._signal,
            lambda: settings.host.connection_timeout,
            self._request_done,
        )
        self._task: asyncio.Task[None] | None = None
        # What starts that task, from the first connect on until it is started.
        self._starter: asyncio.Handle | None = None
        self._context = Context()
        self._closing = False
        self._closed = False
        # Whether the background task may be cancelled because its connect is of no use any more.
        self._interruptible = False
        self._interrupted = False
        self._suspended = False
        self._connection_types: Sequence[ConnectionType] = (ConnectionType.LONG_POLLING,)
        self._last_handshake: JsonObject | None = None
        self._timed_out_at: float | None = None
        self._steps: Final[dict[Action, Callable[[float], Awaitable[None]]]] = {
            Action.AUTHENTICATE: self._log_in,
            Action.HANDSHAKE: self._handshake,
            Action.SUBSCRIBE: self._resubscribe,
            Action.CONNECT: self._poll,
            Action.PARK: self._park,
        }

    # What aiocometd's client asks for

    @property
    def connection_type(self) -> ConnectionType:
        """Long polling: Salesforce speaks nothing else."""
        return ConnectionType.LONG_POLLING

    @property
    def endpoint(self) -> str:
        """The URL that messages are sent to."""
        return self._exchange.url

    @property
    def client_id(self) -> str | None:
        """The id that the server gave to the present session."""
        return self._session.recovery.client_id

    @property
    def subscriptions(self) -> set[str]:
        """The channels subscribed, or wanted while the session is being renewed."""
        return set() if self._closed else set(self._session.channels.subscriptions)

    @property
    def last_connect_result(self) -> JsonObject | None:
        """The last reply to a connect."""
        return self._session.last_connect

    @property
    def reconnect_advice(self) -> JsonObject:
        """The server's last advice."""
        return self._session.advice

    @property
    def http_session(self) -> aiohttp.ClientSession | None:
        """The HTTP session."""
        return self._exchange.http_session

    @http_session.setter
    def http_session(self, http_session: aiohttp.ClientSession | None) -> None:
        self._exchange.http_session = http_session

    @property
    def state(self) -> TransportState:
        """The state of the connection."""
        if self._closed:
            return TransportState.DISCONNECTED
        if self._closing:
            return TransportState.DISCONNECTING
        if self._session.state is State.STOPPED:
            return TransportState.SERVER_DISCONNECTED
        return TransportState.CONNECTED if self.connected else TransportState.CONNECTING

    @property
    def connected(self) -> bool:
        """Whether all is well: the session stands, and nothing is being closed."""
        session = self._session
        return (
            session.state is State.CONNECTED
            and session.recovery.lost_since is None
            and not self._closing
        )

    async def wait_for_state(self, state: TransportState) -> None:
        """Wait until the connection is in *state*."""
        while self.state is not state:
            await self._signal.changed()

    # What this package's client asks for

    @property
    def stop_error(self) -> Exception | None:
        """Why the session has ended for good, if it has."""
        return self._session.recovery.stop_error

    @property
    def is_alive(self) -> bool:
        """Whether the event loop that it was made in still runs it."""
        return not self._loop.is_closed() and self._loop is asyncio.get_running_loop()

    def loss_deadline(self, timeout: float | None) -> float | None:
        """Say when ``receive()`` should report the connection as lost, by the loop's clock.

        :param timeout: seconds that the connection may be lost; None or 0: for ever
        :return: the time, or None if it is not lost or nobody wants to know
        """
        lost_since = self._session.recovery.lost_since
        if not timeout or lost_since is None or self._session.waits_for_credentials:
            return None
        counted_from = lost_since
        if self._timed_out_at is not None and self._timed_out_at > lost_since:
            counted_from = self._timed_out_at
        return counted_from + timeout

    def loss_error(self) -> TransportTimeoutError:
        """Make the error that reports the loss; the next one is due a whole time-out later."""
        self._timed_out_at = now = self._loop.time()
        session = self._session
        seconds = 0.0 if session.recovery.lost_since is None else now - session.recovery.lost_since
        if session.deferred:
            what = f"Not subscribed to {', '.join(sorted(session.deferred)):.200} at {self.endpoint} for"
        else:
            what = f"Lost connection with the server {self.endpoint} for"
        error = TransportTimeoutError(
            f"{what} {seconds:.1f} seconds; still trying, the last attempt failed with: {session.recovery.last_error}"
        )
        error.__cause__ = session.recovery.last_error
        return error

    def try_again(self) -> None:
        """Try to recover once more, after the application has been told that it is needed."""
        if self._session.state is not State.PARKED:
            return
        self._session.recovery.unpark()
        self._signal.wake()
        if self._task is not None and self._task.done() and not self._closing:
            self._start_polling()

    async def handshake(self, connection_types: list[ConnectionType]) -> JsonObject:
        """Get a session from the server.

        :param connection_types: what to offer
        :return: the server's reply
        :raises ServerError: if it is refused
        :raises TransportError: if the request fails
        :raises AuthenticationError: if the token is refused, and a new one as well
        """
        self._connection_types = connection_types
        await self._advance(State.CONNECTING, State.CONNECTED)
        reply, self._last_handshake = self._last_handshake, None
        return reply or {}

    async def connect(self) -> JsonObject:
        """Make the first connect, and keep the connection from then on.

        :return: the server's reply
        :raises ServerError: if it is refused
        :raises TransportError: if the request fails
        :raises TransportInvalidOperation: if there was no handshake, or it is connected already
        :raises AuthenticationError: if the token is refused, and a new one as well
        """
        if not self._session.recovery.opening or self._session.recovery.client_id is None:
            raise TransportInvalidOperation(
                f"Connecting to {self.endpoint} takes a handshake() first, and is done once: use another transport"
            )
        await self._advance(State.CONNECTED)
        self._session.recovery.opening = False
        self._context = copy_context()
        self._starter = self._loop.call_soon(self._give_way, context=self._context)
        return self._session.last_connect or {}

    async def _advance(self, *goal: State) -> None:
        while self._session.state not in goal:
            if self._session.recovery.stop_error is not None:
                raise self._session.recovery.stop_error
            await self._step()

    async def subscribe(self, channel: str) -> JsonObject:
        """Subscribe to *channel*, from where the ContextVar :data:`REPLAY` says.

        Cancelling it does not stop it: it is finished in the background.

        :return: the server's reply
        :raises TransportError: if the request fails
        :raises ReplayError: if the marker storage fails
        """
        return await self._requests.subscribe(channel, REPLAY.get())

    async def unsubscribe(self, channel: str) -> JsonObject:
        """Unsubscribe from *channel*. Cancelling it does not stop it.

        :return: the server's reply
        :raises TransportError: if the request fails
        """
        return await self._requests.unsubscribe(channel)

    async def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Publish *data* on *channel*.

        :return: the server's reply
        :raises TransportError: if the request fails
        """
        return await self._requests.publish(channel, data)

    # The background task

    def _give_way(self) -> None:
        """Let a subscription that is made right after opening use the connection that is there.

        Beside a held connect it would need another one: a TLS handshake, and a socket for each
        client (12 KiB).
        """
        if self._requests.under_way:
            self._starter = self._loop.call_later(
                GIVE_WAY_TIMEOUT, self._start_polling, context=self._context
            )
        else:
            self._start_polling()

    def _start_polling(self) -> None:
        self._forget_starter()
        self._task = tasks.start(self._run(), "aiosfstream connection")

    def _forget_starter(self) -> None:
        if self._starter is not None:
            self._starter.cancel()
            self._starter = None

    async def _run(self) -> None:
        """Take step after step until the session has ended."""
        try:
            while self._session.state is not State.STOPPED and not self._closing:
                await self._step()
        except asyncio.CancelledError:
            if self._closing:
                raise
            self._session.recovery.park(self._cancelled_error("the task of the connection"))
        except Exception as bug:
            LOGGER.exception(
                "The connection to %s ends because of an unexpected error; open the client again, and report it",
                self.endpoint,
            )
            error = TransportError(
                f"The connection to {self.endpoint} has ended because of an unexpected error: {bug!r}; open the"
                " client again, and report it"
            )
            error.__cause__ = bug
            self._session.recovery.stop(error)
        self._pass_on()

    async def _step(self) -> None:
        action, delay = self._session.next_step(self._loop.time())
        try:
            await self._steps[action](delay)
        except asyncio.CancelledError as error:
            if tasks.is_cancelled() or self._closing:
                raise
            disturbance = self._cancelled_error("something that the connection waited for")
            disturbance.__cause__ = error
            self._session.disturbed(disturbance, self._loop.time())
        self._pass_on()

    def _cancelled_error(self, what: str) -> TransportError:
        return TransportError(
            f"The connection to {self.endpoint} is lost, because {what} was cancelled, but not by closing the client;"
            " look for what cancels tasks or closes a shared connector"
        )

    def _pass_on(self) -> None:
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
        self._pass_on()
        if self._starter is not None and not self._requests.under_way:
            self._context.run(self._start_polling)

    # The steps

    async def _poll(self, delay: float) -> None:
        """Make a connect, unless :meth:`_interrupt` ends it because the session is lost."""
        self._interruptible = True
        try:
            await _pause(delay)
            await self._wait_for_room()
            await self._store_markers()
            if self._session.may_connect:
                await self._connect()
        except asyncio.CancelledError:
            if not self._interrupted or self._task is None:
                raise
            tasks.take_back(self._task)
            if tasks.is_cancelled() or self._closing:
                raise
        finally:
            self._interruptible = self._interrupted = False
            self._exchange.release()

    async def _connect(self) -> None:
        session, started = self._session, self._loop.time()
        message, epoch = session.connect_message(started), session.epoch
        hold = session.hold_of(message)
        result, events = await self._exchange.send(message, hold=hold)
        now = self._loop.time()
        session.connect_done(result, epoch, events, now - started, now, hold=hold)
        if session.state is State.CONNECTED and self._requests.owes_goodbyes:
            _ = self._requests.run(self._say_goodbyes(), "aiosfstream goodbyes")

    async def _say_goodbyes(self) -> None:
        async with self._requests.turn:
            await self._requests.say_goodbye()

    def _interrupt(self) -> None:
        """End a held connect of a session that is given up."""
        if self._interruptible and not self._interrupted and self._task is not None:
            self._interrupted = True
            self._task.cancel()

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
        if self._settings.before_poll is None:
            return
        try:
            await self._settings.before_poll()
        except ReplayError as error:
            # One of them is enough: they are told when the application has time for it.
            if not self._mailbox.has_errors:
                self._mailbox.fail(error)

    async def _handshake(self, delay: float) -> None:
        session = self._session
        await _pause(delay)
        async with self._requests.turn:
            if self._requests.owes_goodbyes:
                await self._requests.say_goodbye()
            if session.recovery.clear_cookies and self.http_session is not None:
                self.http_session.cookie_jar.clear()
            offered = [connection_type.value for connection_type in self._connection_types]
            result, _ = await self._exchange.send(session.handshake_message(offered))
            session.handshake_done(result, self._loop.time())
        if isinstance(result, dict) and session.recovery.opening:
            self._last_handshake = result
            self._check_replay_support(result)

    def _check_replay_support(self, reply: JsonObject) -> None:
        ext = reply.get("ext")
        if reply["successful"] and not (isinstance(ext, dict) and ext.get("replay")):
            LOGGER.warning(
                "The server %s does not announce the replay extension: what is published while the"
                " connection is lost may be missed; check the URL and the API version",
                self.endpoint,
            )

    async def _resubscribe(self, delay: float) -> None:
        session = self._session
        await _pause(delay)
        await self._wait_for_room()
        subscription = session.next_to_resubscribe(self._loop.time())
        if subscription is None:
            return
        message = session.subscribe_message(subscription)
        result: JsonObject | Failure
        try:
            async with self._requests.turn:
                result, _ = await self._exchange.send(message, subscription)
        except ReplayError as error:
            session.storage_failed(error, self._loop.time())
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

    # The end

    async def disconnect(self) -> None:
        """Say goodbye to the server and end all tasks; takes a few seconds at the most.

        What is in the mailbox stays there.
        """
        if self._closing:
            await self.wait_for_state(TransportState.DISCONNECTED)
            return
        self._begin_to_close()
        try:
            await self.end_tasks()
            client_id = self._session.recovery.client_id
            present = [] if client_id is None else [client_id]
            if present or self._requests.owes_goodbyes:
                goodbye = tasks.start(self._requests.say_goodbye(*present), "aiosfstream goodbye")
                await asyncio.wait({goodbye}, timeout=GOODBYE_TIMEOUT)
                goodbye.cancel()
        finally:
            self._closed = True
            self._signal.wake()

    async def close(self) -> None:
        """Close the HTTP session."""
        if self.http_session is not None:
            await self.http_session.close()

    def abort(self) -> None:
        """End everything at once, without a goodbye."""
        self._begin_to_close()
        self._closed = True
        self._signal.wake()

    def _begin_to_close(self) -> None:
        self._closing = self._requests.closing = True
        self._forget_starter()
        self._mailbox.close()
        self._signal.wake()
        for task in self._tasks():
            task.cancel()

    async def end_tasks(self) -> None:
        """Wait, for a short time, until the tasks that were cancelled have ended."""
        running = self._tasks()
        if running:
            await asyncio.wait(running, timeout=END_TIMEOUT)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        own = asyncio.current_task()
        all_tasks = [*self._requests.tasks, *([self._task] if self._task is not None else [])]
        return [task for task in all_tasks if task is not own and not task.done()]


async def _pause(delay: float) -> None:
    # Without a delay, not even for a turn of the event loop: the server waits to be asked.
    if delay:
        await asyncio.sleep(delay)
