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
    called: it raises the error for a refused handshake. It is compared with the original as well, to
    find out whether somebody has replaced it.
``Client._transport``, ``Client._incoming_queue``, ``Client._closed``
    the state that the inherited methods and properties read.
``Client._max_pending_count``, ``Client._json_dumps``, ``Client._json_loads``
    what the constructor was given.

The package's own state is in an :class:`Engine`, which hangs on the client where no subclass can take
its place by accident.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiocometd.client import Client as CometdClient
from aiocometd.constants import ConnectionType, TransportState
from aiocometd.extensions import AuthExtension, Extension
from aiocometd.transports.abc import Transport
from aiocometd.typing import JsonObject, SSLValidationMode

from .. import _tasks as tasks
from .._http.bodies import Dumper, Loader
from .._internals import Slot
from .._text import fit
from ..exceptions import ClientError, ClientInvalidOperation
from .mailbox import Mailbox, Signal, Turn
from .states import Host
from .transport import LongPollingTransport

LOGGER = logging.getLogger("aiosfstream.client")

#: Makes the HTTP session of a client; called with ``cookie_jar=``.
SessionFactory = Callable[..., aiohttp.ClientSession]

#: Seconds that closing the HTTP session may take.
RELEASE_TIMEOUT: Final = 2.0

_LONG_POLLING: Final[str] = ConnectionType.LONG_POLLING.value


class NoLoop:
    """Stands in for the event loop that aiocometd's constructor would otherwise look for.

    Without a running loop that look-up warns, fails or makes a loop that nobody closes, depending on the
    Python version. Nothing that is used here needs the loop.
    """


class Owner(Host, Protocol):
    """What the engine and the base client need of the client's policy."""

    def make_http_session(self) -> aiohttp.ClientSession:
        """Make the HTTP session of a client that is being opened."""

    def make_transport(
        self, url: str, mailbox: Mailbox, http_session: aiohttp.ClientSession
    ) -> LongPollingTransport:
        """Make the transport of a session that is about to begin.

        :param url: the endpoint
        :param mailbox: where events go
        :param http_session: what requests are sent with; it stays the client's
        """

    def before_waiting(self) -> Awaitable[None] | None:
        """Give what should be done before ``receive()`` waits for the server, if there is anything."""


class Engine:
    """What a client has besides what aiocometd's has.

    :ivar owner: the client's policy
    :ivar turn: the turn to take messages, which one task has at a time
    :ivar http_session: what requests are sent with while the client is open
    :ivar opener: the task that opens the client, while it does
    :ivar untold: why the session has ended, until the application has been told
    """

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.turn = Turn()
        self.http_session: aiohttp.ClientSession | None = None
        self.opener: asyncio.Task[Any] | None = None
        self.untold: Exception | None = None
        self._opened = Signal()
        self._is_closing = False

    @contextmanager
    def opening(self, url: str) -> Iterator[None]:
        """Note that the current task opens the client, so that :meth:`stop_opening` can end it.

        :param url: the server's URL, for the errors
        """
        self.opener = asyncio.current_task()
        self._is_closing = False
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_closing or self.opener is None:
                raise
            if not tasks.take_back(self.opener):
                raise
            raise ClientInvalidOperation(
                f"The client of {url or 'no server yet'} was closed while it was being opened; open it again"
            ) from None
        finally:
            self.opener = None
            self._opened.wake()

    async def stop_opening(self) -> None:
        """End the opening that another task has begun."""
        if self.opener is not None and self.opener is not asyncio.current_task():
            self._is_closing = True
            self.opener.cancel()
            while self.opener is not None:
                await self._opened.changed()


ENGINES: Final = Slot("engine", Engine)

#: The HTTP sessions of clients that share a connector.
_SHARING: Final[WeakKeyDictionary[aiohttp.BaseConnector, WeakSet[aiohttp.ClientSession]]] = (
    WeakKeyDictionary()
)


class BaseClient(CometdClient):
    """A CometD client on long polling that owns its HTTP session and cleans up whatever happens.

    :param owner: the client's policy, which makes the HTTP session and the transport
    :param connection_timeout: and the others: as aiocometd's client takes them
    """

    def __init__(
        self,
        *,
        connection_timeout: float | None,
        ssl: SSLValidationMode | None,
        max_pending_count: int,
        extensions: list[Extension],
        auth: AuthExtension,
        json_dumps: Dumper,
        json_loads: Loader,
        owner: Owner,
    ) -> None:
        ENGINES.of(self).owner = owner
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
            loop=cast(asyncio.AbstractEventLoop, NoLoop()),
        )

    @property
    def connection_type(self) -> ConnectionType | None:
        """``ConnectionType.LONG_POLLING`` while the client is open, otherwise None."""
        return None if self.closed else super().connection_type

    # Opening and closing

    async def open(self) -> None:
        """Log in and connect. If anything goes wrong, everything is released."""
        engine = ENGINES.of(self)
        if not self.closed:
            # aiocometd's own error.
            return await super().open()
        if engine.opener is not None:
            raise ClientInvalidOperation(
                f"Client is already being opened, with {self.url or 'no server yet'}: open it once."
            )
        with engine.opening(self.url):
            try:
                await _prepare(self, engine)
                return await super().open()
            except BaseException:
                await _release(self, engine)
                raise
            finally:
                if self.closed and engine.http_session is not None:
                    # A test has put something else in the place of aiocometd's method.
                    await _release(self, engine)

    async def close(self) -> None:
        """Disconnect from the server and release everything, in a few seconds at the most."""
        engine = ENGINES.of(self)
        await engine.stop_opening()
        transport = transport_of(self)
        if transport is not None and not transport.is_alive:
            # Its event loop has ended, so the server cannot be told any more.
            self._closed = True
        try:
            return await super().close()
        finally:
            await _release(self, engine)

    # What aiocometd's methods call

    async def _negotiate_transport(self) -> Transport:
        """Shake hands with the server.

        :raises ClientError: if the server does not offer long polling
        """
        engine = ENGINES.of(self)
        assert engine.owner is not None
        assert engine.http_session is not None
        mailbox = Mailbox(self._max_pending_count)
        self._incoming_queue = cast("asyncio.Queue[JsonObject]", mailbox)
        transport = engine.owner.make_transport(self.url, mailbox, engine.http_session)
        self._transport = transport
        response = await transport.handshake([ConnectionType.LONG_POLLING])
        self._verify_response(response)
        offered = response.get("supportedConnectionTypes", [_LONG_POLLING])
        if not isinstance(offered, list) or _LONG_POLLING not in offered:
            raise ClientError(
                f"None of the connection types offered by the server {self.url} are supported:"
                f" {fit(offered, limit=100)}; this client needs long-polling, so check that the URL is right"
            )
        return transport

    async def _get_message(self, connection_timeout: float | None) -> JsonObject:
        """Give the next message, waiting for it if need be. Cancelling it loses nothing.

        :param connection_timeout: seconds that the connection may be lost
        :raises Exception: what stands next in the mailbox or has ended the session
        """
        mailbox, transport, owner = mailbox_of(self), transport_of(self), ENGINES.of(self).owner
        assert mailbox is not None
        assert owner is not None
        while True:
            message = mailbox.take()
            if message is not None:
                return message
            storing = owner.before_waiting()
            if storing is not None:
                await storing
                if mailbox.items:
                    continue
            if mailbox.closed:
                raise _closed_error(self)
            if transport is None or not transport.is_alive:
                raise _ended_error(self)
            left = None
            if not transport.connected:
                await self._check_server_disconnected()
                transport.try_again()
                left = _time_left(transport, connection_timeout)
            await mailbox.changed(left)

    async def _check_server_disconnected(self) -> None:
        """Close the client and raise the reason if the session has ended for good."""
        transport = transport_of(self)
        if transport is not None and transport.state is TransportState.SERVER_DISCONNECTED:
            engine = ENGINES.of(self)
            # If this call is cancelled, the next one raises it.
            engine.untold = transport.stop_error
            await self.close()
            raise_untold(self)


def mailbox_of(client: CometdClient) -> Mailbox | None:
    """Give what a client has fetched; None if it was never opened.

    :param client: the client
    """
    return cast("Mailbox | None", client._incoming_queue)


def transport_of(client: CometdClient) -> LongPollingTransport | None:
    """Give the transport of a client; None if it was never opened.

    :param client: the client
    """
    return cast("LongPollingTransport | None", client._transport)


def json_functions_of(client: CometdClient) -> tuple[Dumper, Loader]:
    """Give the JSON functions that a client's constructor was given.

    :param client: the client
    """
    return client._json_dumps, client._json_loads


def raise_untold(client: BaseClient) -> None:
    """Raise why the session has ended, if the application has not been told yet.

    :param client: the client
    """
    engine = ENGINES.of(client)
    error, engine.untold = engine.untold, None
    if error is not None:
        raise error


def receives_plainly(client: BaseClient) -> bool:
    """Say whether the inherited way of receiving is what it was when this module was imported.

    :param client: the client
    :return: False if a subclass, a mix-in or a test has replaced a part of it
    """
    cls = type(client)
    bases = cls.__mro__
    return (
        cls._get_message is BaseClient._get_message
        and cls._verify_response is _PLAIN_VERIFY
        # Otherwise a mix-in stands between this package's client and aiocometd's.
        and bases[bases.index(BaseClient) + 1] is CometdClient
        and CometdClient.receive is _PLAIN_RECEIVE
        and CometdClient.__aiter__ is _PLAIN_ITER
        and vars(client).keys().isdisjoint(_RECEIVING)
    )


_PLAIN_RECEIVE: Final = CometdClient.receive
_PLAIN_ITER: Final = CometdClient.__aiter__
_PLAIN_VERIFY: Final = CometdClient._verify_response
#: What may be replaced for one client to take part in receiving.
_RECEIVING: Final = ("receive", "_get_message", "_verify_response")


async def _prepare(client: BaseClient, engine: Engine) -> None:
    """Make the HTTP session, log in and learn the URL."""
    assert engine.owner is not None
    _discard_messages(client)
    engine.untold = None
    engine.turn = Turn()
    engine.http_session = engine.owner.make_http_session()
    _note_sharing(engine.http_session)
    client.url = await engine.owner.log_in(None)


def _discard_messages(client: BaseClient) -> None:
    if client.has_pending_messages:
        LOGGER.warning(
            "Opening anew, after %s: %d messages that were not received are dropped; receive what is"
            " pending before the client is opened again",
            client.url,
            client.pending_count,
        )
    mailbox = mailbox_of(client)
    if mailbox is not None:
        mailbox.discard()
    client._incoming_queue = client._transport = None


async def _release(client: BaseClient, engine: Engine) -> None:
    """End what is left, even while this task is being cancelled."""
    http_session, engine.http_session = engine.http_session, None
    transport = transport_of(client)
    if transport is not None and transport.is_alive:
        transport.abort()
    if http_session is None:
        return
    error = await tasks.uninterrupted(_finish(transport, http_session))
    if error is not None and (transport is None or transport.is_alive):
        LOGGER.warning("Could not release everything, what is left needs no care: %r", error)


async def _finish(
    transport: LongPollingTransport | None, http_session: aiohttp.ClientSession
) -> None:
    if transport is not None and transport.is_alive:
        await transport.end_tasks()
    await asyncio.wait_for(http_session.close(), RELEASE_TIMEOUT)


def _note_sharing(http_session: aiohttp.ClientSession) -> None:
    """Warn when the held connects of clients that share a connector use up its limit."""
    connector = http_session.connector
    if connector is None or http_session.connector_owner:
        return
    sharing = _SHARING.setdefault(connector, WeakSet())
    sharing.add(http_session)
    # Closed ones have no connector any more, so they could not be looked up and taken out.
    count = sum(not one.closed for one in sharing)
    limits = [limit for limit in (connector.limit, connector.limit_per_host) if limit]
    if limits and count >= min(limits):
        LOGGER.warning(
            "%d open clients share a connector that allows %d connections: each of them holds one, so"
            " requests wait for one another; give each client its own connector, or raise the"
            " limits of the shared one",
            count,
            min(limits),
        )


def _closed_error(client: BaseClient) -> ClientInvalidOperation:
    return ClientInvalidOperation(
        f"The client of {client.url} is closed and there are no pending messages. Open it again to"
        " receive more."
    )


def _ended_error(client: BaseClient) -> ClientInvalidOperation:
    return ClientInvalidOperation(
        f"The event loop that the client of {client.url} was opened in has ended: close the client and"
        " open it again"
    )


def _time_left(transport: LongPollingTransport, connection_timeout: float | None) -> float | None:
    deadline = transport.loss_deadline(connection_timeout)
    if deadline is None:
        return None
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise transport.loss_error()
    return left
