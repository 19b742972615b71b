"""The shapes of Bayeux messages: which message answers a request, what a reply lacks, what advice says.

Facts come from the Bayeux specification 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from aiocometd.constants import MetaChannel
from aiocometd.typing import JsonObject

from .._http.bodies import Loader, UnreadableError, looks_like_json, parse_json
from .._http.failures import Answer, Failure, status_failure, unreadable
from ..exceptions import ServerError

HANDSHAKE: Final[str] = MetaChannel.HANDSHAKE.value
CONNECT: Final[str] = MetaChannel.CONNECT.value
SUBSCRIBE: Final[str] = MetaChannel.SUBSCRIBE.value
UNSUBSCRIBE: Final[str] = MetaChannel.UNSUBSCRIBE.value
DISCONNECT: Final[str] = MetaChannel.DISCONNECT.value

#: Advice is honoured up to this many seconds between two connects.
MAX_INTERVAL: Final = 30.0
#: Seconds that a connect may be held, where the server's advice says nothing or nonsense.
DEFAULT_HOLD: Final = 110.0
MIN_HOLD: Final = 0.1
MAX_HOLD: Final = 600.0
#: Arrays within arrays are looked into up to this depth.
MAX_DEPTH: Final = 8

#: ``ddd:args:message``, as the specification writes errors.
_ERROR_FORM: Final = re.compile(r"\d{3}:")
_REFUSALS: Final = {
    HANDSHAKE: "Handshake request failed.",
    CONNECT: "Connect request failed.",
    SUBSCRIBE: "Subscribe request failed.",
    UNSUBSCRIBE: "Unsubscribe request failed.",
}


def bayeux_messages(
    answer: Answer, loads: Loader, authorization: str = ""
) -> list[JsonObject] | Failure:
    """Get the Bayeux messages out of an answer of any status.

    Salesforce sends messages with a status of 400 and 401 as well; with such a status only what has
    the marks of a Bayeux message counts as one.

    :param answer: the answer
    :param loads: the application's JSON function
    :param authorization: the request's header of this name: its token must not be quoted in an error
    :return: the messages, at least one; or what their absence means
    """
    if answer.status != 200 and not looks_like_json(answer.body):
        # An error page need not be parsed to see that it is none of ours.
        return status_failure(answer, authorization)
    try:
        messages = list(_objects_in(parse_json(answer.body, loads)))
    except UnreadableError as error:
        return unreadable(answer, error, authorization)
    if answer.status != 200 and not any(map(_is_marked, messages)):
        return status_failure(answer, authorization)
    return messages or status_failure(answer, authorization)


def _objects_in(value: Any, depth: int = 0) -> Iterator[JsonObject]:
    """Give the messages among what an answer holds.

    That should be an array of objects. A lone object stands for an array of one, and what is no
    message is passed over, so that the messages beside it are not lost.
    """
    if isinstance(value, dict):
        if value:
            yield value
    elif isinstance(value, list) and depth < MAX_DEPTH:
        for item in value:
            # Nearly every item is a message, and each is looked at.
            if item.__class__ is not dict:
                yield from _objects_in(item, depth + 1)
            elif item:
                yield item


def _is_marked(message: JsonObject) -> bool:
    return "channel" in message or "successful" in message


def is_meta(channel: object) -> bool:
    """Say whether *channel* is one of the protocol's own, which carry no events.

    :param channel: the channel of a message
    """
    return isinstance(channel, str) and channel.startswith("/meta/")


def is_event(message: JsonObject) -> bool:
    """Say whether *message* holds what somebody has published.

    :param message: a message of an answer
    """
    return "data" in message and not is_meta(message.get("channel"))


def find_reply(messages: list[JsonObject], request: JsonObject) -> JsonObject | None:
    """Find the reply to *request*, and fill in what it lacks.

    :param messages: the messages of an answer that may be the reply
    :param request: the message that was sent
    :return: the reply, with ``channel``, ``id`` and ``successful``; or None
    """
    for message in messages:
        if _answers(message, request):
            return _completed(message, request)
    return None


def _answers(message: JsonObject, request: JsonObject) -> bool:
    """Say whether *message* is the reply to *request*.

    Ids come back as numbers or as text. A refusal may have neither id nor channel; as each request
    holds one message, it can only belong to that.
    """
    if is_event(message) and "successful" not in message:
        return False
    if message.get("channel", request["channel"]) != request["channel"]:
        return False
    if message.get("id") is not None:
        return str(message["id"]) == str(request["id"])
    if "successful" in message or "advice" in message:
        return True
    # A gateway may answer with an "error" of its own, in place of an answer with events in it.
    error = message.get("error")
    return isinstance(error, str) and _ERROR_FORM.match(error) is not None


def _completed(message: JsonObject, request: JsonObject) -> JsonObject:
    """Fill in what a reply may lack.

    Without ``successful``, one to an unsubscribe or a publish counts as success unless it has an
    error; the others do not.
    """
    message["channel"] = request["channel"]
    message["id"] = request["id"]
    if not isinstance(message.get("successful"), bool):
        strict = request["channel"] in (HANDSHAKE, CONNECT, SUBSCRIBE)
        message["successful"] = not strict and not message.get("error")
    if "subscription" in request:
        message.setdefault("subscription", request["subscription"])
    return message


def refusal(reply: JsonObject) -> ServerError:
    """Make the error that reports an unsuccessful reply.

    :param reply: the reply
    """
    return ServerError(_REFUSALS.get(reply["channel"], "Request failed."), reply)


def reconnect_advice(reply: JsonObject) -> str:
    """Give the ``reconnect`` advice of a message.

    :param reply: any message
    :return: ``retry``, ``handshake`` or ``none``; empty text where there is no such advice.
        A negative interval means "none" (CometD reference, "advice")
    """
    advice = reply.get("advice")
    if not isinstance(advice, dict):
        return ""
    interval = _number(advice.get("interval"))
    if interval is not None and interval < 0:
        return "none"
    reconnect = advice.get("reconnect")
    return reconnect if reconnect in ("retry", "handshake", "none") else ""


def interval_of(advice: JsonObject) -> float:
    """Give the seconds to wait before the next connect; the advice is in milliseconds.

    :param advice: the last advice received
    :return: seconds, between 0 and :data:`MAX_INTERVAL`
    """
    milliseconds = _number(advice.get("interval")) or 0.0
    return min(max(milliseconds / 1000, 0.0), MAX_INTERVAL)


def hold_of(advice: JsonObject) -> float:
    """Give the seconds that the server may hold a connect; the advice is in milliseconds.

    :param advice: the last advice received
    :return: seconds, between :data:`MIN_HOLD` and :data:`MAX_HOLD`
    """
    milliseconds = _number(advice.get("timeout"))
    if milliseconds is None:
        return DEFAULT_HOLD
    return min(max(milliseconds / 1000, MIN_HOLD), MAX_HOLD)


def _number(value: Any) -> float | None:
    """Give *value* as a float if it is a JSON number that can be calculated with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Bounds first: an int may be too large for a float; NaN is in no range.
    return float(value) if -1e15 < value < 1e15 else None
