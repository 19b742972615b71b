"""The client: log in, stream events, and come back from whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
import warnings
from collections.abc import AsyncIterator, Callable, MutableMapping
from enum import Enum, unique
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, cast

import aiohttp
from aiocometd.client import Client as CometdClient
from aiocometd.typing import JsonObject, SSLValidationMode

from ._cometd.client import BaseClient, SessionFactory, receives_plainly
from ._cometd.mailbox import Mailbox, Turn
from ._cometd.retry import RetryPolicy
from ._cometd.session import Session
from ._cometd.transport import REPLAY, LongPollingTransport, Settings
from ._http import post as _http
from ._reporter import LOG_ONLY, Reporter
from .auth import AuthenticatorBase, PasswordAuthenticator, lend_session
from .events import ConnectionEvent, ConnectionEventKind
from .exceptions import ClientInvalidOperation, ReplayError, translate_errors
from .replay import (
    ConstantReplayId,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    attach,
    buffers,
    direct_store_of,
    flush,
    overwrite_with,
    store_marker,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    # Every type checker knows this one, installed or not.
    from typing_extensions import Unpack
else:

    class Unpack:
        """Lets ``typing.get_type_hints()``, which evaluates annotations, find something."""

        def __class_getitem__(cls, options: object) -> object:
            """Give the options as they are."""
            return options


__all__ = [
    "API_VERSION",
    "COMETD_PATH",
    "LOGGER",
    "Client",
    "ClientOptions",
    "CometdClient",
    "ReplayMarkerStoragePolicy",
    "SalesforceStreamingClient",
]

#: The path of the CometD endpoint below the instance URL.
COMETD_PATH: Final = "cometd"
#: The Salesforce API version used unless another is asked for (Spring '26).
API_VERSION: Final = "66.0"
_API_VERSION_FORM: Final = re.compile(r"[1-9][0-9]{1,2}\.0")
#: The first version with replay (Streaming API Developer Guide, "Message Durability").
MIN_API_VERSION: Final = 37
LOGGER = logging.getLogger(__name__)
#: Where all clients get their jitter from: each of these has 2.5 KiB of state.
_CHANCE: Final = random.Random()

ClientT = TypeVar("ClientT", bound="Client")


@unique
class ReplayMarkerStoragePolicy(Enum):
    """When the marker of a message is stored."""

    #: As ``receive()`` hands the message over. If the program ends before it has processed the
    #: message, that one is not delivered again: at most once.
    AUTOMATIC = 1
    #: When the application has processed it, inside ``async with client.replay_storage(message):``.
    #: If the program ends within the block, the message is delivered again: at least once.
    MANUAL = 2


class Client(BaseClient):
    """A Salesforce Streaming API client.

    An async context manager that opens and closes it, and an async iterator over the messages::

        async with Client(authenticator) as client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                ...

    While it is open, every event of a subscribed channel is delivered once and in the server's
    order, across lost sessions, revoked tokens and broken connections. It may be made outside an
    event loop, and opened again after it was closed.

    :param authenticator: how to log in
    :param replay: which events to start from: a :class:`~aiosfstream.ReplayOption`, a
        :class:`~aiosfstream.ReplayMarkerStorage`, or a mutable mapping of channels to markers or
        replay ids, in which markers are stored as well. None: new events
    :param replay_fallback: where to start a channel whose replay id the server refuses as invalid or
        out of the retention window, at the first subscription and at every later one; None: report
        the refusal as :exc:`~aiosfstream.ServerError`
    :param replay_storage_policy: when the marker of a message is stored
    :param connection_timeout: seconds that the connection may be lost before :meth:`receive` raises
        :exc:`~aiosfstream.TransportTimeoutError`; None or 0: any time
    :param max_pending_count: fetching is suspended while so many messages, or more, wait to be
        received; 0 or less: never
    :param json_dumps: serialises what is sent, to str or bytes
    :param json_loads: parses what is received, from str (or bytes, if it is orjson's)
    :param loop: ignored
    :param api_version: the Salesforce API version, such as ``"60.0"``
    :param session_factory: called at each opening with ``cookie_jar=``; what it returns is used for
        all requests, owned and closed by the client. ``functools.partial(aiohttp.ClientSession,
        proxy=..., trust_env=True)`` gives proxies, connectors, tracing
    :param ssl: how TLS is verified, as aiohttp takes it; None: as usual
    :param request_timeout: seconds that each phase of a request may take: to connect, and until the
        next piece of the answer arrives, beyond the time that the server may hold it
    :param poll_timeout: seconds after which the server is asked to answer a connect without events,
        for proxies that cut idle requests; None: its own choice, 110 on Salesforce
    :param observer: called with a :class:`~aiosfstream.ConnectionEvent` at every change of the
        connection; must not block; what it raises is logged
    :raises TypeError: if *authenticator* or *replay* is of no type that is understood
    :raises ValueError: if *api_version* is malformed or older than 37.0
    """

    #: Delays between attempts.
    _retry_policy = RetryPolicy()

    def __init__(
        self,
        authenticator: AuthenticatorBase,
        *,
        replay: ReplayOption
        | ReplayMarkerStorage
        | MutableMapping[str, Any]
        | None = ReplayOption.NEW_EVENTS,
        replay_fallback: ReplayOption | None = None,
        replay_storage_policy: ReplayMarkerStoragePolicy = ReplayMarkerStoragePolicy.AUTOMATIC,
        connection_timeout: float | None = 10.0,
        max_pending_count: int = 100,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        loop: asyncio.AbstractEventLoop | None = None,
        api_version: str = API_VERSION,
        session_factory: SessionFactory = aiohttp.ClientSession,
        ssl: SSLValidationMode | None = None,
        request_timeout: float = 15.0,
        poll_timeout: float | None = None,
        observer: Callable[[ConnectionEvent], None] | None = None,
    ) -> None:
        if not isinstance(authenticator, AuthenticatorBase):
            raise TypeError(
                "authenticator should be an instance of AuthenticatorBase, not"
                f" {type(authenticator).__name__!r}"
            )
        storage = self.create_replay_storage(replay)
        if storage is None:
            raise TypeError(
                f"{type(replay).__name__!r} is not a valid type for the replay parameter; it takes a"
                " ReplayOption, a ReplayMarkerStorage, a mutable mapping or None"
            )
        _check_api_version(api_version)
        if loop is not None:
            warnings.warn(
                "the loop argument is ignored: a client uses the event loop that it is opened in",
                DeprecationWarning,
                stacklevel=2,
            )
        if json_dumps is not json.dumps:
            authenticator.json_dumps = json_dumps
        if json_loads is not json.loads:
            authenticator.json_loads = json_loads
        super().__init__(
            connection_timeout=connection_timeout,
            ssl=ssl,
            max_pending_count=max_pending_count,
            extensions=[storage],
            auth=authenticator,
            json_dumps=json_dumps,
            json_loads=json_loads,
            session_factory=session_factory,
        )
        self._replay_storage: ReplayMarkerStorage = storage
        self._replay_storage_policy = replay_storage_policy
        #: Where to start a channel whose replay id is refused.
        self.replay_fallback = replay_fallback
        self._api_version = api_version
        self._request_timeout = request_timeout
        self._poll_timeout = poll_timeout
        self._report = LOG_ONLY if observer is None else Reporter(observer)
        self._turn = Turn()
        self._direct: Callable[[JsonObject], bool] | None = None
        self._direct_is_known = False
        LOGGER.debug(
            "Client created with replay storage %r, replay fallback %r", storage, replay_fallback
        )

    def __repr__(self) -> str:
        """Name what identifies the client; nothing secret."""
        return (
            f"{type(self).__name__}({self.authenticator!r}, replay={self.replay_storage!r},"
            f" replay_fallback={self.replay_fallback!r}, state={self.state.name})"
        )

    @property
    def authenticator(self) -> AuthenticatorBase:
        """The authenticator; also found as ``auth``."""
        return cast(AuthenticatorBase, self.auth)

    @property
    def replay_storage(self) -> ReplayMarkerStorage:
        """Where markers are read from and stored."""
        return self._replay_storage

    @replay_storage.setter
    def replay_storage(self, storage: ReplayMarkerStorage) -> None:
        self._replay_storage = storage
        self._forget_direct_store()

    @property
    def replay_storage_policy(self) -> ReplayMarkerStoragePolicy:
        """When the marker of a message is stored."""
        return self._replay_storage_policy

    @replay_storage_policy.setter
    def replay_storage_policy(self, policy: ReplayMarkerStoragePolicy) -> None:
        self._replay_storage_policy = policy
        self._forget_direct_store()

    @staticmethod
    def create_replay_storage(replay_param: object) -> ReplayMarkerStorage | None:
        """Make a storage out of what a client's ``replay`` argument may be.

        :param replay_param: a replay option, a storage, a mutable mapping or None
        :return: the storage, or None if it is nothing of these
        """
        if isinstance(replay_param, ReplayMarkerStorage):
            return replay_param
        if replay_param is None:
            return ConstantReplayId(ReplayOption.NEW_EVENTS)
        if isinstance(replay_param, ReplayOption):
            return ConstantReplayId(replay_param)
        if isinstance(replay_param, MutableMapping):
            return MappingStorage(replay_param)
        return None

    @staticmethod
    def get_cometd_url(instance_url: str, api_version: str = API_VERSION) -> str:
        """Give the URL of the CometD endpoint.

        :param instance_url: the URL of the org's instance, with or without a slash at its end
        :param api_version: the Salesforce API version
        :return: ``instance_url/cometd/api_version``
        """
        return f"{instance_url.rstrip('/')}/{COMETD_PATH}/{api_version}"

    # Opening and closing

    @translate_errors
    async def open(self) -> None:
        """Log in and connect.

        After any failure or cancellation everything is released, and it can be opened again.

        :raises ClientInvalidOperation: if the client is open already
        :raises AuthenticationError: if the credentials are refused, or the token endpoint cannot be
            reached or understood
        :raises ClientError: if the server does not offer long polling
        :raises TransportError: if the endpoint cannot be reached or understood
        :raises ServerError: if the handshake or the first connect is refused
        """
        self._begin_to_open()
        authenticator = self.authenticator
        try:
            http_session = self._open_http_session()
            LOGGER.debug("Authenticating using %r", authenticator)
            with lend_session(http_session, self.ssl):
                await authenticator.authenticate()
            LOGGER.info("Successfully authenticated. Instance URL: %r", authenticator.instance_url)
            self.url = self._endpoint()
            await super().open()
        except BaseException:
            await self._release()
            raise
        finally:
            self._is_opening = False

    @translate_errors
    async def close(self) -> None:
        """Disconnect from the server.

        Takes a few seconds at the most, whatever the server does, and may be called more than once
        and while another task waits in :meth:`receive`. Messages that are pending can still be
        received.
        """
        was_open = not self.closed
        await super().close()
        if was_open:
            await self._flush_at_close()
            self._report(ConnectionEvent(ConnectionEventKind.CLOSED))

    async def _flush_at_close(self) -> None:
        try:
            await self._before_waiting()
        except ReplayError as error:
            LOGGER.error(
                "Closed the client of %s, but the last replay markers could not be stored, so their events come"
                " again: %s",
                self.url,
                error,
            )

    def _endpoint(self) -> str:
        return self.get_cometd_url(self.authenticator.instance_url or "", self._api_version)

    async def _log_in_again(self, refused: str | None) -> str:
        """Get a token in place of a refused one.

        :param refused: the ``Authorization`` header that was refused
        :return: the endpoint, which the new token may have moved
        """
        assert self._http_session is not None
        with lend_session(self._http_session, self.ssl):
            await self.authenticator.reauthenticate(refused)
        self.url = self._endpoint()
        return self.url

    def _make_transport(
        self, mailbox: Mailbox, http_session: aiohttp.ClientSession
    ) -> LongPollingTransport:
        session = Session(
            owner=self,
            report=self._report,
            policy=self._retry_policy,
            rng=_CHANCE,
            limit=mailbox.limit,
            poll_timeout=self._poll_timeout,
        )
        dumps, loads = self._json
        phase = self._request_timeout
        settings = Settings(
            owner=self,
            auth=self.authenticator,
            extensions=self.extensions or [],
            before_poll=partial(flush, self._replay_storage)
            if buffers(self._replay_storage)
            else None,
            report=self._report,
            request_timeout=phase,
            ssl=self.ssl,
            json_dumps=dumps,
            json_loads=loads,
        )
        attach(self._replay_storage, session.aliases, client=self)
        return LongPollingTransport(self.url, session, mailbox, http_session, settings)

    def _choose_fallback(self, channel: str, reply: JsonObject) -> Any:
        return None if self.replay_fallback is None else _plain_id(self.replay_fallback)

    def _overwrite_with(self, message: JsonObject) -> None:
        overwrite_with(self._replay_storage, message)

    # Channels

    @translate_errors
    async def subscribe(
        self, channel: str, *, replay: ReplayOption | ReplayMarker | int | str | None = None
    ) -> None:
        """Subscribe to *channel*.

        If the replay id is refused and there is a ``replay_fallback``, it starts from that.

        :param channel: the channel, such as ``/event/Low_Ink__e`` or ``/data/AccountChangeEvent``
        :param replay: where this subscription starts, in place of what the client's ``replay`` says:
            a :class:`~aiosfstream.ReplayOption`, or the replay id of the last event that is not
            wanted any more
        :raises ClientInvalidOperation: if the client is closed
        :raises TransportError: if the request fails; what the server made of it is not known then
        :raises ServerError: if the server refuses it
        :raises AuthenticationError: if the session must be renewed and the credentials are refused
        :raises ReplayError: if the marker cannot be read
        """
        self._check_open(f"subscribe to {channel}")
        token = REPLAY.set(_plain_id(replay))
        try:
            await super().subscribe(channel)
        finally:
            REPLAY.reset(token)

    @translate_errors
    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from *channel*. Its pending messages can still be received.

        :param channel: the channel, as subscribed
        :raises ClientInvalidOperation: if the client is closed
        :raises TransportError: if the request fails
        :raises ServerError: if the server refuses it
        """
        self._check_open(f"unsubscribe from {channel}")
        await super().unsubscribe(channel)

    @translate_errors
    async def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Publish *data* on *channel*, as CometD does it.

        Salesforce does not offer this: there, generic and platform events are published over its
        REST API (Streaming API Developer Guide, "Bayeux Protocol, CometD, and Long Polling").

        :param channel: the channel
        :param data: what to publish
        :return: the server's reply
        :raises ClientInvalidOperation: if the client is closed
        :raises TransportError: if the request fails, or *data* cannot be serialised
        :raises ServerError: if the server refuses it
        """
        self._check_open(f"publish on {channel}")
        return await super().publish(channel, data)

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise ClientInvalidOperation(f"Cannot {what}: the client is closed. Open it first.")

    # Messages

    @translate_errors
    async def receive(self) -> JsonObject:
        """Wait for the next message.

        Cancelling it never loses a message: the next call gives it. The same holds if its marker
        cannot be stored. Messages that are pending come before any error.

        :return: the message as the server sent it
        :raises ClientInvalidOperation: if the client is closed and nothing is pending
        :raises ServerError: if a channel cannot be resumed, which the error names; the others go on.
            If the server has ended the session for good; the client is closed then
        :raises TransportError: if the endpoint answers in a way that no new attempt could mend; the
            client is closed then
        :raises TransportTimeoutError: if the connection is lost for longer than
            ``connection_timeout``; another call goes on waiting for it
        :raises AuthenticationError: if the credentials are refused; another call tries them again
        :raises ReplayError: if the marker cannot be stored; another call tries again
        """
        turn = self._turn
        if turn.taken:
            await turn.wait()
        turn.taken = True
        try:
            message = await super().receive()
            if self._replay_storage_policy is ReplayMarkerStoragePolicy.AUTOMATIC:
                await self._store_marker(message)
            return message
        finally:
            turn.release()

    async def _store_marker(self, message: JsonObject) -> None:
        """Store the marker of *message*, or make it the next message again."""
        try:
            await store_marker(self._replay_storage, message)
        except BaseException as error:
            self._put_back(message)
            if isinstance(error, ReplayError) or not isinstance(error, Exception):
                raise
            raise _storing_failed(message, error) from error

    async def _before_waiting(self) -> None:
        if buffers(self._replay_storage):
            await flush(self._replay_storage)

    def __aiter__(self) -> AsyncIterator[JsonObject]:
        """Iterate over the messages until the client is closed.

        :raises ServerError: as :meth:`receive`
        :raises TransportError: as :meth:`receive`
        :raises TransportTimeoutError: as :meth:`receive`
        :raises AuthenticationError: as :meth:`receive`
        :raises ReplayError: as :meth:`receive`
        """
        return self._messages() if _iterates_plainly(type(self)) else super().__aiter__()

    async def _messages(self) -> AsyncIterator[JsonObject]:  # noqa: C901
        """Iterate like the inherited iterator, but take what is pending without its chain of calls.

        That chain is open to subclasses, mix-ins and tests, so it is cut short only as long as none
        of them takes part in it.
        """
        turn = self._turn
        self._forget_direct_store()
        plainly = not _receives_by_itself(self)
        while True:
            mailbox = self._mailbox
            if (
                plainly
                and mailbox is not None
                and not turn.taken
                and (mailbox.items or await self._mail_comes(mailbox))
            ):
                store, items = self._direct_store(), mailbox.items
                # A storage that commits in groups would have one group more for each stop.
                surplus = 0 if buffers(self._replay_storage) else mailbox.surplus
                for _ in repeat(None, surplus or len(items)):
                    if (
                        store is None
                        # The application may change where markers go, or receive messages itself, meanwhile.
                        or self._direct is not store
                        or turn.taken
                        or not items
                        # An error, or what aiocometd would turn into one, goes the long way.
                        or (message := items[0]).__class__ is not dict
                        or "successful" in message
                    ):
                        break
                    try:
                        if not store(message):
                            break
                    except ReplayError:
                        raise
                    except Exception as error:
                        raise _storing_failed(message, error) from error
                    items.popleft()
                    if mailbox.suspends is not None:
                        mailbox.make_room()
                    yield message
                else:
                    await _let_fetching_go_on(turns=2 if surplus else 0)
                    continue
                if not items:
                    continue
            try:
                message = await self.receive()
            except ClientInvalidOperation:
                return
            yield message

    async def _mail_comes(self, mailbox: Mailbox) -> bool:
        """Wait as :meth:`receive` does while all is well; say whether that was the case.

        :raises ReplayError: if markers cannot be stored
        """
        self._turn.taken = True
        try:
            await self._before_waiting()
            if not self._polling.connected:
                return False
            if not mailbox.items:
                waiter = mailbox.waiter()
                try:
                    await waiter
                except BaseException:
                    mailbox.forget(waiter)
                    raise
            return True
        finally:
            self._turn.release()

    def _direct_store(self) -> Callable[[JsonObject], bool] | None:
        """Give what stores a marker without waiting, or None if messages must go the long way."""
        if not self._direct_is_known:
            manual = self._replay_storage_policy is ReplayMarkerStoragePolicy.MANUAL
            self._direct = _store_nothing if manual else direct_store_of(self._replay_storage)
            self._direct_is_known = True
        return self._direct

    def _forget_direct_store(self) -> None:
        self._direct, self._direct_is_known = None, False

    async def __aenter__(self: ClientT) -> ClientT:
        """Open the client; raises what :meth:`open` raises."""
        await super().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Close the client."""
        await super().__aexit__(exc_type, exc_val, exc_tb)  # type: ignore[arg-type]


class ClientOptions(TypedDict, total=False):
    """The keywords of :class:`Client`, for functions and subclasses that pass them on::

        def make_client(**options: Unpack[ClientOptions]) -> Client:
            return Client(authenticator, **options)

    Each has the meaning and the default that it has there.
    """

    replay: ReplayOption | ReplayMarkerStorage | MutableMapping[str, Any] | None
    replay_fallback: ReplayOption | None
    replay_storage_policy: ReplayMarkerStoragePolicy
    connection_timeout: float | None
    max_pending_count: int
    json_dumps: _http.Dumper
    json_loads: _http.Loader
    loop: asyncio.AbstractEventLoop | None
    api_version: str
    session_factory: SessionFactory
    ssl: SSLValidationMode | None
    request_timeout: float
    poll_timeout: float | None
    observer: Callable[[ConnectionEvent], None] | None


class SalesforceStreamingClient(Client):
    """A :class:`Client` that logs in with a username and a password.

    :param consumer_key: the consumer key of the connected app
    :param consumer_secret: its consumer secret
    :param username: the user
    :param password: the password, with the security token behind it where one is needed
    :param sandbox: whether to log in at test.salesforce.com
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param options: every keyword of :class:`Client`
    :raises ValueError: if *login_url* cannot be used
    """

    def __init__(
        self,
        *,
        consumer_key: str,
        consumer_secret: str,
        username: str,
        password: str,
        sandbox: bool = False,
        login_url: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        authenticator = PasswordAuthenticator(
            consumer_key, consumer_secret, username, password, sandbox=sandbox, login_url=login_url
        )
        super().__init__(authenticator, **options)


def _iterates_plainly(cls: type[Client]) -> bool:
    """Say whether nobody has put anything of their own into the path of a message."""
    return (
        cls.receive is Client.receive
        and cls.__aiter__ is Client.__aiter__
        and receives_plainly(cls)
    )


#: What a test may put into a client's own dictionary to take part in receiving.
_RECEIVING: Final = ("receive", "_get_message", "_verify_response")


def _receives_by_itself(client: Client) -> bool:
    """Say whether a part of receiving was replaced for this one client."""
    # Not by way of its __dict__, which stays in memory once somebody has asked for it.
    return any(
        getattr(getattr(client, name), "__func__", None) is not getattr(Client, name)
        for name in _RECEIVING
    )


def _store_nothing(_message: JsonObject) -> bool:
    return True


async def _let_fetching_go_on(turns: int) -> None:
    """Have the next request sent, so that the server is at work while more messages are handed over.

    :param turns: of the event loop; it is made in the first, and before Python 3.12 aiohttp writes it in the
        second
    """
    for _ in range(turns):
        await asyncio.sleep(0)


def _storing_failed(message: JsonObject, error: Exception) -> ReplayError:
    return ReplayError(
        f"The replay marker of a message on {message.get('channel')} could not be stored:"
        f" {type(error).__name__}: {error!s:.300};"
        " the next receive() gives this message again"
    )


def _check_api_version(api_version: str) -> None:
    if not isinstance(api_version, str) or not _API_VERSION_FORM.fullmatch(api_version):
        raise ValueError(
            f"api_version should be a text such as {API_VERSION!r}, not {api_version!r}"
        )
    if float(api_version) < MIN_API_VERSION:
        raise ValueError(
            f"api_version {api_version} is too old: replay needs {MIN_API_VERSION}.0, and older ones are retired"
        )


def _plain_id(replay: Any) -> Any:
    """Give what is sent for a replay option, a marker or a replay id."""
    if isinstance(replay, ReplayMarker):
        return replay.replay_id
    # An enum's value is what every JSON function can serialise.
    return int(replay) if isinstance(replay, ReplayOption) else replay
