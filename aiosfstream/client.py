"""The client: log in, stream events, and recover from failures."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import warnings
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    MutableMapping,
)
from enum import Enum, unique
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, cast

import aiohttp
from aiocometd.client import Client as CometdClient
from aiocometd.constants import TransportState
from aiocometd.exceptions import AiocometdException
from aiocometd.typing import JsonObject, SSLValidationMode

from ._cometd.client import (
    ENGINES,
    BaseClient,
    SessionFactory,
    receives_plainly,
    transport_of,
)
from ._cometd.iteration import iterate, take_stored
from ._cometd.transport import REPLAY
from ._http.bodies import Dumper, Loader
from ._http.post import MAX_ANSWER_SIZE
from ._internals import Slot
from ._policy import Options, Policy, plain_id
from ._typing import Unpack
from .auth import AuthenticatorBase, PasswordAuthenticator
from .events import LOG_ONLY, ConnectionEvent, ConnectionEventKind, Reporter
from .exceptions import (
    AiosfstreamException,
    ClientError,
    ClientInvalidOperation,
    ReplayError,
    translate,
    translate_errors,
    translate_errors_context,
)
from .replay import (
    ConstantReplayId,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
)

__all__ = [
    "API_VERSION",
    "COMETD_PATH",
    "LOGGER",
    "Client",
    "ClientOptions",
    "CometdClient",
    "ReplayMarkerStoragePolicy",
    "ReplayParameter",
    "SalesforceStreamingClient",
]

#: The path of the CometD endpoint below the instance URL.
COMETD_PATH: Final = "cometd"
#: The Salesforce API version used unless another is asked for (Spring 2026). A program may set another
#: one here before it makes a client.
API_VERSION = "66.0"
# Equal but another object: shown as the default, and recognised where no version was given.
_NOT_GIVEN: Final = "".join(API_VERSION)
_API_VERSION_FORM: Final = re.compile(r"[1-9][0-9]{1,2}\.0")
#: The first version with replay (Streaming API Developer Guide, "Message Durability").
MIN_API_VERSION = 37
LOGGER = logging.getLogger(__name__)

#: What a client's ``replay`` argument may be.
ReplayParameter = ReplayOption | ReplayMarkerStorage | MutableMapping[str, Any] | None

ClientT = TypeVar("ClientT", bound="Client")
ResultT = TypeVar("ResultT")


@unique
class ReplayMarkerStoragePolicy(Enum):
    """When the marker of a message is stored."""

    #: As ``receive()`` hands the message over. If the program ends before it has processed the
    #: message, that one is not delivered again: at most once.
    AUTOMATIC = 1
    #: When the application has processed it, inside ``async with client.replay_storage(message):``.
    #: If the program ends within the block, the message is delivered again: at least once.
    MANUAL = 2


class Shown(Generic[ResultT]):
    """A property that an instance may hide by an attribute of its own, which earlier releases allowed.

    :param get: gives the value
    """

    def __init__(self, get: Callable[[Any], ResultT]) -> None:
        self._get = get
        self.__doc__ = get.__doc__

    def __get__(self, instance: object | None, owner: type) -> ResultT:
        """Give the value for *instance*."""
        return cast(ResultT, self) if instance is None else self._get(instance)


class Client(BaseClient):
    """A Salesforce Streaming API client.

    An async context manager that opens and closes it, and an async iterator over the messages::

        async with Client(authenticator) as client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                ...

    While it is open, every event of a subscribed channel is delivered once and in the server's
    order, across lost sessions, revoked tokens and broken connections. A client may be made outside an
    event loop, and opened again after it was closed.

    :param authenticator: how to log in
    :param replay: which events to start from: a :class:`~aiosfstream.ReplayOption`, a
        :class:`~aiosfstream.ReplayMarkerStorage`, or a mutable mapping of channels to markers or
        replay ids, which is kept up to date. None: new events
    :param replay_fallback: where to start a channel whose replay id the server refuses as invalid or
        too old, at the first subscription and at each later one; None: raise
        :exc:`~aiosfstream.ServerError`
    :param replay_storage_policy: when the marker of a message is stored
    :param connection_timeout: seconds that the connection may be lost before :meth:`receive` raises
        :exc:`~aiosfstream.TransportTimeoutError`; None or 0: no limit
    :param max_pending_count: fetching is suspended while this many messages or more are pending; 0 or
        less: never
    :param json_dumps: serialises what is sent, to str or bytes
    :param json_loads: parses what is received, from str (or bytes, if it is orjson's)
    :param loop: ignored
    :param api_version: the Salesforce API version, such as ``"60.0"``
    :param session_factory: makes the session for all requests. It is called at each opening with
        ``cookie_jar=``, and the client closes the session. ``functools.partial(aiohttp.ClientSession,
        proxy=..., trust_env=True)`` sets proxies, connectors, tracing
    :param ssl: how to verify TLS, in the form that aiohttp takes; None: as usual
    :param request_timeout: seconds that each phase of a request may take: connecting, and waiting for
        the next piece of the answer, in addition to the time that the server may hold the request. The
        default is that of CometD's own clients (CometD reference, "maxNetworkDelay")
    :param poll_timeout: seconds after which the server should answer a connect without events, for
        proxies that cut idle connections; None: the server's choice, which is 110 on Salesforce
    :param observer: called with a :class:`~aiosfstream.ConnectionEvent` at each change of the
        connection. It must not block. If it raises an exception, that is logged
    :param storage_timeout: seconds that one call of the replay storage may take; None: no limit
    :param max_response_size: size of the largest answer that is accepted, in bytes
    :param allowed_hosts: the hosts that an instance URL may have. A name that begins with a dot stands
        for all hosts below it. None: any host
    :raises TypeError: if *authenticator* or *replay* has a wrong type
    :raises ValueError: if *api_version* is malformed or older than 37.0, or a time or size is not positive
    """

    def __init__(
        self,
        authenticator: AuthenticatorBase,
        *,
        replay: ReplayParameter = ReplayOption.NEW_EVENTS,
        replay_fallback: ReplayOption | None = None,
        replay_storage_policy: ReplayMarkerStoragePolicy = ReplayMarkerStoragePolicy.AUTOMATIC,
        connection_timeout: float | None = 10.0,
        max_pending_count: int = 100,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        loop: asyncio.AbstractEventLoop | None = None,
        api_version: str = _NOT_GIVEN,
        session_factory: SessionFactory = aiohttp.ClientSession,
        ssl: SSLValidationMode | None = None,
        request_timeout: float = 10.0,
        poll_timeout: float | None = None,
        observer: Callable[[ConnectionEvent], None] | None = None,
        storage_timeout: float | None = 10.0,
        max_response_size: int = MAX_ANSWER_SIZE,
        allowed_hosts: Collection[str] | None = None,
    ) -> None:
        _check_authenticator(authenticator)
        storage = _storage_for(replay, self.create_replay_storage)
        options = Options(
            api_version=_checked_version(API_VERSION if api_version is _NOT_GIVEN else api_version),
            has_version=api_version is not _NOT_GIVEN,
            session_factory=session_factory,
            request_timeout=_positive("request_timeout", request_timeout),
            poll_timeout=_positive_or_none("poll_timeout", poll_timeout),
            storage_timeout=_positive_or_none("storage_timeout", storage_timeout),
            max_response_size=int(_positive("max_response_size", max_response_size)),
            allowed_hosts=_checked_hosts(allowed_hosts),
            report=LOG_ONLY if observer is None else Reporter(observer),
        )
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
        policy = Policy(self, storage, options)
        POLICIES.put(self, policy)
        with translate_errors_context():
            super().__init__(
                connection_timeout=_timeout_or_none("connection_timeout", connection_timeout),
                ssl=ssl,
                max_pending_count=max_pending_count,
                extensions=[storage],
                auth=authenticator,
                json_dumps=json_dumps,
                json_loads=json_loads,
                owner=policy,
            )
        self.replay_storage_policy = replay_storage_policy
        #: Where to start a channel whose replay id is refused.
        self.replay_fallback = replay_fallback
        LOGGER.debug(
            "Client created with replay storage %r, replay fallback %r", storage, replay_fallback
        )

    def __repr__(self) -> str:
        """Name what identifies the client; nothing secret."""
        return (
            f"{type(self).__name__}({self.auth!r}, replay={self.replay_storage!r},"
            f" replay_fallback={self.replay_fallback!r}, state={_state_of(self).name})"
        )

    @Shown
    def authenticator(self) -> AuthenticatorBase:
        """The authenticator; also found as ``auth``."""
        return cast(AuthenticatorBase, self.auth)

    @Shown
    def state(self) -> TransportState:
        """The state of the connection, for health checks.

        ``CONNECTED``: the last connect was successful. ``CONNECTING``: opening, or recovering from a
        loss. ``SERVER_DISCONNECTED``: the server has ended the session for good, ``receive()``
        raises the reason. ``DISCONNECTING``, ``DISCONNECTED``: the client is being closed, or closed.
        """
        return _state_of(self)

    @property
    def replay_storage(self) -> ReplayMarkerStorage:
        """Where markers are read from and stored."""
        return policy_of(self).storage

    @replay_storage.setter
    def replay_storage(self, storage: ReplayMarkerStorage) -> None:
        policy_of(self).storage = storage

    @property
    def replay_storage_policy(self) -> ReplayMarkerStoragePolicy:
        """When the marker of a message is stored."""
        on_receipt = policy_of(self).stores_on_receipt
        kinds = ReplayMarkerStoragePolicy
        return kinds.AUTOMATIC if on_receipt else kinds.MANUAL

    @replay_storage_policy.setter
    def replay_storage_policy(self, storage_policy: ReplayMarkerStoragePolicy) -> None:
        policy = policy_of(self)
        policy.stores_on_receipt = storage_policy is ReplayMarkerStoragePolicy.AUTOMATIC
        policy.find_direct_store()

    @staticmethod
    def create_replay_storage(replay_param: object) -> ReplayMarkerStorage | None:
        """Make a storage out of what a client's ``replay`` argument may be.

        :param replay_param: a replay option, a storage, a mutable mapping or None
        :return: the storage, or None if it is none of these
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

    if TYPE_CHECKING:
        # A subclass may override it as in earlier releases, without the second parameter.
        @staticmethod
        def get_cometd_url(instance_url: str, *args: Any, **kwargs: Any) -> str:
            """Return the URL of the CometD endpoint."""

    else:

        @staticmethod
        def get_cometd_url(instance_url: str, api_version: str = _NOT_GIVEN) -> str:
            """Return the URL of the CometD endpoint.

            :param instance_url: the URL of the org's instance, with or without a slash at its end
            :param api_version: the Salesforce API version
            :return: ``instance_url/cometd/api_version``
            """
            version = API_VERSION if api_version is _NOT_GIVEN else api_version
            return f"{instance_url.rstrip('/')}/{COMETD_PATH}/{version}"

    # Opening and closing

    @translate_errors
    async def open(self) -> None:
        """Log in and connect.

        After any failure or cancellation everything is released, and it can be opened again.

        :raises ClientInvalidOperation: if the client is open already, or is closed meanwhile
        :raises AuthenticationError: if the credentials are refused, or the token endpoint cannot be
            reached or understood
        :raises ClientError: if the server does not offer long polling
        :raises TransportError: if the endpoint cannot be reached or understood
        :raises ServerError: if the handshake or the first connect is refused
        :raises ReplayError: if the replay storage cannot be used, or belongs to another org
        """
        return await super().open()

    @translate_errors
    async def close(self) -> None:
        """Disconnect from the server.

        Takes a few seconds at the most, whatever the server does, and may be called more than once
        and while another task waits in :meth:`receive` or :meth:`open`. Messages that are pending can
        still be received.
        """
        was_open = not self.closed
        returned: None = await cast("Any", super()).close()
        if was_open:
            policy = policy_of(self)
            await _store_the_last(self, policy)
            if not _has_ended(self):
                policy.options.report(ConnectionEvent(ConnectionEventKind.CLOSED))
        return returned

    # Channels

    if TYPE_CHECKING:
        # A subclass may override it as in earlier releases, without the keyword.
        def subscribe(self, channel: str, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, None]:
            """Subscribe to *channel*."""

    else:

        @translate_errors
        async def subscribe(
            self, channel: str, *, replay: ReplayOption | ReplayMarker | int | str | None = None
        ) -> None:
            """Subscribe to *channel*.

            If the replay id is refused and there is a ``replay_fallback``, it starts from that. A channel
            that was lost since the client was opened continues where it was.

            :param channel: the channel, such as ``/event/Low_Ink__e`` or ``/data/AccountChangeEvent``
            :param replay: where this subscription starts, in place of what the client's ``replay`` says:
                a :class:`~aiosfstream.ReplayOption`, or a replay id, to start with the event after it
            :raises ClientInvalidOperation: if the client is closed
            :raises ClientError: if *channel* is not the name of a channel
            :raises TransportError: if the request fails; whether the server has received it is not known
            :raises ServerError: if the server refuses it
            :raises AuthenticationError: if the session must be renewed and the credentials are refused
            :raises ReplayError: if the marker cannot be read
            """
            if not self.closed:
                _check_channel(channel, "Subscribing")
            token = REPLAY.set(plain_id(replay))
            try:
                return await super().subscribe(channel)
            finally:
                REPLAY.reset(token)

    @translate_errors
    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from *channel*. Its pending messages can still be received.

        :param channel: the channel, as subscribed
        :raises ClientInvalidOperation: if the client is closed
        :raises TransportError: if the request fails
        :raises ServerError: if the server refuses it
        :raises AuthenticationError: if the session must be renewed and the credentials are refused
        """
        return await super().unsubscribe(channel)

    @translate_errors
    async def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Publish *data* on *channel*, as CometD does it.

        Salesforce does not offer this: there, generic and platform events are published over its
        REST API (Streaming API Developer Guide, "Bayeux Protocol, CometD, and Long Polling").

        :param channel: the channel
        :param data: what to publish
        :return: the server's reply
        :raises ClientInvalidOperation: if the client is closed
        :raises ClientError: if *channel* is not the name of a channel, or one of the protocol's own
        :raises TransportError: if the request fails, or *data* cannot be serialised
        :raises ServerError: if the server refuses it
        :raises AuthenticationError: if the session must be renewed and the credentials are refused
        """
        if not self.closed:
            _check_channel(channel, "Publishing")
        return await super().publish(channel, data)

    # Messages

    async def receive(self) -> JsonObject:
        """Wait for the next message.

        Cancelling it never loses a message: the next call returns it. The same holds if its marker
        cannot be stored. Messages that are pending come before any error.

        :return: the message as the server sent it
        :raises ClientInvalidOperation: if the client is closed and nothing is pending
        :raises ServerError: if a channel cannot be resumed, which the error names; the others go on.
            If the server has ended the session for good; the client is closed then
        :raises TransportError: if the endpoint rejects requests in a way that trying again would not
            change; the client is closed then
        :raises TransportTimeoutError: if the connection is lost for longer than
            ``connection_timeout``; another call waits for it again
        :raises AuthenticationError: if the credentials are refused; another call tries them again
        :raises ReplayError: if the marker cannot be stored; another call tries again
        """
        policy = policy_of(self)
        if not receives_plainly(self):
            # A mix-in, a subclass or a test takes part in it.
            return await policy.take(super().receive)
        message = None if policy.turn.taken else take_stored(policy.mailbox, policy.direct)
        return await policy.receive() if message is None else message

    def __aiter__(self) -> AsyncIterator[JsonObject]:
        """Iterate over the messages until the client is closed.

        :raises ServerError: as :meth:`receive`
        :raises TransportError: as :meth:`receive`
        :raises TransportTimeoutError: as :meth:`receive`
        :raises AuthenticationError: as :meth:`receive`
        :raises ReplayError: as :meth:`receive`
        """
        inherited = super().__aiter__()
        if type(self).receive is Client.receive and receives_plainly(self):
            return iterate(policy_of(self))
        return _translated(inherited)

    async def __aenter__(self: ClientT) -> ClientT:
        """Open the client; raises what :meth:`open` raises."""
        return cast(ClientT, await super().__aenter__())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Close the client."""
        return await super().__aexit__(exc_type, exc_val, exc_tb)  # type: ignore[arg-type]


POLICIES: Final[Slot[Policy | None]] = Slot("policy", lambda: None)


def policy_of(client: Client) -> Policy:
    """Give the policy of a client.

    :param client: the client
    :raises ClientInvalidOperation: if it was made without its constructor
    """
    policy = POLICIES.of(client)
    if policy is None:
        raise ClientInvalidOperation(
            f"{type(client).__name__} was made without its constructor: call super().__init__() in its own"
        )
    return policy


class ClientOptions(TypedDict, total=False):
    """The keywords of :class:`Client`, for functions and subclasses that pass them on::

        def make_client(**options: Unpack[ClientOptions]) -> Client:
            return Client(authenticator, **options)

    Each has the meaning and the default that it has there.
    """

    replay: ReplayParameter
    replay_fallback: ReplayOption | None
    replay_storage_policy: ReplayMarkerStoragePolicy
    connection_timeout: float | None
    max_pending_count: int
    json_dumps: Dumper
    json_loads: Loader
    loop: asyncio.AbstractEventLoop | None
    api_version: str
    session_factory: SessionFactory
    ssl: SSLValidationMode | None
    request_timeout: float
    poll_timeout: float | None
    observer: Callable[[ConnectionEvent], None] | None
    storage_timeout: float | None
    max_response_size: int
    allowed_hosts: Collection[str] | None


class SalesforceStreamingClient(Client):
    """A :class:`Client` that logs in with a username and a password.

    :param consumer_key: the consumer key of the connected app
    :param consumer_secret: its consumer secret
    :param username: the user
    :param password: the password, followed by the security token where one is needed
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


def _state_of(client: Client) -> TransportState:
    transport = transport_of(client)
    if transport is None or (client.closed and ENGINES.of(client).opener is None):
        return TransportState.DISCONNECTED
    return transport.state


def _has_ended(client: Client) -> bool:
    """Say whether the session has ended for good before it was closed, which was reported then."""
    transport = transport_of(client)
    return transport is not None and transport.stop_error is not None


async def _store_the_last(client: Client, policy: Policy) -> None:
    try:
        await policy.before_closing()
    except ReplayError as error:
        LOGGER.error(
            "Closed the client of %s, but the last replay markers could not be stored, so their events come"
            " again: %s",
            client.url,
            error,
        )


async def _translated(messages: AsyncIterator[JsonObject]) -> AsyncIterator[JsonObject]:
    """Iterate over the messages of a mix-in or a test, and translate its errors."""
    try:
        async for message in messages:
            yield message
    except AiosfstreamException:
        raise
    except AiocometdException as error:
        raise translate(error) from error


def _check_authenticator(authenticator: object) -> None:
    if not isinstance(authenticator, AuthenticatorBase):
        raise TypeError(
            "authenticator should be an instance of AuthenticatorBase, not"
            f" {type(authenticator).__name__!r}"
        )


def _storage_for(
    replay: object, create: Callable[[object], ReplayMarkerStorage | None]
) -> ReplayMarkerStorage:
    storage = create(replay)
    if storage is None:
        raise TypeError(
            f"{type(replay).__name__!r} is not a valid type for the replay parameter; it takes a"
            " ReplayOption, a ReplayMarkerStorage, a mutable mapping or None"
        )
    return storage


def _check_channel(channel: object, what: str) -> None:
    if not isinstance(channel, str) or not channel.startswith("/") or channel == "/":
        raise ClientError(
            f"{what} needs the name of a channel, such as '/event/Low_Ink__e', not {channel!r:.200}"
        )
    if channel.startswith("/meta/"):
        raise ClientError(
            f"{what} on {channel:.200} is not possible: that channel belongs to the protocol; use the client's methods"
        )


def _checked_version(api_version: str) -> str:
    if not isinstance(api_version, str) or not _API_VERSION_FORM.fullmatch(api_version):
        raise ValueError(
            f"api_version should be a text such as {API_VERSION!r}, not {api_version!r}"
        )
    if float(api_version) < MIN_API_VERSION:
        raise ValueError(
            f"api_version {api_version} is too old: replay needs {MIN_API_VERSION}.0, and older ones are retired"
        )
    return api_version


def _checked_hosts(hosts: Collection[str] | None) -> Collection[str] | None:
    if isinstance(hosts, str):
        raise TypeError(
            f"allowed_hosts should be a collection of host names, not the text {hosts!r}"
        )
    return hosts


def _positive(name: str, value: float) -> float:
    if not _is_number(value) or not value > 0 or math.isinf(value):
        raise ValueError(f"{name} should be a number above 0, not {value!r}")
    return value


def _positive_or_none(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not value > 0 or math.isinf(value):
        raise ValueError(f"{name} should be a number of seconds above 0 or None, not {value!r}")
    return value


def _timeout_or_none(name: str, value: float | None) -> float | None:
    if value is not None and (not _is_number(value) or not value >= 0):
        raise ValueError(
            f"{name} should be a number of seconds, or 0 or None for ever, not {value!r}"
        )
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
