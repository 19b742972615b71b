"""Which failure is worth another try, and when. Pure functions and arithmetic."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from aiocometd.typing import JsonObject

from .._http.post import Trouble

#: Advice is honoured up to this many seconds between two connects.
MAX_INTERVAL: Final = 30.0
#: Seconds that a connect may be held, where the server's advice says nothing or nonsense.
DEFAULT_HOLD: Final = 110.0
MIN_HOLD: Final = 1.0
MAX_HOLD: Final = 600.0


class Verdict(Enum):
    """What an answer, or its absence, asks the session to do."""

    #: Go on.
    PROCEED = auto()
    #: The same request again, later, with the same session.
    RETRY = auto()
    #: A new session.
    RENEW = auto()
    #: A new session: something that was under way in the old one may be gone.
    RENEW_LOST = auto()
    #: A new session without the cookies of the old one.
    RENEW_COOKIES = auto()
    #: A new session, after a while: the server is busy or a limit is reached. The token is good.
    RENEW_LATER = auto()
    #: A new token, then a new session.
    LOG_IN = auto()
    #: Nothing that the client could do helps.
    STOP = auto()


_PROCEED: Final = Verdict.PROCEED
#: What advice asks for that comes with a success, if it is not to go on.
_ADVISED: Final = {"none": Verdict.STOP, "handshake": Verdict.RENEW}

_TROUBLE: Final = {
    Trouble.NOT_SENT: Verdict.RETRY,
    Trouble.THROTTLED: Verdict.RETRY,
    Trouble.LOST: Verdict.RENEW_LOST,
    Trouble.UNREADABLE: Verdict.RENEW_LOST,
    Trouble.UNAUTHORIZED: Verdict.LOG_IN,
    Trouble.FORBIDDEN: Verdict.LOG_IN,
    Trouble.REDIRECTED: Verdict.STOP,
    Trouble.REJECTED: Verdict.STOP,
}

# Error texts change between Salesforce releases: only the words that carry the meaning are matched.
_SESSION_GONE: Final = re.compile(
    r"unknown.client|not completed handshake|session.unknown|unknown.session", re.I
)
_COOKIE: Final = re.compile(r"cookie present|authenticated user id does not match", re.I)
_CONNECTION_LIMIT: Final = re.compile(r"concurrent user limit|simultaneous connections", re.I)
_ANY_LIMIT: Final = re.compile(r"limit (has been )?exceeded", re.I)
# "400::The replayId {82} you provided was invalid. ..." and "400::The replayId for channel {/topic/x}
# wasn't found using the provided replay ID map {{}}. ..."
_REPLAY: Final = re.compile(
    r"the replay\s?id\b.*(you provided was invalid|wasn.t found using the provided replay)",
    re.I | re.S,
)


def judge_trouble(trouble: Trouble) -> Verdict:
    """Say what a request without a usable answer asks for.

    :param trouble: the kind of failure
    :return: the verdict
    """
    return _TROUBLE[trouble]


def judge_reply(reply: JsonObject) -> Verdict:
    """Say what the reply to a handshake or a connect asks for.

    Salesforce puts the true cause into ``ext.sfdc.failureReason``; the ``error`` beside it may say
    something else, and the advice may be ``none`` where its guide asks for a reconnect. So they are
    looked at in that order (Streaming API Developer Guide, "Handling Streaming API Errors").

    :param reply: a reply whose ``successful`` is filled in
    :return: the verdict
    """
    if reply["successful"]:
        return _ADVISED.get(reconnect_advice(reply), _PROCEED) if "advice" in reply else _PROCEED
    reason = failure_reason(reply)
    if verdict := _judge_reason(reason):
        return verdict
    if _ANY_LIMIT.search(reason):
        return Verdict.RENEW_LATER
    return _ADVISED.get(reconnect_advice(reply), Verdict.RETRY)


def judge_request(reply: JsonObject) -> Verdict:
    """Say what the reply to a subscribe, unsubscribe or publish means for the *session*.

    :param reply: a reply whose ``successful`` is filled in
    :return: :attr:`Verdict.PROCEED` if it was successful, or if it is this one request that is refused
    """
    if reply["successful"]:
        return _PROCEED
    return _judge_reason(failure_reason(reply)) or Verdict.PROCEED


def _judge_reason(reason: str) -> Verdict | None:
    code = reason[:3]
    if code == "401":
        return Verdict.LOG_IN
    if code == "503" or _CONNECTION_LIMIT.search(reason):
        return Verdict.RENEW_LATER
    if code == "402" or (code == "403" and _SESSION_GONE.search(reason)):
        return Verdict.RENEW
    if code == "400" and _COOKIE.search(reason):
        return Verdict.RENEW_COOKIES
    return None


def failure_reason(reply: JsonObject) -> str:
    """Give the true cause of a refusal.

    :param reply: an unsuccessful reply
    :return: ``ext.sfdc.failureReason`` if there is one, else ``error``, else an empty text
    """
    ext = reply.get("ext")
    sfdc = ext.get("sfdc") if isinstance(ext, dict) else None
    reason = sfdc.get("failureReason") if isinstance(sfdc, dict) else None
    for text in (reason, reply.get("error")):
        if isinstance(text, str) and text:
            return text
    return ""


def is_replay_error(reply: JsonObject) -> bool:
    """Say whether a subscription was refused because of its replay id.

    Other refusals share the code 400, so the text decides.

    :param reply: an unsuccessful subscribe reply
    :return: True for an invalid or expired replay id, or one that was not found in the map
    """
    reason = failure_reason(reply)
    return reason.startswith("400") and _REPLAY.search(reason) is not None


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


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between attempts; everything in seconds.

    :ivar initial: upper bound of the first delay after trouble on the network
    :ivar cap: upper bound of every later one
    :ivar busy_initial: the same for a server that is busy or a limit that is reached
    :ivar busy_cap: the same
    :ivar refused_initial: delay before credentials that were refused are tried again
    :ivar refused_cap: the longest of these
    :ivar farewell: upper bound of the pause after the server has said goodbye
    :ivar settled: a connection that held for so long makes earlier failures forgotten; a shorter
        success does not, or a server that fails right after each success would be hammered
    """

    initial: float = 1.0
    cap: float = 60.0
    busy_initial: float = 10.0
    busy_cap: float = 300.0
    refused_initial: float = 5.0
    refused_cap: float = 900.0
    farewell: float = 1.0
    settled: float = 5.0


class Backoff:
    """Exponential backoff with full jitter: uniform between 0 and a bound that doubles.

    :param initial: the first bound in seconds
    :param cap: the last bound in seconds
    :param rng: where chance comes from
    """

    __slots__ = ("_cap", "_initial", "_rng", "attempts")

    def __init__(self, initial: float, cap: float, rng: random.Random) -> None:
        self._initial = initial
        self._cap = cap
        self._rng = rng
        #: Failures in a row.
        self.attempts = 0

    @property
    def bound(self) -> float:
        """The upper bound of the next delay, in seconds."""
        # The exponent is limited because a float overflows long before the attempts do.
        return min(self._cap, self._initial * 2.0 ** min(self.attempts, 40))

    def next_delay(self) -> float:
        """Count a failure.

        :return: seconds to wait before the next attempt
        """
        bound = self.bound
        self.attempts += 1
        return self._rng.uniform(0.0, bound)
