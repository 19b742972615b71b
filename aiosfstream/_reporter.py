"""Tells the log and the application's observer what happens to the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from .events import ConnectionEvent, ConnectionEventKind

LOGGER = logging.getLogger("aiosfstream.client")

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
        "Logging in again failed; receive() raises this and the one after it tries again: {error}",
    ),
    ConnectionEventKind.STORAGE_FAILED: (
        logging.ERROR,
        "The replay storage fails; receive() raises this and the one after it tries again: {error}",
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


_ENDED: Final = "Closed, since the session has ended for good; open the client again when that is fixed: {error}"


class Reporter:
    """Logs events and hands them to the observer.

    :param observer: the application's callable, or None
    """

    __slots__ = ("_observer",)

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
        except Exception:
            LOGGER.exception(
                "The observer failed for %s; the connection is not affected; fix the observer",
                event.kind.value,
            )


#: For the clients without an observer, of which there may be thousands.
LOG_ONLY: Final = Reporter(None)
