"""A Salesforce-like org on loopback."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import ssl as ssl_module
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, cast
from urllib.parse import urlsplit

from aiohttp import web

from ._events import Channel, EventBus, Refused, envelope, passes_filter
from ._faults import (
    CutAfter,
    CutBefore,
    Delay,
    Duplicate,
    Fault,
    ForgetSession,
    Garble,
    Hang,
    OAuthError,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    Truncate,
)
from ._oauth import Denied, OAuth

FuncT = TypeVar("FuncT", bound=Callable[..., Any])

#: Bytes; larger requests are answered with status 413.
MAX_REQUEST_SIZE: Final = 32_768
MIN_API_VERSION: Final = 37.0
#: A value that a client must send back byte for byte.
ROUTING_COOKIE: Final = "!//QiKCtgRz/8Ow+tEsT1ng="
AUTHENTICATION_INVALID: Final = "401::Authentication invalid"
UNKNOWN_CLIENT: Final = "403::Unknown client"
NEVER: Final = 3600.0


class Credentials(TypedDict):
    """The arguments that a client needs to log in with a password."""

    consumer_key: str
    consumer_secret: str
    username: str
    password: str
    login_url: str


@dataclass(frozen=True)
class Request:
    """One request, as it arrived.

    :ivar kind: ``token``, ``authorize`` or ``cometd``
    :ivar channel: the first message's channel, empty for others than ``cometd``
    :ivar messages: the Bayeux messages
    :ivar form: the fields of a token request
    :ivar headers: the HTTP headers
    :ivar path: the path
    :ivar time: ``time.monotonic()`` at its arrival
    """

    kind: str
    channel: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    form: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    time: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Session:
    """A client's session.

    :ivar client_id: its id
    :ivar cookie: the value of its ``BAYEUX_BROWSER`` cookie
    :ivar cursors: subscribed channel -> number of the next event to send
    :ivar last_seen: when its last request was answered
    :ivar held: the connect that is held, if there is one
    :ivar connected: whether the first connect has been answered
    :ivar goodbye: whether the next answer tells the client to leave, and with which advice
    """

    client_id: str
    cookie: str
    cursors: dict[str, int] = field(default_factory=dict)
    last_seen: float = field(default_factory=time.monotonic)
    held: asyncio.Future[None] | None = None
    connected: bool = False
    goodbye: str | None = None


@dataclass
class _Planned:
    faults: tuple[Fault, ...]
    on: str | None
    when: Callable[[Request], bool] | None
    times: int


class _Cut(Exception):
    """The connection is cut instead of an answer."""


def control(method: FuncT) -> FuncT:
    """Let a method be called from any thread: it is run in the server's own."""

    @functools.wraps(method)
    def wrapper(self: StreamingServer, *args: Any, **kwargs: Any) -> Any:
        if self._loop is None or self._thread == threading.get_ident():
            return method(self, *args, **kwargs)

        async def call() -> Any:
            return method(self, *args, **kwargs)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    return cast(FuncT, wrapper)


class StreamingServer:
    """An org to test against: token endpoint, Streaming API with replay, and faults on demand.

    An async context manager::

        async with StreamingServer() as server:
            client = SalesforceStreamingClient(**server.credentials)
            ...
            server.publish("/event/Low_Ink__e", {"Ink_Percentage__c": 0.2})

    It behaves as the Streaming API Developer Guide says that Salesforce does. Everything that steers
    it is an ordinary method, which may be called from any thread.

    :param session_timeout: seconds after an answer until a session without a request is deleted
    :param hold_timeout: seconds that a connect is held without events
    :param max_batch: events in one answer at the most
    :param ssl_context: serve https with this context
    :param rotate_refresh_tokens: whether each refresh ends the refresh token used and gives a new one
    :param jwt_public_key: the public key that verifies JWT assertions, PEM
    :param text_replay_ids: whether replay ids are text
    :param slash: whether ``instance_url`` ends with a slash
    :param http_401: answer refused tokens with HTTP status 401 and a page, as older versions do
    :param advise_multiple_clients: give sessions that share a browser cookie the advice to poll slowly
    :param my_domain: whether it is a My Domain host; the client credentials flow works on no other
    """

    def __init__(
        self,
        *,
        session_timeout: float = 40.0,
        hold_timeout: float = 110.0,
        max_batch: int = 1000,
        ssl_context: ssl_module.SSLContext | None = None,
        rotate_refresh_tokens: bool = False,
        jwt_public_key: str | bytes | None = None,
        text_replay_ids: bool = False,
        slash: bool = False,
        http_401: bool = False,
        advise_multiple_clients: bool = True,
        my_domain: bool = True,
    ) -> None:
        self.session_timeout = session_timeout
        self.hold_timeout = hold_timeout
        self.max_batch = max_batch
        self.http_401 = http_401
        self.oauth = OAuth(
            rotate=rotate_refresh_tokens, public_key=jwt_public_key, my_domain=my_domain
        )
        #: Mistakes of clients: what Salesforce forbids or takes amiss.
        self.violations: list[str] = []
        self._requests: deque[Request] = deque(maxlen=100_000)
        self._counts: dict[str, int] = {}
        self._bus = EventBus(text_ids=text_replay_ids)
        self._sessions: dict[str, Session] = {}
        self._faults: list[_Planned] = []
        self._denied: dict[str, str] = {}
        self._known_channels: set[str] | None = None
        self._errors: list[BaseException] = []
        self._ssl_context = ssl_context
        self._slash = "/" if slash else ""
        self._advise_multiple_clients = advise_multiple_clients
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._runner: web.AppRunner | None = None
        self._sites: dict[int, web.TCPSite] = {}
        self._port = 0
        self._instance_port = 0
        self._moved_status = 404
        self._changed: list[asyncio.Future[None]] = []
        self._stopped: asyncio.Future[None] | None = None

    # Running

    async def __aenter__(self) -> StreamingServer:
        """Start serving on a free port of 127.0.0.1."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._stopped = self._loop.create_future()
        application = web.Application(client_max_size=MAX_REQUEST_SIZE * 4)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        self._port = self._instance_port = await self._listen(0)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Stop serving.

        :raises Exception: what a handler raised, if the block did not
        """
        assert self._runner is not None
        assert self._stopped is not None
        self._stopped.set_result(None)
        for session in list(self._sessions.values()):
            self._release(session)
        self._wake()
        self.cut_connections()
        await self._runner.cleanup()
        self._sites.clear()
        self._loop = self._thread = None
        if exc_val is None and self._errors:
            raise self._errors[0]

    async def _listen(self, port: int) -> int:
        assert self._runner is not None
        site = web.TCPSite(
            self._runner, "127.0.0.1", port, ssl_context=self._ssl_context, reuse_address=True
        )
        await site.start()
        port = cast(Any, site)._server.sockets[0].getsockname()[1]
        self._sites[port] = site
        return port

    # Where it is and who may log in

    def _base(self, port: int) -> str:
        return f"{'https' if self._ssl_context else 'http'}://127.0.0.1:{port}"

    @property
    def url(self) -> str:
        """Where it was started."""
        return self._base(self._port)

    @property
    def login_url(self) -> str:
        """The ``login_url`` of authenticators."""
        return self.url

    @property
    def instance_url(self) -> str:
        """What the token endpoint answers with."""
        return self._base(self._instance_port) + self._slash

    @property
    def credentials(self) -> Credentials:
        """The arguments of a ``SalesforceStreamingClient`` or ``PasswordAuthenticator``."""
        return {
            "consumer_key": self.oauth.consumer_key,
            "consumer_secret": self.oauth.consumer_secret,
            "username": self.oauth.username,
            "password": self.oauth.password,
            "login_url": self.login_url,
        }

    @property
    def refresh_token(self) -> str:
        """The refresh token that is valid."""
        return self.oauth.refresh_token

    @control
    def new_access_token(self) -> str:
        """Make an access token that is valid."""
        return self.oauth.issue()

    # Publishing

    @control
    def publish(
        self, channel: str, payload: Any = None, *, date: datetime | None = None
    ) -> int | str:
        """Publish an event, wrapped as Salesforce does for the kind of channel.

        :param channel: ``/event/...``, ``/data/...``, ``/topic/...`` or ``/u/...``
        :param payload: the record's fields; text for a generic event
        :param date: when it was created; None: now
        :return: its replay id
        """
        return self.publish_many([(channel, payload)], date=date)[0]

    @control
    def publish_many(
        self, events: Iterable[tuple[str, Any]], *, date: datetime | None = None
    ) -> list[int | str]:
        """Publish events together, so that they can be in one answer.

        :param events: channels and payloads
        :param date: when they were created; None: now
        :return: their replay ids
        """
        ids = []
        for channel, payload in events:
            replay_id = self._bus.next_id()
            content = {} if payload is None else payload
            self._bus.store(channel, envelope(channel, content, replay_id, date), replay_id)
            ids.append(replay_id)
        self._wake()
        return ids

    @control
    def publish_data(self, channel: str, data: Any, replay_id: Any = None) -> int | str:
        """Publish an event with *data* as it is, however odd.

        :param channel: the channel
        :param data: the message's ``data``
        :param replay_id: the id that it can be resumed behind; None: a new one
        :return: that id
        """
        stored_id: int | str = self._bus.next_id() if replay_id is None else replay_id
        self._bus.store(channel, data, stored_id)
        self._wake()
        return stored_id

    def replay_ids(self, channel: str) -> list[Any]:
        """Give the replay ids of the events that are retained on *channel*, in order."""
        return [event["replay_id"] for event in self._bus.channel(channel).events]

    @control
    def discard_events(self, channel: str | None = None, *, keep: int = 0) -> None:
        """Let the retention window pass: discarded ids are invalid from then on.

        :param channel: the channel; None: all of them
        :param keep: how many of the newest events stay
        """
        names = list(self._bus.channels) if channel is None else [channel]
        for name in names:
            stored: Channel = self._bus.channel(name)
            stored.discard(max(0, len(stored.events) - keep))

    # Refusing

    @control
    def deny(self, channel: str, error: str) -> None:
        """Refuse subscriptions to *channel* with the text *error*."""
        self._denied[channel] = error

    @control
    def allow(self, channel: str) -> None:
        """Take back :meth:`deny`."""
        self._denied.pop(channel, None)

    @control
    def limit_channels(self, *channels: str) -> None:
        """Let only these channels exist; without arguments all do."""
        self._known_channels = set(channels) or None

    @control
    def revoke_tokens(self) -> None:
        """Revoke every access token. Held connects are answered with the refusal."""
        self.oauth.tokens.clear()
        for session in self._sessions.values():
            self._release(session)

    @control
    def expire_sessions(self) -> None:
        """Forget every session. Held connects are answered with ``403::Unknown client``."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            self._release(session)
        self._wake()

    @control
    def disconnect_clients(self, reconnect: str = "handshake") -> None:
        """Send an unasked ``/meta/disconnect`` with the answer to each held connect.

        :param reconnect: the advice that comes with it: ``handshake`` or ``none``
        """
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            session.goodbye = reconnect
            self._release(session)

    # Breaking

    @control
    def cut_connections(self) -> None:
        """Cut every connection now, held connects included."""
        assert self._runner is not None
        if self._runner.server is not None:
            for connection in list(self._runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()

    async def pause(self) -> None:
        """Refuse connections from now on, and cut those that there are."""
        await self._in_loop(self._pause())

    async def _pause(self) -> None:
        for site in self._sites.values():
            await site.stop()
        self.cut_connections()

    async def resume(self) -> None:
        """Accept connections again, at the same port."""
        await self._in_loop(self._resume())

    async def _resume(self) -> None:
        for port in list(self._sites):
            await self._listen(port)

    async def restart(self) -> None:
        """Go down, forget every session, and come up again at the same port."""
        await self.pause()
        self.expire_sessions()
        await self.resume()

    async def move_instance(self, *, status: int = 404) -> None:
        """Move the org: tokens issued from now on name another ``instance_url``.

        :param status: how the old one answers CometD requests; 3xx: with the new one as the location
        """
        await self._in_loop(self._move_instance(status))

    async def _move_instance(self, status: int) -> None:
        self._moved_status = status
        self._instance_port = await self._listen(0)
        self.expire_sessions()

    async def _in_loop(self, coroutine: Any) -> Any:
        if self._loop is asyncio.get_running_loop() or self._loop is None:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    @control
    def add_fault(
        self,
        *faults: Fault,
        on: str | None = None,
        when: Callable[[Request], bool] | None = None,
        times: int = 1,
    ) -> None:
        """Let the next matching requests meet with faults.

        :param faults: what goes wrong, put together, such as ``Delay(1), CutAfter()``
        :param on: ``token``, or the channel of the request's first message; None: any request
        :param when: says whether a request matches
        :param times: how many requests
        """
        self._faults.append(_Planned(faults, on, when, times))

    @control
    def clear_faults(self) -> None:
        """Forget the faults that have not been met yet."""
        self._faults.clear()

    # Looking

    @property
    def requests(self) -> list[Request]:
        """The requests so far, the last 100,000 of them."""
        return list(self._requests)

    def count(self, what: str) -> int:
        """Count requests.

        :param what: ``token``, or the channel of the first message
        """
        return self._counts.get(what, 0)

    @property
    def sessions(self) -> list[Session]:
        """The sessions that are alive."""
        self._expire_idle()
        return list(self._sessions.values())

    @property
    def subscriptions(self) -> set[str]:
        """The channels that sessions are subscribed to."""
        return {channel for session in self.sessions for channel in session.cursors}

    @property
    def held_connects(self) -> int:
        """How many connects are held."""
        return sum(session.held is not None for session in list(self._sessions.values()))

    async def wait_for(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait until *predicate* holds; it is asked whenever a request arrives or is answered.

        :param predicate: called with the server
        :param timeout: seconds
        :raises TimeoutError: if it does not hold in time
        """
        await self._in_loop(self._wait_for(predicate, timeout))

    def wait_until(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait like :meth:`wait_for`, in a thread other than the server's."""
        assert self._loop is not None
        waiting = self._wait_for(predicate, timeout)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result(timeout + 5)

    async def _wait_for(
        self, predicate: Callable[[StreamingServer], object], timeout: float
    ) -> None:
        deadline = time.monotonic() + timeout
        while not predicate(self):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the server did not come to that in {timeout} seconds")
            # Sessions expire without an event, hence the upper bound.
            await self._next_change(min(left, 0.1))

    async def _next_change(self, timeout: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, timeout)

    def _wake(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)
        for session in self._sessions.values():
            if session.held is not None and self._has_events(session):
                self._release(session)

    # Answering HTTP

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except _Cut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._errors.append(error)
            raise
        finally:
            self._wake()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/services/oauth2/authorize"):
            return self._authorize(request)
        body = await request.read()
        if request.path.endswith("/services/oauth2/token"):
            return await self._token(request)
        return await self._cometd(request, body)

    def _authorize(self, request: web.Request) -> web.StreamResponse:
        self._log(Request("authorize", form=dict(request.query), path=request.path))
        try:
            location = self.oauth.authorize(request.query)
        except Denied as denied:
            return web.Response(status=400, text=f"error={denied.args[0]}")
        return web.Response(status=302, headers={"Location": location})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        entry = Request("token", form=form, headers=dict(request.headers), path=request.path)
        self._log(entry)
        if request.method != "POST" or request.query_string:
            self.violations.append("a token request should be a POST without a query string")
        if "Authorization" in request.headers:
            self.violations.append("a token request carries an access token")
        faults = self._faults_for(entry)
        planned = await self._before(faults, entry)
        if planned is not None:
            return await self._send(request, planned, faults)
        host_url = f"{request.scheme}://{request.host}"
        try:
            answer = self.oauth.answer(form, self.instance_url, host_url)
        except Denied as denied:
            return await self._send(request, _oauth_error(*denied.args), faults)
        return await self._send(request, web.json_response(answer), faults)

    async def _cometd(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if len(body) > MAX_REQUEST_SIZE:
            return web.Response(status=413, text="413::Maximum Request Size Exceeded")
        messages = self._parse(body)
        channel = messages[0].get("channel", "") if messages else ""
        entry = Request("cometd", channel, tuple(messages), {}, dict(request.headers), request.path)
        self._log(entry)
        if "?" in request.path_qs or "access_token" in request.path_qs:
            self.violations.append("a CometD request has a query string")
        moved = self._moved(request)
        if moved is not None:
            return moved
        faults = self._faults_for(entry)
        planned = await self._before(faults, entry)
        if planned is not None:
            return await self._send(request, planned, faults)
        if not messages:
            return web.Response(status=400, text="400::Bad request")
        return await self._send(request, await self._exchange(request, messages, faults), faults)

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.violations.append("a request body is no JSON array of messages")
            return []
        return value

    def _moved(self, request: web.Request) -> web.StreamResponse | None:
        address = request.transport.get_extra_info("sockname") if request.transport else None
        if self._instance_port == self._port or not address or address[1] != self._port:
            return None
        location = self._base(self._instance_port) + request.path
        headers = {"Location": location} if 300 <= self._moved_status < 400 else {}
        return web.Response(status=self._moved_status, headers=headers, text="<html>moved</html>")

    def _log(self, request: Request) -> None:
        self._requests.append(request)
        key = request.channel or request.kind
        self._counts[key] = self._counts.get(key, 0) + 1
        self._wake()

    # Faults

    def _faults_for(self, request: Request) -> tuple[Fault, ...]:
        for planned in self._faults:
            if planned.on not in (None, request.channel or request.kind):
                continue
            if planned.when is not None and not planned.when(request):
                continue
            planned.times -= 1
            if planned.times <= 0:
                self._faults.remove(planned)
            return planned.faults
        return ()

    async def _before(self, faults: tuple[Fault, ...], request: Request) -> web.Response | None:
        """Do what comes before the request is looked at; give the answer that replaces its own."""
        for fault in faults:
            if isinstance(fault, Delay):
                await self._wait_or_stop(fault.seconds)
            elif isinstance(fault, Hang):
                await self._wait_or_stop(NEVER)
                raise _Cut
            elif isinstance(fault, CutBefore):
                raise _Cut
            elif isinstance(fault, ForgetSession):
                for message in request.messages:
                    self._sessions.pop(message.get("clientId", ""), None)
            elif isinstance(fault, RevokeTokens):
                self.oauth.tokens.clear()
            else:
                answer = _planned_answer(fault, request)
                if answer is not None:
                    return answer
        return None

    async def _wait_or_stop(self, seconds: float) -> None:
        assert self._stopped is not None
        await asyncio.wait([self._stopped], timeout=seconds)

    async def _send(
        self, request: web.Request, response: web.Response, faults: tuple[Fault, ...]
    ) -> web.StreamResponse:
        for fault in faults:
            if isinstance(fault, CutAfter):
                raise _Cut
            if isinstance(fault, Garble):
                return web.Response(body=fault.body, content_type="text/html")
            if isinstance(fault, Truncate):
                await self._send_part(request, response, fault.size)
                raise _Cut
        return response

    @staticmethod
    async def _send_part(request: web.Request, response: web.Response, size: int | None) -> None:
        body = response.body if isinstance(response.body, bytes) else b""
        part = web.StreamResponse(status=response.status)
        part.content_type = "application/json"
        part.content_length = len(body)
        await part.prepare(request)
        await part.write(body[: len(body) // 2 if size is None else size])

    # Answering Bayeux

    async def _exchange(
        self, request: web.Request, messages: list[dict[str, Any]], faults: tuple[Fault, ...]
    ) -> web.Response:
        if len(messages) > 1:
            self.violations.append("several messages in one request")
        authorized = self._is_authorized(request)
        if not authorized and self.http_401:
            return web.Response(
                status=401,
                text="<html>Request requires authentication</html>",
                content_type="text/html",
            )
        cookies = _cookies(request)
        answer: list[dict[str, Any]] = []
        new_cookie = None
        for message in messages:
            if message.get("channel") == "/meta/handshake":
                reply, new_cookie = self._handshake(request, message, authorized, cookies)
                answer.append(reply)
            else:
                alone = len(messages) == 1
                answer += await self._meta(request, message, authorized, cookies, alone)
        if any(isinstance(fault, Duplicate) for fault in faults):
            answer = [copy for message in answer for copy in _doubled(message)]
        response = web.Response(body=json.dumps(answer).encode(), content_type="application/json")
        if new_cookie is not None:
            self._set_cookies(response, new_cookie)
        return response

    def _is_authorized(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").rpartition(" ")
        return scheme in ("Bearer", "OAuth", "") and token in self.oauth.tokens

    def _set_cookies(self, response: web.Response, browser: str) -> None:
        secure = "; Secure" if self._ssl_context else ""
        response.headers.add("Set-Cookie", f"BAYEUX_BROWSER={browser}; Path=/; HttpOnly{secure}")
        response.headers.add("Set-Cookie", f"sfdc-stream={ROUTING_COOKIE}; Path=/{secure}")

    def _handshake(
        self,
        request: web.Request,
        message: dict[str, Any],
        authorized: bool,
        cookies: dict[str, str],
    ) -> tuple[dict[str, Any], str | None]:
        ext: dict[str, Any] = {"replay": True, "payload.format": True}
        reply: dict[str, Any] = {"ext": ext, "channel": "/meta/handshake", **_id(message)}
        if not authorized:
            asked = "Authorization" in request.headers
            reason = AUTHENTICATION_INVALID if asked else "401::Request requires authentication"
            ext["sfdc"] = {"failureReason": reason}
            return _refused(reply, "403::Handshake denied", {"reconnect": "none"}), None
        error = _version_error(request.path)
        if error is None and "long-polling" not in message.get("supportedConnectionTypes", []):
            error = "400::Invalid connection type"
        if error is not None:
            return _refused(reply, error, None), None
        cookie = cookies.get("BAYEUX_BROWSER") or f"browser{next(self._numbers)}"
        session = Session(f"client{next(self._numbers)}", cookie)
        self._sessions[session.client_id] = session
        reply.update(
            minimumVersion="1.0",
            clientId=session.client_id,
            supportedConnectionTypes=["long-polling"],
            version="1.0",
            successful=True,
        )
        return reply, cookie

    async def _meta(
        self,
        request: web.Request,
        message: dict[str, Any],
        authorized: bool,
        cookies: dict[str, str],
        alone: bool,
    ) -> list[dict[str, Any]]:
        self._expire_idle()
        channel = message.get("channel", "")
        reply: dict[str, Any] = {
            "clientId": message.get("clientId"),
            "channel": channel,
            **_id(message),
        }
        if not authorized:
            return [_refused(reply, AUTHENTICATION_INVALID, {"reconnect": "none", "interval": 0})]
        session = self._sessions.get(message.get("clientId", ""))
        problem = self._cookie_problem(session, cookies)
        if problem is not None:
            return [_refused(reply, problem, None)]
        routed = cookies.get("sfdc-stream", ROUTING_COOKIE) == ROUTING_COOKIE
        if session is None or not routed:
            advice = {"interval": 0, "reconnect": "handshake"}
            return [_refused(reply, UNKNOWN_CLIENT, advice)]
        session.last_seen = time.monotonic()
        handler = {
            "/meta/subscribe": self._subscribe,
            "/meta/unsubscribe": self._unsubscribe,
            "/meta/disconnect": self._disconnect,
        }.get(channel)
        if channel == "/meta/connect":
            return await self._connect(session, message, reply, alone)
        if handler is None:
            return [_refused(reply, "403:denied_by_security_policy:publish_denied", None)]
        return [handler(session, message, reply)]

    def _cookie_problem(self, session: Session | None, cookies: dict[str, str]) -> str | None:
        if cookies.get("sfdc-stream", ROUTING_COOKIE) != ROUTING_COOKIE:
            self.violations.append(f"the routing cookie came back as {cookies['sfdc-stream']}")
        if session is None:
            return None
        if "BAYEUX_BROWSER" not in cookies:
            self.violations.append("the BAYEUX_BROWSER cookie did not come back")
            return (
                f"400::Client {session.client_id} has established a session,"
                " but no BAYEUX_BROWSER cookie present"
            )
        if cookies["BAYEUX_BROWSER"] != session.cookie:
            return "400::Authenticated user id does not match the session's user id"
        return None

    async def _connect(
        self, session: Session, message: dict[str, Any], reply: dict[str, Any], alone: bool
    ) -> list[dict[str, Any]]:
        if message.get("connectionType") != "long-polling":
            return [
                _refused(
                    reply, f"400::Invalid connection type {message.get('connectionType')}", None
                )
            ]
        if session.held is not None:
            self.violations.append("a second connect while one is held")
            self._release(session)
        if alone and not self._has_events(session):
            await self._hold(session, message)
        if session.goodbye is not None:
            advice = {"reconnect": session.goodbye, "interval": 0}
            return [{"channel": "/meta/disconnect"}, _refused(reply, UNKNOWN_CLIENT, advice)]
        if session.client_id not in self._sessions:
            advice = {"interval": 0, "reconnect": "handshake"}
            return [_refused(reply, UNKNOWN_CLIENT, advice)]
        if not self.oauth.tokens:
            return [_refused(reply, AUTHENTICATION_INVALID, {"reconnect": "none", "interval": 0})]
        session.last_seen = time.monotonic()
        reply["successful"] = True
        polling = self._connect_advice(session)
        if polling is not None:
            reply["advice"] = polling
        session.connected = True
        return [*self._take_events(session), reply]

    def _connect_advice(self, session: Session) -> dict[str, Any] | None:
        timeout = round(self.hold_timeout * 1000)
        sharing = [other for other in self._sessions.values() if other.cookie == session.cookie]
        if len(sharing) > 1 and self._advise_multiple_clients:
            return {
                "interval": 2000,
                "multiple-clients": True,
                "reconnect": "retry",
                "timeout": timeout,
            }
        if session.connected:
            return None
        return {"interval": 0, "timeout": timeout, "reconnect": "retry"}

    async def _hold(self, session: Session, message: dict[str, Any]) -> None:
        advice = message.get("advice")
        asked = advice.get("timeout") if isinstance(advice, dict) else None
        seconds = self.hold_timeout if asked is None else min(asked / 1000, self.hold_timeout)
        if seconds <= 0:
            return
        held = session.held = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            await asyncio.wait([held], timeout=seconds)
        finally:
            if session.held is held:
                session.held = None

    @staticmethod
    def _release(session: Session) -> None:
        held, session.held = session.held, None
        if held is not None and not held.done():
            held.set_result(None)

    def _expire_idle(self) -> None:
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if session.held is None and now - session.last_seen > self.session_timeout:
                del self._sessions[session.client_id]

    def _has_events(self, session: Session) -> bool:
        return any(
            cursor < self._bus.channel(_name(subscription)).end
            for subscription, cursor in session.cursors.items()
        )

    def _take_events(self, session: Session) -> list[dict[str, Any]]:
        """Take what is due. It counts as delivered, whether or not the answer arrives."""
        due: dict[int, dict[str, Any]] = {}
        for subscription, cursor in session.cursors.items():
            channel = self._bus.channel(_name(subscription))
            for event in channel.events[max(cursor - channel.first, 0) :]:
                if passes_filter(subscription, event["message"]):
                    due[event["order"]] = event
            session.cursors[subscription] = channel.end
        orders = sorted(due)
        for order in orders[self.max_batch :]:
            event = due[order]
            channel = self._bus.channel(event["message"]["channel"])
            for subscription in session.cursors:
                if _name(subscription) == event["message"]["channel"]:
                    position = channel.positions[event["replay_id"]]
                    session.cursors[subscription] = min(session.cursors[subscription], position)
        return [due[order]["message"] for order in orders[: self.max_batch]]

    def _subscribe(
        self, session: Session, message: dict[str, Any], reply: dict[str, Any]
    ) -> dict[str, Any]:
        subscription = message.get("subscription", "")
        reply["subscription"] = subscription
        error = self._subscription_error(subscription)
        ext = message.get("ext")
        replay = ext.get("replay") if isinstance(ext, dict) else None
        if error is not None:
            return _refused(reply, error, None)
        try:
            session.cursors[subscription] = self._bus.start(subscription, replay)
        except Refused as refused:
            return _refused(reply, str(refused), None)
        reply["successful"] = True
        self._wake()
        return reply

    def _subscription_error(self, subscription: str) -> str | None:
        if not subscription:
            return "400::Channel name not specified"
        if not subscription.startswith("/"):
            return "400::Channel subscriptions must start with a leading '/'"
        if subscription in self._denied:
            return self._denied[subscription]
        if self._known_channels is not None and _name(subscription) not in self._known_channels:
            return (
                "400::The channel you requested to subscribe to doesn't exist"
                f" {{{_name(subscription)}}}"
            )
        return None

    @staticmethod
    def _unsubscribe(
        session: Session, message: dict[str, Any], reply: dict[str, Any]
    ) -> dict[str, Any]:
        reply["subscription"] = message.get("subscription")
        session.cursors.pop(message.get("subscription", ""), None)
        reply["successful"] = True
        return reply

    def _disconnect(
        self, session: Session, message: dict[str, Any], reply: dict[str, Any]
    ) -> dict[str, Any]:
        self._sessions.pop(session.client_id, None)
        self._release(session)
        reply["successful"] = True
        return reply


def _id(message: dict[str, Any]) -> dict[str, Any]:
    return {"id": message["id"]} if "id" in message else {}


def _name(subscription: str) -> str:
    return subscription.partition("?")[0]


def _doubled(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield message
    if "data" in message:
        yield message


def _refused(reply: dict[str, Any], error: str, advice: Mapping[str, Any] | None) -> dict[str, Any]:
    reply.update(error=error, successful=False)
    if advice is not None:
        reply["advice"] = dict(advice)
    return reply


def _version_error(path: str) -> str | None:
    """Check the API version in ``/cometd/NN.0``, with or without one of the vanilla suffixes."""
    version = urlsplit(path).path.removeprefix("/cometd").strip("/").partition("/")[0]
    try:
        number = float(version)
    except ValueError:
        return "400::API version in the URI is mandatory. URI format: '/cometd/66.0'"
    if number < MIN_API_VERSION:
        return (
            "400::Unsupported API version. Only API versions '37.0' and later are supported."
            " URI format: '/cometd/66.0'"
        )
    return None


def _cookies(request: web.Request) -> dict[str, str]:
    """Read the cookies as they are written, quotes included."""
    pairs = (part.partition("=") for part in request.headers.get("Cookie", "").split("; "))
    return {name: value for name, equals, value in pairs if equals}


def _oauth_error(error: str, description: str = "", status: int = 400) -> web.Response:
    return web.json_response({"error": error, "error_description": description}, status=status)


def _planned_answer(fault: Fault, request: Request) -> web.Response | None:
    """Give the answer that a fault puts in the place of the true one, if it does."""
    if isinstance(fault, Status):
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        return web.Response(
            status=fault.status,
            body=body,
            headers=fault.headers,
            content_type=fault.content_type,
        )
    if isinstance(fault, Redirect):
        return web.Response(status=302, headers={"Location": fault.location})
    if isinstance(fault, OAuthError):
        return _oauth_error(fault.error, fault.description, fault.status)
    if isinstance(fault, Refuse):
        return _planned_refusal(fault, request)
    return None


def _planned_refusal(fault: Refuse, request: Request) -> web.Response:
    message = request.messages[0] if request.messages else {}
    reply: dict[str, Any] = {"successful": False, "error": fault.error}
    if not fault.bare:
        reply.update(channel=request.channel, **_id(message))
    if fault.failure_reason is not None:
        reply["ext"] = {"sfdc": {"failureReason": fault.failure_reason}}
    if fault.advice is not None:
        reply["advice"] = dict(fault.advice)
    return web.json_response([reply], status=fault.status)
