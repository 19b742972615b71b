"""Dates of events, in all the forms in which the org writes them, as instants that can be compared."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Final

__all__ = ["AHEAD", "LATEST", "UNKNOWN", "instant"]

#: The instant of a date that is not known: older than any other.
UNKNOWN: Final = float("-inf")
#: Seconds that a date may be ahead of this machine's clock, which may be wrong itself.
AHEAD: Final = 86_400.0


class Latest:
    """The latest date that is believed, in the forms in which dates are compared as texts.

    :ivar text: in ISO 8601, without the ``Z``
    :ivar milliseconds: since the epoch
    """

    def __init__(self) -> None:
        self.text = self.milliseconds = ""
        self._written = 0.0

    def instant(self) -> float:
        """Look at the clock, and give the latest instant that is believed."""
        latest = time.time() + AHEAD
        # What is later than these takes parsing, so they may lag a little.
        if abs(latest - self._written) > 60:
            self._written = latest
            self.text = datetime.fromtimestamp(latest, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
            self.milliseconds = str(int(latest * 1000))
        return latest


LATEST: Final = Latest()


def instant(date: object) -> float:
    """Give the seconds since the epoch of an event's date.

    :param date: ISO 8601 with ``Z`` or an offset, with or without fractions; or milliseconds since
        the epoch as text, which change events have
    :return: seconds; :data:`UNKNOWN` for anything else, and for what is more than a day ahead of this
        machine's clock
    """
    seconds = _parsed(str(date))
    return seconds if seconds <= LATEST.instant() else UNKNOWN


def _parsed(text: str) -> float:
    if text.isascii() and text.isdigit():
        return int(text) / 1000 if len(text) <= 18 else UNKNOWN
    if text[4:5] != "-":
        # Later Pythons understand other forms of ISO 8601 too; the order must not depend on it.
        return UNKNOWN
    try:
        parsed = datetime.fromisoformat(_iso(text))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return UNKNOWN


def _iso(text: str) -> str:
    """Write a date in the one form that every supported Python can parse."""
    if text.endswith(("Z", "z")):
        text = text[:-1] + "+00:00"
    elif len(text) > 5 and text[-5] in "+-" and text[-4:].isdigit():
        text = f"{text[:-2]}:{text[-2:]}"
    head, dot, tail = text.partition(".")
    if not dot:
        return text
    digits = len(tail) - len(tail.lstrip("0123456789"))
    return f"{head}.{tail[:digits][:6].ljust(6, '0')}{tail[digits:]}"
