"""Which events the backlog of a channel comes before."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from aiosfstream._cometd.backlog import Backlog

SINCE = datetime(2026, 3, 1, 12, 30, 5, 250_000, tzinfo=timezone.utc).timestamp()
BEFORE, AT, AFTER = (f"2026-03-01T12:30:05.{part}Z" for part in ("249", "250", "251"))
MILLISECONDS = round(SINCE * 1000)


@pytest.mark.parametrize(("date", "later"), [(BEFORE, False), (AT, True), (AFTER, True)])
@pytest.mark.parametrize(
    "place",
    [
        lambda date: {"event": {"createdDate": date}},
        lambda date: {"event": {"createdDate": date}, "payload": {"CreatedDate": BEFORE}},
        lambda date: {"event": {}, "payload": {"CreatedDate": date}},
        lambda date: {"payload": {"CreatedDate": date}},
        lambda date: {"event": [], "payload": {"CreatedDate": date}},
    ],
)
def test_dates_as_texts(place: Any, date: str, *, later: bool) -> None:
    assert Backlog(SINCE).is_before(place(date)) is later


@pytest.mark.parametrize(
    ("date", "later"),
    [
        (MILLISECONDS - 1, False),
        (MILLISECONDS, True),
        (str(MILLISECONDS + 1), True),
        (str(MILLISECONDS - 1), False),
        ("9" * 17, True),
        ("9" * 18, False),
        (-1, False),
        (1.5, False),
        (None, False),
        (True, False),
        ([], False),
        ("tomorrow", False),
        ("tomorrowZ", False),
        ("2027-01-01", False),
        ("2027-01-01T00:00:00+01:00", False),
        ("\u0663", False),
    ],
)
def test_dates_of_changes(date: Any, *, later: bool) -> None:
    data = {"payload": {"ChangeEventHeader": {"commitTimestamp": date}, "CreatedDate": AFTER}}
    assert Backlog(SINCE).is_before(data) is later


@pytest.mark.parametrize("data", [{}, {"event": None, "payload": None}, {"payload": "x"}])
def test_without_a_date_it_is_a_part_of_the_backlog(data: Any) -> None:
    assert not Backlog(SINCE).is_before(data)
