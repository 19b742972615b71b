"""What can go wrong with a request, as small values that can be put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._requests import Request


@dataclass(frozen=True)
class Fault:
    """The base of all faults."""


@dataclass(frozen=True)
class Status(Fault):
    """Answer with an HTTP status and body, without looking at the request."""

    status: int
    body: bytes | str = "<html><body>Error</body></html>"
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/html"


@dataclass(frozen=True)
class Refuse(Fault):
    """Answer with an unsuccessful Bayeux message, without looking at the request.

    :ivar error: the ``error`` field
    :ivar failure_reason: ``ext.sfdc.failureReason``, if there is to be one
    :ivar advice: the ``advice`` field, if there is to be one
    :ivar bare: leave out channel, id and client id, as some servers do
    :ivar status: the HTTP status
    """

    error: str
    failure_reason: str | None = None
    advice: Mapping[str, Any] | None = None
    bare: bool = False
    status: int = 200


@dataclass(frozen=True)
class OAuthError(Fault):
    """Answer a token request with an error.

    :ivar error: the ``error`` field
    :ivar description: the ``error_description`` field
    :ivar status: the HTTP status
    """

    error: str
    description: str = ""
    status: int = 400


@dataclass(frozen=True)
class Delay(Fault):
    """Wait before the request is looked at.

    :ivar seconds: how long
    :ivar after: wait with the answer instead, when what was asked for is done
    """

    seconds: float
    after: bool = False


@dataclass(frozen=True)
class Hang(Fault):
    """Never answer."""


@dataclass(frozen=True)
class CutBefore(Fault):
    """Cut the connection without looking at the request.

    :ivar reset: cut it with a TCP reset, instead of closing it
    """

    reset: bool = False


@dataclass(frozen=True)
class CutAfter(Fault):
    """Do what is asked, then cut the connection: events in the answer count as delivered.

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
    """Do what is asked, but answer with something else, with HTTP status 200.

    :ivar body: what to answer with; it may be empty
    """

    body: bytes = b"<html><body>Please log in</body></html>"


@dataclass(frozen=True)
class Redirect(Fault):
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
class ForgetSession(Fault):
    """Forget the session of the request first, as when its routing cookie has expired."""


@dataclass(frozen=True)
class RevokeTokens(Fault):
    """Revoke all access tokens first."""


@dataclass(frozen=True)
class Call(Fault):
    """Call a function before the request is looked at, for whatever there is no fault for.

    :ivar function: called with the request, in the server's thread; it must not block
    """

    function: Callable[[Request], object]


@dataclass(frozen=True)
class Alter(Fault):
    """Change the answer: leave out fields, turn ids into numbers, add messages.

    :ivar function: called with the answer as parsed from JSON, a list of messages or the object of
        a token endpoint; gives what is sent in its place
    """

    function: Callable[[Any], Any]
