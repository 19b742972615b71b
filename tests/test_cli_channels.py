"""Channels and replay ids, as they are written on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from aiosfstream import ReplayOption
from aiosfstream._cli.channels import parse_channel, parse_replay
from aiosfstream._cli.console import UsageError
from tests.support import EVENT


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (EVENT, (EVENT, None)),
        (f"{EVENT}/", (f"{EVENT}/", None)),
        ("/data/ChangeEvents", ("/data/ChangeEvents", None)),
        ("/u/notifications/a/b", ("/u/notifications/a/b", None)),
        ("/u/*", ("/u/*", None)),
        ("/u/**", ("/u/**", None)),
        (f"{EVENT}@5", (EVENT, 5)),
        (f"{EVENT}@0", (EVENT, 0)),
        (f"{EVENT}@12345678901234567890", (EVENT, 12345678901234567890)),
        (f'{EVENT}@"abc"', (EVENT, "abc")),
        (f"{EVENT}@all", (EVENT, ReplayOption.ALL_EVENTS)),
        (f"{EVENT}@new", (EVENT, ReplayOption.NEW_EVENTS)),
        (f"{EVENT}@-2", (EVENT, ReplayOption.ALL_EVENTS)),
        ("/topic/T?Email='a@b.c'", ("/topic/T?Email='a@b.c'", None)),
        ("/topic/T?Email='a@b.c'@7", ("/topic/T?Email='a@b.c'", 7)),
        ("/topic/T?Name=a b", ("/topic/T?Name=a b", None)),
    ],
)
def test_channels_with_ids(text: str, parsed: Any) -> None:
    assert parse_channel(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "//", "@5", "nonsense", "event/X__e", "/event", "/event/", "/event//X", "/@5"),
        *(f"{EVENT}@", f"{EVENT}@abc", f"{EVENT}@-5", f"{EVENT}@5@", f"{EVENT}@5.0", f"{EVENT}@ 5"),
        *(f"{EVENT}@1e3", f"{EVENT}@1_0", f"{EVENT}@New", f'{EVENT}@""', f"{EVENT}@null"),
        *(f"{EVENT}@@5", f"{EVENT}@\u0665", "/event/X Y", "/event/X\n", "/meta/connect", "/a@b/c"),
        "https://x.my.salesforce.com/event/X__e",
    ],
)
def test_what_is_no_channel(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_channel(text)
    assert "new" in str(caught.value) or "/event/My_Event__e" in str(caught.value)


@pytest.mark.parametrize("text", ["foo", "", "-3", "+1", "0x1", "nan", "[1]", "{}", "1" * 41])
def test_what_is_no_replay_id(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--replay says .* new, all or a replay id"):
        parse_replay(text, "--replay says where channels start")
