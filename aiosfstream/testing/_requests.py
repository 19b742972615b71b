"""What the server remembers of requests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

#: Requests that are remembered.
MAX_REQUESTS: Final = 100_000
#: What requests are for, but those that carry Bayeux messages.
KINDS: Final = ("token", "authorize", "identity", "other")


@dataclass(frozen=True)
class Request:
    """One request, as it arrived.

    :ivar kind: ``token``, ``authorize``, ``identity``, ``cometd`` or ``other``
    :ivar channel: the first message's channel, empty for others than ``cometd``
    :ivar messages: the Bayeux messages
    :ivar form: the fields of a token request
    :ivar headers: the HTTP headers
    :ivar path: the path
    :ivar time: ``time.monotonic()`` at its arrival
    :ivar reused: whether its connection has carried another request before
    :ivar status: the HTTP status that it was answered with; None: not answered, or not entirely
    """

    kind: str
    channel: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: str = ""
    time: float = field(default_factory=time.monotonic)
    reused: bool = False
    status: int | None = None

    @property
    def client_id(self) -> str | None:
        """The ``clientId`` of the first message."""
        return self.messages[0].get("clientId") if self.messages else None

    @property
    def name(self) -> str:
        """What it is called in faults and counts: the channel, or else the kind."""
        return self.channel or self.kind


class RequestLog:
    """The requests so far, the last of them in full."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._counts: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def add(self, request: Request) -> int:
        """Note a request.

        :return: its number
        """
        number = next(self._numbers)
        self._requests[number] = request
        self._requests.pop(number - MAX_REQUESTS, None)
        self._counts[request.name] = self._counts.get(request.name, 0) + 1
        return number

    def answered(self, number: int, status: int) -> None:
        """Note the status that a request was answered with."""
        if number in self._requests:
            self._requests[number] = replace(self._requests[number], status=status)

    def all(self) -> list[Request]:
        """Give the requests that are remembered, the oldest first."""
        return list(self._requests.values())

    def count(self, name: str) -> int:
        """Count the requests of a name, those that are forgotten included."""
        return self._counts.get(name, 0)
