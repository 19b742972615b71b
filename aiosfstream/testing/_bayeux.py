"""The Streaming API of an org: its sessions, and the answers to Bayeux messages."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias

from ._events import EventBus, Refused, channel_name, subscription_key
from ._sessions import Answer, Goodbye, Sender, Session, Sessions

Message = dict[str, Any]
_Unanswered: TypeAlias = "tuple[Sender, Sequence[Message]]"

MIN_API_VERSION: Final = 37
BROWSER_COOKIE: Final = "BAYEUX_BROWSER"
ROUTING_COOKIE: Final = "sfdc-stream"
AUTHENTICATION_INVALID: Final = "401::Authentication invalid"
UNKNOWN_CLIENT: Final = "403::Unknown client"
NOT_SUBSCRIBED: Final = "403::subscribe_failed"
NO_RETRY: Final = {"reconnect": "none", "interval": 0}
SHAKE_HANDS: Final = {"interval": 0, "reconnect": "handshake"}
#: Seconds in which the end of a connection that a client has given up becomes known.
GRACE: Final = 0.02

API_VERSION_MANDATORY: Final = (
    "400::API version in the URI is mandatory. URI format: '/cometd/66.0'"
)
API_VERSION_UNSUPPORTED: Final = (
    "400::Unsupported API version. Only API versions '37.0' and later are supported."
    " URI format: '/cometd/66.0'"
)


class Limits(Protocol):
    """What an org allows; it may change at any time.

    :ivar session_timeout: seconds after an answer until a session without a request is deleted
    :ivar hold_timeout: seconds that a connect is held without events
    :ivar max_batch: events in one answer at the most
    :ivar max_clients: sessions at the most
    :ivar advised_timeout: the seconds that clients are told a connect may be held; None: the truth
    :ivar advise_multiple_clients: whether sessions that share a browser cookie are slowed down
    """

    session_timeout: float
    hold_timeout: float
    advised_timeout: float | None
    max_batch: int
    max_clients: int
    advise_multiple_clients: bool


class Bayeux:
    """Answers Bayeux messages as Salesforce does, whatever carries them.

    :param limits: what is allowed
    :param bus: the events
    :param tokens: the access tokens that are valid
    :param violations: where mistakes of clients are noted
    :param on_change: called when a connect is held
    """

    def __init__(
        self,
        limits: Limits,
        bus: EventBus,
        tokens: set[str],
        violations: list[str],
        on_change: Callable[[], None],
    ) -> None:
        self.denied: dict[str, str] = {}
        self.known_channels: set[str] | None = None
        self.sessions = Sessions(bus)
        self._limits = limits
        self._bus = bus
        self._tokens = tokens
        self._violations = violations
        self._on_change = on_change
        self._unanswered: list[_Unanswered] = []
        self._routes = [_route(1)]

    # Sessions

    def expire_idle(self) -> None:
        """Delete the sessions whose clients have not come back in time."""
        self.sessions.expire_idle(self._limits.session_timeout)

    def forget_sessions(self) -> None:
        """Forget every session, as when the load balancer leads all clients to another server."""
        self._routes.append(_route(len(self._routes) + 1))
        self.sessions.forget()

    def take(self, session: Session) -> list[Message]:
        """Take the events that are due. They count as delivered, whether or not they arrive."""
        overtaking, session.overtaking = session.overtaking, 0
        if overtaking:
            return self._bus.take_newest(session.cursor, overtaking)
        return self._bus.take(session.cursor, self._limits.max_batch)

    # Requests

    @asynccontextmanager
    async def watched(self, sender: Sender, messages: Sequence[Message]) -> AsyncIterator[None]:
        """Note requests that a client must not make while another one is not answered."""
        entry = (sender, messages)
        rivals = [other for other in self._unanswered if _mistake(entry, other)]
        self._unanswered.append(entry)
        try:
            if rivals:
                await asyncio.sleep(GRACE)
            for other in rivals:
                if other in self._unanswered and other[0].is_open():
                    self._violations.append(str(_mistake(entry, other)))
            yield
        finally:
            self._unanswered.remove(entry)

    async def exchange(self, sender: Sender, messages: Sequence[Message]) -> Answer:
        """Answer the messages of a request, in order."""
        if len(messages) > 1:
            self._violations.append("several messages in one request")
        self._check_route(sender)
        answer = Answer()
        for message in messages:
            self.expire_idle()
            if message["channel"] == "/meta/handshake":
                self._handshake(sender, message, answer)
            else:
                alone = len(messages) == 1
                answer.messages += await self._meta(sender, message, answer, alone=alone)
        return answer

    def _check_route(self, sender: Sender) -> None:
        route = sender.cookies.get(ROUTING_COOKIE)
        if route is not None and route not in self._routes:
            self._violations.append(f"the routing cookie came back as {route}")

    def _is_authorized(self, sender: Sender) -> bool:
        return sender.token in self._tokens

    def _handshake(self, sender: Sender, message: Message, answer: Answer) -> None:
        ext: Message = {"replay": True, "payload.format": True}
        reply: Message = {"ext": ext, "channel": "/meta/handshake", **reply_id(message)}
        answer.messages.append(reply)
        reason = self._failure_reason(sender)
        if reason is not None:
            ext["sfdc"] = {"failureReason": reason}
            refuse(reply, "403::Handshake denied", {"reconnect": "none"})
            return
        error = version_error(sender.path)
        if error is not None:
            # Unlike other refusals these were seen with a status of their own.
            answer.status = 400
            refuse(reply, error)
            return
        offered = message.get("supportedConnectionTypes")
        if not isinstance(offered, list) or "long-polling" not in offered:
            refuse(reply, f"400::Invalid connection type {offered}")
            return
        session = self.sessions.open(sender.cookies.get(BROWSER_COOKIE))
        answer.cookies = {BROWSER_COOKIE: session.cookie, ROUTING_COOKIE: self._routes[-1]}
        reply.update(
            minimumVersion="1.0",
            clientId=session.client_id,
            supportedConnectionTypes=["long-polling"],
            version="1.0",
            successful=True,
        )

    def _failure_reason(self, sender: Sender) -> str | None:
        if sender.token is None:
            return "401::Request requires authentication"
        if not self._is_authorized(sender):
            return AUTHENTICATION_INVALID
        if len(self.sessions) >= self._limits.max_clients:
            return "403::Organization concurrent user limit exceeded"
        return None

    async def _meta(
        self, sender: Sender, message: Message, answer: Answer, *, alone: bool
    ) -> list[Message]:
        client_id = message.get("clientId")
        reply: Message = {
            "clientId": client_id,
            "channel": message["channel"],
            **reply_id(message),
        }
        if not self._is_authorized(sender):
            return [refuse(reply, AUTHENTICATION_INVALID, NO_RETRY)]
        if not isinstance(client_id, str):
            self._violations.append("a message without the client id of a handshake")
            return [refuse(reply, "403::Client has not completed handshake")]
        session = self.sessions.find(client_id, message["channel"])
        if session is not None and sender.cookies.get(BROWSER_COOKIE) != session.cookie:
            return [self._refuse_cookie(session, sender.cookies, reply)]
        if session is None or not self._is_routed(sender):
            answer.cookies[ROUTING_COOKIE] = self._routes[-1]
            return [refuse(reply, UNKNOWN_CLIENT, SHAKE_HANDS)]
        session.last_seen = time.monotonic()
        return await self._in_session(session, sender, message, reply, alone=alone)

    def _refuse_cookie(
        self, session: Session, cookies: Mapping[str, str], reply: Message
    ) -> Message:
        if BROWSER_COOKIE in cookies:
            error = "400::Authenticated user id does not match the session's user id"
            return refuse(reply, error, NO_RETRY)
        self._violations.append("the BAYEUX_BROWSER cookie did not come back")
        return refuse(
            reply,
            f"400::Client {session.client_id} has established a session,"
            " but no BAYEUX_BROWSER cookie present",
        )

    def _is_routed(self, sender: Sender) -> bool:
        if ROUTING_COOKIE not in sender.cookies:
            self._violations.append("the routing cookie did not come back")
        return sender.cookies.get(ROUTING_COOKIE) == self._routes[-1]

    async def _in_session(
        self,
        session: Session,
        sender: Sender,
        message: Message,
        reply: Message,
        *,
        alone: bool,
    ) -> list[Message]:
        channel = message["channel"]
        if channel == "/meta/connect":
            return await self._connect(session, sender, message, reply, alone=alone)
        if channel == "/meta/subscribe":
            return self._subscribe(session, message, reply)
        if channel == "/meta/unsubscribe":
            return [self._unsubscribe(session, message, reply)]
        if channel == "/meta/disconnect":
            self.sessions.forget(session.client_id)
            return [accept(reply)]
        return [refuse(reply, "403:denied_by_security_policy:publish_denied")]

    # Connects

    async def _connect(
        self,
        session: Session,
        sender: Sender,
        message: Message,
        reply: Message,
        *,
        alone: bool,
    ) -> list[Message]:
        kind = message.get("connectionType")
        if kind != "long-polling":
            return [refuse(reply, f"400::Invalid connection type {kind}")]
        # A client that connects again has given up the connect before.
        session.release()
        shared = self._limits.advise_multiple_clients and self.sessions.is_shared(session)
        due = session.goodbye is not None or self._bus.has_events(session.cursor)
        if alone and not shared and not due:
            await self._hold(session, message)
        if session.goodbye is not None:
            return self._say_goodbye(session, session.goodbye, reply)
        if session not in self.sessions:
            return [refuse(reply, UNKNOWN_CLIENT, SHAKE_HANDS)]
        if not self._is_authorized(sender):
            return [refuse(reply, AUTHENTICATION_INVALID, NO_RETRY)]
        session.last_seen = time.monotonic()
        if shared or not session.advised:
            reply["advice"] = self._connect_advice(shared=shared)
        # Once a client is alone again, it is told so.
        session.advised = not shared
        session.has_connected = True
        return [*self.take(session), accept(reply)]

    def _say_goodbye(self, session: Session, goodbye: Goodbye, reply: Message) -> list[Message]:
        channel = reply["channel"]
        self.sessions.settle(session, channel)
        answer: list[Message] = [{"channel": "/meta/disconnect"}] if channel == goodbye.on else []
        if channel == "/meta/connect":
            advice = {"reconnect": goodbye.reconnect, "interval": 0}
            if goodbye.successful:
                return [*answer, *self.take(session), accept({**reply, "advice": advice})]
            return [*answer, refuse(reply, UNKNOWN_CLIENT, advice)]
        session.release()
        return [*answer, accept(reply) if goodbye.successful else refuse(reply, NOT_SUBSCRIBED)]

    async def _hold(self, session: Session, message: Message) -> None:
        advice = message.get("advice")
        asked = advice.get("timeout") if isinstance(advice, dict) else None
        seconds = self._limits.hold_timeout
        if isinstance(asked, (int, float)):
            seconds = min(asked / 1000, seconds)
        if seconds <= 0:
            return
        held = session.held = asyncio.get_running_loop().create_future()
        self._on_change()
        try:
            await asyncio.wait([held], timeout=seconds)
        finally:
            if session.held is held:
                session.held = None

    def _connect_advice(self, *, shared: bool) -> Message:
        seconds = self._limits.advised_timeout
        timeout = round((self._limits.hold_timeout if seconds is None else seconds) * 1000)
        advice: Message = {"interval": 0, "timeout": timeout, "reconnect": "retry"}
        if shared:
            advice.update({"interval": 2000, "multiple-clients": True})
        return advice

    # Subscriptions

    def _subscribe(self, session: Session, message: Message, reply: Message) -> list[Message]:
        subscription = reply["subscription"] = message.get("subscription")
        if session.goodbye is not None:
            return self._say_goodbye(session, session.goodbye, reply)
        error = self._subscription_error(subscription)
        if error is not None:
            return [refuse(reply, error)]
        ext = message.get("ext")
        replay = ext.get("replay") if isinstance(ext, dict) else None
        try:
            session.cursor.due[subscription_key(subscription)] = self._bus.start(
                str(subscription), replay
            )
        except Refused as refused:
            return [refuse(reply, str(refused))]
        if self._bus.has_events(session.cursor):
            session.release()
        return [accept(reply)]

    def _subscription_error(self, subscription: Any) -> str | None:
        if not subscription or not isinstance(subscription, str):
            return "400::Channel name not specified"
        if not subscription.startswith("/"):
            return "400::Channel subscriptions must start with a leading '/'"
        name = channel_name(subscription)
        for denied in (subscription, name):
            if denied in self.denied:
                return self.denied[denied]
        if self.known_channels is not None and name not in self.known_channels:
            return f"400::The channel you requested to subscribe to doesn't exist {{{name}}}"
        if name.endswith(("/*", "/**")) and name not in self._bus.members:
            return "403:denied_by_security_policy:create_denied"
        return None

    @staticmethod
    def _unsubscribe(session: Session, message: Message, reply: Message) -> Message:
        reply["subscription"] = message.get("subscription")
        session.cursor.due.pop(subscription_key(reply["subscription"]), None)
        return accept(reply)


def refuse(reply: Message, error: str, advice: Mapping[str, Any] | None = None) -> Message:
    """Make a refusal of a reply."""
    reply.update(error=error, successful=False)
    if advice is not None:
        reply["advice"] = dict(advice)
    return reply


def accept(reply: Message) -> Message:
    """Make a reply successful."""
    reply["successful"] = True
    return reply


def reply_id(message: Message) -> Message:
    """Give the id that a reply repeats."""
    return {"id": message["id"]} if "id" in message else {}


def version_error(path: str) -> str | None:
    """Check the API version in ``/cometd/NN.0``, with or without one of the vanilla suffixes."""
    version = re.match(r"/cometd/(\d+)\.0(/|$)", path)
    if version is None:
        return API_VERSION_MANDATORY
    return API_VERSION_UNSUPPORTED if int(version[1]) < MIN_API_VERSION else None


def _route(number: int) -> str:
    # Characters that Python's own cookies put in quotes, which changes the value.
    return f"!//QiKCtgRz/8Ow+tEsT{number}ng="


def _mistake(entry: _Unanswered, other: _Unanswered) -> str | None:
    """Say what is wrong with a request beside *other*, which is not answered yet."""
    if _connecting(entry) & _connecting(other):
        return "a second connect while one is held"
    browser = entry[0].cookies.get(BROWSER_COOKIE)
    shaking = any(message["channel"] == "/meta/handshake" for message in other[1])
    if shaking and browser is not None and other[0].cookies.get(BROWSER_COOKIE) == browser:
        return "a request beside a handshake"
    return None


def _connecting(entry: _Unanswered) -> set[str]:
    connects = (message for message in entry[1] if message["channel"] == "/meta/connect")
    return {message["clientId"] for message in connects if "clientId" in message}
