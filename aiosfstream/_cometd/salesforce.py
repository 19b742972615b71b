"""Where Salesforce differs from the Bayeux specification: refusals, failures, channels.

:data:`REFUSALS` and :data:`FAILURES` are the one table of what the server's answers mean. Every path
asks it: opening, connecting, subscribing, subscribing again. Facts come from the Streaming API
Developer Guide ("Streaming API Error Codes", "Handling Streaming API Errors") and from what users of
the API have reported.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from aiocometd.typing import JsonObject

from .._http.failures import Failure, Trouble
from ..exceptions import ServerError, TransportError
from .messages import reconnect_advice

#: A replay id as JSON has it: opaque, usually an int, kept with its type. None: no id.
ReplayId = Any

NEW_EVENTS: Final = -1


class Verdict(Enum):
    """What an answer, or its absence, asks for."""

    #: Go on.
    PROCEED = auto()
    #: The same request again, later, with the same session.
    RETRY = auto()
    #: The same, after longer: a limit is reached.
    WAIT = auto()
    #: A new session.
    RENEW = auto()
    #: A new session: something that was under way in the old one may be gone.
    RENEW_LOST = auto()
    #: A new session without the cookies of the old one.
    RENEW_COOKIES = auto()
    #: A new session, after a while: the server is busy or a limit is reached. The token is good.
    RENEW_LATER = auto()
    #: A new session: the server has ended the old one as a matter of routine.
    FAREWELL = auto()
    #: A new token, then a new session.
    LOG_IN = auto()
    #: The org may have moved: a new token, which comes with the URL of the org's instance.
    RELOCATE = auto()
    #: Another replay id, if there is a fallback.
    FALL_BACK = auto()
    #: This one request is refused, for good. The session is as it was.
    REFUSED = auto()
    #: Nothing that the client could do helps.
    STOP = auto()


class Refusal(NamedTuple):
    """One row of the table of refusals.

    :ivar name: what has happened, for the documentation
    :ivar says: what the server's reason looks like; texts change between releases, so only the words
        that carry the meaning are in it
    :ivar session: what it means in a reply to a handshake or a connect
    :ivar channel: what it means in a reply to a subscribe
    """

    name: str
    says: re.Pattern[str]
    session: Verdict
    channel: Verdict


def _says(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


#: What refusals mean, by the reason: the first that fits.
REFUSALS: Final = (
    Refusal(
        "the server is busy, or has a problem of its own",
        _says(r"(408|412|429|5\d\d)\b|.{0,200}too busy"),
        Verdict.RENEW_LATER,
        Verdict.WAIT,
    ),
    Refusal(
        "a limit is reached: of connections, of events, of a topic",
        _says(
            r".{0,300}(limit (has been )?exceeded|concurrent user limit|simultaneous connections|_LIMIT_EXCEEDED\b)"
        ),
        Verdict.RENEW_LATER,
        Verdict.WAIT,
    ),
    Refusal("the token is refused", _says(r"401\b"), Verdict.LOG_IN, Verdict.LOG_IN),
    Refusal(
        "the server no longer knows the session",
        _says(
            r"402\b|403\b.{0,100}(unknown.client|not completed handshake|(session.unknown|unknown.session))"
        ),
        Verdict.RENEW,
        Verdict.RENEW,
    ),
    Refusal(
        "the session's cookie is missing or belongs to another user",
        _says(r"400\b.{0,300}(cookie present|authenticated user id does not match)"),
        Verdict.RENEW_COOKIES,
        Verdict.RENEW_COOKIES,
    ),
    # "400::The replayId {82} you provided was invalid. ..." and "400::The replayId for channel {/topic/x}
    # wasn't found using the provided replay ID map {{}}. ..."
    Refusal(
        "the replay id is unknown, or older than the retention window",
        _says(
            r"400\b.{0,20}the replay\s?id\b(.{0,2000}you provided was invalid|"
            r".{0,2000}wasn.t found using the provided replay)"
        ),
        Verdict.RETRY,
        Verdict.FALL_BACK,
    ),
    Refusal(
        "denied, or no such channel",
        _says(r"4\d\d\b"),
        Verdict.RETRY,
        Verdict.REFUSED,
    ),
)

#: What requests without a usable answer mean.
FAILURES: Final = {
    Trouble.NOT_SENT: Verdict.RETRY,
    Trouble.THROTTLED: Verdict.WAIT,
    Trouble.LOST: Verdict.RENEW_LOST,
    Trouble.UNREADABLE: Verdict.RENEW_LOST,
    Trouble.UNAUTHORIZED: Verdict.LOG_IN,
    Trouble.FORBIDDEN: Verdict.LOG_IN,
    Trouble.REDIRECTED: Verdict.RELOCATE,
    Trouble.REJECTED: Verdict.STOP,
}
#: HTTP statuses of an instance that the org has left.
_GONE: Final = (404, 410, 421)
#: The org's limit of API requests, as an error page has it.
_LIMIT: Final = re.compile("REQUEST_LIMIT_EXCEEDED")
#: What the advice that comes with a refusal asks for.
_ADVISED: Final = {"none": Verdict.STOP, "handshake": Verdict.RENEW}
#: HTTP statuses below 500 that time may change.
_PASSING_STATUSES: Final = (408, 425, 429)
#: What a refusal means that time may change.
_PASSING: Final = (Verdict.WAIT, Verdict.RENEW)
#: The longest reason that is looked at.
_MAX_REASON: Final = 4000


def judge_failure(failure: Failure) -> Verdict:
    """Say what a request without a usable answer asks for.

    :param failure: why there is none
    """
    if failure.trouble is Trouble.REJECTED and failure.status in _GONE:
        return Verdict.RELOCATE
    if failure.trouble is Trouble.FORBIDDEN and _LIMIT.search(failure.reason):
        # HTTP status 403 then, as if the token were refused. A new one would cost one request more.
        return Verdict.WAIT
    return FAILURES[failure.trouble]


def judge_session(reply: JsonObject) -> Verdict:
    """Say what the reply to a handshake or a connect asks for.

    Salesforce puts the true cause into ``ext.sfdc.failureReason``; the ``error`` beside it may say
    something else, and the advice may be ``none`` where its guide asks for a reconnect. So they are
    looked at in that order.

    :param reply: a reply whose ``successful`` is filled in
    """
    advised = reconnect_advice(reply)
    if reply["successful"]:
        # A request that is served is not refused: the server ends the session, as /meta/disconnect does.
        farewell = Verdict.FAREWELL if advised == "none" else Verdict.PROCEED
        return Verdict.RENEW if advised == "handshake" else farewell
    found = _refusal_of(reply)
    if found is not None and found.session is not Verdict.RETRY:
        return found.session
    return _ADVISED.get(advised, Verdict.RETRY)


def judge_channel(reply: JsonObject) -> Verdict:
    """Say what the reply to a subscribe asks for.

    :param reply: a reply whose ``successful`` is filled in
    """
    if reply["successful"]:
        return Verdict.PROCEED
    found = _refusal_of(reply)
    if found is not None:
        return found.channel
    # Without a reason: what is refused for good is refused with one.
    return Verdict.RENEW if reconnect_advice(reply) == "handshake" else Verdict.REFUSED


def judge_request(reply: JsonObject) -> Verdict:
    """Say what the reply to an unsubscribe or a publish asks for.

    :param reply: a reply whose ``successful`` is filled in
    """
    verdict = judge_channel(reply)
    return verdict if verdict in _ABOUT_THE_SESSION | {Verdict.PROCEED} else Verdict.REFUSED


#: What is not about the one request that was refused.
_ABOUT_THE_SESSION: Final = {Verdict.LOG_IN, Verdict.RENEW, Verdict.RENEW_COOKIES}


def ends_session(verdict: Verdict) -> bool:
    """Say whether a refused request beside the connect has shown that the session cannot be used any more.

    :param verdict: what the refusal means
    """
    return verdict in _ABOUT_THE_SESSION


def may_pass(error: ServerError | TransportError) -> bool:
    """Say whether the same request may succeed later, though nobody changes anything.

    :param error: what a request has ended with
    """
    if isinstance(error, TransportError):
        status = error.status
        is_limited = status == 403 and _LIMIT.search(str(error)) is not None
        return status is None or status >= 500 or status in _PASSING_STATUSES or is_limited
    found = _refusal_of(error.response) if isinstance(error.response, dict) else None
    return found is not None and found.channel in _PASSING


def _refusal_of(reply: JsonObject) -> Refusal | None:
    """Find the row of the table for a refusal."""
    error = ServerError("", reply)
    for reason in (error.failure_reason, error.error):
        text = " ".join((reason or "")[:_MAX_REASON].split())
        for row in REFUSALS:
            if row.says.match(text):
                return row
    return None


def is_broad(subscribed: str) -> bool:
    """Say whether a subscription may bring events of other channels.

    :param subscribed: the key of a subscription
    """
    return subscribed.endswith(("/*", "/**", "__chn")) or subscribed == "/data/ChangeEvents"


def may_deliver(subscribed: str, channel: str) -> bool:
    """Say whether a subscription may bring events of another channel's name.

    :param subscribed: the key of a subscription
    :param channel: the channel of an event
    """
    if subscribed.endswith("/**"):
        return channel.startswith(subscribed[:-2])
    if subscribed.endswith("/*"):
        prefix = subscribed[:-1]
        return channel.startswith(prefix) and "/" not in channel[len(prefix) :]
    if subscribed.endswith("__chn") or subscribed == "/data/ChangeEvents":
        return channel.startswith(subscribed[: subscribed.rindex("/") + 1])
    return False
