"""Dates as instants, whatever form they have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._dates import instant


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T00:00:01.500Z", 1.5),
        ("1970-01-01T00:00:01.5z", 1.5),
        ("1970-01-01T00:00:01.500000Z", 1.5),
        ("1970-01-01T00:00:01.500000999Z", 1.5),
        ("1970-01-01T01:00:01.500+0100", 1.5),
        ("1969-12-31T23:00:01.500-0100", 1.5),
        ("1970-01-01T01:00:01.500+01:00", 1.5),
        ("1970-01-01T00:00:01.500", 1.5),
        ("1500", 1.5),
        (1500, 1.5),
        ("0", 0.0),
        ("", float("-inf")),
        (None, float("-inf")),
        ("None", float("-inf")),
        ("-5", float("-inf")),
        ("1" * 5000, float("-inf")),
        ("٣", float("-inf")),
        ("2017-13-45T00:00:00Z", float("-inf")),
        ("20170409T183140Z", float("-inf")),
        ("0001-01-01T00:00:00+2359", -62135683140.0),
        ("2017-04-09T18:31:40.Z!", float("-inf")),
    ],
)
def test_a_date_is_an_instant(date: object, expected: float) -> None:
    assert instant(date) == expected


@given(st.text())
def test_any_text_has_an_instant(text: str) -> None:
    assert isinstance(instant(text), float)
