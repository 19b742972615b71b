"""The long-polling transport: aiocometd's Transport interface on aiohttp.

One background task asks the session for the next step, takes it and reports what came of it. It
decides nothing itself. Subscribe, unsubscribe and publish run beside a held connect, one at a time,
and never beside a handshake.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from copy import copy
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import aiohttp
from aiocometd.constants import ConnectionType, MetaChannel, TransportState
from aiocometd.extensions import AuthExtension, Extension
from aiocometd.transports.abc import Transport
from aiocometd.typing import JsonObject, SSLValidationMode

from .._http import post as _http
from .._http.deadline import limits_for
from .._http.post import Failure, Trouble
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ReplayError,
    TransportConnectionClosed,
    TransportError,
    TransportInvalidOperation,
    TransportTimeoutError,
)
from .mailbox import Mailbox, Signal, Turn
from .retry import MAX_HOLD
from .session import Action, ReplayId, Session, State, Subscription

LOGGER = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

#: Where the subscription that is being made starts, as given to ``Client.subscribe(replay=...)``:
#: aiocometd's ``subscribe(channel)`` has no room for an argument.
REPLAY: ContextVar[ReplayId] = ContextVar("aiosfstream_replay", default=None)

#: Seconds for saying goodbye to the server, and for tasks to end.
GOODBYE_TIMEOUT: Final = 2.0
#: Seconds that the first held connect waits for a subscription that is being made.
GIVE_WAY_TIMEOUT: Final = 1.0

#: Messages that do no harm when the server gets them twice. A connect takes events, and publishing is no such.
_REPEATABLE: Final = (
    MetaChannel.HANDSHAKE,
    MetaChannel.SUBSCRIBE,
    MetaChannel.UNSUBSCRIBE,
    MetaChannel.DISCONNECT,
)

_NO_CONTEXT: Final = Context()
_HEADERS: Final = {"Content-Type": "application/json;charset=UTF-8", "Accept": "application/json"}
#: Before Python 3.12 a member of an enum is found by a function in Python.
_CONNECTED: Final = State.CONNECTED


class Owner(Protocol):
    """Whose transport it is.

    :ivar connection_timeout: seconds that a request waits for a renewal; None or 0: for ever
    """

    connection_timeout: float

    async def _log_in_again(self, refused: str | None) -> str:
        """Get a new token, unless another one than the header value *refused* is in use already.

        :return: the URL to go on with
        """


class Settings(NamedTuple):
    """What a transport needs to know of its client.

    :ivar owner: the client, for what may change
    :ivar auth: puts the token into requests
    :ivar extensions: run on every message, in this order, before *auth*
    :ivar before_poll: awaited before each connect, or None
    :ivar report: called with every event that an observer should know of
    :ivar request_timeout: seconds for each phase of a request
    :ivar ssl: how TLS is verified, as aiohttp takes it
    :ivar json_dumps: serialises messages
    :ivar json_loads: parses messages
    """

    owner: Owner
    auth: AuthExtension
    extensions: list[Extension]
    before_poll: Callable[[], Awaitable[None]] | None
    report: Callable[[ConnectionEvent], None]
    request_timeout: float
    ssl: SSLValidationMode | None
    json_dumps: _http.Dumper
    json_loads: _http.Loader


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
        self._url = url
        self._session = session
        self._mailbox = mailbox
        self._http_session: aiohttp.ClientSession | None = http_session
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        #: What starts that task, from the first connect on until it is started.
        self._starter: asyncio.Handle | None = None
        self._context = _NO_CONTEXT
        #: Each with what is resolved when it has ended, if somebody waits for that.
        self._requests: dict[asyncio.Task[Any], asyncio.Future[None] | None] = {}
        self._beside = Turn()
        self._signal = Signal()
        self._closing = False
        self._closed = False
        self._interruptible = False
        self._interrupted = False
        self._authorization: str | None = None
        self._connection_types: Sequence[ConnectionType] = (ConnectionType.LONG_POLLING,)
        self._last_handshake: JsonObject | None = None
        self._timed_out_at: float | None = None

    # What aiocometd's client asks for

    @property
    def connection_type(self) -> ConnectionType:
        """Long polling: Salesforce speaks nothing else."""
        return ConnectionType.LONG_POLLING

    @property
    def endpoint(self) -> str:
        """The URL that messages are sent to."""
        return self._url

    @property
    def client_id(self) -> str | None:
        """The id that the server gave to the present session."""
        return self._session.client_id

    @property
    def subscriptions(self) -> set[str]:
        """The channels subscribed, or wanted while the session is being renewed."""
        return set() if self._closed else set(self._session.subscriptions)

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
        return self._http_session

    @http_session.setter
    def http_session(self, http_session: aiohttp.ClientSession | None) -> None:
        self._http_session = http_session

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
        return session.state is _CONNECTED and session.lost_since is None and not self._closing

    async def wait_for_state(self, state: TransportState) -> None:
        """Wait until the connection is in *state*."""
        while self.state is not state:
            await self._signal.changed()

    # What this package's client asks for

    @property
    def stop_error(self) -> Exception | None:
        """Why the session has ended for good, if it has."""
        return self._session.stop_error

    @property
    def aliases(self) -> dict[str, str]:
        """Delivered channel -> subscribed channel, where they differ."""
        return self._session.aliases

    def loss_deadline(self, timeout: float | None) -> float | None:
        """Say when ``receive()`` should report the connection as lost, by the loop's clock.

        :param timeout: seconds that the connection may be lost; None or 0: for ever
        :return: the time, or None if it is not lost or nobody wants to know
        """
        lost_since = self._session.lost_since
        if not timeout or lost_since is None or self._session.waits_for_credentials:
            return None
        counted_from = lost_since
        if self._timed_out_at is not None and self._timed_out_at > lost_since:
            counted_from = self._timed_out_at
        return counted_from + timeout

    def loss_error(self) -> TransportTimeoutError:
        """Make the error that reports the loss; the next one is due a whole time-out later."""
        self._timed_out_at = now = self._loop.time()
        lost_since = self._session.lost_since
        seconds = 0.0 if lost_since is None else now - lost_since
        error = TransportTimeoutError(
            f"Lost connection with the server {self._url} {seconds:.1f} seconds ago; still trying to"
            f" reconnect, the last attempt failed with: {self._session.last_error}"
        )
        error.__cause__ = self._session.last_error
        return error

    def try_again(self) -> None:
        """Try to recover once more, after the application has been told that only it can help."""
        if self._session.state is State.PARKED:
            self._session.unpark()
            self._signal.wake()

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
        if not self._session.opening or self._session.client_id is None:
            raise TransportInvalidOperation(
                f"Connecting to {self._url} belongs behind handshake(), once: use another transport"
            )
        await self._advance(State.CONNECTED)
        self._session.opening = False
        self._context = copy_context()
        self._starter = self._loop.call_soon(self._give_way, context=self._context)
        return self._session.last_connect or {}

    async def _advance(self, *goal: State) -> None:
        while self._session.state not in goal:
            if self._session.stop_error is not None:
                raise self._session.stop_error
            await self._take(*self._session.next_step())
            self._pass_on()

    # The background task

    def _give_way(self) -> None:
        """Let a subscription that is made right after opening use the connection that is there.

        Beside a held connect it would need another one: a TLS handshake, and a socket for each client.
        """
        if self._subscribing:
            self._starter = self._loop.call_later(
                GIVE_WAY_TIMEOUT, self._start_polling, context=self._context
            )
        else:
            self._start_polling()

    @property
    def _subscribing(self) -> bool:
        # A request that has found the session gone waits for the background task to renew it.
        return bool(self._requests) and self._session.established

    def _look_again(self) -> None:
        """Start to poll, in the context of who has opened, if there is nothing to give way to any more."""
        if self._starter is not None and not self._subscribing:
            self._context.run(self._start_polling)

    def _start_polling(self) -> None:
        self._forget_starter()
        self._context = _NO_CONTEXT
        self._task = self._loop.create_task(self._run(), name="aiosfstream connection")

    def _forget_starter(self) -> None:
        if self._starter is not None:
            self._starter.cancel()
            self._starter = None

    async def _run(self) -> None:
        """Take step after step until the session has ended."""
        try:
            while self._session.state is not State.STOPPED and not self._closing:
                await self._take(*self._session.next_step())
                self._pass_on()
        except Exception as bug:
            LOGGER.exception(
                "The connection to %s ends because of an unexpected error; open the client again, and report it",
                self._url,
            )
            error = TransportError(
                f"The connection to {self._url} has ended because of an unexpected error: {bug!r}; open the"
                " client again, and report it"
            )
            error.__cause__ = bug
            self._session.crashed(error)
        self._pass_on()

    def _take(self, action: Action, delay: float) -> Awaitable[None]:
        # No coroutine: thousands of clients wait in here, each with all of the frames.
        return self._STEPS[action](self, delay)

    def _pass_on(self) -> None:
        """Give the application what the last step brought, and wake who waits for a change."""
        session = self._session
        if session.errors:
            errors, session.errors = session.errors, ()
            for error in errors:
                self._mailbox.fail(error)
        if session.state is not _CONNECTED:
            self._mailbox.wake()
        if self._starter is not None:
            self._look_again()
        self._signal.wake()

    async def _poll(self, delay: float) -> None:
        """Make a connect, unless :meth:`_interrupt` ends it because the session is lost."""
        session = self._session
        self._interruptible = True
        try:
            if delay:
                await asyncio.sleep(delay)
            if self._mailbox.full:
                await self._wait_for_room()
            if self._settings.before_poll is not None:
                await self._before_poll(self._settings.before_poll)
            if not session.established:
                return
            message, epoch = session.connect_message(), session.epoch
            at_once = message.get("advice") == {"timeout": 0}
            started = self._loop.time()
            result, events = await self._exchange(message, hold=0.0 if at_once else session.hold)
            now = self._loop.time()
            # The first connect of a session is answered at once by design.
            session.connect_done(result, epoch, events or at_once, now - started, now)
        except asyncio.CancelledError:
            if not self._interrupted or self._closing:
                raise
            if sys.version_info >= (3, 11) and self._task is not None:
                self._task.uncancel()
        finally:
            self._interruptible = self._interrupted = False

    def _interrupt(self) -> None:
        """End a held connect of a session that is given up."""
        if self._interruptible and not self._interrupted and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    async def _wait_for_room(self) -> None:
        self._settings.report(ConnectionEvent(ConnectionEventKind.FETCHING_SUSPENDED))
        await self._mailbox.room()
        self._settings.report(ConnectionEvent(ConnectionEventKind.FETCHING_RESUMED))

    async def _before_poll(self, hook: Callable[[], Awaitable[None]]) -> None:
        try:
            await hook()
        except ReplayError as error:
            if not self._mailbox.has_errors:
                self._mailbox.fail(error)

    async def _handshake(self, delay: float) -> None:
        session = self._session
        if delay:
            await asyncio.sleep(delay)
        if self._beside.taken:
            await self._beside.wait()
        self._beside.taken = True
        try:
            if session.farewell_id is not None:
                await self._say_goodbye(session.farewell_id)
            if session.clear_cookies and self._http_session is not None:
                self._http_session.cookie_jar.clear()
            offered = [connection_type.value for connection_type in self._connection_types]
            result, _ = await self._exchange(session.handshake_message(offered))
            session.handshake_done(result, self._loop.time())
        finally:
            self._beside.release()
        if isinstance(result, dict):
            if session.opening:
                self._last_handshake = result
            self._check_replay_support(result)

    def _check_replay_support(self, reply: JsonObject) -> None:
        ext = reply.get("ext")
        if (
            self._session.opening
            and reply["successful"]
            and not (isinstance(ext, dict) and ext.get("replay"))
        ):
            LOGGER.warning(
                "The server %s does not announce the replay extension: what is published while the"
                " connection is lost may be missed; check the URL and the API version",
                self._url,
            )

    async def _resubscribe(self, delay: float) -> None:
        session = self._session
        if delay:
            await asyncio.sleep(delay)
        subscription = session.next_to_resubscribe()
        if subscription is None:
            return
        try:
            result, _ = await self._exchange(session.subscribe_message(subscription), subscription)
        except ReplayError as error:
            session.storage_failed(error, self._loop.time())
            return
        session.resubscribe_done(subscription, result, self._loop.time())

    async def _log_in(self, delay: float) -> None:
        if delay:
            await asyncio.sleep(delay)
        try:
            self._url = await self._settings.owner._log_in_again(self._authorization)
        except AuthenticationError as error:
            self._session.authentication_failed(error, self._loop.time())
        else:
            self._session.authenticated(self._loop.time())

    def _park(self, delay: float) -> Awaitable[None]:
        return self._signal.changed()

    _STEPS: Final[dict[Action, Callable[[LongPollingTransport, float], Awaitable[None]]]] = {
        Action.AUTHENTICATE: _log_in,
        Action.HANDSHAKE: _handshake,
        Action.SUBSCRIBE: _resubscribe,
        Action.CONNECT: _poll,
        Action.PARK: _park,
    }

    # One request

    async def _exchange(
        self,
        message: JsonObject,
        subscription: Subscription | None = None,
        *,
        hold: float = 0.0,
        stale: bool = False,
    ) -> tuple[JsonObject | Failure, int]:
        """Send one message, deliver the events in the answer, give the reply and their number.

        :param message: the message
        :param subscription: what a subscribe message is for
        :param hold: seconds that the server may hold the request
        :param stale: whether it is about a session that was given up, so that events are not wanted
        :raises ReplayError: if the marker storage fails and is needed
        """
        payload, headers = [message], dict(_HEADERS)
        try:
            await self._outgoing(payload, headers, subscription)
            posting = self._post(payload, headers, hold)
        except AuthenticationError as error:
            return _not_sent(Trouble.UNAUTHORIZED, error), 0
        except TransportError as error:
            return _not_sent(Trouble.REJECTED, error), 0
        authorization = headers.get("Authorization", "")
        # Thousands of clients wait for the answer.
        del payload, headers
        ticket = self._session.send(message, stale=stale)
        messages: list[JsonObject] | Failure | None = None
        try:
            answer = await posting
            if isinstance(answer, Failure):
                messages = answer
            else:
                messages = _http.bayeux_messages(answer, self._settings.json_loads, authorization)
                if not isinstance(messages, Failure):
                    await self._incoming(messages, answer)
        finally:
            if messages is None or isinstance(messages, Failure):
                lost = messages is None or messages.trouble in (
                    Trouble.LOST,
                    Trouble.UNREADABLE,
                )
                self._session.abandon(ticket, lost=lost)
        if isinstance(messages, Failure):
            return messages, 0
        events, others = self._session.receive(messages, ticket)
        if events and self._deliver(events):
            await asyncio.sleep(0)
        reply = self._session.take_reply(others, ticket, len(events))
        if reply is None:
            return self._no_reply(message), len(events)
        return reply, len(events)

    def _deliver(self, events: list[JsonObject]) -> bool:
        """Put events into the mailbox.

        :return: whether the reader should run now, before the next request is prepared and sent
        """
        mailbox, mailed = self._mailbox, len(events)
        mailbox.extend(events, wake=False)
        if mailed > 1 and not mailbox.full and self._session.lost_since is None:
            # There may be more where these come from: the server makes its next answer ready while the reader
            # is at work. The request is written in the next turn of the loop, and the reader runs behind it.
            self._loop.call_soon(mailbox.wake)
            return False
        mailbox.wake()
        # After a loss it first has to be noted that the connection is back.
        return self._session.lost_since is None

    async def _outgoing(
        self, payload: list[JsonObject], headers: dict[str, str], subscription: Subscription | None
    ) -> None:
        known = subscription is not None and subscription.stamp is not None
        for extension in self._settings.extensions:
            try:
                await extension.outgoing(payload, headers)
            except ReplayError as error:
                if not known:
                    raise
                LOGGER.warning(
                    "The replay storage fails, going on with the id in memory: %s", error
                )
            except AiosfstreamException:
                raise
            except Exception as error:
                if subscription is None:
                    raise
                raise ReplayError(
                    f"The replay storage failed for channel {subscription.channel}: {error!r}. Mend it and subscribe"
                    " again."
                ) from error
        if subscription is not None:
            self._session.stamp(payload[0], subscription)
        await self._settings.auth.outgoing(payload, headers)
        self._authorization = headers.get("Authorization")

    async def _incoming(self, messages: list[JsonObject], answer: _http.Answer) -> None:
        headers: Any = answer.headers
        await self._settings.auth.incoming(messages, headers)
        for extension in self._settings.extensions:
            await extension.incoming(messages, headers)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._http_session is None:
            raise TransportConnectionClosed(
                f"The transport of {self._url} is closed; open the client again"
            )
        return self._http_session

    def _post(
        self, payload: list[JsonObject], headers: dict[str, str], hold: float
    ) -> Awaitable[_http.Answer | Failure]:
        """Give what sends *payload* when it is awaited."""
        http_session = self._open_session()
        body = _http.dump_json(payload, self._settings.json_dumps)
        return _http.post(
            http_session,
            self._url,
            body,
            headers,
            limits=limits_for(self._settings.request_timeout, min(hold, MAX_HOLD)),
            ssl=self._settings.ssl,
            repeatable=self._session.opening or payload[0].get("channel") in _REPEATABLE,
        )

    def _no_reply(self, message: JsonObject) -> Failure:
        error = TransportError(
            f"Request to {self._url} failed: the answer holds no reply to the {message['channel']} message;"
            " check that the URL is that of a CometD server"
        )
        return Failure(Trouble.LOST, error)

    async def _say_goodbye(self, client_id: str) -> None:
        """Free the server's side of a session, as far as it can be reached."""
        message = self._session.disconnect_message(client_id)
        exchange = self._exchange(message, stale=True)
        task = self._start(exchange, "aiosfstream goodbye")
        try:
            # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
            await asyncio.wait([task], timeout=GOODBYE_TIMEOUT)
        finally:
            task.cancel()

    # Requests beside the connect

    async def subscribe(self, channel: str) -> JsonObject:
        """Subscribe to *channel*, from where the ContextVar :data:`REPLAY` says.

        Cancelling it does not stop it: it is finished in the background.

        :return: the server's reply
        :raises TransportError: if the request fails
        :raises ReplayError: if the marker storage fails
        """
        return await self._finish(self._subscribe(channel, REPLAY.get()))

    async def unsubscribe(self, channel: str) -> JsonObject:
        """Unsubscribe from *channel*. Cancelling it does not stop it.

        :return: the server's reply
        :raises TransportError: if the request fails
        """
        return await self._finish(self._unsubscribe(channel))

    async def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Publish *data* on *channel*.

        :return: the server's reply
        :raises TransportError: if the request fails
        """
        return await self._finish(self._publish(channel, data))

    async def _subscribe(self, channel: str, replay_id: ReplayId) -> JsonObject:
        result, renewed = await self._try_subscribe(channel, replay_id)
        if renewed:
            result, _ = await self._try_subscribe(channel, replay_id)
        return _reply_of(result)

    async def _try_subscribe(
        self, channel: str, replay_id: ReplayId
    ) -> tuple[JsonObject | Failure, bool]:
        session = self._session
        await self._take_turn()
        try:
            subscription, epoch = session.subscribe(channel, replay_id), session.epoch
            renewed, again = False, True
            try:
                while again and session.established:
                    result, _ = await self._exchange(
                        session.subscribe_message(subscription), subscription
                    )
                    renewed = session.request_done(result, epoch, self._loop.time())
                    again = session.subscribe_done(subscription, result)
            finally:
                if again:
                    session.subscribe_done(subscription, None)
            return result, renewed or again
        finally:
            self._end_turn()

    async def _unsubscribe(self, channel: str) -> JsonObject:
        def message() -> JsonObject:
            return self._session.unsubscribe_message(channel)

        result = await self._request(message)
        self._session.unsubscribe_done(channel, result)
        return _reply_of(result)

    async def _publish(self, channel: str, data: JsonObject) -> JsonObject:
        def message() -> JsonObject:
            return self._session.publish_message(channel, data)

        return _reply_of(await self._request(message))

    async def _request(self, message: Callable[[], JsonObject]) -> JsonObject | Failure:
        """Send a message; once more if the session had to be renewed for it."""
        for again in (True, False):
            await self._take_turn()
            try:
                epoch = self._session.epoch
                result, _ = await self._exchange(message())
                renewed = self._session.request_done(result, epoch, self._loop.time())
            finally:
                self._end_turn()
            if not (renewed and again):
                break
        return result

    async def _take_turn(self) -> None:
        """Wait for a usable session and for the turn, which :meth:`_end_turn` ends."""
        timeout = self._settings.owner.connection_timeout or None
        deadline = None if timeout is None else self._loop.time() + timeout
        while True:
            if not self._session.established:
                await self._wait_established(deadline)
            if self._beside.taken:
                await self._beside.wait()
            self._beside.taken = True
            if self._session.established:
                break
            self._beside.release()

    def _end_turn(self) -> None:
        """Let the next request go ahead, and end the connect if the session is lost."""
        self._beside.release()
        if not self._session.established:
            self._interrupt()
        self._pass_on()

    async def _wait_established(self, deadline: float | None) -> None:
        session = self._session
        while not session.established:
            if self._closing:
                raise self._closing_error()
            if session.state in (State.STOPPED, State.PARKED):
                if isinstance(session.last_error, AuthenticationError):
                    raise copy(session.last_error)
                raise TransportError(
                    f"There is no connection to the server {self._url}, call receive() to try again or learn that"
                    f" it has ended for good: {session.last_error}"
                ) from session.last_error
            left = None if deadline is None else deadline - self._loop.time()
            if left is not None and left <= 0:
                raise self._renewal_error()
            await self._signal.changed(left)

    def _renewal_error(self) -> TransportTimeoutError:
        error = TransportTimeoutError(
            f"The request was not sent: the connection to the server {self._url} is lost and was not renewed in"
            f" time. It is still being tried, send the request again; the last attempt failed with:"
            f" {self._session.last_error}"
        )
        error.__cause__ = self._session.last_error
        return error

    def _closing_error(self) -> TransportInvalidOperation:
        return TransportInvalidOperation(
            f"The request to {self._url} was not sent, the client is being closed: open it again first"
        )

    async def _finish(self, request: Coroutine[Any, Any, JsonObject]) -> JsonObject:
        """Run *request* in a task of its own, which goes on when the caller is cancelled.

        Whether the server has acted on a request that is given up half-way could not be known.
        """
        if self._closing:
            request.close()
            raise self._closing_error()
        task = self._start(request, "aiosfstream request")
        # asyncio.wait makes several objects for it, in each of thousands of clients that open at once.
        ended = self._requests[task] = self._loop.create_future()
        await ended
        if task.cancelled():
            raise TransportInvalidOperation(
                f"The client was closed before {self._url} answered: open it and look whether that was done"
            )
        return task.result()

    def _start(self, request: Coroutine[Any, Any, ResultT], name: str) -> asyncio.Task[ResultT]:
        task = self._loop.create_task(request, name=name)
        self._requests[task] = None
        task.add_done_callback(self._request_finished)
        return task

    def _request_finished(self, task: asyncio.Task[Any]) -> None:
        ended = self._requests.pop(task)
        if ended is not None and not ended.done():
            ended.set_result(None)
        self._look_again()
        self._signal.wake()
        if not task.cancelled() and task.exception() is not None:
            LOGGER.debug("request failed: %r", task.exception())

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
            client_id = self._session.client_id or self._session.farewell_id
            if client_id is not None and self._session.state is not State.STOPPED:
                await self._say_goodbye(client_id)
        finally:
            self._closed = True
            self._signal.wake()

    async def close(self) -> None:
        """Close the HTTP session."""
        if self._http_session is not None:
            await self._http_session.close()

    def abort(self) -> None:
        """End everything at once, without a goodbye."""
        self._begin_to_close()
        self._closed = True
        self._signal.wake()

    def _begin_to_close(self) -> None:
        self._closing = True
        self._forget_starter()
        self._mailbox.close()
        self._signal.wake()
        for task in self._tasks():
            task.cancel()

    async def end_tasks(self) -> None:
        """Wait, for a short time, until the tasks that were cancelled have ended."""
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_TIMEOUT)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        own = asyncio.current_task()
        tasks = [*self._requests, *([self._task] if self._task is not None else [])]
        return [task for task in tasks if task is not own and not task.done()]


def _not_sent(trouble: Trouble, error: AiosfstreamException) -> Failure:
    if isinstance(error, TransportError):
        return Failure(trouble, error)
    transport_error = TransportError(f"The request was not sent, see the cause: {error}")
    transport_error.__cause__ = error
    return Failure(trouble, transport_error)


def _reply_of(result: JsonObject | Failure) -> JsonObject:
    if isinstance(result, Failure):
        raise result.error
    return result
