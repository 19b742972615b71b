"""What a client tells its observer about its connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["ConnectionEvent", "ConnectionEventKind"]


class ConnectionEventKind(str, Enum):
    """The changes that a person on call would want to know of."""

    #: The client has opened, or is connected again after a loss.
    CONNECTED = "connected"
    #: A request failed; recovery starts. ``error`` is the cause.
    CONNECTION_LOST = "connection lost"
    #: Another attempt follows after ``delay`` seconds; ``attempt`` counts failures in a row.
    RETRYING = "retrying"
    #: A new access token replaces one that was refused.
    REAUTHENTICATED = "re-authenticated"
    #: The credentials were refused; the next ``receive()`` tries again. ``error`` says why.
    AUTHENTICATION_FAILED = "authentication failed"
    #: The marker storage cannot be read for a channel that must be resumed from it.
    STORAGE_FAILED = "storage failed"
    #: A new CometD session replaces one that was lost.
    SESSION_RENEWED = "session renewed"
    #: ``channel`` is subscribed in the new session, from ``replay_id`` on.
    CHANNEL_RESUMED = "channel resumed"
    #: The server does not know the replay id of ``channel``; it starts from ``replay_id`` instead.
    FALLBACK_USED = "fallback used"
    #: ``channel`` could not be resumed, for the reason in ``error``.
    CHANNEL_LOST = "channel lost"
    #: ``max_pending_count`` messages wait to be consumed; no more are fetched until some are.
    FETCHING_SUSPENDED = "fetching suspended"
    #: Messages are fetched again.
    FETCHING_RESUMED = "fetching resumed"
    #: The client is closed; ``error`` is the cause if it was not asked to.
    CLOSED = "closed"


@dataclass(frozen=True)
class ConnectionEvent:
    """One change of a client's connection.

    :ivar kind: what changed
    :ivar channel: the channel concerned, if it is one
    :ivar error: the cause, if there is one
    :ivar attempt: failures in a row so far, where an attempt follows
    :ivar delay: seconds until the next attempt, where one follows
    :ivar replay_id: where a channel starts from, as sent to the server
    """

    kind: ConnectionEventKind
    channel: str | None = None
    error: BaseException | None = None
    attempt: int = 0
    delay: float | None = None
    replay_id: Any = None
