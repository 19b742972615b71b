"""How markers are written where the database, and not Python, compares them."""

from __future__ import annotations

import json
from typing import Final

from .._dates import instant
from ..exceptions import ReplayError
from ..replay import ReplayMarker

__all__ = ["NO_DATE", "as_json", "moment_of", "short_id", "sound"]

#: Older than any date, and a number that SQL and Lua understand.
NO_DATE: Final = -1e300
#: Characters of an org's id that count: the other three of a long one only check the case of these.
_ID_LENGTH: Final = 15


def moment_of(date: str) -> float:
    """Give the instant of a marker's date as a number that every database understands.

    :param date: the date
    """
    return max(instant(date), NO_DATE)


def as_json(subscription: str, marker: ReplayMarker) -> str:
    """Give the replay id of a marker as JSON, so that ids of any type come back as they are.

    :param subscription: the channel
    :param marker: its marker
    :raises ReplayError: if the id is nothing that JSON can express
    """
    try:
        return json.dumps(marker.replay_id)
    except (TypeError, ValueError) as error:
        raise ReplayError(
            f"A replay id of {subscription} cannot be stored: {error}. It should be something that JSON has."
        ) from error


def sound(text: object) -> str:
    """Give *text* without what cannot be written as UTF-8.

    :param text: a channel or a date
    """
    return str(text).encode("utf-8", "replace").decode("utf-8")


def short_id(org_id: str) -> str:
    """Give the id of an org in its short form, which is the same for ids of 15 and of 18 characters.

    :param org_id: an id
    """
    return sound(org_id)[:_ID_LENGTH]
