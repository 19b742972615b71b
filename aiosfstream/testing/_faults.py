"""What can go wrong with a request, as small values that can be put together.

Three kinds: those that are met before the request is looked at, those that change the answer, and
those that decide how it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._gates import Waitable
    from ._requests import Request


@dataclass(frozen=True)
class Fault:
    """The base of all faults."""


@dataclass(frozen=True)
class Early(Fault):
    """The base of the faults that happen before the request is read."""


@dataclass(frozen=True)
class Status(Early):
    """Answer with an HTTP status and body, without reading the request.

    :ivar status: the status
    :ivar body: the body, such as a page, JSON or nothing
    :ivar headers: headers of any size, such as ``{"Retry-After": "5"}``
    :ivar content_type: the type of the body
    """

    status: int
    body: bytes | str = "<html><body>Error</body></html>"
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/html"


@dataclass(frozen=True)
class Refuse(Early):
    """Answer with an unsuccessful Bayeux message, without reading the request.

    :ivar error: the ``error`` field
    :ivar failure_reason: ``ext.sfdc.failureReason``; None: leave it out
    :ivar advice: the ``advice`` field; None: leave it out
    :ivar bare: leave out channel, id and client id, as some servers do
    :ivar status: the HTTP status
    :ivar headers: headers, such as ``{"Retry-After": "5"}``
    """

    error: str
    failure_reason: str | None = None
    advice: Mapping[str, Any] | None = None
    bare: bool = False
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OAuthError(Early):
    """Answer a token request with an error.

    :ivar error: the ``error`` field
    :ivar description: the ``error_description`` field
    :ivar status: the HTTP status
    :ivar headers: headers, such as ``{"Retry-After": "5"}``
    """

    error: str
    description: str = ""
    status: int = 400
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delay(Fault):
    """Wait before reading the request.

    :ivar seconds: how long
    :ivar after: do what the request asks, and wait with the answer instead
    """

    seconds: float
    after: bool = False


@dataclass(frozen=True)
class Hold(Fault):
    """Wait until a gate opens, before reading the request.

    :ivar until: what to wait for: a :class:`Gate`, or an ``asyncio.Event`` of the server's event loop
    :ivar after: do what the request asks, and wait with the answer instead
    """

    until: Waitable
    after: bool = False


@dataclass(frozen=True)
class Hang(Early):
    """Never answer."""


@dataclass(frozen=True)
class CutBefore(Early):
    """Cut the connection without reading the request.

    :ivar reset: cut it with a TCP reset, instead of closing it
    :ivar reused: only a connection that has carried a request before, like a server that closes idle
        connections at the moment when the client uses them again
    """

    reset: bool = False
    reused: bool = False


@dataclass(frozen=True)
class CutAfter(Fault):
    """Do what the request asks, then cut the connection. Events in the answer count as delivered.

    :ivar reset: cut it with a TCP reset, instead of closing it
    """

    reset: bool = False


@dataclass(frozen=True)
class Truncate(Fault):
    """Send the first bytes of the answer, then cut the connection.

    :ivar size: how many bytes; None: half of them
    """

    size: int | None = None


@dataclass(frozen=True)
class Garble(Fault):
    """Do what the request asks, but answer with something else and HTTP status 200.

    :ivar body: what to answer with; it may be empty
    """

    body: bytes = b"<html><body>Please log in</body></html>"


@dataclass(frozen=True)
class Redirect(Early):
    """Send the client elsewhere.

    :ivar location: the URL
    :ivar status: the HTTP status
    """

    location: str
    status: int = 302


@dataclass(frozen=True)
class Duplicate(Fault):
    """Send each event of the answer twice."""


@dataclass(frozen=True)
class ForgetSession(Early):
    """Forget the session of the request first, like when its routing cookie has expired."""


@dataclass(frozen=True)
class RevokeTokens(Early):
    """Revoke all access tokens first."""


@dataclass(frozen=True)
class Call(Early):
    """Call a function before reading the request, for anything that has no fault of its own.

    :ivar function: called with the request, in the server's thread; it must not block
    """

    function: Callable[[Request], object]


@dataclass(frozen=True)
class Alter(Fault):
    """Change the answer: leave out fields, turn ids into numbers, add messages.

    :ivar function: called with the answer as parsed from JSON, a list of messages or the object of
        a token endpoint; returns what to send instead
    """

    function: Callable[[Any], Any]


@dataclass(frozen=True)
class AlterBody(Fault):
    """Change the bytes of the answer: invalid UTF-8, raw control characters, other JSON.

    :ivar function: called with the body; returns what to send instead
    """

    function: Callable[[bytes], bytes]


@dataclass(frozen=True)
class ByteOrderMark(Fault):
    """Send a byte order mark first."""


@dataclass(frozen=True)
class Compress(Fault):
    """Compress the answer.

    :ivar encoding: the ``Content-Encoding``: ``gzip``, ``x-gzip`` or ``deflate``
    """

    encoding: str = "gzip"


@dataclass(frozen=True)
class Head(Fault):
    """Send the real answer with another status or more headers.

    :ivar status: the HTTP status; None: the real one
    :ivar headers: headers that are added
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Insert(Fault):
    """Put other values among the messages of the answer, such as ``None``, a string, ``{}`` or a list.

    :ivar values: the values
    :ivar first: whether before the messages, instead of after them
    """

    values: tuple[Any, ...]
    first: bool = False


@dataclass(frozen=True)
class Advise(Fault):
    """Put advice into the replies of the answer.

    :ivar advice: the ``advice`` field
    """

    advice: Mapping[str, Any]


@dataclass(frozen=True)
class Farewell(Fault):
    """Put an unasked ``/meta/disconnect`` into the answer, and end the session.

    With :class:`Refuse` or :class:`Advise` a farewell comes in pieces, as real servers send it.

    :ivar first: whether before the other messages, instead of after them
    """

    first: bool = True


@dataclass(frozen=True)
class Deliver(Fault):
    """Put the events that are due into the answer, whatever was asked, as CometD servers do.

    :ivar first: whether before the replies, instead of after them
    """

    first: bool = True


@dataclass(frozen=True)
class Overtake(Early):
    """Let the answer to a connect bring the newest of the events that are due, and later ones the older.

    :ivar count: how many
    """

    count: int = 1


@dataclass(frozen=True)
class HoldBody(Fault):
    """Send the first bytes of the answer, and the rest when told.

    :ivar until: what to wait for: a :class:`Gate`, or an ``asyncio.Event`` of the server's event loop
    :ivar size: how many bytes are sent before; None: half of them
    """

    until: Waitable
    size: int | None = None


@dataclass(frozen=True)
class Drip(Fault):
    """Send the answer in small pieces.

    :ivar size: bytes a piece
    :ivar seconds: the pause after each piece
    """

    size: int
    seconds: float = 0.0
