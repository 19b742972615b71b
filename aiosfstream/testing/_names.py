"""The names that channels may have."""

from __future__ import annotations

from typing import Final

#: What the channels of each kind begin with.
PREFIXES: Final = ("/event/", "/data/", "/topic/", "/u/")


def check_channel(channel: object) -> str:
    """Give a channel's name back.

    :raises TypeError: if it is no text
    :raises ValueError: if no channel of an org has such a name
    """
    if not isinstance(channel, str):
        raise TypeError(f"channel should be a str such as '/event/Order__e', not {channel!r}")
    if channel.startswith(PREFIXES) and channel not in PREFIXES:
        return channel
    raise ValueError(
        f"channel should begin with {', '.join(PREFIXES[:-1])} or {PREFIXES[-1]} and go on with a"
        f" name, not {channel!r}{_hint(channel)}"
    )


def check_publishable(channel: object) -> str:
    """Give the name of a channel back that is to be published on.

    :raises TypeError: if it is no text
    :raises ValueError: if events cannot be published on it
    """
    name = check_channel(channel)
    plain = name.partition("?")[0].rstrip("/")
    if plain != name or "*" in name:
        raise ValueError(
            f"channel should be that of the events, not {name!r}, which is for subscriptions; use"
            f" {plain.rstrip('*/') if '*' in plain else plain!r}"
        )
    return name


def _hint(channel: str) -> str:
    """Say what was probably meant."""
    last = channel.strip("/").rpartition("/")[2]
    if not last:
        return ""
    change = last.endswith(("ChangeEvent", "ChangeEvents"))
    prefix = "/data/" if change else "/event/" if last.endswith(("__e", "Event")) else "/topic/"
    return f": did you mean {prefix + last!r}?"
