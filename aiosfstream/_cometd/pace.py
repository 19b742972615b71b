"""How fast connects follow one another while all is well."""

from __future__ import annotations

from typing import Final

from aiocometd.typing import JsonObject

#: Seconds. A connect that is answered sooner, without an event, was no long poll.
LONG_POLL: Final = 5.0
#: Short polls in a row that are tolerated: a subscription that is made may end a poll as well.
TOLERATED: Final = 2
#: Seconds of the first delay after those, which then doubles, and of the longest.
FIRST_DELAY: Final = 0.1
MAX_DELAY: Final = 5.0
#: Seconds after which an empty answer counts as that of a poll that was held.
HELD: Final = 1.0


class Pace:
    """Delays between the connects of a session, beyond what the server asks for.

    A server, or something on the way to it, that answers every connect with nothing long before its
    time would otherwise be asked without a pause.
    """

    def __init__(self) -> None:
        self._short_polls = 0
        # The advice that was looked at last, and whether it tells of another session with the same cookie.
        self._advice: JsonObject | None = None
        self._crowded = False

    def next_delay(
        self, advice: JsonObject, interval: float, events: int, elapsed: float, hold: float
    ) -> float:
        """Give the seconds to wait before the next connect.

        :param advice: the server's last advice
        :param interval: the seconds that it asks for
        :param events: how many events came with the reply to the last connect
        :param elapsed: how long that took, in seconds
        :param hold: how long it might have been held, in seconds; 0: it was to be answered at once
        """
        is_for_others = bool(advice.get("multiple-clients"))
        if advice is not self._advice:
            self._advice, self._crowded = advice, is_for_others
        elif elapsed >= HELD:
            # It holds connects again, so the other session with the same cookie is gone.
            self._crowded = False
        if is_for_others and not self._crowded:
            interval = 0.0
        return max(interval, self._penalty(events, elapsed, hold) if hold else 0.0)

    def _penalty(self, events: int, elapsed: float, hold: float) -> float:
        if events or elapsed >= min(LONG_POLL, hold / 2):
            self._short_polls = 0
            return 0.0
        self._short_polls += 1
        doublings = self._short_polls - TOLERATED - 1
        if doublings < 0:
            return 0.0
        return max(min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(doublings, 10)) - elapsed, 0.0)
