"""One message out, the messages of the answer back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

import aiohttp
from aiocometd.extensions import AuthExtension, Extension
from aiocometd.typing import JsonObject, SSLValidationMode

from .._frames import without_frames
from .._http.bodies import Dumper, Loader, dump_json
from .._http.deadline import limits_for
from .._http.failures import Answer, Failure, Trouble
from .._http.post import post
from .._text import Secret, without_secrets
from ..events import ConnectionEvent
from ..exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ReplayError,
    TransportConnectionClosed,
    TransportError,
)
from .channels import Subscription, Ticket
from .mailbox import Mailbox, Signal
from .messages import (
    CONNECT,
    DISCONNECT,
    HANDSHAKE,
    MAX_HOLD,
    UNSUBSCRIBE,
    bayeux_messages,
    is_event,
)
from .session import Session
from .states import Host

LOGGER = logging.getLogger(__name__)

#: How many of the last tokens are looked for in refusals.
MAX_TOKENS: Final = 8
#: Seconds without an event of a backlog after which it counts as complete.
BACKLOG_PAUSE: Final = 0.25
#: Seconds that events of another answer wait for a connect's answer, of which nothing has come yet:
#: the server may have sent that one first.
OVERTAKING: Final = 0.25

#: Bytes of an answer, and messages of it, from which on it is taken in more than one turn of the event loop.
LARGE: Final = 256 * 1024
PART: Final = 1000

#: Requests that may be sent twice; while the client is being opened, all may. A subscribe is not among
#: them: the server takes the events that it has sent with a lost answer for delivered.
_HARMLESS: Final = (HANDSHAKE, UNSUBSCRIBE, DISCONNECT)
_HEADERS: Final = {"Content-Type": "application/json;charset=UTF-8", "Accept": "application/json"}


class Settings(NamedTuple):
    """What the engine needs to know of its client.

    :ivar host: the client's policy
    :ivar auth: puts the token into requests
    :ivar extensions: gives those that run on every message, in this order, before *auth*
    :ivar before_poll: called before each connect; gives what is to be awaited first, if anything
    :ivar report: called with every event that an observer should know of
    :ivar request_timeout: seconds for each phase of a request
    :ivar max_response_size: size of the largest answer that is accepted, in bytes
    :ivar ssl: how TLS is verified, as aiohttp takes it
    :ivar json_dumps: serialises messages
    :ivar json_loads: parses messages
    """

    host: Host
    auth: AuthExtension
    extensions: Callable[[], list[Extension]]
    before_poll: Callable[[], Awaitable[None] | None]
    report: Callable[[ConnectionEvent], None]
    request_timeout: float
    max_response_size: int
    ssl: SSLValidationMode | None
    json_dumps: Dumper
    json_loads: Loader


class Exchange:
    """Sends messages of a session, and delivers the events in the answers.

    The order of events is the server's: while a connect's answer is being read, events that come
    with other answers wait until it is whole, since the server had sent its events first. If it is
    lost, they are dropped: going back to where it started brings them again. For the same reason a
    connect's answer waits for others that have begun to come in before it.

    :param url: the CometD endpoint
    :param session: the state of the Bayeux session
    :param mailbox: where events go
    :param http_session: what requests are sent with
    :param settings: the client's side
    """

    def __init__(
        self,
        url: str,
        session: Session,
        mailbox: Mailbox,
        http_session: aiohttp.ClientSession,
        settings: Settings,
    ) -> None:
        self.url = url
        self.http_session: aiohttp.ClientSession | None = http_session
        #: The ``Authorization`` header of the last request.
        self.authorization: Secret | None = None
        # The last tokens, which a refusal may repeat.
        self._tokens: list[Secret] = []
        self._session = session
        self._mailbox = mailbox
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        # The connect under way.
        self._connect: Ticket | None = None
        # Requests whose answers have begun to come in and are not taken yet, in that order.
        self._answers: list[Ticket] = []
        self._taken = Signal()
        self._waiting: list[tuple[list[JsonObject], Ticket]] = []
        # Rings when a backlog counts as complete.
        self._backlog_alarm: asyncio.TimerHandle | None = None
        # The same, while the server holds a connect.
        self._quiet: asyncio.TimerHandle | None = None

    async def send(
        self,
        message: JsonObject,
        subscription: Subscription | None = None,
        *,
        hold: float = 0.0,
        stale: bool = False,
    ) -> tuple[JsonObject | Failure, int]:
        """Send one message, deliver the events in the answer, give the reply and their number.

        :param message: the message
        :param subscription: what a subscribe message is for
        :param hold: seconds that the server may hold the request
        :param stale: whether it is about a session that was given up, so that events are not wanted
        :return: the reply or why there is none, and how many events were delivered
        :raises ReplayError: if the marker storage fails and is needed
        """
        envelope = _Envelope(message)
        try:
            await self._outgoing(envelope, subscription)
            http_session = self._open_session()
            envelope.body = dump_json(envelope.payload, self._settings.json_dumps)
        except AuthenticationError as error:
            return _not_sent(Trouble.UNAUTHORIZED, error), 0
        except TransportError as error:
            return _not_sent(Trouble.REJECTED, error), 0
        ticket = self._session.send(message, stale=stale)
        if message["channel"] == CONNECT:
            self._connect = ticket
        messages: list[JsonObject] | Failure | None = None
        try:
            answer = await self._post(http_session, envelope, ticket, hold)
            understood = await self._understood(answer, envelope)
            while isinstance(understood, list) and self._comes_after_others(ticket):
                await self._taken.changed()
            messages = understood
        finally:
            if messages is None or isinstance(messages, Failure):
                lost = messages is None or messages.trouble in (Trouble.LOST, Trouble.UNREADABLE)
                self._session.abandon(ticket, lost=lost)
                self._forget_answer(ticket)
        if isinstance(messages, Failure):
            return messages, 0
        return await self._take(messages, ticket)

    # Sending

    async def _outgoing(self, envelope: _Envelope, subscription: Subscription | None) -> None:
        known = subscription is not None and subscription.stamp is not None
        for extension in self._settings.extensions():
            try:
                await extension.outgoing(envelope.payload, envelope.headers)
            except ReplayError as error:
                if not known:
                    raise
                LOGGER.warning(
                    "The replay storage fails, going on with the id in memory: %s", error
                )
            except AiosfstreamException:
                raise
            except Exception as error:
                if subscription is None:
                    raise
                raise ReplayError(
                    f"The replay storage failed for channel {subscription.channel}: {error!r}. Look at the storage and"
                    " subscribe again."
                ) from error
        if subscription is not None:
            self._session.channels.stamp(envelope.payload[0], subscription, time.time())
        await self._settings.auth.outgoing(envelope.payload, envelope.headers)
        if envelope.authorization != self.authorization:
            self.authorization = envelope.authorization
            self._tokens = [*self._tokens[1 - MAX_TOKENS :], envelope.token]

    def _open_session(self) -> aiohttp.ClientSession:
        if self.http_session is None:
            raise TransportConnectionClosed(
                f"The transport of {self.url} is closed; open the client again"
            )
        if self.http_session.closed:
            raise TransportConnectionClosed(
                f"The HTTP session for {self.url} was closed by the application, but it belongs to the client:"
                " close the client instead, and open it again"
            )
        return self.http_session

    def _post(
        self,
        http_session: aiohttp.ClientSession,
        envelope: _Envelope,
        ticket: Ticket,
        hold: float,
    ) -> Awaitable[Answer | Failure]:
        settings, hold = self._settings, min(hold, MAX_HOLD)
        if hold and self._session.channels.has_backlog:
            # A server that holds a connect has nothing to send.
            self._quiet = self._loop.call_later(BACKLOG_PAUSE, self._settle_unless_answering)
        return post(
            http_session,
            self.url,
            envelope.body,
            envelope.headers,
            limits=limits_for(settings.request_timeout, hold),
            ssl=settings.ssl,
            max_size=settings.max_response_size,
            repeatable=envelope.channel in _HARMLESS or self._session.recovery.opening,
            started=partial(self._note_answer, ticket),
        )

    def _settle_unless_answering(self) -> None:
        if not self._answering:
            self._settle()

    # Answers

    @property
    def _answering(self) -> bool:
        """Whether the answer to the connect under way has begun to come in."""
        return self._connect in self._answers

    def _note_answer(self, ticket: Ticket) -> None:
        """Note that the answer to a request begins to come in."""
        # That to a request which is sent again has not been used.
        if ticket not in self._answers:
            self._answers.append(ticket)

    def _forget_answer(self, ticket: Ticket) -> None:
        if ticket is self._connect:
            self._connect = None
            if self._quiet is not None:
                self._quiet.cancel()
                self._quiet = None
        if ticket in self._answers:
            self._answers.remove(ticket)
            self._taken.wake()

    def _overtakes_connect(self, ticket: Ticket) -> bool:
        """Say whether the connect under way may bring events that were sent before those for *ticket*."""
        if self._connect is None or self._connect is ticket:
            return False
        return self._connect not in self._answers or ticket not in self._earlier(self._connect)

    def _comes_after_others(self, ticket: Ticket) -> bool:
        """Say whether a connect's answer has to wait for others that have begun to come in before it."""
        return ticket is self._connect and bool(self._earlier(ticket))

    def _earlier(self, ticket: Ticket) -> list[Ticket]:
        """Give the requests of the same session whose answers have begun to come in before."""
        earlier: list[Ticket] = []
        for other in self._answers:
            if other is ticket:
                return earlier
            if other.epoch == ticket.epoch:
                earlier.append(other)
        return []

    async def _understood(
        self, answer: Answer | Failure, envelope: _Envelope
    ) -> list[JsonObject] | Failure:
        """Give the messages of an answer, after the extensions have seen them."""
        if isinstance(answer, Failure):
            return answer
        messages = bayeux_messages(
            answer, self._settings.json_loads, envelope.headers.get("Authorization", "")
        )
        if len(answer.body) > LARGE:
            # Parsing it has taken long enough: others on the event loop have their turn.
            await asyncio.sleep(0)
        if isinstance(messages, Failure):
            return messages
        received: Any = answer.headers
        for extension in (self._settings.auth, *self._settings.extensions()):
            try:
                await extension.incoming(messages, received)
            except Exception as error:  # noqa: BLE001 - whatever the application's code raises
                return _not_taken(extension, error)
        return messages

    async def _take(
        self, messages: list[JsonObject], ticket: Ticket
    ) -> tuple[JsonObject | Failure, int]:
        """Deliver the events of an answer, and find the reply in it."""
        if self._overtakes_connect(ticket) and any(map(is_event, messages)):
            events, others = 0, self._keep_waiting(messages, ticket)
            self._forget_answer(ticket)
        else:
            events, others = await self._deliver(messages, ticket)
        reply = self._session.take_reply(others, ticket)
        if reply is None:
            return self._no_reply(ticket.request), events
        # No other message gets into an error.
        return self._cleaned(reply), events

    async def _deliver(
        self, messages: list[JsonObject], ticket: Ticket
    ) -> tuple[int, list[JsonObject]]:
        """Deliver the events of an answer; give their number and the other messages."""
        events, others = 0, []
        try:
            for start in range(0, max(len(messages), 1), PART):
                if start:
                    # Others on the event loop have their turn.
                    self._mailbox.wake()
                    await asyncio.sleep(0)
                end = start + PART
                delivered, rest = self._session.receive(
                    messages[start:end], ticket, left=len(messages[end:])
                )
                events += len(delivered)
                others += rest
                # Before those that have waited for them.
                self._mailbox.add(delivered)
        except BaseException:
            self._session.abandon(ticket, lost=True)
            self._mailbox.wake()
            raise
        finally:
            self._forget_answer(ticket)
        self._wait_for_backlog(bool(events))
        if events == 1 and self._session.recovery.lost_since is None:
            # The reader has it before the next request is prepared. After a loss, it is first noted that
            # the connection is back.
            self._mailbox.wake()
            await asyncio.sleep(0)
        elif events:
            # The next request is sent first: the server is at work on it while the reader is.
            self._loop.call_soon(self._mailbox.wake)
        return events, others

    def _wait_for_backlog(self, is_coming: bool) -> None:
        """Let events that were sent before a backlog wait until that is complete.

        :param is_coming: whether a part of it has just come
        """
        channels = self._session.channels
        if self._mailbox.would_be_full(channels.early):
            # Nothing more is fetched then, so the backlog would not come.
            self._settle()
        elif channels.early and (is_coming or self._backlog_alarm is None):
            self._stop_waiting()
            self._backlog_alarm = self._loop.call_later(BACKLOG_PAUSE, self._settle)

    def close(self) -> None:
        """Drop the events that wait for others: they come again when the client is opened."""
        self._stop_waiting()
        self._waiting.clear()
        self._session.channels.rewind(self._session.epoch)

    def _settle(self) -> None:
        self._stop_waiting()
        self._mailbox.extend(self._session.channels.settle())

    def _stop_waiting(self) -> None:
        if self._backlog_alarm is not None:
            self._backlog_alarm.cancel()
            self._backlog_alarm = None

    def _cleaned(self, message: JsonObject) -> JsonObject:
        """Give a message of an answer without the tokens, which an answer that leads to an error may repeat."""
        if message.get("successful") is True and message.get("channel") != HANDSHAKE:
            return message
        cleaned: JsonObject = without_secrets(message, self._tokens)
        return cleaned

    def _keep_waiting(self, messages: list[JsonObject], ticket: Ticket) -> list[JsonObject]:
        """Let the events of an answer wait for the connect under way; give the other messages."""
        events: list[JsonObject] = []
        others: list[JsonObject] = []
        for one in messages:
            is_other = not is_event(one) or "successful" in one
            (others if is_other else events).append(one)
        self._waiting.append((events, ticket))
        self._loop.call_later(OVERTAKING, self._release_unless_answering)
        return others

    def _release_unless_answering(self) -> None:
        if not self._answering:
            self.release()

    def release(self) -> None:
        """Deliver the events that have waited for a connect; those of a lost session are dropped."""
        waiting, self._waiting = self._waiting, []
        for messages, ticket in waiting:
            events, _ = self._session.receive(messages, ticket)
            self._mailbox.extend(events)

    def _no_reply(self, message: JsonObject) -> Failure:
        error = TransportError(
            f"Request to {self.url} failed: the answer holds no reply to the {message['channel']} message;"
            " check that the URL is that of a CometD server"
        )
        return Failure(Trouble.LOST, error)


class _Envelope:
    """A message that is sent, with its headers: what an error tracker shows of it holds no token.

    :param message: the message
    """

    def __init__(self, message: JsonObject) -> None:
        self.payload = [message]
        self.headers = dict(_HEADERS)
        self.body = b""
        self.channel: str = message["channel"]

    @property
    def authorization(self) -> Secret | None:
        """The ``Authorization`` header."""
        value = self.headers.get("Authorization")
        return None if value is None else Secret(value)

    @property
    def token(self) -> Secret:
        """The token in that header."""
        return Secret(self.headers.get("Authorization", "").rpartition(" ")[2])


def _not_sent(trouble: Trouble, error: AiosfstreamException) -> Failure:
    # The frames that it has passed hold the token.
    without_frames(error)
    if isinstance(error, TransportError):
        return Failure(trouble, error)
    transport_error = TransportError(f"The request was not sent, see the cause: {error}")
    transport_error.__cause__ = error
    return Failure(trouble, transport_error)


def _not_taken(extension: Extension | AuthExtension, error: Exception) -> Failure:
    """Make the failure that stands for a raising extension: the answer is lost, its events come again."""
    name = type(extension).__name__
    # The frames that it has passed hold the token.
    without_frames(error)
    lost = TransportError(
        f"An answer was not taken, because {name}.incoming() raised {error!r:.300}; look at that extension"
    )
    lost.__cause__ = error
    return Failure(Trouble.LOST, lost)
