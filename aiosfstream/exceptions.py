"""Everything that aiosfstream raises.

.. code-block:: text

    AiosfstreamException
        AuthenticationError
        ClientError
            ClientInvalidOperation
        TransportError
            TransportInvalidOperation
            TransportTimeoutError
            TransportConnectionClosed
        ServerError
        ReplayError

Each class also derives from aiocometd's class of the same name where there is one, so a handler
written as ``except aiocometd.exceptions.ServerError`` still works. Nothing else leaves the
public API: errors of aiohttp, of a JSON function or of a marker storage, and timeouts, are
turned into one of these, with the original as ``__cause__``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeVar, cast

from aiocometd import exceptions as cometd
from aiocometd.typing import JsonObject

from ._text import fit

__all__ = [
    "EXCEPTION_PAIRS",
    "AiosfstreamException",
    "AuthenticationError",
    "ClientError",
    "ClientInvalidOperation",
    "ReplayError",
    "ServerError",
    "TransportConnectionClosed",
    "TransportError",
    "TransportInvalidOperation",
    "TransportTimeoutError",
    "translate_errors",
    "translate_errors_context",
]

#: What to do about a refusal: the first that fits what the server says (Streaming API Developer Guide,
#: "Streaming API Error Codes").
_ADVICE: Final = (
    (r"limit|exceeded", "Wait until the limit allows it again, or use fewer clients and events."),
    (r"\b(408|412|429|5\d\d):|too busy", "Try again later."),
    (r"\breplay\s?id\b", "Use another replay id, or ReplayOption.NEW_EVENTS."),
    (r"\b401:", "A new token is needed: check that the user may use the API."),
    (r"\b402:|unknown client|unknown session", "A new session is needed: try again."),
    (r"\b40[034]:", "Check the channel's name and the user's permissions for it."),
)
#: Characters of a channel's name in an error.
_CHANNEL: Final = 100
_LOOK_IT_UP: Final = (
    'See "Streaming API Error Codes" in Salesforce\'s Streaming API Developer Guide.'
)

#: What never stands in an error, of an answer of the token endpoint.
_SECRET_FIELDS: Final = frozenset(
    ("access_token", "refresh_token", "id_token", "assertion", "client_secret", "code", "password")
)

FuncType = Callable[..., Any]
Func = TypeVar("Func", bound=FuncType)


class AiosfstreamException(cometd.AiocometdException):
    """The base of every exception of this package."""


class AuthenticationError(AiosfstreamException):
    """Salesforce refused the credentials, or the token endpoint gave no usable answer.

    ``args`` has the message and, if the token endpoint answered with a refusal, that answer without its
    secrets. ``str()`` is the message only.

    :param message: what happened and what to do about it
    :param reply: the token endpoint's answer; tokens are left out
    :param error: the ``error`` code of the token endpoint, such as ``invalid_grant``; None: that of *reply*
    :param error_description: the explanation of the code; None: that of *reply*
    :param status: the HTTP status of the answer
    :param retryable: whether the same request may succeed later, unchanged
    :param retry_after: how many seconds the token endpoint asks to wait, at most an hour
    """

    def __init__(
        self,
        message: str = "",
        reply: Mapping[str, Any] | None = None,
        *,
        error: str | None = None,
        error_description: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        if isinstance(reply, Mapping):
            reply = {name: value for name, value in reply.items() if name not in _SECRET_FIELDS}
            error = error or _text(reply.get("error"))
            error_description = error_description or _text(reply.get("error_description"))
        super().__init__(message, *([] if reply is None else [reply]))
        #: The token endpoint's error code, such as ``invalid_grant``, or None.
        self.error = error
        #: The token endpoint's explanation, or None.
        self.error_description = error_description
        #: The HTTP status of the token endpoint's answer, or None if there was none.
        self.status = status
        #: Whether trying again later, unchanged, can help. If False, a person must change something.
        self.retryable = retryable
        #: How many seconds the token endpoint asked to wait before the next request, or None.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ClientError(AiosfstreamException, cometd.ClientError):
    """The client cannot do what it was asked to do."""


class ClientInvalidOperation(ClientError, cometd.ClientInvalidOperation):
    """The operation does not fit the client's state, such as subscribing while it is closed."""


class TransportError(AiosfstreamException, cometd.TransportError):
    """A request could not be sent, or what came back was not an answer of a CometD server."""

    #: The HTTP status of the answer, or None if there was no answer.
    status: int | None = None


class TransportInvalidOperation(TransportError, cometd.TransportInvalidOperation):
    """The operation does not fit the transport's state."""


class TransportTimeoutError(TransportError, cometd.TransportTimeoutError):
    """The connection has been lost for longer than ``connection_timeout``.

    Its ``__cause__`` is the last error that kept the client from coming back. The client keeps trying
    to reconnect: another :meth:`~aiosfstream.Client.receive` waits for its outcome.
    """


class TransportConnectionClosed(TransportError, cometd.TransportConnectionClosed):
    """The connection was closed unexpectedly."""


class ServerError(AiosfstreamException, cometd.ServerError):
    """The server refused a request.

    ``str()`` says what was refused, why in the server's words, as far as they fit into a log, and what to
    do; ``response`` is the whole message as it came.

    :param message: what was refused, in our words
    :param response: the refusing message as the server sent it, or None
    """

    #: Where a channel that was lost can be resumed: the replay id that the next subscription of it would
    #: begin after. None if no channel was lost, or nothing of it is known.
    replay_id: int | str | None = None

    def __init__(self, message: str, response: JsonObject | None) -> None:
        super().__init__(message, response)

    @property
    def _response(self) -> dict[str, Any]:
        return self.response if isinstance(self.response, dict) else {}

    @property
    def error(self) -> str | None:
        """The ``error`` field of the response, or None if there is none that is text."""
        return _text(self._response.get("error"))

    @property
    def failure_reason(self) -> str | None:
        """Salesforce's own explanation, ``ext.sfdc.failureReason``: the true cause where present."""
        ext = self._response.get("ext")
        sfdc = ext.get("sfdc") if isinstance(ext, dict) else None
        return _text(sfdc.get("failureReason")) if isinstance(sfdc, dict) else None

    @property
    def error_code(self) -> int | None:
        """The code in ``code:args:message`` (Bayeux specification 1.0, "error"), or None."""
        code, _, _ = self._error_parts()
        return int(code) if code else None

    @property
    def error_args(self) -> list[str] | None:
        """The arguments in ``code:args:message``, or None if the text has another form."""
        _, args, _ = self._error_parts()
        if args is None:
            return None
        return args.split(",") if args else []

    @property
    def error_message(self) -> str | None:
        """The description in ``code:args:message``, or None if the text has another form."""
        _, _, message = self._error_parts()
        return message

    def _error_parts(self) -> tuple[str | None, str | None, str | None]:
        parts = (self.error or "").split(":", 2)
        code = (
            parts[0] if len(parts[0]) == 3 and parts[0].isascii() and parts[0].isdigit() else None
        )
        if len(parts) < 3:
            return code, None, None
        return code, parts[1], parts[2]

    def __str__(self) -> str:
        sentence = fit(self.message).rstrip(".")
        response = self._response
        channel = _text(response.get("subscription")) or _text(response.get("channel"))
        if channel is not None and (channel := fit(channel, limit=_CHANNEL)) not in sentence:
            sentence += f" (channel {channel})"
        # Of what the server says, which may be as long as it likes, the beginning.
        reasons = [fit(reason or "") for reason in (self.error, self.failure_reason)]
        reasons = [reason for reason in reasons if reason]
        if reasons:
            sentence += ": " + "; reason: ".join(reasons)
        sentence = sentence if sentence.endswith(".") else sentence + "."
        refused = response and response.get("successful") is not True
        return f"{sentence} {_advise(reasons)}" if refused else sentence


class ReplayError(AiosfstreamException):
    """A replay marker could not be read, made or stored."""


#: aiocometd's exception classes and ours that stand for them, most specific first.
EXCEPTION_PAIRS: Final[dict[type[Exception], type[AiosfstreamException]]] = {
    cometd.ClientInvalidOperation: ClientInvalidOperation,
    cometd.ClientError: ClientError,
    cometd.TransportInvalidOperation: TransportInvalidOperation,
    cometd.TransportTimeoutError: TransportTimeoutError,
    cometd.TransportConnectionClosed: TransportConnectionClosed,
    cometd.TransportError: TransportError,
    cometd.ServerError: ServerError,
    cometd.AiocometdException: AiosfstreamException,
}


def translate(error: cometd.AiocometdException) -> AiosfstreamException:
    """Give this package's exception for one of aiocometd's, subclasses of them included.

    :param error: an error of aiocometd, or one of ours, which is returned unchanged
    :return: the exception to raise ``from`` it
    """
    if isinstance(error, AiosfstreamException):
        return error
    if isinstance(error, cometd.ServerError):
        message, response = (*error.args, None, None)[:2]
        return ServerError(str(message), response)
    target = next(ours for theirs, ours in EXCEPTION_PAIRS.items() if isinstance(error, theirs))
    return target(*error.args)


@contextmanager
def translate_errors_context() -> Iterator[None]:
    """Turn aiocometd's errors raised in the block into ours, ``from`` the original.

    :raises AiosfstreamException: in place of any ``AiocometdException``
    """
    try:
        yield
    except AiosfstreamException:
        raise
    except cometd.AiocometdException as error:
        raise translate(error) from error


def translate_errors(func: Func) -> Func:
    """Make a function raise our exceptions where it would raise aiocometd's.

    :param func: a function, coroutine function or async generator function
    :return: a function of the same kind
    """
    if inspect.iscoroutinefunction(func):
        return cast(Func, _translating_coroutine(func))
    if inspect.isasyncgenfunction(func):
        return cast(Func, _translating_generator(func))

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with translate_errors_context():
            return func(*args, **kwargs)

    return cast(Func, wrapper)


# Not by way of the context manager, which would cost an object for every message received.


def _translating_coroutine(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await func(*args, **kwargs)
        except AiosfstreamException:
            raise
        except cometd.AiocometdException as error:
            raise translate(error) from error

    return wrapper


def _translating_generator(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            async with aclosing(func(*args, **kwargs)) as items:
                async for item in items:
                    yield item
        except AiosfstreamException:
            raise
        except cometd.AiocometdException as error:
            raise translate(error) from error

    return wrapper


def _advise(reasons: list[str]) -> str:
    said = " ".join(reasons)
    found = (advice for pattern, advice in _ADVICE if re.search(pattern, said, re.I))
    return next(found, _LOOK_IT_UP)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
