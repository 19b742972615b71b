"""What the faults do to a request and its answer."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeAlias

from aiohttp import web

from ._bayeux import reply_id
from ._faults import (
    Advise,
    Alter,
    AlterBody,
    ByteOrderMark,
    Call,
    Compress,
    CutAfter,
    CutBefore,
    Delay,
    Deliver,
    Drip,
    Duplicate,
    Farewell,
    Fault,
    ForgetSession,
    Garble,
    Hang,
    Head,
    Hold,
    HoldBody,
    Insert,
    OAuthError,
    Overtake,
    Redirect,
    Refuse,
    RevokeTokens,
    Status,
    Truncate,
)
from ._gates import Waitable
from ._parts import Parts
from ._requests import Request
from ._sessions import Session

#: Seconds that a request which is never answered waits.
NEVER: Final = 3600.0

Messages: TypeAlias = "list[dict[str, Any]]"


class Cut(Exception):
    """The connection is cut instead of an answer."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class Pause:
    """Waits, at most until the server stops.

    :param stopped: done when the server stops
    """

    def __init__(self, stopped: asyncio.Future[None]) -> None:
        self._stopped = stopped

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds."""
        await asyncio.wait([self._stopped], timeout=seconds)

    async def until(self, waitable: Waitable) -> None:
        """Wait for something."""
        waiting = asyncio.ensure_future(_wait_for(waitable))
        try:
            await asyncio.wait([self._stopped, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()


async def _wait_for(waitable: Waitable) -> None:
    await waitable.wait()


# Before the request is looked at


async def before(
    faults: tuple[Fault, ...], request: Request, parts: Parts, pause: Pause
) -> web.Response | None:
    """Do what comes before the request is looked at; give the answer that replaces its own."""
    for fault in faults:
        await _wait(fault, pause, after=False)
        if isinstance(fault, Hang):
            await pause.sleep(NEVER)
            raise Cut
        if isinstance(fault, CutBefore) and (request.reused or not fault.reused):
            raise Cut(reset=fault.reset)
        _prepare(fault, request, parts)
        answer = _planned_answer(fault, request)
        if answer is not None:
            return answer
    return None


async def _wait(fault: Fault, pause: Pause, *, after: bool) -> None:
    if isinstance(fault, Delay) and fault.after is after:
        await pause.sleep(fault.seconds)
    elif isinstance(fault, Hold) and fault.after is after:
        await pause.until(fault.until)


def _prepare(fault: Fault, request: Request, parts: Parts) -> None:
    """Change the state that a request meets."""
    if isinstance(fault, Call):
        fault.function(request)
    elif isinstance(fault, ForgetSession):
        _forget(request, parts)
    elif isinstance(fault, RevokeTokens):
        parts.oauth.tokens.clear()
        parts.bayeux.sessions.release_all()
    elif isinstance(fault, Overtake):
        for session in _sessions(request, parts):
            session.overtaking = fault.count


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
        return oauth_error(fault.error, fault.description, fault.status, fault.headers)
    if isinstance(fault, Refuse):
        replies = [_refusal(fault, message) for message in request.messages or ({},)]
        return web.json_response(replies, status=fault.status, headers=fault.headers)
    return None


def oauth_error(
    error: str, description: str = "", status: int = 400, headers: Any = None
) -> web.Response:
    """Refuse a token request."""
    answer = {"error": error, "error_description": description}
    return web.json_response(answer, status=status, headers=headers)


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


def _sessions(request: Request, parts: Parts) -> list[Session]:
    ids = {message.get("clientId") for message in request.messages}
    return [session for session in parts.bayeux.sessions if session.client_id in ids]


def _forget(request: Request, parts: Parts) -> None:
    for session in _sessions(request, parts):
        parts.bayeux.sessions.forget(session.client_id)


# When the answer is there


async def after(
    faults: tuple[Fault, ...], response: web.Response, request: Request, parts: Parts, pause: Pause
) -> web.Response:
    """Do to the answer what is to be done to it."""
    for fault in faults:
        await _wait(fault, pause, after=True)
        if isinstance(fault, CutAfter):
            raise Cut(reset=fault.reset)
        if isinstance(fault, Garble):
            response = web.Response(body=fault.body, content_type="text/html")
        elif isinstance(fault, Head):
            response.set_status(fault.status or response.status)
            response.headers.update(fault.headers)
        _change_body(fault, response)
        _change_messages(fault, response, request, parts)
    return response


def body_of(response: web.Response) -> bytes:
    """Give the body of an answer."""
    return response.body if isinstance(response.body, bytes) else b""


def _change_body(fault: Fault, response: web.Response) -> None:
    if isinstance(fault, AlterBody):
        response.body = fault.function(body_of(response))
    elif isinstance(fault, ByteOrderMark):
        response.body = b"\xef\xbb\xbf" + body_of(response)
    elif isinstance(fault, Compress):
        pack = zlib.compress if fault.encoding == "deflate" else gzip.compress
        response.body = pack(body_of(response))
        response.headers["Content-Encoding"] = fault.encoding


def _change_messages(fault: Fault, response: web.Response, request: Request, parts: Parts) -> None:
    change: Callable[[Any], Any] | None = None
    if isinstance(fault, Alter):
        change = fault.function
    elif isinstance(fault, Duplicate):
        change = _doubled
    elif isinstance(fault, Advise):
        change = functools.partial(_advised, advice=dict(fault.advice))
    elif isinstance(fault, (Insert, Farewell, Deliver)):
        more = _additional(fault, request, parts)
        change = functools.partial(_joined, more=more, first=fault.first)
    if change is not None:
        response.body = json.dumps(change(json.loads(body_of(response)))).encode()


def _additional(fault: Insert | Farewell | Deliver, request: Request, parts: Parts) -> list[Any]:
    """Give what a fault puts among the messages of an answer."""
    if isinstance(fault, Insert):
        return list(fault.values)
    if isinstance(fault, Farewell):
        _forget(request, parts)
        return [{"channel": "/meta/disconnect"}]
    sessions = _sessions(request, parts)
    return [event for session in sessions for event in parts.bayeux.take(session)]


def _joined(messages: list[Any], more: list[Any], *, first: bool) -> list[Any]:
    return [*more, *messages] if first else [*messages, *more]


def _advised(messages: Messages, advice: dict[str, Any]) -> Messages:
    return [message if "data" in message else {**message, "advice": advice} for message in messages]


def _doubled(messages: Messages) -> Messages:
    """Give each event twice."""
    return [copy for message in messages for copy in ([message] * (2 if "data" in message else 1))]


# Sending it


async def send(
    faults: tuple[Fault, ...], request: web.BaseRequest, response: web.Response, pause: Pause
) -> web.StreamResponse:
    """Send the answer as the faults say: in pieces, late, or not all of it."""
    if not any(isinstance(fault, HoldBody | Drip | Truncate) for fault in faults):
        return response
    body = body_of(response)
    part = web.StreamResponse(status=response.status, headers=response.headers)
    part.content_length = len(body)
    # Another fault, or the client, may have cut the connection already.
    with suppress(ConnectionResetError):
        await part.prepare(request)
        for step in _steps(faults, body):
            if isinstance(step, bytes):
                await part.write(step)
            elif isinstance(step, float):
                await pause.sleep(step)
            else:
                await pause.until(step)
    if any(isinstance(fault, Truncate) for fault in faults):
        raise Cut
    return part


def _steps(faults: tuple[Fault, ...], body: bytes) -> list[bytes | float | Waitable]:
    """Give what is to be sent, with the seconds and the events that are waited for in between."""
    for fault in faults:
        if isinstance(fault, Truncate):
            body = body[: len(body) // 2 if fault.size is None else fault.size]
    steps: list[bytes | float | Waitable] = [body]
    for fault in faults:
        if isinstance(fault, HoldBody):
            size = len(body) // 2 if fault.size is None else fault.size
            steps = [body[:size], fault.until, body[size:]]
    for fault in faults:
        if isinstance(fault, Drip):
            steps = [piece for step in steps for piece in _dripped(step, fault)]
    return steps


def _dripped(step: bytes | float | Waitable, drip: Drip) -> Iterator[bytes | float | Waitable]:
    if not isinstance(step, bytes):
        yield step
        return
    for start in range(0, len(step), drip.size):
        yield step[start : start + drip.size]
        yield float(drip.seconds)
