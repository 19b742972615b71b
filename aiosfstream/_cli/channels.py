"""Channels and where they start, as they are written on the command line."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ..replay import ReplayOption
from .console import UsageError

__all__ = ["Replay", "parse_channel", "parse_replay"]

#: Where a channel starts: a replay option or a replay id.
Replay = ReplayOption | int | str

_OPTIONS: Final = {"new": ReplayOption.NEW_EVENTS, "all": ReplayOption.ALL_EVENTS}
_NUMBER: Final = re.compile(r"[0-9]{1,40}|-[12]")
#: A channel's name, and the filter of a PushTopic.
_CHANNEL: Final = re.compile(r"(/[^/?\s\x00-\x1f@]+){2,}/?(\?.+)?")


def parse_channel(text: str) -> tuple[str, Replay | None]:
    """Split ``CHANNEL@ID``; an ``@`` in the filter of a PushTopic is none before an id.

    :param text: the argument
    :return: the channel, and where it starts; None: where the others do
    :raises UsageError: if it is no channel, or what stands after the ``@`` is no start
    """
    channel, at, start = text.rpartition("@")
    if not at:
        return _checked(text), None
    try:
        return _checked(channel), parse_replay(start, f"{text!r} ends in an '@'")
    except UsageError:
        if "?" in text:
            return _checked(text), None
        raise


def _checked(channel: str) -> str:
    if not channel.startswith("/"):
        raise UsageError(
            f"{channel!r} is no channel: it should start with a slash, as in /event/My_Event__e"
        )
    if not _CHANNEL.fullmatch(channel):
        raise UsageError(
            f"{channel!r} is no channel: it should be like /event/My_Event__e, /data/AccountChangeEvent or"
            " /topic/MyTopic"
        )
    if channel.startswith(("/meta/", "/service/")):
        raise UsageError(
            f"{channel!r} is a channel of the protocol itself: give one such as /event/My_Event__e"
        )
    return channel


def parse_replay(text: str, what: str) -> Replay:
    """Understand ``new``, ``all`` or a replay id: a number, or a text in quotes as JSON has it.

    :param text: the argument
    :param what: what it belongs to, for the error
    :raises UsageError: if it is nothing of these
    """
    if text in _OPTIONS:
        return _OPTIONS[text]
    if _NUMBER.fullmatch(text):
        number = int(text)
        return ReplayOption(number) if number < 0 else number
    quoted = _text_in_quotes(text)
    if quoted is None:
        raise UsageError(
            f"{what}, and {text!r} is nowhere to start: it should be new, all or a replay id, which is a number"
        )
    return quoted


def _text_in_quotes(text: str) -> str | None:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) and value else None
