"""A channel's name: the one form under which everything is kept, and the one that people are shown."""

from __future__ import annotations

from typing import Final

from ._text import fit

__all__ = ["LONGEST", "key_of", "shown"]

#: Characters that the name of a channel has at most. Salesforce allows 80 for what it is made of, and the
#: query of a filtered PushTopic comes on top.
LONGEST: Final = 2000


def key_of(channel: str) -> str:
    """Give the key of a channel: the name under which its marker and its resume point are kept.

    The query of a filtered PushTopic is no part of it, nor is a slash at the end: CometD takes
    ``/event/A__e/`` and ``/event/A__e`` for one channel, and its events come on the latter.

    :param channel: a channel, as subscribed or as delivered
    """
    key = channel.partition("?")[0]
    # Nearly every name is its own key, and this is asked for each event of some paths.
    return (key.rstrip("/") or key) if key[-1:] == "/" else key


def shown(channel: object) -> str:
    """Give the name of a channel, as far as it fits into a log or an error.

    A server may call a channel whatever it likes, line breaks and what controls a terminal included.

    :param channel: a channel, or whatever stands in its place
    """
    return fit(channel, limit=100)
