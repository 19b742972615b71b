"""The long-polling transport: aiocometd's Transport interface, and what a client asks for beyond it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiocometd.constants import ConnectionType, TransportState
from aiocometd.transports.abc import Transport
from aiocometd.typing import JsonObject

from .. import _tasks as tasks
from ..exceptions import TransportInvalidOperation, TransportTimeoutError
from .exchange import Exchange, Settings
from .mailbox import Mailbox, Signal
from .polling import Polling
from .requests import GOODBYE_TIMEOUT
from .salesforce import ReplayId
from .session import Session
from .states import State

#: Where the subscription that is being made starts, as given to ``Client.subscribe(replay=...)``:
#: aiocometd's ``subscribe(channel)`` has no room for an argument.
REPLAY: ContextVar[ReplayId] = ContextVar("aiosfstream_replay", default=None)

#: Seconds more before a loss is reported if tokens are refused, since the refusal says more than a time-out.
REFUSAL_GRACE: Final = 2.0
#: Seconds that tasks have to end. A log-in that has rotated a refresh token is finished first.
END_TIMEOUT: Final = 3.5


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
        self._loop = asyncio.get_running_loop()
        self._signal = Signal()
        self._exchange = Exchange(url, session, mailbox, http_session, settings)
        self._polling = Polling(session, self._exchange, mailbox, settings, self._signal)
        self._requests = self._polling.requests
        self._closed = False
        self._timed_out_at: float | None = None

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
        if self._polling.closing:
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
            and not self._polling.closing
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
        if self._session.recovery.is_refused:
            # The attempt under way is the last one: if that token is refused as well, that is told.
            counted_from += REFUSAL_GRACE
        if self._session.recovery.refusals.first is not None:
            # What the application should hear of is the refusal, and that comes first.
            counted_from += timeout / 2
        return counted_from + timeout

    def loss_error(self) -> TransportTimeoutError:
        """Make the error that reports the loss; the next one is due a whole time-out later."""
        self._timed_out_at = now = self._loop.time()
        session = self._session
        seconds = 0.0 if session.recovery.lost_since is None else now - session.recovery.lost_since
        if session.deferred:
            channels = ", ".join(sorted(session.deferred))
            lost = f"Channels of the server {self.endpoint} are refused since {seconds:.1f} seconds ({channels:.200})"
        else:
            lost = f"Lost connection with the server {self.endpoint} {seconds:.1f} seconds ago"
        error = TransportTimeoutError(
            f"{lost}; still trying to reconnect, the last attempt failed with: {session.recovery.last_error}"
        )
        error.__cause__ = session.recovery.last_error
        return error

    def try_again(self) -> None:
        """Try to recover once more, after the application has been told that it is needed."""
        if self._session.state is not State.PARKED:
            return
        self._session.recovery.unpark()
        self._signal.wake()
        self._polling.restart()

    async def handshake(self, connection_types: list[ConnectionType]) -> JsonObject:
        """Get a session from the server.

        :param connection_types: what to offer
        :return: the server's reply
        :raises ServerError: if it is refused
        :raises TransportError: if the request fails
        :raises AuthenticationError: if the token is refused, and a new one as well
        """
        self._polling.connection_types = connection_types
        await self._advance(State.CONNECTING, State.CONNECTED)
        return self._polling.last_handshake or {}

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
        self._polling.last_handshake = None
        self._polling.start()
        return self._session.last_connect or {}

    async def _advance(self, *goal: State) -> None:
        while self._session.state not in goal:
            if self._session.recovery.stop_error is not None:
                raise self._session.recovery.stop_error
            await self._polling.step()

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

    # The end

    async def disconnect(self) -> None:
        """Say goodbye to the server and end all tasks; takes a few seconds at the most.

        What is in the mailbox stays there.
        """
        if self._polling.closing:
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
        self._polling.end()
        self._exchange.close()
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
        polling = self._polling.task
        all_tasks = [*self._requests.tasks, *([] if polling is None else [polling])]
        return [task for task in all_tasks if task is not own and not task.done()]
