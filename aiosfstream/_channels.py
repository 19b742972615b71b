"""The one form of a channel's name under which everything is kept."""

from __future__ import annotations

__all__ = ["key_of"]


def key_of(channel: str) -> str:
    """Give the key of a channel: the name under which its marker and its resume point are kept.

    The query of a filtered PushTopic is no part of it, nor is a slash at the end: CometD takes
    ``/event/A__e/`` and ``/event/A__e`` for one channel, and its events come on the latter.

    :param channel: a channel, as subscribed or as delivered
    """
    key = channel.partition("?")[0]
    # Nearly every name is its own key, and this is asked for each event of some paths.
    return (key.rstrip("/") or key) if key[-1:] == "/" else key
