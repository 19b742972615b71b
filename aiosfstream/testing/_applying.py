"""What the faults do to a request and its answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from ._bayeux import doubled, reply_id
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
from ._parts import Parts
from ._requests import Request

#: Seconds that a request which is never answered waits.
NEVER: Final = 3600.0

#: Waits so many seconds, or until the server stops.
Wait = Callable[[float], Awaitable[None]]


class Cut(Exception):
    """The connection is cut instead of an answer."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


async def before(
    faults: tuple[Fault, ...], request: Request, parts: Parts, wait: Wait
) -> web.Response | None:
    """Do what comes before the request is looked at; give the answer that replaces its own."""
    for fault in faults:
        if isinstance(fault, Delay) and not fault.after:
            await wait(fault.seconds)
        elif isinstance(fault, Hang):
            await wait(NEVER)
            raise Cut
        elif isinstance(fault, CutBefore):
            raise Cut(reset=fault.reset)
        elif isinstance(fault, Call):
            fault.function(request)
        elif isinstance(fault, ForgetSession):
            for message in request.messages:
                parts.bayeux.forget_session(message.get("clientId", ""))
        elif isinstance(fault, RevokeTokens):
            parts.oauth.tokens.clear()
            parts.bayeux.release_all()
        else:
            answer = _planned_answer(fault, request)
            if answer is not None:
                return answer
    return None


async def after(
    faults: tuple[Fault, ...], request: web.BaseRequest, response: web.Response, wait: Wait
) -> web.StreamResponse:
    """Do to the answer what is to be done to it."""
    for fault in faults:
        if isinstance(fault, Delay) and fault.after:
            await wait(fault.seconds)
        elif isinstance(fault, CutAfter):
            raise Cut(reset=fault.reset)
        elif isinstance(fault, Garble):
            return web.Response(body=fault.body, content_type="text/html")
        elif isinstance(fault, Truncate):
            await _send_part(request, response, fault.size)
            raise Cut
        elif isinstance(fault, Duplicate):
            _alter(response, lambda messages: list(doubled(messages)))
        elif isinstance(fault, Alter):
            _alter(response, fault.function)
    return response


async def _send_part(request: web.BaseRequest, response: web.Response, size: int | None) -> None:
    body = response.body if isinstance(response.body, bytes) else b""
    part = web.StreamResponse(status=response.status)
    part.content_type = "application/json"
    part.content_length = len(body)
    # Another fault may have cut the connection already.
    with suppress(ConnectionResetError):
        await part.prepare(request)
        await part.write(body[: len(body) // 2 if size is None else size])


def _alter(response: web.Response, function: Callable[[Any], Any]) -> None:
    body = response.body if isinstance(response.body, bytes) else b""
    response.body = json.dumps(function(json.loads(body))).encode()


def oauth_error(error: str, description: str = "", status: int = 400) -> web.Response:
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
        return oauth_error(fault.error, fault.description, fault.status)
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
