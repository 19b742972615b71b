"""Answers HTTP requests."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol
from weakref import WeakSet

from aiohttp import web

from ._applying import NEVER, Cut, Pause, after, before, body_of, oauth_error, send
from ._oauth import Denied
from ._parts import Parts
from ._ports import cut
from ._requests import Request
from ._sessions import Sender

#: Bytes; larger requests are answered with status 413.
MAX_REQUEST_SIZE: Final = 32_768
#: Seconds that handlers have to notice that the server stops.
STOP_TIMEOUT: Final = 0.2


class Manners(Protocol):
    """How an org answers; it may change at any time.

    :ivar instance_url: what the token endpoint answers with
    :ivar http_401: whether refused tokens are answered with HTTP status 401 and a page
    """

    http_401: bool

    @property
    def instance_url(self) -> str:
        """What the token endpoint answers with."""

    def admit(self, token: str) -> None:
        """Let a token in where the org is now."""


class Front:
    """Answers HTTP requests for a server.

    :param parts: the server's parts
    :param manners: how it answers
    :param keepalive_timeout: seconds after an answer until its connection is closed; None: aiohttp's
        default
    """

    def __init__(
        self, parts: Parts, manners: Manners, keepalive_timeout: float | None = None
    ) -> None:
        self._parts = parts
        self._manners = manners
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pause = Pause(self._stopped)
        #: The connections that have carried a request.
        self._used: WeakSet[Any] = WeakSet()
        options: dict[str, Any] = (
            {} if keepalive_timeout is None else {"keepalive_timeout": keepalive_timeout}
        )
        self._http = web.Server(self._handle, access_log=None, **options)
        parts.addresses.start(self._http)

    async def stop(self) -> None:
        """Stop serving."""
        self._parts.addresses.running.close()
        self._stopped.set_result(None)
        self._parts.bayeux.sessions.release_all()
        self._parts.changes.notify()
        self.cut_all(reset=False)
        await self._http.shutdown(STOP_TIMEOUT)

    def cut_all(self, *, reset: bool) -> None:
        """Cut every connection now.

        :param reset: with a TCP reset, instead of closing it
        """
        for connection in self._http.connections:
            cut(connection.transport, reset=reset)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            entry = await self._read(request)
            number = self._log(entry)
            response = await self._answer(request, entry)
            self._parts.log.answered(number, response.status)
            return response
        except Cut as instead:
            cut(request.transport, reset=instead.reset)
            return web.Response()
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._parts.errors.append(error)
            raise
        finally:
            self._parts.changes.notify()

    async def _read(self, request: web.BaseRequest) -> Request:
        kind = _kind(request.path)
        entry = Request(
            kind,
            headers=dict(request.headers),
            path=request.path,
            reused=request.transport in self._used,
        )
        if request.transport is not None:
            self._used.add(request.transport)
        if kind == "token":
            fields = {name: str(value) for name, value in (await request.post()).items()}
            return replace(entry, form=fields)
        if kind == "cometd":
            messages = self._parse(await request.read())
            channel = messages[0]["channel"] if messages else ""
            return replace(entry, channel=channel, messages=tuple(messages))
        return replace(entry, form=dict(request.query))

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if isinstance(value, dict) and _is_message(value):
            self._parts.violations.append("a request body is a lone message, not an array")
            return [value]
        if isinstance(value, list) and all(map(_is_message, value)):
            return value
        self._parts.violations.append("a request body is no JSON array of messages")
        return []

    def _log(self, request: Request) -> int:
        number = self._parts.log.add(request)
        self._parts.changes.notify()
        return number

    async def _answer(self, request: web.BaseRequest, entry: Request) -> web.StreamResponse:
        self._check_form(request, entry)
        if entry.kind != "cometd":
            return await self._with_faults(request, entry)
        if self._has_left(request):
            return await self._send_on(request)
        async with self._parts.bayeux.watched(_sender(request), entry.messages):
            return await self._with_faults(request, entry)

    def _check_form(self, request: web.BaseRequest, entry: Request) -> None:
        if entry.kind == "token":
            if request.method != "POST" or request.query_string:
                self._parts.violations.append(
                    "a token request should be a POST without a query string"
                )
            if request.headers.get("Authorization", "").startswith(("Bearer ", "OAuth ")):
                self._parts.violations.append("a token request carries an access token")
        elif entry.kind == "cometd":
            if request.method != "POST":
                self._parts.violations.append("a CometD request is no POST")
            if request.query_string:
                self._parts.violations.append("a CometD request has a query string")
            if request.content_type != "application/json":
                self._parts.violations.append(f"a CometD request's type is {request.content_type}")

    def _has_left(self, request: web.BaseRequest) -> bool:
        """Tell whether the org is no longer where a request has come to."""
        address = request.transport.get_extra_info("sockname") if request.transport else None
        return address is not None and address[1] != self._parts.addresses.instance_port

    async def _send_on(self, request: web.BaseRequest) -> web.Response:
        status = self._parts.addresses.moved_status
        if status is None:
            await self._pause.sleep(NEVER)
            raise Cut
        location = self._manners.instance_url.rstrip("/") + request.path
        headers = {"Location": location} if 300 <= status < 400 else {}
        return web.Response(
            status=status, headers=headers, text="<html>moved</html>", content_type="text/html"
        )

    async def _with_faults(self, request: web.BaseRequest, entry: Request) -> web.StreamResponse:
        faults = self._parts.plan.take(entry)
        response = await before(faults, entry, self._parts, self._pause)
        if response is None:
            response = await self._process(request, entry)
            with suppress(ValueError):
                answer = json.loads(body_of(response))
                faults += self._parts.plan.take_for_answer(entry, answer)
        response = await after(faults, response, entry, self._parts, self._pause)
        return await send(faults, request, response, self._pause)

    async def _process(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if entry.kind == "token":
            return self._token(request, entry)
        if entry.kind == "authorize":
            return self._authorize(entry)
        if entry.kind == "identity":
            return self._identity(request)
        if entry.kind == "cometd":
            return await self._cometd(request, entry)
        return web.Response(
            status=404, text="<html><body>Not found</body></html>", content_type="text/html"
        )

    def _token(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if request.method != "POST":
            return oauth_error("invalid_request", "must use HTTP POST")
        host_url = f"{request.scheme}://{request.host}"
        try:
            answer = self._parts.oauth.answer(entry.form, self._manners.instance_url, host_url)
        except Denied as denied:
            return oauth_error(*denied.args)
        self._manners.admit(answer["access_token"])
        return web.json_response(answer)

    def _identity(self, request: web.BaseRequest) -> web.Response:
        url = f"{request.scheme}://{request.host}{request.path}"
        try:
            return web.json_response(self._parts.oauth.identity(url, _sender(request).token))
        except Denied as denied:
            return web.Response(status=403, text=str(denied))

    def _authorize(self, entry: Request) -> web.Response:
        try:
            location = self._parts.oauth.authorize(entry.form)
        except Denied as denied:
            return web.Response(status=400, text=f"error={denied.args[0]}")
        return web.Response(status=302, headers={"Location": location})

    async def _cometd(self, request: web.BaseRequest, entry: Request) -> web.Response:
        if len(await request.read()) > MAX_REQUEST_SIZE:
            return web.Response(status=413, text="413::Maximum Request Size Exceeded")
        if request.method != "POST" or not entry.messages:
            return web.Response(status=400, text="400::Bad request")
        sender = _sender(request)
        if self._manners.http_401 and sender.token not in self._parts.oauth.tokens:
            return web.Response(
                status=401,
                text="<html>Request requires authentication</html>",
                content_type="text/html",
            )
        answer = await self._parts.bayeux.exchange(sender, entry.messages)
        response = web.json_response(answer.messages, status=answer.status)
        for name, value in answer.cookies.items():
            secure = "; Secure" if self._parts.addresses.ssl_context else ""
            hidden = "; HttpOnly" if name == "BAYEUX_BROWSER" else ""
            response.headers.add("Set-Cookie", f"{name}={value}; Path=/{hidden}{secure}")
        return response


def _kind(path: str) -> str:
    """Say what a path is for. One that was put together with two slashes leads nowhere."""
    if "//" in path:
        return "other"
    if path.startswith("/id/") or path == "/services/oauth2/userinfo":
        return "identity"
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
