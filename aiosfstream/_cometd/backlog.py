"""Telling the events of a backlog from those that were published after it was asked for."""

from __future__ import annotations

from datetime import datetime, timezone

from aiocometd.typing import JsonObject


class Backlog:
    """The stored events that a server sends to a channel that was subscribed from a replay id.

    A server may send an event that is published meanwhile before the backlog is complete. Nothing in
    that event says so; but its date is later than the subscription, by clocks that are about right.

    :param since: when the subscription was asked for, in seconds since the epoch
    """

    def __init__(self, since: float) -> None:
        # Dates have no finer part.
        self._milliseconds = int(since * 1000)
        moment = datetime.fromtimestamp(since, timezone.utc)
        self._text = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"

    def is_before(self, data: JsonObject) -> bool:
        """Say whether an event was published later, so that the backlog comes before it.

        :param data: the event's ``data``; without a date in one of the usual forms it counts as part of
            the backlog
        """
        date = _date_of(data)
        if isinstance(date, str) and date[-1:] == "Z" and date[10:11] == "T":
            # Dates in UTC are in the order of their texts.
            return date >= self._text
        text = str(date)
        return (
            text.isascii() and text.isdigit() and len(text) < 18 and int(text) >= self._milliseconds
        )


def _date_of(data: JsonObject) -> object:
    event, payload = data.get("event"), data.get("payload")
    date = event.get("createdDate") if isinstance(event, dict) else None
    if date is not None or not isinstance(payload, dict):
        return date
    header = payload.get("ChangeEventHeader")
    if isinstance(header, dict):
        return header.get("commitTimestamp")
    return payload.get("CreatedDate")
