"""A Salesforce-like org on loopback."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import ssl as ssl_module
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, cast

from aiohttp import web

from ._bayeux import Bayeux, Sender, Session, doubled, reply_id
from ._events import EventBus, envelope
from ._faults import (
    Alter,
    Call,
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
from ._ports import Ports, cut
from ._requests import Request

FuncT = TypeVar("FuncT", bound=Callable[..., Any])

#: Bytes; larger requests are answered with status 413.
MAX_REQUEST_SIZE: Final = 32_768
#: Requests that are remembered.
MAX_REQUESTS: Final = 100_000
#: Seconds that a request which is never answered waits.
NEVER: Final = 3600.0
#: Seconds that handlers have to notice that the server stops.
STOP_TIMEOUT: Final = 0.2


class Credentials(TypedDict):
    """The arguments that a client needs to log in with a password."""

    consumer_key: str
    consumer_secret: str
    username: str
    password: str
    login_url: str


@dataclass
class _Planned:
    faults: tuple[Fault, ...]
    on: str | None
    when: Callable[[Request], bool] | None
    times: int


class _Cut(Exception):
    """The connection is cut instead of an answer."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class Done:
    """What has happened already; awaiting it lets clients in the same event loop notice."""

    def __await__(self) -> Generator[Any, None, None]:
        """Let others run."""
        # The end of a connection goes through both transports, and TLS between them.
        for _ in range(10):
            yield from asyncio.sleep(0).__await__()


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
    it is an ordinary function, which takes effect before it returns and may be called from any
    thread. What fails in the server is raised at the end of the block.

    The arguments are attributes as well, which may be changed while it runs.

    :param session_timeout: seconds after an answer until a session without a request is deleted
    :param hold_timeout: seconds that a connect is held without events
    :param max_batch: events in one answer at the most
    :param max_clients: sessions at the most; further handshakes are denied
    :param ssl_context: serve https with this context
    :param rotate_refresh_tokens: whether each refresh ends the refresh token used and gives a new
        one; later ``server.oauth.rotate``
    :param jwt_public_key: the public key that verifies JWT assertions, PEM; later
        ``server.oauth.public_key``
    :param text_replay_ids: whether replay ids are text
    :param slash: whether ``instance_url`` ends with a slash
    :param http_401: answer refused tokens with HTTP status 401 and a page, as older versions do
    :param advise_multiple_clients: give sessions that share a browser cookie the advice to poll slowly
    :param my_domain: whether it is a My Domain host; the client credentials flow works on no other.
        Later ``server.oauth.my_domain``
    """

    def __init__(
        self,
        *,
        session_timeout: float = 40.0,
        hold_timeout: float = 110.0,
        max_batch: int = 1000,
        max_clients: int = 2000,
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
        self.max_clients = max_clients
        self.slash = slash
        self.http_401 = http_401
        self.advise_multiple_clients = advise_multiple_clients
        #: Who may log in, and with what.
        self.oauth = OAuth(
            rotate=rotate_refresh_tokens, public_key=jwt_public_key, my_domain=my_domain
        )
        #: Mistakes of clients, in words: what Salesforce forbids or takes amiss.
        self.violations: list[str] = []
        self._bus = EventBus(text_ids=text_replay_ids)
        self._bayeux = Bayeux(self, self._bus, self.oauth.tokens, self.violations, self._notify)
        self._requests: dict[int, Request] = {}
        self._counts: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._faults: list[_Planned] = []
        self._errors: list[BaseException] = []
        self._ssl_context = ssl_context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._http: web.Server | None = None
        self._ports: Ports | None = None
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
        self._http = web.Server(self._handle, access_log=None)
        self._ports = Ports(self._http, self._ssl_context)
        self._port = self._instance_port = self._ports.open()
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
        assert self._ports is not None
        assert self._http is not None
        assert self._stopped is not None
        self._ports.close()
        self._stopped.set_result(None)
        self._bayeux.release_all()
        self._notify()
        self._cut_all(reset=False)
        await self._http.shutdown(STOP_TIMEOUT)
        self._loop = self._thread = None
        if exc_val is None and self._errors:
            raise self._errors[0]

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
        return self._base(self._instance_port) + ("/" if self.slash else "")

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
        :param payload: the record's fields; text for a generic event. The fields of a
            ``ChangeEventHeader`` in it replace those of the header.
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
        self._bayeux.deliver()
        self._notify()
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
        self._bayeux.deliver()
        self._notify()
        return stored_id

    @control
    def replay_ids(self, channel: str) -> list[Any]:
        """Give the replay ids of the events that are retained on *channel*, in order."""
        return [event.replay_id for event in self._bus.channel(channel).events]

    @control
    def discard_events(self, channel: str | None = None, *, keep: int = 0) -> None:
        """Let the retention window pass: discarded ids are invalid from then on.

        :param channel: the channel; None: all of them
        :param keep: how many of the newest events stay
        """
        names = list(self._bus.channels) if channel is None else [channel]
        for name in names:
            stored = self._bus.channel(name)
            stored.discard(max(0, len(stored.events) - keep))

    # Refusing

    @control
    def deny(self, channel: str, error: str) -> None:
        """Refuse subscriptions to *channel* with the text *error*."""
        self._bayeux.denied[channel] = error

    @control
    def allow(self, channel: str) -> None:
        """Take back :meth:`deny`."""
        self._bayeux.denied.pop(channel, None)

    @control
    def limit_channels(self, *channels: str) -> None:
        """Let only these channels exist; without arguments all do."""
        self._bayeux.known_channels = set(channels) or None

    @control
    def revoke_tokens(self) -> None:
        """Revoke every access token. Held connects are answered with the refusal."""
        self.oauth.tokens.clear()
        self._bayeux.release_all()

    @control
    def expire_sessions(self) -> None:
        """Forget every session. Held connects are answered with ``403::Unknown client``."""
        self._bayeux.forget_sessions()
        self._notify()

    @control
    def disconnect_clients(self, reconnect: str = "handshake") -> None:
        """Send every client an unasked ``/meta/disconnect``, in the answer to a connect.

        :param reconnect: the advice that comes with it: ``handshake`` or ``none``
        """
        self._bayeux.send_away(reconnect)
        self._notify()

    # Breaking

    @control
    def cut_connections(self) -> None:
        """Cut every connection now with a TCP reset, held connects included."""
        self._cut_all(reset=True)

    def _cut_all(self, *, reset: bool) -> None:
        assert self._http is not None
        for connection in self._http.connections:
            cut(connection.transport, reset=reset)

    @control
    def pause(self) -> Awaitable[None]:
        """Refuse connections from now on, and cut those that there are.

        :return: nothing of interest; it may be awaited, so that clients notice
        """
        self._go_down()
        return Done()

    def _go_down(self) -> None:
        assert self._ports is not None
        self._ports.pause()
        self._cut_all(reset=True)

    @control
    def resume(self) -> Awaitable[None]:
        """Accept connections again, at the same port.

        :return: nothing of interest; it may be awaited
        """
        assert self._ports is not None
        self._ports.resume()
        return Done()

    @control
    def restart(self) -> Awaitable[None]:
        """Go down, forget every session, and come up again at the same port.

        :return: nothing of interest; it may be awaited, so that clients notice
        """
        self._go_down()
        self.expire_sessions()
        return self.resume()

    @control
    def move_instance(self, *, status: int = 404) -> Awaitable[None]:
        """Move the org: tokens issued from now on name another ``instance_url``.

        :param status: how the old one answers CometD requests; 3xx: with the new one as the location
        :return: nothing of interest; it may be awaited
        """
        assert self._ports is not None
        self._moved_status = status
        self._instance_port = self._ports.open()
        self.expire_sessions()
        return Done()

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
        :param on: ``token``, ``authorize``, or the channel of the request's first message; None: any
            request
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
    @control
    def requests(self) -> list[Request]:
        """The requests so far, the last 100,000 of them."""
        return list(self._requests.values())

    def count(self, what: str) -> int:
        """Count requests.

        :param what: ``token``, ``authorize``, or the channel of the first message
        """
        return self._counts.get(what, 0)

    @property
    @control
    def sessions(self) -> list[Session]:
        """The sessions that are alive."""
        self._bayeux.expire_idle()
        return list(self._bayeux.sessions.values())

    @property
    @control
    def subscriptions(self) -> set[str]:
        """The channels that sessions are subscribed to."""
        return {channel for session in self.sessions for channel in session.cursors}

    @property
    @control
    def held_connects(self) -> int:
        """How many connects are held."""
        return sum(session.held is not None for session in self._bayeux.sessions.values())

    async def wait_for(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait until *predicate* holds; it is asked whenever a request arrives or is answered.

        :param predicate: called with the server, in its thread
        :param timeout: seconds
        :raises TimeoutError: if it does not hold in time
        """
        waiting = self._wait_for(predicate, timeout)
        if self._loop is asyncio.get_running_loop() or self._loop is None:
            await waiting
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting, self._loop))

    def wait_until(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait like :meth:`wait_for`, in a thread other than the server's.

        :raises TimeoutError: if it does not hold in time
        :raises RuntimeError: in the server's own thread, which would stand still
        """
        if self._loop is None or self._thread == threading.get_ident():
            raise RuntimeError(
                "wait_until() is for other threads than the server's: use wait_for()"
            )
        waiting: Coroutine[Any, Any, None] = self._wait_for(predicate, timeout)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result(timeout + 5)

    async def _wait_for(
        self, predicate: Callable[[StreamingServer], object], timeout: float
    ) -> None:
        deadline = time.monotonic() + timeout
        while not predicate(self):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"the server did not come to that in {timeout} seconds: look at its requests and violations"
                )
            # Sessions expire without an event, hence the upper bound.
            await self._next_change(min(left, 0.1))

    async def _next_change(self, timeout: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, timeout)

    def _notify(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    # Answering HTTP

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            entry = await self._read(request)
            number = self._log(entry)
            response = await self._answer(request, entry)
            self._requests[number] = replace(entry, status=response.status)
            return response
        except _Cut as instead:
            cut(request.transport, reset=instead.reset)
            return web.Response()
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._errors.append(error)
            raise
        finally:
            self._notify()

    async def _read(self, request: web.BaseRequest) -> Request:
        headers, path = dict(request.headers), request.path
        kind = _kind(path)
        if kind == "token":
            fields = {name: str(value) for name, value in (await request.post()).items()}
            return Request(kind, form=fields, headers=headers, path=path)
        if kind == "cometd":
            messages = self._parse(await request.read())
            channel = messages[0]["channel"] if messages else ""
            return Request(kind, channel, tuple(messages), headers=headers, path=path)
        return Request(kind, form=dict(request.query), headers=headers, path=path)

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if isinstance(value, dict) and _is_message(value):
            self.violations.append("a request body is a lone message, not an array")
            return [value]
        if isinstance(value, list) and all(map(_is_message, value)):
            return value
        self.violations.append("a request body is no JSON array of messages")
        return []

    def _log(self, request: Request) -> int:
        number = next(self._numbers)
        self._requests[number] = request
        self._requests.pop(number - MAX_REQUESTS, None)
        key = request.channel or request.kind
        self._counts[key] = self._counts.get(key, 0) + 1
        self._notify()
        return number

    async def _answer(self, request: web.BaseRequest, entry: Request) -> web.StreamResponse:
        self._check_form(request, entry)
        if entry.kind != "cometd":
            return await self._with_faults(request, entry)
        moved = self._moved(request)
        if moved is not None:
            return moved
        async with self._bayeux.watched(_sender(request), entry.messages):
            return await self._with_faults(request, entry)

    def _check_form(self, request: web.BaseRequest, entry: Request) -> None:
        if entry.kind == "token":
            if request.method != "POST" or request.query_string:
                self.violations.append("a token request should be a POST without a query string")
            if request.headers.get("Authorization", "").startswith(("Bearer ", "OAuth ")):
                self.violations.append("a token request carries an access token")
        elif entry.kind == "cometd":
            if request.method != "POST":
                self.violations.append("a CometD request is no POST")
            if request.query_string:
                self.violations.append("a CometD request has a query string")
            if request.content_type != "application/json":
                self.violations.append(f"a CometD request's type is {request.content_type}")

    def _moved(self, request: web.BaseRequest) -> web.Response | None:
        address = request.transport.get_extra_info("sockname") if request.transport else None
        if not address or address[1] == self._instance_port:
            return None
        location = self._base(self._instance_port) + request.path
        headers = {"Location": location} if 300 <= self._moved_status < 400 else {}
        return web.Response(
            status=self._moved_status,
            headers=headers,
            text="<html>moved</html>",
            content_type="text/html",
        )

    async def _with_faults(self, request: web.BaseRequest, entry: Request) -> web.StreamResponse:
        faults = self._faults_for(entry)
        response = await self._before(faults, entry)
        if response is None:
            response = await self._process(request, entry)
        return await self._after(request, response, faults)

    async def _process(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if entry.kind == "token":
            return self._token(request, entry)
        if entry.kind == "authorize":
            return self._authorize(entry)
        if entry.kind == "cometd":
            return await self._cometd(request, entry)
        return web.Response(
            status=404, text="<html><body>Not found</body></html>", content_type="text/html"
        )

    def _token(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if request.method != "POST":
            return _oauth_error("invalid_request", "must use HTTP POST")
        host_url = f"{request.scheme}://{request.host}"
        try:
            return web.json_response(self.oauth.answer(entry.form, self.instance_url, host_url))
        except Denied as denied:
            return _oauth_error(*denied.args)

    def _authorize(self, entry: Request) -> web.Response:
        try:
            location = self.oauth.authorize(entry.form)
        except Denied as denied:
            return web.Response(status=400, text=f"error={denied.args[0]}")
        return web.Response(status=302, headers={"Location": location})

    async def _cometd(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if len(await request.read()) > MAX_REQUEST_SIZE:
            return web.Response(status=413, text="413::Maximum Request Size Exceeded")
        if request.method != "POST" or not entry.messages:
            return web.Response(status=400, text="400::Bad request")
        sender = _sender(request)
        if self.http_401 and sender.token not in self.oauth.tokens:
            return web.Response(
                status=401,
                text="<html>Request requires authentication</html>",
                content_type="text/html",
            )
        answer = await self._bayeux.exchange(sender, entry.messages)
        response = web.json_response(answer.messages, status=answer.status)
        for name, value in answer.cookies.items():
            secure = "; Secure" if self._ssl_context else ""
            hidden = "; HttpOnly" if name == "BAYEUX_BROWSER" else ""
            response.headers.add("Set-Cookie", f"{name}={value}; Path=/{hidden}{secure}")
        return response

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
            if isinstance(fault, Delay) and not fault.after:
                await self._wait_or_stop(fault.seconds)
            elif isinstance(fault, Hang):
                await self._wait_or_stop(NEVER)
                raise _Cut
            elif isinstance(fault, CutBefore):
                raise _Cut(reset=fault.reset)
            elif isinstance(fault, Call):
                fault.function(request)
            elif isinstance(fault, ForgetSession):
                for message in request.messages:
                    self._bayeux.forget_session(message.get("clientId", ""))
            elif isinstance(fault, RevokeTokens):
                self.revoke_tokens()
            else:
                answer = _planned_answer(fault, request)
                if answer is not None:
                    return answer
        return None

    async def _wait_or_stop(self, seconds: float) -> None:
        assert self._stopped is not None
        await asyncio.wait([self._stopped], timeout=seconds)

    async def _after(
        self, request: web.BaseRequest, response: web.Response, faults: tuple[Fault, ...]
    ) -> web.StreamResponse:
        """Do to the answer what is to be done to it."""
        for fault in faults:
            if isinstance(fault, Delay) and fault.after:
                await self._wait_or_stop(fault.seconds)
            elif isinstance(fault, CutAfter):
                raise _Cut(reset=fault.reset)
            elif isinstance(fault, Garble):
                return web.Response(body=fault.body, content_type="text/html")
            elif isinstance(fault, Truncate):
                await self._send_part(request, response, fault.size)
                raise _Cut
            elif isinstance(fault, Duplicate):
                _alter(response, lambda messages: list(doubled(messages)))
            elif isinstance(fault, Alter):
                _alter(response, fault.function)
        return response

    @staticmethod
    async def _send_part(
        request: web.BaseRequest, response: web.Response, size: int | None
    ) -> None:
        body = response.body if isinstance(response.body, bytes) else b""
        part = web.StreamResponse(status=response.status)
        part.content_type = "application/json"
        part.content_length = len(body)
        # Another fault may have cut the connection already.
        with suppress(ConnectionResetError):
            await part.prepare(request)
            await part.write(body[: len(body) // 2 if size is None else size])


def _kind(path: str) -> str:
    """Say what a path is for. One that was put together with two slashes leads nowhere."""
    if "//" in path:
        return "other"
    for kind in ("token", "authorize"):
        if path.endswith(f"/services/oauth2/{kind}"):
            return kind
    return "cometd" if path == "/cometd" or path.startswith("/cometd/") else "other"


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("channel"), str)
        and isinstance(value.get("clientId", ""), str)
    )


def _sender(request: web.BaseRequest) -> Sender:
    header = request.headers.get("Authorization")
    # Salesforce takes the official sample's bare token too.
    scheme, _, token = (header or "").rpartition(" ")
    known = header is not None and scheme in ("Bearer", "OAuth", "")
    cookies = (part.partition("=") for part in request.headers.get("Cookie", "").split("; "))

    def is_open() -> bool:
        return request.transport is not None and not request.transport.is_closing()

    return Sender(
        path=request.path,
        token=token if known else None,
        cookies={name: value for name, equals, value in cookies if equals},
        is_open=is_open,
    )


def _alter(response: web.Response, function: Callable[[Any], Any]) -> None:
    body = response.body if isinstance(response.body, bytes) else b""
    response.body = json.dumps(function(json.loads(body))).encode()


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
        return web.Response(status=fault.status, headers={"Location": fault.location})
    if isinstance(fault, OAuthError):
        return _oauth_error(fault.error, fault.description, fault.status)
    if isinstance(fault, Refuse):
        replies = [_refusal(fault, message) for message in request.messages or ({},)]
        return web.json_response(replies, status=fault.status)
    return None


def _refusal(fault: Refuse, message: dict[str, Any]) -> dict[str, Any]:
    reply: dict[str, Any] = {"successful": False, "error": fault.error}
    if not fault.bare:
        reply.update(channel=message.get("channel", ""), **reply_id(message))
        if "clientId" in message:
            reply["clientId"] = message["clientId"]
    if fault.failure_reason is not None:
        reply["ext"] = {"sfdc": {"failureReason": fault.failure_reason}}
    if fault.advice is not None:
        reply["advice"] = dict(fault.advice)
    return reply
