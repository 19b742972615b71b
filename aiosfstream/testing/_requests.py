"""What the server remembers of a request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request, as it arrived.

    :ivar kind: ``token``, ``authorize``, ``cometd`` or ``other``
    :ivar channel: the first message's channel, empty for others than ``cometd``
    :ivar messages: the Bayeux messages
    :ivar form: the fields of a token request
    :ivar headers: the HTTP headers
    :ivar path: the path
    :ivar time: ``time.monotonic()`` at its arrival
    :ivar status: the HTTP status that it was answered with; None: not answered, or not entirely
    """

    kind: str
    channel: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: str = ""
    time: float = field(default_factory=time.monotonic)
    status: int | None = None

    @property
    def client_id(self) -> str | None:
        """The ``clientId`` of the first message."""
        return self.messages[0].get("clientId") if self.messages else None
