"""One key for each channel, whatever form its name has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream._channels import key_of, shown


@pytest.mark.parametrize(
    ("channel", "key"),
    [
        ("/event/A__e", "/event/A__e"),
        ("/event/A__e/", "/event/A__e"),
        ("/event/A__e//", "/event/A__e"),
        ("/topic/T?Status='a/'", "/topic/T"),
        ("/topic/T/?Status='a'&x='?'", "/topic/T"),
        ("/event/*", "/event/*"),
        ("/event/**", "/event/**"),
        ("/", "/"),
        ("", ""),
        ("?x", ""),
    ],
)
def test_a_query_and_a_slash_at_the_end_are_no_part_of_a_key(channel: str, key: str) -> None:
    assert key_of(channel) == key


@given(st.text(alphabet="/?a'=*"))
def test_a_key_is_its_own_key(channel: str) -> None:
    assert key_of(key_of(channel)) == key_of(channel)


@pytest.mark.parametrize("channel", ["/event/A\x1b[2J\nB\u2028\x9b", 5, None, {"a": "\n"}])
def test_a_name_is_shown_as_one_line(channel: object) -> None:
    assert shown(channel).isprintable()
    assert shown("/event/A__e") == "/event/A__e"
    assert len(shown("/event/" + "x" * 100_000)) == 100
