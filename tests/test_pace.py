"""How fast connects follow one another while all is well."""

from __future__ import annotations

from typing import Any

import pytest

from aiosfstream._cometd.messages import interval_of
from aiosfstream._cometd.pace import HELD, LONG_POLL, MAX_DELAY, Pace

NONE: dict[str, Any] = {}


def delay_after(
    pace: Pace,
    elapsed: float,
    *,
    events: int = 0,
    hold: float = 110.0,
    advice: dict[str, Any] = NONE,
) -> float:
    """Give the delay after a connect."""
    return pace.next_delay(advice, interval_of(advice), events, elapsed, hold)


def test_a_server_that_answers_everything_at_once_is_slowed_down() -> None:
    pace = Pace()
    delays = [delay_after(pace, 0.0) for _ in range(20)]
    assert delays[:8] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    assert delays[8:] == [MAX_DELAY] * 12


def test_what_an_answer_took_is_part_of_the_delay() -> None:
    pace = Pace()
    delays = [delay_after(pace, 0.3) for _ in range(20)]
    assert delays[:6] == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.1, 0.5])
    assert delays[-1] == pytest.approx(MAX_DELAY - 0.3)


def test_it_does_not_grow_without_end() -> None:
    pace = Pace()
    assert [delay_after(pace, 0.0) for _ in range(3000)][-1] == MAX_DELAY


@pytest.mark.parametrize(
    ("elapsed", "events", "hold", "short"),
    [
        (LONG_POLL, 0, 110.0, False),
        (LONG_POLL - 0.1, 0, 110.0, True),
        (0.0, 1, 110.0, False),
        # Half of what it may be held is long.
        (0.5, 0, 1.0, False),
        (0.4, 0, 1.0, True),
    ],
)
def test_what_a_short_poll_is(elapsed: float, events: int, hold: float, *, short: bool) -> None:
    pace = Pace()
    for _ in range(6):
        delay_after(pace, 0.0, hold=hold)
    delay_after(pace, elapsed, events=events, hold=hold)
    assert (delay_after(pace, 0.0, hold=hold) > 0.0) is short


def test_a_connect_that_is_answered_at_once_as_it_was_to_be() -> None:
    pace = Pace()
    for _ in range(10):
        assert delay_after(pace, 0.0, hold=0.0) == 0.0
    # Nor does it make what was counted forgotten.
    for _ in range(2):
        delay_after(pace, 0.0)
    delay_after(pace, 0.0, hold=0.0)
    assert delay_after(pace, 0.0) > 0.0


def test_the_interval_of_the_advice_holds_in_any_case() -> None:
    pace = Pace()
    advice = {"interval": 3000}
    assert delay_after(pace, 60.0, advice=advice) == 3.0
    assert delay_after(pace, 0.0, events=5, advice=advice) == 3.0
    assert delay_after(pace, 0.0, hold=0.0, advice=advice) == 3.0
    assert max(delay_after(pace, 0.0, advice=advice) for _ in range(20)) == MAX_DELAY


def test_the_interval_of_a_session_beside_it_ends_with_that() -> None:
    pace = Pace()
    crowded = {"interval": 2000, "multiple-clients": True}
    assert delay_after(pace, 0.0, events=1, advice=crowded) == 2.0
    assert delay_after(pace, 0.0, events=1, advice=crowded) == 2.0
    # Whoever is held again is alone.
    assert delay_after(pace, HELD, advice=crowded) == 0.0
    assert delay_after(pace, 0.0, events=1, advice=crowded) == 0.0
    # Until it is told so again, in a reply to whatever request.
    crowded = dict(crowded)
    assert delay_after(pace, HELD, advice=crowded) == 2.0
    assert delay_after(pace, 0.0, events=1, advice=crowded) == 2.0


def test_an_interval_for_other_reasons_does_not_end() -> None:
    pace = Pace()
    advice = {"interval": 2000}
    delay_after(pace, 0.0, events=1, advice=advice)
    assert delay_after(pace, HELD, advice=advice) == 2.0
