"""What a client tells its observer about its connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = ["LOG_ONLY", "ConnectionEvent", "ConnectionEventKind", "Reporter"]

LOGGER = logging.getLogger("aiosfstream.client")


class ConnectionEventKind(str, Enum):
    """What can happen to a connection."""

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
    :ivar channel: the channel, if the change is about one
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


#: Level and text of the log record of each kind of event. INFO is routine; WARNING may need attention.
_RECORDS: Final = {
    ConnectionEventKind.CONNECTED: (logging.INFO, "Connected"),
    ConnectionEventKind.CONNECTION_LOST: (logging.INFO, "Connection lost, recovering: {error}"),
    ConnectionEventKind.RETRYING: (
        logging.INFO,
        "Trying again in {delay:.1f} s after {attempt} failures, the last: {error}",
    ),
    ConnectionEventKind.REAUTHENTICATED: (logging.INFO, "Logged in again, a new session follows"),
    ConnectionEventKind.AUTHENTICATION_FAILED: (
        logging.ERROR,
        "Logging in again failed; receive() raises this, and the next receive() tries again: {error}",
    ),
    ConnectionEventKind.STORAGE_FAILED: (
        logging.ERROR,
        "The replay storage fails; receive() raises this, and the next receive() tries again: {error}",
    ),
    ConnectionEventKind.SESSION_RENEWED: (logging.INFO, "The session has been renewed"),
    ConnectionEventKind.CHANNEL_RESUMED: (
        logging.INFO,
        "Channel {channel} is subscribed again from replay id {replay_id!r}",
    ),
    ConnectionEventKind.FALLBACK_USED: (
        logging.WARNING,
        "The replay id of channel {channel} was refused, subscribing from the fallback {replay_id!r}"
        " instead: {error}",
    ),
    ConnectionEventKind.CHANNEL_LOST: (
        logging.ERROR,
        "Channel {channel} cannot be resumed; receive() raises this: {error}",
    ),
    ConnectionEventKind.FETCHING_SUSPENDED: (
        logging.DEBUG,
        "Fetching is suspended until pending messages are received",
    ),
    ConnectionEventKind.FETCHING_RESUMED: (logging.DEBUG, "Fetching has resumed"),
    ConnectionEventKind.CLOSED: (logging.INFO, "Closed"),
}


_ENDED: Final = "Closed, because the session has ended for good; open the client again once the cause is gone: {error}"


class Reporter:
    """Logs events and hands them to the observer.

    :param observer: the application's callable, or None
    """

    def __init__(self, observer: Callable[[ConnectionEvent], None] | None) -> None:
        self._observer = observer

    def __call__(self, event: ConnectionEvent) -> None:
        """Report *event*. What the observer raises is logged and goes no further."""
        level, text = _RECORDS[event.kind]
        if event.kind is ConnectionEventKind.CLOSED and event.error is not None:
            level, text = logging.ERROR, _ENDED
        if LOGGER.isEnabledFor(level):
            LOGGER.log(level, "%s", text.format(**vars(event)))
        if self._observer is None:
            return
        try:
            self._observer(event)
        except (Exception, asyncio.CancelledError):
            # Nobody can have cancelled what does not wait.
            LOGGER.exception(
                "The observer failed for %s; the connection is not affected, fix the observer",
                event.kind.value,
            )


#: Shared by all clients without an observer.
LOG_ONLY: Final = Reporter(None)
