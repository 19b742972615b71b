"""How long a request may take."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["Limits", "limits_for"]

#: How many times the time-out of one phase a whole request may take: a large answer comes in slowly.
PHASES: Final = 4


class Limits(NamedTuple):
    """The time limits of one request, in seconds.

    :ivar connect: until there is a connection
    :ivar silence: until something must have come, counted anew with each piece of the answer
    :ivar total: until everything must have come
    """

    connect: float
    silence: float
    total: float


def limits_for(request_timeout: float, hold: float = 0.0) -> Limits:
    """Make the limits of a request.

    :param request_timeout: seconds for each phase of it
    :param hold: seconds for which the server may hold the request before it answers
    :return: the limits
    """
    return Limits(request_timeout, hold + request_timeout, hold + PHASES * request_timeout)
