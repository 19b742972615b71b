"""How long to wait before another attempt. Arithmetic, without a clock."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between attempts; everything in seconds.

    The delays after trouble with the network are short even when it lasts, so that a stream is back
    soon after the server is. Minutes pass only where the org itself asks for them.

    :ivar initial: upper bound of the first delay after trouble with the network
    :ivar cap: upper bound of every later one
    :ivar busy_initial: the same for a server that is busy or a limit that is reached
    :ivar busy_cap: upper bound of every later one of these
    :ivar refused_initial: delay before credentials that were refused are tried again
    :ivar refused_cap: the longest of these
    :ivar farewell: upper bound of the pause after the server has ended the session as a matter of
        routine, perhaps those of many clients
    :ivar settled: a connection that lasts this long resets the delays, as an event does
    :ivar relocation: an instance that does not answer is asked for this long, then the login host is
        asked where the org is
    """

    initial: float = 1.0
    cap: float = 10.0
    busy_initial: float = 10.0
    busy_cap: float = 300.0
    refused_initial: float = 5.0
    refused_cap: float = 900.0
    farewell: float = 1.0
    settled: float = 2.0
    relocation: float = 10.0


class Delays:
    """Exponential backoff with full jitter, for each kind of trouble by itself.

    Each delay is uniform between 0 and a bound that doubles with each failure of the same kind: a
    token that is refused after the network has failed is a first failure.

    :param policy: the bounds
    :param rng: where chance comes from
    """

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._failures: dict[Hashable, int] = {}

    @property
    def attempts(self) -> int:
        """Failures since the last reset."""
        return sum(self._failures.values())

    def network(self, trouble: Hashable) -> float:
        """Count a failure of the network or of a session.

        :param trouble: what kind it is
        :return: seconds to wait before the next attempt
        """
        return self._next(trouble, self._policy.initial, self._policy.cap)

    def busy(self, trouble: Hashable) -> float:
        """Count a failure of a server that is busy, or a limit that is reached.

        :param trouble: what kind it is
        :return: seconds to wait before the next attempt
        """
        return self._next(trouble, self._policy.busy_initial, self._policy.busy_cap)

    def first_at_once(self, trouble: Hashable) -> float:
        """Count a failure that one attempt usually makes up for.

        :param trouble: what kind it is
        :return: 0 the first time, then as :meth:`network`
        """
        delay = self.network(trouble)
        return delay if self._failures[trouble] > 1 else 0.0

    def refused(self, times: int) -> float:
        """Give the seconds to wait before credentials that a person must correct are tried again.

        :param times: how often they were refused
        """
        return _bound(self._policy.refused_initial, self._policy.refused_cap, times - 1)

    def reset(self) -> None:
        """Forget all failures: the connection is good."""
        self._failures.clear()

    def _next(self, trouble: Hashable, initial: float, cap: float) -> float:
        failures = self._failures.get(trouble, 0)
        self._failures[trouble] = failures + 1
        return self._rng.uniform(0.0, _bound(initial, cap, failures))


def _bound(initial: float, cap: float, failures: int) -> float:
    # The exponent is limited because a float overflows long before the failures do.
    return min(cap, initial * 2.0 ** min(failures, 40))
