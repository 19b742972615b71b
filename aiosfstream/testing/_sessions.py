"""The sessions of an org's clients."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._events import Cursor, EventBus

Message = dict[str, Any]


@dataclass
class Goodbye:
    """How a client is sent away.

    :ivar reconnect: the advice that the connect is answered with
    :ivar on: the channel of the request whose answer brings ``/meta/disconnect``
    :ivar successful: whether that request, and the connect, succeed
    :ivar connect_first: whether a held connect is answered before, and not after, that request
    :ivar owing: the channels of the requests that are still to be answered in the session
    """

    reconnect: str
    on: str = "/meta/connect"
    successful: bool = False
    connect_first: bool = True
    owing: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.owing = {"/meta/connect", self.on}


@dataclass(eq=False)
class Session:
    """A client's session.

    :ivar client_id: its id
    :ivar cookie: the value of its ``BAYEUX_BROWSER`` cookie
    :ivar cursor: how far it has come in each channel that it is subscribed to
    :ivar last_seen: when its last request was answered
    :ivar held: the connect that is held, if there is one
    :ivar has_connected: whether a connect has been answered
    :ivar advised: whether it has had the usual advice, and no other since
    :ivar goodbye: how the client is being sent away
    :ivar overtaking: how many of the newest events the next answer brings, before older ones
    """

    client_id: str
    cookie: str
    cursor: Cursor = field(default_factory=Cursor, repr=False)
    last_seen: float = field(default_factory=time.monotonic)
    held: asyncio.Future[None] | None = None
    has_connected: bool = False
    advised: bool = False
    goodbye: Goodbye | None = None
    overtaking: int = 0

    @property
    def subscriptions(self) -> set[str]:
        """The channels that it is subscribed to."""
        return set(self.cursor.due)

    def release(self) -> None:
        """Let the connect that is held be answered."""
        held, self.held = self.held, None
        if held is not None and not held.done():
            held.set_result(None)


@dataclass(eq=False)
class Sender:
    """What a request tells beside its messages.

    :ivar path: the path of its URL
    :ivar token: the token of its ``Authorization`` header; None: it has none
    :ivar cookies: its cookies as they are written, quotes included
    :ivar is_open: says whether its connection is still there
    """

    path: str
    token: str | None
    cookies: Mapping[str, str]
    is_open: Callable[[], bool]


@dataclass
class Answer:
    """The answer to a request.

    :ivar messages: its messages
    :ivar cookies: the cookies that it sets
    :ivar status: its HTTP status
    """

    messages: list[Message] = field(default_factory=list)
    cookies: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Sessions:
    """The sessions of an org.

    :param bus: the events
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._sessions: dict[str, Session] = {}
        self._leaving: dict[str, Session] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __contains__(self, session: Session) -> bool:
        return session.client_id in self._sessions

    def open(self, cookie: str | None) -> Session:
        """Make a session.

        :param cookie: the browser cookie that its client has; None: it has none yet
        """
        browser = cookie or f"browser{next(self._numbers)}"
        session = Session(f"client{next(self._numbers)}", browser)
        self._sessions[session.client_id] = session
        return session

    def find(self, client_id: str, channel: str) -> Session | None:
        """Give the session that a request belongs to, if there is one."""
        leaving = self._leaving.get(client_id)
        if leaving is not None and leaving.goodbye and channel in leaving.goodbye.owing:
            return leaving
        return self._sessions.get(client_id)

    def expire_idle(self, timeout: float) -> None:
        """Delete the sessions whose clients have not come back for *timeout* seconds."""
        now = time.monotonic()
        for session in self:
            if session.held is None and now - session.last_seen > timeout:
                del self._sessions[session.client_id]

    def forget(self, client_id: str | None = None) -> None:
        """Forget a session; None: all of them."""
        for session in self:
            if client_id in (None, session.client_id):
                del self._sessions[session.client_id]
                session.release()

    def send_away(self, **goodbye: Any) -> None:
        """End every session, as :class:`Goodbye` says."""
        for session in self:
            session.goodbye = Goodbye(**goodbye)
            if session.goodbye.connect_first:
                session.release()
        self._leaving.update(self._sessions)
        self._sessions.clear()

    def settle(self, session: Session, channel: str) -> None:
        """Note that a session which is ending has had an answer that it was owed."""
        if session.goodbye is not None:
            session.goodbye.owing.discard(channel)
            if not session.goodbye.owing:
                self._leaving.pop(session.client_id, None)

    def release_all(self) -> None:
        """Answer every held connect."""
        for session in (*self, *self._leaving.values()):
            session.release()

    def deliver(self) -> None:
        """Answer the held connects that events are due for."""
        for session in self:
            if session.held is not None and self._bus.has_events(session.cursor):
                session.release()

    def is_shared(self, session: Session) -> bool:
        """Tell whether another session with the same browser cookie holds a connect, or is about to."""
        return any(
            (other.held is not None or not other.has_connected) and other.cookie == session.cookie
            for other in self
            if other is not session
        )
