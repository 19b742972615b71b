"""What a client does about Salesforce: log in, find the endpoint, choose a fallback, store markers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn, cast
from urllib.parse import urlsplit

import aiohttp
from aiocometd import exceptions
from aiocometd.exceptions import AiocometdException
from aiocometd.extensions import Extension
from aiocometd.typing import Headers, JsonObject, Payload

from ._cometd.client import (
    ENGINES,
    BaseClient,
    SessionFactory,
    json_functions_of,
    mailbox_of,
    raise_untold,
)
from ._cometd.exchange import Settings
from ._cometd.iteration import Store, give_way, take_plain
from ._cometd.mailbox import Mailbox, Turn
from ._cometd.retry import RetryPolicy
from ._cometd.session import Session
from ._cometd.transport import LongPollingTransport
from ._holds import Hold
from ._http.cookies import CookieJar
from ._http.post import MAX_ANSWER_SIZE
from ._oauth.flight import log_in_again
from ._oauth.request import lend_session
from ._oauth.urls import host_is_allowed, host_of
from ._text import Secret, fit
from ._within import within
from .auth import AuthenticatorBase
from .events import LOG_ONLY, ConnectionEvent
from .exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ClientError,
    ReplayError,
    translate,
)
from .replay import (
    DurableStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    attach,
    direct_store_of,
    open_for,
    overwrite_with,
    release_markers,
    store_marker,
    store_nothing,
)

LOGGER = logging.getLogger("aiosfstream.client")

#: Where all clients get their jitter from: each of these has 2.5 KiB of state.
_CHANCE: Final = random.Random()
#: The path of an identity URL, with the id of the org.
_IDENTITY: Final = re.compile(r"/id/(00D[A-Za-z0-9]{12}(?:[A-Za-z0-9]{3})?)(?:/|$)")
#: Characters of an org's id; the three that may follow are a check sum.
_ORG_ID: Final = 15


@dataclass
class Options:
    """The options of a client that aiocometd's client does not have.

    :ivar api_version: the Salesforce API version
    :ivar has_version: whether it was asked for; if not, it is that of the module
    :ivar session_factory: makes the HTTP session
    :ivar request_timeout: seconds for each phase of a request
    :ivar poll_timeout: seconds that the server is asked to hold a connect; None: its own choice
    :ivar storage_timeout: seconds for one call of the storage; None: no limit
    :ivar max_response_size: size of the largest answer that is accepted, in bytes
    :ivar allowed_hosts: hosts that an instance may have; None: any
    :ivar report: called with every event that an observer should know of
    :ivar retry: delays between attempts
    """

    api_version: str
    has_version: bool = True
    session_factory: SessionFactory = aiohttp.ClientSession
    request_timeout: float = 10.0
    poll_timeout: float | None = None
    storage_timeout: float | None = 10.0
    max_response_size: int = MAX_ANSWER_SIZE
    allowed_hosts: Collection[str] | None = None
    report: Callable[[ConnectionEvent], None] = LOG_ONLY
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Policy:
    """What the engine asks of a client of this package.

    :param client: the client
    :param storage: where markers are read from and stored
    :param options: the client's own options
    :ivar stores_on_receipt: whether a marker is stored as its message is handed over
    """

    def __init__(self, client: BaseClient, storage: ReplayMarkerStorage, options: Options) -> None:
        self._client = client
        self._engine = ENGINES.of(client)
        self.options = options
        self._use(storage)
        self.stores_on_receipt = True
        # The id of the org that the client was opened for, if that is known.
        self._org: str | None = None
        self._warned_of_tls = False
        # What keeps markers of the present session from moving on.
        self._holds: dict[str, Hold] = {}
        self._session: Session | None = None
        #: Stores the marker of an ordinary message without waiting; None if nothing can.
        self.direct: Store | None = None

    # Logging in

    @property
    def connection_timeout(self) -> float | None:
        """Seconds that the connection may be lost; None or 0: for ever."""
        return self._client.connection_timeout

    @property
    def authenticator(self) -> AuthenticatorBase:
        """The client's authenticator."""
        return cast(AuthenticatorBase, self._client.auth)

    async def log_in(self, refused: Secret | None) -> str:
        """Get a token, and with it the URL of the endpoint.

        :param refused: the ``Authorization`` header that was refused; if another one is in use by
            now, that is kept. None: the client is being opened
        :return: the endpoint
        :raises AuthenticationError: if no token can be had, or only one of another org, or the instance is
            not in ``allowed_hosts``
        :raises ReplayError: if the storage has markers of another org
        """
        authenticator, http_session = self.authenticator, self._engine.http_session
        assert http_session is not None
        if refused is None:
            LOGGER.debug("Authenticating using %r", authenticator)
        with lend_session(http_session, self._client.ssl, authenticator):
            await log_in_again(authenticator, refused)
        instance_url = authenticator.instance_url or ""
        if not host_is_allowed(instance_url, self.options.allowed_hosts):
            raise AuthenticationError(
                f"Authentication failed: the instance {host_of(instance_url)!r:.200} is not among the allowed_hosts;"
                " add it, or check login_url"
            )
        self._check_org(is_opening=refused is None)
        if refused is None:
            LOGGER.info("Successfully authenticated. Instance URL: %r", fit(instance_url))
            await self.timed("opened", open_for(self._storage, self._org))
        elif _host_of(instance_url) != _host_of(self._client.url):
            LOGGER.warning(
                "The org has moved from %s to %s",
                _host_of(self._client.url),
                _host_of(instance_url),
            )
        self._client.url = self._endpoint(instance_url)
        return self._client.url

    def _endpoint(self, instance_url: str) -> str:
        get_cometd_url: Callable[..., str] = self._client.get_cometd_url  # type: ignore[attr-defined]
        version, has_version = self.options.api_version, self.options.has_version
        takes_both = _takes(get_cometd_url, instance_url, version)
        # As earlier releases called it, wherever that will do: a method of those takes no version.
        if takes_both and (has_version or not _takes(get_cometd_url, instance_url)):
            return get_cometd_url(instance_url, version)
        return get_cometd_url(instance_url)

    def _check_org(self, *, is_opening: bool) -> None:
        """Note whose org the token is for, or refuse another one than the client was opened for.

        The replay ids of one org may by chance be ids of another: events would be skipped in silence.
        """
        found = _IDENTITY.search(urlsplit(str(self.authenticator.id or "")).path)
        org = found[1] if found else None
        if is_opening:
            self._org = org
        elif org and self._org and org[:_ORG_ID] != self._org[:_ORG_ID]:
            raise AuthenticationError(
                f"Authentication failed: the new token is for another org, {org}, than the client was opened for,"
                f" {self._org}, and the replay ids of one mean nothing in the other; close the client and open it"
                " again, or check login_url and the user"
            )

    # The engine

    def make_http_session(self) -> aiohttp.ClientSession:
        """Make the HTTP session of a client that is being opened."""
        if self._client.ssl is False and not self._warned_of_tls:
            self._warned_of_tls = True
            LOGGER.warning(
                "ssl=False: TLS certificates are not verified, so anyone on the way can read the token and"
                " the events; give an ssl.SSLContext that knows the certificate instead"
            )
        http_session = self.options.session_factory(cookie_jar=CookieJar())
        if not isinstance(http_session, aiohttp.ClientSession):
            raise ClientError(
                f"session_factory should return an aiohttp.ClientSession, not {type(http_session).__name__!r}"
            )
        return http_session

    def make_transport(
        self, url: str, mailbox: Mailbox, http_session: aiohttp.ClientSession
    ) -> LongPollingTransport:
        """Make the transport of a session that is about to begin.

        :param url: the endpoint
        :param mailbox: where events go
        :param http_session: what requests are sent with; it stays the client's
        """
        options = self.options
        session = Session(
            host=self,
            report=options.report,
            policy=options.retry,
            rng=_CHANCE,
            limit=mailbox.limit,
            poll_timeout=options.poll_timeout,
        )
        dumps, loads = json_functions_of(self._client)
        settings = Settings(
            host=self,
            auth=self.authenticator,
            extensions=self._extensions,
            before_poll=self.before_poll,
            report=options.report,
            request_timeout=options.request_timeout,
            max_response_size=options.max_response_size,
            ssl=self._client.ssl,
            json_dumps=dumps,
            json_loads=loads,
        )
        self._session = session
        self._holds = session.channels.sharing.holds
        self._attach()
        return LongPollingTransport(url, session, mailbox, http_session, settings)

    def _attach(self) -> None:
        """Tell the storage about the channels of the session, once there is one."""
        if self._session is not None:
            channels = self._session.channels
            sharing = channels.sharing
            attach(
                self._storage,
                channels.aliases,
                subscribed=sharing.keys,
                client=self._client,
                timeout=self.options.storage_timeout,
                direct=sharing.unshared,
                holds=sharing.holds,
            )
        self.find_direct_store()

    def _extensions(self) -> list[Extension]:
        return [
            self._timed if extension is self._storage else extension
            for extension in self._client.extensions or []
        ]

    def fallback_for(self, channel: str) -> Any:
        """Give the id to use in place of one that is refused, or None to report the refusal.

        :param channel: the channel that is refused; all have the same fallback
        """
        return plain_id(getattr(self._client, "replay_fallback", None))

    def first_after_fallback(self, message: JsonObject) -> None:
        """Have the marker of *message* replace the stored one, which the server has refused."""
        overwrite_with(self._storage, message)

    # Markers

    @property
    def storage(self) -> ReplayMarkerStorage:
        """Where markers are read from and stored."""
        return self._storage

    @storage.setter
    def storage(self, storage: ReplayMarkerStorage) -> None:
        extensions = self._client.extensions or []
        extensions[:] = [storage if one is self._storage else one for one in extensions]
        self._use(storage)
        self._attach()

    def _use(self, storage: ReplayMarkerStorage) -> None:
        self._storage = storage
        self._durable = storage if isinstance(storage, DurableStorage) else None
        self._timed = _Timed(storage, self)
        self._stores_in_groups = self._durable is not None and self._durable.buffers

    def store(self, message: JsonObject) -> Awaitable[None]:
        """Store the marker of a message that is being handed over.

        :param message: the message
        :return: to be awaited; raises ReplayError if that fails
        """
        return self.timed("stored", store_marker(self._storage, message))

    def before_poll(self) -> Awaitable[None] | None:
        """Have what waits to be stored stored, before the server is asked for more.

        :return: to be awaited, if it takes waiting
        :raises ReplayError: if the last attempt has failed
        """
        storage = self._durable
        # A commit that has begun goes on while the server answers.
        if storage is None or storage.begin_flush():
            return None
        return self.timed("stored", storage.flush())

    def before_waiting(self) -> Awaitable[None] | None:
        """Have what waits to be stored stored, when the application has taken all that has come.

        :return: to be awaited, if there may be anything; raises ReplayError if it fails
        """
        if self._durable is None and not self._holds:
            return None
        return self._store_what_waits(nothing_left=True)

    async def before_closing(self) -> None:
        """Store what waits to be stored, when the client is closed.

        :raises ReplayError: if that fails
        """
        await self._store_what_waits(nothing_left=False)

    async def _store_what_waits(self, *, nothing_left: bool) -> None:
        if self._holds:
            releasing = release_markers(self._storage, self._holds, nothing_left=nothing_left)
            await self.timed("stored", releasing)
        if self._durable is not None:
            await self.timed("stored", self._durable.flush())

    def timed(self, what: str, call: Awaitable[None]) -> Awaitable[None]:
        """Await a call of the storage for as long as it may take.

        :param what: what the call does to markers, for the errors: "opened", "read", "stored"
        :param call: the call, to be awaited
        :return: to be awaited; raises ReplayError if it fails or takes longer than ``storage_timeout``
        """
        seconds = self.options.storage_timeout
        return within(seconds, call, partial(_explained, what, self._storage, seconds))

    # What iterating needs

    @property
    def mailbox(self) -> Mailbox | None:
        """What was fetched and not taken yet."""
        return mailbox_of(self._client)

    @property
    def turn(self) -> Turn:
        """The turn to take messages, which one task has at a time."""
        return self._engine.turn

    def receive(self) -> Awaitable[JsonObject]:
        """Wait for the next message, and give it once its marker is stored."""
        return self.take(partial(BaseClient.receive, self._client), self.mailbox)

    async def take(
        self,
        receive: Callable[[], Awaitable[JsonObject]],
        mailbox: Mailbox | None = None,
    ) -> JsonObject:
        """Take the next message, in turn, and give it once its marker is stored.

        :param receive: waits for a message
        :param mailbox: where it may be taken from without that
        """
        turn = self.turn
        if not turn.try_take():
            await turn.take()
        try:
            if mailbox is not None and mailbox.has_room_again:
                mailbox.has_room_again = False
                # It would make one more group.
                if not self._stores_in_groups:
                    await give_way()
            message = take_plain(mailbox)
            if message is None:
                try:
                    message = await receive()
                except AiocometdException as error:
                    self._raise_translated(error)
            direct = self.direct
            try:
                if direct is None or "successful" in message or not direct(message):
                    await self.store(message)
            except BaseException:
                self._put_back(message)
                raise
            return message
        finally:
            turn.release()

    def _put_back(self, message: JsonObject) -> None:
        mailbox = self.mailbox
        if mailbox is not None:
            mailbox.put_back(message)

    def _raise_translated(self, error: AiocometdException) -> NoReturn:
        """Raise what has ended the session, if that is not known yet, or *error* as an exception of this package."""
        if isinstance(error, exceptions.ClientInvalidOperation):
            # aiocometd's, of which ours is one.
            raise_untold(self._client)
        if isinstance(error, AiosfstreamException):
            raise error
        raise translate(error) from error

    def find_direct_store(self) -> None:
        """Choose the direct way of storing anew: the storage, its channels or the policy have changed."""
        self.direct = direct_store_of(self._storage) if self.stores_on_receipt else store_nothing


class _Timed(Extension):
    """A storage whose calls end within ``storage_timeout``, in the place of that storage."""

    def __init__(self, storage: ReplayMarkerStorage, policy: Policy) -> None:
        self._storage = storage
        self._policy = policy

    async def incoming(self, payload: Payload, headers: Headers | None = None) -> None:
        """Show the storage what has come."""
        await self._policy.timed("read", self._storage.incoming(payload, headers))

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Let the storage add to what is sent."""
        await self._policy.timed("read", self._storage.outgoing(payload, headers))


def _explained(
    what: str, storage: ReplayMarkerStorage, seconds: float | None, error: Exception
) -> Exception:
    """Give what tells the application that a storage has failed."""
    if isinstance(error, ReplayError):
        return error
    name = type(storage).__name__
    if isinstance(error, asyncio.TimeoutError):
        return ReplayError(
            f"Replay markers could not be {what}: {name} has not answered within storage_timeout, {seconds}"
            " seconds; look whether it can be reached"
        )
    return ReplayError(
        f"Replay markers could not be {what}: {name} raised {type(error).__name__}: {fit(error)}; look at the"
        " storage"
    )


def _takes(function: Callable[..., Any], *arguments: str) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        # A builtin, such as a text's format, may have no signature.
        return False
    return True


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def plain_id(replay: Any) -> Any:
    """Give what is sent for a replay option, a marker or a replay id.

    :param replay: any of these, or None
    """
    if isinstance(replay, ReplayMarker):
        return replay.replay_id
    # An enum's value is what every JSON function can serialise.
    return int(replay) if isinstance(replay, ReplayOption) else replay
