"""aiocometd's client, made to work on current Python by subclassing.

This is the only module that uses names of aiocometd with an underscore. They are, with the reasons:

``Client._negotiate_transport``
    replaced: aiocometd's own transports pass ``loop=`` arguments that Python 3.10 removed, and a
    transport of ours in its registry would change other users of aiocometd in the process.
``Client._get_message``
    replaced: it passes ``loop=`` as well, and drops a message when it is cancelled.
``Client._check_server_disconnected``
    replaced: it knows of one way only in which a session ends.
``Client._verify_response``
    called: it raises the error for a refused handshake. What it is, is compared as well, to find out
    whether somebody has put something else in its place.
``Client._transport``, ``Client._incoming_queue``, ``Client._closed``
    the state that the inherited methods and properties read.
``Client._connection_types``, ``Client._max_pending_count``, ``Client._json_dumps``, ``Client._json_loads``
    what the constructor was given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import aiohttp
from aiocometd.client import Client as CometdClient
from aiocometd.constants import ConnectionType, TransportState
from aiocometd.extensions import AuthExtension, Extension
from aiocometd.transports.abc import Transport
from aiocometd.typing import JsonObject, SSLValidationMode

from .._http import post as _http
from .._http.cookies import CookieJar
from ..exceptions import ClientError, ClientInvalidOperation
from .mailbox import Mailbox
from .transport import LongPollingTransport

LOGGER = logging.getLogger("aiosfstream.client")

#: Makes the HTTP session of a client; called with ``cookie_jar=``.
SessionFactory = Callable[..., aiohttp.ClientSession]

#: Seconds that closing the HTTP session may take.
RELEASE_TIMEOUT: Final = 2.0


class NoLoop:
    """Stands in for the event loop that aiocometd's constructor would otherwise look for.

    Without a running loop that look-up warns, fails or leaves a loop behind, depending on the Python
    version. Nothing that is used here needs the loop.
    """


_LONG_POLLING: Final[str] = ConnectionType.LONG_POLLING.value
_CONNECTION_TYPES: Final = [ConnectionType.LONG_POLLING]
_NO_LOOP: Final = cast(asyncio.AbstractEventLoop, NoLoop())


class BaseClient(CometdClient):
    """A CometD client on long polling that owns its HTTP session and cleans up whatever happens."""

    def __init__(
        self,
        *,
        connection_timeout: float | None,
        ssl: SSLValidationMode | None,
        max_pending_count: int,
        extensions: list[Extension],
        auth: AuthExtension,
        json_dumps: _http.Dumper,
        json_loads: _http.Loader,
        session_factory: SessionFactory,
    ) -> None:
        super().__init__(
            "",
            ConnectionType.LONG_POLLING,
            # aiocometd's annotations are narrower than what it and this package do with these.
            connection_timeout=cast(float, connection_timeout),
            ssl=ssl,
            max_pending_count=max_pending_count,
            extensions=extensions,
            auth=auth,
            json_dumps=cast("Callable[[JsonObject], str]", json_dumps),
            json_loads=json_loads,
            loop=_NO_LOOP,
        )
        # One list for all clients, of which there may be thousands. Nothing changes it.
        self._connection_types = _CONNECTION_TYPES
        self._session_factory = session_factory
        self._http_session: aiohttp.ClientSession | None = None
        self._is_opening = False

    def _make_transport(self, mailbox: Mailbox, http_session: aiohttp.ClientSession) -> Transport:
        """Make the transport of a session that is about to be opened."""
        raise NotImplementedError

    async def _before_waiting(self) -> None:
        """Do what should be done before ``receive()`` waits for the server."""

    @property
    def _json(self) -> tuple[_http.Dumper, _http.Loader]:
        """The JSON functions that the constructor was given."""
        return self._json_dumps, self._json_loads

    @property
    def _mailbox(self) -> Mailbox | None:
        return cast("Mailbox | None", self._incoming_queue)

    @property
    def _polling(self) -> LongPollingTransport:
        return cast(LongPollingTransport, self._transport)

    @property
    def connection_type(self) -> ConnectionType | None:
        """``ConnectionType.LONG_POLLING`` while the client is open, otherwise None."""
        return None if self.closed else super().connection_type

    @property
    def state(self) -> TransportState:
        """The state of the connection, for health checks.

        ``CONNECTED``: the last connect was successful. ``CONNECTING``: opening, or recovering from a
        loss. ``SERVER_DISCONNECTED``: the server has ended the session for good, ``receive()``
        raises the reason. ``DISCONNECTING``, ``DISCONNECTED``: the client is being closed, or closed.
        """
        if self._transport is None or (self.closed and not self._is_opening):
            return TransportState.DISCONNECTED
        return self._transport.state

    def _begin_to_open(self) -> None:
        if not self.closed or self._is_opening:
            raise ClientInvalidOperation(
                f"Client is already open, with {self.url or 'no server yet'}: close it before it is opened again."
            )
        self._is_opening = True

    def _open_http_session(self) -> aiohttp.ClientSession:
        self._discard_messages()
        self._http_session = self._session_factory(cookie_jar=CookieJar())
        return self._http_session

    def _discard_messages(self) -> None:
        if self.has_pending_messages:
            LOGGER.warning(
                "Opening anew, after %s: %d messages that were not received are dropped; receive what is"
                " pending before the client is opened again",
                self.url,
                self.pending_count,
            )
        if self._mailbox is not None:
            self._mailbox.discard()
        self._incoming_queue = None
        self._transport = None

    async def _negotiate_transport(self) -> Transport:
        """Shake hands with the server.

        :raises ClientError: if the server does not offer long polling
        """
        assert self._http_session is not None
        mailbox = Mailbox(self._max_pending_count)
        self._incoming_queue = cast("asyncio.Queue[JsonObject]", mailbox)
        transport = self._transport = self._make_transport(mailbox, self._http_session)
        response = await transport.handshake(self._connection_types)
        self._verify_response(response)
        offered = response.get("supportedConnectionTypes", [_LONG_POLLING])
        if not isinstance(offered, list) or _LONG_POLLING not in offered:
            raise ClientError(
                f"None of the connection types offered by the server {self.url} are supported:"
                f" {offered!r:.200}; this client needs long-polling, so check that the URL is right"
            )
        return transport

    async def _get_message(self, connection_timeout: float | None) -> JsonObject:
        """Give the next message, waiting for it if need be. Cancelling it loses nothing.

        :param connection_timeout: seconds that the connection may be lost
        :raises Exception: what stands next in the mailbox or has ended the session
        """
        mailbox, transport = self._mailbox, self._polling
        assert mailbox is not None
        while True:
            message = mailbox.take()
            if message is not None:
                return message
            await self._before_waiting()
            if mailbox:
                continue
            if mailbox.closed:
                raise ClientInvalidOperation(
                    f"The client of {self.url} is closed and there are no pending messages. Open it again to"
                    " receive more."
                )
            await self._check_server_disconnected()
            transport.try_again()
            await mailbox.changed(self._time_left(transport, connection_timeout))

    @staticmethod
    def _time_left(
        transport: LongPollingTransport, connection_timeout: float | None
    ) -> float | None:
        deadline = transport.loss_deadline(connection_timeout)
        if deadline is None:
            return None
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise transport.loss_error()
        return left

    async def _check_server_disconnected(self) -> None:
        """Close the client and raise the reason if the session has ended for good."""
        transport = self._transport
        if transport is not None and transport.state is TransportState.SERVER_DISCONNECTED:
            error = self._polling.stop_error
            await self.close()
            assert error is not None
            raise error

    def _put_back(self, message: JsonObject) -> None:
        """Make *message* the next one again."""
        if self._mailbox is not None:
            self._mailbox.put_back(message)

    async def close(self) -> None:
        """Disconnect from the server and release everything, in a few seconds at the most."""
        if self.closed:
            return
        try:
            await super().close()
        finally:
            await self._release()

    async def _release(self) -> None:
        """End what is left, even while this task is being cancelled."""
        http_session, self._http_session = self._http_session, None
        transport = cast("LongPollingTransport | None", self._transport)
        if transport is not None:
            transport.abort()
        if http_session is not None:
            await uninterrupted(self._finish(transport, http_session))

    @staticmethod
    async def _finish(
        transport: LongPollingTransport | None, http_session: aiohttp.ClientSession
    ) -> None:
        if transport is not None:
            await transport.end_tasks()
        await asyncio.wait_for(http_session.close(), RELEASE_TIMEOUT)


_PLAIN_RECEIVE: Final = CometdClient.receive
_PLAIN_ITER: Final = CometdClient.__aiter__
_PLAIN_VERIFY: Final = CometdClient._verify_response


def receives_plainly(cls: type[BaseClient]) -> bool:
    """Say whether the inherited way of receiving is what it was when this module was imported.

    :param cls: the class of a client
    :return: False if a subclass, a mix-in or a test has replaced a part of it
    """
    return (
        cls._get_message is BaseClient._get_message
        and cls._verify_response is _PLAIN_VERIFY
        # A mix-in stands between this package's client and aiocometd's.
        and super(BaseClient, cls).receive is _PLAIN_RECEIVE
        and super(BaseClient, cls).__aiter__ is _PLAIN_ITER
    )


async def uninterrupted(clean_up: Coroutine[Any, Any, None]) -> None:
    """Run *clean_up* to its end, and only then go on with a cancellation that came meanwhile.

    :param clean_up: a coroutine that takes a short, bounded time
    :raises asyncio.CancelledError: if the calling task was cancelled meanwhile
    """
    task = asyncio.ensure_future(clean_up)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if not task.cancelled() and task.exception() is not None:
        LOGGER.warning(
            "Could not release everything, what is left needs no care: %r", task.exception()
        )
    if cancelled:
        raise asyncio.CancelledError
